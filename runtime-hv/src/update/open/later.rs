//! Kernel threads that were inside when an update opened, and wait at a counterpart by now.
//!
//! Comes in: an open update, once a second. Decided, with the guest stopped: which of those that may be moved wait where the other
//! version can go on. Goes out: these threads in the other version, with their own way back on the stack again, and the record
//! without them; for the others, where they are and why they stay.
//!
//! The stop in which an open update is looked at anyway ([`close`](super::close)) tells whether there is somebody to be moved. Only
//! then the guest is stopped once more: to look again, and to move them.

use super::survey::see_through;
use super::{Inside, Move, Open, OpenPart, Shared};
use crate::engine::{Engine, Pa, ReadMemory, Registers, Va};
use crate::guest::arena::Write;
use crate::guest::frames::{State, Unwinder};
use crate::guest::snapshot::Snapshot;
use crate::guest::tasks::{self, Task};
use crate::guest::{GuestError, Kernel};
use crate::journal::{Action, Document, OpenRecord};
use crate::update::{UpdateError, Updater, errors, parts, transaction};
use std::collections::BTreeSet;

/// What a look has found.
#[derive(Debug, Default)]
struct Later {
    /// Frames that go on in the other version, and who they are in the update.
    moves: Vec<(Inside, Move)>,
    /// What these moves write: where they go on, and where they return to from there.
    writes: Vec<Write>,
    /// Those that stay, as they are now.
    stay: Vec<Inside>,
}

impl Open {
    /// Whether somebody inside may be moved when it waits at the right place.
    #[must_use]
    pub fn has_movable(&self) -> bool {
        self.threads.iter().any(|thread| thread.may_move)
    }

    /// Forgets threads that have gone on in the other version.
    fn without_moved(&mut self, later: &Later) {
        let before = self.threads.len();
        let is_one = |thread: &Inside| later.moves.iter().any(|(moved, _)| moved.is_frame_of(thread));
        self.threads.retain(|thread| !is_one(thread));
        self.counts.left += (before - self.threads.len()) as u64;
    }

    /// Renews what is known of threads that stay.
    fn renew(&mut self, later: &Later) {
        for thread in &mut self.threads {
            if let Some(now) = later.stay.iter().find(|now| now.is_frame_of(thread)) {
                thread.clone_from(now);
            }
        }
    }
}

impl<E: Engine> Updater<E> {
    /// The kernel, if somebody inside of an open update may be moved.
    pub(in crate::update) fn kernel_of_movable(&self, id: &str) -> Option<Kernel> {
        let opens = self.opens.lock();
        let open = opens.iter().find(|open| open.id == id && open.has_movable())?;
        open.parts.first().map(|part| part.kernel.clone())
    }

    /// Moves threads of the kernel's own that are still inside of an open update and wait at a place with a counterpart.
    ///
    /// # Errors
    /// [`UpdateError`]; everything is as before, unless the error says that it could not be.
    pub(in crate::update) fn move_later(&mut self, id: &str) -> Result<(), UpdateError> {
        if self.unsettled {
            // What is half done comes first.
            return Ok(());
        }
        let (Some(kernel), Some(boot)) = (self.kernel_of_movable(id), self.document.boot.clone()) else {
            return Ok(());
        };
        let owner_paused = self.engine.is_paused()?;
        let Some(mut unwinder) = self.unwinder(&kernel)? else { return Ok(()) };
        let (journal, before, opens, resets) = (&self.journal, &self.document, &self.opens, self.resets);
        let outcome = transaction::paused(&mut self.engine, |engine| {
            if engine.resets() != resets {
                return Err(UpdateError::OtherBoot);
            }
            let later = opens.look_later(engine, &kernel, &mut unwinder, id)?;
            if later.moves.is_empty() {
                return Ok((later, None));
            }
            let after = without(before, id, &later.moves);
            journal.begin(
                &Action {
                    sequence: after.sequence,
                    boot: boot.clone(),
                    bundle: parts::bundle_of(id).to_owned(),
                    owner_paused,
                    writes: later.writes.clone(),
                    moving: later.writes.iter().map(|write| write.pa).collect(),
                    list: None,
                    mapped: Vec::new(),
                    after: after.clone(),
                },
                before,
            )?;
            journal.committing()?;
            transaction::write_all(engine, &later.writes).map_err(|error| errors::not_written(journal, error))?;
            Ok((later, Some(after)))
        });
        self.unwinder = Some(unwinder);
        // The guest may stand still, and who is inside is told by the journal.
        self.unsettled = outcome.is_err();
        let (done, _) = outcome?;
        self.unsettled = done.as_ref().is_err_and(UpdateError::is_stuck);
        let (later, after) = match done {
            Ok(found) => found,
            Err(error) if self.unsettled => return Err(error),
            Err(error) => {
                self.journal.forget_action()?;
                return Err(error);
            }
        };
        if let Some(open) = self.opens.lock().iter_mut().find(|open| open.id == id) {
            open.without_moved(&later);
            open.renew(&later);
        }
        if let Some(after) = after {
            self.document = after;
            self.journal.finish(&self.document)?;
        }
        Ok(())
    }
}

