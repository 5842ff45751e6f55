//! The kernel's own build, as far as we need it.
//!
//! Comes in: a [`Request`]. Decided: whether a prepared build folder for this very kernel is there already; how each
//! unit is compiled. Goes out: a [`BuildFolder`], kept between runs, and the [`command::UnitCommands`] of units. The kernel is
//! never built: it is only configured, its generated headers and its object tool are made, once.

mod ask;
pub mod by_hand;
mod cache;
pub mod command;
pub mod compile;
mod error;
pub mod given;
pub mod kept;
pub mod lines;
pub mod listing;
mod make;
pub mod objtool;
pub mod overlay;
pub mod support;

pub use error::KbuildError;

use crate::identity::Config;
use crate::progress::Progress;
use crate::request::Request;
use cache::{cache_root, key};
use error::io;
use given::Given;
use make::{KCFLAGS, check_tools, make_logged};
use nix::fcntl::{Flock, FlockArg};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Marks a folder that was prepared to the end.
const READY: &str = ".lucos-ready";
/// Lists the files whose generated parts were asked for.
const GENERATED: &str = ".lucos-generated.json";

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
