//! A compiled unit as plain values: sections, symbols, relocations.
//!
//! Comes in: the bytes of a relocatable x86-64 ELF file, as the kernel's build makes it. Decided: nothing. Goes out:
//! [`Object`], in which every index is checked, so that the comparison and the linker need no more error paths.

use crate::local_branches;
use iced_x86::{Decoder, DecoderOptions, OpKind};
use object::elf;
use object::read::elf::ElfFile64;
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags, RelocationTarget, SectionFlags, SymbolFlags,
};
use std::collections::HashMap;

/// Index into [`Object::sections`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SectionIndex(pub usize);

/// Index into [`Object::symbols`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SymbolIndex(pub usize);

/// A compiled unit.
#[derive(Debug, Clone, Default)]
pub struct Object {
    /// Sections with contents; relocation and symbol sections are resolved into the others.
    pub sections: Vec<Section>,
    /// Symbols, including undefined ones and one per section.
    pub symbols: Vec<Symbol>,
}

/// A section.
#[derive(Debug, Clone)]
pub struct Section {
    /// Name.
    pub name: String,
    /// `sh_flags`.
    pub flags: u64,
    /// `sh_entsize`.
    pub entry_size: u64,
    /// Contents; empty for `SHT_NOBITS`.
    pub data: Vec<u8>,
    /// Size in memory.
    pub size: u64,
    /// Alignment in bytes.
    pub align: u64,
    /// Relocations, sorted by offset.
    pub relocs: Vec<Reloc>,
}

impl Section {
    /// Whether it holds instructions.
    pub fn is_code(&self) -> bool {
        self.flags & elf::SHF_EXECINSTR.0 != 0
    }

    /// Size of the elements that a linker may merge with equal ones, if that is what it consists of.
    pub fn mergeable(&self) -> Option<u64> {
        let merge = self.flags & elf::SHF_MERGE.0 != 0;
        (merge && self.entry_size > 0).then_some(self.entry_size)
    }

    /// Whether its elements end with a zero, instead of all having one size.
    pub fn has_strings(&self) -> bool {
        self.flags & elf::SHF_STRINGS.0 != 0
    }
}

/// A relocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloc {
    /// Byte offset in the section.
    pub offset: u64,
    /// `R_X86_64_*`.
    pub kind: u32,
    /// Target.
    pub symbol: SymbolIndex,
    /// Addend.
    pub addend: i64,
    /// In code: bytes of the instruction behind the field (an immediate), which a PC-relative addend takes off as well.
    pub tail: u8,
    /// In code: whether it is the target of a call or jump.
    pub branch: bool,
    /// Whether the field is part of an instruction.
    pub code: bool,
}

/// Where a symbol is defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Definition {
    /// Elsewhere.
    Undefined,
    /// A plain value.
    Absolute,
    /// In a section of this object.
    Section(SectionIndex),
}

/// A symbol.
#[derive(Debug, Clone)]
pub struct Symbol {
    /// Name; the section's name for section symbols.
    pub name: String,
    /// Offset in its section.
    pub value: u64,
    /// Size in bytes.
    pub size: u64,
    /// Where it is defined.
    pub definition: Definition,
    /// `STT_*`.
    pub kind: u8,
    /// `STB_*`.
    pub binding: u8,
}

/// Why an object could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Not an x86-64 ELF object.
    #[error("not a relocatable x86-64 ELF object")]
    Parse(#[from] object::read::Error),
    /// A relocation that is not of the ELF kind or has no symbol.
    #[error("section {section}: relocation at {offset:#x} has no symbol")]
    Relocation {
        /// Section that holds it.
        section: String,
        /// Its offset.
        offset: u64,
    },
}

