//! The update service proper: apply and undo, phase by phase.
//!
//! Comes in: an engine, a journal and bundles. Decided: in this order, for `apply`: **admit** ([`admit`]), **plan**
//! ([`plan`]), then with all processors stopped **check** ([`quiet`]), **place** and **redirect** ([`transaction`]). `undo`
//! is the reverse: jumps first, then memory, once nothing can reach it. Goes out: what `list` shows, or a reason.
//!
//! # Consistency on error
//! Every action ends with all of its writes done or none, and the guest running. The exception is
//! [`transaction::TransactionError::Stuck`], which leaves the journal's `committing` file for the next start.

pub mod admit;
pub mod area;
pub mod code;
pub mod link;
pub mod plan;
pub mod quiet;
pub mod sites;
pub mod transaction;

mod call;
mod errors;
mod prepare;
mod recover;
#[cfg(test)]
mod tests;
mod undo;

pub use errors::UpdateError;

use crate::engine::Engine;

use crate::guest::arena::Allocation;
use crate::journal::{Action, Document, Journal, Record};
use crate::protocol::{BundleInfo, BundleState, FunctionInfo, MemoryKind};
use admit::Admitted;
use area::Area;
use lpk_format::Bundle;
use plan::Plan;
use quiet::Check;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

/// How patiently a moment is awaited in which the guest can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How often the guest is stopped and looked at.
    pub attempts: usize,
    /// How long it runs in between.
    pub wait: Duration,
    /// How long it may take to answer a request.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { attempts: 50, wait: Duration::from_millis(20), answer: Duration::from_secs(10) }
    }
}

/// Applies and undoes bundles on one guest.
#[derive(Debug)]
pub struct Updater<E> {
    /// The hypervisor.
    pub engine: E,
    journal: Journal,
    document: Document,
    bundles: BTreeMap<String, Bundle>,
    patience: Patience,
    /// Resets of the guest that the document knows of.
    resets: u64,
    /// An action ended with the guest in an unknown state: its journal comes first.
    unsettled: bool,
}

