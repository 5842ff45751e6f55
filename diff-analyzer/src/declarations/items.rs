//! A C text as a list of items: macros, directives and declarations at file scope.
//!
//! Comes in: tokens, and which names are macros with parameters. Decided: where each item ends, which names it
//! introduces, and whether it makes code or data by itself. Conditions are not evaluated: all branches are items, each
//! with the conditions around it. Goes out: [`Items`]. What is not understood is [`ItemKind::Active`].

use super::declaration::{Found, is_function};
use super::lex::{Token, TokenKind, directive, words};
use super::nodes::{Node, nodes};
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

/// A directive that is an item of its own, wherever it stands.
pub(super) fn is_own_item(token: &Token<'_>) -> bool {
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
