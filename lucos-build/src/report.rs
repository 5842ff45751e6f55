//! What a build says in the end.
//!
//! Comes in: what the phases found. Decided: nothing. Goes out: [`Report`], as text for people (diagnostics that point
//! into the diff, a table of functions) or as the JSON of `docs/build-report.schema.json`.

use crate::details::Details;
use crate::explain::Explanation;
use crate::inputs::Inputs;
use crate::warnings::Warning;
use comfy_table::{Cell, CellAlignment, Table, presets};
use diff_analyzer::dwarf_layout::{Place, TypeLayout};
use diff_analyzer::layout_diff::{EnumeratorChange, MemberChange};
use lpk_format::{HookKind, Vouched};
use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Severity};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
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

/// A unit of a loadable module that the diff changes or may change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ModuleUnit {
    /// The module.
    pub module: String,
    /// Source file, relative to the tree.
    pub unit: String,
}

impl From<prelink::refusal::Refusal> for Reason {
    fn from(refusal: prelink::refusal::Refusal) -> Self {
        let reason = Self::new(refusal.rule, refusal.message).at(refusal.unit.clone(), None);
        reason.help(refusal.help).of_unit(refusal.unit)
    }
}

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

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
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

    /// The report for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for explanation in &self.explanations {
            let _ = writeln!(text, "{}", explanation.to_text());
        }
        for row in &self.data_changes {
            let _ = writeln!(text, "{}: {}, {}", row.unit, row.message, row.strategy);
            for line in &row.written {
                let _ = writeln!(text, "    {line}");
            }
            for (name, lines) in [("to the new one", &row.to_new), ("to the old one", &row.to_old)] {
                for line in lines {
                    let _ = writeln!(text, "    {name}: {line}");
                }
            }
        }
        for row in &self.types {
            let Some(objects) = &row.objects else { continue };
            let strategy = row.strategy.as_deref().unwrap_or_default();
            let _ = writeln!(text, "{}, {strategy}", row.message);
            for ObjectBytesRow { offset, bytes } in &objects.added {
                let _ = writeln!(text, "    at {offset}: {bytes}");
            }
            let _ = writeln!(text, "    checked: {}", objects.checked);
        }
        for vouched in &self.vouched {
            let Vouched { about, subject, says, reason } = vouched;
            let _ = writeln!(text, "on the author's word: {about} `{subject}`: {says} ({reason})");
        }
        for warning in &self.warnings {
            text.push_str(&self.diagnostic_of(&warning.reason, Severity::Warning));
        }
        for reason in &self.reasons {
            text.push_str(&self.diagnostic(reason));
        }
        for reason in &self.omitted {
            let place = reason.file.as_deref().unwrap_or("the diff");
            let _ = writeln!(text, "left out: {place}: {} ({})", reason.message, reason.rule);
        }
        if !self.modules.is_empty() {
            let names: BTreeSet<&str> = self.modules.iter().map(|unit| unit.module.as_str()).collect();
            let names: Vec<&str> = names.into_iter().collect();
            let _ = writeln!(text, "modules that change as well and stay as they are: {}", names.join(", "));
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        if !self.functions.is_empty() {
            let _ = writeln!(text, "{}", self.function_table());
        }
        for hook in &self.hooks {
            let _ = writeln!(text, "hook {}: {}", hook.kind.name(), hook.subject.as_deref().unwrap_or("the update"));
        }
        let kind = match self.verdict {
            Verdict::Type1 => "Type 1 (functions only)",
            Verdict::Type2 => "Type 2 (functions and existing data)",
            Verdict::Refused => "refused",
            Verdict::NoEffect => "no effect: nothing that runs in this kernel changes",
        };
        let _ = match (self.reasons.len(), &self.bundle) {
            (0, Some(bundle)) => {
                let functions = counted(self.functions.len(), "function", "functions");
                let data = counted(self.data.len(), "new datum", "new data");
                let changed = match self.data_changes.len() {
                    0 => String::new(),
                    count => format!(", {}", counted(count, "changed datum", "changed data")),
                };
                writeln!(text, "{kind}: {}, {functions}, {data}{changed}", bundle.display())
            }
            (0, None) => writeln!(text, "{kind}; no bundle is needed"),
            (1, _) => writeln!(text, "{kind}: no bundle was written, for the reason above"),
            (count, _) => writeln!(text, "{kind}: no bundle was written, for the {count} reasons above"),
        };
        let times = &self.timings_ms;
        let _ = writeln!(
            text,
            "{} ms: identify {}, read diff {}, set-up {}, headers {}, compile {} (compiler {}), prove {}, compare {}, classify {}, link {}, write {}",
            times.total,
            times.identify,
            times.read_diff,
            times.setup,
            times.headers,
            times.compile,
            times.compiler,
            times.prove,
            times.compare,
            times.classify,
            times.link,
            times.write
        );
        text
    }

    fn function_table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["function", "unit", "old address", "old", "new"]);
        for row in &self.functions {
            let number = |value: u64| Cell::new(value).set_alignment(CellAlignment::Right);
            let address = row.old_address.clone().unwrap_or_else(|| "(new)".to_owned());
            table.add_row([
                Cell::new(&row.name),
                Cell::new(&row.unit),
                Cell::new(address),
                number(row.old_size),
                number(row.new_size),
            ]);
        }
        table
    }

    /// A reason for people, pointing into the diff where it can.
    pub fn diagnostic(&self, reason: &Reason) -> String {
        self.diagnostic_of(reason, Severity::Error)
    }

    fn diagnostic_of(&self, reason: &Reason, severity: Severity) -> String {
        let place = match (&reason.file, reason.line) {
            (Some(file), Some(line)) if !reason.message.starts_with(file) => format!("{file}:{line}: "),
            (Some(file), None) if !reason.message.contains(file) => format!("{file}: "),
            _ => String::new(),
        };
        let mut diagnostic = MietteDiagnostic::new(format!("{place}{}", reason.message))
            .with_code(reason.rule.clone())
            .with_severity(severity);
        if let Some(help) = &reason.help {
            diagnostic = diagnostic.with_help(help.clone());
        }
        let line = reason.diff_line.and_then(|line| self.diff_span(line));
        let report = match line {
            Some((start, len)) => {
                let diagnostic = diagnostic.with_label(LabeledSpan::new(Some("here".to_owned()), start, len));
                let source = String::from_utf8_lossy(&self.diff).into_owned();
                miette::Report::new(diagnostic).with_source_code(NamedSource::new("diff", source))
            }
            None => miette::Report::new(diagnostic),
        };
        let fancy = std::io::stderr().is_terminal();
        let theme = if fancy { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let mut text = String::new();
        let handler = GraphicalReportHandler::new_themed(theme).with_width(120).with_links(false);
        if handler.render_report(&mut text, report.as_ref()).is_err() {
            text = format!("{}: {place}{}\n", reason.rule, reason.message);
        }
        text
    }

    /// Start and length of a line of the diff, as it is shown.
    fn diff_span(&self, line: usize) -> Option<(usize, usize)> {
        // Offsets must be those of the text as miette gets it.
        let text = String::from_utf8_lossy(&self.diff);
        let mut start = 0;
        for (index, part) in text.split_inclusive('\n').enumerate() {
            if index + 1 == line {
                return Some((start, part.trim_end().len()));
            }
            start += part.len();
        }
        None
    }
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_points_into_the_diff() {
        let mut report = Report::new();
        report.verdict = Verdict::Refused;
        report.diff = b"--- a/x.c\n+++ b/x.c\n@@ -1 +1 @@\n-int a;\n+int b;\n".to_vec();
        report.reasons.push(
            Reason::new("compile-error", "unknown type").at("x.c", Some(1)).in_diff(Some(5)).help("correct the diff"),
        );
        let text = report.to_text();
        for expected in [
            "compile-error",
            "x.c:1: unknown type",
            "+int b;",
            "correct the diff",
            "refused: no bundle was written, for the reason above",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
        let warned =
            Reason::new("lock-calls", "`f` calls `mutex_unlock` once before and twice after").at("x.c", Some(1));
        report.warnings.push(Warning { subject: "f".to_owned(), reason: warned.in_diff(Some(4)) });
        let text = report.to_text();
        let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} is missing in\n{text}"));
        assert!(place("x.c:1: `f` calls") < place("compile-error"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).expect("JSON");
        assert_eq!(json["warnings"][0]["subject"], "f");
        assert_eq!(json["verdict"], "refused");
        assert_eq!(json["reasons"][0]["line"], 1);
    }
}
