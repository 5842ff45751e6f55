//! What `lucos-build layout` says, for people.
//!
//! Comes in: the report. Decided: what belongs into one paragraph: members that move by the same distance are one line, and
//! types that are larger only because of another are named under it. Goes out: text.

use super::report::{LayoutReport, Only, TypeRow, Verdict};
use crate::args::LayoutArgs;
use crate::report::Report;
use diff_analyzer::image_layout::{ImageFacts, VariableDifference};
use diff_analyzer::layout_diff::{Effect, EnumeratorChange, MemberChange, MemberSide, listing, listing_diff};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Names that are listed when not all are asked for.
const NAMES: usize = 6;

impl LayoutReport {
    /// For people.
    pub fn to_text(&self, args: &LayoutArgs) -> String {
        let mut text = String::new();
        let diagnostics = Report::new();
        for reason in &self.reasons {
            text.push_str(&diagnostics.diagnostic(reason));
        }
        for layout in &self.layouts {
            let place = layout.layout.place.as_ref().map(|place| format!("/* {place} */\n")).unwrap_or_default();
            let _ = writeln!(text, "{place}{}", listing(&layout.layout));
        }
        let consequences = self.consequences();
        let folded: BTreeSet<&str> = consequences.values().flatten().map(|row| row.change.name.as_str()).collect();
        for row in self.types.iter().filter(|row| !folded.contains(row.change.name.as_str())) {
            paragraph(&mut text, row, args.flat);
            let because = consequences.get(row.change.name.as_str()).map(Vec::as_slice).unwrap_or_default();
            let sizes: Vec<String> = because
                .iter()
                .map(|row| format!("{} ({})", row.change.name, sizes(row.change.old_size, row.change.new_size)))
                .collect();
            list(&mut text, "  changes with it: ", &sizes, args.all);
            if args.flat {
                for row in because {
                    paragraph(&mut text, row, true);
                }
            }
            text.push('\n');
        }
        self.variables(&mut text, args.all);
        if args.all {
            only(&mut text, "old", &self.only_old);
            only(&mut text, "new", &self.only_new);
        }
        self.summary(&mut text, folded.len());
        text
    }

    /// Types that change only because of others, under the name of one that they change because of in the end.
    fn consequences(&self) -> BTreeMap<&str, Vec<&TypeRow>> {
        let rows: BTreeMap<&str, &TypeRow> = self.types.iter().map(|row| (row.change.name.as_str(), row)).collect();
        let mut under: BTreeMap<&str, Vec<&TypeRow>> = BTreeMap::new();
        for row in &self.types {
            let mut cause = row;
            // No type contains itself, and there are no more types than these.
            for _ in 0..self.types.len() {
                let next = cause.change.consequence_of.iter().find_map(|name| rows.get(name.as_str()));
                match next {
                    Some(next) => cause = next,
                    None => break,
                }
            }
            if cause.change.name != row.change.name && cause.change.consequence_of.is_empty() {
                under.entry(&cause.change.name).or_default().push(row);
            }
        }
        under
    }

    fn variables(&self, text: &mut String, all: bool) {
        let (own, because): (Vec<_>, Vec<_>) = self.variables.iter().partition(|variable| variable.types.is_some());
        for variable in own {
            let [old, new] =
                variable.types.as_ref().map(|types| types.each_ref().map(String::as_str)).unwrap_or([""; 2]);
            let place = variable.place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
            let _ = writeln!(text, "{}: {old} -> {new}{}{place}", named(variable), size_change(variable));
        }
        let names: Vec<String> = because
            .iter()
            .map(|variable| {
                let of = variable.because_of.as_ref().map(|of| format!(": {of}")).unwrap_or_default();
                format!("{}{of}{}", named(variable).trim_start_matches("variable "), size_change(variable))
            })
            .collect();
        if !names.is_empty() {
            list(text, &format!("{} variables hold types that changed: ", names.len()), &names, all);
        }
        if !self.variables.is_empty() {
            text.push('\n');
        }
    }

