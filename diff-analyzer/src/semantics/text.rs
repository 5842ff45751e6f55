//! What the source of a function calls, before and after a diff.
//!
//! Comes in: the changed files. Decided: where each function's text begins and ends, which primitives stand in it; a macro of
//! a changed file, and a function that only one side has, count with what stands in them. Goes out: [`Counts`] to compare.
//!
//! The text says how often the author wrote a call, whatever the compiler makes of it: copies of loops, merged ends of
//! functions and decisions on inlining change nothing here.

mod functions;

use super::primitives::{Effect, Primitive, Primitives, Resource};
use crate::declarations::lex::{tokens, words};
use crate::source_diff::{Edit, FileChange};
use functions::File;
use std::collections::{BTreeMap, BTreeSet};

/// A macro or function inside of another one, and so on, no deeper than this.
const MAX_DEPTH: usize = 8;

/// Before or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Before.
    Old,
    /// After.
    New,
}

/// What calls have in common that count as the same: resource, effect, and what else they do by their name. Calls that neither
/// take nor drop anything are the same when they have the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// What it works on.
    pub resource: &'static Resource,
    /// What it does.
    pub effect: Effect,
    /// [`Primitive::context`], or the name.
    pub context: &'static str,
}

/// Calls by what they do.
pub type Counts = BTreeMap<Key, Count>;

/// Calls that do the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub calls: usize,
    /// Their names.
    pub names: BTreeSet<&'static str>,
}

/// Texts of both sides.
#[derive(Debug)]
pub struct Texts<'c> {
    changes: &'c [FileChange],
    /// By file, as in `changes`.
    files: Vec<[File<'c>; 2]>,
}

/// A function in the changed files.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    file: usize,
}

impl<'c> Texts<'c> {
    /// Reads the changed files.
    pub fn of(changes: &'c [FileChange]) -> Self {
        let files = changes.iter().map(|change| [File::read(&change.old), File::read(&change.new)]).collect();
        Self { changes, files }
    }

    /// The changed file in which a function stands on both sides. `path` is the file's, as debug information has it.
    pub fn find(&self, path: &str, name: &str) -> Option<Found> {
        let file = self.changes.iter().position(|change| is_path_of(path, change))?;
        let both = self.files[file].iter().all(|side| !side.bodies(name).is_empty());
        both.then_some(Found { file })
    }

