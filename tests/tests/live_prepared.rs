//! New code that the guest itself has prepared: it is as good a citizen as a module's, and leaves as cleanly.

mod common;

use common::{
    CITIZEN, NAME, allow_asking, applied, apply, ask, citizen_bundle, first_word, said, set_schedstats, undo,
    visible_bundle,
};
use lucos_tests::commands::Hv;
use lucos_tests::digest::Snapshot;
use lucos_tests::guest::{Config, Guest};
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::{VISIBLE_FILE, VISIBLE_WORDS};
use lucos_tests::{programs, require};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The module that the guest knows the bundle as that does things on request.
const MODULE: &str = "lucos_citizen";

/// A guest in which processes can ask; with some files of this machine.
fn guest(name: &str, kernel: &Kernel, files: &[PathBuf]) -> (Guest, Hv) {
    let mut config = Config::new(name, &kernel.vmlinuz());
    config.files = vec![kernel.module("kernel/fs/nls/nls_utf8.ko")];
    config.files.extend_from_slice(files);
    let mut guest = Guest::under_lucos_hv(&config).expect("boots");
    allow_asking(&mut guest);
    let hv = Hv::new(guest.api());
    (guest, hv)
}

/// Someone asks in the background; given back is the number of the process.
fn start(guest: &mut Guest, request: char) -> String {
    let started = format!("(sh /tmp/ask {request} > /tmp/asked 2>&1 & echo $! > /tmp/pid); sleep 0.3; cat /tmp/pid");
    guest.run_ok(&started).expect("starts").trim().to_owned()
}

