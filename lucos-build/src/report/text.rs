//! A report for people.
//!
//! Comes in: a [`Report`]. Decided: how it is said: what changes first, then what stands against it, then what the bundle has,
//! and the verdict last. Goes out: text, with diagnostics that point into the diff.

use super::{ObjectBytesRow, Reason, Report, Verdict};
use comfy_table::{Cell, CellAlignment, Table, presets};
use lpk_format::Vouched;
use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Severity};
use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;

impl Report {
    /// The report for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("a string takes all that is written");
        text
    }

    fn write(&self, text: &mut String) -> fmt::Result {
        for explanation in &self.explanations {
            writeln!(text, "{}", explanation.to_text())?;
        }
        self.write_data(text)?;
        self.write_objects(text)?;
        self.write_findings(text)?;
        self.write_left_alone(text)?;
        for note in &self.notes {
            writeln!(text, "note: {note}")?;
        }
        if !self.functions.is_empty() {
            writeln!(text, "{}", self.function_table())?;
        }
        for hook in &self.hooks {
            writeln!(text, "hook {}: {}", hook.kind.name(), hook.subject.as_deref().unwrap_or("the update"))?;
        }
        self.write_verdict(text)?;
        self.write_times(text)
    }

    /// Existing data that change, and how.
    fn write_data(&self, text: &mut String) -> fmt::Result {
        for row in &self.data_changes {
            writeln!(text, "{}: {}, {}", row.unit, row.message, row.strategy)?;
            for line in &row.written {
                writeln!(text, "    {line}")?;
            }
            for (name, lines) in [("to the new one", &row.to_new), ("to the old one", &row.to_old)] {
                for line in lines {
                    writeln!(text, "    {name}: {line}")?;
                }
            }
        }
        Ok(())
    }

    /// Types whose objects on the heap are initialised.
    fn write_objects(&self, text: &mut String) -> fmt::Result {
        for row in &self.types {
            let Some(objects) = &row.objects else { continue };
            let strategy = row.strategy.as_deref().unwrap_or_default();
            writeln!(text, "{}, {strategy}", row.message)?;
            for ObjectBytesRow { offset, bytes } in &objects.added {
                writeln!(text, "    at {offset}: {bytes}")?;
            }
            writeln!(text, "    checked: {}", objects.checked)?;
        }
        Ok(())
    }

    /// What is taken on the author's word, what is warned of, what is refused.
    fn write_findings(&self, text: &mut String) -> fmt::Result {
        for Vouched { about, subject, says, reason } in &self.vouched {
            writeln!(text, "on the author's word: {about} `{subject}`: {says} ({reason})")?;
        }
        for warning in &self.warnings {
            text.push_str(&self.diagnostic_of(&warning.reason, Severity::Warning));
        }
        for reason in &self.reasons {
            text.push_str(&self.diagnostic(reason));
        }
        Ok(())
    }

    /// What the diff changes and the bundle does not.
    fn write_left_alone(&self, text: &mut String) -> fmt::Result {
        for reason in &self.omitted {
            let place = reason.file.as_deref().unwrap_or("the diff");
            writeln!(text, "left out: {place}: {} ({})", reason.message, reason.rule)?;
        }
        if !self.modules.is_empty() {
            let names: BTreeSet<&str> = self.modules.iter().map(|unit| unit.module.as_str()).collect();
            let names: Vec<&str> = names.into_iter().collect();
            writeln!(text, "modules that change as well and stay as they are: {}", names.join(", "))?;
        }
        Ok(())
    }

    fn write_verdict(&self, text: &mut String) -> fmt::Result {
        let kind = match self.verdict {
            Verdict::Type1 => "Type 1 (functions only)",
            Verdict::Type2 => "Type 2 (functions and existing data)",
            Verdict::Refused => "refused",
            Verdict::NoEffect => "no effect: nothing that runs in this kernel changes",
        };
        match (self.reasons.len(), &self.bundle) {
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
        }
    }

    fn write_times(&self, text: &mut String) -> fmt::Result {
        let times = &self.timings_ms;
        writeln!(
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
        )
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

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
