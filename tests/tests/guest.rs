//! The guest runner itself, on a real stock kernel: everything else rests on it.

use lucos_tests::digest::{Monitor, Snapshot};
use lucos_tests::guest::{Config, Guest, GuestError};
use lucos_tests::patches::{VISIBLE_FILE, VISIBLE_WORDS};
use lucos_tests::require;
use std::time::Duration;

#[test]
fn a_plain_guest_boots_answers_and_works() {
    let Some(kernel) = require::older_kernel() else { return };
    let mut guest = Guest::under_plain_qemu(&Config::new("runner", &kernel.vmlinuz())).expect("boots");
    eprintln!("booted in {} ms", guest.boot_ms());
    assert_eq!(guest.run_ok("uname -r").expect("answers").trim(), kernel.release);
    assert_eq!(guest.run_ok("nproc").expect("answers").trim(), "2");
    assert!(!guest.run_ok("cat /proc/cmdline").expect("answers").contains("nokaslr"));
    let failed = guest.run("echo told; exit 7").expect("answers");
    assert_eq!((failed.status, failed.output.as_str()), (7, "told\n"));

    let load = guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS).expect("starts");
    std::thread::sleep(Duration::from_secs(2));
    let before = guest.load_progress(&load).expect("answers");
    let first = Snapshot::take(&mut guest).expect("memory");
    std::thread::sleep(Duration::from_secs(3));
    let second = Snapshot::take(&mut guest).expect("memory");
    let after = guest.load_progress(&load).expect("answers");
    eprintln!("rounds {before:?} then {after:?}");
    assert_eq!(first.difference(&second), None, "memory that the guest leaves alone");
    assert!(after.fewest > before.fewest, "every processor works: {before:?} {after:?}");
    assert_eq!(after.wrong, 0);
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

#[test]
fn a_lost_machine_is_told_apart_from_a_wrong_answer() {
    let Some(kernel) = require::older_kernel() else { return };
    let mut guest = Guest::under_plain_qemu(&Config::new("runner-lost", &kernel.vmlinuz())).expect("boots");
    assert!(matches!(guest.run_ok("false"), Err(GuestError::Command { status: 1, .. })));
    let mut monitor = Monitor::connect(guest.monitor().expect("a monitor")).expect("connects");
    // QEMU may be gone before it has answered.
    let _ = monitor.human("quit");
    let error = guest.run("true").expect_err("nobody is there");
    assert!(error.is_lost(), "{error}");
}

#[test]
fn a_kernel_warning_is_noticed() {
    let Some(kernel) = require::older_kernel() else { return };
    let mut guest = Guest::under_plain_qemu(&Config::new("runner-warning", &kernel.vmlinuz())).expect("boots");
    guest.run_ok("echo 'WARNING: made by a test' > /dev/kmsg").expect("answers");
    let warnings = guest.kernel_warnings().expect("answers");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

#[test]
fn the_guest_shows_its_own_kernel_code() {
    let Some(kernel) = require::older_kernel() else { return };
    let mut guest = Guest::under_plain_qemu(&Config::new("runner-kcore", &kernel.vmlinuz())).expect("boots");
    let slide = guest.slide(kernel.symbol("_text").expect("System.map")).expect("kallsyms");
    assert_eq!(slide % 0x20_0000, 0, "the kernel is moved by whole large pages");
    // A traced function begins with the five-byte no-op of ftrace (arch/x86/kernel/ftrace.c).
    let show = kernel.symbol("version_proc_show").expect("System.map");
    let bytes = guest.kernel_bytes(show + slide, 9).expect("kcore");
    let entry = bytes.strip_prefix(&[0xf3, 0x0f, 0x1e, 0xfa]).unwrap_or(&bytes);
    assert!(entry.starts_with(&[0x0f, 0x1f, 0x44, 0x00, 0x00]), "{bytes:02x?}");
}
