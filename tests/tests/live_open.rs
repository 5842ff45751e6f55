//! Updates of a running stock kernel while threads are inside the old code: both versions at once, until the last one leaves.

mod common;

use common::{becomes, data_bundle, edit, show, undo};
use lucos_tests::commands::{Hv, Outcome};
use lucos_tests::guest::{Config, Guest};
use lucos_tests::kernels::Kernel;
use lucos_tests::{programs, require};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const READERS: usize = 12;
const LIMIT: Duration = Duration::from_secs(60);

/// Applies a bundle that threads are inside of, and stay inside of.
fn apply_open(hv: &Hv, bundle: &Path) -> Outcome {
    let outcome = hv.apply_stay(bundle).expect("lucos-hv runs");
    assert_eq!((outcome.status, outcome.text("/state")), (0, "open"), "{}", outcome.describe());
    outcome
}

/// Starts programs that sleep in `pipe_read`.
fn start_readers(guest: &mut Guest) {
    let start = format!(
        "rm -f /tmp/done /tmp/[fo][0-9]*; for i in $(seq {READERS}); do mkfifo /tmp/f$i;
         (exec 3<>/tmp/f$i; head -n 1 <&3 > /tmp/o$i; echo done >> /tmp/done) > /dev/null 2>&1 & done; sleep 1"
    );
    guest.run_ok(&start).expect("starts");
}

/// Gives readers what they wait for, and sees that they got it.
fn release(guest: &mut Guest, readers: std::ops::RangeInclusive<usize>, done: usize) {
    let (first, last) = (readers.start(), readers.end());
    guest.run_ok(&format!("for i in $(seq {first} {last}); do echo word$i > /tmp/f$i; done")).expect("writes");
    let wait = format!("while [ $(wc -l < /tmp/done) -lt {done} ]; do sleep 0.1; done; cat /tmp/o{first} /tmp/o{last}");
    let words = guest.run_ok(&wait).expect("they end");
    assert_eq!(words, format!("word{first}\nword{last}\n"));
}

/// Counts reads of pipes; those who wait in one are inside.
fn pipe_bundle(work: &Path, kernel: &Kernel, hooks: Option<&str>) -> PathBuf {
    let edits = [
        edit("fs/pipe.c", "\t/* Null read succeeds. */\n", "\tlucos_reads++;\n\t/* Null read succeeds. */\n"),
        edit(
            "fs/pipe.c",
            "static ssize_t\npipe_read(",
            "static unsigned long lucos_reads;\nstatic ssize_t\npipe_read(",
        ),
    ];
    let file = work.join("hooks.c").display().to_string();
    let options: &[&str] = match hooks {
        Some(text) => {
            std::fs::write(&file, text).expect("a file in the work folder");
            &["--hooks", &file]
        }
        None => &["--type2"],
    };
    data_bundle(work, kernel, "pipe", &edits, "", options)
}

