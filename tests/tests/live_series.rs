//! Live updates of a stock kernel of another series than the distribution's own: what has changed in newer kernels is right, too.
//! `cargo xtask series` fetches one and runs this.

mod common;

use common::{
    CITIZEN, NAME, allow_asking, apply, ask, citizen_bundle, edited_bundle, first_word, said, set_schedstats, undo,
    visible_bundle,
};
use lucos_tests::commands::Hv;
use lucos_tests::guest::{Config, Guest};
use lucos_tests::patches::{self, LOOKED_UP, VISIBLE_FILE, VISIBLE_WORDS};
use lucos_tests::require;

#[test]
#[ignore = "needs a kernel of another series: cargo xtask series"]
fn applied_and_undone_under_load() {
    let Some(kernel) = require::series_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundles = [
        (NAME, visible_bundle(work.path(), &kernel)),
        ("lookup", edited_bundle(work.path(), &kernel, "lookup", &[patches::lookup()])),
    ];
    let mut guest = Guest::under_lucos_hv(&Config::new("series", &kernel.vmlinuz())).expect("boots");
    let hv = Hv::new(guest.api());
    let load = guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS).expect("starts");
    let mut last = 0;
    for round in 0..10 {
        guest.run_ok("dmesg -c > /dev/null").expect("clears");
        for (_, bundle) in &bundles {
            let outcome = apply(&hv, bundle);
            assert_eq!(outcome.text("/memory"), "module", "{}", outcome.describe());
        }
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1], "round {round}: applied");
        // Listing it looks every name up (`proc_fill_cache`, fs/proc/base.c); processes may be gone by then.
        let names = guest.run_ok("ls /proc /proc/self 2> /dev/null; true").expect("lists");
        assert!(names.lines().any(|name| name == "version") && names.contains("cmdline"), "round {round}: {names}");
        let log = guest.run_ok("dmesg").expect("the kernel's messages");
        assert!(log.contains(LOOKED_UP), "round {round}: {log}");
        for (name, _) in bundles.iter().rev() {
            undo(&hv, name);
        }
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0], "round {round}: taken back");
        let now = guest.load_progress(&load).expect("answers");
        assert!(now.fewest > last && now.wrong == 0, "round {round}, since {last}: {now:?}");
        last = now.fewest;
    }
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    assert_eq!(guest.power_off().expect("powers off"), Some(0), "lucos-hv run ends with its guest");
}

#[test]
#[ignore = "needs a kernel of another series: cargo xtask series"]
fn tables_of_new_code_are_known() {
    let Some(kernel) = require::series_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let bundle = citizen_bundle(work.path(), &kernel);
    let mut guest = Guest::under_lucos_hv(&Config::new("tables", &kernel.vmlinuz())).expect("boots");
    allow_asking(&mut guest);
    let hv = Hv::new(guest.api());
    set_schedstats(&mut guest, true);
    let outcome = apply(&hv, &bundle);
    assert_eq!((outcome.text("/memory"), outcome.text("/module")), ("module", "lucos_citizen"));

    let symbols = guest.run_ok("grep lucos_citizen /proc/kallsyms").expect("lists");
    assert!(symbols.contains(" t cmdline_proc_show.lucos\t[lucos_citizen]"), "{symbols}");
    assert!(ask(&mut guest, 'f').contains("result -14 "), "a faulting access reaches its fix-up");
    assert!(ask(&mut guest, 'a').contains("access 10 "), "programs' addresses are told from others");
    assert!(ask(&mut guest, 'x').starts_with("enabled "), "the static key as it was when the code came");
    for on in [false, true, false] {
        set_schedstats(&mut guest, on);
        assert_eq!(ask(&mut guest, 'x').starts_with("enabled "), on, "the static key follows");
    }
    for (switch, expected) in [("-p", false), ("+p", true), ("-p", false)] {
        let switch = format!("echo 'module lucos_citizen {switch}' > /sys/kernel/debug/dynamic_debug/control");
        guest.run_ok(&switch).expect("switches");
        assert_eq!(said(&mut guest, 'p').contains("asked for by"), expected, "{switch}");
    }
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());

    // From here on the kernel complains, because it is asked to.
    let dump = said(&mut guest, 'd');
    assert!(dump.contains("cmdline_proc_show") && dump.contains("entry_SYSCALL_64_after_hwframe+"), "{dump}");
    let once = said(&mut guest, 'w');
    let line = "at fs/proc/cmdline.c:";
    assert!(once.contains("WARNING: ") && once.contains(line) && once.contains("cmdline_proc_show.lucos+"), "{once}");
    assert_eq!(said(&mut guest, 'w'), "", "once is once");

    let outcome = undo(&hv, CITIZEN);
    assert_eq!((outcome.number("/kept_pages"), outcome.text("/reason")), (0.0, ""), "{}", outcome.describe());
    assert_eq!(guest.run("grep lucos /proc/modules /proc/kallsyms").expect("answers").status, 1);
    guest.run_ok("dmesg -c > /dev/null").expect("clears");
    for on in [true, false] {
        set_schedstats(&mut guest, on);
        assert!(ask(&mut guest, 'f').starts_with("console="));
    }
    assert_eq!(guest.run_ok("dmesg -c").expect("the kernel's messages"), "");
}
