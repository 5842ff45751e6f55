//! Open updates across the end of a service.
//!
//! Comes in: a service that ends while threads are inside, or one that begins and finds such an update in the journal. Decided:
//! who is inside by now, and whether the copies of data are still in line. Goes out: threads that return as if nobody had waited
//! for them; or an open update that is attended to again.
//!
//! Meanwhile new calls run the new code, threads inside go on in the old code and leave it by themselves, and each uses its own
//! copy of the data. What the copies held at the end is in the journal: the one that was written since counts when the update is taken
//! over; if both were, that of the version which new calls run, and that is said.

use super::{Code, Frames, Inside, Move, Open, OpenPart, Shared, Survey, Way, survey};
use crate::engine::{Engine, EngineError, Trapped, Va};
use crate::guest::arena::Write;
use crate::journal::{Action, OpenRecord};
use crate::protocol::OpenInfo;
use crate::update::area::REPORT_ROOM;
use crate::update::data::{self, Datum};
use crate::update::hooks::Hooks;
use crate::update::{Times, UpdateError, Updater, admit, errors, parts, transaction};
use std::collections::BTreeSet;

impl<E: Engine> Updater<E> {
    /// Whether there are copies of data that have to be kept in line.
    #[must_use]
    pub fn has_copies(&self) -> bool {
        self.opens.lock().iter().any(Open::has_copies)
    }

    /// Attends no longer to open updates: threads inside return as if nobody had waited for them. The journal keeps the updates.
    ///
    /// # Errors
    /// [`UpdateError::Busy`] while a thread is just leaving; then everything is as before. An error of [`Updater::look`] if what was begun
    /// before could not be settled.
    pub fn leave_open(&mut self) -> Result<(), UpdateError> {
        if self.unsettled {
            self.look()?;
        }
        let ids: Vec<String> = self.opens.lock().iter().map(|open| open.id.clone()).collect();
        let Some(first) = ids.first().map(|id| parts::bundle_of(id).to_owned()) else { return Ok(()) };
        let bundles: BTreeSet<&str> = ids.iter().map(|id| parts::bundle_of(id)).collect();
        let opens = self.opens.clone();
        for _ in 0..self.patience.attempts {
            let mut held = Vec::new();
            let left = self.stop(&first, &mut Times::default(), |engine| {
                let mut writes = Vec::new();
                for bundle in &bundles {
                    let Some(returns) = opens.returns(engine, bundle)? else { return Ok(false) };
                    writes.extend(returns);
                }
                let copies: Vec<Trapped> = opens.lock().iter().flat_map(Open::traps).collect();
                for copy in copies {
                    let mut bytes = vec![0; copy.length];
                    engine.read(copy.at, &mut bytes)?;
                    held.push((copy.at, bytes));
                }
                let before = opens.lock().clone();
                let left = opens.leave(engine, &ids).and_then(|()| Ok(transaction::write_all(engine, &writes)?));
                if let Err(error) = left {
                    return Err(errors::with_undo(error, opens.restore(engine, before)));
                }
                Ok(true)
            })?;
            if left {
                return Ok(self.journal.save_copies(&held)?);
            }
            std::thread::sleep(self.patience.wait);
        }
        let who = "a thread is just leaving the old code".to_owned();
        Err(UpdateError::Busy { who, attempts: self.patience.attempts })
    }

    /// Attends again to updates that an earlier service has left open. What cannot be done now is tried again.
    pub(in crate::update) fn take_over(&mut self) {
        for record in self.left_open() {
            if let Err(error) = self.take_over_one(&record) {
                let trouble = Some(format!("nobody attends to it yet: {error}"));
                let frames = record.threads.len() as u64;
                let info = OpenInfo {
                    ms: 0,
                    frames,
                    left: 0,
                    to_new: 0,
                    to_old: 0,
                    false_sharing: 0,
                    late: 0,
                    lost: 0,
                    trouble,
                };
                self.update_record(parts::bundle_of(&record.id), |shown| shown.open = Some(info));
            }
        }
    }

    /// Updates that an earlier service has left open, and that nobody attends to.
    fn left_open(&self) -> Vec<OpenRecord> {
        let opens = self.opens.lock();
        let attended = |id: &str| opens.iter().any(|open| open.id == id);
        self.document.opens.iter().filter(|open| !attended(&open.id)).cloned().collect()
    }

    /// Those of a bundle.
    pub(in crate::update) fn left_open_of(&self, bundle: &str) -> Vec<OpenRecord> {
        self.left_open().into_iter().filter(|open| parts::bundle_of(&open.id) == bundle).collect()
    }

