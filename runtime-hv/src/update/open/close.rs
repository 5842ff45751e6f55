//! The beginning and the end of an open update.
//!
//! Comes in: updates that threads are inside. Decided: which pages are trapped, who is not inside any more without having returned, and
//! whether an update has ended. Goes out: trapped pages and an attendant, or none; the record, from open to applied.

use super::{Inside, Open, OpenPart, Shared};
use crate::engine::{Engine, Pa, ReadMemory, Trapped};
use crate::guest::arena::Write;
use crate::guest::frames::{UnwindError, Unwinder};
use crate::guest::snapshot::Snapshot;
use crate::guest::{Kernel, tasks};
use crate::protocol::{BundleInfo, BundleState, OpenInfo, ThreadInfo};
use crate::update::{UpdateError, Updater, parts, transaction};
use lpk_format::HookKind;
use std::collections::BTreeSet;
use std::time::Duration;

/// How often it is looked whether threads that are inside still exist.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Shared {
    /// Whether threads are inside of any update.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Begins to attend to an update; the guest is stopped.
    ///
    /// # Consistency on error
    /// Nothing is trapped for it, and it is not attended to.
    ///
    /// # Errors
    /// Of the engine.
    pub fn begin<E: Engine>(&self, engine: &mut E, open: Open) -> Result<(), UpdateError> {
        let (id, traps) = (open.id.clone(), open.traps().collect::<Vec<Trapped>>());
        self.lock().push(open);
        let reports = self.reports();
        self.set_told(reports.clone());
        let begun = match engine.watch() {
            Some(watch) => watch
                .attend(Some(self.attendant()), &reports)
                .and_then(|()| traps.iter().try_for_each(|trap| watch.trap(trap))),
            None => Ok(()),
        };
        if begun.is_err() {
            // Another one of this id may have begun before.
            let last = self.lock().iter().rposition(|open| open.id == id);
            last.map(|index| self.end_at(engine, index)).transpose()?;
        }
        Ok(begun?)
    }

    /// Stops attending to an update; the guest is stopped.
    ///
    /// # Errors
    /// Of the engine.
    pub fn end<E: Engine>(&self, engine: &mut E, id: &str) -> Result<Option<Open>, UpdateError> {
        let index = self.lock().iter().position(|open| open.id == id);
        index.map(|index| self.end_at(engine, index)).transpose()
    }

    fn end_at<E: Engine>(&self, engine: &mut E, index: usize) -> Result<Open, UpdateError> {
        let mut opens = self.lock();
        let open = opens.remove(index);
        let others: BTreeSet<Trapped> = opens.iter().flat_map(Open::traps).collect();
        drop(opens);
        // The attendant stays, for threads that were taken for gone.
        let reports = self.reports();
        self.set_told(reports.clone());
        if let Some(watch) = engine.watch() {
            for trap in open.traps().filter(|trap| !others.contains(trap)) {
                watch.untrap(&trap)?;
            }
            watch.attend(Some(self.attendant()), &reports)?;
        }
        Ok(open)
    }

    /// Stops attending to all that is open of a bundle, and begins to attend to `then`, if there is that; the guest is stopped.
    ///
    /// # Consistency on error
    /// `then` is not attended to; of the others some may still be.
    ///
    /// # Errors
    /// Of the engine.
    pub fn replace<E: Engine>(&self, engine: &mut E, bundle: &str, then: Option<Open>) -> Result<(), UpdateError> {
        let of_bundle = |open: &&Open| parts::bundle_of(&open.id) == bundle;
        let ids: Vec<String> = self.lock().iter().filter(of_bundle).map(|open| open.id.clone()).collect();
        let is_new = then.is_some();
        then.map_or(Ok(()), |open| self.begin(engine, open))?;
        let ended = ids.iter().try_for_each(|id| self.end(engine, id).map(drop));
        if ended.is_err() && is_new {
            let last = self.lock().len().saturating_sub(1);
            self.end_at(engine, last)?;
        }
        ended
    }

    /// A module is gone, with its data and with whoever was inside of its code; the guest is stopped.
    ///
    /// # Errors
    /// Of the engine.
    pub fn module_gone<E: Engine>(&self, engine: &mut E, part: &str) -> Result<(), UpdateError> {
        let mut left = BTreeSet::new();
        let mut opens = self.lock();
        for open in opens.iter_mut() {
            let Some(index) = open.parts.iter().position(|known| known.id == part) else { continue };
            let part = open.parts.remove(index);
            left.extend(part.traps());
            let (gone, threads): (Vec<_>, Vec<_>) =
                std::mem::take(&mut open.threads).into_iter().partition(|thread| thread.part == index);
            open.threads = threads;
            open.threads.iter_mut().filter(|thread| thread.part > index).for_each(|thread| thread.part -= 1);
            open.counts.left += gone.len() as u64;
            self.forget(gone.into_iter().map(|thread| (part.trampoline, thread)));
        }
        let others: BTreeSet<Trapped> = opens.iter().flat_map(Open::traps).collect();
        drop(opens);
        if let Some(watch) = engine.watch() {
            left.difference(&others).try_for_each(|trap| watch.untrap(trap))?;
        }
        Ok(())
    }

    /// Whether something of a part is open.
    #[must_use]
    pub fn has_part(&self, part: &str) -> bool {
        self.lock().iter().flat_map(|open| &open.parts).any(|known| known.id == part)
    }
}

