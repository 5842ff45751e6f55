//! Variables of file scope that two images lay out differently.
//!
//! Comes in: the variables of both images. Decided: which is which: an external one by its name, a static one by its name and
//! source file; whether its own type changed, or what its type contains. Goes out: [`VariableDifference`].

use super::Wanted;
use super::full::Full;
use super::index::{Index, Position, VariableEntry};
use super::source::Image;
use crate::dwarf_layout::{Place, clean_path};
use crate::layout_diff::{Effect, text_effect};
use serde::Serialize;
use std::collections::HashMap;

/// A variable that both images have and lay out differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VariableDifference {
    /// Name.
    pub name: String,
    /// Source file, of a static one.
    pub unit: Option<String>,
    /// Whether it is a per-CPU variable.
    pub per_cpu: bool,
    /// How much the change matters.
    pub effect: Effect,
    /// Types before and after, when its own type changed.
    pub types: Option<[String; 2]>,
    /// The type that changed, or contains one that did, when its own type is written as before.
    pub because_of: Option<String>,
    /// Size in bytes before, when known.
    pub old_size: Option<u64>,
    /// Size in bytes after, when known.
    pub new_size: Option<u64>,
    /// Where it is declared, in the new image; of one whose own type changed.
    pub place: Option<Place>,
}

/// Variables that differ.
pub(super) struct VariablePairs {
    changed: Vec<Pair>,
    /// Names of those that only the old or only the new image has.
    pub(super) only: [Vec<String>; 2],
}

struct Pair {
    name: String,
    unit: Option<String>,
    per_cpu: bool,
    sides: [VariableEntry; 2],
}

/// Names that end in a number, which changes with the code above it (include/linux/compiler.h, `__UNIQUE_ID`).
const COUNTED: &str = "__UNIQUE_ID_";

/// Name, and the source file of a static variable.
type Key<'i> = (&'i str, Option<&'i str>);

/// The first variable of each key; `paths` are those of the units.
fn by_key<'i>(index: &'i Index<'_>, paths: &'i [String]) -> HashMap<Key<'i>, &'i VariableEntry> {
    let mut found = HashMap::with_capacity(index.variables.len());
    let is_named = |variable: &&VariableEntry| !variable.name.starts_with(COUNTED);
    for variable in index.variables.iter().filter(is_named) {
        let unit = (!variable.external).then(|| paths[variable.unit as usize].as_str());
        found.entry((variable.name.as_str(), unit)).or_insert(variable);
    }
    found
}

/// Source files of the units, seen from the folder of them all.
fn paths(index: &Index<'_>) -> Vec<String> {
    let root = root(index);
    let path = |name: &&[u8]| {
        let path = clean_path(&String::from_utf8_lossy(name));
        path.strip_prefix(&root).unwrap_or(&path).to_owned()
    };
    index.names.iter().map(path).collect()
}

/// The folder that all units with an absolute path are in.
fn root(index: &Index<'_>) -> String {
    let names = index.names.iter().map(|name| String::from_utf8_lossy(name)).filter(|name| name.starts_with('/'));
    let common = names.map(|name| name.into_owned()).reduce(|root, name| {
        let same = root.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        root.get(..same).unwrap_or_default().to_owned()
    });
    let common = common.unwrap_or_default();
    common.rfind('/').map_or_else(String::new, |end| common[..=end].to_owned())
}

impl VariablePairs {
    /// Nothing when only some types are wanted.
    pub(super) fn find(indexes: &[Index<'_>; 2], images: [&Image; 2], wanted: &Wanted) -> Self {
        let mut pairs = Self { changed: Vec::new(), only: Default::default() };
        if !wanted.is_all() {
            return pairs;
        }
        let paths = indexes.each_ref().map(paths);
        let (old, new) = rayon::join(|| by_key(&indexes[0], &paths[0]), || by_key(&indexes[1], &paths[1]));
        for (key, &before) in &old {
            let Some(&after) = new.get(key) else {
                pairs.only[0].push(key.0.to_owned());
                continue;
            };
            if (before.text, before.contents) != (after.text, after.contents) || before.size != after.size {
                let sides = [before.clone(), after.clone()];
                let (name, unit) = (key.0.to_owned(), key.1.map(str::to_owned));
                pairs.changed.push(Pair { name, unit, per_cpu: false, sides });
            }
        }
        pairs.only[1].extend(new.keys().filter(|key| !old.contains_key(*key)).map(|(name, _)| (*name).to_owned()));
        pairs.only.iter_mut().for_each(|names| names.sort_unstable());
        pairs.changed.sort_by(|a, b| (&a.name, &a.unit).cmp(&(&b.name, &b.unit)));
        if !pairs.changed.is_empty() {
            let per_cpu = images[1].per_cpu();
            for pair in &mut pairs.changed {
                pair.per_cpu = per_cpu.contains(&pair.name);
            }
        }
        pairs
    }

    /// Positions of what has to be read in full, in the old image (0) or in the new one (1).
    pub(super) fn positions(&self, side: usize) -> Vec<Position> {
        self.changed.iter().filter(|pair| pair.is_rewritten()).map(|pair| position(&pair.sides[side])).collect()
    }

    /// What differs in each pair, by name.
    pub(super) fn differences(&self, full: &[Full; 2]) -> Vec<VariableDifference> {
        let difference = |pair: &Pair| {
            let [old, new] = &pair.sides;
            let read = |side: usize| full[side].variables.get(&position(&pair.sides[side]));
            let (before, after) = (read(0), read(1));
            let types = before.zip(after).map(|(before, after)| [before.type_text.clone(), after.type_text.clone()]);
            let effect = match &types {
                Some([before, after]) if old.size == new.size => text_effect(before, after),
                _ => Effect::Layout,
            };
            VariableDifference {
                name: pair.name.clone(),
                unit: pair.unit.clone(),
                per_cpu: pair.per_cpu,
                effect,
                because_of: new.of.as_ref().filter(|_| types.is_none()).map(ToString::to_string),
                types,
                old_size: old.size,
                new_size: new.size,
                place: after.and_then(|after| after.place.clone()),
            }
        };
        self.changed.iter().map(difference).collect()
    }
}

impl Pair {
    /// Whether its own type changed, and not only what that contains.
    fn is_rewritten(&self) -> bool {
        self.sides[0].text != self.sides[1].text
    }
}

fn position(variable: &VariableEntry) -> Position {
    Position { unit: variable.unit, offset: variable.offset, local: false }
}
