//! Applies, shows and undoes bundles on a running guest.

pub mod engine;
