//! Official fixes: what changes between two releases of the distribution's kernel.
//!
//! Comes in: two source trees, the older `vmlinux`. Decided: which files of an x86 kernel's code differ, which of them
//! are compiled into the image. Goes out: [`ChangedFile`]s of any kind, or [`Candidate`]s with a diff of their own,
//! smallest change first; `lucos-build` has the last word.

use crate::kernels::Pair;
use crate::patches::unified;
use prelink::dwarf::{DebugSections, DwarfError};
use prelink::units::UnitIndex;
use prelink::vmlinux::{ImageError, KernelImage};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// Folders of code that runs in every guest, whatever it does.
const EVERYDAY: &[&str] = &["kernel", "mm", "fs"];

/// Folders of the source tree without code of the running kernel.
const WITHOUT_CODE: &[&str] = &["Documentation", "LICENSES", "debian", "samples", "scripts", "tools", "usr"];

/// How a file differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is in both trees.
    Modified,
    /// Only the newer tree has it.
    New,
    /// Only the older tree has it.
    Deleted,
}

/// A file that differs between the trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedFile {
    /// Path, relative to the source tree.
    pub path: String,
    /// How it differs.
    pub change: Change,
}

/// A change that may become a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// File, relative to the source tree.
    pub file: String,
    /// Its diff.
    pub diff: String,
    /// Lines added or removed.
    pub lines: usize,
}

/// Why changes could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum OfficialError {
    /// A file or folder of the trees.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The image.
    #[error("{path}: {source}")]
    Image {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: ImageError,
    },
    /// The image's debug information.
    #[error("{path}: {message}")]
    Debug {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

impl OfficialError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Changes of single files between the two releases: first those of code that every guest runs, each group by number
/// of lines.
///
/// # Errors
/// [`OfficialError`] when a tree or the image cannot be read.
pub fn candidates(pair: &Pair) -> Result<Vec<Candidate>, OfficialError> {
    let (old_tree, new_tree) = (pair.older.source(), pair.newer.source());
    let built_in = BuiltIn::of(&pair.older.vmlinux(), &old_tree)?;
    let mut found = Vec::new();
    for file in changed(&old_tree, &new_tree)? {
        if file.change != Change::Modified || !built_in.is_unit(&file.path) {
            continue;
        }
        let Some((old, new)) = text(&old_tree, &file.path)?.zip(text(&new_tree, &file.path)?) else { continue };
        let diff = unified(&file.path, &old, &new);
        let changed = |line: &&str| {
            (line.starts_with('+') && !line.starts_with("+++")) || (line.starts_with('-') && !line.starts_with("---"))
        };
        let lines = diff.lines().filter(changed).count();
        found.push(Candidate { file: file.path, diff, lines });
    }
    let rank = |candidate: &Candidate| {
        let folder = candidate.file.rsplit_once('/').map_or("", |(folder, _)| folder);
        !EVERYDAY.contains(&folder)
    };
    found.sort_by(|one, two| (rank(one), one.lines, &one.file).cmp(&(rank(two), two.lines, &two.file)));
    Ok(found)
}

/// Files that differ, except those that no x86 kernel is made of; sorted.
///
/// # Errors
/// [`OfficialError::Io`] when a tree cannot be read.
pub fn changed(old_tree: &Path, new_tree: &Path) -> Result<Vec<ChangedFile>, OfficialError> {
    let mut found = Vec::new();
    compare_folders(old_tree, new_tree, "", &mut found)?;
    found.sort_by(|one, two| one.path.cmp(&two.path));
    Ok(found)
}

/// A source file as text; nothing when it does not exist or is not UTF-8.
///
/// # Errors
/// [`OfficialError::Io`] when it exists and cannot be read.
pub fn text(tree: &Path, file: &str) -> Result<Option<String>, OfficialError> {
    let path = tree.join(file);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(String::from_utf8(bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(OfficialError::io(&path)(error)),
    }
}

/// Entries of a folder by name, with whether they are folders; nothing when there is no such folder. Links are left
/// out: the kernel has none among its code, but for `include/dt-bindings` of other architectures.
fn entries(folder: &Path) -> Result<BTreeMap<String, bool>, OfficialError> {
    let mut found = BTreeMap::new();
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(OfficialError::io(folder)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(OfficialError::io(folder))?;
        let kind = entry.file_type().map_err(OfficialError::io(folder))?;
        if kind.is_dir() || kind.is_file() {
            found.insert(entry.file_name().to_string_lossy().into_owned(), kind.is_dir());
        }
    }
    Ok(found)
}

fn compare_folders(old: &Path, new: &Path, prefix: &str, found: &mut Vec<ChangedFile>) -> Result<(), OfficialError> {
    let (before, after) = (entries(&old.join(prefix))?, entries(&new.join(prefix))?);
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        let (was, is) = (before.get(name), after.get(name));
        if was == Some(&true) || is == Some(&true) {
            if is_code_folder(&path) {
                compare_folders(old, new, &path, found)?;
            }
            continue;
        }
        let change = match (was.is_some(), is.is_some()) {
            (true, true) if same(&old.join(&path), &new.join(&path))? => continue,
            (true, true) => Change::Modified,
            (true, false) => Change::Deleted,
            _ => Change::New,
        };
        found.push(ChangedFile { path, change });
    }
    Ok(())
}

/// Whether code of an x86 kernel may be in a folder.
fn is_code_folder(path: &str) -> bool {
    let mut parts = path.split('/');
    match (parts.next(), parts.next()) {
        (Some("arch"), Some(architecture)) => architecture == "x86",
        (Some(top), _) => !WITHOUT_CODE.contains(&top) && !top.starts_with('.'),
        _ => true,
    }
}

fn same(one: &Path, two: &Path) -> Result<bool, OfficialError> {
    let size = |path: &Path| path.metadata().map(|meta| meta.len()).map_err(OfficialError::io(path));
    let bytes = |path: &Path| std::fs::read(path).map_err(OfficialError::io(path));
    Ok(size(one)? == size(two)? && bytes(one)? == bytes(two)?)
}

/// Which source files are compiled into an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuiltIn {
    units: BTreeSet<String>,
    /// `.c` files that units take in by `#include`, with these units.
    parts: BTreeMap<String, Vec<String>>,
}

