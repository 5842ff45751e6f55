//! Compiles units twice, as they were and as the diff makes them, in the same way.
//!
//! Comes in: the kernel's commands for each unit and the changed files. Decided: nothing about the code; both times
//! the commands are the same, with the source folder and the object replaced by names of equal length. Goes out: two
//! objects per unit; or the compiler's words about the patched source.

mod call;
mod error;
mod prepare;

pub use error::CompileError;

use super::command::UnitCommands;
use super::kept::Kept;
use super::lines;
use diff_analyzer::source_diff::{ChangeKind, FileChange};
use nix::sys::resource::{UsageWho, getrusage};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A unit to compile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Source file before, relative to the tree; for a new unit, after.
    pub name: PathBuf,
    /// Source file after.
    pub source: PathBuf,
    /// It did not exist.
    pub new: bool,
    /// How it is compiled.
    pub commands: UnitCommands,
}

/// A unit compiled twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledUnit {
    /// Source file, relative to the tree.
    pub unit: PathBuf,
    /// Object of the original source; nothing for a new unit.
    pub original: Option<PathBuf>,
    /// Object of the patched source.
    pub patched: PathBuf,
}

/// Compiles units.
pub struct Compile<'a> {
    /// The kernel's source tree, as the commands name it.
    pub source: &'a Path,
    /// The prepared build folder, in which the commands run.
    pub build: &'a Path,
    /// Where in the source tree the commands run, if they name sources relative to their folder (a build in the tree).
    pub below: Option<&'a Path>,
    /// An empty folder for overlays and objects.
    pub work: &'a Path,
    /// How many at a time.
    pub jobs: usize,
    /// What the diff changes.
    pub changes: &'a [FileChange],
    /// Original objects of earlier builds.
    pub kept: Option<Kept<'a>>,
}

/// The two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// As it was.
    Original,
    /// As the diff makes it.
    Patched,
}

impl Side {
    fn letter(self) -> &'static str {
        match self {
            Self::Original => "a",
            Self::Patched => "b",
        }
    }
}

/// What became of a unit: the original object, the patched one, and the error that explains most.
type Sides = (Option<PathBuf>, Option<PathBuf>, Option<CompileError>);

impl Compile<'_> {
    /// Runs something for many units at a time.
    ///
    /// # Errors
    /// [`CompileError::Threads`].
    pub fn parallel<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R, CompileError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.jobs)
            .build()
            .map_err(|error| CompileError::Threads { jobs: self.jobs, message: error.to_string() })?;
        Ok(pool.install(work))
    }

    /// Compiles units, original and patched, after [`Compile::prepare`]; the order is that of `units`.
    ///
    /// # Errors
    /// [`CompileError`] for the whole, or for a unit; one of the patched source only when the original compiles.
    pub fn run(
        &self,
        units: &[Unit],
        done: &(dyn Fn() + Sync),
    ) -> Result<Vec<Result<CompiledUnit, CompileError>>, CompileError> {
        let sides = |unit: &Unit| if unit.new { &[Side::Patched][..] } else { &[Side::Original, Side::Patched] };
        let jobs: Vec<(usize, Side)> = (units.iter().enumerate())
            .flat_map(|(index, unit)| sides(unit).iter().map(move |&side| (index, side)))
            .collect();
        let results: Vec<Result<PathBuf, CompileError>> = self.parallel(|| {
            let compile = |&(index, side): &(usize, Side)| {
                let result = self.unit(&units[index], side);
                done();
                result
            };
            jobs.par_iter().map(compile).collect()
        })?;
        let mut objects: Vec<Sides> = units.iter().map(|_| (None, None, None)).collect();
        for ((index, side), result) in jobs.into_iter().zip(results) {
            let (original, patched, failed) = &mut objects[index];
            match (result, side) {
                (Ok(object), Side::Original) => *original = Some(object),
                (Ok(object), Side::Patched) => *patched = Some(object),
                // An original that does not compile explains everything else; it comes first.
                (Err(error), _) => *failed = failed.take().or(Some(error)),
            }
        }
        let shown = if objects.iter().any(|(.., failed)| matches!(failed, Some(CompileError::Patched { .. }))) {
            self.without_directives()?
        } else {
            false
        };
        let finish = |(unit, (original, patched, failed)): (&Unit, Sides)| {
            let patched = match (failed, patched) {
                // Compiled again without `#line`, the compiler shows the lines that are there; if it compiles so, that
                // object is as good.
                (Some(CompileError::Patched { .. }), _) if shown => self.unit(unit, Side::Patched)?,
                (Some(error), _) => return Err(error),
                (None, patched) => patched.unwrap_or_else(|| self.object(unit, Side::Patched)),
            };
            Ok(CompiledUnit { unit: unit.name.clone(), original, patched })
        };
        self.parallel(|| units.par_iter().zip(objects).map(finish).collect())
    }

    /// Changed files that the compiler read for none of the patched objects: their change would be left out without a word.
    ///
    /// # Errors
    /// [`CompileError::Read`].
    pub fn unused<'f>(
        &self,
        compiled: &[CompiledUnit],
        files: &'f BTreeSet<PathBuf>,
    ) -> Result<Vec<&'f PathBuf>, CompileError> {
        let mut used = BTreeSet::new();
        for unit in compiled {
            let path = PathBuf::from(format!("{}.d", unit.patched.display()));
            let text = fs::read_to_string(&path).map_err(|source| CompileError::Read { path, source })?;
            let folder = self.folder(Side::Patched);
            used.extend(text.split_ascii_whitespace().filter_map(|word| folder.join(word).canonicalize().ok()));
        }
        let overlay = self.overlay(Side::Patched);
        let overlay = overlay.canonicalize().unwrap_or(overlay);
        Ok(files.iter().filter(|file| !used.contains(&overlay.join(file))).collect())
    }

    /// Writes the patched texts without `#line`; whether that makes a difference.
    fn without_directives(&self) -> Result<bool, CompileError> {
        let mut plain = false;
        for change in self.changes.iter().filter(|change| change.kind != ChangeKind::Deleted) {
            if lines::keep_numbers(change).is_some() {
                let path = self.overlay(Side::Patched).join(&change.path);
                fs::write(&path, &change.new).map_err(|source| CompileError::Write { path, source })?;
                plain = true;
            }
        }
        Ok(plain)
    }

    fn unit(&self, unit: &Unit, side: Side) -> Result<PathBuf, CompileError> {
        let object = self.object(unit, side);
        let kept = self.kept.as_ref().filter(|_| side == Side::Original);
        if kept.is_some_and(|kept| kept.fetch(unit, &object)) {
            return Ok(object);
        }
        let commands = self.commands(unit, side);
        for words in commands.in_order() {
            let output = self.call(words, side)?;
            if !output.status.success() {
                return Err(self.failure(unit, side, &words[0], output));
            }
        }
        if let Some(kept) = kept {
            kept.store(unit, &object, &self.overlay(side), self.source);
        }
        Ok(object)
    }
}

/// Processor time of all finished children of this process.
pub fn children_time() -> Duration {
    getrusage(UsageWho::RUSAGE_CHILDREN)
        .map(|usage| {
            let parts = [usage.user_time(), usage.system_time()];
            parts
                .iter()
                .map(|t| Duration::from_secs(t.tv_sec() as u64) + Duration::from_micros(t.tv_usec() as u64))
                .sum()
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
