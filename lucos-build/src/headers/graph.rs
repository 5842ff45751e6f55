//! Which files take in which.
//!
//! Comes in: the kernel's sources, read before ([`super::scan`]) and kept in the build folder, or read now. Decided:
//! whether what was kept still holds: every file as it was, by size and time of its last change. Goes out: [`Graph`].
//! Conditions are not evaluated, so there are more edges than any compiler follows, and none less.

use super::paste::{Pattern, fits};
use super::scan;
use crate::kbuild::listing::Listing;
use crate::kbuild::overlay::clean;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Index of a file in its [`Graph`].
pub type FileId = usize;

/// Changes when the same sources are to be read otherwise.
const RECIPE: u32 = 8;

/// What a graph is made from.
pub struct Roots<'a> {
    /// The source tree.
    pub source: &'a Path,
    /// The build folder.
    pub build: &'a Path,
    /// Folders of headers.
    pub listing: &'a Listing,
    /// Units.
    pub units: &'a BTreeSet<PathBuf>,
}

/// A file of the kernel's source or of the build folder.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    /// Something it includes is not there: the build makes it, or another configuration has it.
    pub incomplete: bool,
    /// What it includes.
    pub(super) includes: Vec<FileId>,
    /// What it includes, in the order of the text, and whether whatever the conditions are.
    pub(super) ordered: Vec<(FileId, bool)>,
    /// A second inclusion does nothing: all of its text stands in `#ifndef NAME`, `#define NAME`.
    pub(super) guarded: bool,
    size: u64,
    modified_ns: i64,
    #[serde(skip)]
    text: OnceLock<Vec<u8>>,
}

impl File {
    /// A file that can be read.
    pub(super) fn open(path: PathBuf) -> Option<Self> {
        let (size, modified_ns) = stamp(&path)?;
        let text = std::fs::read(&path).ok()?;
        Some(Self { path, size, modified_ns, text: OnceLock::from(text), ..Self::default() })
    }

    /// Its text.
    pub fn text(&self) -> &[u8] {
        // It was there when its stamp was taken; without it nothing compiles.
        self.text.get_or_init(|| std::fs::read(&self.path).unwrap_or_default())
    }
}

fn stamp(path: &Path) -> Option<(u64, i64)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.len(), meta.mtime().wrapping_mul(1_000_000_000).wrapping_add(meta.mtime_nsec())))
}

/// What makes a name out of parts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Maker {
    /// Code in a file.
    File(FileId),
    /// The use of a macro.
    Macro(String),
}

/// Files and who includes them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Graph {
    recipe: u32,
    source: PathBuf,
    build: PathBuf,
    units: usize,
    pub(super) folders: Vec<PathBuf>,
    pub(super) more_folders: Vec<PathBuf>,
    /// Headers that every unit takes in first.
    pub(super) forced: Vec<FileId>,
    pub(super) files: Vec<File>,
    pub(super) macros: HashSet<String>,
    pub(super) pasted: HashMap<String, Vec<Maker>>,
    /// Pasted names of which only parts are known.
    pub(super) vague: Vec<(Pattern, Maker)>,
    #[serde(skip)]
    by_path: HashMap<PathBuf, FileId>,
    #[serde(skip)]
    included_by: Vec<Vec<FileId>>,
}

impl Graph {
    /// The graph that is kept in a file, or a new one, which is kept there; a new one in any case when it is to be `fresh`.
    pub fn open(roots: &Roots<'_>, kept: &Path, fresh: bool) -> Self {
        let known = std::fs::read(kept).ok().filter(|_| !fresh);
        let known = known.and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        let mut graph = known.filter(|graph| graph.holds(roots)).unwrap_or_else(|| {
            let graph = Self {
                recipe: RECIPE,
                source: roots.source.to_owned(),
                build: roots.build.to_owned(),
                units: roots.units.len(),
                ..scan::read(roots)
            };
            // A cache: without it the sources are read again.
            let _ = graph.keep(kept);
            graph
        });
        graph.by_path = graph.files.iter().enumerate().map(|(id, file)| (file.path.clone(), id)).collect();
        graph.included_by = vec![Vec::new(); graph.files.len()];
        for (id, file) in graph.files.iter().enumerate() {
            for &include in file.includes.iter().filter(|&&include| include < graph.files.len()) {
                graph.included_by[include].push(id);
            }
        }
        graph
    }

    fn holds(&self, roots: &Roots<'_>) -> bool {
        let same = |file: &File| stamp(&file.path) == Some((file.size, file.modified_ns));
        self.recipe == RECIPE
            && (self.source.as_path(), self.build.as_path()) == (roots.source, roots.build)
            && self.units == roots.units.len()
            && self.files.par_iter().all(same)
    }