impl Open {
    /// What is shown of it.
    #[must_use]
    pub fn info(&self) -> OpenInfo {
        let counts = self.counts;
        OpenInfo {
            ms: self.since.elapsed().as_millis() as u64,
            frames: counts.frames,
            left: counts.left,
            to_new: counts.to_new,
            to_old: counts.to_old,
            false_sharing: counts.false_sharing,
            late: counts.late,
            lost: counts.lost,
            trouble: self.trouble.clone(),
        }
    }
}

impl<E: Engine> Updater<E> {
    /// Whether threads are inside of an update.
    #[must_use]
    pub fn has_open(&self) -> bool {
        !self.opens.is_empty()
    }

    /// A description with what is known at this moment.
    pub(in crate::update) fn shown(&self, info: &BundleInfo) -> BundleInfo {
        let mut info = info.clone();
        for open in self.opens.lock().iter().filter(|open| parts::bundle_of(&open.id) == info.id) {
            // Of parts that came at different times the last one is told.
            info.open = Some(open.info());
            let thread = |thread: &Inside| ThreadInfo {
                pid: thread.pid,
                name: thread.comm.clone(),
                function: thread.function.clone(),
                at: format!("{:#x}", thread.at),
                why: thread.why.clone(),
            };
            info.inside.extend(open.threads.iter().map(thread));
        }
        info
    }

