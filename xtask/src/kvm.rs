//! `cargo xtask kvm`: the bundled hypervisor's tests, where KVM works.
//!
//! Comes in: the set-up machine. Decided: whether this machine's own KVM is used (LUCOS_TEST_BOX=0) or that of the box. Goes
//! out: four things, each with cargo's or the box's status: the engine's tests on a guest of a few instructions, what its
//! operations cost, its calls and traps on a stock kernel, and the tests of live updates.

use crate::{JobError, cargo, say};
use lucos_tests::guest::{Engine, GuestError};
use lucos_tests::kernels::cache_dir;
use lucos_tests::{boxed, commands, initramfs, known_state, selfbuilt, setup};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// The emulated virtualisation is unreliable when one hypervisor runs on two processors of the box.
const BIND: [&str; 2] = ["taskset", "1"];
/// Far more than they take.
const LIMIT_S: &str = "900";

pub(crate) fn run(all: bool) -> Result<(), JobError> {
    // What starts guests looks into the environment, and a program does not change its own.
    if std::env::var("LUCOS_TEST_ENGINE").as_deref() != Ok("kvm") {
        let mut again = Command::new(std::env::current_exe()?);
        again.arg("kvm").args(all.then_some("--all")).env("LUCOS_TEST_ENGINE", "kvm");
        return cargo::run(&mut again);
    }
    let pair = setup::prepare(&say)?;
    known_state::prepare(&cache_dir()?, &pair.older, &say)?;
    if all {
        setup::for_tests(&say)?;
        selfbuilt::prepare(&pair.older, &say)?;
    }
    let in_box = Engine::wanted().map_err(GuestError::from)?.is_in_box();
    let hv = if in_box {
        cargo::build_for_box(&[("lucos-tests", boxed::AGENT), ("runtime-hv", "lucos-hv")])?;
        boxed::static_program("lucos-hv")?
    } else {
        cargo::build()?.join("lucos-hv")
    };
    say("the engine on a guest of a few instructions");
    let tests = tests(in_box, &["--lib"])?;
    execute(in_box, &tests, &["engine::kvm", "--skip", "virtio", "--test-threads=1"], &[])?;
    say("what its operations cost");
    execute(in_box, &hv, &["probe", "--measure"], &[])?;
    say("calls and traps on a stock kernel");
    let work = tempfile::tempdir()?;
    let initrd = work.path().join("initrd");
    initramfs::write(&initrd)?;
    // Its debug information is six times as large as the rest, and the loader does not look at it.
    let image = work.path().join("vmlinux");
    cargo::run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&image).arg(pair.older.vmlinux()))?;
    let tests = self::tests(in_box, &["--test", "kvm_engine"])?;
    let files = [
        ("LUCOS_KVM_KERNEL", pair.older.vmlinuz()),
        ("LUCOS_KVM_IMAGE", image),
        ("LUCOS_KVM_INITRD", initrd),
        ("LUCOS_KVM_SYMBOLS", pair.older.system_map()),
    ];
    execute(in_box, &tests, &["--test-threads=1", "--nocapture"], &files)?;
    say("live updates of a stock kernel");
    let mut live = cargo::test_command(&pair)?;
    // With the features that all tests are built with, so that nothing is built twice.
    live.args(["--workspace", "--no-fail-fast"]);
    let tests: &[&str] = if all {
        &["live*", "known_state", "refused", "official", "by_hand", "selfbuilt", "root_file_system"]
    } else {
        // What asks most of an engine: threads inside old code, data in two copies.
        &["live_open", "known_state"]
    };
    live.args(tests.iter().flat_map(|test| ["--test", test]));
    live.args(["--", "--test-threads", "1"]).env("LUCOS_REQUIRE_ALL", "1");
    if !all {
        // All processors of a guest run on one of the box: four show nothing here that two do not, and take twice the time.
        live.args(["--skip", "four_processors"]);
    }
    for _ in 0..RUNS_LOST {
        let began = SystemTime::now();
        match cargo::run(&mut live) {
            Err(_) if in_box && is_box_lost(began)? => {
                say("a box was lost or stood still, which is no verdict on what ran in it: once more");
            }
            outcome => return outcome,
        }
    }
    cargo::run(&mut live)
}

/// So many runs may be lost to the box before one must count.
const RUNS_LOST: usize = 2;

/// What logs of guests say of a box that was lost, or that stood still for so long that a guest in it has missed its own timers.
const LOST: [&str; 3] = ["LOST BOX:", "rcu: INFO: rcu_preempt", "watchdog: BUG: soft lockup"];

/// Whether a box of a test was lost since a moment: its program says so on standard error, which is among the guests' logs.
fn is_box_lost(since: SystemTime) -> Result<bool, JobError> {
    let logs = commands::target_dir()?.join("guest-logs");
    for entry in std::fs::read_dir(logs)?.filter_map(Result::ok) {
        let is_new = entry.metadata().and_then(|data| data.modified()).is_ok_and(|time| time >= since);
        let text = if is_new { std::fs::read(entry.path()).unwrap_or_default() } else { Vec::new() };
        let text = String::from_utf8_lossy(&text);
        if let Some(sign) = LOST.into_iter().find(|sign| text.contains(sign)) {
            say(&format!("{} says `{sign}`", entry.path().display()));
            return Ok(true);
        }
    }
    Ok(false)
}

/// A program of tests; for the box, a static one.
fn tests(in_box: bool, which: &[&str]) -> Result<PathBuf, JobError> {
    let mut command = cargo::cargo(&["test", "--quiet", "--release", "--no-run", "--package", "runtime-hv"]);
    command.args(which).args(["--message-format", "json"]).stderr(Stdio::inherit());
    if in_box {
        cargo::for_box(&mut command)?;
    }
    let built = command.output()?;
    let lines = String::from_utf8_lossy(&built.stdout);
    let program = lines.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        // The programs that a test may call are built, too.
        let executable = message["executable"].as_str().filter(|_| message["profile"]["test"] == true)?;
        Some(PathBuf::from(executable))
    });
    let status = built.status;
    program
        .filter(|_| status.success())
        .ok_or_else(|| JobError::Cargo { command: format!("{command:?}").replace('"', ""), status: status.to_string() })
}

/// Runs a program where KVM works; it finds the files by their variables.
fn execute(in_box: bool, program: &Path, arguments: &[&str], files: &[(&str, PathBuf)]) -> Result<(), JobError> {
    if !in_box {
        let files = files.iter().map(|(variable, path)| (variable, path));
        return cargo::run(Command::new(program).args(arguments).env("LUCOS_REQUIRE_KVM", "1").envs(files));
    }
    // A process for each box: it takes over signals and standard input.
    let inside = |path: &Path| format!("/files/{}", path.file_name().unwrap_or_default().to_string_lossy());
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["box", "--name", "kvm", "--memory", "1536", "--limit", LIMIT_S]);
    for path in std::iter::once(program).chain(files.iter().map(|(_, path)| path.as_path())) {
        command.arg("--file").arg(path);
    }
    command.args(["--", "env", "LUCOS_REQUIRE_KVM=1"]);
    command.args(files.iter().map(|(variable, path)| format!("{variable}={}", inside(path))));
    command.args(BIND).arg(inside(program)).args(arguments);
    let status = command.status()?;
    if status.code() == Some(i32::from(boxed::LOST)) {
        say("the box was lost, which is no verdict on what ran in it: once more");
        return cargo::run(&mut command);
    }
    let failed =
        || JobError::Cargo { command: format!("{} in the box", program.display()), status: status.to_string() };
    if status.success() { Ok(()) } else { Err(failed()) }
}
