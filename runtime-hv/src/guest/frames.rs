//! The frames of every task and processor of a stopped guest.
//!
//! Comes in: a located kernel; then, in a pause, registers, per-CPU areas and tasks. Decided: which unwind tables the kernel
//! has, where each thread of control stands, on which stacks it may be. Goes out: a [`Context`] for each task and for each
//! processor that is in the kernel without one.
//!
//! [`Unwinder::read`] reads the tables while the guest runs; [`Unwinder::refresh`] makes up for modules and tracers that came or
//! went since, and belongs to the pause, like [`Unwinder::contexts`].

mod stacks;
mod tables;

pub use tables::UnwindError;

use super::returns::{self, Taken};
use super::tasks::{PerCpu, Task};
use super::{GuestError, Kernel, identity::KERNEL_HALF};
use crate::engine::{ReadMemory, Registers, Va};
use crate::unwind::format::Kind;
use crate::unwind::format::Undefined;
use crate::unwind::{End, Entry, Saved, Source, Stack, StackKind, Start, Stop, Tables, Walk, walk};
use stacks::{Pages, Stacks};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Thunks for indirect branches through 16 registers, 32 bytes each (`arch/x86/include/asm/nospec-branch.h`,
/// `RETPOLINE_THUNK_SIZE`).
const THUNKS: [&str; 3] =
    ["__x86_indirect_thunk_array", "__x86_indirect_call_thunk_array", "__x86_indirect_jump_thunk_array"];
const THUNKS_SIZE: u64 = 16 * 32;
/// The thunk for returns; it begins with `ret` or with a jump to another (`arch/x86/lib/retpoline.S`).
const RETURN_THUNK: &str = "__x86_return_thunk";
/// `ret` (Intel SDM vol. 2B).
const RET: u8 = 0xc3;
/// Code that tracers put in the place of return addresses (`arch/x86/kernel/ftrace_64.S`, `rethook.c`, `kprobes/core.c`).
const HOOKS: [&str; 4] =
    ["return_to_handler", "arch_rethook_trampoline", "__kretprobe_trampoline", "kretprobe_trampoline"];
/// Code of which the tables say what is not so. `return_to_handler` has the return address in a register, then puts it on the
/// stack by itself; before Linux 6.4 the tables say that nobody called it (`arch/x86/kernel/ftrace_64.S`). `__switch_to_asm`
/// fills the return stack buffer by calls whose addresses the tables place wrongly, for there are alternatives of it
/// (`arch/x86/include/asm/nospec-branch.h`, `FILL_RETURN_BUFFER`).
const LEFT_OUT: [&str; 2] = ["return_to_handler", "__switch_to_asm"];
/// More bytes than each of them has; it ends where a hook or a beginning is.
const LEFT_OUT_SIZE: u64 = 256;
/// Where a new task begins (`arch/x86/kernel/process.c`, `copy_thread`).
const BEGINNINGS: [&str; 2] = ["ret_from_fork", "ret_from_fork_asm"];

/// What a thread of control is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// In the kernel, on this processor.
    Running(usize),
    /// In user mode: it has no frames in the kernel.
    User,
    /// Not on a processor: it sleeps, waits for its turn, or was preempted.
    SwitchedOut,
    /// It has not run yet.
    New,
    /// It has ended, and its stack is gone.
    Dead,
    /// The idle task of a processor that does not run the kernel: not started, or just beginning to.
    Offline,
    /// It may be on a processor or not; its walk says so.
    Unsettled,
}

/// A thread of control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Index in the list of tasks; `None` for a processor that is just entering or leaving the kernel, of whose task nothing
    /// but what it was interrupted in can be told.
    pub task: Option<usize>,
    /// What it is doing.
    pub state: State,
    /// Its frames.
    pub walk: Walk,
}

/// Reads stacks of one kernel.
#[derive(Debug, Clone)]
pub struct Unwinder {
    tables: tables::Known,
    hooks: Vec<u64>,
    left_out: Vec<Range<u64>>,
    beginnings: Vec<u64>,
    thunks: Vec<Range<u64>>,
    return_thunk: Option<u64>,
    layout: stacks::Layout,
    /// Code that the service has put in the place of return addresses, and these, by slot.
    diverted: (Vec<u64>, BTreeMap<u64, u64>),
}

