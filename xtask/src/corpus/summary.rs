//! What the corpus showed.
//!
//! Comes in: [`Entry`]s. Decided: how the goal is counted. Goes out: totals, a table by rule for people, JSON.

use super::entry::{Entry, Place};
use super::guest::Tried;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What is to be reached, in per cent of the built-in files whose change is not one of data.
const GOAL: f64 = 95.0;

/// How many files ended how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Totals {
    pub(crate) files: usize,
    pub(crate) type1: usize,
    pub(crate) no_effect: usize,
    pub(crate) type2: usize,
    pub(crate) refused: usize,
    pub(crate) undecided: usize,
    pub(crate) failed: usize,
    /// Different diffs, and functions in the bundles.
    pub(crate) diffs: usize,
    pub(crate) functions: usize,
}

impl Totals {
    pub(crate) fn of(entries: &[Entry], place: Place) -> Self {
        let mut totals = Self::default();
        let mut bundles: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.place == place) {
            totals.files += 1;
            bundles.insert(&entry.diff, entry.functions);
            *match entry.verdict.as_str() {
                "type1" => &mut totals.type1,
                "no-effect" => &mut totals.no_effect,
                "type2" => &mut totals.type2,
                "refused" => &mut totals.refused,
                "undecided" => &mut totals.undecided,
                _ => &mut totals.failed,
            } += 1;
        }
        totals.diffs = bundles.len();
        totals.functions = bundles.values().sum();
        totals
    }

    /// Per cent of the files, without those whose change is one of data, that give a bundle or need none.
    pub(crate) fn share(&self) -> f64 {
        let counted = self.files - self.type2;
        if counted == 0 { 100.0 } else { 100.0 * (self.type1 + self.no_effect) as f64 / counted as f64 }
    }

    fn line(&self, what: &str) -> String {
        format!(
            "{what}: {} files in {} diffs: {} type1 ({} functions), {} no-effect, {} type2, {} refused, {} undecided, {} failed",
            self.files,
            self.diffs,
            self.type1,
            self.functions,
            self.no_effect,
            self.type2,
            self.refused,
            self.undecided,
            self.failed
        )
    }
}

/// Everything, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct Corpus<'a> {
    pub(crate) from: &'a str,
    pub(crate) to: &'a str,
    pub(crate) release: &'a str,
    pub(crate) seed: u64,
    pub(crate) tool: &'a str,
    pub(crate) goal_per_cent: f64,
    pub(crate) share_per_cent: f64,
    pub(crate) built_in: Totals,
    pub(crate) modules: Totals,
    pub(crate) entries: &'a [Entry],
    pub(crate) live: &'a [Tried],
}

impl<'a> Corpus<'a> {
    /// Counts.
    pub(crate) fn new(
        versions: [&'a str; 3],
        seed: u64,
        tool: &'a str,
        entries: &'a [Entry],
        live: &'a [Tried],
    ) -> Self {
        let [from, to, release] = versions;
        let built_in = Totals::of(entries, Place::BuiltIn);
        let modules = Totals::of(entries, Place::Module);
        let share_per_cent = built_in.share();
        Self { from, to, release, seed, tool, goal_per_cent: GOAL, share_per_cent, built_in, modules, entries, live }
    }

    /// Tables and totals for people.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "{} -> {} ({})", self.from, self.to, self.release);
        for (place, title, totals) in
            [(Place::BuiltIn, "built in", &self.built_in), (Place::Module, "modules (a sample)", &self.modules)]
        {
            if totals.files == 0 {
                continue;
            }
            let _ = writeln!(text, "\n{}", by_rule(self.entries, place));
            let _ = writeln!(text, "{}", totals.line(title));
        }
        let walls: Vec<u64> = self.entries.iter().map(|entry| entry.wall_ms).collect();
        let compilers: u64 = self.entries.iter().map(|entry| entry.compiler_ms).sum();
        let slowest = self.entries.iter().max_by_key(|entry| entry.wall_ms);
        if let Some(slowest) = slowest {
            let _ = writeln!(
                text,
                "lucos-build: {} s in all, compilers {} s of it; slowest {} ({} ms)",
                walls.iter().sum::<u64>() / 1000,
                compilers / 1000,
                slowest.file,
                slowest.wall_ms
            );
        }
        let _ = writeln!(
            text,
            "goal: {} of {} built-in files without those whose change is one of data ({}) give a bundle or need none: \
             {:.1} %, to be reached {GOAL} %",
            self.built_in.type1 + self.built_in.no_effect,
            self.built_in.files - self.built_in.type2,
            self.built_in.type2,
            self.share_per_cent,
        );
        if !self.live.is_empty() {
            text.push_str(&super::guest::to_text(self.live));
        }
        text
    }

    /// One line per file, grouped by rule, for a closer look.
    pub(crate) fn listing(&self) -> String {
        let mut text = String::new();
        for ((verdict, rule), entries) in groups(self.entries.iter()) {
            let _ = writeln!(text, "\n== {verdict} {rule}: {}", entries.len());
            for entry in entries {
                let message = entry.reasons.first().map_or("", |why| why.message.as_str());
                let message = message.replace('\n', "\n        ");
                let all: Vec<&str> = entry.reasons.iter().map(|why| why.rule.as_str()).collect();
                let _ = writeln!(
                    text,
                    "{} [{} files, {} header hunks, {} functions, {} ms] {}\n        {message}",
                    entry.file,
                    entry.files.len(),
                    entry.header_hunks,
                    entry.functions,
                    entry.wall_ms,
                    all.join(" "),
                );
            }
        }
        text
    }
}

type Groups<'a> = Vec<((String, String), Vec<&'a Entry>)>;

/// By verdict and first rule, most frequent first.
fn groups<'a>(entries: impl Iterator<Item = &'a Entry>) -> Groups<'a> {
    let mut groups: BTreeMap<(String, String), Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        groups.entry((entry.verdict.clone(), entry.rule().to_owned())).or_default().push(entry);
    }
    let mut groups: Groups<'a> = groups.into_iter().collect();
    groups.sort_by_key(|(_, entries)| std::cmp::Reverse(entries.len()));
    groups
}

fn by_rule(entries: &[Entry], place: Place) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(140);
    table.set_header(["verdict", "rule", "files", "for example"]);
    for ((verdict, rule), group) in groups(entries.iter().filter(|entry| entry.place == place)) {
        let example = group.iter().take(2).map(|entry| {
            let message = entry.reasons.first().map_or("", |why| why.message.as_str());
            let line: String = message.lines().next().unwrap_or_default().chars().take(90).collect();
            if line.is_empty() { entry.file.clone() } else { format!("{}: {line}", entry.file) }
        });
        table.add_row([
            Cell::new(verdict),
            Cell::new(rule),
            Cell::new(group.len()).set_alignment(CellAlignment::Right),
            Cell::new(example.collect::<Vec<_>>().join("\n")),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_data_do_not_count_for_the_goal() {
        let totals = Totals { files: 30, type1: 15, no_effect: 4, type2: 10, refused: 1, ..Totals::default() };
        assert!((totals.share() - 95.0).abs() < 1e-9);
        assert!((Totals::default().share() - 100.0).abs() < 1e-9);
    }
}
