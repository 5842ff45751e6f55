//! Where the guest takes work from an interrupt: a processor's list, and the vector that makes it look there.
//!
//! Comes in: a located kernel and the processors' registers. Decided: a processor that is online and can be interrupted, and
//! the gate of the interrupt table that leads to the kernel's own handler. Goes out: [`Queue`], and what is on it.
//!
//! `kernel/irq_work.c`: each processor has a lock-free list, `raised_list`. Its head points to the newest work, each work to
//! the one before; the handler takes the whole list at once. So a stopped guest's list is always whole.

use super::identity::KERNEL_HALF;
use super::support::SupportError;
use super::{GuestError, Kernel};
use crate::engine::{Pa, ReadMemory, Registers, Va};

/// Local APIC ids that a message can name; 255 is a broadcast (Intel SDM vol. 3, 11.11.1).
const APIC_ID_LIMIT: u16 = 254;
/// Processors looked at (`NR_CPUS` of distribution kernels is at most 8192).
const PROCESSORS_LIMIT: u64 = 8192;
/// More work than this is never waiting on one processor.
const WORK_LIMIT: usize = 256;

/// A processor's list of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Local APIC id of the processor.
    pub apic_id: u8,
    /// Interrupt that makes it do the work.
    pub vector: u8,
    /// Where the head of the list is.
    pub head: Pa,
}

/// Finds a list that can be used.
///
/// # Errors
/// [`SupportError`].
pub fn queue(memory: &dyn ReadMemory, kernel: &Kernel, registers: &[Registers]) -> Result<Queue, SupportError> {
    let vector = vector(memory, kernel, registers)?;
    let count = kernel.image_u64(memory, kernel.symbol("nr_cpu_ids")?)? & 0xffff_ffff;
    let online = kernel.symbol("__cpu_online_mask")?;
    let (offsets, ids) = (kernel.symbol("__per_cpu_offset")?, kernel.symbol("x86_cpu_to_apicid")?);
    let list = kernel.symbol("raised_list")?;
    for cpu in 0..count.min(PROCESSORS_LIMIT) {
        if kernel.image_u64(memory, online.wrapping_add(cpu / 64 * 8))? >> (cpu % 64) & 1 == 0 {
            continue;
        }
        let area = kernel.image_u64(memory, offsets.wrapping_add(cpu * 8))?;
        // 16 bits until Linux 6.8, 32 since (arch/x86/include/asm/smp.h); ids above 254 do not matter here.
        let mut id = [0; 2];
        kernel.read(memory, Va(area.wrapping_add(ids)), &mut id, "a processor's APIC id")?;
        let id = u16::from_le_bytes(id);
        if let (true, Ok(apic_id)) = (id <= APIC_ID_LIMIT, u8::try_from(id)) {
            let head = kernel.translate(memory, Va(area.wrapping_add(list)), "a processor's list of work")?;
            return Ok(Queue { apic_id, vector, head });
        }
    }
    Err(SupportError::NoProcessor)
}

/// The gate that leads to `asm_sysvec_irq_work` (`arch/x86/kernel/idt.c`, `apic_idts`). With nothing on the list the kernel takes this
/// interrupt at any time without harm.
///
/// # Errors
/// [`SupportError`].
pub fn vector(memory: &dyn ReadMemory, kernel: &Kernel, registers: &[Registers]) -> Result<u8, SupportError> {
    let handler = kernel.live(kernel.symbol("asm_sysvec_irq_work")?).0;
    let table = registers.iter().map(|registers| registers.idt_base).find(|&base| base >= KERNEL_HALF);
    let table = table.ok_or_else(|| GuestError::NotBooted("no processor has the kernel's interrupt table".into()))?;
    let mut gates = vec![0; 256 * 16];
    kernel.read(memory, Va(table), &mut gates, "the interrupt table")?;
    let leads_there = |gate: &&[u8]| {
        // Offset in bytes 0-1, 6-7 and 8-11 (Intel SDM vol. 3, figure 6-8).
        let at = [gate[0], gate[1], gate[6], gate[7], gate[8], gate[9], gate[10], gate[11]];
        u64::from_le_bytes(at) == handler
    };
    // The first 32 are exceptions: a device must not raise them.
    let gates = gates.as_chunks::<16>().0;
    let found =
        (32..=255_u8).find(|&vector| gates.get(usize::from(vector)).map(|g| &g[..]).as_ref().is_some_and(leads_there));
    found.ok_or(SupportError::NoVector)
}

/// The place that points to the work at `work`: the head of the list or another work. `None` when it is not on the list.
///
/// # Errors
/// [`GuestError`]; `Damaged` when the list does not end.
pub fn find(memory: &dyn ReadMemory, kernel: &Kernel, head: Pa, next: u64, work: Va) -> Result<Option<Pa>, GuestError> {
    let mut place = head;
    for _ in 0..WORK_LIMIT {
        let mut word = [0; 8];
        memory.read(place, &mut word)?;
        let at = u64::from_le_bytes(word);
        if at == 0 {
            return Ok(None);
        }
        // A work on the list is named by its member `next`.
        let at = Va(at);
        if at == Va(work.0.wrapping_add(next)) {
            return Ok(Some(place));
        }
        place = kernel.translate(memory, at, "a processor's list of work")?;
    }
    Err(GuestError::Damaged { what: "list of work", detail: format!("no end after {WORK_LIMIT} entries") })
}
