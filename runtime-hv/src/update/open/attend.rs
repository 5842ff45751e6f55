//! What the guest does while an update is open.
//!
//! Comes in: writes to pages that hold a copy of a datum, and threads that return from old code. Decided: which copy was written,
//! and who has left. Goes out: the other copy, made from it; the thread's own way back. All processors stand meanwhile.

use super::{Code, Counts, Inside};
use crate::engine::{Attend, EngineError, Pa, Registers, Stopped, Trapped, Va, Vcpu, Written};
use crate::guest::Kernel;
use crate::journal::OpenRecord;
use crate::update::area::REPORT_ROOM;
use crate::update::data::{Datum, Direction};
use crate::update::hooks::Hooks;
use lpk_format::HookKind;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An update that threads are still inside.
#[derive(Debug, Clone)]
pub struct Open {
    /// Id of the bundle, or of the part of it that came into effect later.
    pub id: String,
    /// Whether it is being taken back: then the code that threads are inside of is the new one.
    pub undo: bool,
    /// What was switched in the same moment: it is over when nobody is inside of any part.
    pub parts: Vec<OpenPart>,
    /// Who is inside.
    pub threads: Vec<Inside>,
    /// Since when.
    pub since: Instant,
    /// What has happened.
    pub counts: Counts,
    /// What went wrong last, for people.
    pub trouble: Option<String>,
}

/// A part of an open update.
#[derive(Debug, Clone)]
pub struct OpenPart {
    /// Id of the part.
    pub id: String,
    /// The kernel, with the module that it is about.
    pub kernel: Kernel,
    /// Data with two copies.
    pub data: Vec<Datum>,
    /// The author's hooks.
    pub hooks: Option<Hooks>,
    /// Its code that is left.
    pub code: Vec<Code>,
    /// Where threads return to that are inside of its code.
    pub trampoline: Va,
    /// Where the kernel has all physical memory.
    pub direct_map: u64,
}

/// All open updates of a guest.
#[derive(Debug, Clone, Default)]
pub struct Shared {
    opens: Arc<Mutex<Vec<Open>>>,
    /// Threads that seemed to be gone, with their trampolines, and since when. Should one come after all, it finds its way.
    gone: Arc<Mutex<Vec<(Va, Inside, Instant)>>>,
    /// Where the engine was told that reports come from.
    told: Arc<Mutex<Vec<Va>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The updates; they do not change while this is held.
    pub fn lock(&self) -> MutexGuard<'_, Vec<Open>> {
        lock(&self.opens)
    }

    /// Return addresses that were taken from the stack of a task.
    #[must_use]
    pub fn originals(&self, task: u64) -> Vec<u64> {
        let opens = self.lock();
        let threads = opens.iter().flat_map(|open| &open.threads);
        threads.filter(|thread| thread.task == task).map(|thread| thread.original).collect()
    }

    /// Who will return into one of the ranges although no stack says so.
    #[must_use]
    pub fn returning_into(&self, ranges: &[Range<u64>]) -> Option<String> {
        let is_in = |at: u64| ranges.iter().any(|range| range.contains(&at));
        let gone = lock(&self.gone);
        let mut recent = gone.iter().filter(|(_, _, since)| since.elapsed() < GONE_FOR);
        if let Some((_, thread, _)) = recent.find(|(trampoline, ..)| is_in(trampoline.0)) {
            return Some(format!("task {} ({}) seems to be gone, and may still come", thread.pid, thread.comm));
        }
        drop(gone);
        let opens = self.lock();
        let thread = opens.iter().flat_map(|open| &open.threads).find(|thread| is_in(thread.original))?;
        Some(format!("task {} ({}) will return there from `{}`", thread.pid, thread.comm, thread.function))
    }

    /// Threads that seem to be gone. A task that is dying is on no list any more, and may be inside all the same.
    pub fn forget(&self, threads: impl IntoIterator<Item = (Va, Inside)>) {
        let now = Instant::now();
        lock(&self.gone).extend(threads.into_iter().map(|(trampoline, thread)| (trampoline, thread, now)));
    }

    /// Where threads may report from: trampolines of updates that are open, and of threads that seemed to be gone a moment ago.
    #[must_use]
    pub fn reports(&self) -> Vec<Va> {
        let open =
            self.lock().iter().flat_map(|open| &open.parts).map(|part| part.trampoline).collect::<BTreeSet<Va>>();
        let gone = lock(&self.gone);
        let recent = gone.iter().filter(|(_, _, since)| since.elapsed() < GONE_FOR);
        open.into_iter()
            .chain(recent.map(|(trampoline, ..)| *trampoline))
            .collect::<BTreeSet<Va>>()
            .into_iter()
            .collect()
    }

    /// Whether the engine expects reports that will not come.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        *lock(&self.told) != self.reports()
    }

    /// The engine was told where reports come from.
    pub fn set_told(&self, reports: Vec<Va>) {
        *lock(&self.told) = reports;
    }

    /// Forgets everything: it is about another boot.
    pub fn clear(&self) {
        self.lock().clear();
        lock(&self.gone).clear();
    }

    /// Who attends.
    #[must_use]
    pub fn attendant(&self) -> Box<Attendant> {
        Box::new(Attendant(self.clone()))
    }
}

