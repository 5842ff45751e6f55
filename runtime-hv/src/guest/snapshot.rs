//! Memory of a stopped guest, each page read once.
//!
//! Comes in: an engine whose guest stands still. Decided: nothing. Goes out: the same bytes, but a walk over page tables,
//! tasks and stacks costs one read of the hypervisor for each page, not for each word. It must not outlive the pause, and
//! nothing may be written while it is in use.

use super::paging::PAGE;
use crate::engine::{EngineError, Pa, ReadMemory};
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Pages read so far.
pub struct Snapshot<'a> {
    memory: &'a dyn ReadMemory,
    pages: RefCell<HashMap<u64, Box<[u8; PAGE]>>>,
}

impl<'a> Snapshot<'a> {
    /// An empty one.
    #[must_use]
    pub fn of(memory: &'a dyn ReadMemory) -> Snapshot<'a> {
        Snapshot { memory, pages: RefCell::new(HashMap::new()) }
    }
}

impl ReadMemory for Snapshot<'_> {
    fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
        let size = PAGE as u64;
        let mut pages = self.pages.borrow_mut();
        let mut at = from.0;
        let mut rest = into;
        while !rest.is_empty() {
            let within = (at % size) as usize;
            let length = rest.len().min(PAGE - within);
            let (now, later) = rest.split_at_mut(length);
            let page = match pages.entry(at / size) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => {
                    let mut page = Box::new([0; PAGE]);
                    self.memory.read(Pa(at - at % size), &mut page[..])?;
                    unknown.insert(page)
                }
            };
            now.copy_from_slice(&page[within..within + length]);
            rest = later;
            at = at.checked_add(length as u64).unwrap_or_default();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::mock::{Call, MockEngine};

    #[test]
    fn each_page_is_read_once_and_holes_stay_holes() {
        let bytes: Vec<u8> = (0..2 * PAGE).map(|at| (at / 3) as u8).collect();
        let guest = MockEngine::new().with_memory(Pa(0x1000), &bytes);
        let snapshot = Snapshot::of(&guest);
        for (from, length) in [(0, 8), (PAGE - 4, 8), (PAGE, PAGE), (5, 2 * PAGE - 5), (2 * PAGE - 1, 1)] {
            let mut found = vec![0; length];
            snapshot.read(Pa(0x1000 + from as u64), &mut found).expect("memory");
            assert_eq!(found, bytes[from..from + length]);
        }
        let reads = [0x1000, 0x2000].map(|from| Call::Read { from: Pa(from), len: PAGE });
        assert_eq!(guest.calls(), reads);
        assert!(matches!(snapshot.read(Pa(0x2ffe), &mut [0; 4]), Err(EngineError::Memory { .. })));
        assert!(snapshot.read(Pa(u64::MAX), &mut [0; 2]).is_err());
    }
}
