//! What changes between two versions of a text, and how far it reaches.
//!
//! Comes in: the items before and after. Decided: which items differ, and which names that concerns; whether an item
//! that did not change passes it on, because it mentions such a name. Goes out: names, or why everything may change.

use super::declaration::{Enumerator, enumerators};
use super::items::{Item, ItemKind, Items};
use std::collections::{BTreeMap, BTreeSet};

/// Names that mean something else than before. The value says whether the name is a macro.
pub type Names<'t> = BTreeMap<&'t [u8], bool>;

/// What a change of a text concerns.
#[derive(Debug, Default)]
pub struct Change<'t> {
    /// Names whose meaning may change for who mentions them.
    pub names: Names<'t>,
    /// Why everything that takes in the text may change.
    pub anything: Option<&'static str>,
    /// Items after that include something, which they did not before.
    pub includes: Vec<usize>,
    /// Indices of the changed items before.
    pub old: BTreeSet<usize>,
    /// Indices of the changed items after.
    pub new: BTreeSet<usize>,
}

impl Change<'_> {
    /// Whether nothing differs but comments, blanks and conditions without contents.
    pub fn is_empty(&self) -> bool {
        self.old.is_empty() && self.new.is_empty()
    }
}

/// Compares two lists of items.
pub fn changes<'t>(old: &Items<'t>, new: &Items<'t>) -> Change<'t> {
    let mut change = Change::default();
    let digests = |items: &Items<'_>| -> Vec<u64> { items.list.iter().map(|item| item.digest).collect() };
    let (before, after) = (digests(old), digests(new));
    let head = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
    let rest = before.len().min(after.len()) - head;
    let tail = before.iter().rev().zip(after.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let (old_middle, new_middle) = (&before[head..before.len() - tail], &after[head..after.len() - tail]);
    for operation in similar::capture_diff_slices(similar::Algorithm::Myers, old_middle, new_middle) {
        let (tag, old, new) = operation.as_tag_tuple();
        if tag != similar::DiffTag::Equal {
            change.old.extend(old.map(|index| index + head));
            change.new.extend(new.map(|index| index + head));
        }
    }
    // A condition that changes is part of every item in it.
    change.old.retain(|&index| old.list[index].kind != ItemKind::Condition);
    change.new.retain(|&index| new.list[index].kind != ItemKind::Condition);
    let mut spoken: BTreeSet<&[u8]> = BTreeSet::new();
    for (items, indices, is_new) in [(old, &change.old, false), (new, &change.new, true)] {
        for &index in indices {
            let item = &items.list[index];
            let anything = match item.kind {
                ItemKind::Include if is_new => {
                    change.includes.push(index);
                    None
                }
                ItemKind::Include => Some("it no longer includes something"),
                ItemKind::Active => Some("it defines something else than declarations, macros and inline functions"),
                _ => None,
            };
            change.anything = change.anything.or(anything);
            change.names.extend(item.names.iter().map(|&name| (name, item.kind == ItemKind::Macro)));
            spoken.extend(item.names.iter().copied());
        }
    }
    for name in same_enumerators(old, new, &change) {
        change.names.remove(name);
    }
    change
}

/// Names of enumerations that change, but keep their meaning: enumerators whose value stays, and the tag.
fn same_enumerators<'t>(old: &Items<'t>, new: &Items<'t>, change: &Change<'t>) -> Vec<&'t [u8]> {
    let pick = |items: &Items<'t>, indices: &BTreeSet<usize>| -> Vec<Item<'t>> {
        let all = indices.iter().map(|&index| items.list[index].clone());
        all.filter(|item| item.enumeration && item.kind == ItemKind::Inert).collect()
    };
    let (before, after) = (pick(old, &change.old), pick(new, &change.new));
    let mut same = Vec::new();
    for item in &before {
        // Both declare the first name: the tag, or the first enumerator.
        let Some(other) = after.iter().find(|other| other.names.first() == item.names.first()) else { continue };
        let (Some(one), Some(two)) = (values(old, item), values(new, other)) else { continue };
        let equal: BTreeSet<&[u8]> =
            one.iter().filter(|(name, value)| two.get(*name) == Some(value)).map(|(name, _)| *name).collect();
        let listed = |name: &[u8]| one.contains_key(name) || two.contains_key(name);
        same.extend(item.names.iter().copied().filter(|name| equal.contains(name) || !listed(name)));
    }
    // A name that another changed item introduces as well stays.
    let twice = |name: &[u8]| {
        let named = |items: &Items<'_>, indices: &BTreeSet<usize>| {
            indices.iter().filter(|&&index| items.list[index].names.contains(&name)).count()
        };
        named(old, &change.old) > 1 || named(new, &change.new) > 1
    };
    same.retain(|name| !twice(name));
    same
}

