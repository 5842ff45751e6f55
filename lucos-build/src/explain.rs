//! Why a function counts as changed, or is not the one of the kernel image: instruction by instruction.
//!
//! Comes in: two versions of a function with whatever names their fields have and lines their instructions. Decided: which
//! instructions correspond. Goes out: [`Explanation`]: the first instruction that differs, old beside new, its source line,
//! and all differing places with some lines around them, side by side.

pub mod lines;
mod sides;
mod unit;

pub use sides::{Compiled, InImage};
pub use unit::{Explained, Listing, functions};

use diff_analyzer::disassemble::Line;
use lines::SourcePlace;
use serde::Serialize;
use similar::{Algorithm, DiffOp, capture_diff_slices};
use std::fmt::Write as _;

/// Instructions shown around a difference.
pub(crate) const CONTEXT: usize = 3;
/// More instructions than a function has.
const ALL: usize = 1 << 24;
/// Width of a column of the listing.
const COLUMN: usize = 58;

/// One version of a function.
pub trait Side {
    /// What it is, for the heading of its column.
    fn title(&self) -> String;
    /// Its instructions.
    fn instructions(&self) -> Vec<Line>;
    /// Where the instruction at an offset comes from, the line itself first; empty when that is not known.
    fn places(&self, offset: u64) -> Vec<SourcePlace>;
}

/// Why a function counts as changed, or is not proved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Function.
    pub function: String,
    /// Translation unit or object.
    pub unit: String,
    /// What the two columns are.
    pub sides: [String; 2],
    /// What was found: the reason given everywhere else.
    pub difference: String,
    /// The first instructions that differ; nothing when the difference is not in the instructions.
    pub first: Option<Pair>,
    /// Differing places with some instructions around them.
    pub hunks: Vec<Vec<Row>>,
}

/// Instructions that stand for each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// Of the first side.
    pub old: Option<Instruction>,
    /// Of the second side.
    pub new: Option<Instruction>,
}

/// A line of the listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Whether the two differ.
    pub differs: bool,
    /// The instructions.
    #[serde(flatten)]
    pub pair: Pair,
}

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Instruction {
    /// Byte offset in the function.
    pub offset: u64,
    /// Disassembled, with names in place of addresses.
    pub text: String,
    /// Where it comes from: the line itself first, then the calls that it is inlined by.
    pub source: Vec<SourcePlace>,
}

/// Explains a difference between two versions of a function.
pub fn explain(function: &str, unit: &str, difference: String, old: &dyn Side, new: &dyn Side) -> Explanation {
    with_context(function, unit, difference, [old, new], CONTEXT)
}

/// The same with all instructions, those that are equal as well: in one hunk, unless all are.
pub fn whole(function: &str, unit: &str, difference: String, old: &dyn Side, new: &dyn Side) -> Explanation {
    with_context(function, unit, difference, [old, new], ALL)
}

/// A function that has no counterpart: all of its instructions.
pub fn alone(function: &str, unit: &str, difference: String, new: &dyn Side) -> Explanation {
    struct Nothing;
    impl Side for Nothing {
        fn title(&self) -> String {
            "nothing".to_owned()
        }
        fn instructions(&self) -> Vec<Line> {
            Vec::new()
        }
        fn places(&self, _offset: u64) -> Vec<SourcePlace> {
            Vec::new()
        }
    }
    with_context(function, unit, difference, [&Nothing, new], ALL)
}

fn with_context(
    function: &str,
    unit: &str,
    difference: String,
    [old, new]: [&dyn Side; 2],
    context: usize,
) -> Explanation {
    let (before, after) = (old.instructions(), new.instructions());
    let keys = |lines: &[Line]| lines.iter().map(|line| line.key.clone()).collect::<Vec<_>>();
    let operations = capture_diff_slices(Algorithm::Patience, &keys(&before), &keys(&after));
    let pick = |side: &dyn Side, lines: &[Line], index: usize| {
        lines.get(index).map(|line| Instruction {
            offset: line.offset,
            text: line.text.clone(),
            source: side.places(line.offset),
        })
    };
    let row = |differs, old_index: Option<usize>, new_index: Option<usize>| Row {
        differs,
        pair: Pair {
            old: old_index.and_then(|index| pick(old, &before, index)),
            new: new_index.and_then(|index| pick(new, &after, index)),
        },
    };
    let rows = |operation: &DiffOp| -> Vec<Row> {
        let (olds, news) = (operation.old_range(), operation.new_range());
        let differs = !matches!(operation, DiffOp::Equal { .. });
        let count = olds.len().max(news.len());
        let at = |range: &std::ops::Range<usize>, index: usize| range.clone().nth(index);
        (0..count).map(|index| row(differs, at(&olds, index), at(&news, index))).collect()
    };
    let hunks: Vec<Vec<Row>> = similar::group_diff_ops(operations, context)
        .iter()
        .map(|group| group.iter().flat_map(&rows).collect())
        .collect();
    let first = hunks.iter().flatten().find(|row| row.differs).map(|row| row.pair.clone());
    let sides = [old.title(), new.title()];
    Explanation { function: function.to_owned(), unit: unit.to_owned(), sides, difference, first, hunks }
}

