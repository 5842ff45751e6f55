//! Debug sections of a relocatable object, ready to read.
//!
//! Comes in: the bytes of an x86-64 `.o` file. Decided: which fields of its `.debug_*` sections the linker would fill,
//! and with what. Goes out: [`ObjectDebug`], filled copies, in which every section of data starts at 0, and every section of
//! code at an address of its own ([`code_address`]): many functions have a section each.

use crate::object::SectionIndex;
use gimli::{Dwarf, EndianSlice, LittleEndian};
use object::elf;
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags, RelocationTarget, SectionKind};
use std::collections::HashMap;

/// The reader all DWARF of an x86-64 kernel is read with.
pub type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Where debug sections come from: an object, or a mapped kernel image.
pub trait DebugSource {
    /// Contents of a section such as `.debug_info`; empty when there is none.
    fn debug_section(&self, name: &str) -> &[u8];
}

/// The DWARF behind a source of sections.
pub fn dwarf_of<S: DebugSource + ?Sized>(source: &S) -> Dwarf<Slice<'_>> {
    let load = |id: gimli::SectionId| {
        Ok::<_, std::convert::Infallible>(EndianSlice::new(source.debug_section(id.name()), LittleEndian))
    };
    match Dwarf::load(load) {
        Ok(dwarf) => dwarf,
        Err(never) => match never {},
    }
}

/// Why the debug sections of an object could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum SectionsError {
    /// Not an x86-64 ELF object, or a broken one.
    #[error("not a readable x86-64 ELF object")]
    Parse(#[from] object::read::Error),
    /// No DWARF at all.
    #[error("the object has no .debug_info; compile it with -g (CONFIG_DEBUG_INFO)")]
    NoDebugInfo,
    /// A relocation of a kind that compilers do not put into debug sections.
    #[error("{section}+{offset:#x}: relocation type {kind} is not one that debug sections use")]
    Relocation {
        /// Section that holds it.
        section: String,
        /// Offset in it.
        offset: u64,
        /// `R_X86_64_*`.
        kind: u32,
    },
    /// A relocation that lies outside its section or names no symbol.
    #[error("{section}+{offset:#x}: the relocation lies outside the section or has no target")]
    BadRelocation {
        /// Section that holds it.
        section: String,
        /// Offset in it.
        offset: u64,
    },
}

/// Where debug sections say that a section of code starts.
pub fn code_address(section: SectionIndex) -> u64 {
    (section.0 as u64 + 1) << SECTION_BITS
}

/// The section of code and the offset in it behind an address that debug sections say.
pub fn code_place(address: u64) -> Option<(SectionIndex, u64)> {
    let section = (address >> SECTION_BITS).checked_sub(1)?;
    Some((SectionIndex(usize::try_from(section).ok()?), address & ((1 << SECTION_BITS) - 1)))
}

/// No section of an object comes near this size.
const SECTION_BITS: u32 = 40;

/// The sections that types, variables, functions and file names are read from.
pub(crate) const READ: [&str; 9] = [
    ".debug_abbrev",
    ".debug_addr",
    ".debug_info",
    ".debug_line",
    ".debug_line_str",
    ".debug_ranges",
    ".debug_rnglists",
    ".debug_str",
    ".debug_str_offsets",
];

/// Filled copies of an object's debug sections.
#[derive(Debug, Default)]
pub struct ObjectDebug {
    sections: HashMap<String, Vec<u8>>,
}

impl ObjectDebug {
    /// Copies the debug sections of an object and applies their relocations.
    ///
    /// # Errors
    /// [`SectionsError`] when the bytes are not such an object or hold something unexpected.
    pub fn read(bytes: &[u8]) -> Result<Self, SectionsError> {
        let file = ElfFile64::<object::Endianness>::parse(bytes)?;
        // Numbered as in `Object::parse`.
        let code: HashMap<object::SectionIndex, u64> = (file.sections().enumerate())
            .filter(|(_, section)| section.kind() == SectionKind::Text)
            .map(|(index, section)| (section.index(), code_address(SectionIndex(index))))
            .collect();
        let mut sections = HashMap::new();
        for section in file.sections() {
            let name = section.name()?;
            if !READ.contains(&name) {
                continue;
            }
            let mut data = section.uncompressed_data()?.into_owned();
            for (offset, reloc) in section.relocations() {
                let bad = || SectionsError::BadRelocation { section: name.to_owned(), offset };
                let RelocationFlags::Elf { r_type } = reloc.flags() else { return Err(bad()) };
                // psABI x86-64 1.0, table 4.9; thread-local offsets occur in locations of `__thread` data.
                let width = match r_type {
                    elf::R_X86_64_64 | elf::R_X86_64_DTPOFF64 => 8,
                    elf::R_X86_64_32 | elf::R_X86_64_32S | elf::R_X86_64_DTPOFF32 => 4,
                    elf::R_X86_64_NONE => continue,
                    kind => return Err(SectionsError::Relocation { section: name.to_owned(), offset, kind: kind.0 }),
                };
                let RelocationTarget::Symbol(target) = reloc.target() else { return Err(bad()) };
                let symbol = file.symbol_by_index(target)?;
                let base = symbol.section_index().and_then(|section| code.get(&section)).copied().unwrap_or(0);
                let value = base.wrapping_add(symbol.address()).wrapping_add_signed(reloc.addend()).to_le_bytes();
                let start = usize::try_from(offset).map_err(|_| bad())?;
                let end = start.checked_add(width).ok_or_else(bad)?;
                data.get_mut(start..end).ok_or_else(bad)?.copy_from_slice(&value[..width]);
            }
            sections.insert(name.to_owned(), data);
        }
        if sections.get(".debug_info").is_none_or(Vec::is_empty) {
            return Err(SectionsError::NoDebugInfo);
        }
        Ok(Self { sections })
    }
}

impl DebugSource for ObjectDebug {
    fn debug_section(&self, name: &str) -> &[u8] {
        self.sections.get(name).map_or(&[], Vec::as_slice)
    }
}
