//! Compares two C files per folder of `testdata/objects`, compiled as a kernel's units are.
//!
//! The folder's name says the verdict to expect: `same`, `type1`, `type2`, or `refused` for what a running kernel cannot
//! take (sections it has read already, static data whose originals cannot be told). `expect.txt` holds the
//! comparison and the findings. Sizes and offsets of code are left out: they are the compiler's.
//! `LUCOS_BLESS=1` rewrites the reports.

use diff_analyzer::classify::{Classification, DatumFinding, Fate, classify};
use diff_analyzer::dwarf_layout;
use diff_analyzer::object::Object;
use diff_analyzer::object_diff::{Change, Compared, Difference, ObjectDiff, compare};
use diff_analyzer::pieces::{PieceIndex, Pieces};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The options of a kernel build that decide what an object looks like.
const OPTIONS: &str = "-std=gnu11 -O2 -g -ffunction-sections -fdata-sections -mcmodel=kernel -fno-pic -fno-pie -fno-common \
    -fno-asynchronous-unwind-tables -fcf-protection=none -mno-sse -mno-mmx -mno-80387 -mno-red-zone -fno-stack-protector \
    -fno-strict-aliasing -fno-delete-null-pointer-checks -fno-jump-tables -fshort-wchar -w";

/// Sizes of the kernel's table entries (Linux 6.1, x86-64).
fn entry_sizes() -> BTreeMap<String, u64> {
    let sizes = [
        ("alt_instr", 12),
        ("paravirt_patch_site", 16),
        ("static_call_site", 8),
        ("jump_entry", 16),
        ("bug_entry", 12),
        ("exception_table_entry", 12),
    ];
    sizes.map(|(name, size)| (name.to_owned(), size)).into()
}