    /// The changed file.
    pub fn change(&self, found: Found) -> &'c FileChange {
        &self.changes[found.file]
    }

    /// Whether the diff changes the text of a function, spaces and comments aside.
    pub fn differs(&self, found: Found, name: &str) -> bool {
        let [old, new] = &self.files[found.file];
        let change = self.change(found);
        let tokens_of = |file: &File<'c>, text: &'c [u8]| -> Vec<&'c [u8]> {
            let lines = crate::source_diff::lines(text);
            let bodies = file.bodies(name);
            let parts = bodies.iter().filter_map(|body| lines.get(body.lines.clone()));
            parts.flat_map(|part| part.iter().flat_map(|line| tokens(line))).map(|token| token.text).collect()
        };
        tokens_of(old, &change.old) != tokens_of(new, &change.new)
    }

    /// The calls of a function.
    pub fn counts(&self, found: Found, name: &str, side: Side) -> Counts {
        let mut counts = Counts::new();
        for body in self.files[found.file][side as usize].bodies(name) {
            self.count(&body.words, found.file, side, MAX_DEPTH, &mut counts);
        }
        counts
    }

    fn count(&self, words: &[&str], file: usize, side: Side, depth: usize, counts: &mut Counts) {
        let mut before = "";
        for &word in words {
            for primitive in primitives(before, word) {
                let count = counts.entry(Key::of(&primitive)).or_default();
                count.calls += 1;
                count.names.insert(primitive.name);
            }
            before = word;
            if depth == 0 || Primitives::known().get(word).is_some() {
                continue;
            }
            if let Some(definition) = self.definition(word, file, side) {
                self.count(definition, file, side, depth - 1, counts);
                continue;
            }
            if self.only_one_side_has(word) {
                for (file, sides) in self.files.iter().enumerate() {
                    for body in sides[side as usize].bodies(word) {
                        self.count(&body.words, file, side, depth - 1, counts);
                    }
                }
            }
        }
    }

    /// What a macro stands for: of the same file, or of a header.
    fn definition(&self, name: &str, file: usize, side: Side) -> Option<&[&'c str]> {
        let own = self.files[file][side as usize].macros.get(name);
        let headers = self.changes.iter().zip(&self.files);
        let mut headers = headers.filter(|(change, _)| change.path.extension().is_some_and(|ext| ext == "h"));
        let found = own.or_else(|| headers.find_map(|(_, sides)| sides[side as usize].macros.get(name)));
        found.map(Vec::as_slice)
    }

    fn only_one_side_has(&self, name: &str) -> bool {
        let has = |side: Side| self.files.iter().any(|sides| !sides[side as usize].bodies(name).is_empty());
        has(Side::Old) != has(Side::New)
    }

    /// A line that the diff adds to a file and in which a word stands: the file relative to the tree, the line of the text after the
    /// diff, the line of the diff.
    pub fn added(&self, path: &str, word: &str) -> Option<(String, usize, Option<usize>)> {
        let change = self.changes.iter().find(|change| is_path_of(path, change))?;
        let last = word.rsplit('.').next().unwrap_or(word);
        let text = crate::source_diff::lines(&change.new);
        let mut added = change.hunks.iter().flat_map(|hunk| &hunk.edits).flat_map(|edit| edit.new.clone());
        let line =
            added.find(|&line| text.get(line).is_some_and(|text| words(text).any(|word| word == last.as_bytes())))?;
        Some((change.path.display().to_string(), line + 1, change.diff_line_of(line)))
    }

    /// Where the calls of a kind differ: line of the text after the diff, and line of the diff.
    pub fn place(&self, found: Found, name: &str, key: Option<&Key>, side: Side) -> (Option<usize>, Option<usize>) {
        let change = self.change(found);
        let bodies = self.files[found.file][side as usize].bodies(name);
        let edits = || change.hunks.iter().flat_map(|hunk| &hunk.edits);
        let range = |edit: &Edit| match side {
            Side::Old => edit.old.clone(),
            Side::New => edit.new.clone(),
        };
        let is_meant = |before: &str, word: &str| {
            key.is_some_and(|key| primitives(before, word).any(|primitive| Key::of(&primitive) == *key))
        };
        let calls = bodies.iter().flat_map(|body| {
            let before = std::iter::once("").chain(body.words.iter().copied());
            let calls = before.zip(&body.words).zip(&body.word_lines);
            calls.filter(|((before, word), _)| is_meant(before, word)).map(|(_, &line)| line)
        });
        let mut changed =
            calls.filter_map(|line| edits().find(|edit| range(edit).contains(&line)).map(|edit| (line, edit)));
        if let Some((line, edit)) = changed.next() {
            return match side {
                Side::New => (Some(line + 1), change.diff_line_of(line)),
                Side::Old => (Some(edit.new.start + 1), change.diff_line_of_old(line)),
            };
        }
        // No such call stands on a changed line itself: the first change in the function, else the function.
        let bodies = self.files[found.file][Side::New as usize].bodies(name);
        let inside = |line: usize| bodies.iter().any(|body| body.lines.contains(&line));
        if let Some(edit) = edits().find(|edit| inside(edit.new.start)) {
            let diff_line = match edit.new.is_empty() {
                true => change.diff_line_of_old(edit.old.start),
                false => change.diff_line_of(edit.new.start),
            };
            return (Some(edit.new.start + 1), diff_line);
        }
        let line = bodies.first().map(|body| body.lines.start);
        (line.map(|line| line + 1), line.and_then(|line| change.diff_line_of(line)))
    }
}

/// Whether a path of debug information is that of a changed file.
fn is_path_of(path: &str, change: &FileChange) -> bool {
    let own = change.path.to_string_lossy();
    path.strip_suffix(&*own).is_some_and(|folder| folder.is_empty() || folder.ends_with('/'))
}

impl Key {
    fn of(primitive: &Primitive) -> Self {
        let context = if primitive.effect == Effect::Other { primitive.name } else { primitive.context() };
        // A wait that a signal ends takes the lock like any other.
        let effect = if primitive.effect == Effect::TakeIfZero { Effect::Take } else { primitive.effect };
        Self { resource: primitive.resource, effect, context }
    }
}

