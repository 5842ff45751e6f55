//! The values that data begin with, and what they mean for their transfer.
//!
//! Comes in: a datum of both versions, and how its contents would be carried. Decided: which members begin with another value
//! than before, so that carrying what is there would undo a part of the change, or with an address of the datum itself. Goes
//! out: the transfers without them.

use super::data::Unit;
use crate::object::Reloc;
use crate::object_diff::blank;
use crate::pieces::{PieceIndex, Pieces, Target};
use crate::special::SectionRole;
use crate::transfer::{Bits, How, Move, Stuck, Transfer};

/// An address of the old datum means nothing in the new one.
const SELF: &str = "it points into the datum itself";

impl Unit<'_, '_> {
    /// What becomes of the transfers because of the contents that both versions begin with. A constant is not carried: each
    /// version has its own. Of a variable whose initial value changes nobody but the author knows which value is meant.
    pub(super) fn with_initial_values(
        &self,
        original: PieceIndex,
        patched: PieceIndex,
        (mut to_new, mut to_old): (Transfer, Transfer),
    ) -> (Transfer, Transfer) {
        let before = self.original.piece(original);
        // What is read-only after boot gets its value at boot.
        let section = &self.original.object.section(before.section).name;
        if before.role == SectionRole::ReadOnly && !section.starts_with(".data..ro_after_init") {
            for transfer in [&mut to_new, &mut to_old] {
                transfer.stuck.clear();
                transfer.kept.extend(transfer.moves.drain(..).map(|step| step.member));
            }
            return (to_new, to_old);
        }
        let contents = |pieces: &Pieces<'_>, piece: PieceIndex| {
            let mut bytes = pieces.bytes(piece).to_vec();
            blank(&mut bytes, pieces.relocs(piece), pieces.piece(piece).range.start);
            bytes
        };
        let contents = [contents(self.original, original), contents(self.patched, patched)];
        let why = |step: &Move, old: Bits, new: Bits| {
            if matches!(step.how, How::Constant(_)) {
                return None;
            }
            if points_into(self.original, original, old) || points_into(self.patched, patched, new) {
                return Some(SELF);
            }
            let differs = differ((&contents[0], old), (&contents[1], new))
                || self.references_differ((original, old), (patched, new));
            differs.then_some("its initial value changes, too: which value is meant is not known")
        };
        stick(&mut to_new, |step| why(step, step.from, step.to));
        stick(&mut to_old, |step| why(step, step.to, step.from));
        (to_new, to_old)
    }

    /// Whether a member refers to something else at the beginning than before.
    fn references_differ(&self, (original, old): (PieceIndex, Bits), (patched, new): (PieceIndex, Bits)) -> bool {
        let comparison = self.diff.comparison(self.original, self.patched);
        let (old_start, old) = within(self.original, original, old);
        let (new_start, new) = within(self.patched, patched, new);
        let same = |(old, new): (&Reloc, &Reloc)| comparison.same_reference(old, old_start, new, new_start);
        old.len() != new.len() || !old.iter().zip(new).all(same)
    }
}

/// References in a member, and where it starts in its section.
fn within<'o>(pieces: &Pieces<'o>, piece: PieceIndex, bits: Bits) -> (u64, &'o [Reloc]) {
    let start = pieces.piece(piece).range.start;
    let relocs = pieces.relocs(piece);
    let first = relocs.partition_point(|reloc| reloc.offset < start + bits.offset / 8);
    let end = relocs.partition_point(|reloc| reloc.offset < start + bits.end().div_ceil(8));
    (start + bits.offset / 8, &relocs[first..end.max(first)])
}

/// Whether two members differ as numbers: in the bits that both have, or in those that only one has and that do not extend
/// the other.
fn differ((old, old_bits): (&[u8], Bits), (new, new_bits): (&[u8], Bits)) -> bool {
    let bit = |bytes: &[u8], at: u64| bytes.get((at / 8) as usize).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
    let bytes = |bytes: &[u8], bits: Bits| -> Vec<u8> {
        let byte = |at: u64| bytes.get(at as usize).copied().unwrap_or(0);
        (bits.offset / 8..bits.end() / 8).map(byte).collect()
    };
    let size = old_bits.size.min(new_bits.size);
    if old_bits.size == new_bits.size && old_bits.is_bytes() && new_bits.is_bytes() {
        return bytes(old, old_bits) != bytes(new, new_bits);
    }
    let (wide, more) = if old_bits.size > size { (old, old_bits) } else { (new, new_bits) };
    let sign = size > 0 && bit(wide, more.offset + size - 1);
    let mut extra = (size..more.size).map(|at| bit(wide, more.offset + at));
    (0..size).any(|at| bit(old, old_bits.offset + at) != bit(new, new_bits.offset + at))
        || extra.next().is_some_and(|first| first && !sign || extra.any(|bit| bit != first))
}

/// Whether a member begins with an address of its own datum.
fn points_into(pieces: &Pieces<'_>, piece: PieceIndex, bits: Bits) -> bool {
    let (_, relocs) = within(pieces, piece, bits);
    relocs.iter().any(|reloc| matches!(pieces.target(reloc), Target::Piece(target, _) if target == piece))
}

/// Takes steps out of a transfer that a rule must not carry, with the reason.
fn stick(transfer: &mut Transfer, why: impl Fn(&Move) -> Option<&'static str>) {
    for step in std::mem::take(&mut transfer.moves) {
        match why(&step) {
            None => transfer.moves.push(step),
            Some(why) => transfer.stuck.push(Stuck {
                member: step.member.clone(),
                to: step.to,
                why: why.to_owned(),
                step: Some(step).filter(|_| why != SELF),
            }),
        }
    }
}
