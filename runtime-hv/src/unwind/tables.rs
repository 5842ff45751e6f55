//! ORC tables, and which of them is about an instruction.
//!
//! Comes in: the two halves of a table as they are in memory: instruction addresses, each counted from the place where it is
//! kept, and entries in the same order (`arch/x86/kernel/unwind_orc.c`). Decided: that they are sorted and belong together, and
//! which entry is the one for an instruction. Goes out: [`Tables`]. A damaged table is an error and not a wrong answer.

use super::format::{Entry, Format, Undefined};
use std::ops::Range;
use std::sync::Arc;

/// Bytes of an instruction's address in a table.
pub const ADDRESS: usize = 4;

/// Why two halves are no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Nothing in it.
    #[error("it is empty")]
    Empty,
    /// The halves do not have the same number of whole entries.
    #[error("{addresses} bytes of addresses and {entries} bytes of entries do not belong together")]
    Size {
        /// Bytes of addresses.
        addresses: usize,
        /// Bytes of entries.
        entries: usize,
    },
    /// An address is below the one before it.
    #[error("entry {index}, for {ip:#x}, is not in order")]
    Order {
        /// Which.
        index: usize,
        /// Its address.
        ip: u64,
    },
    /// First and last address are too far apart for code of one piece.
    #[error("it covers {0:#x} bytes of code")]
    Width(u64),
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    format: Format,
    /// Address of the first instruction.
    first: u64,
    /// Distances of all from the first, in order.
    distances: Vec<u32>,
    /// Size of a block of code, as a power of two: the smallest with no more blocks than entries.
    block: u32,
    /// The number of distances below each block: a look-up reads a few neighbours instead of the whole.
    blocks: Vec<u32>,
    entries: Vec<u8>,
}

impl Table {
    /// Reads a table whose addresses are kept at `at`.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn read(format: Format, at: u64, addresses: &[u8], entries: Vec<u8>) -> Result<Table, TableError> {
        let (words, rest) = addresses.as_chunks::<ADDRESS>();
        if !rest.is_empty() || words.len().checked_mul(format.size()) != Some(entries.len()) {
            return Err(TableError::Size { addresses: addresses.len(), entries: entries.len() });
        }
        let (mut first, mut last) = (None, 0);
        let mut distances = Vec::with_capacity(words.len());
        for (index, word) in words.iter().enumerate() {
            let place = at.wrapping_add((index * ADDRESS) as u64);
            let ip = place.wrapping_add_signed(i64::from(i32::from_le_bytes(*word)));
            let first = *first.get_or_insert(ip);
            if ip < first || ip < last {
                return Err(TableError::Order { index, ip });
            }
            distances.push(u32::try_from(ip - first).map_err(|_| TableError::Width(ip - first))?);
            last = ip;
        }
        let first = first.ok_or(TableError::Empty)?;
        let width = last - first;
        let block = (0..32).find(|&block| width >> block <= distances.len() as u64).unwrap_or(32);
        let mut blocks = Vec::new();
        for (index, &distance) in distances.iter().enumerate() {
            blocks.resize(blocks.len().max((u64::from(distance) >> block) as usize + 1), index as u32);
        }
        Ok(Table { format, first, distances, block, blocks, entries })
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.distances.len()
    }

    /// Whether there are none; a table that was read has some.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.distances.is_empty()
    }

    /// The entry for an instruction: the last one that is not behind it. Of several at one address the last counts: the others
    /// mark ends of sections (`__orc_find`).
    #[must_use]
    pub fn entry(&self, ip: u64) -> Option<Result<Entry, Undefined>> {
        let distance = ip.checked_sub(self.first)?;
        let block = usize::try_from(distance >> self.block).unwrap_or(usize::MAX);
        let from = self.blocks.get(block).map_or(self.distances.len(), |&from| from as usize);
        let to = self.blocks.get(block.saturating_add(1)).map_or(self.distances.len(), |&to| to as usize);
        let here = self.distances.get(from..to).unwrap_or_default();
        let index = from + here.partition_point(|&known| u64::from(known) <= distance);
        let size = self.format.size();
        let start = index.checked_sub(1)?.checked_mul(size)?;
        Some(self.format.decode(self.entries.get(start..start + size)?))
    }
}

/// Code and the table that is about it.
#[derive(Debug, Clone)]
struct Region {
    code: Range<u64>,
    table: Arc<Table>,
}

/// A copy of code that has no table of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Copied {
    code: Range<u64>,
    from: u64,
}

/// All tables of a kernel.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// In order of addresses.
    regions: Vec<Region>,
    copies: Vec<Copied>,
}

impl Tables {
    /// Says that a table is about a range of code. Ranges do not overlap; of two that begin at the same address the later counts.
    pub fn add(&mut self, code: Range<u64>, table: Arc<Table>) {
        let at = self.regions.partition_point(|region| region.code.start <= code.start);
        self.regions.insert(at, Region { code, table });
    }

    /// Says that a range of code is a copy of the code that begins at `from`.
    pub fn add_copy(&mut self, code: Range<u64>, from: u64) {
        self.copies.push(Copied { code, from });
    }

