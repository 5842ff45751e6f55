//! What was found, for systems that show it beside the changed lines: SARIF 2.1.0 (OASIS standard).
//!
//! Comes in: the report. Decided: what is an error (reasons), a warning (warnings, parts left out) or a note (changed types and
//! data that were followed); where it is, in the text after the diff; by which name it is known again in the next run. Goes
//! out: the log as JSON, without anything that differs between two runs or two machines.

mod log;

use crate::catalog;
use crate::report::{Reason, Report, Verdict};
use diff_analyzer::dwarf_layout::Place;
use log::{Level, Located, Log, Message, Region, ResultItem, RuleItem, Suppression};
use lpk_format::Vouched;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// The log as JSON.
pub fn render(report: &Report) -> String {
    let mut results = results(report);
    let mut rules: BTreeMap<String, usize> = BTreeMap::new();
    for result in &results {
        rules.insert(result.rule_id.clone(), 0);
    }
    for (number, index) in rules.values_mut().enumerate() {
        *index = number;
    }
    for result in &mut results {
        result.rule_index = rules.get(&result.rule_id).copied().unwrap_or_default();
    }
    let log = Log::new(rules.keys().map(|rule| describe(rule)).collect(), results, verdict(report.verdict));
    serde_json::to_string_pretty(&log).expect("a log has only strings, numbers and lists") + "\n"
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Type1 => "type1",
        Verdict::Type2 => "type2",
        Verdict::Refused => "refused",
        Verdict::NoEffect => "no-effect",
    }
}

fn describe(rule: &str) -> RuleItem {
    let meanings = catalog::meanings(rule);
    let texts: Vec<String> = meanings.iter().map(|meaning| catalog::plain(&meaning.text)).collect();
    let first = texts.first().cloned().unwrap_or_else(|| rule.to_owned());
    let help = meanings.iter().map(|meaning| format!("{}: {}", meaning.heading, catalog::plain(&meaning.text)));
    let help = help.collect::<Vec<_>>().join("\n");
    RuleItem {
        id: rule.to_owned(),
        short_description: Message { text: first.clone() },
        help: Message { text: if help.is_empty() { first } else { help } },
    }
}

fn results(report: &Report) -> Vec<ResultItem> {
    let lines = DiffLines::of(&report.diff);
    let of_reason = |level, reason: &Reason, subject: Option<&str>| {
        let mut text = catalog::plain(&reason.message);
        if let Some(help) = &reason.help {
            text = format!("{text}\n{}", catalog::plain(help));
        }
        let located = reason.file.as_deref().map(|file| lines.locate(file, reason.line, reason.diff_line));
        let found = subject.map(str::to_owned).or_else(|| first_name(&reason.message));
        item(level, &reason.rule, text, found.as_deref(), located)
    };
    let mut results: Vec<ResultItem> =
        report.reasons.iter().map(|reason| of_reason(Level::Error, reason, None)).collect();
    results.extend(
        report.warnings.iter().map(|warning| of_reason(Level::Warning, &warning.reason, Some(&warning.subject))),
    );
    results.extend(report.omitted.iter().map(|reason| {
        let mut result = of_reason(Level::Warning, reason, None);
        result.message.text = format!("left out of the bundle: {}", result.message.text);
        result
    }));
    let at = |place: &Option<Place>| {
        place.as_ref().map(|place| lines.locate(&place.file, usize::try_from(place.line).ok(), None))
    };
    // What stops the build is there already.
    let refused = |rule: &str, message: &str| {
        report.reasons.iter().any(|reason| reason.rule == rule && reason.message.starts_with(message))
    };
    for row in report.types.iter().filter(|row| !refused(&row.rule, &row.message)) {
        results.push(item(Level::Note, &row.rule, catalog::plain(&row.message), Some(&row.name), at(&row.place)));
    }
    for row in report.data_changes.iter().filter(|row| row.strategy != "refused") {
        let text = format!("{}; strategy: {}", catalog::plain(&row.message), row.strategy);
        results.push(item(Level::Note, &row.rule, text, Some(&row.name), at(&row.place)));
    }
    for warning in &report.silenced {
        results.push(of_reason(Level::Warning, &warning.reason, Some(&warning.subject)));
    }
    suppress(&mut results, &report.vouched, at, report);
    results
}

/// Marks what the author has silenced, with his reason; adds what is not there because it was silenced.
fn suppress(
    results: &mut Vec<ResultItem>,
    vouched: &[Vouched],
    at: impl Fn(&Option<Place>) -> Option<Located>,
    report: &Report,
) {
    for Vouched { about, subject, says, reason } in vouched {
        let suppression = || Suppression { kind: "external", status: "accepted", justification: reason.clone() };
        let mut found = false;
        for result in results.iter_mut().filter(|result| result.rule_id == *about && result.is_about(subject)) {
            result.suppressions.push(suppression());
            found = true;
        }
        if !found && !catalog::meanings(about).is_empty() {
            let datum = report.data_changes.iter().find(|row| row.name == *subject);
            let place = datum.and_then(|datum| at(&datum.place));
            let mut result = item(Level::Note, about, format!("{subject}: {says}"), Some(subject), place);
            result.suppressions.push(suppression());
            results.push(result);
        }
    }
}

fn item(level: Level, rule: &str, text: String, subject: Option<&str>, located: Option<Located>) -> ResultItem {
    let file = located.as_ref().map(|located| located.file.as_str()).unwrap_or_default();
    // Lines and numbers in messages move from run to run; rule, subject and file do not.
    let known_by = Sha256::digest(format!("{rule}\0{}\0{file}", subject.unwrap_or_default()));
    ResultItem::new(level, rule, text, subject, located, lpk_format::hex::encode(&known_by))
}

/// The first name in a message: what it is about.
fn first_name(message: &str) -> Option<String> {
    message.split('`').nth(1).map(str::to_owned)
}

/// The lines of the diff with their numbers before it.
struct DiffLines {
    /// Text of each line; line before the diff, for a line that goes.
    lines: Vec<(String, Option<usize>)>,
}

impl DiffLines {
    fn of(diff: &[u8]) -> Self {
        let mut next = None;
        let diff = String::from_utf8_lossy(diff);
        let lines = diff.lines().map(|line| {
            if let Some(rest) = line.strip_prefix("@@ -") {
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                next = digits.parse::<usize>().ok();
                return (line.to_owned(), None);
            }
            let gone = next.filter(|_| line.starts_with('-'));
            if line.starts_with(['-', ' ']) || line.is_empty() {
                next = next.map(|number| number.saturating_add(1));
            }
            (line.to_owned(), gone)
        });
        Self { lines: lines.collect() }
    }

    fn locate(&self, file: &str, line: Option<usize>, diff_line: Option<usize>) -> Located {
        let shown = diff_line.and_then(|line| self.lines.get(line.checked_sub(1)?));
        let snippet = shown.and_then(|(text, _)| text.get(1..)).map(str::to_owned);
        let region = line.filter(|line| *line > 0).map(|start_line| Region { start_line, snippet });
        Located { file: file.to_owned(), region, deleted_line: shown.and_then(|(_, gone)| *gone) }
    }
}

#[cfg(test)]
mod tests;
