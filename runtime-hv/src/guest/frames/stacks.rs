//! Where stacks are, and what is on them.
//!
//! Comes in: the kernel's facts, tasks and per-CPU areas. Decided: the stack that an address is on. Goes out: stacks by
//! address, and their words, of which each page is read once as long as one stack is looked at.

use crate::engine::{ReadMemory, Va};
use crate::guest::paging::PAGE;
use crate::guest::stacks::IRQ_STACK;
use crate::guest::tasks::{PerCpu, Task};
use crate::guest::{GuestError, Kernel};
use crate::unwind::{Stack, StackKind};
use std::cell::RefCell;

/// Names of the exception stacks in `struct cea_exception_stacks`, each in front of its guard page
/// (`arch/x86/include/asm/cpu_entry_area.h`, `enum exception_stack_ordering`); the last guard ends the last stack.
const EXCEPTION_STACKS: [(&str, &str); 6] = [
    ("DF_stack", "NMI_stack_guard"),
    ("NMI_stack", "DB_stack_guard"),
    ("DB_stack", "MCE_stack_guard"),
    ("MCE_stack", "VC_stack_guard"),
    ("VC_stack", "VC2_stack_guard"),
    ("VC2_stack", "IST_top_guard"),
];

/// Sizes and distances of stacks.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    task_stack: u64,
    /// Offsets of start and end of each exception stack.
    exceptions: Vec<(u64, u64)>,
    /// Distance of the entry stack from the exception stacks, below them.
    entry: Option<u64>,
    /// `struct inactive_task_frame`.
    pub(super) inactive_size: u64,
    pub(super) inactive_bp: u64,
    pub(super) inactive_return: u64,
}

impl Layout {
    /// # Errors
    /// [`GuestError::Missing`]. A kernel whose exception stacks are not described has none that could be walked.
    pub(super) fn of(kernel: &Kernel) -> Result<Layout, GuestError> {
        let offset = |name: &str| kernel.offset(name);
        let exception = |(stack, guard): &(&str, &str)| {
            let at = |name: &str| offset(&format!("cea_exception_stacks.{name}")).ok();
            Some((at(stack)?, at(guard)?))
        };
        let entry = || {
            let above = offset("cpu_entry_area.estacks").ok()?;
            above.checked_sub(offset("cpu_entry_area.entry_stack_page").ok()?)
        };
        Ok(Layout {
            task_stack: kernel.constant("THREAD_SIZE")?,
            exceptions: EXCEPTION_STACKS.iter().map(exception).collect::<Option<Vec<_>>>().unwrap_or_default(),
            entry: entry(),
            inactive_size: kernel.size("inactive_task_frame")?,
            inactive_bp: offset("inactive_task_frame.bp")?,
            inactive_return: offset("inactive_task_frame.ret_addr")?,
        })
    }
}

/// All stacks.
pub(super) struct Stacks<'a> {
    layout: &'a Layout,
    /// First address of each task's stack and the task, in order.
    tasks: Vec<(u64, u64)>,
}

impl<'a> Stacks<'a> {
    pub(super) fn of(layout: &'a Layout, tasks: &[Task]) -> Stacks<'a> {
        let mut tasks: Vec<(u64, u64)> =
            tasks.iter().filter(|task| task.stack != 0).map(|task| (task.stack, task.at.0)).collect();
        tasks.sort_unstable();
        Stacks { layout, tasks }
    }

    /// The task's stack that an address is on.
    pub(super) fn of_task(&self, at: u64) -> Option<Stack> {
        let index = self.tasks.partition_point(|(start, _)| *start <= at);
        let &(start, task) = self.tasks.get(index.checked_sub(1)?)?;
        stack(StackKind::Task(task), start, self.layout.task_stack, at)
    }

    /// The processor's own stack that an address is on.
    pub(super) fn of_processor(&self, cpu: &PerCpu, at: u64) -> Option<Stack> {
        let interrupt = stack(StackKind::Interrupt, cpu.irq_top.wrapping_sub(IRQ_STACK), IRQ_STACK, at);
        let base = cpu.exception_stacks;
        if interrupt.is_some() || base == 0 {
            return interrupt;
        }
        let exceptions = (0..).zip(&self.layout.exceptions).find_map(|(number, &(from, to))| {
            stack(StackKind::Exception(number), base.wrapping_add(from), to.saturating_sub(from), at)
        });
        let entry = || stack(StackKind::Entry, base.wrapping_sub(self.layout.entry?), PAGE as u64, at);
        exceptions.or_else(entry)
    }
}

/// A stack, if an address is on it.
fn stack(kind: StackKind, start: u64, length: u64, at: u64) -> Option<Stack> {
    let end = start.checked_add(length)?;
    (start..end).contains(&at).then_some(Stack { kind, range: start..end })
}

/// Words of the guest; the page that was looked at last is kept.
pub(super) struct Pages<'a> {
    memory: &'a dyn ReadMemory,
    kernel: &'a Kernel,
    last: RefCell<(Option<u64>, Box<[u8; PAGE]>)>,
}

impl<'a> Pages<'a> {
    pub(super) fn new(memory: &'a dyn ReadMemory, kernel: &'a Kernel) -> Pages<'a> {
        Pages { memory, kernel, last: RefCell::new((None, Box::new([0; PAGE]))) }
    }

    /// The word at an address that is a multiple of 8.
    pub(super) fn word(&self, at: u64) -> Option<u64> {
        self.part(at).map(u64::from_le_bytes)
    }

    pub(super) fn byte(&self, at: u64) -> Option<u8> {
        let mut byte = [0];
        self.kernel.read(self.memory, Va(at), &mut byte, "code").ok()?;
        Some(byte[0])
    }

    fn part<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let within = at as usize & (PAGE - 1);
        let page = at - within as u64;
        let mut last = self.last.borrow_mut();
        if last.0 != Some(page) {
            last.0 = None;
            self.kernel.read(self.memory, Va(page), &mut last.1[..], "a stack").ok()?;
            last.0 = Some(page);
        }
        last.1.get(within..within + N)?.try_into().ok()
    }
}
