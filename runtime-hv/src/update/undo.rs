//! Taking a bundle back: the jumps at once, the memory when nothing can reach it.
//!
//! Comes in: the record of an applied bundle. Decided: whether the guest still holds what was written, and whether a
//! stack may still lead into the new code. Goes out: the record, removed, with the number of pages kept.

use super::transaction::{self, paused, write_all};
use super::{Times, UpdateError, Updater, errors, plan, quiet};
use crate::engine::{Engine, Pa};
use crate::guest::arena::{State, Write};
use crate::guest::{Kernel, identity};
use crate::journal::{Action, Boot};
use crate::protocol::{BundleInfo, BundleState};
use lpk_format::{Bundle, hex};
use std::time::Instant;

/// What is being taken back.
struct Undoing {
    kernel: Kernel,
    boot: Boot,
    id: String,
    /// Only stacks can lead into its memory.
    reclaimable: bool,
}

/// How a stop ended.
enum Switched {
    /// Not the moment: why. Nothing was written.
    Busy(String),
    /// The jumps are gone; the memory too, if there is a new state of it.
    Done { reclaimed: Option<State> },
}

impl<E: Engine> Updater<E> {
    /// Takes a bundle back.
    ///
    /// # Errors
    /// [`UpdateError`]; the bundle is then still in effect.
    pub fn undo(&mut self, name: &str) -> Result<BundleInfo, UpdateError> {
        let start = Instant::now();
        let mut times = Times::default();
        if self.look()? {
            return Err(UpdateError::OtherBoot);
        }
        let index = self.position(name)?;
        let record = self.document.bundles[index].clone();
        let (name, id) = (record.info.name.clone(), record.info.id.clone());
        if record.info.state != BundleState::Applied {
            return Err(UpdateError::NotApplied { name, state: record.info.state.word() });
        }
        let bundle = self.bundle(&id)?;
        let (kernel, boot) = times.measure("admit", || self.same_boot(&bundle))?;
        let action = Undoing { kernel, boot, id, reclaimable: plan::only_stacks_can_refer(&bundle) };

        let mut attempt = 0;
        let reclaimed = loop {
            attempt += 1;
            let back = self.way_back(&name, &record.jumps)?;
            match self.switch(&action, &back, "redirect", &mut times)? {
                Switched::Done { reclaimed } => break reclaimed,
                Switched::Busy(who) if attempt >= self.patience.attempts => {
                    return Err(UpdateError::Busy { who, attempts: attempt });
                }
                Switched::Busy(_) => std::thread::sleep(self.patience.wait),
            }
            if self.look()? {
                return Err(UpdateError::OtherBoot);
            }
        };
        self.update_record(&action.id, |info| info.state = BundleState::Removed);
        self.document.sequence += 1;
        let reason = match reclaimed {
            Some(arena) => {
                self.document.arena = arena;
                Ok(None)
            }
            None => {
                self.keep(&action.id);
                self.journal.finish(&self.document)?;
                self.reclaim(&action, &mut times)
            }
        };
        times.add("total", start.elapsed());
        self.update_record(&action.id, |info| {
            info.times_us = times.0;
            match &reason {
                Ok(None) => (info.kept_pages, info.reason) = (0, None),
                Ok(Some(reason)) => info.reason = Some((*reason).to_owned()),
                Err(error) => info.reason = Some(format!("kept-{}", error.problem().reason)),
            }
        });
        // A guest left half changed is an error even though the jumps are gone; pages that stay are not.
        match reason {
            Err(error) if error.is_stuck() => Err(error),
            _ => {
                self.journal.finish(&self.document)?;
                self.show(&action.id)
            }
        }
    }

    /// Marks the memory of an undone bundle as kept.
    fn keep(&mut self, id: &str) {
        let mut pages = 0;
        for allocation in self.document.arena.allocations.iter_mut().filter(|allocation| allocation.bundle == id) {
            allocation.kept = true;
            pages += allocation.pages();
        }
        self.update_record(id, |info| info.kept_pages = pages);
    }

