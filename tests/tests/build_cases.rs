//! `lucos-build` on a real kernel, one folder of `testdata/build` per case; the folder's name says what is expected.
//!
//! `edit.json` says how the diff and the inputs are made, `expect.json` what the report must say. `cargo xtask bless`
//! (LUCOS_BLESS=1) rewrites the latter.

mod common;

use common::Failure;
use lpk_format::{DataChange, DataPatch, ObjectPatch, hex};
use lucos_tests::commands;
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::{self, Edit};
use lucos_tests::require;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A change of a text that is not a source file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    find: String,
    replace: String,
}

/// A file that is not in the source.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewFile {
    file: String,
    text: String,
}

/// How the inputs of a case are made.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What the case shows, for people.
    #[serde(rename = "about")]
    _about: String,
    /// Edits of the source, of which the diff is made.
    edits: Vec<Edit>,
    /// Files that the diff makes.
    #[serde(default)]
    new: Vec<NewFile>,
    /// Files that the diff deletes.
    #[serde(default)]
    deleted: Vec<String>,
    /// Files that the diff moves as they are: from, to.
    #[serde(default)]
    renamed: Vec<(String, String)>,
    /// A change of the diff itself.
    diff: Option<Change>,
    /// More of the command line.
    #[serde(default)]
    args: Vec<String>,
    /// Changes of the configuration.
    #[serde(default)]
    config: Vec<Change>,
    /// Changes of System.map.
    #[serde(default)]
    system_map: Vec<Change>,
    /// Text of the file beside the diff.
    overrides: Option<String>,
    /// First line of what the compiler says of itself.
    compiler: Option<String>,
    /// `newer`: the source tree of the next release.
    source: Option<String>,
    /// Which modules are given: `none` is a folder without any; a path of a module gives a copy of it that says it was built for
    /// another kernel.
    modules: Option<String>,
}

/// What the report must say.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Expect {
    status: i32,
    verdict: String,
    functions: BTreeSet<String>,
    rules: BTreeSet<String>,
    bundle_written: bool,
    /// Tables of the bundle, by the section they come from.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    tables: BTreeSet<String>,
    /// Existing data that the bundle changes, and how.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    data: BTreeSet<String>,
    /// Objects on the heap that the bundle initialises, and how.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    objects: BTreeSet<String>,
    /// What the bundle says on the author's word.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    vouched: BTreeSet<String>,
    /// Rules and subjects of warnings.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    warnings: BTreeSet<String>,
}

