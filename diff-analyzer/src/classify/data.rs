//! Data that exist and change.
//!
//! Comes in: the comparison of two objects, both in pieces, and the layouts of their types. Decided: which data change, and
//! what could become of each: written where it is, moved, or neither. Goes out: [`DatumFinding`]s.

use super::{DatumFinding, Fate};
use crate::correlate::without_number;
use crate::dwarf_layout::{Layouts, Variable};
use crate::layout_diff::{self, Effect};
use crate::object_diff::{Difference, ObjectDiff};
use crate::pieces::{Piece, PieceIndex, PieceKind, Pieces, Target, field_width};
use crate::special::SectionRole;
use crate::transfer::{self, How, Transfer};
use std::collections::BTreeSet;
use std::ops::Range;

/// Data of a unit that change.
pub fn find(
    diff: &ObjectDiff,
    original: &Pieces<'_>,
    patched: &Pieces<'_>,
    old: &Layouts,
    new: &Layouts,
) -> Vec<DatumFinding> {
    let unit = Unit { diff, original, patched, old, new };
    let relaid = unit.relaid();
    diff.data
        .iter()
        .filter_map(|datum| {
            let original = datum.original?;
            let difference = match &datum.change {
                crate::object_diff::Change::Changed(difference) => Some(difference),
                _ => None,
            };
            let relaid = relaid.iter().find(|relaid| relaid.patched == datum.patched);
            if difference.is_none() && relaid.is_none() {
                return None;
            }
            Some(unit.finding(original, datum.patched, difference, relaid))
        })
        .collect()
}

/// A datum whose type is laid out differently.
struct Relaid<'l> {
    patched: PieceIndex,
    old: &'l Variable,
    new: &'l Variable,
    because: Vec<String>,
    /// Whether it may be another datum of that name.
    ambiguous: bool,
}

pub(super) struct Unit<'a, 'o> {
    pub(super) diff: &'a ObjectDiff,
    pub(super) original: &'a Pieces<'o>,
    pub(super) patched: &'a Pieces<'o>,
    old: &'a Layouts,
    new: &'a Layouts,
}