    /// Gives the memory back once it is certain that nothing can reach it; else says why it is kept.
    fn reclaim(&mut self, action: &Undoing, times: &mut Times) -> Result<Option<&'static str>, UpdateError> {
        if !action.reclaimable {
            return Ok(Some("kept-address-taken"));
        }
        for attempt in 1..=self.patience.attempts {
            if attempt > 1 {
                std::thread::sleep(self.patience.wait);
            }
            if let Switched::Done { reclaimed: Some(arena) } = self.switch(action, &[], "reclaim", times)? {
                self.document.arena = arena;
                self.document.sequence += 1;
                return Ok(None);
            }
        }
        Ok(Some("kept-still-in-use"))
    }

    /// Stops the guest, takes the jumps back, and the memory in the same moment if nothing can reach it.
    fn switch(
        &mut self,
        action: &Undoing,
        jumps: &[Write],
        phase: &str,
        times: &mut Times,
    ) -> Result<Switched, UpdateError> {
        let memory = if action.reclaimable {
            Some(plan::reclaim(&self.engine, &self.document.arena, &action.id)?)
        } else {
            None
        };
        let mut writes = jumps.to_vec();
        writes.extend(memory.iter().flat_map(|plan| plan.writes.iter().cloned()));
        let planned = Action {
            sequence: self.document.sequence + 1,
            boot: action.boot.clone(),
            bundle: action.id.clone(),
            owner_paused: self.engine.is_paused()?,
            writes: writes.clone(),
        };
        self.journal.begin(&planned, &self.document)?;
        let (journal, resets) = (&self.journal, self.resets);
        let outcome = paused(&mut self.engine, |engine| {
            let check = times.measure("check", || {
                if engine.resets() != resets {
                    return Ok(Err("the guest was reset".to_owned()));
                }
                if let Some(busy) = quiet::patching(engine, &action.kernel)? {
                    return Ok(Err(busy));
                }
                if !transaction::unchanged(engine, jumps)? {
                    return Ok(Err("the guest changed the code in question".to_owned()));
                }
                // The jumps do not wait for the memory.
                let Some(plan) = &memory else { return Ok(Ok(false)) };
                let free = transaction::unchanged(engine, &plan.writes).is_ok_and(|unchanged| unchanged)
                    && quiet::nobody_in(engine, &action.kernel, &plan.untouched).is_ok_and(|who| who.is_none());
                Ok::<_, UpdateError>(Ok(free))
            })?;
            let (free, writes) = match check {
                Err(busy) => return Ok((Switched::Busy(busy), false)),
                Ok(true) => (true, &writes[..]),
                Ok(false) => (false, jumps),
            };
            if !writes.is_empty() {
                journal.committing()?;
                times.measure(phase, || write_all(engine, writes))?;
            }
            let reclaimed = memory.as_ref().filter(|_| free).map(|plan| plan.arena.clone());
            Ok::<_, UpdateError>((Switched::Done { reclaimed }, !writes.is_empty()))
        });
        self.unsettled = true;
        // On error the guest stands still: the action stays in the journal.
        let (result, time) = outcome?;
        times.add("paused", time);
        let written = matches!(result, Ok((_, true)));
        if !written && !result.as_ref().is_err_and(UpdateError::is_stuck) {
            self.journal.forget_action()?;
        }
        self.unsettled = result.as_ref().is_err_and(UpdateError::is_stuck);
        result.map(|(switched, _)| switched)
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

    /// The writes that take jumps back. An entry that somebody has put back already needs none; one that holds anything
    /// else is somebody else's.
    fn way_back(&self, name: &str, jumps: &[Write]) -> Result<Vec<Write>, UpdateError> {
        let mut back = Vec::new();
        for jump in jumps.iter().rev() {
            let mut live = vec![0; jump.new.len()];
            self.engine.read(Pa(jump.pa), &mut live)?;
            if live == jump.new {
                back.push(Write { pa: jump.pa, old: jump.new.clone(), new: jump.old.clone() });
            } else if live != jump.old {
                return Err(UpdateError::ChangedSince {
                    name: name.to_owned(),
                    pa: jump.pa,
                    expected: hex::encode(&jump.new),
                    found: hex::encode(&live),
                });
            }
        }
        Ok(back)
    }

    pub(super) fn update_record(&mut self, id: &str, change: impl FnOnce(&mut BundleInfo)) {
        if let Some(record) = self.document.bundles.iter_mut().find(|record| record.info.id == id) {
            change(&mut record.info);
        }
    }
}