#[test]
fn every_case_ends_as_its_folder_says() {
    let Some(kernel) = require::older_kernel() else { return };
    let Some(newer) = require::newer_kernel() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/build");
    let only = std::env::var("LUCOS_CASE").ok();
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(&root).expect("testdata/build").map(|entry| entry.expect("a case").path()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "{} has no cases", root.display());
    let mut failures = Vec::new();
    for case in cases {
        let name = case.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
            continue;
        }
        match run(&case, &name, &kernel, &newer) {
            Ok(wall_ms) => eprintln!("{name}: ok, {wall_ms} ms"),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    assert!(failures.is_empty(), "{} cases failed\n{}", failures.len(), failures.join("\n\n"));
}

fn run(dir: &Path, name: &str, kernel: &Kernel, newer: &Kernel) -> Result<u128, Failure> {
    let case: Case = serde_json::from_slice(&std::fs::read(dir.join("edit.json"))?)?;
    let work = tempfile::tempdir()?;
    let mut diff = patches::diff(&kernel.source(), &case.edits)?;
    for NewFile { file, text } in &case.new {
        diff += &patches::unified(file, "", text).replacen(&format!("--- a/{file}"), "--- /dev/null", 1);
    }
    for file in &case.deleted {
        let text = std::fs::read_to_string(kernel.source().join(file))?;
        diff += &patches::unified(file, &text, "").replacen(&format!("+++ b/{file}"), "+++ /dev/null", 1);
    }
    if !case.renamed.is_empty() {
        // Only git's form has renames; then each file has its own header.
        diff = diff.lines().fold(String::new(), |text, line| match line.strip_prefix("--- a/") {
            Some(file) => format!("{text}diff --git a/{file} b/{file}\n{line}\n"),
            None => format!("{text}{line}\n"),
        });
        for (from, to) in &case.renamed {
            diff += &format!("diff --git a/{from} b/{to}\nsimilarity index 100%\nrename from {from}\nrename to {to}\n");
        }
    }
    if let Some(Change { find, replace }) = &case.diff {
        diff = patches::replace_once("the diff", &diff, find, replace)?;
    }
    let diff_file = work.path().join("case.diff");
    std::fs::write(&diff_file, diff)?;
    if let Some(text) = &case.overrides {
        std::fs::write(work.path().join("case.toml"), text)?;
    }
    let bundle = work.path().join("case.lpk");
    let mut args: Vec<OsString> =
        vec![diff_file.into(), "--vmlinux".into(), kernel.vmlinux().into(), "-o".into(), bundle.clone().into()];
    for (flag, original, changes) in
        [("--config", kernel.config(), &case.config), ("--system-map", kernel.system_map(), &case.system_map)]
    {
        if !changes.is_empty() {
            args.extend([flag.into(), changed(work.path(), &original, changes)?.into()]);
        }
    }
    if let Some(version) = &case.compiler {
        args.extend(["--cc".into(), wrapper(work.path(), version)?.into()]);
    }
    match case.source.as_deref() {
        None => {}
        Some("newer") => args.extend(["--source".into(), newer.source().into()]),
        Some(other) => return Err(format!("edit.json: source is `{other}`, expected `newer`").into()),
    }
    match case.modules.as_deref() {
        None => {}
        Some("none") => args.extend(["--modules".into(), work.path().join("none").into()]),
        Some(path) => args.extend(["--module".into(), of_another_kernel(work.path(), kernel, path)?.into()]),
    }
    args.extend(case.args.iter().map(OsString::from));
    let outcome = commands::lucos_build(&args)?;
    let names = |pointer: &str, key: &str| -> BTreeSet<String> {
        outcome.items(pointer).iter().filter_map(|item| Some(item[key].as_str()?.to_owned())).collect()
    };
    let (mut data, mut objects, mut vouched) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let tables = match std::fs::read(&bundle) {
        Ok(bytes) => {
            let read = lpk_format::read(&bytes)?.bundle;
            if read.support.is_none() {
                return Err("the bundle has no support object".into());
            }
            data = read.parts().flat_map(|part| &part.payload.changed).map(describe).collect();
            objects = read.parts().flat_map(|part| &part.payload.objects).map(describe_objects).collect();
            vouched =
                read.manifest.vouched.iter().map(|vouched| format!("{} {}", vouched.about, vouched.subject)).collect();
            let tables = read.parts().flat_map(|part| &part.payload.tables);
            tables.map(|table| table.kind.section().to_owned()).collect()
        }
        Err(_) => BTreeSet::new(),
    };
    let found = Expect {
        status: outcome.status,
        verdict: outcome.text("/verdict").to_owned(),
        functions: names("/functions", "name"),
        rules: names("/reasons", "rule"),
        bundle_written: bundle.exists(),
        tables,
        data,
        objects,
        vouched,
        warnings: (outcome.items("/warnings").iter())
            .filter_map(|item| Some(format!("{} {}", item["rule"].as_str()?, item["subject"].as_str()?)))
            .collect(),
    };
    common::as_expected(dir, &found, |expect| agrees_with_name(name, expect), &outcome)
}

/// The folder's name is the expectation: `type1-…`, `type2-…` and `no-effect-…` succeed, `refused-…` is refused with a rule,
/// and only the first two leave a bundle.
fn agrees_with_name(name: &str, expect: &Expect) -> Result<(), Failure> {
    let wanted = if name.starts_with("refused-type2-") {
        (3, "type2", false)
    } else if name.starts_with("refused-") {
        (3, "refused", false)
    } else if name.starts_with("type1-") {
        (0, "type1", true)
    } else if name.starts_with("type2-") {
        (0, "type2", true)
    } else if name.starts_with("no-effect-") {
        (0, "no-effect", false)
    } else {
        return Err("the name begins with none of type1-, type2-, no-effect-, refused-, refused-type2-".into());
    };
    let found = (expect.status, expect.verdict.as_str(), expect.bundle_written);
    if found != wanted {
        return Err(format!("the name promises {wanted:?}, expect.json says {found:?}").into());
    }
    if wanted.0 == 3 && expect.rules.is_empty() {
        return Err("refused without a rule".into());
    }
    Ok(())
}

fn describe(datum: &DataPatch) -> String {
    let what = match &datum.change {
        DataChange::InPlace { added, edited, overwrite, .. } => {
            format!("in place, new {added:?}, changed {edited:?}{}", if *overwrite { ", in any case" } else { "" })
        }
        DataChange::Moved { to_new, to_old } => {
            format!("moved, {} steps to new, {} to old", to_new.len(), to_old.len())
        }
    };
    format!("{}: {} -> {} bytes, {what}", datum.name, datum.old_size, datum.new_size)
}

fn describe_objects(objects: &ObjectPatch) -> String {
    let added = objects.added.iter().map(|added| format!(", at {} {}", added.offset, hex::encode(&added.bytes)));
    let ObjectPatch { type_name, cache, old_size, new_size, .. } = objects;
    format!("{type_name} in {cache}: {old_size} -> {new_size} bytes{}", added.collect::<String>())
}

fn changed(dir: &Path, original: &Path, changes: &[Change]) -> Result<PathBuf, Failure> {
    let mut text = std::fs::read_to_string(original)?;
    let name = original.file_name().ok_or("a file without a name")?;
    for Change { find, replace } in changes {
        text = patches::replace_once(&name.to_string_lossy(), &text, find, replace)?;
    }
    let path = dir.join(name);
    std::fs::write(&path, text)?;
    Ok(path)
}

/// A copy of a module whose `vermagic` names another release.
fn of_another_kernel(dir: &Path, kernel: &Kernel, path: &str) -> Result<PathBuf, Failure> {
    let mut bytes = std::fs::read(kernel.module(path))?;
    let magic = format!("vermagic={}", kernel.release);
    let at = bytes.windows(magic.len()).position(|window| window == magic.as_bytes()).ok_or("no vermagic")?;
    bytes[at + magic.len() - 1] ^= 1;
    let copy = dir.join(Path::new(path).file_name().ok_or("a path without a name")?);
    std::fs::write(&copy, bytes)?;
    Ok(copy)
}

/// A compiler that is gcc in everything but what it says of itself.
fn wrapper(dir: &Path, version: &str) -> Result<PathBuf, Failure> {
    let path = dir.join("gcc");
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then\n  echo '{version}'\n  exit 0\nfi\nPATH=\"{}\" exec gcc \"$@\"\n",
        std::env::var("PATH")?
    );
    std::fs::write(&path, script)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let Some(kernel) = require::older_kernel() else { return };
    let build = || {
        let work = tempfile::tempdir().expect("a folder");
        std::fs::read(common::visible_bundle(work.path(), &kernel)).expect("the bundle")
    };
    assert_eq!(build(), build());
}
