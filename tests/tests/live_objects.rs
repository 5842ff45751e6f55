//! Updates of a running stock kernel that add to objects on the heap: those that exist get a value, and new code finds it in all.

mod common;

use common::{applied, data_bundle, edit, undo};
use lucos_tests::commands::{Hv, Outcome};
use lucos_tests::guest::{Config, Guest};
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::Edit;
use lucos_tests::require;
use std::path::{Path, PathBuf};

const FILE: &str = "ipc/mqueue.c";
/// Where message queues are shown as files.
const QUEUES: &str = "/tmp/queues";
/// As `/proc/slabinfo` calls the cache. It has a constructor, so it is merged with no other, and free objects keep what they hold.
const CACHE: &str = "mqueue_inode_cache";
/// What objects get that exist at the switch, and what new code gives those that it makes.
const EXISTING: u32 = 5;
const MADE: u32 = 6;
const ROUNDS: usize = 5;

/// Message queues get a number, in a hole, which their files show.
fn numbered(member: &str, shown: &str) -> [Edit; 4] {
    let hole = "struct mqueue_inode_info {\n\tspinlock_t lock;\n";
    let made = "\t\tinfo->notify_user_ns = NULL;\n\t\tinfo->qsize = 0;\n";
    let format = "NOTIFY:%-5d SIGNO:%-5d NOTIFY_PID:%-6d\\n\",\n";
    let last = "\t\t\tpid_vnr(info->notify_owner));\n";
    [
        edit(FILE, hole, &format!("{hole}\tunsigned int {member};\n")),
        edit(FILE, made, &format!("{made}\t\tinfo->{member} = {MADE};\n")),
        edit(FILE, format, &format!("NOTIFY:%-5d SIGNO:%-5d NOTIFY_PID:%-6d {shown}:%u\\n\",\n")),
        edit(FILE, last, &format!("\t\t\tpid_vnr(info->notify_owner), info->{member});\n")),
    ]
}

fn bundle(work: &Path, kernel: &Kernel, name: &str, member: &str) -> PathBuf {
    let overrides = format!(
        "[type.\"struct mqueue_inode_info\"]\nobjects = \"cache\"\ncache = \"mqueue_inode_cachep\"\nvalues = {{ {member} = {EXISTING} }}\n\
         reason = \"mqueue_alloc_inode is the only place that makes them\"\n"
    );
    data_bundle(work, kernel, name, &numbered(member, &member.to_uppercase()), &overrides, &[])
}

/// Applies a bundle; somebody who works on a queue may be inside for a moment.
fn apply(hv: &Hv, bundle: &Path) -> Outcome {
    let mut busy = 0;
    let outcome = common::patiently(&mut busy, || hv.apply(bundle).expect("lucos-hv runs"));
    assert_eq!(outcome.text("/state"), "applied", "{}", outcome.describe());
    outcome
}

fn make(guest: &mut Guest, queues: std::ops::Range<usize>) {
    let (first, last) = (queues.start, queues.end - 1);
    guest.run_ok(&format!("for i in $(seq {first} {last}); do : > {QUEUES}/$i || exit 1; done")).expect("makes queues");
}

/// How many queues show each number.
fn shown(guest: &mut Guest, name: &str) -> Vec<(u32, usize)> {
    let text = guest.run_ok(&format!("cat {QUEUES}/* | sed 's/.*{name}:/@/' | sort | uniq -c")).expect("answers");
    let line = |line: &str| {
        let (count, number) = line.split_once('@')?;
        Some((number.trim().parse().ok()?, count.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Objects and slabs of the cache, as the guest counts them.
fn counted(guest: &mut Guest) -> (f64, f64) {
    let line = guest.run_ok(&format!("grep '^{CACHE} ' /proc/slabinfo")).expect("the cache");
    let number = |at: usize| line.split_whitespace().nth(at).and_then(|word| word.parse().ok()).expect("a number");
    (number(2), number(14))
}

#[test]
fn objects_that_exist_get_what_is_new_in_them() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = bundle(work.path(), &kernel, "numbered", "number");
    let mut guest = Guest::under_lucos_hv(&Config::new("objects", &kernel.vmlinuz())).expect("boots");
    let hv = Hv::new(guest.api());
    // A user may have 800 KiB of messages.
    let limits = "cd /proc/sys/fs/mqueue; echo 5000 > queues_max; echo 1 > msg_default; echo 128 > msgsize_default";
    guest.run_ok(&format!("mkdir {QUEUES}; mount -t mqueue queues {QUEUES}; {limits}")).expect("mounts");
    // Processes look at queues on both processors, and make and remove some all the time.
    let load = format!(
        "for c in 1 2; do taskset $c sh -c 'while :; do : > {QUEUES}/load$0; cat {QUEUES}/0; rm {QUEUES}/load$0; \
         echo >> /tmp/worked; done' $c > /dev/null 2>&1 & done"
    );
    let (mut pauses, mut there) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        make(&mut guest, there..there + 100);
        there += 100;
        let objects = counted(&mut guest);
        let outcome = apply(&hv, &bundle);
        assert_eq!(
            (outcome.number("/objects/0/count/of"), outcome.number("/objects/0/count/slabs")),
            objects,
            "{}",
            outcome.describe()
        );
        assert_eq!(outcome.text("/objects/0/cache"), CACHE);
        let live = outcome.number("/objects/0/count/live");
        // The file system's root is one, in each name space of the kernel's own.
        assert!(live >= there as f64 && live < there as f64 + 8.0, "round {round}: {live} live, {there} queues");
        assert_eq!(
            live + outcome.number("/objects/0/count/free"),
            objects.0,
            "its constructor keeps what free ones hold"
        );
        assert_eq!(shown(&mut guest, "NUMBER"), [(EXISTING, there)], "round {round}");
        make(&mut guest, there..there + 50);
        there += 50;
        assert_eq!(shown(&mut guest, "NUMBER"), [(EXISTING, there - 50), (MADE, 50)], "round {round}");
        let time = |phase: &str| outcome.number(&format!("/times_us/{phase}"));
        pauses.push((live, time("find"), time("objects"), time("longest_pause")));
        let outcome = undo(&hv, "numbered");
        assert_eq!(shown(&mut guest, "NUMBER"), [], "{}", outcome.describe());
    }
    for (live, find, objects, longest) in pauses {
        eprintln!("{live} objects: found in {find} µs, counted and written in {objects} µs of a stop of {longest} µs");
    }

    guest.run_ok(&load).expect("starts");
    for round in 0..ROUNDS {
        let outcome = apply(&hv, &bundle);
        assert_eq!(applied(&hv), ["numbered"]);
        let found = shown(&mut guest, "NUMBER");
        let existing: usize = found.iter().filter(|(number, _)| *number == EXISTING).map(|(_, count)| *count).sum();
        let made: usize = found.iter().filter(|(number, _)| *number == MADE).map(|(_, count)| *count).sum();
        assert!(
            existing >= there && existing + made <= there + 2 && found.len() <= 2,
            "round {round}: {found:?}, {}",
            outcome.describe()
        );
        undo(&hv, "numbered");
    }
    let worked = guest.run_ok("wc -l < /tmp/worked").expect("answers");
    eprintln!("the processes worked {} times meanwhile", worked.trim());
    guest
        .run_ok(&format!("for p in $(pidof sh); do [ $p = $$ ] || kill $p 2>/dev/null; done; rm {QUEUES}/*; true"))
        .expect("ends");
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    assert_eq!(guest.power_off().expect("powers off"), Some(0));
}
