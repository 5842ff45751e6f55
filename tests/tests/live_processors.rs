//! Processors that come and go: what is offline is not asked, is not waited for, and has the right code when it is back.

mod common;

use common::{CITIZEN, NAME, allow_asking, apply, ask, citizen_bundle, first_word, undo, visible_bundle};
use lucos_tests::commands::Hv;
use lucos_tests::guest::{Config, Guest, Service};
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::{VISIBLE_FILE, VISIBLE_WORDS};
use lucos_tests::require;

const CPUS: u32 = 4;

fn boot(name: &str, kernel: &Kernel, append: &str) -> (Guest, Option<Service>, Hv, Vec<String>) {
    let mut config = Config::new(name, &kernel.vmlinuz());
    (config.append, config.cpus) = (append.to_owned(), CPUS);
    // Linux lets the first processor go on Intel's only (arch/x86/kernel/topology.c, arch_register_cpu).
    config.model = Some("Skylake-Client".to_owned());
    let (mut guest, service) = Guest::served(&config).expect("boots");
    allow_asking(&mut guest);
    let hv = Hv::new(guest.api());
    let said_at_boot = guest.kernel_warnings().expect("answers");
    (guest, service, hv, said_at_boot)
}

/// Switches processors, and looks that these and no others are online.
fn switch(guest: &mut Guest, cpus: &[u32], on: bool, online: &str) {
    for cpu in cpus {
        let command = format!("echo {} > /sys/devices/system/cpu/cpu{cpu}/online", u8::from(on));
        guest.run_ok(&command).unwrap_or_else(|error| panic!("processor {cpu}: {error}"));
    }
    assert_eq!(guest.run_ok("cat /sys/devices/system/cpu/online").expect("answers").trim(), online);
}

/// The version that each online processor runs.
fn sees(guest: &mut Guest, is_new: bool, online: &[u32]) {
    for cpu in online {
        let text = guest.run_ok(&format!("taskset {:x} cat {VISIBLE_FILE}", 1_u32 << cpu)).expect("answers");
        assert!(text.starts_with(VISIBLE_WORDS[usize::from(is_new)]), "processor {cpu}: {text}");
    }
}

#[test]
fn processors_go_offline_and_come_back() {
    if !require::qemu("its processor model lets the first processor go") {
        return;
    }
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let (bundle, citizen) = (visible_bundle(work.path(), &kernel), citizen_bundle(work.path(), &kernel));
    // Until Linux 6.5 the first processor can go, too, if that was asked for at boot (arch/x86/kernel/topology.c).
    let (mut guest, service, hv, said_at_boot) = boot("offline", &kernel, "cpu0_hotplug");

    // Applied while some are offline; they come back; taken back while others are.
    switch(&mut guest, &[1, 3], false, "0,2");
    apply(&hv, &bundle);
    sees(&mut guest, true, &[0, 2]);
    switch(&mut guest, &[3, 1], true, "0-3");
    sees(&mut guest, true, &[0, 1, 2, 3]);
    switch(&mut guest, &[2], false, "0-1,3");
    undo(&hv, NAME);
    sees(&mut guest, false, &[0, 1, 3]);
    switch(&mut guest, &[2], true, "0-3");
    sees(&mut guest, false, &[0, 1, 2, 3]);

    // Applied while all are online, taken back when only one is left: whoever is asked to help is not the first.
    apply(&hv, &bundle);
    apply(&hv, &citizen);
    switch(&mut guest, &[0], false, "1-3");
    assert!(ask(&mut guest, 'f').contains("result -14 "));
    undo(&hv, CITIZEN);
    apply(&hv, &citizen);
    switch(&mut guest, &[1, 2], false, "3");
    undo(&hv, CITIZEN);
    apply(&hv, &citizen);
    assert!(ask(&mut guest, 'f').contains("result -14 "));
    undo(&hv, CITIZEN);
    undo(&hv, NAME);
    sees(&mut guest, false, &[3]);
    switch(&mut guest, &[0, 1, 2], true, "0-3");
    sees(&mut guest, false, &[0, 1, 2, 3]);

    // They come and go while bundles do.
    let churn = "while :; do for c in 1 2; do echo 0 > /sys/devices/system/cpu/cpu$c/online
                 echo 1 > /sys/devices/system/cpu/cpu$c/online; done; echo >> /tmp/rounds; done";
    guest.run_ok(&format!("setsid sh -c '{churn}' > /dev/null 2>&1 & echo $! > /tmp/churn")).expect("starts");
    for round in 0..10 {
        apply(&hv, &citizen);
        assert!(ask(&mut guest, 'f').contains("result -14 "), "round {round}");
        undo(&hv, CITIZEN);
    }
    let rounds = guest.run_ok("kill $(cat /tmp/churn); sleep 1; wc -l < /tmp/rounds").expect("answers");
    assert!(rounds.trim().parse::<u32>().is_ok_and(|rounds| rounds > 2), "{rounds}");
    if let Some(service) = service {
        service.detach().expect("ends");
    }
    assert_eq!(guest.kernel_warnings().expect("answers"), said_at_boot);
}

/// Processors that the guest has and has not started.
#[test]
fn processors_that_never_started() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let (bundle, citizen) = (visible_bundle(work.path(), &kernel), citizen_bundle(work.path(), &kernel));
    let (mut guest, service, hv, said_at_boot) = boot("maxcpus", &kernel, "maxcpus=1");
    switch(&mut guest, &[], true, "0");
    apply(&hv, &bundle);
    apply(&hv, &citizen);
    assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1]);
    assert!(ask(&mut guest, 'f').contains("result -14 "));
    switch(&mut guest, &[1, 3], true, "0-1,3");
    sees(&mut guest, true, &[0, 1, 3]);
    undo(&hv, CITIZEN);
    undo(&hv, NAME);
    sees(&mut guest, false, &[0, 1, 3]);
    if let Some(service) = service {
        service.detach().expect("ends");
    }
    assert_eq!(guest.kernel_warnings().expect("answers"), said_at_boot);
}
