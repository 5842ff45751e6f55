//! A kernel module whose state is known, and updates of it: what stock kernels cannot show.
//!
//! Comes in: the older kernel of the cache and `testdata/known-state`. Decided: nothing. Goes out: [`KnownState`], the module compiled as
//! one of that kernel's own, a bundle for each update ([`Update`]), and what the module shows of itself in a guest ([`State`]).
//!
//! The module is compiled in a copy of the kernel's source tree, made of hard links, so that `lucos-build` finds it as it finds any driver.
//! It has no versions of the symbols that it uses: stock kernels load it all the same, and say that they are tainted.

use crate::commands::{self, CommandError, Outcome};
use crate::guest::{Guest, GuestError};
use crate::kernels::{Kernel, MARKER};
use crate::patches::{self, Edit, PatchError};
use crate::setup::{SetupError, apt};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

/// Folder of the module in the source tree.
const FOLDER: &str = "drivers/misc/lucos";
const UNIT: &str = "lucos_state.c";
/// A live patch of the kernel's own kind for the module.
const LIVEPATCH: &str = "lucos_livepatch.c";
/// A module that writes to a datum in every way.
const WRITES: &str = "lucos_writes.c";
/// What it shows in a guest.
const SHOWN: &str = "/proc/lucos_state";

/// The module, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownState {
    kernel: Kernel,
    /// The source tree that has it.
    pub source: PathBuf,
    /// Its file.
    pub module: PathBuf,
    /// A live patch of the kernel's own kind for it, as a module.
    pub livepatch: PathBuf,
    /// A module beside it, which writes to a datum in every way.
    pub writes: PathBuf,
}

/// Why an update could not be built.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The update's own files.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `update.json`.
    #[error("{path}: {source}")]
    Form {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The edits do not fit the module.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// `lucos-build` did not run.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// It did not do what the update's name says.
    #[error("{name}: expected {expected}\n{found}")]
    Verdict {
        /// The update.
        name: String,
        /// Its verdict by its name.
        expected: String,
        /// What was said.
        found: String,
    },
}

/// An update of the module: a folder, named by its verdict and what it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Its name, and that of its bundle.
    pub name: String,
    folder: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    #[serde(rename = "about")]
    _about: String,
    /// The module, unless it is the one whose state is known.
    #[serde(default)]
    unit: Option<String>,
    edits: Vec<Change>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    find: String,
    replace: String,
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/known-state")
}

/// Where the module is kept, by all that it depends on.
fn place(cache: &Path, kernel: &Kernel) -> Result<PathBuf, SetupError> {
    let mut hash = Sha256::new();
    for name in ["Makefile", UNIT, LIVEPATCH, WRITES] {
        let path = testdata().join(name);
        hash.update(fs::read(&path).map_err(SetupError::io(&path))?);
    }
    let key: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Ok(cache.join("known-state").join(format!("{}-{key}", kernel.version)))
}

/// The module, if it was compiled to the end.
///
/// # Errors
/// [`SetupError`] when its own source cannot be read.
pub fn find(cache: &Path, kernel: &Kernel) -> Result<Option<KnownState>, SetupError> {
    let place = place(cache, kernel)?;
    let module = |unit| place.join("build").join(FOLDER).join(unit).with_extension("ko");
    let known = KnownState {
        kernel: kernel.clone(),
        module: module(UNIT),
        livepatch: module(LIVEPATCH),
        writes: module(WRITES),
        source: place.join("source"),
    };
    Ok(place.join(MARKER).exists().then_some(known))
}

/// Compiles the module for a kernel, unless that is done.
///
/// # Errors
/// [`SetupError`] with the end of make's output.
pub fn prepare(cache: &Path, kernel: &Kernel, say: &dyn Fn(&str)) -> Result<(), SetupError> {
    if find(cache, kernel)?.is_some() {
        return Ok(());
    }
    let place = place(cache, kernel)?;
    let (from, source, build) = (testdata(), place.join("source"), place.join("build"));
    if place.exists() {
        fs::remove_dir_all(&place).map_err(SetupError::io(&place))?;
    }
    say(&format!("compiling a module of known state for {}", kernel.release));
    fs::create_dir_all(&build).map_err(SetupError::io(&build))?;
    let (tree, copy) = (kernel.source().display().to_string(), source.display().to_string());
    apt::output(&place, &["cp", "--archive", "--link", &tree, &copy])?;
    let folder = source.join(FOLDER);
    fs::create_dir(&folder).map_err(SetupError::io(&folder))?;
    for name in ["Makefile", UNIT, LIVEPATCH, WRITES] {
        fs::copy(from.join(name), folder.join(name)).map_err(SetupError::io(&folder))?;
    }
    // Replaced and not written into: the file has a second name in the pristine tree.
    let makefile = source.join("drivers/misc/Makefile");
    let text = fs::read_to_string(&makefile).map_err(SetupError::io(&makefile))?;
    fs::remove_file(&makefile).map_err(SetupError::io(&makefile))?;
    fs::write(&makefile, format!("{text}\nobj-m += lucos/\n")).map_err(SetupError::io(&makefile))?;
    fs::copy(kernel.config(), build.join(".config")).map_err(SetupError::io(&build))?;
    // The kernel's own types go into the module's, and nothing of it is compiled.
    let vmlinux = build.join("vmlinux");
    std::os::unix::fs::symlink(kernel.vmlinux(), &vmlinux).map_err(SetupError::io(&vmlinux))?;
    let (output, release) = (format!("O={}", build.display()), format!("KERNELRELEASE={}", kernel.release));
    let jobs = format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from));
    let modules = [UNIT, LIVEPATCH, WRITES].map(|unit| format!("{FOLDER}/{}", unit.replace(".c", ".ko")));
    for goals in [vec!["olddefconfig", "modules_prepare"], modules.iter().map(String::as_str).collect()] {
        let words = ["make", "-C", &copy, &output, &release, &jobs].into_iter().chain(goals);
        apt::output(&place, &words.collect::<Vec<_>>())?;
    }
    // A module without any list of versions is loaded by force; one with an empty list is not (kernel/module/version.c).
    for module in modules {
        let module = build.join(module).display().to_string();
        apt::output(&place, &["objcopy", "--rename-section", "__versions=no_versions", &module])?;
    }
    let marker = place.join(MARKER);
    fs::write(&marker, "").map_err(SetupError::io(&marker))
}

