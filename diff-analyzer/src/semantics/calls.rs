//! Functions that take or drop something differently than before.
//!
//! Comes in: a unit before and after, and the texts of the changed files. Decided: for each function of the source that stands in a
//! changed compiled one, whether its calls or what its ways leave behind differ. Goes out: [`Warning`]s, one for each family.

use super::events::Events;
use super::paths::{Left, Paths};
use super::primitives::{Effect, Family, Resource};
use super::text::{Count, Counts, Found, Key, Side, Texts};
use super::{SIDE_BY_SIDE, Unit, Warning};
use crate::pieces::PieceIndex;
use std::collections::{BTreeMap, BTreeSet, HashMap};

const TRANSITION: &str = "a thread that is inside the old version ends there and leaves it so: supply a state transition that puts it right \
    (--hooks FILE.c), or say in the override file why none is needed";

/// A function of the source in the changed files, which changed compiled functions contain.
struct Source {
    found: Found,
    counts: [Counts; 2],
    /// By resource: what differs between the ways through these functions.
    ways: BTreeMap<&'static Resource, Ways>,
}

/// How two versions differ in what their ways leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ways {
    /// All ways of both leave the same.
    Equal,
    /// Not known, or not the same for all ways of one of them.
    Unclear,
    /// A way of the one drops more than any of the other.
    DropsMore(Version),
    /// A way of the one leaves more than any of the other.
    LeavesMore(Version),
}

/// Which version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    New,
    Old,
}

impl Ways {
    fn of(old: &Left, new: &Left) -> Self {
        let (Some(old), Some(new)) = (old, new) else { return Self::Unclear };
        let (Some((old_low, old_high)), Some((new_low, new_high))) =
            (old.first().zip(old.last()), new.first().zip(new.last()))
        else {
            return Self::Unclear; // a function that never returns
        };
        // Where one version never leaves more than it found, and always the same, the other one drops what it was given.
        let (old_gives, new_gives) = (*old_high <= 0 && old_low == old_high, *new_high <= 0 && new_low == new_high);
        match () {
            () if old_high > new_high && !old_gives => Self::LeavesMore(Version::Old),
            () if new_high > old_high && !new_gives => Self::LeavesMore(Version::New),
            () if old_low < new_low => Self::DropsMore(Version::Old),
            () if new_low < old_low => Self::DropsMore(Version::New),
            () if old_low == old_high => Self::Equal,
            () => Self::Unclear,
        }
    }

    fn is_different(self) -> bool {
        self > Self::Unclear
    }
}

pub(super) fn check(unit: &Unit<'_, '_>, texts: &Texts<'_>) -> Vec<Warning> {
    let [old, new] = unit.pieces;
    let events = [Events::of(old, unit.inlined[0]), Events::of(new, unit.inlined[1])];
    let paths = [Paths::new(old, &events[0]), Paths::new(new, &events[1])];
    let files: HashMap<&str, &str> = (unit.layouts[1].functions.iter())
        .filter_map(|function| Some((function.name.as_str(), function.place.as_ref()?.file.as_str())))
        .collect();
    let mut sources: BTreeMap<&str, Source> = BTreeMap::new();
    let pairs = unit.diff.changed_functions().filter_map(|function| Some((function.original?, function.patched)));
    for (before, after) in pairs {
        let inside: BTreeSet<&str> = events[0].inside(before).chain(events[1].inside(after)).collect();
        let mut changed: Vec<&str> = Vec::new();
        let found = inside.into_iter().filter_map(|name| Some((name, texts.find(files.get(name)?, name)?)));
        for (name, found) in found {
            let source = || Source {
                found,
                counts: [Side::Old, Side::New].map(|side| texts.counts(found, name, side)),
                ways: BTreeMap::new(),
            };
            let [old, new] = &sources.entry(name).or_insert_with(source).counts;
            if old != new || texts.differs(found, name) {
                changed.push(name);
            }
        }
        if !changed.is_empty() {
            compare_ways(&paths, (before, after), own_name(&old.piece(before).name), &changed, &mut sources);
        }
    }
    sources.iter().flat_map(|(name, source)| of_source(name, source, texts)).collect()
}

/// The name in the source of a compiled function.
pub(super) fn own_name(name: &str) -> &str {
    name.split_once('.').map_or(name, |(name, _)| name)
}