impl Object {
    /// Reads a relocatable ELF file.
    ///
    /// # Errors
    /// [`ObjectError`] when the bytes are not such a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, ObjectError> {
        let file = ElfFile64::<object::Endianness>::parse(bytes)?;
        let mut sections = Vec::new();
        let mut section_of = HashMap::new();
        for section in file.sections() {
            let SectionFlags::Elf { sh_flags, .. } = section.flags() else { continue };
            section_of.insert(section.index(), SectionIndex(sections.len()));
            sections.push(Section {
                name: section.name()?.to_owned(),
                flags: sh_flags.0,
                entry_size: section.elf_section_header().sh_entsize.get(file.endian()),
                data: section.data()?.to_vec(),
                size: section.size(),
                align: section.align().max(1),
                relocs: Vec::new(),
            });
        }
        let mut symbols = Vec::new();
        let mut symbol_of = HashMap::new();
        for symbol in file.symbols() {
            let SymbolFlags::Elf { st_info, .. } = symbol.flags() else { continue };
            let definition = match symbol.section() {
                object::SymbolSection::Section(index) => match section_of.get(&index) {
                    Some(&index) => Definition::Section(index),
                    None => Definition::Undefined,
                },
                object::SymbolSection::Absolute => Definition::Absolute,
                _ => Definition::Undefined,
            };
            let kind = st_info.0 & 0xf;
            let name = match definition {
                Definition::Section(index) if kind == elf::STT_SECTION.0 => sections[index.0].name.clone(),
                _ => symbol.name()?.to_owned(),
            };
            symbol_of.insert(symbol.index(), SymbolIndex(symbols.len()));
            symbols.push(Symbol {
                name,
                value: symbol.address(),
                size: symbol.size(),
                definition,
                kind,
                binding: st_info.0 >> 4,
            });
        }
        for section in file.sections() {
            let Some(&SectionIndex(index)) = section_of.get(&section.index()) else { continue };
            let mut relocs = Vec::new();
            for (offset, reloc) in section.relocations() {
                let missing = || ObjectError::Relocation { section: sections[index].name.clone(), offset };
                let RelocationTarget::Symbol(target) = reloc.target() else { return Err(missing()) };
                let RelocationFlags::Elf { r_type } = reloc.flags() else { return Err(missing()) };
                let &symbol = symbol_of.get(&target).ok_or_else(missing)?;
                let code = sections[index].is_code();
                relocs.push(Reloc {
                    offset,
                    kind: r_type.0,
                    symbol,
                    addend: reloc.addend(),
                    tail: 0,
                    branch: false,
                    code,
                });
            }
            relocs.sort_by_key(|reloc| reloc.offset);
            sections[index].relocs = relocs;
        }
        let mut object = Self { sections, symbols };
        object.decode_code();
        local_branches::name(&mut object);
        Ok(object)
    }

    /// Decodes all code to learn what instructions hold relocated fields, and where they end.
    fn decode_code(&mut self) {
        let mut starts = vec![Vec::new(); self.sections.len()];
        for symbol in self.symbols.iter().filter(|symbol| symbol.kind == elf::STT_FUNC.0) {
            if let Definition::Section(section) = symbol.definition {
                starts[section.0].push(symbol.value as usize);
            }
        }
        for (section, mut starts) in self.sections.iter_mut().zip(starts) {
            if !section.is_code() || section.relocs.is_empty() {
                continue;
            }
            starts.push(0);
            starts.sort_unstable();
            starts.dedup();
            for (index, &start) in starts.iter().enumerate() {
                let end = starts.get(index + 1).copied().unwrap_or(section.data.len());
                let Some(code) = section.data.get(start..end) else { continue };
                let mut decoder = Decoder::with_ip(64, code, start as u64, DecoderOptions::NONE);
                let mut next = section.relocs.partition_point(|reloc| reloc.offset < start as u64);
                while decoder.can_decode() {
                    let instruction = decoder.decode();
                    let instruction_end = instruction.next_ip();
                    let branch = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64;
                    while let Some(reloc) = section.relocs.get_mut(next).filter(|reloc| reloc.offset < instruction_end)
                    {
                        reloc.branch = branch;
                        reloc.tail = instruction_end.saturating_sub(reloc.offset + 4).min(15) as u8;
                        next += 1;
                    }
                }
            }
        }
    }

    /// The symbol behind an index.
    pub fn symbol(&self, index: SymbolIndex) -> &Symbol {
        &self.symbols[index.0]
    }

    /// The section behind an index.
    pub fn section(&self, index: SectionIndex) -> &Section {
        &self.sections[index.0]
    }
}
