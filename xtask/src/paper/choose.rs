//! Which official changes stand for the five of the paper.
//!
//! Comes in: what differs between two releases. Decided: the first change, in an order that depends on nothing but the
//! releases, that meets what a place of the table asks for. Goes out: five [`Patch`]es with their bundles.
//!
//! The distribution's source has no single commits: a patch is what changes in one file, with what that file needs of others to
//! compile, as in `cargo xtask corpus`, where the results are kept. What cannot be had is replaced by what comes closest, and
//! [`Patch::what`] says what it is.

use crate::corpus::Ground;
use crate::corpus::entry::{Entry, Place};
use crate::corpus::evaluate::{self, Evaluator};
use crate::live::Built;
use crate::{JobError, say};
use diff_analyzer::dwarf_layout::TypeLayout;
use diff_analyzer::image_layout::{self, Image, Wanted};
use lucos_tests::commands::{self, Outcome};
use lucos_tests::official::{self, Candidate, Change};
use lucos_tests::patches::unified;
use rayon::prelude::*;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

/// The number of functions of the paper's largest patch.
pub(super) const MANY: usize = 13;
/// Time for one build.
const LIMIT: Duration = Duration::from_secs(300);
/// How many changes are looked at for one place of the table, beyond those that an earlier run has found to be of Type 2.
const TRIES: usize = 60;

/// Where the paper's patches of Type 1 are: what it calls them, and the files and folders in which a change is looked for, in this order:
/// first what every transaction of a database runs through.
pub(super) const TYPE1: [(&str, &[&str]); 3] = [
    ("PRB", &["mm/filemap.c", "mm/readahead.c", "mm/page_alloc.c", "mm/memory.c", "mm/slub.c", "mm/vmscan.c", "mm"]),
    ("LA", &["fs/ext4/inode.c", "fs/ext4/extents.c", "fs/jbd2", "fs/ext4", "fs/namei.c", "fs/inode.c", "fs", "block"]),
    ("PS", &["kernel/sched/core.c", "kernel/sched/fair.c", "kernel/sched", "kernel/time", "kernel"]),
];
/// Its patches of Type 2.
pub(super) const TYPE2: [&str; 2] = ["ID", "BBDD"];

/// A patch of the table.
#[derive(Debug)]
pub(crate) struct Patch {
    /// The paper's patch that it stands for.
    pub(crate) stands_for: &'static str,
    /// The file that changes.
    pub(crate) file: String,
    /// All files of the diff.
    pub(crate) files: usize,
    /// What kind of change it is.
    pub(crate) what: String,
    /// The bundle, with what was said of it.
    pub(crate) built: Built,
}

impl Patch {
    /// `type1` or `type2`.
    pub(crate) fn update_type(&self) -> &str {
        self.built.outcome.text("/verdict")
    }

    /// Functions that are redirected.
    pub(crate) fn functions(&self) -> usize {
        self.built.functions().len()
    }
}

/// All five, in the paper's order.
pub(crate) fn five(ground: &Ground) -> Result<Vec<Patch>, JobError> {
    let evaluator = ground.evaluator(LIMIT, false)?;
    let candidates = candidates(ground)?;
    let of_type2 = of_type2(ground, &evaluator, &candidates)?;
    let is_large = of_type2.iter().any(|patch| patch.functions() >= MANY);
    let mut patches = Vec::new();
    for (index, (stands_for, places)) in TYPE1.into_iter().enumerate() {
        // The paper's large one is of Type 2; if there is none, the last of Type 1 has to be large.
        let least = if is_large || index + 1 < TYPE1.len() { 1 } else { MANY };
        patches.push(of_type1(ground, &evaluator, &candidates, (stands_for, places), least)?);
    }
    patches.extend(of_type2);
    Ok(patches)
}

fn none(what: &str, tried: usize) -> JobError {
    JobError::NotSeen {
        what: "official changes".to_owned(),
        expected: what.to_owned(),
        seen: format!("none in {tried} that were tried"),
    }
}

