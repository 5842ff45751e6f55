//! What a kernel diff changes: source files, objects, layouts; Type 1 or Type 2.

pub mod classify;
pub mod correlate;
pub mod declarations;
pub mod disassemble;
pub mod dwarf_layout;
pub mod image_layout;
pub mod layout_diff;
pub mod local_branches;
pub mod object;
pub mod object_diff;
pub mod pieces;
pub mod returns;
pub mod semantics;
pub mod source_diff;
pub mod special;
pub mod transfer;
