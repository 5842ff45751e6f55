//! Taking a bundle back: the jumps at once, the memory when nothing can reach it.
//!
//! Comes in: the record of an applied bundle. Decided: whether the guest still holds what was written, and whether a
//! stack may still lead into the new code. Goes out: the record, removed, with the number of pages kept.

use super::transaction::{self, paused, write_all};
use super::{Times, UpdateError, Updater, errors, plan, quiet};
use crate::engine::{Engine, Pa};
use crate::guest::arena::Write;
use crate::guest::{Kernel, identity};
use crate::journal::{Action, Boot};
use crate::protocol::{BundleInfo, BundleState};
use lpk_format::{Bundle, hex};
use std::time::Instant;

impl<E: Engine> Updater<E> {
    /// Takes a bundle back.
    ///
    /// # Errors
    /// [`UpdateError`]; the bundle is then still in effect.
    pub fn undo(&mut self, name: &str) -> Result<BundleInfo, UpdateError> {
        let start = Instant::now();
        let mut times = Times::default();
        let index = self.position(name)?;
        let record = self.document.bundles[index].clone();
        let (name, id) = (record.info.name.clone(), record.info.id.clone());
        if record.info.state != BundleState::Applied {
            return Err(UpdateError::NotApplied { name, state: record.info.state.word() });
        }
        let bundle = self.bundle(&id)?;
        let (kernel, boot) = times.measure("admit", || self.same_boot(&bundle))?;
        let back: Vec<Write> = record
            .jumps
            .iter()
            .rev()
            .map(|jump| Write { pa: jump.pa, old: jump.new.clone(), new: jump.old.clone() })
            .collect();
        self.jumps_are_ours(&name, &back)?;

        let mut attempt = 0;
        let blocked = loop {
            attempt += 1;
            let busy = self.switch(&kernel, &boot, &id, &back, &[], "redirect", &mut times)?;
            if busy.is_none() || attempt >= self.patience.attempts {
                break busy;
            }
            self.jumps_are_ours(&name, &back)?;
            std::thread::sleep(self.patience.wait);
        };
        if let Some(who) = blocked {
            return Err(UpdateError::Busy { who, attempts: attempt });
        }
        let kept_pages =
            self.document.arena.allocations.iter().filter(|a| a.bundle == id).map(|a| a.pages()).sum::<u64>();
        self.document.arena.allocations.iter_mut().filter(|a| a.bundle == id).for_each(|a| a.kept = true);
        self.update_record(&id, |info| {
            info.state = BundleState::Removed;
            info.kept_pages = kept_pages;
        });
        self.document.sequence += 1;
        self.journal.finish(&self.document)?;

        let reclaimed = self.reclaim(&bundle, &kernel, &boot, &id, &mut times);
        times.add("total", start.elapsed());
        self.update_record(&id, |info| {
            info.times_us = times.0;
            match &reclaimed {
                Ok(None) => info.kept_pages = 0,
                Ok(Some(reason)) => info.reason = Some((*reason).to_owned()),
                Err(error) => info.reason = Some(format!("kept-{}", error.problem().reason)),
            }
        });
        self.journal.finish(&self.document)?;
        // A guest left half changed is an error even though the jumps are gone; pages that stay are not.
        match reclaimed {
            Err(error) if error.is_stuck() => Err(error),
            _ => self.show(&id),
        }
    }

