//! Writes into a stopped guest, all or none.
//!
//! Comes in: an engine and writes with the bytes that must be there before. Decided: whether they are. Goes out: all
//! writes done and the guest running, or none done and the guest running.

use crate::engine::{Engine, EngineError, Pa, ReadMemory};
use crate::guest::arena::Write;
use std::time::Duration;

/// How often a step that takes back or resumes is tried again before giving up.
const STUBBORN: usize = 5;

/// Writes could not be done, and perhaps not taken back.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// Nothing was changed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The guest could not be brought back to what it was.
    #[error("{first}; taking back what was written failed too: {then}")]
    Stuck {
        /// What went wrong first.
        first: String,
        /// What went wrong while taking back.
        then: EngineError,
    },
}

/// Runs `work` with all processors stopped, and lets them continue whatever happens; also says how long they stood.
///
/// # Errors
/// Of the engine; the result of `work` is then lost, which is why `work` is the last thing that can change the guest.
///
/// # Consistency on error
/// When stopping fails, `work` has not run. When resuming fails after several attempts the guest may stand still.
pub fn paused<E: Engine, T>(engine: &mut E, work: impl FnOnce(&mut E) -> T) -> Result<(T, Duration), EngineError> {
    if let Err(error) = engine.pause() {
        // It may have stopped all the same.
        stubbornly(|| engine.resume())?;
        return Err(error);
    }
    let result = work(engine);
    stubbornly(|| engine.resume())?;
    Ok((result, engine.last_pause()))
}

/// Whether the guest holds what every write expects.
///
/// # Errors
/// Of the engine.
pub fn unchanged(memory: &dyn ReadMemory, writes: &[Write]) -> Result<bool, EngineError> {
    for write in writes {
        let mut live = vec![0; write.old.len()];
        memory.read(Pa(write.pa), &mut live)?;
        if live != write.old {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Does all writes in order.
///
/// # Errors
/// [`TransactionError`].
///
/// # Consistency on error
/// On `Engine`, what was written has been written back in reverse order. On `Stuck` it may not have been.
pub fn write_all<E: Engine>(engine: &mut E, writes: &[Write]) -> Result<(), TransactionError> {
    for (index, write) in writes.iter().enumerate() {
        if let Err(first) = engine.write(Pa(write.pa), &write.new) {
            return match take_back(engine, &writes[..=index]) {
                Ok(()) => Err(TransactionError::Engine(first)),
                Err(then) => Err(TransactionError::Stuck { first: first.to_string(), then }),
            };
        }
    }
    Ok(())
}

/// Does many writes, in order, as fast as the engine can.
///
/// # Errors
/// [`TransactionError`].
///
/// # Consistency on error
/// As [`write_all`].
pub fn write_each<E: Engine>(engine: &mut E, writes: &[&Write]) -> Result<(), TransactionError> {
    let places: Vec<(Pa, &[u8])> = writes.iter().map(|write| (Pa(write.pa), write.new.as_slice())).collect();
    let Err(first) = engine.write_each(&places) else { return Ok(()) };
    match take_back(engine, writes.iter().copied()) {
        Ok(()) => Err(TransactionError::Engine(first)),
        Err(then) => Err(TransactionError::Stuck { first: first.to_string(), then }),
    }
}

/// Writes the old bytes back in reverse order, where they are not there already.
///
/// # Errors
/// Of the engine, after several attempts.
pub fn take_back<'a, E: Engine>(
    engine: &mut E,
    writes: impl IntoIterator<Item = &'a Write, IntoIter: DoubleEndedIterator>,
) -> Result<(), EngineError> {
    for write in writes.into_iter().rev() {
        stubbornly(|| {
            let mut live = vec![0; write.old.len()];
            engine.read(Pa(write.pa), &mut live)?;
            if live == write.old { Ok(()) } else { engine.write(Pa(write.pa), &write.old) }
        })?;
    }
    Ok(())
}

fn stubbornly(mut step: impl FnMut() -> Result<(), EngineError>) -> Result<(), EngineError> {
    let mut attempt = 1;
    loop {
        match step() {
            Err(_) if attempt < STUBBORN => attempt += 1,
            result => return result,
        }
    }
}
