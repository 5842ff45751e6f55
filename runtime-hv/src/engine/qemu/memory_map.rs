//! Where guest-physical memory lies in the QEMU process.
//!
//! Comes in: the texts of `info mtree -f` and `gpa2hva`. Decided: which ranges are memory, and which may be written; all
//! else (devices, holes) is not memory. Goes out: a map from guest-physical ranges to addresses in the QEMU process.

use std::time::Duration;

use super::monitor::Monitor;
use crate::engine::{EngineError, Pa};

/// How often to ask for a map that fits together.
const ATTEMPTS: usize = 20;
/// How long to wait in between.
const BETWEEN: Duration = Duration::from_millis(25);

/// An address in the QEMU process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostVa(pub(super) u64);

/// A range of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: Pa,
    /// The last address itself.
    pub(super) last: Pa,
    /// Memory, and not a ROM or a part of memory that the chip set has write-protected.
    pub(super) writable: bool,
}

/// A piece of a request that is contiguous on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) host: HostVa,
    pub(super) len: usize,
}

/// The map, in order of guest-physical address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MemoryMap(Vec<(Range, HostVa)>);

impl MemoryMap {
    /// Asks QEMU, again when the map changes between the questions: firmware turns the memory below 1 MiB from ROM into RAM
    /// and back while it starts.
    pub(super) fn ask(monitor: &mut Monitor) -> Result<Self, EngineError> {
        let mut attempt = 1;
        loop {
            match Self::ask_once(monitor) {
                Err(EngineError::Protocol { .. }) if attempt < ATTEMPTS => attempt += 1,
                result => return result,
            }
            std::thread::sleep(BETWEEN);
        }
    }

    fn ask_once(monitor: &mut Monitor) -> Result<Self, EngineError> {
        let mut map = Vec::new();
        for range in parse_ranges(&monitor.human("info mtree -f")?)? {
            let host = parse_host(&monitor.human(&format!("gpa2hva {:#x}", range.first.0))?)?;
            let end = parse_host(&monitor.human(&format!("gpa2hva {:#x}", range.last.0))?)?;
            if end.0.checked_sub(host.0) != Some(range.last.0 - range.first.0) {
                return Err(EngineError::Protocol {
                    peer: "`gpa2hva`",
                    expected: "a range of `info mtree -f` to be contiguous in the QEMU process",
                    answer: format!("{:#x} at {:#x}, {:#x} at {:#x}", range.first.0, host.0, range.last.0, end.0),
                });
            }
            map.push((range, host));
        }
        map.sort_by_key(|(range, _)| range.first);
        Ok(Self(map))
    }

    /// All ranges.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.0.iter().map(|(range, _)| *range)
    }

    /// The pieces of `len` bytes from `from`, or the first address that is not memory (or not writable, if that matters).
    pub(super) fn pieces(&self, from: Pa, len: usize, for_writing: bool) -> Result<Vec<Piece>, Pa> {
        let mut pieces = Vec::new();
        let mut at = from;
        let mut left = len as u64;
        while left > 0 {
            let following = self.0.partition_point(|(range, _)| range.first <= at);
            let (range, host) = following.checked_sub(1).and_then(|index| self.0.get(index)).ok_or(at)?;
            if at > range.last || (for_writing && !range.writable) {
                return Err(at);
            }
            let here = left.min((range.last.0 - at.0).saturating_add(1));
            pieces.push(Piece { host: HostVa(host.0.wrapping_add(at.0 - range.first.0)), len: here as usize });
            left -= here;
            if left > 0 {
                at = Pa(at.0.checked_add(here).ok_or(at)?);
            }
        }
        Ok(pieces)
    }
}

/// The ranges of the address space `memory`. A line reads `FIRST-LAST (prio N, KIND): NAME`; of the kinds, `ram` and `rom`
/// are memory (QEMU softmmu/memory.c, `memory_region_type`).
fn parse_ranges(text: &str) -> Result<Vec<Range>, EngineError> {
    let view = text
        .split("FlatView #")
        .find(|view| view.lines().any(|line| line.trim_start().starts_with("AS \"memory\"")))
        .ok_or_else(|| unexpected("`info mtree -f`", "an address space named `memory`", text))?;
    let mut ranges = Vec::new();
    for line in view.lines() {
        let Some((addresses, rest)) = line.trim().split_once(" (prio ") else { continue };
        let kind = rest.split_once(", ").and_then(|(_, rest)| rest.split_once(')')).map(|(kind, _)| kind.trim());
        let writable = match kind {
            Some("ram") => true,
            Some("rom") => false,
            Some(_) => continue,
            None => return Err(unexpected("`info mtree -f`", "`(prio N, KIND)`", line)),
        };
        let numbers = addresses.split_once('-').and_then(|(first, last)| {
            Some((u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(last, 16).ok()?))
        });
        match numbers {
            Some((first, last)) if first <= last => ranges.push(Range { first: Pa(first), last: Pa(last), writable }),
            _ => return Err(unexpected("`info mtree -f`", "`FIRST-LAST` in hexadecimal", line)),
        }
    }
    if !ranges.iter().any(|range| range.writable) {
        return Err(unexpected("`info mtree -f`", "at least one range of kind `ram`", view));
    }
    Ok(ranges)
}

