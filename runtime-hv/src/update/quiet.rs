//! Is this the moment? Looked at with all processors stopped.
//!
//! Comes in: a stopped guest, what was admitted and what is planned. Decided: whether anything changed since, whether the
//! guest is patching code itself, and whether a saved instruction pointer is where none may be. Goes out: [`Check`].

use super::UpdateError;
use super::admit::Admitted;
use super::plan::Plan;
use super::transaction::unchanged;
use crate::engine::{Engine, Va};
use crate::guest::snapshot::Snapshot;
use crate::guest::stacks::{self, Survey};
use crate::guest::{GuestError, Kernel, modules, probes, tasks};
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
pub fn check<E: Engine>(engine: &mut E, parts: &[&Admitted], plan: &Plan) -> Result<Check, UpdateError> {
    let Some(first) = parts.first() else { return Ok(Check::Ready) };
    let kernel = &first.kernel;
    if engine.resets() != first.resets {
        return Ok(Check::Changed);
    }
    if let Some(busy) = patching(engine, kernel)? {
        return Ok(Check::Busy(busy));
    }
    for part in parts {
        match is_as_admitted(engine, part) {
            Ok(true) => {}
            // A module that is being taken away is in no state to be looked at.
            Ok(false) => return Ok(Check::Changed),
            Err(UpdateError::Guest(GuestError::NotMapped { .. } | GuestError::Damaged { .. }))
                if part.module.is_some() =>
            {
                return Ok(Check::Changed);
            }
            Err(error) => return Err(error),
        }
    }
    if !are_mapped(engine, kernel, &plan.mapped)?
        || !unchanged(engine, &plan.writes)?
        || !unchanged(engine, &plan.jumps)?
    {
        return Ok(Check::Changed);
    }
    if let Some((at, bits)) = plan.idle {
        let mut word = [0; 4];
        engine.read(at, &mut word)?;
        if u32::from_le_bytes(word) & bits != 0 {
            return Ok(Check::Busy("an interrupt that prepared it is not over".to_owned()));
        }
    }
    let jumps = parts.iter().flat_map(|part| live(&part.kernel, &part.jumps)).collect::<Vec<_>>();
    match probes::registered(engine, kernel) {
        // Admitted again, it is refused with the reason.
        Ok(probes) if probes::first_in(&probes, &jumps).is_some() => return Ok(Check::Changed),
        Ok(_) => {}
        Err(error @ (GuestError::Damaged { .. } | GuestError::NotMapped { .. })) => {
            return Ok(Check::Busy(error.to_string()));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(nobody_in(engine, kernel, &untouched(parts, plan))?.map_or(Check::Ready, Check::Busy))
}

/// Live ranges that no saved instruction pointer may lead into.
#[must_use]
pub fn untouched(parts: &[&Admitted], plan: &Plan) -> Vec<Range<u64>> {
    let inside = parts.iter().flat_map(|part| live(&part.kernel, &part.inside));
    inside.chain(plan.untouched.iter().cloned()).collect()
}

/// Live addresses of ranges of link addresses.
fn live(kernel: &Kernel, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    ranges.iter().map(|range| kernel.live(range.start).0..kernel.live(range.end).0).collect()
}

/// Whether the code that a part of a bundle replaces is as it was admitted, in the same module if it is in one.
fn is_as_admitted<E: Engine>(engine: &E, part: &Admitted) -> Result<bool, UpdateError> {
    if let (Some(loaded), Some(id)) = (part.kernel.module(), &part.module)
        && !modules::is_still(engine, &part.kernel, loaded, id)?
    {
        return Ok(false);
    }
    for (&start, live) in part.starts.iter().zip(&part.live) {
        let mut now = vec![0; live.len()];
        part.kernel.read_image(engine, start, &mut now)?;
        if now != *live {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether virtual addresses still lead to the physical ones.
///
/// # Errors
/// Of the engine.
pub fn are_mapped<E: Engine>(engine: &E, kernel: &Kernel, mapped: &[(u64, u64)]) -> Result<bool, UpdateError> {
    for &(va, pa) in mapped {
        match kernel.translate(engine, Va(va), "a module") {
            Ok(found) if found.0 == pa => {}
            Ok(_) | Err(GuestError::NotMapped { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Whether the guest is changing its own code right now (`text_mutex`, `kernel/extable.c`), or is between copying an
/// instruction and listing the probe that it is for (`kprobe_mutex`, `kernel/kprobes.c`).
///
/// # Errors
/// [`UpdateError`].
pub fn patching<E: Engine>(engine: &E, kernel: &Kernel) -> Result<Option<String>, UpdateError> {
    for (lock, doing) in [("text_mutex", "patching its own code"), ("kprobe_mutex", "registering a probe")] {
        let (Ok(mutex), Ok(owner)) = (kernel.symbol(lock), kernel.offset("mutex.owner")) else {
            continue; // a kernel that never does so has no such lock
        };
        // The three lowest bits are flags (`kernel/locking/mutex.c`, `MUTEX_FLAGS`).
        if kernel.image_u64(engine, mutex.wrapping_add(owner))? & !7 != 0 {
            return Ok(Some(format!("the guest is {doing} ({lock} is held)")));
        }
    }
    Ok(None)
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
            return Ok(Some(format!(
                "task {} ({}) returns to {word:#x}, say the guest's tracers",
                task.pid, task.comm
            )));
        }
    }
    let spans = match stacks::survey(kernel, &registers, &processors, &tasks)? {
        Survey::Unsettled(why) => return Ok(Some(why)),
        Survey::Spans(spans) => spans,
    };
    let hit = stacks::find(&memory, kernel, &registers, &spans, ranges)?;
    Ok(hit.map(|hit| format!("{} is inside ({:#x})", hit.owner, hit.word)))
}
