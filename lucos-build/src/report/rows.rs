//! Functions, data, types and hooks in a report.
//!
//! Comes in: nothing. Decided: nothing. Goes out: a row for each, as the JSON has it; what only a page or a diagnostic needs is
//! skipped there.

use diff_analyzer::dwarf_layout::{Place, TypeLayout};
use diff_analyzer::layout_diff::{EnumeratorChange, MemberChange};
use lpk_format::HookKind;
use serde::Serialize;
use std::collections::BTreeSet;

/// A replaced or new function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FunctionRow {
    /// Symbol name.
    pub name: String,
    /// Translation unit, relative to the source tree.
    pub unit: String,
    /// Loadable module that it is in; absent for the kernel image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Link address of the old function, `0x…`; absent for a new one.
    pub old_address: Option<String>,
    /// Size of the old function in bytes; 0 for a new one.
    pub old_size: u64,
    /// Size of the new function in bytes.
    pub new_size: u64,
    /// Where threads that are inside of the old function can go on in the new one, in an update of type 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub returns: Option<ReturnsRow>,
}

/// Where frames of an old function can go on in the new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReturnsRow {
    /// Calls of the old function.
    pub calls: usize,
    /// Those of them with a counterpart.
    pub counterparts: usize,
    /// Why others have none: for all, or `+0x…` of where they return to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<String>,
}

/// A datum that the bundle brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatumRow {
    /// Symbol or section name.
    pub name: String,
    /// Translation unit.
    pub unit: String,
    /// Size in bytes.
    pub size: u64,
}

/// An existing datum that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DataChangeRow {
    /// Name.
    pub name: String,
    /// Translation unit.
    pub unit: String,
    /// Rule that found it.
    pub rule: String,
    /// What changes.
    pub message: String,
    /// What becomes of it: `in-place`, `moved`, `by-hooks`, `kept` or `refused`.
    pub strategy: String,
    /// Link address, `0x…`, where it is proved.
    pub old_address: Option<String>,
    /// Size before, in bytes.
    pub old_size: u64,
    /// Size after, in bytes.
    pub new_size: u64,
    /// Bytes that are written to it where it is: `new 4..8`, `changed 0..4`.
    pub written: Vec<String>,
    /// How a new one is made from the old one, step by step.
    pub to_new: Vec<String>,
    /// How the old one is made from the new one, step by step.
    pub to_old: Vec<String>,
    /// Functions that refer to it: those of the unit, and of a datum that moves all others as well.
    pub users: BTreeSet<String>,
    /// What the author says of it in the file beside the diff.
    pub reason: Option<String>,
    /// Where it is declared, in the patched source.
    #[serde(skip)]
    pub place: Option<Place>,
}

/// An existing type that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TypeRow {
    /// Name, as C writes it.
    pub name: String,
    /// Rule that found it.
    pub rule: String,
    /// What changes.
    pub message: String,
    /// What becomes of its objects, where that is known.
    pub strategy: Option<String>,
    /// How those of its slab cache are initialised, where the author names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects: Option<ObjectsRow>,
    /// Size before, in bytes.
    pub old_size: u64,
    /// Size after, in bytes.
    pub new_size: u64,
    /// Changed types inside it that are the whole cause.
    pub because: Vec<String>,
    /// Members that differ.
    pub members: Vec<MemberChange>,
    /// Enumerators that differ.
    pub enumerators: Vec<EnumeratorChange>,
    /// The type before, with offset and size of each member.
    pub old: String,
    /// The type after.
    pub new: String,
    /// Units of the diff that see it.
    pub units: BTreeSet<String>,
    /// Changed functions whose parameters or variables are of it or point to it.
    pub users: BTreeSet<String>,
    /// Data that are made of it.
    pub data: BTreeSet<String>,
    /// Where it is declared, in the patched source.
    #[serde(skip)]
    pub place: Option<Place>,
    /// The type before and after.
    #[serde(skip)]
    pub layouts: Box<[TypeLayout; 2]>,
}

/// How the objects of a slab cache are initialised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObjectsRow {
    /// The variable that points to the cache.
    pub cache: String,
    /// Unit that defines it.
    pub unit: String,
    /// Module that it belongs to; absent for the kernel image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Its link address.
    pub cache_address: String,
    /// What is new in an object, and holds at first.
    pub added: Vec<ObjectBytesRow>,
    /// What was looked at to see that no objects lie elsewhere.
    pub checked: String,
}

/// New bytes of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ObjectBytesRow {
    /// Offset in the object, in bytes.
    pub offset: u32,
    /// What they hold at first, in hexadecimal.
    pub bytes: String,
}

/// A hook of the author.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HookRow {
    /// When it is called.
    pub kind: HookKind,
    /// Function or datum that it is about; absent for the whole update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

/// A unit of a loadable module that the diff changes or may change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ModuleUnit {
    /// The module.
    pub module: String,
    /// Source file, relative to the tree.
    pub unit: String,
}
