//! What a diff changes in the source.
//!
//! Comes in: the bytes of a diff (git or plain unified form, also several one after the other) and the source tree it
//! is for. Decided: how many leading folders its paths carry, which file each part means, and where each hunk fits;
//! lines may have moved, but their text must be there exactly, at one place only. Goes out: [`FileChange`]s with the
//! text before and after, sorted by path; the tree is only read. Paths in a diff are hostile: nothing outside the tree
//! and nothing behind a symbolic link is ever opened.
//!
//! `diffy` reads the diff. It is applied here, because we must tell where a hunk went and what stood in its way.

use diffy::Line;
use diffy::patch_set::{FileMode, FileOperation, FilePatch, ParseOptions, PatchSet};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

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
}

/// Why a diff cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// Nothing in it.
    #[error(
        "the diff changes no file; expected `--- a/FILE`, `+++ b/FILE` and hunks, as git diff and diff -u write them"
    )]
    Empty,
    /// Not in unified form.
    #[error("the diff cannot be read: {0}")]
    Syntax(String),
    /// A hunk that would be left out.
    #[error("line {line} of the diff: a hunk is not part of any file (found {found} hunks, understood {understood})")]
    LostHunk {
        /// Line in the diff.
        line: usize,
        /// Hunk headers seen.
        found: usize,
        /// Hunks understood.
        understood: usize,
    },
    /// Not text.
    #[error("{path}: the diff changes it in a way that unified form cannot say ({what}); leave it out of the diff")]
    NotText {
        /// Path or line in the diff.
        path: String,
        /// What is said about it.
        what: &'static str,
    },
    /// A path that leads out of the tree.
    #[error("{path}: refused, because {why}; paths in a diff must be plain and stay in the source tree")]
    Path {
        /// Path in the diff.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A changed file is not there.
    #[error("{path}: not in the source tree {}; is the diff for another kernel, or made in another folder?", tree.display())]
    Missing {
        /// Path in the diff.
        path: String,
        /// The tree.
        tree: PathBuf,
    },
    /// A new file is there.
    #[error("{}: the diff makes it, but it is in the source tree already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A deleted file has more text than the diff removes.
    #[error("{}: the diff deletes it, but removes only a part of its text", path.display())]
    Leftover {
        /// The file.
        path: PathBuf,
    },
    /// A hunk has no place.
    #[error(
        "{}: hunk {hunk} (line {diff_line} of the diff) does not apply: at line {line} the diff expects `{expected}`, \
         the source has `{found}`{}", path.display(), if *applied { "; the change is in the source already" } else { "" }
    )]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Number of the hunk in this file, from 1.
        hunk: usize,
        /// Line of its `@@` in the diff, from 1.
        diff_line: usize,
        /// Line in the file, from 1.
        line: usize,
        /// Text in the diff.
        expected: String,
        /// Text in the file.
        found: String,
        /// The lines that the hunk makes are there.
        applied: bool,
    },
    /// A hunk has several places and is at none of them by its number.
    #[error(
        "{}: hunk {hunk} (line {diff_line} of the diff) fits nowhere near its line number, and its text is at lines \
         {places:?}; make the diff again for this source, or with more context", path.display()
    )]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// Number of the hunk in this file, from 1.
        hunk: usize,
        /// Line of its `@@` in the diff, from 1.
        diff_line: usize,
        /// Lines at which it would fit, from 1.
        places: Vec<usize>,
    },
    /// A source file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl DiffError {
    /// The rule that is broken, for reports.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Empty => "diff-empty",
            Self::Syntax(_) | Self::LostHunk { .. } => "diff-syntax",
            Self::NotText { .. } => "diff-not-text",
            Self::Path { .. } => "diff-path",
            Self::Missing { .. } | Self::Exists { .. } | Self::Leftover { .. } | Self::Mismatch { .. } => {
                "diff-does-not-apply"
            }
            Self::Ambiguous { .. } => "diff-ambiguous",
            Self::Io { .. } => "source-unreadable",
        }
    }

    /// File and line (from 1) it is about.
    pub fn place(&self) -> (Option<String>, Option<usize>) {
        match self {
            Self::Mismatch { path, line, .. } => (Some(path.display().to_string()), Some(*line)),
            Self::Ambiguous { path, .. } | Self::Exists { path } | Self::Leftover { path } | Self::Io { path, .. } => {
                (Some(path.display().to_string()), None)
            }
            Self::NotText { path, .. } | Self::Path { path, .. } | Self::Missing { path, .. } => {
                (Some(path.clone()), None)
            }
            Self::Empty | Self::Syntax(_) | Self::LostHunk { .. } => (None, None),
        }
    }

    /// Line of the diff it is about, from 1.
    pub fn diff_line(&self) -> Option<usize> {
        match self {
            Self::Mismatch { diff_line, .. } | Self::Ambiguous { diff_line, .. } => Some(*diff_line),
            Self::LostHunk { line, .. } => Some(*line),
            _ => None,
        }
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

/// The files that a part of a diff is about, as safe relative paths.
struct Names {
    old: Option<PathBuf>,
    new: Option<PathBuf>,
    /// The old file stays (a copy).
    copy: bool,
    /// The diff says itself that the file is new, deleted or renamed; otherwise the old name may be a stand-in.
    told: bool,
}

impl Names {
    fn of(part: &FilePatch<'_, [u8]>, strip: usize) -> Result<Self, DiffError> {
        // `rename from` and its kin never carry a prefix (git-diff, "generate patch text with -p").
        let (old, new, copy, told) = match part.operation() {
            FileOperation::Delete(path) => (Some(safe(path, strip)?), None, false, true),
            FileOperation::Create(path) => (None, Some(safe(path, strip)?), false, true),
            FileOperation::Modify { original, modified } => {
                (Some(safe(original, strip)?), Some(safe(modified, strip)?), false, false)
            }
            FileOperation::Rename { from, to } => (Some(safe(from, 0)?), Some(safe(to, 0)?), false, true),
            FileOperation::Copy { from, to } => (Some(safe(from, 0)?), Some(safe(to, 0)?), true, true),
        };
        Ok(Self { old, new, copy, told })
    }

    fn shown(&self) -> String {
        self.new.as_ref().or(self.old.as_ref()).map(|path| path.display().to_string()).unwrap_or_default()
    }
}

/// Leading folders that the paths carry: 1 (`a/`, `b/`, as usual) or 0, whichever finds the files in the tree.
fn strip_level(parts: &[FilePatch<'_, [u8]>], tree: &Path) -> Result<usize, DiffError> {
    let mut best = (1, 0);
    for strip in [1, 0] {
        let mut known = 0;
        for part in parts {
            let names = Names::of(part, strip)?;
            let there = |path: &Option<PathBuf>| path.as_ref().is_some_and(|path| tree.join(path).is_file());
            let folder = |path: &Option<PathBuf>| {
                path.as_ref().and_then(|path| path.parent()).is_some_and(|folder| tree.join(folder).is_dir())
            };
            known += if there(&names.old) || there(&names.new) {
                2
            } else {
                usize::from(names.old.is_none() && folder(&names.new))
            };
        }
        if known > best.1 {
            best = (strip, known);
        }
    }
    Ok(best.0)
}

/// A path of a diff as a path relative to the tree.
fn safe(path: &[u8], strip: usize) -> Result<PathBuf, DiffError> {
    let refuse = |why| Err(DiffError::Path { path: shown(path), why });
    let Ok(text) = std::str::from_utf8(path) else { return refuse("it is not UTF-8") };
    if text.contains(['\0', '\n']) {
        return refuse("it has a control character in it");
    }
    if text.starts_with('/') {
        return refuse("it is absolute");
    }
    let text = without_date(text);
    let parts: Vec<_> = Path::new(text).components().filter(|part| *part != Component::CurDir).collect();
    if parts.iter().any(|part| !matches!(part, Component::Normal(_))) {
        return refuse("it has `..` in it");
    }
    let rest: PathBuf = if parts.len() > strip { parts[strip..].iter().collect() } else { parts.iter().collect() };
    if rest.as_os_str().is_empty() { refuse("it is empty") } else { Ok(rest) }
}

/// Some tools put a blank, not a tab, between name and date: `fs/inode.c 2024-01-31 12:00:00 +0000`.
fn without_date(text: &str) -> &str {
    let Some((name, _)) = text.split_once(' ') else { return text };
    let rest = text[name.len()..].trim_start().as_bytes();
    let date = rest.len() >= 16
        && rest[..16].iter().zip(b"0000-00-00 00:00").all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            other => byte == other,
        });
    if date { name } else { text }
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

/// Applies hunks to a text.
fn place(
    path: &Path,
    text: &[u8],
    hunks: &[diffy::Hunk<'_, [u8]>],
    diff_lines: &[usize],
) -> Result<(Vec<u8>, Vec<Hunk>), DiffError> {
    let old = lines(text);
    let (mut result, mut written) = (Vec::with_capacity(text.len()), 0);
    let (mut next, mut moved) = (0, 0isize);
    let mut placed = Vec::new();
    for (index, hunk) in hunks.iter().enumerate() {
        let diff_line = diff_lines.get(index).copied();
        let at = find(path, &old, next, moved, hunk, index + 1, diff_line.unwrap_or(0))?;
        moved = at as isize - stated(hunk) as isize;
        for line in &old[next..at] {
            result.extend_from_slice(line);
        }
        written += at - next;
        let (mut from, mut to) = (at, written);
        let mut edits: Vec<Edit> = Vec::new();
        for line in hunk.lines() {
            let (takes, gives, bytes) = match line {
                Line::Context(line) => (1, 1, *line),
                Line::Delete(_) => (1, 0, &b""[..]),
                Line::Insert(line) => (0, 1, *line),
            };
            result.extend_from_slice(bytes);
            if takes != gives {
                match edits.last_mut() {
                    Some(edit) if edit.old.end == from && edit.new.end == to => {
                        edit.old.end += takes;
                        edit.new.end += gives;
                    }
                    _ => edits.push(Edit { old: from..from + takes, new: to..to + gives }),
                }
            }
            from += takes;
            to += gives;
        }
        placed.push(Hunk { old: at..from, new: written..to, moved, diff_line, edits });
        (next, written) = (from, to);
    }
    for line in &old[next..] {
        result.extend_from_slice(line);
    }
    Ok((result, placed))
}

/// Where a hunk says it starts in the old text, from 0. An empty range names the line before it.
fn stated(hunk: &diffy::Hunk<'_, [u8]>) -> usize {
    let range = hunk.old_range();
    if range.is_empty() { range.start() } else { range.start().saturating_sub(1) }
}

/// Where a hunk fits: at its line, moved like the hunk before it, or at the only other place with its text.
fn find(
    path: &Path,
    old: &[&[u8]],
    next: usize,
    moved: isize,
    hunk: &diffy::Hunk<'_, [u8]>,
    number: usize,
    diff_line: usize,
) -> Result<usize, DiffError> {
    let side = |new: bool| -> Vec<&[u8]> {
        hunk.lines()
            .iter()
            .filter_map(|line| match line {
                Line::Context(line) => Some(*line),
                Line::Delete(line) => (!new).then_some(*line),
                Line::Insert(line) => new.then_some(*line),
            })
            .collect()
    };
    let wanted = side(false);
    let fits =
        |wanted: &[&[u8]], at: usize| at >= next && old.get(at..at + wanted.len()).is_some_and(|have| have == wanted);
    let near = stated(hunk).saturating_add_signed(moved);
    if fits(&wanted, near) {
        return Ok(near);
    }
    // Without old lines nothing says where it belongs but the number.
    if !wanted.is_empty() {
        let places: Vec<usize> =
            (next..=old.len().saturating_sub(wanted.len())).filter(|&at| fits(&wanted, at)).collect();
        match places.as_slice() {
            [] => {}
            [at] => return Ok(*at),
            _ => {
                let places = places.iter().map(|at| at + 1).collect();
                return Err(DiffError::Ambiguous { path: path.to_owned(), hunk: number, diff_line, places });
            }
        }
    }
    let end: &[u8] = b"(end of file)";
    let have = |index: usize| old.get(near + index).copied().unwrap_or(end);
    let wrong = (0..wanted.len()).find(|&index| have(index) != wanted[index]).unwrap_or(0);
    Err(DiffError::Mismatch {
        path: path.to_owned(),
        hunk: number,
        diff_line,
        line: near + wrong + 1,
        expected: shown(wanted.get(wrong).copied().unwrap_or(end)),
        found: shown(have(wrong)),
        applied: fits(&side(true), hunk.new_range().start().saturating_sub(1)),
    })
}

/// A text as lines with their line ends.
pub fn lines(text: &[u8]) -> Vec<&[u8]> {
    text.split_inclusive(|&byte| byte == b'\n').collect()
}

fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end_matches('\n').replace('\r', "\\r").trim().to_owned()
}