    fn summary(&self, text: &mut String, folded: usize) {
        let images = [("old", &self.old), ("new", &self.new)];
        for (_, image) in images.iter().filter(|(_, image)| image.as_ref().is_some_and(|image| image.rust_units > 0)) {
            let Some(ImageFacts { path, rust_units, .. }) = image else { continue };
            let _ = writeln!(text, "note: {}: {rust_units} units in Rust were left alone", path.display());
        }
        let (Some(old), Some(new)) = (&self.old, &self.new) else { return };
        let counted = [
            (Effect::Layout, "laid out differently"),
            (Effect::Retyped, "the same place, other types"),
            (Effect::Info, "reads the same"),
        ]
        .map(|(effect, what)| (self.types.iter().filter(|row| row.change.effect == effect).count(), what));
        let kinds: Vec<String> =
            counted.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        let _ = match self.verdict {
            Verdict::Same => writeln!(text, "same: {} types in {} and {} units", old.types, old.units, new.units),
            _ => writeln!(
                text,
                "differ: {} of {} types ({}; {folded} of them only because of others), {} of {} variables",
                self.types.len(),
                old.types,
                if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") },
                self.variables.len(),
                old.variables,
            ),
        };
        let (gone, come) = (&self.only_old, &self.only_new);
        let _ = writeln!(
            text,
            "only in the old image: {} types, {} variables; only in the new one: {} types, {} variables",
            gone.types.len(),
            gone.variables.len(),
            come.types.len(),
            come.variables.len()
        );
    }
}

fn only(text: &mut String, which: &str, only: &Only) {
    for (what, names) in [("types", &only.types), ("variables", &only.variables)] {
        if !names.is_empty() {
            list(text, &format!("{what} only in the {which} image: "), names, true);
        }
    }
}

/// A type: what it is, where, what happens to its members.
fn paragraph(text: &mut String, row: &TypeRow, flat: bool) {
    let change = &row.change;
    let place = change.place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
    let mut head = format!("{}: {}", change.name, sizes(change.old_size, change.new_size));
    if change.old_align != change.new_align {
        let _ = write!(head, ", alignment {} -> {}", change.old_align, change.new_align);
    }
    head.push_str(match change.effect {
        Effect::Layout => "",
        Effect::Retyped => ", laid out as before, of other types",
        Effect::Info => ", laid out as before",
    });
    let _ = writeln!(text, "{head}{place}");
    if row.shares_name {
        let _ = writeln!(text, "  one of several types of this name; in {} and {} units", row.old_units, row.new_units);
    }
    if !change.consequence_of.is_empty() {
        let _ = writeln!(text, "  because of {}", change.consequence_of.join(", "));
    }
    if let Some((old, new)) = &change.target {
        let _ = writeln!(text, "  {old} -> {new}");
    }
    if flat {
        text.push_str(&listing_diff(&row.layouts[0], &row.layouts[1]));
        return;
    }
    members(text, &change.members);
    enumerators(text, &change.enumerators);
}

