//! Which entry starts at an offset of a unit.
//!
//! Comes in: the offsets of entries, in their order. Decided: nothing. Goes out: the number of each. A bit per byte of the unit,
//! and counts in between, stay in the fastest cache, where a table of numbers would not: it is asked for each member of each type.

use super::scan::Index;

/// The bits of 32 bytes of a unit, and, when there are any, how many are set before them.
#[derive(Debug, Clone, Copy, Default)]
struct Chunk {
    bits: u32,
    before: Index,
}

/// Bytes of a unit in a chunk.
const BYTES: usize = u32::BITS as usize;

/// Where entries start.
#[derive(Debug, Default)]
pub(super) struct Starts(Vec<Chunk>);

impl Starts {
    /// Forgets all, for a unit of so many bytes.
    pub(super) fn clear(&mut self, length: usize) {
        self.0.clear();
        self.0.resize(length / BYTES + 1, Chunk::default());
    }

    /// Takes in an entry; their numbers go from 0 up without gaps.
    #[inline]
    pub(super) fn add(&mut self, offset: usize, number: Index) {
        let chunk = &mut self.0[offset / BYTES];
        if chunk.bits == 0 {
            chunk.before = number;
        }
        chunk.bits |= 1 << (offset % BYTES);
    }

    /// The number of the entry at an offset.
    #[inline]
    pub(super) fn number(&self, offset: u32) -> Option<Index> {
        let chunk = self.0.get(offset as usize / BYTES)?;
        let bit = 1 << (offset as usize % BYTES);
        (chunk.bits & bit != 0).then(|| chunk.before + (chunk.bits & (bit - 1)).count_ones())
    }
}

#[cfg(test)]
mod tests {
    use super::Starts;

    #[test]
    fn entries_are_numbered_in_order() {
        let mut starts = Starts::default();
        starts.clear(1000);
        let offsets = [11, 12, 63, 64, 127, 640, 999];
        offsets.iter().zip(0..).for_each(|(&offset, number)| starts.add(offset, number));
        for (number, &offset) in offsets.iter().enumerate() {
            assert_eq!(starts.number(offset as u32), Some(number as u32));
        }
        assert_eq!((starts.number(0), starts.number(13), starts.number(5000)), (None, None, None));
    }
}
