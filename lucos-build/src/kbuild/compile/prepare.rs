//! The two trees that units are compiled in.
//!
//! Comes in: the changed files, and the units that will be asked for. Decided: which files and folders must be real ones in an
//! overlay; all else leads to the kernel's source. Goes out: a tree as it was and a tree as the diff makes it, with folders for the
//! objects.

use super::{Compile, CompileError, Side, Unit};
use crate::kbuild::lines;
use crate::kbuild::overlay::{self, Files, OverlayError};
use diff_analyzer::source_diff::ChangeKind;
use std::fs;
use std::path::Path;

/// Real files of the original tree, and of the patched one.
#[derive(Default)]
struct Trees {
    before: Files,
    after: Files,
}

impl Trees {
    /// A file that is the same in both.
    fn add_same(&mut self, path: &Path, text: Vec<u8>) {
        self.before.insert(path.to_owned(), Some(text.clone()));
        self.after.insert(path.to_owned(), Some(text));
    }
}

impl Compile<'_> {
    /// Makes both trees, with the folders of all units that will be asked for.
    ///
    /// # Errors
    /// [`CompileError`] when a folder cannot be made.
    pub fn prepare(&self, units: &[Unit]) -> Result<(), CompileError> {
        let mut trees = self.changed_files();
        self.add_units(units, &mut trees);
        self.add_build_folder(&mut trees)?;
        for side in [Side::Original, Side::Patched] {
            let path = self.overlay(side);
            match fs::remove_dir_all(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(OverlayError { path, source }.into());
                }
                _ => {}
            }
        }
        overlay::make(self.source, &self.overlay(Side::Original), &trees.before)?;
        overlay::make(self.source, &self.overlay(Side::Patched), &trees.after)?;
        for unit in units {
            for side in [Side::Original, Side::Patched] {
                let object = self.object(unit, side);
                let folder = object.parent().unwrap_or(self.work);
                fs::create_dir_all(folder).map_err(|source| CompileError::Write { path: folder.to_owned(), source })?;
            }
        }
        Ok(())
    }

    /// What the diff changes.
    fn changed_files(&self) -> Trees {
        let mut trees = Trees::default();
        for change in self.changes {
            let old = match &change.kind {
                ChangeKind::New => None,
                ChangeKind::Renamed { from } => {
                    trees.before.insert(from.clone(), Some(change.old.clone()));
                    trees.after.entry(from.clone()).or_insert(None);
                    None
                }
                ChangeKind::Modified | ChangeKind::Deleted => Some(change.old.clone()),
            };
            let new = match &change.kind {
                ChangeKind::Deleted => None,
                _ => Some(lines::keep_numbers(change).unwrap_or_else(|| change.new.clone())),
            };
            trees.before.insert(change.path.clone(), old);
            trees.after.insert(change.path.clone(), new);
        }
        trees
    }

    /// The folders of all units are real ones, so that `../` in their includes stays in the overlay.
    fn add_units(&self, units: &[Unit], trees: &mut Trees) {
        let named = |files: &Files, path: &Path| files.contains_key(path) || files.contains_key(&overlay::clean(path));
        for unit in units {
            if named(&trees.after, &unit.source) || named(&trees.before, &unit.name) {
                continue;
            }
            // `arch/x86/kvm/../../../virt/kvm/vfio.c` is below `virt`.
            let name = overlay::clean(&unit.name);
            // A generated source is in the build folder.
            let Ok(text) = fs::read(self.source.join(&name)) else { continue };
            trees.add_same(&name, text);
        }
    }

    /// A build folder in the tree is a real folder of the overlay, so that `../` leads there.
    fn add_build_folder(&self, trees: &mut Trees) -> Result<(), OverlayError> {
        let Some(below) = self.below.filter(|below| !below.as_os_str().is_empty()) else { return Ok(()) };
        let makefile = below.join("Makefile");
        let path = self.source.join(&makefile);
        let text = fs::read(&path).map_err(|source| OverlayError { path, source })?;
        trees.add_same(&makefile, text);
        Ok(())
    }
}
