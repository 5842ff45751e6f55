//! What the tests of running updates share: the visible bundle, and steps that must succeed.

#![allow(dead_code)] // every test is a program of its own and uses a part of this

pub(crate) mod outside;

use lucos_tests::commands::{self, Hv, Outcome};
use lucos_tests::guest::Guest;
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::{self, Edit, VISIBLE_FILE};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Why a case is not as it should be.
pub(crate) type Failure = Box<dyn std::error::Error>;

/// Name of the visible bundle.
pub(crate) const NAME: &str = "proc-version";

/// Builds the bundle that changes the first word of /proc/version.
pub(crate) fn visible_bundle(dir: &Path, kernel: &Kernel) -> PathBuf {
    edited_bundle(dir, kernel, NAME, &[patches::visible()])
}

/// Builds a bundle of Type 1 from edits.
pub(crate) fn edited_bundle(dir: &Path, kernel: &Kernel, name: &str, edits: &[Edit]) -> PathBuf {
    let diff = patches::diff(&kernel.source(), edits).expect("the edits fit this kernel");
    let (file, bundle) = (dir.join(format!("{name}.diff")), dir.join(format!("{name}.lpk")));
    std::fs::write(&file, diff).expect("a diff in the work folder");
    let outcome = commands::build_bundle(&file, &kernel.vmlinux(), &bundle).expect("lucos-build runs");
    assert_eq!((outcome.status, outcome.text("/verdict")), (0, "type1"), "{}", outcome.describe());
    bundle
}

/// An edit of a file of the kernel.
pub(crate) fn edit(file: &str, find: &str, replace: &str) -> Edit {
    Edit { file: file.to_owned(), find: find.to_owned(), replace: replace.to_owned() }
}

/// Builds a bundle of Type 2 from edits, with the author's word on data if there is any.
pub(crate) fn data_bundle(
    dir: &Path,
    kernel: &Kernel,
    name: &str,
    edits: &[Edit],
    overrides: &str,
    options: &[&str],
) -> PathBuf {
    let file = |ending: &str| dir.join(format!("{name}.{ending}"));
    let diff = patches::diff(&kernel.source(), edits).expect("the edits fit this kernel");
    std::fs::write(file("diff"), diff).expect("a diff in the work folder");
    let mut args: Vec<OsString> = vec![file("diff").into(), "--vmlinux".into(), kernel.vmlinux().into()];
    args.extend(["-o".into(), file("lpk").into()]);
    args.extend(options.iter().map(OsString::from));
    if !overrides.is_empty() {
        std::fs::write(file("overrides.toml"), overrides).expect("a file in the work folder");
        args.extend(["--overrides".into(), file("overrides.toml").into()]);
    }
    let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
    let outcome = commands::lucos_build(&args).expect("lucos-build runs");
    assert_eq!((outcome.status, outcome.text("/verdict")), (0, "type2"), "{}", outcome.describe());
    file("lpk")
}

/// Builds the bundle, named `khugepaged`, that widens a counter which a kernel thread counts in, inside a function that it never leaves.
pub(crate) fn khugepaged_bundle(dir: &Path, kernel: &Kernel) -> PathBuf {
    let edits = [
        edit(
            "mm/khugepaged.c",
            "static unsigned int khugepaged_pages_collapsed;",
            "static unsigned long khugepaged_pages_collapsed;",
        ),
        edit(
            "mm/khugepaged.c",
            "return sysfs_emit(buf, \"%u\\n\", khugepaged_pages_collapsed);",
            "return sysfs_emit(buf, \"%lu\\n\", khugepaged_pages_collapsed);",
        ),
    ];
    data_bundle(dir, kernel, "khugepaged", &edits, "", &[])
}

/// Name of the bundle that does things on request.
pub(crate) const CITIZEN: &str = "citizen";
/// The script by which a process asks ([`patches::citizen`]).
const ASK: &str = "echo -n @$1 > /proc/self/comm; read -r line < /proc/cmdline; echo \"$line\"";

/// Builds the bundle that does things on request.
pub(crate) fn citizen_bundle(dir: &Path, kernel: &Kernel) -> PathBuf {
    edited_bundle(dir, kernel, CITIZEN, &patches::citizen())
}

/// Lets processes of a guest ask.
pub(crate) fn allow_asking(guest: &mut Guest) {
    guest.run_ok(&format!("cat > /tmp/ask <<'EOF'\n{ASK}\nEOF")).expect("a script");
    guest
        .run_ok("mount -t debugfs debugfs /sys/kernel/debug; mount -t tracefs tracefs /sys/kernel/tracing")
        .expect("mounts");
}

