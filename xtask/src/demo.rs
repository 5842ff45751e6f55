//! `cargo xtask demo`: two patches on a running stock kernel, applied, seen, taken back, seen.
//!
//! Comes in: a machine. Decided: which official fix is taken (the smallest that `lucos-build` accepts). Goes out: what
//! was seen in the guest before, after and undone, and a table; an error when anything was not really observed.

use crate::live::{Built, applied, apply, entries, is_redirected, see, undo};
use crate::{JobError, cargo, say};
use comfy_table::{Table, presets};
use lucos_tests::commands::Hv;
use lucos_tests::guest::{Config, Guest, Load, Progress};
use lucos_tests::kernels::{Kernel, Pair};
use lucos_tests::patches::{self, VISIBLE_FILE, VISIBLE_WORDS};
use lucos_tests::{official, setup};
use std::path::Path;

/// How many official changes are tried at most.
const TRIES: usize = 60;

/// What happened with one patch.
struct Row {
    built: Built,
    applied_us: f64,
    undone_us: f64,
}

pub(crate) fn run() -> Result<(), JobError> {
    let pair = setup::prepare(&say)?;
    cargo::build()?;
    let kernel = &pair.older;
    let work = tempfile::tempdir()?;

    heading("Build");
    let visible = build_visible(work.path(), kernel)?;
    let fix = build_official(work.path(), &pair)?;

    heading("Boot");
    let mut guest = Guest::under_lucos_hv(&Config::new("demo", &kernel.vmlinuz()))?;
    let hv = Hv::new(guest.api());
    say(&format!(
        "{}, {} processors, at its shell after {} ms",
        guest.run_ok("uname -r")?.trim(),
        guest.run_ok("nproc")?.trim(),
        guest.boot_ms()
    ));
    let slide = guest.slide(kernel.symbol("_text")?)?;
    say(&format!("address randomisation moved the kernel by {slide:#x}; serial log: {}", guest.log().display()));
    let load = guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS)?;
    let start = work_goes_on(&mut guest, &load, None)?;

    heading(&format!("Patch 1: {} ({VISIBLE_FILE})", visible.name));
    let one = show_visible(&mut guest, &hv, kernel, visible)?;
    let middle = work_goes_on(&mut guest, &load, Some(start))?;

    heading(&format!("Patch 2: {}", fix.name));
    let two = show_official(&mut guest, &hv, kernel, fix)?;
    let end = work_goes_on(&mut guest, &load, Some(middle))?;

    heading("Afterwards");
    say(&format!("the load did {} rounds between first and last look, none of them wrong", end.rounds - start.rounds));
    let warnings = guest.kernel_warnings()?;
    see("kernel log", "no warning", &warnings.join("\n"), warnings.is_empty())?;
    say("the kernel log has no warning");
    guest.power_off()?;
    println!("\n{}", table(&[one, two])?);
    Ok(())
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn build_visible(dir: &Path, kernel: &Kernel) -> Result<Built, JobError> {
    let diff = patches::diff(&kernel.source(), &[patches::visible()])?;
    print!("{diff}");
    let built = Built::new(dir, "proc-version", &diff, kernel)?.expect_type1()?;
    say(&format!("lucos-build: type1, {} in {} ms", names(&built), built.outcome.wall_ms));
    Ok(built)
}

/// The smallest official change that becomes a Type 1 bundle.
fn build_official(dir: &Path, pair: &Pair) -> Result<Built, JobError> {
    let candidates = official::candidates(pair)?;
    say(&format!(
        "official fixes: {} built-in files changed between {} and {}",
        candidates.len(),
        pair.older.version,
        pair.newer.version
    ));
    for (index, candidate) in candidates.iter().take(TRIES).enumerate() {
        let stem = candidate.file.trim_end_matches(".c").replace('/', "-");
        let built = Built::new(dir, &format!("official-{stem}"), &candidate.diff, &pair.older)?;
        if built.is_type1() {
            print!("{}", candidate.diff);
            say(&format!(
                "lucos-build: type1, {} in {} ms; number {} of the tried changes",
                names(&built),
                built.outcome.wall_ms,
                index + 1
            ));
            return Ok(built);
        }
        let reason = built.outcome.items("/reasons").first().and_then(|reason| reason["rule"].as_str()).unwrap_or("");
        say(&format!("  {}: {} {reason}", candidate.file, built.outcome.text("/verdict")));
        if built.outcome.status != 0 && built.outcome.status != 3 {
            return Err(crate::live::failed("lucos-build", &built.outcome));
        }
    }
    let tried = candidates.len().min(TRIES);
    Err(JobError::NotSeen {
        what: "official fix".to_owned(),
        expected: "one change that becomes a type1 bundle".to_owned(),
        seen: format!("none in {tried} tried"),
    })
}

