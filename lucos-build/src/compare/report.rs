//! What a comparison says in the end.
//!
//! Comes in: rows, reasons, explanations. Decided: the verdict. Goes out: [`Comparison`], as text for people or as the JSON
//! of `docs/compare-report.schema.json`.

use super::rows::{Row, What};
use super::sizes::EntrySize;
use crate::explain::Explanation;
use crate::report::{Reason, Report};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The answer for the two objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing that runs differs.
    Equal,
    /// They differ, and nothing found so far forbids to replace what differs.
    Differ,
    /// They cannot be compared, or what differs cannot be replaced: the reasons say why.
    Refused,
}

/// What a comparison says in the end.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The answer.
    pub verdict: Verdict,
    /// The original object.
    pub original: PathBuf,
    /// The patched object.
    pub patched: PathBuf,
    /// Source file of the unit, if it is known.
    pub unit: Option<String>,
    /// Sizes of table entries that were used.
    pub entry_sizes: Vec<EntrySize>,
    /// Changed, new and removed functions.
    pub functions: Vec<Row>,
    /// Changed, new and removed data.
    pub data: Vec<Row>,
    /// What could not be replaced and why, or why nothing could be compared.
    pub reasons: Vec<Reason>,
    /// What else a person should know.
    pub notes: Vec<String>,
    /// The functions that were to be explained.
    pub explanations: Vec<Explanation>,
}

impl Comparison {
    /// A comparison of nothing so far.
    pub(super) fn new(original: &Path, patched: &Path) -> Self {
        Self {
            verdict: Verdict::Equal,
            original: original.to_owned(),
            patched: patched.to_owned(),
            unit: None,
            entry_sizes: Vec::new(),
            functions: Vec::new(),
            data: Vec::new(),
            reasons: Vec::new(),
            notes: Vec::new(),
            explanations: Vec::new(),
        }
    }

    pub(super) fn decide(&mut self) {
        self.verdict = if !self.reasons.is_empty() {
            Verdict::Refused
        } else if self.functions.is_empty() && self.data.is_empty() {
            Verdict::Equal
        } else {
            Verdict::Differ
        };
    }

    /// As JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a comparison has only strings, numbers and lists")
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (what, rows) in [("function", &self.functions), ("datum", &self.data)] {
            if !rows.is_empty() {
                let _ = writeln!(text, "{}\n", table(what, rows));
            }
        }
        for explanation in &self.explanations {
            let _ = writeln!(text, "{}", explanation.to_text());
        }
        let diagnostics = Report::new();
        for reason in &self.reasons {
            text.push_str(&diagnostics.diagnostic(reason));
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        for entry in self.entry_sizes.iter().filter(|entry| entry.from != "vmlinux") {
            let _ = writeln!(text, "note: `struct {}` has {} bytes, by {}", entry.name, entry.size, entry.from);
        }
        let counted = |rows: &[Row], what: What| rows.iter().filter(|row| row.change == what).count();
        let summary = |name: &str, rows: &[Row]| {
            let counts = [What::Changed, What::New, What::Removed].map(|what| counted(rows, what));
            format!("{name}: {} changed, {} new, {} removed", counts[0], counts[1], counts[2])
        };
        let (functions, data) = (summary("functions", &self.functions), summary("data", &self.data));
        let _ = match self.verdict {
            Verdict::Equal => writeln!(text, "equal: nothing that runs differs"),
            Verdict::Differ => writeln!(text, "differ: {functions}; {data}"),
            Verdict::Refused => writeln!(text, "refused, for the reasons above: {functions}; {data}"),
        };
        text
    }
}

fn table(what: &str, rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([what, "change", "old", "new", "why", "goes along"]);
    for row in rows {
        let size = |size: Option<u64>| {
            let text = size.map_or_else(|| "-".to_owned(), |size| size.to_string());
            Cell::new(text).set_alignment(CellAlignment::Right)
        };
        let change = match row.change {
            What::Changed => "changed",
            What::New => "new",
            What::Removed => "removed",
        };
        table.add_row([
            Cell::new(&row.name),
            Cell::new(change),
            size(row.old_size),
            size(row.new_size),
            Cell::new(row.reason.as_deref().unwrap_or_default()),
            Cell::new(row.along.as_ref().map(super::along::Along::summary).unwrap_or_default()),
        ]);
    }
    table
}
