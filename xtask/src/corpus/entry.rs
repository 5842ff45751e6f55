//! The result for one changed file.
//!
//! Comes in: what `lucos-build` said. Decided: nothing. Goes out: [`Entry`], in a file beside the diff and the bundle
//! and in the corpus' JSON.

use lucos_tests::commands::Outcome;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Where a file is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Place {
    /// In the kernel's image.
    BuiltIn,
    /// In a loadable module.
    Module,
}

/// A refusal's rule, and what was said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Why {
    pub(crate) rule: String,
    pub(crate) message: String,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u64>,
}

/// What became of a changed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The file.
    pub(crate) file: String,
    pub(crate) place: Place,
    /// All files of its diff.
    pub(crate) files: Vec<String>,
    /// Options that the build was asked with, beyond the usual.
    #[serde(default)]
    pub(crate) flags: Vec<String>,
    /// Header hunks in it.
    pub(crate) header_hunks: usize,
    /// `type1` or `type2` (there is a bundle), `no-effect`, `refused`, `undecided`, or `failed`.
    pub(crate) verdict: String,
    /// Whether existing data or types change, bundle or not.
    #[serde(default)]
    pub(crate) is_type2: bool,
    pub(crate) reasons: Vec<Why>,
    pub(crate) notes: Vec<String>,
    /// Functions replaced and new.
    pub(crate) functions: usize,
    /// Units compiled for it, as far as they are in the bundle.
    pub(crate) units: Vec<String>,
    pub(crate) bundle_bytes: u64,
    pub(crate) wall_ms: u64,
    pub(crate) compiler_ms: u64,
    /// Digest of the diff and the options.
    pub(crate) diff: String,
    /// Digest of all that the result depends on.
    pub(crate) key: String,
    /// Folder of the diff, the report and the bundle, relative to the corpus' folder.
    pub(crate) folder: String,
    /// Name of the update.
    pub(crate) name: String,
}

impl Entry {
    /// The rule that comes first.
    pub(crate) fn rule(&self) -> &str {
        self.reasons.first().map_or("", |why| why.rule.as_str())
    }

    /// A bundle, or a verdict that none is needed.
    pub(crate) fn is_good(&self) -> bool {
        self.has_bundle() || self.verdict == "no-effect"
    }

    /// A bundle, of either type.
    pub(crate) fn has_bundle(&self) -> bool {
        matches!(self.verdict.as_str(), "type1" | "type2")
    }

    /// Whether it ended with this verdict, or one of its reasons is this rule.
    pub(crate) fn ended(&self, word: &str) -> bool {
        self.verdict == word || self.reasons.iter().any(|why| why.rule == word)
    }

    /// All rules that stand in the way, each once.
    pub(crate) fn rules(&self) -> BTreeSet<&str> {
        self.reasons.iter().map(|why| why.rule.as_str()).collect()
    }

    /// The command was ended before it had decided.
    pub(crate) fn undecided(&mut self, seconds: u64) {
        self.verdict = "undecided".to_owned();
        self.wall_ms = 1000 * seconds;
        let message = format!("lucos-build had not decided after {seconds} s (`--limit`)");
        self.reasons = vec![Why { rule: "time-limit".to_owned(), message, file: None, line: None }];
    }

    /// Reads what the command said.
    pub(crate) fn take(&mut self, outcome: &Outcome) {
        let verdict = outcome.text("/verdict");
        let is_report = matches!(outcome.status, 0 | 3) && !verdict.is_empty();
        self.is_type2 = is_report && verdict == "type2";
        self.verdict = match outcome.status {
            _ if !is_report => "failed".to_owned(),
            // Of Type 2, and refused.
            3 => "refused".to_owned(),
            _ => verdict.to_owned(),
        };
        let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
        self.reasons = outcome
            .items("/reasons")
            .iter()
            .map(|reason| Why {
                rule: text(&reason["rule"]).unwrap_or_default(),
                message: text(&reason["message"]).unwrap_or_default(),
                file: text(&reason["file"]),
                line: reason["line"].as_u64(),
            })
            .collect();
        if !is_report {
            let message = format!("status {}: {}", outcome.status, outcome.stderr.trim());
            self.reasons = vec![Why { rule: "failed".to_owned(), message, file: None, line: None }];
        }
        self.notes = outcome.items("/notes").iter().filter_map(text).collect();
        self.functions = outcome.items("/functions").len();
        let mut units: Vec<String> =
            outcome.items("/functions").iter().filter_map(|function| text(&function["unit"])).collect();
        units.sort();
        units.dedup();
        self.units = units;
        self.wall_ms = outcome.wall_ms as u64;
        self.compiler_ms = outcome.number("/timings_ms/compiler") as u64;
    }
}
