//! Variables of file scope that two images lay out differently.
//!
//! Comes in: the variables of both images. Decided: which is which: an external one by its name, a static one by its name and
//! source file; whether its own type changed, or what its type contains. Goes out: [`VariableDifference`].

use super::Wanted;
use super::digest::Digest;
use super::full::Full;
use super::index::{Index, Map, Position, VariableEntry};
use super::source::Image;
use crate::dwarf_layout::{Place, clean_path};
use crate::layout_diff::{Effect, text_effect};
use serde::Serialize;

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
    /// The type that the new one contains.
    because_of: Option<String>,
    sides: [VariableEntry; 2],
}

/// Names that end in a number, which changes with the code above it (include/linux/compiler.h, `__UNIQUE_ID`).
const COUNTED: &[u8] = b"__UNIQUE_ID_";

/// The first variable of each name, of static ones in each source file; `paths` are those of the units. They are found by a
/// digest of both, as types are.
fn by_key<'i>(index: &'i Index<'_>, paths: &[String], start: Digest) -> Map<Digest, &'i VariableEntry> {
    let files: Vec<u64> = paths.iter().map(|path| start.with_bytes(path.as_bytes()).0).collect();
    let mut found = Map::with_capacity_and_hasher(index.variables.len(), Default::default());
    for variable in &index.variables {
        if index.texts.text(variable.name).starts_with(COUNTED) {
            continue;
        }
        let file = if variable.external { 0 } else { files[variable.unit as usize] };
        let first = found.entry(start.with_two(variable.name_digest, file)).or_insert(variable);
        if (variable.unit, variable.offset) < (first.unit, first.offset) {
            *first = variable;
        }
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
    pub(super) fn find(indexes: &[Index<'_>; 2], images: [&Image; 2], wanted: &Wanted, start: Digest) -> Self {
        let mut pairs = Self { changed: Vec::new(), only: Default::default() };
        if !wanted.is_all() {
            return pairs;
        }
        let paths = indexes.each_ref().map(paths);
        let (old, new) =
            rayon::join(|| by_key(&indexes[0], &paths[0], start), || by_key(&indexes[1], &paths[1], start));
        for (key, &before) in &old {
            let Some(&after) = new.get(key) else {
                pairs.only[0].push(indexes[0].texts.string(before.name));
                continue;
            };
            if (before.text, before.contents) != (after.text, after.contents) || before.size != after.size {
                let sides = [before.clone(), after.clone()];
                let because_of = after.of.map(|name| name.text(indexes[1].texts));
                let name = indexes[0].texts.string(before.name);
                let unit = (!before.external).then(|| paths[0][before.unit as usize].clone());
                pairs.changed.push(Pair { name, unit, per_cpu: false, because_of, sides });
            }
        }
        let added = new.iter().filter(|(key, _)| !old.contains_key(key));
        pairs.only[1].extend(added.map(|(_, after)| indexes[1].texts.string(after.name)));
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
                because_of: pair.because_of.clone().filter(|_| types.is_none()),
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
