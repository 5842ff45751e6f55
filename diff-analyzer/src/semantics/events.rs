//! Where the code of a unit takes and drops something.
//!
//! Comes in: an object in pieces, and its inline functions. Decided: which calls and which copies of inline functions are
//! primitives; of a primitive inside of another one only the outer counts, unless both mean the same resource and the inner one is
//! therefore the place where it happens. Goes out:
//! [`Events`] by place in the code, and for each compiled function the inline functions in it.

use super::inlined::Inlined;
use super::primitives::{Primitive, Primitives, Resource};
use crate::dwarf_layout::sections::{code_address, code_place};
use crate::object::SectionIndex;
use crate::pieces::{PieceIndex, PieceKind, Pieces, Target};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// What a unit's code takes and drops.
#[derive(Debug, Default)]
pub struct Events {
    /// By piece and offset in it: of an instruction that is about to run.
    at: BTreeMap<(PieceIndex, u64), Vec<Primitive>>,
    /// Code of inline functions that count as a whole.
    whole: Vec<(Range<u64>, &'static Resource)>,
    /// By function: the inline functions in it.
    inside: HashMap<PieceIndex, BTreeSet<String>>,
}

impl Events {
    /// Finds them.
    pub fn of(pieces: &Pieces<'_>, inlined: &[Inlined]) -> Self {
        let mut this = Self::default();
        let outer = this.read_inlined(pieces, inlined);
        let mut counted: BTreeSet<usize> = (0..outer.len()).collect();
        for (address, place, primitive) in calls(pieces) {
            let around =
                outer.iter().position(|(inlined, _)| inlined.ranges.iter().any(|range| range.contains(&address)));
            if let Some(around) = around {
                let (around_it, outer) = outer[around];
                if outer.resource != primitive.resource || Primitives::known().of_class(&around_it.name).is_some() {
                    continue;
                }
                counted.remove(&around);
            }
            this.at.entry(place).or_default().push(primitive);
        }
        for (inlined, primitive) in counted.into_iter().map(|index| outer[index]) {
            // What makes no code, as `rcu_read_lock()` may, cannot be followed.
            if let Some(place) =
                inlined.entry.filter(|_| !inlined.ranges.is_empty()).and_then(|at| place_of(pieces, at))
            {
                this.at.entry(place).or_default().push(primitive);
                this.whole.extend(inlined.ranges.iter().map(|range| (range.clone(), primitive.resource)));
            }
        }
        this
    }

    /// What happens when an instruction runs.
    pub fn at(&self, piece: PieceIndex, offset: u64) -> &[Primitive] {
        self.at.get(&(piece, offset)).map_or(&[], Vec::as_slice)
    }

    /// Whether an instruction belongs to an inline function that counts as a whole: what it calls does not count again.
    pub fn is_counted(&self, pieces: &Pieces<'_>, (piece, offset): (PieceIndex, u64), resource: &Resource) -> bool {
        let piece = pieces.piece(piece);
        let address = code_address(piece.section) + piece.range.start + offset;
        self.whole.iter().any(|(range, counted)| range.contains(&address) && *counted == resource)
    }

    /// What happens anywhere in a piece.
    pub fn of_piece(&self, piece: PieceIndex) -> impl Iterator<Item = &Primitive> {
        self.at.range((piece, 0)..=(piece, u64::MAX)).flat_map(|(_, primitives)| primitives)
    }

    /// The inline functions in a compiled one, and its own name in the source.
    pub fn inside(&self, piece: PieceIndex) -> impl Iterator<Item = &str> {
        self.inside.get(&piece).into_iter().flatten().map(String::as_str)
    }

    /// Sorts inline functions by the function they are in; the outermost primitives among them.
    fn read_inlined<'i>(&mut self, pieces: &Pieces<'_>, inlined: &'i [Inlined]) -> Vec<(&'i Inlined, Primitive)> {
        let mut outer = Vec::new();
        // For each: the functions it is in; whether it is inside of a primitive.
        let mut homes: Vec<(Vec<PieceIndex>, bool)> = Vec::with_capacity(inlined.len());
        for copy in inlined {
            let (home, within) = match copy.parent {
                Some(parent) => homes[parent].clone(),
                None => {
                    let places = copy.ranges.iter().filter_map(|range| place_of(pieces, range.start));
                    (places.map(|(piece, _)| piece).collect(), false)
                }
            };
            for &piece in &home {
                self.inside.entry(piece).or_default().insert(copy.name.clone());
            }
            let known = Primitives::known();
            let primitive = known.get(&copy.name).copied().or_else(|| known.of_class(&copy.name));
            let primitive = primitive.filter(|_| copy.parent.is_some() && !within);
            outer.extend(primitive.map(|primitive| (copy, primitive)));
            homes.push((home, within || primitive.is_some()));
        }
        outer
    }
}

/// All direct calls and jumps to primitives: address, place of the instruction, which.
fn calls<'p>(pieces: &'p Pieces<'_>) -> impl Iterator<Item = (u64, (PieceIndex, u64), Primitive)> + 'p {
    pieces.iter().filter(|(_, piece)| piece.role.is_code()).flat_map(move |(index, piece)| {
        pieces.relocs(index).iter().filter(|reloc| reloc.branch).filter_map(move |reloc| {
            let primitive = *Primitives::known().get(called(pieces, reloc)?)?;
            // The opcode of a call or jump has one byte (Intel SDM, volume 2, CALL and JMP).
            let at = reloc.offset.checked_sub(1)?;
            Some((code_address(piece.section) + at, (index, at.checked_sub(piece.range.start)?), primitive))
        })
    })
}

/// The name of what a call leads to.
pub fn called<'p>(pieces: &'p Pieces<'_>, reloc: &crate::object::Reloc) -> Option<&'p str> {
    match pieces.target(reloc) {
        Target::External(symbol) => Some(&pieces.object.symbol(symbol).name),
        Target::Piece(piece, 0) if pieces.piece(piece).kind == PieceKind::Function => Some(&pieces.piece(piece).name),
        Target::Piece(..) => None,
    }
}

/// The piece that an address of debug information is in, and the offset in it.
fn place_of(pieces: &Pieces<'_>, address: u64) -> Option<(PieceIndex, u64)> {
    let (section, offset): (SectionIndex, u64) = code_place(address)?;
    let piece = pieces.piece_at(section, offset)?;
    Some((piece, offset - pieces.piece(piece).range.start))
}
