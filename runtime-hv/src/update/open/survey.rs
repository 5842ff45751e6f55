//! Who is inside old code.
//!
//! Comes in: a stopped guest and ranges of code. Decided: for every task and processor, from its frames; where a stack cannot be
//! unwound to its end, whether any word of the rest could be an address in that code. A frame that can go on in the other version is
//! not inside ([`moves`](super::moves)). Goes out: [`Survey`].

use super::moves::{Counterparts, Move, Way};
use super::{Inside, Shared};
use crate::engine::{Engine, ReadMemory, Va};
use crate::guest::frames::{Context, State, Unwinder};
use crate::guest::snapshot::Snapshot;
use crate::guest::stacks::{self, Span};
use crate::guest::tasks::{self, Task};
use crate::guest::{GuestError, Kernel};
use crate::unwind::End;
use crate::update::{UpdateError, quiet};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Its first byte, live.
    pub start: u64,
    /// Where frames in it can go on in the other version.
    pub counterparts: Counterparts,
}

impl Code {
    /// New code that replaces no function.
    #[must_use]
    pub fn unnamed(range: Range<u64>, part: usize) -> Code {
        let (function, start) = ("the new code".to_owned(), range.start);
        Code { range, function, old_address: 0, part, start, counterparts: Counterparts::default() }
    }
}

/// The code that a part of an update of type 2 leaves; `old_code` as [`admit::old_code`](crate::update::admit) tells it.
#[must_use]
pub fn code(index: usize, old_code: &[(Range<u64>, String, u64)], way: &Way<'_>) -> Vec<Code> {
    let live = |link: u64| way.kernel.live(link).0;
    let one = |(range, function, old_address): &(Range<u64>, String, u64)| {
        // Of a replaced function the range begins behind its first byte; other code has no counterparts.
        let is_whole = range.start.wrapping_sub(1) == *old_address;
        Code {
            range: live(range.start)..live(range.end),
            function: function.clone(),
            old_address: *old_address,
            part: index,
            start: live(if is_whole { *old_address } else { range.start }),
            counterparts: if is_whole { way.of_old(*old_address) } else { way.nothing() },
        }
    };
    old_code.iter().map(one).collect()
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Survey {
    /// All frames inside; none means that nobody is.
    Frames(Frames),
    /// It cannot be told of somebody, or somebody is inside in a way that cannot be followed.
    Unclear(String),
}

/// Frames inside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frames {
    /// Those that stay inside until they return.
    pub inside: Vec<Inside>,
    /// Those that go on in the other version.
    pub moves: Vec<Move>,
}

impl Frames {
    /// Whether nobody is in this code at all.
    #[must_use]
    pub fn are_none(&self) -> bool {
        self.inside.is_empty() && self.moves.is_empty()
    }

    /// Why this is not the moment: who is inside, or would have been, for people; and that this hypervisor cannot do with them, if it is one.
    #[must_use]
    pub fn in_the_way<E: Engine>(&self, engine: &mut E) -> String {
        let who = self.who();
        if engine.watch().is_some() {
            return who;
        }
        format!(
            "{who}; this hypervisor does not see threads leave, so that nobody may be inside: the engine kvm and QEMU's software emulation do"
        )
    }

    fn who(&self) -> String {
        let moved = |one: &Move| {
            format!("task {} ({}) waits in `{}`, and would go on elsewhere", one.pid, one.comm, one.function)
        };
        let moved = self.moves.first().map(moved).unwrap_or_default();
        if self.inside.is_empty() { moved } else { super::who(&self.inside) }
    }
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
        return Ok(Survey::Frames(Frames::default()));
    }
    let Some(unwinder) = unwinder else {
        // Without tables every word that looks like an address there counts.
        let who = quiet::nobody_in(engine, kernel, &ranges(code))?;
        return Ok(who.map_or(Survey::Frames(Frames::default()), Survey::Unclear));
    };
    see_through(unwinder, opens);
    let registers = engine.registers()?;
    let memory = Snapshot::of(engine);
    match look(&memory, kernel, &registers, unwinder, opens, code) {
        Err(UpdateError::Guest(error @ (GuestError::Damaged { .. } | GuestError::NotMapped { .. }))) => {
            Ok(Survey::Unclear(error.to_string()))
        }
        other => other,
    }
}

/// Tells which return addresses are replaced.
pub(super) fn see_through(unwinder: &mut Unwinder, opens: &Shared) {
    let (mut trampolines, mut originals) = (Vec::new(), BTreeMap::new());
    for open in opens.lock().iter() {
        trampolines.extend(open.parts.iter().map(|part| part.trampoline.0));
        originals.extend(open.threads.iter().map(|thread| (thread.slot, thread.original)));
    }
    unwinder.set_diverted(trampolines, originals);
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
    let (mut inside, mut moves) = (Vec::new(), Vec::new());
    for context in &contexts {
        // Where the frame before returns to, if it is diverted.
        let mut taken = None;
        let away = context.state == State::SwitchedOut;
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
            let way = task.map_or(Err(None), |task| {
                let found = code.counterparts.of_frame(frame, task, thread_size, code.start, taken, away)?;
                Ok((task, found))
            });
            let why = match way {
                Ok((task, (to, slot))) => {
                    moves.push(Move {
                        task: task.at.0,
                        pid: task.pid,
                        comm: task.comm.clone(),
                        function: code.function.clone(),
                        slot_pa: kernel.translate(memory, Va(slot), "a stack")?.0,
                        from: frame.ip,
                        to,
                    });
                    continue;
                }
                Err(why) => why,
            };
            let caller = context.walk.frames.get(index + 1);
            match (task, caller.map(|caller| (caller, caller.slot))) {
                // Stacks of interrupts are not a thread's, and are soon left anyway.
                (Some(task), Some((caller, Some(slot))))
                    if !caller.exact && !caller.hooked && slot.wrapping_sub(task.stack) < thread_size =>
                {
                    let slot_pa = kernel.translate(memory, Va(slot), "a stack")?.0;
                    taken = Some(slot);
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
                        may_move: code.counterparts.may_come(task),
                        why,
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
    let slots = || inside.iter().map(|thread| thread.slot_pa).chain(moves.iter().map(|moved| moved.slot_pa));
    let distinct = slots().collect::<BTreeSet<u64>>().len();
    if distinct != slots().count() {
        return Ok(Survey::Unclear("two stacks are in the same memory".to_owned()));
    }
    Ok(Survey::Frames(Frames { inside, moves }))
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
