//! Bundles that must not be applied: each is refused with its own reason and status 3, and the guest stays as it was to
//! the byte.

mod common;

use common::{NAME, apply, first_word, undo, visible_bundle};
use lpk_format::Bundle;
use lucos_tests::commands::Hv;
use lucos_tests::digest::Snapshot;
use lucos_tests::guest::{Config, Guest, Service};
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::VISIBLE_WORDS;
use lucos_tests::require;
use std::path::{Path, PathBuf};

/// A guest of our own with the service attached.
struct Bench {
    guest: Guest,
    hv: Hv,
    _service: Option<Service>,
    work: tempfile::TempDir,
}

impl Bench {
    fn new(name: &str, kernel: &Kernel) -> Self {
        let (guest, service) = Guest::served(&Config::new(name, &kernel.vmlinuz())).expect("boots");
        let hv = Hv::new(guest.api());
        Self { guest, hv, _service: service, work: tempfile::tempdir().expect("a folder") }
    }

    /// Applies a file that must be refused for `reason`; memory before and after is compared.
    fn refuses(&mut self, what: &str, bundle: &Path, reason: &str) -> String {
        let before = memory(&mut self.guest);
        let outcome = self.hv.apply(bundle).expect("lucos-hv runs");
        let after = memory(&mut self.guest);
        assert_eq!((outcome.status, outcome.text("/error/reason")), (3, reason), "{what}: {}", outcome.describe());
        assert_eq!(difference(&before, &after), None, "{what}: refused, but the guest was changed");
        assert_eq!(first_word(&mut self.guest), VISIBLE_WORDS[0], "{what}");
        let message = outcome.text("/error/message").to_owned();
        eprintln!("{what}: {message}");
        message
    }

    /// The same for bytes that reach the service without passing the client's check.
    fn service_refuses(&mut self, what: &str, bytes: &[u8], reason: &str) {
        let before = memory(&mut self.guest);
        let answer = self.hv.apply_unchecked(bytes).expect("the service answers");
        let after = memory(&mut self.guest);
        assert_eq!(
            (&answer["error"]["status"], &answer["error"]["reason"]),
            (&3.into(), &reason.into()),
            "{what}: {answer}"
        );
        assert_eq!(difference(&before, &after), None, "{what}: refused, but the guest was changed");
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.work.path().join(format!("{name}.lpk"));
        std::fs::write(&path, bytes).expect("a file in the work folder");
        path
    }

    /// Writes a changed bundle; it is whole and sound, only its contents are other ones.
    fn changed(&self, name: &str, original: &Bundle, change: impl FnOnce(&mut Bundle)) -> PathBuf {
        let mut bundle = original.clone();
        change(&mut bundle);
        self.file(name, &lpk_format::write(&bundle).expect("still a sound bundle"))
    }
}

/// Memory as QEMU shows it; other engines have nobody but the service to ask.
fn memory(guest: &mut Guest) -> Option<Snapshot> {
    guest.monitor().is_some().then(|| Snapshot::take(guest).expect("memory"))
}

fn difference(before: &Option<Snapshot>, after: &Option<Snapshot>) -> Option<String> {
    before.as_ref().zip(after.as_ref()).and_then(|(before, after)| before.difference(after))
}

/// Offsets of the bytes of the first function that the kernel never rewrites: outside every site.
fn fixed_bytes(bundle: &Bundle) -> Vec<usize> {
    let patch = &bundle.functions[0];
    let in_site = |at: usize| {
        patch.sites.iter().any(|site| at >= site.offset as usize && at < site.offset as usize + usize::from(site.len))
    };
    (0..patch.expected.len()).filter(|&at| !in_site(at)).collect()
}

