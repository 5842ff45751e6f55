//! References between functions of one section, which assemblers resolve without a relocation.
//!
//! Comes in: an object. Decided: which instructions of a function lead into another function of its section by a distance
//! that the assembler has filled in. Such a distance changes whenever code between the two does, and is wrong as soon as one
//! of them is moved. Goes out: the object with a relocation for each, as if the functions had sections of their own.

use crate::object::{Definition, Object, Reloc, Section, SymbolIndex};
use iced_x86::{Decoder, DecoderOptions, OpKind};
use object::elf;
use std::collections::BTreeMap;
use std::ops::Range;

/// Adds the relocations.
pub fn name(object: &mut Object) {
    let mut functions: BTreeMap<usize, BTreeMap<u64, u64>> = BTreeMap::new();
    let mut bases: BTreeMap<usize, SymbolIndex> = BTreeMap::new();
    for (index, symbol) in object.symbols.iter().enumerate() {
        let Definition::Section(section) = symbol.definition else { continue };
        if symbol.kind == elf::STT_FUNC.0 {
            let size = functions.entry(section.0).or_default().entry(symbol.value).or_default();
            *size = (*size).max(symbol.size);
        } else if symbol.kind == elf::STT_SECTION.0 {
            bases.insert(section.0, SymbolIndex(index));
        }
    }
    for (index, starts) in functions.into_iter().filter(|(_, starts)| starts.len() > 1) {
        // Without a symbol of the section nothing can name a place in it; every assembler makes one.
        let Some(&base) = bases.get(&index) else { continue };
        let section = &mut object.sections[index];
        if !section.is_code() {
            continue;
        }
        let mut added: Vec<Reloc> = Vec::new();
        for (start, size) in starts {
            added.extend(leaving(section, start..start.saturating_add(size).min(section.size), base));
        }
        section.relocs.extend(added);
        section.relocs.sort_by_key(|reloc| reloc.offset);
    }
}

/// Fields of a function that lead to other places of its section.
fn leaving(section: &Section, function: Range<u64>, base: SymbolIndex) -> Vec<Reloc> {
    let Some(code) = section.data.get(function.start as usize..function.end as usize) else { return Vec::new() };
    let mut decoder = Decoder::with_ip(64, code, function.start, DecoderOptions::NONE);
    let mut found = Vec::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let offsets = decoder.get_constant_offsets(&instruction);
        let branch = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64;
        let (at, width, target) = if branch && offsets.has_immediate() {
            (offsets.immediate_offset(), offsets.immediate_size(), instruction.near_branch64())
        } else if instruction.is_ip_rel_memory_operand() && offsets.has_displacement() {
            (offsets.displacement_offset(), offsets.displacement_size(), instruction.ip_rel_memory_address())
        } else {
            continue;
        };
        let kind = match width {
            // As assemblers write a branch to another section.
            4 if branch => elf::R_X86_64_PLT32.0,
            4 => elf::R_X86_64_PC32.0,
            1 => elf::R_X86_64_PC8.0,
            _ => continue,
        };
        let offset = instruction.ip() + at as u64;
        let related = section.relocs.binary_search_by_key(&offset, |reloc| reloc.offset).is_ok();
        if related || function.contains(&target) || target >= section.size {
            continue;
        }
        let tail = instruction.next_ip() - offset - width as u64;
        let addend = target.wrapping_sub(width as u64 + tail) as i64;
        found.push(Reloc { offset, kind, symbol: base, addend, tail: tail as u8, branch, code: true });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{SectionIndex, Symbol};
    use crate::pieces::{Pieces, Target};

    fn symbol(name: &str, value: u64, size: u64, kind: u8) -> Symbol {
        let definition = Definition::Section(SectionIndex(0));
        Symbol { name: name.to_owned(), value, size, definition, kind, binding: 0 }
    }

    #[test]
    fn calls_and_short_jumps_to_other_functions_are_references() {
        // one: call two; jmp one; two: jmp short one
        let data = vec![0xe8, 0x02, 0, 0, 0, 0xeb, 0xf9, 0xeb, 0xf7];
        let section = Section {
            name: ".text".to_owned(),
            flags: 6,
            entry_size: 0,
            size: data.len() as u64,
            data,
            align: 1,
            relocs: Vec::new(),
        };
        let symbols = vec![symbol(".text", 0, 0, 3), symbol("one", 0, 7, 2), symbol("two", 7, 2, 2)];
        let mut object = Object { sections: vec![section], symbols };
        name(&mut object);
        let pieces = Pieces::cut(&object, &BTreeMap::new()).expect("no tables");
        let relocs = &object.sections[0].relocs;
        let targets: Vec<(u64, Target)> = relocs.iter().map(|reloc| (reloc.offset, pieces.target(reloc))).collect();
        let index = |name: &str| pieces.iter().find(|(_, piece)| piece.name == name).expect("a function").0;
        assert_eq!(targets, [(1, Target::Piece(index("two"), 0)), (8, Target::Piece(index("one"), 0))]);
    }
}
