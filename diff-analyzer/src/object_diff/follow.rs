//! Functions that change with others: cold parts, clones, and callers of what takes or returns other types.
//!
//! Comes in: what was found for each function by itself. Decided: which others cannot stay as they are. Goes out: the same list, with
//! these changed.

use super::{Change, Compared, Difference};
use crate::correlate::without_number;
use crate::pieces::{PieceIndex, Pieces, Target};
use std::collections::{BTreeSet, HashSet};

/// A function and its `.cold` part jump into each other's middle: they change together.
pub(super) fn join_families(patched: &Pieces<'_>, functions: &mut [Compared]) {
    let family = |piece: PieceIndex| {
        let name = patched.piece(piece).name.as_str();
        name.strip_suffix(".cold").or_else(|| without_number(name).strip_suffix(".cold")).unwrap_or(name).to_owned()
    };
    let changed: HashSet<String> =
        functions.iter().filter(|f| f.change != Change::Same).map(|function| family(function.patched)).collect();
    for function in functions.iter_mut().filter(|function| function.change == Change::Same) {
        if changed.contains(&family(function.patched)) {
            function.change = Change::Changed(Difference::Reference(0));
        }
    }
}

/// Whether the compiler made a function for some of the calls of another one, with other parameters or less code.
pub fn is_clone(name: &str) -> bool {
    [".isra.", ".constprop.", ".part."].iter().any(|mark| name.contains(mark))
}

/// What calls a changed clone changes with it: a call of the old clone passes what the old clone takes, so its entry
/// cannot lead to the new one.
pub(super) fn join_callers_of_clones(patched: &Pieces<'_>, functions: &mut [Compared], resigned: &BTreeSet<String>) {
    let apart = |name: &str| is_clone(name) || resigned.contains(name);
    loop {
        let clones: HashSet<PieceIndex> = (functions.iter())
            .filter(|function| function.change != Change::Same && apart(&patched.piece(function.patched).name))
            .map(|function| function.patched)
            .collect();
        let joined = join_callers(
            patched,
            functions,
            |target| matches!(target, Target::Piece(piece, _) if clones.contains(&piece)),
        );
        if !joined {
            return;
        }
        join_families(patched, functions);
    }
}

/// Marks the unchanged functions that refer to some targets as changed; whether there were any. What is gone after boot may
/// go on calling what it called.
pub(super) fn join_callers(
    patched: &Pieces<'_>,
    functions: &mut [Compared],
    is_meant: impl Fn(Target) -> bool,
) -> bool {
    let mut joined = false;
    for function in functions.iter_mut().filter(|function| function.change == Change::Same) {
        let piece = patched.piece(function.patched);
        let section = &patched.object.section(piece.section).name;
        if section.starts_with(".init.") || section.starts_with(".exit.") {
            continue;
        }
        if let Some(reloc) = patched.relocs(function.patched).iter().find(|reloc| is_meant(patched.target(reloc))) {
            function.change = Change::Changed(Difference::Reference(reloc.offset - piece.range.start));
            joined = true;
        }
    }
    joined
}