impl<E: Engine> Updater<E> {
    /// Takes on a guest: finishes by rolling back what a dead tool left half done, and finds out what is applied.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub fn open(engine: E, journal: Journal, patience: Patience) -> Result<Updater<E>, UpdateError> {
        let document = journal.load()?;
        let resets = engine.resets();
        let bundles = BTreeMap::new();
        let mut updater = Updater { engine, journal, document, bundles, patience, resets, unsettled: false };
        updater.recover()?;
        Ok(updater)
    }

    /// All bundles of this boot, oldest first.
    pub fn list(&self) -> Vec<BundleInfo> {
        self.document.bundles.iter().map(|record| record.info.clone()).collect()
    }

    /// One bundle, by name or by the beginning of its id; of several with the name, the newest.
    ///
    /// # Errors
    /// [`UpdateError::Unknown`] or [`UpdateError::Ambiguous`].
    pub fn show(&self, name: &str) -> Result<BundleInfo, UpdateError> {
        Ok(self.document.bundles[self.position(name)?].info.clone())
    }

    fn position(&self, name: &str) -> Result<usize, UpdateError> {
        let bundles = &self.document.bundles;
        let preferred = |info: &BundleInfo| info.state == BundleState::Applied;
        let named = |wanted: bool| bundles.iter().rposition(|r| r.info.name == name && preferred(&r.info) == wanted);
        if let Some(found) = named(true).or_else(|| named(false)) {
            return Ok(found);
        }
        let prefixed: Vec<usize> = (0..bundles.len())
            .filter(|&index| name.len() >= 4 && bundles[index].info.id.starts_with(&name.to_lowercase()))
            .collect();
        match prefixed[..] {
            [index] => Ok(index),
            [] => Err(UpdateError::Unknown { name: name.to_owned() }),
            _ => Err(UpdateError::Ambiguous {
                name: name.to_owned(),
                ids: prefixed.iter().map(|&index| bundles[index].info.id.clone()).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// Applies a bundle: its code is prepared in the guest's module area, or, when that is asked for, put into the arena.
    ///
    /// # Errors
    /// [`UpdateError`]; the guest is then as it was, except for [`UpdateError::Journal`] from the very last step: `list`
    /// shows whether the bundle is in effect.
    pub fn apply(&mut self, bytes: &[u8], in_arena: bool) -> Result<BundleInfo, UpdateError> {
        let start = Instant::now();
        let (bundle, id) = errors::read_bundle(bytes)?;
        let required = bundle.payload.tables.iter().filter(|table| table.kind.is_required());
        let required: Vec<&str> = required.map(|table| table.kind.section()).collect();
        if in_arena && !required.is_empty() {
            return Err(UpdateError::NeedsPreparation { tables: required.join(", ") });
        }
        let in_area = !in_arena && (bundle.support.is_some() || !required.is_empty());
        let mut times = Times::default();
        let mut prepared = None;
        let applied = self.apply_at(&bundle, &id, bytes, in_area, &mut prepared, &mut times, start);
        if let (Err(_), Some(area)) = (&applied, prepared) {
            // The first error is the one to tell; what is not released now is released later.
            if !self.unsettled && !self.document.is_applied(&id) {
                let _ = self.context(&id).and_then(|context| self.release(&context, &area, &mut times));
            }
        }
        applied
    }

    #[allow(clippy::too_many_arguments)] // one call, cut out so that what it prepares outlives its errors
    fn apply_at(
        &mut self,
        bundle: &Bundle,
        id: &str,
        bytes: &[u8],
        in_area: bool,
        prepared: &mut Option<Area>,
        times: &mut Times,
        start: Instant,
    ) -> Result<BundleInfo, UpdateError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            self.look()?;
            if in_area && attempt == 1 {
                self.catch_up(times)?;
            }
            let admitted = times.measure("admit", || admit::admit(&mut self.engine, &self.document, bundle, id));
            let admitted = match admitted {
                // The guest was restarted: what was applied is gone.
                Err(UpdateError::OtherBoot) if attempt == 1 => {
                    self.forget_boot()?;
                    continue;
                }
                other => other?,
            };
            self.journal.save_bundle(id, bytes)?;
            let area = self.area_of(id).filter(|_| in_area);
            if in_area && area.is_none() {
                *prepared = Some(self.prepare(&admitted, bundle, id, times)?);
                continue; // a while has passed
            }
            let plan = times.measure("plan", || match &area {
                Some(area) => plan::in_area(&self.engine, &admitted, &self.document, bundle, area, prepared.is_none()),
                None => plan::apply(&self.engine, &admitted, &self.document, bundle, id),
            })?;
            let info = describe(bundle, id, &admitted, &plan, area.as_ref());
            let mut after = self.document.clone();
            after.bundles.retain(|record| record.info.id != id);
            after.bundles.push(Record { info, jumps: plan.jumps.clone() });
            after.boot = Some(admitted.boot());
            after.arena = plan.arena.clone();
            after.areas.iter_mut().filter(|known| area.as_ref() == Some(&**known)).for_each(|area| area.kept = false);
            after.sequence += 1;
            let committed = self.commit(&admitted, &plan, &after, id, times);
            self.unsettled = committed.is_err();
            match committed? {
                Check::Ready => {
                    times.add("total", start.elapsed());
                    if let Some(record) = after.bundles.last_mut() {
                        record.info.times_us = times.0.clone();
                    }
                    self.document = after;
                    self.bundles.insert(id.to_owned(), bundle.clone());
                    self.journal.finish(&self.document)?;
                    return self.show(id);
                }
                Check::Busy(_) | Check::Changed if attempt < self.patience.attempts => {
                    self.journal.forget_action()?;
                    std::thread::sleep(self.patience.wait);
                }
                Check::Busy(who) => {
                    self.journal.forget_action()?;
                    return Err(UpdateError::Busy { who, attempts: attempt });
                }
                Check::Changed => {
                    self.journal.forget_action()?;
                    let who = "the guest keeps changing the code or memory in question".to_owned();
                    return Err(UpdateError::Busy { who, attempts: attempt });
                }
            }
        }
    }

    /// Stops the guest, checks, and does the plan's writes if the moment is right.
    fn commit(
        &mut self,
        admitted: &Admitted,
        plan: &Plan,
        after: &Document,
        id: &str,
        times: &mut Times,
    ) -> Result<Check, UpdateError> {
        let action = Action {
            sequence: after.sequence,
            boot: admitted.boot(),
            bundle: id.to_owned(),
            owner_paused: self.engine.is_paused()?,
            writes: plan.writes.iter().chain(&plan.jumps).cloned().collect(),
            moving: plan.moving.clone(),
            list: None,
            after: after.clone(),
        };
        self.journal.begin(&action, &self.document)?;
        let journal = &self.journal;
        let outcome = transaction::paused(&mut self.engine, |engine| {
            let check = times.measure("check", || quiet::check(engine, admitted, plan))?;
            if check == Check::Ready {
                journal.committing()?;
                times.measure("place", || transaction::write_all(engine, &plan.writes))?;
                let redirected = times.measure("redirect", || transaction::write_all(engine, &plan.jumps));
                if let Err(error) = redirected {
                    return Err(errors::with_undo(error, transaction::take_back(engine, &plan.writes)));
                }
            }
            Ok::<_, UpdateError>(check)
        });
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

    /// Whether the guest was asked something and has not answered yet.
    pub fn is_waiting(&self) -> bool {
        self.document.call.is_some()
    }

    /// Pages of the arena that are lost to requests.
    pub fn lost_pages(&self) -> u64 {
        let known = |bundle: &str| self.document.bundles.iter().any(|record| record.info.id == bundle);
        let lost = self.document.arena.allocations.iter().filter(|a| a.kept && !known(&a.bundle));
        lost.map(Allocation::pages).sum()
    }

    /// Lets go of the guest.
    pub fn into_engine(self) -> E {
        self.engine
    }
}

fn describe(bundle: &Bundle, id: &str, admitted: &Admitted, plan: &Plan, area: Option<&Area>) -> BundleInfo {
    let slide = admitted.kernel.slide();
    let functions = bundle.functions.iter().map(|function| FunctionInfo {
        name: function.name.clone(),
        unit: function.unit.clone(),
        old_address: format!("{:#x}", function.old_address.wrapping_add(slide)),
        new_address: format!("{:#x}", plan.addresses.text.wrapping_add(u64::from(function.new_offset))),
        size: u64::from(function.new_size),
    });
    BundleInfo {
        name: bundle.manifest.name.clone(),
        id: id.to_owned(),
        state: BundleState::Applied,
        reason: None,
        update_type: bundle.manifest.update_type,
        release: bundle.kernel.release.clone(),
        slide: format!("{slide:#x}"),
        memory: if area.is_some() { MemoryKind::Module } else { MemoryKind::Arena },
        module: area.map(|area| area.name.clone()),
        functions: functions.collect(),
        applied_at: rfc3339(SystemTime::now()),
        times_us: BTreeMap::new(),
        kept_pages: 0,
    }
}

/// Microseconds by phase; a phase that is repeated adds up.
#[derive(Debug, Default)]
struct Times(BTreeMap<String, u64>);

impl Times {
    fn add(&mut self, phase: &str, time: Duration) {
        *self.0.entry(phase.to_owned()).or_default() += time.as_micros() as u64;
    }

    /// A stop of the guest.
    fn paused(&mut self, time: Duration) {
        self.add("paused", time);
        let longest = self.0.entry("longest_pause".to_owned()).or_default();
        *longest = (*longest).max(time.as_micros() as u64);
    }

    /// As [`Self::measure`], for work that measures parts of itself.
    fn measure_in<T>(&mut self, phase: &str, work: impl FnOnce(&mut Times) -> T) -> T {
        let start = Instant::now();
        let result = work(self);
        self.add(phase, start.elapsed());
        result
    }

    fn measure<T>(&mut self, phase: &str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.add(phase, start.elapsed());
        result
    }
}

/// A time as RFC 3339 in UTC, to the second.
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from a day count, in years that begin in March so that the leap day comes last.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}
