//! Taking on a guest that an earlier tool has worked on.
//!
//! Comes in: the journal. Decided: whether it is about this boot, whether an action was left half done, and whether what
//! it calls applied is. Goes out: a consistent guest and document; a journal of another boot is set aside.

use super::open::Open;
use super::{Times, UpdateError, Updater, quiet, transaction};
use crate::engine::{Engine, EngineError, Pa, ReadMemory, Trapped};
use crate::guest::arena::Write;
use crate::guest::{GuestError, Kernel};
use crate::journal::{Action, Document};

impl<E: Engine> Updater<E> {
    /// Brings guest and journal together: an action whose writes the guest has, and has run with, is done; what else was
    /// left half done is taken back.
    pub(super) fn recover(&mut self) -> Result<(), UpdateError> {
        let half_done = self.journal.half_done()?;
        let Some(witness) = half_done.as_ref().map(|action| action.bundle.clone()).or_else(|| self.witness()) else {
            // Nothing was ever done, or only planned.
            return Ok(self.journal.forget_action()?);
        };
        let bundle = self.bundle(&witness)?;
        if let Some(action) = &half_done {
            // The first action of a boot: the document does not know it yet.
            self.document.boot.get_or_insert_with(|| action.boot.clone());
        }
        let kernel = match self.same_boot(&bundle) {
            Ok((kernel, _)) => kernel,
            Err(
                UpdateError::OtherBoot
                | UpdateError::Guest(GuestError::NotBooted(_) | GuestError::Slide { .. } | GuestError::BuildId { .. }),
            ) => {
                return self.forget_boot();
            }
            Err(error) => return Err(error),
        };
        if let Some(action) = half_done {
            if !self.is_between(&action)? {
                return self.forget_boot();
            }
            // Only while the guest stands can bytes be taken back that it runs with otherwise.
            if !self.engine.is_held()? && self.is_done(&action)? {
                self.document = action.after;
                self.opens.keep_named(&self.document.opens);
                self.journal.finish(&self.document)?;
            } else {
                let (held, journal) = (self.engine.is_held()?, &self.journal);
                let (result, _) = transaction::paused(&mut self.engine, |engine| {
                    take_back(engine, &action, &kernel, held)?;
                    Ok::<_, UpdateError>(journal.taken_back()?)
                })?;
                result?;
            }
        }
        self.journal.forget_action()?;
        self.look_again().map(drop)
    }

    /// A bundle of this boot, whose profile tells where the kernel is.
    fn witness(&self) -> Option<String> {
        let Document { bundles, areas, call, .. } = &self.document;
        let bundle = bundles.last().map(|record| &record.info.id);
        bundle.or(areas.last().map(|area| &area.bundle)).or(call.as_ref().map(|call| &call.area.bundle)).cloned()
    }

    /// Settles what an action left in an unknown state or to the guest, if one did; an answer to a client does so as well.
    pub fn settle(&mut self) {
        if self.unsettled {
            // It stays so until it succeeds, and clients are told why it does not.
            let _ = self.look();
        }
        if !self.unsettled && self.is_behind() {
            let _ = self.catch_up(&mut Times::default());
        }
    }

