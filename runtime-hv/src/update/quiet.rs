//! Is this the moment? Looked at with all processors stopped.
//!
//! Comes in: a stopped guest, what was admitted and what is planned. Decided: whether anything changed since, whether the
//! guest is patching code itself, and whether a saved instruction pointer is where none may be. Goes out: [`Check`].

use super::UpdateError;
use super::admit::Admitted;
use super::plan::Plan;
use super::transaction::unchanged;
use crate::engine::Engine;
use crate::guest::snapshot::Snapshot;
use crate::guest::stacks::{self, Survey};
use crate::guest::{GuestError, Kernel, tasks};
use std::ops::Range;

/// Result of a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Now.
    Ready,
    /// Not now: why.
    Busy(String),
    /// The guest is not any more as it was admitted: admit again.
    Changed,
}

/// Looks at a stopped guest before a bundle is applied.
///
/// # Errors
/// [`UpdateError`].
pub fn check<E: Engine>(engine: &mut E, admitted: &Admitted, plan: &Plan) -> Result<Check, UpdateError> {
    let kernel = &admitted.kernel;
    if engine.resets() != admitted.resets {
        return Ok(Check::Changed);
    }
    if let Some(busy) = patching(engine, kernel)? {
        return Ok(Check::Busy(busy));
    }
    for (&start, live) in admitted.starts.iter().zip(&admitted.live) {
        let mut now = vec![0; live.len()];
        kernel.read_image(engine, start, &mut now)?;
        if now != *live {
            return Ok(Check::Changed);
        }
    }
    if !unchanged(engine, &plan.writes)? || !unchanged(engine, &plan.jumps)? {
        return Ok(Check::Changed);
    }
    let inside = admitted.inside.iter().map(|range| kernel.live(range.start).0..kernel.live(range.end).0);
    let ranges: Vec<Range<u64>> = inside.chain(plan.untouched.iter().cloned()).collect();
    Ok(nobody_in(engine, kernel, &ranges)?.map_or(Check::Ready, Check::Busy))
}

/// Whether the guest is changing its own code right now (`text_mutex`, `kernel/extable.c`).
///
/// # Errors
/// [`UpdateError`].
pub fn patching<E: Engine>(engine: &E, kernel: &Kernel) -> Result<Option<String>, UpdateError> {
    let (Ok(mutex), Ok(owner)) = (kernel.symbol("text_mutex"), kernel.offset("mutex.owner")) else {
        return Ok(None); // a kernel that never changes its code has no such lock
    };
    // The three lowest bits are flags (`kernel/locking/mutex.c`, `MUTEX_FLAGS`).
    let owner = kernel.image_u64(engine, mutex.wrapping_add(owner))? & !7;
    Ok((owner != 0).then(|| "the guest is patching its own code (text_mutex is held)".to_owned()))
}

/// Who has a saved instruction pointer, or something that looks like one, in one of `ranges`.
///
/// # Errors
/// [`UpdateError`]. A guest whose lists cannot be followed is `Damaged`.
pub fn nobody_in<E: Engine>(
    engine: &mut E,
    kernel: &Kernel,
    ranges: &[Range<u64>],
) -> Result<Option<String>, UpdateError> {
    if ranges.is_empty() {
        return Ok(None);
    }
    let registers = engine.registers()?;
    let memory = Snapshot::of(engine);
    let processors = tasks::per_cpu(&memory, kernel)?;
    let tasks = match tasks::all(&memory, kernel, &processors) {
        // A list may be half changed while the guest stands: look again later; a damaged one stays so.
        Err(error @ (GuestError::Damaged { .. } | GuestError::NotMapped { .. })) => return Ok(Some(error.to_string())),
        other => other?,
    };
    let inside = |word: &&u64| ranges.iter().any(|range| range.contains(word));
    for task in &tasks {
        if let Some(word) = task.returns.iter().find(inside) {
            return Ok(Some(format!("task {} ({}) returns to {word:#x}, say the guest's tracers", task.pid, task.comm)));
        }
    }
    let spans = match stacks::survey(kernel, &registers, &processors, &tasks)? {
        Survey::Unsettled(why) => return Ok(Some(why)),
        Survey::Spans(spans) => spans,
    };
    let hit = stacks::find(&memory, kernel, &registers, &spans, ranges)?;
    Ok(hit.map(|hit| format!("{} is inside ({:#x})", hit.owner, hit.word)))
}
