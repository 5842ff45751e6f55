//! The guest's tasks.
//!
//! Comes in: a located kernel. Decided: which tasks exist: every thread of every process on `init_task.tasks`, the idle
//! task and the current task of every processor. Goes out: [`Task`]s with the bounds of their kernel stacks and the return
//! addresses that tracers have taken off them. Lists of a hostile guest may loop or lead anywhere: the number of steps is
//! bounded and a bad pointer is an error, not a crash.

use super::{GuestError, Kernel};
use crate::engine::{ReadMemory, Va};
use std::collections::BTreeSet;

/// More tasks than this is taken for a loop (`PID_MAX_LIMIT`, `include/linux/threads.h`, is 4 Mi; a guest with more than
/// this many could not be walked in a pause anyway).
const TASKS_LIMIT: usize = 1 << 16;
/// More processors than this are not looked at (`NR_CPUS` of distribution kernels is at most 8192).
const PROCESSORS_LIMIT: u64 = 8192;

/// More return addresses than this are not kept for one task: `FTRACE_RETFUNC_DEPTH` (`include/linux/ftrace.h`) is 50, the
/// shadow stack of later kernels a page (`kernel/trace/fgraph.c`, `SHADOW_STACK_SIZE`).
const RETURNS_LIMIT: usize = 512;

/// `PF_KTHREAD` (`include/linux/sched.h`).
const KERNEL_THREAD: u32 = 0x0020_0000;

/// A task that may have a kernel stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its `task_struct`.
    pub at: Va,
    /// Lowest address of its kernel stack; 0 when it has none any more.
    pub stack: u64,
    /// Stack pointer saved when it was last switched out.
    pub sp: u64,
    /// Thread number.
    pub pid: u32,
    /// Name.
    pub comm: String,
    /// It is a thread of the kernel's own, which never runs a program; `false` where the profile does not tell.
    pub kernel_thread: bool,
    /// Return addresses that tracers keep elsewhere while the stack leads to them: of function graphs and of probes on
    /// returns.
    pub returns: Vec<u64>,
}

/// What a processor's per-CPU area says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerCpu {
    /// Base of the area: `__per_cpu_offset[n]`, the kernel's GS base.
    pub base: u64,
    /// `current_task`.
    pub current: Va,
    /// `idle_threads`, if the profile names it.
    pub idle: Option<Va>,
    /// One past the top of the interrupt stack.
    pub irq_top: u64,
    /// Start of the exception stacks in the processor's entry area.
    pub exception_stacks: u64,
}

/// Reads the per-CPU areas of all possible processors.
///
/// # Errors
/// [`GuestError`].
pub fn per_cpu(memory: &dyn ReadMemory, kernel: &Kernel) -> Result<Vec<PerCpu>, GuestError> {
    let count = kernel.image_u64(memory, kernel.symbol("nr_cpu_ids")?)? & 0xffff_ffff;
    if count == 0 || count > PROCESSORS_LIMIT {
        return Err(GuestError::Damaged { what: "nr_cpu_ids", detail: format!("it is {count}") });
    }
    let offsets = kernel.symbol("__per_cpu_offset")?;
    // The current task moved into a structure in 6.2 (`arch/x86/include/asm/current.h`).
    let (current, irq) = match kernel.symbol("current_task") {
        Ok(current) => (current, kernel.symbol("hardirq_stack_ptr")?),
        Err(_) => {
            let hot = kernel.symbol("pcpu_hot")?;
            (hot + kernel.offset("pcpu_hot.current_task")?, hot + kernel.offset("pcpu_hot.hardirq_stack_ptr")?)
        }
    };
    let exceptions = kernel.symbol("cea_exception_stacks")?;
    let idle = kernel.symbol("idle_threads").ok();
    let mut found: Vec<PerCpu> = Vec::new();
    for index in 0..count {
        let base = kernel.image_u64(memory, offsets.wrapping_add(index * 8))?;
        if found.iter().any(|other| other.base == base) {
            continue;
        }
        let word = |at: u64| kernel.read_u64(memory, Va(base.wrapping_add(at)), "a per-CPU area");
        found.push(PerCpu {
            base,
            current: Va(word(current)?),
            idle: idle.map(&word).transpose()?.map(Va),
            // The pointer is to the topmost entry (`arch/x86/kernel/irq_64.c`, `map_irq_stack`).
            irq_top: word(irq)?.wrapping_add(8),
            exception_stacks: word(exceptions)?,
        });
    }
    Ok(found)
}

/// Refuses a kernel that is still alone: its second task is made at the end of `start_kernel` (`init/main.c`, `rest_init`),
/// when it has chosen its mitigations and patched its code accordingly. Before that, what new code needs is not known yet.
///
/// # Errors
/// [`GuestError::NotBooted`].
pub fn has_started(memory: &dyn ReadMemory, kernel: &Kernel) -> Result<(), GuestError> {
    let init = kernel.symbol("init_task")?;
    let tasks = init.wrapping_add(kernel.offset("task_struct.tasks")?);
    let next = kernel.image_u64(memory, tasks)?;
    if next == 0 || next == kernel.live(tasks).0 {
        return Err(GuestError::NotBooted("it has no second task yet".into()));
    }
    Ok(())
}

