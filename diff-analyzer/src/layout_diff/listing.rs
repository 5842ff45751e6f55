//! Types and their changes for people.
//!
//! Comes in: a type, or two versions of it. Decided: nothing. Goes out: its declaration with offset and size in front of each
//! member, or a diff of two.

use super::{TypeChange, counterpart};
use crate::dwarf_layout::{Layouts, Member, TypeKind, TypeLayout};
use similar::TextDiff;
use std::fmt::Write as _;

/// A type's declaration with offset and size in front of each member.
pub fn listing(layout: &TypeLayout) -> String {
    let mut text = String::new();
    match layout.kind {
        TypeKind::Typedef => {
            let target = layout.target.as_deref().unwrap_or("void");
            line(&mut text, "", &format!("typedef {target} {};", layout.name));
        }
        _ if layout.name.starts_with("enum {") => line(&mut text, "", "enum {"),
        _ => line(&mut text, "", &format!("{} {{", layout.name)),
    }
    list_members(&mut text, &layout.members, 1);
    for (name, value) in &layout.enumerators {
        line(&mut text, "", &format!("\t{name} = {value},"));
    }
    let end = if layout.kind == TypeKind::Typedef { "" } else { "};" };
    line(&mut text, "", format!("{end} /* size {}, align {} */", layout.size, layout.align).trim_start());
    text
}

fn list_members(text: &mut String, members: &[Member], depth: usize) {
    let indent = "\t".repeat(depth);
    for member in members {
        if member.members.is_empty() {
            let bit = if member.bit_field { format!(":{:<2}", member.bit_offset % 8) } else { "   ".to_owned() };
            let size = if member.bit_field {
                format!("{:>4}b", member.bit_size)
            } else {
                format!("{:>5}", member.bit_size / 8)
            };
            let place = format!("/* {:>5}{bit} {size} */ ", member.bit_offset / 8);
            line(text, &place, &format!("{indent}{};", member.declaration));
        } else {
            let keyword = member.type_text.trim_end_matches(" { ... }");
            let blank = " ".repeat(21);
            line(text, &blank, &format!("{indent}{keyword} {{"));
            list_members(text, &member.members, depth + 1);
            let end = format!("{indent}}} {}", member.name);
            line(text, &blank, &format!("{};", end.trim_end()));
        }
    }
}

fn line(text: &mut String, place: &str, rest: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{place}{rest}");
}

/// A change as text: what and where, then a diff of the two listings.
pub fn render(change: &TypeChange, old: &Layouts, new: &Layouts) -> String {
    let mut text = String::new();
    let mut head = format!("{}: size {} -> {}", change.name, change.old_size, change.new_size);
    if change.old_size == change.new_size {
        head = format!("{}: size {}", change.name, change.old_size);
    }
    if let Some(place) = &change.place {
        head.push_str(&format!(" ({place})"));
    }
    line(&mut text, "", &head);
    if !change.consequence_of.is_empty() {
        line(&mut text, "", &format!("  because of {}", change.consequence_of.join(", ")));
    }
    if let Some(before) = old.types.get(&change.name)
        && let Some(after) = counterpart(before, new)
    {
        text.push_str(&listing_diff(before, after));
    }
    text
}

/// A diff of the listings of two versions of a type.
pub fn listing_diff(before: &TypeLayout, after: &TypeLayout) -> String {
    let (before, after) = (listing(before), listing(after));
    let diff = TextDiff::from_lines(&before, &after);
    diff.unified_diff().context_radius(2).header("before", "after").to_string()
}
