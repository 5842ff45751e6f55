//! What a bundle says of itself, for people and pipelines.
//!
//! Comes in: nothing. Decided: nothing. Goes out: [`Manifest`], kept in the bundle as JSON; no byte of the guest depends on it,
//! except for who counts as inside old code ([`OldCode`]).

use serde::{Deserialize, Serialize};

/// Type of an update (the paper's 3.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpdateType {
    /// Functions only.
    Type1,
    /// Functions and existing data.
    Type2,
}

/// What a bundle is, for people and pipelines; kept as JSON in the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Name by which the operator refers to the bundle: the diff's file name without its extension.
    pub name: String,
    /// Type of the update.
    pub update_type: UpdateType,
    /// Version of the tool that wrote it.
    pub built_by: String,
    /// SHA-256 of the diff, or of the update written by hand, lower-case hexadecimal.
    pub diff_sha256: String,
    /// Files the diff changes, as named in it, sorted.
    pub files: Vec<String>,
    /// Functions replaced: name and unit.
    pub functions: Vec<ManifestFunction>,
    /// Data the bundle brings: name, unit, section and size.
    pub data: Vec<ManifestDatum>,
    /// Old code beside the functions replaced, in an update of type 2, sorted by address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<OldCode>,
    /// Object sections that were left out, with the consequence for the guest.
    pub left_out: Vec<LeftOut>,
    /// Parts of the diff that were left out because they cannot be applied live, with `--allow-partial`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<Omitted>,
    /// What the author vouches for, in the order of the file that says it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vouched: Vec<Vouched>,
    /// Loadable modules that the diff would change as well and that stay as they are, with `--built-in-only`, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unchanged_modules: Vec<String>,
}

/// A replaced or new function in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFunction {
    /// Symbol name.
    pub name: String,
    /// Translation unit, relative to the source tree (`fs/proc/cmdline.c`).
    pub unit: String,
    /// Link address of the old function; absent for a new one.
    pub old_address: Option<u64>,
    /// Size of the old function in bytes; 0 for a new one.
    pub old_size: u64,
    /// Size of the new function in bytes.
    pub new_size: u64,
}

/// A datum that the bundle brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestDatum {
    /// Symbol or section name.
    pub name: String,
    /// Translation unit.
    pub unit: String,
    /// Size in bytes.
    pub size: u64,
}

/// Old code that gives way without a jump of its own, because only replaced functions lead into it: the unlikely part of one,
/// or a copy that the compiler made for some callers. Who is inside it is inside old code.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OldCode {
    /// Link address.
    pub address: u64,
    /// Size in bytes.
    pub size: u64,
    /// Symbol name.
    pub name: String,
    /// Translation unit.
    pub unit: String,
}

/// An object section that the bundle does not carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Section name in the compiled object (`.orc_unwind`).
    pub section: String,
    /// Translation unit.
    pub unit: String,
    /// What the guest goes without.
    pub consequence: String,
}

/// A part of a diff that a bundle does not carry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Omitted {
    /// File of the diff, or translation unit.
    pub file: String,
    /// Rule that forbids it.
    pub rule: String,
    /// Why.
    pub message: String,
}

/// What the author of an update says that no tool can see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vouched {
    /// What it is about: a rule, a type or a datum.
    pub about: String,
    /// Function, type, datum or member.
    pub subject: String,
    /// What is said of it.
    pub says: String,
    /// Why.
    pub reason: String,
}
