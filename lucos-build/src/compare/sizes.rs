//! How long the entries of an object's special tables are.
//!
//! Comes in: sizes of types from the kernel image's or the objects' own DWARF; the tables. Decided: for a table whose type
//! is in neither, the period with which its relocations repeat, if there is exactly one that fits all of it. Goes out: sizes
//! by type, for cutting an object into pieces, and where each is from.

use diff_analyzer::dwarf_layout::Layouts;
use diff_analyzer::object::{Definition, Object, Section};
use diff_analyzer::special::{SectionRole, role};
use serde::Serialize;
use std::collections::BTreeMap;

/// Size of the entries of a table, and who says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntrySize {
    /// The kernel's type of an entry.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// `vmlinux`, `debug information of the object`, or `the table itself`.
    pub from: &'static str,
}

/// The kernel's type of the entries of a table, for the tables that have one.
const TYPES: [(&str, &str); 6] = [
    (".altinstructions", "alt_instr"),
    (".parainstructions", "paravirt_patch_site"),
    (".static_call_sites", "static_call_site"),
    ("__jump_table", "jump_entry"),
    ("__bug_table", "bug_entry"),
    ("__ex_table", "exception_table_entry"),
];

/// Sizes of entries, by type: `known` (of the image) first, then the objects' own, then the tables'.
pub(super) fn entry_sizes(known: &BTreeMap<String, u64>, objects: [(&Object, Option<&Layouts>); 2]) -> Vec<EntrySize> {
    let mut sizes = Vec::new();
    for (section, name) in TYPES {
        let tables: Vec<(&Object, &Section)> = (objects.iter())
            .flat_map(|(object, _)| object.sections.iter().map(move |found| (*object, found)))
            .filter(|(_, found)| found.name == section && found.size > 0)
            .collect();
        if tables.is_empty() {
            continue;
        }
        debug_assert!(matches!(role(section, false), SectionRole::Table(_)));
        let own = objects.iter().filter_map(|(_, layouts)| layouts.as_ref()?.types.get(&format!("struct {name}")));
        let found = match (known.get(name), own.map(|layout| layout.size).next()) {
            (Some(&size), _) => Some((size, "vmlinux")),
            (None, Some(size)) => Some((size, "debug information of the object")),
            (None, None) => period(&tables).map(|size| (size, "the table itself")),
        };
        if let Some((size, from)) = found {
            sizes.push(EntrySize { name: name.to_owned(), size, from });
        }
    }
    sizes
}

/// No entry of a known kernel is larger.
const LARGEST: u64 = 16;

/// The least distance at which the relocations of all the tables repeat, when each entry begins with one that leads to code.
fn period(tables: &[(&Object, &Section)]) -> Option<u64> {
    (4..=LARGEST).step_by(2).find(|&size| tables.iter().all(|(object, table)| repeats(object, table, size)))
}

fn repeats(object: &Object, table: &Section, size: u64) -> bool {
    if !table.size.is_multiple_of(size) {
        return false;
    }
    let entry = |index: u64| -> Vec<(u64, u32)> {
        let relocs = table.relocs.iter().filter(|reloc| reloc.offset / size == index);
        relocs.map(|reloc| (reloc.offset % size, reloc.kind)).collect()
    };
    let leads_to_code = |index: u64| {
        let mut relocs = table.relocs.iter().filter(|reloc| reloc.offset == index * size);
        relocs.next().is_some_and(|reloc| match object.symbol(reloc.symbol).definition {
            Definition::Section(section) => object.section(section).is_code(),
            _ => false,
        })
    };
    // A key may be written as a number where others are relocations, so only the fields before it have to be alike.
    let first = entry(0);
    (0..table.size / size).all(|index| leads_to_code(index) && entry(index) == first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use diff_analyzer::object::{Reloc, SectionIndex, Symbol, SymbolIndex};

    fn object(name: &str, size: u64, relocs: &[(u64, usize)]) -> Object {
        let section = |name: &str, flags, size, relocs| Section {
            name: name.to_owned(),
            flags,
            entry_size: 0,
            data: vec![0; size as usize],
            size,
            align: 1,
            relocs,
        };
        let reloc = |&(offset, symbol): &(u64, usize)| Reloc {
            offset,
            kind: 2,
            symbol: SymbolIndex(symbol),
            addend: 0,
            tail: 0,
            branch: false,
            code: false,
        };
        let relocs = relocs.iter().map(reloc).collect();
        let symbol = |index| Symbol {
            name: String::new(),
            value: 0,
            size: 0,
            definition: Definition::Section(SectionIndex(index)),
            kind: 3,
            binding: 0,
        };
        Object {
            sections: vec![section(".text", 6, 64, Vec::new()), section(name, 2, size, relocs)],
            symbols: vec![symbol(0), symbol(1)],
        }
    }

    fn found(object: &Object, known: &[(&str, u64)]) -> Vec<(u64, &'static str)> {
        let known = known.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
        entry_sizes(&known, [(object, None), (object, None)]).into_iter().map(|size| (size.size, size.from)).collect()
    }

    #[test]
    fn a_table_tells_the_size_of_its_entries() {
        // Two bug entries: code, file; three exception entries: code, code, a number.
        let bugs = object("__bug_table", 24, &[(0, 0), (4, 1), (12, 0), (16, 1)]);
        assert_eq!(found(&bugs, &[]), [(12, "the table itself")]);
        assert_eq!(found(&bugs, &[("bug_entry", 12)]), [(12, "vmlinux")]);
        let faults = object("__ex_table", 36, &[(0, 0), (4, 0), (12, 0), (16, 0), (24, 0), (28, 0)]);
        assert_eq!(found(&faults, &[]), [(12, "the table itself")]);
        let odd = object("__ex_table", 20, &[(0, 0), (12, 0)]);
        assert_eq!(found(&odd, &[]), []);
    }
}
