//! Units that the preprocessor makes the same of.
//!
//! Comes in: units, original and patched. Decided: whether the two texts declare the same, or differ only in declarations
//! that make nothing and that nothing refers to. Goes out: the units that cannot be compiled to something else.

use crate::kbuild::compile::{Compile, CompileError, Side, Unit};
use crate::progress::Progress;
use diff_analyzer::declarations::items::{Items, items};
use diff_analyzer::declarations::lex::tokens;
use diff_analyzer::declarations::reach::{Names, Passes, changes, passes};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Units whose objects cannot differ.
///
/// # Errors
/// [`CompileError`] when no unit can be preprocessed at all; a unit that cannot counts as one that changes.
pub fn unchanged(
    compile: &Compile<'_>,
    units: &[Unit],
    progress: &Progress,
) -> Result<BTreeSet<PathBuf>, CompileError> {
    let done = AtomicUsize::new(0);
    compile.parallel(|| {
        let same = units.par_iter().filter(|unit| {
            let count = done.fetch_add(1, Ordering::Relaxed) + 1;
            progress.phase(format!("preprocessing {count} of {} units", units.len()));
            let texts = compile
                .preprocess(unit, Side::Original)
                .and_then(|old| Ok((old, compile.preprocess(unit, Side::Patched)?)));
            let assembly = unit.name.extension().is_some_and(|extension| extension == "S");
            texts.is_ok_and(|(old, new)| if assembly { same_tokens(&old, &new) } else { same(&old, &new) })
        });
        same.map(|unit| unit.name.clone()).collect()
    })
}

fn same_tokens(old: &[u8], new: &[u8]) -> bool {
    let (old, new) = (tokens(old), tokens(new));
    old.len() == new.len() && old.iter().zip(&new).all(|(old, new)| old.text == new.text)
}

/// Whether two preprocessed texts are compiled to the same.
fn same(old: &[u8], new: &[u8]) -> bool {
    if old == new {
        return true;
    }
    let (old_tokens, new_tokens) = (tokens(old), tokens(new));
    let (old, new) = (items(&old_tokens, &|_| false), items(&new_tokens, &|_| false));
    let change = changes(&old, &new);
    if change.anything.is_some() || !change.includes.is_empty() {
        return false;
    }
    let mut names: Names<'_> = change.names.clone();
    let mut frontier = change.names;
    let all = [(&old, &change.old), (&new, &change.new)];
    while !frontier.is_empty() {
        let mut next = Names::new();
        for (items, changed) in all {
            if !pass(items, changed, &frontier, &mut next) {
                return false;
            }
        }
        next.retain(|name, _| names.insert(name, false).is_none());
        frontier = next;
    }
    true
}

/// Collects the names that unchanged declarations pass the change on to; `false` when one makes something of it.
fn pass<'t>(items: &Items<'t>, changed: &BTreeSet<usize>, names: &Names<'t>, next: &mut Names<'t>) -> bool {
    for (_, item) in items.list.iter().enumerate().filter(|(index, _)| !changed.contains(index)) {
        match passes(items, item, names) {
            Passes::Nothing => {}
            Passes::Anything => return false,
            Passes::ItsNames => next.extend(item.names.iter().map(|&name| (name, false))),
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_refers_to_makes_no_difference() {
        let rest = "int g(void) { return f(1); }";
        let of = |declarations: &str| format!("{declarations}\n{rest}").into_bytes();
        let old = of("int f(int);");
        for (text, expected) in [
            ("int f(int); int h(void);", true),
            ("int f(int); static inline int h(void) { return f(2); } struct s;", true),
            ("int f(int); static inline int h(void) { return 1; } static inline int i(void) { return h(); }", true),
            ("int f(long);", false),
            ("int f(int); int variable;", false),
            ("int f(int); int h(void) { return 1; }", false),
        ] {
            assert_eq!(same(&old, &of(text)), expected, "{text}");
        }
        let counted =
            |number: u32| format!("int f(int); int g(void) {{ int __UNIQUE_ID_x{number} = 1; }}").into_bytes();
        assert!(same(&counted(1), &counted(2)));
    }
}
