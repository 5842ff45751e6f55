//! Kernels that people build themselves: `lucos-build --build DIR`, then applied to the running kernel, seen, taken back.

mod common;

use common::{NAME, applied, apply, first_word, undo};
use lucos_tests::commands::{self, Hv, Outcome};
use lucos_tests::guest::{Config, Guest};
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::{self, Edit, VISIBLE_FILE, VISIBLE_WORDS};
use lucos_tests::require;
use lucos_tests::selfbuilt::SelfBuilt;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Builds a bundle of edits against a kernel's own build folder.
fn build(work: &Path, kernel: &SelfBuilt, edits: &[Edit], more: &[&str]) -> (Outcome, PathBuf) {
    let diff = patches::diff(&kernel.source, edits).expect("the edit fits this kernel");
    let (file, bundle) = (work.join(format!("{NAME}.diff")), work.join(format!("{NAME}.lpk")));
    std::fs::write(&file, diff).expect("a diff in the work folder");
    let mut args: Vec<&OsStr> = vec![file.as_os_str(), OsStr::new("--build"), kernel.folder.as_os_str()];
    args.extend([OsStr::new("-o"), bundle.as_os_str()]);
    args.extend(more.iter().map(OsStr::new));
    (commands::lucos_build(&args).expect("lucos-build runs"), bundle)
}

/// Every file of a folder with its size and time.
fn listing(folder: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let entry = entry.expect("an entry");
            let meta = entry.metadata().expect("metadata");
            if meta.is_dir() {
                folders.push(entry.path());
            } else {
                files.insert(entry.path(), (meta.len(), meta.modified().expect("a time")));
            }
        }
    }
    files
}

/// The visible patch, with a warning in it that has an entry in a table.
fn warning() -> Edit {
    let mut edit = patches::visible();
    edit.replace = format!("\tWARN_ON_ONCE(!m->private && !m->op);\n{}", edit.replace);
    edit
}

/// An inline function of a header that several units take in.
fn header() -> Edit {
    Edit {
        file: "fs/proc/internal.h".to_owned(),
        find: "\treturn get_pid_task(proc_pid(inode), PIDTYPE_PID);".to_owned(),
        replace: "\tif (!inode)\n\t\treturn NULL;\n\treturn get_pid_task(proc_pid(inode), PIDTYPE_PID);".to_owned(),
    }
}

/// The visible patch on one kernel, from the build to the end. `modules`: its guest can be told of new code.
fn on(kernel: &SelfBuilt, modules: bool) {
    let what = kernel.name;
    let work = tempfile::tempdir().expect("a folder");
    let before = listing(&kernel.folder);
    let (outcome, bundle) = build(work.path(), kernel, &[patches::visible()], &[]);
    assert_eq!((outcome.status, outcome.text("/verdict")), (0, "type1"), "{what}: {}", outcome.describe());
    assert!(before == listing(&kernel.folder), "{what}: the build folder was written to");
    // Both have entries in a table that the guest has to know of.
    let rule = if modules { "" } else { "no-support-object" };
    let folder = |name: &str| {
        let path = work.path().join(name);
        std::fs::create_dir(&path).expect("a folder");
        path
    };
    let (outcome, of_header) = build(&folder("header"), kernel, &[header()], &[]);
    assert_eq!(outcome.text("/reasons/0/rule"), rule, "{what}: {}", outcome.describe());
    let functions = outcome.items("/functions").len();
    assert!(!modules || functions > 10, "{what}: {functions} functions, {}", outcome.describe());
    let (outcome, of_warning) = build(&folder("warning"), kernel, &[warning()], &[]);
    assert_eq!(outcome.text("/reasons/0/rule"), rule, "{what}: {}", outcome.describe());
    assert_eq!((of_header.exists(), of_warning.exists()), (modules, modules), "{what}");
    let (mut guest, service) = Guest::served(&Config::new(&format!("selfbuilt-{what}"), &kernel.image()))
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let said_at_boot = guest.kernel_warnings().expect("answers");
    let load = guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS).expect("starts");
    let hv = Hv::new(guest.api());
    for _ in 0..5 {
        apply(&hv, &bundle);
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1], "{what}: applied");
        assert_eq!(applied(&hv), [NAME], "{what}");
        undo(&hv, NAME);
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0], "{what}: taken back");
    }
    if modules {
        apply(&hv, &of_warning);
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[1], "{what}: with a table, applied");
        undo(&hv, NAME);
        assert_eq!(first_word(&mut guest), VISIBLE_WORDS[0], "{what}: with a table, taken back");
        apply(&hv, &of_header);
        guest.run_ok("cat /proc/self/status /proc/1/stat && ls -l /proc/self/fd").expect("the new code runs");
        undo(&hv, NAME);
    }
    if let Some(service) = service {
        service.detach().expect("ends");
    }
    let progress = guest.load_progress(&load).expect("answers");
    assert!(progress.fewest > 0 && progress.wrong == 0, "{what}: {progress:?}");
    assert_eq!(guest.kernel_warnings().expect("answers"), said_at_boot, "{what}");
}

#[test]
fn gcc_in_its_tree_with_frame_pointers_and_little_else() {
    let Some(kernel) = require::selfbuilt("plain") else { return };
    on(&kernel, false);
}

#[test]
fn gcc_with_indirect_branch_tracking_and_tracers() {
    let Some(kernel) = require::selfbuilt("traced") else { return };
    on(&kernel, true);
}

#[test]
fn clang_with_retpolines() {
    let Some(kernel) = require::selfbuilt("clang") else { return };
    on(&kernel, true);
}

/// A tree that has changed since the kernel was built from it is noticed, and the difference is shown.
#[test]
fn a_source_that_is_not_the_kernels_any_more_is_shown() {
    let Some(kernel) = require::selfbuilt("traced") else { return };
    let work = tempfile::tempdir().expect("a folder");
    // A compiler option that the kernel was not built with stands for the change.
    let wrapper = work.path().join("gcc");
    let script = "#!/bin/sh\n[ \"$1\" = --version ] || set -- \"$@\" -fno-omit-frame-pointer\nPATH=\"$LUCOS_TEST_PATH\" exec gcc \"$@\"\n";
    let script = script.replace("$LUCOS_TEST_PATH", &std::env::var("PATH").expect("a PATH"));
    std::fs::write(&wrapper, script).expect("written");
    std::fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("made a program");
    let cc = wrapper.display().to_string();
    let (outcome, bundle) =
        build(work.path(), &kernel, &[patches::visible()], &["--cc", &cc, "--explain", "version_proc_show"]);
    assert_eq!((outcome.status, outcome.text("/verdict")), (3, "refused"), "{}", outcome.describe());
    assert_eq!(outcome.text("/reasons/0/rule"), "not-proved", "{}", outcome.describe());
    assert!(!bundle.exists());
    let explanation = &outcome.items("/explanations")[0];
    assert_eq!(explanation["sides"][0], "vmlinux", "{explanation}");
    assert!(explanation["first"]["new"]["source"][0]["line"].is_u64(), "{explanation}");
}

/// What cannot be used as a build folder says why.
#[test]
fn folders_that_are_no_build_of_a_kernel() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let source = SelfBuilt { name: "source", folder: Kernel::source(&kernel), source: kernel.source() };
    let (outcome, _) = build(work.path(), &source, &[patches::visible()], &[]);
    assert_eq!(outcome.status, 1, "{}", outcome.describe());
    assert!(outcome.stderr.contains("vmlinux is not there"), "{}", outcome.describe());
}
