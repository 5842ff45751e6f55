//! Why a diff cannot be used: each reason with its place, and what would help.
//!
//! Comes in: nothing. Decided: which rule each reason belongs to. Goes out: [`DiffError`].

use std::path::PathBuf;

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
