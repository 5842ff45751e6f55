//! Taking a bundle back: the jumps at once, the memory when nothing can reach it.
//!
//! Comes in: the record of an applied bundle. Decided: whether the guest still holds what was written, what the data that it
//! has changed hold by now, and whether a stack may still lead into the new code. Goes out: the record, removed, with the number of pages kept. Pages of the arena
//! go back in the same stop; an area of the guest's module memory is taken back by the guest, afterwards.

mod back;

use super::area::Area;
use super::data::Changes;
use super::open::{self, Code, Frames, Move, Open, Survey};
use super::transaction::{self, paused, write_all};
use super::{Times, UpdateError, Updater, errors, parts, plan, quiet};
use crate::engine::Engine;
use crate::guest::arena;
use crate::guest::{Kernel, identity, probes};
use crate::journal::{Action, Boot, Document, PartRecord, Record};
use crate::protocol::{BundleInfo, BundleState, ModuleState};
use back::{WayBack, are_listed, places};
use lpk_format::{Bundle, HookKind, UpdateType};
use std::ops::Range;
use std::time::Instant;

/// Why memory is kept: an address of new code or data may be stored anywhere.
const ADDRESS_TAKEN: &str = "kept-address-taken";
/// Why memory is kept: a stack refers to it.
const IN_USE: &str = "kept-still-in-use";

/// What is being taken back.
struct Undoing {
    kernel: Kernel,
    boot: Boot,
    id: String,
    /// Only stacks can lead into its memory.
    reclaimable: bool,
    /// Its areas, if it is not in the arena.
    areas: Vec<Area>,
    /// Data change together with code: nobody may be inside when it is taken back.
    exclusive: bool,
}

/// Live ranges of a bundle's memory.
struct NewCode {
    /// All of it.
    all: Vec<Range<u64>>,
    /// The code in it.
    code: Vec<Code>,
}

/// How a stop ended.
enum Switched {
    /// Not the moment: why. Nothing was written.
    Busy(String),
    /// The jumps are gone. Whether nothing can reach the memory; that of the arena is then given back.
    Done { free: bool },
    /// The jumps are gone, and threads are inside of the new code.
    Open,
}