    /// Attends again to one of them.
    ///
    /// # Errors
    /// [`UpdateError`]; nothing was changed.
    pub(in crate::update) fn take_over_one(&mut self, record: &OpenRecord) -> Result<(), UpdateError> {
        let id = record.id.as_str();
        let bundle = self.bundle(parts::bundle_of(id))?;
        let (kernel, boot) = self.same_boot(&bundle)?;
        let known = self.document.bundles.iter().find(|known| known.info.id == parts::bundle_of(id));
        let stay = known.is_some_and(|known| known.info.stay);
        let open = self.left(record, stay)?;
        let code: Vec<Code> = open.parts.iter().flat_map(|part| &part.code).cloned().collect();
        let mut unwinder = self.unwinder(&kernel)?;
        let (mut after, owner_paused) = (self.document.clone(), self.engine.is_paused()?);
        after.sequence += 1;
        let action = |writes: &[Write], after: &crate::journal::Document| Action {
            sequence: after.sequence,
            boot: boot.clone(),
            bundle: parts::bundle_of(id).to_owned(),
            owner_paused,
            moving: writes.iter().map(|write| write.pa).collect(),
            writes: writes.to_vec(),
            list: None,
            mapped: Vec::new(),
            after: after.clone(),
        };
        let held = self.journal.load_copies()?;
        self.journal.begin(&action(&[], &after), &self.document)?;
        let (journal, before, opens, resets) = (&self.journal, &self.document, &self.opens, self.resets);
        let outcome = transaction::paused(&mut self.engine, |engine| {
            if engine.resets() != resets {
                return Err(UpdateError::OtherBoot);
            }
            if engine.watch().is_none() {
                return Err(UpdateError::Unsupported("this engine does not see threads leave".to_owned()));
            }
            let Frames { inside: threads, moves } = match survey(engine, &kernel, unwinder.as_mut(), opens, &code)? {
                Survey::Frames(frames) => frames,
                Survey::Unclear(who) => return Err(UpdateError::Busy { who, attempts: 1 }),
            };
            let divert = |thread: &Inside| Some(thread.divert(open.parts.get(thread.part)?.trampoline.0));
            let mut writes: Vec<Write> =
                threads.iter().filter_map(divert).chain(moves.iter().map(Move::write)).collect();
            let mut lost = Vec::new();
            for part in &open.parts {
                let caught_up = data::catch_up(engine, &part.data, &held, record.undo)?;
                writes.extend(caught_up.writes);
                lost.extend(caught_up.lost);
            }
            for known in after.opens.iter_mut().filter(|known| known.id == id) {
                known.threads.clone_from(&threads);
            }
            let bundle = parts::bundle_of(id);
            for known in after.bundles.iter_mut().filter(|known| known.info.id == bundle) {
                known.info.add_moved(moves.iter().map(Move::info));
            }
            journal.begin(&action(&writes, &after), before)?;
            journal.committing()?;
            transaction::write_all(engine, &writes).map_err(|error| errors::not_written(journal, error))?;
            let mut open = Open { threads, ..open };
            open.counts.frames = open.threads.len() as u64;
            if !lost.is_empty() {
                open.counts.lost += lost.len() as u64;
                let names = lost.join(", ");
                open.trouble = Some(format!(
                    "{names}: written in both copies while nobody attended, or does not fit into the other one"
                ));
            }
            let begun = opens.begin(engine, open);
            begun.map_err(|error| errors::taken_back(journal, error, transaction::take_back(engine, &writes)))
        });
        self.unwinder = unwinder.or(self.unwinder.take());
        // A guest that could not be let go on may stand, written to: what the journal says is looked at first.
        self.unsettled = outcome.is_err();
        let (done, _) = outcome?;
        self.unsettled = done.as_ref().is_err_and(UpdateError::is_stuck);
        if done.is_ok() {
            self.document = after;
            self.journal.finish(&self.document)?;
            // Others may still be waiting for what it says.
            let is_last = self.left_open().is_empty();
            return if is_last { Ok(self.journal.forget_copies()?) } else { Ok(()) };
        }
        if !self.unsettled {
            self.journal.forget_action()?;
        }
        done
    }

    /// What the journal and the bundle say of an update: what of its code is left, and which way.
    fn left(&mut self, record: &OpenRecord, stay: bool) -> Result<Open, UpdateError> {
        let mut known = Vec::new();
        for (id, trampoline) in &record.parts {
            let bundle = self.bundle(id)?;
            let (kernel, _) = self.same_boot(&bundle)?;
            let kernel = match &bundle.module {
                Some(module) => match admit::with_module(&self.engine, kernel, module) {
                    // It is gone with its data, and nobody can be inside of its code.
                    Err(UpdateError::ModuleAbsent { .. } | UpdateError::ModuleBuild { .. }) => continue,
                    kernel => kernel?,
                },
                None => kernel,
            };
            let area = match self.area_of(id) {
                Some(area) => area,
                // The image has none of its own when only modules change.
                None if *trampoline == 0 => continue,
                None => return Err(UpdateError::Bundle("its memory in the guest is gone".to_owned())),
            };
            let addresses = area.parts.addresses(area.base);
            if bundle.module.is_some() && addresses.rodata.wrapping_sub(REPORT_ROOM) != *trampoline {
                // Another life of the module.
                continue;
            }
            let (part, direct_map) = (known.len(), kernel.direct_map(&self.engine)?);
            known.push(if record.undo {
                self.changed(id, &kernel, &bundle, Some(&area), &[], stay)?.open_part(part, direct_map)
            } else {
                let data = data::locate(&self.engine, &kernel, &bundle, &addresses)?;
                let way = Way { bundle: &bundle, kernel: &kernel, text: addresses.text, undo: false, stay };
                OpenPart {
                    id: id.clone(),
                    data: data.into_iter().filter(Datum::moves).collect(),
                    hooks: Hooks::prepare(&self.engine, &kernel, &bundle, &area)?,
                    code: super::code(part, &admit::old_code(&bundle), &way),
                    trampoline: Va(*trampoline),
                    direct_map,
                    kernel,
                }
            });
        }
        Ok(Open::new(&record.id, record.undo, known, Vec::new()))
    }
}

