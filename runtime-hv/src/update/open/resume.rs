//! Open updates across the end of a service.
//!
//! Comes in: a service that ends while threads are inside, or one that begins and finds such an update in the journal. Decided:
//! who is inside by now, and whether the copies of data are still in line. Goes out: threads that return as if nobody had waited
//! for them; or an open update that is attended to again.
//!
//! Meanwhile new calls run the new code, threads inside go on in the old code and leave it by themselves, and each uses its own
//! copy of the data. If a copy was written, the new one counts when the update is taken over.

use super::{Code, Open, Survey, survey};
use crate::engine::{Engine, Trapped, Va};
use crate::guest::arena::Write;
use crate::journal::{Action, OpenRecord};
use crate::protocol::OpenInfo;
use crate::update::area::Area;
use crate::update::data::{self, Datum};
use crate::update::hooks::Hooks;
use crate::update::{Times, UpdateError, Updater, admit, errors, transaction};

/// What is said of data that were written while nobody attended.
const APART: &str = "while nobody attended, a copy of changed data was written; what the new copy held counts";

/// What an update that is taken over consists of.
struct Left {
    open: Open,
    code: Vec<Code>,
}

impl<E: Engine> Updater<E> {
    /// Whether there are copies of data that have to be kept in line.
    #[must_use]
    pub fn has_copies(&self) -> bool {
        self.opens.lock().iter().any(|open| !open.data.is_empty())
    }

    /// Attends no longer to open updates: threads inside return as if nobody had waited for them. The journal keeps the updates.
    ///
    /// # Errors
    /// [`UpdateError::Busy`] while a thread is just leaving; then everything is as before.
    pub fn leave_open(&mut self) -> Result<(), UpdateError> {
        let ids: Vec<String> = self.opens.lock().iter().map(|open| open.id.clone()).collect();
        let Some(first) = ids.first().cloned() else { return Ok(()) };
        let opens = self.opens.clone();
        for _ in 0..self.patience.attempts {
            let left = self.stop(&first, &mut Times::default(), |engine| {
                let mut writes = Vec::new();
                for id in &ids {
                    let Some(returns) = opens.returns(engine, id)? else { return Ok(false) };
                    writes.extend(returns);
                }
                transaction::write_all(engine, &writes)?;
                for id in &ids {
                    opens.end(engine, id)?;
                }
                if let Some(watch) = engine.watch() {
                    watch.attend(None, &[])?;
                }
                Ok(true)
            })?;
            if left {
                return Ok(());
            }
            std::thread::sleep(self.patience.wait);
        }
        let who = "a thread is just leaving the old code".to_owned();
        Err(UpdateError::Busy { who, attempts: self.patience.attempts })
    }

    /// Attends again to updates that an earlier service has left open. What cannot be done now is tried again.
    pub(in crate::update) fn take_over(&mut self) {
        let attended: Vec<String> = self.opens.lock().iter().map(|open| open.id.clone()).collect();
        let left = self.document.opens.iter().filter(|open| !attended.contains(&open.bundle));
        for record in left.cloned().collect::<Vec<_>>() {
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
                self.update_record(&record.bundle, |shown| shown.open = Some(info));
            }
        }
    }

    fn take_over_one(&mut self, record: &OpenRecord) -> Result<(), UpdateError> {
        let id = record.bundle.as_str();
        let bundle = self.bundle(id)?;
        let (kernel, boot) = self.same_boot(&bundle)?;
        let area = self.area_of(id).ok_or_else(|| UpdateError::Bundle("its memory in the guest is gone".to_owned()))?;
        let Left { open, code } = self.left(record, kernel.clone(), &bundle, &area)?;
        let mut unwinder = self.unwinder(&kernel)?;
        let (mut after, owner_paused) = (self.document.clone(), self.engine.is_paused()?);
        after.sequence += 1;
        let action = |writes: &[Write], after: &crate::journal::Document| Action {
            sequence: after.sequence,
            boot: boot.clone(),
            bundle: id.to_owned(),
            owner_paused,
            moving: writes.iter().map(|write| write.pa).collect(),
            writes: writes.to_vec(),
            list: None,
            mapped: Vec::new(),
            after: after.clone(),
        };
        self.journal.begin(&action(&[], &after), &self.document)?;
        let (journal, before, opens, resets) = (&self.journal, &self.document, &self.opens, self.resets);
        let (done, _) = transaction::paused(&mut self.engine, |engine| {
            if engine.resets() != resets {
                return Err(UpdateError::OtherBoot);
            }
            if engine.watch().is_none() {
                return Err(UpdateError::Unsupported("this engine does not see threads leave".to_owned()));
            }
            let threads = match survey(engine, &kernel, unwinder.as_mut(), opens, &code)? {
                Survey::Frames(threads) => threads,
                Survey::Unclear(who) => return Err(UpdateError::Busy { who, attempts: 1 }),
            };
            let mut writes: Vec<Write> = threads.iter().map(|thread| thread.divert(record.trampoline)).collect();
            let apart: Vec<Datum> = data::apart(engine, &open.data)?;
            if !threads.is_empty() {
                writes.extend(data::to_old(engine, &apart, &[])?.copies);
            }
            for known in after.opens.iter_mut().filter(|known| known.bundle == id) {
                known.threads.clone_from(&threads);
            }
            journal.begin(&action(&writes, &after), before)?;
            journal.committing()?;
            transaction::write_all(engine, &writes)?;
            let mut open = Open { threads, ..open };
            open.counts.frames = open.threads.len() as u64;
            if !apart.is_empty() {
                open.counts.lost += 1;
                open.trouble = Some(APART.to_owned());
            }
            let begun = opens.begin(engine, open);
            begun.map_err(|error| errors::with_undo(error, transaction::take_back(engine, &writes)))
        })?;
        self.unwinder = unwinder.or(self.unwinder.take());
        self.unsettled = done.as_ref().is_err_and(UpdateError::is_stuck);
        if done.is_ok() {
            self.document = after;
            return Ok(self.journal.finish(&self.document)?);
        }
        if !self.unsettled {
            self.journal.forget_action()?;
        }
        done
    }

    /// What the journal and the bundle say of an update.
    fn left(
        &self,
        record: &OpenRecord,
        kernel: crate::guest::Kernel,
        bundle: &lpk_format::Bundle,
        area: &Area,
    ) -> Result<Left, UpdateError> {
        let addresses = area.parts.addresses(area.base);
        let data = data::locate(&self.engine, &kernel, bundle, &addresses)?;
        let data: Vec<Datum> = data.into_iter().filter(Datum::moves).collect();
        let direct_map = kernel.direct_map(&self.engine)?;
        let traps: Vec<Trapped> = data.iter().flat_map(|datum| datum.traps(direct_map)).collect();
        let hooks = Hooks::prepare(&self.engine, &kernel, bundle, area)?;
        let live = |(range, function, old_address): (std::ops::Range<u64>, String, u64)| Code {
            range: kernel.live(range.start).0..kernel.live(range.end).0,
            function,
            old_address,
        };
        let code = admit::old_code(bundle).into_iter().map(live).collect();
        let open = Open {
            id: record.bundle.clone(),
            data,
            traps,
            hooks,
            trampoline: Va(record.trampoline),
            threads: Vec::new(),
            since: std::time::Instant::now(),
            counts: super::Counts::default(),
            trouble: None,
            kernel,
        };
        Ok(Left { open, code })
    }
}
