//! Equality of two pieces: bytes, what relocations mean, and the entries of special sections about them.
//!
//! Comes in: a piece of each object. Decided: whether they mean the same; numbers that the compiler gives and lines of the source do
//! not count. Goes out: the first [`Difference`], if there is one.

use super::Difference;
use crate::correlate::{Correlation, is_fresh, without_counter, without_number};
use crate::object::{Definition, Object, Reloc, Section};
use crate::pieces::{Entry, Piece, PieceIndex, PieceKind, Pieces, Target, field_width};
use crate::special::{SectionRole, Table, role};
use object::elf;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

/// Compares pieces of an original and a patched object.
pub(crate) struct Comparison<'a, 'o> {
    pub(super) original: &'a Pieces<'o>,
    pub(super) patched: &'a Pieces<'o>,
    pub(super) correlation: &'a Correlation,
    /// Pairs that are being compared, which may refer to themselves.
    pub(super) under_way: RefCell<HashSet<(PieceIndex, PieceIndex)>>,
}

impl Comparison<'_, '_> {
    /// Sections of a role that differ, by name; also those that come or go.
    pub(super) fn sections_that_differ(&self, role: SectionRole) -> Vec<String> {
        let (old, new) = (sections_of(self.original.object, role), sections_of(self.patched.object, role));
        let names: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        let same = |name: &str| match (old.get(name), new.get(name)) {
            (Some(old), Some(new)) => {
                old.len() == new.len() && old.iter().zip(new).all(|(old, new)| self.same_section(old, new))
            }
            _ => false,
        };
        names.into_iter().filter(|name| !same(name)).map(str::to_owned).collect()
    }

    fn same_section(&self, old: &Section, new: &Section) -> bool {
        let (mut old_bytes, mut new_bytes) = (old.data.clone(), new.data.clone());
        blank(&mut old_bytes, &old.relocs, 0);
        blank(&mut new_bytes, &new.relocs, 0);
        old.size == new.size
            && old_bytes == new_bytes
            && old.relocs.len() == new.relocs.len()
            && old.relocs.iter().zip(&new.relocs).all(|(old, new)| self.same_reference(old, 0, new, 0))
    }