impl Shared {
    /// Attends to nothing any more; the guest is stopped.
    fn leave<E: Engine>(&self, engine: &mut E, ids: &[String]) -> Result<(), UpdateError> {
        for id in ids {
            self.end(engine, id)?;
        }
        Ok(engine.watch().map_or(Ok(()), |watch| watch.attend(None, &[]))?)
    }

    /// Attends to what was attended to before; the guest is stopped.
    fn restore<E: Engine>(&self, engine: &mut E, before: Vec<Open>) -> Result<(), EngineError> {
        let traps: Vec<Trapped> = before.iter().flat_map(Open::traps).collect();
        *self.lock() = before;
        let reports = self.reports();
        self.set_told(reports.clone());
        let Some(watch) = engine.watch() else { return Ok(()) };
        watch.attend(Some(self.attendant()), &reports)?;
        traps.iter().try_for_each(|trap| watch.trap(trap))
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::{EngineError, Pa, ReadMemory};
    use crate::update::data::{catch_up, test_datum};
    use std::collections::BTreeMap;

    const OLD: u64 = 0x5ffe;
    const NEW: u64 = 0x9010;

    struct Memory(BTreeMap<u64, u8>);

    impl ReadMemory for Memory {
        fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
            (from.0..).zip(into).for_each(|(at, byte)| *byte = self.0.get(&at).copied().unwrap_or(0));
            Ok(())
        }
    }

    fn memory(old: i32, new: i64) -> Memory {
        let old = (OLD..).zip(old.to_le_bytes());
        Memory(old.chain((NEW..).zip(new.to_le_bytes())).collect())
    }

    /// The number has 4 bytes and lies across the edge of a page; the new one has 8.
    #[test]
    fn the_copy_that_was_written_counts() {
        let datum = test_datum(OLD, 4, NEW, 8);
        let in_line = memory(5, 5);
        let mut held = BTreeMap::new();
        for trap in datum.traps(0) {
            let mut bytes = vec![0; trap.length];
            in_line.read(trap.at, &mut bytes).expect("memory");
            held.insert(trap.at, bytes);
        }
        assert_eq!(held.len(), 3);
        let data = [datum];
        let way = |undo, old, new, held: &BTreeMap<Pa, Vec<u8>>| {
            let caught_up = catch_up(&memory(old, new), &data, held, undo).expect("fits");
            let writes = caught_up.writes.iter().map(|write| (write.pa, write.new.clone())).collect::<Vec<_>>();
            (writes, caught_up.lost.len())
        };
        let caught_up = |old, new, held: &BTreeMap<Pa, Vec<u8>>| way(false, old, new, held);
        let to_old = |value: i32| vec![(OLD, value.to_le_bytes().to_vec())];
        let to_new = |value: i64| vec![(NEW, value.to_le_bytes().to_vec())];
        assert_eq!(caught_up(5, 5, &held), (vec![], 0));
        assert_eq!(caught_up(-7, 5, &held), (to_new(-7), 0));
        assert_eq!(caught_up(5, 6, &held), (to_old(6), 0));
        assert_eq!(caught_up(7, 6, &held), (to_old(6), 1));
        assert_eq!(caught_up(7, 7, &held), (vec![], 0));
        // Nothing is known of the time before.
        assert_eq!(caught_up(7, 5, &BTreeMap::new()), (to_old(5), 1));
        // What does not fit into the old copy stays where it is.
        assert_eq!(caught_up(5, 1 << 40, &held), (vec![], 1));
        // While it is taken back new calls run the old code: its copy counts more.
        assert_eq!(way(true, 5, 5, &held), (vec![], 0));
        assert_eq!(way(true, -7, 5, &held), (to_new(-7), 0));
        assert_eq!(way(true, 5, 6, &held), (to_old(6), 0));
        assert_eq!(way(true, 7, 6, &held), (to_new(7), 1));
        assert_eq!(way(true, 7, 5, &BTreeMap::new()), (to_new(7), 1));
        assert_eq!(way(true, 5, 1 << 40, &held), (vec![], 1));
        assert_eq!(way(true, 7, 1 << 40, &held), (to_new(7), 1));
    }
}
