//! The kernel's own build, as far as we need it.
//!
//! Comes in: a [`Request`]. Decided: whether a prepared build folder for this very kernel is there already; how each
//! unit is compiled. Goes out: a [`BuildFolder`], kept between runs, and the [`UnitCommands`] of units. The kernel is
//! never built: it is only configured, its generated headers and its object tool are made, once.

pub mod by_hand;
pub mod command;
pub mod compile;
pub mod given;
pub mod kept;
pub mod lines;
pub mod listing;
pub mod objtool;
pub mod overlay;
pub mod support;

use crate::identity::Config;
use crate::progress::Progress;
use crate::request::Request;
use command::{CommandError, UnitCommands};
use given::{Given, GivenError};
use listing::Listing;
use nix::fcntl::{Flock, FlockArg};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Sections per function and datum, so that each can be compared and moved alone.
const KCFLAGS: &str = "KCFLAGS=-ffunction-sections -fdata-sections";
/// The same as words of a command.
const SECTION_FLAGS: [&str; 2] = ["-ffunction-sections", "-fdata-sections"];
/// Marks a folder that was prepared to the end.
const READY: &str = ".lucos-ready";
/// Lists the files whose generated parts were asked for.
const GENERATED: &str = ".lucos-generated.json";
/// Changes when the same inputs are to be prepared otherwise.
const RECIPE: &str = "2";

/// Programs that the preparation calls, and the Debian packages that have them.
const PROGRAMS: &[(&str, &str)] = &[
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("ld", "binutils"),
    ("perl", "perl"),
    ("cc", "gcc"),
];