/// So long a thread that is on no list any more may take to come out of old code.
const GONE_FOR: Duration = Duration::from_secs(10);

/// Attends to all open updates.
#[derive(Debug)]
pub struct Attendant(Shared);

impl Open {
    /// An update as it begins.
    #[must_use]
    pub fn new(id: &str, undo: bool, parts: Vec<OpenPart>, threads: Vec<Inside>) -> Open {
        Open {
            id: id.to_owned(),
            undo,
            parts,
            counts: Counts { frames: threads.len() as u64, ..Counts::default() },
            threads,
            since: Instant::now(),
            trouble: None,
        }
    }

    /// Who is inside, and of which part.
    pub fn inside(&self) -> impl Iterator<Item = (&Inside, &OpenPart)> {
        self.threads.iter().filter_map(|thread| Some((thread, self.parts.get(thread.part)?)))
    }

    /// The copies of data, as they are trapped.
    pub fn traps(&self) -> impl Iterator<Item = Trapped> {
        self.parts.iter().flat_map(OpenPart::traps)
    }

    /// Whether there are such copies.
    #[must_use]
    pub fn has_copies(&self) -> bool {
        self.parts.iter().any(|part| !part.data.is_empty())
    }

    /// What the journal keeps.
    #[must_use]
    pub fn record(&self) -> OpenRecord {
        OpenRecord {
            id: self.id.clone(),
            undo: self.undo,
            parts: self.parts.iter().map(|part| (part.id.clone(), part.trampoline.0)).collect(),
            threads: self.threads.clone(),
            copies: self.traps().map(|trap| (trap.at.0, trap.length)).collect(),
        }
    }

    /// Looks after what has changed in trapped memory.
    fn written(&mut self, guest: &mut dyn Stopped, vcpu: Vcpu, writes: &[Written]) {
        let mut hit = vec![false; writes.len()];
        let mut carried = Vec::new();
        for part in &self.parts {
            for datum in &part.data {
                let [to_new, to_old] = [Direction::ToNew, Direction::ToOld].map(|direction| {
                    let mut any = None;
                    for (write, hit) in writes.iter().zip(&mut hit) {
                        if datum.is_source_written(direction, write) {
                            *hit = true;
                            any = Some(any.unwrap_or(false) | write.late);
                        }
                    }
                    any
                });
                let direction = if to_old.is_some() { Direction::ToOld } else { Direction::ToNew };
                if let Some(late) = to_old.or(to_new) {
                    self.counts.late += u64::from(late);
                    carried.push((direction, part.carry(guest, vcpu, datum, direction)));
                }
                if to_new.is_some() && to_old.is_some() {
                    let name = datum.name();
                    let what = format!("both copies of `{name}` had been written; what the new one held counts");
                    carried.push((direction, Err(what)));
                }
            }
        }
        carried.into_iter().for_each(|(direction, result)| self.count(direction, result));
        for (write, _) in writes.iter().zip(hit).filter(|(_, hit)| !hit) {
            if self.traps().any(|trap| overlap(&trap, write)) {
                self.counts.false_sharing += 1;
            }
        }
    }

