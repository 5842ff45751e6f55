//! The guest runner itself, on a real stock kernel: everything else rests on it.

use lucos_tests::commands;
use lucos_tests::digest::{Monitor, Snapshot};
use lucos_tests::guest::{Config, Guest, GuestError};
use lucos_tests::patches::{VISIBLE_FILE, VISIBLE_WORDS};
use lucos_tests::{initramfs, require};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::Command;
use std::time::{Duration, Instant};

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

/// Keys typed at a terminal reach the guest's shell, and Ctrl-A x ends it.
#[test]
fn a_person_at_a_terminal() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let initrd = work.path().join("initrd");
    initramfs::write(&initrd).expect("an initramfs");
    let pty = nix::pty::openpty(None, None).expect("a pseudo-terminal");
    let terminal = || pty.slave.try_clone().expect("one more handle of the terminal");
    let program = commands::program("lucos-hv").expect("is built");
    let mut process = Command::new(program)
        .args(["run", "--append", "quiet", "--cpus", "2", "--kernel"])
        .arg(kernel.vmlinuz())
        .arg("--initrd")
        .arg(&initrd)
        .arg("--api")
        .arg(work.path().join("api"))
        .stdin(terminal())
        .stdout(terminal())
        .stderr(terminal())
        .spawn()
        .expect("starts");
    let mut person = File::from(pty.master);
    let mut screen = person.try_clone().expect("a reader");
    let (tell, shown) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut bytes) {
            if tell.send(String::from_utf8_lossy(&bytes[..count]).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut seen = String::new();
    let mut wait_for = |text: &str| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !seen.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            seen += &shown.recv_timeout(left).unwrap_or_else(|error| panic!("no `{text}` ({error}) in:\n{seen}"));
        }
    };
    wait_for("A shell in ");
    wait_for("# ");
    // The answer is not what is echoed.
    person.write_all(b"echo answer-$((6 * 7))\r").expect("types");
    wait_for("answer-42");
    person.write_all(b"\x01x").expect("types");
    assert_eq!(process.wait().expect("ends").code(), Some(0), "{seen}");
}
