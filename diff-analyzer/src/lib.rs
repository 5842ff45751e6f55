//! What a kernel diff changes: source files, objects, layouts; Type 1 or Type 2.

pub mod object;
