//! Brings a guest back to life after the tool that held it has died.
//!
//! Comes in: the QMP socket, registers that the tool wrote down before it changed them, the writes that were not finished with their old bytes, and whether the owner had stopped the
//! VM; what it had set at the stub, and threads that it had return elsewhere. Decided: whether the VM was still held. Goes out: a VM
//! with its old bytes, whose threads return where they would have, running if it ran before.

use std::path::Path;

use super::monitor::Monitor;
use super::processor::{KERNEL_CS, Processor};
use super::record::Mark;
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
///
/// # Consistency on error
/// [`RescueError::Undo`] leaves the VM stopped: half written it would run into nonsense. The call can be repeated.
///
/// # Errors
/// See [`RescueError`].
pub fn rescue(
    qmp: &Path,
    writes_to_undo: &[(Pa, Vec<u8>)],
    left: &mut Attended,
    owner_paused: bool,
) -> Result<Rescued, RescueError> {
    let mut monitor = Monitor::connect(qmp).map_err(RescueError::Look)?;
    let mut running = monitor.is_running().map_err(RescueError::Look)?;
    let mut owner_paused = owner_paused;
    let mut attended = false;
    match Found::ask(&mut monitor).map_err(RescueError::Look)? {
        // In use or not: whoever held it is dead, or we would not have been called.
        Found::Ours { socket, .. } => {
            let taken = call::put_back_after_death(&mut monitor, &socket).map_err(RescueError::Registers)?;
            if let Some(record) = taken {
                (running, owner_paused) = (false, record.owner_paused);
            }
            if let Some(mark) = stop_watching(&mut monitor, &socket).map_err(RescueError::Look)? {
                (running, owner_paused, attended) = (false, mark.owner_paused, mark.driving);
            }
            stub::clear(&mut monitor, &socket).map_err(RescueError::Look)?;
        }
        Found::Owners(address) if !running => return Err(RescueError::Look(stub::owned(&address))),
        Found::Owners(_) | Found::Closed => {}
    }
    if running {
        return Ok(Rescued::WasRunning);
    }
    let mut engine = QemuEngine::with(monitor).map_err(RescueError::Look)?;
    engine.pause().map_err(RescueError::Look)?;
    // A guest that was attended to ran with what was written.
    let writes_to_undo = if attended { &[] } else { writes_to_undo };
    for (undone, (to, old)) in writes_to_undo.iter().rev().enumerate() {
        // Until all is done, letting go of the engine must not let the guest run: it counts as stopped by its owner.
        engine.write(*to, old).map_err(|source| RescueError::Undo { undone, total: writes_to_undo.len(), source })?;
    }
    give_back(&mut engine, &left.diverted).map_err(RescueError::Look)?;
    for &(at, length) in &left.copies {
        let mut bytes = vec![0; length];
        engine.read(at, &mut bytes).map_err(RescueError::Look)?;
        left.held.push((at, bytes));
    }
    if let Some(Hold { owner_paused: stays, .. }) = &mut engine.hold {
        *stays = owner_paused;
    }
    engine.detach().map_err(RescueError::Continue)?;
    Ok(if attended { Rescued::WasRunning } else { Rescued::Restored { undone: writes_to_undo.len() } })
}

/// Removes what a dead tool had set at the stub of a guest that it attended to; `socket` is that of its stub. Gives what it had
/// written down; the guest then stands.
///
/// # Consistency on error
/// What was written down stays, and so does a stub of ours by which it can be found.
pub(super) fn stop_watching(monitor: &mut Monitor, socket: &Path) -> Result<Option<Mark>, EngineError> {
    let Some(folder) = stub::folder_of_ours(socket) else { return Ok(None) };
    let Some(mark) = Mark::load(folder)? else { return Ok(None) };
    // Perhaps only one processor runs.
    monitor.stop()?;
    monitor.human("gdbserver none")?;
    let mut stub = Stub::open(monitor, folder)?;
    Arms::of_mark(&mark).clear(&mut stub)?;
    stub.disconnect();
    Mark::forget(folder)?;
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