#[test]
fn new_code_is_a_good_citizen() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = citizen_bundle(work.path(), &kernel);
    let (mut guest, hv) = guest("citizen", &kernel, &[]);
    // A key that is on already when the code comes.
    set_schedstats(&mut guest, true);
    let outcome = apply(&hv, &bundle);
    assert_eq!((outcome.text("/memory"), outcome.text("/module")), ("module", MODULE));

    let modules = guest.run_ok("cat /proc/modules").expect("lists");
    assert!(modules.contains(&format!("{MODULE} ")) && modules.contains("(K)"), "{modules}");
    let symbols = guest.run_ok(&format!("grep {MODULE} /proc/kallsyms")).expect("lists");
    assert!(symbols.contains(" t cmdline_proc_show.lucos\t[lucos_citizen]"), "{symbols}");
    assert!(ask(&mut guest, 'f').contains("result -14 "), "a faulting access reaches its fix-up");
    assert!(ask(&mut guest, 'a').contains("access 10 "), "programs' addresses are told from others");

    // Static keys, in both directions.
    assert!(ask(&mut guest, 'x').starts_with("enabled "), "as the key was when the code came");
    for on in [false, true, false] {
        set_schedstats(&mut guest, on);
        assert_eq!(ask(&mut guest, 'x').starts_with("enabled "), on);
    }
    // Tracepoints.
    let tracing = "/sys/kernel/tracing";
    let enable = format!("{tracing}/events/sched/sched_process_wait/enable");
    guest.run_ok(&format!("echo 1 > {enable}")).expect("traces");
    ask(&mut guest, 't');
    let trace =
        guest.run_ok(&format!("echo 0 > {enable}; cat {tracing}/trace; echo > {tracing}/trace")).expect("the trace");
    assert!(trace.contains("sched_process_wait: comm=@t"), "{trace}");
    // Debug messages are off, on, off.
    let control = "/sys/kernel/debug/dynamic_debug/control";
    for (switch, expected) in [(None, false), (Some("+p"), true), (Some("-p"), false)] {
        if let Some(switch) = switch {
            guest.run_ok(&format!("echo 'module {MODULE} {switch}' > {control}")).expect("switches");
        }
        assert_eq!(said(&mut guest, 'p').contains("asked for by"), expected, "{switch:?}");
    }
    // Stacks: of a process asleep inside, and of a processor busy inside.
    let pid = start(&mut guest, 's');
    let stack = guest.run_ok(&format!("cat /proc/{pid}/stack")).expect("a stack");
    let named = stack.find("cmdline_proc_show.lucos+").zip(stack.find("entry_SYSCALL_64_after_hwframe"));
    assert!(named.is_some_and(|(new, entry)| new < entry) && stack.contains("[lucos_citizen]"), "{stack}");
    guest.run_ok("sleep 3; dmesg -c > /dev/null").expect("waits");
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());

    // From here on the kernel complains, because it is asked to.
    // Whether the busy process has its processor at that very moment is chance.
    let named = |stacks: &str| stacks.contains(" cmdline_proc_show.lucos+") && stacks.contains("vfs_read+");
    let mut stacks = String::new();
    for _ in 0..5 {
        start(&mut guest, 'L');
        stacks = guest.run_ok("echo l > /proc/sysrq-trigger; sleep 2; dmesg -c").expect("stacks");
        if named(&stacks) {
            break;
        }
    }
    assert!(named(&stacks), "{stacks}");
    let dump = said(&mut guest, 'd');
    assert!(dump.contains("cmdline_proc_show") && dump.contains("entry_SYSCALL_64_after_hwframe+"), "{dump}");
    let line = "at fs/proc/cmdline.c:";
    let once = said(&mut guest, 'w');
    assert!(once.contains("WARNING: ") && once.contains(line) && once.contains("cmdline_proc_show.lucos+"), "{once}");
    assert_eq!(said(&mut guest, 'w'), "", "once is once");
    for _ in 0..2 {
        let warning = said(&mut guest, 'W');
        assert!(warning.contains("asked for by") && warning.contains(line), "{warning}");
    }
    // Nobody but the service takes it away.
    for remove in ["rmmod", "rmmod -f"] {
        assert_ne!(guest.run(&format!("{remove} {MODULE}")).expect("answers").status, 0);
    }

    let outcome = undo(&hv, CITIZEN);
    assert_eq!((outcome.number("/kept_pages"), outcome.text("/reason")), (0.0, ""), "{}", outcome.describe());
    let left = guest.run(&format!("grep lucos /proc/modules /proc/kallsyms {control}")).expect("answers");
    assert_eq!((left.status, left.output.as_str()), (1, ""));
    // Everything that the code had followed goes on without it.
    guest.run_ok("dmesg -c > /dev/null").expect("clears");
    for on in [true, false] {
        set_schedstats(&mut guest, on);
        assert!(ask(&mut guest, 'f').starts_with("console="));
    }
    guest.run_ok(&format!("echo 1 > {enable}; echo 0 > {enable}")).expect("traces");
    assert_eq!(guest.run_ok("dmesg -c").expect("the kernel's messages"), "");
}