/// Compiles a copy that is called `unit.c` whatever the case, for the sake of `__FILE__`.
fn compile(source: &Path, into: &Path) -> Outcome<Vec<u8>> {
    std::fs::copy(source, into.join("unit.c"))?;
    let output =
        Command::new("gcc").current_dir(into).args(OPTIONS.split_whitespace()).args(["-c", "unit.c"]).output()?;
    if !output.status.success() {
        return Err(format!("gcc {}: {}", source.display(), String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(std::fs::read(into.join("unit.o"))?)
}

fn difference(change: &Change) -> String {
    match change {
        Change::Same => "same".to_owned(),
        Change::New => "new".to_owned(),
        Change::Changed(Difference::Size(..)) => "size changed".to_owned(),
        Change::Changed(Difference::Bytes(_)) => "contents changed".to_owned(),
        Change::Changed(Difference::Reference(_)) => "reference changed".to_owned(),
        Change::Changed(Difference::Table(table)) => format!("{} changed", table.section()),
        Change::Changed(Difference::Unwind(_)) => "unwind entries changed".to_owned(),
        Change::Changed(Difference::Section(old, new)) => format!("moved from {old} to {new}"),
    }
}

fn report(original: &Pieces<'_>, patched: &Pieces<'_>, diff: &ObjectDiff, found: &Classification) -> Outcome<String> {
    let mut text = String::new();
    let rows = |what: &str, list: &[Compared]| {
        let changed = list.iter().filter(|compared| compared.change != Change::Same);
        let mut rows: Vec<String> = changed
            .map(|compared| {
                format!("{what} {}: {}", patched.piece(compared.patched).name, difference(&compared.change))
            })
            .collect();
        rows.sort();
        rows
    };
    let named = |what: &str, pieces: &Pieces<'_>, list: Vec<PieceIndex>| {
        let mut rows: Vec<String> = list.iter().map(|&piece| format!("{what} {}", pieces.piece(piece).name)).collect();
        rows.sort();
        rows
    };
    let ambiguous =
        patched.iter().map(|(index, _)| index).filter(|&index| diff.correlation.is_ambiguous(index)).collect();
    let lines = [
        rows("function", &diff.functions),
        rows("data", &diff.data),
        named("removed", original, diff.removed.clone()),
        named("ambiguous", patched, ambiguous),
        diff.unknown_sections.iter().map(|name| format!("unknown section {name}")).collect(),
        diff.new_exports.iter().map(|name| format!("new export {name}")).collect(),
        named("boot function", patched, diff.changed_boot_functions().collect()),
        diff.boot_sections.iter().map(|name| format!("boot section {name}")).collect(),
        named("new entry", patched, diff.new_entries.clone()),
        found
            .types
            .iter()
            .map(|finding| format!("[{}] {}, used by {:?}", finding.rule, finding.message, finding.users))
            .collect(),
        found
            .data
            .iter()
            .map(|finding| {
                format!("[{}] {}: {}, used by {:?}", finding.rule, finding.message, fate(finding), finding.users)
            })
            .collect(),
    ];
    for line in lines.concat() {
        writeln!(text, "{line}")?;
    }
    Ok(text)
}

fn fate(finding: &DatumFinding) -> String {
    let transfer = || finding.transfers.iter().flat_map(|(new, old)| [("to new", new), ("to old", old)]);
    match &finding.fate {
        Fate::InPlace { added, edited } => format!("in place, new {added:?}, changed {edited:?}"),
        Fate::Moved => {
            let lines = transfer().flat_map(|(name, transfer)| {
                transfer.to_string().lines().map(|line| format!("\n  {name}: {line}")).collect::<Vec<_>>()
            });
            format!("moved{}", lines.collect::<String>())
        }
        Fate::Unknown(why) | Fate::Stuck(why) => why.clone(),
    }
}

fn verdict(diff: &ObjectDiff, patched: &Pieces<'_>, found: &Classification) -> &'static str {
    let ambiguous = patched.iter().any(|(index, _)| diff.correlation.is_ambiguous(index));
    if diff.is_empty() {
        "same"
    } else if ambiguous || !diff.unknown_sections.is_empty() {
        "refused"
    } else if found.is_empty() {
        "type1"
    } else {
        "type2"
    }
}

#[test]
fn every_case_is_as_its_folder_says() -> Outcome {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/objects");
    let temporary = tempfile::tempdir()?;
    let sizes = entry_sizes();
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(&root)?.collect::<Result<Vec<_>, _>>()?.iter().map(std::fs::DirEntry::path).collect();
    cases.sort();
    assert!(cases.len() >= 40, "{} has only {} cases", root.display(), cases.len());
    let bless = std::env::var_os("LUCOS_BLESS").is_some();
    let mut wrong = String::new();
    for case in cases {
        let name = case.file_name().ok_or("a case has a name")?.to_string_lossy().into_owned();
        let (old_bytes, new_bytes) =
            (compile(&case.join("old.c"), temporary.path())?, compile(&case.join("new.c"), temporary.path())?);
        let (old, new) = (Object::parse(&old_bytes)?, Object::parse(&new_bytes)?);
        let (original, patched) = (Pieces::cut(&old, &sizes)?, Pieces::cut(&new, &sizes)?);
        let (old_layouts, new_layouts) = (dwarf_layout::of_object(&old_bytes)?, dwarf_layout::of_object(&new_bytes)?);
        for (side, pieces) in [("old.c", &original), ("new.c", &patched)] {
            let itself = compare(pieces, pieces);
            assert!(itself.is_empty() && itself.removed.is_empty(), "{name}/{side} is not equal to itself");
        }
        let diff = compare(&original, &patched);
        let found = classify(&diff, &original, &patched, &old_layouts, &new_layouts);
        let text = report(&original, &patched, &diff, &found)?;
        let word = verdict(&diff, &patched, &found);
        if !name.starts_with(word) {
            writeln!(wrong, "{name}: the verdict is {word}\n{text}")?;
            continue;
        }
        let expected = case.join("expect.txt");
        if bless {
            std::fs::write(&expected, &text)?;
        }
        let expected = std::fs::read_to_string(&expected).unwrap_or_default();
        if expected != text {
            let diff = similar::TextDiff::from_lines(&expected, &text);
            writeln!(
                wrong,
                "{name}: run with LUCOS_BLESS=1 if this is right\n{}",
                diff.unified_diff().header("expect.txt", "now")
            )?;
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    Ok(())
}

#[test]
fn damaged_objects_are_refused_or_compared_but_never_panic() -> Outcome {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/objects");
    let temporary = tempfile::tempdir()?;
    let sizes = entry_sizes();
    let (mut refused, mut different) = (0, 0);
    for case in ["type1-alternative-feature", "type1-static-locals-renumbered", "type1-immediate-behind-a-reference"] {
        let good = compile(&root.join(case).join("old.c"), temporary.path())?;
        let object = Object::parse(&good)?;
        let original = Pieces::cut(&object, &sizes)?;
        for at in 0..good.len() {
            for damage in [0xa5, 0xff] {
                let mut bad = good.clone();
                bad[at] = if damage == 0xff { 0xff } else { bad[at] ^ damage };
                let Ok(object) = Object::parse(&bad) else {
                    refused += 1;
                    continue;
                };
                let Ok(patched) = Pieces::cut(&object, &sizes) else {
                    refused += 1;
                    continue;
                };
                let both = [compare(&original, &patched), compare(&patched, &original)];
                different += usize::from(both.iter().any(|diff| !diff.is_empty()));
            }
        }
    }
    assert!(refused > 0 && different > 0);
    Ok(())
}
