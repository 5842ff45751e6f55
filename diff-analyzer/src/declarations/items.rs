//! A C text as a list of items: macros, directives and declarations at file scope.
//!
//! Comes in: tokens, and which names are macros with parameters. Decided: where each item ends, which names it
//! introduces, and whether it makes code or data by itself. Conditions are not evaluated: all branches are items, each
//! with the conditions around it. Goes out: [`Items`]. What is not understood is [`ItemKind::Active`].

use super::lex::{Token, TokenKind, directive, words};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;

/// What an item does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemKind {
    /// `#define` or `#undef`.
    Macro,
    /// `#include`.
    Include,
    /// A directive with a condition; it belongs to the items in it.
    Condition,
    /// A declaration that makes nothing as long as nobody refers to its names.
    Inert,
    /// Anything else: it makes code or data, or is not understood.
    Active,
}

/// An item of a text.
#[derive(Debug, Clone)]
pub struct Item<'t> {
    /// What it does.
    pub kind: ItemKind,
    /// Names it introduces.
    pub names: Vec<&'t [u8]>,
    /// Whether the names are those of enumerators and their type.
    pub enumeration: bool,
    /// Its tokens in the list; macros that are defined inside of it are items of their own.
    pub tokens: Range<usize>,
    /// Equal items under equal conditions have equal digests.
    pub digest: u64,
}

/// The items of a text.
#[derive(Debug)]
pub struct Items<'t> {
    /// In order.
    pub list: Vec<Item<'t>>,
    /// The text's tokens.
    pub tokens: &'t [Token<'t>],
}

impl<'t> Items<'t> {
    /// Tokens of an item, without macros defined inside of it.
    pub fn tokens_of<'s>(&'s self, item: &'s Item<'t>) -> impl Iterator<Item = &'t Token<'t>> + 's {
        let tokens: &'t [Token<'t>] = self.tokens;
        let single = item.tokens.len() == 1;
        tokens[item.tokens.clone()].iter().filter(move |token| single || !is_own_item(token))
    }

    /// All identifiers of an item.
    pub fn words_of<'s>(&'s self, item: &'s Item<'t>) -> impl Iterator<Item = &'t [u8]> + 's {
        self.tokens_of(item).flat_map(|token| {
            let (single, text) = match token.kind {
                TokenKind::Word => (Some(token.text), &b""[..]),
                TokenKind::Directive => (None, directive(token.text).1),
                _ => (None, &b""[..]),
            };
            single.into_iter().chain(words(text))
        })
    }
}

fn is_own_item(token: &Token<'_>) -> bool {
    token.kind == TokenKind::Directive && matches!(directive(token.text).0, b"define" | b"undef" | b"include")
}

