//! Updates of a module whose state is known: whatever comes and goes, every number in it is right.

mod common;

use lucos_tests::commands::{Hv, Outcome};
use lucos_tests::guest::{Config, Guest};
use lucos_tests::known_state::{KnownState, State};
use lucos_tests::soak::{self, Until};
use lucos_tests::{known_state, require};
use std::path::{Path, PathBuf};

/// Steps of each run here; `cargo xtask soak` takes as many as it is asked for.
const STEPS: usize = 40;
const SEED: u64 = 20_061_126;
const GATE: &str = "type2-open-the-gate";
const OBJECTS: [&str; 2] = ["type2-add-to-objects-in-a-hole", "type2-add-to-objects-behind-the-end"];
const OBJECT_ROUNDS: usize = 20;
const MOVE_ROUNDS: usize = 40;
/// A nap takes 10 ms; a guest may stand still for longer.
const NAP_LIMIT: std::time::Duration = std::time::Duration::from_secs(60);
const NAPS: &str = "type2-widen-in-a-loop-that-never-ends";
const WRITTEN: &str = "type2-move-what-is-written";

/// Builds one of the updates of testdata.
fn build(known: &KnownState, name: &str, work: &Path) -> PathBuf {
    let updates = known_state::updates().expect("testdata");
    let update = updates.iter().find(|update| update.name == name).expect("it is there");
    update.build(known, work).expect("builds")
}

/// Boots a guest, and loads a module that is among its files.
fn boot(config: &Config, module: &str) -> (Guest, Hv) {
    let mut guest = Guest::under_lucos_hv(config).expect("boots");
    let hv = Hv::new(guest.api());
    guest.run_ok(&format!("insmod /files/{module}.ko")).expect("loads");
    (guest, hv)
}

/// The kernel has complained of nothing and goes down by itself.
fn ends_well(mut guest: Guest) {
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    assert_eq!(guest.power_off().expect("powers off"), Some(0));
}

fn nothing_is_lost(cpus: u32) {
    if !require::watches("it keeps an update open") {
        return;
    }
    let Some((kernel, known)) = require::known_state() else { return };
    let say = |line: &str| eprintln!("{line}");
    let summary = soak::run(&kernel, &known, cpus, SEED + u64::from(cpus), Until::Steps(STEPS), &say);
    eprintln!("{}", summary.unwrap_or_else(|error| panic!("{error}")));
}

#[test]
fn nothing_is_lost_on_two_processors() {
    nothing_is_lost(2);
}

#[test]
fn nothing_is_lost_on_four_processors() {
    nothing_is_lost(4);
}

/// Two updates add to the objects of one cache, in a hole and behind their end, while all processors make and free some. Objects that
/// old code makes hold something else there, so that one which is left out is seen.
#[test]
fn objects_get_what_is_new_while_others_come_and_go() {
    let Some((kernel, known)) = require::known_state() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundles = OBJECTS.map(|name| (name, build(&known, name, work.path())));
    let config = Config { files: vec![known.module.clone()], ..Config::new("known-objects", &kernel.vmlinuz()) };
    let (mut guest, hv) = boot(&config, "lucos_state");
    let (mut busy, mut found) = (0, Vec::new());
    for round in 0..OBJECT_ROUNDS {
        for (name, bundle) in &bundles {
            let outcome = common::patiently(&mut busy, || hv.apply(bundle).expect("lucos-hv runs"));
            assert_eq!(outcome.text("/modules/0/state"), "applied", "{}", outcome.describe());
            let count = |what: &str| outcome.number(&format!("/modules/0/objects/0/count/{what}"));
            assert!(count("live") >= 1.0 && count("live") <= count("of"), "{}", outcome.describe());
            let time = |phase: &str| outcome.number(&format!("/times_us/{phase}"));
            found.push((count("live") as u64, time("objects") as u64, time("longest_pause") as u64));
            let state = State::read(&mut guest).expect("answers");
            assert_eq!(state.faults(), Vec::<String>::new(), "round {round}, {name}: {state:?}");
        }
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for index in order {
            common::patiently(&mut busy, || hv.undo(OBJECTS[index]).expect("lucos-hv runs"));
            let state = State::read(&mut guest).expect("answers");
            assert_eq!(state.faults(), Vec::<String>::new(), "round {round}: {state:?}");
        }
    }
    found.sort_unstable();
    eprintln!("{busy} times not the moment; live objects, µs in the phase, µs of the stop: {found:?}");
    guest.run_ok("rmmod lucos_state").expect("unloads");
    ends_well(guest);
}