/// Why the build folder or a command is missing.
#[derive(Debug, thiserror::Error)]
pub enum KbuildError {
    /// Programs are missing.
    #[error("missing: {}; install {}", programs.join(", "), packages.join(" "))]
    Tools {
        /// Programs.
        programs: Vec<String>,
        /// Debian packages.
        packages: Vec<String>,
    },
    /// No folder to keep the build in.
    #[error("no folder for prepared builds: set LUCOS_CACHE, XDG_CACHE_HOME or HOME")]
    NoCache,
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// make could not be started.
    #[error("cannot start make")]
    Start(#[source] std::io::Error),
    /// make failed.
    #[error("make {what} failed{hint}; the whole output is in {}:\n{tail}", log.display())]
    Make {
        /// What it was asked for.
        what: String,
        /// What to do, if it is known.
        hint: String,
        /// Its output.
        log: PathBuf,
        /// The end of it.
        tail: String,
    },
    /// make would not say how to compile the units.
    #[error("make cannot say how the units are compiled:\n{output}")]
    Ask {
        /// What it said.
        output: String,
    },
    /// A unit's commands are not understood.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A build folder that was given cannot be used.
    #[error(transparent)]
    Given(GivenError),
}

/// A configured and prepared build folder.
#[derive(Debug)]
pub struct BuildFolder {
    /// The folder; commands run in it.
    pub path: PathBuf,
    /// Where results are kept for later builds: the same folder, unless it is one that somebody else built in.
    pub kept: PathBuf,
    /// The build folder that was given, if this is one.
    pub given: Option<Given>,
    /// Whether it was there already.
    pub cached: bool,
    /// Options whose value is not the one in the given configuration: `CONFIG_X: given, now`.
    pub drift: Vec<String>,
}

impl BuildFolder {
    /// Finds the folder of this kernel, or prepares it.
    ///
    /// # Errors
    /// [`KbuildError`]; a folder that was not prepared to the end is made anew the next time.
    pub fn prepare(request: &Request, progress: &Progress) -> Result<Self, KbuildError> {
        if let Some(given) = &request.build {
            return Self::of_given(given, request);
        }
        let root = cache_root()?.join("build");
        fs::create_dir_all(&root).map_err(io(&root))?;
        let key = key(request)?;
        let path = root.join(&key);
        let lock_path = root.join(format!("{key}.lock"));
        let lock = File::create(&lock_path).map_err(io(&lock_path))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, error)| KbuildError::Io { path: lock_path.clone(), source: error.into() })?;
        let cached = path.join(READY).is_file();
        if !cached {
            check_tools(&Config::parse(&request.config))?;
            progress.phase("preparing the kernel's build folder (once per kernel)");
            if path.exists() {
                fs::remove_dir_all(&path).map_err(io(&path))?;
            }
            fs::create_dir_all(&path).map_err(io(&path))?;
            let config = path.join(".config");
            fs::write(&config, &request.config).map_err(io(&config))?;
            let log = root.join(format!("{key}.log"));
            make_logged(request, &path, &log, &["olddefconfig", "prepare"])?;
            let ready = path.join(READY);
            fs::write(&ready, "").map_err(io(&ready))?;
        }
        let config = path.join(".config");
        let now = fs::read_to_string(&config).map_err(io(&config))?;
        let drift = drift(&Config::parse(&request.config), &Config::parse(&now));
        Ok(Self { drift, kept: path.clone(), path, given: None, cached })
    }

    /// A folder that the kernel was built in: nothing is to be prepared.
    fn of_given(given: &Given, request: &Request) -> Result<Self, KbuildError> {
        let kept = cache_root()?.join("build").join(format!("{}-given", key(request)?));
        fs::create_dir_all(&kept).map_err(io(&kept))?;
        Ok(Self { path: given.folder.clone(), kept, given: Some(given.clone()), cached: true, drift: Vec::new() })
    }

    /// The commands of units, in their order. They are kept in the folder, because make needs a second to tell them.
    ///
    /// # Errors
    /// [`KbuildError`].
    pub fn commands(&self, request: &Request, units: &[PathBuf]) -> Result<Vec<(PathBuf, UnitCommands)>, KbuildError> {
        if let Some(given) = &self.given {
            let config = Config::parse(&request.config);
            let commands = |unit: &PathBuf| match given.commands(unit, &config) {
                Ok(mut commands) => {
                    // The one that was checked: by another name, or given in place of it.
                    commands.compile[0] = request.compiler.program.display().to_string();
                    Ok((unit.clone(), commands))
                }
                Err(GivenError::Command(error)) => Err(KbuildError::Command(error)),
                Err(error) => Err(KbuildError::Given(error)),
            };
            return units.iter().map(commands).collect();
        }
        let kept = self.kept.join(".lucos-commands");
        fs::create_dir_all(&kept).map_err(io(&kept))?;
        let mut known: BTreeMap<&Path, UnitCommands> = BTreeMap::new();
        for unit in units {
            let text = fs::read(self.commands_file(unit)).ok();
            if let Some(commands) = text.and_then(|text| serde_json::from_slice(&text).ok()) {
                known.insert(unit, commands);
            }
        }
        let unknown: Vec<&Path> = units.iter().map(PathBuf::as_path).filter(|unit| !known.contains_key(unit)).collect();
        if !unknown.is_empty() {
            let objects: Vec<String> =
                unknown.iter().map(|unit| unit.with_extension("o").display().to_string()).collect();
            let output = make(request, &self.path)
                .args(["-n", "V=1", KCFLAGS, objtool::NOT_DELAYED])
                .args(&objects)
                .output()
                .map_err(KbuildError::Start)?;
            if !output.status.success() {
                return Err(KbuildError::Ask { output: String::from_utf8_lossy(&output.stderr).into_owned() });
            }
            let text = String::from_utf8_lossy(&output.stdout);
            for (unit, object) in unknown.into_iter().zip(&objects) {
                let commands = UnitCommands::parse(&text, object)?;
                self.keep(unit, &commands)?;
                known.insert(unit, commands);
            }
        }
        Ok(units.iter().filter_map(|unit| Some((unit.clone(), known.get(unit.as_path())?.clone()))).collect())
    }
}