/// The document when threads of an update have gone on in the other version.
fn without(before: &Document, id: &str, moves: &[(Inside, Move)]) -> Document {
    let mut after = before.clone();
    after.sequence += 1;
    for open in after.opens.iter_mut().filter(|open| open.id == id) {
        open.threads.retain(|thread| !moves.iter().any(|(moved, _)| moved.is_frame_of(thread)));
    }
    let bundle = parts::bundle_of(id);
    for record in after.bundles.iter_mut().filter(|record| record.info.id == bundle) {
        record.info.add_moved(moves.iter().map(|(_, moved)| moved.info()));
    }
    after
}

impl Shared {
    /// Who of an update is not inside any more, as a journal tells it that was finished by somebody else.
    pub(in crate::update) fn keep_named(&self, named: &[OpenRecord]) {
        for open in self.lock().iter_mut() {
            if let Some(record) = named.iter().find(|record| record.id == open.id && record.undo == open.undo) {
                open.threads.retain(|thread| record.threads.iter().any(|known| known.is_frame_of(thread)));
            }
        }
    }

    /// Whether somebody inside of an update waits at a counterpart right now; of the others it is renewed what is known. The guest is
    /// stopped.
    pub(super) fn has_waiting<E: Engine>(
        &self,
        engine: &mut E,
        kernel: &Kernel,
        unwinder: &mut Unwinder,
        id: &str,
    ) -> bool {
        let found = self.look_later(engine, kernel, unwinder, id);
        let mut opens = self.lock();
        let Some(open) = opens.iter_mut().find(|open| open.id == id) else { return false };
        match found {
            Ok(later) => {
                open.renew(&later);
                !later.moves.is_empty()
            }
            Err(error) => {
                // It is looked again.
                open.trouble = Some(error.to_string());
                false
            }
        }
    }

    /// Looks at those of an update that may be moved; the guest is stopped.
    fn look_later<E: Engine>(
        &self,
        engine: &mut E,
        kernel: &Kernel,
        unwinder: &mut Unwinder,
        id: &str,
    ) -> Result<Later, UpdateError> {
        see_through(unwinder, self);
        let registers = engine.registers()?;
        let opens = self.lock();
        let Some(open) = opens.iter().find(|open| open.id == id) else { return Ok(Later::default()) };
        match look(&Snapshot::of(engine), kernel, &registers, unwinder, open) {
            // Lists that are half changed at this moment.
            Err(UpdateError::Guest(GuestError::Damaged { .. } | GuestError::NotMapped { .. })) => Ok(Later::default()),
            other => other,
        }
    }
}

fn look(
    memory: &dyn ReadMemory,
    kernel: &Kernel,
    registers: &[Registers],
    unwinder: &mut Unwinder,
    open: &Open,
) -> Result<Later, UpdateError> {
    unwinder.refresh(memory, kernel)?;
    let wanted: BTreeSet<u64> =
        open.threads.iter().filter(|thread| thread.may_move).map(|thread| thread.task).collect();
    let processors = tasks::per_cpu(memory, kernel)?;
    let mut tasks = tasks::all(memory, kernel, &processors)?;
    tasks.retain(|task| wanted.contains(&task.at.0));
    let thread_size = kernel.constant("THREAD_SIZE")?;
    let mut later = Later::default();
    for context in unwinder.contexts(memory, kernel, registers, &processors, &tasks)? {
        let Some(task) = context.task.and_then(|index| tasks.get(index)) else { continue };
        for pair in context.walk.frames.windows(2) {
            let [frame, caller] = pair else { continue };
            let is_it = |thread: &&Inside| {
                thread.may_move && thread.task == task.at.0 && Some(thread.slot) == caller.slot && caller.hooked
            };
            let Some(thread) = open.threads.iter().find(is_it) else { continue };
            let Some(part) = open.parts.get(thread.part) else { continue };
            let away = context.state == State::SwitchedOut;
            one(memory, kernel, (thread, part), (task, frame, away), thread_size, &mut later)?;
        }
    }
    Ok(later)
}

/// One frame of a thread inside.
fn one(
    memory: &dyn ReadMemory,
    kernel: &Kernel,
    (thread, part): (&Inside, &OpenPart),
    (task, frame, away): (&Task, &crate::unwind::Frame, bool),
    thread_size: u64,
    later: &mut Later,
) -> Result<(), UpdateError> {
    let Write { pa, old: original, new: diverted } = thread.divert(part.trampoline.0);
    let mut live = [0; 8];
    memory.read(Pa(pa), &mut live)?;
    let Some(code) = part.code.iter().find(|code| code.range.contains(&frame.code())) else { return Ok(()) };
    if live[..] != diverted {
        return Ok(());
    }
    // What the frame has called is seen through, if it is left, too.
    match code.counterparts.of_frame(frame, task, thread_size, code.start, None, away) {
        Ok((to, slot)) => {
            let slot_pa = kernel.translate(memory, Va(slot), "a stack")?.0;
            let (function, from) = (code.function.clone(), frame.ip);
            let found = Move { task: thread.task, pid: task.pid, comm: task.comm.clone(), function, slot_pa, from, to };
            later.writes.extend([found.write(), Write { pa, old: diverted, new: original }]);
            later.moves.push((thread.clone(), found));
        }
        Err(why) => later.stay.push(Inside { at: frame.ip, why, ..thread.clone() }),
    }
    Ok(())
}
