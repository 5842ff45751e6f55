//! Changed types: drawn byte by byte before and after, with what moves, and who uses them.
//!
//! Comes in: types of the report. Decided: what became of each member; the same member has the same number and colour in
//! both pictures. Goes out: HTML.

use super::bytes::{self, Fate, Field, Line, Picture, ROW, Row};
use super::text::{counted, prose, rule_link};
use crate::report::{ObjectsRow, TypeRow};
use diff_analyzer::dwarf_layout::{TypeKind, TypeLayout};
use diff_analyzer::layout_diff::{MemberChange, MemberSide};
use maud::{Markup, html};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// Colours that numbers go round in.
const COLOURS: usize = 6;
/// Bytes of a cache line of x86.
const CACHE_LINE: u64 = 64;
/// Bits that have room for a name.
const NARROW: u64 = 8;
/// More types than these are drawn only where their own declaration changes.
const MANY: usize = 40;
/// Rows that are worth unfolding.
const FOLDED: usize = 512;

/// The two versions of a type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Old,
    New,
}

/// What became of the members of a type, by path, with the number of each change.
struct Marks<'a> {
    changes: &'a [MemberChange],
    old: HashMap<&'a str, usize>,
    new: HashMap<&'a str, usize>,
}

impl<'a> Marks<'a> {
    fn of(row: &'a TypeRow) -> Self {
        let (mut old, mut new) = (HashMap::new(), HashMap::new());
        for (index, change) in row.members.iter().enumerate() {
            if change.old.is_some() {
                old.insert(change.name.as_str(), index);
            }
            if change.new.is_some() {
                new.insert(change.renamed_to.as_deref().unwrap_or(&change.name), index);
            }
        }
        Self { changes: &row.members, old, new }
    }

    /// The number of a member's change, from 0, and what it is.
    fn mark(&self, side: Side, path: &str) -> (Option<usize>, Fate) {
        let map = if side == Side::Old { &self.old } else { &self.new };
        match map.get(path) {
            Some(&index) => (Some(index), fate(&self.changes[index])),
            None => (None, Fate::Same),
        }
    }

    /// Where the other version has a member that this one has not.
    fn only_in(&self, side: Side) -> Vec<Range<u64>> {
        let only = self.changes.iter().filter_map(|change| match (side, &change.old, &change.new) {
            (Side::Old, Some(member), None) | (Side::New, None, Some(member)) => Some(member),
            _ => None,
        });
        only.map(|member| member.bit_offset..member.bit_offset.saturating_add(member.bit_size)).collect()
    }
}

fn fate(change: &MemberChange) -> Fate {
    match (&change.old, &change.new) {
        (None, _) => Fate::Added,
        (_, None) => Fate::Removed,
        (Some(old), Some(new)) if old.bit_offset != new.bit_offset => {
            Fate::Moved(i128::from(new.bit_offset) - i128::from(old.bit_offset))
        }
        (Some(old), Some(new)) if old.bit_size != new.bit_size => Fate::Resized,
        _ if change.renamed_to.is_some() => Fate::Renamed,
        _ => Fate::Retyped,
    }
}

/// A sign, so that colour is not the only one; a class; a word.
fn look(fate: Fate) -> (&'static str, &'static str, &'static str) {
    match fate {
        Fate::Same => ("", "same", "stays"),
        Fate::Moved(_) => ("→", "moved", "moves"),
        Fate::Resized => ("↔", "resized", "has another size"),
        Fate::Retyped => ("≈", "retyped", "has another type"),
        Fate::Renamed => ("=", "renamed", "has another name"),
        Fate::Added => ("+", "added", "is new"),
        Fate::Removed => ("−", "removed", "is gone"),
    }
}

/// All changed types.
pub(super) fn render(types: &[TypeRow]) -> Markup {
    // One small type can be inside of hundreds.
    let many = types.len() > MANY;
    html! { @for row in types { @if many && !row.because.is_empty() { (brief(row)) } @else { (one(row)) } } }
}

/// A type that changes because of another one, in short.
fn brief(row: &TypeRow) -> Markup {
    html! {
        article.type {
            h3 { code { (row.name) } }
            p.where { (rule_link(&row.rule)) }
            p.message { (prose(&row.message)) }
        }
    }
}

