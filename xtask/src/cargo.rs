//! Jobs that are mostly cargo: build, test, ci, fuzz, bless.
//!
//! Comes in: the set-up machine. Decided: the order; the programs are built before the tests that call them. Goes out:
//! cargo's own output and status.

use crate::{JobError, demo, root, say};
use lucos_tests::guest::{Engine, GuestError};
use lucos_tests::kernels::{Pair, cache_dir};
use lucos_tests::{boxed, commands, known_state, selfbuilt, setup};
use std::path::PathBuf;
use std::process::Command;

/// The two programs, built in release mode; gives their folder.
pub(crate) fn build() -> Result<PathBuf, JobError> {
    say("building lucos-build and lucos-hv");
    let packages = ["--package", "lucos-build", "--package", "runtime-hv", "--package", "lucos-tests"];
    let programs = ["--bin", "lucos-build", "--bin", "lucos-hv", "--bin", "lucos-box"];
    run(cargo(&["build", "--quiet", "--release"]).args(packages).args(programs))?;
    let dir = commands::target_dir()?.join("release");
    commands::set_bin_dir(&dir);
    Ok(dir)
}

/// Programs for the box, linked statically, in a target folder of their own.
pub(crate) fn build_for_box(programs: &[(&str, &str)]) -> Result<(), JobError> {
    commands::set_bin_dir(&commands::target_dir()?.join("release"));
    let mut command = cargo(&["build", "--quiet", "--release"]);
    for_box(&mut command)?;
    for (package, program) in programs {
        command.args(["--package", package, "--bin", program]);
    }
    run(&mut command)
}

/// Makes a cargo command build static programs.
pub(crate) fn for_box(command: &mut Command) -> Result<(), JobError> {
    command.args(["--target", boxed::TARGET, "--target-dir"]).arg(commands::target_dir()?.join("box"));
    command.env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    Ok(())
}

/// A command in the box; its exit status.
pub(crate) fn run_in_box(options: &boxed::Options, with_lucos_hv: bool) -> Result<u8, JobError> {
    let mut options = options.clone();
    build_for_box(&[("lucos-tests", boxed::AGENT)])?;
    if with_lucos_hv {
        build_for_box(&[("runtime-hv", "lucos-hv")])?;
        options.files.push(boxed::Pair { from: boxed::static_program("lucos-hv")?, to: None });
    }
    Ok(boxed::run(&options)?)
}

/// The demo on an engine.
pub(crate) fn demo(engine: &str) -> Result<(), JobError> {
    if again_on(engine)? {
        return Ok(());
    }
    build_for_engine()?;
    demo::run()
}

/// Does this very job in a process whose environment says the engine, unless this is one: what starts guests looks there, and a
/// program does not change its own. Says whether it was done.
pub(crate) fn again_on(engine: &str) -> Result<bool, JobError> {
    if std::env::var("LUCOS_TEST_ENGINE").ok().as_deref() == Some(engine) {
        return Ok(false);
    }
    let mut again = Command::new(std::env::current_exe()?);
    run(again.args(std::env::args_os().skip(1)).env("LUCOS_TEST_ENGINE", engine)).map(|()| true)
}

/// What the engine that is wanted needs beside the two programs.
pub(crate) fn build_for_engine() -> Result<(), JobError> {
    if Engine::wanted().map_err(GuestError::from)?.is_in_box() {
        say("building lucos-hv for the box");
        build_for_box(&[("lucos-tests", boxed::AGENT), ("runtime-hv", "lucos-hv")])?;
    }
    Ok(())
}

/// All tests.
pub(crate) fn test(args: &[String], require_all: bool) -> Result<(), JobError> {
    let pair = setup::prepare(&say)?;
    setup::for_tests(&say)?;
    selfbuilt::prepare(&pair.older, &say)?;
    known_state::prepare(&cache_dir()?, &pair.older, &say)?;
    let mut command = test_command(&pair)?;
    if args.is_empty() {
        command.arg("--workspace");
    }
    command.args(args);
    if require_all {
        command.env("LUCOS_REQUIRE_ALL", "1");
    }
    run(&mut command)
}