/// Cuts a text into items.
pub fn items<'t>(tokens: &'t [Token<'t>], is_macro: &dyn Fn(&[u8]) -> bool) -> Items<'t> {
    let mut cutter = Cutter {
        tokens,
        is_macro,
        list: Vec::new(),
        start: 0,
        depth: Depth::default(),
        conditions: Vec::new(),
        whole: true,
    };
    cutter.run();
    if !cutter.whole || cutter.depth != Depth::default() {
        for item in cutter.list.iter_mut().filter(|item| item.kind == ItemKind::Inert) {
            item.kind = ItemKind::Active;
        }
    }
    Items { list: cutter.list, tokens }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Depth {
    braces: usize,
    parens: usize,
}

/// A condition that is open: its text and branch, and the depth at its start.
struct Condition {
    digest: u64,
    depth: Depth,
}

struct Cutter<'t, 'm> {
    tokens: &'t [Token<'t>],
    is_macro: &'m dyn Fn(&[u8]) -> bool,
    list: Vec<Item<'t>>,
    /// First token of the item under way.
    start: usize,
    depth: Depth,
    conditions: Vec<Condition>,
    /// Whether all brackets had their partners.
    whole: bool,
}

impl<'t> Cutter<'t, '_> {
    fn run(&mut self) {
        let tokens = self.tokens;
        for (at, token) in tokens.iter().enumerate() {
            let outside = self.depth == Depth::default();
            if outside && self.start < at && token.first_column && self.is_invocation(self.start..at) {
                self.push(at);
            }
            if token.kind == TokenKind::Directive {
                self.directive(at);
                continue;
            }
            if token.kind != TokenKind::Punct {
                continue;
            }
            match token.text[0] {
                b'{' => self.depth.braces += 1,
                b'(' => self.depth.parens += 1,
                b'}' => self.close(|depth| &mut depth.braces),
                b')' => self.close(|depth| &mut depth.parens),
                _ => {}
            }
            let ends = self.depth == Depth::default()
                && (token.is(b';') || (token.is(b'}') && is_function(&nodes(tokens, self.start..at + 1))));
            if ends {
                self.push(at + 1);
            }
        }
        if self.start < tokens.len() {
            self.push(tokens.len());
        }
    }

    fn close(&mut self, which: impl Fn(&mut Depth) -> &mut usize) {
        let depth = which(&mut self.depth);
        self.whole &= *depth > 0;
        *depth = depth.saturating_sub(1);
    }

    /// `NAME(…)` and nothing else, where NAME is a macro.
    fn is_invocation(&self, range: Range<usize>) -> bool {
        let nodes = nodes(self.tokens, range);
        matches!(nodes.as_slice(), [Node::Word(name), Node::Group(_)] if (self.is_macro)(name))
    }

    fn directive(&mut self, at: usize) {
        let token = &self.tokens[at];
        let (name, rest) = directive(token.text);
        match name {
            b"if" | b"ifdef" | b"ifndef" => {
                self.conditions.push(Condition { digest: hash_of(&[name, rest]), depth: self.depth });
            }
            b"else" | b"elif" | b"elifdef" | b"elifndef" => match self.conditions.last_mut() {
                Some(condition) => {
                    let before = condition.digest.to_le_bytes();
                    condition.digest = hash_of(&[&before, name, rest]);
                    // The branches are alternatives: each begins at the depth of the first.
                    self.depth = condition.depth;
                }
                None => self.whole = false,
            },
            b"endif" => self.whole &= self.conditions.pop().is_some(),
            _ => {}
        }
        let kind = match name {
            b"define" | b"undef" => ItemKind::Macro,
            b"include" => ItemKind::Include,
            b"if" | b"ifdef" | b"ifndef" | b"else" | b"elif" | b"elifdef" | b"elifndef" | b"endif" => {
                ItemKind::Condition
            }
            b"error" | b"warning" | b"" => ItemKind::Inert,
            _ => ItemKind::Active,
        };
        let between = self.start == at;
        if between || is_own_item(token) {
            let names = if kind == ItemKind::Macro { words(rest).take(1).collect() } else { Vec::new() };
            let digest = self.digest(at..at + 1);
            self.list.push(Item { kind, names, enumeration: false, tokens: at..at + 1, digest });
        }
        if between {
            self.start = at + 1;
        }
    }

    fn push(&mut self, end: usize) {
        let range = self.start..end;
        self.start = end;
        let digest = self.digest(range.clone());
        let nodes = nodes(self.tokens, range.clone());
        let mut found = Found::default();
        let includes = self.tokens[range.clone()].iter().any(|token| {
            token.kind == TokenKind::Directive
                && !matches!(
                    directive(token.text).0,
                    b"define" | b"undef" | b"if" | b"ifdef" | b"ifndef" | b"else" | b"elif" | b"endif"
                )
        });
        found.item(&nodes, self.is_macro);
        let kind = if found.inert && !includes { ItemKind::Inert } else { ItemKind::Active };
        self.list.push(Item { kind, names: found.names, enumeration: found.enumeration, tokens: range, digest });
    }

    fn digest(&self, range: Range<usize>) -> u64 {
        let mut hasher = DefaultHasher::new();
        for condition in &self.conditions {
            hasher.write_u64(condition.digest);
        }
        let single = range.len() == 1;
        for token in self.tokens[range].iter().filter(|token| single || !is_own_item(token)) {
            if token.kind == TokenKind::Directive {
                directive_digest(token.text, &mut hasher);
            } else {
                without_counter(token.text).hash(&mut hasher);
            }
        }
        hasher.finish()
    }
}

