//! Brings a guest back to life after the tool that held it has died.
//!
//! Comes in: the QMP socket, registers that the tool wrote down before it changed them, the writes that were not finished with their old bytes, and whether the owner had stopped the
//! VM; what it had set at the stub, and threads that it had return elsewhere. Decided: whether the VM was still held. Goes out: a VM
//! with its old bytes, whose threads return where they would have, running if it ran before; or one that stands, with all that a
//! second attempt has to know written down beside its stub.

use std::path::Path;
use std::sync::Arc;

use super::monitor::Monitor;
use super::processor::{KERNEL_CS, Processor};
use super::record::{Mark, Record};
use super::stub::{self, Found, Stub};
use super::watch::Arms;
use super::{Hold, QemuEngine, call};
use crate::engine::{EngineError, Pa, Pause, ReadMemory as _, Vcpu, WriteMemory};

/// What was found and done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rescued {
    /// The VM was running: the tool had let go of it before it died. Nothing was written; a stub left open is closed.
    WasRunning,
    /// The VM was stopped; all old bytes are back and it is as its owner had it.
    Restored {
        /// Writes undone.
        undone: usize,
    },
}

/// Why a guest could not be rescued.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    /// QEMU could not be asked.
    #[error("the guest could not be looked at: {0}")]
    Look(#[source] EngineError),
    /// A function of the guest was being called, and the processor's registers could not be put back.
    #[error("the registers of a processor could not be put back: {0}; the guest is left stopped")]
    Registers(#[source] EngineError),
    /// The old bytes could not be put back.
    #[error("only {undone} of {total} writes could be undone: {source}; the guest is left stopped")]
    Undo {
        /// Writes undone before the failure.
        undone: usize,
        /// Writes to undo.
        total: usize,
        /// What failed.
        source: EngineError,
    },
    /// The guest is what it was, but the caller could not make use of it.
    #[error("the guest is brought back, but {0}")]
    Told(String),
    /// The old bytes are back, but the guest does not continue.
    #[error("all writes are undone, but the guest could not be continued: {0}")]
    Continue(#[source] EngineError),
}

/// A thread that returns to code of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diverted {
    /// Virtual address of the word that holds where it returns to.
    pub slot: u64,
    /// The same in physical memory.
    pub slot_pa: Pa,
    /// What the word holds.
    pub diverted: u64,
    /// What it held before.
    pub original: u64,
}

/// An update that threads are inside of, and that nobody attends to any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attended {
    /// The threads.
    pub diverted: Vec<Diverted>,
    /// Memory that was kept in line, by first address and length.
    pub copies: Vec<(Pa, usize)>,
    /// What it held at the end; filled in when the guest was found standing, or attended to.
    pub held: Vec<(Pa, Vec<u8>)>,
}

