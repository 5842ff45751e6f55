//! Where each symbol lives.
