//! The moment of the switch.
//!
//! Comes in: the parts of a bundle that can come into effect, planned, and a running guest. Decided, with all processors stopped:
//! whether this is the moment, who is inside of old code, what the data hold, and where all objects on the heap are. Goes out:
//! everything written, or nothing. The order: **check**, **walk**, **place**, pre-hooks, **transfer**, **objects**, **redirect**, and
//! **protect** or post-hooks.

use super::admit::Admitted;
use super::data::{self, Changes};
use super::hooks::Hooks;
use super::objects::{Filled, Objects};
use super::open::{self, Code, Frames, Inside, Move, Open, OpenPart, Shared, Survey, Way};
use super::parts::{Active, Goal};
use super::plan::Plan;
use super::quiet::{self, Check};
use super::transaction::{self, write_all};
use super::{Times, UpdateError, Updater, errors};
use crate::engine::{Engine, EngineError, ReadMemory, Va};
use crate::guest::Kernel;
use crate::guest::arena::Write;
use crate::journal::{Action, Boot, Document, JournalError};
use crate::protocol::BundleState;
use lpk_format::HookKind;

/// What is written in one moment.
struct Moment<'a> {
    goal: &'a Goal<'a>,
    parts: &'a [Active<'a>],
    /// The plans of all parts.
    plan: &'a Plan,
    boot: Boot,
    owner_paused: bool,
    /// What is written to the data of each part.
    changes: Vec<Changes>,
    /// Return addresses of threads inside, and of those that go on in new code.
    returns: Vec<Write>,
    /// The code that each part leaves.
    old_code: Vec<Vec<Code>>,
    /// Page frames of slabs of each type of objects of each part, as they were found in the running guest.
    slabs: Vec<Vec<Vec<u64>>>,
    /// What is written to objects on the heap, for each type of each part.
    objects: Vec<Vec<Filled>>,
}

impl<E: Engine> Updater<E> {
    /// Stops the guest, checks, and does the plan's writes if the moment is right. What data hold is known only then.
    ///
    /// # Errors
    /// [`UpdateError`]; all that was written has been taken back, unless the error says that it could not be.
    pub(super) fn commit(
        &mut self,
        goal: &Goal<'_>,
        parts: &[Active<'_>],
        plan: &Plan,
        after: &mut Document,
        times: &mut Times,
    ) -> Result<Check, UpdateError> {
        let Some(first) = parts.first().map(|part| &part.admitted) else { return Ok(Check::Ready) };
        let owner_paused = self.engine.is_paused()?;
        let (boot, returns) = (first.boot(), Vec::new());
        let (changes, objects) = (Vec::new(), Vec::new());
        let (old_code, slabs) = (parts.iter().enumerate().map(|part| old_code(goal, part)).collect(), Vec::new());
        let mut moment = Moment { goal, parts, plan, boot, owner_paused, changes, returns, old_code, slabs, objects };
        // The values of this moment refuse an update without stopping the guest, and tell the journal how much room it needs.
        moment.transfer(&self.engine)?;
        self.journal.begin(&moment.action(after), &self.document)?;
        let admitted: Vec<&Admitted> = parts.iter().map(|part| &part.admitted).collect();
        let old_code = moment.old_code.concat();
        let mut unwinder = if old_code.is_empty() { None } else { self.unwinder(&first.kernel)? };
        moment.slabs = times.measure("find", || moment.find_slabs(&self.engine))?;
        let (journal, before, opens) = (&self.journal, &self.document, &self.opens);
        let outcome = transaction::paused(&mut self.engine, |engine| {
            let check = times.measure("check", || quiet::check(engine, &admitted, plan))?;
            if check != Check::Ready {
                return Ok(check);
            }
            if let Some(who) = opens.returning_into(&quiet::untouched(&admitted, plan)) {
                return Ok(Check::Busy(who));
            }
            let walk = || open::survey(engine, &first.kernel, unwinder.as_mut(), opens, &old_code);
            let frames = match times.measure("walk", walk)? {
                Survey::Frames(frames) if moment.can_begin(engine, &frames) => frames,
                Survey::Frames(frames) => return Ok(Check::Busy(frames.in_the_way(engine))),
                Survey::Unclear(who) => return Ok(Check::Busy(who)),
            };
            if let Some(why) = times.measure("objects", || moment.count_objects(engine))? {
                return Ok(Check::Busy(why));
            }
            // What data held while the guest ran counts no more.
            if !std::mem::take(&mut moment.changes).iter().all(|changes| changes.writes().next().is_none()) {
                journal.begin(&moment.action(after), before)?;
            }
            journal.committing()?;
            let store = |action: &Action| journal.begin(action, before).and_then(|()| journal.committing());
            let switched = moment.switch(engine, frames, after, opens, &store, times);
            let Err(error) = switched else { return Ok(Check::Ready) };
            match errors::taken_back(journal, error, moment.take_back(engine)) {
                error @ UpdateError::NoProcessor { .. } => Ok(Check::Busy(error.to_string())),
                UpdateError::Busy { who, .. } => Ok(Check::Busy(who)),
                error => Err(error),
            }
        });
        self.unwinder = unwinder.or(self.unwinder.take());
        let result = match outcome {
            Ok((result, time)) => {
                times.paused(time);
                result
            }
            // The guest stands still: the action stays in the journal.
            Err(error) => return Err(error.into()),
        };
        if result.as_ref().is_err_and(|error| !error.is_stuck()) {
            self.journal.forget_action()?;
        }
        result
    }
}

impl Moment<'_> {
    /// Finds out what is to be written to data, from what they hold now.
    fn transfer(&mut self, memory: &dyn ReadMemory) -> Result<(), UpdateError> {
        let changes = self.parts.iter().map(|part| data::to_new(memory, &part.plan.data));
        self.changes = changes.collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Writes to data, and return addresses.
    fn data_writes(&self) -> Vec<Write> {
        self.changes.iter().flat_map(Changes::writes).chain(&self.returns).cloned().collect()
    }

    /// All writes, in their order.
    fn writes(&self) -> Vec<Write> {
        [self.plan.writes.clone(), self.data_writes(), self.plan.jumps.clone()].concat()
    }

    fn action(&self, after: &Document) -> Action {
        let data = self.data_writes();
        let mapped = self.changes.iter().flat_map(|changes| &changes.mapped);
        Action {
            sequence: after.sequence,
            boot: self.boot.clone(),
            bundle: self.goal.id.to_owned(),
            owner_paused: self.owner_paused,
            writes: self.writes(),
            moving: self.plan.moving.iter().copied().chain(data.iter().map(|write| write.pa)).collect(),
            list: None,
            mapped: self.plan.mapped.iter().chain(mapped).copied().collect(),
            after: after.clone(),
        }
    }

    /// Page frames of the slabs of each type of objects of each part, in the running guest.
    fn find_slabs(&self, memory: &dyn ReadMemory) -> Result<Vec<Vec<Vec<u64>>>, UpdateError> {
        let of_part = |part: &Active<'_>| {
            let find = |objects: &Objects| objects.find(memory, &part.admitted.kernel);
            part.admitted.objects.iter().map(find).collect()
        };
        self.parts.iter().map(of_part).collect()
    }