/// perf, as it comes with the distribution, samples processors that are busy in new code: the new function has its name, and
/// the stack goes on to those that called it.
#[test]
fn perf_sees_through_new_code() {
    let Some(kernel) = require::older_kernel() else { return };
    let Some(files) = require::or_skip(programs::with_libraries("perf", "linux-perf")) else { return };
    let perf = programs::start_of("perf");
    let work = tempfile::tempdir().expect("a folder");
    let bundle = citizen_bundle(work.path(), &kernel);
    let (mut guest, hv) = guest("perf", &kernel, &files);
    apply(&hv, &bundle);
    let record = format!("{perf} record -a -g -e cpu-clock -F 200 -o /tmp/samples -- sh /tmp/ask L 2>&1");
    guest.run_ok(&record).expect("samples");
    let script = guest.run_ok(&format!("{perf} script -i /tmp/samples -F comm,ip,sym 2> /dev/null")).expect("reads");
    // A sample is a paragraph: the process, then one line for each function, the innermost first.
    let inside = script.split("\n\n").filter(|sample| sample.contains(" cmdline_proc_show.lucos\n"));
    let stacks: Vec<&str> = inside.collect();
    assert!(stacks.len() >= 5, "{} of {} samples\n{script}", stacks.len(), script.split("\n\n").count());
    for stack in &stacks {
        let at = |name: &str| stack.find(&format!(" {name}\n"));
        let order =
            [at("cmdline_proc_show.lucos"), at("seq_read_iter"), at("vfs_read"), at("entry_SYSCALL_64_after_hwframe")];
        assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{stack}");
    }
    undo(&hv, CITIZEN);
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// Static calls in new code lead where the guest turns them: those of a tracepoint, to nothing, to its one probe, to all of
/// its probes; those of preemption, which can be chosen at run time.
#[test]
fn static_calls_are_turned_while_it_is_applied_and_afterwards() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let Some(counter) = require::or_skip(programs::compile("count", work.path())) else { return };
    let bundle = citizen_bundle(work.path(), &kernel);
    let (mut guest, hv) = guest("calls", &kernel, &[counter]);
    let event = "sched_process_wait";
    let enable = format!("/sys/kernel/tracing/events/sched/{event}/enable");
    let trace = "/sys/kernel/tracing/trace";
    let switch = |guest: &mut Guest, on: bool| {
        guest.run_ok(&format!("echo {} > {enable}", u8::from(on))).expect("switches");
    };
    let attach = format!(
        "(setsid /files/count tracepoint {event} /tmp/calls > /tmp/said 2>&1 & echo $! > /tmp/counter)
         for i in $(seq 100); do [ -s /tmp/calls ] && exit 0; usleep 20000; done; cat /tmp/said; exit 1"
    );
    let detach = "kill $(cat /tmp/counter); while kill -0 $(cat /tmp/counter) 2> /dev/null; do usleep 10000; done; rm /tmp/calls";
    let calls = |guest: &mut Guest| -> u64 {
        let text = guest.run_ok("usleep 50000; cat /tmp/calls").expect("the count");
        text.trim().parse().expect("a number")
    };
    let traced = |guest: &mut Guest| {
        let text = guest.run_ok(&format!("echo > {trace}; sh /tmp/ask t > /dev/null; cat {trace}")).expect("the trace");
        text.lines().any(|line| line.contains(&format!("{event}: comm=@t")))
    };
    // On when the code comes; turned while it is there.
    switch(&mut guest, true);
    apply(&hv, &bundle);
    assert!(traced(&mut guest), "one probe, as it was before");
    guest.run_ok(&attach).expect("attaches");
    let before = calls(&mut guest);
    assert!(traced(&mut guest), "two probes");
    assert!(calls(&mut guest) > before, "two probes");
    switch(&mut guest, false);
    let before = calls(&mut guest);
    assert!(!traced(&mut guest), "the other probe");
    assert!(calls(&mut guest) > before, "the other probe");
    guest.run_ok(detach).expect("detaches");
    assert!(!traced(&mut guest), "no probe");
    switch(&mut guest, true);
    assert!(traced(&mut guest), "one probe again");

    let preempt = "/sys/kernel/debug/sched/preempt";
    let modes = ["none", "voluntary", "full"];
    let choose = |guest: &mut Guest, mode: &str| {
        let chosen = guest.run_ok(&format!("echo {mode} > {preempt}; cat {preempt}")).expect("chooses");
        assert!(chosen.contains(&format!("({mode})")), "{chosen}");
    };
    for mode in modes {
        choose(&mut guest, mode);
        assert!(ask(&mut guest, 'c').starts_with("console="), "{mode}");
    }
    undo(&hv, CITIZEN);
    // The guest does not look for what is gone.
    guest.run_ok(&attach).expect("attaches");
    switch(&mut guest, false);
    switch(&mut guest, true);
    guest.run_ok(detach).expect("detaches");
    switch(&mut guest, false);
    modes.iter().rev().for_each(|mode| choose(&mut guest, mode));
    assert!(ask(&mut guest, 'c').starts_with("console="));
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// A bug in new code ends the process that meets it, is reported as one of the new code, and the rest of the guest lives on.
#[test]
fn an_oops_in_new_code_names_it() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = citizen_bundle(work.path(), &kernel);
    let (mut guest, hv) = guest("oops", &kernel, &[]);
    apply(&hv, &bundle);
    guest.run_ok("dmesg -c > /dev/null").expect("clears");
    assert_ne!(guest.run("sh /tmp/ask o").expect("answers").status, 0, "the process is gone");
    let oops = guest.run_ok("dmesg -c").expect("the kernel's messages");
    for part in
        ["BUG: kernel NULL pointer dereference", "RIP: 0010:cmdline_proc_show.lucos+", "[lucos_citizen]", " vfs_read+"]
    {
        assert!(oops.contains(part), "{part}: {oops}");
    }
    assert!(ask(&mut guest, 'f').contains("result -14 "), "the next process can use it");
    let outcome = undo(&hv, CITIZEN);
    assert_eq!((outcome.number("/kept_pages"), outcome.text("/reason")), (0.0, ""), "{}", outcome.describe());
    assert!(ask(&mut guest, 'o').starts_with("console="), "the old code");
    assert_eq!(guest.run_ok("dmesg -c").expect("the kernel's messages"), "");
}

