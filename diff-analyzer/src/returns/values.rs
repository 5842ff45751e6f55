//! Whether what instructions read is the same in both functions.
//!
//! Comes in: both functions, paired. Decided: what is live behind a call in either; who may have made it; whether in both the same
//! instructions have, of inputs of which the same holds. Goes out: nothing, or [`Why::Value`].
//!
//! Live variables and reaching definitions as in any text on compilers. An input that depends on itself (a counter of a
//! loop) is the same as long as nothing says otherwise. What a call leaves in scratch registers is of no use, and does not count.

use super::frame::{Access, Location, Written};
use super::pairing::Pairing;
use super::{Side, Why, spell};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What both functions hold where.
pub(super) struct Values<'a> {
    before: Flow<'a>,
    after: Flow<'a>,
    pairing: &'a Pairing,
    /// Instructions of the old function that read the same as their counterparts.
    same: BTreeSet<usize>,
}

/// What is known of one of them.
struct Flow<'a> {
    side: &'a Side,
    live: Vec<BTreeSet<Location>>,
    makers: RefCell<BTreeMap<Location, Rc<Makers>>>,
}

/// Who may have made what a location holds, before each instruction.
struct Makers {
    /// Instructions that write it; the first number stands for the caller.
    all: Vec<usize>,
    /// A bit for each of them and the caller.
    before: Vec<Vec<u64>>,
}

/// Stands for the caller.
const CALLER: usize = usize::MAX;

impl<'a> Values<'a> {
    pub(super) fn new(before: &'a Side, after: &'a Side, pairing: &'a Pairing) -> Values<'a> {
        let (before, after) = (Flow::of(before), Flow::of(after));
        let mut values = Values { before, after, pairing, same: BTreeSet::new() };
        values.same = values.compare();
        values
    }

    /// What is read from each instruction of the old function on.
    pub(super) fn live_before(&self) -> &[BTreeSet<Location>] {
        &self.before.live
    }

    /// The same of the new function.
    pub(super) fn live_after(&self) -> &[BTreeSet<Location>] {
        &self.after.live
    }

    /// Whether a pair of instructions reads the same.
    pub(super) fn are_same_inputs(&self, old: usize) -> bool {
        self.same.contains(&old)
    }

    /// Whether all that either function uses behind a pair of calls is the same.
    ///
    /// # Errors
    /// [`Why::Value`]: what is not.
    pub(super) fn are_same_behind(&self, old: usize, new: usize) -> Result<(), Why> {
        let mut used: BTreeSet<Location> = self.before.live_behind(old);
        used.extend(self.after.live_behind(new));
        if self.before.side.frames.escapes || self.after.side.frames.escapes {
            // Whoever knows an address of the frame may read all of it.
            let depth = self.before.side.frames.depth(old).unwrap_or(0);
            used.extend((depth..0).map(Location::Stack).chain([Location::Shared]));
        }
        let is_same = |location: &Location| {
            let makers = self.pairs(&self.before.behind(old, *location), &self.after.behind(new, *location));
            makers.is_some_and(|makers| makers.iter().all(|maker| self.same.contains(maker)))
        };
        match used.into_iter().find(|location| !is_same(location)) {
            Some(location) => Err(Why::Value(spell(location))),
            None => Ok(()),
        }
    }

    /// Instructions that read the same as their counterparts: all, but those for which a maker of an input is not paired with
    /// one of the other, and those that depend on them.
    fn compare(&self) -> BTreeSet<usize> {
        let mut same = BTreeSet::new();
        let mut users: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut other = Vec::new();
        for (old, new) in self.pairing.pairs() {
            // The frame of only one of the functions may be known to others.
            let (mine, its) = (&self.before.access(old).reads, &self.after.access(new).reads);
            let mut inputs =
                mine.union(its).map(|at| self.pairs(&self.before.ahead(old, *at), &self.after.ahead(new, *at)));
            match inputs.try_fold(BTreeSet::new(), |all, makers| Some(makers?.into_iter().chain(all).collect())) {
                None => other.push(old),
                Some(makers) => {
                    same.insert(old);
                    makers.into_iter().for_each(|maker| users.entry(maker).or_default().push(old));
                }
            }
        }
        while let Some(maker) = other.pop() {
            for user in users.remove(&maker).into_iter().flatten() {
                if same.remove(&user) {
                    other.push(user);
                }
            }
        }
        same
    }

    /// Makers in the old function, if each has its counterpart among those in the new one.
    fn pairs(&self, old: &[usize], new: &[usize]) -> Option<Vec<usize>> {
        let counterpart = |maker: usize| {
            if maker == CALLER {
                return new.first() == Some(&CALLER);
            }
            let to = self.pairing.new_of(maker).filter(|to| !self.pairing.is_moved(*to));
            to.is_some_and(|to| new.contains(&to))
        };
        let is_same = old.len() == new.len() && old.iter().all(|maker| counterpart(*maker));
        is_same.then(|| old.iter().copied().filter(|maker| *maker != CALLER).collect())
    }
}

impl<'a> Flow<'a> {
    fn of(side: &'a Side) -> Flow<'a> {
        Flow { side, live: live(side), makers: RefCell::default() }
    }

    fn access(&self, node: usize) -> &'a Access {
        &self.side.frames.access[node]
    }