    /// Finds out where all objects are, and what is to be written to them; or why this is not the moment.
    fn count_objects(&mut self, memory: &dyn ReadMemory) -> Result<Option<String>, UpdateError> {
        self.objects.clear();
        for (part, slabs) in self.parts.iter().zip(&self.slabs) {
            let mut filled = Vec::new();
            for (objects, frames) in part.admitted.objects.iter().zip(slabs) {
                match objects.census(memory, &part.admitted.kernel, frames)? {
                    Ok(census) => filled.push(objects.fill(memory, &census)?),
                    Err(why) => return Ok(Some(why)),
                }
            }
            self.objects.push(filled);
        }
        Ok(None)
    }

    /// Writes to objects on the heap. They are not in the journal, as `update/objects.rs` says.
    fn object_writes(&self) -> impl DoubleEndedIterator<Item = &Write> {
        self.objects.iter().flatten().flat_map(|filled| &filled.writes)
    }

    fn has_hooks(&self) -> bool {
        self.parts.iter().any(|part| part.plan.hooks.is_some())
    }

    /// Takes back all that may have been written. A hook may have given objects back to the allocator: then they keep what they
    /// hold, which nobody reads.
    fn take_back<E: Engine>(&self, engine: &mut E) -> Result<(), EngineError> {
        let objects = if self.has_hooks() { Ok(()) } else { transaction::take_back(engine, self.object_writes()) };
        transaction::take_back(engine, &self.writes()).and(objects)
    }

    /// Whether the update can begin with these threads inside. Old code may be making an object, which then has nothing of what is new.
    fn can_begin<E: Engine>(&self, engine: &mut E, frames: &Frames) -> bool {
        if self.parts.iter().any(|part| !part.admitted.objects.is_empty()) {
            return frames.are_none();
        }
        let threads = &frames.inside;
        let can_leave = |thread: &Inside| self.parts.get(thread.part).is_some_and(|part| part.plan.trampoline != 0);
        threads.is_empty() || engine.watch().is_some() && threads.iter().all(can_leave)
    }

    /// Runs hooks of each part.
    fn hooks(&self, mut run: impl FnMut(&Hooks, &Kernel) -> Result<(), UpdateError>) -> Result<(), UpdateError> {
        let with_hooks = self.parts.iter().filter_map(|part| Some((part.plan.hooks.as_ref()?, &part.admitted.kernel)));
        with_hooks.into_iter().try_for_each(|(hooks, kernel)| run(hooks, kernel))
    }

