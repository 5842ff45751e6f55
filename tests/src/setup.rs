//! Set-up of a Debian machine: programs and kernels, each only if it is missing.
//!
//! Comes in: apt, dpkg, the cache folder. Decided: what to install, which two releases to use (never a fixed one). Goes
//! out: [`Pair`]. Everything done is said; a set-up that was cut is repeated, never half used.
//!
//! The phases: [`packages`] (programs), [`discover`] (releases in the archive), [`fetch`] (into the cache); [`root`] makes a root file system.

pub mod apt;
pub mod discover;
pub mod fetch;
pub mod packages;
pub mod root;

use crate::guest::{Engine, EngineError};
use crate::kernels::{self, Kernel, KernelError, Pair, cache_dir};
use std::path::{Path, PathBuf};

/// Why the machine could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Packages are missing and only root may install them.
    #[error("packages are missing and only root can install them; run this line, then try again:\n  {line}")]
    NeedRoot {
        /// The line to run.
        line: String,
    },
    /// Not a machine this set-up knows.
    #[error("this set-up needs Debian on x86-64 with apt-get and dpkg-query: {0}")]
    NotDebian(String),
    /// A program of the system failed.
    #[error("`{command}` failed with {status}:\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// Its status.
        status: String,
        /// What it printed.
        output: String,
    },
    /// The archive does not have what is needed, and the cache neither.
    #[error(
        "{reason}, and the cache {cache} has no two complete kernels; check the network and /etc/apt, then try again"
    )]
    NoKernels {
        /// What is missing.
        reason: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// Neither the archive nor the cache has a kernel of another series.
    #[error(
        "{reason}, and the cache {cache} has no complete kernel of another series either; check the network and /etc/apt"
    )]
    NoSeries {
        /// What is missing.
        reason: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// A package without an expected part.
    #[error("{package}: expected {expected} in it")]
    Contents {
        /// The package.
        package: String,
        /// The part.
        expected: String,
    },
    /// The cache.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The hypervisor that is to be tested.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Files.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl SetupError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Prepares the machine; `say` gets one line per step.
///
/// # Errors
/// [`SetupError`] with what to do next.
pub fn prepare(say: &dyn Fn(&str)) -> Result<Pair, SetupError> {
    let cache = cache_dir()?;
    std::fs::create_dir_all(&cache).map_err(SetupError::io(&cache))?;
    let _lock = fetch::lock(&cache, say)?;
    let mut apt = apt::Apt::new(&cache);
    packages::install_missing(packages::BASE, &mut apt, say)?;
    let pair = match discover::newest_two(&mut apt, say) {
        Ok([newer, older]) => {
            say(&format!("kernels: {} ({}), then {} ({})", older.release, older.version, newer.release, newer.version));
            let older = fetch::kernel(&cache, &older, true, say)?;
            let newer = fetch::kernel(&cache, &newer, true, say)?;
            Pair { older, newer }
        }
        Err(reason) => {
            let pair = cached_pair(&cache)
                .ok_or_else(|| SetupError::NoKernels { reason: reason.clone(), cache: cache.clone() })?;
            say(&format!("{reason}; using kernels of the cache: {}, then {}", pair.older.version, pair.newer.version));
            pair
        }
    };
    install_compiler(&pair.older, &mut apt, say)?;
    Ok(pair)
}

/// Installs and makes what only tests need; a root file system, if the bundled hypervisor is to be tested.
///
/// # Errors
/// [`SetupError`] with what to do next.
pub fn for_tests(say: &dyn Fn(&str)) -> Result<(), SetupError> {
    packages::install_missing(packages::TESTS, &mut apt::Apt::new(&cache_dir()?), say)?;
    if Engine::wanted()?.is_in_box() {
        root::prepare(root::SYSTEM, say)?;
    }
    Ok(())
}

/// Which two versions to compare; what is not said is the newest that the archive has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Series (`6.1`); that of the distribution's default kernel when there is none.
    pub series: Option<String>,
    /// The older version, in full or as upstream counts.
    pub from: Option<String>,
    /// The newer version, likewise.
    pub to: Option<String>,
}

/// A kernel, and the source of a later version of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// With image, debug part and source.
    pub older: Kernel,
    /// The later version.
    pub newer_version: String,
    /// Its source tree, never modified.
    pub newer_source: PathBuf,
}

/// Prepares the machine for a comparison of two versions; fetches only what that needs.
///
/// # Errors
/// [`SetupError`] with what to do next.
pub fn step(wanted: &Wanted, say: &dyn Fn(&str)) -> Result<Step, SetupError> {
    let cache = cache_dir()?;
    std::fs::create_dir_all(&cache).map_err(SetupError::io(&cache))?;
    let (from, to) = (wanted.from.as_deref(), wanted.to.as_deref());
    let mut apt = apt::Apt::new(&cache);
    packages::install_missing(packages::BASE, &mut apt, say)?;
    // Both versions are named, and there: no need to wait for a set-up that fetches or builds others.
    if from.is_some()
        && to.is_some()
        && let Some(step) = cached_step(&cache, wanted)
    {
        install_compiler(&step.older, &mut apt, say)?;
        return Ok(step);
    }
    let _lock = fetch::lock(&cache, say)?;
    let series = match wanted.series.as_deref().or_else(|| from.or(to).and_then(discover::series)) {
        Some(series) => Ok(series.to_owned()),
        None => discover::default_series(&mut apt, say),
    };
    let found = series.and_then(|series| discover::archive(&mut apt, &series, say)?.step(from, to));
    let step = match found {
        Ok((older, newer)) => {
            let newer_source = fetch::source(&cache, &older.source_package, &newer, say)?;
            Step { older: fetch::kernel(&cache, &older, true, say)?, newer_version: newer, newer_source }
        }
        Err(reason) => {
            let step = cached_step(&cache, wanted)
                .ok_or_else(|| SetupError::NoKernels { reason: reason.clone(), cache: cache.clone() })?;
            say(&format!("{reason}; using the cache: {}, then {}", step.older.version, step.newer_version));
            step
        }
    };
    install_compiler(&step.older, &mut apt, say)?;
    Ok(step)
}