impl Explanation {
    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "`{}` of {}: {}", self.function, self.unit, self.difference);
        let Some(first) = &self.first else {
            if self.difference.starts_with("its") {
                let _ = writeln!(text, "  its instructions are the same in {} and {}", self.sides[0], self.sides[1]);
            }
            return text;
        };
        let _ = writeln!(text, "  the first instruction that differs:");
        let width = self.sides.iter().map(String::len).max().unwrap_or(0);
        for (title, instruction) in self.sides.iter().zip([&first.old, &first.new]) {
            match instruction {
                Some(instruction) => {
                    let _ = writeln!(text, "    {title:width$}  {}", instruction.line());
                    for (index, place) in instruction.source.iter().enumerate() {
                        let word = if index == 0 { "at" } else { "inlined at" };
                        let _ = writeln!(
                            text,
                            "    {:width$}  {word} {}:{} in {}",
                            "", place.file, place.line, place.function
                        );
                    }
                }
                None => {
                    let _ = writeln!(text, "    {title:width$}  (no such instruction)");
                }
            }
        }
        for hunk in &self.hunks {
            text.push_str(&self.hunk(hunk));
        }
        text
    }

    fn hunk(&self, rows: &[Row]) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "\n    {}   {}", fit(&self.sides[0]), self.sides[1]);
        let mut last = None;
        for Row { differs, pair } in rows {
            let place = [&pair.new, &pair.old].into_iter().flatten().find_map(|instruction| instruction.source.first());
            if let Some(place) = place
                && last != Some((&place.file, place.line))
            {
                let _ = writeln!(text, "  {}:{}", place.file, place.line);
                last = Some((&place.file, place.line));
            }
            let side =
                |instruction: &Option<Instruction>| instruction.as_ref().map_or_else(String::new, Instruction::line);
            let mark = match (differs, &pair.old, &pair.new) {
                (false, ..) => ' ',
                (true, Some(_), Some(_)) => '|',
                (true, Some(_), None) => '<',
                (true, None, _) => '>',
            };
            let line = format!("    {} {mark} {}", fit(&side(&pair.old)), side(&pair.new));
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

impl Instruction {
    fn line(&self) -> String {
        format!("+{:<5x} {}", self.offset, self.text)
    }
}

/// A text in the width of a column.
fn fit(text: &str) -> String {
    let mut shown: String = text.chars().take(COLUMN).collect();
    if text.chars().count() > COLUMN {
        shown = shown.chars().take(COLUMN - 1).chain(['…']).collect();
    }
    format!("{shown:COLUMN$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Listed(&'static str, Vec<(&'static str, u32)>);

    impl Side for Listed {
        fn title(&self) -> String {
            self.0.to_owned()
        }

        fn instructions(&self) -> Vec<Line> {
            let line = |(index, (text, _)): (usize, &(&str, u32))| Line {
                offset: 4 * index as u64,
                len: 4,
                text: (*text).to_owned(),
                key: (*text).to_owned(),
            };
            self.1.iter().enumerate().map(line).collect()
        }

        fn places(&self, offset: u64) -> Vec<SourcePlace> {
            let line = self.1[offset as usize / 4].1;
            vec![SourcePlace { file: "a.c".to_owned(), line, function: "f".to_owned() }]
        }
    }

    #[test]
    fn the_first_difference_has_both_sides_and_a_line() {
        let old = Listed("original", vec![("push rbx", 1), ("mov edi, 1", 2), ("call f", 2), ("ret", 3)]);
        let new = Listed("patched", vec![("push rbx", 1), ("mov edi, 7", 2), ("call f", 2), ("call g", 3), ("ret", 4)]);
        let explanation = explain("f", "a.c", "its size changes".to_owned(), &old, &new);
        let first = explanation.first.clone().expect("a difference");
        assert_eq!(first.old.expect("there").text, "mov edi, 1");
        assert_eq!(first.new.expect("there").source[0].line, 2);
        let text = explanation.to_text();
        for expected in ["`f` of a.c: its size changes", "+4     mov edi, 7", "at a.c:2 in f", "> +c     call g"] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }

    #[test]
    fn equal_instructions_are_said_to_be() {
        let side = Listed("original", vec![("ret", 1)]);
        let explanation = explain("f", "a.c", "its entries in __bug_table change".to_owned(), &side, &side);
        assert!(explanation.first.is_none() && explanation.to_text().contains("the same"));
    }
}
