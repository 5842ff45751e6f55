//! Where a change does something.
//!
//! Comes in: both functions, paired, and whether pairs read the same. Decided: which instructions that act have changed: those without a
//! counterpart, those that act on something else than their counterpart, those from which the way leads elsewhere; which of them hang
//! together. Goes out: [`Place`], the one place where the change does something that others can see or that decides what runs, or the reason
//! why it is not one. What does not act only makes values, and is looked at by [`super::values`].
//!
//! Behind a call a frame that goes on in the other function runs what has not changed, until it comes to this place from its beginning; there it
//! does what that function does, as a thread would that has called it. At a second place, or in the middle of this one, it could do the end of
//! something whose beginning was never done. So it could at one place in a loop that decides by what has happened before what is to be done.

use super::acting;
use super::pairing::Pairing;
use super::values::Values;
use super::{Side, Why};
use std::collections::BTreeSet;

/// The one place where the change does something.
pub(super) struct Place<'a> {
    old: Changes<'a>,
    new: Changes<'a>,
    /// Its instructions, and its first one, of each function.
    inside: [(BTreeSet<usize>, Option<usize>); 2],
}

/// What acts in one of the functions.
struct Changes<'a> {
    side: &'a Side,
    /// Instructions that act.
    acting: BTreeSet<usize>,
    /// Those of them that have changed.
    changed: BTreeSet<usize>,
}

/// Finds the place.
///
/// # Errors
/// [`Why::Places`], [`Why::Ways`], [`Why::Depends`].
pub(super) fn find<'a>(
    before: &'a Side,
    after: &'a Side,
    pairing: &Pairing,
    values: &Values<'_>,
) -> Result<Place<'a>, Why> {
    let mut old = Changes::of(before, acting::all(before, values.live_before()), |node| pairing.new_of(node).is_none());
    let mut new = Changes::of(after, acting::all(after, values.live_after()), |node| pairing.old_of(node).is_none());
    // What acts in one function acts in the other.
    let acts = |(x, y): &(usize, usize)| old.acting.contains(x) || new.acting.contains(y);
    let pairs: Vec<(usize, usize)> = pairing.pairs().filter(acts).collect();
    old.acting.extend(pairs.iter().map(|(x, _)| x));
    new.acting.extend(pairs.iter().map(|(_, y)| y));
    let is_other = |(x, y): &(usize, usize)| pairing.is_moved(*y) || !values.are_same_inputs(*x);
    let (mut others, mut anchors): (Vec<_>, Vec<_>) = pairs.into_iter().partition(is_other);
    loop {
        old.changed.extend(others.iter().map(|(x, _)| x));
        new.changed.extend(others.iter().map(|(_, y)| y));
        let leads = |(x, y): &(usize, usize)| leads_on(&old, &new, pairing, steps(&old, &new, *x, *y));
        let (same, astray): (Vec<_>, Vec<_>) = anchors.into_iter().partition(leads);
        anchors = same;
        if astray.is_empty() {
            break;
        }
        others.extend(astray);
    }
    let entry = [(Some(before.graph.entry), Some(after.graph.entry))];
    if !leads_on(&old, &new, pairing, entry) {
        return Err(Why::Ways);
    }

    // Changed instructions that hang together, those of the new function counted on from those of the old.
    let count = before.graph.nodes.len();
    let mut groups = Groups((0..count + after.graph.nodes.len()).collect());
    others.iter().for_each(|(x, y)| groups.join(*x, count + y));
    for (changes, from) in [(&old, 0), (&new, count)] {
        for node in &changes.changed {
            changes
                .entered(&changes.side.graph.nodes[*node].steps)
                .iter()
                .for_each(|next| groups.join(from + node, from + next));
        }
    }
    let behind = anchors.iter().flat_map(|(x, y)| steps(&old, &new, *x, *y)).chain(entry);
    let ways: Vec<(BTreeSet<usize>, BTreeSet<usize>)> =
        behind.map(|(gone, come)| (old.entered(&[gone]), new.entered(&[come]))).collect();
    for (gone, come) in &ways {
        if let (Some(gone), Some(come)) = (gone.first(), come.first()) {
            groups.join(*gone, count + come);
        }
    }
    let all = old.changed.iter().copied().chain(new.changed.iter().map(|node| count + node));
    let places: BTreeSet<usize> = all.map(|node| groups.of(node)).collect();
    if places.len() > 1 {
        return Err(Why::Places(places.len()));
    }
    let inside =
        [first(&old.changed, ways.iter().map(|way| &way.0))?, first(&new.changed, ways.iter().map(|way| &way.1))?];
    // What has been replaced begins behind the same instructions as what has come for it.
    let is_replaced = !old.changed.is_empty() && !new.changed.is_empty();
    if is_replaced && ways.iter().any(|(gone, come)| gone.is_empty() != come.is_empty()) {
        return Err(Why::Ways);
    }
    if old.depends() || new.depends() {
        return Err(Why::Depends);
    }
    Ok(Place { old, new, inside })
}

