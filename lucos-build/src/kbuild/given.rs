//! A build folder that somebody built the kernel in: read, and never written to.
//!
//! Comes in: the folder. Decided: where the source is and how the build names it: the folder is the source tree (`make`), or
//! lies in it (`make O=build`), or apart from it (`make O=/elsewhere`); which compiler it used. Goes out: [`Given`], and the
//! commands of units, from the `.cmd` files that the build has left beside its objects.

use super::command::{CommandError, UnitCommands};
use super::listing::Listing;
use super::objtool;
use crate::inputs::is_source;
use std::path::{Path, PathBuf};

/// A build folder that is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The folder, without symbolic links in its path.
    pub folder: PathBuf,
    /// The source tree, as the recorded commands name it.
    pub source: PathBuf,
    /// Where the commands run, relative to the source tree, when they name sources relative to their folder; nothing when they
    /// name them by an absolute path, and run in [`Given::folder`].
    pub below: Option<PathBuf>,
    /// The compiler that the build called, without `ccache` and the like.
    pub compiler: PathBuf,
}

/// Why a folder is no build of a kernel that can be used.
#[derive(Debug, thiserror::Error)]
pub enum GivenError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that every build leaves is not there.
    #[error("{} is not there: {} is no folder that a whole kernel was built in", missing.display(), folder.display())]
    NotBuilt {
        /// The folder.
        folder: PathBuf,
        /// What is missing.
        missing: PathBuf,
    },
    /// The recorded commands do not say where the source is.
    #[error("{}: the recorded command names no init/main.c", path.display())]
    NoSource {
        /// The command file.
        path: PathBuf,
    },
    /// The source is gone.
    #[error("{} is no kernel source tree; the kernel was built from it, by {}", tree.display(), said_by.display())]
    SourceGone {
        /// The tree.
        tree: PathBuf,
        /// Who says so.
        said_by: PathBuf,
    },
    /// The command cannot be read.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// The unit whose command tells how the build names its source; every kernel has it.
const MAIN: &str = "init/main.c";
/// Programs that run a compiler named behind them.
const WRAPPERS: &[&str] = &["ccache", "distcc", "sccache", "icecc"];

impl Given {
    /// Looks at a folder.
    ///
    /// # Errors
    /// [`GivenError`].
    pub fn open(folder: &Path) -> Result<Self, GivenError> {
        let folder = folder.canonicalize().map_err(|source| GivenError::Read { path: folder.to_owned(), source })?;
        for missing in ["vmlinux", "System.map", ".config"] {
            if !folder.join(missing).is_file() {
                return Err(GivenError::NotBuilt { folder, missing: missing.into() });
            }
        }
        let (path, line) = recorded(&folder, Path::new("init/main.o"))?;
        let compile = UnitCommands::parse(&line, "init/main.o")?.compile;
        let named = compile.iter().rev().find_map(|word| word.strip_suffix(MAIN));
        let named = named.ok_or_else(|| GivenError::NoSource { path: path.clone() })?;
        let tree = folder.join(named);
        if !is_source(&tree) {
            return Err(GivenError::SourceGone { tree, said_by: path });
        }
        let compiler = compiler_of(&compile).map(PathBuf::from).ok_or(GivenError::NoSource { path: path.clone() })?;
        if Path::new(named).is_absolute() {
            return Ok(Self { folder, source: named.trim_end_matches('/').into(), below: None, compiler });
        }
        let source = tree.canonicalize().map_err(|source| GivenError::Read { path: tree.clone(), source })?;
        let below = folder.strip_prefix(&source).map(Path::to_owned);
        let below = below.map_err(|_| GivenError::SourceGone { tree, said_by: path })?;
        Ok(Self { folder, source, below: Some(below), compiler })
    }

