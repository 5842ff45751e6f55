//! An official fix: a change of one file between two releases of the distribution's kernel.
//!
//! Comes in: two source trees, the older `vmlinux`. Decided: which files are worth a try (built into the image, present
//! in both, changed), smallest change first. Goes out: candidates with their diff; `lucos-build` has the last word.

use crate::kernels::Pair;
use crate::patches::unified;
use object::read::{ReadCache, elf::ElfFile64};
use object::{Object as _, ObjectSymbol as _, SymbolKind};
use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Folders of code that every kernel is made of.
const FOLDERS: &[&str] =
    &["kernel", "mm", "fs", "net", "block", "security", "ipc", "lib", "io_uring", "crypto", "virt"];

/// Folders of code that runs in every guest, whatever it does.
const EVERYDAY: &[&str] = &["kernel", "mm", "fs"];

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

/// Why candidates could not be listed.
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
        source: object::read::Error,
    },
}

/// Changes between the two releases: first those of code that every guest runs, each group by number of lines.
///
/// # Errors
/// [`OfficialError`] when a tree or the image cannot be read.
pub fn candidates(pair: &Pair) -> Result<Vec<Candidate>, OfficialError> {
    let built_in = built_in_files(&pair.older.vmlinux())?;
    let (old_tree, new_tree) = (pair.older.source(), pair.newer.source());
    let mut files = Vec::new();
    for folder in FOLDERS {
        list(&old_tree, &old_tree.join(folder), &mut files)?;
    }
    let mut found = Vec::new();
    for file in files {
        let name = file.rsplit('/').next().unwrap_or(&file);
        if !built_in.contains(name) {
            continue;
        }
        let Some((old, new)) = read(&old_tree.join(&file))?.zip(read(&new_tree.join(&file))?) else { continue };
        if old == new {
            continue;
        }
        let diff = unified(&file, &old, &new);
        let changed = |line: &&str| {
            (line.starts_with('+') && !line.starts_with("+++")) || (line.starts_with('-') && !line.starts_with("---"))
        };
        let lines = diff.lines().filter(changed).count();
        found.push(Candidate { file, diff, lines });
    }
    let rank = |candidate: &Candidate| {
        let folder = candidate.file.rsplit_once('/').map_or("", |(folder, _)| folder);
        !EVERYDAY.contains(&folder)
    };
    found.sort_by(|one, two| (rank(one), one.lines, &one.file).cmp(&(rank(two), two.lines, &two.file)));
    Ok(found)
}

/// Names of the source files whose objects are linked into the image (`STT_FILE`, gABI "Symbol Table").
fn built_in_files(vmlinux: &Path) -> Result<HashSet<String>, OfficialError> {
    let file = File::open(vmlinux).map_err(|source| OfficialError::Io { path: vmlinux.to_owned(), source })?;
    let image = |source| OfficialError::Image { path: vmlinux.to_owned(), source };
    let cache = ReadCache::new(file);
    let elf: ElfFile64<'_, object::Endianness, _> = ElfFile64::parse(&cache).map_err(image)?;
    let mut names = HashSet::new();
    for symbol in elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::File) {
        let name = symbol.name().map_err(image)?;
        names.insert(name.rsplit('/').next().unwrap_or(name).to_owned());
    }
    Ok(names)
}

fn list(tree: &Path, folder: &Path, files: &mut Vec<String>) -> Result<(), OfficialError> {
    let io = |source| OfficialError::Io { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        let (kind, path) = (entry.file_type().map_err(io)?, entry.path());
        if kind.is_dir() {
            list(tree, &path, files)?;
        } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "c") {
            let relative = path.strip_prefix(tree).unwrap_or(&path);
            files.push(relative.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// A source file as text; nothing when it does not exist or is not UTF-8.
fn read(path: &Path) -> Result<Option<String>, OfficialError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8(bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OfficialError::Io { path: path.to_owned(), source }),
    }
}