    fn count(&mut self, direction: Direction, carried: Result<(), String>) {
        match (carried, direction) {
            (Ok(()), Direction::ToNew) => self.counts.to_new += 1,
            (Ok(()), Direction::ToOld) => self.counts.to_old += 1,
            (Err(error), _) => {
                self.counts.lost += 1;
                self.trouble = Some(error);
            }
        }
    }
}

impl OpenPart {
    /// The copies of its data, as they are trapped.
    pub fn traps(&self) -> impl Iterator<Item = Trapped> {
        self.data.iter().flat_map(|datum| datum.traps(self.direct_map))
    }

    /// Makes one copy of a datum from the other.
    fn carry(&self, guest: &mut dyn Stopped, vcpu: Vcpu, datum: &Datum, direction: Direction) -> Result<(), String> {
        datum.carry(guest, direction).map_err(|error| error.to_string())?;
        let kind = if direction == Direction::ToNew { HookKind::SyncToNew } else { HookKind::SyncToOld };
        let hooks = self.hooks.as_ref();
        hooks.map_or(Ok(()), |hooks| hooks.synchronise(guest, &self.kernel, vcpu, kind, datum.old_address()))
    }
}

impl Attend for Attendant {
    fn written(&mut self, guest: &mut dyn Stopped, vcpu: Vcpu, writes: &[Written]) {
        self.0.lock().iter_mut().for_each(|open| open.written(guest, vcpu, writes));
    }

    fn reported(&mut self, guest: &mut dyn Stopped, vcpu: Vcpu, _: u32) {
        let Ok(registers) = guest.registers(vcpu) else { return };
        for open in self.0.lock().iter_mut() {
            let leaves = |thread: &Inside| {
                open.parts.get(thread.part).is_some_and(|part| is_from(&registers, part.trampoline, thread))
            };
            let Some(index) = open.threads.iter().position(leaves) else { continue };
            let thread = open.threads[index].clone();
            let part = &open.parts[thread.part];
            let kind = if open.undo { HookKind::UndoTransition } else { HookKind::Transition };
            if let Some(hooks) = &part.hooks
                && let Err(error) = hooks.transition(guest, &part.kernel, vcpu, kind, &thread)
            {
                open.counts.lost += 1;
                open.trouble = Some(error);
            }
            match send_on(guest, vcpu, &thread, part.trampoline) {
                Ok(()) => {
                    open.threads.remove(index);
                    open.counts.left += 1;
                }
                // It goes round in the trampoline, and reports again; its hook is then called again as well.
                Err(error) => open.trouble = Some(error.to_string()),
            }
            return;
        }
        let mut gone = lock(&self.0.gone);
        let Some(index) = gone.iter().position(|(trampoline, thread, _)| is_from(&registers, *trampoline, thread))
        else {
            return;
        };
        // One that cannot be sent on reports again.
        let (trampoline, thread, _) = &gone[index];
        if send_on(guest, vcpu, thread, *trampoline).is_ok() {
            gone.remove(index);
        }
    }
}

fn overlap(trap: &Trapped, write: &Written) -> bool {
    let end = |at: Pa, length: usize| at.0.saturating_add(length as u64);
    trap.at.0 < end(write.at, write.after.len()) && write.at.0 < end(trap.at, trap.length)
}

/// Lets a thread that stands in a trampoline go on where it was to return to. An error of the connection does not say whether that was
/// done; the processor does.
fn send_on(guest: &mut dyn Stopped, vcpu: Vcpu, thread: &Inside, trampoline: Va) -> Result<(), EngineError> {
    guest.redirect(vcpu, thread.original).or_else(|error| match guest.registers(vcpu) {
        Ok(registers) if !is_from(&registers, trampoline, thread) => Ok(()),
        _ => Err(error),
    })
}

