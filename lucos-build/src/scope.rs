//! Which units a diff touches.
//!
//! Comes in: the changed files, the units of the image, the source tree. Decided: what each file means for this kernel:
//! a unit to compile, nothing, or something that cannot be updated live, by where the file is and what it is. Goes out:
//! [`Scope`]; nothing is left out without a note or a reason.

mod kind;
mod makefile;

pub use kind::elsewhere;

use crate::identity::Config;
use crate::report::Reason;
use diff_analyzer::source_diff::{ChangeKind, FileChange};
use kind::{FileKind, kind};
use makefile::configured;
use prelink::dwarf::DwarfError;
use prelink::units::UnitIndex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a diff touches.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Units to compile, sorted; a renamed one under its old name.
    pub units: BTreeSet<PathBuf>,
    /// New names of renamed units.
    pub renamed: BTreeMap<PathBuf, PathBuf>,
    /// Units that are new.
    pub new_units: Vec<NewUnit>,
    /// Changed files that are compiled, by themselves or as a part of a unit.
    pub files: BTreeSet<PathBuf>,
    /// Changed headers, under their old name.
    pub headers: BTreeSet<PathBuf>,
    /// Changed Kconfig files: whether they change this kernel's configuration is to be found out.
    pub options: BTreeSet<PathBuf>,
    /// Units that the image does not have: each is of a module, or else this is why it cannot be updated.
    pub outside: BTreeMap<PathBuf, Reason>,
    /// What cannot be done.
    pub reasons: Vec<Reason>,
    /// Files without effect on this kernel, and why.
    pub notes: Vec<String>,
}

/// A unit that a Makefile of the diff adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUnit {
    /// Its source.
    pub source: PathBuf,
    /// The object that it is a part of, when it is not one by itself.
    pub composite: Option<String>,
}

/// The kernel that the changed files are held against.
#[derive(Clone, Copy)]
struct Built<'k, 'd> {
    units: &'k UnitIndex<'d>,
    source: &'k Path,
    config: &'k Config<'k>,
}

/// What to do about a file that cannot be updated.
const LEAVE_OUT: &str = "leave this file out of the diff, or reboot into the new kernel";

/// Why a changed file cannot be updated.
fn refusal(change: &FileChange, rule: &str, message: impl Into<String>, help: &str) -> Reason {
    let line = change.hunks.first().and_then(|hunk| hunk.diff_line);
    Reason::new(rule, message).at(change.path.display().to_string(), None).in_diff(line).help(help)
}

impl Scope {
    /// Whether nothing is left to be compiled or looked into.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty() && self.new_units.is_empty() && self.headers.is_empty() && self.options.is_empty()
    }

    /// Sorts the changed files.
    ///
    /// # Errors
    /// [`DwarfError`] when the image's debug information is malformed.
    pub fn of(
        changes: &[FileChange],
        units: &UnitIndex<'_>,
        source: &Path,
        config: &Config<'_>,
    ) -> Result<Self, DwarfError> {
        let kernel = Built { units, source, config };
        let mut scope = Self::default();
        for change in changes {
            scope.file(change, kernel)?;
        }
        for change in changes.iter().filter(|change| kind(&change.path) == FileKind::Rules) {
            scope.rules(change, changes, kernel);
        }
        let known: BTreeSet<&Path> = scope.new_units.iter().map(|unit| unit.source.as_path()).collect();
        let unlisted = |change: &&FileChange| {
            change.kind == ChangeKind::New
                && kind(&change.path) == FileKind::Source
                && !known.contains(change.path.as_path())
        };
        scope.notes.extend(changes.iter().filter(unlisted).map(|change| {
            format!(
                "{}: a new file that no line of the diff's Makefiles compiles into this kernel",
                change.path.display()
            )
        }));
        Ok(scope)
    }

    fn file(&mut self, change: &FileChange, kernel: Built<'_, '_>) -> Result<(), DwarfError> {
        let path = change.path.display().to_string();
        match kind(&change.path) {
            FileKind::NoEffect(why) => self.notes.push(format!("{path}: no effect on this kernel ({why})")),
            _ if change.kind == ChangeKind::Modified && change.old == change.new => {
                self.notes.push(format!("{path}: no effect (its text does not change)"));
            }
            FileKind::Refused(rule, why) => self.reasons.push(refusal(change, rule, why, LEAVE_OUT)),
            FileKind::Rules => {}
            FileKind::Options => drop(self.options.insert(change.path.clone())),
            FileKind::Header => match &change.kind {
                ChangeKind::New => {
                    self.notes.push(format!("{path}: a new header, which only the changed files can use"))
                }
                ChangeKind::Renamed { from } => drop(self.headers.insert(from.clone())),
                ChangeKind::Modified | ChangeKind::Deleted => drop(self.headers.insert(change.path.clone())),
            },
            FileKind::Source => match &change.kind {
                // The lists of the Makefiles say what becomes of it.
                ChangeKind::New => {}
                ChangeKind::Deleted => {
                    let what = if kernel.units.named(&path).is_empty() {
                        "no effect on this kernel (it was not compiled into it)"
                    } else {
                        "its functions and data stay in the running kernel; nothing is redirected to or from them"
                    };
                    self.notes.push(format!("{path}: {what}"));
                }
                ChangeKind::Renamed { from } => self.source(change, from, kernel)?,
                ChangeKind::Modified => self.source(change, &change.path, kernel)?,
            },
        }
        Ok(())
    }

    /// A C file that is there before and after; `before` is its old name.
    fn source(&mut self, change: &FileChange, before: &Path, kernel: Built<'_, '_>) -> Result<(), DwarfError> {
        let (name, path) = (before.display(), change.path.display());
        match kernel.units.named(&name.to_string()).len() {
            1 => {
                if before != change.path {
                    self.notes.push(format!("{path}: is compared with {name}, which it was"));
                }
                self.compile(change, before);
            }
            0 => {
                let including = kernel.units.units_including(&name.to_string())?;
                if including.is_empty() {
                    self.not_built_in(change, before, kernel);
                }
                for id in including {
                    let unit = &kernel.units.unit(id).name;
                    self.notes.push(format!("{path}: is compiled as a part of {unit}"));
                    self.files.insert(change.path.clone());
                    self.units.insert(PathBuf::from(unit));
                }
            }
            count => {
                let message = format!("vmlinux has this file {count} times, compiled in different ways");
                self.reasons.push(refusal(change, "compiled-twice", message, "leave this file out of the diff"));
            }
        }
        Ok(())
    }

    /// Only make knows for certain what goes into a module; it is asked when nothing says no.
    fn not_built_in(&mut self, change: &FileChange, before: &Path, kernel: Built<'_, '_>) {
        let (why, may_be_module) = configured(kernel.source, before, kernel.config);
        let message = format!("it was not compiled into this vmlinux: {why}");
        let reason = refusal(change, "not-built-in", message, "leave this file out of the diff");
        if may_be_module {
            self.outside.insert(before.to_owned(), reason);
            self.compile(change, before);
        } else {
            self.reasons.push(reason);
        }
    }

    /// Notes a unit of its own.
    fn compile(&mut self, change: &FileChange, before: &Path) {
        self.files.insert(change.path.clone());
        self.units.insert(before.to_owned());
        if before != change.path {
            self.renamed.insert(before.to_owned(), change.path.clone());
        }
    }
}

#[cfg(test)]
mod tests;
