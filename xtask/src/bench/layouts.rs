//! Layouts of two releases compared, against two runs of pahole that dump the same images.
//!
//! Comes in: two kernels with their debug part. Decided: whether the limits of SPECIFICATION.md are kept. Goes out: a table:
//! both times, taken in turns, their ratio, and the most memory that was used.

use super::spread;
use crate::JobError;
use comfy_table::{Table, presets};
use lucos_tests::commands;
use lucos_tests::kernels::Pair;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How often both are run.
const RUNS: usize = 5;
/// The comparison may take this part of the time of the two dumps.
const MOST_OF_PAHOLE: f64 = 1.0 / 20.0;
/// Memory that the comparison may use.
const MOST_MIB: f64 = 1024.0;

pub(super) fn run(pair: &Pair) -> Result<(), JobError> {
    let program = commands::program("lucos-build")?;
    let (old, new) = (pair.older.vmlinux(), pair.newer.vmlinux());
    // Both find the images in memory: neither is to wait for a disk.
    for image in [&old, &new] {
        std::io::copy(&mut std::fs::File::open(image)?, &mut std::io::sink())?;
    }
    let (mut ours, mut theirs, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let mut command = Command::new(&program);
        let (seconds, mib) = timed(command.arg("layout").args([&old, &new]), &[0, 4])?;
        ours.push(seconds);
        memory.push(mib);
        let mut dumps = 0.0;
        for image in [&old, &new] {
            dumps += timed(Command::new("pahole").args(["-F", "dwarf"]).arg(image), &[0])?.0;
        }
        theirs.push(dumps);
    }
    let ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["measured", "smallest", "median", "largest", "unit", "times"]);
    for (name, values, unit, digits) in [
        ("lucos-build layout, two images", &ours, "s", 2),
        ("pahole -F dwarf, both images", &theirs, "s", 2),
        ("layout ÷ pahole", &ratios, "", 4),
        ("memory of lucos-build layout", &memory, "MiB", 0),
    ] {
        let mut row = vec![name.to_owned()];
        row.extend(spread(values).map(|value| format!("{value:.digits$}")));
        row.extend([unit.to_owned(), values.len().to_string()]);
        table.add_row(row);
    }
    println!("{} and {}, all types\n{table}", pair.older.release, pair.newer.release);
    let [_, ratio, _] = spread(&ratios);
    let [.., peak] = spread(&memory);
    let checks = [("layout ÷ pahole", ratio, MOST_OF_PAHOLE), ("memory of lucos-build layout, in MiB", peak, MOST_MIB)];
    match checks.into_iter().find(|(_, seen, most)| seen > most) {
        Some((what, seen, most)) => Err(JobError::NotSeen {
            what: what.to_owned(),
            expected: format!("at most {most:.4}"),
            seen: format!("{seen:.4}"),
        }),
        None => Ok(()),
    }
}

/// How often the memory of a command is looked at: each look holds the command up.
const LOOKS: Duration = Duration::from_millis(25);

/// Seconds that a command takes, and the most memory it had, in MiB.
fn timed(command: &mut Command, statuses: &[i32]) -> Result<(f64, f64), JobError> {
    let clock = Instant::now();
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let pid = child.id();
    let (ended, has_ended) = mpsc::channel::<()>();
    let looks = std::thread::spawn(move || {
        let mut most = 0;
        // The other end is dropped when the command has ended.
        while has_ended.recv_timeout(LOOKS) == Err(mpsc::RecvTimeoutError::Timeout) {
            most = peak_kib(pid).unwrap_or(most);
        }
        most
    });
    let status = child.wait()?;
    let seconds = clock.elapsed().as_secs_f64();
    drop(ended);
    let most_kib = looks.join().unwrap_or_default();
    if !status.code().is_some_and(|code| statuses.contains(&code)) {
        return Err(JobError::Cargo { command: format!("{command:?}"), status: status.to_string() });
    }
    Ok((seconds, f64::from(most_kib) / 1024.0))
}

/// The most memory that a running process has had (proc(5), `VmHWM`).
fn peak_kib(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}
