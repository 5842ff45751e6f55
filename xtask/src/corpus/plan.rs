//! What a diff of the corpus takes from the newer version.
//!
//! Comes in: names of files and hunks. Decided: nothing. Goes out: [`Plan`], the texts it means, and its diff.

use super::hunks::Versions;
use crate::JobError;
use lucos_tests::official::{self, Change, ChangedFile};
use lucos_tests::patches::unified_change;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// The text of a file before and after; `None` where there is no file.
pub(crate) type Texts = (Option<String>, Option<String>);

/// The two source trees and what differs between them.
#[derive(Debug)]
pub(crate) struct Trees {
    pub(crate) old: PathBuf,
    pub(crate) new: PathBuf,
    pub(crate) changed: BTreeMap<String, Change>,
    versions: Mutex<BTreeMap<String, Arc<Versions>>>,
}

/// How much of a file is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Part {
    /// All that differs.
    Whole,
    /// Hunks by number.
    Hunks(BTreeSet<usize>),
}

/// What a diff takes, by file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) parts: BTreeMap<String, Part>,
}

impl Trees {
    pub(crate) fn new(old: PathBuf, new: PathBuf, changed: Vec<ChangedFile>) -> Self {
        let changed = changed.into_iter().map(|file| (file.path, file.change)).collect();
        Self { old, new, changed, versions: Mutex::default() }
    }

    /// Both versions of a file; of a binary file, nothing.
    pub(crate) fn versions(&self, file: &str) -> Result<Arc<Versions>, JobError> {
        if let Some(known) = self.versions.lock().ok().and_then(|known| known.get(file).cloned()) {
            return Ok(known);
        }
        let (old, new) = self.texts(file)?;
        let versions = Arc::new(Versions::new(&old.unwrap_or_default(), &new.unwrap_or_default()));
        if let Ok(mut known) = self.versions.lock() {
            known.insert(file.to_owned(), Arc::clone(&versions));
        }
        Ok(versions)
    }

    fn texts(&self, file: &str) -> Result<Texts, JobError> {
        Ok((official::text(&self.old, file)?, official::text(&self.new, file)?))
    }

    /// Changed files whose name ends so.
    pub(crate) fn ending<'a>(&'a self, ends: &'a [&str]) -> impl Iterator<Item = (&'a str, Change)> {
        let wanted = move |path: &str| ends.iter().any(|end| path.ends_with(end));
        self.changed.iter().filter(move |(path, _)| wanted(path)).map(|(path, change)| (path.as_str(), *change))
    }
}

impl Plan {
    /// One file, wholly.
    pub(crate) fn whole(file: &str) -> Self {
        Self { parts: BTreeMap::from([(file.to_owned(), Part::Whole)]) }
    }

    /// Takes all of a file; whether that is more than before.
    pub(crate) fn add_whole(&mut self, file: &str) -> bool {
        self.parts.insert(file.to_owned(), Part::Whole) != Some(Part::Whole)
    }

    /// Takes a hunk of a file; whether that is more than before.
    pub(crate) fn add_hunk(&mut self, file: &str, hunk: usize) -> bool {
        match self.parts.entry(file.to_owned()).or_insert_with(|| Part::Hunks(BTreeSet::new())) {
            Part::Whole => false,
            Part::Hunks(taken) => taken.insert(hunk),
        }
    }

    /// Leaves a hunk out again.
    pub(crate) fn remove_hunk(&mut self, file: &str, hunk: usize) {
        if let Some(Part::Hunks(taken)) = self.parts.get_mut(file) {
            taken.remove(&hunk);
            if taken.is_empty() {
                self.parts.remove(file);
            }
        }
    }

    /// The hunks taken one by one.
    pub(crate) fn hunks(&self) -> Vec<(String, usize)> {
        let of = |(file, part): (&String, &Part)| match part {
            Part::Whole => Vec::new(),
            Part::Hunks(taken) => taken.iter().map(|hunk| (file.clone(), *hunk)).collect(),
        };
        self.parts.iter().flat_map(of).collect()
    }

    /// The `.c` files.
    pub(crate) fn sources(&self) -> impl Iterator<Item = &str> {
        self.parts.keys().map(String::as_str).filter(|file| file.ends_with(".c"))
    }

    /// The text of each file before and after; `None` where there is no file.
    pub(crate) fn texts(&self, trees: &Trees) -> Result<BTreeMap<String, Texts>, JobError> {
        let mut texts = BTreeMap::new();
        for (file, part) in &self.parts {
            let (old, new) = trees.texts(file)?;
            let new = match part {
                Part::Whole => new,
                Part::Hunks(taken) => Some(trees.versions(file)?.with(taken)),
            };
            texts.insert(file.clone(), (old, new));
        }
        Ok(texts)
    }

    /// The diff.
    pub(crate) fn diff(&self, trees: &Trees) -> Result<String, JobError> {
        let texts = self.texts(trees)?;
        Ok(texts.iter().map(|(file, (old, new))| unified_change(file, old.as_deref(), new.as_deref())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_takes_files_and_hunks() {
        let (old, new) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let put = |tree: &tempfile::TempDir, file: &str, text: &str| {
            std::fs::write(tree.path().join(file), text).expect("written");
        };
        put(&old, "a.c", "1\n");
        put(&new, "a.c", "2\n");
        put(&old, "h.h", "a\n1\n2\n3\n4\n5\n6\n7\nb\n");
        put(&new, "h.h", "x\n1\n2\n3\n4\n5\n6\n7\ny\n");
        put(&new, "n.h", "n\n");
        let changed = official::changed(old.path(), new.path()).expect("both trees");
        let trees = Trees::new(old.path().to_owned(), new.path().to_owned(), changed);
        let mut plan = Plan::whole("a.c");
        assert!(plan.add_hunk("h.h", 1) && !plan.add_hunk("h.h", 1) && plan.add_whole("n.h"));
        let diff = plan.diff(&trees).expect("texts");
        assert!(diff.contains("-1\n+2\n") && diff.contains("-b\n+y\n") && !diff.contains("+x\n"), "{diff}");
        assert!(diff.contains("--- /dev/null\n+++ b/n.h\n"), "{diff}");
        plan.remove_hunk("h.h", 1);
        assert_eq!(plan.parts.len(), 2);
    }
}
