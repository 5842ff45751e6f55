//! Writes and reports of the guest, through QEMU's debug stub.
//!
//! Comes in: memory whose writes are told, addresses that threads report from, and who attends. Decided: what has changed, by
//! comparing that memory with what it held when it was told last. Goes out: watched ranges and breakpoints at the stub; calls
//! of whoever attends, with all processors stopped.
//!
//! QEMU watches virtual addresses and stops *after* the write (softmmu/physmem.c, `cpu_check_watchpoint`). A stop only says that it
//! is time to compare. What was written by an address that is not watched is found at the next stop, and told as late.

use std::collections::{BTreeMap, BTreeSet};

use super::record::{Mark, Placed};
use super::stub::Stub;
use super::turns::Turns;
use super::vm::Vm;
use super::{Hold, QemuEngine, call};
use crate::engine::{
    Attend, Call, CallError, EngineError, Pa, ReadMemory, Registers, Stopped, Trapped, Va, Vcpu, Watch, WriteMemory,
    Written,
};

/// What is disturbed when somebody else lets the guest run.
const WATCHING: &str = "watching (somebody continued it while we held it stopped)";

/// What is attended to, and who attends.
#[derive(Default)]
pub(super) struct Watching {
    pub(super) attendant: Option<Box<dyn Attend>>,
    pub(super) arms: Arms,
    pub(super) turns: Turns,
}

impl Watching {
    /// Nobody is told of anything any more.
    pub(super) fn forget(&mut self) {
        self.attendant = None;
        self.arms.reports.clear();
        self.arms.traps.clear();
    }

    /// Whether there is anything that somebody would be told of.
    pub(super) fn is_needed(&self) -> bool {
        self.attendant.is_some() && !(self.arms.reports.is_empty() && self.arms.traps.is_empty())
    }
}

/// What is set at the stub while the guest runs.
#[derive(Default)]
pub(super) struct Arms {
    /// Addresses of report code.
    pub(super) reports: BTreeSet<u64>,
    /// Memory, and what it held when it was told last.
    pub(super) traps: BTreeMap<Trapped, Vec<u8>>,
    /// What may be set at this moment.
    placed: BTreeSet<Placed>,
}

impl Arms {
    /// What an earlier tool may have set.
    pub(super) fn of_mark(mark: &Mark) -> Arms {
        Arms { placed: mark.placed.iter().copied().collect(), ..Arms::default() }
    }

    /// All that is to be set, or may still be.
    pub(super) fn mark(&self, owner_paused: bool, driving: bool) -> Mark {
        Mark { placed: self.placed.iter().copied().chain(self.wanted()).collect(), owner_paused, driving }
    }

    fn wanted(&self) -> impl Iterator<Item = Placed> {
        let reports = self.reports.iter().map(|&at| Placed::Report(at));
        reports.chain(self.traps.keys().flat_map(|trap| trap.aliases.iter().map(|va| Placed::Range(va.0, trap.length))))
    }

    /// Sets everything, and nothing else.
    pub(super) fn set(&mut self, stub: &mut Stub) -> Result<(), EngineError> {
        self.clear(stub)?;
        self.placed = self.wanted().collect();
        stub.with(WATCHING, |client| {
            self.placed.iter().try_for_each(|placed| match *placed {
                Placed::Report(at) => client.set_breakpoint(at),
                Placed::Range(at, length) => client.set_watch(at, length),
            })
        })
    }

    /// Removes all that was set.
    pub(super) fn clear(&mut self, stub: &mut Stub) -> Result<(), EngineError> {
        if self.placed.is_empty() {
            return Ok(());
        }
        stub.with(WATCHING, |client| {
            self.placed.iter().try_for_each(|placed| match *placed {
                Placed::Report(at) => client.clear_breakpoint(at),
                Placed::Range(at, length) => client.clear_watch(at, length),
            })
        })?;
        self.placed.clear();
        Ok(())
    }

    /// Whether anything may be set at this moment.
    fn may_be_set(&self) -> bool {
        !self.placed.is_empty()
    }

    /// The guest stands, and nobody lets it run any more: nothing is set, and whoever comes after us knows.
    pub(super) fn hand_over(&mut self, vm: &Vm, hold: &mut Hold) -> Result<(), EngineError> {
        self.clear(&mut hold.stub)?;
        self.mark(hold.owner_paused, false).store(vm.folder())
    }

    /// Nobody is told of a report until everything is set again.
    pub(super) fn ignore(&mut self, stub: &mut Stub, at: u64) -> Result<(), EngineError> {
        stub.with(WATCHING, |client| client.clear_breakpoint(at))?;
        self.placed.remove(&Placed::Report(at));
        Ok(())
    }

    /// The memory holds what it is to hold: all that has changed was told.
    pub(super) fn refresh(&mut self, memory: &dyn ReadMemory) -> Result<(), EngineError> {
        self.traps.iter_mut().try_for_each(|(trap, held)| memory.read(trap.at, held))
    }