/// What must not be probed must not be probed in its new version either.
#[test]
fn probes_of_new_code_are_allowed_where_the_kernel_allows_them() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = citizen_bundle(work.path(), &kernel);
    let (mut guest, hv) = guest("noprobe", &kernel, &[]);
    let blacklist = "/sys/kernel/debug/kprobes/blacklist";
    let events = "/sys/kernel/tracing/kprobe_events";
    let before = guest.run_ok(&format!("cat {blacklist}")).expect("the list");
    for _ in 0..2 {
        apply(&hv, &bundle);
        let listed =
            guest.run_ok(&format!("grep lucos /proc/kallsyms; grep faulting_access {blacklist}")).expect("is listed");
        let name =
            listed.lines().find_map(|line| line.split_whitespace().find(|word| word.starts_with("faulting_access")));
        let name = name.unwrap_or_else(|| panic!("{listed}"));
        for (function, allowed) in [(name, false), ("cmdline_proc_show.lucos", true)] {
            let probe = guest.run(&format!("echo 'p:lucos/hit {function}' > {events}")).expect("answers");
            assert_eq!(probe.status == 0, allowed, "{function}: {}", probe.output);
        }
        let hit = "/sys/kernel/tracing/events/lucos/enable";
        let trace = guest.run_ok(&format!(
            "echo 1 > {hit}; sh /tmp/ask f > /tmp/asked; echo 0 > {hit}; cat /tmp/asked /sys/kernel/tracing/trace; echo > {events}"
        ));
        let trace = trace.expect("the trace");
        assert!(trace.contains("result -14 ") && trace.contains(" hit: (cmdline_proc_show.lucos"), "{trace}");
        undo(&hv, CITIZEN);
        assert_eq!(guest.run_ok(&format!("cat {blacklist}")).expect("the list"), before, "taken back");
    }
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// A thread that sleeps inside keeps the code where it is; when it has left, the next undo gives everything back. Tracers
/// take its return address off the stack: it is found all the same.
#[test]
fn code_stays_while_somebody_is_inside() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = citizen_bundle(work.path(), &kernel);
    let (mut guest, hv) = guest("inside", &kernel, &[]);
    let tracing = "/sys/kernel/tracing";
    let graph = format!("echo msleep > {tracing}/set_ftrace_filter; echo function_graph > {tracing}/current_tracer");
    let probe =
        format!("echo 'r:lucos/slept msleep' > {tracing}/kprobe_events; echo 1 > {tracing}/events/lucos/enable");
    let stop = format!(
        "echo nop > {tracing}/current_tracer; echo 0 > {tracing}/events/lucos/enable; echo > {tracing}/kprobe_events; \
         echo > {tracing}/set_ftrace_filter"
    );
    for (what, begin, end) in [
        ("plain", "true", "true"),
        ("graph", graph.as_str(), stop.as_str()),
        ("return probe", probe.as_str(), stop.as_str()),
    ] {
        guest.run_ok(begin).expect("traces");
        apply(&hv, &bundle);
        start(&mut guest, 's');
        let outcome = undo(&hv, CITIZEN);
        assert_eq!(outcome.text("/reason"), "kept-still-in-use", "{what}: {}", outcome.describe());
        assert!(outcome.number("/kept_pages") > 0.0, "{what}");
        guest.run_ok("sleep 3; cat /tmp/asked").expect("waits");
        guest.run(end).expect("stops tracing");
        let outcome = apply(&hv, &bundle);
        assert!(
            ask(&mut guest, 'f').contains("result -14 "),
            "{what}: applied in the kept area: {}",
            outcome.describe()
        );
        let outcome = undo(&hv, CITIZEN);
        assert_eq!(outcome.number("/kept_pages"), 0.0, "{what}: {}", outcome.describe());
        assert_eq!(guest.run("grep lucos /proc/modules").expect("answers").status, 1, "{what}");
    }
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

