//! Original objects of earlier builds.
//!
//! Comes in: a unit, its commands and the files that the compiler read for it. Decided: whether an object that was
//! compiled before is still what the compiler would make: the same commands, and every file as it was, by size and time of
//! its last change, as make decides it. Goes out: a copy of the object. A cache: whatever goes wrong, the unit is compiled.

use super::compile::Unit;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Most bytes of all kept objects of a kernel.
const LIMIT: u64 = 1 << 30;

/// The folder of kept objects.
#[derive(Debug, Clone, Copy)]
pub struct Kept<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// The folder in which the compiler runs.
    pub build: &'a Path,
}

/// What an object was made from.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Origin {
    compile: Vec<String>,
    after: Vec<Vec<String>>,
    files: Vec<Stamp>,
}

/// A file as it was.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    path: PathBuf,
    size: u64,
    modified_ns: i128,
    inode: u64,
}

impl Stamp {
    fn of(path: PathBuf) -> Option<Self> {
        let meta = fs::metadata(&path).ok()?;
        let modified_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Some(Self { path, size: meta.len(), modified_ns, inode: meta.ino() })
    }
}

impl Kept<'_> {
    /// Copies the object of a unit to its place, if it is kept and still right.
    pub fn fetch(&self, unit: &Unit, object: &Path) -> bool {
        self.find(unit).is_some_and(|kept| fs::copy(kept, object).is_ok())
    }

    fn find(&self, unit: &Unit) -> Option<PathBuf> {
        let (kept, origin) = self.names(unit);
        let origin: Origin = serde_json::from_slice(&fs::read(&origin).ok()?).ok()?;
        let same = origin.compile == unit.commands.compile && origin.after == unit.commands.after;
        let unchanged = |stamp: &Stamp| Stamp::of(stamp.path.clone()).as_ref() == Some(stamp);
        (same && !origin.files.is_empty() && origin.files.iter().all(unchanged)).then_some(kept)
    }

    /// Keeps the object of a unit that was compiled in `overlay`, which shows the files of `tree`.
    pub fn store(&self, unit: &Unit, object: &Path, overlay: &Path, tree: &Path) {
        let _ = self.try_store(unit, object, overlay, tree);
    }

    fn try_store(&self, unit: &Unit, object: &Path, overlay: &Path, tree: &Path) -> Option<()> {
        let rules = fs::read_to_string(format!("{}.d", object.display())).ok()?;
        let (_, rules) = rules.split_once(':')?;
        let words = rules.split_ascii_whitespace().filter(|word| *word != "\\");
        let place = |word: &str| match Path::new(word).strip_prefix(overlay) {
            Ok(inside) => tree.join(inside),
            Err(_) => self.build.join(word),
        };
        let mut files = words.map(|word| Stamp::of(place(word))).collect::<Option<Vec<_>>>()?;
        // The program that changes the object afterwards counts as well.
        for program in unit.commands.after.iter().filter_map(|words| words.first()) {
            files.push(Stamp::of(self.build.join(program))?);
        }
        let origin = Origin { compile: unit.commands.compile.clone(), after: unit.commands.after.clone(), files };
        fs::create_dir_all(self.folder).ok()?;
        let (kept, note) = self.names(unit);
        // First the object, then what it is: the note of another version would not fit it.
        fs::remove_file(&note).ok();
        let mut aside = tempfile::NamedTempFile::new_in(self.folder).ok()?;
        std::io::copy(&mut fs::File::open(object).ok()?, &mut aside).ok()?;
        aside.persist(&kept).ok()?;
        let mut aside = tempfile::NamedTempFile::new_in(self.folder).ok()?;
        serde_json::to_writer(&mut aside, &origin).ok()?;
        aside.persist(&note).ok()?;
        Some(())
    }

    /// Object and note of a unit. Other commands are another object.
    fn names(&self, unit: &Unit) -> (PathBuf, PathBuf) {
        let name = unit.name.display().to_string().replace('/', "%");
        (self.folder.join(format!("{name}.o")), self.folder.join(format!("{name}.json")))
    }

    /// Removes the oldest objects when there are too many.
    pub fn make_room(&self) {
        let Ok(entries) = fs::read_dir(self.folder) else { return };
        let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let meta = entry.metadata().ok()?;
                Some((meta.modified().ok()?, meta.len(), entry.path()))
            })
            .collect();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        if total <= LIMIT {
            return;
        }
        files.sort();
        for (_, size, path) in files {
            if total <= LIMIT / 4 * 3 {
                break;
            }
            total -= size;
            fs::remove_file(path).ok();
        }
    }
}