#[test]
fn bundles_that_do_not_fit_this_guest() {
    let Some(kernel) = require::older_kernel() else { return };
    let mut bench = Bench::new("refused-bundles", &kernel);
    let path = visible_bundle(bench.work.path(), &kernel);
    let bytes = std::fs::read(&path).expect("the bundle");
    let good = lpk_format::read(&bytes).expect("a sound bundle").bundle;

    let other = bench.changed("build-id", &good, |bundle| bundle.kernel.build_id[0] ^= 1);
    bench.refuses("wrong build id", &other, "wrong-kernel");

    let fixed = fixed_bytes(&good);
    let (head, tail) = (fixed[0], fixed[fixed.len() - 1]);
    let other = bench.changed("first-byte", &good, |bundle| bundle.functions[0].expected[head] ^= 0x40);
    let first = bench.refuses("altered function, near its start", &other, "code-differs");
    let other = bench.changed("last-byte", &good, |bundle| bundle.functions[0].expected[tail] ^= 0x01);
    let last = bench.refuses("altered function, near its end", &other, "code-differs");
    assert_ne!(first, last, "the message says where");

    for (what, len) in
        [("empty", 0), ("a few bytes", 40), ("half", bytes.len() / 2), ("one byte missing", bytes.len() - 1)]
    {
        let cut = bench.file("truncated", &bytes[..len]);
        bench.refuses(&format!("truncated: {what}"), &cut, "corrupted-bundle");
        bench.service_refuses(&format!("truncated, to the service: {what}"), &bytes[..len], "corrupted-bundle");
    }
    for at in [0, 5, 64, bytes.len() / 3, bytes.len() / 2, bytes.len() - 1] {
        let mut corrupted = bytes.clone();
        corrupted[at] ^= 0x10;
        let file = bench.file("corrupted", &corrupted);
        bench.refuses(&format!("corrupted at {at:#x}"), &file, "corrupted-bundle");
        bench.service_refuses(&format!("corrupted at {at:#x}, to the service"), &corrupted, "corrupted-bundle");
    }

    let needed = "asm_exc_divide_error";
    let other = bench.changed("profile", &good, |bundle| {
        bundle.profile.symbols.remove(needed).expect("the profile names it");
    });
    let message = bench.refuses("profile without a needed symbol", &other, "profile-incomplete");
    assert!(message.contains(needed), "{message}");

    // After all refusals the untouched bundle goes in, once.
    let before = memory(&mut bench.guest);
    apply(&bench.hv, &path);
    assert_eq!(first_word(&mut bench.guest), VISIBLE_WORDS[1]);
    let again = bench.hv.apply(&path).expect("lucos-hv runs");
    assert_eq!((again.status, again.text("/error/reason")), (3, "already-applied"), "{}", again.describe());
    undo(&bench.hv, NAME);
    let again = bench.hv.undo(NAME).expect("lucos-hv runs");
    assert_eq!((again.status, again.text("/error/reason")), (3, "not-applied"), "{}", again.describe());
    let unknown = bench.hv.undo("no-such-bundle").expect("lucos-hv runs");
    assert_eq!((unknown.status, unknown.text("/error/reason")), (3, "unknown-bundle"), "{}", unknown.describe());
    let after = memory(&mut bench.guest);
    assert_eq!(difference(&before, &after), None, "after undo the memory is as it was");
    assert_eq!(bench.guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

#[test]
fn a_guest_with_another_kernel() {
    let Some(kernel) = require::older_kernel() else { return };
    let Some(newer) = require::newer_kernel() else { return };
    let mut bench = Bench::new("refused-kernel", &newer);
    let path = visible_bundle(bench.work.path(), &kernel);
    bench.refuses("bundle of the previous release", &path, "wrong-kernel");
    assert_eq!(bench.guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

#[test]
fn a_function_that_the_guest_traces_or_probes() {
    let Some(kernel) = require::older_kernel() else { return };
    let mut bench = Bench::new("refused-traced", &kernel);
    let path = visible_bundle(bench.work.path(), &kernel);
    let tracing = "/sys/kernel/tracing";
    bench.guest.run_ok(&format!("mount -t tracefs tracefs {tracing}")).expect("mounts");

    bench
        .guest
        .run_ok(&format!(
            "echo version_proc_show > {tracing}/set_ftrace_filter; echo function > {tracing}/current_tracer"
        ))
        .expect("traces");
    bench.refuses("traced", &path, "traced");
    bench.guest.run_ok(&format!("echo nop > {tracing}/current_tracer")).expect("stops tracing");

    // An optimised probe would be a jump instead of a breakpoint (kernel/kprobes.c).
    bench.guest.run_ok("echo 0 > /proc/sys/debug/kprobes-optimization").expect("no optimised probes");
    bench.guest.run_ok(&format!("echo 'p:lucos/inside version_proc_show+5' > {tracing}/kprobe_events && echo 1 > {tracing}/events/lucos/inside/enable")).expect("probes");
    bench.refuses("probed", &path, "probed");
    bench
        .guest
        .run_ok(&format!("echo 0 > {tracing}/events/lucos/inside/enable && echo > {tracing}/kprobe_events"))
        .expect("stops probing");

    apply(&bench.hv, &path);
    assert_eq!(first_word(&mut bench.guest), VISIBLE_WORDS[1], "untraced again, it can be applied");
    undo(&bench.hv, NAME);
    assert_eq!(first_word(&mut bench.guest), VISIBLE_WORDS[0]);
    assert_eq!(bench.guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}
