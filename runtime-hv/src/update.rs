//! The update service proper: apply and undo, phase by phase.
//!
//! Comes in: an engine, a journal and bundles. Decided: in this order, for `apply`: **admit** ([`admit`]), **plan**
//! ([`plan`]), then with all processors stopped **check** ([`quiet`]), **place** and **redirect** ([`transaction`]). An update of
//! type 2 also **walks** all stacks for threads inside ([`open`]), **transfers** data ([`data`]), gives **objects** on the heap what is new in
//! them ([`objects`]) and runs **hooks** ([`hooks`]) in that stop, and may stay open. `undo` is the reverse: jumps first, then memory, once nothing can reach it. Goes out: what
//! `list` shows, or a reason.
//!
//! # Consistency on error
//! Every action ends with all of its writes done or none, and the guest running. The exception is
//! [`transaction::TransactionError::Stuck`], which leaves the journal's `committing` file for the next start.

pub mod admit;
pub mod area;
pub mod code;
pub mod data;
pub mod link;
pub mod objects;
pub mod open;
pub mod plan;
pub mod quiet;
pub mod sites;
pub mod transaction;
pub mod transfer;

mod call;
mod commit;
#[cfg(test)]
mod data_tests;
mod errors;
#[cfg(test)]
mod hook_tests;
pub mod hooks;
#[cfg(test)]
mod move_tests;
#[cfg(test)]
mod object_tests;
mod parts;
mod prepare;
#[cfg(test)]
mod prepared_tests;
mod recover;
#[cfg(test)]
mod tests;
mod undo;
mod watch;

pub use errors::UpdateError;
pub(crate) use open::LOOK_EVERY;

use crate::engine::Engine;

use crate::guest::arena::Allocation;
use crate::guest::frames::Unwinder;
use crate::guest::modules::Loaded;
use crate::guest::support::Object;
use crate::journal::{Document, Journal, PartRecord, Record};
use crate::protocol::{BundleInfo, BundleState, FunctionInfo, MemoryKind, ModuleState};
use admit::Admitted;
use area::Area;
use lpk_format::Bundle;
use open::Shared;
use parts::{Active, Goal, Target};
use plan::Plan;
use quiet::Check;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// An area prepared for a part, and the module that it was linked with.
type Prepared = (Area, Option<Arc<Loaded>>);

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

/// How a bundle is applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Its code is put into the arena, and the guest prepares nothing.
    pub in_arena: bool,
    /// Threads of the kernel's own that wait in old code go on in it until they return.
    pub stay: bool,
}

impl From<bool> for Wishes {
    /// Into the arena or not.
    fn from(in_arena: bool) -> Wishes {
        Wishes { in_arena, ..Wishes::default() }
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
    /// The kernel, for looks that do not stop it.
    seen: Option<watch::Seen>,
    /// How often the guest's modules were looked at.
    looks: u64,
    /// Walks the stacks of this boot.
    unwinder: Option<Unwinder>,
    /// Updates that threads are still inside.
    opens: Shared,
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
        let mut updater = Updater {
            engine,
            journal,
            document,
            bundles,
            patience,
            resets,
            unsettled: false,
            seen: None,
            looks: 0,
            unwinder: None,
            opens: Shared::default(),
        };
        updater.recover()?;
        Ok(updater)
    }

    /// All bundles of this boot, oldest first.
    pub fn list(&self) -> Vec<BundleInfo> {
        self.document.bundles.iter().map(|record| self.shown(&record.info)).collect()
    }

    /// One bundle, by name or by the beginning of its id; of several with the name, the newest.
    ///
    /// # Errors
    /// [`UpdateError::Unknown`] or [`UpdateError::Ambiguous`].
    pub fn show(&self, name: &str) -> Result<BundleInfo, UpdateError> {
        Ok(self.shown(&self.document.bundles[self.position(name)?].info))
    }

