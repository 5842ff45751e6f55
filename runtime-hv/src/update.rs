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
pub mod code;
pub mod link;
pub mod plan;
pub mod quiet;
pub mod sites;
pub mod transaction;

mod errors;
mod recover;
#[cfg(test)]
mod tests;
mod undo;

pub use errors::UpdateError;

use crate::engine::Engine;

use crate::journal::{Action, Document, Journal, Record};
use crate::protocol::{BundleInfo, BundleState, FunctionInfo};
use admit::Admitted;
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
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { attempts: 50, wait: Duration::from_millis(20) }
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

    /// Applies a bundle.
    ///
    /// # Errors
    /// [`UpdateError`]; the guest is then as it was, except for [`UpdateError::Journal`] from the very last step: `list`
    /// shows whether the bundle is in effect.
    pub fn apply(&mut self, bytes: &[u8]) -> Result<BundleInfo, UpdateError> {
        let start = Instant::now();
        let (bundle, id) = errors::read_bundle(bytes)?;
        let mut times = Times::default();
        let mut attempt = 0;
        loop {
            attempt += 1;
            self.look()?;
            let admitted = times.measure("admit", || admit::admit(&mut self.engine, &self.document, &bundle, &id));
            let admitted = match admitted {
                // The guest was restarted: what was applied is gone.
                Err(UpdateError::OtherBoot) if attempt == 1 => {
                    self.forget_boot()?;
                    continue;
                }
                other => other?,
            };
            let plan = times.measure("plan", || plan::apply(&self.engine, &admitted, &self.document, &bundle, &id))?;
            self.journal.save_bundle(&id, bytes)?;
            let committed = self.commit(&admitted, &plan, &id, &mut times);
            self.unsettled = committed.is_err();
            match committed? {
                Check::Ready => {
                    times.add("total", start.elapsed());
                    let info = describe(&bundle, &id, &admitted, &plan, times);
                    self.document.bundles.retain(|record| record.info.id != id);
                    self.document.bundles.push(Record { info: info.clone(), jumps: plan.jumps });
                    self.document.boot = Some(admitted.boot());
                    self.document.arena = plan.arena;
                    self.document.sequence += 1;
                    self.bundles.insert(id, bundle);
                    self.journal.finish(&self.document)?;
                    return Ok(info);
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
    fn commit(&mut self, admitted: &Admitted, plan: &Plan, id: &str, times: &mut Times) -> Result<Check, UpdateError> {
        let action = Action {
            sequence: self.document.sequence + 1,
            boot: admitted.boot(),
            bundle: id.to_owned(),
            owner_paused: self.engine.is_paused()?,
            writes: plan.writes.iter().chain(&plan.jumps).cloned().collect(),
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
            Ok((result, paused)) => {
                times.add("paused", paused);
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

    /// Lets go of the guest.
    pub fn into_engine(self) -> E {
        self.engine
    }
}

fn describe(bundle: &Bundle, id: &str, admitted: &Admitted, plan: &Plan, times: Times) -> BundleInfo {
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
        functions: functions.collect(),
        applied_at: rfc3339(SystemTime::now()),
        times_us: times.0,
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
