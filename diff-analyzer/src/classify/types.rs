//! Types that exist and change.
//!
//! Comes in: the layouts of both versions of a unit, the names of its changed functions. Decided: which types change, and
//! whether what they had keeps its place. Goes out: [`TypeFinding`]s.

use super::TypeFinding;
use crate::dwarf_layout::{Layouts, TypeKind, TypeLayout};
use crate::layout_diff::{self, Effect, MemberChange, TypeChange};
use std::collections::BTreeSet;

/// Members and enumerators that a message lists at most.
const LISTED: usize = 4;

/// Types of a unit that change for data that exist.
pub fn find(changed: &BTreeSet<&str>, old: &Layouts, new: &Layouts) -> Vec<TypeFinding> {
    let changes = layout_diff::compare(old, new).into_iter().filter(|change| change.effect == Effect::Layout);
    changes.filter_map(|change| finding(change, changed, old, new)).collect()
}

fn finding(change: TypeChange, changed: &BTreeSet<&str>, old: &Layouts, new: &Layouts) -> Option<TypeFinding> {
    let before = old.types.get(&change.name)?.clone();
    let after = layout_diff::counterpart(&before, new)?.clone();
    let rule = match change.kind {
        TypeKind::Enum => "enum-value",
        _ if is_additive(&change, &before, &after) => "type-additive",
        _ => "type-layout",
    };
    let users = new.functions.iter().filter(|function| function.uses.contains(&change.name));
    let users = users.filter(|function| changed.contains(function.name.as_str()));
    let data = new.variables.iter().filter(|variable| variable.defined);
    let data = data.filter(|variable| layout_diff::contains(&variable.embeds, &change.name, new));
    let holders = old.types.values().filter(|holder| layout_diff::embedded(holder).any(|name| *name == change.name));
    let mut parts = BTreeSet::new();
    for member in change.members.iter().filter(|member| member.old.is_none()) {
        let embeds = after.member(&member.name).map_or(&[][..], |member| &member.embeds);
        layout_diff::contained(embeds, new, &mut parts);
    }
    let inside = parts.into_iter().filter_map(|key| new.types.get(&key).map(|layout| (key, layout.clone())));
    Some(TypeFinding {
        rule,
        message: describe(&change),
        users: users.map(|function| function.name.clone()).collect(),
        data: data.map(|variable| variable.name.clone()).collect(),
        holders: holders.map(|holder| holder.name.clone()).collect(),
        inside: inside.collect(),
        change,
        old: before,
        new: after,
    })
}

/// Whether all that a type had keeps its place, size and kind. That of a union counts: what is new in it lies over the old.
fn is_additive(change: &TypeChange, before: &TypeLayout, after: &TypeLayout) -> bool {
    let stays = |member: &MemberChange| match (&member.old, &member.new) {
        (Some(_), None) => false,
        (Some(old), Some(new)) => (old.bit_offset, old.bit_size) == (new.bit_offset, new.bit_size),
        (None, Some(new)) => {
            let end = new.bit_offset + new.bit_size;
            let free = |old: &crate::dwarf_layout::Leaf<'_>| {
                let (start, stop) = (old.member.bit_offset, old.member.bit_offset + old.member.bit_size);
                end <= start || new.bit_offset >= stop
            };
            before.leaves().iter().all(free)
        }
        (None, None) => true,
    };
    change.consequence_of.is_empty()
        && before.kind == TypeKind::Struct
        && after.kind == TypeKind::Struct
        && change.new_size >= change.old_size
        && change.new_align == change.old_align
        && change.members.iter().all(stays)
}

fn describe(change: &TypeChange) -> String {
    if change.kind == TypeKind::Enum {
        return describe_enum(change);
    }
    let mut text = format!("`{}` has {} bytes before and {} after", change.name, change.old_size, change.new_size);
    if !change.consequence_of.is_empty() {
        text.push_str(&format!(", because of {}", change.consequence_of.join(", ")));
        return text;
    }
    let offset =
        |bits: u64| if bits.is_multiple_of(8) { format!("{}", bits / 8) } else { format!("{}:{}", bits / 8, bits % 8) };
    let members: Vec<&MemberChange> = change.members.iter().filter(|member| member.effect == Effect::Layout).collect();
    for member in members.iter().take(LISTED) {
        let name = &member.name;
        text.push_str(&match (&member.old, &member.new) {
            (Some(old), Some(new)) if old.bit_offset != new.bit_offset => {
                format!("; `{name}` moves from offset {} to {}", offset(old.bit_offset), offset(new.bit_offset))
            }
            (Some(old), Some(new)) => format!("; `{name}` changes from `{}` to `{}`", old.type_text, new.type_text),
            (None, Some(new)) => format!("; `{name}` is new at offset {}", offset(new.bit_offset)),
            (Some(old), None) => format!("; `{name}` at offset {} is gone", offset(old.bit_offset)),
            (None, None) => continue,
        });
    }
    text + &more(members.len())
}

fn describe_enum(change: &TypeChange) -> String {
    let value = |value: Option<i128>| value.map_or_else(|| "nothing".to_owned(), |value| value.to_string());
    let existed: Vec<_> = change.enumerators.iter().filter(|enumerator| enumerator.old.is_some()).collect();
    let listed = existed.iter().take(LISTED).map(|enumerator| {
        format!("`{}` changes from {} to {}", enumerator.name, value(enumerator.old), value(enumerator.new))
    });
    format!("`{}`: {}{}", change.name, listed.collect::<Vec<_>>().join("; "), more(existed.len()))
}

/// Says that a list goes on.
fn more(count: usize) -> String {
    if count > LISTED { format!("; and {} more", count - LISTED) } else { String::new() }
}
