//! Which units a changed header can change.

pub mod graph;
pub mod paste;
pub mod text;
