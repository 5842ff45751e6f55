//! From a kernel diff to a bundle.
