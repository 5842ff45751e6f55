//! Type 1 or Type 2, by rules.
//!
//! Comes in: what changed in a unit's code and data, and the layouts of its types before and after. Decided: which existing
//! types and data change, each by a rule with an identifier, and what could become of each datum ([`Fate`]). Goes out:
//! [`Classification`]; a unit whose classification is empty is Type 1.
//!
//! | rule | finding | where |
//! | --- | --- | --- |
//! | `type-layout` | a type that existed is laid out differently: what it has moves, goes or changes its size | [`types`] |
//! | `type-additive` | a type that existed gets members, and all that it had keeps its place | [`types`] |
//! | `enum-value` | an enumerator gets another value, or goes | [`types`] |
//! | `data-value` | an existing datum gets another initial value, or a pointer in it leads elsewhere | [`data`] |
//! | `data-layout` | an existing datum has another size, or a type of another layout | [`data`] |
//! | `data-section` | an existing datum moves to a section of another kind | [`data`] |

pub mod data;
mod initial;
pub mod types;

use crate::dwarf_layout::{Layouts, Place, TypeLayout};
use crate::layout_diff::TypeChange;
use crate::object_diff::{ObjectDiff, is_clone};
use crate::pieces::{PieceIndex, Pieces};
use crate::transfer::Transfer;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What a unit's change does to types and data that exist.
#[derive(Debug, Clone, Default)]
pub struct Classification {
    /// Types.
    pub types: Vec<TypeFinding>,
    /// Data.
    pub data: Vec<DatumFinding>,
}

/// A type that existed and changes.
#[derive(Debug, Clone)]
pub struct TypeFinding {
    /// Identifier of the rule.
    pub rule: &'static str,
    /// What changes, with old and new offsets.
    pub message: String,
    /// The change.
    pub change: TypeChange,
    /// The type before.
    pub old: TypeLayout,
    /// The type after.
    pub new: TypeLayout,
    /// Changed functions of the unit whose parameters or variables are of it or point to it.
    pub users: BTreeSet<String>,
    /// Data of the unit that are made of it.
    pub data: BTreeSet<String>,
    /// Types of the unit that contain it, as they were before.
    pub holders: BTreeSet<String>,
    /// Types that its new members are made of, by key, however deep.
    pub inside: BTreeMap<String, TypeLayout>,
}

/// A datum that existed and changes.
#[derive(Debug, Clone)]
pub struct DatumFinding {
    /// Identifier of the rule.
    pub rule: &'static str,
    /// Name; of a static local with its function, `f.name`.
    pub name: String,
    /// What changes.
    pub message: String,
    /// Where it is declared, in the patched source.
    pub place: Option<Place>,
    /// The datum in the original and in the patched object.
    pub pieces: (PieceIndex, PieceIndex),
    /// Size in bytes, before and after.
    pub sizes: (u64, u64),
    /// Functions of the patched unit that refer to it, changed or not.
    pub users: BTreeSet<String>,
    /// Members that other objects point to: path, and why that forbids to move it.
    pub anchors: Vec<(String, String)>,
    /// How its contents are carried from old to new, and back, where debug information tells.
    pub transfers: Option<(Transfer, Transfer)>,
    /// What could become of it.
    pub fate: Fate,
}

/// What could become of a datum, as far as the two objects tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It stays where it is, and some of its bytes are written.
    InPlace {
        /// Bytes in which nothing was: they get their initial value.
        added: Vec<Range<u64>>,
        /// Bytes whose initial value changes.
        edited: Vec<Range<u64>>,
    },
    /// A new one takes its place, and its contents are carried over, both ways.
    Moved,
    /// It could move, but no rule can carry its contents: why.
    Unknown(String),
    /// Neither: why.
    Stuck(String),
}

impl Classification {
    /// Whether nothing that exists changes.
    pub fn is_empty(&self) -> bool {
        self.types.is_empty() && self.data.is_empty()
    }
}

/// Finds what a unit's change does to existing types and data. A unit in which nothing differs has no findings: a type that
/// only one side of a diff sees is used by nothing that runs.
pub fn classify(
    diff: &ObjectDiff,
    original: &Pieces<'_>,
    patched: &Pieces<'_>,
    old: &Layouts,
    new: &Layouts,
) -> Classification {
    if diff.is_empty() {
        return Classification::default();
    }
    Classification {
        types: types::find(&changed_names(diff, patched), old, new),
        data: data::find(diff, original, patched, old, new),
    }
}

/// Names of the changed functions, without what the compiler appends to its copies.
fn changed_names<'p>(diff: &ObjectDiff, patched: &'p Pieces<'_>) -> BTreeSet<&'p str> {
    let names = diff.changed_functions().map(|function| patched.piece(function.patched).name.as_str());
    names
        .map(
            |name| {
                if is_clone(name) || name.ends_with(".cold") { name.split('.').next().unwrap_or(name) } else { name }
            },
        )
        .collect()
}
