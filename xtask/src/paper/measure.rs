//! Applies and undoes the patches on a running Debian, while a database works in it.
//!
//! Comes in: a kernel, a root file system, patches. Decided: whether what happened in the guest is what must happen: each function leads to
//! new code and back, the database goes on after every step and finds no fault, the kernel's log stays clean, the file system is
//! whole at the end. Goes out: [`Measured`], with times as `lucos-hv` reports them; an error when anything was otherwise.

use super::choose::Patch;
use crate::live::{self, edited_data, entries, is_redirected, see};
use crate::{JobError, say};
use lucos_tests::boxed::modules;
use lucos_tests::commands::{Hv, Outcome};
use lucos_tests::guest::{Config, Database, Disk, Engine, Guest, GuestError, Work};
use lucos_tests::kernels::Kernel;
use serde::Serialize;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Transactions of every processor between two actions.
const TRANSACTIONS: u64 = 5;
/// How long these may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often an action that found no good moment is asked for again.
const AGAIN: u32 = 10;

/// One action, in milliseconds as `lucos-hv` reports them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Action {
    pub(crate) total_ms: f64,
    pub(crate) paused_ms: f64,
    /// How often it was asked for; more than once when threads were in the way.
    pub(crate) asked: u32,
}

impl Action {
    fn of(outcome: &Outcome, asked: u32) -> Self {
        let ms = |name: &str| outcome.number(&format!("/times_us/{name}")) / 1000.0;
        Self { total_ms: ms("total"), paused_ms: ms("paused"), asked }
    }
}

/// One time that a patch was applied and undone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Round {
    pub(crate) apply: Action,
    pub(crate) undo: Action,
    /// Threads that were inside old code when it was applied.
    pub(crate) threads_inside: u64,
    /// Writes that were carried from one version of a datum to the other.
    pub(crate) synchronised: u64,
    /// How long both versions ran side by side, in milliseconds.
    pub(crate) open_ms: u64,
    /// Transactions of the database between apply and undo, and after undo.
    pub(crate) transactions: [u64; 2],
}

/// All rounds of a patch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Measured {
    pub(crate) rounds: Vec<Round>,
    /// What the database's own check said afterwards.
    pub(crate) database: Vec<String>,
}

/// Applies and undoes each patch so many times.
pub(crate) fn all(kernel: &Kernel, image: &Path, patches: &[Patch], rounds: u32) -> Result<Vec<Measured>, JobError> {
    let work = tempfile::tempdir()?;
    let disk = work.path().join("disk");
    std::fs::copy(image, &disk)?;
    let mut config = Config::new("paper", &kernel.vmlinuz());
    let modules = modules::in_order(kernel, modules::OF_A_DISK)?;
    config.disk = Some(Disk { image: disk.clone(), modules });
    let mut guest = Guest::under_lucos_hv(&config)?;
    say(&format!(
        "Debian {} runs {} on {} processors, after {} ms",
        guest.run_ok("cat /etc/debian_version")?.trim(),
        guest.run_ok("uname -r")?.trim(),
        guest.run_ok("nproc")?.trim(),
        guest.boot_ms()
    ));
    let database = guest.start_database()?;
    let hv = Hv::new(guest.api());
    let mut bench = Bench { guest, hv, database, kernel };
    let start = bench.goes_on(None, "after boot")?;
    say(&format!("the database works: {} transactions so far", start.total()));
    let began = Instant::now();
    let mut measured = Vec::new();
    for patch in patches {
        measured.push(bench.patch(patch, rounds)?);
        say(&format!("{}: applied and undone {rounds} times", patch.file));
    }
    let end = bench.goes_on(None, "at the end")?;
    let seconds = began.elapsed().as_secs_f64();
    let done = end.total() - start.total();
    say(&format!("{done} transactions in {seconds:.0} s ({:.1} per second), no error", done as f64 / seconds));
    let Bench { mut guest, database, .. } = bench;
    guest.stop_database(database)?;
    guest.power_off()?;
    if !Engine::wanted().map_err(GuestError::from)?.is_in_box() {
        whole(&disk)?;
    }
    Ok(measured)
}

/// Whether a file system is as it should be.
fn whole(disk: &Path) -> Result<(), JobError> {
    let output = Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(disk).output()?;
    let said = format!("{}: {}", output.status, String::from_utf8_lossy(&output.stdout));
    see("e2fsck of the guest's disk", "no fault", &said, output.status.success())?;
    say("the guest's file system is whole (e2fsck)");
    Ok(())
}

