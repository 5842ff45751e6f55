//! What the corpus showed.
//!
//! Comes in: [`Entry`]s. Decided: how the goal is counted. Goes out: totals, a table by rule for people, JSON.

use super::entry::{Entry, Place};
use super::guest::Tried;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// What is to be reached, in per cent of the built-in files that reach a decision.
const GOAL: f64 = 95.0;

/// Rules about types, whose objects are not known.
const OF_TYPES: [&str; 3] = ["type-layout", "type-additive", "enum-value"];

/// How many files ended how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Totals {
    pub(crate) files: usize,
    pub(crate) type1: usize,
    pub(crate) no_effect: usize,
    /// Bundles of Type 2.
    pub(crate) type2: usize,
    /// Of Type 2, and no bundle.
    pub(crate) type2_refused: usize,
    /// No bundle for another reason.
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
            *match (entry.verdict.as_str(), entry.is_type2) {
                ("type1", _) => &mut totals.type1,
                ("no-effect", _) => &mut totals.no_effect,
                ("type2", _) => &mut totals.type2,
                ("refused", true) => &mut totals.type2_refused,
                ("refused", false) => &mut totals.refused,
                ("undecided", _) => &mut totals.undecided,
                _ => &mut totals.failed,
            } += 1;
        }
        totals.diffs = bundles.len();
        totals.functions = bundles.values().sum();
        totals
    }

    /// Files that give a bundle or need none.
    fn good(&self) -> usize {
        self.type1 + self.type2 + self.no_effect
    }

    /// Files that reached a decision.
    fn decided(&self) -> usize {
        self.good() + self.type2_refused + self.refused
    }

    /// Per cent of the files that reached a decision that give a bundle or need none.
    pub(crate) fn share(&self) -> f64 {
        per_cent(self.good(), self.decided())
    }

    /// The same of files that are not of Type 2; undecided ones count against it.
    pub(crate) fn share_without_type2(&self) -> f64 {
        per_cent(self.good() - self.type2, self.files - self.type2 - self.type2_refused)
    }

    fn line(&self, what: &str) -> String {
        format!(
            "{what}: {} files in {} diffs: bundles: {} type1, {} type2 ({} functions); {} no-effect; \
             refused: {} type2, {} others; {} undecided, {} failed",
            self.files,
            self.diffs,
            self.type1,
            self.type2,
            self.functions,
            self.no_effect,
            self.type2_refused,
            self.refused,
            self.undecided,
            self.failed
        )
    }
}

fn per_cent(part: usize, whole: usize) -> f64 {
    if whole == 0 { 100.0 } else { 100.0 * part as f64 / whole as f64 }
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
    pub(crate) share_without_type2_per_cent: f64,
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
        Self {
            from,
            to,
            release,
            seed,
            tool,
            goal_per_cent: GOAL,
            share_per_cent: built_in.share(),
            share_without_type2_per_cent: built_in.share_without_type2(),
            built_in,
            modules,
            entries,
            live,
        }
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
        if self.built_in.type2_refused > 0 {
            let _ = write!(text, "\n{}", obstacles(self.entries));
        }
        let _ = writeln!(
            text,
            "goal: {} of the {} built-in files that reached a decision give a bundle or need none: {:.1} %, to be reached \
             {GOAL} %; without those of Type 2: {} of {}, {:.1} %",
            self.built_in.good(),
            self.built_in.decided(),
            self.share_per_cent,
            self.built_in.good() - self.built_in.type2,
            self.built_in.files - self.built_in.type2 - self.built_in.type2_refused,
            self.share_without_type2_per_cent,
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

/// What stands in the way of built-in changes of Type 2: all rules together, and the types that are in the way.
fn obstacles(entries: &[Entry]) -> String {
    let mut text = String::new();
    let (mut sets, mut types) = (BTreeMap::<String, usize>::new(), BTreeMap::<&str, usize>::new());
    let refused = |entry: &&Entry| entry.place == Place::BuiltIn && entry.verdict == "refused" && entry.is_type2;
    for entry in entries.iter().filter(refused) {
        *sets.entry(entry.rules().into_iter().collect::<Vec<_>>().join(" + ")).or_default() += 1;
        let about_types = entry.reasons.iter().filter(|why| OF_TYPES.contains(&why.rule.as_str()));
        for name in about_types.filter_map(|why| why.message.split('`').nth(1)).collect::<BTreeSet<_>>() {
            *types.entry(name).or_default() += 1;
        }
    }
    let _ = writeln!(text, "Type 2 and refused, by all rules in the way: {}", most_first(sets));
    let _ = writeln!(text, "types in the way: {}", most_first(types));
    text
}

fn most_first<K: AsRef<str>>(counts: BTreeMap<K, usize>) -> String {
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts.iter().map(|(what, count)| format!("{} ({count})", what.as_ref())).collect::<Vec<_>>().join(", ")
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
    fn the_goal_counts_what_was_decided() {
        let totals = Totals { type1: 15, no_effect: 4, refused: 1, undecided: 2, ..Totals::default() };
        let totals = Totals { type2: 3, type2_refused: 7, files: 32, ..totals };
        assert!((totals.share() - 100.0 * 22.0 / 30.0).abs() < 1e-9);
        assert!((totals.share_without_type2() - 100.0 * 19.0 / 22.0).abs() < 1e-9);
        assert!((Totals::default().share() - 100.0).abs() < 1e-9);
    }

    #[test]
    fn what_stands_in_the_way_is_counted_by_file() {
        assert_eq!(most_first(BTreeMap::from([("a", 1), ("b", 3), ("c", 1)])), "b (3), a (1), c (1)");
    }
}
