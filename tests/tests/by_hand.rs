//! Updates and hooks written by hand, one folder of `testdata/by-hand` per case; the folder's name says what is expected.
//!
//! `update.c` is given to `lucos-build --update`, `hooks.c` to `--hooks` beside a diff that `case.json` describes, `object.c` is compiled
//! with the kernel's makefiles, as an author would, and given to `lucos-build prelink`. `expect.json` is what the report and the
//! bundle must say; LUCOS_BLESS=1 rewrites it.

mod common;

use common::{Failure, applied, first_word, undo};
use lpk_format::{HookSubject, UpdateType};
use lucos_tests::commands::{self, Hv, Outcome};
use lucos_tests::guest::{Config, Guest};
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::{self, Edit, VISIBLE_FILE, VISIBLE_WORDS};
use lucos_tests::require;
use prelink::fields;
use prelink::symbol_db::{AddressKind, SymbolKind};
use prelink::vmlinux::KernelImage;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How the inputs of a case are made.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What the case shows, for people.
    #[serde(rename = "about")]
    _about: String,
    /// Edits of the source, of which the diff beside the hooks is made.
    #[serde(default)]
    edits: Vec<Edit>,
    /// The file beside the diff, as it stands there.
    #[serde(default)]
    overrides: Option<String>,
    /// More of the command line.
    #[serde(default)]
    args: Vec<String>,
    /// More options of the compiler of an object.
    #[serde(default)]
    flags: String,
}

/// What the report and the bundle must say.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Expect {
    status: i32,
    verdict: String,
    /// Replaced functions with their files, and new ones.
    functions: BTreeSet<String>,
    /// Hooks: kind, what it is about, the function.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    hooks: Vec<String>,
    rules: BTreeSet<String>,
    /// What is said with a rule and does not forbid anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    tables: BTreeSet<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/by-hand")
}

