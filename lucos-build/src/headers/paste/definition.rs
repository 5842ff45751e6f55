//! Definitions of macros, and calls of them.
//!
//! Comes in: what stands behind `define`. Decided: what the parameters are, and which names the `##` of the body make of them. Goes
//! out: [`Definition`], its own [`Chain`]s, and the arguments of a call.

use super::{Chain, Part, push};
use diff_analyzer::declarations::lex::{Token, TokenKind, tokens, words};

/// A definition of a macro with parameters.
pub(super) struct Definition<'t> {
    pub(super) name: &'t [u8],
    pub(super) parameters: Vec<&'t [u8]>,
    pub(super) variadic: bool,
    pub(super) body: Vec<Token<'t>>,
}

impl<'t> Definition<'t> {
    /// From what stands behind `define`.
    pub(super) fn read(definition: &'t [u8]) -> Option<Self> {
        let name = words(definition).next()?;
        let start = name.as_ptr() as usize - definition.as_ptr() as usize + name.len();
        // Comments in front of a body hide no `#` at a line's start, because a macro's body is one line.
        let tokens = tokens(&definition[start..]);
        let mut parameters = Vec::new();
        let (mut variadic, mut body) = (false, 0);
        if definition.get(start) == Some(&b'(') {
            body = tokens.iter().position(|token| token.is(b')'))? + 1;
            for token in &tokens[1..body] {
                if token.kind == TokenKind::Word {
                    parameters.push(token.text);
                }
                variadic |= token.is(b'.');
            }
            let last = tokens.get(body.wrapping_sub(2));
            // `...` has a name of its own, `name...` has not.
            if variadic && tokens[1..body].iter().filter(|token| token.is(b'.')).count() >= 3 {
                let named = tokens.get(body.wrapping_sub(5)).is_some_and(|token| token.kind == TokenKind::Word);
                if !named || last.is_none() {
                    parameters.push(b"__VA_ARGS__");
                }
            }
        }
        Some(Self { name, parameters, variadic, body: tokens[body..].to_vec() })
    }

    pub(super) fn parameter(&self, word: &[u8]) -> Option<usize> {
        self.parameters.iter().position(|parameter| *parameter == word)
    }
}

/// The `##` of a definition.
pub(super) fn own_chains(definition: &Definition<'_>) -> Vec<Chain> {
    let tokens = &definition.body;
    let part = |at: usize| {
        let token = tokens.get(at).filter(|token| matches!(token.kind, TokenKind::Word | TokenKind::Number))?;
        Some(definition.parameter(token.text).map_or_else(|| Part::Fixed(token.text.to_owned()), Part::Parameter))
    };
    let pastes = |at: usize| {
        tokens.get(at).is_some_and(|token| token.is(b'#')) && tokens.get(at + 1).is_some_and(|token| token.is(b'#'))
    };
    let (mut chains, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let Some(first) = part(at) else {
            at += 1;
            continue;
        };
        let (mut chain, mut links, start) = (Vec::new(), 0, at);
        push(&mut chain, first);
        at += 1;
        while pastes(at) {
            let Some(next) = part(at + 2) else { break };
            push(&mut chain, next);
            links += 1;
            at += 3;
        }
        if links > 0 {
            chains.push(Chain { pattern: chain, whole: start == 0 && at == tokens.len() });
        }
    }
    chains
}

/// The arguments of a call whose `(` is at `open`, and the end of the call.
pub(super) fn arguments<'s, 't>(
    tokens: &'s [Token<'t>],
    open: usize,
    variadic: Option<usize>,
) -> (Vec<&'s [Token<'t>]>, usize) {
    let (mut list, mut depth, mut start) = (Vec::new(), 0usize, open + 1);
    for (at, token) in tokens.iter().enumerate().skip(open) {
        if token.kind != TokenKind::Punct {
            continue;
        }
        match token.text[0] {
            b'(' => depth += 1,
            b')' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    list.push(&tokens[start..at]);
                    return (list, at + 1);
                }
            }
            b',' if depth == 1 && variadic.is_none_or(|last| list.len() < last) => {
                list.push(&tokens[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    (list, tokens.len())
}