/// Values of enumerators, where all are plain and small, so that the enumeration's type stays as well.
fn values<'t>(items: &Items<'t>, item: &Item<'t>) -> Option<BTreeMap<&'t [u8], i64>> {
    let tokens = &items.tokens[item.tokens.clone()];
    let open = tokens.iter().position(|token| token.is(b'{'))?;
    let close = tokens.iter().rposition(|token| token.is(b'}'))?;
    let list: Vec<Enumerator<'t>> = enumerators(tokens.get(open..close + 1)?)?;
    if items.tokens_of(item).any(|token| token.kind == super::lex::TokenKind::Directive) {
        return None;
    }
    let mut values: BTreeMap<&[u8], i64> = BTreeMap::new();
    let mut next = 0i64;
    for enumerator in list {
        let value = match enumerator.value.as_slice() {
            [] => next,
            [_, value] => number(value).or_else(|| values.get(value).copied())?,
            [_, name, operator, value] if *operator == b"+" => values.get(name)?.checked_add(number(value)?)?,
            [_, open, one, a, b, shift, close] if (*open, *a, *b, *close) == (b"(", b"<", b"<", b")") => {
                number(one)?.checked_shl(u32::try_from(number(shift)?).ok()?)?
            }
            [_, one, a, b, shift] if (*a, *b) == (b"<", b"<") => {
                number(one)?.checked_shl(u32::try_from(number(shift)?).ok()?)?
            }
            _ => return None,
        };
        if !(0..1 << 31).contains(&value) {
            return None;
        }
        values.insert(enumerator.name, value);
        next = value + 1;
    }
    Some(values)
}

fn number(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => i64::from_str_radix(digits, 16).ok(),
        // An octal number has another value.
        None if text.len() > 1 && text.starts_with('0') => i64::from_str_radix(&text[1..], 8).ok(),
        None => text.parse().ok(),
    }
}

/// What an item that did not change makes of changed names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passes {
    /// It mentions none.
    Nothing,
    /// Its own names may mean something else as well.
    ItsNames,
    /// What the text is part of may change.
    Anything,
}

/// Whether an unchanged item passes on a change of `names`.
pub fn passes(items: &Items<'_>, item: &Item<'_>, names: &Names<'_>) -> Passes {
    let mentioned: Vec<(&[u8], bool)> =
        items.words_of(item).filter_map(|word| names.get(word).map(|&is_macro| (word, is_macro))).collect();
    if mentioned.is_empty() {
        return Passes::Nothing;
    }
    let own = |word: &[u8]| item.names.contains(&word);
    match item.kind {
        ItemKind::Include | ItemKind::Condition | ItemKind::Active => Passes::Anything,
        // Another definition of the same macro, and who uses the name is asked already.
        ItemKind::Macro if mentioned.iter().all(|(word, _)| own(word)) => Passes::Nothing,
        ItemKind::Macro => Passes::ItsNames,
        ItemKind::Inert => {
            // A macro between the words of a declaration, among enumerators or in a type may introduce other names.
            let shapes = mentioned.iter().any(|(word, is_macro)| {
                *is_macro
                    && (item.enumeration || is_outside(items, item, word) || is_invoked_in_type(items, item, word))
            });
            if shapes {
                Passes::Anything
            } else if mentioned.iter().all(|(word, _)| own(word)) && !item.enumeration {
                Passes::Nothing
            } else {
                Passes::ItsNames
            }
        }
    }
}

