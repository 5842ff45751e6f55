//! The debug sections of a linked kernel.
//!
//! Comes in: a way to get a section's bytes (a mapped `vmlinux`). Decided: nothing. Goes out: [`DebugSections`], which
//! the index of units and the guest profile read from; nothing is copied and no relocation is needed, because
//! `vmlinux` is linked.

use diff_analyzer::dwarf_layout::LayoutError;
use diff_analyzer::dwarf_layout::sections::Slice;
use gimli::{Dwarf, EndianSlice, LittleEndian, SectionId};
use std::sync::Arc;

/// Why the DWARF of a kernel could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DwarfError {
    /// No DWARF at all.
    #[error(
        "the kernel image has no .debug_info; use the vmlinux with debug information (Debian: package linux-image-…-dbg)"
    )]
    NoDebugInfo,
    /// DWARF that cannot be parsed.
    #[error("malformed DWARF in the kernel image")]
    Malformed(#[from] gimli::Error),
    /// A unit whose types, functions or variables cannot be read.
    #[error("the DWARF of unit {unit} cannot be used")]
    Unit {
        /// Name of the unit.
        unit: String,
        /// What is wrong with it.
        source: LayoutError,
    },
}

/// Debug sections of a linked image.
#[derive(Debug, Clone)]
pub struct DebugSections<'a> {
    dwarf: Arc<Dwarf<Slice<'a>>>,
}

impl<'a> DebugSections<'a> {
    /// Takes the sections from `section`, which answers with nothing for one that does not exist.
    ///
    /// # Errors
    /// [`DwarfError::NoDebugInfo`] when there is no `.debug_info`.
    pub fn load(section: impl Fn(&str) -> &'a [u8]) -> Result<Self, DwarfError> {
        if section(".debug_info").is_empty() {
            return Err(DwarfError::NoDebugInfo);
        }
        let load = |id: SectionId| Ok::<_, DwarfError>(EndianSlice::new(section(id.name()), LittleEndian));
        Ok(Self { dwarf: Arc::new(Dwarf::load(load)?) })
    }

    /// The DWARF in these sections.
    pub fn dwarf(&self) -> &Dwarf<Slice<'a>> {
        &self.dwarf
    }
}
