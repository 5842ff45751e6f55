//! Modules that come and go while a bundle is in effect.
//!
//! Comes in: the document and, every moment, the guest's list of modules, read while the guest runs. Decided: which part's
//! module is there now and was not, or was there and is gone; a module that went away and came back in between is a new one,
//! whatever its address, because it has the old code again. Goes out: parts applied or waiting, and the memory of those
//! whose module is gone.
//!
//! A list that changes while it is read may show nonsense: then nothing is decided, and the next look tells. Whatever is done
//! is checked again with all processors stopped, as for any bundle.
//!
//! # What becomes of new code when its module goes
//! The guest's own rules hold: a module is removed when nothing calls it any more, and its new code is called by what would
//! have called the old. So the jumps go with the module's memory, and the area of the new code is given back as soon as
//! no stack refers to it.

use super::area::Area;
use super::parts::{self, Goal};
use super::sites::SiteError;
use super::transaction::paused;
use super::{Times, UpdateError, Updater, quiet};
use crate::engine::{Engine, Pa};
use crate::guest::Kernel;
use crate::guest::modules::{self, Entry};
use crate::journal::{Boot, Jump, PartRecord, Record};
use crate::protocol::{ModuleInfo, ModuleState};
use std::time::Instant;

/// A module that was refused is looked at again at every so-many-th look: another one may have come to its place.
const AGAIN: u64 = 10;

/// The kernel as found once, for looks that do not stop the guest.
#[derive(Debug)]
pub(super) struct Seen {
    boot: Boot,
    resets: u64,
    kernel: Kernel,
}

/// What a look has found about a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// Its module is there.
    Come,
    /// Its module is gone, or is another one now.
    Gone,
}

impl<E: Engine> Updater<E> {
    /// Whether a bundle in effect has to do with modules, or something is left of one.
    #[must_use]
    pub fn has_modules(&self) -> bool {
        let applied = |record: &Record| record.info.state.is_in_use() && !record.info.modules.is_empty();
        let left = |record: &Record| record.parts.iter().any(|part| !part.left.is_empty());
        self.document.bundles.iter().any(|record| applied(record) || left(record))
    }

    /// Looks at the guest's modules, and does what is due. What cannot be done now is tried again at the next look.
    pub fn watch(&mut self) {
        if !self.has_modules() || self.unsettled || self.is_waiting() || self.engine.is_paused().unwrap_or(true) {
            return;
        }
        // A guest that cannot be looked at now may be restarting, or changing its list.
        let Ok(news) = self.news() else { return };
        for (id, index, news) in news {
            let done = match news {
                News::Come => self.come(&id, index),
                News::Gone => self.gone(&id, index),
            };
            if done.is_err() {
                return;
            }
        }
        while let Some(area) = self.stale() {
            if !self.give_up(&area).unwrap_or(false) {
                return;
            }
        }
    }

    /// What has changed since the last look.
    fn news(&mut self) -> Result<Vec<(String, usize, News)>, UpdateError> {
        let Some(kernel) = self.seen()? else { return Ok(Vec::new()) };
        self.looks += 1;
        let listed = modules::all(&self.engine, &kernel)?;
        let mut news = Vec::new();
        for record in self.document.bundles.iter().filter(|record| record.info.state.is_in_use()) {
            let is_undone = !record.info.state.is_in_effect();
            for (index, (info, part)) in record.info.modules.iter().zip(&record.parts).enumerate() {
                let now = listed.iter().find(|entry| entry.name == info.name);
                // Its jumps are gone, and its data in use, until the last thread has left the new code.
                let is_there = now.is_some_and(|entry| entry.at.0 == part.at);
                if is_undone && (is_there || info.state != ModuleState::Applied) {
                    continue;
                }
                if let Some(what) = self.look_at(&kernel, info.state, part, now)? {
                    news.push((record.info.id.clone(), index, what));
                }
            }
        }
        Ok(news)
    }