impl BuildFolder {
    /// All units of the kernel. The list and the commands of every unit are kept in the folder, because make needs half a
    /// minute to tell them.
    ///
    /// # Errors
    /// [`KbuildError`].
    pub fn listing(&self, request: &Request, progress: &Progress) -> Result<Listing, KbuildError> {
        if let Some(given) = &self.given {
            return given.listing().map_err(KbuildError::Given);
        }
        let path = self.kept.join(".lucos-listing.json");
        if let Some(listing) = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
            return Ok(listing);
        }
        progress.phase("asking make for all units of this kernel (once per kernel)");
        // With `-k`, because the image itself cannot be linked without the objects. The goal is that of a whole kernel.
        let goals =
            if Config::parse(&request.config).get("CONFIG_MODULES") == Some("y") { "modules" } else { "vmlinux" };
        let output = make(request, &self.path)
            .args(["-n", "-k", "V=1", KCFLAGS, objtool::NOT_DELAYED, goals])
            .stderr(Stdio::null())
            .output()
            .map_err(KbuildError::Start)?;
        let text = String::from_utf8_lossy(&output.stdout).replace("\\\n", " ");
        let mut kept = Vec::new();
        let listing = Listing::parse(&text, &request.source, |unit, commands| kept.push((unit.to_owned(), commands)));
        // init/main.c is in every kernel.
        if !listing.units.contains_key(Path::new("init/main.c")) {
            return Err(KbuildError::Ask { output: "make names no command for init/main.c".to_owned() });
        }
        let folder = self.kept.join(".lucos-commands");
        fs::create_dir_all(&folder).map_err(io(&folder))?;
        kept.par_iter().try_for_each(|(unit, commands)| self.keep(unit, commands))?;
        let mut aside = tempfile::NamedTempFile::new_in(&self.kept).map_err(io(&self.kept))?;
        serde_json::to_writer(&mut aside, &listing).map_err(|error| io(&path)(error.into()))?;
        aside.persist(&path).map_err(|error| io(&path)(error.error))?;
        Ok(listing)
    }

    /// Keeps the commands of a unit. Written aside and moved, so that another build never reads half of it.
    fn keep(&self, unit: &Path, commands: &UnitCommands) -> Result<(), KbuildError> {
        let path = self.commands_file(unit);
        let folder = path.parent().unwrap_or(&self.kept);
        let mut aside = tempfile::NamedTempFile::new_in(folder).map_err(io(folder))?;
        serde_json::to_writer(&mut aside, commands).map_err(|error| io(&path)(error.into()))?;
        aside.persist(&path).map_err(|error| io(&path)(error.error))?;
        Ok(())
    }

    fn commands_file(&self, unit: &Path) -> PathBuf {
        let name = unit.display().to_string().replace('/', "%");
        self.kept.join(".lucos-commands").join(format!("{name}.json"))
    }

    /// Where the graph of includes is kept.
    pub fn graph_file(&self) -> PathBuf {
        self.kept.join(".lucos-graph.json")
    }

    /// The configuration in the folder.
    ///
    /// # Errors
    /// [`KbuildError::Io`].
    pub fn config(&self) -> Result<String, KbuildError> {
        let path = self.path.join(".config");
        fs::read_to_string(&path).map_err(io(&path))
    }

    /// What another tree of the same kernel makes of the configuration; the work goes to `aside`.
    ///
    /// # Errors
    /// [`KbuildError`].
    pub fn configure(&self, request: &Request, tree: &Path, aside: &Path) -> Result<String, KbuildError> {
        fs::create_dir_all(aside).map_err(io(aside))?;
        let config = aside.join(".config");
        fs::write(&config, self.config()?).map_err(io(&config))?;
        let other = Request { source: tree.to_owned(), ..request.clone() };
        make_logged(&other, aside, &aside.join("log"), &["olddefconfig"])?;
        fs::read_to_string(&config).map_err(io(&config))
    }

    /// The folder of original objects of earlier builds.
    pub fn kept_objects(&self) -> PathBuf {
        self.kept.join(".lucos-objects")
    }

    /// Has make build units, so that the files are there that the build generates beside them
    /// (`security/selinux/flask.h`).
    ///
    /// # Errors
    /// [`KbuildError::Make`] with the end of the log.
    pub fn generate(&self, request: &Request, units: &[PathBuf]) -> Result<(), KbuildError> {
        // What the build generates is there where it was built.
        if self.given.is_some() {
            return Ok(());
        }
        let objects: Vec<String> = units.iter().map(|unit| unit.with_extension("o").display().to_string()).collect();
        let goals: Vec<&str> = std::iter::once(KCFLAGS).chain(objects.iter().map(String::as_str)).collect();
        make_logged(request, &self.path, &self.path.join("lucos-generate.log"), &goals)
    }

    /// Files whose generated parts are there, as far as they exist.
    pub fn generated(&self) -> BTreeSet<PathBuf> {
        let text = fs::read(self.kept.join(GENERATED)).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Remembers that the generated parts of files are there.
    ///
    /// # Errors
    /// [`KbuildError::Io`].
    pub fn note_generated(&self, files: &BTreeSet<PathBuf>) -> Result<(), KbuildError> {
        let path = self.kept.join(GENERATED);
        let text = serde_json::to_vec(files).map_err(|error| io(&path)(error.into()))?;
        fs::write(&path, text).map_err(io(&path))
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> KbuildError + use<> {
    let path = path.to_owned();
    move |source| KbuildError::Io { path, source }
}

/// `$LUCOS_CACHE`, `$XDG_CACHE_HOME/lucos` or `~/.cache/lucos`.
fn cache_root() -> Result<PathBuf, KbuildError> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = set("LUCOS_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("lucos")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/lucos")))
        .ok_or(KbuildError::NoCache)?;
    std::path::absolute(&root).map_err(io(&root))
}