    pub(super) fn piece(&self, old: PieceIndex, new: PieceIndex) -> Option<Difference> {
        let (old_piece, new_piece) = (self.original.piece(old), self.patched.piece(new));
        if old_piece.size() != new_piece.size() {
            return Some(Difference::Size(old_piece.size(), new_piece.size()));
        }
        if old_piece.role != new_piece.role {
            let name = |pieces: &Pieces<'_>, piece: PieceIndex| {
                pieces.object.section(pieces.piece(piece).section).name.clone()
            };
            return Some(Difference::Section(name(self.original, old), name(self.patched, new)));
        }
        if !self.under_way.borrow_mut().insert((old, new)) {
            // Equal as far as this reference goes: whoever began to compare these two decides.
            return None;
        }
        let found = self
            .contents((old, old_piece.range.clone()), (new, new_piece.range.clone()))
            .or_else(|| self.tables(old, new))
            .or_else(|| self.unwind(old_piece, new_piece));
        self.under_way.borrow_mut().remove(&(old, new));
        found
    }

    /// Compares two ranges of sections: bytes outside relocated fields, and what the fields refer to.
    fn contents(&self, old: (PieceIndex, Range<u64>), new: (PieceIndex, Range<u64>)) -> Option<Difference> {
        let (mut old_bytes, mut new_bytes) =
            (bytes_of(self.original, old.0, &old.1), bytes_of(self.patched, new.0, &new.1));
        blank(&mut old_bytes, self.original.relocs_in(self.original.piece(old.0).section, old.1.clone()), old.1.start);
        blank(&mut new_bytes, self.patched.relocs_in(self.patched.piece(new.0).section, new.1.clone()), new.1.start);
        // A section of zeros may have no contents in the file.
        let len = old_bytes.len().max(new_bytes.len());
        for (bytes, range) in [(&mut old_bytes, &old.1), (&mut new_bytes, &new.1)] {
            if bytes.is_empty() && range.end - range.start == len as u64 {
                bytes.resize(len, 0);
            }
        }
        first_difference(&old_bytes, &new_bytes).map(Difference::Bytes).or_else(|| self.references(old, new))
    }

    /// Compares what the fields of two ranges refer to.
    fn references(
        &self,
        (old, old_range): (PieceIndex, Range<u64>),
        (new, new_range): (PieceIndex, Range<u64>),
    ) -> Option<Difference> {
        let old_relocs = self.original.relocs_in(self.original.piece(old).section, old_range.clone());
        let new_relocs = self.patched.relocs_in(self.patched.piece(new).section, new_range.clone());
        let mut pairs = old_relocs.iter().zip(new_relocs);
        if let Some((_, new)) =
            pairs.find(|(old, new)| !self.same_reference(old, old_range.start, new, new_range.start))
        {
            return Some(Difference::Reference(new.offset - new_range.start));
        }
        let shorter = old_relocs.len().min(new_relocs.len());
        let extra = old_relocs.get(shorter).map(|reloc| reloc.offset - old_range.start);
        extra.or_else(|| new_relocs.get(shorter).map(|reloc| reloc.offset - new_range.start)).map(Difference::Reference)
    }

    pub(crate) fn same_reference(&self, old: &Reloc, old_start: u64, new: &Reloc, new_start: u64) -> bool {
        if !same_kind(old.kind, new.kind) || old.offset - old_start != new.offset - new_start {
            return false;
        }
        self.same_target(self.original.target(old), self.patched.target(new), old.addend == new.addend)
    }

    pub(crate) fn same_target(&self, old: Target, new: Target, same_addend: bool) -> bool {
        match (old, new) {
            (Target::External(a), Target::External(b)) => {
                let (a, b) = (self.original.object.symbol(a), self.patched.object.symbol(b));
                let same_value = a.definition != Definition::Absolute || a.value == b.value;
                a.name == b.name && a.definition == b.definition && same_value && same_addend
            }
            (Target::Piece(a, x), Target::Piece(b, y)) => self.same_place(a, x, b, y),
            _ => false,
        }
    }

    fn same_place(&self, old: PieceIndex, x: i64, new: PieceIndex, y: i64) -> bool {
        let (old_piece, new_piece) = (self.original.piece(old), self.patched.piece(new));
        if let Some(original) = self.correlation.original(new) {
            return original == old && x == y;
        }
        if old_piece.kind != new_piece.kind || x != y {
            return false;
        }
        match new_piece.kind {
            // A function or a datum with state of its own that has no original is new.
            PieceKind::Function => false,
            PieceKind::Datum if !is_fresh(new_piece) => false,
            PieceKind::Datum => {
                let same_name = without_counter(&old_piece.name) == without_counter(&new_piece.name);
                let difference = if may_hold_line(&new_piece.name) && old_piece.size() == new_piece.size() {
                    self.references((old, old_piece.range.clone()), (new, new_piece.range.clone()))
                } else {
                    self.piece(old, new)
                };
                same_name && difference.is_none()
            }
            PieceKind::Anonymous => self.piece(old, new).is_none(),
        }
    }

    fn tables(&self, old: PieceIndex, new: PieceIndex) -> Option<Difference> {
        let (old_entries, new_entries) = (self.original.entries(old), self.patched.entries(new));
        let counted = |entries: &[Entry], table| entries.iter().filter(|entry| entry.table == table).count();
        for entry in old_entries.iter().chain(new_entries) {
            if counted(old_entries, entry.table) != counted(new_entries, entry.table) {
                return Some(Difference::Table(entry.table));
            }
        }
        let mut pairs = old_entries.iter().zip(new_entries);
        pairs.find(|(old, new)| !self.same_entry(old, new)).map(|(_, new)| Difference::Table(new.table))
    }

    /// Unwind entries follow from the code, except for hints of inline assembly.
    fn unwind(&self, old: &Piece, new: &Piece) -> Option<Difference> {
        let old = self.original.unwind(old.section, old.range.clone());
        let new = self.patched.unwind(new.section, new.range.clone());
        let at = old.iter().zip(&new).position(|(old, new)| old != new);
        let at = at.or_else(|| (old.len() != new.len()).then_some(old.len().min(new.len())))?;
        let place = new.get(at).or_else(|| old.get(at)).map_or(0, |&(place, _)| place);
        Some(Difference::Unwind(place))
    }

    fn same_entry(&self, old: &Entry, new: &Entry) -> bool {
        let section = |pieces: &Pieces<'_>, entry: &Entry| pieces.object.section(entry.section).name.clone();
        // The name of a table of constants tells the variable.
        let other_variable = || section(self.original, old) != section(self.patched, new);
        if old.table != new.table || old.place != new.place || old.size != new.size || other_variable() {
            return false;
        }
        let range = |entry: &Entry| entry.offset..entry.offset + entry.size;
        let old_relocs = self.original.relocs_in(old.section, range(old));
        let new_relocs = self.patched.relocs_in(new.section, range(new));
        let take = |pieces: &Pieces<'_>, entry: &Entry| {
            let data = &pieces.object.section(entry.section).data;
            data.get(entry.offset as usize..(entry.offset + entry.size) as usize).unwrap_or(&[]).to_vec()
        };
        let (mut old_bytes, mut new_bytes) = (take(self.original, old), take(self.patched, new));
        blank(&mut old_bytes, old_relocs, old.offset);
        blank(&mut new_bytes, new_relocs, new.offset);
        if old.table == Table::Bugs && old_bytes.len() == 12 && new_bytes.len() == 12 {
            // struct bug_entry with CONFIG_DEBUG_BUGVERBOSE: the line number (include/asm-generic/bug.h).
            old_bytes[8..10].fill(0);
            new_bytes[8..10].fill(0);
        }
        if old.table == Table::Alternatives {
            return old_bytes == new_bytes && self.same_replacement(old, old_relocs, new, new_relocs);
        }
        old_bytes == new_bytes
            && old_relocs.len() == new_relocs.len()
            && old_relocs.iter().zip(new_relocs).skip(1).all(|(a, b)| self.same_reference(a, old.offset, b, new.offset))
    }

    /// Replacement code is anonymous and packed: compare what each of the two entries means.
    fn same_replacement(&self, old: &Entry, old_relocs: &[Reloc], new: &Entry, new_relocs: &[Reloc]) -> bool {
        let ([_, old_reloc], [_, new_reloc]) = (old_relocs, new_relocs) else { return false };
        let place = |pieces: &Pieces<'_>, reloc: &Reloc| match pieces.resolve(reloc.symbol, reloc.addend) {
            Target::Piece(piece, at) => Some((piece, pieces.piece(piece).range.start + at.max(0) as u64)),
            Target::External(_) => None,
        };
        let len = |pieces: &Pieces<'_>, entry: &Entry| {
            // struct alt_instr ends with instrlen, replacementlen (arch/x86/include/asm/alternative.h).
            let data = &pieces.object.section(entry.section).data;
            data.get((entry.offset + entry.size - 1) as usize).copied().map(u64::from)
        };
        if (len(self.original, old), len(self.patched, new)) == (Some(0), Some(0)) {
            return true;
        }
        match (
            place(self.original, old_reloc),
            len(self.original, old),
            place(self.patched, new_reloc),
            len(self.patched, new),
        ) {
            (Some((a, x)), Some(old_len), Some((b, y)), Some(new_len)) => {
                old_len == new_len && self.contents((a, x..x + old_len), (b, y..y + new_len)).is_none()
            }
            _ => false,
        }
    }
}

