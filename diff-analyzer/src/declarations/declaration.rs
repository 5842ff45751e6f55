//! What a declaration at file scope introduces, and whether it makes code or data by itself.
//!
//! Comes in: the nodes of a declaration. Decided: its names, tags and enumerators, and whether it is inert: nothing comes of it as
//! long as nobody refers to its names. What is not understood is not inert. Goes out: [`Found`].

use super::items::is_own_item;
use super::lex::{Token, TokenKind};
use super::nodes::{Node, partner};
use super::vocabulary::{ATTRIBUTES, KEYWORDS, PLAIN_ATTRIBUTES, STORAGE, is_inline, is_lasting};

/// Takes attributes out.
fn without_attributes<'t>(nodes: &[Node<'t>]) -> Vec<Node<'t>> {
    let mut kept = Vec::with_capacity(nodes.len());
    let mut nodes = nodes.iter().peekable();
    while let Some(node) = nodes.next() {
        match node {
            Node::Word(word) if ATTRIBUTES.contains(word) && matches!(nodes.peek(), Some(Node::Group(_))) => {
                nodes.next();
            }
            Node::Word(word) if PLAIN_ATTRIBUTES.contains(word) => {}
            _ => kept.push(node.clone()),
        }
    }
    kept
}

/// Whether nodes that end with `}` are the whole definition of a function.
pub(super) fn is_function(nodes: &[Node<'_>]) -> bool {
    let nodes = without_attributes(nodes);
    let [head @ .., Node::Body(_)] = nodes.as_slice() else { return false };
    let parameters = head.iter().rposition(|node| matches!(node, Node::Group(_)));
    let plain = !head
        .iter()
        .any(|node| matches!(node, Node::Punct(b'=') | Node::Body(_)) || matches!(node, Node::Word(b"typedef")));
    plain && parameters.is_some_and(|at| at > 0)
}

/// What is known of a declaration.
#[derive(Default)]
pub(super) struct Found<'t> {
    /// Names it introduces for the whole file.
    pub(super) names: Vec<&'t [u8]>,
    /// Whether it is about enumerators.
    pub(super) enumeration: bool,
    /// Whether it makes nothing by itself.
    pub(super) inert: bool,
}

