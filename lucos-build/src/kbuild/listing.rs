//! All units of a kernel, built in or of modules, as its own build names them.
//!
//! Comes in: what `make -n V=1 modules` prints. Decided: which source each compiler command is for, whether it is for a
//! module, and in which folders it looks for headers. Goes out: [`Listing`] and the commands of each unit.

use super::command::UnitCommands;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A unit that the kernel's build compiles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Object, relative to the build folder.
    pub object: PathBuf,
    /// Name of the loadable module it belongs to.
    pub module: Option<String>,
}

/// The units of a kernel's build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Units by source file, relative to the source tree, or to the build folder for a generated one.
    pub units: BTreeMap<PathBuf, Vec<Listed>>,
    /// Folders in which every unit looks for headers, in order; a relative path is one of the build folder.
    pub folders: Vec<PathBuf>,
    /// Folders in which some unit looks afterwards.
    pub more_folders: BTreeSet<PathBuf>,
    /// Headers that every unit takes in first.
    pub forced: BTreeSet<PathBuf>,
}

impl Listing {
    /// Reads make's output; the commands of each unit go to `keep`.
    pub fn parse(output: &str, source: &Path, mut keep: impl FnMut(&Path, UnitCommands)) -> Self {
        let mut listing = Self::default();
        let lines: Vec<&str> = output.lines().collect();
        let starts: Vec<usize> = (0..lines.len()).filter(|&at| object_of(lines[at]).is_some()).collect();
        let ends = starts.iter().skip(1).copied().chain([lines.len()]);
        for (&start, end) in starts.iter().zip(ends) {
            let Some(object) = object_of(lines[start]) else { continue };
            // A step that is not known here is asked for again, and refused, if the unit is touched.
            let block = lines[start..end].join("\n");
            let Ok(commands) = UnitCommands::parse(&block, &object) else {
                listing.line(lines[start], &object, source);
                continue;
            };
            let unit = listing.unit(&commands.compile, &object, source);
            if let Some(unit) = unit.filter(|unit| unit.with_extension("o") == Path::new(&object)) {
                keep(&unit, commands);
            }
        }
        listing
    }

    /// A unit whose steps are not all known.
    fn line(&mut self, line: &str, object: &str, source: &Path) {
        for part in line.split(';') {
            let Ok(words) = shell_words::split(part) else { continue };
            if words.windows(2).any(|pair| pair[0] == "-o" && pair[1] == object) {
                self.unit(&words, object, source);
                return;
            }
        }
    }

    fn unit(&mut self, words: &[String], object: &str, source: &Path) -> Option<PathBuf> {
        let file = words.iter().rev().find(|word| word.ends_with(".c") || word.ends_with(".S"))?;
        let unit = Path::new(file).strip_prefix(source).unwrap_or(Path::new(file)).to_owned();
        let name = words.iter().find_map(|word| word.strip_prefix("-DKBUILD_MODNAME="));
        // An object of several modules has no name of its own.
        let named =
            || name.map_or_else(|| object.trim_end_matches(".o").to_owned(), |name| name.trim_matches('"').to_owned());
        let module = words.iter().any(|word| word == "-DMODULE").then(named);
        self.units.entry(unit.clone()).or_default().push(Listed { object: PathBuf::from(object), module });
        // The kernel's own folders stand before the headers that are forced in (scripts/Makefile.lib, `c_flags`).
        let forced = words.iter().position(|word| word == "-include").unwrap_or(words.len());
        let mut folders = Vec::new();
        for (at, word) in words.iter().enumerate() {
            let next = words.get(at + 1);
            match word.as_str() {
                "-include" => self.forced.extend(next.map(PathBuf::from)),
                "-I" | "-isystem" | "-iquote" => self.more_folders.extend(next.map(PathBuf::from)),
                _ => match word.strip_prefix("-I") {
                    Some(folder) if at < forced => folders.push(PathBuf::from(folder)),
                    Some(folder) => drop(self.more_folders.insert(PathBuf::from(folder))),
                    None => {}
                },
            }
        }
        if self.folders.is_empty() {
            self.folders = folders;
        } else if self.folders != folders {
            self.more_folders.extend(folders);
        }
        Some(unit)
    }
}

/// The object whose recipe a line is, by the file that the compiler writes its dependencies to.
fn object_of(line: &str) -> Option<String> {
    let (_, rest) = line.split_once(" -Wp,-MMD,")?;
    let file = rest.split_whitespace().next()?.strip_suffix(".d")?;
    let object = match file.rsplit_once('/') {
        Some((folder, name)) => format!("{folder}/{}", name.strip_prefix('.')?),
        None => file.strip_prefix('.')?.to_owned(),
    };
    // A preprocessed file or a host program is no object of the kernel.
    let kernel = line.contains(" -D__KERNEL__ ") && line.contains(&format!(" -c -o {object} "));
    (object.ends_with(".o") && kernel).then_some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_found_with_their_module() {
        let line = |object: &str, more: &str, source: &str| {
            let (folder, name) = object.rsplit_once('/').expect("a folder");
            let command = format!(
                "gcc -Wp,-MMD,{folder}/.{name}.d -nostdinc -I/src/include -I./include -include /src/include/linux/kconfig.h -D__KERNEL__ {more} -c -o {object} {source}"
            );
            format!(
                "set -e;  echo '  {command} ; ./tools/objtool/objtool {object}'; {command} ; ./tools/objtool/objtool {object}; scripts/basic/fixdep\n"
            )
        };
        let text = line("fs/a.o", "-I /src/fs/x -DKBUILD_MODNAME='\"a\"'", "/src/fs/a.c")
            + "rm -f fs/built-in.a;  printf \"fs/%s \" a.o | xargs ar cDPrST fs/built-in.a\n"
            + &line("fs/b.o", "-DMODULE -DKBUILD_MODNAME='\"big\"'", "/src/fs/b.c")
            + "ld -r -o fs/big.o fs/b.o\n";
        let mut kept = Vec::new();
        let listing = Listing::parse(&text, Path::new("/src"), |unit, commands| {
            kept.push((unit.to_owned(), commands.after.len()))
        });
        let module = |unit: &str| listing.units[Path::new(unit)][0].module.clone();
        assert_eq!((module("fs/a.c"), module("fs/b.c")), (None, Some("big".to_owned())));
        assert_eq!(listing.folders, [Path::new("/src/include"), Path::new("./include")]);
        assert_eq!(listing.more_folders, BTreeSet::from([PathBuf::from("/src/fs/x")]));
        assert_eq!(listing.forced.len(), 1);
        assert!(kept.contains(&(PathBuf::from("fs/a.c"), 1)), "{kept:?}");
    }
}
