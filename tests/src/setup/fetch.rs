//! A kernel release into the cache.
//!
//! Comes in: a [`Release`]. Decided: what of it is there already. Goes out: a [`Kernel`] whose marker was written last.
//!
//! # Consistency on error
//! Parts are unpacked in a temporary folder of the cache and renamed at the end; an interrupted fetch leaves nothing that
//! counts as complete.

use super::SetupError;
use super::apt::{Apt, output};
use super::discover::Release;
use crate::kernels::{DEBUG_MARKER, Kernel, MARKER, SOURCE_MARKER};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Keeps a second set-up out of the cache.
///
/// # Errors
/// [`SetupError::Io`] when the lock file cannot be made.
pub fn lock(cache: &Path, say: &dyn Fn(&str)) -> Result<Flock<File>, SetupError> {
    let path = cache.join("set-up.lock");
    let open = || File::options().create(true).truncate(false).write(true).open(&path).map_err(SetupError::io(&path));
    match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err(_) => {
            say("another set-up is running; waiting for it");
            Flock::lock(open()?, FlockArg::LockExclusive)
                .map_err(|(_, errno)| SetupError::Io { path: path.clone(), source: errno.into() })
        }
    }
}

/// The release from the cache, fetched as far as it is missing.
///
/// # Errors
/// [`SetupError`] when a package cannot be downloaded or unpacked.
pub fn kernel(cache: &Path, release: &Release, debug: bool, say: &dyn Fn(&str)) -> Result<Kernel, SetupError> {
    let kernels = cache.join("kernels");
    fs::create_dir_all(&kernels).map_err(SetupError::io(&kernels))?;
    let dir = kernels.join(&release.version);
    let name = &release.release;
    if !dir.join(MARKER).exists() {
        let work = Work::new(&kernels)?;
        let image = work.package(&format!("linux-image-{name}"), &release.version, say)?;
        let ready = work.path.join("ready");
        fs::create_dir(&ready).map_err(SetupError::io(&ready))?;
        for part in ["vmlinuz", "config"] {
            take(&image.join("boot").join(format!("{part}-{name}")), &ready.join(format!("{part}-{name}")))?;
        }
        // Debian 13 has the modules under usr/lib.
        let modules = [image.join("lib/modules"), image.join("usr/lib/modules")];
        let modules = modules.iter().find(|path| path.is_dir()).unwrap_or(&modules[0]);
        let lib = ready.join("lib");
        fs::create_dir(&lib).map_err(SetupError::io(&lib))?;
        take(modules, &lib.join("modules"))?;
        let tree = ready.join("source");
        if dir.join(SOURCE_MARKER).exists() {
            take(&dir.join("source"), &tree)?;
        } else {
            work.source(&release.source_package, &release.version, &tree, say)?;
        }
        if debug {
            fetch_debug(&kernels, &ready, release, say)?;
        }
        fs::write(ready.join(MARKER), "").map_err(SetupError::io(&ready))?;
        if dir.exists() {
            // Left by a set-up that was cut, or filled by hand: it has no marker, so it is not used.
            say(&format!("{}: not complete, replaced", dir.display()));
            take(&dir, &work.path.join("old"))?;
        }
        take(&ready, &dir)?;
    }
    if debug && !dir.join(DEBUG_MARKER).exists() {
        fetch_debug(&kernels, &dir, release, say)?;
    }
    Ok(Kernel { dir, version: release.version.clone(), release: name.clone() })
}

/// The source tree of a version, fetched if it is missing; for a kernel of which nothing else is needed.
///
/// # Errors
/// [`SetupError`] when the package cannot be downloaded or unpacked.
pub fn source(cache: &Path, package: &str, version: &str, say: &dyn Fn(&str)) -> Result<PathBuf, SetupError> {
    let kernels = cache.join("kernels");
    fs::create_dir_all(&kernels).map_err(SetupError::io(&kernels))?;
    let dir = kernels.join(version);
    if !dir.join(MARKER).exists() && !dir.join(SOURCE_MARKER).exists() {
        let work = Work::new(&kernels)?;
        let ready = work.path.join("ready");
        fs::create_dir(&ready).map_err(SetupError::io(&ready))?;
        work.source(package, version, &ready.join("source"), say)?;
        fs::write(ready.join(SOURCE_MARKER), "").map_err(SetupError::io(&ready))?;
        if dir.exists() {
            say(&format!("{}: not complete, replaced", dir.display()));
            take(&dir, &work.path.join("old"))?;
        }
        take(&ready, &dir)?;
    }
    Ok(dir.join("source"))
}