#[test]
fn sleeping_threads_are_inside_and_leave_one_by_one() {
    if !require::watches("it keeps an update open") {
        return;
    }
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = pipe_bundle(work.path(), &kernel, None);
    let mut guest = Guest::under_lucos_hv(&Config::new("open", &kernel.vmlinuz())).expect("boots");
    let hv = Hv::new(guest.api());
    let load = "setsid sh -c 'while :; do echo a | cat > /dev/null; echo >> /tmp/worked; done' > /dev/null 2>&1 &";
    guest.run_ok(load).expect("starts");
    for round in 0..6 {
        start_readers(&mut guest);
        let outcome = apply_open(&hv, &bundle);
        let inside = outcome.items("/inside");
        assert!(inside.len() >= READERS, "round {round}: {}", outcome.describe());
        assert!(inside.iter().all(|thread| thread["function"] == "pipe_read"), "{}", outcome.describe());
        assert_eq!(inside.iter().filter(|thread| thread["name"] == "head").count(), READERS, "{}", outcome.describe());
        release(&mut guest, 1..=READERS / 2, READERS / 2);
        let outcome = show(&hv, "pipe");
        assert_eq!(outcome.text("/state"), "open", "{}", outcome.describe());
        assert_eq!(outcome.items("/inside").len(), READERS - READERS / 2, "{}", outcome.describe());
        if round % 2 == 0 {
            release(&mut guest, READERS / 2 + 1..=READERS, READERS);
            let outcome = becomes(&hv, "pipe", "applied");
            assert_eq!(outcome.number("/open/left"), outcome.number("/open/frames"), "{}", outcome.describe());
            undo(&hv, "pipe");
        } else {
            // Taken back while they are inside: they go on in the old code, and return as if nothing had been.
            undo(&hv, "pipe");
            release(&mut guest, READERS / 2 + 1..=READERS, READERS);
        }
    }
    // A thread that is killed inside does not hold anything up.
    start_readers(&mut guest);
    apply_open(&hv, &bundle);
    guest.run_ok("killall -9 head").expect("killed");
    becomes(&hv, "pipe", "applied");
    undo(&hv, "pipe");
    let worked: u64 = guest.run_ok("wc -l < /tmp/worked").expect("answers").trim().parse().expect("a number");
    assert!(worked > 20, "the load did {worked} rounds");
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    assert_eq!(guest.power_off().expect("powers off"), Some(0));
}

/// Hooks run while the update is open, on the processors on which threads leave: each leaves a mark in a number that programs can
/// read.
#[test]
fn hooks_run_as_threads_leave() {
    if !require::watches("it keeps an update open") {
        return;
    }
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let hooks = "#include <linux/panic.h>\n#include <lucos.h>\n\
        static void left(const struct lucos_transition *transition)\n{\n\tpanic_timeout++;\n}\n\
        LUCOS_TRANSITION(pipe_read, left);\n\
        static void ended(const struct lucos_context *context)\n{\n\tpanic_timeout += 1000;\n}\n\
        LUCOS_POST(ended);\n";
    let bundle = pipe_bundle(work.path(), &kernel, Some(hooks));
    let mut guest = Guest::under_lucos_hv(&Config::new("open-hooks", &kernel.vmlinuz())).expect("boots");
    let hv = Hv::new(guest.api());
    let marks = |guest: &mut Guest| -> f64 {
        guest.run_ok("cat /proc/sys/kernel/panic").expect("answers").trim().parse().expect("a number")
    };
    guest.run_ok("echo 0 > /proc/sys/kernel/panic").expect("sets");
    start_readers(&mut guest);
    apply_open(&hv, &bundle);
    release(&mut guest, 1..=READERS / 2, READERS / 2);
    let outcome = show(&hv, "pipe");
    assert_eq!(
        (marks(&mut guest), outcome.number("/open/lost")),
        (outcome.number("/open/left"), 0.0),
        "{}",
        outcome.describe()
    );
    release(&mut guest, READERS / 2 + 1..=READERS, READERS);
    let outcome = becomes(&hv, "pipe", "applied");
    assert_eq!(marks(&mut guest), outcome.number("/open/frames") + 1000.0, "{}", outcome.describe());
    undo(&hv, "pipe");
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    assert_eq!(guest.power_off().expect("powers off"), Some(0));
}

/// A program that has the kernel make huge pages, and counts them.
struct Pages;

const HUGE: &str = "/sys/kernel/mm/transparent_hugepage";

impl Pages {
    fn start(guest: &mut Guest) -> Pages {
        let prepare = format!(
            "echo madvise > {HUGE}/enabled; echo 10 > {HUGE}/khugepaged/scan_sleep_millisecs; mkfifo /tmp/ask;
             (/files/small-pages < /tmp/ask > /tmp/blocks) > /dev/null 2>&1 & exec 3> /tmp/ask; sleep 1000 <&3 & true"
        );
        guest.run_ok(&prepare).expect("starts");
        Pages
    }