/// All updates of the module, by name.
///
/// # Errors
/// [`UpdateError::Io`].
pub fn updates() -> Result<Vec<Update>, UpdateError> {
    let path = testdata().join("updates");
    let io = |source| UpdateError::Io { path: path.clone(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).map_err(io)? {
        let folder = entry.map_err(io)?.path();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.push(Update { name, folder });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

impl Update {
    /// Builds its bundle into a folder.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub fn build(&self, known: &KnownState, dir: &Path) -> Result<PathBuf, UpdateError> {
        let description = self.folder.join("update.json");
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| UpdateError::Io { path, source }
        };
        let text = fs::read(&description).map_err(io(&description))?;
        let Description { edits, unit, .. } =
            serde_json::from_slice(&text).map_err(|source| UpdateError::Form { path: description, source })?;
        let unit = unit.as_deref().unwrap_or(UNIT);
        let module = if unit == WRITES { &known.writes } else { &known.module };
        let edit = |Change { find, replace }| Edit { file: format!("{FOLDER}/{unit}"), find, replace };
        let edits: Vec<Edit> = edits.into_iter().map(edit).collect();
        let (diff, bundle) = (dir.join(format!("{}.diff", self.name)), dir.join(format!("{}.lpk", self.name)));
        fs::write(&diff, patches::diff(&known.source, &edits)?).map_err(io(&diff))?;
        let mut args: Vec<OsString> = vec![diff.into()];
        let options = [
            ("--vmlinux", known.kernel.vmlinux()),
            ("--source", known.source.clone()),
            ("--module", module.clone()),
            ("-o", bundle.clone()),
        ];
        let beside = [("--hooks", "hooks.c"), ("--overrides", "overrides.toml")];
        let beside = beside.map(|(option, name)| (option, self.folder.join(name))).into_iter();
        for (option, path) in options.into_iter().chain(beside.filter(|(_, path)| path.exists())) {
            args.extend([option.into(), path.into()]);
        }
        let outcome = commands::lucos_build(&args.iter().map(OsString::as_os_str).collect::<Vec<&OsStr>>())?;
        let expected = self.name.split('-').next().unwrap_or_default();
        if outcome.status != 0 || outcome.text("/verdict") != expected {
            let (name, expected, found) = (self.name.clone(), expected.to_owned(), outcome.describe());
            return Err(UpdateError::Verdict { name, expected, found });
        }
        Ok(bundle)
    }
}

/// What the module shows of itself: numbers by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State(BTreeMap<String, i64>);

impl State {
    /// Reads it in a guest, whose threads come to rest for that.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn read(guest: &mut Guest) -> Result<State, GuestError> {
        Self::of(guest, SHOWN)
    }

    /// Reads numbers by name from a file of a guest.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn of(guest: &mut Guest, file: &str) -> Result<State, GuestError> {
        let text = guest.run_ok(&format!("cat {file}"))?;
        let line = |line: &str| {
            let (name, number) = line.split_once(' ')?;
            Some((name.to_owned(), number.trim().parse().ok()?))
        };
        Ok(State(text.lines().filter_map(line).collect()))
    }

    /// What is shown.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// A number; one that is not shown is none that anything equals.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(i64::MIN)
    }

    /// What is not as it must be.
    pub fn faults(&self) -> Vec<String> {
        const EQUAL: [(&str, &str); 9] = [
            ("total", "rounds"),
            ("table", "rounds"),
            ("ticks", "rounds"),
            ("seen", "rounds"),
            ("begun", "rests"),
            ("finished", "rests"),
            ("naps", "tally_naps"),
            ("broken", "torn"),
            ("things", "kept"),
        ];
        let equal = EQUAL.iter().filter(|(one, other)| self.get(one) != self.get(other));
        let mut faults: Vec<String> =
            equal.map(|(one, other)| format!("{one} is {}, {other} {}", self.get(one), self.get(other))).collect();
        for (name, expected) in [("torn", 0), ("ring", 5), ("bad", 0)] {
            if self.get(name) != expected {
                faults.push(format!("{name} is {}, expected {expected}", self.get(name)));
            }
        }
        faults
    }
}

/// Whether an answer of `lucos-hv` is a refusal for one of some reasons.
pub fn is_refused(outcome: &Outcome, reasons: &[&str]) -> bool {
    outcome.status == 3 && reasons.contains(&outcome.text("/error/reason"))
}