fn one(row: &TypeRow) -> Markup {
    let marks = Marks::of(row);
    let [old, new] = &*row.layouts;
    let drawn = matches!(new.kind, TypeKind::Struct | TypeKind::Union);
    html! {
        article.type {
            h3 { code { (row.name) } }
            p.where {
                (rule_link(&row.rule))
                @if let Some(place) = &row.place { " " code { (place.file) ":" (place.line) } }
            }
            p.message { (prose(&row.message)) }
            @if let Some(strategy) = &row.strategy { p { "Its objects stay " (prose(strategy)) "." } }
            @if let Some(objects) = &row.objects { (initial(objects)) }
            @if !row.because.is_empty() {
                p { "Because of what is inside it: " @for name in &row.because { code { (name) } " " } }
            }
            @if drawn {
                div.pictures {
                    (picture(&row.name, old, &marks, Side::Old))
                    (picture(&row.name, new, &marks, Side::New))
                }
                p.legend {
                    span { i.key.moved.c0 {} "→ moves" } span { i.key.added {} "+ is new" } span { i.key.removed {} "− is gone" }
                    span { i.key.resized.c1 {} "↔ ≈ changes" } span { i.key.hole {} "hole" }
                    span { "One row is 8 bytes; a number joins the two places of a member." }
                }
                (members(row, &marks))
            } @else {
                (enumerators(row))
            }
            (users(row))
            details {
                summary { "Both declarations" }
                div.pictures {
                    div { h4 { "Before" } div.scroll tabindex="0" role="region" aria-label="Declaration before" { pre { (row.old) } } }
                    div { h4 { "After" } div.scroll tabindex="0" role="region" aria-label="Declaration after" { pre { (row.new) } } }
                }
            }
        }
    }
}

fn picture(name: &str, layout: &TypeLayout, marks: &Marks<'_>, side: Side) -> Markup {
    let (word, other) = if side == Side::Old { ("before", Side::New) } else { ("after", Side::Old) };
    let picture = bytes::draw(layout, |field| marks.mark(side, &field.path).1, &marks.only_in(other));
    html! {
        figure.bytes aria-label={ (name) " " (word) } {
            figcaption { strong { (word) } ", " (counted(layout.size as usize, "byte", "bytes")) ", alignment " (layout.align) }
            @if picture.lines.is_empty() {
                p { @if layout.size == 0 { "It has no bytes." } @else { "It is too large to be drawn byte by byte." } }
            } @else {
                div.ruler aria-hidden="true" { span.at {} div.cells { @for byte in 0..8 { span { (byte) } } } }
                @for line in &picture.lines { (drawn(line, &picture, marks, side)) }
            }
        }
    }
}

fn drawn(line: &Line, picture: &Picture, marks: &Marks<'_>, side: Side) -> Markup {
    match line {
        Line::Row(row) => cells(row, picture, marks, side),
        Line::Repeated(count) => html! { p.more { "⋮ " (counted(*count, "more row", "more rows")) " like it" } },
        Line::Folded(rows) => {
            let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return html! {} };
            let members: BTreeSet<usize> = rows.iter().flat_map(|row| row.runs.iter().map(|run| run.field)).collect();
            let moved: BTreeSet<i128> = members
                .iter()
                .map(|&field| match marks.mark(side, &picture.fields[field].path).1 {
                    Fate::Moved(bits) => bits,
                    _ => 0,
                })
                .collect();
            let said = match moved.iter().collect::<Vec<_>>().as_slice() {
                [] | [0] => "the same before and after".to_owned(),
                [bits] => format!("all moved by {}", distance(**bits)),
                _ => "moved in groups".to_owned(),
            };
            let said = format!(
                "bytes {}–{}: {}, {said}",
                first.at,
                last.at + last.bits.div_ceil(8) - 1,
                counted(members.len(), "member", "members")
            );
            if rows.len() > FOLDED {
                return html! { p.more { (said) } };
            }
            html! { details.fold { summary { (said) } @for row in rows { (cells(row, picture, marks, side)) } } }
        }
    }
}

