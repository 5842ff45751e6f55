//! Which types, variables and functions two versions of a unit lay out differently.
//!
//! Comes in: the [`Layouts`] of the original and of the patched unit. Decided: what is a change of layout, what only a
//! change of type, what is worth a note; whether a type changed by itself or because a type inside it did. Goes out:
//! [`TypeChange`], [`VariableChange`], [`SignatureChange`], and their text for people.
//!
//! No change: a declaration that becomes a definition, the order of definitions, a type that only one side has.

mod change;
mod listing;
mod types;

pub use change::{Effect, EnumeratorChange, MemberChange, MemberSide, SignatureChange, TypeChange, VariableChange};
pub use listing::{listing, listing_diff, render};
pub(crate) use types::{compare_type, renamed_members, same_text, text_effect};

use crate::dwarf_layout::{Function, Layouts, TypeLayout, Variable};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Types that both versions define and that differ, by name.
pub fn compare(old: &Layouts, new: &Layouts) -> Vec<TypeChange> {
    let mut changes = BTreeMap::new();
    for (key, before) in &old.types {
        let Some(after) = counterpart(before, new) else { continue };
        if let Some(change) = compare_type(before, after) {
            changes.insert(key.clone(), change);
        }
    }
    // A type whose own text is the same has changed because of what is inside it.
    let resized: BTreeSet<String> = changes
        .values()
        .filter(|change: &&TypeChange| change.old_size != change.new_size || change.old_align != change.new_align)
        .map(|change| change.name.clone())
        .collect();
    for (key, change) in &mut changes {
        let (Some(before), Some(after)) = (old.types.get(key), new.types.get(key)) else { continue };
        if !same_text(before, after) {
            continue;
        }
        let inside = embedded(before).chain(embedded(after));
        let causes: BTreeSet<&String> = inside.filter(|name| *name != key && resized.contains(*name)).collect();
        change.consequence_of = causes.into_iter().cloned().collect();
    }
    changes.into_values().collect()
}

/// Variables that both versions have and whose type or layout differs.
pub fn compare_variables(old: &Layouts, new: &Layouts) -> Vec<VariableChange> {
    let types: HashMap<String, Effect> =
        compare(old, new).into_iter().map(|change| (change.name, change.effect)).collect();
    fn key(variable: &Variable) -> (&str, Option<&str>, u32) {
        (&variable.name, variable.function.as_deref(), variable.ordinal)
    }
    let after: HashMap<_, _> = new.variables.iter().map(|variable| (key(variable), variable)).collect();
    let mut changes = Vec::new();
    for before in &old.variables {
        let Some(after) = after.get(&key(before)) else { continue };
        let resized = before.size.zip(after.size).is_some_and(|(old, new)| old != new);
        // `extern int a[]` and `int a[4]` are the same variable, declared and defined.
        let complete = before.size.is_some() && after.size.is_some();
        let retyped = before.type_text != after.type_text && (complete || before.defined == after.defined);
        let mut causes = BTreeSet::new();
        contained(&before.embeds, old, &mut causes);
        causes.retain(|name| types.get(name).is_some_and(|effect| *effect >= Effect::Retyped));
        let inside = causes.iter().filter_map(|name| types.get(name)).max().copied();
        let own = match (retyped, resized) {
            (true, true) => Some(Effect::Layout),
            (true, false) => Some(text_effect(&before.type_text, &after.type_text)),
            (false, true) if causes.is_empty() => Some(Effect::Layout),
            _ => None,
        };
        let Some(effect) = own.max(inside) else { continue };
        changes.push(VariableChange {
            name: before.name.clone(),
            function: before.function.clone(),
            ordinal: before.ordinal,
            old_type: before.type_text.clone(),
            new_type: after.type_text.clone(),
            old_size: before.size,
            new_size: after.size,
            defined: before.defined || after.defined,
            effect,
            consequence_of: if own.is_some() { Vec::new() } else { causes.into_iter().collect() },
            place: after.place.clone(),
        });
    }
    changes
}

/// Types of locks (include/linux/{mutex,rwsem,spinlock_types,rwlock_types}.h).
const LOCKS: &[&str] = &["struct mutex", "struct rw_semaphore", "spinlock_t", "raw_spinlock_t", "rwlock_t"];

/// Names of data that are locks.
pub fn locks(layouts: &Layouts) -> BTreeSet<String> {
    let locks = layouts.variables.iter().filter(|variable| LOCKS.contains(&variable.type_text.as_str()));
    locks.map(|variable| variable.name.clone()).collect()
}

/// Functions that both versions define with different types.
pub fn compare_functions(old: &Layouts, new: &Layouts) -> Vec<SignatureChange> {
    let after: HashMap<&str, _> = new.functions.iter().map(|function| (function.name.as_str(), function)).collect();
    let differs = |before: &&Function| {
        after.get(before.name.as_str()).filter(|after| after.declaration != before.declaration).copied()
    };
    old.functions
        .iter()
        .filter_map(|before| {
            differs(&before).map(|after| SignatureChange {
                name: before.name.clone(),
                old: before.declaration.clone(),
                new: after.declaration.clone(),
                place: after.place.clone(),
            })
        })
        .collect()
}

/// The new version of a type.
pub(crate) fn counterpart<'a>(before: &TypeLayout, new: &'a Layouts) -> Option<&'a TypeLayout> {
    new.types.get(&before.name).or_else(|| same_anonymous_enum(before, new))
}

/// Whether one of the types `embeds` is or contains the type `wanted`.
pub(crate) fn contains(embeds: &[String], wanted: &str, layouts: &Layouts) -> bool {
    let mut found = BTreeSet::new();
    contained(embeds, layouts, &mut found);
    found.contains(wanted)
}

/// An anonymous enum is known by its first enumerator, or else by any.
fn same_anonymous_enum<'a>(before: &TypeLayout, new: &'a Layouts) -> Option<&'a TypeLayout> {
    if !before.name.starts_with("enum {") {
        return None;
    }
    let shares = |after: &&TypeLayout| {
        after.name.starts_with("enum {")
            && before.enumerators.iter().any(|(name, _)| after.enumerators.iter().any(|(other, _)| other == name))
    };
    new.types.values().find(shares)
}

/// Keys of the types that a type contains directly.
pub(crate) fn embedded(layout: &TypeLayout) -> impl Iterator<Item = &String> {
    layout.leaves().into_iter().flat_map(|leaf| &leaf.member.embeds).chain(&layout.embeds)
}

/// Keys of the types that are contained in `embeds`, however deep.
pub(crate) fn contained(embeds: &[String], layouts: &Layouts, found: &mut BTreeSet<String>) {
    let mut left: Vec<&String> = embeds.iter().collect();
    while let Some(name) = left.pop() {
        if found.insert(name.clone())
            && let Some(layout) = layouts.types.get(name)
        {
            left.extend(embedded(layout));
        }
    }
}