/// Hashes a directive by its tokens, so that comments and blanks do not count. A blank does in one place: `#define A (x)`.
fn directive_digest(text: &[u8], hasher: &mut DefaultHasher) {
    let (name, rest) = directive(text);
    name.hash(hasher);
    let tokens = super::lex::tokens(rest);
    let with_parameters = tokens.len() > 1 && tokens[1].is(b'(') && {
        let name = tokens[0].text.as_ptr_range();
        name.end == tokens[1].text.as_ptr()
    };
    with_parameters.hash(hasher);
    for token in &tokens {
        token.text.hash(hasher);
    }
}

fn hash_of(parts: &[&[u8]]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for part in parts {
        for token in super::lex::tokens(part) {
            token.text.hash(&mut hasher);
        }
        hasher.write_u8(0xff);
    }
    hasher.finish()
}

/// Names that the preprocessor numbers (`__UNIQUE_ID_x12`, `__compiletime_assert_12`; include/linux/compiler.h) without
/// the number: a use more or less of `__COUNTER__` moves all later ones.
fn without_counter(word: &[u8]) -> &[u8] {
    if word.starts_with(b"__UNIQUE_ID_") || word.starts_with(b"__compiletime_assert_") {
        let len = word.iter().rposition(|byte| !byte.is_ascii_digit()).map_or(0, |at| at + 1);
        return &word[..len];
    }
    word
}

/// A declaration seen from outside.
#[derive(Debug, Clone)]
enum Node<'t> {
    Word(&'t [u8]),
    /// `( … )`
    Group(&'t [Token<'t>]),
    /// `{ … }`
    Body(&'t [Token<'t>]),
    /// `[ … ]`
    Index,
    Punct(u8),
}

