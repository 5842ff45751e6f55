//! Functions: why each is in the bundle, what goes along with it, and its instructions before and after.
//!
//! Comes in: functions with all of their instructions. Decided: which instructions are shown at once: those that differ, with
//! some around them. Goes out: HTML.

use super::text::{counted, prose};
use crate::compare::along::Along;
use crate::compare::rows::What;
use crate::details::{Details, FunctionDetail};
use crate::explain::{CONTEXT, Explanation, Instruction, Row};
use crate::report::{FunctionRow, Report};
use maud::{Markup, html};
use std::ops::Range;

/// Instructions of a function that are listed as a whole.
const WHOLE: usize = 1500;
/// Functions that are shown open.
const OPEN: usize = 6;

/// All changed and new functions.
pub(super) fn render(report: &Report, details: &Details) -> Markup {
    html! {
        (overview(report, details))
        @for function in &details.functions { (one(function, details.functions.len() <= OPEN)) }
    }
}

fn anchor(function: &FunctionDetail) -> String {
    let plain = |character: char| if character.is_ascii_alphanumeric() { character } else { '-' };
    let text = format!("{}-{}", function.unit, function.row.name);
    format!("f-{}", text.chars().map(plain).collect::<String>())
}

fn overview(report: &Report, details: &Details) -> Markup {
    let is_it = |row: &FunctionRow, function: &FunctionDetail| {
        [&row.name, &row.unit] == [&function.listed_as[0], &function.listed_as[1]] && row.module == function.module
    };
    let address = |function: &FunctionDetail| {
        let same = report.functions.iter().find(|row| is_it(row, function));
        same.and_then(|row| row.old_address.clone())
    };
    // The code of hooks is compared with nothing.
    let others = report.functions.iter().filter(|row| !details.functions.iter().any(|function| is_it(row, function)));
    html! {
        div.scroll tabindex="0" role="region" aria-label="Functions of the update" {
            table {
                caption { "Functions of the update" }
                thead {
                    tr {
                        th scope="col" { "Function" } th scope="col" { "Unit" } th scope="col" { "Old address" }
                        th.number scope="col" { "Before" } th.number scope="col" { "After" } th scope="col" { "Why" }
                    }
                }
                tbody {
                    @for function in &details.functions {
                        tr {
                            th scope="row" { a href={ "#" (anchor(function)) } { code { (function.row.name) } } }
                            td { code { (function.unit) } @if let Some(module) = &function.module { " (module " code { (module) } ")" } }
                            td { @if let Some(address) = address(function) { code { (address) } } @else { "–" } }
                            td.number { @match function.row.old_size { Some(size) => { (size) } None => { "–" } } }
                            td.number { @match function.row.new_size { Some(size) => { (size) } None => { "–" } } }
                            td { (prose(&why(function))) }
                        }
                    }
                    @for row in others {
                        tr {
                            th scope="row" { code { (row.name) } } td { code { (row.unit) } } td { "–" } td.number { "–" }
                            td.number { (row.new_size) } td { "it comes along" }
                        }
                    }
                }
            }
        }
    }
}

fn why(function: &FunctionDetail) -> String {
    match (&function.row.reason, function.row.change) {
        (Some(reason), _) => reason.clone(),
        (None, What::New) => "it is new".to_owned(),
        (None, _) => function.code.difference.clone(),
    }
}

fn one(function: &FunctionDetail, open: bool) -> Markup {
    let rows: Vec<&Row> = function.code.hunks.iter().flatten().collect();
    let place = rows.iter().find_map(|row| Some(row.pair.new.as_ref()?.source.last()?.file.clone()));
    html! {
        article.function id=(anchor(function)) {
            h3 {
                code { (function.row.name) } " "
                span.tag { (if function.row.change == What::New { "new" } else { "replaced" }) }
            }
            p.where { code { (function.unit) } @if let Some(file) = place.filter(|file| *file != function.unit) { " from " code { (file) } } }
            p.message { (prose(&why(function))) }
            @if let Some(along) = &function.row.along { (with(along)) }
            @if let Some(unproved) = &function.unproved {
                p.message { strong { "The original is not what the kernel runs: " } (prose(&unproved.difference)) }
                (listing(unproved, &unproved.hunks.iter().flatten().collect::<Vec<_>>(), "vmlinux beside the compiled original"))
            }
            (code(function, &rows, open))
        }
    }
}

