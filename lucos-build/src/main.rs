//! The `lucos-build` command.
fn main() {}
