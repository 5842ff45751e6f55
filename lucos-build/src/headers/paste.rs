//! Names that are pasted together.
//!
//! Comes in: all macro definitions and all texts. Decided: which names the `##` of each macro makes (C11, section
//! 6.10.3.3), followed through macros that call each other down to the places where all parts are written out. Goes out:
//! [`Pasted`] names with the place that makes them: a name that stands nowhere as a whole can still be used.

use diff_analyzer::declarations::lex::{Token, TokenKind, tokens, words};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet, VecDeque};

/// So many ways for one macro to make names are more than can be followed.
const MANY: usize = 48;

/// A part of a pasted name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Part {
    /// As written.
    Fixed(Vec<u8>),
    /// A parameter of the macro.
    Parameter(usize),
    /// Not known.
    Any,
}

/// A name that is pasted together, or what is known of it; without parameters.
pub type Pattern = Vec<Part>;

/// A way in which a call makes a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Chain {
    pattern: Pattern,
    /// The name is all that the call leaves.
    whole: bool,
}

/// A place that makes a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pasted {
    /// The name.
    pub pattern: Pattern,
    /// The macro whose use makes it; nothing when it is made in code.
    pub by: Option<Vec<u8>>,
}

/// Whether a name fits a pattern.
pub fn fits(pattern: &[Part], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((Part::Fixed(fixed), rest)) => name.strip_prefix(fixed.as_slice()).is_some_and(|name| fits(rest, name)),
        Some((_, rest)) => (0..=name.len()).any(|len| fits(rest, &name[len..])),
    }
}

/// A definition of a macro with parameters.
struct Definition<'t> {
    name: &'t [u8],
    parameters: Vec<&'t [u8]>,
    variadic: bool,
    body: Vec<Token<'t>>,
}

impl<'t> Definition<'t> {
    /// From what stands behind `define`.
    fn read(definition: &'t [u8]) -> Option<Self> {
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

    fn parameter(&self, word: &[u8]) -> Option<usize> {
        self.parameters.iter().position(|parameter| *parameter == word)
    }
}

/// All macros of the kernel, as far as names are pasted together in them.
#[derive(Default)]
pub struct Pasting<'t> {
    /// Ways in which a call of a macro makes names out of its arguments.
    chains: HashMap<&'t [u8], HashSet<Chain>>,
    /// Macros of which some parameter is the last of a variable number.
    variadic: HashMap<&'t [u8], usize>,
    /// Macros without parameters, and the first and last token of each definition.
    plain: HashMap<&'t [u8], Vec<[Option<Token<'t>>; 2]>>,
    /// Names made whatever the arguments are.
    fixed: HashSet<Pasted>,
    /// No macro is found to make more names than are known.
    settled: bool,
}