/// What a word means behind another one: a primitive, or the class of a guard, which takes and drops.
fn primitives(before: &str, word: &str) -> impl Iterator<Item = Primitive> {
    let guard = match before {
        "guard" | "scoped_guard" | "scoped_cond_guard" | "CLASS" => Primitives::known().guard(word).copied(),
        _ => None,
    };
    let dropped = guard.map(|guard| Primitive { effect: Effect::Drop, ..guard });
    let plain = if guard.is_some() { None } else { Primitives::known().get(word).copied() };
    plain.into_iter().chain(guard).chain(dropped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source_diff;

    fn changes(old: &str, new: &str) -> Vec<FileChange> {
        let tree = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(tree.path().join("f.c"), old).expect("written");
        let diff = similar::TextDiff::from_lines(old, new).unified_diff().header("a/f.c", "b/f.c").to_string();
        source_diff::read(diff.as_bytes(), tree.path()).expect("a diff that applies")
    }

    fn counted(old: &str, new: &str, name: &str) -> [Vec<String>; 2] {
        let changes = changes(old, new);
        let texts = Texts::of(&changes);
        let found = texts.find("/tree/f.c", name).expect("on both sides");
        [Side::Old, Side::New].map(|side| {
            let counts = texts.counts(found, name, side);
            let row = |(key, count): (&Key, &Count)| {
                format!("{} {:?} {} {}", key.resource.name, key.effect, key.context, count.calls)
            };
            counts.iter().map(row).collect()
        })
    }

    #[test]
    fn calls_are_counted_by_what_they_do() {
        let old = "static int f(void)\n{\n\tmutex_lock(&m); /* mutex_lock */\n\tmutex_unlock(&m);\n}\n";
        let new = "static int f(void)\n{\n\tif (mutex_lock_killable(&m))\n\t\treturn 1;\n\tmutex_unlock(&m);\n}\n";
        assert_eq!(counted(old, new, "f")[0], ["mutex Take  1", "mutex Drop  1"]);
        assert_eq!(counted(old, new, "f")[0], counted(old, new, "f")[1]);
        let old = "SYSCALL_DEFINE1(x, int, a)\n{\n\tspin_lock(&l);\n}\n";
        let new = "SYSCALL_DEFINE1(x, int, a)\n{\n\tspin_lock_irqsave(&l, flags);\n}\n";
        assert_eq!(counted(old, new, "__do_sys_x"), [["spinlock Take  1"], ["spinlock Take irqsave 1"]]);
    }

    #[test]
    fn a_guard_takes_and_drops() {
        let old = "int f(void)\n{\n\trcu_read_lock();\n\tg();\n\trcu_read_unlock();\n}\n";
        let new = "int f(void)\n{\n\tguard(rcu)();\n\tg();\n}\n";
        let [before, after] = counted(old, new, "f");
        assert_eq!(before, ["rcu Take  1", "rcu Drop  1"]);
        assert_eq!(before, after);
    }

    #[test]
    fn what_moves_into_a_new_function_or_macro_is_no_change() {
        let old = "void f(void)\n{\n\tmutex_lock(&m);\n\tg();\n\tmutex_unlock(&m);\n}\n";
        let new = "#define END mutex_unlock(&m)\nstatic void h(void)\n{\n\tmutex_lock(&m);\n}\n\n\
            void f(void)\n{\n\th();\n\tg();\n\tEND;\n}\n";
        let [before, after] = counted(old, new, "f");
        assert_eq!(before, after);
    }

    #[test]
    fn a_changed_macro_changes_what_uses_it() {
        let old = "#define LOCK(x) spin_lock(&(x)->lock)\nvoid f(void)\n{\n\tLOCK(a);\n}\n";
        let new = old.replace("spin_lock", "spin_lock_bh");
        assert_eq!(counted(old, &new, "f"), [["spinlock Take  1"], ["spinlock Take bh 1"]]);
    }

    #[test]
    fn places_are_those_of_the_diff() {
        let old = "int f(int a)\n{\n\tmutex_lock(&m);\n\tif (a)\n\t\treturn 1;\n\tmutex_unlock(&m);\n\treturn 0;\n}\n";
        let new =
            old.replace("\tif (a)\n", "\tif (a) {\n\t\tmutex_unlock(&m);\n").replace("return 1;\n", "return 1;\n\t}\n");
        let changes = changes(old, &new);
        let texts = Texts::of(&changes);
        let found = texts.find("f.c", "f").expect("there");
        assert!(texts.differs(found, "f"));
        let drop = *texts.counts(found, "f", Side::New).keys().find(|key| key.effect == Effect::Drop).expect("unlocks");
        // --- +++ @@, then: int, {, lock, -if, +if, +unlock
        assert_eq!(texts.place(found, "f", Some(&drop), Side::New), (Some(5), Some(9)));
        assert_eq!(texts.place(found, "f", Some(&drop), Side::Old), (Some(4), Some(8)));
    }
}
