//! Makefiles: which objects a diff adds or takes away, and what the rules say of a file that is not in the image.
//!
//! Comes in: a changed Makefile, or the rules beside a file. Decided: which units are new; what cannot be followed is refused. Goes
//! out: new units and reasons in the [`Scope`]; words about a file for its reason.

use super::{Built, LEAVE_OUT, NewUnit, Scope, refusal};
use crate::identity::Config;
use crate::rules::{self, Listed};
use diff_analyzer::source_diff::{ChangeKind, FileChange, lines};
use std::path::Path;

impl Scope {
    /// Objects that a Makefile adds or takes away.
    pub(super) fn rules(&mut self, change: &FileChange, changes: &[FileChange], kernel: Built<'_, '_>) {
        let path = change.path.display().to_string();
        if path == "Makefile" && only_version(change) {
            self.notes.push(format!("{path}: no effect (the version number)"));
            return;
        }
        let mut refuse = |rule: &str, message: String| self.reasons.push(refusal(change, rule, message, LEAVE_OUT));
        if change.kind != ChangeKind::Modified {
            return refuse("build-rules", "a Makefile comes, goes or moves".to_owned());
        }
        let rules = match rules::read(change) {
            Ok(rules) => rules,
            Err(why) => return refuse("build-rules", why),
        };
        let is_unit = |unit: &Path| !kernel.units.named(&unit.display().to_string()).is_empty();
        let folder = change.path.parent().unwrap_or(Path::new(""));
        let new_text = String::from_utf8_lossy(&change.new).into_owned();
        for listed in &rules.added {
            let unit = folder.join(&listed.object).with_extension("c");
            let text = format!("{path}: `{} += {}`", listed.list, listed.object);
            if let Some(why) = without_effect(listed, kernel.config) {
                self.notes.push(format!("{text}: no effect on this {why}"));
                continue;
            }
            if is_unit(&unit) || self.renamed.values().any(|new| *new == unit) {
                continue;
            }
            let there = changes.iter().any(|change| change.path == unit && change.kind != ChangeKind::Deleted);
            if !there && !kernel.source.join(&unit).is_file() {
                refuse("new-file", format!("{text}: {} is neither in the source nor in the diff", unit.display()));
                continue;
            }
            if new_text.contains(&format!("_{}", listed.object)) {
                refuse("new-file", format!("{text}: the Makefile has compiler options for this object alone"));
                continue;
            }
            self.files.insert(unit.clone());
            self.new_units.push(NewUnit { source: unit, composite: listed.composite().map(str::to_owned) });
        }
        for listed in &rules.removed {
            let unit = folder.join(&listed.object).with_extension("c");
            let moved = rules.added.iter().any(|added| added.object == listed.object);
            if !moved && !self.renamed.contains_key(&unit) && is_unit(&unit) {
                self.notes.push(format!(
                    "{path}: {} is no longer compiled; what it made stays in the running kernel",
                    listed.object
                ));
            }
        }
    }
}

/// Why an object that is listed for a kernel or a module is not in the image, if the lists say so.
fn without_effect(listed: &Listed, config: &Config<'_>) -> Option<String> {
    match listed.option().map(|option| (option, config.get(option))) {
        Some((option, None)) => Some(format!("kernel ({option} is not set)")),
        Some((option, Some("m"))) => Some(format!("image ({option}=m)")),
        _ => listed.list.ends_with("-m").then(|| "image (a loadable module)".to_owned()),
    }
}

/// Whether only the version lines of the top Makefile change.
pub(super) fn only_version(change: &FileChange) -> bool {
    const NAMES: [&str; 5] = ["VERSION", "PATCHLEVEL", "SUBLEVEL", "EXTRAVERSION", "NAME"];
    let (old, new) = (lines(&change.old), lines(&change.new));
    let version = |line: &&[u8]| {
        let line = String::from_utf8_lossy(line);
        line.split_once('=').is_some_and(|(name, _)| NAMES.contains(&name.trim()))
    };
    change
        .hunks
        .iter()
        .flat_map(|hunk| &hunk.edits)
        .all(|edit| old[edit.old.clone()].iter().all(version) && new[edit.new.clone()].iter().all(version))
}

/// What the configuration says about a file, by the rules beside it (`obj-$(CONFIG_X) += name.o`), and whether it may be
/// part of a module.
pub(super) fn configured(source: &Path, path: &Path, config: &Config<'_>) -> (String, bool) {
    let rules = ["Makefile", "Kbuild"].iter().find_map(|name| {
        let folder = path.parent()?;
        std::fs::read_to_string(source.join(folder).join(name)).ok()
    });
    let Some(rules) = rules else {
        return ("no Makefile beside it names it".to_owned(), false);
    };
    let rules = rules.replace("\\\n", " ");
    let mut object = path.with_extension("o").file_name().unwrap_or_default().to_string_lossy().into_owned();
    // A file may be part of an object that is part of another.
    for _ in 0..4 {
        let rule = rules.lines().find_map(|line| {
            let (left, right) = line.split_once('=')?;
            right
                .split_whitespace()
                .any(|word| word == object)
                .then(|| left.trim().trim_end_matches(['+', ':']).trim().to_owned())
        });
        let Some(left) = rule else { return (format!("no rule for {object} is known"), true) };
        if let Some(option) = left.split_once("$(").and_then(|(_, rest)| Some(rest.split_once(')')?.0))
            && option.starts_with("CONFIG_")
        {
            match config.get(option) {
                Some("m") => return (format!("{option}=m, it is in a loadable module"), true),
                None => return (format!("{option} is not set"), false),
                Some(_) if left.starts_with("obj-") => {
                    return (format!("{option} is set, but the file is not in the image"), true);
                }
                Some(_) => {}
            }
        }
        object = match left.strip_suffix("-objs").or_else(|| left.rsplit_once('-').map(|(name, _)| name)) {
            Some(name) if !matches!(name, "obj" | "lib") => format!("{name}.o"),
            _ => return ("no option decides about it, but the file is not in the image".to_owned(), true),
        };
    }
    ("the rule for it is not understood".to_owned(), true)
}
