//! What a diff changes in the source.
//!
//! Comes in: the bytes of a diff (git or plain unified form, also several one after the other) and the source tree it
//! is for. Decided: how many leading folders its paths carry, which file each part means, and where each hunk fits;
//! lines may have moved, but their text must be there exactly, at one place only. Goes out: [`FileChange`]s with the
//! text before and after, sorted by path; the tree is only read. Paths in a diff are hostile: nothing outside the tree
//! and nothing behind a symbolic link is ever opened.
//!
//! `diffy` reads the diff. It is applied here, because we must tell where a hunk went and what stood in its way.

mod error;
mod paths;
mod place;

pub use error::DiffError;
pub use place::lines;

use diffy::patch_set::{FileMode, ParseOptions, PatchSet};
use paths::{Names, strip_level};
use place::{place, shown};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What happens to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// It gets another text (or only another mode: then both texts are equal).
    Modified,
    /// It did not exist.
    New,
    /// It goes away.
    Deleted,
    /// It moves, perhaps with another text.
    Renamed {
        /// Where it was, relative to the tree.
        from: PathBuf,
    },
}

/// A changed file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// Path relative to the tree; the new one for a renamed file.
    pub path: PathBuf,
    /// What happens to it.
    pub kind: ChangeKind,
    /// Text before; empty for a new file.
    pub old: Vec<u8>,
    /// Text after; empty for a deleted file.
    pub new: Vec<u8>,
    /// The hunks, where they really are, in order.
    pub hunks: Vec<Hunk>,
}

/// A hunk at the place where it fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hunk {
    /// Lines in the old text with the context, from 0.
    pub old: Range<usize>,
    /// Lines in the new text with the context, from 0.
    pub new: Range<usize>,
    /// How many lines further down than stated in the diff it was found.
    pub moved: isize,
    /// Line of its `@@` in the diff, from 1; absent where several diffs in one changed the same file.
    pub diff_line: Option<usize>,
    /// The changed lines alone, without context.
    pub edits: Vec<Edit>,
}

/// Changed lines next to each other: those of the old text give way to those of the new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Lines of the old text, from 0; empty when lines are only added.
    pub old: Range<usize>,
    /// Lines of the new text, from 0; empty when lines are only removed.
    pub new: Range<usize>,
}

impl FileChange {
    /// Line of the diff, from 1, that brings a line of the new text (counted from 0) or has it as context.
    pub fn diff_line_of(&self, line: usize) -> Option<usize> {
        let hunk = self.hunks.iter().find(|hunk| hunk.new.contains(&line))?;
        // In a diff the lines that go stand before those that come.
        let gone: usize = hunk.edits.iter().filter(|edit| edit.new.start <= line).map(|edit| edit.old.len()).sum();
        Some(hunk.diff_line? + 1 + (line - hunk.new.start) + gone)
    }

    /// Line of the diff, from 1, that takes away a line of the old text (counted from 0) or has it as context.
    pub fn diff_line_of_old(&self, line: usize) -> Option<usize> {
        let hunk = self.hunks.iter().find(|hunk| hunk.old.contains(&line))?;
        let come: usize = hunk.edits.iter().filter(|edit| edit.old.end <= line).map(|edit| edit.new.len()).sum();
        Some(hunk.diff_line? + 1 + (line - hunk.old.start) + come)
    }
}