/// Compares the ways through both versions of a compiled function, for those functions of the source in it that have changed.
fn compare_ways<'n>(
    paths: &[Paths<'_, '_>; 2],
    (before, after): (PieceIndex, PieceIndex),
    own: &str,
    changed: &[&'n str],
    sources: &mut BTreeMap<&'n str, Source>,
) {
    let resources: BTreeSet<&'static Resource> =
        paths[0].touches(before).iter().chain(&*paths[1].touches(after)).copied().collect();
    for resource in resources {
        let ways = Ways::of(&paths[0].left(before, resource), &paths[1].left(after, resource));
        // Whose change it is: of those whose own calls differ; else of the function itself.
        let calls_differ = |name: &&str| {
            let of = |counts: &Counts| -> Vec<(Key, usize)> {
                let rows = counts.iter().filter(|(key, _)| key.resource == resource);
                rows.map(|(key, count)| (*key, count.calls)).collect()
            };
            sources.get(name).is_some_and(|source| of(&source.counts[0]) != of(&source.counts[1]))
        };
        let mut meant: Vec<&str> = changed.iter().copied().filter(calls_differ).collect();
        if meant.is_empty() && ways.is_different() {
            meant.extend(changed.iter().find(|name| **name == own).or(changed.first()));
        }
        for name in meant {
            if let Some(source) = sources.get_mut(name) {
                let known = source.ways.entry(resource).or_insert(ways);
                *known = ways.max(*known);
            }
        }
    }
}

/// A warning under way.
#[derive(Default)]
struct Draft {
    /// What differs.
    parts: Vec<String>,
    /// The first calls that differ in number.
    key: Option<Key>,
    /// Whether a way of the old version leaves more than any of the new one.
    leaves: bool,
}

/// Warnings about a function, one for each family.
fn of_source(name: &str, source: &Source, texts: &Texts<'_>) -> Vec<Warning> {
    let [old, new] = &source.counts;
    let calls = |counts: &Counts, key: &Key| counts.get(key).map_or(0, |count| count.calls);
    let keys: BTreeSet<Key> = old.keys().chain(new.keys()).copied().collect();
    let differing: Vec<Key> = keys.iter().copied().filter(|key| calls(old, key) != calls(new, key)).collect();
    // One more way out, which drops what all the others drop.
    let more_ways_out = |key: &Key| {
        let of_resource = || differing.iter().filter(|other| other.resource == key.resource);
        source.ways.get(key.resource) == Some(&Ways::Equal)
            && of_resource().all(|key| key.effect == Effect::Drop && calls(old, key) > 0 && calls(new, key) > 0)
    };
    let mut families: BTreeMap<Family, Draft> = BTreeMap::new();
    for (resource, &ways) in source.ways.iter().filter(|(_, ways)| ways.is_different()) {
        let family = families.entry(resource.family).or_default();
        family.parts.push(describe(resource, ways));
        family.leaves |= ways == Ways::LeavesMore(Version::Old);
    }
    for key in differing.iter().filter(|key| !more_ways_out(key)) {
        let names: BTreeSet<&str> = [old, new]
            .into_iter()
            .filter_map(|counts| counts.get(key))
            .flat_map(|Count { names, .. }| names)
            .copied()
            .collect();
        // The end of a guard's scope goes without saying.
        if key.effect == Effect::Drop && names.iter().all(|name| name.starts_with("guard(")) {
            continue;
        }
        let family = families.entry(key.resource.family).or_default();
        let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
        let [before, after] = [old, new].map(|counts| times(calls(counts, key)));
        family.parts.push(format!("{} is called {before} before and {after} after", names.join(" or ")));
        family.key.get_or_insert(*key);
    }
    let warning = |(family, Draft { parts, key, leaves }): (Family, Draft)| {
        let side = match key {
            Some(key) if calls(new, &key) < calls(old, &key) => Side::Old,
            _ => Side::New,
        };
        let (line, diff_line) = texts.place(source.found, name, key.as_ref(), side);
        Warning {
            rule: family.rule(),
            subject: name.to_owned(),
            message: format!("`{name}`: {}", parts.join("; ")),
            help: if leaves { TRANSITION } else { SIDE_BY_SIDE },
            file: Some(texts.change(source.found).path.display().to_string()),
            line,
            diff_line,
        }
    };
    families.into_iter().map(warning).collect()
}

fn times(calls: usize) -> String {
    match calls {
        0 => "not".to_owned(),
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        more => format!("{more} times"),
    }
}

fn describe(resource: &Resource, ways: Ways) -> String {
    let sides = |version: Version| match version {
        Version::Old => ("old", "new"),
        Version::New => ("new", "old"),
    };
    let (what, (one, other)) = match ways {
        Ways::LeavesMore(version) => (format!("ends with {}", resource.state), sides(version)),
        Ways::DropsMore(version) => (format!("drops more than it takes ({})", resource.name), sides(version)),
        Ways::Equal | Ways::Unclear => return String::new(),
    };
    format!("a way through the {one} version {what}, none through the {other} one does")
}