impl<'t> Found<'t> {
    /// Looks at a whole declaration.
    pub(super) fn item(&mut self, nodes: &[Node<'t>], is_macro: &dyn Fn(&[u8]) -> bool) {
        let lasting = nodes.windows(2).any(|pair| match pair {
            [Node::Word(word), Node::Group(tokens)] if ATTRIBUTES.contains(word) => {
                tokens.iter().any(|token| token.kind == TokenKind::Word && is_lasting(token.text))
            }
            [Node::Word(word), _] => is_lasting(word),
            _ => false,
        });
        let first = nodes.iter().find_map(|node| if let Node::Word(word) = node { Some(*word) } else { None });
        let of_asm = first.is_some_and(|word| matches!(word, b"asm" | b"__asm__" | b"__asm"));
        let all = without_attributes(nodes);
        let calls_macro =
            all.windows(2).any(|pair| matches!(pair, [Node::Word(word), Node::Group(_)] if is_macro(word)));
        let understood = self.declaration(&all, first.unwrap_or_default());
        self.inert = understood && !lasting && !of_asm && !calls_macro;
    }

    /// Finds the names; whether the declaration makes nothing by itself.
    fn declaration(&mut self, nodes: &[Node<'t>], first: &[u8]) -> bool {
        let [head @ .., last] = nodes else { return true };
        if matches!(first, b"_Static_assert" | b"static_assert") {
            return true;
        }
        let word = |wanted: &[u8]| head.iter().any(|node| matches!(node, Node::Word(word) if *word == wanted));
        if let Node::Body(_) = last {
            self.declarators(head);
            let inline = head.iter().any(|node| matches!(node, Node::Word(word) if is_inline(word)));
            return is_function(nodes) && word(b"static") && inline && !self.names.is_empty();
        }
        if !matches!(last, Node::Punct(b';')) {
            return false;
        }
        if head.is_empty() {
            return true;
        }
        let initialised = head.iter().any(|node| matches!(node, Node::Punct(b'=')));
        let mut inert = !initialised;
        let body = head.iter().position(|node| matches!(node, Node::Body(_)));
        let declarators = match body {
            Some(at) => {
                let Node::Body(tokens) = &head[at] else { return false };
                inert &= self.type_body(&head[..at], tokens);
                &head[at + 1..]
            }
            None if matches!(head, [Node::Word(b"struct" | b"union" | b"enum"), Node::Word(_)]) => return inert,
            None => head,
        };
        if word(b"typedef") {
            self.declarators(head_after(head, body));
            return inert;
        }
        let before = self.names.len();
        self.declarators(declarators);
        let declares = self.names.len() > before;
        match body {
            Some(_) => inert && declarators.is_empty(),
            None if word(b"extern") => inert && declares && has_type(head),
            None => inert && declares && has_type(head) && is_prototype(head),
        }
    }

    /// Names that a list of declarators declares: before parameters, in parentheses, before `,`, `=`, `[` and the end.
    fn declarators(&mut self, nodes: &[Node<'t>]) {
        for (at, node) in nodes.iter().enumerate() {
            let next = nodes.get(at + 1);
            match node {
                Node::Word(word) if !KEYWORDS.contains(word) => {
                    let ends =
                        matches!(next, None | Some(Node::Punct(b',' | b'=' | b':') | Node::Index | Node::Group(_)));
                    self.names.extend(ends.then_some(*word));
                }
                Node::Group(tokens) if is_pointer(tokens) => {
                    let words =
                        tokens.iter().filter(|token| token.kind == TokenKind::Word && !KEYWORDS.contains(&token.text));
                    self.names.extend(words.map(|token| token.text));
                }
                _ => {}
            }
        }
        self.names.dedup();
    }

    /// Names that the body of a type introduces for the whole file: tags and enumerators.
    fn type_body(&mut self, head: &[Node<'t>], tokens: &'t [Token<'t>]) -> bool {
        let mut understood = true;
        let words = head.iter().filter_map(|node| if let Node::Word(word) = node { Some(*word) } else { None });
        self.names.extend(words.filter(|word| !KEYWORDS.contains(word)));
        if head.iter().any(|node| matches!(node, Node::Word(b"enum"))) {
            self.enumeration = true;
            return self.enumerators(tokens);
        }
        for (at, token) in tokens.iter().enumerate() {
            if token.text == b"struct_group_tagged" {
                // include/linux/stddef.h: the first argument becomes a tag.
                self.names.extend(tokens.get(at + 2).map(|tag| tag.text));
            }
            if token.kind != TokenKind::Word || !matches!(token.text, b"struct" | b"union" | b"enum") {
                continue;
            }
            let mut rest = tokens[at + 1..].iter().enumerate().filter(|(_, token)| token.kind != TokenKind::Directive);
            let mut next = rest.next();
            while let Some((_, name)) = next.filter(|(_, token)| token.kind == TokenKind::Word) {
                next = rest.next();
                if next.is_some_and(|(_, token)| token.is(b'{')) {
                    self.names.push(name.text);
                }
            }
            if token.text == b"enum"
                && let Some((open, _)) = next.filter(|(_, token)| token.is(b'{'))
            {
                let start = at + 1 + open;
                let end = partner(tokens, start, tokens.len(), b'{', b'}');
                understood &= self.enumerators(&tokens[start..end]);
            }
        }
        understood
    }

    fn enumerators(&mut self, tokens: &'t [Token<'t>]) -> bool {
        let list = enumerators(tokens);
        self.names.extend(list.iter().flatten().map(|enumerator| enumerator.name));
        list.is_some()
    }
}

fn head_after<'n, 't>(head: &'n [Node<'t>], body: Option<usize>) -> &'n [Node<'t>] {
    body.map_or(head, |at| &head[at + 1..])
}

/// `( * …`: a declarator in parentheses, and no parameters.
fn is_pointer(group: &[Token<'_>]) -> bool {
    group.get(1).is_some_and(|token| token.is(b'*') || token.is(b'('))
}

/// Whether something before the name says what type it is; otherwise it is a macro that does something else.
fn has_type(head: &[Node<'_>]) -> bool {
    let name = head.iter().position(|node| matches!(node, Node::Group(_) | Node::Index)).unwrap_or(head.len());
    let types = head[..name].iter().filter(|node| match node {
        Node::Word(word) => !STORAGE.contains(word),
        Node::Punct(byte) => *byte == b'*',
        _ => false,
    });
    let inside = matches!(head.get(name), Some(Node::Group(tokens)) if is_pointer(tokens));
    types.count() >= if inside { 1 } else { 2 }
}

/// `type name(parameters)`, and not `type (*name)(parameters)`, which defines a variable.
fn is_prototype(head: &[Node<'_>]) -> bool {
    let called = |pair: &[Node<'_>]| match pair {
        [Node::Word(word), Node::Group(tokens)] => !KEYWORDS.contains(word) && !is_pointer(tokens),
        _ => false,
    };
    head.windows(2).any(called) && !head.iter().any(|node| matches!(node, Node::Group(tokens) if is_pointer(tokens)))
}
/// An enumerator and the tokens of its value.
#[derive(Debug, Clone)]
pub(super) struct Enumerator<'t> {
    /// Its name.
    pub name: &'t [u8],
    /// What stands behind `=`.
    pub value: Vec<&'t [u8]>,
}

/// The enumerators between braces; nothing when there are conditions or macros among them.
pub(super) fn enumerators<'t>(tokens: &'t [Token<'t>]) -> Option<Vec<Enumerator<'t>>> {
    let mut list: Vec<Enumerator<'t>> = Vec::new();
    let (mut depth, mut expects) = (0usize, true);
    let inner = tokens.strip_prefix(tokens.get(..1)?)?;
    let inner = inner.get(..inner.len().checked_sub(1)?)?;
    for token in inner.iter().filter(|token| !is_own_item(token)) {
        match token.kind {
            TokenKind::Directive => {}
            TokenKind::Punct if matches!(token.text[0], b'(' | b'{' | b'[') => depth += 1,
            TokenKind::Punct if matches!(token.text[0], b')' | b'}' | b']') => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if expects {
            if token.kind == TokenKind::Directive {
                continue;
            }
            if token.kind != TokenKind::Word {
                return None;
            }
            list.push(Enumerator { name: token.text, value: Vec::new() });
            expects = false;
        } else if depth == 0 && token.is(b',') {
            expects = true;
        } else {
            list.last_mut()?.value.push(token.text);
        }
    }
    let plain = |enumerator: &Enumerator<'_>| enumerator.value.first().is_none_or(|first| *first == b"=");
    list.iter().all(plain).then_some(list)
}
