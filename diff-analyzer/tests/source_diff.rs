//! Every folder of `testdata/diffs`: `tree` and `in.diff` give `changes` (names starting with `applies-`) or `error`
//! (names starting with `refused-`). Where patch(1) is installed, it must make the same files of what applies.

use diff_analyzer::source_diff::{ChangeKind, FileChange, read};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/diffs");
    let mut cases: Vec<PathBuf> =
        fs::read_dir(root).expect("the folder of cases").map(|entry| entry.expect("a case").path()).collect();
    cases.sort();
    cases
}

fn shown(changes: &[FileChange]) -> String {
    let mut text = String::new();
    let range = |range: &std::ops::Range<usize>| format!("{}..{}", range.start + 1, range.end);
    for change in changes {
        let path = change.path.display();
        let _ = match &change.kind {
            ChangeKind::Modified => writeln!(text, "modified {path}"),
            ChangeKind::New => writeln!(text, "new {path}"),
            ChangeKind::Deleted => writeln!(text, "deleted {path}"),
            ChangeKind::Renamed { from } => writeln!(text, "renamed {path} from {}", from.display()),
        };
        for hunk in &change.hunks {
            let line = hunk.diff_line.map(|line| format!(" diff {line}")).unwrap_or_default();
            let _ = writeln!(text, "  hunk {} -> {} moved {}{line}", range(&hunk.old), range(&hunk.new), hunk.moved);
            for edit in &hunk.edits {
                let _ = writeln!(text, "    {} -> {}", range(&edit.old), range(&edit.new));
            }
        }
    }
    text
}

#[test]
fn every_case() {
    let mut failures = Vec::new();
    let cases = cases();
    assert!(cases.len() > 20, "only {} cases found", cases.len());
    for case in cases {
        let name = case.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let tree = case.join("tree");
        let diff = fs::read(case.join("in.diff")).expect("a diff");
        let result = read(&diff, &tree);
        let (expected, found) = if name.starts_with("refused-") {
            let found = match &result {
                Ok(changes) => shown(changes),
                Err(error) => format!("{}: {error}\n", error.rule()).replace(&tree.display().to_string(), "TREE"),
            };
            (fs::read_to_string(case.join("error")).expect("the expected error"), found)
        } else {
            let found = match &result {
                Ok(changes) => shown(changes),
                Err(error) => error.to_string(),
            };
            (fs::read_to_string(case.join("changes")).expect("the expected changes"), found)
        };
        if expected != found {
            failures.push(format!("{name}: expected\n{expected}found\n{found}"));
        }
        if let Ok(changes) = &result {
            failures.extend(check_edits(&name, changes));
            failures.extend(check_with_patch(&name, &tree, &diff, changes));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The edits alone must turn the old text into the new one.
fn check_edits(name: &str, changes: &[FileChange]) -> Option<String> {
    for change in changes {
        let (old, new) =
            (diff_analyzer::source_diff::lines(&change.old), diff_analyzer::source_diff::lines(&change.new));
        let (mut made, mut at) = (Vec::new(), 0);
        for edit in change.hunks.iter().flat_map(|hunk| &hunk.edits) {
            made.extend_from_slice(&old[at..edit.old.start]);
            made.extend_from_slice(&new[edit.new.clone()]);
            at = edit.old.end;
        }
        made.extend_from_slice(&old[at..]);
        if made != new {
            return Some(format!("{name}: the edits of {} do not make its new text", change.path.display()));
        }
    }
    None
}

/// Other people's program must come to the same files.
fn check_with_patch(name: &str, tree: &Path, diff: &[u8], changes: &[FileChange]) -> Option<String> {
    // It is asked for one level of folders; and a mode alone makes it ask back.
    if name.ends_with("without-prefix") || name.ends_with("mode-only") {
        return None;
    }
    let copy = tempfile::tempdir().expect("a temporary folder");
    let status = Command::new("cp").arg("-r").arg(tree).arg(copy.path()).status().expect("cp");
    assert!(status.success());
    let tree = copy.path().join("tree");
    let input = copy.path().join("in.diff");
    fs::write(&input, diff).expect("written");
    let run = Command::new("patch")
        .args(["-p1", "-s", "-f", "-d"])
        .arg(&tree)
        .arg("-i")
        .arg(&input)
        .stdout(Stdio::null())
        .status();
    let Ok(status) = run else {
        eprintln!("skipped: patch(1) is not installed");
        assert!(std::env::var_os("LUCOS_REQUIRE_ALL").is_none(), "patch(1) is not installed");
        return None;
    };
    let mut expected = BTreeMap::new();
    for change in changes {
        let text = (change.kind != ChangeKind::Deleted).then(|| change.new.clone());
        expected.insert(change.path.clone(), text);
    }
    let found: BTreeMap<_, _> = expected.keys().map(|path| (path.clone(), fs::read(tree.join(path)).ok())).collect();
    (!status.success() || found != expected).then(|| format!("{name}: patch(1) makes something else ({status})"))
}

#[test]
fn symbolic_links_are_not_followed() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let (tree, outside) = (root.path().join("tree"), root.path().join("outside"));
    for folder in [&tree, &outside] {
        fs::create_dir(folder).expect("made");
    }
    fs::write(outside.join("f.c"), "a\n").expect("written");
    std::os::unix::fs::symlink(&outside, tree.join("dir")).expect("linked");
    std::os::unix::fs::symlink(outside.join("f.c"), tree.join("f.c")).expect("linked");
    for (path, hunk) in [("dir/f.c", "@@ -1 +1 @@\n-a\n+b\n"), ("f.c", "@@ -1 +1 @@\n-a\n+b\n")] {
        let diff = format!("--- a/{path}\n+++ b/{path}\n{hunk}");
        let error = read(diff.as_bytes(), &tree).expect_err(path);
        assert_eq!(error.rule(), "diff-path", "{error}");
    }
    let error =
        read(b"--- /dev/null\n+++ b/dir/n.c\n@@ -0,0 +1 @@\n+b\n", &tree).expect_err("a new file behind a link");
    assert_eq!(error.rule(), "diff-path", "{error}");
}

/// Bytes in any order are refused or read, and never a panic.
#[test]
fn damaged_diffs_do_not_panic() {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/diffs/applies-git/tree");
    let diff = fs::read(tree.join("../in.diff")).expect("a diff");
    let mut read_ok = 0;
    for end in 0..diff.len() {
        read_ok += usize::from(read(&diff[..end], &tree).is_ok());
    }
    for index in 0..diff.len() {
        for byte in [b'\n', b'@', b'-', b'+', b'0', b'9', 0xff] {
            let mut damaged = diff.clone();
            damaged[index] = byte;
            read_ok += usize::from(read(&damaged, &tree).is_ok());
        }
    }
    assert!(read_ok > 0, "damage outside the hunks is of no account");
}