    /// Number of ranges of code with a table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether nothing is known of any code.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// What is known of an instruction; `None` for code without a table.
    #[must_use]
    pub fn entry(&self, ip: u64) -> Option<Result<Entry, Undefined>> {
        if let Some(found) = self.own_entry(ip) {
            return Some(found);
        }
        let copy = self.copies.iter().find(|copy| copy.code.contains(&ip))?;
        self.own_entry(copy.from.wrapping_add(ip - copy.code.start))
    }

    fn own_entry(&self, ip: u64) -> Option<Result<Entry, Undefined>> {
        let at = self.regions.partition_point(|region| region.code.start <= ip);
        let region = self.regions.get(at.checked_sub(1)?).filter(|region| region.code.contains(&ip))?;
        region.table.entry(ip)
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::tests::all;
    use super::super::format::{Kind, Register};
    use super::*;

    /// A table in the format of Linux 6.4, kept at `at`: for each address the offset of the caller's stack pointer.
    fn table(at: u64, ips: &[(u64, i16)]) -> Result<Table, TableError> {
        let (_, format) = all()[3];
        let places = (at..).step_by(ADDRESS);
        let addresses: Vec<u8> =
            ips.iter().zip(places).flat_map(|((ip, _), at)| (ip.wrapping_sub(at) as i32).to_le_bytes()).collect();
        let entries = ips.iter().flat_map(|(_, offset)| [offset.to_le_bytes(), [0, 0], [0x05, 0x02]].concat());
        Table::read(format, at, &addresses, entries.collect())
    }

    fn offset(found: Option<Result<Entry, Undefined>>) -> Option<i16> {
        found.map(|entry| entry.expect("a good entry").sp_offset)
    }

    #[test]
    fn the_last_entry_not_behind_an_instruction_counts() {
        let at = 0xffff_ffff_8200_0000;
        let base = 0xffff_ffff_8100_0000;
        // Two at one address; a gap of several blocks; addresses on both sides of a block's border.
        let ips = [(0, 8), (1, 16), (7, 24), (7, 32), (0xff, 40), (0x100, 48), (0x5432, 56), (0x5433, 64)];
        let table = table(at, &ips.map(|(distance, offset)| (base + distance, offset))).expect("a table");
        assert_eq!((table.len(), table.is_empty()), (8, false));
        for distance in 0..0x6000 {
            let expected = ips.iter().rev().find(|(start, _)| *start <= distance).map(|(_, offset)| *offset);
            assert_eq!(offset(table.entry(base + distance)), expected, "{distance:#x}");
        }
        assert_eq!(table.entry(base - 1), None);
        assert_eq!(offset(table.entry(u64::MAX)), Some(64), "what is behind the table is the caller's to say");
        let entry = table.entry(base).expect("an entry").expect("a good one");
        assert_eq!((entry.sp, entry.kind), (Register::Sp, Kind::Call));
    }

    #[test]
    fn damaged_tables_are_refused() {
        let (_, format) = all()[3];
        let at = 0x1000;
        assert_eq!(table(at, &[]), Err(TableError::Empty));
        assert_eq!(table(at, &[(0x2000, 8), (0x1fff, 8)]), Err(TableError::Order { index: 1, ip: 0x1fff }));
        for (addresses, entries) in [(3, 6), (4, 5), (8, 6), (4, 0), (0, 6), (5, 6)] {
            let found = Table::read(format, at, &vec![0; addresses], vec![0; entries]);
            assert_eq!(found, Err(TableError::Size { addresses, entries }));
        }
        // The addresses of a table at the end of the address space wrap around.
        let far = Table::read(format, u64::MAX - 6, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f], vec![0; 12]);
        assert!(matches!(far, Err(TableError::Order { index: 1, .. })), "{far:?}");
        // First and last are 4 GiB and more apart.
        let wide = Table::read(format, 1 << 40, &[0, 0, 0, 0x80, 0xff, 0xff, 0xff, 0x7f], vec![0; 12]);
        assert!(matches!(wide, Err(TableError::Width(_))), "{wide:?}");
    }

    #[test]
    fn code_finds_its_table() {
        let mut tables = Tables::default();
        let one = Arc::new(table(0x1000, &[(0x2000, 8), (0x2010, 16)]).expect("a table"));
        let two = Arc::new(table(0x5000, &[(0x6000, 24)]).expect("a table"));
        tables.add(0x6000..0x6100, two);
        tables.add(0x2000..0x2100, Arc::clone(&one));
        tables.add(0x2200..0x2300, one);
        tables.add_copy(0x9000..0x9020, 0x2008);
        assert_eq!((tables.len(), tables.is_empty()), (3, false));
        for (ip, expected) in [
            (0x1fff, None),
            (0x2000, Some(8)),
            (0x20ff, Some(16)),
            (0x2100, None),
            (0x2250, Some(16)),
            (0x60ff, Some(24)),
            (0x6100, None),
            (0x9007, Some(8)),
            (0x9008, Some(16)),
            (0x9020, None),
        ] {
            assert_eq!(offset(tables.entry(ip)), expected, "{ip:#x}");
        }
    }
}
