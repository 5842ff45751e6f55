//! The `.lpk` bundle: one relocatable ELF file that carries an update from `lucos-build` to `lucos-hv`.

mod bundle;
pub mod hex;

pub use bundle::*;
