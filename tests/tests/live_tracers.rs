//! The guest's own tracers on a function that is to be replaced, is replaced, and is replaced no more: each works, or is in
//! the way and then the refusal says so. The guest goes on in any case, and what is counted is what was called.

mod common;

use common::{NAME, apply, first_word, visible_bundle};
use lucos_tests::commands::{Hv, Outcome};
use lucos_tests::guest::{Config, Guest};
use lucos_tests::patches::VISIBLE_WORDS;
use lucos_tests::{programs, require};
use std::path::Path;
use std::time::{Duration, Instant};

/// The function that the visible bundle replaces.
const FUNCTION: &str = "version_proc_show";
const TRACING: &str = "/sys/kernel/tracing";
/// How often it is called for each look.
const CALLS: u64 = 5;

/// How a function is watched.
#[derive(Debug, Clone, Copy)]
enum Tracer {
    /// By a tracer of ftrace, for this function.
    Ftrace(&'static str),
    /// By an event of a probe: its kind, and a place in the function.
    Event(&'static str, &'static str),
    /// By a BPF program.
    Bpf(&'static str),
}

/// All that sit at the entry, where the guest's ftrace has its place.
const AT_THE_ENTRY: [Tracer; 8] = [
    Tracer::Ftrace("function"),
    Tracer::Ftrace("function_graph"),
    Tracer::Event("p", ""),
    Tracer::Event("r", ""),
    Tracer::Bpf("kprobe"),
    Tracer::Bpf("kretprobe"),
    Tracer::Bpf("fentry"),
    Tracer::Bpf("fexit"),
];

impl Tracer {
    fn start(self, guest: &mut Guest) {
        let command = match self {
            Self::Ftrace(tracer) => {
                format!("echo {FUNCTION} > {TRACING}/set_ftrace_filter; echo {tracer} > {TRACING}/current_tracer")
            }
            Self::Event(..) => format!("{}; echo 1 > {TRACING}/events/lucos/enable", self.define()),
            Self::Bpf(how) => format!(
                "(setsid /files/count {how} {FUNCTION} /tmp/calls > /tmp/said 2>&1 & echo $! > /tmp/counter)
                 for i in $(seq 100); do [ -s /tmp/calls ] && exit 0; usleep 20000; done; cat /tmp/said; exit 1"
            ),
        };
        guest.run_ok(&format!("echo > {TRACING}/trace; {command}")).unwrap_or_else(|error| panic!("{self:?}: {error}"));
    }

    /// The event of a probe, which is registered by that, but not armed.
    fn define(self) -> String {
        let Self::Event(kind, place) = self else { panic!("{self:?} is no event") };
        format!("echo '{kind}:lucos/hit {FUNCTION}{place}' > {TRACING}/kprobe_events")
    }

    fn stop(self, guest: &mut Guest) {
        let command = match self {
            Self::Ftrace(_) => format!("echo nop > {TRACING}/current_tracer; echo > {TRACING}/set_ftrace_filter"),
            Self::Event(..) => format!("echo 0 > {TRACING}/events/lucos/enable; echo > {TRACING}/kprobe_events"),
            // Its file goes away only when the process has ended and with it the program.
            Self::Bpf(_) => "kill $(cat /tmp/counter)
                while kill -0 $(cat /tmp/counter) 2> /dev/null; do usleep 10000; done; rm /tmp/calls"
                .to_owned(),
        };
        guest.run_ok(&command).unwrap_or_else(|error| panic!("{self:?}: {error}"));
    }

    /// Calls that it has seen since it was started or last asked.
    fn seen(self, guest: &mut Guest, before: &mut u64) -> u64 {
        let what = match self {
            Self::Ftrace("function") => format!(": {FUNCTION} <-"),
            Self::Ftrace(_) => format!("{FUNCTION}()"),
            Self::Event(..) => " hit: (".to_owned(),
            Self::Bpf(_) => {
                let text = guest.run_ok("usleep 50000; cat /tmp/calls").expect("the count");
                let all: u64 = text.trim().parse().expect("a number");
                return all - std::mem::replace(before, all);
            }
        };
        let trace = guest.run_ok(&format!("cat {TRACING}/trace; echo > {TRACING}/trace")).expect("the trace");
        trace.lines().filter(|line| line.contains(&what)).count() as u64
    }

    /// The function is called, the right version runs, and each call is seen.
    fn sees(self, guest: &mut Guest, is_new: bool, when: &str, before: &mut u64) {
        for _ in 0..CALLS {
            assert_eq!(first_word(guest), VISIBLE_WORDS[usize::from(is_new)], "{self:?}, {when}");
        }
        assert_eq!(self.seen(guest, before), CALLS, "{self:?}, {when}");
    }
}

fn guest(name: &str, work: &Path) -> Option<(Guest, Hv, std::path::PathBuf)> {
    let kernel = require::older_kernel()?;
    let count = require::or_skip(programs::compile("count", work))?;
    let bundle = visible_bundle(work, &kernel);
    let mut config = Config::new(name, &kernel.vmlinuz());
    config.files = vec![count];
    let mut guest = Guest::under_lucos_hv(&config).expect("boots");
    guest.run_ok(&format!("mount -t tracefs tracefs {TRACING}")).expect("mounts");
    let hv = Hv::new(guest.api());
    Some((guest, hv, bundle))
}

fn refused(outcome: &Outcome, reason: &str, tracer: Tracer) {
    let found = (outcome.status, outcome.text("/error/reason"));
    assert_eq!(found, (3, reason), "{tracer:?}: {}", outcome.describe());
    let message = outcome.text("/error/message");
    assert!(message.contains(FUNCTION) || message.contains(NAME), "{tracer:?}: {}", outcome.describe());
}

/// Once a tracer has come or gone, the guest may be at work on it for some time: it puts an entry back later, and it waits
/// with its lock held until no task can be in an instruction that becomes a jump (`kernel/kprobes.c`, `kprobe_optimizer`).
fn soon(passing: &[&str], act: impl Fn() -> Outcome) -> Outcome {
    let start = Instant::now();
    loop {
        let outcome = act();
        if !passing.contains(&outcome.text("/error/reason")) || start.elapsed() > Duration::from_secs(15) {
            return outcome;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn try_apply(hv: &Hv, bundle: &Path) -> Outcome {
    soon(&["busy"], || hv.apply(bundle).expect("lucos-hv runs"))
}

fn try_undo(hv: &Hv) -> Outcome {
    soon(&["busy"], || hv.undo(NAME).expect("lucos-hv runs"))
}

fn apply_soon(hv: &Hv, bundle: &Path) {
    let outcome = soon(&["busy", "traced", "probed"], || hv.apply(bundle).expect("lucos-hv runs"));
    assert_eq!((outcome.status, outcome.text("/state")), (0, "applied"), "{}", outcome.describe());
}

fn undo_soon(hv: &Hv) {
    let outcome = try_undo(hv);
    assert_eq!((outcome.status, outcome.text("/state")), (0, "removed"), "{}", outcome.describe());
}

#[test]
fn tracers_before_during_and_after_an_update() {
    let work = tempfile::tempdir().expect("a folder");
    let Some((mut guest, hv, bundle)) = guest("tracers", work.path()) else { return };
    for tracer in AT_THE_ENTRY {
        let mut before = 0;
        // To be replaced: the entry is in use, and stays so.
        tracer.start(&mut guest);
        tracer.sees(&mut guest, false, "before", &mut before);
        refused(&try_apply(&hv, &bundle), "traced", tracer);
        tracer.sees(&mut guest, false, "refused", &mut before);
        tracer.stop(&mut guest);

        // Replaced while nobody looks, then traced.
        apply_soon(&hv, &bundle);
        before = 0;
        tracer.start(&mut guest);
        tracer.sees(&mut guest, true, "applied", &mut before);
        tracer.stop(&mut guest);
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1], "{tracer:?}: no longer traced");

        // Traced while it is taken back, and on.
        before = 0;
        tracer.start(&mut guest);
        tracer.sees(&mut guest, true, "applied, again", &mut before);
        undo_soon(&hv);
        tracer.sees(&mut guest, false, "undone", &mut before);
        tracer.stop(&mut guest);
        before = 0;
        tracer.start(&mut guest);
        tracer.sees(&mut guest, false, "after", &mut before);
        tracer.stop(&mut guest);
    }
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// A probe behind the entry, where the jump is or would be: the kernel keeps a copy of the instruction that it replaces, from
/// the moment it is registered.
#[test]
fn probes_where_the_jump_lies() {
    let work = tempfile::tempdir().expect("a folder");
    let Some((mut guest, hv, bundle)) = guest("probes", work.path()) else { return };
    let tracer = Tracer::Event("p", "+5");
    let mut before = 0;
    tracer.start(&mut guest);
    refused(&try_apply(&hv, &bundle), "probed", tracer);
    tracer.sees(&mut guest, false, "refused", &mut before);
    // Registered, not armed: nothing of it shows in the code.
    guest.run_ok(&format!("echo 0 > {TRACING}/events/lucos/enable")).expect("disarms");
    refused(&try_apply(&hv, &bundle), "probed", tracer);
    guest.run_ok(&format!("echo 1 > {TRACING}/events/lucos/enable")).expect("arms");
    tracer.sees(&mut guest, false, "armed again", &mut before);
    tracer.stop(&mut guest);

    // The other way round: a probe of the jump.
    apply_soon(&hv, &bundle);
    tracer.start(&mut guest);
    tracer.sees(&mut guest, true, "applied", &mut before);
    refused(&try_undo(&hv), "changed-since", tracer);
    tracer.sees(&mut guest, true, "undo refused", &mut before);
    guest.run_ok(&format!("echo 0 > {TRACING}/events/lucos/enable")).expect("disarms");
    refused(&try_undo(&hv), "probed", tracer);
    guest.run_ok(&format!("echo 1 > {TRACING}/events/lucos/enable")).expect("arms");
    tracer.sees(&mut guest, true, "armed again", &mut before);
    tracer.stop(&mut guest);
    undo_soon(&hv);
    assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0]);
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// Thousands of functions at once, that of the bundle among them. Not all of the kernel's: QEMU 7.2's emulation of several
/// processors can go on with a stale translation when so much code changes, with and without Lucos (docs/runtime.md).
#[test]
fn thousands_are_traced() {
    let work = tempfile::tempdir().expect("a folder");
    let Some((mut guest, hv, bundle)) = guest("thousands", work.path()) else { return };
    apply(&hv, &bundle);
    guest.run_ok(&format!("echo '*_show *proc* *seq* *file*' > {TRACING}/set_ftrace_filter")).expect("chooses");
    let chosen = guest.run_ok(&format!("wc -l < {TRACING}/set_ftrace_filter")).expect("counts");
    assert!(chosen.trim().parse::<u32>().is_ok_and(|count| count > 2000), "{chosen} functions");
    for tracer in ["function", "function_graph"] {
        guest.run_ok(&format!("echo {tracer} > {TRACING}/current_tracer")).expect("traces");
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1], "{tracer}");
        let seen =
            guest.run_ok(&format!("echo nop > {TRACING}/current_tracer; cat {TRACING}/current_tracer")).expect("stops");
        assert_eq!(seen.trim(), "nop", "{tracer}");
    }
    undo_soon(&hv);
    assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0]);
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}
