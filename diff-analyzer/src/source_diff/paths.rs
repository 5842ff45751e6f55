//! The files that a diff is about.
//!
//! Comes in: the names in a diff, which are hostile. Decided: how many leading folders they carry, and whether they stay inside the
//! tree. Goes out: safe relative paths.

use super::DiffError;
use super::place::shown;
use diffy::patch_set::{FileOperation, FilePatch};
use std::path::{Component, Path, PathBuf};

/// The files that a part of a diff is about, as safe relative paths.
pub(super) struct Names {
    /// Before; nothing for a new file.
    pub(super) old: Option<PathBuf>,
    /// After; nothing for a deleted file.
    pub(super) new: Option<PathBuf>,
    /// The old file stays (a copy).
    pub(super) copy: bool,
    /// The diff says itself that the file is new, deleted or renamed; otherwise the old name may be a stand-in.
    pub(super) told: bool,
}

impl Names {
    pub(super) fn of(part: &FilePatch<'_, [u8]>, strip: usize) -> Result<Self, DiffError> {
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

    pub(super) fn shown(&self) -> String {
        self.new.as_ref().or(self.old.as_ref()).map(|path| path.display().to_string()).unwrap_or_default()
    }
}

/// Leading folders that the paths carry: 1 (`a/`, `b/`, as usual) or 0, whichever finds the files in the tree.
pub(super) fn strip_level(parts: &[FilePatch<'_, [u8]>], tree: &Path) -> Result<usize, DiffError> {
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