fn folder_of(file: &str) -> &str {
    file.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// What comes of some files, in their order: as many builds at a time as there are processors, and none long before it is asked for.
fn in_turn(evaluator: &Evaluator<'_>, files: &[&str], wanted: &str) -> impl Iterator<Item = Entry> {
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    files.chunks(at_once).enumerate().flat_map(move |(turn, some)| {
        let entries: Vec<Entry> = some.par_iter().map(|file| evaluator.run(file, Place::BuiltIn)).collect();
        for (index, entry) in entries.iter().enumerate() {
            let number = turn * at_once + index + 1;
            say(&format!("{wanted}? {number}/{} {}: {} {}", files.len(), entry.file, entry.verdict, entry.rule()));
        }
        entries
    })
}

/// Changed built-in files, smallest change first.
fn candidates(ground: &Ground) -> Result<Vec<Candidate>, JobError> {
    let mut found = Vec::new();
    for (file, change) in &ground.trees.changed {
        if *change != Change::Modified || !file.ends_with(".c") || ground.built_in.units_of(file).is_empty() {
            continue;
        }
        let texts = (official::text(&ground.trees.old, file)?, official::text(&ground.trees.new, file)?);
        let (Some(old), Some(new)) = texts else { continue };
        let diff = unified(file, &old, &new);
        let lines = diff.lines().filter(|line| line.starts_with(['+', '-'])).count();
        found.push(Candidate { file: file.clone(), diff, lines });
    }
    found.sort_by(|one, two| (one.lines, &one.file).cmp(&(two.lines, &two.file)));
    Ok(found)
}

/// A change of Type 1 that redirects some functions, in the first place that has one.
fn of_type1(
    ground: &Ground,
    evaluator: &Evaluator<'_>,
    candidates: &[Candidate],
    (stands_for, places): (&'static str, &[&str]),
    least: usize,
) -> Result<Patch, JobError> {
    let is_at = |file: &str, place: &str| file == place || folder_of(file) == place;
    let in_order = places.iter().flat_map(|place| candidates.iter().filter(|one| is_at(&one.file, place)));
    let files: Vec<&str> = in_order.take(TRIES).map(|one| one.file.as_str()).collect();
    for entry in in_turn(evaluator, &files, stands_for) {
        if entry.verdict != "type1" {
            continue;
        }
        let patch = from_entry(ground, stands_for, &entry, "functions only")?;
        // Without one there is nothing to see.
        if patch.functions() >= least {
            return Ok(said(patch));
        }
    }
    Err(none(&format!("one of Type 1 with {least} functions or more in {}", places.join(", ")), files.len()))
}

/// Two changes of Type 2: first what changes the layout of a type, the one with most functions first; then what changes existing data;
/// and if there are not enough, one of Type 1 that is marked.
fn of_type2(ground: &Ground, evaluator: &Evaluator<'_>, candidates: &[Candidate]) -> Result<Vec<Patch>, JobError> {
    // Where an earlier run of this job or of the corpus has said something, it is where to look first; the builds decide.
    let known = |file: &str| evaluate::earlier(&ground.folder, file).is_some_and(|entry| entry.is_type2);
    let (known, other): (Vec<&Candidate>, Vec<&Candidate>) = candidates.iter().partition(|one| known(&one.file));
    let mut likely: Vec<&Candidate> = other;
    likely.sort_by_key(|one| !touches_data(&one.diff));
    let (mut layouts, mut data) = (Vec::new(), Vec::new());
    let in_order = known.into_iter().chain(likely.into_iter().take(TRIES));
    let files: Vec<&str> = in_order.map(|one| one.file.as_str()).collect();
    for entry in in_turn(evaluator, &files, "Type 2") {
        let is_large = layouts.iter().chain(&data).any(|patch: &Patch| patch.functions() >= MANY);
        if is_large && layouts.len() + data.len() >= TYPE2.len() {
            break;
        }
        match entry.verdict.as_str() {
            "type2" => data.push(from_entry(ground, "", &entry, "contents of existing data change")?),
            "refused" if entry.is_type2 => layouts.extend(with_overrides(ground, &entry)?),
            _ => {}
        }
    }
    let mut found: Vec<Patch> = layouts.into_iter().chain(data).filter(|patch| patch.functions() > 0).collect();
    found.sort_by_key(|patch| std::cmp::Reverse(patch.functions()));
    if found.len() < TYPE2.len() {
        found.extend(marked(ground, evaluator, candidates, TYPE2.len() - found.len())?);
    }
    if found.len() < TYPE2.len() {
        return Err(none("two of Type 2", files.len()));
    }
    found.truncate(TYPE2.len());
    for (patch, stands_for) in found.iter_mut().zip(TYPE2) {
        patch.stands_for = stands_for;
    }
    Ok(found.into_iter().map(said).collect())
}

fn said(patch: Patch) -> Patch {
    say(&format!(
        "{}: {} ({}, {} functions: {})",
        patch.stands_for,
        patch.file,
        patch.update_type(),
        patch.functions(),
        patch.what
    ));
    patch
}

/// Whether a diff takes a line away that looks like one of an initialiser.
fn touches_data(diff: &str) -> bool {
    let is_initialiser = |line: &str| {
        let text = line.trim();
        let named = text.starts_with('.') && text.contains('=');
        let called = text.split('(').next().is_some_and(|name| {
            !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
        });
        text.ends_with(',') && (named || called)
    };
    diff.lines().filter(|line| !line.starts_with("---")).filter_map(|line| line.strip_prefix('-')).any(is_initialiser)
}

/// What `lucos-build` said in a folder of the corpus.
fn report(path: &Path) -> Result<Value, JobError> {
    Ok(serde_json::from_slice(&std::fs::read(path)?).map_err(std::io::Error::from)?)
}

fn from_entry(ground: &Ground, stands_for: &'static str, entry: &Entry, what: &str) -> Result<Patch, JobError> {
    let place = ground.folder.join(&entry.folder);
    let outcome = Outcome {
        command: String::new(),
        status: 0,
        json: report(&place.join("report.json"))?,
        stdout: String::new(),
        stderr: String::new(),
        wall_ms: 0,
    };
    let built = Built { name: entry.name.clone(), bundle: place.join(format!("{}.lpk", entry.name)), outcome };
    Ok(Patch { stands_for, file: entry.file.clone(), files: entry.files.len(), what: what.to_owned(), built })
}

/// A bundle of a change that only types refuse, where each object of them keeps its shape: members have other names and are pointers to
/// something else, at the same places, and what one of the two leads to begins with what the other leads to. That both are used alike is what the
/// override file vouches for.
fn with_overrides(ground: &Ground, entry: &Entry) -> Result<Option<Patch>, JobError> {
    let place = ground.folder.join(&entry.folder);
    let json = report(&place.join("report.json"))?;
    let types = json["types"].as_array().map(Vec::as_slice).unwrap_or_default();
    if types.is_empty() || !entry.reasons.iter().all(|why| why.rule == "type-layout") {
        return Ok(None);
    }
    let (mut text, mut changes) = (String::new(), Vec::new());
    for found in types {
        let (Some(subject), Some(pairs)) = (found["name"].as_str(), other_pointers(found)) else { return Ok(None) };
        for (old, new) in &pairs {
            if !begins_with(ground, new, old)? && !begins_with(ground, old, new)? {
                return Ok(None);
            }
        }
        let pairs: Vec<String> = pairs.iter().map(|(old, new)| format!("{new} instead of {old}")).collect();
        let pairs = pairs.join(", to ");
        text += &format!(
            "[[silence]]\nrule = \"type-layout\"\nsubject = \"{subject}\"\nreason = \"every member keeps its place and size; \
             pointers lead to {pairs}, of which one begins with the other\"\n"
        );
        changes.push(format!("pointers in {subject} lead to {pairs}, at the same places"));
    }
    let overrides = place.join("paper.toml");
    std::fs::write(&overrides, text)?;
    let more = ["--overrides".into(), overrides.into_os_string()];
    let what =
        format!("by layout, with an override file of this job (nothing has to be converted): {}", changes.join("; "));
    build(ground, entry, "paper-layout", &more, &what)
}

/// What pointers lead to before and after, if a type changes in nothing but the names of members and what they point to.
fn other_pointers(found: &Value) -> Option<BTreeSet<(String, String)>> {
    let members = found["members"].as_array()?;
    let side = |which: &str| {
        let sides = members.iter().map(|member| &member[which]).filter(|side| side.is_object());
        let one = |side: &Value| {
            let target = side["type_text"].as_str()?.strip_suffix('*')?.trim_end().to_owned();
            Some(((side["bit_offset"].as_u64()?, side["bit_size"].as_u64()?), target))
        };
        sides.map(one).collect::<Option<BTreeMap<_, _>>>()
    };
    let (old, new) = (side("old")?, side("new")?);
    let keeps = found["old_size"] == found["new_size"]
        && found["because"].as_array().is_some_and(Vec::is_empty)
        && !old.is_empty()
        && old.keys().eq(new.keys());
    keeps.then(|| old.into_values().zip(new.into_values()).collect())
}

/// Whether objects of one type begin with one of another.
fn begins_with(ground: &Ground, whole: &str, part: &str) -> Result<bool, JobError> {
    let failed = |error: &dyn std::fmt::Display| JobError::Corpus(format!("types of the image: {error}"));
    let image = Image::open(&ground.step.older.vmlinux()).map_err(|error| failed(&error))?;
    let found = image_layout::types(&image, &Wanted::new([whole.to_owned()])).map_err(|error| failed(&error))?;
    let begins = |layout: &TypeLayout| {
        let first = layout.leaves().into_iter().filter(|leaf| leaf.member.bit_offset == 0);
        first.into_iter().any(|leaf| leaf.member.embeds.iter().any(|embedded| embedded == part))
    };
    Ok(!found.types.is_empty() && found.types.iter().all(|found| begins(&found.layout)))
}

/// Changes of Type 1 that are marked: old and new code must not run side by side.
fn marked(
    ground: &Ground,
    evaluator: &Evaluator<'_>,
    candidates: &[Candidate],
    count: usize,
) -> Result<Vec<Patch>, JobError> {
    let mut found = Vec::new();
    let in_order = candidates.iter().map(|one| one.file.as_str()).filter(|file| folder_of(file) == "fs");
    let files: Vec<&str> = in_order.take(TRIES).collect();
    for entry in in_turn(evaluator, &files, "Type 1, to be marked") {
        if found.len() == count {
            break;
        }
        if entry.verdict == "type1" {
            let what = "functions only; marked as Type 2 (`--type2`)";
            found.extend(build(ground, &entry, "paper-marked", &["--type2".into()], what)?);
        }
    }
    Ok(found)
}

/// Builds the diff of an entry once more, with other options.
fn build(
    ground: &Ground,
    entry: &Entry,
    suffix: &str,
    more: &[OsString],
    what: &str,
) -> Result<Option<Patch>, JobError> {
    let place = ground.folder.join(&entry.folder);
    let name = format!("{}-{suffix}", entry.name);
    let bundle = place.join(format!("{name}.lpk"));
    if bundle.exists() {
        std::fs::remove_file(&bundle)?;
    }
    let mut args: Vec<OsString> = vec![place.join(format!("{}.diff", entry.name)).into_os_string()];
    args.extend(["--vmlinux".into(), ground.step.older.vmlinux().into_os_string()]);
    args.extend(["-o".into(), bundle.clone().into_os_string(), "--json".into()]);
    args.extend(entry.flags.iter().map(OsString::from));
    args.extend(more.iter().cloned());
    let outcome = commands::run(&commands::program("lucos-build")?, &args, LIMIT)?;
    match outcome.status {
        0 if outcome.text("/verdict") == "type2" => {
            let (file, files) = (entry.file.clone(), entry.files.len());
            let built = Built { name: entry.name.clone(), bundle, outcome };
            Ok(Some(Patch { stands_for: "", file, files, what: what.to_owned(), built }))
        }
        0 | 3 => Ok(None),
        _ => Err(crate::live::failed("lucos-build", &outcome)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(old: &[(u64, &str)], new: &[(u64, &str)]) -> Value {
        let side = |&(at, text): &(u64, &str)| json!({ "bit_offset": at, "bit_size": 64, "type_text": text });
        let gone = old.iter().map(|member| json!({ "old": side(member), "new": null }));
        let came = new.iter().map(|member| json!({ "old": null, "new": side(member) }));
        let members: Vec<Value> = gone.chain(came).collect();
        json!({ "old_size": 16, "new_size": 16, "because": [], "members": members })
    }

    #[test]
    fn only_pointers_at_the_same_places_keep_the_shape() {
        let pair = |old: &str, new: &str| Some(BTreeSet::from([(old.to_owned(), new.to_owned())]));
        let pointers = |new| other_pointers(&found(&[(0, "struct page *")], new));
        assert_eq!(pointers(&[(0, "struct folio *")]), pair("struct page", "struct folio"));
        assert_eq!(pointers(&[(64, "struct folio *")]), None);
        assert_eq!(pointers(&[(0, "u64")]), None);
        assert_eq!(pointers(&[]), None);
        assert_eq!(other_pointers(&found(&[], &[])), None);
        let mut grown = found(&[(0, "struct page *")], &[(0, "struct folio *")]);
        grown["new_size"] = json!(24);
        assert_eq!(other_pointers(&grown), None);
    }

    #[test]
    fn initialisers_are_told_from_code() {
        assert!(touches_data("--- a/x\n+++ b/x\n-\tFLAG_ENTRY(0x5d0, 0x3),\n+\tFLAG_ENTRY(0x5d1, 0x3),\n"));
        assert!(touches_data("-\t.open = old_open,\n"));
        assert!(!touches_data("-\tcall(one,\n-\t     two);\n+\t.open = new_open,\n"));
    }
}
