//! The kernel's commands, called in our folders.
//!
//! Comes in: the commands of a unit. Decided: which of their words name the tree or the object, and become ours. Goes out: an object
//! or a preprocessed text at its place, or what the compiler said.

use super::{Compile, CompileError, Side, Unit};
use crate::kbuild::command::{self, UnitCommands};
use crate::kbuild::overlay;
use std::path::PathBuf;
use std::process::Output;

impl Compile<'_> {
    /// The kernel's commands with the overlay for the tree and our object for theirs.
    pub fn commands(&self, unit: &Unit, side: Side) -> UnitCommands {
        let tree = self.source.display().to_string();
        let (tree_slash, overlay) = (format!("{tree}/"), self.overlay(side).display().to_string());
        let theirs = unit.name.with_extension("o").display().to_string();
        let ours = self.object(unit, side).display().to_string();
        let dependencies = depend_file(&theirs);
        let our_dependencies = format!("{ours}.d");
        let moved = side == Side::Patched && unit.source != unit.name;
        let (from, to) = (unit.name.display().to_string(), unit.source.display().to_string());
        let mut commands = unit.commands.map(|word| {
            if word == theirs {
                ours.clone()
            } else if word == tree {
                overlay.clone()
            } else if moved && word == format!("{tree_slash}{from}") {
                format!("{overlay}/{to}")
            } else if word.starts_with("-Wp,-M") {
                word.replace(&dependencies, &our_dependencies)
            } else if let Some(option) = word.strip_suffix(&tree).filter(|option| option.starts_with('-')) {
                format!("{option}{overlay}")
            } else {
                word.replace(&tree_slash, &format!("{overlay}/"))
            }
        });
        if moved {
            // `__FILE__` keeps the name it has in the image: a move alone changes nothing.
            commands.compile.push(format!("-fmacro-prefix-map={overlay}/{to}={from}"));
        }
        commands
    }

    /// What the preprocessor makes of a unit, after [`Compile::prepare`].
    ///
    /// # Errors
    /// [`CompileError`] when it fails.
    pub fn preprocess(&self, unit: &Unit, side: Side) -> Result<Vec<u8>, CompileError> {
        let mut words = self.commands(unit, side).compile;
        words.retain(|word| !word.starts_with("-Wp,-M") && word != "-c");
        if let Some(at) = words.iter().position(|word| word == "-o") {
            words.drain(at..(at + 2).min(words.len()));
        }
        words.extend(["-E".to_owned(), "-P".to_owned()]);
        let output = self.call(&words, side)?;
        if output.status.success() { Ok(output.stdout) } else { Err(self.failure(unit, side, &words[0], output)) }
    }

    /// The tree of a side.
    pub fn overlay(&self, side: Side) -> PathBuf {
        self.work.join(side.letter())
    }

    /// Where the object of a side goes.
    pub fn object(&self, unit: &Unit, side: Side) -> PathBuf {
        self.work.join(format!("o{}", side.letter())).join(overlay::clean(&unit.name).with_extension("o"))
    }

    /// Where the commands run.
    pub(super) fn folder(&self, side: Side) -> PathBuf {
        self.below.map_or_else(|| self.build.to_owned(), |below| self.overlay(side).join(below))
    }

    pub(super) fn call(&self, words: &[String], side: Side) -> Result<Output, CompileError> {
        command::call(words, &self.folder(side))
            .map_err(|source| CompileError::Start { program: words[0].clone(), source })
    }

    pub(super) fn failure(&self, unit: &Unit, side: Side, program: &str, output: Output) -> CompileError {
        let said = if output.stderr.is_empty() { output.stdout } else { output.stderr };
        let overlay = format!("{}/", self.overlay(side).display());
        let mut said = String::from_utf8_lossy(&said).replace(&overlay, "");
        if said.trim().is_empty() {
            said = format!("{program}: {}", output.status);
        }
        match side {
            Side::Original => CompileError::Original { unit: unit.name.clone(), output: said },
            Side::Patched => CompileError::Patched { unit: unit.source.clone(), output: said },
        }
    }
}

/// `dir/unit.o` → `dir/.unit.o.d` (scripts/Kbuild.include, `depfile`).
fn depend_file(object: &str) -> String {
    match object.rsplit_once('/') {
        Some((folder, name)) => format!("{folder}/.{name}.d"),
        None => format!(".{object}.d"),
    }
}