/// Whether a processor stands in a trampoline because this thread has returned to it.
fn is_from(registers: &Registers, trampoline: Va, thread: &Inside) -> bool {
    // What a function returns to has just been taken off the stack.
    let slot = registers.rsp.wrapping_sub(8);
    registers.rip.wrapping_sub(trampoline.0) < REPORT_ROOM && thread.slot == slot
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Call, CallError, EngineError, ReadMemory, WriteMemory};
    use crate::guest::{fake, identity};
    use crate::update::data::test_datum;
    use std::collections::BTreeMap;

    const OLD: u64 = 0x5ffe;
    const NEW: u64 = 0x9010;
    const TRAMPOLINE: u64 = 0xffff_ffff_c000_0ff0;
    const SLOT: u64 = 0xffff_c900_0000_1f00;

    /// A stopped guest with one processor.
    #[derive(Default)]
    struct Standing {
        memory: BTreeMap<u64, u8>,
        registers: Registers,
        calls: usize,
        /// Processors cannot be sent anywhere.
        is_stuck: bool,
        /// They are sent, but nobody says so.
        is_silent: bool,
    }

    impl ReadMemory for Standing {
        fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
            (from.0..).zip(into).for_each(|(at, byte)| *byte = self.memory.get(&at).copied().unwrap_or(0));
            Ok(())
        }
    }

    impl WriteMemory for Standing {
        fn write(&mut self, to: Pa, bytes: &[u8]) -> Result<(), EngineError> {
            self.memory.extend((to.0..).zip(bytes.iter().copied()));
            Ok(())
        }
    }

    impl Stopped for Standing {
        fn registers(&self, _: Vcpu) -> Result<Registers, EngineError> {
            Ok(self.registers)
        }
        fn redirect(&mut self, _: Vcpu, rip: u64) -> Result<(), EngineError> {
            if self.is_stuck {
                return Err(EngineError::Connection { peer: "a test", reason: "gone".into() });
            }
            self.registers.rip = rip;
            if self.is_silent { Err(EngineError::Running("a test")) } else { Ok(()) }
        }
        fn call(&mut self, _: Vcpu, _: &Call) -> Result<u64, CallError> {
            self.calls += 1;
            Ok(0)
        }
    }

    fn open(threads: Vec<Inside>) -> (Shared, Box<Attendant>) {
        let mut engine = fake::engine(&fake::image(&[0; 16]));
        let kernel = identity::find(&mut engine, &fake::kernel_id(), &fake::profile()).expect("the fake");
        let data = vec![test_datum(OLD, 4, NEW, 8)];
        let shared = Shared::default();
        let part = OpenPart {
            id: "id".into(),
            kernel,
            data,
            hooks: None,
            code: Vec::new(),
            trampoline: Va(TRAMPOLINE),
            direct_map: 0,
        };
        shared.lock().push(Open::new("id", false, vec![part], threads));
        let attendant = shared.attendant();
        (shared, attendant)
    }

    /// The guest writes; the attendant hears of every page that has changed.
    fn write(guest: &mut Standing, attendant: &mut Attendant, at: u64, bytes: &[u8]) {
        let pages: BTreeSet<u64> = (at..at + bytes.len() as u64).map(|at| at & !0xfff).collect();
        let page = |guest: &Standing, at: u64| {
            let mut bytes = vec![0; 4096];
            guest.read(Pa(at), &mut bytes).expect("memory");
            bytes
        };
        let before: Vec<Vec<u8>> = pages.iter().map(|&at| page(guest, at)).collect();
        guest.write(Pa(at), bytes).expect("memory");
        let told = |(at, before): (u64, Vec<u8>)| Written { at: Pa(at), before, after: page(guest, at), late: false };
        let writes: Vec<Written> = pages.into_iter().zip(before).map(told).collect();
        let changed: Vec<Written> = writes.into_iter().filter(|write| write.before != write.after).collect();
        attendant.written(guest, Vcpu(0), &changed);
    }

    fn number<const N: usize>(guest: &Standing, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        guest.read(Pa(at), &mut bytes).expect("memory");
        bytes
    }

    #[test]
    fn each_copy_follows_the_other_and_nothing_else_does() {
        let (shared, mut attendant) = open(Vec::new());
        let mut guest = Standing::default();
        // Across the edge of a page, and with a sign.
        write(&mut guest, &mut attendant, OLD, &(-5_i32).to_le_bytes());
        assert_eq!(i64::from_le_bytes(number(&guest, NEW)), -5);
        // Part of it, unaligned, together with a neighbour.
        write(&mut guest, &mut attendant, OLD - 3, &[1, 2, 3, 7]);
        assert_eq!(i64::from_le_bytes(number(&guest, NEW)), i64::from(i32::from_le_bytes([7, 0xff, 0xff, 0xff])));
        write(&mut guest, &mut attendant, NEW, &100_i64.to_le_bytes());
        assert_eq!(i32::from_le_bytes(number(&guest, OLD)), 100);
        for neighbour in [OLD - 1, OLD + 4, NEW - 1, NEW + 8] {
            write(&mut guest, &mut attendant, neighbour, &[0xaa]);
        }
        let counts = shared.lock()[0].counts;
        assert_eq!((counts.to_old, counts.false_sharing, counts.lost), (1, 4, 0));
        // What does not fit is said, and the old copy keeps what it has.
        write(&mut guest, &mut attendant, NEW, &(1_i64 << 40).to_le_bytes());
        assert_eq!(i32::from_le_bytes(number(&guest, OLD)), 100);
        let open = &shared.lock()[0];
        assert_eq!(open.counts.lost, 1);
        assert!(open.trouble.as_ref().is_some_and(|trouble| trouble.contains("does not fit")), "{:?}", open.trouble);
    }

    #[test]
    fn a_thread_that_leaves_goes_its_own_way_once() {
        let thread = |number: u64| Inside {
            task: 0xffff_8880_0000_0000 + number,
            pid: number as u32,
            comm: "t".into(),
            part: 0,
            function: "f".into(),
            old_address: 0,
            at: 0,
            slot: SLOT + number * 8,
            slot_pa: 0x7000 + number * 8,
            original: 0xffff_ffff_8100_1000 + number,
            may_move: false,
            why: None,
        };
        let (shared, mut attendant) = open(vec![thread(0), thread(1)]);
        let mut guest = Standing::default();
        // One that cannot be sent on is not forgotten: it reports again.
        for gone in [false, true] {
            if gone {
                shared.forget([(Va(TRAMPOLINE), thread(3))]);
            }
            let slot = if gone { SLOT + 24 } else { SLOT };
            guest.registers = Registers { rip: TRAMPOLINE + 2, rsp: slot + 8, ..Registers::default() };
            guest.is_stuck = true;
            attendant.reported(&mut guest, Vcpu(0), 0);
            assert_eq!((guest.registers.rip, shared.lock()[0].threads.len()), (TRAMPOLINE + 2, 2));
        }
        // One that was sent on, though nobody says so, is.
        (guest.is_stuck, guest.is_silent) = (false, true);
        attendant.reported(&mut guest, Vcpu(0), 0);
        assert_eq!(guest.registers.rip, 0xffff_ffff_8100_1003);
        guest.registers = Registers { rip: TRAMPOLINE + 2, rsp: SLOT + 32, ..Registers::default() };
        attendant.reported(&mut guest, Vcpu(0), 0);
        assert_eq!(guest.registers.rip, TRAMPOLINE + 2, "it is known to have gone");
        let mut leave = |slot: u64, rip: u64| {
            guest.registers = Registers { rip, rsp: slot + 8, ..Registers::default() };
            attendant.reported(&mut guest, Vcpu(0), 0);
            guest.registers.rip
        };
        // A report from elsewhere, and one of nobody.
        assert_eq!(leave(SLOT + 8, 0x1234), 0x1234);
        assert_eq!(leave(SLOT + 0x100, TRAMPOLINE + 2), TRAMPOLINE + 2);
        assert_eq!(leave(SLOT + 8, TRAMPOLINE + 2), 0xffff_ffff_8100_1001);
        assert_eq!(leave(SLOT + 8, TRAMPOLINE + 2), TRAMPOLINE + 2, "it has left already");
        assert_eq!(shared.lock()[0].threads, [thread(0)]);
        assert_eq!(leave(SLOT, TRAMPOLINE + 2), 0xffff_ffff_8100_1000);
        shared.forget([(Va(TRAMPOLINE), thread(2))]);
        assert_eq!(leave(SLOT + 16, TRAMPOLINE + 2), 0xffff_ffff_8100_1002, "it was not gone");
        assert_eq!(leave(SLOT + 16, TRAMPOLINE + 2), TRAMPOLINE + 2);
        let open = &shared.lock()[0];
        assert_eq!((open.counts.frames, open.counts.left, open.threads.len()), (2, 2, 0));
    }
}