fn with(along: &Along) -> Markup {
    let names = |title: &str, names: &[String]| {
        html! { @if !names.is_empty() { div { dt { (title) } dd { @for name in names { code { (name) } " " } } } } }
    };
    html! {
        dl.facts {
            (names("Copies that change with it", &along.clones))
            (names("Data it brings", &along.data))
            @if !along.table_entries.is_empty() {
                div { dt { "Entries in tables" } dd { @for (section, count) in &along.table_entries { (count) " in " code { (section) } " " } } }
            }
            @if !along.strings.is_empty() {
                div { dt { "Strings" } dd { @for string in &along.strings { code { (format!("{string:?}")) } " " } } }
            }
            @if along.constants > 0 { div { dt { "Constants" } dd { (along.constants) } } }
        }
    }
}

fn code(function: &FunctionDetail, rows: &[&Row], open: bool) -> Markup {
    if rows.is_empty() {
        return html! { p { "Its instructions are the same before and after." } };
    }
    if function.row.change == What::New {
        let title = counted(rows.len(), "instruction", "instructions");
        return html! {
            details { summary { (title) } (listing(&function.code, &rows[..rows.len().min(WHOLE)], "All instructions of the new function")) }
        };
    }
    let ranges = regions(rows);
    let differing = rows.iter().filter(|row| row.differs).count();
    let shown: usize = ranges.iter().map(Range::len).sum();
    let title = format!("{} of {} differ", differing, counted(rows.len(), "instruction", "instructions"));
    html! {
        details open[open] {
            summary { (title) }
            @for (number, range) in ranges.iter().enumerate() {
                (listing(&function.code, &rows[range.clone()], &format!("Place {} of {} that differs", number + 1, ranges.len())))
            }
        }
        @if rows.len() > WHOLE {
            p.more { "The whole function is too long to be listed here: lucos-build --explain shows it." }
        } @else if shown < rows.len() {
            details { summary { "The whole function" } (listing(&function.code, rows, "All instructions")) }
        }
    }
}

/// Rows that differ with some around them; regions that touch are one.
fn regions(rows: &[&Row]) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for index in (0..rows.len()).filter(|&index| rows[index].differs) {
        let (start, end) = (index.saturating_sub(CONTEXT), (index + 1 + CONTEXT).min(rows.len()));
        match ranges.last_mut() {
            Some(last) if start <= last.end => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

fn listing(code: &Explanation, rows: &[&Row], caption: &str) -> Markup {
    let [old, new] = &code.sides;
    let alone = rows.iter().all(|row| row.pair.old.is_none());
    let sign = |row: &Row| match (row.differs && !alone, &row.pair.old, &row.pair.new) {
        (false, ..) => (None, ""),
        (true, Some(_), Some(_)) => (Some("edit"), "≠"),
        (true, Some(_), None) => (Some("go"), "−"),
        (true, None, _) => (Some("come"), "+"),
    };
    let mut last = None;
    // The source line before the first instruction of it.
    let places: Vec<Option<String>> = rows
        .iter()
        .map(|row| {
            let place = [&row.pair.new, &row.pair.old].into_iter().flatten().find_map(|one| one.source.first())?;
            let text = format!("{}:{} in {}", place.file, place.line, place.function);
            (last.replace(text.clone()).as_ref() != Some(&text)).then_some(text)
        })
        .collect();
    html! {
        div.scroll tabindex="0" role="region" aria-label={ (code.function) ": " (caption) } {
            table.asm {
                caption { (caption) }
                thead {
                    tr {
                        @if !alone { th scope="col" { (old) } }
                        th.sign scope="col" { span.unseen { "Differs" } }
                        th scope="col" { (new) }
                    }
                }
                tbody {
                    @for (row, place) in rows.iter().zip(&places) {
                        @if let Some(place) = place {
                            tr.source { th scope="rowgroup" colspan=(if alone { 2 } else { 3 }) { (place) } }
                        }
                        @let (class, mark) = sign(row);
                        tr class=[class] {
                            @if !alone { td.old { (instruction(row.pair.old.as_ref())) } }
                            td.sign { (mark) }
                            td.new { (instruction(row.pair.new.as_ref())) }
                        }
                    }
                }
            }
        }
    }
}

fn instruction(instruction: Option<&Instruction>) -> Markup {
    html! {
        @if let Some(instruction) = instruction {
            span.offset { (format!("+{:x}", instruction.offset)) } " " code { (instruction.text) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::Pair;

    #[test]
    fn regions_that_touch_are_one() {
        let row = |differs| Row { differs, pair: Pair { old: None, new: None } };
        let rows: Vec<Row> = (0..40).map(|index| row(matches!(index, 0 | 6 | 30))).collect();
        assert_eq!(regions(&rows.iter().collect::<Vec<_>>()), [0..10, 27..34]);
        assert!(regions(&[]).is_empty());
    }
}
