//! Stack walks with the kernel's own unwind tables (ORC), from outside.
//!
//! Comes in: the facts that tell the format of a kernel's tables ([`mod@format`]), the tables themselves ([`tables`]), and a way to
//! read stacks ([`Source`]). Decided: who called whom, frame by frame, or why that cannot be told ([`mod@walk`]). Goes out:
//! [`Walk`]s. Nothing here knows how a guest is read or where its tasks are: `guest/frames.rs` does.
//!
//! ORC is what x86-64 kernels without frame pointers carry for their own unwinder (`arch/x86/kernel/unwind_orc.c`): a sorted
//! table of instruction addresses, and for each the rule that leads from the stack of this instruction to that of the caller.

pub mod format;
pub mod tables;
pub mod walk;

pub use format::{Entry, Fields, Format, FormatError};
pub use tables::{Table, TableError, Tables};
pub use walk::{End, Frame, Saved, Source, Stack, StackKind, Start, Stop, Walk, walk};