fn members(text: &mut String, members: &[MemberChange]) {
    let moved = |member: &MemberChange| match (&member.old, &member.new, &member.renamed_to) {
        (Some(old), Some(new), None) if old.type_text == new.type_text && old.bit_size == new.bit_size => {
            Some(new.bit_offset.wrapping_sub(old.bit_offset) as i64)
        }
        _ => None,
    };
    for run in members.chunk_by(|a, b| moved(a).is_some() && moved(a) == moved(b)) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let _ = match (&first.old, &first.new, &first.renamed_to) {
            (Some(old), _, Some(name)) => writeln!(text, "  ~ {} is now {name}, at {}", first.name, at(old)),
            (Some(old), Some(new), None) if moved(first).is_some() && run.len() == 1 => {
                writeln!(text, "    {}: from {} to {}", first.name, at(old), at(new))
            }
            (Some(old), Some(new), None) if moved(first).is_some() => {
                let last = last.old.as_ref().map(at).unwrap_or_default();
                writeln!(
                    text,
                    "    {} members from {} (at {}) to {} (at {last}): by {}",
                    run.len(),
                    first.name,
                    at(old),
                    run[run.len() - 1].name,
                    distance(new.bit_offset.wrapping_sub(old.bit_offset) as i64),
                )
            }
            (Some(old), Some(new), None) => {
                let mut line = format!("  ~ {}:", first.name);
                if old.bit_offset != new.bit_offset {
                    let _ = write!(line, " from {} to {}", at(old), at(new));
                } else {
                    let _ = write!(line, " at {}", at(old));
                }
                if old.type_text != new.type_text {
                    let _ = write!(line, ", {} -> {}", old.type_text, new.type_text);
                }
                if old.bit_size != new.bit_size {
                    let _ = write!(line, ", {} -> {}", size(old.bit_size), size(new.bit_size));
                }
                writeln!(text, "{line}")
            }
            (Some(old), None, _) => writeln!(text, "  - {}: {}, was at {}", first.name, what(old), at(old)),
            (None, Some(new), _) => writeln!(text, "  + {}: {}, at {}", first.name, what(new), at(new)),
            (None, None, _) => Ok(()),
        };
    }
}

fn enumerators(text: &mut String, enumerators: &[EnumeratorChange]) {
    let moved = |change: &EnumeratorChange| Some(change.new? - change.old?);
    for run in enumerators.chunk_by(|a, b| moved(a).is_some() && moved(a) == moved(b)) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let _ = match (first.old, first.new) {
            (Some(old), Some(new)) if run.len() > 1 => writeln!(
                text,
                "    {} enumerators from {} ({old}) to {}: by {:+}",
                run.len(),
                first.name,
                last.name,
                new - old
            ),
            (Some(old), Some(new)) => writeln!(text, "    {}: {old} -> {new}", first.name),
            (Some(old), None) => writeln!(text, "  - {} = {old}", first.name),
            (None, Some(new)) => writeln!(text, "  + {} = {new}", first.name),
            (None, None) => Ok(()),
        };
    }
}

/// Names in one line, not more than a few unless all are asked for.
fn list(text: &mut String, head: &str, names: &[String], all: bool) {
    if names.is_empty() {
        return;
    }
    let shown = if all { names.len() } else { NAMES.min(names.len()) };
    let more = if shown < names.len() { format!(" and {} more", names.len() - shown) } else { String::new() };
    let _ = writeln!(text, "{head}{}{more}", names[..shown].join(", "));
}

fn named(variable: &VariableDifference) -> String {
    let kind = if variable.per_cpu { "per-CPU variable" } else { "variable" };
    let unit = variable.unit.as_ref().map(|unit| format!(" of {unit}")).unwrap_or_default();
    format!("{kind} {}{unit}", variable.name)
}

fn size_change(variable: &VariableDifference) -> String {
    match (variable.old_size, variable.new_size) {
        (Some(old), Some(new)) if old != new => format!(", {old} -> {new} bytes"),
        _ => String::new(),
    }
}

fn sizes(old: u64, new: u64) -> String {
    if old == new { format!("{old} bytes") } else { format!("{old} -> {new} bytes") }
}

/// An offset in bytes, with the bit where it is not the first.
fn at(side: &MemberSide) -> String {
    let (byte, bit) = (side.bit_offset / 8, side.bit_offset % 8);
    if bit == 0 { byte.to_string() } else { format!("{byte}:{bit}") }
}

fn distance(bits: i64) -> String {
    if bits % 8 == 0 { format!("{:+}", bits / 8) } else { format!("{bits:+} bits") }
}

fn size(bits: u64) -> String {
    if bits.is_multiple_of(8) { format!("{} bytes", bits / 8) } else { format!("{bits} bits") }
}

fn what(side: &MemberSide) -> String {
    format!("{}, {}", side.type_text, size(side.bit_size))
}