    /// Looks whether the guest is still the boot that the document is about, and forgets what is gone. Says whether
    /// something was forgotten.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub fn look(&mut self) -> Result<bool, UpdateError> {
        if std::mem::take(&mut self.unsettled) {
            // It may still stand; what the journal says is taken back before it runs, unless it runs by now.
            let recovered = self.recover().and_then(|()| Ok(self.engine.resume()?));
            self.unsettled = recovered.is_err();
            recovered?;
        }
        self.look_again()
    }

    fn look_again(&mut self) -> Result<bool, UpdateError> {
        // What the hypervisor has to say comes with its next answer.
        self.engine.is_paused()?;
        let resets = self.engine.resets();
        let reset = std::mem::replace(&mut self.resets, resets) != resets;
        // The window is the better witness: an area may be gone because the guest was asked to take it back.
        let lost = match &self.document.arena.window {
            Some(window) => !window.is_there(&self.engine)?,
            None => self.areas_are_gone()?,
        };
        if (reset || lost) && !self.document.is_empty() {
            self.forget_boot()?;
            return Ok(true);
        }
        self.find_lost_jumps()?;
        Ok(false)
    }

    /// Whether neither an area nor a jump of the document is in the guest: then it is about another boot.
    fn areas_are_gone(&self) -> Result<bool, UpdateError> {
        let areas = &self.document.areas;
        for area in areas {
            if area.is_there(&self.engine)? {
                return Ok(false);
            }
        }
        for record in self.document.bundles.iter().filter(|record| record.info.state.is_in_effect()) {
            if !record.jumps.is_empty() && has_all(&self.engine, &record.jumps)? {
                return Ok(false);
            }
        }
        Ok(!areas.is_empty())
    }

    /// Sets the journal aside: it is about a boot that is over.
    pub(super) fn forget_boot(&mut self) -> Result<(), UpdateError> {
        self.journal.set_aside()?;
        self.document = Document::default();
        self.bundles.clear();
        self.seen = None;
        self.unwinder = None;
        self.forget_opens()
    }

    /// Nothing is attended to any more.
    fn forget_opens(&mut self) -> Result<(), UpdateError> {
        let traps: Vec<Trapped> = self.opens.lock().iter().flat_map(Open::traps).collect();
        if self.opens.is_empty() && self.opens.reports().is_empty() {
            return Ok(());
        }
        self.opens.clear();
        let forget = |engine: &mut E| match engine.watch() {
            Some(watch) => traps.iter().try_for_each(|trap| watch.untrap(trap)).and_then(|()| watch.attend(None, &[])),
            None => Ok(()),
        };
        if self.engine.is_held()? {
            return Ok(forget(&mut self.engine)?);
        }
        Ok(transaction::paused(&mut self.engine, forget)?.0?)
    }

    /// Whether every byte that the action writes is as before or as after it. Without KASLR two boots look alike; this
    /// keeps old bytes of one out of the other.
    fn is_between(&self, action: &Action) -> Result<bool, UpdateError> {
        for write in stable(action) {
            let mut live = vec![0; write.old.len()];
            self.engine.read(Pa(write.pa), &mut live)?;
            if live.iter().zip(write.old.iter().zip(&write.new)).any(|(now, (old, new))| now != old && now != new) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the guest has all that the action writes. Writes are all done or all taken back before a guest runs, and of those that
    /// are taken back the journal knows by then: what the guest has changed itself need not tell.
    fn is_done(&self, action: &Action) -> Result<bool, UpdateError> {
        Ok(has_all(&self.engine, stable(action))?)
    }

    /// Marks bundles whose jumps are not in the guest any more.
    fn find_lost_jumps(&mut self) -> Result<(), UpdateError> {
        for record in self.document.bundles.iter_mut().filter(|r| r.info.state.is_in_effect()) {
            let ours = has_all(&self.engine, &record.jumps)?;
            record.info.reason = (!ours).then(|| "changed-since".to_owned());
        }
        Ok(())
    }
}

/// Takes back what an action has written, but leaves alone what the guest has put on its list since.
///
/// A module may have gone since the guest was let go of (it is not `held` any more): then its memory is somebody else's. So is a place on a
/// stack, or a datum, that does not hold what was written there any more.
fn take_back<E: Engine>(engine: &mut E, action: &Action, kernel: &Kernel, held: bool) -> Result<(), UpdateError> {
    let mut writes = action.writes.clone();
    for place in action.mapped.iter().filter(|_| !held) {
        let write = writes.iter().position(|write| write.pa == place.1);
        if let Some(at) = write
            && !(quiet::are_mapped(engine, kernel, &[*place])? && has_all(engine, &writes[at..=at])?)
        {
            writes.remove(at);
        }
    }
    if !held {
        let mut kept = Vec::new();
        for write in writes {
            if !action.moving.contains(&write.pa) || has_all(engine, [&write])? {
                kept.push(write);
            }
        }
        writes = kept;
    }
    if let Some(at) = writes.iter().position(|write| Some(write.pa) == action.list) {
        let ours = has_all(engine, &writes[at..=at])?;
        if !ours {
            writes.remove(at);
        }
    }
    Ok(transaction::take_back(engine, &writes)?)
}

/// The writes of an action that the guest itself does not change when it runs.
fn stable(action: &Action) -> impl Iterator<Item = &Write> {
    action.writes.iter().filter(|write| !action.moving.contains(&write.pa))
}

/// Whether the guest holds what writes leave there.
fn has_all<'a>(memory: &dyn ReadMemory, writes: impl IntoIterator<Item = &'a Write>) -> Result<bool, EngineError> {
    for write in writes {
        let mut live = vec![0; write.new.len()];
        memory.read(Pa(write.pa), &mut live)?;
        if live != write.new {
            return Ok(false);
        }
    }
    Ok(true)
}