    /// What has changed since it was told last. Until the next [`Arms::refresh`] it is found again, so that an error in between
    /// loses nothing.
    pub(super) fn changes(&self, memory: &dyn ReadMemory) -> Result<Vec<Written>, EngineError> {
        let mut changes = Vec::new();
        for (trap, before) in &self.traps {
            let mut after = vec![0; before.len()];
            memory.read(trap.at, &mut after)?;
            if after != *before {
                changes.push(Written { at: trap.at, before: before.clone(), after, late: false });
            }
        }
        Ok(changes)
    }
}

impl QemuEngine {
    /// Tells what the guest, which stands, has written since it was told last. A driver that has ended well leaves nothing; one that lost
    /// its connection just before it was asked to end does.
    pub(super) fn tell_missed(&mut self) -> Result<(), EngineError> {
        let (Some(resets), Some(hold)) = (self.driven_since, &mut self.hold) else { return Ok(()) };
        if let Watching { attendant: Some(attendant), arms, .. } = &mut self.watching
            && self.vm.resets_now()? == resets
        {
            let mut missed = arms.changes(&*self.vm)?;
            if !missed.is_empty() {
                missed.iter_mut().for_each(|write| write.late = true);
                attendant.written(&mut Standing { vm: &self.vm, hold, arms }, Vcpu(0), &missed);
                arms.refresh(&*self.vm)?;
            }
        }
        if self.trouble.is_some() || self.watching.arms.may_be_set() {
            self.watching.arms.hand_over(&self.vm, hold)?;
        }
        self.driven_since = None;
        Ok(())
    }

    fn needs_hold(&self, what: &'static str) -> Result<(), EngineError> {
        if self.hold.is_some() { Ok(()) } else { Err(EngineError::Running(what)) }
    }
}

impl Watch for QemuEngine {
    fn attend(&mut self, attendant: Option<Box<dyn Attend>>, reports: &[Va]) -> Result<(), EngineError> {
        self.needs_hold("an attendant")?;
        self.watching.attendant = attendant;
        self.watching.arms.reports = reports.iter().map(|at| at.0).collect();
        Ok(())
    }

    fn trap(&mut self, what: &Trapped) -> Result<(), EngineError> {
        self.needs_hold("a trap")?;
        let mut held = vec![0; what.length];
        self.vm.read(what.at, &mut held)?;
        self.watching.arms.traps.insert(what.clone(), held);
        Ok(())
    }

    fn untrap(&mut self, what: &Trapped) -> Result<(), EngineError> {
        self.needs_hold("a trap")?;
        self.watching.arms.traps.remove(what);
        Ok(())
    }

    fn trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }
}

/// The guest while all its processors stand, for whoever attends.
pub(super) struct Standing<'a> {
    pub(super) vm: &'a Vm,
    pub(super) hold: &'a mut Hold,
    pub(super) arms: &'a mut Arms,
}

impl ReadMemory for Standing<'_> {
    fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
        self.vm.read(from, into)
    }
}

impl WriteMemory for Standing<'_> {
    fn write(&mut self, to: Pa, bytes: &[u8]) -> Result<(), EngineError> {
        self.vm.pieces(to, bytes.len(), true)?;
        self.hold.stub.surely(WATCHING, |client| client.write(to, bytes))
    }
}

impl Stopped for Standing<'_> {
    fn registers(&self, vcpu: Vcpu) -> Result<Registers, EngineError> {
        self.vm.state(vcpu).map(|state| state.registers)
    }

    fn redirect(&mut self, vcpu: Vcpu, rip: u64) -> Result<(), EngineError> {
        self.hold.stub.surely(WATCHING, |client| super::processor::Processor::choose(client, vcpu)?.go_to(rip))
    }

    /// Nothing is watched meanwhile: the function may write what it likes, and where it returns there may be a report.
    fn call(&mut self, vcpu: Vcpu, call: &Call) -> Result<u64, CallError> {
        self.arms.clear(&mut self.hold.stub)?;
        let value = call::run(self.vm, self.hold, vcpu, call);
        self.arms.set(&mut self.hold.stub)?;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Memory that holds one byte everywhere, and of which a place cannot be read.
    struct Memory {
        byte: u8,
        hole: Cell<Option<Pa>>,
    }

    impl ReadMemory for Memory {
        fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
            if self.hole.get() == Some(from) {
                return Err(EngineError::Connection { peer: "a test", reason: "gone".into() });
            }
            into.fill(self.byte);
            Ok(())
        }
    }

    #[test]
    fn a_change_is_found_until_it_was_told() {
        let mut arms = Arms::default();
        for at in [0x1000, 0x2000] {
            arms.traps.insert(Trapped::page(Pa(at), 4), vec![0; 4]);
        }
        let memory = Memory { byte: 7, hole: Cell::new(Some(Pa(0x2000))) };
        assert!(arms.changes(&memory).is_err());
        memory.hole.set(None);
        for _ in 0..2 {
            let changes = arms.changes(&memory).expect("memory");
            let places: Vec<Pa> = changes.iter().map(|change| change.at).collect();
            assert_eq!(places, [Pa(0x1000), Pa(0x2000)]);
            assert!(changes.iter().all(|change| change.before == [0; 4] && change.after == [7; 4]));
        }
        arms.refresh(&memory).expect("memory");
        assert_eq!(arms.changes(&memory).expect("memory"), []);
    }
}