/// Undoes what a dead tool had written into a VM that it still held stopped, and lets the VM continue unless
/// `owner_paused`. Registers that a call had taken are put back first; the tool then wrote down itself whose the stop was.
/// `writes_to_undo` names each place with its old bytes in the order in which they were written; they are
/// put back last first. Then threads of `left` get their return addresses back, also where the VM was not held but attended to.
/// `settled` is called when all of that is done and the VM still stands; what it says counts after the VM was continued.
///
/// # Consistency on error
/// The VM may be left stopped: half written it would run into nonsense. The call can be repeated: beside the stub's socket it is
/// written down whose the stop was, and whether the VM had run with what was written, until the VM is let go of.
///
/// # Errors
/// See [`RescueError`].
pub fn rescue(
    qmp: &Path,
    writes_to_undo: &[(Pa, Vec<u8>)],
    left: &mut Attended,
    owner_paused: bool,
    settled: &mut dyn FnMut(Rescued, &Attended) -> Result<(), String>,
) -> Result<Rescued, RescueError> {
    let mut monitor = Monitor::connect(qmp).map_err(RescueError::Look)?;
    let running = monitor.is_running().map_err(RescueError::Look)?;
    let found = Found::ask(&mut monitor).map_err(RescueError::Look)?;
    let (mut ours, mut mark) = (None, None);
    match found {
        // In use or not: whoever held it is dead, or we would not have been called.
        Found::Ours { socket, .. } => {
            mark = stand(&mut monitor, &socket)?;
            ours = Some(socket);
        }
        Found::Owners(address) if !running => return Err(RescueError::Look(stub::owned(&address))),
        Found::Owners(_) | Found::Closed => {}
    }
    if running && mark.is_none() {
        ours.map_or(Ok(()), |socket| stub::clear(&mut monitor, &socket)).map_err(RescueError::Look)?;
        return Ok(Rescued::WasRunning);
    }
    let mark = mark.unwrap_or(Mark { placed: Vec::new(), owner_paused, driving: false });
    let mut engine = QemuEngine::with(monitor).map_err(RescueError::Look)?;
    let done = take(&mut engine, ours.as_deref(), &mark)
        .map_err(RescueError::Look)
        .and_then(|()| bring_back(&mut engine, writes_to_undo, left, mark, settled));
    match done {
        Ok(done) => {
            engine.detach().map_err(RescueError::Continue)?;
            done
        }
        Err(error) => {
            engine.leave_standing();
            Err(error)
        }
    }
}

/// Has a guest that stands: what was written down of it is beside our own stub now.
fn take(engine: &mut QemuEngine, earlier: Option<&Path>, mark: &Mark) -> Result<(), EngineError> {
    mark.store(engine.vm.folder())?;
    if let Some(socket) = earlier {
        stub::clear(&mut engine.vm.monitor(), socket)?;
    }
    engine.pause()
}

/// Puts everything right in a guest that we hold, and lets it go on.
fn bring_back(
    engine: &mut QemuEngine,
    writes_to_undo: &[(Pa, Vec<u8>)],
    left: &mut Attended,
    mark: Mark,
    settled: &mut dyn FnMut(Rescued, &Attended) -> Result<(), String>,
) -> Result<Result<Rescued, RescueError>, RescueError> {
    // A guest that was attended to ran with what was written.
    let writes_to_undo = if mark.driving { &[] } else { writes_to_undo };
    for (undone, (to, old)) in writes_to_undo.iter().rev().enumerate() {
        // Until all is done, letting go of the engine must not let the guest run: it counts as stopped by its owner.
        engine.write(*to, old).map_err(|source| RescueError::Undo { undone, total: writes_to_undo.len(), source })?;
    }
    give_back(engine, &left.diverted).map_err(RescueError::Look)?;
    left.held.clear();
    for &(at, length) in &left.copies {
        let mut bytes = vec![0; length];
        engine.read(at, &mut bytes).map_err(RescueError::Look)?;
        left.held.push((at, bytes));
    }
    let rescued = if mark.driving { Rescued::WasRunning } else { Rescued::Restored { undone: writes_to_undo.len() } };
    let told = settled(rescued, left).map_err(RescueError::Told);
    // Nothing is to be undone any more, whoever comes next.
    let owner_paused = mark.owner_paused;
    Mark { driving: true, ..mark }.store(engine.vm.folder()).map_err(RescueError::Continue)?;
    if let Some(Hold { owner_paused: stays, .. }) = &mut engine.hold {
        *stays = owner_paused;
    }
    engine.resume().map_err(RescueError::Continue)?;
    Ok(told.map(|()| rescued))
}

impl QemuEngine {
    /// Leaves a guest that stands to whoever comes next: the stub stays open, and what is written down beside it.
    fn leave_standing(mut self) {
        match self.hold.take() {
            Some(mut hold) => hold.stub.disconnect(),
            None => drop(Stub::open(&mut self.vm.monitor(), self.vm.folder())),
        }
        self.stub_left_open = false;
        if let Some(vm) = Arc::get_mut(&mut self.vm) {
            vm.keep_folder();
        }
    }
}