struct Bench<'a> {
    guest: Guest,
    hv: Hv,
    database: Database,
    kernel: &'a Kernel,
}

impl Bench<'_> {
    fn patch(&mut self, patch: &Patch, rounds: u32) -> Result<Measured, JobError> {
        let functions = patch.built.functions();
        let before = entries(&mut self.guest, self.kernel, &functions)?;
        let mut measured = Vec::new();
        let mut last = self.goes_on(None, "before apply")?;
        for round in 1..=rounds {
            let name = &patch.built.name;
            let (apply, shown) = self.apply(patch)?;
            if round == 1 {
                let after = entries(&mut self.guest, self.kernel, &functions)?;
                let jumps = after.iter().all(|entry| is_redirected(entry));
                see(&format!("{name} after apply"), "a jump in every function", "another instruction", jumps)?;
            }
            let middle = self.goes_on(Some(&last), &format!("while {name} is applied"))?;
            let undo = self.undo(patch)?;
            let end = self.goes_on(Some(&middle), &format!("after {name} was undone"))?;
            measured.push(Round {
                apply,
                undo,
                threads_inside: shown.number("/open/frames") as u64,
                synchronised: (shown.number("/open/to_new") + shown.number("/open/to_old")) as u64,
                open_ms: shown.number("/open/ms") as u64,
                transactions: [middle.total() - last.total(), end.total() - middle.total()],
            });
            last = end;
            if round == rounds {
                let says =
                    patch.built.outcome.items("/data_changes").iter().any(|datum| datum["strategy"] == "in-place");
                let edited = !edited_data(&shown).is_empty();
                see(&format!("{name}: data edited in place"), &says.to_string(), &edited.to_string(), says == edited)?;
            }
        }
        let undone = entries(&mut self.guest, self.kernel, &functions)?;
        see(&format!("{} after undo", patch.built.name), "code as before", "other code", undone == before)?;
        let warnings = self.guest.kernel_warnings()?;
        see("kernel log", "no warning", &warnings.join("\n"), warnings.is_empty())?;
        let database = self.guest.check_database(&self.database)?;
        see("integrity_check", "ok", &database.join("; "), database.iter().all(|said| said == "ok"))?;
        Ok(Measured { rounds: measured, database })
    }

    /// Applies it; what `show` says when nobody is inside any more.
    fn apply(&mut self, patch: &Patch) -> Result<(Action, Outcome), JobError> {
        let (outcome, asked) = patiently(|| Ok(self.hv.apply(&patch.built.bundle)?))?;
        let shown = live::settled(&self.hv, &patch.built, &outcome)?;
        Ok((Action::of(&outcome, asked), shown))
    }

    fn undo(&mut self, patch: &Patch) -> Result<Action, JobError> {
        let (outcome, asked) = patiently(|| Ok(self.hv.undo(&patch.built.name)?))?;
        live::gone(&self.hv, &patch.built, &outcome)?;
        Ok(Action::of(&outcome, asked))
    }

    /// Waits until every processor has done more transactions than at the last look, or than now.
    fn goes_on(&mut self, last: Option<&Work>, when: &str) -> Result<Work, JobError> {
        let start = Instant::now();
        let first = match last {
            Some(last) => last.clone(),
            None => self.guest.database_work(&self.database)?,
        };
        loop {
            let now = self.guest.database_work(&self.database)?;
            see(&format!("database {when}"), "no error", &now.errors, now.errors.is_empty())?;
            if now.is_beyond(&first, TRANSACTIONS) {
                return Ok(now);
            }
            let seen =
                format!("{:?} and then {:?} within {} s", first.transactions, now.transactions, PATIENCE.as_secs());
            see(&format!("database {when}"), "transactions of every processor", &seen, start.elapsed() < PATIENCE)?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Asks again while threads are in the way; the last answer, and how often was asked.
fn patiently(mut ask: impl FnMut() -> Result<Outcome, JobError>) -> Result<(Outcome, u32), JobError> {
    let mut asked = 1;
    loop {
        let outcome = ask()?;
        if outcome.status != 3 || outcome.text("/error/reason") != "busy" || asked == AGAIN {
            return Ok((outcome, asked));
        }
        asked += 1;
    }
}