/// Format, lints, documentation, a sample of the official changes, and what README tells people to run: the demo and
/// the tests.
pub(crate) fn ci() -> Result<(), JobError> {
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    run(cargo(&["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "--deny warnings"))?;
    crate::demo::run()?;
    crate::corpus::run(&crate::corpus::CorpusArgs::small())?;
    test(&[], true)?;
    crate::kvm::run(false)
}

/// Live updates, stack walks and slab walks of a kernel of another series, given or the newest.
pub(crate) fn series(series: Option<&str>) -> Result<(), JobError> {
    let kernel = setup::another_series(series, &say)?;
    say(&format!("kernel: {} ({})", kernel.release, kernel.version));
    let dir = build()?;
    let mut command = cargo(&["test", "--package", "lucos-tests"]);
    command.args(["--test", "live_series", "--test", "unwind", "--test", "slab"]);
    command.args(["--", "--ignored", "--test-threads", "1"]);
    command.env("LUCOS_BIN_DIR", dir).env("LUCOS_TEST_SERIES", kernel.vmlinuz()).env("LUCOS_REQUIRE_ALL", "1");
    run(&mut command)
}

/// Every fuzz target for a while.
pub(crate) fn fuzz(seconds: u32) -> Result<(), JobError> {
    let dir = root().join("fuzz");
    if !Command::new("cargo-fuzz").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Err(JobError::NoFuzz);
    }
    let output = Command::new("cargo").args(["+nightly", "fuzz", "list"]).current_dir(&dir).output()?;
    let targets = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() || targets.trim().is_empty() {
        return Err(JobError::Cargo {
            command: "cargo +nightly fuzz list".to_owned(),
            status: format!("{} {}", output.status, String::from_utf8_lossy(&output.stderr)),
        });
    }
    for target in targets.split_whitespace() {
        let limit = format!("-max_total_time={seconds}");
        run(Command::new("cargo").args(["+nightly", "fuzz", "run", target, "--", &limit]).current_dir(&dir))?;
    }
    Ok(())
}

/// Rewrites expected results; the walkers do it when `LUCOS_BLESS=1`.
pub(crate) fn bless() -> Result<(), JobError> {
    let pair = setup::prepare(&say)?;
    let mut library = test_command(&pair)?;
    run(library
        .args(["--package", "diff-analyzer", "--package", "prelink", "--package", "lucos-build"])
        .env("LUCOS_BLESS", "1"))?;
    let mut cases = test_command(&pair)?;
    run(cases.args(["--package", "lucos-tests", "--test", "build_cases"]).env("LUCOS_BLESS", "1"))?;
    say("expected results were rewritten where they differed: `git diff testdata` shows how");
    Ok(())
}

/// `cargo test` with everything that guest tests look for.
pub(crate) fn test_command(pair: &Pair) -> Result<Command, JobError> {
    let dir = build()?;
    build_for_box(&[("lucos-tests", boxed::AGENT)])?;
    if Engine::wanted().map_err(GuestError::from)?.is_in_box() {
        build_for_box(&[("runtime-hv", "lucos-hv")])?;
    }
    let mut command = cargo(&["test"]);
    command
        .env("LUCOS_BIN_DIR", dir)
        .env("LUCOS_TEST_KERNEL", pair.older.vmlinuz())
        .env("LUCOS_TEST_VMLINUX", pair.older.vmlinux())
        .env("LUCOS_TEST_NEWER", pair.newer.vmlinuz());
    Ok(command)
}

pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

pub(crate) fn run(command: &mut Command) -> Result<(), JobError> {
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(JobError::Cargo { command: format!("{command:?}").replace('"', ""), status: status.to_string() })
    }
}
