//! What a function leaves behind, on each of its ways.
//!
//! Comes in: the ways through the functions of an object, and where they take and drop something. Decided: how much of one
//! resource each way takes more than it drops; functions of the same object that are called are followed. Goes out: [`Left`],
//! the set of results.
//!
//! The ways are those of the code, so some cannot be gone: with `if (c) lock(); …; if (c) unlock();` there is one that only
//! locks and one that only unlocks. Results of both signs are therefore taken for not known.

use super::events::Events;
use super::flow::{Flags, Flow, Place};
use super::primitives::{Effect, Resource};
use crate::pieces::{PieceIndex, PieceKind, Pieces, Target};
use iced_x86::ConditionCode;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::rc::Rc;

/// What ways of a function take more than they drop; nothing when that is not known.
pub type Left = Option<BTreeSet<i8>>;

/// More than this is the fault of the analysis.
const LIMIT: i8 = 3;

/// All functions of an object.
pub struct Paths<'p, 'o> {
    pieces: &'p Pieces<'o>,
    events: &'p Events,
    flows: RefCell<HashMap<PieceIndex, Rc<Flow>>>,
    known: RefCell<HashMap<(PieceIndex, &'static str), Left>>,
    touched: RefCell<HashMap<PieceIndex, Rc<BTreeSet<&'static Resource>>>>,
}

/// A result that has not been looked at yet: the call may have taken the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Pending {
    /// What the result says.
    effect: Effect,
    /// Whether the flags say it.
    tested: bool,
}

impl<'p, 'o> Paths<'p, 'o> {
    /// Paths of an object; nothing is followed yet.
    pub fn new(pieces: &'p Pieces<'o>, events: &'p Events) -> Self {
        Self { pieces, events, flows: RefCell::default(), known: RefCell::default(), touched: RefCell::default() }
    }

    /// Resources that a function, or one that it calls in this object, takes or drops.
    pub fn touches(&self, function: PieceIndex) -> Rc<BTreeSet<&'static Resource>> {
        if let Some(known) = self.touched.borrow().get(&function) {
            return Rc::clone(known);
        }
        let mut found = BTreeSet::new();
        let (mut left, mut seen) = (vec![function], HashSet::new());
        while let Some(piece) = left.pop() {
            if !seen.insert(piece) {
                continue;
            }
            let events = self.events.of_piece(piece).filter(|primitive| primitive.effect != Effect::Other);
            found.extend(events.map(|primitive| primitive.resource));
            let relocs = self.pieces.relocs(piece).iter().filter(|reloc| reloc.branch);
            left.extend(relocs.filter_map(|reloc| match self.pieces.target(reloc) {
                Target::Piece(to, _) if self.pieces.piece(to).kind != PieceKind::Datum => Some(to),
                _ => None,
            }));
        }
        let found = Rc::new(found);
        self.touched.borrow_mut().insert(function, Rc::clone(&found));
        found
    }

    /// What a function leaves behind of a resource.
    pub fn left(&self, function: PieceIndex, resource: &'static Resource) -> Left {
        if !self.touches(function).contains(resource) {
            return Some(BTreeSet::from([0]));
        }
        let key = (function, resource.name);
        if let Some(known) = self.known.borrow().get(&key) {
            return known.clone();
        }
        // A function that calls itself: what its calls leave behind is not known.
        self.known.borrow_mut().insert(key, None);
        let left = self.follow(function, resource).filter(|left| {
            let (lowest, highest) = (left.first().copied().unwrap_or(0), left.last().copied().unwrap_or(0));
            lowest >= 0 || highest <= 0
        });
        self.known.borrow_mut().insert(key, left.clone());
        left
    }

    fn flow(&self, function: PieceIndex) -> Rc<Flow> {
        if let Some(known) = self.flows.borrow().get(&function) {
            return Rc::clone(known);
        }
        let flow = Rc::new(Flow::of(self.pieces, function));
        self.flows.borrow_mut().insert(function, Rc::clone(&flow));
        flow
    }

    fn follow(&self, function: PieceIndex, resource: &'static Resource) -> Left {
        type State = (Place, i8, Option<Pending>);
        let flow = self.flow(function);
        if !flow.whole {
            return None;
        }
        let mut results = BTreeSet::new();
        let mut seen: HashSet<State> = HashSet::new();
        let mut left: Vec<State> = vec![((function, 0), 0, None)];
        while let Some(state) = left.pop() {
            if state.1.abs() > LIMIT {
                return None;
            }
            if !seen.insert(state) {
                continue;
            }
            let (place, mut depth, mut pending) = state;
            let step = flow.steps.get(&place)?;
            if step.is_call || step.leaves {
                // Its result is overwritten, or given to the caller: both may be.
                if pending.take().is_some() {
                    left.push((place, depth + 1, None));
                }
            }
            for primitive in self.events.at(place.0, place.1).iter().filter(|event| event.resource == resource) {
                match primitive.effect {
                    Effect::Take => depth += 1,
                    Effect::Drop => depth -= 1,
                    effect @ (Effect::TakeIfZero | Effect::TakeUnlessZero) => {
                        pending = Some(Pending { effect, tested: false });
                    }
                    Effect::Other => {}
                }
            }
            let primitive_call = self.events.at(place.0, place.1).iter().any(|event| event.resource == resource);
            let mut depths = BTreeSet::from([depth]);
            if let Some(callee) =
                step.calls.filter(|_| !primitive_call && !self.events.is_counted(self.pieces, place, resource))
            {
                depths = self.left(callee, resource)?.iter().map(|more| depth + more).collect();
            }
            if let Some(pending) = &mut pending {
                pending.tested = match step.flags {
                    Flags::OfResult => true,
                    Flags::Written => false,
                    Flags::Kept => pending.tested,
                };
            }
            for depth in depths {
                if step.leaves {
                    results.insert(depth);
                    if pending.is_some() {
                        results.insert(depth + 1);
                    }
                }
                let decided = pending.filter(|pending| pending.tested).zip(step.condition);
                for (index, &next) in step.next.iter().enumerate() {
                    let taken = index > 0;
                    left.push(
                        match decided.and_then(|(pending, condition)| is_taken(pending.effect, condition, taken)) {
                            Some(takes) => (next, depth + i8::from(takes), None),
                            None => (next, depth, pending),
                        },
                    );
                }
            }
        }
        Some(results)
    }
}

/// Whether a branch that is taken or not says that the resource was taken; nothing where it decides on something else.
fn is_taken(effect: Effect, condition: ConditionCode, taken: bool) -> Option<bool> {
    let zero = match condition {
        ConditionCode::e => taken,
        ConditionCode::ne => !taken,
        // An error is below zero.
        ConditionCode::s if effect == Effect::TakeIfZero => !taken,
        ConditionCode::ns if effect == Effect::TakeIfZero => taken,
        _ => return None,
    };
    Some(zero == (effect == Effect::TakeIfZero))
}