fn names(built: &Built) -> String {
    built.functions().into_iter().map(|function| function.name).collect::<Vec<_>>().join(", ")
}

/// Patch 1: its effect is read in the guest.
fn show_visible(guest: &mut Guest, hv: &Hv, kernel: &Kernel, built: Built) -> Result<Row, JobError> {
    let read = |guest: &mut Guest, moment: &str, word: &str| -> Result<(), JobError> {
        let text = guest.run_ok(&format!("cat {VISIBLE_FILE}"))?;
        let shown: String = text.chars().take(60).collect();
        println!("  {moment:<7} {shown}…");
        see(VISIBLE_FILE, &format!("first word {word}"), &text, text.starts_with(&format!("{word} ")))
    };
    let [old, new] = VISIBLE_WORDS;
    read(guest, "before", old)?;
    let code = entries(guest, kernel, &built.functions())?;
    let applied_us = apply(hv, &built)?;
    read(guest, "after", new)?;
    listed(hv, &built, true)?;
    let undone_us = undo(hv, &built)?;
    read(guest, "undone", old)?;
    listed(hv, &built, false)?;
    see("code after undo", "as before", "different bytes", entries(guest, kernel, &built.functions())? == code)?;
    Ok(Row { built, applied_us, undone_us })
}

/// Patch 2: `lucos-hv` says it is live, and the guest's own view of its code agrees.
fn show_official(guest: &mut Guest, hv: &Hv, kernel: &Kernel, built: Built) -> Result<Row, JobError> {
    let functions = built.functions();
    let look = |guest: &mut Guest, moment: &str| -> Result<Vec<Vec<u8>>, JobError> {
        let code = entries(guest, kernel, &functions)?;
        for (function, entry) in functions.iter().zip(&code) {
            let bytes: Vec<String> = entry.iter().map(|byte| format!("{byte:02x}")).collect();
            println!("  {moment:<7} {} begins with {}", function.name, bytes.join(" "));
        }
        Ok(code)
    };
    let before = look(guest, "before")?;
    let applied_us = apply(hv, &built)?;
    let after = look(guest, "after")?;
    see(
        "code after apply",
        "a jump in every function",
        "another instruction",
        after.iter().all(|entry| is_redirected(entry)),
    )?;
    listed(hv, &built, true)?;
    let shown = hv.show(&built.name)?;
    see("lucos-hv show", "state applied", &shown.describe(), shown.text("/state") == "applied")?;
    let undone_us = undo(hv, &built)?;
    let undone = look(guest, "undone")?;
    see("code after undo", "as before", "different bytes", undone == before)?;
    listed(hv, &built, false)?;
    Ok(Row { built, applied_us, undone_us })
}

fn listed(hv: &Hv, built: &Built, expected: bool) -> Result<(), JobError> {
    let names = applied(hv)?;
    let word = if expected { "listed as applied" } else { "not listed as applied" };
    see(&format!("lucos-hv list, {}", built.name), word, &names.join(", "), names.contains(&built.name) == expected)
}

/// Waits until every processor has done more work than at the last look.
fn work_goes_on(guest: &mut Guest, load: &Load, last: Option<Progress>) -> Result<Progress, JobError> {
    let fewest = last.map_or(0, |progress| progress.fewest);
    for _ in 0..100 {
        let now = guest.load_progress(load)?;
        see(VISIBLE_FILE, "one of the two first words in every read of the load", &format!("{now:?}"), now.wrong == 0)?;
        if now.fewest > fewest {
            return Ok(now);
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    Err(JobError::NotSeen {
        what: "load in the guest".to_owned(),
        expected: "work on every processor".to_owned(),
        seen: "no progress for 10 s".to_owned(),
    })
}

fn table(rows: &[Row]) -> Result<Table, JobError> {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["patch", "functions", "built in", "bundle", "pause of apply", "pause of undo"]);
    for Row { built, applied_us, undone_us } in rows {
        table.add_row([
            built.name.clone(),
            names(built),
            format!("{} ms", built.outcome.wall_ms),
            format!("{} bytes", built.size()?),
            format!("{applied_us} µs"),
            format!("{undone_us} µs"),
        ]);
    }
    Ok(table)
}