/// Everything that the prepared folder depends on.
fn key(request: &Request) -> Result<String, KbuildError> {
    let makefile = request.source.join("Makefile");
    let mut text = Vec::new();
    File::open(&makefile).and_then(|mut file| file.read_to_end(&mut text)).map_err(io(&makefile))?;
    let mut hash = Sha256::new();
    let parts: [&[u8]; 8] = [
        RECIPE.as_bytes(),
        &request.build_id,
        request.release.as_bytes(),
        request.config.as_bytes(),
        request.source.as_os_str().as_encoded_bytes(),
        &text,
        request.compiler.version.as_bytes(),
        request.compiler.program.as_os_str().as_encoded_bytes(),
    ];
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

fn make(request: &Request, folder: &Path) -> Command {
    let mut command = Command::new("make");
    let text = |name: &str, value: &Path| {
        let mut word = std::ffi::OsString::from(name);
        word.push(value);
        word
    };
    command.arg("-C").arg(&request.source).arg(text("O=", folder)).arg(text("CC=", &request.compiler.program));
    // A distribution's release is not the Makefile's version (its number is an ABI's).
    command
        .arg(format!("KERNELRELEASE={}", request.release))
        .arg("--no-print-directory")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    for name in [
        "MAKEFLAGS",
        "MFLAGS",
        "MAKELEVEL",
        "ARCH",
        "CROSS_COMPILE",
        "KBUILD_OUTPUT",
        "KCFLAGS",
        "KCPPFLAGS",
        "KAFLAGS",
        "LLVM",
        "CC",
        "V",
    ] {
        command.env_remove(name);
    }
    command
}

fn make_logged(request: &Request, folder: &Path, log: &Path, goals: &[&str]) -> Result<(), KbuildError> {
    let output = File::create(log).map_err(io(log))?;
    let errors = output.try_clone().map_err(io(log))?;
    let status = make(request, folder)
        .arg(format!("-j{}", request.jobs))
        .args(goals)
        .stdout(output)
        .stderr(errors)
        .status()
        .map_err(KbuildError::Start)?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read(log).map_err(io(log))?;
    let text = String::from_utf8_lossy(&text);
    let hints = [
        ("gelf.h", "; install libelf-dev"),
        ("libelf.h", "; install libelf-dev"),
        ("openssl/", "; install libssl-dev"),
        (
            "is not clean",
            "; the source tree was built in: give a clean one with --source, or run `make mrproper` in it",
        ),
    ];
    let hint =
        hints.iter().find(|(word, _)| text.contains(word)).map(|(_, hint)| (*hint).to_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(12)..].join("\n");
    Err(KbuildError::Make { what: goals.join(" "), hint, log: log.to_owned(), tail })
}

fn check_tools(config: &Config<'_>) -> Result<(), KbuildError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    let mut wanted = PROGRAMS.to_vec();
    // Without it the configuration would lose its type information (init/Kconfig, lib/Kconfig.debug).
    if config.get("CONFIG_DEBUG_INFO_BTF") == Some("y") {
        wanted.push(("pahole", "dwarves"));
    }
    let missing: Vec<_> = wanted.into_iter().filter(|(program, _)| !there(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (programs, packages) =
        missing.iter().map(|(program, package)| ((*program).to_owned(), (*package).to_owned())).unzip();
    Err(KbuildError::Tools { programs, packages })
}

/// Options that `olddefconfig` changed, because this machine's tools are others. Options that only the result has are
/// no drift: distributions take some out of the file they ship.
fn drift(given: &Config<'_>, now: &Config<'_>) -> Vec<String> {
    let mut drift: Vec<String> = given
        .iter()
        .filter(|(name, value)| now.get(name) != Some(value))
        .map(|(name, value)| {
            format!("{name}: {value} in the configuration, {} on this machine", now.get(name).unwrap_or("not set"))
        })
        .collect();
    drift.sort();
    drift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_is_what_the_given_options_became() {
        let given = Config::parse("CONFIG_A=y\nCONFIG_B=12\nCONFIG_C=\"x\"\n");
        let now = Config::parse("CONFIG_A=y\nCONFIG_B=13\nCONFIG_NEW=y\n");
        assert_eq!(
            drift(&given, &now),
            [
                "CONFIG_B: 12 in the configuration, 13 on this machine",
                "CONFIG_C: x in the configuration, not set on this machine"
            ]
        );
    }
}