    fn live_behind(&self, node: usize) -> BTreeSet<Location> {
        self.side.graph.after(node).flat_map(|next| self.live[next].iter().copied()).collect()
    }

    /// Who may have made what a location holds behind an instruction.
    fn behind(&self, node: usize, location: Location) -> Vec<usize> {
        let (makes, leaves) = self.effect(node, location);
        let mut makers = if leaves { self.ahead(node, location) } else { Vec::new() };
        if makes && !makers.contains(&node) {
            makers.push(node);
        }
        makers
    }

    /// Whether an instruction makes what a location holds, and whether it may leave what was there.
    fn effect(&self, node: usize, location: Location) -> (bool, bool) {
        let written = self.access(node).writes.iter().filter(|(at, _)| *at == location);
        written.fold((false, true), |(makes, leaves), (_, written)| {
            (makes || *written != Written::Undefined, leaves && *written == Written::Maybe)
        })
    }

    /// Who may have made what a location holds before an instruction.
    fn ahead(&self, node: usize, location: Location) -> Vec<usize> {
        let known = self.makers.borrow().get(&location).cloned();
        let makers = known.unwrap_or_else(|| {
            let found = Rc::new(self.makers(location));
            self.makers.borrow_mut().insert(location, Rc::clone(&found));
            found
        });
        let is_set = |at: &usize| makers.before[node][at / 64] >> (at % 64) & 1 != 0;
        (0..makers.all.len()).filter(is_set).map(|at| makers.all[at]).collect()
    }

    /// Reaching definitions of one location, forwards until nothing changes.
    fn makers(&self, location: Location) -> Makers {
        let graph = &self.side.graph;
        let effects: Vec<(bool, bool)> = (0..graph.nodes.len()).map(|node| self.effect(node, location)).collect();
        let makes = graph.reached.iter().copied().filter(|node| effects[*node].0);
        let all: Vec<usize> = [CALLER].into_iter().chain(makes).collect();
        let number: BTreeMap<usize, usize> = all.iter().enumerate().map(|(at, node)| (*node, at)).collect();
        let words = all.len().div_ceil(64);
        let mut before = vec![vec![0_u64; words]; graph.nodes.len()];
        before[graph.entry][0] = 1;
        let mut open: Vec<usize> = graph.reached.iter().rev().copied().collect();
        while let Some(node) = open.pop() {
            let (makes, leaves) = effects[node];
            let mut behind = if leaves { before[node].clone() } else { vec![0; words] };
            if makes {
                let at = number[&node];
                behind[at / 64] |= 1 << (at % 64);
            }
            for next in graph.after(node) {
                let mut changed = false;
                for (word, new) in before[next].iter_mut().zip(&behind) {
                    changed |= new & !*word != 0;
                    *word |= new;
                }
                if changed {
                    open.push(next);
                }
            }
        }
        Makers { all, before }
    }
}

/// What is still read from each instruction on.
fn live(side: &Side) -> Vec<BTreeSet<Location>> {
    let (graph, access) = (&side.graph, &side.frames.access);
    let mut live = vec![BTreeSet::new(); graph.nodes.len()];
    let mut open: Vec<usize> = graph.reached.clone();
    while let Some(node) = open.pop() {
        let goes = access[node].writes.iter().filter(|(_, written)| *written != Written::Maybe);
        let mut now: BTreeSet<Location> = graph.after(node).flat_map(|next| live[next].iter().copied()).collect();
        goes.for_each(|(location, _)| _ = now.remove(location));
        now.extend(&access[node].reads);
        if now != live[node] {
            live[node] = now;
            open.extend(&graph.before[node]);
        }
    }
    live
}