impl Unwinder {
    /// Reads what a kernel has for walking stacks. The guest may run.
    ///
    /// # Errors
    /// [`UnwindError`]; a module that is just being loaded or removed is left out.
    pub fn read(memory: &dyn ReadMemory, kernel: &Kernel) -> Result<Unwinder, UnwindError> {
        let live = |name: &&str| kernel.symbol(name).ok().map(|link| kernel.live(link).0);
        let thunk = |start: u64| start..start.wrapping_add(THUNKS_SIZE);
        let hooks: Vec<u64> = HOOKS.iter().filter_map(live).collect();
        let beginnings: Vec<u64> = BEGINNINGS.iter().filter_map(live).collect();
        let left_out = LEFT_OUT.iter().filter_map(live).map(|start| {
            let sizes = hooks.iter().chain(&beginnings).filter_map(|next| next.checked_sub(start));
            start..start.wrapping_add(sizes.filter(|size| *size != 0).min().unwrap_or(LEFT_OUT_SIZE).min(LEFT_OUT_SIZE))
        });
        Ok(Unwinder {
            tables: tables::Known::read(memory, kernel)?,
            left_out: left_out.collect(),
            hooks,
            beginnings,
            thunks: THUNKS.iter().filter_map(live).map(thunk).collect(),
            return_thunk: live(&RETURN_THUNK),
            layout: stacks::Layout::of(kernel)?,
            diverted: Default::default(),
        })
    }

    /// Says which return addresses the service has replaced, by slot, and with what: walks see through them as through those
    /// of tracers.
    pub fn set_diverted(&mut self, trampolines: Vec<u64>, originals: BTreeMap<u64, u64>) {
        self.diverted = (trampolines, originals);
    }

    /// Reads the tables of modules that have come since, forgets those of modules that have gone, and looks for code that
    /// tracers have made. The guest is stopped.
    ///
    /// # Errors
    /// [`UnwindError`].
    pub fn refresh(&mut self, memory: &dyn ReadMemory, kernel: &Kernel) -> Result<(), UnwindError> {
        self.tables.refresh(memory, kernel)
    }

    /// The tables.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        self.tables.tables()
    }

    /// Walks the stacks of all tasks and processors of a stopped guest. `registers` and `processors` are those of now;
    /// `tasks` come from [`super::tasks::all`].
    ///
    /// # Errors
    /// [`GuestError`] when tasks cannot be read. A stack that cannot be walked is no error but the result of its walk.
    pub fn contexts(
        &self,
        memory: &dyn ReadMemory,
        kernel: &Kernel,
        registers: &[Registers],
        processors: &[PerCpu],
        tasks: &[Task],
    ) -> Result<Vec<Context>, GuestError> {
        let mut originals = self.diverted.1.clone();
        for task in tasks {
            for Taken { slot, address } in returns::taken(memory, kernel, task.at)? {
                if !self.hooks.contains(&address) {
                    originals.insert(slot, address);
                }
            }
        }
        let stacks = Stacks::of(&self.layout, tasks);
        let pages = Pages::new(memory, kernel);
        let view =
            |processor| View { unwinder: self, pages: &pages, stacks: &stacks, processor, originals: &originals };

        let mut found = Vec::new();
        // Tasks whose place is told by a processor, and per-CPU areas whose processor is in the kernel.
        let (mut placed, mut in_kernel) = (BTreeSet::new(), BTreeSet::new());
        // Tasks on whose stacks a processor is while its GS base is not the kernel's.
        let mut drifting = Vec::new();
        for (index, registers) in registers.iter().enumerate() {
            if registers.idt_base < KERNEL_HALF || registers.cpl == 3 {
                continue; // not started, or in user mode
            }
            let settled = processors.iter().find(|cpu| cpu.base == registers.gs_base);
            in_kernel.extend(settled.map(|cpu| cpu.base));
            // In the few instructions before the kernel's GS base is there, and after, the stack tells the processor.
            let cpu =
                settled.or_else(|| processors.iter().find(|cpu| stacks.of_processor(cpu, registers.rsp).is_some()));
            let walk = walk(&view(cpu), &start_of(registers));
            // It also tells the task, in the middle of a switch too, when `current` is not changed yet.
            let on_stack = walk.stacks.iter().find_map(|kind| match kind {
                StackKind::Task(at) => Some(Va(*at)),
                _ => None,
            });
            drifting.extend(on_stack.filter(|_| settled.is_none()));
            let owner = on_stack.or(settled.map(|cpu| cpu.current));
            let task = owner.and_then(|owner| tasks.iter().position(|task| task.at == owner));
            placed.extend(owner);
            found.push(Context { task, state: State::Running(index), walk });
        }
        let elsewhere: Vec<&PerCpu> = processors.iter().filter(|cpu| !in_kernel.contains(&cpu.base)).collect();
        // On the way to user mode it is the current task's stack; but the kernel also looks at a program's GS base while it
        // changes from one task to another (`arch/x86/entry/entry_64.S`, `asm_load_gs_index`).
        let is_adrift = drifting.iter().any(|task| !elsewhere.iter().any(|cpu| cpu.current == *task));
        for (index, task) in tasks.iter().enumerate().filter(|(_, task)| !placed.contains(&task.at)) {
            let current = elsewhere.iter().find(|cpu| cpu.current == task.at);
            // Before a processor was ever started, its area names the first of all tasks.
            let is_idle = || processors.iter().any(|cpu| cpu.idle == Some(task.at));
            let (state, walk) = match current {
                _ if task.stack == 0 => (State::Dead, Walk::empty()),
                Some(_) if is_adrift => {
                    (State::Unsettled, Walk { end: End::Stopped(Stop::Unsettled), ..Walk::empty() })
                }
                Some(cpu) if cpu.idle == Some(task.at) => (State::Offline, Walk::empty()),
                Some(_) if !is_idle() => (State::User, Walk::empty()),
                _ => {
                    let start = self.saved(&pages, task);
                    let state = if start.exact { State::New } else { State::SwitchedOut };
                    (state, walk(&view(None), &start))
                }
            };
            found.push(Context { task: Some(index), state, walk });
        }
        Ok(found)
    }

    /// Where a task stands that is not on a processor (`struct inactive_task_frame`, `arch/x86/include/asm/switch_to.h`). A
    /// stack that cannot be read gives addresses that no table knows.
    fn saved(&self, pages: &Pages<'_>, task: &Task) -> Start {
        let layout = &self.layout;
        let slot = task.sp.wrapping_add(layout.inactive_return);
        let ip = pages.word(slot).unwrap_or(0);
        Start {
            ip,
            exact: self.beginnings.contains(&ip),
            slot: Some(slot),
            sp: task.sp.wrapping_add(layout.inactive_size),
            bp: pages.word(task.sp.wrapping_add(layout.inactive_bp)).unwrap_or(0),
            registers: None,
        }
    }
}

