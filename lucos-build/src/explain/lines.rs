//! Source lines of an object's code.
//!
//! Comes in: the bytes of a relocatable object with DWARF. Decided: an address for every section with code, so that a
//! reader of linked files can tell them apart; the fields of the debug sections are filled as a linker would. Goes out:
//! [`SourceLines`], which knows the file, line and inlined callers of a place.

use diff_analyzer::object::SectionIndex;
use object::elf;
use object::read::elf::ElfFile64;
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags, RelocationTarget, SectionIndex as ElfIndex,
};
use serde::Serialize;
use std::collections::HashMap;
use symbolic::debuginfo::Object as DebugObject;
use symbolic::symcache::{SymCache, SymCacheConverter};

/// Where an instruction comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourcePlace {
    /// Source file, relative to the tree where that is known.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Function that the line is written in.
    pub function: String,
}

/// Why an object tells no lines.
#[derive(Debug, thiserror::Error)]
pub enum LinesError {
    /// It cannot be read.
    #[error("the object cannot be read")]
    Object(#[from] object::read::Error),
    /// A part of the file is not where it says.
    #[error("section {0} lies outside the file")]
    Outside(String),
    /// Compressed sections cannot be filled in place.
    #[error("its debug sections are compressed")]
    Compressed,
    /// A relocation that debug sections do not have.
    #[error("{section}: relocation type {kind} is not one that debug sections use")]
    Relocation {
        /// Section that holds it.
        section: String,
        /// `R_X86_64_*`.
        kind: u32,
    },
    /// The debug information cannot be read.
    #[error("its debug information cannot be used: {0}")]
    Debug(String),
}

/// Lines of an object's code.
pub struct SourceLines {
    cache: Vec<u8>,
    addresses: HashMap<ElfIndex, u64>,
    root: String,
}

// Address of the first section, and the least distance between two.
const FIRST: u64 = 0x1000;
const GAP: u64 = 0x40;

// Fields of the ELF header, of a section header and of a symbol (gABI "ELF Header", "Sections", "Symbol Table").
const E_TYPE: usize = 16;
const SECTION_HEADER: usize = 64;
const SH_ADDR: usize = 16;
const SYMBOL: usize = 24;
const ST_SHNDX: usize = 6;
const ST_VALUE: usize = 8;

impl SourceLines {
    /// Reads the lines of an object. `unit` is its source file relative to the tree, if it is known.
    ///
    /// # Errors
    /// [`LinesError`].
    pub fn of_object(bytes: &[u8], unit: Option<&str>) -> Result<Self, LinesError> {
        let (linked, addresses) = lay_out(bytes)?;
        let debug = |error: &dyn std::error::Error| LinesError::Debug(error.to_string());
        let object = DebugObject::parse(&linked).map_err(|error| debug(&error))?;
        let mut converter = SymCacheConverter::new();
        converter.process_object(&object).map_err(|error| debug(&error))?;
        let mut cache = Vec::new();
        converter.serialize(&mut cache).map_err(|error| debug(&error))?;
        let root = {
            let parsed = SymCache::parse(&cache).map_err(|error| debug(&error))?;
            let below = |path: String| Some(path.strip_suffix(unit?)?.to_owned());
            parsed
                .files()
                .find_map(|file| below(file.full_path()).filter(|root| root.ends_with('/')))
                .unwrap_or_default()
        };
        Ok(Self { cache, addresses, root })
    }

