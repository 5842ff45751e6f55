//! Random steps on a guest with the module of known state: updates come and go, and nothing may be lost.
//!
//! Comes in: a kernel, the module, a seed. Decided: each step by chance: a bundle is applied or taken back, or the module is
//! unloaded and loaded again. Goes out: what was done, counted; or the first thing that is not as it must be, with the way there.

use crate::commands::{CommandError, Hv, Outcome};
use crate::guest::{Config, Guest, GuestError};
use crate::kernels::Kernel;
use crate::known_state::{self, KnownState, State, UpdateError, is_refused};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The module in the guest.
const MODULE: &str = "lucos_state";
/// One step of so many reloads the module.
const RELOAD: usize = 40;
/// An update waits so long for a moment when it can come or go.
const PATIENCE: Duration = Duration::from_secs(60);

/// Steps are told of each so many.
const TOLD: usize = 20;
/// Updates that are not for random steps: they are about a moment of their own.
const APART: [&str; 2] = ["type2-open-the-gate", "type2-move-what-is-written"];

/// How long the steps go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// So many.
    Steps(usize),
    /// So long.
    Time(Duration),
}

/// What was done, when nothing was wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Processors of the guest.
    pub cpus: u32,
    /// The seed, which brings the same steps again.
    pub seed: u64,
    /// Steps.
    pub steps: usize,
    /// How often each thing happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// Longest stop of the guest of each action, in microseconds, sorted.
    pub pauses: Vec<u64>,
    /// Rounds of the module's threads, each through all counted functions, since it was loaded last.
    pub rounds: i64,
}

impl fmt::Display for Summary {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpus, seed, steps, counts, pauses, rounds } = self;
        let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        let (median, last) = (pauses.get(pauses.len() / 2), pauses.last());
        let (median, most) = (median.copied().unwrap_or_default(), last.copied().unwrap_or_default());
        write!(
            to,
            "{cpus} processors, seed {seed}, {steps} steps ({}), nothing wrong; stops of {median} µs (median), at most {most} µs; \
             the module's threads did {rounds} rounds after it was loaded last",
            counts.join(", ")
        )
    }
}

/// Boots a guest and takes random steps.
///
/// # Errors
/// [`SoakError`]; [`SoakError::Fault`] when something was wrong.
pub fn run(
    kernel: &Kernel,
    known: &KnownState,
    cpus: u32,
    seed: u64,
    until: Until,
    say: &dyn Fn(&str),
) -> Result<Summary, SoakError> {
    let work = tempfile::tempdir().map_err(GuestError::from)?;
    let mut bundles = Vec::new();
    for update in known_state::updates()?.into_iter().filter(|update| !APART.contains(&update.name.as_str())) {
        let bundle = update.build(known, work.path())?;
        bundles.push((update.name, bundle));
    }
    let name = format!("known-state-{cpus}");
    let config = Config { files: vec![known.module.clone()], cpus, ..Config::new(&name, &kernel.vmlinuz()) };
    let mut guest = Guest::under_lucos_hv(&config)?;
    let mut soak = Soak::begin(&mut guest, bundles, seed)?;
    let start = Instant::now();
    loop {
        let over = match until {
            Until::Steps(steps) => soak.step >= steps,
            Until::Time(time) => start.elapsed() >= time,
        };
        if over {
            break;
        }
        soak.step()?;
        if soak.step.is_multiple_of(TOLD) {
            say(&format!("{} steps in {} s: {:?}", soak.step, start.elapsed().as_secs(), soak.counts));
        }
    }
    let mut summary = soak.end()?;
    summary.cpus = cpus;
    guest.power_off()?;
    Ok(summary)
}

/// Why the steps ended.
#[derive(Debug, thiserror::Error)]
pub enum SoakError {
    /// Something is not as it must be.
    #[error("step {step} (seed {seed}), {what}: {faults}\nthe last steps:\n{way}")]
    Fault {
        /// Number of the step.
        step: usize,
        /// The seed.
        seed: u64,
        /// What was done.
        what: String,
        /// What is wrong.
        faults: String,
        /// The steps before.
        way: String,
    },
    /// The guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// `lucos-hv`.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// An update could not be built.
    #[error(transparent)]
    Update(#[from] UpdateError),
}

/// A guest that updates come to and go from.
struct Soak<'a> {
    guest: &'a mut Guest,
    hv: Hv,
    bundles: Vec<(String, PathBuf)>,
    seed: u64,
    random: fastrand::Rng,
    step: usize,
    way: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
    pauses: Vec<u64>,
}

impl<'a> Soak<'a> {
    /// Loads the module, which the guest has in `/files`.
    fn begin(guest: &'a mut Guest, bundles: Vec<(String, PathBuf)>, seed: u64) -> Result<Self, SoakError> {
        guest.run_ok(&format!("insmod /files/{MODULE}.ko || {{ dmesg | tail -n 5; false; }}"))?;
        let hv = Hv::new(guest.api());
        let random = fastrand::Rng::with_seed(seed);
        let (way, counts, pauses) = (Vec::new(), BTreeMap::new(), Vec::new());
        Ok(Self { guest, hv, bundles, seed, random, step: 0, way, counts, pauses })
    }

