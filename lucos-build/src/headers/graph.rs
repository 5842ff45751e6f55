//! Which files take in which.
//!
//! Comes in: the kernel's units and the folders in which headers are looked for. Decided: which files each `#include`
//! may mean; conditions are not evaluated, so there are more edges than any compiler follows, and none less. Goes out:
//! [`Graph`], with the text of every file.

use super::paste::{Part, Pasting, Pattern, fits};
use crate::kbuild::listing::Listing;
use diff_analyzer::declarations::lex::{directive, in_word, words};
use rayon::prelude::*;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Index of a file in its [`Graph`].
pub type FileId = usize;

/// A file of the kernel's source or of the build folder.
#[derive(Debug)]
pub struct File {
    /// Path relative to the source tree; one of the build folder is absolute.
    pub name: PathBuf,
    /// Its text.
    pub text: Vec<u8>,
    /// Something it includes is not there yet: the build makes it.
    pub incomplete: bool,
    includes: Vec<FileId>,
}

/// Files and who includes them.
#[derive(Debug, Default)]
pub struct Graph {
    files: Vec<File>,
    by_path: HashMap<PathBuf, Option<FileId>>,
    by_name: HashMap<PathBuf, FileId>,
    included_by: Vec<Vec<FileId>>,
    macros: HashSet<Vec<u8>>,
    pasted: HashMap<Vec<u8>, Vec<Maker>>,
    /// Pasted names of which only parts are known.
    vague: Vec<(Pattern, Maker)>,
}

/// What makes a name out of parts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Maker {
    /// Code in a file.
    File(FileId),
    /// The use of a macro.
    Macro(Vec<u8>),
}

/// What the directives of a file say.
#[derive(Default)]
struct Scan {
    includes: Vec<Include>,
    macros: Vec<Vec<u8>>,
}

/// An `#include` as written.
#[derive(Debug, PartialEq, Eq)]
enum Include {
    Quoted(PathBuf),
    Angled(PathBuf),
    /// By the expansion of a macro.
    Computed,
}

impl Graph {
    /// Follows the includes of all units.
    pub fn build(source: &Path, build: &Path, listing: &Listing, units: impl IntoIterator<Item = PathBuf>) -> Self {
        let absolute = |folder: &PathBuf| if folder.is_absolute() { folder.clone() } else { build.join(folder) };
        let folders: Vec<PathBuf> = listing.folders.iter().map(absolute).collect();
        let more: Vec<PathBuf> = listing.more_folders.iter().map(absolute).collect();
        let mut graph = Self::default();
        let mut angled: HashMap<PathBuf, Vec<PathBuf>> = HashMap::new();
        let mut next: BTreeSet<PathBuf> =
            units.into_iter().flat_map(|unit| [source.join(&unit), build.join(&unit)]).collect();
        let forced: Vec<PathBuf> = listing.forced.iter().map(absolute).collect();
        next.extend(forced.iter().cloned());
        let mut pending: Vec<(FileId, Vec<PathBuf>)> = Vec::new();
        while !next.is_empty() {
            let read: Vec<(PathBuf, Vec<u8>, Scan)> = std::mem::take(&mut next)
                .into_par_iter()
                .filter_map(|path| {
                    let text = std::fs::read(&path).ok()?;
                    let scan = Scan::of(&text);
                    Some((path, text, scan))
                })
                .collect();
            for (path, text, scan) in read {
                graph.macros.extend(scan.macros);
                let (mut targets, mut incomplete) = (Vec::new(), false);
                for include in scan.includes {
                    let found = match &include {
                        Include::Computed => Vec::new(),
                        Include::Quoted(name) => {
                            let beside = clean(&path.parent().unwrap_or(source).join(name));
                            if beside.is_file() {
                                vec![beside]
                            } else {
                                named(name, &folders, &more, &mut angled).clone()
                            }
                        }
                        Include::Angled(name) => named(name, &folders, &more, &mut angled).clone(),
                    };
                    incomplete |= found.is_empty() && include != Include::Computed;
                    targets.extend(found);
                }
                let name = path.strip_prefix(source).unwrap_or(&path).to_owned();
                let id = graph.files.len();
                graph.by_path.insert(path.clone(), Some(id));
                graph.by_name.insert(name.clone(), id);
                graph.files.push(File { name, text, incomplete, includes: Vec::new() });
                next.extend(targets.iter().filter(|target| !graph.by_path.contains_key(*target)).cloned());
                pending.push((id, targets));
            }
            // What is in the same round already must not be read again.
            next.retain(|path| !graph.by_path.contains_key(path));
        }
        graph.included_by = vec![Vec::new(); graph.files.len()];
        for (id, targets) in pending {
            let mut includes: Vec<FileId> =
                targets.iter().filter_map(|path| graph.by_path.get(path).copied().flatten()).collect();
            includes.sort_unstable();
            includes.dedup();
            for &include in &includes {
                graph.included_by[include].push(id);
            }
            graph.files[id].includes = includes;
        }
        // Every unit takes in the forced headers.
        let forced: Vec<FileId> = forced.iter().filter_map(|path| graph.by_path.get(path).copied().flatten()).collect();
        for id in 0..graph.files.len() {
            let is_unit =
                graph.files[id].name.extension().is_some_and(|extension| extension == "c" || extension == "S");
            for &header in forced.iter().filter(|_| is_unit) {
                graph.included_by[header].push(id);
                graph.files[id].includes.push(header);
            }
        }
        graph.paste();
        graph
    }