    /// Where the byte at `offset` of a section comes from: the line itself first, then the calls it is inlined by.
    pub fn at(&self, section: SectionIndex, offset: u64) -> Vec<SourcePlace> {
        // Sections of an `Object` are those of the file without the first, which is none.
        let Some(base) = self.addresses.get(&ElfIndex(section.0 + 1)) else { return Vec::new() };
        let Ok(cache) = SymCache::parse(&self.cache) else { return Vec::new() };
        let place = |location: symbolic::symcache::SourceLocation<'_, '_>| {
            let path = location.file()?.full_path();
            let file = path.strip_prefix(&self.root).unwrap_or(&path).to_owned();
            (location.line() > 0).then(|| SourcePlace {
                file,
                line: location.line(),
                function: location.function().name().to_owned(),
            })
        };
        cache.lookup(base + offset).filter_map(place).collect()
    }
}

/// A copy of an object in which code sections have addresses, symbols have theirs, and debug sections are filled.
fn lay_out(bytes: &[u8]) -> Result<(Vec<u8>, HashMap<ElfIndex, u64>), LinesError> {
    let file = ElfFile64::<object::Endianness>::parse(bytes)?;
    let mut copy = bytes.to_vec();
    let table = file.elf_header().e_shoff.get(file.endian()) as usize;
    let mut addresses = HashMap::new();
    let mut next = FIRST;
    for section in file.sections() {
        let flags = section.elf_section_header().sh_flags.get(file.endian());
        if flags.0 & elf::SHF_EXECINSTR.0 == 0 {
            continue;
        }
        let address = next.next_multiple_of(section.align().clamp(1, 4096));
        next = address.saturating_add(section.size()).saturating_add(GAP);
        addresses.insert(section.index(), address);
        write(&mut copy, table + section.index().0 * SECTION_HEADER + SH_ADDR, &address.to_le_bytes(), ".shstrtab")?;
    }
    write(&mut copy, E_TYPE, &elf::ET_EXEC.0.to_le_bytes(), "header")?;
    let address_of = |section: Option<ElfIndex>| section.and_then(|index| addresses.get(&index)).copied().unwrap_or(0);
    if let Some(symbols) = file.sections().find(|section| section.name() == Ok(".symtab"))
        && let Some((start, size)) = symbols.file_range()
    {
        for at in (start as usize..(start + size) as usize).step_by(SYMBOL) {
            let field = |from: usize, len: usize| bytes.get(at + from..at + from + len);
            let (Some(index), Some(value)) = (field(ST_SHNDX, 2), field(ST_VALUE, 8)) else { break };
            let index = ElfIndex(usize::from(u16::from_le_bytes([index[0], index[1]])));
            let value =
                u64::from_le_bytes(value.try_into().expect("eight bytes")).wrapping_add(address_of(Some(index)));
            write(&mut copy, at + ST_VALUE, &value.to_le_bytes(), ".symtab")?;
        }
    }
    for section in file.sections() {
        let name = section.name()?;
        if !name.starts_with(".debug_") {
            continue;
        }
        if section.compressed_file_range()?.format != object::CompressionFormat::None {
            return Err(LinesError::Compressed);
        }
        let Some((start, size)) = section.file_range() else { continue };
        for (offset, reloc) in section.relocations() {
            let RelocationFlags::Elf { r_type } = reloc.flags() else { continue };
            let width = match r_type {
                elf::R_X86_64_64 | elf::R_X86_64_DTPOFF64 => 8,
                elf::R_X86_64_32 | elf::R_X86_64_32S | elf::R_X86_64_DTPOFF32 => 4,
                elf::R_X86_64_NONE => continue,
                kind => return Err(LinesError::Relocation { section: name.to_owned(), kind: kind.0 }),
            };
            let RelocationTarget::Symbol(target) = reloc.target() else { continue };
            let symbol = file.symbol_by_index(target)?;
            let base = address_of(symbol.section_index());
            let value = symbol.address().wrapping_add(base).wrapping_add_signed(reloc.addend()).to_le_bytes();
            if offset.checked_add(width as u64).is_none_or(|end| end > size) {
                return Err(LinesError::Outside(name.to_owned()));
            }
            write(&mut copy, (start + offset) as usize, &value[..width], name)?;
        }
    }
    Ok((copy, addresses))
}

fn write(copy: &mut [u8], at: usize, bytes: &[u8], what: &str) -> Result<(), LinesError> {
    let field = at.checked_add(bytes.len()).and_then(|end| copy.get_mut(at..end));
    field.ok_or_else(|| LinesError::Outside(what.to_owned()))?.copy_from_slice(bytes);
    Ok(())
}
