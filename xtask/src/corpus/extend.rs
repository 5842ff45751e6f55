//! What a refusal asks for.
//!
//! Comes in: an [`Entry`] that is no bundle. Decided: which other files and hunks of the newer version the reasons name:
//! the file that defines a missing symbol, the callers of a function that takes other arguments. Goes out: the plan,
//! extended.

use super::assemble::Workbench;
use super::complaints;
use super::entry::Entry;
use super::evaluate::Evaluator;
use super::hunks::Role;
use super::plan::{Plan, Trees};
use crate::JobError;
use lucos_tests::official::{BuiltIn, Change};
use std::path::Path;

impl<'a> Evaluator<'a> {
    /// Takes more of the newer version, as the reasons ask for; whether there was more.
    pub(crate) fn extend(&self, plan: &mut Plan, entry: &Entry) -> Result<bool, JobError> {
        let trees = self.workbench.trees;
        let mut more = false;
        for why in &entry.reasons {
            let name = why.message.split('`').nth(1).unwrap_or_default();
            match why.rule.as_str() {
                "unresolved-symbol" => {
                    for file in defining(trees, self.workbench.built_in, name)? {
                        more |= add_source(trees, plan, &file)?;
                    }
                }
                "signature-changed" => {
                    for file in self.built_in_sources() {
                        if trees.versions(file)?.changes_lines_with(name) {
                            more |= plan.add_whole(file);
                        }
                    }
                }
                // New code without a caller in this file: the files that call it.
                "nothing-to-redirect" => {
                    let own = trees.versions(&entry.file)?;
                    let names = own.new_definitions();
                    for file in self.built_in_sources() {
                        let versions = trees.versions(file)?;
                        let calls = |name: &&str| versions.roles(name).any(|(_, role)| role == Role::Introduces);
                        if names.iter().any(calls) {
                            more |= plan.add_whole(file);
                        }
                    }
                }
                "compile-error" => {
                    let complaints = complaints::read(&why.message);
                    let files: Vec<&str> = complaints
                        .iter()
                        .map(|complaint| complaint.file.as_str())
                        .chain(why.file.as_deref())
                        .filter(|file| file.ends_with(".c") && trees.changed.contains_key(*file))
                        .collect();
                    for file in files {
                        more |= plan.add_whole(file);
                    }
                    if !more {
                        let headers: Vec<String> = trees
                            .ending(&[".h"])
                            .filter(|(file, _)| plan.parts.contains_key(*file))
                            .map(|(file, _)| file.to_owned())
                            .collect();
                        more |= self.workbench.help(&complaints, &headers, plan)?;
                    }
                }
                _ => {}
            }
        }
        Ok(more)
    }

    /// Changed sources that are built in.
    fn built_in_sources(&self) -> Vec<&'a str> {
        let Workbench { trees, built_in, .. } = self.workbench;
        let sources = trees.ending(&[".c"]).map(|(file, _)| file);
        sources.filter(|file| !built_in.units_of(file).is_empty()).collect()
    }
}

/// Changed files whose newer text defines a name; those built in come before new ones.
fn defining(trees: &Trees, built_in: &BuiltIn, name: &str) -> Result<Vec<String>, JobError> {
    let mut found = Vec::new();
    for (file, change) in trees.ending(&[".c"]) {
        let is_ours = match change {
            Change::Modified => !built_in.units_of(file).is_empty(),
            Change::New => true,
            Change::Deleted => false,
        };
        if is_ours && trees.versions(file)?.brings_definition(name) {
            found.push((change == Change::New, file.to_owned()));
        }
    }
    found.sort();
    Ok(found.into_iter().take(1).map(|(_, file)| file).collect())
}

/// Takes a source wholly; of a new one, the lines of the Makefile beside it that name it as well.
fn add_source(trees: &Trees, plan: &mut Plan, file: &str) -> Result<bool, JobError> {
    let mut more = plan.add_whole(file);
    if trees.changed.get(file) == Some(&Change::New) {
        let path = Path::new(file);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for rules in ["Makefile", "Kbuild"].map(|name| path.with_file_name(name)) {
            let rules = rules.display().to_string();
            if trees.changed.get(&rules) == Some(&Change::Modified) {
                let versions = trees.versions(&rules)?;
                let words: Vec<&str> = stem.split('-').collect();
                for hunk in versions.roles(words[words.len() - 1]).map(|(hunk, _)| hunk).collect::<Vec<_>>() {
                    more |= plan.add_hunk(&rules, hunk);
                }
            }
        }
    }
    Ok(more)
}
