//! A second process that lets the guest continue when the first one dies.
//!
//! Comes in: a pipe to the service and its journal. Decided: whether the service said goodbye before the pipe closed. Goes
//! out: if it did not, a guest with the bytes it had before the action in progress, running, whose threads return where they came
//! from.

use crate::engine::Pa;
use crate::engine::qemu::{Attended, Diverted, Rescued, rescue};
use crate::guest::arena::Write;
use crate::journal::{Action, Document, Journal};
use crate::protocol::Problem;
use std::io::{Read, Write as _};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Name of the hidden subcommand.
pub const SUBCOMMAND: &str = "rescue";
/// The goodbye.
const GOODBYE: u8 = b'.';

/// The watching process; dismissed when this is dropped in an orderly way.
#[derive(Debug)]
pub struct Watchdog {
    child: Child,
}

impl Watchdog {
    /// Starts this very program as the watchdog of the guest behind a QMP socket.
    ///
    /// # Errors
    /// [`Problem`] when it cannot be started.
    pub fn start(qmp: &Path, api: &Path) -> Result<Watchdog, Problem> {
        let failed = |error: std::io::Error| Problem::failed("watchdog", format!("cannot start the watchdog: {error}"));
        let program = std::env::current_exe().map_err(failed)?;
        let child = Command::new(program)
            .arg(SUBCOMMAND)
            .arg("--qmp")
            .arg(qmp)
            .arg("--api")
            .arg(api)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0) // an interrupt typed at the terminal is for the service alone
            .spawn()
            .map_err(failed)?;
        Ok(Watchdog { child })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // If it is gone it cannot be told, and has nothing to do either.
        if let Some(mut pipe) = self.child.stdin.take() {
            let _ = pipe.write_all(&[GOODBYE]);
        }
        let _ = self.child.wait();
    }
}

/// Waits for the service to end; if it dies, brings the guest back.
///
/// # Errors
/// [`Problem`] when the guest could not be brought back.
pub fn watch(pipe: &mut impl Read, qmp: &Path, api: &Path) -> Result<(), Problem> {
    let mut said = Vec::new();
    // A broken pipe is a dead service, too.
    let _ = pipe.read_to_end(&mut said);
    if said.last() == Some(&GOODBYE) {
        return Ok(());
    }
    bring_back(qmp, &Journal::beside(api))
}

/// Takes back the action in progress, if any, has threads inside old code return as if nobody had waited for them, and lets the guest
/// continue.
///
/// # Errors
/// [`Problem`].
pub fn bring_back(qmp: &Path, journal: &Journal) -> Result<(), Problem> {
    let failed =
        |error: String| Problem::failed("rescue-failed", format!("the guest could not be brought back: {error}"));
    let half_done = journal.half_done().map_err(|error| failed(error.to_string()))?;
    let planned = journal.planned().map_err(|error| failed(error.to_string()))?;
    // Only an action stops the guest: where there is none, whoever stopped it was not us.
    let owner_paused = half_done.as_ref().or(planned.as_ref()).is_none_or(|action| action.owner_paused);
    let writes = half_done.as_ref().map(old_bytes).unwrap_or_default();
    let document = journal.load().map_err(|error| failed(error.to_string()))?;
    let actions = half_done.iter().chain(&planned).map(|action| &action.after);
    let mut left = left(actions.chain([&document]));
    // While the guest still stands: afterwards it need not tell whether it has run with what was written.
    let mut settled = |rescued: Rescued, left: &Attended| {
        let copies = if left.held.is_empty() { Ok(()) } else { journal.save_copies(&left.held) };
        let taken_back = if rescued == Rescued::WasRunning { Ok(()) } else { journal.taken_back() };
        copies.and(taken_back).map_err(|error| error.to_string())
    };
    let rescued = rescue(qmp, &writes, &mut left, owner_paused, &mut settled);
    match rescued.map_err(|error| failed(error.to_string()))? {
        Rescued::Restored { .. } => journal.forget_action().map_err(|error| failed(error.to_string())),
        // It died after it had let go of the guest: the next start takes the action back, from the journal.
        Rescued::WasRunning => Ok(()),
    }
}

fn old_bytes(action: &Action) -> Vec<(Pa, Vec<u8>)> {
    action.writes.iter().map(|Write { pa, old, .. }| (Pa(*pa), old.clone())).collect()
}

/// What is known of updates that threads are inside of.
fn left<'a>(documents: impl Iterator<Item = &'a Document>) -> Attended {
    let mut left = Attended::default();
    for open in documents.flat_map(|document| &document.opens) {
        left.diverted.extend(open.threads.iter().filter_map(|thread| {
            let (_, diverted) = *open.parts.get(thread.part)?;
            let (slot, slot_pa, original) = (thread.slot, Pa(thread.slot_pa), thread.original);
            Some(Diverted { slot, slot_pa, diverted, original })
        }));
        left.copies.extend(open.copies.iter().map(|&(at, length)| (Pa(at), length)));
    }
    left
}