    fn position(&self, name: &str) -> Result<usize, UpdateError> {
        let bundles = &self.document.bundles;
        let preferred = |info: &BundleInfo| info.state.is_in_effect();
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
    pub fn apply(&mut self, bytes: &[u8], wishes: impl Into<Wishes>) -> Result<BundleInfo, UpdateError> {
        let Wishes { in_arena, stay } = wishes.into();
        let start = Instant::now();
        let (bundle, id) = errors::read_bundle(bytes)?;
        let tables = bundle.parts().flat_map(|part| &part.payload.tables);
        let required = tables.filter(|table| table.kind.is_required());
        let required: Vec<&str> = required.map(|table| table.kind.section()).collect();
        if in_arena && !required.is_empty() {
            return Err(UpdateError::NeedsPreparation { tables: required.join(", ") });
        }
        if in_arena && !bundle.modules.is_empty() {
            let what = "new code of modules is prepared by the guest itself; apply the bundle without --in-arena";
            return Err(UpdateError::Unsupported(what.to_owned()));
        }
        let in_area = !in_arena && (bundle.support.is_some() || !required.is_empty() || !bundle.modules.is_empty());
        let mut times = Times::default();
        let goal = Goal { bundle: &bundle, id: &id, file: Some(bytes), only: None, in_area, stay };
        self.reach(&goal, &mut times, start)?;
        self.bundles.insert(id.clone(), bundle);
        self.show(&id)
    }

    /// Brings a bundle, or a part of one, into effect.
    ///
    /// # Errors
    /// [`UpdateError`], as [`Self::apply`].
    fn reach(&mut self, goal: &Goal<'_>, times: &mut Times, start: Instant) -> Result<(), UpdateError> {
        let mut prepared = Vec::new();
        let reached = self.switch_on(goal, &mut prepared, times, start);
        if reached.is_err() && !self.unsettled {
            // The first error is the one to tell; what is not released now is released later.
            for (area, _) in
                prepared.iter().filter(|(area, _)| !self.document.is_applied(&area.bundle)).cloned().collect::<Vec<_>>()
            {
                if let Ok(context) = self.context(&area.bundle) {
                    self.tidy(&context, Some(&area), times);
                }
            }
        }
        reached
    }

    /// All parts that can come into effect now do so in the same moment.
    fn switch_on(
        &mut self,
        goal: &Goal<'_>,
        prepared: &mut Vec<Prepared>,
        times: &mut Times,
        start: Instant,
    ) -> Result<(), UpdateError> {
        let targets = goal.targets();
        let mut attempt = 0;
        'again: loop {
            attempt += 1;
            self.look()?;
            if goal.in_area && attempt == 1 {
                self.catch_up(times)?;
            }
            let (mut admitted, mut idle) = (Vec::new(), Vec::new());
            for target in &targets {
                let found = times
                    .measure("admit", || admit::admit(&mut self.engine, &self.document, &target.bundle, &target.id));
                match found {
                    Ok(found) => admitted.push((target, found)),
                    // The guest was restarted: what was applied is gone.
                    Err(UpdateError::OtherBoot) if attempt == 1 && goal.only.is_none() => {
                        self.forget_boot()?;
                        continue 'again;
                    }
                    Err(error) => match (target.index, parts::state_after(&error)) {
                        (Some(index), Some(state)) if goal.only.is_none() => {
                            idle.push((index, parts::idle(target, state)))
                        }
                        _ => return Err(error),
                    },
                }
            }
            if let Some(file) = goal.file {
                self.journal.save_bundle(goal.id, file)?;
            }
            let mut active = Vec::new();
            for (target, admitted) in admitted {
                let payload = &target.bundle.payload;
                let brings_nothing = target.bundle.functions.is_empty() && payload.changed.is_empty();
                let in_area = goal.in_area && !brings_nothing;
                let area = self.usable_area(target, &admitted, prepared).filter(|_| in_area);
                if in_area && area.is_none() {
                    let area = self.prepare(&admitted, &target.bundle, &target.id, times)?;
                    prepared.push((area, admitted.kernel.module().cloned()));
                    continue 'again; // a while has passed
                }
                let (bundle, document) = (&target.bundle, &self.document);
                let plan = times.measure("plan", || match &area {
                    Some(area) => {
                        let again = !prepared.iter().any(|(known, _)| known.base == area.base);
                        plan::in_area(&self.engine, &admitted, document, bundle, area, again)
                    }
                    None if brings_nothing => Ok(Plan::nothing(document)),
                    None => plan::apply(&self.engine, &admitted, document, bundle, &target.id),
                })?;
                active.push(Active { target, admitted, area, plan });
            }
            let Some((first, rest)) = active.split_first() else { return Ok(()) };
            let mut plan = rest.iter().fold(first.plan.clone(), |plan, more| plan.with(&more.plan));
            let mut after = self.document.clone();
            // The object that prepared them goes with the jumps.
            if let Some(support) = &goal.bundle.support
                && let Some(call) = after.call.take_if(|call| goal.in_area && call.answered)
            {
                call::leaving(&self.engine, &Object::of(support)?, &call, &mut plan)?;
            }
            let known = after.bundles.iter().position(|record| record.info.id == goal.id);
            let earlier = known.map(|index| after.bundles.remove(index));
            let left = earlier.as_ref().map(|record| record.parts.iter().map(|part| part.left.clone()).collect());
            let left: Vec<Vec<u64>> = left.unwrap_or_default();
            let mut record = match earlier {
                Some(record) if goal.only.is_some() => record,
                _ => Record {
                    info: describe(&first.target.bundle, goal.id, &first.admitted, &first.plan, first.area.as_ref()),
                    jumps: first.plan.jumps.clone(),
                    data: Vec::new(),
                    parts: vec![PartRecord::default(); goal.bundle.modules.len()],
                },
            };
            if goal.only.is_none() {
                record.info.stay = goal.stay;
                record.parts.iter_mut().zip(left).for_each(|(part, left)| part.left = left);
                let all = targets.iter().filter(|target| target.index.is_some());
                record.info.modules = all.map(|target| parts::idle(target, (ModuleState::Waiting, None))).collect();
            }
            idle.into_iter().for_each(|(index, info)| parts::set(&mut record, index, info, PartRecord::default()));
            active.iter().for_each(|part| parts::in_effect(&mut record, part));
            let place = known.filter(|_| goal.only.is_some()).unwrap_or(after.bundles.len());
            after.bundles.insert(place, record);
            after.boot = Some(first.admitted.boot());
            after.arena = plan.arena.clone();
            let used =
                |known: &&mut Area| active.iter().any(|part| part.area.as_ref().is_some_and(|a| a.base == known.base));
            after.areas.iter_mut().filter(used).for_each(|area| area.kept = false);
            after.sequence += 1;
            let committed = self.commit(goal, &active, &plan, &mut after, times);
            self.unsettled = committed.as_ref().is_err_and(|error| !error.is_taken_back());
            match committed? {
                Check::Ready => {
                    times.add("total", start.elapsed());
                    if let Some(record) = after.bundles.get_mut(place) {
                        record.info.times_us = times.0.clone();
                    }
                    self.document = after;
                    return Ok(self.journal.finish(&self.document)?);
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

    /// The area that holds the code of a part already. What is linked with a module is good for this place of it only.
    fn usable_area(&self, target: &Target, admitted: &Admitted, prepared: &[Prepared]) -> Option<Area> {
        let Some(module) = admitted.kernel.module() else { return self.area_of(&target.id) };
        let ours = prepared.iter().rev().find(|(area, of)| area.bundle == target.id && of.as_ref() == Some(module));
        let (area, _) = ours?;
        self.document.areas.iter().find(|known| known.base == area.base && known.module != 0).cloned()
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
        memory: if area.is_some() || (bundle.functions.is_empty() && bundle.payload.changed.is_empty()) {
            MemoryKind::Module
        } else {
            MemoryKind::Arena
        },
        module: area.map(|area| area.name.clone()),
        functions: functions.collect(),
        data: parts::data_of(bundle, Some((admitted, plan))),
        objects: parts::objects_of(bundle, Some(admitted)),
        inside: Vec::new(),
        open: None,
        stay: false,
        moved: Vec::new(),
        hooks: parts::hooks_of(bundle),
        modules: Vec::new(),
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
