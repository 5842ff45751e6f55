//! Texts of a file between its older and its newer version.
//!
//! Comes in: both texts. Decided: nothing. Goes out: the hunks, as a diff with three lines of context has them; the
//! text with some of them applied; which of them bring in a name.

use similar::{DiffTag, TextDiff};
use std::collections::BTreeSet;
use std::ops::Range;

/// A file in both versions; a text is empty when the file is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Versions {
    old: Vec<String>,
    new: Vec<String>,
    hunks: Vec<Hunk>,
}

/// Lines of the older text, and those of the newer one that stand there instead.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hunk {
    old: Range<usize>,
    new: Range<usize>,
    removed: Vec<usize>,
    added: Vec<usize>,
}

/// How a hunk deals with a name; what is more telling is larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Its removed lines have the name.
    Removes,
    /// Its added lines have the name.
    Mentions,
    /// Its added lines have the name more often than its removed ones.
    Introduces,
}

impl Versions {
    pub(crate) fn new(old: &str, new: &str) -> Self {
        let diff = TextDiff::from_lines(old, new);
        let mut hunks = Vec::new();
        for group in diff.grouped_ops(3) {
            let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
            let mut hunk = Hunk {
                old: first.old_range().start..last.old_range().end,
                new: first.new_range().start..last.new_range().end,
                removed: Vec::new(),
                added: Vec::new(),
            };
            for op in group.iter().filter(|op| op.tag() != DiffTag::Equal) {
                hunk.removed.extend(op.old_range());
                hunk.added.extend(op.new_range());
            }
            hunks.push(hunk);
        }
        let lines = |text: &str| text.split_inclusive('\n').map(str::to_owned).collect();
        Self { old: lines(old), new: lines(new), hunks }
    }

    /// Number of hunks.
    pub(crate) fn len(&self) -> usize {
        self.hunks.len()
    }

    /// The older text with some hunks applied.
    pub(crate) fn with(&self, taken: &BTreeSet<usize>) -> String {
        let (mut text, mut at) = (String::new(), 0);
        for (index, hunk) in self.hunks.iter().enumerate() {
            text.extend(self.old[at..hunk.old.start].iter().map(String::as_str));
            let lines = if taken.contains(&index) { &self.new[hunk.new.clone()] } else { &self.old[hunk.old.clone()] };
            text.extend(lines.iter().map(String::as_str));
            at = hunk.old.end;
        }
        text.extend(self.old[at..].iter().map(String::as_str));
        text
    }

    /// Hunks that deal with a name, and how.
    pub(crate) fn roles<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (usize, Role)> + 'a {
        let count = move |lines: &[String], picked: &[usize]| -> usize {
            picked.iter().map(|&line| words(&lines[line]).filter(|word| *word == name).count()).sum()
        };
        self.hunks.iter().enumerate().filter_map(move |(index, hunk)| {
            let (removed, added) = (count(&self.old, &hunk.removed), count(&self.new, &hunk.added));
            let role = match (removed, added) {
                (0, 0) => return None,
                _ if added > removed => Role::Introduces,
                (_, 0) => Role::Removes,
                _ => Role::Mentions,
            };
            Some((index, role))
        })
    }

    /// Whether the newer text defines a function or a variable of a name that the older one does not define: a line
    /// at the left margin that has the name and is no declaration.
    pub(crate) fn brings_definition(&self, name: &str) -> bool {
        defines(&self.new, name) && !defines(&self.old, name)
    }

    /// Functions and variables that only the newer text defines.
    pub(crate) fn new_definitions(&self) -> BTreeSet<&str> {
        let added = self.hunks.iter().flat_map(|hunk| &hunk.added).map(|&line| self.new[line].as_str());
        let at_margin = added.filter(|line| line.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'));
        let named: BTreeSet<&str> = at_margin.flat_map(words).collect();
        named.into_iter().filter(|name| self.brings_definition(name)).collect()
    }

    /// Whether a changed line has a name.
    pub(crate) fn changes_lines_with(&self, name: &str) -> bool {
        self.roles(name).next().is_some()
    }
}

fn defines(lines: &[String], name: &str) -> bool {
    lines.iter().enumerate().any(|(index, line)| {
        let margin = line.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !margin || line.starts_with("extern ") || line.starts_with("typedef ") {
            return false;
        }
        let Some(behind) = behind_word(line, name) else { return false };
        match behind.trim_start().chars().next() {
            // A function, if its parameters are followed by a brace and not by a semicolon.
            Some('(') => {
                let rest = lines[index..].iter().take(12).flat_map(|line| line.chars());
                rest.skip_while(|c| *c != ')').find(|c| "{;".contains(*c)) == Some('{')
            }
            Some('[' | '=' | ';') => true,
            _ => false,
        }
    })
}

/// What follows a word of a line.
fn behind_word<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
    line.match_indices(name).find_map(|(at, _)| {
        let (before, behind) = (&line[..at], &line[at + name.len()..]);
        (!before.ends_with(inside) && !behind.starts_with(inside)).then_some(behind)
    })
}

/// Identifiers of a text.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hunks_are_taken_one_by_one() {
        let old = "a\n1\n2\n3\n4\n5\n6\n7\nb\n";
        let new = "x\n1\n2\n3\n4\n5\n6\n7\ny\nz\n";
        let versions = Versions::new(old, new);
        assert_eq!(versions.len(), 2);
        assert_eq!(versions.with(&BTreeSet::new()), old);
        assert_eq!(versions.with(&BTreeSet::from([0, 1])), new);
        assert_eq!(versions.with(&BTreeSet::from([1])), new.replace('x', "a"));
    }

    #[test]
    fn names_have_roles() {
        let versions = Versions::new("int f(int a);\nint gone;\n", "int f(int a, int b);\nint fresh(void);\n");
        let role = |name| versions.roles(name).next();
        assert_eq!(role("fresh"), Some((0, Role::Introduces)));
        assert_eq!(role("f"), Some((0, Role::Mentions)));
        assert_eq!(role("gone"), Some((0, Role::Removes)));
        assert_eq!(role("other"), None);
    }

    #[test]
    fn definitions_are_told_from_declarations() {
        let new = "int f(int a)\n{\n\treturn g(a);\n}\nint g(int a);\nEXPORT_SYMBOL(h);\nstatic int table[] = {\n};\nint plain;\n";
        let versions = Versions::new("", new);
        for (name, expected) in [("f", true), ("g", false), ("h", false), ("table", true), ("plain", true)] {
            assert_eq!(versions.brings_definition(name), expected, "{name}");
        }
        assert_eq!(versions.new_definitions(), BTreeSet::from(["f", "plain", "table"]));
    }
}