impl<'a> Unit<'a, '_> {
    /// Data whose debug information says that their type is laid out differently.
    fn relaid(&self) -> Vec<Relaid<'a>> {
        let changes = layout_diff::compare_variables(self.old, self.new);
        let layout = changes.into_iter().filter(|change| change.effect == Effect::Layout && change.defined);
        layout
            .flat_map(|change| {
                let same = |variable: &&Variable| {
                    (&variable.name, &variable.function, variable.ordinal)
                        == (&change.name, &change.function, change.ordinal)
                };
                let (old, new) = (self.old.variables.iter().find(same), self.new.variables.iter().find(same));
                let pieces = new.map(|new| self.pieces_of(new)).unwrap_or_default();
                let ambiguous = pieces.len() > 1;
                let relaid = |patched| {
                    Some(Relaid { patched, old: old?, new: new?, because: change.consequence_of.clone(), ambiguous })
                };
                pieces.into_iter().filter_map(relaid).collect::<Vec<_>>()
            })
            .collect()
    }

    /// The pieces that may be a variable, by name and size; none when the compiler has left it out.
    fn pieces_of(&self, variable: &Variable) -> Vec<PieceIndex> {
        let is_local = variable.function.is_some();
        let named = |piece: &Piece| {
            let stem = if is_local { without_number(&piece.name) } else { &piece.name };
            piece.kind == PieceKind::Datum && stem == variable.name && is_local == (piece.name != variable.name)
        };
        // A flexible array at the end makes the datum larger than its type.
        let fits = |piece: &Piece| variable.size.is_some_and(|size| piece.size() >= size);
        let pieces = self.patched.iter().filter(|(_, piece)| named(piece) && fits(piece));
        pieces.map(|(index, _)| index).collect()
    }

    fn finding(
        &self,
        original: PieceIndex,
        patched: PieceIndex,
        difference: Option<&Difference>,
        relaid: Option<&Relaid<'_>>,
    ) -> DatumFinding {
        let (before, after) = (self.original.piece(original), self.patched.piece(patched));
        let name = after.name.clone();
        let named = |variable: &&Variable| variable.defined && variable.name == without_number(&name);
        let variable = relaid.map(|relaid| relaid.new).or_else(|| self.new.variables.iter().find(named));
        let (rule, what) = match (difference, relaid) {
            (Some(Difference::Section(..)), _) => ("data-section", difference.map(ToString::to_string)),
            (Some(Difference::Size(..)), _) | (_, Some(_)) => ("data-layout", None),
            _ => ("data-value", difference.map(ToString::to_string)),
        };
        let what = what.unwrap_or_else(|| {
            let size = match (before.size(), after.size()) {
                (old, new) if old == new => format!("its {old} bytes are laid out differently"),
                (old, new) => format!("its size changes from {old} to {new} bytes"),
            };
            match relaid {
                Some(relaid) if !relaid.because.is_empty() => {
                    format!("{size}, because of {}", relaid.because.join(", "))
                }
                Some(relaid) if relaid.old.type_text != relaid.new.type_text => {
                    format!("{size}: `{}` before, `{}` after", relaid.old.type_text, relaid.new.type_text)
                }
                _ => size,
            }
        });
        let anchors = variable.map(|variable| transfer::anchors(self.new, variable)).unwrap_or_default();
        let transfers = match relaid {
            Some(relaid) => Some((
                transfer::between((self.old, relaid.old), (self.new, relaid.new)),
                transfer::between((self.new, relaid.new), (self.old, relaid.old)),
            )),
            None if before.size() == after.size() => Some(whole(before.size())),
            None => None,
        };
        let fate = self.fate((original, patched), relaid, variable, transfers.as_ref());
        let transfers = transfers.map(|transfers| self.with_initial_values(original, patched, transfers));
        DatumFinding {
            rule,
            message: format!("existing datum `{name}`: {what}"),
            place: variable.and_then(|variable| variable.place.clone()),
            pieces: (original, patched),
            sizes: (before.size(), after.size()),
            users: self.users(patched),
            anchors,
            fate,
            transfers,
            name,
        }
    }

    fn fate(
        &self,
        (original, patched): (PieceIndex, PieceIndex),
        relaid: Option<&Relaid<'_>>,
        variable: Option<&Variable>,
        transfers: Option<&(Transfer, Transfer)>,
    ) -> Fate {
        let (before, after) = (self.original.piece(original), self.patched.piece(patched));
        match (before.role, after.role) {
            (SectionRole::PerCpu, _) | (_, SectionRole::PerCpu) => {
                return Fate::Stuck("every processor has a copy of per-CPU data, made at boot".to_owned());
            }
            (SectionRole::Data | SectionRole::ReadOnly, SectionRole::Data | SectionRole::ReadOnly) => {}
            _ => {
                let section = |pieces: &Pieces<'_>, piece: &Piece| pieces.object.section(piece.section).name.clone();
                let (old, new) = (section(self.original, before), section(self.patched, after));
                return Fate::Stuck(format!("the kernel uses section {new} (before {old}) in a way of its own"));
            }
        }
        if relaid.is_some_and(|relaid| relaid.ambiguous) {
            return Fate::Unknown(
                "debug information does not tell which of several data of this name it is".to_owned(),
            );
        }
        let sizes = (Some(before.size()), Some(after.size()));
        if relaid.is_some_and(|relaid| (relaid.old.size, relaid.new.size) != sizes) {
            return Fate::Unknown("it ends with a flexible array, whose contents its type does not tell".to_owned());
        }
        let becomes_writable = (before.role, after.role) == (SectionRole::ReadOnly, SectionRole::Data);
        let Some((to_new, _)) = transfers else {
            let why = "its size changes, and debug information does not tell of what its contents are made";
            return Fate::Unknown(why.to_owned());
        };
        match self.in_place(original, patched, variable, to_new) {
            Some(fate) if !becomes_writable => fate,
            _ => Fate::Moved,
        }
    }

    /// What is written when all that the datum had keeps its place.
    fn in_place(
        &self,
        original: PieceIndex,
        patched: PieceIndex,
        variable: Option<&Variable>,
        to_new: &Transfer,
    ) -> Option<Fate> {
        let stays = |step: &transfer::Move| step.from == step.to && step.how == How::Copy;
        if !to_new.stuck.is_empty() || !to_new.lost.is_empty() || !to_new.moves.iter().all(stays) {
            return None;
        }
        let (before, after) = (self.original.piece(original), self.patched.piece(patched));
        let mut old_bits = vec![false; usize::try_from(after.size().checked_mul(8)?).ok()?];
        for step in &to_new.moves {
            old_bits.get_mut(step.to.offset as usize..step.to.end() as usize)?.fill(true);
        }
        let is_old = |byte: u64| old_bits[byte as usize * 8..][..8].iter().any(|&old| old);
        let differing = self.differing(original, patched);
        // A number is written as a whole or not at all; without debug information the datum is one.
        let scalars = variable.filter(|variable| variable.size == Some(after.size()));
        let scalars = scalars.map_or_else(
            || std::iter::once(0..after.size()).collect(),
            |variable| transfer::scalars(self.new, variable),
        );
        let meets =
            |range: &&Range<u64>| differing.iter().any(|other| range.start < other.end && other.start < range.end);
        let differing: Vec<Range<u64>> = scalars.iter().filter(meets).chain(&differing).cloned().collect();
        let is_edited = |byte: &u64| differing.iter().any(|range| range.contains(byte));
        let edited: Vec<u64> =
            (0..before.size().min(after.size())).filter(|&byte| is_old(byte)).filter(is_edited).collect();
        // A byte of old and new bits cannot be written as a whole; one that stays as it is need not be.
        let is_mixed = |&byte: &u64| !old_bits[byte as usize * 8..][..8].iter().all(|&old| old);
        if edited.iter().any(is_mixed) {
            return None;
        }
        let added: Vec<u64> = (0..after.size()).filter(|&byte| !is_old(byte)).collect();
        // Without anything new in it, what no member covers is padding.
        let added = if to_new.kept.is_empty() { Vec::new() } else { added };
        Some(Fate::InPlace { added: ranges(&added), edited: ranges(&edited) })
    }

    /// Bytes of the patched datum whose contents or reference differ from the original's at the same place.
    fn differing(&self, original: PieceIndex, patched: PieceIndex) -> Vec<Range<u64>> {
        let (before, after) = (self.original.piece(original), self.patched.piece(patched));
        let comparison = self.diff.comparison(self.original, self.patched);
        let (old_relocs, new_relocs) = (self.original.relocs(original), self.patched.relocs(patched));
        let mut found = Vec::new();
        let mut same_fields = Vec::new();
        for new in new_relocs {
            let at = new.offset - after.range.start;
            let old = old_relocs.iter().find(|old| old.offset - before.range.start == at);
            let field = at..at + field_width(new.kind);
            if old.is_some_and(|old| comparison.same_reference(old, before.range.start, new, after.range.start)) {
                same_fields.push(field);
            } else {
                found.push(field);
            }
        }
        let gone = old_relocs.iter().map(|old| old.offset - before.range.start);
        let gone = gone.filter(|at| !new_relocs.iter().any(|new| new.offset - after.range.start == *at));
        found.extend(gone.map(|at| at..at + 8));
        let byte = |pieces: &Pieces<'_>, piece: PieceIndex, at: u64| {
            pieces.bytes(piece).get(at as usize).copied().unwrap_or(0)
        };
        for at in 0..before.size().min(after.size()) {
            let is_field = same_fields.iter().any(|field| field.contains(&at));
            if !is_field && byte(self.original, original, at) != byte(self.patched, patched, at) {
                found.push(at..at + 1);
            }
        }
        found
    }

    /// Functions of the patched unit that refer to a datum.
    fn users(&self, datum: PieceIndex) -> BTreeSet<String> {
        let refers = |function: PieceIndex| {
            let mut relocs = self.patched.relocs(function).iter();
            relocs.any(|reloc| matches!(self.patched.target(reloc), Target::Piece(piece, _) if piece == datum))
        };
        let functions =
            self.diff.functions.iter().map(|function| function.patched).filter(|&function| refers(function));
        functions.map(|function| self.patched.piece(function).name.clone()).collect()
    }
}

/// The transfers of a datum that is laid out as it was.
fn whole(size: u64) -> (Transfer, Transfer) {
    let bits = transfer::Bits { offset: 0, size: size * 8 };
    let step = transfer::Move { member: String::new(), from: bits, to: bits, how: How::Copy };
    let transfer = Transfer { moves: vec![step], ..Transfer::default() };
    (transfer.clone(), transfer)
}

/// Sorted numbers as ranges.
fn ranges(sorted: &[u64]) -> Vec<Range<u64>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    for &at in sorted {
        match found.last_mut() {
            Some(last) if last.end == at => last.end += 1,
            _ => found.push(at..at + 1),
        }
    }
    found
}