    fn collapsed(&self, guest: &mut Guest) -> u64 {
        let text = guest.run_ok(&format!("cat {HUGE}/khugepaged/pages_collapsed")).expect("answers");
        text.trim().parse().expect("a number")
    }

    /// Four huge pages for each block.
    fn ask(&self, guest: &mut Guest) {
        guest.run_ok("echo more > /tmp/ask").expect("asks");
    }

    fn more(&mut self, guest: &mut Guest, expected: u64) {
        self.ask(guest);
        let start = Instant::now();
        while self.collapsed(guest) < expected {
            assert!(start.elapsed() < LIMIT, "{} huge pages, expected {expected}", self.collapsed(guest));
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(self.collapsed(guest), expected);
    }
}

/// A kernel thread never leaves the old code, and counts in the old copy; new code shows the new one.
#[test]
fn a_counter_is_in_line_while_a_kernel_thread_never_leaves() {
    if !require::watches("it keeps an update open") {
        return;
    }
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let Some(program) = require::or_skip(programs::compile("small-pages", work.path())) else { return };
    let bundle = common::khugepaged_bundle(work.path(), &kernel);
    let config = Config { files: vec![program], ..Config::new("counter", &kernel.vmlinuz()) };
    let mut guest = Guest::under_lucos_hv(&config).expect("boots");
    let hv = Hv::new(guest.api());
    let mut pages = Pages::start(&mut guest);
    pages.more(&mut guest, 4);
    for round in 0..4 {
        let outcome = apply_open(&hv, &bundle);
        let inside = outcome.items("/inside");
        assert!(inside.iter().all(|thread| thread["name"] == "khugepaged"), "{}", outcome.describe());
        assert_eq!(pages.collapsed(&mut guest), 4 + 8 * round, "carried");
        pages.more(&mut guest, 8 + 8 * round);
        let outcome = show(&hv, "khugepaged");
        assert_eq!((outcome.text("/state"), outcome.number("/open/lost")), ("open", 0.0), "{}", outcome.describe());
        assert!(outcome.number("/open/to_new") >= 4.0, "{}", outcome.describe());
        eprintln!("{}", outcome.json["open"]);
        undo(&hv, "khugepaged");
        assert_eq!(pages.collapsed(&mut guest), 8 + 8 * round, "carried back");
        pages.more(&mut guest, 12 + 8 * round);
    }
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    assert_eq!(guest.power_off().expect("powers off"), Some(0));
}

/// The same thread goes on in the new code where it sleeps, and in the old one again after undo; what it counts is carried each time.
#[test]
fn a_kernel_thread_that_never_leaves_is_moved_and_counts_on() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let Some(program) = require::or_skip(programs::compile("small-pages", work.path())) else { return };
    let bundle = common::khugepaged_bundle(work.path(), &kernel);
    let config = Config { files: vec![program], ..Config::new("counter-moved", &kernel.vmlinuz()) };
    let mut guest = Guest::under_lucos_hv(&config).expect("boots");
    let hv = Hv::new(guest.api());
    let mut pages = Pages::start(&mut guest);
    pages.more(&mut guest, 4);
    let is_moved = |outcome: &Outcome| {
        let moved = outcome.items("/moved");
        assert!(moved.len() == 1 && moved[0]["name"] == "khugepaged", "{}", outcome.describe());
    };
    let mut busy = 0;
    for round in 0..4 {
        common::patiently(&mut busy, || hv.apply(&bundle).expect("lucos-hv runs"));
        is_moved(&becomes(&hv, "khugepaged", "applied"));
        assert_eq!(pages.collapsed(&mut guest), 4 + 8 * round, "carried");
        pages.more(&mut guest, 8 + 8 * round);
        common::patiently(&mut busy, || hv.undo("khugepaged").expect("lucos-hv runs"));
        is_moved(&becomes(&hv, "khugepaged", "removed"));
        assert_eq!(pages.collapsed(&mut guest), 8 + 8 * round, "carried back");
        pages.more(&mut guest, 12 + 8 * round);
    }
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    assert_eq!(guest.power_off().expect("powers off"), Some(0));
}

