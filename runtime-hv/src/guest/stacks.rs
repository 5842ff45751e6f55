//! Every place where a stopped guest may hold a saved instruction pointer.
//!
//! Comes in: a stopped guest's registers, its tasks and per-CPU areas. Decided: which part of which stack is in use; when
//! in doubt, all of it. Goes out: [`Span`]s, and the first word in them that falls into given ranges. The scan is
//! conservative: a word that looks like an address counts as one.

use super::paging::PAGE;
use super::tasks::{PerCpu, Task};
use super::{GuestError, Kernel, identity::KERNEL_HALF};
use crate::engine::{ReadMemory, Registers, Va};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The per-processor entry areas (`CPU_ENTRY_AREA_BASE`, `arch/x86/include/asm/pgtable_64_types.h`), 512 GiB.
const ENTRY_AREAS: Range<u64> = 0xffff_fe00_0000_0000..0xffff_fe80_0000_0000;
/// Pages of `struct cea_exception_stacks`, guard pages included, with room to spare
/// (`arch/x86/include/asm/cpu_entry_area.h`: six stacks of two pages and their guards).
const EXCEPTION_PAGES: u64 = 20;
/// `IRQ_STACK_SIZE` (`arch/x86/include/asm/page_64_types.h`).
pub(super) const IRQ_STACK: u64 = 16 << 10;

/// A piece of a stack in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub from: u64,
    /// One past the last.
    pub to: u64,
    /// Whose it is, for people.
    pub owner: String,
}

/// Result of looking for stacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Survey {
    /// All stacks in use.
    Spans(Vec<Span>),
    /// A processor is at a place where its stack cannot be told; look again a moment later.
    Unsettled(String),
}

/// Where a saved instruction pointer was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// Whose stack or processor.
    pub owner: String,
    /// The address found.
    pub word: u64,
}

/// Finds all stacks in use of a stopped guest.
///
/// # Errors
/// [`GuestError`].
pub fn survey(
    kernel: &Kernel,
    registers: &[Registers],
    processors: &[PerCpu],
    tasks: &[Task],
) -> Result<Survey, GuestError> {
    let thread_size = kernel.constant("THREAD_SIZE")?;
    let mut spans = Vec::new();
    // For a task on a processor: where its stack begins to be used; 0 means all of it.
    let mut running: BTreeMap<Va, u64> = BTreeMap::new();
    let mut in_kernel = BTreeSet::new();
    for (index, registers) in registers.iter().enumerate() {
        if registers.idt_base < KERNEL_HALF || registers.cpl == 3 {
            continue; // not started, or in user mode with an empty kernel stack
        }
        let Some(cpu) = processors.iter().find(|cpu| cpu.base == registers.gs_base) else {
            return Ok(Survey::Unsettled(format!("processor {index} is just entering or leaving the kernel")));
        };
        in_kernel.insert(cpu.base);
        let rsp = registers.rsp;
        let irq = cpu.irq_top.wrapping_sub(IRQ_STACK)..cpu.irq_top;
        if let Some(task) = tasks.iter().find(|task| within(rsp, task.stack, thread_size)) {
            if task.at != cpu.current {
                running.insert(cpu.current, 0);
            }
            running.insert(task.at, rsp);
        } else if irq.contains(&rsp) {
            spans.push(Span { from: rsp, to: irq.end, owner: format!("interrupt stack of processor {index}") });
            running.insert(cpu.current, 0);
        } else if ENTRY_AREAS.contains(&rsp) {
            let page_end = (rsp | (PAGE as u64 - 1)).wrapping_add(1);
            let (start, pages) = (cpu.exception_stacks, EXCEPTION_PAGES * PAGE as u64);
            spans.push(Span { from: rsp, to: page_end, owner: format!("entry stack of processor {index}") });
            spans.push(Span {
                from: start,
                to: start.wrapping_add(pages),
                owner: format!("exception stacks of processor {index}"),
            });
            spans.push(Span { from: irq.start, to: irq.end, owner: format!("interrupt stack of processor {index}") });
            running.insert(cpu.current, 0);
        } else {
            return Ok(Survey::Unsettled(format!("the stack of processor {index}, {rsp:#x}, is not a known one")));
        }
    }
    let in_user: BTreeSet<Va> =
        processors.iter().filter(|cpu| !in_kernel.contains(&cpu.base)).map(|cpu| cpu.current).collect();
    for task in tasks.iter().filter(|task| task.stack != 0) {
        let from = match running.get(&task.at) {
            Some(&from) => from,
            None if in_user.contains(&task.at) => continue,
            None => task.sp,
        };
        let from = if within(from, task.stack, thread_size) { from } else { task.stack };
        let owner = format!("task {} ({})", task.pid, task.comm);
        spans.push(Span { from: from & !7, to: task.stack.wrapping_add(thread_size), owner });
    }
    Ok(Survey::Spans(spans))
}

/// The first saved instruction pointer, or word that looks like one, inside any of `ranges` (start and end of each
/// excluded and included as usual).
///
/// # Errors
/// [`GuestError`].
pub fn find(
    memory: &dyn ReadMemory,
    kernel: &Kernel,
    registers: &[Registers],
    spans: &[Span],
    ranges: &[Range<u64>],
) -> Result<Option<Hit>, GuestError> {
    let hit = |word: u64| ranges.iter().any(|range| range.contains(&word));
    for (index, registers) in registers.iter().enumerate() {
        if registers.cpl == 0 && hit(registers.rip) {
            return Ok(Some(Hit { owner: format!("processor {index}"), word: registers.rip }));
        }
    }
    let mut page = [0; PAGE];
    for span in spans {
        let mut at = span.from;
        while at < span.to {
            let length = (PAGE - (at as usize & (PAGE - 1))).min((span.to - at) as usize);
            let bytes = &mut page[..length];
            match kernel.read(memory, Va(at), bytes, "a stack") {
                // Guard pages, and the stack of a task that has just died.
                Err(GuestError::NotMapped { .. }) => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
                    if let Some(word) = words.into_iter().find(|&word| hit(word)) {
                        return Ok(Some(Hit { owner: span.owner.clone(), word }));
                    }
                }
            }
            at = at.wrapping_add(length as u64);
        }
    }
    Ok(None)
}

fn within(address: u64, start: u64, length: u64) -> bool {
    start != 0 && address.wrapping_sub(start) < length
}
