//! Updates of a running stock kernel that change existing data, when nobody is inside the old code.

mod common;

use common::{apply, data_bundle, edit, undo};
use lucos_tests::commands::{self, Hv};
use lucos_tests::guest::{Config, Guest};
use lucos_tests::require;

/// What is refused changes nothing; gives the reason.
fn refused(outcome: Result<commands::Outcome, commands::CommandError>) -> (String, String) {
    let outcome = outcome.expect("lucos-hv runs");
    assert_eq!(outcome.status, 3, "{}", outcome.describe());
    (outcome.text("/error/reason").to_owned(), outcome.text("/error/message").to_owned())
}

const PIPE: &str = "/proc/sys/fs/pipe-max-size";
const THREADS: &str = "/proc/sys/kernel/threads-max";
const ROUNDS: usize = 25;

fn number(guest: &mut Guest, file: &str) -> u64 {
    guest.run_ok(&format!("cat {file}")).expect("answers").trim().parse().expect("a number")
}

fn set(guest: &mut Guest, file: &str, value: u64) {
    guest.run_ok(&format!("echo {value} > {file}")).expect("answers");
}

/// A value of the kernel's own is edited in place, and one that somebody has set is respected; a table and a counter move,
/// with all functions that use them, while programs on all processors use them without a pause.
#[test]
fn data_change_with_code_under_load() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let in_place = [edit(
        "fs/pipe.c",
        "static unsigned int pipe_max_size = 1048576;",
        "static unsigned int pipe_max_size = 2097152;",
    )];
    let table = [
        edit("mm/vmstat.c", "\t\"nr_free_pages\",\n", "\t\"nr_free_page_frames\",\n"),
        edit(
            "mm/vmstat.c",
            "#endif /* CONFIG_VM_EVENT_COUNTERS || CONFIG_MEMCG */\n};",
            "#endif /* CONFIG_VM_EVENT_COUNTERS || CONFIG_MEMCG */\n\t\"last\",\n};",
        ),
    ];
    let moves = "[data.vmstat_text]\nreason = \"the old table is to stay as it is\"\nstrategy = \"move\"\n";
    let counter = [edit("kernel/fork.c", "static int max_threads;", "static long max_threads;")];
    let in_place = data_bundle(work.path(), &kernel, "pipe", &in_place, "", &[]);
    let table = data_bundle(work.path(), &kernel, "vmstat", &table, moves, &[]);
    let counter = data_bundle(work.path(), &kernel, "threads", &counter, "", &[]);

    let mut guest = Guest::under_lucos_hv(&Config::new("data", &kernel.vmlinuz())).expect("boots");
    let hv = Hv::new(guest.api());
    let threads = number(&mut guest, THREADS);
    // Forks on one processor, and readers of the table on both.
    let load = "for c in 1 2; do setsid taskset $c sh -c 'while :; do read -r line < /proc/vmstat; cat /proc/vmstat > /tmp/v$$;
                grep -qE \"^nr_free_page(s|_frames) [0-9]+$\" /tmp/v$$ || echo bad >> /tmp/bad; echo >> /tmp/worked; done' \
                > /dev/null 2>&1 & done";
    guest.run_ok(load).expect("starts");

    let (mut pauses, mut busy) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        let outcome = apply(&hv, &in_place);
        assert_eq!(outcome.text("/data/0/strategy"), "in-place");
        assert_eq!(number(&mut guest, PIPE), 2_097_152, "round {round}");

        // Readers on both processors: somebody may be inside for a moment, and on one engine that makes it open.
        let outcome = common::patiently(&mut busy, || hv.apply(&table).expect("lucos-hv runs"));
        assert_eq!(outcome.text("/data/0/strategy"), "moved", "{}", outcome.describe());
        common::becomes(&hv, "vmstat", "applied");
        pauses.push(outcome.number("/times_us/longest_pause") as u64);
        let names = guest.run_ok("cut -d' ' -f1 /proc/vmstat").expect("answers");
        assert!(names.starts_with("nr_free_page_frames\n"), "round {round}: {names}");

        // The value goes along, there and back.
        let (before, after) = (threads - 1 - round as u64, threads - 1000 - round as u64);
        set(&mut guest, THREADS, before);
        let outcome = common::patiently(&mut busy, || hv.apply(&counter).expect("lucos-hv runs"));
        assert_eq!(outcome.text("/data/0/name"), "max_threads");
        common::becomes(&hv, "threads", "applied");
        assert_eq!(number(&mut guest, THREADS), before, "round {round}: carried");
        set(&mut guest, THREADS, after);

        // In another order than they came.
        for name in if round % 2 == 0 { ["threads", "pipe", "vmstat"] } else { ["vmstat", "pipe", "threads"] } {
            common::patiently(&mut busy, || hv.undo(name).expect("lucos-hv runs"));
            common::becomes(&hv, name, "removed");
        }
        assert_eq!(number(&mut guest, THREADS), after, "round {round}: carried back");
        assert_eq!(number(&mut guest, PIPE), 1_048_576, "round {round}");
        let names = guest.run_ok("cut -d' ' -f1 /proc/vmstat").expect("answers");
        assert!(names.starts_with("nr_free_pages\n"), "round {round}: {names}");
    }
    pauses.sort_unstable();
    eprintln!("{ROUNDS} rounds, {busy} times busy; pause of the table: {} µs median", pauses[ROUNDS / 2]);

    // What somebody has set is not overwritten, neither there nor back.
    set(&mut guest, PIPE, 524_288);
    assert_eq!(refused(hv.apply(&in_place)).0, "data-changed");
    assert_eq!(number(&mut guest, PIPE), 524_288);
    set(&mut guest, PIPE, 1_048_576);
    apply(&hv, &in_place);
    set(&mut guest, PIPE, 524_288);
    assert_eq!(refused(hv.undo("pipe")).0, "data-changed");
    set(&mut guest, PIPE, 2_097_152);
    undo(&hv, "pipe");

    let worked = guest.run_ok("wc -l < /tmp/worked; cat /tmp/bad 2>/dev/null; true").expect("answers");
    let worked: u64 = worked.trim().parse().expect("no reader saw anything else");
    assert!(worked > ROUNDS as u64, "the load did {worked} rounds");
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    assert_eq!(guest.power_off().expect("powers off"), Some(0));
}