#[test]
fn many_rounds_while_other_modules_come_and_go() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = citizen_bundle(work.path(), &kernel);
    let (mut guest, hv) = guest("rounds", &kernel, &[]);
    let load = guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS).expect("starts");
    let others = "while :; do insmod /files/nls_utf8.ko && rmmod nls_utf8 && echo >> /tmp/others; done";
    let asking = "while :; do sh /tmp/ask f; done > /dev/null";
    guest
        .run_ok(&format!("for c in '{others}' '{asking}'; do setsid sh -c \"$c\" 2> /dev/null & done"))
        .expect("starts");
    let (mut longest, mut total) = (Vec::new(), Vec::new());
    for round in 0..25 {
        let outcome = apply(&hv, &bundle);
        longest.push(outcome.number("/times_us/longest_pause") as u64);
        total.push(outcome.number("/times_us/total") as u64);
        assert!(ask(&mut guest, 'f').contains("result -14 "), "round {round}: applied");
        let outcome = undo(&hv, CITIZEN);
        assert_eq!(outcome.text("/reason"), "", "round {round}: {}", outcome.describe());
        assert!(ask(&mut guest, 'f').starts_with("console="), "round {round}: taken back");
    }
    longest.sort_unstable();
    total.sort_unstable();
    eprintln!(
        "apply under load: longest pause {} µs median, {} µs at most; {} µs in all, median",
        longest[12], longest[24], total[12]
    );
    let others: u64 = guest.run_ok("wc -l < /tmp/others").expect("answers").trim().parse().expect("a number");
    assert!(others > 5, "only {others} rounds of another module");
    let progress = guest.load_progress(&load).expect("answers");
    assert!(progress.fewest > 0 && progress.wrong == 0, "{progress:?}");
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// The service dies at any moment of apply and undo: the guest goes on, the next service knows what holds, and nothing stays
/// behind.
#[test]
fn the_service_is_killed_at_random_moments() {
    if !require::qemu("its guests end with the service that started them") {
        return;
    }
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = visible_bundle(work.path(), &kernel);
    let mut guest = Guest::under_plain_qemu(&Config::new("killed", &kernel.vmlinuz())).expect("boots");
    let load = guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS).expect("starts");
    let before = Snapshot::take(&mut guest).expect("memory");
    let hv = Hv::new(guest.api());
    // How long an action takes here and now, so that some are killed and some are not.
    let service = guest.attach().expect("attaches");
    let (one, other) = (apply(&hv, &bundle).wall_ms, undo(&hv, NAME).wall_ms);
    service.detach().expect("ends");
    let reach_us = u32::try_from(2000 * one.max(other)).expect("less than an hour");
    let mut random = 0x2545_f491_u32;
    let (mut answered, mut found) = (0, [0, 0]);
    for round in 0..30 {
        let service = guest.attach().unwrap_or_else(|error| panic!("round {round}: {error}"));
        let is_applied = applied(&hv) == [NAME];
        found[usize::from(is_applied)] += 1;
        assert_eq!(
            first_word(&mut guest),
            VISIBLE_WORDS[usize::from(is_applied)],
            "round {round}: what the service says"
        );
        let (client, file) = (hv.clone(), bundle.clone());
        let client = std::thread::spawn(move || if is_applied { client.undo(NAME) } else { client.apply(&file) });
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        std::thread::sleep(Duration::from_micros(u64::from(random % reach_us)));
        service.crash().expect("is killed");
        let outcome = client.join().expect("no panic").expect("lucos-hv runs");
        answered += u32::from(outcome.status == 0);
        let start = Instant::now();
        first_word(&mut guest);
        assert!(start.elapsed() < Duration::from_secs(20), "round {round}: the guest goes on");
    }
    eprintln!("30 kills, {answered} of them after the answer; found not applied and applied: {found:?}");
    assert!(found.iter().all(|&count| count > 2), "{found:?}");
    let service = guest.attach().expect("attaches");
    if !applied(&hv).is_empty() {
        undo(&hv, NAME);
    }
    // What the last dead service left to the guest is finished by now or soon; the service learns it between clients.
    let modules = |guest: &mut Guest| guest.run("grep lucos /proc/modules").expect("answers").output;
    let status = || hv.call("status", None).expect("lucos-hv runs");
    let start = Instant::now();
    let mut last = status();
    while (last.json["waiting"] != false || !modules(&mut guest).is_empty())
        && start.elapsed() < Duration::from_secs(20)
    {
        std::thread::sleep(Duration::from_millis(200));
        last = status();
    }
    assert_eq!((last.json["waiting"].as_bool(), last.number("/lost_pages")), (Some(false), 0.0), "{}", last.describe());
    assert_eq!(modules(&mut guest), "");
    service.detach().expect("ends");
    let after = Snapshot::take(&mut guest).expect("memory");
    assert_eq!(before.difference(&after), None, "the memory is as it was");
    let progress = guest.load_progress(&load).expect("answers");
    assert!(progress.fewest > 0 && progress.wrong == 0, "{progress:?}");
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// A guest that cannot do its part is told from one that can, and a bundle without tables can do without.
#[test]
fn a_stopped_guest_is_not_asked_and_the_arena_does_without() {
    if !require::qemu("it stops the guest by QEMU's monitor") {
        return;
    }
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = visible_bundle(work.path(), &kernel);
    let mut guest = Guest::under_plain_qemu(&Config::new("stopped", &kernel.vmlinuz())).expect("boots");
    let before = Snapshot::take(&mut guest).expect("memory");
    let service = guest.attach().expect("attaches");
    let hv = Hv::new(guest.api());
    let monitor = guest.monitor().expect("a monitor").to_owned();
    let human = |command: &str| {
        lucos_tests::digest::Monitor::connect(&monitor).and_then(|mut monitor| monitor.human(command)).expect("answers")
    };
    human("stop");
    let outcome = hv.apply(&bundle).expect("lucos-hv runs");
    assert_eq!((outcome.status, outcome.text("/error/reason")), (3, "guest-state"), "{}", outcome.describe());
    let outcome = hv.apply_in_arena(&bundle).expect("lucos-hv runs");
    assert_eq!((outcome.status, outcome.text("/memory")), (0, "arena"), "{}", outcome.describe());
    human("cont");
    assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1]);
    undo(&hv, NAME);
    assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0]);

    let citizen = citizen_bundle(work.path(), &kernel);
    let outcome = hv.apply_in_arena(&citizen).expect("lucos-hv runs");
    assert_eq!((outcome.status, outcome.text("/error/reason")), (3, "needs-preparation"), "{}", outcome.describe());
    service.detach().expect("ends");
    let after = Snapshot::take(&mut guest).expect("memory");
    assert_eq!(before.difference(&after), None, "the memory is as it was");
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}