#[test]
fn every_case_ends_as_its_folder_says() {
    let Some(kernel) = require::older_kernel() else { return };
    let only = std::env::var("LUCOS_CASE").ok();
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(root()).expect("testdata/by-hand").map(|entry| entry.expect("a case").path()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "{} has no cases", root().display());
    let mut failures = Vec::new();
    for case in cases {
        let name = case.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        match run(&case, &name, &kernel) {
            Ok(wall_ms) => eprintln!("{name}: ok, {wall_ms} ms"),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    assert!(failures.is_empty(), "{} cases failed\n{}", failures.len(), failures.join("\n\n"));
}

fn run(dir: &Path, name: &str, kernel: &Kernel) -> Result<u128, Failure> {
    let case: Case = serde_json::from_slice(&std::fs::read(dir.join("case.json"))?)?;
    let work = tempfile::tempdir()?;
    let bundle = work.path().join("case.lpk");
    let [update, hooks, object] = ["update.c", "hooks.c", "object.c"].map(|file| dir.join(file));
    let mut args: Vec<OsString> = if update.exists() {
        vec!["--update".into(), update.into()]
    } else if hooks.exists() {
        let diff = work.path().join("case.diff");
        std::fs::write(&diff, patches::diff(&kernel.source(), &case.edits)?)?;
        if let Some(overrides) = &case.overrides {
            std::fs::write(diff.with_extension("toml"), overrides)?;
        }
        vec![diff.into(), "--hooks".into(), hooks.into()]
    } else {
        vec!["prelink".into(), compiled(work.path(), &object, &case.flags, kernel)?.into()]
    };
    args.extend(["--vmlinux".into(), kernel.vmlinux().into(), "-o".into(), bundle.clone().into()]);
    args.extend(case.args.iter().map(OsString::from));
    let outcome = commands::lucos_build(&args)?;
    let found = found(&outcome, &bundle)?;
    common::as_expected(dir, &found, |expect| agrees_with_name(name, expect), &outcome)
}

/// What came out: the report, and the bundle as it reads back.
fn found(outcome: &Outcome, bundle: &Path) -> Result<Expect, Failure> {
    let mut expect = Expect {
        status: outcome.status,
        verdict: outcome.text("/verdict").to_owned(),
        functions: BTreeSet::new(),
        hooks: Vec::new(),
        rules: outcome.items("/reasons").iter().filter_map(|item| Some(item["rule"].as_str()?.to_owned())).collect(),
        warnings: Vec::new(),
        tables: BTreeSet::new(),
    };
    let notes = outcome.items("/notes").iter().filter_map(|note| note.as_str());
    let ours = notes.filter(|note| note.ends_with(')') && note.contains("hook"));
    expect.warnings = ours.map(str::to_owned).collect();
    let Ok(bytes) = std::fs::read(bundle) else { return Ok(expect) };
    let bundle = lpk_format::read(&bytes)?.bundle;
    if bundle.support.is_none() {
        return Err("the bundle has no support object".into());
    }
    if (bundle.manifest.update_type == UpdateType::Type2) == bundle.payload.hooks.is_empty() {
        return Err("hooks are what makes these bundles Type 2".into());
    }
    let of_unit = |name: &str, unit: &str| format!("{name} ({unit})");
    let replaced = bundle.functions.iter().map(|function| of_unit(&function.name, &function.unit));
    let new = bundle.manifest.functions.iter().filter(|function| function.old_address.is_none());
    expect.functions = replaced.chain(new.map(|function| format!("new {}", function.name))).collect();
    for hook in &bundle.payload.hooks {
        let function = bundle.payload.functions().find(|(offset, _)| *offset == hook.offset);
        let function = function.map(|(_, symbol)| symbol.name.as_str()).ok_or("a hook that is no function")?;
        let about = match &hook.subject {
            HookSubject::Update => String::new(),
            HookSubject::Function { name, .. } => format!(" {name}"),
            HookSubject::Datum { name, old_size, new_size, .. } => format!(" {name} {old_size} {new_size}"),
        };
        expect.hooks.push(format!("{}{about}: {function}", hook.kind.name()));
    }
    expect.tables = bundle.payload.tables.iter().map(|table| table.kind.section().to_owned()).collect();
    Ok(expect)
}

/// The folder's name is the expectation.
fn agrees_with_name(name: &str, expect: &Expect) -> Result<(), Failure> {
    let of_data = name.strip_prefix("refused-type2-");
    let refused = of_data.or_else(|| name.strip_prefix("refused-"));
    let wanted = match (refused, name.split_once('-')) {
        (Some(_), _) if of_data.is_some() => (3, "type2"),
        (Some(_), _) => (3, "refused"),
        (None, Some(("type1", _))) => (0, "type1"),
        (None, Some(("type2", _))) => (0, "type2"),
        _ => return Err("the name begins with none of type1-, type2-, refused-".into()),
    };
    if (expect.status, expect.verdict.as_str()) != wanted {
        return Err(
            format!("the name promises {wanted:?}, expect.json says {} {}", expect.status, expect.verdict).into()
        );
    }
    match refused {
        Some(rest) if !expect.rules.iter().any(|rule| rest.starts_with(rule.as_str())) => {
            Err(format!("the name promises a rule, expect.json has {:?}", expect.rules).into())
        }
        None if expect.functions.is_empty() => Err("nothing is replaced".into()),
        _ => Ok(()),
    }
}

/// Compiles an object outside of the tree, as an author would: with the makefiles of the kernel's build folder.
fn compiled(work: &Path, source: &Path, flags: &str, kernel: &Kernel) -> Result<PathBuf, Failure> {
    let folder = work.join("object");
    std::fs::create_dir(&folder)?;
    std::fs::copy(source, folder.join("case.c"))?;
    std::fs::write(folder.join("Makefile"), format!("obj-m := case.o\nccflags-y := -I$(src) {flags}\n"))?;
    let header = Command::new(commands::program("lucos-build")?).arg("header").output()?;
    std::fs::write(folder.join("lucos.h"), header.stdout)?;
    // Any build says where the prepared folder is.
    let update = root().join("type1-text-of-a-proc-file/update.c");
    let any: [OsString; 6] = [
        "--update".into(),
        update.into(),
        "--vmlinux".into(),
        kernel.vmlinux().into(),
        "-o".into(),
        work.join("any.lpk").into(),
    ];
    let outcome = commands::lucos_build(&any)?;
    let (build, compiler) = (outcome.text("/inputs/build_folder"), outcome.text("/inputs/compiler/path"));
    let output = Command::new("make")
        .args(["-C", build, &format!("CC={compiler}"), &format!("KERNELRELEASE={}", kernel.release), "case.o"])
        .arg(format!("M={}", folder.display()))
        .output()?;
    let object = folder.join("case.o");
    if output.status.success() && object.exists() {
        return Ok(object);
    }
    Err(format!("make: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)).into())
}

/// The examples of the documentation are cases of this test.
#[test]
fn the_examples_of_the_documentation_are_compiled() {
    let page = root().join("../../docs/hooks.md");
    let page = std::fs::read_to_string(page).expect("docs/hooks.md");
    let examples: Vec<&str> = page.split("```c\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let files = ["type1-text-of-a-proc-file/update.c", "type2-hooks-beside-a-diff/hooks.c"];
    let compiled = files.map(|file| std::fs::read_to_string(root().join(file)).expect("a case"));
    assert_eq!(examples, compiled);
}

/// Builds a case that must give a bundle.
fn bundle(dir: &Path, kernel: &Kernel, case: &str) -> PathBuf {
    let (update, bundle) = (root().join(case).join("update.c"), dir.join("by-hand.lpk"));
    let args: [OsString; 6] = [
        "--update".into(),
        update.into(),
        "--vmlinux".into(),
        kernel.vmlinux().into(),
        "-o".into(),
        bundle.clone().into(),
    ];
    let outcome = commands::lucos_build(&args).expect("lucos-build runs");
    assert_eq!(outcome.status, 0, "{}", outcome.describe());
    bundle
}

/// Applied, seen, undone, seen.
#[test]
fn a_running_guest_is_updated_by_hand() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let update = bundle(work.path(), &kernel, "type1-text-of-a-proc-file");
    let mut guest = Guest::under_lucos_hv(&Config::new("by-hand", &kernel.vmlinuz())).expect("boots");
    let hv = Hv::new(guest.api());
    for _ in 0..2 {
        common::apply(&hv, &update);
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1]);
        assert_eq!(applied(&hv), ["update"]);
        undo(&hv, "update");
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0]);
    }
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// What the hooks of `type2-hooks-that-count-and-forbid` look at.
const SETTING: &str = "/proc/sys/kernel/panic";

/// Hooks run in a guest that is busy, see what they are told, forbid, and hang without harm.
#[test]
fn hooks_run_in_a_running_guest() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let counting = bundle(work.path(), &kernel, "type2-hooks-that-count-and-forbid");
    // Page-table isolation: a processor that runs a program has none of the kernel mapped but its entry.
    let config = Config { append: "pti=on".to_owned(), ..Config::new("hooks", &kernel.vmlinuz()) };
    let mut guest = Guest::under_lucos_hv(&config).expect("boots");
    let hv = Hv::new(guest.api());
    let load = guest.start_load(VISIBLE_FILE, &[VISIBLE_WORDS[0], VISIBLE_WORDS[1]]).expect("starts");
    let set = |guest: &mut Guest, value: u32| guest.run_ok(&format!("echo {value} > {SETTING}")).expect("answers");
    let refused = |outcome: commands::Outcome, reason: &str| {
        assert_eq!((outcome.status, outcome.text("/error/reason")), (3, reason), "{}", outcome.describe());
    };
    for round in 0..10 {
        set(&mut guest, 77);
        refused(hv.apply(&counting).expect("lucos-hv runs"), "hook-veto");
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0], "round {round}");
        set(&mut guest, 0);
        common::apply(&hv, &counting);
        let text = guest.run_ok(&format!("cat {VISIBLE_FILE}")).expect("answers");
        // It may have been tried before, at a moment that was not right.
        assert!(text.starts_with("Updated pre ") && text.contains(" post 1 threads 0 Linux"), "round {round}: {text}");
        set(&mut guest, 77);
        refused(hv.undo("update").expect("lucos-hv runs"), "hook-veto");
        assert_eq!(applied(&hv), ["update"]);
        set(&mut guest, 0);
        undo(&hv, "update");
        assert_eq!(
            guest.run_ok(&format!("cat {SETTING}")).expect("answers").trim(),
            "79",
            "round {round}: undo-post ran"
        );
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0], "round {round}");
    }
    set(&mut guest, 78);
    refused(hv.apply(&counting).expect("lucos-hv runs"), "hook-failed");
    assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0]);
    set(&mut guest, 0);
    common::apply(&hv, &counting);
    undo(&hv, "update");
    // A datum that hooks carry: 4 bytes become 8.
    let family = bundle(work.path(), &kernel, "type2-hooks-of-every-kind");
    let at = guest.symbols(&["family_registered"]).expect("kallsyms")[0];
    assert_eq!(guest.kernel_bytes(at, 4).expect("memory"), [1, 0, 0, 0]);
    let outcome = common::apply(&hv, &family);
    assert_eq!(outcome.items("/hooks").len(), 8);
    undo(&hv, "update");
    assert_eq!(guest.kernel_bytes(at, 4).expect("memory"), [0; 4], "its post hook has cleared the new copy");
    let progress = guest.load_progress(&load).expect("answers");
    assert!(progress.fewest > 0 && progress.wrong == 0, "{progress:?}");
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    assert_eq!(guest.power_off().expect("powers off"), Some(0));
}