    /// All units that the build has recorded commands of.
    ///
    /// # Errors
    /// [`GivenError::Read`].
    pub fn listing(&self) -> Result<Listing, GivenError> {
        let mut lines = Vec::new();
        let mut folders = vec![self.folder.clone()];
        while let Some(path) = folders.pop() {
            let read = |source| GivenError::Read { path: path.clone(), source };
            for entry in std::fs::read_dir(&path).map_err(read)? {
                let entry = entry.map_err(read)?;
                if entry.file_type().map_err(read)?.is_dir() {
                    folders.push(entry.path());
                } else if entry.file_name().to_string_lossy().ends_with(".o.cmd") {
                    let text = std::fs::read_to_string(entry.path()).map_err(read)?;
                    lines.extend(text.lines().next().map(str::to_owned));
                }
            }
        }
        lines.sort();
        // In a folder of the tree the commands name it `..` (Makefile, `srctree`).
        let inside = self.below.as_ref().is_some_and(|below| !below.as_os_str().is_empty());
        let source = if inside { Path::new("..") } else { &self.source };
        Ok(Listing::parse(&lines.join("\n"), source, |_, _| ()))
    }

    /// How the build made a unit.
    ///
    /// # Errors
    /// [`GivenError`]; [`CommandError::NotCompiled`] when it did not make it.
    pub fn commands(&self, unit: &Path, config: &crate::identity::Config<'_>) -> Result<UnitCommands, GivenError> {
        let object = unit.with_extension("o");
        let (_, line) = recorded(&self.folder, &object)?;
        let name = object.display().to_string();
        let mut commands = UnitCommands::parse(&line, &name)?;
        while commands.compile.first().is_some_and(|program| is_wrapper(program)) {
            commands.compile.remove(0);
        }
        commands.compile.extend(super::make::SECTION_FLAGS.iter().map(|flag| (*flag).to_owned()));
        let set = |option: &str| config.get(option) == Some("y");
        if commands.after.is_empty() && objtool::is_delayed(config) {
            let (_, line) = recorded(&self.folder, Path::new("vmlinux.o"))?;
            commands.after.extend(objtool_of_image(&line, &name)?);
        }
        // Not part of the recorded command (scripts/Makefile.build, `cmd_record_mcount`).
        if set("CONFIG_FTRACE_MCOUNT_USE_RECORDMCOUNT") && commands.compile.iter().any(|word| word == "-pg") {
            commands.after.push(vec!["./scripts/recordmcount".to_owned(), name]);
        }
        Ok(commands)
    }
}

/// The command that made an object, as a shell line, and the file that has it.
fn recorded(folder: &Path, object: &Path) -> Result<(PathBuf, String), GivenError> {
    let name = object.file_name().unwrap_or_default().to_string_lossy();
    let path = folder.join(object).with_file_name(format!(".{name}.cmd"));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(CommandError::NotCompiled { object: object.display().to_string() }.into());
        }
        Err(source) => return Err(GivenError::Read { path, source }),
    };
    // `cmd_OBJECT := LINE`, `savedcmd_OBJECT := LINE` since Linux 6.4 (scripts/Kbuild.include, `make-cmd`).
    let line = text.lines().next().and_then(|line| line.split_once(" := ")).map(|(_, line)| line);
    let line = line.ok_or_else(|| CommandError::NotCompiled { object: object.display().to_string() })?;
    Ok((path, line.replace("$(pound)", "#").replace("$$", "$")))
}

/// What objtool does to the whole image, for one object of it.
fn objtool_of_image(line: &str, object: &str) -> Result<Vec<Vec<String>>, CommandError> {
    let shell = |error: shell_words::ParseError| CommandError::Shell {
        object: "vmlinux.o".to_owned(),
        message: error.to_string(),
    };
    let mut found = Vec::new();
    for step in super::command::steps(line) {
        let words = shell_words::split(step).map_err(shell)?;
        if words.first().is_some_and(|program| objtool::is_objtool(program)) {
            let words = objtool::for_one_object(words).into_iter();
            found.push(words.map(|word| if word == "vmlinux.o" { object.to_owned() } else { word }).collect());
        }
    }
    Ok(found)
}

