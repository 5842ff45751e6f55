//! What a changed Makefile means for the units of a kernel.
//!
//! Comes in: a Makefile before and after. Decided: whether only lists of objects change (`obj-y += x.o`, `big-y := a.o
//! b.o`), outside of conditions. Goes out: the objects that come and go; or what else changes, which is not understood.

use diff_analyzer::source_diff::{FileChange, lines};
use std::collections::BTreeSet;

/// An object in a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// The list: `obj-y`, `obj-$(CONFIG_X)`, `big-y`.
    pub list: String,
    /// The object: `x.o`.
    pub object: String,
}

impl Listed {
    /// The option that decides, if there is one.
    pub fn option(&self) -> Option<&str> {
        self.list.split_once("$(")?.1.strip_suffix(')')
    }

    /// The object that the list makes up, when it is not the folder's own.
    pub fn composite(&self) -> Option<&str> {
        let name = self.list.strip_suffix("-objs").or_else(|| self.list.rsplit_once('-').map(|(name, _)| name))?;
        (!matches!(name, "obj" | "lib")).then_some(name)
    }
}

/// Objects that come and go.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RuleChange {
    /// New in a list.
    pub added: Vec<Listed>,
    /// No longer in a list.
    pub removed: Vec<Listed>,
}

/// Reads a change of a Makefile.
///
/// # Errors
/// The first changed line that is not a plain list of objects.
pub fn read(change: &FileChange) -> Result<RuleChange, String> {
    let (old, new) = (logical(&change.old), logical(&change.new));
    let texts = |lines: &[(String, usize)]| -> Vec<String> { lines.iter().map(|(line, _)| line.clone()).collect() };
    let (old_text, new_text) = (texts(&old), texts(&new));
    let (mut before, mut after) = (BTreeSet::new(), BTreeSet::new());
    for operation in similar::capture_diff_slices(similar::Algorithm::Myers, &old_text, &new_text) {
        let (tag, gone, come) = operation.as_tag_tuple();
        if tag == similar::DiffTag::Equal {
            continue;
        }
        for (line, depth) in &old[gone] {
            before.extend(list(line, *depth)?);
        }
        for (line, depth) in &new[come] {
            after.extend(list(line, *depth)?);
        }
    }
    Ok(RuleChange {
        added: after.difference(&before).cloned().collect(),
        removed: before.difference(&after).cloned().collect(),
    })
}

/// Lines with what they continue, without comments and blanks, each with the number of conditions around it.
fn logical(text: &[u8]) -> Vec<(String, usize)> {
    let mut joined = String::new();
    for line in lines(text) {
        joined.push_str(&String::from_utf8_lossy(line));
    }
    let mut depth = 0usize;
    let mut result = Vec::new();
    for line in joined.replace("\\\n", " ").lines() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(first) = words.first() else { continue };
        match *first {
            "endif" => depth = depth.saturating_sub(1),
            "ifdef" | "ifndef" | "ifeq" | "ifneq" | "define" => depth += 1,
            "endef" => depth = depth.saturating_sub(1),
            _ => {}
        }
        result.push((words.join(" "), depth));
    }
    result
}

/// The objects of a list.
fn list(line: &str, depth: usize) -> Result<Vec<Listed>, String> {
    let other = |why: &str| Err(format!("{why}: `{line}`"));
    if depth > 0 {
        return other("a line inside a condition changes");
    }
    let Some((left, right)) = line.split_once('=') else {
        return other("something else than a list of objects changes");
    };
    let list = left.trim_end_matches(['+', ':', ' ']);
    let known = list.strip_suffix("-y").or_else(|| list.strip_suffix("-m")).or_else(|| list.strip_suffix("-objs"));
    let known = known.or_else(|| list.strip_suffix(')').and_then(|list| Some(list.split_once("-$(CONFIG_")?.0)));
    let flags = [
        "ccflags",
        "asflags",
        "ldflags",
        "subdir-ccflags",
        "subdir",
        "always",
        "extra",
        "hostprogs",
        "targets",
        "CFLAGS",
        "header-test",
    ];
    if !known.is_some_and(|name| !name.contains([' ', '$', '/']) && !flags.iter().any(|flag| name.starts_with(flag))) {
        return other("something else than a list of objects changes");
    }
    right
        .split_whitespace()
        .map(|object| match object.strip_suffix(".o") {
            Some(stem) if !stem.contains(['$', '/', '(']) => {
                Ok(Listed { list: list.to_owned(), object: object.to_owned() })
            }
            _ => Err(format!("`{object}` in a list of objects is not one file of this folder: `{line}`")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use diff_analyzer::source_diff;

    fn change(old: &str, new: &str) -> Result<RuleChange, String> {
        let tree = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(tree.path().join("Makefile"), old).expect("written");
        let diff =
            similar::TextDiff::from_lines(old, new).unified_diff().header("a/Makefile", "b/Makefile").to_string();
        read(&source_diff::read(diff.as_bytes(), tree.path()).expect("applies")[0])
    }

    fn added(old: &str, new: &str) -> Vec<(String, String)> {
        let change = change(old, new).expect("understood");
        assert!(change.removed.is_empty(), "{change:?}");
        change.added.into_iter().map(|listed| (listed.list, listed.object)).collect()
    }

    #[test]
    fn objects_come_and_go() {
        let pair = |list: &str, object: &str| (list.to_owned(), object.to_owned());
        assert_eq!(added("obj-y := a.o\n", "obj-y := a.o\nobj-$(CONFIG_B) += b.o\n"), [pair("obj-$(CONFIG_B)", "b.o")]);
        assert_eq!(added("big-y := a.o \\\n\tb.o\n", "big-y := a.o c.o \\\n\tb.o # all\n"), [pair("big-y", "c.o")]);
        let gone = change("obj-y += a.o b.o\n", "obj-y += a.o\n").expect("understood");
        assert_eq!(gone.removed[0].object, "b.o");
        assert_eq!(change("obj-y += a.o # x\n", "obj-y +=  a.o\n"), Ok(RuleChange::default()));
        let listed = Listed { list: "big-$(CONFIG_X)".into(), object: "a.o".into() };
        assert_eq!((listed.option(), listed.composite()), (Some("CONFIG_X"), Some("big")));
    }

    #[test]
    fn everything_else_is_said() {
        for (old, new) in [
            ("obj-y := a.o\n", "obj-y := a.o\nccflags-y += -O3\n"),
            ("obj-y := a.o\n", "obj-y := a.o\nCFLAGS_a.o := -O3\n"),
            ("obj-y := a.o\n", "obj-y := a.o sub/\n"),
            ("ifdef X\nobj-y := a.o\nendif\n", "ifdef X\nobj-y := a.o b.o\nendif\n"),
            ("obj-y := a.o\n", "obj-y := a.o $(more)\n"),
            ("a: b\n", "a: c\n"),
        ] {
            assert!(change(old, new).is_err(), "{new}");
        }
    }
}