/// Whether a word of the item stands outside all brackets.
fn is_outside(items: &Items<'_>, item: &Item<'_>, word: &[u8]) -> bool {
    let mut depth = 0usize;
    for token in items.tokens_of(item) {
        if token.is(b'(') || token.is(b'{') || token.is(b'[') {
            depth += 1;
        } else if token.is(b')') || token.is(b'}') || token.is(b']') {
            depth = depth.saturating_sub(1);
        } else if depth == 0 && token.text == word {
            return true;
        }
    }
    false
}

/// Whether a macro is invoked in the body of a type, where it may introduce tags.
fn is_invoked_in_type(items: &Items<'_>, item: &Item<'_>, word: &[u8]) -> bool {
    let tokens: Vec<_> = items.tokens_of(item).collect();
    let is_type = tokens.last().is_some_and(|token| token.is(b';')) && tokens.iter().any(|token| token.is(b'{'));
    is_type && tokens.windows(2).any(|pair| pair[0].text == word && pair[1].is(b'('))
}

#[cfg(test)]
mod tests {
    use super::super::{items, lex};
    use super::*;

    fn names(old: &str, new: &str) -> (Vec<String>, bool) {
        let (old, new) = (lex::tokens(old.as_bytes()), lex::tokens(new.as_bytes()));
        let (old, new) = (items::items(&old, &|_| false), items::items(&new, &|_| false));
        let change = changes(&old, &new);
        let names = change.names.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        (names, change.anything.is_some())
    }

    fn passed(name: &'static str, is_macro: bool, text: &str) -> Passes {
        let tokens = lex::tokens(text.as_bytes());
        let items = items::items(&tokens, &|_| false);
        passes(&items, &items.list[0], &Names::from([(name.as_bytes(), is_macro)]))
    }

    #[test]
    fn the_names_of_what_changes() {
        let none: [&str; 0] = [];
        assert_eq!(names("int f(void); /* a */", "int  f(void);\n"), (none.map(str::to_owned).to_vec(), false));
        assert_eq!(names("#define A 1\nint f(void);", "#define A 2\nint f(void);"), (vec!["A".into()], false));
        assert_eq!(names("#define A (1)", "#define A(1)"), (vec!["A".into()], false));
        assert_eq!(names("int f(void);", "int f(void);\nint g(int);\nstruct s;"), (vec!["g".into()], false));
        assert!(names("#include <a.h>", "").1 && names("int a;", "long a;").1 && !names("", "#include <a.h>").1);
        assert_eq!(
            names("#ifdef A\nint f(void);\n#endif", "#ifdef B\nint f(void);\n#endif"),
            (vec!["f".into()], false)
        );
    }

    #[test]
    fn enumerators_that_keep_their_value_do_not_count() {
        assert_eq!(names("enum e { A, B };", "enum e { A, B, C };"), (vec!["C".into()], false));
        assert_eq!(names("enum e { A, B };", "enum e { N, A, B };").0, ["A", "B", "N"]);
        assert_eq!(names("enum { A, B = (1 << 3), };", "enum { A, B = 8, C = 1 << 4 };").0, ["C"]);
        // A large value may change the type of all.
        assert_eq!(names("enum e { A };", "enum e { A, B = 0x100000000 };").0, ["A", "B", "e"]);
        assert_eq!(names("enum e { A };", "enum e { A, B = -1 };").0, ["A", "B", "e"]);
    }

    #[test]
    fn how_unchanged_items_pass_it_on() {
        use Passes::{Anything, ItsNames, Nothing};
        for (name, is_macro, text, expected) in [
            ("f", false, "int g(void);", Nothing),
            ("f", false, "int f(void);", Nothing),
            ("f", false, "static inline int g(void) { return f(); }", ItsNames),
            ("f", false, "int g(void) { return f(); }", Anything),
            ("f", false, "#define G f()", ItsNames),
            ("f", false, "#ifdef f", Anything),
            ("M", true, "static inline int g(void) { return M; }", ItsNames),
            ("M", true, "M int g(void);", Anything),
            ("M", true, "enum { M, B };", Anything),
            ("M", true, "struct s { int a[M]; };", ItsNames),
            ("M", true, "struct s { M(int, a); };", Anything),
            ("f", false, "static inline int g(void) { return 0; /* f */ }", Nothing),
        ] {
            assert_eq!(passed(name, is_macro, text), expected, "{name} in {text}");
        }
    }
}