/// A service that dies, or ends, while threads are inside leaves a guest in which they return as ever; the next one goes on.
#[test]
fn an_open_update_outlives_its_service() {
    if !require::qemu("its guests end with the service that started them") {
        return;
    }
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = pipe_bundle(work.path(), &kernel, None);
    let mut guest = Guest::under_plain_qemu(&Config::new("open-away", &kernel.vmlinuz())).expect("boots");
    let hv = Hv::new(guest.api());
    let mut service = guest.attach().expect("attaches");
    for round in 0..4 {
        start_readers(&mut guest);
        apply_open(&hv, &bundle);
        if round % 2 == 0 {
            service.crash().expect("is killed");
            // Its watchdog notices.
            std::thread::sleep(Duration::from_secs(2));
        } else {
            assert!(service.detach().expect("ends").success());
        }
        release(&mut guest, 1..=READERS / 2, READERS / 2);
        service = guest.attach().expect("attaches again");
        let start = Instant::now();
        while show(&hv, "pipe").items("/inside").len() != READERS / 2 {
            assert!(start.elapsed() < LIMIT, "{}", show(&hv, "pipe").describe());
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(show(&hv, "pipe").text("/state"), "open");
        release(&mut guest, READERS / 2 + 1..=READERS, READERS);
        becomes(&hv, "pipe", "applied");
        undo(&hv, "pipe");
    }
    assert!(service.detach().expect("ends").success());
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    assert_eq!(guest.power_off().expect("powers off"), Some(0));
}

/// Copies of a datum that nobody kept in line for a while are brought in line again: the one that was written meanwhile counts.
#[test]
fn copies_are_in_line_again_after_a_service_has_died() {
    if !require::qemu("its guests end with the service that started them") {
        return;
    }
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let Some(program) = require::or_skip(programs::compile("small-pages", work.path())) else { return };
    let bundle = common::khugepaged_bundle(work.path(), &kernel);
    let config = Config { files: vec![program], ..Config::new("counter-away", &kernel.vmlinuz()) };
    let mut guest = Guest::under_plain_qemu(&config).expect("boots");
    let hv = Hv::new(guest.api());
    let mut pages = Pages::start(&mut guest);
    pages.more(&mut guest, 4);
    let service = guest.attach().expect("attaches");
    apply_open(&hv, &bundle);
    pages.more(&mut guest, 8);
    service.crash().expect("is killed");
    std::thread::sleep(Duration::from_secs(2));
    // The kernel thread counts in the old copy, and new code shows the new one.
    pages.ask(&mut guest);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(pages.collapsed(&mut guest), 8);
    let mut service = guest.attach().expect("attaches again");
    let start = Instant::now();
    while pages.collapsed(&mut guest) != 12 {
        assert!(start.elapsed() < LIMIT, "{}", show(&hv, "khugepaged").describe());
        std::thread::sleep(Duration::from_millis(200));
    }
    let outcome = show(&hv, "khugepaged");
    assert_eq!((outcome.text("/state"), outcome.number("/open/lost")), ("open", 0.0), "{}", outcome.describe());
    pages.more(&mut guest, 16);
    // Who ends the service is told what that means, and has to insist.
    service.ask_to_end().expect("a signal");
    std::thread::sleep(Duration::from_secs(2));
    assert!(service.said().contains("second signal"), "{}", service.said());
    pages.more(&mut guest, 20);
    assert!(service.detach().expect("ends").success());
    pages.ask(&mut guest);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(pages.collapsed(&mut guest), 20);
    let _service = guest.attach().expect("attaches again");
    undo(&hv, "khugepaged");
    assert_eq!(pages.collapsed(&mut guest), 24);
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    assert_eq!(guest.power_off().expect("powers off"), Some(0));
}
