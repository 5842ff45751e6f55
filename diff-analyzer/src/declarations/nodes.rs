//! A declaration seen from outside: words, and what stands in brackets.
//!
//! Comes in: the tokens of a declaration. Decided: which bracket closes which; one that nothing closes reaches to the end. Goes
//! out: [`Node`]s.

use super::lex::{Token, TokenKind};
use std::ops::Range;

/// A declaration seen from outside.
#[derive(Debug, Clone)]
pub(super) enum Node<'t> {
    Word(&'t [u8]),
    /// `( … )`
    Group(&'t [Token<'t>]),
    /// `{ … }`
    Body(&'t [Token<'t>]),
    /// `[ … ]`
    Index,
    Punct(u8),
}

/// The nodes of some tokens; directives are left out.
pub(super) fn nodes<'t>(tokens: &'t [Token<'t>], range: Range<usize>) -> Vec<Node<'t>> {
    let mut nodes = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let token = &tokens[at];
        let end = match token.kind {
            TokenKind::Word => {
                nodes.push(Node::Word(token.text));
                at + 1
            }
            TokenKind::Punct => match token.text[0] {
                b'(' => {
                    let end = partner(tokens, at, range.end, b'(', b')');
                    nodes.push(Node::Group(&tokens[at..end]));
                    end
                }
                b'{' => {
                    let end = partner(tokens, at, range.end, b'{', b'}');
                    nodes.push(Node::Body(&tokens[at..end]));
                    end
                }
                b'[' => {
                    nodes.push(Node::Index);
                    partner(tokens, at, range.end, b'[', b']')
                }
                other => {
                    nodes.push(Node::Punct(other));
                    at + 1
                }
            },
            _ => at + 1,
        };
        at = end;
    }
    nodes
}

/// The end of what a bracket opens.
pub(super) fn partner(tokens: &[Token<'_>], start: usize, end: usize, open: u8, close: u8) -> usize {
    let mut depth = 0usize;
    for (at, token) in tokens[start..end].iter().enumerate() {
        if token.is(open) {
            depth += 1;
        } else if token.is(close) {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                return start + at + 1;
            }
        }
    }
    end
}