/// `Host virtual address for 0x0 (pc.ram) is 0x7f598fe00000`.
fn parse_host(text: &str) -> Result<HostVa, EngineError> {
    text.trim()
        .strip_prefix("Host virtual address for ")
        .and_then(|rest| rest.rsplit_once(" is 0x"))
        .and_then(|(_, digits)| u64::from_str_radix(digits, 16).ok())
        .map(HostVa)
        .ok_or_else(|| unexpected("`gpa2hva`", "`Host virtual address for … is 0x…`", text))
}

fn unexpected(peer: &'static str, expected: &'static str, answer: &str) -> EngineError {
    EngineError::Protocol { peer, expected, answer: answer.trim().chars().take(120).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "FlatView #0\r
 AS \"I/O\", root: io\r
 Root memory region: io\r
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan\r
\r
FlatView #1\r
 AS \"memory\", root: system\r
 AS \"cpu-memory-0\", root: system\r
 Root memory region: system\r
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram KVM\r
  00000000000c3000-00000000000e7fff (prio 0, rom): pc.ram @00000000000c3000\r
  0000000000100000-000000001fffffff (prio 0, ram): pc.ram @0000000000100000\r
  00000000fd000000-00000000fdffffff (prio 1, ramd): a device, with a comma\r
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic\r
  0000000100000000-000000011fffffff (prio 0, ram): pc.ram @0000000020000000\r
\r
FlatView #2\r
 AS \"cpu-smm-0\", root: memory\r
  0000000000000000-00000000ffffffff (prio 0, ram): not this one\r
";

    fn map() -> MemoryMap {
        MemoryMap(
            parse_ranges(TREE)
                .expect("ranges")
                .into_iter()
                .map(|range| (range, HostVa(0x7000_0000_0000 + range.first.0)))
                .collect(),
        )
    }

    #[test]
    fn only_ram_and_rom_of_the_system_are_memory() {
        let ranges: Vec<_> = map().ranges().map(|range| (range.first.0, range.last.0, range.writable)).collect();
        assert_eq!(
            ranges,
            [
                (0, 0xb_ffff, true),
                (0xc_3000, 0xe_7fff, false),
                (0x10_0000, 0x1fff_ffff, true),
                (0x1_0000_0000, 0x1_1fff_ffff, true)
            ]
        );
    }

    #[test]
    fn requests_are_cut_at_borders_and_refused_at_holes() {
        let map = map();
        let piece = |at: u64, len| Piece { host: HostVa(0x7000_0000_0000 + at), len };
        assert_eq!(map.pieces(Pa(0x1000), 16, true), Ok(vec![piece(0x1000, 16)]));
        assert_eq!(map.pieces(Pa(0x1fff_fff0), 16, true), Ok(vec![piece(0x1fff_fff0, 16)]));
        assert_eq!(map.pieces(Pa(0x1fff_fff0), 17, true), Err(Pa(0x2000_0000)));
        assert_eq!(map.pieces(Pa(0xb_fff8), 9, false), Err(Pa(0xc_0000)));
        assert_eq!(map.pieces(Pa(0xc_3000), 4, false), Ok(vec![piece(0xc_3000, 4)]));
        assert_eq!(map.pieces(Pa(0xc_3000), 4, true), Err(Pa(0xc_3000)));
        assert_eq!(map.pieces(Pa(0xfec0_0000), 4, false), Err(Pa(0xfec0_0000)));
        assert_eq!(map.pieces(Pa(u64::MAX), 4, false), Err(Pa(u64::MAX)));
        assert_eq!(map.pieces(Pa(0xfec0_0000), 0, false), Ok(vec![]));
    }

    #[test]
    fn adjacent_ranges_are_crossed() {
        let range = |first, last| Range { first: Pa(first), last: Pa(last), writable: true };
        let map = MemoryMap(vec![(range(0, 0xfff), HostVa(0x5000)), (range(0x1000, u64::MAX), HostVa(0x9000))]);
        assert_eq!(
            map.pieces(Pa(0xffe), 4, false),
            Ok(vec![Piece { host: HostVa(0x5ffe), len: 2 }, Piece { host: HostVa(0x9000), len: 2 }])
        );
        // The request would pass the end of the address space.
        assert_eq!(map.pieces(Pa(u64::MAX - 1), 4, false), Err(Pa(u64::MAX - 1)));
    }

    #[test]
    fn the_host_address_is_read() {
        assert_eq!(
            parse_host("Host virtual address for 0x0 (pc.ram) is 0x7f598fe00000\r\n").ok(),
            Some(HostVa(0x7f59_8fe0_0000))
        );
        assert!(parse_host("No memory is mapped at address 0x80000000\r\n").is_err());
        assert!(parse_ranges("unknown command").is_err());
        assert!(parse_ranges("FlatView #0\n AS \"memory\", root: system\n No rendered FlatView\n").is_err());
    }
}
