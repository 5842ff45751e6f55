//! Some of the corpus' bundles on the running kernel.
//!
//! Comes in: bundles. Decided: each goes in alone and comes out again under a load, one after another in one boot; a
//! guest that was lost or complained is started again for the next. Goes out: [`Tried`], one per bundle.

use super::entry::Entry;
use crate::live::{Built, entries as code, is_redirected};
use crate::{JobError, live, say};
use lucos_tests::commands::{Hv, Outcome};
use lucos_tests::guest::{Config, Guest, Load};
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::{VISIBLE_FILE, VISIBLE_WORDS};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// Rounds of the load on every processor while a bundle is applied, and after it was taken back.
const ROUNDS: u64 = 3;
/// How long these may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Work beside the usual load: network, pipes, files, mounts, all of /proc.
const MORE_LOAD: &str = r#"
ip link set lo up 2>/dev/null || ifconfig lo 127.0.0.1 up
mkdir -p /tmp/more/m
while :; do
  ping -c 2 -i 0.2 127.0.0.1 >/dev/null 2>&1
  ( echo hello | nc -l -p 7777 >/dev/null 2>&1 & sleep 0.1; echo there | nc -w 1 127.0.0.1 7777 >/dev/null 2>&1; wait )
  mount -t tmpfs more /tmp/more/m && dd if=/dev/zero of=/tmp/more/m/f bs=4k count=64 2>/dev/null; mv /tmp/more/m/f /tmp/more/m/g; ln -s g /tmp/more/m/l; cat /tmp/more/m/l >/dev/null; umount /tmp/more/m
  cat /proc/[0-9]*/stat /proc/[0-9]*/maps /proc/[0-9]*/wchan /proc/net/* /proc/interrupts /proc/slabinfo >/dev/null 2>&1
  find /sys/class /sys/kernel -type f -maxdepth 3 2>/dev/null | head -n 200 >/dev/null
  ps >/dev/null; ip addr >/dev/null 2>&1; ip route >/dev/null 2>&1; df >/dev/null 2>&1
  n=$((n+1)); echo $n > /tmp/more/new; mv /tmp/more/new /tmp/more/rounds
done
"#;

/// What happened with one bundle.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Tried {
    pub(crate) file: String,
    /// `type1` or `type2`.
    pub(crate) update_type: String,
    /// `ok`, `refused` (the guest was left as it was), or `harmed`.
    pub(crate) verdict: &'static str,
    pub(crate) functions: usize,
    /// Reason, or what was seen.
    pub(crate) message: String,
    pub(crate) apply_pause_us: f64,
    pub(crate) undo_pause_us: f64,
}

struct Machine {
    guest: Guest,
    hv: Hv,
    load: Load,
}

impl Machine {
    fn start(kernel: &Kernel) -> Result<Self, JobError> {
        let mut guest = Guest::under_lucos_hv(&Config::new("corpus", &kernel.vmlinuz()))?;
        let hv = Hv::new(guest.api());
        let load = guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS)?;
        guest.run_ok(&format!("cat > /tmp/more.sh <<'EOF'\n{MORE_LOAD}\nEOF"))?;
        guest.run_ok("setsid sh /tmp/more.sh >/tmp/more.log 2>&1 &")?;
        let mut machine = Self { guest, hv, load };
        machine.work("after boot")?;
        Ok(machine)
    }

    /// Waits until every processor has gone on working.
    fn work(&mut self, when: &str) -> Result<(), JobError> {
        let first = self.guest.load_progress(&self.load)?;
        let start = std::time::Instant::now();
        while start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(200));
            let now = self.guest.load_progress(&self.load)?;
            if now.wrong != 0 {
                return Err(not_seen("reads of the load", &format!("{now:?} {when}")));
            }
            if now.fewest >= first.fewest + ROUNDS {
                return Ok(());
            }
        }
        Err(not_seen("work on every processor", &format!("none within {} s {when}", PATIENCE.as_secs())))
    }

    fn quiet(&mut self, when: &str) -> Result<(), JobError> {
        let warnings = self.guest.kernel_warnings()?;
        if warnings.is_empty() {
            Ok(())
        } else {
            Err(not_seen("kernel log", &format!("{when}: {}", warnings.join("; "))))
        }
    }
}

fn not_seen(what: &str, seen: &str) -> JobError {
    JobError::NotSeen { what: what.to_owned(), expected: "none of this".to_owned(), seen: seen.to_owned() }
}

/// Tries bundles, in the order given.
pub(crate) fn run(folder: &Path, kernel: &Kernel, entries: &[&Entry]) -> Result<Vec<Tried>, JobError> {
    let mut machine: Option<Machine> = None;
    let mut tried = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let running = match machine.as_mut() {
            Some(running) => running,
            None => machine.insert(Machine::start(kernel)?),
        };
        let result = one(folder, kernel, entry, running);
        if result.verdict == "harmed" {
            machine = None;
        }
        say(&format!("live {}/{} {}: {} {}", index + 1, entries.len(), entry.file, result.verdict, result.message));
        tried.push(result);
    }
    if let Some(machine) = machine {
        machine.guest.power_off()?;
    }
    Ok(tried)
}

fn one(folder: &Path, kernel: &Kernel, entry: &Entry, machine: &mut Machine) -> Tried {
    let mut tried = Tried {
        file: entry.file.clone(),
        update_type: entry.verdict.clone(),
        verdict: "ok",
        functions: entry.functions,
        message: String::new(),
        apply_pause_us: 0.0,
        undo_pause_us: 0.0,
    };
    match steps(folder, kernel, entry, machine, &mut tried) {
        Ok(()) => {}
        Err(JobError::Tool { status: 3, outcome, .. }) => {
            // Refused: right only if the guest goes on as before.
            tried.verdict = "refused";
            tried.message = outcome;
            if let Err(error) = machine.work("after a refusal").and_then(|()| machine.quiet("after a refusal")) {
                tried.verdict = "harmed";
                tried.message = format!("{error}; {}", tried.message);
            }
        }
        Err(error) => {
            tried.verdict = "harmed";
            tried.message = error.to_string();
        }
    }
    tried
}

fn steps(
    folder: &Path,
    kernel: &Kernel,
    entry: &Entry,
    machine: &mut Machine,
    tried: &mut Tried,
) -> Result<(), JobError> {
    let place = folder.join(&entry.folder);
    let report = std::fs::read(place.join("report.json"))?;
    let outcome = Outcome {
        command: String::new(),
        status: 0,
        json: serde_json::from_slice(&report).map_err(std::io::Error::from)?,
        stdout: String::new(),
        stderr: String::new(),
        wall_ms: 0,
    };
    let built = Built { name: entry.name.clone(), bundle: place.join(format!("{}.lpk", entry.name)), outcome };
    let functions = built.functions();
    let before = code(&mut machine.guest, kernel, &functions)?;
    // Where data are is known when they have been changed once.
    let (_, shown) = live::apply_wholly(&machine.hv, &built)?;
    let data = live::edited_data(&shown);
    if !data.is_empty() {
        live::undo(&machine.hv, &built)?;
    }
    let data_before = live::contents(&mut machine.guest, &data)?;
    let shown = if data.is_empty() { shown } else { live::apply_wholly(&machine.hv, &built)?.1 };
    tried.apply_pause_us = shown.number("/times_us/paused");
    let data_after = live::contents(&mut machine.guest, &data)?;
    if data_before.iter().zip(&data_after).any(|(before, after)| before == after) {
        return Err(not_seen("data as before", "after apply"));
    }
    let after = code(&mut machine.guest, kernel, &functions)?;
    if !after.iter().all(|entry| is_redirected(entry)) {
        return Err(not_seen("entry without a jump", "after apply"));
    }
    machine.work("while applied")?;
    machine.quiet("while applied")?;
    tried.undo_pause_us = live::undo(&machine.hv, &built)?;
    if code(&mut machine.guest, kernel, &functions)? != before {
        return Err(not_seen("entry that is not as before", "after undo"));
    }
    if live::contents(&mut machine.guest, &data)? != data_before {
        return Err(not_seen("data that are not as before", "after undo"));
    }
    machine.work("after undo")?;
    machine.quiet("after undo")
}

/// Totals and what was not well.
pub(crate) fn to_text(tried: &[Tried]) -> String {
    let mut text = String::new();
    for update_type in ["type1", "type2"] {
        let of_type: Vec<&Tried> = tried.iter().filter(|one| one.update_type == update_type).collect();
        if of_type.is_empty() {
            continue;
        }
        let count = |verdict: &str| of_type.iter().filter(|one| one.verdict == verdict).count();
        let functions: usize = of_type.iter().filter(|one| one.verdict == "ok").map(|one| one.functions).sum();
        let _ = writeln!(
            text,
            "live: {} bundles of {update_type} applied and undone under load: {} ok ({functions} functions), {} refused, {} harmed",
            of_type.len(),
            count("ok"),
            count("refused"),
            count("harmed")
        );
    }
    for one in tried.iter().filter(|one| one.verdict != "ok") {
        let _ = writeln!(text, "  {}: {}: {}", one.file, one.verdict, one.message);
    }
    text
}
