//! The `.lpk` bundle: one relocatable ELF file that carries an update from `lucos-build` to `lucos-hv`.
//!
//! Comes in: a [`Bundle`] on the side of the producer, the bytes of a file on the side of the consumer. Decided:
//! whether the bundle is sound ([`Problem`] lists every rule) and whether the file is its one encoding
//! ([`ReadError`]). Goes out: the file ([`write()`]), or the bundle and its identity ([`read()`]).
//!
//! `docs/lpk-format.md` specifies the file to the byte. The same bundle gives the same bytes, and a file that the
//! reader accepts is the file that the writer would write: no byte of it is left unexplained.

mod bundle;
mod check;
mod data;
mod digest;
pub mod hex;
mod hooks;
mod layout;
mod objects;
mod read;
mod records;
mod returns;
mod write;

pub use bundle::*;
pub use check::Problem;
pub use data::{DataChange, DataPatch, Step, StepKind};
pub use digest::{BundleId, NotAnId, SealError, seal};
pub use hooks::{Hook, HookKind, HookSubject};
pub use layout::limits;
pub use layout::{FORMAT_VERSION, SECTION_NAMES};
pub use objects::{AddedBytes, ObjectPatch};
pub use read::{ReadBundle, ReadError, read};
pub use records::RecordError;
pub use returns::ReturnPair;
pub use write::{WriteError, write};
