//! Bundles that change loadable modules: applied to a module that is there, to one that comes later, through its unloading
//! and reloading, and taken back in each state.

mod common;

use common::{apply, edited_bundle, first_word, undo};
use lucos_tests::commands::{Hv, Outcome};
use lucos_tests::guest::{Config, Guest};
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::{self, Edit, VISIBLE_FILE, VISIBLE_WORDS};
use lucos_tests::require;
use std::path::{Path, PathBuf};
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

/// A module of the kernel, changed in one byte of its build id; its signature, which would not fit any more, is cut off.
fn with_another_build_id(kernel: &Kernel, path: &str, dir: &Path) -> PathBuf {
    let mut bytes = std::fs::read(kernel.module(path)).expect("a module");
    let note = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0";
    let at = bytes.windows(note.len()).position(|window| window == note).expect("a note with a build id");
    bytes[at + note.len()] ^= 1;
    // `scripts/sign-file.c`: the signature ends with these words, and counts only with them.
    let words = b"~Module signature appended~\n";
    if bytes.ends_with(words) {
        bytes.truncate(bytes.len() - words.len());
    }
    let copy = dir.join("other.ko");
    std::fs::write(&copy, bytes).expect("a file in the work folder");
    copy
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

#[test]
fn another_build_of_the_module_is_never_touched() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    // The rest of the bundle is in effect all the same.
    let bundle = edited_bundle(work.path(), &kernel, "both", &[patches::visible(), edit()]);
    let other = with_another_build_id(&kernel, MODULE, work.path());
    let mut guest = boot("modules-build", &kernel, vec![other, kernel.module(MODULE)]);
    let hv = Hv::new(guest.api());

    guest.run_ok("insmod /files/other.ko").expect("loads");
    let outcome = apply(&hv, &bundle);
    let part = (outcome.text("/modules/0/state"), outcome.text("/modules/0/reason"));
    assert_eq!(part, ("refused", "wrong-module"), "{}", outcome.describe());
    assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1], "the kernel image is updated");
    std::thread::sleep(Duration::from_millis(500));
    assert!(!is_new(&mut guest), "the module has its own code");
    assert_eq!(wait_for(&hv, "both", "refused").text("/modules/0/reason"), "wrong-module");
    guest.run_ok("rmmod dummy").expect("unloads");
    wait_for(&hv, "both", "waiting");
    guest.run_ok("insmod /files/other.ko").expect("loads");
    wait_for(&hv, "both", "refused");
    guest.run_ok("rmmod dummy; insmod /files/dummy.ko").expect("loads the right one");
    wait_for(&hv, "both", "applied");
    assert!(is_new(&mut guest));
    undo(&hv, "both");
    assert!(!is_new(&mut guest));
    assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0]);
    assert_eq!(areas(&mut guest), 0);
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// A module that takes symbols from another one: `msdos` from `fat`.
#[test]
fn a_module_that_needs_another_one() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let edit = Edit {
        file: "fs/fat/namei_msdos.c".to_owned(),
        find: "\tint err, is_hid, cluster;\n".to_owned(),
        replace: "\tint err, is_hid, cluster;\n\n\tif (dentry->d_name.len == 3)\n\t\treturn -EDOM;\n".to_owned(),
    };
    let bundle = edited_bundle(work.path(), &kernel, "mkdir", &[edit]);
    let files = ["drivers/block/brd", "fs/nls/nls_cp437", "fs/nls/nls_ascii", "fs/fat/fat", "fs/fat/msdos"];
    let mut guest =
        boot("modules-needs", &kernel, files.map(|file| kernel.module(&format!("kernel/{file}.ko"))).into());
    let hv = Hv::new(guest.api());
    apply(&hv, &bundle);
    let load = "for m in brd nls_cp437 nls_ascii fat msdos; do insmod /files/$m.ko; done";
    guest
        .run_ok(&format!("{load}; mkdosfs /dev/ram0 && mkdir -p /tmp/m && mount -t msdos /dev/ram0 /tmp/m"))
        .expect("mounts");
    wait_for(&hv, "mkdir", "applied");
    guest.run_ok("mkdir /tmp/m/long && mkdir /tmp/m/long/four").expect("the rest of the function is as before");
    let answer = guest.run("mkdir /tmp/m/abc").expect("answers");
    assert!(answer.status != 0 && answer.output.contains("out of domain"), "{}", answer.output);
    undo(&hv, "mkdir");
    guest.run_ok("mkdir /tmp/m/abc && umount /tmp/m && rmmod msdos").expect("as shipped");
    assert_eq!(areas(&mut guest), 0);
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// A service that is gone when modules change finds out when it is back.
#[test]
fn modules_that_change_while_nobody_looks() {
    if !require::qemu("its guests end with the service that started them") {
        return;
    }
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = edited_bundle(work.path(), &kernel, "carrier", &[edit()]);
    let config = Config { files: vec![kernel.module(MODULE)], ..Config::new("modules-away", &kernel.vmlinuz()) };
    let mut guest = Guest::under_plain_qemu(&config).expect("boots");
    let hv = Hv::new(guest.api());
    guest.run_ok("insmod /files/dummy.ko").expect("loads");
    let service = guest.attach().expect("attaches");
    apply(&hv, &bundle);
    service.crash().expect("is killed");
    assert!(is_new(&mut guest), "the update outlives the service");
    guest.run_ok("rmmod dummy").expect("unloads");
    let service = guest.attach().expect("attaches again");
    wait_for(&hv, "carrier", "waiting");
    service.detach().expect("ends");
    guest.run_ok("insmod /files/dummy.ko").expect("loads");
    assert!(!is_new(&mut guest), "nobody was there to apply it");
    let service = guest.attach().expect("attaches again");
    wait_for(&hv, "carrier", "applied");
    assert!(is_new(&mut guest));
    service.detach().expect("ends");
    guest.run_ok("rmmod dummy; insmod /files/dummy.ko").expect("reloads");
    let _service = guest.attach().expect("attaches again");
    let start = Instant::now();
    while !is_new(&mut guest) {
        assert!(start.elapsed() < Duration::from_secs(20), "the reloaded module has the old code");
    }
    undo(&hv, "carrier");
    assert!(!is_new(&mut guest));
    guest.run_ok("rmmod dummy").expect("unloads");
    assert_eq!(areas(&mut guest), 0);
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// Many rounds while all processors are busy and other modules come and go.
#[test]
fn modules_come_and_go_under_load() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = edited_bundle(work.path(), &kernel, "both", &[patches::visible(), edit()]);
    let files = [MODULE, "kernel/fs/nls/nls_utf8.ko", "kernel/fs/nls/nls_cp437.ko"].map(|path| kernel.module(path));
    let mut guest = boot("modules-load", &kernel, files.into());
    let hv = Hv::new(guest.api());
    let load = guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS).expect("starts");
    let churn = "while [ ! -e /tmp/stop ]; do insmod /files/nls_utf8.ko; insmod /files/nls_cp437.ko; rmmod nls_utf8; rmmod nls_cp437; done";
    let comes = "while [ ! -e /tmp/stop ]; do insmod /files/dummy.ko; ip link set dummy0 up; echo 0 > /sys/class/net/dummy0/carrier; rmmod dummy; done";
    for (index, job) in [churn, comes].iter().enumerate() {
        guest.run_ok(&format!("(setsid sh -c '{job}' >/tmp/job{index} 2>&1 &)")).expect("starts");
    }
    for round in 0..20 {
        apply(&hv, &bundle);
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1], "round {round}");
        std::thread::sleep(Duration::from_millis(300));
        undo(&hv, "both");
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0], "round {round}");
    }
    apply(&hv, &bundle);
    guest
        .run_ok("touch /tmp/stop; while pidof insmod rmmod; do sleep 1; done; sleep 1; rmmod dummy; true")
        .expect("stops");
    wait_for(&hv, "both", "waiting");
    guest.run_ok("insmod /files/dummy.ko").expect("loads");
    wait_for(&hv, "both", "applied");
    assert!(is_new(&mut guest));
    undo(&hv, "both");
    let progress = guest.load_progress(&load).expect("answers");
    assert!(progress.fewest > 0 && progress.wrong == 0, "{progress:?}");
    let outcome = hv.show("both").expect("lucos-hv runs");
    assert_eq!((areas(&mut guest), outcome.number("/kept_pages") as u64), (0, 0), "{}", outcome.describe());
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}