    fn keep(&self, path: &Path) -> std::io::Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut aside = std::io::BufWriter::new(tempfile::NamedTempFile::new_in(folder)?);
        serde_json::to_writer(&mut aside, self)?;
        aside.into_inner().map_err(std::io::IntoInnerError::into_error)?.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// What makes a name by pasting it together.
    pub fn makers<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s Maker> {
        let vague = self.vague.iter().filter(move |(pattern, _)| fits(pattern, name.as_bytes()));
        self.pasted.get(name).into_iter().flatten().chain(vague.map(|(_, maker)| maker))
    }

    /// All files.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// Path of a file relative to the source tree; one of the build folder is absolute.
    pub fn name(&self, file: FileId) -> &Path {
        let path = &self.files[file].path;
        path.strip_prefix(&self.source).unwrap_or(path)
    }

    /// Whether a name is a macro with parameters somewhere.
    pub fn is_macro(&self, name: &[u8]) -> bool {
        std::str::from_utf8(name).is_ok_and(|name| self.macros.contains(name))
    }

    /// A file by its path relative to the source tree, or to the build folder for a generated one.
    pub fn find(&self, name: &Path) -> Option<FileId> {
        let at = |root: &Path| self.by_path.get(&clean(&root.join(name))).copied();
        at(&self.source).or_else(|| at(&self.build))
    }

    /// The file at a path.
    pub fn at(&self, path: &Path) -> Option<FileId> {
        self.by_path.get(path).copied()
    }

    /// Files that every unit has taken in completely when it comes to what a header includes behind `earlier` of its own
    /// includes, and of which another inclusion does nothing.
    ///
    /// A file that takes the header in may be under way only, and does not count; nor then can what it includes be.
    pub fn before(&self, header: FileId, earlier: &[FileId]) -> BTreeSet<FileId> {
        let above = self.users([header]);
        let own = self.files[header].ordered.iter().filter(|(id, certain)| *certain && earlier.contains(id));
        let entered = self.entered(header, 1).into_iter().chain(own.map(|(id, _)| *id));
        let mut pending: Vec<FileId> = entered.filter(|id| !above.contains(id)).collect();
        let mut found: BTreeSet<FileId> = pending.iter().copied().collect();
        while let Some(file) = pending.pop() {
            let certain = self.files[file].ordered.iter().filter(|(_, certain)| *certain).map(|(id, _)| *id);
            pending.extend(certain.filter(|&id| found.insert(id)));
        }
        found.retain(|&file| self.files[file].guarded);
        found
    }

    /// Files that every unit has come to before a header, looking `depth` steps of inclusion back.
    fn entered(&self, header: FileId, depth: usize) -> BTreeSet<FileId> {
        let mut common: Option<BTreeSet<FileId>> = None;
        for &user in &self.included_by[header] {
            let ordered = &self.files[user].ordered;
            // It names another file, or names it in a comment.
            let Some(at) = ordered.iter().position(|(id, _)| *id == header) else { continue };
            let mut entered: BTreeSet<FileId> = self.forced.iter().copied().collect();
            if depth > 0 && self.files[user].path.extension().is_some_and(|extension| extension == "h") {
                entered.extend(self.entered(user, depth - 1));
            }
            entered.extend(ordered[..at].iter().filter(|(_, certain)| *certain).map(|(id, _)| *id));
            common = Some(match common {
                Some(common) => common.intersection(&entered).copied().collect(),
                None => entered,
            });
        }
        common.unwrap_or_default()
    }

    /// All files that some files take in, and these themselves.
    pub fn parts(&self, of: impl IntoIterator<Item = FileId>) -> BTreeSet<FileId> {
        reached(of, |file| self.files[file].includes.iter().copied())
    }

    /// The same, without `there` and what only these take in.
    pub fn parts_without(&self, of: impl IntoIterator<Item = FileId>, there: &BTreeSet<FileId>) -> BTreeSet<FileId> {
        let is_new = |file: &FileId| !there.contains(file);
        reached(of.into_iter().filter(is_new), |file| self.files[file].includes.iter().copied().filter(is_new))
    }

    /// All files that take in one of some files, and these themselves.
    pub fn users(&self, of: impl IntoIterator<Item = FileId>) -> BTreeSet<FileId> {
        reached(of, |file| self.included_by[file].iter().copied())
    }
}

fn reached<I>(from: impl IntoIterator<Item = FileId>, next: impl Fn(FileId) -> I) -> BTreeSet<FileId>
where
    I: Iterator<Item = FileId>,
{
    let mut pending: Vec<FileId> = from.into_iter().collect();
    let mut found: BTreeSet<FileId> = pending.iter().copied().collect();
    while let Some(file) = pending.pop() {
        pending.extend(next(file).filter(|&file| found.insert(file)));
    }
    found
}
