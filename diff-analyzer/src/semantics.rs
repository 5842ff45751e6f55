//! What old and new code may disagree about although no data changes: warnings, which no layout shows.
//!
//! Comes in: a unit before and after, compared, and the texts of the changed files. Decided: by the rules below, with what a
//! person can do about it. Goes out: [`Warning`]s. A warning stops nothing: Type 1 says what changes, not that it is safe.
//!
//! | rule | warning |
//! | --- | --- |
//! | `lock-calls`, `reference-calls`, `rcu-calls`, `preempt-calls`, `irq-calls` | a function takes or drops something differently than before |
//! | `new-lock-in-type`, `lock-retyped` | existing instances of a type hold no lock that is made ready, or one of another kind |
//! | `two-signatures` | a replaced function takes or returns other types than before |
//!
//! Calls are looked at in two ways, since neither sees all. The *text* says how often the author wrote a call ([`text`]). The *code*
//! says what each way through a function takes more than it drops ([`paths`]): there a jump to another label shows, and an
//! additional way out that drops what all others drop is seen to be no difference.

mod calls;
pub mod events;
pub mod flow;
pub mod inlined;
pub mod paths;
pub mod primitives;
pub mod text;
mod types;

use crate::dwarf_layout::Layouts;
use crate::layout_diff::{SignatureChange, TypeChange};
use crate::object_diff::ObjectDiff;
use crate::pieces::{PieceIndex, Pieces, Target};
use calls::own_name;
use inlined::Inlined;
use std::collections::BTreeSet;
use text::{Side, Texts};

/// Something that a person should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Identifier of the rule.
    pub rule: &'static str,
    /// Function or type.
    pub subject: String,
    /// What differs.
    pub message: String,
    /// What to do.
    pub help: &'static str,
    /// The file, relative to the tree.
    pub file: Option<String>,
    /// Line in it, from 1, in the text after the diff.
    pub line: Option<usize>,
    /// Line of the diff, from 1.
    pub diff_line: Option<usize>,
}

/// A unit, before and after.
pub struct Unit<'a, 'o> {
    /// Its functions and data.
    pub pieces: [&'a Pieces<'o>; 2],
    /// How they differ.
    pub diff: &'a ObjectDiff,
    /// Its types.
    pub layouts: [&'a Layouts; 2],
    /// Types that differ.
    pub types: &'a [TypeChange],
    /// Functions with other types.
    pub signatures: &'a [SignatureChange],
    /// Its inline functions.
    pub inlined: [&'a [Inlined]; 2],
}

const SIDE_BY_SIDE: &str = "both versions run side by side until the last old call has ended: if they must not disagree about this, \
    supply hooks (--hooks FILE.c); if it does no harm, say so in the override file";

/// All warnings about a unit.
pub fn check(unit: &Unit<'_, '_>, texts: &Texts<'_>) -> Vec<Warning> {
    let mut warnings = calls::check(unit, texts);
    warnings.extend(types::check(unit.layouts, unit.types, texts));
    warnings.extend(unit.signatures.iter().filter_map(|change| signature(unit, change, texts)));
    warnings
}

/// A function that exists with two signatures as long as the update lasts.
fn signature(unit: &Unit<'_, '_>, change: &SignatureChange, texts: &Texts<'_>) -> Option<Warning> {
    let [old, new] = unit.pieces;
    let name_of = |pieces: &Pieces<'_>, piece: PieceIndex| own_name(&pieces.piece(piece).name).to_owned();
    let mut changed = unit.diff.changed_functions().filter_map(|function| Some((function.original?, function.patched)));
    let (_, patched) =
        changed.find(|&(before, after)| name_of(old, before) == change.name && name_of(new, after) == change.name)?;
    let calls = |caller: &PieceIndex| {
        new.relocs(*caller).iter().any(|reloc| matches!(new.target(reloc), Target::Piece(piece, 0) if piece == patched))
    };
    let callers = unit.diff.changed_functions().map(|function| function.patched).filter(calls);
    let callers: BTreeSet<String> = callers.map(|caller| format!("`{}`", name_of(new, caller))).collect();
    let callers = match callers.len() {
        0 => "its callers".to_owned(),
        _ => callers.into_iter().take(4).collect::<Vec<_>>().join(", "),
    };
    let found = change.place.as_ref().and_then(|place| texts.find(&place.file, &change.name));
    let (line, diff_line) = found.map_or((None, None), |found| texts.place(found, &change.name, None, Side::New));
    Some(Warning {
        rule: "two-signatures",
        subject: change.name.clone(),
        message: format!(
            "`{}` is `{}` before and `{}` after, and {callers} with it: calls that have begun end with the old one",
            change.name, change.old, change.new
        ),
        help: SIDE_BY_SIDE,
        file: found.map(|found| texts.change(found).path.display().to_string()),
        line,
        diff_line,
    })
}