    /// Writes, in the stopped guest.
    fn switch<E: Engine>(
        &mut self,
        engine: &mut E,
        frames: Frames,
        after: &mut Document,
        opens: &Shared,
        store: &dyn Fn(&Action) -> Result<(), JournalError>,
        times: &mut Times,
    ) -> Result<(), UpdateError> {
        let Frames { inside: threads, moves } = frames;
        let count = threads.len() as u32;
        times.measure("place", || write_all(engine, &self.plan.writes))?;
        let pre = |hooks: &Hooks, kernel: &Kernel| hooks.about_update(engine, kernel, HookKind::Pre, count);
        times.measure("hooks", || self.hooks(pre))?;
        // A hook may have made objects, or freed some.
        if self.has_hooks()
            && let Some(who) = times.measure("objects", || self.count_objects(engine))?
        {
            return Err(UpdateError::Busy { who, attempts: 0 });
        }
        let has_data = |part: &Active<'_>| !part.plan.data.is_empty() || !part.admitted.objects.is_empty();
        if count != 0 || !moves.is_empty() || self.parts.iter().any(has_data) {
            times.measure("transfer", || self.transfer(engine))?;
            let divert = |thread: &Inside| Some(thread.divert(self.parts.get(thread.part)?.plan.trampoline));
            self.returns = threads.iter().filter_map(divert).chain(moves.iter().map(Move::write)).collect();
            self.write_down(after, count != 0, &moves);
            if count != 0 {
                let open = self.open(threads.clone(), self.direct_map(engine)?);
                after.opens.push(open.record());
            }
            store(&self.action(after))?;
            times.measure("transfer", || write_all(engine, &self.data_writes()))?;
            let objects: Vec<&Write> = self.object_writes().collect();
            times.measure("objects", || transaction::write_each(engine, &objects))?;
        }
        let sync = |hooks: &Hooks, kernel: &Kernel| hooks.about_data(engine, kernel, HookKind::SyncToNew);
        times.measure("hooks", || self.hooks(sync))?;
        times.measure("redirect", || write_all(engine, &self.plan.jumps))?;
        if count != 0 {
            let open = self.open(threads, self.direct_map(engine)?);
            return times.measure("protect", || opens.begin(engine, open));
        }
        let post = |hooks: &Hooks, kernel: &Kernel| hooks.about_update(engine, kernel, HookKind::Post, 0);
        times.measure("hooks", || self.hooks(post))
    }

    /// Writes into the document what undo needs to know of this moment.
    fn write_down(&self, after: &mut Document, is_open: bool, moves: &[Move]) {
        let Some(record) = after.bundles.iter_mut().find(|record| record.info.id == self.goal.id) else { return };
        for (part, filled) in self.parts.iter().zip(&self.objects) {
            let shown = match part.target.index {
                None => Some(&mut record.info.objects),
                Some(index) => record.info.modules.get_mut(index).map(|module| &mut module.objects),
            };
            shown.into_iter().flatten().zip(filled).for_each(|(info, filled)| info.count = Some(filled.count));
        }
        for (part, changes) in self.parts.iter().zip(&self.changes) {
            let edits = match part.target.index {
                None => Some(&mut record.data),
                Some(index) => record.parts.get_mut(index).map(|part| &mut part.data),
            };
            edits.into_iter().for_each(|edits| edits.clone_from(&changes.edits));
        }
        record.info.add_moved(moves.iter().map(Move::info));
        if is_open {
            record.info.state = BundleState::Open;
        }
    }

    /// Where the kernel has all physical memory.
    fn direct_map(&self, memory: &dyn ReadMemory) -> Result<u64, UpdateError> {
        Ok(self.parts.first().map_or(Ok(0), |part| part.admitted.kernel.direct_map(memory))?)
    }

    /// The update, as long as threads are inside.
    fn open(&self, threads: Vec<Inside>, direct_map: u64) -> Open {
        let part = |(part, code): (&Active<'_>, &Vec<Code>)| OpenPart {
            id: part.target.id.clone(),
            kernel: part.admitted.kernel.clone(),
            data: part.plan.data.iter().filter(|datum| datum.moves()).cloned().collect(),
            hooks: part.plan.hooks.clone(),
            code: code.clone(),
            trampoline: Va(part.plan.trampoline),
            direct_map,
        };
        let id = match (self.goal.only, self.parts) {
            (Some(_), [only, ..]) => &only.target.id,
            _ => self.goal.id,
        };
        Open::new(id, false, self.parts.iter().zip(&self.old_code).map(part).collect(), threads)
    }
}

/// The code that a part leaves.
fn old_code(goal: &Goal<'_>, (index, part): (usize, &Active<'_>)) -> Vec<Code> {
    let (bundle, kernel, text) = (&part.target.bundle, &part.admitted.kernel, part.plan.addresses.text);
    open::code(index, &part.admitted.old_code, &Way { bundle, kernel, text, undo: false, stay: goal.stay })
}