fn is_wrapper(program: &str) -> bool {
    WRAPPERS.contains(&program.rsplit('/').next().unwrap_or(program))
}

/// The compiler of a recorded command.
fn compiler_of(compile: &[String]) -> Option<&str> {
    compile.iter().map(String::as_str).find(|word| !is_wrapper(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Config;
    use std::fs;

    fn tree(folder: &Path) {
        for path in ["Makefile", "Kbuild", "init/main.c"] {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().expect("below")).expect("made");
            fs::write(path, "").expect("written");
        }
    }

    fn build(folder: &Path, source: &str, vmlinux: &str) {
        fs::create_dir_all(folder.join("init")).expect("made");
        for name in ["vmlinux", "System.map", ".config"] {
            fs::write(folder.join(name), "").expect("written");
        }
        let line = format!(
            "cmd_init/main.o := ccache gcc -DA=\\\"$(pound)$$\\\" -c -o init/main.o {source}init/main.c\n\nsource_init/main.o := x\n"
        );
        fs::write(folder.join("init/.main.o.cmd"), line).expect("written");
        fs::write(folder.join(".vmlinux.o.cmd"), format!("savedcmd_vmlinux.o := {vmlinux}\n")).expect("written");
    }

    #[test]
    fn the_three_places_of_a_source_tree() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let root = root.path().canonicalize().expect("there");
        let source = root.join("source");
        tree(&source);
        build(&source, "", "ld");
        let inside = Given::open(&source).expect("in the tree");
        assert_eq!((inside.source.as_path(), inside.below.as_deref()), (source.as_path(), Some(Path::new(""))));
        assert_eq!(inside.compiler, Path::new("gcc"));
        build(&source.join("out"), "../", "ld");
        let below = Given::open(&source.join("out")).expect("below the tree");
        assert_eq!((below.source.as_path(), below.below.as_deref()), (source.as_path(), Some(Path::new("out"))));
        build(&root.join("apart"), &format!("{}/", source.display()), "ld");
        let apart = Given::open(&root.join("apart")).expect("apart from the tree");
        assert_eq!((apart.source.as_path(), apart.below), (source.as_path(), None));
        build(&root.join("lost"), "/none/", "ld");
        assert!(matches!(Given::open(&root.join("lost")), Err(GivenError::SourceGone { .. })));
        fs::remove_file(root.join("apart/vmlinux")).expect("removed");
        assert!(matches!(Given::open(&root.join("apart")), Err(GivenError::NotBuilt { .. })));
    }

    #[test]
    fn commands_are_the_recorded_ones_and_objtool_follows() {
        let root = tempfile::tempdir().expect("a temporary folder");
        tree(root.path());
        build(root.path(), "", "ld -r -o vmlinux.o ; ./tools/objtool/objtool --ibt --orc --link vmlinux.o");
        let given = Given::open(root.path()).expect("a build");
        let unit = Path::new("init/main.c");
        let commands = given.commands(unit, &Config::parse("CONFIG_OBJTOOL=y\n")).expect("recorded");
        assert_eq!(commands.compile[..2], ["gcc", "-DA=\"#$\""]);
        assert!(commands.after.is_empty() && commands.compile.iter().any(|word| word == "-ffunction-sections"));
        let config = Config::parse("CONFIG_OBJTOOL=y\nCONFIG_X86_KERNEL_IBT=y\n");
        let commands = given.commands(unit, &config).expect("recorded");
        assert_eq!(commands.after, [["./tools/objtool/objtool", "--orc", "init/main.o"]]);
        let missing = given.commands(Path::new("init/none.c"), &config);
        assert!(matches!(missing, Err(GivenError::Command(CommandError::NotCompiled { .. }))));
    }
}
