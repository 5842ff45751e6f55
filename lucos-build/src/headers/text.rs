//! Which units can be concerned, by the text of all files they may take in.
//!
//! Comes in: the graph of includes, the changed headers before and after. Decided: which names change their meaning, and
//! which files mention them, or names that depend on them, outside of the changed declarations themselves. Goes out:
//! [`Reach`]. A unit that it leaves out cannot be compiled to something else.

use super::brought::brought;
use super::graph::{FileId, Graph, Maker};
use diff_analyzer::declarations::items::{ItemKind, Items, items};
use diff_analyzer::declarations::lex::{tokens, words};
use diff_analyzer::declarations::reach::{Change, Names, Passes, changes, passes};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// So many names mean that nearly everything depends on what changes; the search ends.
const MANY: usize = 1500;

/// A changed header.
pub struct Header<'a> {
    /// In the graph.
    pub file: FileId,
    /// Its text before.
    pub old: &'a [u8],
    /// Its text after.
    pub new: &'a [u8],
}

/// How far a change reaches, by text.
#[derive(Debug, Default)]
pub struct Reach {
    /// Headers of which something else than comments changes.
    pub changed: BTreeSet<FileId>,
    /// Files that mention something that changes; all that takes in one of them, and a changed header, may change.
    pub hits: BTreeSet<FileId>,
    /// Names whose meaning changes, directly or through others.
    pub names: BTreeSet<String>,
    /// Why some header had to count as a whole.
    pub whole: Vec<String>,
}

impl Reach {
    /// Files that may change: they take in a changed header and a hit.
    pub fn files(&self, graph: &Graph) -> BTreeSet<FileId> {
        let see = graph.users(self.changed.iter().copied());
        let hit = graph.users(self.hits.iter().copied());
        see.intersection(&hit).copied().collect()
    }
}

/// Whether two texts differ in comments and blanks only.
pub fn same_items(old: &[u8], new: &[u8]) -> bool {
    let (old, new) = (tokens(old), tokens(new));
    changes(&items(&old, &|_| false), &items(&new, &|_| false)).is_empty()
}