/// Takes back what a dead tool had changed at processors and set at the stub; `socket` is that of its stub. Gives what it had
/// written down of the guest, which then stands, and that stays written down.
fn stand(monitor: &mut Monitor, socket: &Path) -> Result<Option<Mark>, RescueError> {
    let Some(folder) = stub::folder_of_ours(socket) else { return Ok(None) };
    let record = Record::load(folder).map_err(RescueError::Registers)?;
    if let (Some(record), None) = (record, Mark::load(folder).map_err(RescueError::Look)?) {
        // Once they are put back registers are forgotten; whose the stop was is not.
        let mark = Mark { placed: Vec::new(), owner_paused: record.owner_paused, driving: false };
        mark.store(folder).map_err(RescueError::Registers)?;
    }
    call::put_back_after_death(monitor, socket).map_err(RescueError::Registers)?;
    stop_watching(monitor, socket).map_err(RescueError::Look)
}

/// Removes what a dead tool had set at the stub of a guest that it attended to; `socket` is that of its stub. Gives what it had
/// written down, where nothing is set any more; the guest then stands.
///
/// # Consistency on error
/// What was written down stays, and so does a stub of ours by which it can be found.
pub(super) fn stop_watching(monitor: &mut Monitor, socket: &Path) -> Result<Option<Mark>, EngineError> {
    let Some(folder) = stub::folder_of_ours(socket) else { return Ok(None) };
    let Some(mark) = Mark::load(folder)? else { return Ok(None) };
    // Perhaps only one processor runs.
    monitor.stop()?;
    if mark.placed.is_empty() {
        return Ok(Some(mark));
    }
    monitor.human("gdbserver none")?;
    let mut stub = Stub::open(monitor, folder)?;
    Arms::of_mark(&mark).clear(&mut stub)?;
    stub.disconnect();
    let mark = Mark { placed: Vec::new(), ..mark };
    mark.store(folder)?;
    Ok(Some(mark))
}

/// Gives threads of a stopped guest their return addresses back: where they are kept, where an interrupt has kept the
/// instruction pointer of a thread that has just returned, and at processors.
fn give_back(engine: &mut QemuEngine, diverted: &[Diverted]) -> Result<(), EngineError> {
    // From the word to the frame of an interrupt that comes just after it was popped: SS, RSP, flags, CS, RIP below RSP rounded
    // down to a multiple of 16 (Intel SDM vol. 3, 6.14.2).
    const FRAME: u64 = 48;
    const PAGE: u64 = 4096;
    for thread in diverted {
        let mut word = [0; 8];
        engine.read(thread.slot_pa, &mut word)?;
        if u64::from_le_bytes(word) == thread.diverted {
            engine.write(thread.slot_pa, &thread.original.to_le_bytes())?;
        }
        let top = (thread.slot.wrapping_add(8) & !15).wrapping_sub(40);
        let below = thread.slot.wrapping_sub(top);
        if below > FRAME || thread.slot_pa.0 % PAGE < below {
            continue;
        }
        let at = Pa(thread.slot_pa.0 - below);
        let mut frame = [[0; 8]; 5];
        engine.read(at, frame.as_flattened_mut())?;
        let [rip, cs, _, rsp, _] = frame.map(u64::from_le_bytes);
        if rip == thread.diverted && cs & 0xffff == KERNEL_CS && rsp == thread.slot.wrapping_add(8) {
            engine.write(at, &thread.original.to_le_bytes())?;
        }
    }
    for (index, registers) in engine.vm.registers()?.iter().enumerate() {
        let is_there = |thread: &&Diverted| {
            thread.diverted == registers.rip && thread.slot.wrapping_add(8) == registers.rsp && registers.cpl == 0
        };
        if let (Some(thread), Some(hold)) = (diverted.iter().find(is_there), &mut engine.hold) {
            hold.stub.with("a rescue", |client| Processor::choose(client, Vcpu(index))?.go_to(thread.original))?;
        }
    }
    Ok(())
}