/// Reads a diff and applies it to files of a source tree, in memory.
///
/// # Errors
/// [`DiffError`] when any part of it cannot be applied exactly; there is no half of a diff.
pub fn read(diff: &[u8], tree: &Path) -> Result<Vec<FileChange>, DiffError> {
    let outline = Outline::of(diff)?;
    let options = if outline.git { ParseOptions::gitdiff() } else { ParseOptions::unidiff() };
    let parts = PatchSet::parse_bytes(diff, options)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| DiffError::Syntax(error.to_string().replace("error parsing patches: ", "")))?;
    let understood: usize =
        parts.iter().filter_map(|part| part.patch().as_text()).map(|patch| patch.hunks().len()).sum();
    if understood != outline.hunk_lines.len() {
        let line = outline.hunk_lines.get(understood).copied().unwrap_or(1);
        return Err(DiffError::LostHunk { line, found: outline.hunk_lines.len(), understood });
    }
    let strip = strip_level(&parts, tree)?;
    let mut files = Files { tree, changes: BTreeMap::new() };
    let mut hunk_lines = outline.hunk_lines.as_slice();
    for part in &parts {
        let names = Names::of(part, strip)?;
        let Some(patch) = part.patch().as_text() else {
            return Err(DiffError::NotText { path: names.shown(), what: "binary file" });
        };
        if [part.old_mode(), part.new_mode()]
            .into_iter()
            .flatten()
            .any(|m| matches!(m, FileMode::Symlink | FileMode::Gitlink))
        {
            return Err(DiffError::NotText { path: names.shown(), what: "symbolic link or submodule" });
        }
        let (mine, rest) = hunk_lines.split_at(patch.hunks().len());
        hunk_lines = rest;
        files.apply(&names, patch.hunks(), mine)?;
    }
    let changes = files.changes.into_iter().map(|(path, change)| FileChange { path, ..change }).collect::<Vec<_>>();
    if changes.is_empty() { Err(DiffError::Empty) } else { Ok(changes) }
}

/// The lines of a diff that start a hunk, and its form.
struct Outline {
    git: bool,
    hunk_lines: Vec<usize>,
}

impl Outline {
    /// A line of a hunk starts with a blank, `+`, `-` or `\`, so a line that starts otherwise says what it is.
    fn of(diff: &[u8]) -> Result<Self, DiffError> {
        let git = lines(diff).iter().any(|line| line.starts_with(b"diff --git "));
        let mut hunk_lines = Vec::new();
        let mut started = false;
        for (index, line) in lines(diff).iter().enumerate() {
            started |= line.starts_with(if git { b"diff --git ".as_slice() } else { b"--- ".as_slice() });
            if !started {
                continue;
            }
            if line.starts_with(b"@@ -") {
                hunk_lines.push(index + 1);
            } else if !git && (line.starts_with(b"Binary files ") || line.starts_with(b"Only in ")) {
                return Err(DiffError::NotText { path: shown(line), what: "binary file, or a file of one side only" });
            }
        }
        if started { Ok(Self { git, hunk_lines }) } else { Err(DiffError::Empty) }
    }
}

/// The files as changed so far.
struct Files<'a> {
    tree: &'a Path,
    changes: BTreeMap<PathBuf, FileChange>,
}

