//! Return addresses that tracers have taken off a task's stack, and where each belongs.
//!
//! Comes in: a task. Decided: which words of the tracers' own records are return addresses: of the function graph tracer
//! (`kernel/trace/fgraph.c`), of probes on returns (`kernel/trace/rethook.c`, before Linux 5.18 `kernel/kprobes.c`). Goes out:
//! pairs of a stack slot and the address that was in it. Records of a hostile guest may loop or lead anywhere: their number is
//! bounded.

use super::{GuestError, Kernel};
use crate::engine::{ReadMemory, Va};

/// More than this are not kept for one task: `FTRACE_RETFUNC_DEPTH` (`include/linux/ftrace.h`) is 50.
const LIMIT: usize = 512;
/// Words of a shadow stack since Linux 6.11 (`kernel/trace/fgraph.c`, `SHADOW_STACK_SIZE`: a page).
const SHADOW_WORDS: usize = 512;
/// How far the word on top of a record is above the record, in words (`FGRAPH_FRAME_OFFSET_MASK`).
const DISTANCE: u64 = (1 << 10) - 1;

/// A return address that a tracer keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The stack slot it was in.
    pub slot: u64,
    /// The address. It may be that of another tracer's code.
    pub address: u64,
}

/// All return addresses of a task that tracers keep.
///
/// # Errors
/// [`GuestError`]; `Damaged` when records do not end or do not fit.
pub fn taken(memory: &dyn ReadMemory, kernel: &Kernel, task: Va) -> Result<Vec<Taken>, GuestError> {
    Ok([graphed(memory, kernel, task)?, probed(memory, kernel, task)?].concat())
}

/// Records of the function graph tracer: an array of structures; since Linux 6.11 a stack of words, where each structure has
/// words of its users on top, the topmost of which says how far below it is.
fn graphed(memory: &dyn ReadMemory, kernel: &Kernel, task: Va) -> Result<Vec<Taken>, GuestError> {
    let (Ok(stack), Ok(top), Ok(size), Ok(address), Ok(slot)) = (
        kernel.offset("task_struct.ret_stack"),
        kernel.offset("task_struct.curr_ret_stack"),
        kernel.size("ftrace_ret_stack"),
        kernel.offset("ftrace_ret_stack.ret"),
        kernel.offset("ftrace_ret_stack.retp"),
    ) else {
        return Ok(Vec::new()); // a kernel without this tracer
    };
    let at = kernel.read_u64(memory, Va(task.0.wrapping_add(stack)), "a task")?;
    if at == 0 {
        return Ok(Vec::new());
    }
    let mut index = [0; 4];
    kernel.read(memory, Va(task.0.wrapping_add(top)), &mut index, "a task")?;
    let index = i32::from_le_bytes(index);
    // The users of the tracer are counted since it keeps words.
    let starts = if kernel.offset("fgraph_ops.idx").is_ok() {
        shadow_stack(memory, kernel, at, index, size)?
    } else {
        let count = usize::try_from(index.saturating_add(1)).unwrap_or(0).min(LIMIT) as u64;
        (0..count).map(|index| at.wrapping_add(index.wrapping_mul(size))).collect()
    };
    let word = |at: u64| kernel.read_u64(memory, Va(at), "the return stack of a task");
    starts
        .into_iter()
        .map(|at| Ok(Taken { slot: word(at.wrapping_add(slot))?, address: word(at.wrapping_add(address))? }))
        .collect()
}

/// Addresses of the records on a stack of words (`get_ret_stack`).
fn shadow_stack(
    memory: &dyn ReadMemory,
    kernel: &Kernel,
    at: u64,
    index: i32,
    size: u64,
) -> Result<Vec<u64>, GuestError> {
    let damaged = |detail: String| GuestError::Damaged { what: "return stack of a task", detail };
    let mut top = usize::try_from(index).unwrap_or(0);
    if top > SHADOW_WORDS {
        return Err(damaged(format!("it is {top} words high")));
    }
    let mut bytes = vec![0; top * 8];
    kernel.read(memory, Va(at), &mut bytes, "the return stack of a task")?;
    let words = bytes.as_chunks::<8>().0;
    let mut starts = Vec::new();
    while let Some(last) = top.checked_sub(1) {
        let distance = words.get(last).map_or(0, |word| u64::from_le_bytes(*word) & DISTANCE) as usize;
        let start = last.checked_sub(distance).filter(|_| distance as u64 * 8 >= size);
        top = start.ok_or_else(|| damaged(format!("word {last} leads {distance} words down")))?;
        starts.push(at.wrapping_add(top as u64 * 8));
    }
    Ok(starts)
}

/// Records of probes on returns: a list.
fn probed(memory: &dyn ReadMemory, kernel: &Kernel, task: Va) -> Result<Vec<Taken>, GuestError> {
    let lists = [
        ("task_struct.rethooks", "rethook_node", "frame"),
        ("task_struct.kretprobe_instances", "kretprobe_instance", "fp"),
    ];
    let mut found = Vec::new();
    for (head, node, slot) in lists {
        let (Ok(head), Ok(link), Ok(address), Ok(slot)) = (
            kernel.offset(head),
            kernel.offset(&format!("{node}.llist")),
            kernel.offset(&format!("{node}.ret_addr")),
            kernel.offset(&format!("{node}.{slot}")),
        ) else {
            continue;
        };
        let word = |at: u64| kernel.read_u64(memory, Va(at), "a probed return");
        let mut at = word(task.0.wrapping_add(head))?;
        while at != 0 {
            if found.len() >= LIMIT {
                let detail = format!("no end after {LIMIT} entries");
                return Err(GuestError::Damaged { what: "list of probed returns", detail });
            }
            let start = at.wrapping_sub(link);
            found.push(Taken { slot: word(start.wrapping_add(slot))?, address: word(start.wrapping_add(address))? });
            at = word(at)?;
        }
    }
    Ok(found)
}