    /// One step by chance, and a look at everything.
    fn step(&mut self) -> Result<(), SoakError> {
        self.step += 1;
        let what = if self.random.usize(0..RELOAD) == 0 { self.reload()? } else { self.come_or_go()? };
        self.way.push(what.clone());
        let faults = State::read(self.guest)?.faults();
        if faults.is_empty() { Ok(()) } else { Err(self.fault(what, &faults)) }
    }

    /// Takes back all that is in effect, and looks at the guest as a whole.
    fn end(mut self) -> Result<Summary, SoakError> {
        for name in self.in_effect()? {
            let what = format!("undo {name}");
            let outcome = self.patiently(&what, |hv| hv.undo(&name))?;
            self.expect(&what, &outcome, &["removed", "undoing"])?;
        }
        let state = State::read(self.guest)?;
        let mut faults = state.faults();
        self.guest.run_ok(&format!("rmmod {MODULE}"))?;
        faults.extend(self.guest.kernel_warnings()?);
        if !faults.is_empty() {
            return Err(self.fault("the end".to_owned(), &faults));
        }
        let Self { seed, step: steps, counts, mut pauses, .. } = self;
        pauses.sort_unstable();
        Ok(Summary { cpus: 0, seed, steps, counts, pauses, rounds: state.get("rounds") })
    }

    fn come_or_go(&mut self) -> Result<String, SoakError> {
        let (name, bundle) = self.bundles[self.random.usize(0..self.bundles.len())].clone();
        let is_there = self.in_effect()?.contains(&name);
        let word = if is_there { "undo" } else { "apply" };
        let what = format!("{word} {name}");
        // Threads that never leave stay, or are moved.
        let stay = !is_there && self.random.bool();
        let what = if stay { format!("{what} --stay") } else { what };
        let outcome = if is_there {
            self.patiently(&what, |hv| hv.undo(&name))?
        } else {
            self.patiently(&what, |hv| if stay { hv.apply_stay(&bundle) } else { hv.apply(&bundle) })?
        };
        *self.counts.entry("moved").or_default() += outcome.items("/moved").len() as u64;
        if stay && !outcome.items("/moved").is_empty() {
            return Err(self.fault(what, &[outcome.describe()]));
        }
        let states: &[&str] = if is_there { &["removed", "undoing"] } else { &["applied", "open"] };
        self.expect(&what, &outcome, states)?;
        *self.counts.entry(word).or_default() += 1;
        for state in ["open", "undoing"] {
            if outcome.text("/state") == state {
                *self.counts.entry(state).or_default() += 1;
            }
        }
        if !is_there {
            // The same again is refused, whatever its state is by now.
            let again = self.hv.apply(&bundle)?;
            if !is_refused(&again, &["already-applied"]) {
                return Err(self.fault(what, &[again.describe()]));
            }
        }
        self.pauses.push(outcome.number("/times_us/longest_pause") as u64);
        Ok(format!("{what}: {}", outcome.text("/state")))
    }

    /// The module goes, with all that it had, and comes back; the updates follow it.
    fn reload(&mut self) -> Result<String, SoakError> {
        self.guest.run_ok(&format!("rmmod {MODULE}"))?;
        self.wait("waiting")?;
        self.guest.run_ok(&format!("insmod /files/{MODULE}.ko"))?;
        self.wait("applied")?;
        *self.counts.entry("reload").or_default() += 1;
        Ok("reload".to_owned())
    }

    /// Waits until the module's part of each bundle in effect has a state.
    fn wait(&mut self, state: &str) -> Result<(), SoakError> {
        let start = Instant::now();
        for name in self.in_effect()? {
            loop {
                let outcome = self.hv.show(&name)?;
                if outcome.text("/modules/0/state") == state {
                    break;
                }
                if start.elapsed() > PATIENCE {
                    return Err(self.fault(format!("waiting until it is {state}"), &[outcome.describe()]));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn in_effect(&mut self) -> Result<Vec<String>, SoakError> {
        let outcome = self.hv.list()?;
        let is_it = |item: &&serde_json::Value| matches!(item["state"].as_str(), Some("applied" | "open"));
        Ok(outcome.items("").iter().filter(is_it).filter_map(|item| Some(item["name"].as_str()?.to_owned())).collect())
    }

    /// Tries until the moment is right.
    fn patiently(
        &mut self,
        what: &str,
        action: impl Fn(&Hv) -> Result<Outcome, CommandError>,
    ) -> Result<Outcome, SoakError> {
        let start = Instant::now();
        loop {
            let outcome = action(&self.hv)?;
            if !is_refused(&outcome, &["busy"]) {
                return Ok(outcome);
            }
            *self.counts.entry("busy").or_default() += 1;
            if start.elapsed() > PATIENCE {
                return Err(self.fault(what.to_owned(), &[outcome.describe()]));
            }
        }
    }

    fn expect(&self, what: &str, outcome: &Outcome, states: &[&str]) -> Result<(), SoakError> {
        let lost = outcome.number("/open/lost");
        if outcome.status == 0 && states.contains(&outcome.text("/state")) && lost == 0.0 {
            return Ok(());
        }
        Err(self.fault(what.to_owned(), &[outcome.describe()]))
    }

    fn fault(&self, what: String, faults: &[String]) -> SoakError {
        let from = self.way.len().saturating_sub(12);
        SoakError::Fault {
            step: self.step,
            seed: self.seed,
            what,
            faults: faults.join("; "),
            way: self.way[from..].join("\n"),
        }
    }
}