/// Prepares the machine for one kernel of another series than the distribution's default: the given one, or the newest.
///
/// # Errors
/// [`SetupError`] with what to do next.
pub fn another_series(series: Option<&str>, say: &dyn Fn(&str)) -> Result<Kernel, SetupError> {
    let cache = cache_dir()?;
    std::fs::create_dir_all(&cache).map_err(SetupError::io(&cache))?;
    let _lock = fetch::lock(&cache, say)?;
    let mut apt = apt::Apt::new(&cache);
    packages::install_missing(packages::BASE, &mut apt, say)?;
    let wanted = series.map_or_else(|| discover::other_series(&mut apt, say), |series| Ok(series.to_owned()));
    let found = wanted.clone().and_then(|series| discover::archive(&mut apt, &series, say)?.usual());
    let kernel = match found {
        Ok(release) => fetch::kernel(&cache, &release, true, say)?,
        Err(reason) => {
            let kernel = wanted.ok().and_then(|series| cached_kernel(&cache, &series));
            let kernel = kernel.ok_or_else(|| SetupError::NoSeries { reason: reason.clone(), cache: cache.clone() })?;
            say(&format!("{reason}; using the cache: {}", kernel.version));
            kernel
        }
    };
    install_compiler(&kernel, &mut apt, say)?;
    Ok(kernel)
}

/// The newest kernel of a series in the cache that bundles can be built for.
fn cached_kernel(cache: &Path, series: &str) -> Option<Kernel> {
    let kernels = std::fs::read_dir(cache.join("kernels")).ok()?;
    kernels
        .filter_map(|entry| Kernel::open(&entry.ok()?.path()).ok())
        .filter(|kernel| kernel.is_complete() && kernel.has_debug())
        .filter(|kernel| discover::series(&kernel.version) == Some(series))
        .max_by(|one, two| discover::compare_versions(&one.version, &two.version))
}

/// The newest step of the cache that fits.
fn cached_step(cache: &Path, wanted: &Wanted) -> Option<Step> {
    let in_series = |version: &str| {
        wanted.series.as_deref().is_none_or(|series| discover::series(version).is_some_and(|found| found == series))
    };
    let mut folders: Vec<(String, PathBuf)> = std::fs::read_dir(cache.join("kernels"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|path| Some((path.file_name()?.to_string_lossy().into_owned(), path)))
        .filter(|(version, path)| in_series(version) && path.join("source/Makefile").is_file())
        .collect();
    folders.sort_by(|one, two| discover::compare_versions(&two.0, &one.0));
    let has_source =
        |path: &Path| [kernels::MARKER, kernels::SOURCE_MARKER].iter().any(|marker| path.join(marker).exists());
    let (newer_version, newer) =
        folders.iter().find(|(version, path)| discover::fits(version, wanted.to.as_deref()) && has_source(path))?;
    let older = folders.iter().filter_map(|(_, path)| Kernel::open(path).ok()).find(|kernel| {
        kernel.is_complete()
            && kernel.has_debug()
            && discover::fits(&kernel.version, wanted.from.as_deref())
            && discover::series(&kernel.version) == discover::series(newer_version)
            && discover::upstream(&kernel.version) != discover::upstream(newer_version)
            && discover::compare_versions(&kernel.version, newer_version) == std::cmp::Ordering::Less
    })?;
    Some(Step { older, newer_version: newer_version.clone(), newer_source: newer.join("source") })
}

/// The newest two complete kernels of the cache with different upstream version.
fn cached_pair(cache: &Path) -> Option<Pair> {
    let mut kernels: Vec<Kernel> = std::fs::read_dir(cache.join("kernels"))
        .ok()?
        .filter_map(|entry| Kernel::open(&entry.ok()?.path()).ok())
        .filter(Kernel::is_complete)
        .collect();
    kernels.sort_by(|one, two| discover::compare_versions(&two.version, &one.version));
    let newer = kernels.first()?.clone();
    let older = kernels.into_iter().find(|kernel| {
        kernel.has_debug()
            && discover::series(&kernel.version) == discover::series(&newer.version)
            && discover::upstream(&kernel.version) != discover::upstream(&newer.version)
    })?;
    Some(Pair { older, newer })
}

/// Installs the compiler that the kernel's configuration records (`CONFIG_CC_VERSION_TEXT`), when this machine's `gcc`
/// is another one.
fn install_compiler(kernel: &Kernel, apt: &mut apt::Apt, say: &dyn Fn(&str)) -> Result<(), SetupError> {
    let path = kernel.config();
    let config = std::fs::read_to_string(&path).map_err(SetupError::io(&path))?;
    let recorded = config.lines().find_map(|line| line.strip_prefix("CONFIG_CC_VERSION_TEXT=\"")).unwrap_or_default();
    let Some((name, version)) = recorded.split_once(' ') else { return Ok(()) };
    let version = version.trim_end_matches('"');
    let present = [name, "gcc"].iter().any(|program| {
        std::process::Command::new(program).arg("--version").output().is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout).lines().next().is_some_and(|line| line.ends_with(version))
        })
    });
    let package = name.strip_prefix("x86_64-linux-gnu-").unwrap_or(name);
    if present { Ok(()) } else { packages::install_missing(&[package], apt, say) }
}
