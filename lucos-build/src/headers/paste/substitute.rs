//! What calls of macros make of their arguments.
//!
//! Comes in: the tokens of a text or of a macro's body. Decided: what each argument may add to a name, as it is or expanded; what
//! cannot be known may be anything. Goes out: the names that the calls make, as [`Chain`]s.

use super::definition::arguments;
use super::{Chain, MANY, Part, Pasting, Pattern, push};
use diff_analyzer::declarations::lex::{Token, TokenKind};
use std::collections::HashSet;

impl Pasting<'_> {
    /// Names that the calls between some tokens make.
    pub(super) fn in_calls(&self, tokens: &[Token<'_>], parameter: &dyn Fn(&[u8]) -> Option<usize>) -> Vec<Chain> {
        let mut found = Vec::new();
        for at in 0..tokens.len().saturating_sub(1) {
            if tokens[at].kind != TokenKind::Word || !tokens[at + 1].is(b'(') {
                continue;
            }
            let Some(chains) = self.chains.get(tokens[at].text) else { continue };
            let (arguments, end) = arguments(tokens, at + 1, self.variadic.get(tokens[at].text).copied());
            let all = at == 0 && end == tokens.len();
            for chain in chains {
                let patterns = self.substitute(&chain.pattern, &arguments, parameter, 0);
                found.extend(patterns.into_iter().map(|pattern| Chain { pattern, whole: all && chain.whole }));
            }
        }
        found
    }

    /// The names that a chain makes of the arguments of a call.
    fn substitute(
        &self,
        chain: &[Part],
        arguments: &[&[Token<'_>]],
        parameter: &dyn Fn(&[u8]) -> Option<usize>,
        depth: usize,
    ) -> Vec<Pattern> {
        let mut patterns: Vec<Pattern> = vec![Vec::new()];
        let last = chain.len() - 1;
        for (at, part) in chain.iter().enumerate() {
            let ways = match part {
                Part::Parameter(index) => {
                    let argument = arguments.get(*index).copied().unwrap_or_default();
                    self.argument(argument, (at == 0, at == last), parameter, depth)
                }
                other => vec![vec![other.clone()]],
            };
            let longer = patterns.iter().flat_map(|pattern| {
                ways.iter().map(move |way| {
                    let mut longer = pattern.clone();
                    way.iter().for_each(|part| push(&mut longer, part.clone()));
                    longer
                })
            });
            patterns = longer.collect();
            if patterns.len() > MANY {
                return vec![vec![Part::Any]];
            }
        }
        patterns
    }

    /// What an argument may add to a name: its last token when something follows, its first when something stands before.
    fn argument(
        &self,
        argument: &[Token<'_>],
        (is_first, is_last): (bool, bool),
        parameter: &dyn Fn(&[u8]) -> Option<usize>,
        depth: usize,
    ) -> Vec<Pattern> {
        let token = match argument {
            [] => return vec![Vec::new()],
            [one] => one,
            [name, open, ..] if name.kind == TokenKind::Word && open.is(b'(') => {
                let (inner, end) = arguments(argument, 1, self.variadic.get(name.text).copied());
                let chains = self.chains.get(name.text);
                let whole = chains.into_iter().flatten().filter(|chain| chain.whole);
                let ways: Vec<Pattern> = if end == argument.len() && depth < 12 {
                    whole.flat_map(|chain| self.substitute(&chain.pattern, &inner, parameter, depth + 1)).collect()
                } else {
                    Vec::new()
                };
                return if ways.is_empty() && self.settled { vec![vec![Part::Any]] } else { ways };
            }
            _ if argument.iter().any(|token| token.is(b'#')) => {
                return vec![pasted(argument, parameter).unwrap_or_else(|| vec![Part::Any])];
            }
            [.., last] if is_first && !is_last => last,
            [first, ..] if is_last && !is_first => first,
            _ => return vec![vec![Part::Any]],
        };
        let mut ways = HashSet::new();
        self.token(token.kind, token.text, is_first && !is_last, parameter, 0, &mut ways);
        ways.into_iter().collect()
    }

    /// A token of an argument, as it is, and as it may be expanded before it is pasted.
    fn token(
        &self,
        kind: TokenKind,
        text: &[u8],
        is_first: bool,
        parameter: &dyn Fn(&[u8]) -> Option<usize>,
        depth: usize,
        ways: &mut HashSet<Pattern>,
    ) {
        match kind {
            TokenKind::Number => drop(ways.insert(vec![Part::Fixed(text.to_owned())])),
            TokenKind::Word => {
                if let Some(index) = parameter(text) {
                    ways.insert(vec![Part::Parameter(index)]);
                    return;
                }
                if text == b"__KBUILD_MODNAME" {
                    // scripts/Makefile.lib, `modname_flags`
                    ways.insert(vec![Part::Fixed(b"kmod_".to_vec()), Part::Any]);
                    return;
                }
                if text.starts_with(b"KBUILD_") || text.starts_with(b"__KBUILD_") || depth > 3 || ways.len() > 6 {
                    // The command line defines it.
                    ways.insert(vec![Part::Any]);
                    return;
                }
                if !ways.insert(vec![Part::Fixed(text.to_owned())]) {
                    return;
                }
                for ends in self.plain.get(text).into_iter().flatten() {
                    if let Some(token) = ends[usize::from(is_first)] {
                        self.token(token.kind, token.text, is_first, &|_| None, depth + 1, ways);
                    }
                }
            }
            // No name comes of it.
            _ => {}
        }
    }
}

/// An argument that is pasted together itself: `_##name`.
fn pasted(argument: &[Token<'_>], parameter: &dyn Fn(&[u8]) -> Option<usize>) -> Option<Pattern> {
    let mut pattern = Vec::new();
    for (at, token) in argument.iter().enumerate() {
        match (at % 3, token.kind) {
            (0, TokenKind::Word | TokenKind::Number) => {
                let part = parameter(token.text).map_or_else(|| Part::Fixed(token.text.to_owned()), Part::Parameter);
                push(&mut pattern, part);
            }
            (1 | 2, _) if token.is(b'#') => {}
            _ => return None,
        }
    }
    (argument.len() % 3 == 1).then_some(pattern)
}
