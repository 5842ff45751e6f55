//! Bundles that change loadable modules: applied to a module that is there, to one that comes later, through its unloading
//! and reloading, and taken back in each state.

mod common;

use common::{apply, edited_bundle, undo};
use lucos_tests::commands::{Hv, Outcome};
use lucos_tests::guest::{Config, Guest};
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::Edit;
use lucos_tests::require;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The module that most cases change.
const MODULE: &str = "kernel/drivers/net/dummy.ko";
/// What a change of the carrier answers in the guest: as shipped nothing, as updated an error.
const CARRIER: &str = "ip link set dummy0 up; echo 0 > /sys/class/net/dummy0/carrier";

/// The carrier of a dummy device cannot be taken away any more.
fn edit() -> Edit {
    Edit {
        file: "drivers/net/dummy.c".to_owned(),
        find: "\tif (new_carrier)\n".to_owned(),
        replace: "\tif (!new_carrier)\n\t\treturn -EPERM;\n\tif (new_carrier)\n".to_owned(),
    }
}

fn boot(name: &str, kernel: &Kernel, files: Vec<PathBuf>) -> Guest {
    Guest::under_lucos_hv(&Config { files, ..Config::new(name, &kernel.vmlinuz()) }).expect("boots")
}

/// Whether the new code of the module runs.
fn is_new(guest: &mut Guest) -> bool {
    let answer = guest.run(CARRIER).expect("answers");
    let refused = answer.output.contains("not permitted");
    assert_eq!(answer.status != 0, refused, "{}", answer.output);
    refused
}

/// Waits until the part of the bundle for the first module is in a state.
fn wait_for(hv: &Hv, bundle: &str, state: &str) -> Outcome {
    let start = Instant::now();
    loop {
        let outcome = hv.show(bundle).expect("lucos-hv runs");
        if outcome.text("/modules/0/state") == state {
            return outcome;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "not {state}: {}", outcome.describe());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Modules that the guest lists for bundles.
fn areas(guest: &mut Guest) -> usize {
    let text = guest.run_ok("cat /proc/modules").expect("answers");
    text.lines().filter(|line| line.starts_with("lucos_")).count()
}

#[test]
fn a_module_is_changed_wherever_it_is_and_whenever_it_comes() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = edited_bundle(work.path(), &kernel, "carrier", &[edit()]);
    let mut guest = boot("modules", &kernel, vec![kernel.module(MODULE)]);
    let hv = Hv::new(guest.api());

    // There when the bundle is applied.
    guest.run_ok("insmod /files/dummy.ko").expect("loads");
    assert!(!is_new(&mut guest), "as shipped");
    let outcome = apply(&hv, &bundle);
    assert_eq!(outcome.text("/modules/0/state"), "applied", "{}", outcome.describe());
    assert!(is_new(&mut guest), "applied");
    assert_eq!(areas(&mut guest), 1);
    undo(&hv, "carrier");
    assert!(!is_new(&mut guest), "taken back");
    assert_eq!(areas(&mut guest), 0);
    guest.run_ok("rmmod dummy").expect("unloads");

    // Not there yet, then there, gone, and back again.
    let outcome = apply(&hv, &bundle);
    assert_eq!(outcome.text("/modules/0/state"), "waiting", "{}", outcome.describe());
    assert_eq!(areas(&mut guest), 0);
    for round in 0..5 {
        guest.run_ok("insmod /files/dummy.ko").expect("loads");
        let outcome = wait_for(&hv, "carrier", "applied");
        assert!(is_new(&mut guest), "round {round}: {}", outcome.describe());
        assert_eq!(areas(&mut guest), 1, "round {round}");
        guest.run_ok("rmmod dummy").expect("unloads");
        wait_for(&hv, "carrier", "waiting");
    }
    // Gone and back before anybody looks.
    guest.run_ok("insmod /files/dummy.ko").expect("loads");
    wait_for(&hv, "carrier", "applied");
    guest.run_ok("rmmod dummy; insmod /files/dummy.ko; rmmod dummy; insmod /files/dummy.ko").expect("reloads");
    let start = Instant::now();
    while !is_new(&mut guest) {
        assert!(start.elapsed() < Duration::from_secs(20), "the reloaded module has the old code");
    }
    undo(&hv, "carrier");
    assert!(!is_new(&mut guest), "taken back from a reloaded module");
    guest.run_ok("rmmod dummy").expect("unloads");

    // Taken back while it waits.
    apply(&hv, &bundle);
    undo(&hv, "carrier");
    guest.run_ok("insmod /files/dummy.ko").expect("loads");
    std::thread::sleep(Duration::from_millis(500));
    assert!(!is_new(&mut guest), "a bundle that was taken back does not come into effect");
    let outcome = hv.show("carrier").expect("lucos-hv runs");
    assert_eq!(outcome.number("/kept_pages") as u64, 0, "{}", outcome.describe());
    assert_eq!(areas(&mut guest), 0);
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    assert_eq!(guest.power_off().expect("powers off"), Some(0));
}
