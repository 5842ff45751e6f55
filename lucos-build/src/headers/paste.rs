//! Names that are pasted together.
//!
//! Comes in: all macro definitions and all texts. Decided: which names the `##` of each macro makes (C11, section
//! 6.10.3.3), followed through macros that call each other down to the places where all parts are written out. Goes out:
//! [`Pasted`] names with the place that makes them: a name that stands nowhere as a whole can still be used.

mod definition;
mod substitute;

use definition::{Definition, own_chains};
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
}

fn push(pattern: &mut Pattern, part: Part) {
    match (pattern.last_mut(), part) {
        (Some(Part::Fixed(text)), Part::Fixed(more)) => text.extend(more),
        (Some(Part::Any), Part::Any) => {}
        (_, part) => pattern.push(part),
    }
}

#[cfg(test)]
mod tests;
