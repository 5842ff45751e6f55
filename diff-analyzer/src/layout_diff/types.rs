//! Two versions of one type.
//!
//! Comes in: the type before and after. Decided: which members and enumerators differ, which are only renamed, and how much each
//! difference matters. Goes out: a [`TypeChange`], or nothing when they are laid out the same.

use super::{Effect, EnumeratorChange, MemberChange, MemberSide, TypeChange};
use crate::dwarf_layout::{Leaf, Member, TypeKind, TypeLayout};
use std::collections::HashMap;

pub(crate) fn compare_type(before: &TypeLayout, after: &TypeLayout) -> Option<TypeChange> {
    let members = compare_members(before, after);
    let enumerators = compare_enumerators(before, after);
    let mut effect = members.iter().map(|member| member.effect).max();
    if !enumerators.is_empty() {
        let harmless = enumerators.iter().all(|enumerator| enumerator.old.is_none());
        effect = effect.max(Some(if harmless { Effect::Info } else { Effect::Layout }));
    }
    let mut target = None;
    if before.kind == TypeKind::Typedef
        && let (Some(old), Some(new)) = (&before.target, &after.target)
        && old != new
    {
        effect = effect.max(Some(text_effect(old, new)));
        target = Some((old.clone(), new.clone()));
    }
    if before.size != after.size || before.align != after.align || before.kind != after.kind {
        effect = Some(Effect::Layout);
    }
    Some(TypeChange {
        name: before.name.clone(),
        kind: after.kind,
        effect: effect?,
        old_size: before.size,
        new_size: after.size,
        old_align: before.align,
        new_align: after.align,
        members,
        enumerators,
        target,
        consequence_of: Vec::new(),
        place: after.place.clone().or_else(|| before.place.clone()),
    })
}

fn side(member: &Member) -> MemberSide {
    MemberSide { bit_offset: member.bit_offset, bit_size: member.bit_size, type_text: member.type_text.clone() }
}

fn compare_members(before: &TypeLayout, after: &TypeLayout) -> Vec<MemberChange> {
    let (before, after) = (before.leaves(), after.leaves());
    let by_path = |leaves: &[Leaf<'_>]| -> HashMap<String, usize> {
        leaves.iter().enumerate().map(|(index, leaf)| (leaf.path.clone(), index)).collect()
    };
    let (old_paths, new_paths) = (by_path(&before), by_path(&after));
    let mut added: Vec<usize> = (0..after.len()).filter(|&index| !old_paths.contains_key(&after[index].path)).collect();
    let mut changes = Vec::new();
    for leaf in &before {
        let old = side(leaf.member);
        let mut change = MemberChange {
            name: leaf.path.clone(),
            renamed_to: None,
            old: None,
            new: None,
            effect: Effect::Layout,
            place: leaf.member.place.clone(),
        };
        if let Some(&index) = new_paths.get(&leaf.path) {
            let new = side(after[index].member);
            if old == new {
                continue;
            }
            if (old.bit_offset, old.bit_size) == (new.bit_offset, new.bit_size) {
                change.effect = text_effect(&old.type_text, &new.type_text);
            }
            change.place = after[index].member.place.clone();
            change.new = Some(new);
        } else if let Some(found) = added.iter().position(|&index| side(after[index].member) == old) {
            let renamed = &after[added.remove(found)];
            change.effect = Effect::Info;
            change.renamed_to = Some(renamed.path.clone());
            change.place = renamed.member.place.clone();
            change.new = Some(old.clone());
        }
        change.old = Some(old);
        changes.push(change);
    }
    changes.extend(added.into_iter().map(|index| MemberChange {
        name: after[index].path.clone(),
        renamed_to: None,
        old: None,
        new: Some(side(after[index].member)),
        effect: Effect::Layout,
        place: after[index].member.place.clone(),
    }));
    changes
}

/// Old names of members of which nothing but the name changes, by their new ones.
pub(crate) fn renamed_members(before: &TypeLayout, after: &TypeLayout) -> HashMap<String, String> {
    let changes = compare_members(before, after).into_iter();
    changes.filter_map(|change| Some((change.renamed_to?, change.name))).collect()
}

fn compare_enumerators(before: &TypeLayout, after: &TypeLayout) -> Vec<EnumeratorChange> {
    let values = |layout: &TypeLayout| layout.enumerators.iter().cloned().collect::<HashMap<String, i128>>();
    let (old, new) = (values(before), values(after));
    let mut changes = Vec::new();
    for (name, value) in &before.enumerators {
        let now = new.get(name).copied();
        if now != Some(*value) {
            changes.push(EnumeratorChange { name: name.clone(), old: Some(*value), new: now });
        }
    }
    for (name, value) in after.enumerators.iter().filter(|(name, _)| !old.contains_key(name)) {
        changes.push(EnumeratorChange { name: name.clone(), old: None, new: Some(*value) });
    }
    changes
}

/// What a change of nothing but the type's text means.
pub(crate) fn text_effect(old: &str, new: &str) -> Effect {
    let bare = |text: &str| -> String {
        let words = text.replace('*', " * ");
        let kept = words.split_whitespace().filter(|word| !matches!(*word, "const" | "volatile" | "restrict"));
        kept.collect::<Vec<_>>().join(" ")
    };
    if bare(old) == bare(new) { Effect::Info } else { Effect::Retyped }
}

/// Whether two versions declare the same: members, their order, types and widths, but not where they lie.
pub(crate) fn same_text(before: &TypeLayout, after: &TypeLayout) -> bool {
    fn text(members: &[Member], out: &mut Vec<String>) {
        for member in members {
            out.push(member.declaration.clone());
            text(&member.members, out);
        }
    }
    let (mut old, mut new) = (Vec::new(), Vec::new());
    text(&before.members, &mut old);
    text(&after.members, &mut new);
    old == new && before.target == after.target && before.enumerators == after.enumerators
}