impl BuiltIn {
    /// Reads the units from the image's debug information, and from their sources which other `.c` files they take in.
    ///
    /// # Errors
    /// [`OfficialError`] when the image or a source cannot be read.
    pub fn of(vmlinux: &Path, source: &Path) -> Result<Self, OfficialError> {
        let image =
            KernelImage::open(vmlinux).map_err(|source| OfficialError::Image { path: vmlinux.to_owned(), source })?;
        let debug = |error: DwarfError| OfficialError::Debug { path: vmlinux.to_owned(), message: error.to_string() };
        let sections = DebugSections::load(|name| image.section_data(name)).map_err(debug)?;
        let index = UnitIndex::build(&sections).map_err(debug)?;
        let mut built_in = Self::default();
        for unit in index.iter().filter(|unit| unit.is_c()) {
            built_in.units.insert(unit.name.clone());
            let Some(text) = text(source, &unit.name)? else { continue };
            for part in included_sources(&unit.name, &text) {
                let units = built_in.parts.entry(part).or_default();
                if !units.contains(&unit.name) {
                    units.push(unit.name.clone());
                }
            }
        }
        Ok(built_in)
    }

    /// Whether a file is a unit of the image.
    pub fn is_unit(&self, file: &str) -> bool {
        self.units.contains(file)
    }

    /// The units that a `.c` file is compiled in: itself, or those that take it in; empty when it is not built in.
    pub fn units_of(&self, file: &str) -> Vec<String> {
        if self.is_unit(file) {
            return vec![file.to_owned()];
        }
        self.parts.get(file).cloned().unwrap_or_default()
    }
}

/// The `.c` files that a source takes in, by path relative to the tree.
fn included_sources(unit: &str, text: &str) -> Vec<String> {
    let folder = Path::new(unit).parent().unwrap_or(Path::new(""));
    let included = |line: &str| {
        let name = line.trim().strip_prefix('#')?.trim_start().strip_prefix("include")?.trim();
        let name = name.strip_prefix('"')?.split('"').next()?;
        name.ends_with(".c").then(|| clean(&folder.join(name)))
    };
    text.lines().filter_map(included).collect()
}

/// A relative path without `.` and `..`.
pub fn clean(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
            _ => {}
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_this_architecture_is_compared() {
        let (old, new) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let put = |tree: &Path, file: &str, text: &str| {
            let path = tree.join(file);
            std::fs::create_dir_all(path.parent().expect("in the tree")).expect("made");
            std::fs::write(path, text).expect("written");
        };
        for (file, before, after) in [
            ("fs/a.c", Some("1"), Some("2")),
            ("fs/same.c", Some("1"), Some("1")),
            ("fs/x/new.h", None, Some("1")),
            ("fs/gone.c", Some("1"), None),
            ("arch/x86/mm/a.c", Some("1"), Some("22")),
            ("arch/arm/mm/a.c", Some("1"), Some("2")),
            ("tools/a.c", Some("1"), Some("2")),
        ] {
            if let Some(text) = before {
                put(old.path(), file, text);
            }
            if let Some(text) = after {
                put(new.path(), file, text);
            }
        }
        let found = changed(old.path(), new.path()).expect("both trees");
        let found: Vec<_> = found.iter().map(|file| (file.path.as_str(), file.change)).collect();
        assert_eq!(
            found,
            [
                ("arch/x86/mm/a.c", Change::Modified),
                ("fs/a.c", Change::Modified),
                ("fs/gone.c", Change::Deleted),
                ("fs/x/new.h", Change::New)
            ]
        );
    }

    #[test]
    fn sources_taken_in_by_others() {
        let text = "#include <linux/x.h>\n#include \"a.c\"\n # include \"../lib/b.c\"\n#include \"x.h\"\n";
        assert_eq!(included_sources("kernel/sched/build.c", text), ["kernel/sched/a.c", "kernel/lib/b.c"]);
    }
}
