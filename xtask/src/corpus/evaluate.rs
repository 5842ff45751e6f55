//! One changed file: its diff, `lucos-build`, and more of the newer version where that is what is missing.
//!
//! Comes in: a file. Decided: whether an earlier result still holds; which other files a refusal asks for. Goes out: an
//! [`Entry`]; its folder has the diff, the report and the bundle.

use super::assemble::Workbench;
use super::entry::{Entry, Place, Why};
use super::plan::Plan;
use crate::JobError;
use lucos_tests::commands::{self, CommandError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// Changes when the same inputs are to be put together otherwise.
const RECIPE: &str = "3";
/// How often a refusal may ask for more.
const ROUNDS: usize = 8;
/// A diff of more files than these is not what a person would call a change of one file.
const FILES: usize = 16;

/// Refused because modules take in a changed header as well, and the option that leaves these as they are.
const MODULES_AFFECTED: &str = "modules-affected";
const BUILT_IN_ONLY: &str = "--built-in-only";

const ENTRY: &str = "entry.json";
const PLAN: &str = "plan.json";
const REPORT: &str = "report.json";

/// What all files share.
#[derive(Debug)]
pub(crate) struct Evaluator<'a> {
    pub(crate) workbench: Workbench<'a>,
    pub(crate) vmlinux: PathBuf,
    /// The corpus' folder.
    pub(crate) folder: &'a Path,
    /// Digest of `lucos-build`.
    pub(crate) tool: String,
    /// Time for one build: a header that hundreds of units see takes some.
    pub(crate) limit: Duration,
    /// Build everything again.
    pub(crate) fresh: bool,
    /// Folder of each diff that was built, by its digest.
    pub(crate) built: Mutex<BTreeMap<String, Entry>>,
}

/// An assembled plan, and what it was made from.
#[derive(Debug, Serialize, Deserialize)]
struct Assembled {
    key: String,
    plan: Plan,
}

