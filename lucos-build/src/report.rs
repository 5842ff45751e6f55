//! What a build says in the end.
//!
//! Comes in: what the phases found. Decided: nothing. Goes out: [`Report`], as text for people (diagnostics that point
//! into the diff, a table of functions) or as the JSON of `docs/build-report.schema.json`.

mod reason;
mod rows;
mod text;

pub use reason::Reason;
pub use rows::{
    DataChangeRow, DatumRow, FunctionRow, HookRow, ModuleUnit, ObjectBytesRow, ObjectsRow, ReturnsRow, TypeRow,
};

use crate::details::Details;
use crate::explain::Explanation;
use crate::inputs::Inputs;
use crate::warnings::Warning;
use lpk_format::Vouched;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// The answer for the whole diff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Functions change, existing data does not; a bundle was written.
    Type1,
    /// Existing data change too, or the author gave hooks. Without a bundle the reasons say why.
    Type2,
    /// No bundle was written; the reasons say why.
    Refused,
    /// Nothing that runs in this kernel changes; no bundle is needed.
    NoEffect,
}

/// Where the time went, in milliseconds of wall time; `compiler` is processor time of compilers and their kin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names are the phases, in order")]
pub struct Timings {
    pub identify: u64,
    pub read_diff: u64,
    pub setup: u64,
    pub headers: u64,
    pub compile: u64,
    pub compiler: u64,
    pub prove: u64,
    pub compare: u64,
    pub classify: u64,
    pub link: u64,
    pub write: u64,
    pub total: u64,
}

/// Milliseconds of a duration, rounded.
pub fn millis(duration: Duration) -> u64 {
    (duration.as_micros() as u64 + 500) / 1000
}

/// What a build says in the end.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The answer.
    pub verdict: Verdict,
    /// Functions replaced and new.
    pub functions: Vec<FunctionRow>,
    /// Data that the bundle brings.
    pub data: Vec<DatumRow>,
    /// Existing data that change, with what becomes of each.
    pub data_changes: Vec<DataChangeRow>,
    /// Existing types that change.
    pub types: Vec<TypeRow>,
    /// What the author vouches for.
    pub vouched: Vec<Vouched>,
    /// Hooks of the author.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<HookRow>,
    /// Why it is refused; empty otherwise.
    pub reasons: Vec<Reason>,
    /// What old and new code may disagree about; it stops nothing.
    pub warnings: Vec<Warning>,
    /// What else a person should know: parts of the diff without effect, hunks that moved.
    pub notes: Vec<String>,
    /// Parts of the diff that the bundle leaves out, because `--allow-partial` was given.
    pub omitted: Vec<Reason>,
    /// Units of loadable modules that the diff changes or may change as well, through headers.
    pub modules: Vec<ModuleUnit>,
    /// The bundle written.
    pub bundle: Option<PathBuf>,
    /// What the build was made from.
    pub inputs: Inputs,
    /// Where the time went.
    pub timings_ms: Timings,
    /// Functions that were to be explained.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub explanations: Vec<Explanation>,
    /// The diff, to point into.
    #[serde(skip)]
    pub diff: Vec<u8>,
    /// Warnings that the author has silenced.
    #[serde(skip)]
    pub silenced: Vec<Warning>,
    /// What only the page shows; absent when no page is wanted.
    #[serde(skip)]
    pub details: Option<Details>,
}

impl Report {
    /// A report of nothing so far.
    pub fn new() -> Self {
        Self {
            verdict: Verdict::NoEffect,
            functions: Vec::new(),
            data: Vec::new(),
            data_changes: Vec::new(),
            types: Vec::new(),
            vouched: Vec::new(),
            hooks: Vec::new(),
            reasons: Vec::new(),
            warnings: Vec::new(),
            notes: Vec::new(),
            omitted: Vec::new(),
            modules: Vec::new(),
            bundle: None,
            inputs: Inputs::default(),
            timings_ms: Timings::default(),
            explanations: Vec::new(),
            diff: Vec::new(),
            silenced: Vec::new(),
            details: None,
        }
    }

    /// The report as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report has only strings, numbers and lists")
    }
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
