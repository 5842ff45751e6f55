//! Brings a guest back to life after the tool that held it has died.
//!
//! Comes in: the QMP socket, registers that the tool wrote down before it changed them, the writes that were not finished with their old bytes, and whether the owner had stopped the
//! VM. Decided: whether the VM was still held. Goes out: a VM with its old bytes, running if it ran before.

use std::path::Path;

use super::monitor::Monitor;
use super::stub::{self, Found};
use super::{Hold, QemuEngine, call};
use crate::engine::{EngineError, Pa, Pause, WriteMemory};

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

/// Undoes what a dead tool had written into a VM that it still held stopped, and lets the VM continue unless
/// `owner_paused`. Registers that a call had taken are put back first; the tool then wrote down itself whose the stop was. `writes_to_undo` names each place with its old bytes in the order in which they were written; they are
/// put back last first.
///
/// # Consistency on error
/// [`RescueError::Undo`] leaves the VM stopped: half written it would run into nonsense. The call can be repeated.
///
/// # Errors
/// See [`RescueError`].
pub fn rescue(qmp: &Path, writes_to_undo: &[(Pa, Vec<u8>)], owner_paused: bool) -> Result<Rescued, RescueError> {
    let mut monitor = Monitor::connect(qmp).map_err(RescueError::Look)?;
    let mut running = monitor.is_running().map_err(RescueError::Look)?;
    let mut owner_paused = owner_paused;
    match Found::ask(&mut monitor).map_err(RescueError::Look)? {
        // In use or not: whoever held it is dead, or we would not have been called.
        Found::Ours { socket, .. } => {
            let taken = call::put_back_after_death(&mut monitor, &socket).map_err(RescueError::Registers)?;
            if let Some(record) = taken {
                (running, owner_paused) = (false, record.owner_paused);
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
    for (undone, (to, old)) in writes_to_undo.iter().rev().enumerate() {
        // Until all is done, letting go of the engine must not let the guest run: it counts as stopped by its owner.
        engine.write(*to, old).map_err(|source| RescueError::Undo { undone, total: writes_to_undo.len(), source })?;
    }
    if let Some(Hold { owner_paused: stays, .. }) = &mut engine.hold {
        *stays = owner_paused;
    }
    engine.detach().map_err(RescueError::Continue)?;
    Ok(Rescued::Restored { undone: writes_to_undo.len() })
}