impl Evaluator<'_> {
    /// The result for a file. An error becomes a result too: one file never stops the others.
    pub(crate) fn run(&self, file: &str, place: Place) -> Entry {
        self.try_run(file, place).unwrap_or_else(|error| {
            let mut entry = self.entry(file, place);
            entry.verdict = "failed".to_owned();
            entry.reasons.push(Why { rule: "failed".to_owned(), message: error.to_string(), file: None, line: None });
            entry
        })
    }

    fn entry(&self, file: &str, place: Place) -> Entry {
        Entry {
            file: file.to_owned(),
            place,
            files: vec![file.to_owned()],
            flags: Vec::new(),
            header_hunks: 0,
            verdict: String::new(),
            is_type2: false,
            reasons: Vec::new(),
            notes: Vec::new(),
            functions: 0,
            units: Vec::new(),
            bundle_bytes: 0,
            wall_ms: 0,
            compiler_ms: 0,
            diff: String::new(),
            key: String::new(),
            folder: file.to_owned(),
            name: file.trim_end_matches(".c").replace('/', "-"),
        }
    }

    fn try_run(&self, file: &str, place: Place) -> Result<Entry, JobError> {
        let trees = self.workbench.trees;
        let folder = self.folder.join(file);
        fs::create_dir_all(&folder)?;
        let own = Plan::whole(file).diff(trees)?;
        if own.is_empty() {
            return Err(JobError::Corpus("its text is not UTF-8".to_owned()));
        }
        let assembly_key = digest(&[RECIPE, &own]);
        let key = digest(&[&assembly_key, &self.tool]);
        let kept = fs::read(folder.join(ENTRY)).ok().and_then(|text| serde_json::from_slice::<Entry>(&text).ok());
        if let Some(entry) = kept.filter(|entry| entry.key == key && entry.place == place && !self.fresh) {
            return Ok(entry);
        }

        let mut plan = self.assembled(&folder, &assembly_key, file)?;
        let mut flags = Vec::new();
        let mut best = self.build(file, place, &plan, &flags)?;
        for _ in 0..ROUNDS {
            if place == Place::BuiltIn && flags.is_empty() && self.is_about_modules(&best) {
                // What is measured is the image; the report names the modules.
                flags.push(BUILT_IN_ONLY.to_owned());
                best = self.build(file, place, &plan, &flags)?;
                continue;
            }
            if best.is_good() || best.is_type2 || !self.extend(&mut plan, &best)? || plan.parts.len() > FILES {
                break;
            }
            self.workbench.assemble(&mut plan)?;
            let next = self.build(file, place, &plan, &flags)?;
            let broken = |entry: &Entry| entry.rule() == "compile-error" || entry.verdict == "failed";
            if broken(&next) && !broken(&best) {
                // What was added asks for more in its turn; the earlier answer counts unless that comes to an end.
                let mut further = next;
                for _ in 0..ROUNDS {
                    if !broken(&further) || !self.extend(&mut plan, &further)? {
                        break;
                    }
                    self.workbench.assemble(&mut plan)?;
                    further = self.build(file, place, &plan, &flags)?;
                }
                if broken(&further) {
                    break;
                }
                best = further;
            } else {
                best = next;
            }
        }
        self.keep(&folder, &mut best, key)?;
        Ok(best)
    }

    /// Whether all that is in the way is in modules.
    fn is_about_modules(&self, entry: &Entry) -> bool {
        let in_module = |why: &Why| {
            let unit = why.file.as_deref().filter(|file| file.ends_with(".c"));
            why.rule == MODULES_AFFECTED || unit.is_some_and(|file| self.workbench.built_in.units_of(file).is_empty())
        };
        entry.verdict == "refused" && entry.reasons.iter().all(in_module)
    }

    /// The plan around one file, from an earlier run if it was made from the same.
    fn assembled(&self, folder: &Path, key: &str, file: &str) -> Result<Plan, JobError> {
        let path = folder.join(PLAN);
        let kept = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Assembled>(&text).ok());
        if let Some(kept) = kept.filter(|kept| kept.key == key) {
            return Ok(kept.plan);
        }
        let mut plan = Plan::whole(file);
        self.workbench.assemble(&mut plan)?;
        let assembled = Assembled { key: key.to_owned(), plan };
        fs::write(&path, serde_json::to_vec_pretty(&assembled).map_err(std::io::Error::from)?)?;
        Ok(assembled.plan)
    }

    /// Has `lucos-build` make a bundle; the same diff is built once.
    fn build(&self, file: &str, place: Place, plan: &Plan, flags: &[String]) -> Result<Entry, JobError> {
        let mut entry = self.entry(file, place);
        let diff = plan.diff(self.workbench.trees)?;
        entry.diff = digest(&[&diff, &flags.join(" ")]);
        entry.flags = flags.to_vec();
        entry.files = plan.parts.keys().cloned().collect();
        entry.header_hunks = plan.hunks().len();
        let known = self.built.lock().ok().and_then(|built| built.get(&entry.diff).cloned());
        if let Some(known) = known {
            return Ok(Entry { file: entry.file, place, ..known });
        }
        let folder = self.folder.join(file).join(&entry.diff[..12]);
        fs::create_dir_all(&folder)?;
        entry.folder = folder.strip_prefix(self.folder).unwrap_or(&folder).display().to_string();
        let (path, bundle) = (folder.join(format!("{}.diff", entry.name)), folder.join(format!("{}.lpk", entry.name)));
        fs::write(&path, &diff)?;
        if bundle.exists() {
            fs::remove_file(&bundle)?;
        }
        let mut args: Vec<OsString> = vec![path.into(), "--vmlinux".into(), self.vmlinux.clone().into()];
        args.extend(["-j".into(), "1".into(), "-o".into(), bundle.clone().into()]);
        args.extend(flags.iter().map(OsString::from));
        args.push("--json".into());
        match commands::run(&commands::program("lucos-build")?, &args, self.limit) {
            Ok(outcome) => {
                let said = if outcome.stdout.is_empty() { &outcome.stderr } else { &outcome.stdout };
                fs::write(folder.join(REPORT), said)?;
                entry.take(&outcome);
            }
            Err(CommandError::Timeout { seconds, .. }) => entry.undecided(seconds),
            Err(error) => return Err(error.into()),
        }
        entry.bundle_bytes = bundle.metadata().map_or(0, |meta| meta.len());
        if let Ok(mut built) = self.built.lock() {
            built.insert(entry.diff.clone(), entry.clone());
        }
        Ok(entry)
    }

    /// Remembers the result; folders of diffs that were tried on the way go away.
    fn keep(&self, folder: &Path, entry: &mut Entry, key: String) -> Result<(), JobError> {
        entry.key = key;
        let kept = self.folder.join(&entry.folder);
        for other in fs::read_dir(folder)? {
            let other = other?;
            // Shared results point into this folder, too: only what no result names is removed.
            let shared = self.built.lock().is_ok_and(|built| {
                let name = other.file_name().to_string_lossy().into_owned();
                built.keys().any(|diff| diff.starts_with(&name))
            });
            if other.file_type()?.is_dir() && is_digest(&other.file_name()) && other.path() != kept && !shared {
                fs::remove_dir_all(other.path())?;
            }
        }
        fs::write(folder.join(ENTRY), serde_json::to_vec_pretty(entry).map_err(std::io::Error::from)?)?;
        Ok(())
    }
}

/// What an earlier run said of a file, whatever that was made from.
pub(crate) fn earlier(folder: &Path, file: &str) -> Option<Entry> {
    serde_json::from_slice(&fs::read(folder.join(file).join(ENTRY)).ok()?).ok()
}

fn is_digest(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy();
    name.len() == 12 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Digest of some texts, in hexadecimal.
pub(crate) fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Digest of a program.
pub(crate) fn program_digest(path: &PathBuf) -> Result<String, JobError> {
    let bytes = fs::read(path)?;
    Ok(Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}
