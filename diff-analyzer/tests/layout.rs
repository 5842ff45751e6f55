//! Compares the layouts of two C files per folder of `testdata/layout`.
//!
//! The folder's name says the strongest effect to expect (`same`, `info`, `retyped`, `layout`); `expect.txt` holds the report.
//! `LUCOS_BLESS=1` rewrites the reports.

use diff_analyzer::dwarf_layout::{Layouts, Variable, of_object};
use diff_analyzer::layout_diff::{Effect, VariableChange, compare, compare_functions, compare_variables, render};
use diff_analyzer::transfer;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn compile(source: &Path, into: &Path, options: &[&str]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let object = into.join("unit.o");
    let folder = source.parent().ok_or("a source has a folder")?;
    let name = source.file_name().ok_or("a source has a name")?;
    let output = Command::new("gcc")
        .current_dir(folder)
        .args(["-c", "-O2", "-ffunction-sections", "-fdata-sections"])
        .args(options)
        .arg("-o")
        .arg(&object)
        .arg(name)
        .output()?;
    if !output.status.success() {
        return Err(format!("gcc {}: {}", source.display(), String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(std::fs::read(object)?)
}

fn variable<'l>(layouts: &'l Layouts, change: &VariableChange) -> Option<&'l Variable> {
    let meant = |v: &&Variable| (&v.name, &v.function, v.ordinal) == (&change.name, &change.function, change.ordinal);
    layouts.variables.iter().find(meant)
}

fn report(old: &Layouts, new: &Layouts) -> Result<(String, Option<Effect>), std::fmt::Error> {
    let mut text = String::new();
    let types = compare(old, new);
    let variables = compare_variables(old, new);
    let strongest = types.iter().map(|change| change.effect).chain(variables.iter().map(|change| change.effect)).max();
    for change in &types {
        writeln!(text, "[{:?}] {}", change.effect, render(change, old, new))?;
    }
    for change in &variables {
        let scope = change.function.as_ref().map_or(String::new(), |name| format!(" in {name}() #{}", change.ordinal));
        writeln!(
            text,
            "[{:?}] variable {}{scope}: {} -> {}",
            change.effect, change.name, change.old_type, change.new_type
        )?;
        let (before, after) = (change.old_size.unwrap_or(0), change.new_size.unwrap_or(0));
        writeln!(text, "  size {before} -> {after}, because of {:?}", change.consequence_of)?;
        if let (Some(from), Some(to)) = (variable(old, change), variable(new, change)) {
            writeln!(text, "to new:\n{}", transfer::between((old, from), (new, to)))?;
            writeln!(text, "to old:\n{}", transfer::between((new, to), (old, from)))?;
            for (member, why) in transfer::anchors(old, from) {
                writeln!(text, "anchored: {member}: {why}")?;
            }
        }
    }
    for change in compare_functions(old, new) {
        writeln!(text, "function {}: {} -> {}", change.name, change.old, change.new)?;
    }
    Ok((text, strongest))
}

#[test]
fn every_case_is_as_its_folder_says() -> Outcome {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/layout");
    let temporary = tempfile::tempdir()?;
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(&root)?.collect::<Result<Vec<_>, _>>()?.iter().map(|e| e.path()).collect();
    cases.sort();
    assert!(cases.len() >= 10, "{} has only {} cases", root.display(), cases.len());
    for case in cases {
        let name = case.file_name().ok_or("a case has a name")?.to_string_lossy().into_owned();
        for options in [&["-g", "-gdwarf-5"][..], &["-g", "-gdwarf-4"], &["-g", "-gz=zlib"]] {
            let old = of_object(&compile(&case.join("old.c"), temporary.path(), options)?)?;
            let new = of_object(&compile(&case.join("new.c"), temporary.path(), options)?)?;
            assert!(
                compare(&old, &old).is_empty() && compare_variables(&new, &new).is_empty(),
                "{name}: equal to itself"
            );
            let (text, strongest) = report(&old, &new)?;
            let word = strongest.map_or("same".to_owned(), |effect| format!("{effect:?}").to_lowercase());
            assert!(name.starts_with(&word), "{name} {options:?}: strongest effect is {word}\n{text}");
            let expected = case.join("expect.txt");
            if std::env::var_os("LUCOS_BLESS").is_some() {
                std::fs::write(&expected, &text)?;
            }
            let expected = std::fs::read_to_string(&expected)?;
            let diff =
                similar::TextDiff::from_lines(&expected, &text).unified_diff().header("expect.txt", "now").to_string();
            assert!(expected == text, "{name} {options:?}: run with LUCOS_BLESS=1 if this is right\n{diff}");
        }
    }
    Ok(())
}

#[test]
fn damaged_objects_are_refused_or_read_but_never_panic() -> Outcome {
    let root =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/layout/layout-anonymous-union-changes/old.c");
    let temporary = tempfile::tempdir()?;
    let good = compile(&root, temporary.path(), &["-g"])?;
    assert!(of_object(&good[..100]).is_err());
    assert!(of_object(&compile(&root, temporary.path(), &[])?).is_err(), "no DWARF");
    let mut refused = 0;
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0xa5;
        refused += usize::from(of_object(&bad).is_err());
    }
    assert!(refused > 0);
    Ok(())
}