    /// Gives the memory back if it is certain that nothing can reach it; else says why it is kept.
    fn reclaim(
        &mut self,
        bundle: &Bundle,
        kernel: &Kernel,
        boot: &Boot,
        id: &str,
        times: &mut Times,
    ) -> Result<Option<&'static str>, UpdateError> {
        if !plan::only_stacks_can_refer(bundle) {
            return Ok(Some("kept-address-taken"));
        }
        for attempt in 1..=self.patience.attempts {
            let plan = plan::reclaim(&self.engine, kernel, &self.document.arena, id)?;
            if self.switch(kernel, boot, id, &plan.writes, &plan.untouched, "reclaim", times)?.is_none() {
                self.document.arena = plan.arena;
                self.document.sequence += 1;
                self.journal.finish(&self.document)?;
                return Ok(None);
            }
            if attempt < self.patience.attempts {
                std::thread::sleep(self.patience.wait);
            }
        }
        Ok(Some("kept-still-in-use"))
    }

    /// Stops the guest and does `writes`, unless somebody is in the way: then says who.
    #[expect(clippy::too_many_arguments, reason = "one action, spelled out")]
    fn switch(
        &mut self,
        kernel: &Kernel,
        boot: &Boot,
        bundle: &str,
        writes: &[Write],
        untouched: &[std::ops::Range<u64>],
        phase: &str,
        times: &mut Times,
    ) -> Result<Option<String>, UpdateError> {
        let sequence = self.document.sequence + 1;
        let action = Action {
            sequence,
            boot: boot.clone(),
            bundle: bundle.to_owned(),
            owner_paused: self.engine.is_paused()?,
            writes: writes.to_vec(),
        };
        self.journal.begin(&action)?;
        let journal = &self.journal;
        let outcome = paused(&mut self.engine, |engine| {
            let busy = times.measure("check", || {
                if let Some(busy) = quiet::patching(engine, kernel)? {
                    return Ok(Some(busy));
                }
                if !transaction::unchanged(engine, writes)? {
                    return Ok(Some("the guest changed the code or memory in question".to_owned()));
                }
                quiet::nobody_in(engine, kernel, untouched)
            })?;
            if busy.is_none() {
                journal.committing()?;
                times.measure(phase, || write_all(engine, writes))?;
            }
            Ok::<_, UpdateError>(busy)
        });
        // On error the guest stands still: the action stays in the journal.
        let (result, time) = outcome?;
        times.add("paused", time);
        let committed = matches!(result, Ok(None));
        if !committed && !result.as_ref().is_err_and(UpdateError::is_stuck) {
            self.journal.forget_action()?;
        }
        result
    }

    /// The bundle, from memory or from the journal's folder.
    pub(super) fn bundle(&mut self, id: &str) -> Result<Bundle, UpdateError> {
        if let Some(bundle) = self.bundles.get(id) {
            return Ok(bundle.clone());
        }
        let (bundle, found) = errors::read_bundle(&self.journal.load_bundle(id)?)?;
        if found != id {
            return Err(UpdateError::Bundle(format!("the journal's copy of {id} is {found}")));
        }
        self.bundles.insert(found, bundle.clone());
        Ok(bundle)
    }

    /// Locates the kernel and proves that it is the boot that the journal is about.
    pub(super) fn same_boot(&mut self, bundle: &Bundle) -> Result<(Kernel, Boot), UpdateError> {
        let registers = self.engine.registers()?;
        let kernel = identity::locate(&self.engine, &registers, &bundle.kernel, &bundle.profile)?;
        let boot =
            Boot { build_id: bundle.kernel.build_id.clone(), slide: kernel.slide(), image_delta: kernel.image_delta() };
        if self.document.boot.as_ref() != Some(&boot) {
            return Err(UpdateError::OtherBoot);
        }
        Ok((kernel, boot))
    }

    fn jumps_are_ours(&self, name: &str, back: &[Write]) -> Result<(), UpdateError> {
        for write in back {
            let mut live = vec![0; write.old.len()];
            self.engine.read(Pa(write.pa), &mut live)?;
            if live != write.old {
                return Err(UpdateError::ChangedSince {
                    name: name.to_owned(),
                    pa: write.pa,
                    expected: hex::encode(&write.old),
                    found: hex::encode(&live),
                });
            }
        }
        Ok(())
    }

    pub(super) fn update_record(&mut self, id: &str, change: impl FnOnce(&mut BundleInfo)) {
        if let Some(record) = self.document.bundles.iter_mut().find(|record| record.info.id == id) {
            change(&mut record.info);
        }
    }
}
