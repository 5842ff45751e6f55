//! What a file includes whatever the configuration is, and whether including it again does nothing.
//!
//! Comes in: a text. Decided: which `#include` stands under no condition but the guard of the whole file. Goes out: a
//! [`Shape`]. Comments do not count.

use diff_analyzer::declarations::lex::{TokenKind, directive, tokens, words};

/// The includes of a text and its guard.
#[derive(Debug, PartialEq, Eq)]
pub struct Shape<'t> {
    /// Each `#include`, in order.
    pub includes: Vec<Inclusion<'t>>,
    /// All of the text stands in `#ifndef NAME`, `#define NAME`, so that another inclusion does nothing.
    pub guarded: bool,
}

/// An `#include`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inclusion<'t> {
    /// What stands behind the word.
    pub what: &'t [u8],
    /// It stands under no condition.
    pub certain: bool,
    /// It is an `#include_next`.
    pub next: bool,
}

impl<'t> Shape<'t> {
    /// Reads a text.
    pub fn of(text: &'t [u8]) -> Self {
        let tokens = tokens(text);
        let at = |index: usize| {
            let token = tokens.get(index).filter(|token| token.kind == TokenKind::Directive)?;
            Some(directive(token.text))
        };
        let name = |rest: &'t [u8]| words(rest).next();
        let opens = match (at(0), at(1)) {
            (Some((b"ifndef", guard)), Some((b"define", defined))) => {
                name(guard).is_some_and(|guard| name(defined) == Some(guard))
            }
            _ => false,
        };
        let (mut depth, mut includes, mut closed) = (0usize, Vec::new(), None);
        for (index, token) in tokens.iter().enumerate().filter(|(_, token)| token.kind == TokenKind::Directive) {
            let (name, rest) = directive(token.text);
            match name {
                b"if" | b"ifdef" | b"ifndef" => depth += 1,
                b"endif" => {
                    depth = depth.saturating_sub(1);
                    closed = closed.or((depth == 0).then_some(index));
                }
                // The guard has another branch: it is none.
                b"else" | b"elif" if depth == 1 => closed = closed.or(Some(0)),
                b"include" => includes.push((rest, depth, false)),
                b"include_next" => includes.push((rest, depth, true)),
                _ => {}
            }
        }
        let guarded = opens && closed.is_some_and(|closed| closed + 1 == tokens.len());
        let inclusion = |(what, depth, next)| Inclusion { what, certain: depth == usize::from(guarded), next };
        Self { includes: includes.into_iter().map(inclusion).collect(), guarded }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(text: &str) -> (bool, Vec<bool>) {
        let shape = Shape::of(text.as_bytes());
        (shape.guarded, shape.includes.iter().map(|include| include.certain).collect())
    }

    #[test]
    fn only_the_guard_of_the_whole_file_is_no_condition() {
        let inside = "#include <a.h>\n#ifdef X\n#include <b.h>\n#endif\n#include <c.h>\n";
        let guarded = format!("/* #endif */\n#ifndef G\n#define G 1\n{inside}int a;\n#endif /* G */\n");
        assert_eq!(shape(&guarded), (true, vec![true, false, true]));
        assert_eq!(shape(inside), (false, vec![true, false, true]));
        // A condition at the start, something outside, another branch, another name.
        for text in [
            format!("#ifndef G\n{inside}#endif\n"),
            format!("#ifndef G\n#define G\n{inside}#endif\nint a;\n"),
            format!("int a;\n#ifndef G\n#define G\n{inside}#endif\n"),
            format!("#ifndef G\n#define G\n{inside}#else\nint a;\n#endif\n"),
            format!("#ifndef G\n#define H\n{inside}#endif\n"),
        ] {
            assert_eq!(shape(&text), (false, vec![false, false, false]), "{text}");
        }
        assert_eq!(shape("#if A\n#else\n#include <a.h>\n#endif\n#include <b.h>\n"), (false, vec![false, true]));
    }
}