    /// Finds the names that are pasted together.
    fn paste(&mut self) {
        let definitions: Vec<&[u8]> = (self.files.par_iter())
            .flat_map_iter(|file| {
                directives(&file.text).filter_map(|line| {
                    let (name, rest) = directive(line);
                    (name == b"define").then_some(rest)
                })
            })
            .collect();
        let pasting = Pasting::of(&definitions);
        let mut made: Vec<(Pattern, Maker)> = (self.files.par_iter().enumerate())
            .flat_map_iter(|(id, file)| {
                pasting.in_text(&file.text).into_iter().map(move |pattern| (pattern, Maker::File(id)))
            })
            .collect();
        made.extend(
            pasting.fixed().filter_map(|pasted| Some((pasted.pattern.clone(), Maker::Macro(pasted.by.clone()?)))),
        );
        for (mut pattern, maker) in made {
            match pattern.as_mut_slice() {
                [] => {}
                [Part::Fixed(name)] => self.pasted.entry(std::mem::take(name)).or_default().push(maker),
                _ => self.vague.push((pattern, maker)),
            }
        }
    }

    /// What makes a name by pasting it together.
    pub fn makers<'s>(&'s self, name: &'s [u8]) -> impl Iterator<Item = &'s Maker> {
        let vague = self.vague.iter().filter(move |(pattern, _)| fits(pattern, name)).map(|(_, maker)| maker);
        self.pasted.get(name).into_iter().flatten().chain(vague)
    }

    /// Number of pasted names, known and vague.
    pub fn pasted(&self) -> (usize, usize) {
        (self.pasted.len(), self.vague.len())
    }

    /// All files.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// Whether a name is a macro with parameters somewhere.
    pub fn is_macro(&self, name: &[u8]) -> bool {
        self.macros.contains(name)
    }

    /// A file by its name.
    pub fn find(&self, name: &Path) -> Option<FileId> {
        self.by_name.get(name).copied()
    }

    /// All files that some files take in, and these themselves.
    pub fn parts(&self, of: impl IntoIterator<Item = FileId>) -> BTreeSet<FileId> {
        let mut next: Vec<FileId> = of.into_iter().collect();
        let mut parts: BTreeSet<FileId> = next.iter().copied().collect();
        while let Some(file) = next.pop() {
            next.extend(self.files[file].includes.iter().copied().filter(|&part| parts.insert(part)));
        }
        parts
    }

    /// All files that take in one of some files, and these themselves.
    pub fn users(&self, of: impl IntoIterator<Item = FileId>) -> BTreeSet<FileId> {
        let mut next: Vec<FileId> = of.into_iter().collect();
        let mut users: BTreeSet<FileId> = next.iter().copied().collect();
        while let Some(file) = next.pop() {
            next.extend(self.included_by[file].iter().copied().filter(|&user| users.insert(user)));
        }
        users
    }
}

/// Where a header of a name may be: the first folder that every unit looks into, or any of the others.
fn named<'m>(
    name: &Path,
    folders: &[PathBuf],
    more: &[PathBuf],
    known: &'m mut HashMap<PathBuf, Vec<PathBuf>>,
) -> &'m Vec<PathBuf> {
    known.entry(name.to_owned()).or_insert_with(|| {
        let there = |folder: &PathBuf| Some(clean(&folder.join(name))).filter(|path| path.is_file());
        // `#include_next` and folders that only some units have may pass over the first one.
        let mut found: Vec<PathBuf> = folders.iter().filter_map(there).collect();
        if found.is_empty() {
            found = more.iter().filter_map(there).collect();
        }
        found
    })
}

/// A path without `.` and `..`.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => drop(clean.pop()),
            std::path::Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}

/// Directives of a text, as whole logical lines; those in comments too.
pub fn directives(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < text.len() {
            let start = at;
            let mut end = line_end(text, at);
            at = end + 1;
            let blank = text[start..end].iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(end - start);
            if text.get(start + blank) != Some(&b'#') {
                continue;
            }
            while end < text.len() && text[start..end].ends_with(b"\\") {
                end = line_end(text, end + 1);
            }
            at = end + 1;
            return Some(&text[start + blank..end]);
        }
        None
    })
}

fn line_end(text: &[u8], at: usize) -> usize {
    let at = at.min(text.len());
    text[at..].iter().position(|&byte| byte == b'\n').map_or(text.len(), |len| at + len)
}

impl Scan {
    fn of(text: &[u8]) -> Self {
        let mut scan = Self::default();
        for line in directives(text) {
            let (name, rest) = directive(line);
            match name {
                b"include" | b"include_next" => scan.includes.extend(include(rest.trim_ascii())),
                b"define" => {
                    let Some(name) = words(rest).next() else { continue };
                    let start = name.as_ptr() as usize - rest.as_ptr() as usize + name.len();
                    if rest.get(start) == Some(&b'(') {
                        scan.macros.push(name.to_owned());
                    }
                }
                _ => {}
            }
        }
        scan
    }
}

fn include(rest: &[u8]) -> Option<Include> {
    let until = |close: u8| rest[1..].iter().position(|&byte| byte == close).map(|len| &rest[1..1 + len]);
    let path = |bytes: &[u8]| PathBuf::from(String::from_utf8_lossy(bytes).into_owned());
    match rest.first() {
        Some(b'"') => until(b'"').map(|name| Include::Quoted(path(name))),
        Some(b'<') => until(b'>').map(|name| Include::Angled(path(name))),
        Some(&byte) if in_word(byte) => Some(Include::Computed),
        _ => None,
    }
}