    fn look_at(
        &self,
        kernel: &Kernel,
        state: ModuleState,
        part: &PartRecord,
        now: Option<&Entry>,
    ) -> Result<Option<News>, UpdateError> {
        Ok(match (state, now) {
            (ModuleState::Waiting, Some(entry)) if entry.live => Some(News::Come),
            (ModuleState::Refused, None) => Some(News::Gone),
            (ModuleState::Refused, Some(entry)) if entry.at.0 != part.at => Some(News::Gone),
            (ModuleState::Refused, Some(entry)) if entry.live && self.looks.is_multiple_of(AGAIN) => Some(News::Come),
            // While it is being removed its code may still run, through our jumps.
            (ModuleState::Applied, Some(entry)) if !entry.live && entry.at.0 == part.at => None,
            (ModuleState::Applied, Some(entry)) if entry.at.0 == part.at => {
                (!self.has_changes(kernel, part)?).then_some(News::Gone)
            }
            (ModuleState::Applied, _) => Some(News::Gone),
            _ => None,
        })
    }

    /// Whether some jump of a module is where it was written; one that somebody else has changed tells nothing. Where there are none,
    /// whether its data are where they were, for what they hold is the guest's affair.
    fn has_changes(&self, kernel: &Kernel, part: &PartRecord) -> Result<bool, UpdateError> {
        if part.jumps.is_empty() {
            let places: Vec<(u64, u64)> = part.data.iter().filter_map(|edit| Some((edit.va?, edit.write.pa))).collect();
            return quiet::are_mapped(&self.engine, kernel, &places);
        }
        for Jump { va, write } in &part.jumps {
            let mut live = vec![0; write.new.len()];
            self.engine.read(Pa(write.pa), &mut live)?;
            if quiet::are_mapped(&self.engine, kernel, &[(*va, write.pa)])? && live != write.old {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The kernel of this boot; `None` when nothing is known of it.
    fn seen(&mut self) -> Result<Option<Kernel>, UpdateError> {
        let Some(boot) = self.document.boot.clone() else { return Ok(None) };
        if let Some(seen) = self.seen.as_ref().filter(|seen| seen.boot == boot && seen.resets == self.engine.resets()) {
            return Ok(Some(seen.kernel.clone()));
        }
        let Some(id) = self.document.bundles.last().map(|record| record.info.id.clone()) else { return Ok(None) };
        let bundle = self.bundle(&id)?;
        let (kernel, boot) = self.same_boot(&bundle)?;
        self.seen = Some(Seen { boot, resets: self.engine.resets(), kernel: kernel.clone() });
        Ok(Some(kernel))
    }

    /// Applies a part to its module, which has been loaded; or says why it is not the one.
    fn come(&mut self, id: &str, index: usize) -> Result<(), UpdateError> {
        let bundle = self.bundle(id)?;
        let record = self.document.bundles.iter().find(|record| record.info.id == id);
        let stay = record.is_some_and(|record| record.info.stay);
        let goal = Goal { bundle: &bundle, id, file: None, only: Some(index), in_area: true, stay };
        let error = match self.reach(&goal, &mut Times::default(), Instant::now()) {
            Ok(()) | Err(UpdateError::ModuleAbsent { .. }) => return Ok(()),
            Err(error) => error,
        };
        let reason = Some(error.problem().reason);
        let of_module = matches!(
            error,
            UpdateError::Site(SiteError::Differs { .. })
                | UpdateError::EntryInUse { .. }
                | UpdateError::Redirected { .. }
                | UpdateError::ModuleBuild { .. }
                | UpdateError::Link(_)
        );
        if of_module {
            let at = self.place_of(id, index)?;
            let known =
                self.info(id, index).is_some_and(|info| info.state == ModuleState::Refused && info.reason == reason);
            if known && self.part(id, index).is_some_and(|part| part.at == at) {
                return Ok(());
            }
            return self.write_down(
                id,
                index,
                ModuleState::Refused,
                reason,
                PartRecord { at, ..PartRecord::default() },
            );
        }
        // What is wrong with the moment passes, and may be said meanwhile.
        let shown = self.info(id, index).and_then(|info| info.reason.clone());
        if !self.unsettled && shown != reason {
            self.write_down(id, index, ModuleState::Waiting, reason, PartRecord::default())?;
        }
        Err(error)
    }

    fn info(&self, id: &str, index: usize) -> Option<&ModuleInfo> {
        self.document.bundles.iter().find(|record| record.info.id == id)?.info.modules.get(index)
    }

    fn part(&self, id: &str, index: usize) -> Option<&PartRecord> {
        self.document.bundles.iter().find(|record| record.info.id == id)?.parts.get(index)
    }

    /// The `struct module` of a part's module; 0 when the guest does not have it.
    fn place_of(&mut self, id: &str, index: usize) -> Result<u64, UpdateError> {
        let Some(kernel) = self.seen()? else { return Ok(0) };
        let name = self.info(id, index).map(|info| info.name.clone());
        let listed = modules::all(&self.engine, &kernel)?;
        Ok(listed.iter().find(|entry| Some(&entry.name) == name.as_ref()).map_or(0, |entry| entry.at.0))
    }

    /// A part waits again. Its area is given up when nobody is inside: [`Self::stale`].
    fn gone(&mut self, id: &str, index: usize) -> Result<(), UpdateError> {
        let part = self.info(id, index).map(|info| parts::part_id(id, &info.name)).unwrap_or_default();
        if self.opens.has_part(&part) {
            let opens = &self.opens;
            paused(&mut self.engine, |engine| opens.module_gone(engine, &part))?.0?;
            for known in &mut self.document.opens {
                if let Some(open) = self.opens.lock().iter().find(|open| open.id == known.id) {
                    *known = open.record();
                }
            }
        }
        let area = self.part(id, index).map_or(0, |part| part.area);
        let left: Vec<u64> = self.document.areas.iter().map(|known| known.base).filter(|&base| base == area).collect();
        let pages: u64 = self.document.areas.iter().filter(|known| known.base == area).map(Area::pages).sum();
        self.document.areas.iter_mut().filter(|known| known.base == area).for_each(|known| known.kept = true);
        for record in self.document.bundles.iter_mut().filter(|record| record.info.id == id) {
            record.info.kept_pages += pages;
        }
        self.write_down(id, index, ModuleState::Waiting, None, PartRecord { left, ..PartRecord::default() })
    }

    fn write_down(
        &mut self,
        id: &str,
        index: usize,
        state: ModuleState,
        reason: Option<String>,
        part: PartRecord,
    ) -> Result<(), UpdateError> {
        for record in self.document.bundles.iter_mut().filter(|record| record.info.id == id) {
            let Some(mut info) = record.info.modules.get(index).cloned() else { continue };
            (info.state, info.reason, info.module) = (state, reason.clone(), None);
            for function in &mut info.functions {
                (function.old_address, function.new_address) = (None, None);
            }
            for datum in &mut info.data {
                (datum.old_address, datum.new_address) = (None, None);
            }
            parts::set(record, index, info, part.clone());
        }
        self.document.sequence += 1;
        Ok(self.journal.finish(&self.document)?)
    }

    /// An area of a part whose module is gone.
    fn stale(&self) -> Option<Area> {
        let mut left = self.document.bundles.iter().flat_map(|record| &record.parts).flat_map(|part| &part.left);
        left.find_map(|base| self.document.areas.iter().find(|area| area.base == *base).cloned())
    }

    /// Has an area taken back by the guest if no stack refers to it. Says whether it is gone.
    fn give_up(&mut self, area: &Area) -> Result<bool, UpdateError> {
        let context = self.context(&area.bundle)?;
        let (inside, _) =
            paused(&mut self.engine, |engine| quiet::nobody_in(engine, &context.kernel, &[area.range()]))?;
        if inside?.is_some() || self.opens.returning_into(&[area.range()]).is_some() {
            return Ok(false);
        }
        match self.release(&context, area, &mut Times::default()) {
            // It stays, and is counted.
            Err(UpdateError::Declined { .. }) => {
                let parts = self.document.bundles.iter_mut().flat_map(|record| &mut record.parts);
                parts.for_each(|part| part.left.retain(|base| *base != area.base));
                self.journal.finish(&self.document)?;
            }
            other => other?,
        }
        Ok(self.document.areas.iter().all(|known| known.base != area.base))
    }
}