/// What a reader of /proc/cmdline sees that asks for something.
pub(crate) fn ask(guest: &mut Guest, request: char) -> String {
    guest.run_ok(&format!("sh /tmp/ask {request}")).expect("answers")
}

/// What the kernel says meanwhile.
pub(crate) fn said(guest: &mut Guest, request: char) -> String {
    guest.run_ok("dmesg -c > /dev/null").expect("clears");
    ask(guest, request);
    guest.run_ok("dmesg -c").expect("the kernel's messages")
}

/// Turns a static key that new code asks for on or off.
pub(crate) fn set_schedstats(guest: &mut Guest, on: bool) {
    guest.run_ok(&format!("echo {} > /proc/sys/kernel/sched_schedstats", u8::from(on))).expect("flips the key");
}

/// First word of /proc/version, as the guest reads it now.
pub(crate) fn first_word(guest: &mut Guest) -> String {
    let text = guest.run_ok(&format!("cat {VISIBLE_FILE}")).expect("the guest answers");
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Applies a bundle that must be accepted.
pub(crate) fn apply(hv: &Hv, bundle: &Path) -> Outcome {
    let outcome = hv.apply(bundle).expect("lucos-hv runs");
    assert_eq!((outcome.status, outcome.text("/state")), (0, "applied"), "{}", outcome.describe());
    outcome
}

/// What is known of a bundle.
pub(crate) fn show(hv: &Hv, name: &str) -> Outcome {
    let outcome = hv.show(name).expect("lucos-hv runs");
    assert_eq!(outcome.status, 0, "{}", outcome.describe());
    outcome
}

/// Waits until a bundle has a state.
pub(crate) fn becomes(hv: &Hv, name: &str, state: &str) -> Outcome {
    let start = Instant::now();
    loop {
        let outcome = show(hv, name);
        if outcome.text("/state") == state {
            return outcome;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "not {state}: {}", outcome.describe());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Tries until the moment is right: nobody may be inside of what is left. How often it was not is added up.
pub(crate) fn patiently(busy: &mut usize, mut action: impl FnMut() -> Outcome) -> Outcome {
    loop {
        let outcome = action();
        if outcome.status != 3 || *busy > 200 {
            assert_eq!(outcome.status, 0, "{}", outcome.describe());
            return outcome;
        }
        assert_eq!(outcome.text("/error/reason"), "busy", "{}", outcome.describe());
        *busy += 1;
    }
}

/// Takes back a bundle that must go; whoever is inside its code leaves soon.
pub(crate) fn undo(hv: &Hv, name: &str) -> Outcome {
    let outcome = hv.undo(name).expect("lucos-hv runs");
    assert_eq!(outcome.status, 0, "{}", outcome.describe());
    if outcome.text("/state") == "undoing" {
        return becomes(hv, name, "removed");
    }
    assert_eq!(outcome.text("/state"), "removed", "{}", outcome.describe());
    outcome
}

/// Names of the bundles that are in effect.
pub(crate) fn applied(hv: &Hv) -> Vec<String> {
    let outcome = hv.list().expect("lucos-hv runs");
    assert_eq!(outcome.status, 0, "{}", outcome.describe());
    let items = outcome.items("").iter().filter(|item| item["state"] == "applied");
    items.filter_map(|item| Some(item["name"].as_str()?.to_owned())).collect()
}

/// Holds what a case gave against its `expect.json`, which `LUCOS_BLESS=1` rewrites; gives how long the command took.
pub(crate) fn as_expected<E: PartialEq + Serialize + DeserializeOwned>(
    case: &Path,
    found: &E,
    agrees_with_name: impl FnOnce(&E) -> Result<(), Failure>,
    outcome: &Outcome,
) -> Result<u128, Failure> {
    let file = case.join("expect.json");
    if std::env::var_os("LUCOS_BLESS").is_some_and(|value| value == "1") {
        std::fs::write(&file, serde_json::to_string_pretty(found)? + "\n")?;
    }
    let expected: E = serde_json::from_slice(&std::fs::read(&file)?)?;
    agrees_with_name(&expected)?;
    if *found == expected {
        return Ok(outcome.wall_ms);
    }
    let [old, new] = [&expected, found].map(serde_json::to_string_pretty);
    Err(format!("{}\n{}", patches::unified("expect.json", &old?, &new?), outcome.describe()).into())
}
