//! Which datum of the patched object is which datum of the original.
//!
//! Comes in: two objects in pieces. Decided: pairs of data and functions. Global names pair by name. Static locals carry a
//! number that the compiler hands out in order of appearance (`state.12`), so their names pair without it; where several
//! remain, the functions that refer to them decide, and what these leave open stays open. Goes out: [`Correlation`].

use crate::pieces::{PieceIndex, PieceKind, Pieces, Target};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Pairs of pieces, by the patched one.
#[derive(Debug, Default)]
pub struct Correlation {
    pairs: HashMap<PieceIndex, PieceIndex>,
    ambiguous: HashSet<PieceIndex>,
}

impl Correlation {
    /// The original of a patched piece.
    pub fn original(&self, patched: PieceIndex) -> Option<PieceIndex> {
        self.pairs.get(&patched).copied()
    }

    /// Whether a patched datum has several possible originals and nothing tells them apart.
    pub fn is_ambiguous(&self, patched: PieceIndex) -> bool {
        self.ambiguous.contains(&patched)
    }

    /// All originals that have a patched counterpart.
    pub fn originals(&self) -> HashSet<PieceIndex> {
        self.pairs.values().copied().collect()
    }
}

/// Names of data that belong to one place in the code and have no state worth keeping: always fresh copies.
pub fn is_fresh(name: &str) -> bool {
    const FRESH: [&str; 14] = [
        "__func__",
        "__FUNCTION__",
        "__PRETTY_FUNCTION__",
        "__already_done",
        "__warned",
        "___done",
        "__key",
        "__msg",
        "_rs",
        "_entry",
        "_entry_ptr",
        "descriptor",
        "__ratelimit",
        "CSWTCH",
    ];
    let stem = without_number(name);
    FRESH.contains(&stem) || stem.starts_with("__UNIQUE_ID_") || stem.starts_with("__compound_literal") || stem.starts_with(".L")
}

/// A name without the compiler's number: `state.12` is `state`.
pub fn without_number(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((stem, number)) if !stem.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => stem,
        _ => name,
    }
}

/// Pairs the named pieces of two objects.
pub fn correlate(original: &Pieces<'_>, patched: &Pieces<'_>) -> Correlation {
    let mut this = Correlation::default();
    let (old, new) = (groups(original), groups(patched));
    let mut open = Vec::new();
    for (key, new_members) in &new {
        let Some(old_members) = old.get(key) else { continue };
        match (old_members.as_slice(), new_members.as_slice()) {
            ([old], [new]) => {
                this.pairs.insert(*new, *old);
            }
            _ => open.push((old_members, new_members)),
        }
    }
    let evidence = evidence(original, patched, &this);
    for (old_members, new_members) in open {
        settle(&mut this, &evidence, old_members, new_members);
    }
    this
}

type Key = (bool, bool, String);

fn groups(pieces: &Pieces<'_>) -> BTreeMap<Key, Vec<PieceIndex>> {
    let mut groups: BTreeMap<Key, Vec<PieceIndex>> = BTreeMap::new();
    for (index, piece) in pieces.iter() {
        let function = match piece.kind {
            PieceKind::Function => true,
            PieceKind::Datum if !is_fresh(&piece.name) => false,
            _ => continue,
        };
        let name = if piece.global || function { &piece.name } else { without_number(&piece.name) };
        groups.entry((function, piece.global, name.to_owned())).or_default().push(index);
    }
    groups
}

/// What functions of the same name, whose code has the same shape, refer to at the same places.
fn evidence(original: &Pieces<'_>, patched: &Pieces<'_>, known: &Correlation) -> HashMap<PieceIndex, HashSet<PieceIndex>> {
    let mut evidence: HashMap<PieceIndex, HashSet<PieceIndex>> = HashMap::new();
    for (new, piece) in patched.iter().filter(|(_, piece)| piece.kind == PieceKind::Function) {
        let Some(old) = known.original(new) else { continue };
        let (old_relocs, new_relocs) = (original.relocs(old), patched.relocs(new));
        let (old_start, new_start) = (original.piece(old).range.start, piece.range.start);
        let same_shape = original.piece(old).size() == piece.size()
            && old_relocs.len() == new_relocs.len()
            && old_relocs.iter().zip(new_relocs).all(|(a, b)| a.kind == b.kind && a.offset - old_start == b.offset - new_start);
        if !same_shape {
            continue;
        }
        for (a, b) in old_relocs.iter().zip(new_relocs) {
            if let (Target::Piece(old_target, x), Target::Piece(new_target, y)) = (original.target(a), patched.target(b))
                && x == y
            {
                evidence.entry(new_target).or_default().insert(old_target);
            }
        }
    }
    evidence
}

fn settle(
    this: &mut Correlation,
    evidence: &HashMap<PieceIndex, HashSet<PieceIndex>>,
    old_members: &[PieceIndex],
    new_members: &[PieceIndex],
) {
    let mut taken = HashSet::new();
    let mut left = Vec::new();
    for &new in new_members {
        let found: Vec<PieceIndex> =
            old_members.iter().copied().filter(|old| evidence.get(&new).is_some_and(|seen| seen.contains(old))).collect();
        match found.as_slice() {
            [old] if taken.insert(*old) => {
                this.pairs.insert(new, *old);
            }
            _ => left.push(new),
        }
    }
    let free = old_members.iter().filter(|old| !taken.contains(old)).count();
    if free > 0 {
        this.ambiguous.extend(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_compilers() {
        assert_eq!(without_number("state.12"), "state");
        assert_eq!(without_number("foo.isra.0"), "foo.isra");
        assert_eq!(without_number("foo.cold"), "foo.cold");
        assert_eq!(without_number(".12"), ".12");
        assert!(is_fresh("__func__.7") && is_fresh("__UNIQUE_ID_ddebug123.4") && !is_fresh("state.3"));
    }
}