fn nodes<'t>(tokens: &'t [Token<'t>], range: Range<usize>) -> Vec<Node<'t>> {
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
fn partner(tokens: &[Token<'_>], start: usize, end: usize, open: u8, close: u8) -> usize {
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

const KEYWORDS: &[&[u8]] = &[
    b"void",
    b"char",
    b"short",
    b"int",
    b"long",
    b"float",
    b"double",
    b"signed",
    b"unsigned",
    b"_Bool",
    b"struct",
    b"union",
    b"enum",
    b"const",
    b"volatile",
    b"restrict",
    b"static",
    b"extern",
    b"inline",
    b"register",
    b"typedef",
    b"sizeof",
    b"return",
    b"if",
    b"while",
    b"for",
    b"switch",
    b"do",
    b"_Atomic",
    b"__extension__",
    b"__const",
    b"__volatile__",
    b"__signed__",
    b"__inline",
    b"__inline__",
    b"__int128",
];

/// Words that say how something is stored or linked, and nothing about its type.
const STORAGE: &[&[u8]] = &[
    b"static",
    b"extern",
    b"inline",
    b"register",
    b"__inline",
    b"__inline__",
    b"__extension__",
    b"const",
    b"volatile",
];

/// Attributes with parameters: as the compiler knows them, and the kernel's names for them (include/linux/compiler*.h).
const ATTRIBUTES: &[&[u8]] = &[
    b"__attribute__",
    b"__attribute",
    b"__asm__",
    b"asm",
    b"__asm",
    b"__typeof__",
    b"__typeof",
    b"typeof",
    b"_Alignas",
    b"__aligned",
    b"__section",
    b"__printf",
    b"__scanf",
    b"__alloc_size",
    b"__realloc_size",
    b"__acquires",
    b"__releases",
    b"__must_hold",
    b"__cond_acquires",
    b"__assume_aligned",
    b"__compiletime_error",
    b"__compiletime_warning",
    b"__malloc",
    b"__diagnose_as",
    b"__copy",
    b"__counted_by",
];

/// Attributes without parameters, by the kernel's names.
const PLAIN_ATTRIBUTES: &[&[u8]] = &[
    b"__read_mostly",
    b"__ro_after_init",
    b"__percpu",
    b"__rcu",
    b"__iomem",
    b"__user",
    b"__kernel",
    b"__force",
    b"__init",
    b"__exit",
    b"__initdata",
    b"__initconst",
    b"__meminit",
    b"__meminitdata",
    b"__ref",
    b"__refdata",
    b"__init_or_module",
    b"__sched",
    b"__cpuidle",
    b"__weak",
    b"__maybe_unused",
    b"__always_unused",
    b"__packed",
    b"__must_check",
    b"__cold",
    b"__hot",
    b"__pure",
    b"__attribute_const__",
    b"__noreturn",
    b"__visible",
    b"__randomize_layout",
    b"__no_sanitize_address",
    b"____cacheline_aligned",
    b"____cacheline_aligned_in_smp",
    b"__cacheline_aligned",
    b"__cacheline_aligned_in_smp",
    b"__deprecated",
    b"__nocast",
    b"__bitwise",
    b"__lockfunc",
    b"asmlinkage",
    b"notrace",
    b"noinstr",
    b"noinline",
    b"__must_hold_nothing",
    b"__no_randomize_layout",
    b"__designated_init",
];

/// Attributes, under their own or the kernel's names, with which a function or name is there without being referred to.
fn is_lasting(word: &[u8]) -> bool {
    let has = |part: &[u8]| word.windows(part.len()).any(|window| window == part);
    (has(b"used") && !has(b"unused"))
        || [b"alias".as_slice(), b"constructor", b"destructor", b"ifunc", b"retain", b"__bpf_kfunc", b"symver"]
            .iter()
            .any(|part| has(part))
}

fn is_inline(word: &[u8]) -> bool {
    word.windows(6).any(|window| window == b"inline") && !word.windows(8).any(|window| window == b"noinline")
}

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
fn is_function(nodes: &[Node<'_>]) -> bool {
    let nodes = without_attributes(nodes);
    let [head @ .., Node::Body(_)] = nodes.as_slice() else { return false };
    let parameters = head.iter().rposition(|node| matches!(node, Node::Group(_)));
    let plain = !head
        .iter()
        .any(|node| matches!(node, Node::Punct(b'=') | Node::Body(_)) || matches!(node, Node::Word(b"typedef")));
    plain && parameters.is_some_and(|at| at > 0)
}

#[derive(Default)]
struct Found<'t> {
    names: Vec<&'t [u8]>,
    enumeration: bool,
    inert: bool,
}

impl<'t> Found<'t> {
    fn item(&mut self, nodes: &[Node<'t>], is_macro: &dyn Fn(&[u8]) -> bool) {
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
pub struct Enumerator<'t> {
    /// Its name.
    pub name: &'t [u8],
    /// What stands behind `=`.
    pub value: Vec<&'t [u8]>,
}

/// The enumerators between braces; nothing when there are conditions or macros among them.
pub fn enumerators<'t>(tokens: &'t [Token<'t>]) -> Option<Vec<Enumerator<'t>>> {
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

#[cfg(test)]
mod tests {
    use super::super::lex;
    use super::*;

    fn shown(text: &str) -> Vec<(ItemKind, Vec<String>)> {
        let tokens = lex::tokens(text.as_bytes());
        let is_macro = |word: &[u8]| word.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'_');
        let items = items(&tokens, &is_macro);
        let names =
            |item: &Item<'_>| item.names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        items.list.iter().map(|item| (item.kind, names(item))).collect()
    }

    fn one(text: &str) -> (ItemKind, String) {
        let list = shown(text);
        assert_eq!(list.len(), 1, "{text}: {list:?}");
        (list[0].0, list[0].1.join(" "))
    }

    #[test]
    fn declarations_that_make_nothing() {
        for (text, names) in [
            ("int f(struct s *a, int (*b)(void));", "f"),
            ("extern const struct s *__must_check f(int a) __printf(1, 2);", "f"),
            ("static inline struct s f(int a)\n{ return g(a); }", "f"),
            ("static __always_inline __attribute__((unused)) int __f(void) { }", "__f"),
            ("extern int a, *b, c[3];", "a b c"),
            ("extern int (*handler)(int);", "handler"),
            ("extern struct s table[] __read_mostly;", "table"),
            ("typedef struct { int a; } t;", "t"),
            ("typedef int (*fn)(int a);", "fn"),
            ("struct s { struct inner { int a; } b; enum { X, Y = 2 } c; };", "s inner X Y"),
            ("struct __packed s { int a; } __attribute__((aligned(8)));", "s"),
            ("enum e { A, B = F(1, 2), C };", "e A B C"),
            ("struct s;", ""),
            ("_Static_assert(sizeof(int) == 4, \"int\");", ""),
        ] {
            assert_eq!(one(text), (ItemKind::Inert, names.to_owned()), "{text}");
        }
    }

    #[test]
    fn everything_else_is_active() {
        for text in [
            "int a;",
            "static int a = 1;",
            "int f(void) { return 0; }",
            "int (*handler)(int);",
            "static int f(void) { return 0; }",
            "asm(\".globl f\");",
            "DECLARE_THING(int, a);",
            "static DEFINE_THING(a);",
            "struct s { int a; } variable;",
            "static inline __attribute__((used)) int f(void) { return 0; }",
            "extern int f(void) __attribute__((alias(\"g\")));",
            "enum { MANY(X) };",
            "static inline int f(void) { return 0; ",
            "SYSCALL(x) int f(void);",
        ] {
            assert_eq!(one(text).0, ItemKind::Active, "{text}");
        }
    }

    #[test]
    fn conditions_belong_to_the_items_in_them() {
        let text = "#ifdef A\nint f(void);\n#else\nstatic inline int f(void) { return 0; }\n#endif\nint g(void);\n";
        let kinds: Vec<ItemKind> = shown(text).into_iter().map(|(kind, _)| kind).collect();
        use ItemKind::{Condition, Inert};
        assert_eq!(kinds, [Condition, Inert, Condition, Inert, Condition, Inert]);
        let digests = |text: &str| -> Vec<u64> {
            let tokens = lex::tokens(text.as_bytes());
            items(&tokens, &|_| false).list.iter().filter(|item| item.kind == Inert).map(|item| item.digest).collect()
        };
        let (one, two) = (digests("#ifdef A\nint f(void);\n#endif"), digests("#ifdef B\nint f(void);\n#endif"));
        assert_ne!(one, two);
        // Both branches open the same body.
        let text = "#ifdef A\nint f(int a) {\n#else\nint f(long a) {\n#endif\nreturn a; }\nint g(void);\n";
        assert_eq!(shown(text).last().map(|last| last.1.clone()), Some(vec!["g".to_owned()]));
    }

    #[test]
    fn macros_inside_of_declarations_are_items() {
        let list = shown("struct s {\n\tint a;\n#define FLAG 1\n\tint b;\n};\nTHING(a)\nTHING(b)\nint f(void);\n");
        let names: Vec<String> = list.iter().map(|(_, names)| names.join(" ")).collect();
        assert_eq!(names, ["FLAG", "s", "", "", "f"]);
        assert_eq!((list[2].0, list[3].0, list[4].0), (ItemKind::Active, ItemKind::Active, ItemKind::Inert));
    }

    #[test]
    fn open_ends_do_not_panic() {
        for text in [
            "}", ")", "(", "{", "#endif", "#else", "#define", "enum {", "enum { A", "struct", "typedef", "=", "extern",
            "[", "(*", "enum }{",
        ] {
            let _ = shown(text);
        }
    }
}
