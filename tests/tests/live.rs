//! Live updates of a stock kernel: applied, seen, taken back, seen.

mod common;

use common::{CITIZEN, NAME, allow_asking, applied, apply, ask, citizen_bundle, first_word, undo, visible_bundle};
use lucos_tests::commands::Hv;
use lucos_tests::digest::{Monitor, Snapshot};
use lucos_tests::guest::{Config, Guest};
use lucos_tests::patches::{VISIBLE_FILE, VISIBLE_WORDS};
use lucos_tests::require;

#[test]
fn a_hundred_times_under_load() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = visible_bundle(work.path(), &kernel);
    let mut guest = Guest::under_lucos_hv(&Config::new("hundred", &kernel.vmlinuz())).expect("boots");
    let hv = Hv::new(guest.api());
    let load = guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS).expect("starts");
    let (mut pauses, mut last) = (Vec::new(), 0);
    for round in 0..100 {
        let outcome = apply(&hv, &bundle);
        pauses.push(outcome.number("/times_us/paused") as u64);
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1], "round {round}: applied");
        assert_eq!(applied(&hv), [NAME], "round {round}");
        undo(&hv, NAME);
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0], "round {round}: taken back");
        assert!(applied(&hv).is_empty(), "round {round}");
        if round % 20 == 19 {
            let now = guest.load_progress(&load).expect("answers");
            assert!(now.fewest > last, "round {round}: no work on some processor since round {}: {now:?}", round - 20);
            assert_eq!(now.wrong, 0, "round {round}: a read that was neither old nor new");
            last = now.fewest;
        }
    }
    pauses.sort_unstable();
    eprintln!("pause of apply: {} µs at least, {} µs median, {} µs at most", pauses[0], pauses[50], pauses[99]);
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    assert_eq!(guest.power_off().expect("powers off"), Some(0), "lucos-hv run ends with its guest");
}

#[test]
fn attach_to_a_qemu_that_was_started_with_a_qmp_socket() {
    if !require::qemu("it attaches to a QEMU") {
        return;
    }
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = visible_bundle(work.path(), &kernel);
    let mut guest = Guest::under_plain_qemu(&Config::new("attach", &kernel.vmlinuz())).expect("boots");
    let load = guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS).expect("starts");
    let before = Snapshot::take(&mut guest).expect("memory");
    let service = guest.attach().expect("attaches");
    let hv = Hv::new(guest.api());
    apply(&hv, &bundle);
    assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1]);
    let after = Snapshot::take(&mut guest).expect("memory");
    assert_ne!(before.difference(&after), None, "an applied bundle is visible in memory");
    undo(&hv, NAME);
    assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0]);
    let status = service.detach().expect("ends");
    assert_eq!(status.code(), Some(0), "detach is a clean end");
    {
        let mut monitor = Monitor::connect(guest.monitor().expect("a monitor")).expect("connects");
        assert!(monitor.is_running().expect("answers"), "the guest goes on after detach");
    }
    let progress = guest.load_progress(&load).expect("answers");
    assert!(progress.fewest > 0 && progress.wrong == 0, "{progress:?}");
    let end = Snapshot::take(&mut guest).expect("memory");
    assert_eq!(before.difference(&end), None, "after undo the memory is as it was");
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

