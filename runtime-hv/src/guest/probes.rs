//! Kprobes that the guest has registered.
//!
//! Comes in: a located kernel. Decided: which probes can still be switched on. Goes out: their addresses.
//!
//! A registered probe shows in the code only while it is armed, but its kernel has kept a copy of the instruction below it from
//! the moment of its registration (`kernel/kprobes.c`, `register_kprobe`; `arch/x86/kernel/kprobes/core.c`,
//! `arch_copy_kprobe`): armed later, it executes that copy, and disarmed, it puts its first byte back. So nothing may be
//! written where one is.

use super::{GuestError, Kernel};
use crate::engine::{ReadMemory, Va};
use std::ops::Range;

/// Longest table looked at; it has had 64 lists since Linux 2.6.26 (`KPROBE_TABLE_SIZE`).
const LISTS_LIMIT: u64 = 4096;
/// More probes than this are taken for a loop.
const PROBES_LIMIT: usize = 1 << 16;
/// Its code is gone: it can never be armed again (`KPROBE_FLAG_GONE`, `include/linux/kprobes.h`).
const GONE: u32 = 1;

/// Addresses of the probes. Empty for a kernel without them.
///
/// # Errors
/// [`GuestError`]; a table that changes while it is read may look damaged.
pub fn registered(memory: &dyn ReadMemory, kernel: &Kernel) -> Result<Vec<u64>, GuestError> {
    let Ok(table) = kernel.symbol("kprobe_table") else { return Ok(Vec::new()) };
    let lists = kernel.constant("KPROBE_TABLE_SIZE")?.min(LISTS_LIMIT);
    let (link, address, flags) =
        (kernel.offset("kprobe.hlist")?, kernel.offset("kprobe.addr")?, kernel.offset("kprobe.flags")?);
    let (mut found, mut seen) = (Vec::new(), 0);
    for list in 0..lists {
        // struct hlist_head and struct hlist_node begin with the next one (include/linux/types.h).
        let mut at = kernel.image_u64(memory, table.wrapping_add(list * 8))?;
        while at != 0 {
            seen += 1;
            if seen > PROBES_LIMIT {
                let detail = format!("no end after {PROBES_LIMIT} entries");
                return Err(GuestError::Damaged { what: "table of probes", detail });
            }
            let probe = at.wrapping_sub(link);
            let mut word = [0; 4];
            kernel.read(memory, Va(probe.wrapping_add(flags)), &mut word, "a probe")?;
            if u32::from_le_bytes(word) & GONE == 0 {
                found.push(kernel.read_u64(memory, Va(probe.wrapping_add(address)), "a probe")?);
            }
            at = kernel.read_u64(memory, Va(at), "a probe")?;
        }
    }
    Ok(found)
}

/// The first of the probes that lies in one of the ranges.
#[must_use]
pub fn first_in(probes: &[u64], ranges: &[Range<u64>]) -> Option<u64> {
    probes.iter().copied().find(|at| ranges.iter().any(|range| range.contains(at)))
}
