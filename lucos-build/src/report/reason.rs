//! Why something is refused, warned of or left out.
//!
//! Comes in: a rule and what it found. Decided: nothing. Goes out: [`Reason`], with as much of a place as is known.

use prelink::refusal::Refusal;
use serde::Serialize;
use std::collections::BTreeSet;

/// Why something is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Short fixed name of the rule.
    pub rule: String,
    /// What was expected and what was found.
    pub message: String,
    /// Source file, relative to the tree, or the input at fault.
    pub file: Option<String>,
    /// Line in it, from 1; in the text after the diff where the diff changes the file.
    pub line: Option<usize>,
    /// What to do next.
    pub help: Option<String>,
    /// Line of the diff, from 1.
    #[serde(skip)]
    pub diff_line: Option<usize>,
    /// Units that it concerns, where it is about units.
    #[serde(skip)]
    pub units: BTreeSet<String>,
}

impl Reason {
    /// A reason without a place.
    pub fn new(rule: &str, message: impl Into<String>) -> Self {
        Self {
            rule: rule.to_owned(),
            message: message.into(),
            file: None,
            line: None,
            help: None,
            diff_line: None,
            units: BTreeSet::new(),
        }
    }

    /// Adds the file it is about.
    #[must_use]
    pub fn at(mut self, file: impl Into<String>, line: Option<usize>) -> Self {
        (self.file, self.line) = (Some(file.into()), line);
        self
    }

    /// Adds the line of the diff it is about.
    #[must_use]
    pub fn in_diff(mut self, line: Option<usize>) -> Self {
        self.diff_line = line;
        self
    }

    /// Adds a unit that it concerns.
    #[must_use]
    pub fn of_unit(mut self, unit: impl Into<String>) -> Self {
        self.units.insert(unit.into());
        self
    }

    /// Adds what to do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl From<Refusal> for Reason {
    fn from(refusal: Refusal) -> Self {
        let reason = Self::new(refusal.rule, refusal.message).at(refusal.unit.clone(), None);
        reason.help(refusal.help).of_unit(refusal.unit)
    }
}