#[test]
fn an_applied_bundle_outlives_the_service() {
    if !require::qemu("its guests end with the service that started them") {
        return;
    }
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = visible_bundle(work.path(), &kernel);
    let mut guest = Guest::under_plain_qemu(&Config::new("outlive", &kernel.vmlinuz())).expect("boots");
    let hv = Hv::new(guest.api());
    guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS).expect("starts");

    let service = guest.attach().expect("attaches");
    apply(&hv, &bundle);
    service.detach().expect("ends");
    assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1], "applied bundles stay when the service ends");

    let service = guest.attach().expect("attaches again");
    assert_eq!(applied(&hv), [NAME], "the new service knows them");
    service.crash().expect("is killed");
    assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1], "and when it is killed");

    let _service = guest.attach().expect("attaches after a crash");
    undo(&hv, NAME);
    assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0]);
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// The guest's own tracers find the entry as they left it, because the jump lies behind their no-op.
#[test]
fn a_redirected_function_can_be_traced_and_probed() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = visible_bundle(work.path(), &kernel);
    let mut guest = Guest::under_lucos_hv(&Config::new("traced", &kernel.vmlinuz())).expect("boots");
    let hv = Hv::new(guest.api());
    let tracing = "/sys/kernel/tracing";
    guest.run_ok(&format!("mount -t tracefs tracefs {tracing}")).expect("mounts");
    apply(&hv, &bundle);

    let look = |guest: &mut Guest, event: &str| {
        assert_eq!(first_word(guest), VISIBLE_WORDS[1], "{event}: the new code runs");
        let trace = guest.run_ok(&format!("cat {tracing}/trace; echo > {tracing}/trace")).expect("reads the trace");
        assert!(trace.contains(event), "{event} is not in the trace:\n{trace}");
    };
    let filter = format!("echo version_proc_show > {tracing}/set_ftrace_filter");
    guest.run_ok(&format!("{filter}; echo function > {tracing}/current_tracer")).expect("traces");
    look(&mut guest, "version_proc_show");
    guest.run_ok(&format!("echo nop > {tracing}/current_tracer")).expect("stops tracing");
    for (event, probe) in [("entered", "p:lucos/entered"), ("returned", "r:lucos/returned")] {
        let enable = format!("{tracing}/events/lucos/{event}/enable");
        guest
            .run_ok(&format!("echo '{probe} version_proc_show' > {tracing}/kprobe_events && echo 1 > {enable}"))
            .expect("probes");
        look(&mut guest, event);
        guest.run_ok(&format!("echo 0 > {enable} && echo > {tracing}/kprobe_events")).expect("stops probing");
    }

    guest.run_ok(&format!("{filter}; echo function > {tracing}/current_tracer")).expect("traces");
    undo(&hv, NAME);
    assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0], "undone while it is traced");
    guest.run_ok(&format!("echo nop > {tracing}/current_tracer")).expect("stops tracing");
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// Processor models and boot choices that change the page tables or the code that boot writes.
#[test]
fn on_other_processors_and_mitigations() {
    if !require::qemu("it chooses QEMU's processor models") {
        return;
    }
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let (bundle, citizen) = (visible_bundle(work.path(), &kernel), citizen_bundle(work.path(), &kernel));
    for (model, append, cpus) in [
        ("max", "", 2),          // 5-level page tables
        ("qemu64", "pti=on", 2), // page-table isolation
        ("Skylake-Client", "", 4),
        ("EPYC", "spectre_v2=retpoline retbleed=unret", 2),
        ("Haswell-noTSX", "mitigations=off", 1),
        ("qemu64", "nokaslr nosmp", 1),
    ] {
        let what = format!("{model} {append}");
        let mut config = Config::new(&format!("model-{model}-{}", append.len()), &kernel.vmlinuz());
        (config.model, config.append, config.cpus) = (Some(model.to_owned()), append.to_owned(), cpus);
        let mut guest = Guest::under_plain_qemu(&config).unwrap_or_else(|error| panic!("{what}: {error}"));
        let said_at_boot = guest.kernel_warnings().expect("answers");
        let before = Snapshot::take(&mut guest).expect("memory");
        let service = guest.attach().expect("attaches");
        let hv = Hv::new(guest.api());
        for _ in 0..3 {
            apply(&hv, &bundle);
            assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1], "{what}");
            undo(&hv, NAME);
            assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0], "{what}");
        }
        // Tables, alternatives and indirect calls, as this processor and these mitigations want them.
        allow_asking(&mut guest);
        let outcome = apply(&hv, &citizen);
        assert_eq!(outcome.text("/memory"), "module", "{what}");
        for (request, answer) in [('f', "result -14 "), ('i', "clock 1 "), ('c', "console="), ('t', "console=")] {
            let said = ask(&mut guest, request);
            assert!(said.starts_with(answer), "{what}: {request}: {said}");
        }
        let outcome = undo(&hv, CITIZEN);
        assert_eq!(outcome.text("/reason"), "", "{what}: {}", outcome.describe());
        service.detach().expect("ends");
        let after = Snapshot::take(&mut guest).expect("memory");
        assert_eq!(before.difference(&after), None, "{what}: after undo the memory is as it was");
        assert_eq!(guest.kernel_warnings().expect("answers"), said_at_boot, "{what}");
    }
}
