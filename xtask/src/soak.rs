//! `cargo xtask soak`: random updates of a module whose state is known, for as long as is asked.
//!
//! Comes in: how long, on how many processors, which engine. Decided: a seed, unless one is given. Goes out: what was done, as a
//! line for each number of processors; an error with the seed and the last steps when anything was wrong.

use crate::{JobError, cargo, say};
use clap::Args;
use lucos_tests::kernels::cache_dir;
use lucos_tests::soak::{self, Until};
use lucos_tests::{known_state, setup};
use std::time::Duration;

#[derive(Debug, Args)]
pub(crate) struct SoakArgs {
    /// Minutes for each number of processors
    #[arg(long, default_value_t = 10, conflicts_with = "steps")]
    minutes: u64,
    /// Steps for each number of processors, instead of a time
    #[arg(long)]
    steps: Option<usize>,
    /// Processors of the guest, one after the other
    #[arg(long, value_delimiter = ',', default_value = "2,4", value_parser = clap::value_parser!(u32).range(1..=16))]
    cpus: Vec<u32>,
    /// A seed that was printed, for the same steps again
    #[arg(long)]
    seed: Option<u64>,
    /// Hypervisor under the guest: `qemu`, or `kvm`, the bundled one: in the box, unless LUCOS_TEST_BOX=0
    #[arg(long, value_name = "ENGINE", env = "LUCOS_TEST_ENGINE", value_parser = ["qemu", "kvm"], default_value = "qemu")]
    engine: String,
}

pub(crate) fn run(args: &SoakArgs) -> Result<(), JobError> {
    if cargo::again_on(&args.engine)? {
        return Ok(());
    }
    let pair = setup::prepare(&say)?;
    cargo::build()?;
    cargo::build_for_engine()?;
    let cache = cache_dir()?;
    known_state::prepare(&cache, &pair.older, &say)?;
    let known = known_state::find(&cache, &pair.older)?;
    let known = known.ok_or(JobError::NoKnownState)?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let until = args.steps.map_or(Until::Time(Duration::from_secs(args.minutes * 60)), Until::Steps);
    for &cpus in &args.cpus {
        say(&format!("random updates on {cpus} processors, seed {seed}"));
        say(&soak::run(&pair.older, &known, cpus, seed, until, &say)?.to_string());
    }
    Ok(())
}