fn start_of(registers: &Registers) -> Start {
    let Registers { rip, rsp, rbp, rax, rdx, rdi, r10, r13, .. } = *registers;
    let registers = Some(Saved { ax: rax, dx: rdx, di: rdi, bp: rbp, r10, r13 });
    Start { ip: rip, exact: true, slot: None, sp: rsp, bp: rbp, registers }
}

/// What the walk of one thread of control sees.
struct View<'a> {
    unwinder: &'a Unwinder,
    pages: &'a Pages<'a>,
    stacks: &'a Stacks<'a>,
    /// The processor whose stacks it may be on.
    processor: Option<&'a PerCpu>,
    originals: &'a BTreeMap<u64, u64>,
}

impl Source for View<'_> {
    fn word(&self, at: u64) -> Option<u64> {
        self.pages.word(at)
    }

    fn stack(&self, at: u64) -> Option<Stack> {
        self.stacks.of_task(at).or_else(|| self.stacks.of_processor(self.processor?, at))
    }

    fn entry(&self, ip: u64) -> Option<Result<Entry, Undefined>> {
        let mut entry = self.unwinder.tables().entry(ip);
        let is_left_out = self.unwinder.left_out.iter().any(|code| code.contains(&ip));
        if let (true, Some(Ok(entry))) = (is_left_out, &mut entry) {
            entry.kind = Kind::Undefined;
        }
        entry
    }

    fn is_hook(&self, address: u64) -> bool {
        self.unwinder.hooks.contains(&address) || self.unwinder.diverted.0.contains(&address)
    }

    fn original(&self, slot: u64) -> Option<u64> {
        self.originals.get(&slot).copied()
    }

    fn is_beginning(&self, address: u64) -> bool {
        self.unwinder.beginnings.contains(&address)
    }

    fn is_thunk(&self, ip: u64) -> bool {
        self.unwinder.thunks.iter().any(|thunks| thunks.contains(&ip))
    }

    fn is_return(&self, ip: u64) -> bool {
        self.unwinder.return_thunk == Some(ip) || self.pages.byte(ip) == Some(RET)
    }
}

#[cfg(test)]
pub(crate) mod tests;
