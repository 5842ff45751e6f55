//! The `lucos-hv` command.
fn main() {}
