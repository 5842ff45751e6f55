//! Taking on a guest that an earlier tool has worked on.
//!
//! Comes in: the journal. Decided: whether it is about this boot, whether an action was left half done, and whether what
//! it calls applied is. Goes out: a consistent guest and document; a journal of another boot is set aside.

use super::{UpdateError, Updater, transaction};
use crate::engine::{Engine, Pa};
use crate::guest::GuestError;
use crate::journal::{Action, Document};
use crate::protocol::BundleState;

impl<E: Engine> Updater<E> {
    /// Brings guest and journal together.
    pub(super) fn recover(&mut self) -> Result<(), UpdateError> {
        let half_done = self.journal.half_done()?;
        let witness = half_done
            .as_ref()
            .map(|action| action.bundle.clone())
            .or_else(|| self.document.bundles.last().map(|record| record.info.id.clone()));
        let Some(witness) = witness else {
            // Nothing was ever done, or only planned.
            return Ok(self.journal.forget_action()?);
        };
        let bundle = self.bundle(&witness)?;
        if let Some(action) = &half_done {
            // The first action of a boot: the document does not know it yet.
            self.document.boot.get_or_insert_with(|| action.boot.clone());
        }
        match self.same_boot(&bundle) {
            Ok(_) => {}
            Err(
                UpdateError::OtherBoot
                | UpdateError::Guest(GuestError::NotBooted(_) | GuestError::Slide { .. } | GuestError::BuildId { .. }),
            ) => {
                return self.forget_boot();
            }
            Err(error) => return Err(error),
        }
        if let Some(action) = half_done {
            if !self.is_between(&action)? {
                return self.forget_boot();
            }
            let (result, _) =
                transaction::paused(&mut self.engine, |engine| transaction::take_back(engine, &action.writes))?;
            result?;
        }
        self.journal.forget_action()?;
        self.look().map(drop)
    }

    /// Settles what an action left in an unknown state, if one did; an answer to a client does so as well.
    pub fn settle(&mut self) {
        if self.unsettled {
            // It stays so until it succeeds, and clients are told why it does not.
            let _ = self.look();
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
        // What the hypervisor has to say comes with its next answer.
        self.engine.is_paused()?;
        let resets = self.engine.resets();
        let reset = std::mem::replace(&mut self.resets, resets) != resets;
        let window = self.document.arena.window.as_ref();
        let gone = reset || !window.map_or(Ok(true), |window| window.is_there(&self.engine))?;
        if gone && !self.document.bundles.is_empty() {
            self.forget_boot()?;
            return Ok(true);
        }
        self.find_lost_jumps()?;
        Ok(false)
    }

    /// Sets the journal aside: it is about a boot that is over.
    pub(super) fn forget_boot(&mut self) -> Result<(), UpdateError> {
        self.journal.set_aside()?;
        self.document = Document::default();
        self.bundles.clear();
        Ok(())
    }

    /// Whether every byte that the action writes is as before or as after it. Without KASLR two boots look alike; this
    /// keeps old bytes of one out of the other.
    fn is_between(&self, action: &Action) -> Result<bool, UpdateError> {
        for write in &action.writes {
            let mut live = vec![0; write.old.len()];
            self.engine.read(Pa(write.pa), &mut live)?;
            if live.iter().zip(write.old.iter().zip(&write.new)).any(|(now, (old, new))| now != old && now != new) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Marks bundles whose jumps are not in the guest any more.
    fn find_lost_jumps(&mut self) -> Result<(), UpdateError> {
        for record in self.document.bundles.iter_mut().filter(|r| r.info.state == BundleState::Applied) {
            let mut ours = true;
            for jump in &record.jumps {
                let mut live = vec![0; jump.new.len()];
                self.engine.read(Pa(jump.pa), &mut live)?;
                ours &= live == jump.new;
            }
            record.info.reason = (!ours).then(|| "changed-since".to_owned());
        }
        Ok(())
    }
}