impl Files<'_> {
    fn apply(&mut self, names: &Names, hunks: &[diffy::Hunk<'_, [u8]>], diff_lines: &[usize]) -> Result<(), DiffError> {
        let makes = hunks.len() == 1 && hunks[0].old_range().is_empty();
        // Without `/dev/null` the file of the old name may be absent (`diff -N`, `file.orig`).
        let (old, new) = match (&names.old, &names.new) {
            (Some(old), Some(new)) if !names.told => {
                let name = [new, old].into_iter().find(|name| self.exists(name));
                match name {
                    Some(name) => (Some(name), Some(name)),
                    None if makes => (None, Some(new)),
                    None => return Err(DiffError::Missing { path: names.shown(), tree: self.tree.to_owned() }),
                }
            }
            (old, new) => (old.as_ref(), new.as_ref()),
        };
        let path = new.or(old).expect("a part of a diff has at least one name");
        let text = match old {
            Some(old) => self.text(old)?,
            None if self.exists(path) => return Err(DiffError::Exists { path: path.clone() }),
            None => {
                self.check(path)?;
                Vec::new()
            }
        };
        let (result, placed) = place(path, &text, hunks, diff_lines)?;
        let removed = names.new.is_none() || (!names.told && result.is_empty() && !text.is_empty());
        if removed && !result.is_empty() {
            return Err(DiffError::Leftover { path: path.clone() });
        }
        let moved = matches!((old, new), (Some(old), Some(new)) if old != new);
        if moved && self.exists(path) {
            return Err(DiffError::Exists { path: path.clone() });
        }
        let earlier =
            old.and_then(|old| if names.copy { self.changes.get(old).cloned() } else { self.changes.remove(old) });
        let kind = match (old, removed) {
            (None, _) => ChangeKind::New,
            (Some(_), true) => ChangeKind::Deleted,
            (Some(_), false) if names.copy => ChangeKind::New,
            (Some(old), false) if moved => ChangeKind::Renamed { from: old.clone() },
            (Some(_), false) => ChangeKind::Modified,
        };
        let change = FileChange { path: path.clone(), kind, old: text, new: result, hunks: placed };
        let change = match earlier {
            Some(earlier) => join(earlier, change),
            // A copy is a new file: nothing was there before.
            None if names.copy => FileChange { hunks: whole(&change.new), old: Vec::new(), ..change },
            None => change,
        };
        self.changes.insert(path.clone(), change);
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        match self.changes.get(path) {
            Some(change) => change.kind != ChangeKind::Deleted,
            None => {
                let moved = |change: &FileChange| matches!(&change.kind, ChangeKind::Renamed { from } if from == path);
                !self.changes.values().any(moved) && self.tree.join(path).symlink_metadata().is_ok()
            }
        }
    }

    fn text(&self, path: &Path) -> Result<Vec<u8>, DiffError> {
        if !self.exists(path) {
            return Err(DiffError::Missing { path: path.display().to_string(), tree: self.tree.to_owned() });
        }
        if let Some(change) = self.changes.get(path) {
            return Ok(change.new.clone());
        }
        self.check(path)?;
        let full = self.tree.join(path);
        if !full.is_file() {
            return Err(DiffError::Path { path: path.display().to_string(), why: "it is not a regular file" });
        }
        std::fs::read(&full).map_err(|source| DiffError::Io { path: full, source })
    }

    /// No part of the path may be a symbolic link.
    fn check(&self, path: &Path) -> Result<(), DiffError> {
        let mut full = self.tree.to_owned();
        for part in path.components() {
            full.push(part);
            if full.symlink_metadata().is_ok_and(|meta| meta.file_type().is_symlink()) {
                return Err(DiffError::Path {
                    path: path.display().to_string(),
                    why: "it goes through a symbolic link",
                });
            }
        }
        Ok(())
    }
}

/// Two changes of a file, one after the other, as one.
fn join(first: FileChange, second: FileChange) -> FileChange {
    let patch = diffy::create_patch_bytes(&first.old, &second.new);
    // The texts themselves made the patch, so it fits.
    let hunks = place(&second.path, &first.old, patch.hunks(), &[]).map(|(_, hunks)| hunks).unwrap_or_default();
    let kind = match (first.kind, second.kind) {
        (ChangeKind::New, ChangeKind::Modified | ChangeKind::Renamed { .. }) => ChangeKind::New,
        (ChangeKind::Renamed { from }, ChangeKind::Modified | ChangeKind::Renamed { .. }) => {
            ChangeKind::Renamed { from }
        }
        (ChangeKind::Deleted, ChangeKind::New) => ChangeKind::Modified,
        (_, kind) => kind,
    };
    FileChange { kind, old: first.old, hunks, ..second }
}

/// A new text as one hunk.
fn whole(text: &[u8]) -> Vec<Hunk> {
    let new = 0..lines(text).len();
    vec![Hunk { old: 0..0, new: new.clone(), moved: 0, diff_line: None, edits: vec![Edit { old: 0..0, new }] }]
}