/// Whether two relocation types make the same field: assemblers write a call as one or the other, by who can see the callee.
pub(crate) fn same_kind(old: u32, new: u32) -> bool {
    let plain = |kind| if kind == elf::R_X86_64_PLT32.0 { elf::R_X86_64_PC32.0 } else { kind };
    plain(old) == plain(new)
}

/// Data that hold the line of the source they stand in.
fn may_hold_line(name: &str) -> bool {
    let stem = without_number(name);
    stem == "descriptor" || stem.starts_with("__UNIQUE_ID_") || stem == "_entry"
}

fn bytes_of(pieces: &Pieces<'_>, piece: PieceIndex, range: &Range<u64>) -> Vec<u8> {
    let data = &pieces.object.section(pieces.piece(piece).section).data;
    data.get(range.start as usize..range.end as usize).unwrap_or(&[]).to_vec()
}

/// Sets relocated fields to zero.
pub fn blank(bytes: &mut [u8], relocs: &[Reloc], start: u64) {
    for reloc in relocs.iter().filter(|reloc| reloc.kind != elf::R_X86_64_NONE.0) {
        let at = (reloc.offset - start) as usize;
        let end = (at + field_width(reloc.kind) as usize).min(bytes.len());
        bytes[at.min(end)..end].fill(0);
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<u64> {
    if a.len() != b.len() {
        return Some(a.len().min(b.len()) as u64);
    }
    a.iter().zip(b).position(|(a, b)| a != b).map(|at| at as u64)
}

/// Sections of a role, by name.
fn sections_of(object: &Object, wanted: SectionRole) -> BTreeMap<&str, Vec<&Section>> {
    let mut sections: BTreeMap<&str, Vec<&Section>> = BTreeMap::new();
    for section in &object.sections {
        let loaded = section.size > 0 && section.flags & elf::SHF_ALLOC.0 != 0;
        if loaded && role(&section.name, section.is_code()) == wanted {
            sections.entry(&section.name).or_default().push(section);
        }
    }
    sections
}