/// Figure 2 of the paper: old code leaves a lock held, and threads are asleep inside. The thread that leaves with the lock has it
/// opened by the update's transition, and all go on; without the update they would wait for ever.
#[test]
fn a_lock_that_old_code_leaves_held_is_opened_behind_it() {
    if !require::watches("it keeps an update open") {
        return;
    }
    let Some((kernel, known)) = require::known_state() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = build(&known, GATE, work.path());
    let config = Config { files: vec![known.module.clone()], ..Config::new("gate", &kernel.vmlinuz()) };
    let (mut guest, hv) = boot(&config, "lucos_state");
    let shut =
        "rm -f /tmp/passed; (echo 2 > /proc/lucos_state; echo failed >> /tmp/passed) > /dev/null 2>&1 & sleep 0.5";
    let wait =
        "for i in 1 2 3; do (echo 1 > /proc/lucos_state && echo $i >> /tmp/passed) > /dev/null 2>&1 & done; sleep 0.5";
    let passed = |guest: &mut Guest| {
        let text = guest.run_ok("sort /tmp/passed 2>/dev/null; true").expect("answers");
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    for round in 0..3 {
        guest.run_ok(&format!("{shut}; {wait}")).expect("starts");
        let outcome = hv.apply(&bundle).expect("lucos-hv runs");
        assert_eq!((outcome.status, outcome.text("/state")), (0, "open"), "{}", outcome.describe());
        assert_eq!(outcome.items("/inside").len(), 4, "round {round}: {}", outcome.describe());
        assert!(passed(&mut guest).is_empty(), "round {round}: the gate is shut");
        // The one with the lock leaves after its six seconds, and the others get through behind it.
        let outcome = common::becomes(&hv, GATE, "applied");
        assert_eq!((outcome.number("/open/left"), outcome.number("/open/lost")), (4.0, 0.0), "{}", outcome.describe());
        guest.run_ok("while [ $(wc -l < /tmp/passed) -lt 4 ]; do sleep 0.1; done").expect("they get through");
        assert_eq!(passed(&mut guest), ["1", "2", "3", "failed"], "round {round}");
        // New code opens it itself.
        guest.run_ok("! echo 2 > /proc/lucos_state && echo 1 > /proc/lucos_state").expect("the gate is open");
        common::undo(&hv, GATE);
    }
    // As it is without the update.
    guest.run_ok(&format!("{shut}; {wait}; sleep 9")).expect("starts");
    assert_eq!(passed(&mut guest), ["failed"], "the others wait for ever");
    ends_well(guest);
}

/// A thread is parked for ever inside the function. The kernel's own live patch of it waits for that thread; the update is in effect, and
/// open, and neither is in the other's way.
#[test]
fn where_a_live_patch_of_the_kernel_waits_an_update_does_not() {
    if !require::watches("it keeps an update open") {
        return;
    }
    let Some((kernel, known)) = require::known_state() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = build(&known, NAPS, work.path());
    let files = vec![known.module.clone(), known.livepatch.clone()];
    let config = Config { files, ..Config::new("livepatch", &kernel.vmlinuz()) };
    let (mut guest, hv) = boot(&config, "lucos_state");
    let outcome = hv.apply_stay(&bundle).expect("lucos-hv runs");
    assert_eq!((outcome.status, outcome.text("/state")), (0, "open"), "{}", outcome.describe());
    assert!(outcome.text("/inside/0/why").contains("--stay"), "{}", outcome.describe());
    guest.run_ok("insmod /files/lucos_livepatch.ko").expect("loads");
    let transition = "/sys/kernel/livepatch/lucos_livepatch/transition";
    let mut before = 0;
    for _ in 0..10 {
        assert_eq!(guest.run_ok(&format!("cat {transition}")).expect("answers").trim(), "1", "it waits");
        let state = State::read(&mut guest).expect("answers");
        assert!(state.faults().is_empty() && state.get("naps") > before, "{state:?}");
        before = state.get("naps");
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    let outcome = common::show(&hv, NAPS);
    assert_eq!((outcome.text("/state"), outcome.number("/open/lost")), ("open", 0.0), "{}", outcome.describe());
    assert!(outcome.number("/open/to_new") > 100.0, "{}", outcome.describe());
    assert_eq!(outcome.text("/inside/0/name"), "state/nap", "{}", outcome.describe());
    guest.run_ok("echo 0 > /sys/kernel/livepatch/lucos_livepatch/enabled").expect("taken back");
    let gone = "while [ -e /sys/kernel/livepatch/lucos_livepatch ]; do sleep 0.1; done; rmmod lucos_livepatch";
    guest.run_ok(gone).expect("it goes");
    common::undo(&hv, NAPS);
    assert_eq!(State::read(&mut guest).expect("answers").faults(), Vec::<String>::new());
    guest.run_ok("rmmod lucos_state").expect("unloads");
    ends_well(guest);
}

/// A thread that never leaves the function goes on in the new one, where it sleeps, and back again; each counts in its own copy, and
/// not one count is lost. The kernel's own live patch then has nobody to wait for.
fn a_thread_that_never_leaves_goes_on_in_the_new_code(cpus: u32) {
    let Some((kernel, known)) = require::known_state() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = build(&known, NAPS, work.path());
    let files = vec![known.module.clone(), known.livepatch.clone()];
    let config = Config { files, cpus, ..Config::new("moved", &kernel.vmlinuz()) };
    let (mut guest, hv) = boot(&config, "lucos_state");
    let (mut busy, mut at_once, mut before) = (0, [0, 0], 0);
    let goes_on = |guest: &mut Guest, before: &mut i64, what: &str| {
        let start = std::time::Instant::now();
        loop {
            let state = State::read(guest).expect("answers");
            assert!(state.faults().is_empty(), "{what}: {state:?}");
            if state.get("naps") > *before {
                *before = state.get("naps");
                return;
            }
            assert!(start.elapsed() < NAP_LIMIT, "{what}: it does not count on: {state:?}, after {before}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    let is_moved = |outcome: &Outcome, what: &str| {
        let names: Vec<_> = outcome.items("/moved").iter().map(|thread| thread["name"].clone()).collect();
        assert_eq!(names, ["state/nap"], "{what}: {}", outcome.describe());
        assert_eq!(outcome.text("/moved/0/function"), "nap", "{what}: {}", outcome.describe());
    };
    for round in 0..MOVE_ROUNDS {
        let what = format!("round {round}");
        let outcome = common::patiently(&mut busy, || hv.apply(&bundle).expect("lucos-hv runs"));
        at_once[0] += usize::from(outcome.text("/state") == "applied");
        is_moved(&common::becomes(&hv, NAPS, "applied"), &what);
        goes_on(&mut guest, &mut before, &what);
        let outcome = common::patiently(&mut busy, || hv.undo(NAPS).expect("lucos-hv runs"));
        at_once[1] += usize::from(outcome.text("/state") == "removed");
        is_moved(&common::becomes(&hv, NAPS, "removed"), &what);
        goes_on(&mut guest, &mut before, &what);
    }
    eprintln!("{busy} times not the moment; at once there and back: {at_once:?} of {MOVE_ROUNDS}");
    // It is not inside of the old function, as the kernel sees it.
    common::patiently(&mut busy, || hv.apply(&bundle).expect("lucos-hv runs"));
    common::becomes(&hv, NAPS, "applied");
    guest.run_ok("insmod /files/lucos_livepatch.ko").expect("loads");
    let enabled = "/sys/kernel/livepatch/lucos_livepatch";
    guest.run_ok(&format!("while [ $(cat {enabled}/transition) != 0 ]; do sleep 0.1; done")).expect("it ends");
    goes_on(&mut guest, &mut before, "beside a live patch");
    guest.run_ok(&format!("echo 0 > {enabled}/enabled")).expect("taken back");
    guest.run_ok(&format!("while [ -e {enabled} ]; do sleep 0.1; done; rmmod lucos_livepatch")).expect("it goes");
    is_moved(&common::undo(&hv, NAPS), "at the end");
    goes_on(&mut guest, &mut before, "at the end");
    guest.run_ok("rmmod lucos_state").expect("unloads");
    ends_well(guest);
}

#[test]
fn a_thread_that_never_leaves_goes_on_in_the_new_code_on_one_processor() {
    a_thread_that_never_leaves_goes_on_in_the_new_code(1);
}

#[test]
fn a_thread_that_never_leaves_goes_on_in_the_new_code_on_four_processors() {
    a_thread_that_never_leaves_goes_on_in_the_new_code(4);
}

/// While an update is open old code writes to a datum by every kind of instruction, inside of it, across its edges and across the
/// end of a page, by its own address and by the direct map's; before, all threads and an interrupt write at once, the interrupt's
/// function new already. No byte may differ from what the same writes do to a twin, in neither copy.
fn writes_of_every_shape_reach_both_copies(cpus: u32) {
    if !require::watches("it keeps an update open") {
        return;
    }
    let Some((kernel, known)) = require::known_state() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = build(&known, WRITTEN, work.path());
    let config = Config { files: vec![known.writes.clone()], cpus, ..Config::new("writes", &kernel.vmlinuz()) };
    let (mut guest, hv) = boot(&config, "lucos_writes");
    let read = |guest: &mut Guest| State::of(guest, "/proc/lucos_writes").expect("answers");
    let until = |guest: &mut Guest, name: &str, wanted: i64| {
        let start = std::time::Instant::now();
        loop {
            let state = read(guest);
            assert!(!state.names().any(|name| name.starts_with("wrong-")), "{state:?}");
            if state.get(name) == wanted {
                return state;
            }
            assert!(start.elapsed().as_secs() < 300, "{name} does not become {wanted}: {state:?}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    };
    let workers = i64::from(cpus);
    guest.run_ok("echo 1 > /proc/lucos_writes").expect("starts");
    until(&mut guest, "waiting", workers);
    let outcome = hv.apply(&bundle).expect("lucos-hv runs");
    assert_eq!((outcome.status, outcome.text("/state")), (0, "open"), "{}", outcome.describe());
    guest.run_ok("echo 2 > /proc/lucos_writes").expect("starts");
    let state = until(&mut guest, "done", workers);
    println!("{cpus} processors: {state:?}");
    // Read by new code from the new copy, after old code wrote to the old one.
    let faults: Vec<_> = state.names().filter(|name| name.starts_with("wrong") && state.get(name) != 0).collect();
    assert!(faults.is_empty() && state.get("differing") == 0, "{state:?}");
    assert!(state.get("writes") > 400 * workers && state.get("interrupts") > 3, "{state:?}");
    let outcome = common::show(&hv, WRITTEN);
    assert_eq!((outcome.text("/state"), outcome.number("/open/lost")), ("open", 0.0), "{}", outcome.describe());
    let counts = ["to_new", "to_old", "false_sharing", "late"].map(|name| outcome.number(&format!("/open/{name}")));
    println!("to new, to old, false sharing, late: {counts:?}");
    assert!(counts[0] > state.get("writes") as f64 && counts[1] > 3.0, "{}", outcome.describe());
    guest.run_ok("echo 3 > /proc/lucos_writes").expect("leaves");
    common::becomes(&hv, WRITTEN, "applied");
    let state = until(&mut guest, "waiting", 0);
    assert_eq!((state.get("wrong_after"), state.get("differing")), (0, 0), "{state:?}");
    common::undo(&hv, WRITTEN);
    assert_eq!(read(&mut guest).get("differing"), 0, "the old datum has it all");
    guest.run_ok("rmmod lucos_writes").expect("unloads");
    ends_well(guest);
}

#[test]
fn writes_of_every_shape_reach_both_copies_on_two_processors() {
    writes_of_every_shape_reach_both_copies(2);
}

#[test]
fn writes_of_every_shape_reach_both_copies_on_four_processors() {
    writes_of_every_shape_reach_both_copies(4);
}
