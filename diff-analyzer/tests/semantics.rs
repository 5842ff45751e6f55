//! What the analysis warns of between two C files per folder of `testdata/semantics`.
//!
//! The folder's name says the rule to expect, or `silent`. `expect.txt` holds the warnings. The files are compiled as a kernel's
//! units are; `kernel.h` has what they use of a kernel. `LUCOS_BLESS=1` rewrites the warnings.

use diff_analyzer::dwarf_layout::{Layouts, of_source, sections::ObjectDebug};
use diff_analyzer::layout_diff;
use diff_analyzer::object::Object;
use diff_analyzer::object_diff::compare_resigned;
use diff_analyzer::pieces::Pieces;
use diff_analyzer::semantics::inlined::{self, Inlined};
use diff_analyzer::semantics::text::Texts;
use diff_analyzer::semantics::{Unit, Warning, check};
use diff_analyzer::source_diff::{self, FileChange};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const OPTIONS: &str = "-std=gnu11 -O2 -g -ffunction-sections -fdata-sections -mcmodel=kernel -fno-pic -fno-pie -fno-common \
    -fno-asynchronous-unwind-tables -fcf-protection=none -mno-sse -mno-mmx -mno-80387 -mno-red-zone -fno-stack-protector \
    -fno-strict-aliasing -fno-delete-null-pointer-checks -fno-jump-tables -fshort-wchar -w";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/semantics")
}

fn compile(source: &Path, into: &Path) -> Outcome<Vec<u8>> {
    std::fs::copy(source, into.join("unit.c"))?;
    let mut gcc = Command::new("gcc");
    let gcc = gcc.current_dir(into).args(OPTIONS.split_whitespace()).arg("-I").arg(root()).args(["-c", "unit.c"]);
    let output = gcc.output()?;
    if !output.status.success() {
        return Err(format!("gcc {}: {}", source.display(), String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(std::fs::read(into.join("unit.o"))?)
}

fn changes(case: &Path, tree: &Path) -> Outcome<Vec<FileChange>> {
    let (old, new) = (std::fs::read_to_string(case.join("old.c"))?, std::fs::read_to_string(case.join("new.c"))?);
    std::fs::write(tree.join("unit.c"), &old)?;
    let diff = similar::TextDiff::from_lines(&old, &new).unified_diff().header("a/unit.c", "b/unit.c").to_string();
    Ok(source_diff::read(diff.as_bytes(), tree)?)
}

fn debug(bytes: &[u8]) -> Outcome<(Layouts, Vec<Inlined>)> {
    let debug = ObjectDebug::read(bytes)?;
    Ok((of_source(&debug, |_| true)?, inlined::read(&debug)?))
}

fn warnings(old: &[u8], new: &[u8], texts: &Texts<'_>) -> Outcome<Vec<Warning>> {
    let sizes: BTreeMap<String, u64> =
        [("jump_entry", 16), ("bug_entry", 12)].map(|(name, size)| (name.to_owned(), size)).into();
    let (old_object, new_object) = (Object::parse(old)?, Object::parse(new)?);
    let (original, patched) = (Pieces::cut(&old_object, &sizes)?, Pieces::cut(&new_object, &sizes)?);
    let ((old_layouts, old_inlined), (new_layouts, new_inlined)) = (debug(old)?, debug(new)?);
    let signatures = layout_diff::compare_functions(&old_layouts, &new_layouts);
    let resigned = signatures.iter().map(|change| change.name.clone()).collect();
    let diff = compare_resigned(&original, &patched, resigned);
    let unit = Unit {
        pieces: [&original, &patched],
        diff: &diff,
        layouts: [&old_layouts, &new_layouts],
        types: &layout_diff::compare(&old_layouts, &new_layouts),
        signatures: &signatures,
        inlined: [&old_inlined, &new_inlined],
    };
    Ok(check(&unit, texts))
}

#[test]
fn every_case_is_as_its_folder_says() -> Outcome {
    let temporary = tempfile::tempdir()?;
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(root())?.collect::<Result<Vec<_>, _>>()?.iter().map(std::fs::DirEntry::path).collect();
    cases.retain(|case| case.is_dir());
    cases.sort();
    let bless = std::env::var_os("LUCOS_BLESS").is_some();
    let mut wrong = String::new();
    let mut rules_seen: BTreeSet<&str> = BTreeSet::new();
    for case in &cases {
        let name = case.file_name().ok_or("a case has a name")?.to_string_lossy().into_owned();
        let (old, new) =
            (compile(&case.join("old.c"), temporary.path())?, compile(&case.join("new.c"), temporary.path())?);
        let changes = changes(case, temporary.path())?;
        let texts = Texts::of(&changes);
        let found = warnings(&old, &new, &texts).map_err(|error| format!("{name}: {error}"))?;
        let rules: BTreeSet<&str> = found.iter().map(|warning| warning.rule).collect();
        rules_seen.extend(&rules);
        let agrees = match rules.len() {
            0 => name.starts_with("silent-"),
            1 => rules.iter().all(|rule| name.starts_with(&format!("{rule}-"))),
            _ => false,
        };
        let mut text = String::new();
        for Warning { rule, subject, message, help, file, line, diff_line } in &found {
            let place = |at: &Option<usize>| at.map_or("?".to_owned(), |at| at.to_string());
            let file = file.as_deref().unwrap_or("?");
            writeln!(text, "[{rule}] {subject}: {message}")?;
            writeln!(text, "  at {file}:{}, line {} of the diff; {help}", place(line), place(diff_line))?;
        }
        if !agrees {
            writeln!(wrong, "{name}: found {rules:?}\n{text}")?;
            continue;
        }
        let file = case.join("expect.txt");
        if bless {
            std::fs::write(&file, &text)?;
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_else(|_| "no expect.txt\n".to_owned());
        if expected != text {
            let diff = similar::TextDiff::from_lines(&expected, &text);
            let diff = diff.unified_diff().header("expect.txt", "now").to_string();
            writeln!(wrong, "{name}: run with LUCOS_BLESS=1 if this is right\n{diff}")?;
        }
        // A version has nothing to warn of against itself.
        let unchanged = Texts::of(&[]);
        assert_eq!(warnings(&old, &old, &unchanged)?, [], "{name}");
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(rules_seen.len(), 8, "a case for each rule: {rules_seen:?}");
    Ok(())
}

#[test]
fn damaged_objects_never_panic() -> Outcome {
    let temporary = tempfile::tempdir()?;
    let case = root().join("lock-calls-kept-behind-a-static-key");
    let (old, new) = (compile(&case.join("old.c"), temporary.path())?, compile(&case.join("new.c"), temporary.path())?);
    let changes = changes(&case, temporary.path())?;
    let texts = Texts::of(&changes);
    let (mut refused, mut looked_at) = (0, 0);
    for at in 0..new.len() {
        for damage in [0xa5, 0xff] {
            let mut bad = new.clone();
            bad[at] = if damage == 0xff { 0xff } else { bad[at] ^ damage };
            for result in [warnings(&old, &bad, &texts), warnings(&bad, &old, &texts)] {
                match result {
                    Ok(_) => looked_at += 1,
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(refused > 0 && looked_at > 0);
    Ok(())
}
