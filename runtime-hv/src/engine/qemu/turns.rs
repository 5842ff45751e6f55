//! Whose turn it is to run, while only one processor may.
//!
//! Comes in: how long processors have run and whether they sleep. Decided: who is next, and when a turn is over. Goes out: turns in
//! which every processor is met, so that none waits long for another, or for its own timer. Pure functions.

use std::time::Duration;

use crate::engine::Vcpu;

/// A turn of a processor that has something to do while others do, too.
const SHARED: Duration = Duration::from_millis(4);
/// The same while all others sleep.
const ALONE: Duration = Duration::from_millis(6);
/// A turn of a processor that sleeps: enough to wake up by an interrupt that waits.
const ASLEEP: Duration = Duration::from_micros(150);
/// The same while all others sleep, too.
const IDLE: Duration = Duration::from_millis(2);

/// What a processor has had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// How long it has run.
    pub ran: Duration,
    /// In how many turns.
    pub turns: u64,
    /// It was asleep at the end of the last one.
    asleep: bool,
}

/// The processors in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Turns {
    shares: Vec<Share>,
    next: usize,
}

impl Turns {
    pub(super) fn new(processors: usize) -> Turns {
        Turns { shares: vec![Share::default(); processors], next: 0 }
    }

    /// What each processor has had.
    pub(super) fn shares(&self) -> &[Share] {
        &self.shares
    }

    /// Who is next; `None` without processors.
    pub(super) fn next(&self) -> Option<Vcpu> {
        self.shares.get(self.next).map(|_| Vcpu(self.next))
    }

    /// Whether the turn of the processor that is next is over.
    pub(super) fn is_over(&self, ran: Duration, asleep: bool) -> bool {
        let others = self.shares.iter().enumerate().filter(|(index, _)| *index != self.next);
        let alone = others.into_iter().all(|(_, share)| share.asleep);
        ran >= match (asleep, alone) {
            (false, false) => SHARED,
            (false, true) => ALONE,
            (true, false) => ASLEEP,
            (true, true) => IDLE,
        }
    }

    /// Its turn is over.
    pub(super) fn ended(&mut self, ran: Duration, asleep: bool) {
        if let Some(share) = self.shares.get_mut(self.next) {
            *share = Share { ran: share.ran + ran, turns: share.turns + 1, asleep };
        }
        self.next = (self.next + 1).checked_rem(self.shares.len()).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets processors run that sleep or do not, for a while; gives their times for each round in milliseconds.
    fn run(asleep: &[bool], rounds: usize) -> Vec<u128> {
        let mut turns = Turns::new(asleep.len());
        for _ in 0..rounds * asleep.len() {
            let Vcpu(now) = turns.next().expect("there are processors");
            let mut ran = Duration::ZERO;
            while !turns.is_over(ran, asleep[now]) {
                ran += Duration::from_micros(50);
            }
            turns.ended(ran, asleep[now]);
        }
        turns.shares().iter().map(|share| (share.ran.as_micros() / rounds as u128 + 500) / 1000).collect()
    }

    #[test]
    fn who_has_something_to_do_gets_the_same_and_sleepers_little() {
        assert_eq!(run(&[false; 3], 100), [4, 4, 4]);
        assert_eq!(run(&[false, true, false, true], 100), [4, 0, 4, 0]);
        assert_eq!(run(&[true, false], 100), [0, 6]);
        assert_eq!(run(&[true; 4], 100), [2, 2, 2, 2]);
        assert_eq!(run(&[false], 100), [6]);
    }

    #[test]
    fn no_processors_are_no_turn() {
        let mut turns = Turns::new(0);
        turns.ended(ALONE, false);
        assert_eq!(turns.next(), None);
    }
}
