//! What linking leaves.
//!
//! Comes in: nothing. Decided: nothing. Goes out: [`Linked`]: a payload, what it replaces, and how each of the kernel's symbols was
//! found.

use super::Returns;
use crate::refusal::Refusal;
use crate::symbol_db::KernelSymbol;
use lpk_format::{FunctionPatch, LeftOut, ManifestDatum, ManifestFunction, OldCode, Payload};
use std::collections::BTreeMap;

/// A linked payload and what it replaces.
#[derive(Debug, Default)]
pub struct Linked {
    /// New code and data.
    pub payload: Payload,
    /// Old functions, sorted by address.
    pub functions: Vec<FunctionPatch>,
    /// Replaced and new functions for the manifest.
    pub manifest_functions: Vec<ManifestFunction>,
    /// New data for the manifest.
    pub manifest_data: Vec<ManifestDatum>,
    /// Old code that gives way without a jump of its own, sorted by address.
    pub left: Vec<OldCode>,
    /// Sections that are left out.
    pub left_out: Vec<LeftOut>,
    /// What the author should look at, though nothing forbids it.
    pub warnings: Vec<Refusal>,
    /// Where frames of the old functions can go on, by address, of those that are compiled twice.
    pub returns: BTreeMap<u64, Returns>,
    /// The symbols of the payload that are the kernel's, by their index, and how each was found.
    pub found: BTreeMap<u32, FoundSymbol>,
}

/// A symbol of the kernel that new code refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundSymbol {
    /// The symbol.
    pub symbol: KernelSymbol,
    /// How it was found.
    pub how: How,
}

/// How the place behind a name was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The proof of the original code led there.
    Proof,
    /// The image has one place of that name that others can see, or one at all.
    Name,
    /// The file of the unit has one place of that name.
    File,
    /// An update written by hand says which one is meant.
    Declared,
}