impl<'t> Pasting<'t> {
    /// From all definitions (what stands behind `define`).
    pub fn of(definitions: &[&'t [u8]]) -> Self {
        let mut pasting = Self::default();
        let all: Vec<Definition<'t>> = definitions.iter().filter_map(|text| Definition::read(text)).collect();
        let mut callers: HashMap<&[u8], Vec<usize>> = HashMap::new();
        for (index, definition) in all.iter().enumerate() {
            if definition.parameters.is_empty() {
                let ends = [definition.body.first().copied(), definition.body.last().copied()];
                pasting.plain.entry(definition.name).or_default().push(ends);
            }
            if definition.variadic {
                pasting.variadic.insert(definition.name, definition.parameters.len().saturating_sub(1));
            }
            for pair in definition.body.windows(2).filter(|pair| pair[0].kind == TokenKind::Word && pair[1].is(b'(')) {
                callers.entry(pair[0].text).or_default().push(index);
            }
        }
        // Each caller waits once, whatever becomes new meanwhile.
        let (mut next, mut waits) = (VecDeque::new(), vec![false; all.len()]);
        let wake = |next: &mut VecDeque<usize>, waits: &mut Vec<bool>, name: &[u8]| {
            for &caller in callers.get(name).into_iter().flatten() {
                if !std::mem::replace(&mut waits[caller], true) {
                    next.push_back(caller);
                }
            }
        };
        for definition in all.iter().filter(|definition| definition.body.iter().any(|token| token.is(b'#'))) {
            if pasting.take(definition, own_chains(definition)) {
                wake(&mut next, &mut waits, definition.name);
            }
        }
        // First what calls are known to make, then what is left: an argument that is a call may make anything.
        for settled in [false, true] {
            pasting.settled = settled;
            while let Some(index) = next.pop_front() {
                waits[index] = false;
                let definition = &all[index];
                let derived = pasting.in_calls(&definition.body, &|word| definition.parameter(word));
                if pasting.take(definition, derived) {
                    wake(&mut next, &mut waits, definition.name);
                }
            }
            waits.fill(true);
            next.extend(0..all.len());
            waits.fill(true);
        }
        pasting
    }

    /// Names that do not depend on the arguments of a macro.
    pub fn fixed(&self) -> impl Iterator<Item = &Pasted> {
        self.fixed.iter()
    }

    /// Names that calls in a text make; directives are left out.
    pub fn in_text(&self, text: &[u8]) -> HashSet<Pattern> {
        if !words(text).any(|word| self.chains.contains_key(word)) {
            return HashSet::new();
        }
        let all: Vec<Token<'_>> = tokens(text);
        self.in_calls(&all, &|_| None).into_iter().map(|chain| chain.pattern).collect()
    }

    /// Adds chains of a macro; whether some are new and depend on its arguments.
    fn take(&mut self, definition: &Definition<'t>, found: Vec<Chain>) -> bool {
        let mut news = false;
        for chain in found {
            if !chain.pattern.iter().any(|part| matches!(part, Part::Parameter(_))) {
                self.fixed.insert(Pasted { pattern: chain.pattern, by: Some(definition.name.to_owned()) });
                continue;
            }
            let known = self.chains.entry(definition.name).or_default();
            if known.len() < MANY {
                news |= known.insert(chain);
            } else if known.len() == MANY {
                // Too many ways: it may make anything of any argument.
                let any = (0..definition.parameters.len()).map(|index| vec![Part::Any, Part::Parameter(index)]);
                known.extend(any.map(|pattern| Chain { pattern, whole: false }));
                // Where it was known to do so already, nothing is new, and whoever calls it need not be looked at again.
                news |= known.len() > MANY;
            }
        }
        news
    }

    /// Names that the calls between some tokens make.
    fn in_calls(&self, tokens: &[Token<'_>], parameter: &dyn Fn(&[u8]) -> Option<usize>) -> Vec<Chain> {
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

fn push(pattern: &mut Pattern, part: Part) {
    match (pattern.last_mut(), part) {
        (Some(Part::Fixed(text)), Part::Fixed(more)) => text.extend(more),
        (Some(Part::Any), Part::Any) => {}
        (_, part) => pattern.push(part),
    }
}

/// The `##` of a definition.
fn own_chains(definition: &Definition<'_>) -> Vec<Chain> {
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
fn arguments<'s, 't>(tokens: &'s [Token<'t>], open: usize, variadic: Option<usize>) -> (Vec<&'s [Token<'t>]>, usize) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn made(definitions: &[&'static str], text: &str) -> Vec<String> {
        let definitions: Vec<&[u8]> = definitions.iter().map(|text| text.as_bytes()).collect();
        let pasting = Pasting::of(&definitions);
        let show = |pattern: &Pattern| {
            pattern
                .iter()
                .map(|part| match part {
                    Part::Fixed(text) => String::from_utf8_lossy(text).into_owned(),
                    _ => "*".to_owned(),
                })
                .collect::<String>()
        };
        let mut names: Vec<String> = pasting.in_text(text.as_bytes()).iter().map(show).collect();
        names.extend(pasting.fixed().map(|pasted| {
            format!("{}={}", String::from_utf8_lossy(pasted.by.as_deref().unwrap_or_default()), show(&pasted.pattern))
        }));
        names.sort();
        names
    }

    #[test]
    fn names_are_followed_through_macros() {
        let flag = ["FLAG(u, l) int Page##u(void) { return test_##l##_bit; }"];
        assert_eq!(made(&flag, "FLAG(Dirty, dirty)"), ["PageDirty", "test_dirty_bit"]);
        let paste = ["___P(a, b) a##b", "__P(a, b) ___P(a, b)", "ID(x) __P(__P(id_, x), __COUNTER__)", "USE(y) ID(y_)"];
        // What an inner call makes counts as a name of its own: one too many does no harm.
        let names = ["USE=id_y_", "USE=id_y___COUNTER__", "fg", "id_z", "id_z__COUNTER__"];
        assert_eq!(made(&paste, "__P(f, g); ID(z);"), names);
        let calls = ["D1(name, ...) DX(1, _##name, __VA_ARGS__)", "DX(n, s, ...) sys##s"];
        assert!(
            made(&calls, "D1(read, int, a)").contains(&"sys_read".to_owned()),
            "{:?}",
            made(&calls, "D1(read, int, a)")
        );
        let numbered = ["__P(a, b) a##b", "ID(x) __P(__KBUILD_MODNAME, x)", "CALL(x) __P(init_, __P(ID(x), 6))"];
        assert_eq!(made(&numbered, "CALL(y)"), ["init_kmod_*y6", "kmod_*y", "kmod_*y6"]);
        let plain = ["NAME value", "CAT(a) CAT2(a)", "CAT2(a) pre_##a"];
        assert_eq!(made(&plain, "CAT(NAME)"), ["pre_NAME", "pre_value"]);
        assert_eq!(made(&["F(fmt, ...) f(fmt, ##__VA_ARGS__)"], "F(\"a\", b)"), Vec::<String>::new());
    }

    /// Two macros that call each other, in more ways than are followed, one of which is not known.
    #[test]
    fn many_ways_in_a_circle_come_to_an_end() {
        let ways: String = (0..2 * MANY).map(|number| format!(" P(w{number}_, x)")).collect();
        let many: &'static str = format!("M(x) P(KBUILD_MODNAME, x){ways} N(x)").leak();
        let names = made(&["P(a, b) a##b", many, "N(y) M(y)"], "M(z); N(y)");
        assert!(names.contains(&"*z".to_owned()) && names.contains(&"*y".to_owned()), "{names:?}");
    }

    #[test]
    fn patterns_fit_names() {
        let pattern = [Part::Fixed(b"a_".to_vec()), Part::Any, Part::Fixed(b"_z".to_vec())];
        assert!(
            fits(&pattern, b"a_b_z") && fits(&pattern, b"a__z") && !fits(&pattern, b"a_b") && !fits(&pattern, b"a_z")
        );
    }
}