/// What is found by decoding is what the linker has kept, for every function of the kernel but a handful: addresses with far-off
/// addends are missed, and a few constants look like addresses. Either makes a guest differ from the bundle; nothing is done then.
#[test]
fn decoding_finds_what_the_linker_kept() {
    let Some(kernel) = require::older_kernel() else { return };
    let image = KernelImage::open(&kernel.vmlinux()).expect("the kernel image");
    assert!(image.has_relocs(), "{} was linked without --emit-relocs", kernel.vmlinux().display());
    let (mut functions, mut moving, mut missed, mut excess) = (0, 0, Vec::new(), Vec::new());
    let mut seen = BTreeSet::new();
    for symbol in image.symbols().iter() {
        let in_image = symbol.kind == SymbolKind::Function && symbol.address_kind == AddressKind::Image;
        if !in_image || symbol.size == 0 || !seen.insert(symbol.address) {
            continue;
        }
        let Some(code) = image.bytes(symbol.address, symbol.size as usize) else { continue };
        functions += 1;
        let moves = |kind: u32, target: AddressKind| {
            is_pc_relative(kind) == (target == AddressKind::PerCpu) && target != AddressKind::Absolute
        };
        let kept: BTreeSet<u64> = image
            .relocs(symbol.address, symbol.size)
            .iter()
            .filter(|field| moves(field.kind, field.target_kind))
            .map(|field| field.address)
            .collect();
        let decoded: BTreeSet<u64> =
            fields::of_code(&image, symbol.address, code).iter().map(|field| field.address).collect();
        moving += kept.len();
        let name = |at: &u64| format!("{}+{:#x}", symbol.name, at - symbol.address);
        missed.extend(kept.difference(&decoded).map(name));
        excess.extend(decoded.difference(&kept).map(name));
    }
    eprintln!("{functions} functions, {moving} fields that move; missed {missed:?}; in excess {excess:?}");
    assert!(functions > 30_000 && moving > 30_000, "{functions} functions, {moving} fields");
    assert!(missed.len() < 20, "missed: {missed:?}");
    assert!(excess.len() < 20, "in excess: {excess:?}");
}

/// `R_X86_64_PC32`, `R_X86_64_PLT32`, `R_X86_64_PC64` (psABI 1.0, table 4.9).
fn is_pc_relative(kind: u32) -> bool {
    [2, 4, 24].contains(&kind)
}
