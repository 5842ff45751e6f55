//! A Debian root file system as the image of a disk.
//!
//! Comes in: the suite of this machine, `testdata/guest/make-root`. Decided: whether the image in the cache was made of the same
//! suite, packages and script. Goes out: the image, never to be written to: a test boots a copy.
//!
//! # Consistency on error
//! The image is made in a temporary folder of the cache, and the note of what it was made of is written last.

use super::apt::Apt;
use super::{SetupError, fetch, packages};
use crate::kernels::cache_dir;
use std::fs;
use std::path::{Path, PathBuf};

const SCRIPT: &str = include_str!("../../../testdata/guest/make-root");
/// What makes it.
const MAKERS: &[&str] = &["debootstrap", "e2fsprogs", "util-linux"];

/// What is in an image beside the packages that every Debian has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// What the image's name ends in.
    name: &'static str,
    packages: &'static [&'static str],
}

/// A system with network. This init needs less of a slow machine than the usual one.
pub const SYSTEM: Contents =
    Contents { name: "", packages: &["sysvinit-core", "ifupdown", "iproute2", "iputils-ping", "socat"] };
/// A system with a database.
pub const DATABASE: Contents = Contents { name: "-database", packages: &["sysvinit-core", "sqlite3"] };

/// The image from the cache, if one is there that was made of what it would be made of now.
///
/// # Errors
/// The reason why there is none, with what to do.
pub fn cached() -> Result<PathBuf, String> {
    let place = Place::new(SYSTEM).map_err(|error| error.to_string())?;
    if place.is_made() {
        Ok(place.image())
    } else {
        Err("no root file system in the cache; `LUCOS_TEST_ENGINE=kvm cargo xtask setup` makes it".to_owned())
    }
}

/// Makes the image if it is missing, which needs root rights: files of a system belong to many users.
///
/// # Errors
/// [`SetupError`] with what to do next.
pub fn prepare(contents: Contents, say: &dyn Fn(&str)) -> Result<PathBuf, SetupError> {
    let cache = cache_dir()?;
    fs::create_dir_all(&cache).map_err(SetupError::io(&cache))?;
    let place = Place::new(contents)?;
    let _lock = fetch::lock(&cache, say)?;
    if place.is_made() {
        return Ok(place.image());
    }
    let mut apt = Apt::new(&cache);
    packages::install_missing(MAKERS, &mut apt, say)?;
    if !apt.is_root() {
        return Err(SetupError::NeedRoot { line: "sudo true, so that `sudo -n` works".to_owned() });
    }
    fs::create_dir_all(&place.dir).map_err(SetupError::io(&place.dir))?;
    let dir = tempfile::Builder::new().prefix(".make-").tempdir_in(&place.dir).map_err(SetupError::io(&place.dir))?;
    let path = |name: &str| dir.path().join(name).display().to_string();
    let script = dir.path().join("make-root");
    fs::write(&script, SCRIPT).map_err(SetupError::io(&script))?;
    say(&format!("making a root file system of {} with {}", place.suite, contents.packages.join(" ")));
    let work = dir.path().display().to_string();
    // What is mounted for the installation goes away with the namespace, whatever happens.
    let make =
        ["unshare", "--mount", "--", "sh", &path("make-root"), &work, &place.suite, &contents.packages.join(",")];
    let made = apt.privileged(&make);
    // As root, because it belongs to root.
    apt.privileged(&["rm", "-rf", "--one-file-system", &path("root")])?;
    made?;
    // Where there is a cut between the two, the older note fits no image that is looked for.
    let note = place.note();
    fs::write(&note, "").map_err(SetupError::io(&note))?;
    fs::rename(dir.path().join("image"), place.image()).map_err(SetupError::io(&place.image()))?;
    fs::write(&note, place.made_of()).map_err(SetupError::io(&note))?;
    Ok(place.image())
}

/// Where the image of a suite lies.
struct Place {
    suite: String,
    contents: Contents,
    dir: PathBuf,
}

impl Place {
    fn new(contents: Contents) -> Result<Self, SetupError> {
        let path = Path::new("/etc/os-release");
        let text = fs::read_to_string(path).map_err(SetupError::io(path))?;
        let suite = suite(&text).ok_or_else(|| SetupError::NotDebian(format!("{} names no suite", path.display())))?;
        Ok(Self { suite: suite.to_owned(), contents, dir: cache_dir()?.join("roots") })
    }

    fn image(&self) -> PathBuf {
        self.dir.join(format!("{}{}.ext4", self.suite, self.contents.name))
    }

    fn note(&self) -> PathBuf {
        self.dir.join(format!("{}{}.made-of", self.suite, self.contents.name))
    }

    fn made_of(&self) -> String {
        format!("{} {}\n{SCRIPT}", self.suite, self.contents.packages.join(" "))
    }

    fn is_made(&self) -> bool {
        self.image().is_file() && fs::read_to_string(self.note()).is_ok_and(|note| note == self.made_of())
    }
}

/// The name of a release (os-release(5), `VERSION_CODENAME`).
fn suite(os_release: &str) -> Option<&str> {
    let name = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?.trim_matches('"');
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase());
    plain.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::suite;

    #[test]
    fn the_suite_is_read() {
        assert_eq!(suite("ID=debian\nVERSION_CODENAME=bookworm\n"), Some("bookworm"));
        assert_eq!(suite("VERSION_CODENAME=\"trixie\"\n"), Some("trixie"));
        for text in ["ID=debian\n", "VERSION_CODENAME=\n", "VERSION_CODENAME=../x\n"] {
            assert_eq!(suite(text), None, "{text}");
        }
    }
}
