//! The functions and macros of a source file.
//!
//! Comes in: the text of a file. Decided: where each function begins and ends, how it is called, whatever conditions of the
//! preprocessor are in it. Goes out: [`File`], identifiers by function and macro.

use crate::declarations::lex::{Token, TokenKind, directive, tokens, words};
use std::collections::HashMap;
use std::ops::Range;

/// The text of one side of a file.
#[derive(Debug, Default)]
pub(super) struct File<'c> {
    functions: HashMap<&'c str, Vec<Body<'c>>>,
    /// Those that a macro names, by what it is given: `SYSCALL_DEFINE1(close, …)`.
    by_macro: HashMap<&'c str, Vec<Body<'c>>>,
    pub(super) macros: HashMap<&'c str, Vec<&'c str>>,
}

/// A function's text.
#[derive(Debug)]
pub(super) struct Body<'c> {
    /// Its lines, from 0.
    pub(super) lines: Range<usize>,
    /// Its identifiers.
    pub(super) words: Vec<&'c str>,
    /// The line of each.
    pub(super) word_lines: Vec<usize>,
}

impl<'c> File<'c> {
    /// Reads a text.
    pub(super) fn read(text: &'c [u8]) -> Self {
        let mut file = Self::default();
        let tokens = tokens(text);
        let line_of = {
            let ends: Vec<usize> =
                (text.iter().enumerate()).filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at).collect();
            // A token is a part of the text.
            move |token: &Token<'c>| {
                let at = token.text.as_ptr() as usize - text.as_ptr() as usize;
                ends.partition_point(|&end| end < at)
            }
        };
        let (mut start, mut depth, mut opened) = (0, 0usize, None);
        for (index, token) in tokens.iter().enumerate() {
            if token.kind == TokenKind::Directive {
                file.directive(token.text);
                if depth == 0 && start == index {
                    start = index + 1;
                }
                continue;
            }
            if token.is(b'{') {
                opened = opened.or(Some(index));
                depth += 1;
            } else if token.is(b'}') {
                // Conditions may have several beginnings of one block; a function ends in the first column.
                depth = if token.first_column { 0 } else { depth.saturating_sub(1) };
                if depth == 0
                    && let Some(opened) = opened.take()
                {
                    if let Some((name, by_macro)) = function_name(&tokens[start..opened]) {
                        let words = tokens[opened..index].iter().filter(|token| token.kind == TokenKind::Word);
                        let words = words.filter_map(|token| Some((str_of(token.text)?, line_of(token))));
                        let (words, word_lines) = words.unzip();
                        let lines = line_of(&tokens[start])..line_of(token) + 1;
                        let into = if by_macro { &mut file.by_macro } else { &mut file.functions };
                        into.entry(name).or_default().push(Body { lines, words, word_lines });
                    }
                    start = index + 1;
                }
            } else if token.is(b';') && depth == 0 {
                start = index + 1;
            }
        }
        file
    }

    fn directive(&mut self, text: &'c [u8]) {
        let (what, rest) = directive(text);
        if what != b"define" {
            return;
        }
        let mut all = words(rest).filter_map(str_of);
        if let Some(name) = all.next() {
            self.macros.entry(name).or_default().extend(all);
        }
    }

    /// Functions of a name as the compiler has it: for those that a macro names, one that ends with what the macro is given
    /// (`__do_sys_close`).
    pub(super) fn bodies(&self, name: &str) -> &[Body<'c>] {
        let of_macro = || {
            let mut ends = name.starts_with("__").then(|| name.match_indices('_')).into_iter().flatten();
            ends.find_map(|(at, _)| self.by_macro.get(&name[at + 1..]))
        };
        self.functions.get(name).or_else(of_macro).map_or(&[], Vec::as_slice)
    }
}

/// Words before a function's parameters that have parentheses of their own.
const ATTRIBUTES: &[&str] = &[
    "__attribute__",
    "__printf",
    "__scanf",
    "__section",
    "__aligned",
    "__alloc_size",
    "__diagnose_as",
    "__acquires",
    "__releases",
];

/// The name of the function that what stands before a `{` declares, and whether a macro makes the name; nothing when it is no
/// function.
fn function_name<'c>(head: &[Token<'c>]) -> Option<(&'c str, bool)> {
    let mut depth = 0usize;
    let mut found = None;
    for (index, token) in head.iter().enumerate() {
        if token.is(b'=') && depth == 0 {
            return None;
        }
        if token.is(b')') {
            depth = depth.saturating_sub(1);
        } else if token.is(b'(') {
            let name = index.checked_sub(1).map(|before| head[before]).filter(|name| name.kind == TokenKind::Word);
            let name = name.and_then(|name| str_of(name.text)).filter(|name| !ATTRIBUTES.contains(name));
            if depth == 0 && found.is_none() {
                found = name.map(|name| (name, index));
            }
            depth += 1;
        }
    }
    let (name, parenthesis) = found?;
    let is_macro = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
    if !is_macro {
        return Some((name, false));
    }
    let argument = head.get(parenthesis + 1).filter(|token| token.kind == TokenKind::Word)?;
    Some((str_of(argument.text)?, true))
}

fn str_of(text: &[u8]) -> Option<&str> {
    std::str::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_functions_are_functions() {
        let text = "static const struct x y = {\n\t.lock = f(mutex_lock),\n};\nstruct z {\n\tint a;\n};\n\
            __printf(1, 2) void f(const char *t, ...)\n{\n#ifdef A\n\tif (a) {\n#else\n\tif (b) {\n#endif\n\t}\n}\nint g(void) { return 0; }\n";
        let file = File::read(text.as_bytes());
        let mut names: Vec<&str> = file.functions.keys().copied().collect();
        names.sort_unstable();
        assert_eq!(names, ["f", "g"]);
    }
}
