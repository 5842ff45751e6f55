//! What differs between two versions, as plain values.
//!
//! Comes in: nothing. Decided: nothing. Goes out: the changes of types, variables and functions.

use crate::dwarf_layout::{Place, TypeKind};
use serde::Serialize;

/// How much a change matters to data that exists already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Worth a note: existing data reads the same (a member renamed, a qualifier, an enumerator added).
    Info,
    /// Same place and size, but of another type.
    Retyped,
    /// Existing data has another layout or another meaning.
    Layout,
}

/// One side of a member's change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberSide {
    /// Offset in bits.
    pub bit_offset: u64,
    /// Size in bits.
    pub bit_size: u64,
    /// Type, spelled in C.
    pub type_text: String,
}

/// A member that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberChange {
    /// Path of the member; the old one of a renamed member.
    pub name: String,
    /// New path, when nothing but the name changed.
    pub renamed_to: Option<String>,
    /// The member before; absent for an added one.
    pub old: Option<MemberSide>,
    /// The member after; absent for a removed one.
    pub new: Option<MemberSide>,
    /// How much it matters.
    pub effect: Effect,
    /// Where it is declared, in the new version if there.
    pub place: Option<Place>,
}

/// An enumerator that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EnumeratorChange {
    /// Name.
    pub name: String,
    /// Value before; absent for an added one.
    pub old: Option<i128>,
    /// Value after; absent for a removed one.
    pub new: Option<i128>,
}

/// A type that both versions define and lay out differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TypeChange {
    /// Its key in [`Layouts::types`](crate::dwarf_layout::Layouts::types).
    pub name: String,
    /// What it is.
    pub kind: TypeKind,
    /// How much the change matters.
    pub effect: Effect,
    /// Size before, in bytes.
    pub old_size: u64,
    /// Size after, in bytes.
    pub new_size: u64,
    /// Alignment before, in bytes.
    pub old_align: u64,
    /// Alignment after, in bytes.
    pub new_align: u64,
    /// Members that differ, in order of the old declaration, added ones last.
    pub members: Vec<MemberChange>,
    /// Enumerators that differ.
    pub enumerators: Vec<EnumeratorChange>,
    /// What a typedef stood for and stands for, when that differs.
    pub target: Option<(String, String)>,
    /// Changed types inside this one that are the whole cause; empty when its own declaration changed.
    pub consequence_of: Vec<String>,
    /// Where it is declared, in the new version.
    pub place: Option<Place>,
}

/// A variable that both versions have, with another type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VariableChange {
    /// Name.
    pub name: String,
    /// Function that it is local to.
    pub function: Option<String>,
    /// Which of the function's locals of that name, from 0.
    pub ordinal: u32,
    /// Type before.
    pub old_type: String,
    /// Type after.
    pub new_type: String,
    /// Size in bytes before, when known.
    pub old_size: Option<u64>,
    /// Size in bytes after, when known.
    pub new_size: Option<u64>,
    /// Whether the unit defines it, rather than only using it.
    pub defined: bool,
    /// How much the change matters.
    pub effect: Effect,
    /// Changed types inside it that are the whole cause; empty when its own declaration changed.
    pub consequence_of: Vec<String>,
    /// Where it is declared, in the new version.
    pub place: Option<Place>,
}

/// A function whose return or parameter types differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SignatureChange {
    /// Name.
    pub name: String,
    /// Declaration before.
    pub old: String,
    /// Declaration after.
    pub new: String,
    /// Where it is declared, in the new version.
    pub place: Option<Place>,
}