/// The steps of a pair, beside each other.
fn steps(old: &Changes<'_>, new: &Changes<'_>, x: usize, y: usize) -> [(Option<usize>, Option<usize>); 3] {
    let (old, new) = (old.side.graph.nodes[x].steps, new.side.graph.nodes[y].steps);
    std::array::from_fn(|at| (old[at], new[at]))
}

/// Whether steps lead to the same unchanged instructions that act, where none of them leads to a changed one.
fn leads_on(
    old: &Changes<'_>,
    new: &Changes<'_>,
    pairing: &Pairing,
    steps: impl IntoIterator<Item = (Option<usize>, Option<usize>)>,
) -> bool {
    steps.into_iter().all(|(x, y)| {
        let (gone, come) = (old.next(&[x]), new.next(&[y]));
        let enters =
            gone.iter().any(|node| old.changed.contains(node)) || come.iter().any(|node| new.changed.contains(node));
        let there: Option<BTreeSet<usize>> = gone.iter().map(|node| pairing.new_of(*node)).collect();
        enters || there.is_some_and(|there| there == come)
    })
}

/// Changed instructions, and the one of them that the ways there lead to.
fn first<'w>(
    changed: &BTreeSet<usize>,
    ways: impl Iterator<Item = &'w BTreeSet<usize>>,
) -> Result<(BTreeSet<usize>, Option<usize>), Why> {
    let ways: BTreeSet<usize> = ways.flatten().copied().collect();
    if ways.len() > 1 { Err(Why::Ways) } else { Ok((changed.clone(), ways.first().copied())) }
}

impl Place<'_> {
    /// Whether a frame that goes on behind a pair of calls does not come into the middle of the place, in neither function.
    pub(super) fn is_not_entered_behind(&self, old: usize, new: usize) -> bool {
        [(&self.old, old), (&self.new, new)].iter().zip(&self.inside).all(|((changes, call), (inside, first))| {
            let next = changes.next(&changes.side.graph.nodes[*call].steps);
            next.iter().all(|next| !inside.contains(next) || Some(*next) == *first)
        })
    }
}

impl<'a> Changes<'a> {
    fn of(side: &'a Side, acting: BTreeSet<usize>, changed: impl Fn(usize) -> bool) -> Changes<'a> {
        let changed = acting.iter().copied().filter(|node| changed(*node)).collect();
        Changes { side, acting, changed }
    }

    /// The next instructions that act, on all ways.
    fn next(&self, steps: &[Option<usize>]) -> BTreeSet<usize> {
        let (mut found, mut seen) = (BTreeSet::new(), BTreeSet::new());
        let mut open: Vec<usize> = steps.iter().flatten().copied().collect();
        while let Some(node) = open.pop() {
            if self.acting.contains(&node) {
                found.insert(node);
            } else if seen.insert(node) {
                open.extend(self.side.graph.after(node));
            }
        }
        found
    }

    /// Those of them that have changed.
    fn entered(&self, steps: &[Option<usize>]) -> BTreeSet<usize> {
        &self.next(steps) & &self.changed
    }

    /// Whether a changed instruction decides what runs, and comes again and again.
    fn depends(&self) -> bool {
        let ways = |node: usize| self.side.graph.after(node).count();
        self.changed.iter().any(|node| ways(*node) > 1 && self.comes_again(*node))
    }

    fn comes_again(&self, node: usize) -> bool {
        let (mut seen, mut open) = (BTreeSet::new(), vec![node]);
        while let Some(at) = open.pop() {
            open.extend(self.side.graph.after(at).filter(|next| seen.insert(*next)));
        }
        seen.contains(&node)
    }
}

/// Disjoint sets.
struct Groups(Vec<usize>);

impl Groups {
    fn of(&mut self, mut node: usize) -> usize {
        while self.0[node] != node {
            self.0[node] = self.0[self.0[node]];
            node = self.0[node];
        }
        node
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.of(a), self.of(b));
        self.0[a] = b;
    }
}