/// Writes into a document who has gone on in the old code again.
fn moved_back(document: &mut Document, id: &str, moves: &[Move]) {
    for record in document.bundles.iter_mut().filter(|record| record.info.id == id) {
        record.info.moved = moves.iter().map(Move::info).collect();
    }
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
        if !record.info.state.is_in_effect() {
            return Err(UpdateError::NotApplied { name, state: record.info.state.word() });
        }
        // What an earlier service has left open may have copies that are not in line.
        for left in self.left_open_of(&id) {
            self.take_over_one(&left)?;
        }
        let bundle = self.bundle(&id)?;
        let action = times.measure("admit", || self.undoing(&bundle, &record))?;

        let mut attempt = 0;
        let free = loop {
            attempt += 1;
            let back = self.way_back(&action, &name, &bundle, &record)?;
            let switched = match back {
                Ok(back) => self.switch(&action, &back, "redirect", &mut times)?,
                Err(busy) => Switched::Busy(busy),
            };
            match switched {
                Switched::Done { free } => break free,
                Switched::Open => {
                    times.add("total", start.elapsed());
                    self.update_record(&id, |info| info.times_us = times.0);
                    self.journal.finish(&self.document)?;
                    return self.show(&id);
                }
                Switched::Busy(who) if attempt >= self.patience.attempts => {
                    return Err(UpdateError::Busy { who, attempts: attempt });
                }
                Switched::Busy(_) => std::thread::sleep(self.patience.wait),
            }
            if self.look()? {
                return Err(UpdateError::OtherBoot);
            }
        };
        self.take_away(&action, free, times, start)
    }

    /// The end of an undo whose last thread has left the new code.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub(super) fn finish_undo(&mut self, id: &str) -> Result<(), UpdateError> {
        let start = Instant::now();
        let Some(record) = self.document.bundles.iter().find(|record| record.info.id == id).cloned() else {
            return Ok(());
        };
        let bundle = self.bundle(id)?;
        let action = self.undoing(&bundle, &record)?;
        self.document = self.removed(&action, false);
        self.journal.finish(&self.document)?;
        let times = Times(record.info.times_us);
        self.take_away(&action, false, times, start).map(drop)
    }

    fn undoing(&mut self, bundle: &Bundle, record: &Record) -> Result<Undoing, UpdateError> {
        let id = record.info.id.clone();
        let (kernel, boot) = self.same_boot(bundle)?;
        let reclaimable = bundle.parts().all(plan::only_stacks_can_refer);
        // A bundle of this name in the arena was not prepared, even if an earlier life of it left an area behind.
        let area = self.area_of(&id).filter(|area| record.info.module.as_ref() == Some(&area.name));
        let of_part = |known: &&Area| record.parts.iter().any(|part| part.area != 0 && part.area == known.base);
        let areas = area.into_iter().chain(self.document.areas.iter().filter(of_part).cloned()).collect();
        let exclusive = bundle.manifest.update_type == UpdateType::Type2;
        Ok(Undoing { kernel, boot, id, reclaimable, areas, exclusive })
    }

    /// Gives the memory back, if nothing can reach it; `free` when that is done in the arena.
    fn take_away(
        &mut self,
        action: &Undoing,
        free: bool,
        mut times: Times,
        start: Instant,
    ) -> Result<BundleInfo, UpdateError> {
        let kept = if free { Ok(None) } else { self.reclaim(action, &mut times) };
        let kept = kept.and_then(|kept| match kept {
            None => self.give_back(action, &mut times).map(|()| None),
            kept => Ok(kept),
        });
        times.add("total", start.elapsed());
        self.update_record(&action.id, |info| {
            info.times_us = times.0;
            match &kept {
                Ok(None) => (info.kept_pages, info.reason) = (0, None),
                Ok(Some(reason)) => info.reason = Some((*reason).to_owned()),
                Err(error) => info.reason = Some(format!("kept-{}", error.problem().reason)),
            }
        });
        // A guest left half changed is an error even though the jumps are gone, and the journal keeps what is to be taken back; pages
        // that stay are not.
        match kept {
            Err(error) if error.is_stuck() || self.is_half_done() => Err(error),
            _ => {
                self.journal.finish(&self.document)?;
                self.show(&action.id)
            }
        }
    }

    /// Whether the guest may hold what an action has written that did not come to its end.
    fn is_half_done(&self) -> bool {
        self.unsettled && !matches!(self.journal.half_done(), Ok(None))
    }

    /// The area of a bundle, registered in the guest.
    pub(super) fn area_of(&self, id: &str) -> Option<Area> {
        self.document.areas.iter().rev().find(|area| area.bundle == id && area.module != 0).cloned()
    }

    /// Has the guest take back the areas that nothing can reach any more.
    fn give_back(&mut self, action: &Undoing, times: &mut Times) -> Result<(), UpdateError> {
        let mut released = Ok(());
        for area in &action.areas {
            let now = self.context(&area.bundle).and_then(|context| self.release(&context, area, times));
            if now.is_err() {
                self.update_record(&action.id, |info| info.kept_pages += area.pages());
            }
            released = released.and(now);
        }
        released
    }

    /// Gives the memory back once it is certain that nothing can reach it; else says why it is kept.
    fn reclaim(&mut self, action: &Undoing, times: &mut Times) -> Result<Option<&'static str>, UpdateError> {
        if !action.reclaimable {
            return Ok(Some(ADDRESS_TAKEN));
        }
        for attempt in 1..=self.patience.attempts {
            if attempt > 1 {
                std::thread::sleep(self.patience.wait);
            }
            if let Switched::Done { free: true } = self.switch(action, &WayBack::default(), "reclaim", times)? {
                return Ok(None);
            }
        }
        Ok(Some(IN_USE))
    }

    /// Stops the guest, takes jumps and data back, and finds out whether something can still reach the memory; that of the
    /// arena goes in the same moment. The document then says what holds.
    fn switch(
        &mut self,
        action: &Undoing,
        back: &WayBack,
        phase: &str,
        times: &mut Times,
    ) -> Result<Switched, UpdateError> {
        let in_arena = action.reclaimable && action.areas.is_empty();
        let memory = if in_arena { Some(plan::reclaim(&self.engine, &self.document.arena, &action.id)?) } else { None };
        let (kept_after, open_after) = (self.removed(action, false), self.open_undo(action));
        let mut free_after = self.removed(action, true);
        if let Some(plan) = &memory {
            free_after.arena = plan.arena.clone();
        }
        let (owner_paused, direct_map) = (self.engine.is_paused()?, action.kernel.direct_map(&self.engine)?);
        let planned = |free: bool, frames: &Frames, changes: &Changes| {
            let threads = &frames.inside;
            let memory = memory.iter().flat_map(|plan| &plan.writes).filter(|_| free);
            let after = match (free, threads.as_slice()) {
                (true, _) => &free_after,
                (_, []) => &kept_after,
                _ => &open_after,
            };
            let mut after = after.clone();
            if back.leads_back {
                moved_back(&mut after, &action.id, &frames.moves);
            }
            if !threads.is_empty() {
                after.opens.push(Open::new(&action.id, true, back.parts(direct_map), threads.clone()).record());
            }
            // What is in a module may go away with it as soon as the guest runs, and data change.
            let mapped = back.mapped.iter().chain(&changes.mapped);
            Action {
                sequence: after.sequence,
                boot: action.boot.clone(),
                bundle: action.id.clone(),
                owner_paused,
                writes: back.writes.iter().chain(changes.writes()).chain(memory).cloned().collect(),
                moving: mapped.clone().map(|&(_, pa)| pa).chain(changes.writes().map(|write| write.pa)).collect(),
                list: None,
                mapped: mapped.copied().collect(),
                after,
            }
        };
        let expected = back.changes(&self.engine)?;
        self.journal.begin(&planned(true, &Frames::default(), &expected), &self.document)?;
        let ranges = self.new_code(action, back);
        let mut unwinder = if action.exclusive { self.unwinder(&action.kernel)? } else { None };
        let (journal, resets, before, opens) = (&self.journal, self.resets, &self.document, &self.opens);
        let mut moves = Vec::new();
        let outcome = paused(&mut self.engine, |engine| {
            let check = times.measure("check", || {
                if engine.resets() != resets {
                    return Ok(Err("the guest was reset".to_owned()));
                }
                if let Some(busy) = quiet::patching(engine, &action.kernel)? {
                    return Ok(Err(busy));
                }
                let places = places(&action.kernel, &back.writes, &back.mapped);
                match probes::registered(engine, &action.kernel) {
                    Ok(probes) if probes::first_in(&probes, &places).is_none() => {}
                    Ok(_) => return Ok(Err("the guest has registered a probe in the code in question".to_owned())),
                    Err(error) => return Ok(Err(error.to_string())),
                }
                if !quiet::are_mapped(engine, &action.kernel, &back.mapped)? || !are_listed(engine, action, back)? {
                    return Ok(Err("a module in question is being removed".to_owned()));
                }
                if !transaction::unchanged(engine, &back.writes)? {
                    return Ok(Err("the guest changed the code in question".to_owned()));
                }
                let mut frames = Frames::default();
                if action.exclusive && back.leads_back {
                    frames = match open::survey(engine, &action.kernel, unwinder.as_mut(), opens, &ranges.code)? {
                        Survey::Frames(frames) if back.can_begin(engine, &frames) => frames,
                        Survey::Frames(frames) => return Ok(Err(frames.in_the_way(engine))),
                        Survey::Unclear(who) => return Ok(Err(who)),
                    };
                }
                // The jumps do not wait for the memory.
                let memory = memory.iter().flat_map(|plan| &plan.writes).cloned().collect::<Vec<_>>();
                let free = frames.are_none()
                    && action.reclaimable
                    && transaction::unchanged(engine, &memory).is_ok_and(|unchanged| unchanged)
                    && quiet::nobody_in(engine, &action.kernel, &ranges.all).is_ok_and(|who| who.is_none())
                    && opens.returning_into(&ranges.all).is_none();
                Ok::<_, UpdateError>(Ok((free, frames)))
            })?;
            let (is_free, frames) = match check {
                Err(busy) => return Ok((Switched::Busy(busy), false)),
                Ok(found) => found,
            };
            let count = frames.inside.len() as u32;
            let mut may = || back.hooks(|hooks, kernel| hooks.about_update(engine, kernel, HookKind::UndoPre, count));
            match times.measure("hooks", &mut may) {
                Err(error @ UpdateError::NoProcessor { .. }) => return Ok((Switched::Busy(error.to_string()), false)),
                other => other?,
            }
            let Some(mut returns) = opens.returns(engine, &action.id)? else {
                return Ok((Switched::Busy("a thread is just leaving the old code".to_owned()), false));
            };
            returns.extend(frames.inside.iter().filter_map(|thread| back.divert(thread)));
            returns.extend(frames.moves.iter().map(Move::write));
            let changes = Changes { returns, ..back.changes(engine)? };
            let planned = planned(is_free, &frames, &changes);
            if back.leads_back && (!is_free || changes != expected) {
                journal.begin(&planned, before)?;
            }
            if !planned.writes.is_empty() {
                journal.committing()?;
                let written = times.measure(phase, || write_all(engine, &planned.writes));
                written.map_err(|error| errors::not_written(journal, error))?;
            }
            let mut run = || {
                back.hooks(|hooks, kernel| hooks.about_data(engine, kernel, HookKind::SyncToOld))?;
                if count == 0 {
                    back.hooks(|hooks, kernel| hooks.about_update(engine, kernel, HookKind::UndoPost, 0))?;
                }
                Ok(())
            };
            if let Err(error) = times.measure("hooks", &mut run) {
                return Err(errors::taken_back(journal, error, transaction::take_back(engine, &planned.writes)));
            }
            moves = frames.moves;
            if back.leads_back {
                let open = (count != 0).then(|| Open::new(&action.id, true, back.parts(direct_map), frames.inside));
                if let Err(error) = times.measure("protect", || opens.replace(engine, &action.id, open)) {
                    return Err(errors::taken_back(journal, error, transaction::take_back(engine, &planned.writes)));
                }
            }
            if count != 0 {
                return Ok((Switched::Open, true));
            }
            Ok::<_, UpdateError>((Switched::Done { free: is_free }, !planned.writes.is_empty()))
        });
        self.unwinder = unwinder.or(self.unwinder.take());
        self.unsettled = true;
        // On error the guest stands still: the action stays in the journal.
        let (result, time) = outcome?;
        times.paused(time);
        let written = matches!(result, Ok((_, true)));
        if !written && !result.as_ref().is_err_and(UpdateError::is_stuck) {
            self.journal.forget_action()?;
        }
        self.unsettled = result.as_ref().is_err_and(UpdateError::is_stuck);
        let (switched, _) = result?;
        let after = match switched {
            Switched::Done { free: true } => Some(free_after),
            Switched::Done { free: false } => Some(kept_after).filter(|_| back.leads_back),
            Switched::Open => {
                let mut after = open_after;
                let opens = self.opens.lock();
                let ours = opens.iter().filter(|open| parts::bundle_of(&open.id) == action.id);
                after.opens.extend(ours.map(Open::record));
                Some(after)
            }
            Switched::Busy(_) => None,
        };
        if let Some(mut after) = after {
            if back.leads_back {
                moved_back(&mut after, &action.id, &moves);
            }
            self.document = after;
            self.journal.finish(&self.document)?;
        }
        Ok(switched)
    }

    /// Where the new code and data are.
    fn new_code(&self, action: &Undoing, back: &WayBack) -> NewCode {
        let arena = &self.document.arena;
        let (mut all, mut code) = (Vec::new(), back.code());
        // Of what is not in module memory, or of a module that is gone, nobody can be seen leaving.
        let named = |range| Code::unnamed(range, usize::MAX);
        for known in arena.allocations.iter().filter(|known| known.bundle == action.id) {
            all.extend(arena::ranges(arena, known));
            code.extend(arena::code(arena, known).into_iter().map(named));
        }
        for area in &action.areas {
            all.push(area.range());
            code.push(named(area.base..area.base + area.parts.text));
        }
        NewCode { all, code }
    }

    /// The document while threads are inside of the new code: memory and data are in use.
    fn open_undo(&self, action: &Undoing) -> Document {
        let mut after = self.document.clone();
        after.sequence += 1;
        for record in after.bundles.iter_mut().filter(|record| record.info.id == action.id) {
            record.info.state = BundleState::Undoing;
        }
        after.opens.retain(|open| parts::bundle_of(&open.id) != action.id);
        after
    }

    /// The document once the jumps are gone. `free`: nothing can reach the memory.
    fn removed(&self, action: &Undoing, free: bool) -> Document {
        let mut after = self.document.clone();
        after.sequence += 1;
        after.opens.retain(|open| parts::bundle_of(&open.id) != action.id);
        let mut pages = 0;
        match action.areas.as_slice() {
            areas @ [_, ..] => {
                let ours = |known: &&mut Area| areas.iter().any(|area| known.base == area.base);
                for known in after.areas.iter_mut().filter(ours) {
                    known.kept = !free;
                    pages += known.pages();
                }
            }
            [] => {
                for allocation in after.arena.allocations.iter_mut().filter(|known| known.bundle == action.id) {
                    allocation.kept = !free;
                    pages += allocation.pages();
                }
            }
        }
        let reason = if action.reclaimable { IN_USE } else { ADDRESS_TAKEN };
        for record in after.bundles.iter_mut().filter(|record| record.info.id == action.id) {
            record.info.state = BundleState::Removed;
            record.info.kept_pages = if free { 0 } else { pages };
            record.info.reason = (!free).then(|| reason.to_owned());
            for module in &mut record.info.modules {
                (module.state, module.reason) = (ModuleState::Removed, None);
            }
            for part in &mut record.parts {
                *part = PartRecord { left: std::mem::take(&mut part.left), ..PartRecord::default() };
            }
        }
        after
    }

    /// The bundle, from memory or from the journal's folder.
    pub(super) fn bundle(&mut self, id: &str) -> Result<Bundle, UpdateError> {
        let whole = parts::bundle_of(id);
        let bundle = match self.bundles.get(whole) {
            Some(bundle) => bundle.clone(),
            None => {
                let (bundle, found) = errors::read_bundle(&self.journal.load_bundle(whole)?)?;
                if found != whole {
                    return Err(UpdateError::Bundle(format!("the journal's copy of {whole} is {found}")));
                }
                self.bundles.insert(found, bundle.clone());
                bundle
            }
        };
        parts::find(bundle, id).ok_or_else(|| UpdateError::Bundle(format!("{id} is no part of it")))
    }

    /// Locates the kernel and proves that it is the boot that the journal is about.
    pub(super) fn same_boot(&mut self, bundle: &Bundle) -> Result<(Kernel, Boot), UpdateError> {
        let kernel = identity::find(&mut self.engine, &bundle.kernel, &bundle.profile)?;
        let boot =
            Boot { build_id: bundle.kernel.build_id.clone(), slide: kernel.slide(), image_delta: kernel.image_delta() };
        if self.document.boot.as_ref() != Some(&boot) {
            return Err(UpdateError::OtherBoot);
        }
        Ok((kernel, boot))
    }

    pub(super) fn update_record(&mut self, id: &str, change: impl FnOnce(&mut BundleInfo)) {
        if let Some(record) = self.document.bundles.iter_mut().find(|record| record.info.id == id) {
            change(&mut record.info);
        }
    }
}