    /// What walks the stacks of this kernel; `None` for a kernel without unwind tables.
    pub(in crate::update) fn unwinder(&mut self, kernel: &Kernel) -> Result<Option<Unwinder>, UpdateError> {
        match self.unwinder.take().map_or_else(|| Unwinder::read(&self.engine, kernel), Ok) {
            Ok(unwinder) => Ok(Some(unwinder)),
            Err(UnwindError::NoTables) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends open updates that nobody is inside any more. `look`: also forgets threads that are gone.
    pub fn close_open(&mut self, look: bool) {
        if self.unsettled || self.engine.is_paused().unwrap_or(true) {
            return;
        }
        if self.engine.resets() != self.resets && !self.opens.is_empty() {
            // What is open is of a boot that is over; if that cannot be seen yet, it is looked again.
            let _ = self.look();
            return;
        }
        if look {
            self.take_over();
            if self.unsettled {
                return;
            }
        }
        if let Some(trouble) = self.engine.watch().and_then(|watch| watch.trouble()) {
            self.opens.lock().iter_mut().for_each(|open| open.trouble = Some(trouble.clone()));
        }
        if look && self.opens.is_stale() {
            let reports = self.opens.reports();
            // Tried again at the next look.
            let told = transaction::paused(&mut self.engine, |engine| match engine.watch() {
                Some(watch) => watch.attend(Some(self.opens.attendant()), &reports),
                None => Ok(()),
            });
            if matches!(told, Ok((Ok(()), _))) {
                self.opens.set_told(reports);
            }
        }
        let due: Vec<(String, bool)> =
            self.opens.lock().iter().map(|open| (open.id.clone(), open.threads.is_empty())).collect();
        for (id, _) in due.into_iter().filter(|(_, is_empty)| look || *is_empty) {
            // What cannot be done now is tried again.
            if matches!(self.close(&id), Ok(true)) {
                self.move_and_close(&id);
            }
            if self.unsettled {
                return;
            }
        }
        // What is not attended to again yet is open all the same.
        let is_open = |id: &str| self.document.opens.iter().any(|open| parts::bundle_of(&open.id) == id);
        let left = self.document.bundles.iter().map(|record| &record.info);
        let left = left.filter(|info| info.state == BundleState::Undoing && !is_open(&info.id));
        for id in left.map(|info| info.id.clone()).collect::<Vec<_>>() {
            let _ = self.finish_undo(&id);
        }
    }

    /// Moves who waits at a counterpart, and ends the open update if nobody else is inside.
    fn move_and_close(&mut self, id: &str) {
        let moved = self.move_later(id);
        let is_empty = {
            let mut opens = self.opens.lock();
            let Some(open) = opens.iter_mut().find(|open| open.id == id) else { return };
            if let Err(error) = moved {
                open.trouble = Some(error.to_string());
            }
            open.threads.is_empty()
        };
        if is_empty && !self.unsettled {
            let _ = self.close(id);
        }
    }

    /// Looks at an open update with the guest stopped, and ends it if nobody is inside. Says whether somebody can be moved right now.
    fn close(&mut self, id: &str) -> Result<bool, UpdateError> {
        let (opens, resets) = (self.opens.clone(), self.resets);
        let kernel = self.kernel_of_movable(id);
        let mut unwinder = kernel.as_ref().map_or(Ok(None), |kernel| self.unwinder(kernel)).unwrap_or_else(|error| {
            // Who has died is seen all the same.
            let mut opens = self.opens.lock();
            opens.iter_mut().filter(|open| open.id == id).for_each(|open| open.trouble = Some(error.to_string()));
            None
        });
        let outcome = transaction::paused(&mut self.engine, |engine| {
            if engine.resets() != resets {
                return Err(UpdateError::OtherBoot);
            }
            let Some((parts, undo)) = opens.look(engine, id)? else {
                let can_walk = kernel.as_ref().zip(unwinder.as_mut());
                return Ok((None, can_walk.is_some_and(|(kernel, walk)| opens.has_waiting(engine, kernel, walk, id))));
            };
            let kind = if undo { HookKind::UndoPost } else { HookKind::Post };
            for (hooks, kernel) in parts.iter().filter_map(|part| Some((part.hooks.as_ref()?, &part.kernel))) {
                // The update has ended whatever it says; that it failed is shown.
                match hooks.about_update(engine, kernel, kind, 0) {
                    Err(error @ UpdateError::NoProcessor { .. }) => return Err(error),
                    Err(error) => opens.trouble(id, &error.to_string()),
                    Ok(()) => {}
                }
            }
            Ok((opens.end(engine, id)?, false))
        });
        self.unwinder = unwinder.or(self.unwinder.take());
        let (ended, can_move) = outcome?.0?;
        if let Some(open) = ended {
            let bundle = parts::bundle_of(id);
            let is_open = opens.lock().iter().any(|open| parts::bundle_of(&open.id) == bundle);
            self.update_record(bundle, |info| {
                if info.state == BundleState::Open && !is_open {
                    info.state = BundleState::Applied;
                }
                info.open = Some(open.info());
            });
            self.document.opens.retain(|open| open.id != id);
            self.document.sequence += 1;
            self.journal.finish(&self.document)?;
        }
        Ok(can_move)
    }
}

impl Shared {
    fn trouble(&self, id: &str, what: &str) {
        if let Some(open) = self.lock().iter_mut().find(|open| open.id == id) {
            open.counts.lost += 1;
            open.trouble = Some(what.to_owned());
        }
    }

    /// What gives the threads inside of a bundle's old code their return addresses back, in a stopped guest; `None` while one of them is
    /// on its way to report.
    ///
    /// # Errors
    /// Of the engine.
    pub(in crate::update) fn returns(
        &self,
        memory: &dyn ReadMemory,
        bundle: &str,
    ) -> Result<Option<Vec<Write>>, UpdateError> {
        let opens = self.lock();
        let opens = opens.iter().filter(|open| parts::bundle_of(&open.id) == bundle);
        let mut writes = Vec::new();
        for (thread, part) in opens.flat_map(Open::inside) {
            let Write { pa, old: new, new: old } = thread.divert(part.trampoline.0);
            let mut live = [0; 8];
            memory.read(Pa(pa), &mut live)?;
            if live[..] != old {
                return Ok(None);
            }
            writes.push(Write { pa, old, new });
        }
        Ok(Some(writes))
    }

    /// Forgets threads of a stopped guest that have ended, or that have gone on without returning. Gives what the end needs when
    /// nobody is left.
    fn look<E: Engine>(&self, engine: &E, id: &str) -> Result<Option<(Vec<OpenPart>, bool)>, UpdateError> {
        let mut opens = self.lock();
        let Some(open) = opens.iter_mut().find(|open| open.id == id) else { return Ok(None) };
        if let (false, Some(kernel)) = (open.threads.is_empty(), open.parts.first().map(|part| &part.kernel)) {
            let memory = Snapshot::of(engine);
            let processors = tasks::per_cpu(&memory, kernel)?;
            let tasks = tasks::all(&memory, kernel, &processors)?;
            let size = kernel.constant("THREAD_SIZE")?;
            let before = open.threads.len();
            // Its return address may be gone from its place: then it is on its way to report.
            let exists = |thread: &Inside| {
                // Its number may change (`fs/exec.c`, `de_thread`).
                let task = tasks.iter().find(|task| task.at.0 == thread.task);
                task.is_some_and(|task| thread.slot.wrapping_sub(task.stack) < size)
            };
            let (threads, gone) = std::mem::take(&mut open.threads).into_iter().partition(exists);
            open.threads = gone;
            self.forget(open.inside().map(|(thread, part)| (part.trampoline, thread.clone())));
            open.threads = threads;
            open.counts.left += (before - open.threads.len()) as u64;
        }
        Ok(open.threads.is_empty().then(|| (open.parts.clone(), open.undo)))
    }
}