/// All tasks.
///
/// # Errors
/// [`GuestError`]; `Damaged` when a list does not end.
pub fn all(memory: &dyn ReadMemory, kernel: &Kernel, processors: &[PerCpu]) -> Result<Vec<Task>, GuestError> {
    let tasks = kernel.offset("task_struct.tasks")?;
    let signal = kernel.offset("task_struct.signal")?;
    let head = kernel.offset("signal_struct.thread_head")?;
    let node = kernel.offset("task_struct.thread_node")?;
    let init = kernel.live(kernel.symbol("init_task")?).0;

    let mut seen = BTreeSet::from([init]);
    for leader in members(memory, kernel, init.wrapping_add(tasks), tasks, "task list")? {
        seen.insert(leader);
        let shared = kernel.read_u64(memory, Va(leader.wrapping_add(signal)), "a task")?;
        seen.extend(members(memory, kernel, shared.wrapping_add(head), node, "thread list")?);
        if seen.len() > TASKS_LIMIT {
            return Err(GuestError::Damaged { what: "task list", detail: format!("more than {TASKS_LIMIT} tasks") });
        }
    }
    seen.extend(processors.iter().flat_map(|cpu| [Some(cpu.current), cpu.idle]).flatten().map(|task| task.0));
    seen.remove(&0);
    seen.into_iter().map(|at| task(memory, kernel, Va(at))).collect()
}

/// The structures on a circular list, without its head.
fn members(
    memory: &dyn ReadMemory,
    kernel: &Kernel,
    head: u64,
    link: u64,
    what: &'static str,
) -> Result<Vec<u64>, GuestError> {
    let mut found = Vec::new();
    let mut at = kernel.read_u64(memory, Va(head), what)?;
    while at != head {
        if found.len() >= TASKS_LIMIT {
            return Err(GuestError::Damaged { what, detail: format!("no end after {TASKS_LIMIT} entries") });
        }
        found.push(at.wrapping_sub(link));
        at = kernel.read_u64(memory, Va(at), what)?;
    }
    Ok(found)
}

fn task(memory: &dyn ReadMemory, kernel: &Kernel, at: Va) -> Result<Task, GuestError> {
    let member = |name: &str| Ok::<_, GuestError>(Va(at.0.wrapping_add(kernel.offset(name)?)));
    let sp = kernel.offset("thread_struct.sp")?;
    let mut comm = [0; 16];
    kernel.read(memory, member("task_struct.comm")?, &mut comm, "a task")?;
    let mut pid = [0; 4];
    kernel.read(memory, member("task_struct.pid")?, &mut pid, "a task")?;
    let mut flags = [0; 4];
    if let Ok(member) = member("task_struct.flags") {
        kernel.read(memory, member, &mut flags, "a task")?;
    }
    Ok(Task {
        at,
        stack: kernel.read_u64(memory, member("task_struct.stack")?, "a task")?,
        sp: kernel.read_u64(memory, Va(member("task_struct.thread")?.0.wrapping_add(sp)), "a task")?,
        pid: u32::from_le_bytes(pid),
        kernel_thread: u32::from_le_bytes(flags) & KERNEL_THREAD != 0,
        comm: comm.iter().take_while(|&&byte| byte != 0).map(|&byte| printable(byte)).collect(),
        returns: [graphed(memory, kernel, at)?, probed(memory, kernel, at)?].concat(),
    })
}

/// Return addresses on the shadow stack of the function graph tracer (`kernel/trace/fgraph.c`, `ftrace_push_return_trace`).
/// Every word of it counts.
fn graphed(memory: &dyn ReadMemory, kernel: &Kernel, task: Va) -> Result<Vec<u64>, GuestError> {
    let (Ok(stack), Ok(top), Ok(entry)) = (
        kernel.offset("task_struct.ret_stack"),
        kernel.offset("task_struct.curr_ret_stack"),
        kernel.size("ftrace_ret_stack"),
    ) else {
        return Ok(Vec::new()); // a kernel without this tracer
    };
    let at = kernel.read_u64(memory, Va(task.0.wrapping_add(stack)), "a task")?;
    let mut index = [0; 4];
    kernel.read(memory, Va(task.0.wrapping_add(top)), &mut index, "a task")?;
    // -1 when it is empty; 0 in kernels that count words.
    let used = u64::try_from(i32::from_le_bytes(index).saturating_add(1)).unwrap_or(0).saturating_mul(entry) / 8;
    if at == 0 || used == 0 {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; used.min(RETURNS_LIMIT as u64) as usize * 8];
    kernel.read(memory, Va(at), &mut bytes, "the return stack of a task")?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
}

/// Return addresses of probes on returns: `kernel/trace/rethook.c`, before Linux 5.18 `kernel/kprobes.c`.
fn probed(memory: &dyn ReadMemory, kernel: &Kernel, task: Va) -> Result<Vec<u64>, GuestError> {
    let lists = [("task_struct.rethooks", "rethook_node"), ("task_struct.kretprobe_instances", "kretprobe_instance")];
    let mut found = Vec::new();
    for (head, node) in lists {
        let (Ok(head), Ok(link), Ok(address)) =
            (kernel.offset(head), kernel.offset(&format!("{node}.llist")), kernel.offset(&format!("{node}.ret_addr")))
        else {
            continue;
        };
        let mut at = kernel.read_u64(memory, Va(task.0.wrapping_add(head)), "a task")?;
        while at != 0 {
            if found.len() >= RETURNS_LIMIT {
                let detail = format!("no end after {RETURNS_LIMIT} entries");
                return Err(GuestError::Damaged { what: "list of probed returns", detail });
            }
            let place = at.wrapping_sub(link).wrapping_add(address);
            found.push(kernel.read_u64(memory, Va(place), "a probed return")?);
            at = kernel.read_u64(memory, Va(at), "a probed return")?;
        }
    }
    Ok(found)
}

/// A task chooses its own name: keep it from playing with the operator's terminal.
fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '?' }
}