/// Follows a change through the text of all files. Files of `apart` are looked at elsewhere.
pub fn reach(graph: &Graph, headers: &[Header<'_>], mut apart: BTreeSet<FileId>) -> Reach {
    let mut reach = Reach::default();
    let is_macro = |name: &[u8]| graph.is_macro(name);
    let texts: Vec<_> = headers.iter().map(|header| (tokens(header.old), tokens(header.new))).collect();
    let lists: Vec<(Items<'_>, Items<'_>)> =
        texts.iter().map(|(old, new)| (items(old, &is_macro), items(new, &is_macro))).collect();
    let found: BTreeMap<FileId, (usize, Change<'_>)> = (headers.iter().zip(&lists).enumerate())
        .map(|(index, (header, (old, new)))| (header.file, (index, changes(old, new))))
        .collect();
    let of_diff: BTreeSet<FileId> = found.keys().copied().collect();
    let mut names: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
    for (&file, (_, change)) in found.iter().filter(|(_, (_, change))| !change.is_empty()) {
        reach.changed.insert(file);
        names.extend(change.names.iter().map(|(name, &is_macro)| (name.to_vec(), is_macro)));
        let new = &lists[found[&file].0].1;
        let brought = match change.anything {
            Some(why) => Err(why),
            None => brought(graph, file, new, &change.includes),
        };
        match brought {
            Ok(brought) => {
                names.extend(brought.names);
                // All that they declare is sought, so that looking for names in them tells nothing more.
                apart.extend(brought.files.difference(&of_diff));
            }
            Err(why) => {
                reach.whole.push(format!("{}: {why}", graph.name(file).display()));
                reach.hits.insert(file);
            }
        }
    }
    let users = graph.users(reach.changed.iter().copied());
    let parts = graph.parts(users);
    let mut frontier = names.clone();
    while !frontier.is_empty() {
        if names.len() > MANY {
            reach.whole.push(format!("more than {MANY} names depend on it"));
            reach.hits.extend(reach.changed.iter().copied());
            break;
        }
        let sought: Names<'_> = frontier.iter().map(|(name, &is_macro)| (name.as_slice(), is_macro)).collect();
        let sieve = Sieve::new(sought.keys().copied());
        let known = &reach.hits;
        let passed: Vec<(FileId, Passed)> = parts
            .par_iter()
            .copied()
            .filter(|file| !known.contains(file) && !apart.contains(file))
            .filter_map(|file| {
                let of_diff = found.get(&file);
                let text = graph.files()[file].text();
                let new = of_diff.map(|(index, _)| headers[*index].new).unwrap_or_default();
                if !sieve.finds(text, &sought) && !sieve.finds(new, &sought) {
                    return None;
                }
                if !is_header(graph.name(file)) {
                    return Some((file, Passed { hit: true, names: Vec::new() }));
                }
                let passed = match of_diff {
                    None => {
                        let tokens = tokens(text);
                        pass(&items(&tokens, &is_macro), &BTreeSet::new(), &sought)
                    }
                    Some((index, change)) => {
                        let (old, new) = &lists[*index];
                        pass(old, &change.old, &sought).and(pass(new, &change.new, &sought))
                    }
                };
                Some((file, passed))
            })
            .collect();
        let makers: Vec<Maker> = frontier
            .par_iter()
            .flat_map_iter(|(name, _)| {
                std::str::from_utf8(name).into_iter().flat_map(|name| graph.makers(name)).cloned()
            })
            .collect();
        frontier.clear();
        for maker in makers {
            match maker {
                Maker::File(file) => drop(reach.hits.insert(file)),
                Maker::Macro(name) => {
                    let name = name.into_bytes();
                    if names.insert(name.clone(), true).is_none() {
                        frontier.insert(name, true);
                    }
                }
            }
        }
        for (file, passed) in passed {
            if passed.hit {
                reach.hits.insert(file);
            }
            for (name, is_macro) in passed.names {
                if names.insert(name.clone(), is_macro).is_none() {
                    frontier.insert(name, is_macro);
                }
            }
        }
    }
    reach.names = names.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    reach
}

struct Passed {
    hit: bool,
    names: Vec<(Vec<u8>, bool)>,
}

impl Passed {
    fn and(mut self, other: Self) -> Self {
        self.hit |= other.hit;
        self.names.extend(other.names);
        self
    }
}

/// What the items of a header, without those that changed, make of changed names.
fn pass(items: &Items<'_>, changed: &BTreeSet<usize>, names: &Names<'_>) -> Passed {
    let mut passed = Passed { hit: false, names: Vec::new() };
    for (index, item) in items.list.iter().enumerate().filter(|(index, _)| !changed.contains(index)) {
        let _ = index;
        match passes(items, item, names) {
            Passes::Nothing => {}
            Passes::Anything => passed.hit = true,
            Passes::ItsNames => {
                passed.names.extend(item.names.iter().map(|name| (name.to_vec(), item.kind == ItemKind::Macro)));
            }
        }
    }
    passed
}

fn is_header(name: &Path) -> bool {
    name.extension().is_some_and(|extension| extension == "h")
}

/// Rejects nearly all words by their length and first byte.
struct Sieve {
    shapes: Vec<bool>,
}

impl Sieve {
    fn new<'n>(names: impl Iterator<Item = &'n [u8]>) -> Self {
        let mut shapes = vec![false; 256 * 64];
        for name in names {
            shapes[Self::shape(name)] = true;
        }
        Self { shapes }
    }

    fn shape(name: &[u8]) -> usize {
        let last = name.last().copied().unwrap_or(0);
        usize::from(last) * 64 + name.len().min(63)
    }

    fn finds(&self, text: &[u8], names: &Names<'_>) -> bool {
        words(text).any(|word| self.shapes[Self::shape(word)] && names.contains_key(word))
    }
}
