//! Reads what is linked in the guest: the new code, or the support object.
//!
//! Comes in: the sections of a file. Decided: that each symbol and relocation has a form that bundles have. Goes out: a
//! [`Payload`] without tables, hooks and data, which only the new code has.

use super::{ReadError, Sections};
use crate::check::Image;
use crate::layout::{Part, SECTION_NAMES, index};
use crate::records;
use crate::write::symbol_info;
use crate::{Payload, Place, Reloc, RelocKind, Symbol};
use object::LittleEndian as LE;
use object::elf;
use object::pod::slice_from_all_bytes;

/// One of the two parts that are linked: the new code, or the support object.
pub(super) fn part(
    sections: &Sections<'_>,
    part: Part,
    symbols: Vec<Symbol>,
    first_symbol: usize,
) -> Result<Payload, ReadError> {
    let of = part.sections();
    Ok(Payload {
        text: sections.get(of.text).to_vec(),
        rodata: sections.get(of.rodata).to_vec(),
        data: sections.get(of.data).to_vec(),
        bss_size: sections.bss_size(of.bss)?,
        symbols,
        relocs: relocs(sections, part, first_symbol)?,
        fixups: sections.decode(of.fixups, records::decode_fixups)?,
        tables: Vec::new(),
        hooks: Vec::new(),
        changed: Vec::new(),
        objects: Vec::new(),
    })
}

/// The entries of `.symtab` behind the null symbol.
pub(super) fn symbol_entries<'data>(sections: &Sections<'data>) -> Result<&'data [elf::Sym64<LE>], ReadError> {
    let entries: &[elf::Sym64<LE>] = table(sections, index::SYMTAB)?;
    let (null, entries) = entries.split_first().ok_or(ReadError::NoNullSymbol)?;
    if object::pod::bytes_of(null).iter().any(|byte| *byte != 0) {
        return Err(ReadError::NoNullSymbol);
    }
    sections.check_symbol_count(entries.len() + 1)?;
    Ok(entries)
}

/// The symbols of a part; the first has the index `first` in the file.
pub(super) fn symbols(
    sections: &Sections<'_>,
    part: Part,
    entries: &[elf::Sym64<LE>],
    first: usize,
    image: Image<'_>,
) -> Result<Vec<Symbol>, ReadError> {
    let names = sections.get(index::STRTAB);
    let symbol = |(at, entry): (usize, &elf::Sym64<LE>)| {
        let index = first + at;
        let offset = entry.st_name.get(LE);
        let name = names
            .get(offset as usize..)
            .and_then(|rest| rest.split(|byte| *byte == 0).next().filter(|name| name.len() < rest.len()))
            .and_then(|name| std::str::from_utf8(name).ok())
            .ok_or(ReadError::SymbolName { index, offset })?;
        let function = entry.st_info == symbol_info(elf::STT_FUNC);
        if !function && entry.st_info != symbol_info(elf::STT_NOTYPE) || entry.st_other.0 != 0 {
            return Err(ReadError::SymbolInfo { index, info: entry.st_info.0, other: entry.st_other.0 });
        }
        let value = entry.st_value.get(LE);
        let bad_value = ReadError::SymbolValue { index, value };
        let place = match entry.st_shndx.get(LE) {
            elf::SHN_ABS => Place::Absolute(value),
            elf::SymbolSection(section) => match (usize::from(section), part.section_at(section.into())) {
                (index::KERNEL, _) => Place::Kernel(image.text.checked_add(value).ok_or(bad_value)?),
                (_, Some(section)) => Place::Payload { section, offset: u32::try_from(value).map_err(|_| bad_value)? },
                _ => return Err(ReadError::SymbolSection { index, section }),
            },
        };
        Ok(Symbol { name: name.to_owned(), place, size: entry.st_size.get(LE), function })
    };
    entries.iter().enumerate().map(symbol).collect()
}

/// The relocations of a part, whose first symbol has the index `first_symbol` in the file.
fn relocs(sections: &Sections<'_>, part: Part, first_symbol: usize) -> Result<Vec<Reloc>, ReadError> {
    let mut relocs = Vec::new();
    for (at, target) in part.sections().rela {
        let section = SECTION_NAMES[at];
        for (index, entry) in table::<elf::Rela64<LE>>(sections, at)?.iter().enumerate() {
            let offset = entry.r_offset.get(LE);
            let number = entry.r_type(LE, false).0;
            let kind = RelocKind::of_elf(number).ok_or(ReadError::RelocKind { section, index, kind: number })?;
            let symbol = entry.r_sym(LE, false);
            relocs.push(Reloc {
                section: target,
                offset: u32::try_from(offset).map_err(|_| ReadError::RelocOffset { section, index, offset })?,
                kind,
                // Which symbols there are behind the first is checked with the other rules.
                symbol: symbol.checked_sub(first_symbol as u32).ok_or(ReadError::RelocOtherSymbol {
                    section,
                    index,
                    symbol,
                    first: first_symbol,
                })?,
                addend: entry.r_addend.get(LE),
            });
        }
    }
    Ok(relocs)
}

/// The entries of an ELF table.
fn table<'data, T: object::pod::Pod>(sections: &Sections<'data>, at: usize) -> Result<&'data [T], ReadError> {
    let bytes = sections.get(at);
    slice_from_all_bytes(bytes).map_err(|()| ReadError::TableSize {
        section: SECTION_NAMES[at],
        size: bytes.len(),
        entry: size_of::<T>(),
    })
}
