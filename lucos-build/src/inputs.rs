//! Finds the inputs that were not given.
//!
//! Comes in: what was given, the image's place and release, the folder it was built in. Decided: which of the usual
//! places has the file; a given file is never replaced by another. Goes out: [`Found`], with how it was found, and
//! [`Inputs`], which says so in the report.

use serde::Serialize;
use std::path::{Path, PathBuf};

/// How an input was found that is a part of the build folder given with --build.
pub const OF_BUILD: &str = "of the build folder";

/// An input and how it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The file or folder.
    pub path: PathBuf,
    /// `given`, or where it was found.
    pub how: String,
}

/// What a build was made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Inputs {
    /// The diff.
    pub diff: Option<Found>,
    /// The update written by hand: its source or its object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<Found>,
    /// Hooks in C beside a diff.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Found>,
    /// The kernel image.
    pub vmlinux: Option<Found>,
    /// Its release, as `uname -r` prints it.
    pub release: Option<String>,
    /// Its GNU build id.
    pub build_id: Option<String>,
    /// System.map.
    pub system_map: Option<Found>,
    /// The source tree.
    pub source: Option<Found>,
    /// The configuration.
    pub config: Option<Found>,
    /// The compiler.
    pub compiler: Option<Found>,
    /// What the compiler says of itself.
    pub compiler_version: Option<String>,
    /// What the author says of the change.
    pub overrides: Option<Found>,
    /// The prepared build folder.
    pub build_folder: Option<PathBuf>,
}

/// No place has an input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no {what} found; looked at {}; give it with {option}", looked.join(", "))]
pub struct NotFound {
    /// What was looked for.
    pub what: &'static str,
    /// The option that gives it.
    pub option: &'static str,
    /// Places without it.
    pub looked: Vec<String>,
}

/// Where to look.
pub struct Places<'a> {
    /// The image.
    pub vmlinux: &'a Path,
    /// Its release.
    pub release: &'a str,
    /// Its upstream version (`6.1.190`).
    pub version: &'a str,
    /// Folder it was built in, by its debug information.
    pub built_in: Option<&'a Path>,
}

impl Places<'_> {
    fn beside(&self) -> PathBuf {
        let real = self.vmlinux.canonicalize().unwrap_or_else(|_| self.vmlinux.to_owned());
        real.parent().map(Path::to_owned).unwrap_or_default()
    }

    /// System.map: a file with symbols.
    ///
    /// # Errors
    /// [`NotFound`].
    pub fn system_map(&self, given: Option<&Path>) -> Result<Found, NotFound> {
        let (beside, release) = (self.beside(), self.release);
        let named = format!("System.map-{release}");
        let places = [
            (beside.join(&named), "beside vmlinux"),
            (beside.join("System.map"), "beside vmlinux"),
            (Path::new("/boot").join(&named), "in /boot"),
            (Path::new("/usr/lib/debug/boot").join(&named), "in /usr/lib/debug/boot"),
            (PathBuf::from(format!("/lib/modules/{release}/build/System.map")), "in the modules' build folder"),
        ];
        // Debian puts a stub of one line in /boot; the real file is in the debug package.
        let usable = |path: &Path| std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > 4096);
        choose("System.map", "--system-map", given, places, usable)
    }

    /// The configuration.
    ///
    /// # Errors
    /// [`NotFound`].
    pub fn config(&self, given: Option<&Path>) -> Result<Found, NotFound> {
        let (beside, release) = (self.beside(), self.release);
        let named = format!("config-{release}");
        let places = [
            (beside.join(&named), "beside vmlinux"),
            (beside.join(".config"), "beside vmlinux"),
            (Path::new("/boot").join(&named), "in /boot"),
            (PathBuf::from(format!("/lib/modules/{release}/build/.config")), "in the modules' build folder"),
            (PathBuf::from(format!("/lib/modules/{release}/config")), "beside the modules"),
        ];
        choose("configuration", "--config", given, places, Path::is_file)
    }

    /// The source tree.
    ///
    /// # Errors
    /// [`NotFound`].
    pub fn source(&self, given: Option<&Path>) -> Result<Found, NotFound> {
        let (beside, release) = (self.beside(), self.release);
        let series = self.version.split('.').take(2).collect::<Vec<_>>().join(".");
        let mut places = vec![(beside.join("source"), "beside vmlinux"), (beside.clone(), "beside vmlinux")];
        if let Some(folder) = self.built_in.filter(|folder| folder.is_absolute()) {
            places.push((folder.to_owned(), "where the kernel was built"));
            places.push((folder.join("source"), "where the kernel was built"));
        }
        places.extend([
            (PathBuf::from(format!("/usr/src/linux-source-{series}")), "in /usr/src"),
            (PathBuf::from(format!("/usr/src/linux-{}", self.version)), "in /usr/src"),
            (PathBuf::from(format!("/lib/modules/{release}/source")), "by the modules' source link"),
            (PathBuf::from(format!("/lib/modules/{release}/build")), "by the modules' build link"),
            (PathBuf::from("."), "the current folder"),
        ]);
        choose("source tree", "--source", given, places, is_source)
    }
}

/// Whether a folder is a whole kernel source tree (a headers package has no `init/main.c`).
pub fn is_source(path: &Path) -> bool {
    path.join("Makefile").is_file() && path.join("Kbuild").is_file() && path.join("init/main.c").is_file()
}

fn choose(
    what: &'static str,
    option: &'static str,
    given: Option<&Path>,
    places: impl IntoIterator<Item = (PathBuf, &'static str)>,
    usable: impl Fn(&Path) -> bool,
) -> Result<Found, NotFound> {
    if let Some(path) = given {
        return Ok(Found { path: path.to_owned(), how: "given".to_owned() });
    }
    let mut looked = Vec::new();
    for (path, how) in places {
        if usable(&path) {
            return Ok(Found { path, how: how.to_owned() });
        }
        looked.push(path.display().to_string());
    }
    Err(NotFound { what, option, looked })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_beside_the_image_are_found_and_stubs_are_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        let image = at("vmlinux");
        let write = |name: &str, text: &str| std::fs::write(at(name), text).expect("written");
        write("vmlinux", "");
        write("config-6.1.0-9-x", "");
        write("System.map-6.1.0-9-x", "ffffffffffffffff B The real System.map is elsewhere\n");
        write("System.map", &"0000000000000000 A a\n".repeat(1000));
        let places = Places { vmlinux: &image, release: "6.1.0-9-x", version: "6.1.7", built_in: None };
        let map = places.system_map(None).expect("found");
        assert!(map.path.ends_with("System.map"), "{map:?}");
        assert_eq!(places.config(None).expect("found").how, "beside vmlinux");
        assert_eq!(places.config(Some(Path::new("/c"))).expect("given").how, "given");
        let error = places.source(None).expect_err("no source").to_string();
        assert!(error.contains("--source") && error.contains("/usr/src/linux-source-6.1"), "{error}");
    }
}
