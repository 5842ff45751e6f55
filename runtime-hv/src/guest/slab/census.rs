//! What a walk over a slab cache finds: its slabs, and its objects.
//!
//! Comes in: what [`super::walk`] has read. Decided: nothing but sums. Goes out: places of objects, live or free, and the numbers that
//! `/proc/slabinfo` shows.

use super::Counts;
use crate::engine::{Pa, Va};
use crate::guest::paging::PAGE;
use std::collections::BTreeSet;

/// Result of a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Walk {
    /// All objects.
    Complete(Census),
    /// Not at this moment: why. Let the guest run on and find its slabs again.
    Unclear(String),
    /// A list of free objects leads where it must not: why.
    Damaged(String),
}

/// All objects of a cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// Its slabs, by page frame.
    pub slabs: Vec<Slab>,
    /// What the guest counts.
    pub counts: Counts,
}

/// A slab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slab {
    /// Its first page frame.
    pub frame: u64,
    /// Where its first object is in the kernel's map of all memory.
    pub va: Va,
    /// Where that is.
    pub pa: Pa,
    /// Objects that its kernel counts as taken: live ones, and those on the list of a processor.
    pub taken: u32,
    /// Some list leads to it, or somebody has objects of it: it is one of those that the guest counts.
    pub counted: bool,
    /// It is on the list of slabs with free objects of its node.
    pub partial: bool,
    pub(super) frozen: bool,
    pub(super) stride: u64,
    /// Which list each object is on; 0 is none.
    pub(super) lists: Vec<u32>,
}

/// An object of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Where its user has it.
    pub va: Va,
    /// Where that is.
    pub pa: Pa,
    /// It is on no list of free objects.
    pub live: bool,
}

impl Census {
    /// Objects of all slabs, those included that are not counted: their objects are free.
    pub fn objects(&self) -> impl Iterator<Item = Object> {
        self.slabs.iter().flat_map(Slab::objects)
    }

    /// Number of live ones.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.objects().filter(|object| object.live).count() as u64
    }

    /// What `/proc/slabinfo` calls active: all but the free objects of slabs on a node's list (`mm/slub.c`, `get_slabinfo`). What is on
    /// the lists of processors is among them.
    #[must_use]
    pub fn active(&self) -> u64 {
        let listed = self.slabs.iter().filter(|slab| slab.partial);
        let free: u64 = listed.map(|slab| u64::from(slab.count().saturating_sub(slab.taken))).sum();
        self.counts.objects.saturating_sub(free)
    }
}

impl Slab {
    /// Number of its objects.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.lists.len() as u32
    }

    /// Page frames that it takes.
    pub(super) fn frames(&self) -> u64 {
        let bytes = self.pa.0 % PAGE as u64 + u64::from(self.count()).saturating_mul(self.stride);
        bytes.div_ceil(PAGE as u64)
    }

    /// Its objects.
    pub fn objects(&self) -> impl Iterator<Item = Object> {
        let place = |index: usize| index as u64 * self.stride;
        self.lists.iter().enumerate().map(move |(index, &list)| Object {
            va: Va(self.va.0.wrapping_add(place(index))),
            pa: Pa(self.pa.0.wrapping_add(place(index))),
            live: list == 0,
        })
    }

    /// Which of its objects is at an address.
    pub(super) fn index(&self, va: u64) -> Option<usize> {
        let distance = va.checked_sub(self.va.0)?;
        let index = usize::try_from(distance / self.stride).ok()?;
        (distance.is_multiple_of(self.stride) && index < self.lists.len()).then_some(index)
    }

    /// No list leads to it, and nobody has an object of it: it is being made, or given back.
    pub(super) fn is_loose(&self, listed: &BTreeSet<u64>) -> bool {
        self.taken == 0 && !self.frozen && !listed.contains(&self.frame)
    }
}
