//! Which types, variables and functions two versions of a unit lay out differently.
//!
//! Comes in: the [`Layouts`] of the original and of the patched unit. Decided: what is a change of layout, what only a
//! change of type, what is worth a note; whether a type changed by itself or because a type inside it did. Goes out:
//! [`TypeChange`], [`VariableChange`], [`SignatureChange`], and their text for people.
//!
//! No change: a declaration that becomes a definition, the order of definitions, a type that only one side has.

use crate::dwarf_layout::{Layouts, Member, Place, TypeKind, TypeLayout, Variable};
use serde::Serialize;
use similar::TextDiff;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

/// How much a change matters to data that exists already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Worth a note: existing data reads the same (a member renamed, a qualifier, an enumerator added).
    Info,
    /// Same place and size, but of another type.
    Retyped,
    /// Existing data has another layout or another meaning.
    Layout,
}

/// One side of a member's change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberSide {
    /// Offset in bits.
    pub bit_offset: u64,
    /// Size in bits.
    pub bit_size: u64,
    /// Type, spelled in C.
    pub type_text: String,
}

/// A member that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberChange {
    /// Path of the member; the old one of a renamed member.
    pub name: String,
    /// New path, when nothing but the name changed.
    pub renamed_to: Option<String>,
    /// The member before; absent for an added one.
    pub old: Option<MemberSide>,
    /// The member after; absent for a removed one.
    pub new: Option<MemberSide>,
    /// How much it matters.
    pub effect: Effect,
    /// Where it is declared, in the new version if there.
    pub place: Option<Place>,
}

/// An enumerator that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EnumeratorChange {
    /// Name.
    pub name: String,
    /// Value before; absent for an added one.
    pub old: Option<i128>,
    /// Value after; absent for a removed one.
    pub new: Option<i128>,
}

/// A type that both versions define and lay out differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TypeChange {
    /// Its key in [`Layouts::types`].
    pub name: String,
    /// What it is.
    pub kind: TypeKind,
    /// How much the change matters.
    pub effect: Effect,
    /// Size before, in bytes.
    pub old_size: u64,
    /// Size after, in bytes.
    pub new_size: u64,
    /// Alignment before, in bytes.
    pub old_align: u64,
    /// Alignment after, in bytes.
    pub new_align: u64,
    /// Members that differ, in order of the old declaration, added ones last.
    pub members: Vec<MemberChange>,
    /// Enumerators that differ.
    pub enumerators: Vec<EnumeratorChange>,
    /// What a typedef stood for and stands for, when that differs.
    pub target: Option<(String, String)>,
    /// Changed types inside this one that are the whole cause; empty when its own declaration changed.
    pub consequence_of: Vec<String>,
    /// Where it is declared, in the new version.
    pub place: Option<Place>,
}

/// A variable that both versions have, with another type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VariableChange {
    /// Name.
    pub name: String,
    /// Function that it is local to.
    pub function: Option<String>,
    /// Which of the function's locals of that name, from 0.
    pub ordinal: u32,
    /// Type before.
    pub old_type: String,
    /// Type after.
    pub new_type: String,
    /// Size in bytes before, when known.
    pub old_size: Option<u64>,
    /// Size in bytes after, when known.
    pub new_size: Option<u64>,
    /// Whether the unit defines it, rather than only using it.
    pub defined: bool,
    /// How much the change matters.
    pub effect: Effect,
    /// Changed types inside it that are the whole cause; empty when its own declaration changed.
    pub consequence_of: Vec<String>,
    /// Where it is declared, in the new version.
    pub place: Option<Place>,
}

/// A function whose return or parameter types differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SignatureChange {
    /// Name.
    pub name: String,
    /// Declaration before.
    pub old: String,
    /// Declaration after.
    pub new: String,
    /// Where it is declared, in the new version.
    pub place: Option<Place>,
}

/// Types that both versions define and that differ, by name.
pub fn compare(old: &Layouts, new: &Layouts) -> Vec<TypeChange> {
    let mut changes = BTreeMap::new();
    for (key, before) in &old.types {
        let Some(after) = new.types.get(key).or_else(|| same_anonymous_enum(before, new)) else { continue };
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
    let differs = |before: &&crate::dwarf_layout::Function| {
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
    let by_path = |leaves: &[crate::dwarf_layout::Leaf<'_>]| -> HashMap<String, usize> {
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
        && let Some(after) = new.types.get(&change.name).or_else(|| same_anonymous_enum(before, new))
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
