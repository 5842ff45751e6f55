//! The paper's table beside its repetition.
//!
//! Comes in: patches and what was measured. Decided: nothing. Goes out: text for people, JSON.

use super::choose::Patch;
use super::measure::{Measured, Round};
use crate::corpus::Ground;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::fmt::Write as _;

/// Section 4.1, table 1, of the paper: name, type, functions, mean of five times to apply and to roll back in nanoseconds. Linux 2.6.10
/// on Xen 2.0.5, a Pentium 4 of 3.0 GHz, under the Open Source Database Benchmark.
const TABLE1: [(&str, &str, u32, u32, u32, u32); 5] = [
    ("PRB", "page reading bug", 1, 2, 21_426, 19_663),
    ("LA", "live lock avoidance", 1, 1, 14_916, 13_113),
    ("PS", "process scheduler", 1, 3, 23_715, 22_041),
    ("ID", "IRQ descriptor", 2, 13, 215_921, 217_479),
    ("BBDD", "backend block device driver", 2, 1, 42_900, 36_330),
];

/// Median and largest of some times, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Times {
    median_ms: f64,
    max_ms: f64,
}

impl Times {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median_ms = match (values.len().is_multiple_of(2), middle.checked_sub(1).and_then(|at| values.get(at))) {
            (true, Some(below)) => (below + values[middle]) / 2.0,
            _ => values.get(middle).copied().unwrap_or_default(),
        };
        Self { median_ms, max_ms: values.last().copied().unwrap_or_default() }
    }

    fn cell(self) -> Cell {
        Cell::new(format!("{:.1} / {:.1}", self.median_ms, self.max_ms)).set_alignment(CellAlignment::Right)
    }
}

/// A patch of the table.
#[derive(Debug, Serialize)]
struct Row<'a> {
    stands_for: &'a str,
    file: &'a str,
    files: usize,
    what: &'a str,
    #[serde(rename = "type")]
    update_type: &'a str,
    functions: Vec<String>,
    data: Vec<String>,
    apply_total: Times,
    apply_paused: Times,
    undo_total: Times,
    undo_paused: Times,
    threads_inside: u64,
    synchronised: u64,
    rounds: &'a [Round],
    database: &'a [String],
}

/// All of it, for programs.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    from: &'a str,
    to: &'a str,
    release: &'a str,
    engine: &'a str,
    rounds: u32,
    patches: Vec<Row<'a>>,
}

impl<'a> Report<'a> {
    /// Puts it together.
    pub(super) fn new(
        ground: &'a Ground,
        engine: &'a str,
        rounds: u32,
        patches: &'a [Patch],
        measured: &'a [Measured],
    ) -> Self {
        let patches = patches.iter().zip(measured).map(|(patch, measured)| row(patch, measured)).collect();
        let kernel = &ground.step.older;
        Self {
            from: &kernel.version,
            to: &ground.step.newer_version,
            release: &kernel.release,
            engine,
            rounds,
            patches,
        }
    }

    /// Both tables, for people.
    pub(super) fn to_text(&self) -> String {
        let mut text =
            String::from("Table 1 of the paper (Linux 2.6.10 on Xen 2.0.5, Pentium 4, 3.0 GHz; means of five):\n");
        let mut paper = table(["patch", "", "type", "functions", "apply", "rollback"]);
        for (name, what, update_type, functions, apply, rollback) in TABLE1 {
            let us = |ns: u32| format!("{:.3} µs", f64::from(ns) / 1000.0);
            let (update_type, functions) = (update_type.to_string(), functions.to_string());
            paper.add_row([name.to_owned(), what.to_owned(), update_type, functions, us(apply), us(rollback)]);
        }
        let _ = writeln!(
            text,
            "{paper}\n\nThe same, {} times each, under SQLite on Debian's root file system, engine {}: official changes of single files \
             between {} and {} ({}); ms, median / largest:",
            self.rounds, self.engine, self.from, self.to, self.release
        );
        let mut own = table([
            "for",
            "patch",
            "type",
            "functions",
            "apply",
            "paused",
            "undo",
            "paused",
            "threads inside",
            "writes synchronised",
            "database, log",
        ]);
        for row in &self.patches {
            own.add_row([
                Cell::new(row.stands_for),
                Cell::new(row.file),
                Cell::new(row.update_type.trim_start_matches("type")),
                Cell::new(row.functions.len()).set_alignment(CellAlignment::Right),
                row.apply_total.cell(),
                row.apply_paused.cell(),
                row.undo_total.cell(),
                row.undo_paused.cell(),
                Cell::new(if row.update_type == "type1" {
                    "not asked".to_owned()
                } else {
                    row.threads_inside.to_string()
                }),
                Cell::new(row.synchronised),
                // Anything else has ended the job.
                Cell::new("ok, clean"),
            ]);
        }
        let _ = writeln!(text, "{own}");
        for row in &self.patches {
            let others =
                if row.files > 1 { format!(", with what it needs of {} more", row.files - 1) } else { String::new() };
            let _ = writeln!(text, "{}: {}{others}: {}", row.stands_for, row.file, row.what);
            let asked = row.rounds.iter().flat_map(|round| [&round.apply, &round.undo]).map(|action| action.asked);
            let again: u32 = asked.map(|asked| asked - 1).sum();
            if again > 0 {
                let _ = writeln!(text, "  asked again {again} times, because threads were in the way");
            }
        }
        text
    }
}

fn row<'a>(patch: &'a Patch, measured: &'a Measured) -> Row<'a> {
    let times = |value: fn(&Round) -> f64| Times::of(measured.rounds.iter().map(value).collect());
    let largest = |value: fn(&Round) -> u64| measured.rounds.iter().map(value).max().unwrap_or_default();
    let data = patch.built.outcome.items("/data_changes").iter();
    let data = data.map(|datum| {
        format!("{} ({})", datum["name"].as_str().unwrap_or_default(), datum["strategy"].as_str().unwrap_or_default())
    });
    Row {
        stands_for: patch.stands_for,
        file: &patch.file,
        files: patch.files,
        what: &patch.what,
        update_type: patch.update_type(),
        functions: patch.built.functions().into_iter().map(|function| function.name).collect(),
        data: data.collect(),
        apply_total: times(|round| round.apply.total_ms),
        apply_paused: times(|round| round.apply.paused_ms),
        undo_total: times(|round| round.undo.total_ms),
        undo_paused: times(|round| round.undo.paused_ms),
        threads_inside: largest(|round| round.threads_inside),
        synchronised: largest(|round| round.synchronised),
        rounds: &measured.rounds,
        database: &measured.database,
    }
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(170).set_header(header);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paper::choose;

    #[test]
    fn times_are_told_by_median_and_largest() {
        assert_eq!(Times::of(vec![3.0, 1.0, 9.0, 2.0, 4.0]), Times { median_ms: 3.0, max_ms: 9.0 });
        assert_eq!(Times::of(vec![1.0, 4.0]), Times { median_ms: 2.5, max_ms: 4.0 });
        assert_eq!(Times::of(Vec::new()), Times { median_ms: 0.0, max_ms: 0.0 });
    }

    #[test]
    fn every_patch_of_the_paper_has_its_place() {
        let names =
            |update_type: u32| TABLE1.iter().filter(|row| row.2 == update_type).map(|row| row.0).collect::<Vec<_>>();
        assert_eq!(names(1), choose::TYPE1.map(|(name, _)| name));
        assert_eq!(names(2), choose::TYPE2);
        assert_eq!(TABLE1.iter().map(|row| row.3 as usize).max(), Some(choose::MANY));
    }
}
