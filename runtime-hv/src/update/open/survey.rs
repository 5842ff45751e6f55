//! Who is inside old code.
//!
//! Comes in: a stopped guest and ranges of code. Decided: for every task and processor, from its frames; where a stack cannot be
//! unwound to its end, whether any word of the rest could be an address in that code. Goes out: [`Survey`].

use super::{Inside, Shared};
use crate::engine::{Engine, ReadMemory, Va};
use crate::guest::frames::{Context, Unwinder};
use crate::guest::snapshot::Snapshot;
use crate::guest::stacks::{self, Span};
use crate::guest::tasks::{self, Task};
use crate::guest::{GuestError, Kernel};
use crate::unwind::End;
use crate::update::admit::Admitted;
use crate::update::{UpdateError, quiet};
use std::collections::BTreeMap;
use std::ops::Range;

/// Code that is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// Live addresses. Of a function from its second byte on: what stands before the first has not begun.
    pub range: Range<u64>,
    /// Name of the function.
    pub function: String,
    /// Link address of the function, where it is a replaced one.
    pub old_address: u64,
    /// Which part of the update it belongs to.
    pub part: usize,
}

/// The code that parts of an update of type 2 leave.
#[must_use]
pub fn code(parts: &[&Admitted]) -> Vec<Code> {
    let of_part = |(index, part): (usize, &&Admitted)| {
        let live = |link: u64| part.kernel.live(link).0;
        let one = |(range, function, old_address): &(Range<u64>, String, u64)| Code {
            range: live(range.start)..live(range.end),
            function: function.clone(),
            old_address: *old_address,
            part: index,
        };
        part.old_code.iter().map(one).collect::<Vec<_>>()
    };
    parts.iter().enumerate().flat_map(of_part).collect()
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Survey {
    /// All frames inside; none means that nobody is.
    Frames(Vec<Inside>),
    /// It cannot be told of somebody, or somebody is inside in a way that cannot be followed.
    Unclear(String),
}

/// Looks at every stack of a stopped guest.
///
/// # Errors
/// [`UpdateError`]. Lists that are half changed at this moment are [`Survey::Unclear`].
pub fn survey<E: Engine>(
    engine: &mut E,
    kernel: &Kernel,
    unwinder: Option<&mut Unwinder>,
    opens: &Shared,
    code: &[Code],
) -> Result<Survey, UpdateError> {
    if code.is_empty() {
        return Ok(Survey::Frames(Vec::new()));
    }
    let Some(unwinder) = unwinder else {
        // Without tables every word that looks like an address there counts.
        let who = quiet::nobody_in(engine, kernel, &ranges(code))?;
        return Ok(who.map_or(Survey::Frames(Vec::new()), Survey::Unclear));
    };
    let (mut trampolines, mut originals) = (Vec::new(), BTreeMap::new());
    for open in opens.lock().iter() {
        trampolines.extend(open.parts.iter().map(|part| part.trampoline.0));
        originals.extend(open.threads.iter().map(|thread| (thread.slot, thread.original)));
    }
    unwinder.set_diverted(trampolines, originals);
    let registers = engine.registers()?;
    let memory = Snapshot::of(engine);
    match look(&memory, kernel, &registers, unwinder, opens, code) {
        Err(UpdateError::Guest(error @ (GuestError::Damaged { .. } | GuestError::NotMapped { .. }))) => {
            Ok(Survey::Unclear(error.to_string()))
        }
        other => other,
    }
}

fn look(
    memory: &dyn ReadMemory,
    kernel: &Kernel,
    registers: &[crate::engine::Registers],
    unwinder: &mut Unwinder,
    opens: &Shared,
    code: &[Code],
) -> Result<Survey, UpdateError> {
    unwinder.refresh(memory, kernel)?;
    let processors = tasks::per_cpu(memory, kernel)?;
    let tasks = tasks::all(memory, kernel, &processors)?;
    let contexts = unwinder.contexts(memory, kernel, registers, &processors, &tasks)?;
    let thread_size = kernel.constant("THREAD_SIZE")?;
    let mut inside = Vec::new();
    for context in &contexts {
        let task = context.task.and_then(|index| tasks.get(index));
        let who = task.map_or_else(
            || "a processor that enters or leaves the kernel".to_owned(),
            |task| format!("task {} ({})", task.pid, task.comm),
        );
        for (index, frame) in context.walk.frames.iter().enumerate() {
            if frame.exact && frame.hooked {
                return Ok(Survey::Unclear(format!(
                    "{who} is just returning to where its return address was replaced"
                )));
            }
            let Some(code) = code.iter().find(|code| code.range.contains(&frame.code())) else { continue };
            let caller = context.walk.frames.get(index + 1);
            match (task, caller.map(|caller| (caller, caller.slot))) {
                // Stacks of interrupts are not a thread's, and are soon left anyway.
                (Some(task), Some((caller, Some(slot))))
                    if !caller.exact && !caller.hooked && slot.wrapping_sub(task.stack) < thread_size =>
                {
                    let slot_pa = kernel.translate(memory, Va(slot), "a stack")?.0;
                    inside.push(Inside {
                        task: task.at.0,
                        pid: task.pid,
                        comm: task.comm.clone(),
                        part: code.part,
                        function: code.function.clone(),
                        old_address: code.old_address,
                        at: frame.ip,
                        slot,
                        slot_pa,
                        original: caller.ip,
                    });
                }
                _ => {
                    let function = &code.function;
                    return Ok(Survey::Unclear(format!(
                        "{who} is inside `{function}`, and where it returns to is not known"
                    )));
                }
            }
        }
        if let End::Stopped(reason) = context.walk.end
            && let Some(word) = looks_inside(memory, kernel, context, task, opens, code)?
        {
            let what = format!("{who} may be inside ({word:#x} is on its stack, which cannot be unwound: {reason})");
            return Ok(Survey::Unclear(what));
        }
    }
    Ok(Survey::Frames(inside))
}

/// Where saved instruction pointers into the code may lead: a call at its end returns to the byte behind it.
fn ranges(code: &[Code]) -> Vec<Range<u64>> {
    code.iter().map(|code| code.range.start..code.range.end.saturating_add(1)).collect()
}

/// A word of the part of a stack that was not unwound that could lead into the code. Without a task it is not known which part.
fn looks_inside(
    memory: &dyn ReadMemory,
    kernel: &Kernel,
    context: &Context,
    task: Option<&Task>,
    opens: &Shared,
    code: &[Code],
) -> Result<Option<u64>, GuestError> {
    let anything = code.first().map(|code| code.range.start);
    let Some(task) = task else { return Ok(anything) };
    if let Some(original) =
        opens.originals(task.at.0).into_iter().find(|at| ranges(code).iter().any(|r| r.contains(at)))
    {
        return Ok(Some(original));
    }
    let end = task.stack.wrapping_add(kernel.constant("THREAD_SIZE")?);
    // Without a frame not even the beginning is known.
    let known = context.walk.frames.last().map_or(task.stack, |frame| frame.sp);
    if !(task.stack..end).contains(&known) {
        // It stopped on a stack of interrupts, of which the rest is not told.
        return Ok(anything);
    }
    let span = Span { from: known & !7, to: end, owner: String::new() };
    Ok(stacks::find(memory, kernel, &[], &[span], &ranges(code))?.map(|hit| hit.word))
}