fn cells(row: &Row, picture: &Picture, marks: &Marks<'_>, side: Side) -> Markup {
    let line = |lane: usize| lane + 1;
    html! {
        @if row.at > 0 && row.at.is_multiple_of(CACHE_LINE) {
            p.cacheline { "cache line " (row.at / CACHE_LINE) }
        }
        div.row {
            span.at { (row.at) }
            div.cells {
                @for run in &row.runs {
                    @let field = &picture.fields[run.field];
                    @let (number, fate) = marks.mark(side, &field.path);
                    @let (sign, class, word) = look(fate);
                    @let ends = match (run.first, run.last) { (true, true) => "", (true, false) => " goes-on", (false, true) => " went-on", (false, false) => " goes-on went-on" };
                    span class={ "m " (class) (colour(number, fate)) (ends) }
                        style={ "grid-column:" (run.bits.start + 1) "/" (run.bits.end + 1) ";grid-row:" (line(run.lane)) }
                        title={ (field.path) " (" (field.type_text) "): " (places(field)) ", " (word) } {
                        @if run.bits.end - run.bits.start >= NARROW {
                            @if let Some(number) = number { b { (sign) (number + 1) } " " }
                            @if run.first { (field.path) } @else { span.again { (field.path) } }
                        }
                    }
                }
                @for hole in &row.holes {
                    span.hole style={ "grid-column:" (hole.start + 1) "/" (hole.end + 1) ";grid-row:1/" (line(row.lanes)) }
                        title={ "hole: " (amount(hole.end - hole.start)) } { span.unseen { "hole" } }
                }
                @if row.bits < ROW {
                    span.end style={ "grid-column:" (row.bits + 1) "/65;grid-row:1/" (line(row.lanes)) } {}
                }
            }
        }
        @let chips = narrow(row, picture, marks, side);
        @if !chips.0.is_empty() { p.bits { (chips) } }
    }
}

/// Members of a row that are too narrow for their names.
fn narrow(row: &Row, picture: &Picture, marks: &Marks<'_>, side: Side) -> Markup {
    let narrow = row.runs.iter().filter(|run| run.first && run.bits.end - run.bits.start < NARROW);
    html! {
        @for run in narrow {
            @let field = &picture.fields[run.field];
            @let (number, fate) = marks.mark(side, &field.path);
            @let (sign, class, _) = look(fate);
            span class={ "chip " (class) (colour(number, fate)) } {
                span.bit { (offset(field.bits.start)) } " "
                @if let Some(number) = number { b { (sign) (number + 1) } " " }
                (field.path)
            }
        }
    }
}

fn colour(number: Option<usize>, fate: Fate) -> String {
    match (number, fate) {
        (Some(number), Fate::Moved(_) | Fate::Resized | Fate::Retyped | Fate::Renamed) => {
            format!(" c{}", number % COLOURS)
        }
        _ => String::new(),
    }
}

/// An offset in bytes, with the bit where there is one.
fn offset(bits: u64) -> String {
    if bits.is_multiple_of(8) { format!("{}", bits / 8) } else { format!("{}:{}", bits / 8, bits % 8) }
}

fn amount(bits: u64) -> String {
    let (count, one, many) = if bits.is_multiple_of(8) { (bits / 8, "byte", "bytes") } else { (bits, "bit", "bits") };
    counted(count as usize, one, many)
}

fn distance(bits: i128) -> String {
    let sign = if bits < 0 { "−" } else { "+" };
    let bits = u64::try_from(bits.unsigned_abs()).unwrap_or(u64::MAX);
    format!("{sign}{}", amount(bits))
}

fn places(field: &Field) -> String {
    let size = field.bits.end - field.bits.start;
    let size = if field.bit_field { counted(size as usize, "bit", "bits") } else { amount(size) };
    format!("offset {}, {size}", offset(field.bits.start))
}

/// What the objects of a cache get.
fn initial(objects: &ObjectsRow) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label={ "Initial bytes in objects of " (objects.cache) } {
            table.members {
                caption { "What objects of " code { (objects.cache) } " get (" (objects.unit) @if let Some(module) = &objects.module { ", module " (module) } ", pointer at " code { (objects.cache_address) } ")" }
                thead { tr { th.number scope="col" { "Offset" } th scope="col" { "Bytes" } } }
                tbody { @for row in &objects.added { tr { td.number { (row.offset) } td { code.long { (row.bytes) } } } } }
            }
        }
        p { "Checked: " (prose(&objects.checked)) "." }
    }
}

