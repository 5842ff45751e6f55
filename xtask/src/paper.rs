//! `cargo xtask paper`: table 1 of the paper (`Dynamic Update of Operating Systems`, Chen, Chen, Zhang, Zang, Fudan University, 2006), measured again.
//!
//! Comes in: the two newest releases of the distribution's kernel. Decided: five official changes, three of Type 1 and two of
//! Type 2, one with 13 functions or more ([`choose`]). Goes out: how long it took to apply and to undo each of them five times
//! on a running Debian while a database worked in it ([`measure`]), beside the paper's figures ([`table`]); status 3 when
//! something was refused, 1 when anything else was not as it must be.

mod choose;
mod measure;
mod table;

use crate::corpus::Ground;
use crate::{JobError, cargo, say};
use lucos_tests::guest::{Engine, GuestError};
use lucos_tests::setup;
use std::path::PathBuf;
use std::process::Command;

/// What can be asked for.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PaperArgs {
    /// Hypervisor under the guest: `qemu`, or `kvm`, the bundled one: in the box, unless LUCOS_TEST_BOX=0
    #[arg(long, value_name = "ENGINE", env = "LUCOS_TEST_ENGINE", value_parser = ["qemu", "kvm", "qemu-kvm"], default_value = "qemu")]
    engine: String,
    /// How often each patch is applied and undone
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Series of the kernel, such as 6.12 [default: that of the distribution's kernel]
    #[arg(long)]
    series: Option<String>,
    /// Write everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs it.
pub(crate) fn run(args: &PaperArgs) -> Result<(), JobError> {
    // What starts guests looks into the environment, and a program does not change its own.
    if std::env::var("LUCOS_TEST_ENGINE").ok().as_deref() != Some(&args.engine) {
        let mut again = Command::new(std::env::current_exe()?);
        again.args(std::env::args_os().skip(1)).env("LUCOS_TEST_ENGINE", &args.engine);
        let status = again.status()?;
        // Its status is ours; what it had to say, it has said.
        std::process::exit(status.code().unwrap_or(1));
    }
    let ground = Ground::open(&setup::Wanted { series: args.series.clone(), from: None, to: None })?;
    if Engine::wanted().map_err(GuestError::from)?.is_in_box() {
        say("building lucos-hv for the box");
        cargo::build_for_box(&[("lucos-tests", lucos_tests::boxed::AGENT), ("runtime-hv", "lucos-hv")])?;
    }
    let image = setup::root::prepare(setup::root::DATABASE, &say)?;
    let patches = choose::five(&ground)?;
    let measured = measure::all(&ground.step.older, &image, &patches, args.rounds)?;
    let report = table::Report::new(&ground, &args.engine, args.rounds, &patches, &measured);
    println!("\n{}", report.to_text());
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_vec_pretty(&report).map_err(std::io::Error::from)?)?;
    }
    Ok(())
}