/// `vmlinux` and the real `System.map` from the debug package.
fn fetch_debug(kernels: &Path, dir: &Path, release: &Release, say: &dyn Fn(&str)) -> Result<(), SetupError> {
    let work = Work::new(kernels)?;
    let name = &release.release;
    let debug = work.package_part(&format!("linux-image-{name}-dbg"), &release.version, "./usr/lib/debug/boot", say)?;
    for part in ["vmlinux", "System.map"] {
        let file = format!("{part}-{name}");
        take(&debug.join("usr/lib/debug/boot").join(&file), &dir.join(&file))?;
    }
    fs::write(dir.join(DEBUG_MARKER), "").map_err(SetupError::io(dir))
}

fn take(from: &Path, to: &Path) -> Result<(), SetupError> {
    fs::rename(from, to).map_err(SetupError::io(from))
}

/// A temporary folder in the cache, on the same file system as the result.
struct Work {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Work {
    fn new(kernels: &Path) -> Result<Self, SetupError> {
        let dir = tempfile::Builder::new().prefix(".fetch-").tempdir_in(kernels).map_err(SetupError::io(kernels))?;
        Ok(Self { path: dir.path().to_owned(), _dir: dir })
    }

    fn package(&self, package: &str, version: &str, say: &dyn Fn(&str)) -> Result<PathBuf, SetupError> {
        let (deb, into) = self.download(package, version, say)?;
        output(&self.path, &["dpkg-deb", "--extract", &deb.display().to_string(), &into.display().to_string()])?;
        fs::remove_file(&deb).map_err(SetupError::io(&deb))?;
        Ok(into)
    }

    /// Only the files below `part`: the debug package holds all modules as well, several gigabytes.
    fn package_part(
        &self,
        package: &str,
        version: &str,
        part: &str,
        say: &dyn Fn(&str),
    ) -> Result<PathBuf, SetupError> {
        let (deb, into) = self.download(package, version, say)?;
        let script = r#"set -o pipefail; dpkg-deb --fsys-tarfile "$0" | tar --extract --directory "$1" "$2""#;
        let (file, target) = (deb.display().to_string(), into.display().to_string());
        output(&self.path, &["bash", "-c", script, &file, &target, part])?;
        fs::remove_file(&deb).map_err(SetupError::io(&deb))?;
        Ok(into)
    }

    /// The tree of a source package, at `tree`.
    fn source(&self, package: &str, version: &str, tree: &Path, say: &dyn Fn(&str)) -> Result<(), SetupError> {
        let unpacked = self.package(package, version, say)?;
        let archive = unpacked.join("usr/src").join(format!("{package}.tar.xz"));
        fs::create_dir(tree).map_err(SetupError::io(tree))?;
        say(&format!("unpacking {package}"));
        let (archive, into) = (archive.display().to_string(), tree.display().to_string());
        output(&self.path, &["tar", "--extract", "--file", &archive, "--strip-components=1", "--directory", &into])?;
        Ok(())
    }

    fn download(&self, package: &str, version: &str, say: &dyn Fn(&str)) -> Result<(PathBuf, PathBuf), SetupError> {
        say(&format!("fetching {package} {version}"));
        let into = self.path.join(package);
        fs::create_dir(&into).map_err(SetupError::io(&into))?;
        Apt::download(package, version, &self.path)?;
        let deb = fs::read_dir(&self.path)
            .map_err(SetupError::io(&self.path))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .ok_or_else(|| SetupError::Contents { package: package.to_owned(), expected: "a .deb file".to_owned() })?;
        Ok((deb, into))
    }
}