fn members(row: &TypeRow, marks: &Marks<'_>) -> Markup {
    let side = |side: &Option<MemberSide>| side.as_ref().map_or_else(|| "–".to_owned(), |side| offset(side.bit_offset));
    let size = |side: &Option<MemberSide>| side.as_ref().map_or_else(|| "–".to_owned(), |side| amount(side.bit_size));
    let spelled = |change: &MemberChange| match (&change.old, &change.new) {
        (Some(old), Some(new)) if old.type_text != new.type_text => format!("{} → {}", old.type_text, new.type_text),
        (_, Some(side)) | (Some(side), None) => side.type_text.clone(),
        (None, None) => String::new(),
    };
    let kept: Vec<Field> = bytes::fields(&row.layouts[1])
        .into_iter()
        .filter(|field| !marks.new.contains_key(field.path.as_str()))
        .collect();
    let head = html! {
        thead {
            tr {
                th scope="col" { "№" } th scope="col" { "Member" } th scope="col" { "Type" }
                th.number scope="col" { "Before" } th.number scope="col" { "After" } th.number scope="col" { "Size" } th scope="col" { "What becomes of it" }
            }
        }
    };
    html! {
        @if !row.members.is_empty() {
            div.scroll tabindex="0" role="region" aria-label={ "Members of " (row.name) " that change" } {
                table.members {
                    caption { "Members that change, with their offsets in bytes" }
                    (head)
                    tbody {
                        @for (number, change) in row.members.iter().enumerate() {
                            @let fate = fate(change);
                            @let (sign, class, word) = look(fate);
                            tr {
                                td { span class={ "badge " (class) (colour(Some(number), fate)) } { (sign) (number + 1) } }
                                th scope="row" { code { (change.name) } @if let Some(name) = &change.renamed_to { " → " code { (name) } } }
                                td { code { (spelled(change)) } }
                                td.number { (side(&change.old)) }
                                td.number { (side(&change.new)) }
                                td.number { @if size(&change.old) != size(&change.new) && change.old.is_some() && change.new.is_some() { (size(&change.old)) " → " } (if change.new.is_some() { size(&change.new) } else { size(&change.old) }) }
                                td { (word) @if let Fate::Moved(bits) = fate { " by " (distance(bits)) } }
                            }
                        }
                    }
                }
            }
        }
        @if !kept.is_empty() {
            details {
                summary { (counted(kept.len(), "member stays", "members stay")) " as " (if kept.len() == 1 { "it is" } else { "they are" }) }
                div.scroll tabindex="0" role="region" aria-label={ "Members of " (row.name) " that stay" } {
                    table.members {
                        caption { "Members that stay" }
                        thead { tr { th scope="col" { "Member" } th scope="col" { "Type" } th.number scope="col" { "Offset" } th.number scope="col" { "Size" } } }
                        tbody {
                            @for field in &kept {
                                tr {
                                    th scope="row" { code { (field.path) } } td { code { (field.type_text) } }
                                    td.number { (offset(field.bits.start)) } td.number { (amount(field.bits.end - field.bits.start)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn enumerators(row: &TypeRow) -> Markup {
    let value = |value: Option<i128>| value.map_or_else(|| "–".to_owned(), |value| value.to_string());
    html! {
        @if !row.enumerators.is_empty() {
            div.scroll tabindex="0" role="region" aria-label={ "Enumerators of " (row.name) } {
                table {
                    caption { "Enumerators that differ" }
                    thead { tr { th scope="col" { "Name" } th.number scope="col" { "Before" } th.number scope="col" { "After" } } }
                    tbody {
                        @for change in &row.enumerators {
                            tr { th scope="row" { code { (change.name) } } td.number { (value(change.old)) } td.number { (value(change.new)) } }
                        }
                    }
                }
            }
        }
    }
}

fn users(row: &TypeRow) -> Markup {
    let list = |what: &str, names: &BTreeSet<String>| {
        html! { @if !names.is_empty() { div { dt { (what) } dd { @for name in names { code { (name) } " " } } } } }
    };
    html! {
        dl.facts {
            (list("Used by changed functions", &row.users))
            (list("Data made of it", &row.data))
            (list("Units that see it", &row.units))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_and_distances_have_bits_where_they_need_them() {
        assert_eq!((offset(64).as_str(), offset(67).as_str()), ("8", "8:3"));
        assert_eq!((amount(8).as_str(), amount(16).as_str(), amount(3).as_str()), ("1 byte", "2 bytes", "3 bits"));
        assert_eq!((distance(-64).as_str(), distance(8).as_str()), ("−8 bytes", "+1 byte"));
    }
}
