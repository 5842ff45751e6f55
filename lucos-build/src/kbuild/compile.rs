//! Compiles units twice, as they were and as the diff makes them, in the same way.
//!
//! Comes in: the kernel's commands for each unit and the changed files. Decided: nothing about the code; both times
//! the commands are the same, with the source folder and the object replaced by names of equal length. Goes out: two
//! objects per unit; or the compiler's words about the patched source.

use super::command::UnitCommands;
use super::lines;
use super::overlay::{self, Files, OverlayError};
use diff_analyzer::source_diff::{ChangeKind, FileChange};
use nix::sys::resource::{UsageWho, getrusage};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A unit compiled twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledUnit {
    /// Source file, relative to the tree.
    pub unit: PathBuf,
    /// Object of the original source.
    pub original: PathBuf,
    /// Object of the patched source.
    pub patched: PathBuf,
}

/// Why a unit was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The overlay could not be made.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// A file or folder for the objects could not be made.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A list of files that the compiler wrote cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The original source does not compile: the environment is at fault.
    #[error("{}: the original source does not compile with the kernel's own command:\n{output}", unit.display())]
    Original {
        /// The unit.
        unit: PathBuf,
        /// What the compiler said.
        output: String,
    },
    /// The patched source does not compile: the diff is at fault.
    #[error("{}: the patched source does not compile:\n{output}", unit.display())]
    Patched {
        /// The unit.
        unit: PathBuf,
        /// What the compiler said.
        output: String,
    },
    /// A changed file that no unit took in.
    #[error("{}: none of the compiled units took in the changed file", path.display())]
    Unused {
        /// The file.
        path: PathBuf,
    },
    /// No threads.
    #[error("cannot start {jobs} threads: {message}")]
    Threads {
        /// How many.
        jobs: usize,
        /// Why.
        message: String,
    },
}

/// Compiles units.
pub struct Compile<'a> {
    /// The kernel's source tree, as the commands name it.
    pub source: &'a Path,
    /// The prepared build folder, in which the commands run.
    pub build: &'a Path,
    /// Where in the source tree the commands run, if they name sources relative to their folder (a build in the tree).
    pub below: Option<&'a Path>,
    /// An empty folder for overlays and objects.
    pub work: &'a Path,
    /// How many at a time.
    pub jobs: usize,
    /// Changed files that the units must take in.
    pub files: &'a BTreeSet<PathBuf>,
}

/// The two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Original,
    Patched,
}

impl Side {
    fn letter(self) -> &'static str {
        match self {
            Self::Original => "a",
            Self::Patched => "b",
        }
    }
}

impl Compile<'_> {
    /// Compiles all units, original and patched; the order is that of `units`.
    ///
    /// # Errors
    /// [`CompileError`]; one of the patched source only when the original compiles.
    pub fn run(
        &self,
        units: &[(PathBuf, UnitCommands)],
        changes: &[FileChange],
    ) -> Result<Vec<CompiledUnit>, CompileError> {
        let (mut before, mut after) = (Files::new(), Files::new());
        for change in changes {
            let old = match &change.kind {
                ChangeKind::New => None,
                ChangeKind::Renamed { from } => {
                    before.insert(from.clone(), Some(change.old.clone()));
                    after.entry(from.clone()).or_insert(None);
                    None
                }
                ChangeKind::Modified | ChangeKind::Deleted => Some(change.old.clone()),
            };
            let new = match &change.kind {
                ChangeKind::Deleted => None,
                _ => Some(lines::keep_numbers(change).unwrap_or_else(|| change.new.clone())),
            };
            before.insert(change.path.clone(), old);
            after.insert(change.path.clone(), new);
        }
        // The folders of all units are real ones, so that `../` in their includes stays in the overlay.
        for (unit, _) in units {
            if after.contains_key(unit) {
                continue;
            }
            let path = self.source.join(unit);
            let text = fs::read(&path).map_err(|source| OverlayError { path, source })?;
            before.insert(unit.clone(), Some(text.clone()));
            after.insert(unit.clone(), Some(text));
        }
        // A build folder in the tree is a real folder of the overlay, so that `../` leads there.
        if let Some(makefile) =
            self.below.filter(|below| !below.as_os_str().is_empty()).map(|below| below.join("Makefile"))
        {
            let path = self.source.join(&makefile);
            let text = fs::read(&path).map_err(|source| OverlayError { path, source })?;
            before.insert(makefile.clone(), Some(text.clone()));
            after.insert(makefile, Some(text));
        }
        for side in [Side::Original, Side::Patched] {
            let path = self.overlay(side);
            match fs::remove_dir_all(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(OverlayError { path, source }.into());
                }
                _ => {}
            }
        }
        overlay::make(self.source, &self.overlay(Side::Original), &before)?;
        overlay::make(self.source, &self.overlay(Side::Patched), &after)?;
        for (unit, _) in units {
            for side in [Side::Original, Side::Patched] {
                let object = self.object(unit, side);
                let folder = object.parent().unwrap_or(self.work);
                fs::create_dir_all(folder).map_err(|source| CompileError::Write { path: folder.to_owned(), source })?;
            }
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.jobs)
            .build()
            .map_err(|error| CompileError::Threads { jobs: self.jobs, message: error.to_string() })?;
        let jobs: Vec<_> = units.iter().flat_map(|unit| [(unit, Side::Original), (unit, Side::Patched)]).collect();
        let results: Vec<Result<(), CompileError>> =
            pool.install(|| jobs.par_iter().map(|((unit, commands), side)| self.unit(unit, commands, *side)).collect());
        // An original that does not compile explains everything else.
        let mut failures: Vec<CompileError> = results.into_iter().filter_map(Result::err).collect();
        failures.sort_by_key(|error| matches!(error, CompileError::Patched { .. }));
        match failures.into_iter().next() {
            Some(CompileError::Patched { unit, output }) => self.explain(&unit, output, units, changes),
            Some(error) => Err(error),
            None => Ok(()),
        }?;
        self.check_used(units)?;
        let compiled = |unit: &PathBuf| CompiledUnit {
            unit: unit.clone(),
            original: self.object(unit, Side::Original),
            patched: self.object(unit, Side::Patched),
        };
        Ok(units.iter().map(|(unit, _)| compiled(unit)).collect())
    }

    /// Every changed file must be among those that the compiler read for the patched objects; else the change would be
    /// left out without a word.
    fn check_used(&self, units: &[(PathBuf, UnitCommands)]) -> Result<(), CompileError> {
        let mut used = BTreeSet::new();
        for (unit, _) in units {
            let path = PathBuf::from(format!("{}.d", self.object(unit, Side::Patched).display()));
            let text = fs::read_to_string(&path).map_err(|source| CompileError::Read { path, source })?;
            let folder = self.folder(Side::Patched);
            used.extend(text.split_ascii_whitespace().filter_map(|word| folder.join(word).canonicalize().ok()));
        }
        let overlay = self.overlay(Side::Patched);
        let overlay = overlay.canonicalize().unwrap_or(overlay);
        match self.files.iter().find(|file| !used.contains(&overlay.join(file))) {
            Some(path) => Err(CompileError::Unused { path: path.clone() }),
            None => Ok(()),
        }
    }

    /// A unit failed: compile it again without `#line`, so that the compiler shows the lines that are there; if it
    /// compiles so, that object is as good.
    fn explain(
        &self,
        unit: &Path,
        output: String,
        units: &[(PathBuf, UnitCommands)],
        changes: &[FileChange],
    ) -> Result<(), CompileError> {
        let mut plain = false;
        for change in changes.iter().filter(|change| change.kind != ChangeKind::Deleted) {
            if lines::keep_numbers(change).is_some() {
                let path = self.overlay(Side::Patched).join(&change.path);
                fs::write(&path, &change.new).map_err(|source| CompileError::Write { path, source })?;
                plain = true;
            }
        }
        if !plain {
            return Err(CompileError::Patched { unit: unit.to_owned(), output });
        }
        for (unit, commands) in units {
            self.unit(unit, commands, Side::Patched)?;
        }
        Ok(())
    }

    fn unit(&self, unit: &Path, commands: &UnitCommands, side: Side) -> Result<(), CompileError> {
        let commands = self.commands(unit, commands, side);
        for words in std::iter::once(&commands.compile).chain(&commands.after) {
            let (program, arguments) = words.split_first().expect("a command has at least its program");
            let output = Command::new(program)
                .args(arguments)
                .current_dir(self.folder(side))
                .env("LC_ALL", "C")
                .stdin(Stdio::null())
                .output()
                .map_err(|source| CompileError::Start { program: program.clone(), source })?;
            if output.status.success() {
                continue;
            }
            let said = [output.stderr, output.stdout].concat();
            let overlay = format!("{}/", self.overlay(side).display());
            let mut said = String::from_utf8_lossy(&said).replace(&overlay, "");
            if said.trim().is_empty() {
                said = format!("{program}: {}", output.status);
            }
            return Err(match side {
                Side::Original => CompileError::Original { unit: unit.to_owned(), output: said },
                Side::Patched => CompileError::Patched { unit: unit.to_owned(), output: said },
            });
        }
        Ok(())
    }

    /// The kernel's commands with the overlay for the tree and our object for theirs.
    fn commands(&self, unit: &Path, commands: &UnitCommands, side: Side) -> UnitCommands {
        let tree = self.source.display().to_string();
        let (tree_slash, overlay) = (format!("{tree}/"), self.overlay(side).display().to_string());
        let theirs = unit.with_extension("o").display().to_string();
        let ours = self.object(unit, side).display().to_string();
        let dependencies = depend_file(&theirs);
        let our_dependencies = format!("{ours}.d");
        commands.map(|word| {
            if word == theirs {
                ours.clone()
            } else if word == tree {
                overlay.clone()
            } else if word.starts_with("-Wp,-M") {
                word.replace(&dependencies, &our_dependencies)
            } else if let Some(option) = word.strip_suffix(&tree).filter(|option| option.starts_with('-')) {
                format!("{option}{overlay}")
            } else {
                word.replace(&tree_slash, &format!("{overlay}/"))
            }
        })
    }

    /// Where the commands run.
    fn folder(&self, side: Side) -> PathBuf {
        self.below.map_or_else(|| self.build.to_owned(), |below| self.overlay(side).join(below))
    }

    fn overlay(&self, side: Side) -> PathBuf {
        self.work.join(side.letter())
    }

    fn object(&self, unit: &Path, side: Side) -> PathBuf {
        self.work.join(format!("o{}", side.letter())).join(unit.with_extension("o"))
    }
}

/// `dir/unit.o` → `dir/.unit.o.d` (scripts/Kbuild.include, `depfile`).
fn depend_file(object: &str) -> String {
    match object.rsplit_once('/') {
        Some((folder, name)) => format!("{folder}/.{name}.d"),
        None => format!(".{object}.d"),
    }
}

/// Processor time of all finished children of this process.
pub fn children_time() -> Duration {
    getrusage(UsageWho::RUSAGE_CHILDREN)
        .map(|usage| {
            let parts = [usage.user_time(), usage.system_time()];
            parts
                .iter()
                .map(|t| Duration::from_secs(t.tv_sec() as u64) + Duration::from_micros(t.tv_usec() as u64))
                .sum()
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of two files and the commands for one unit, with the system's compiler.
    fn compile(new: &str) -> Result<(String, String), CompileError> {
        compile_with("d/u.c", new)
    }

    fn compile_with(touched: &str, new: &str) -> Result<(String, String), CompileError> {
        let root = tempfile::tempdir().expect("a temporary folder");
        let root = root.path().canonicalize().expect("there");
        let (source, build, work) = (root.join("src"), root.join("build"), root.join("work"));
        for folder in [source.join("d"), source.join("e"), build.clone(), work.clone()] {
            fs::create_dir_all(folder).expect("made");
        }
        let old = "#include \"h.h\"\nint a = 1;\n\nint b = __LINE__ + H;\nconst char *f = __FILE__;\n";
        fs::write(source.join("d/u.c"), old).expect("written");
        fs::write(source.join("d/h.h"), "#define H 0\n#include \"../e/part.c\"\n").expect("written");
        fs::write(source.join("e/part.c"), "int part = 1;\n").expect("written");
        fs::write(source.join("e/other.c"), "int other = 1;\n").expect("written");
        let old = fs::read_to_string(source.join(touched)).expect("there");
        let diff = similar::TextDiff::from_lines(old.as_str(), new)
            .unified_diff()
            .header(&format!("a/{touched}"), &format!("b/{touched}"))
            .to_string();
        let changes = diff_analyzer::source_diff::read(diff.as_bytes(), &source).expect("applies");
        let line = format!(
            "cc -Wp,-MMD,d/.u.o.d -fmacro-prefix-map={0}/= -I{0} -S -c -o d/u.o {0}/d/u.c ; true",
            source.display()
        );
        let commands = UnitCommands::parse(&line, "d/u.o").expect("a command");
        let compile = Compile {
            source: &source,
            build: &build,
            below: None,
            work: &work,
            jobs: 2,
            files: &BTreeSet::from([PathBuf::from(touched)]),
        };
        let done = compile.run(&[(PathBuf::from("d/u.c"), commands)], &changes)?;
        assert_eq!(fs::read_dir(&build).expect("there").count(), 0, "nothing is written to the build folder");
        let read = |path: &Path| fs::read_to_string(path).expect("compiled");
        Ok((read(&done[0].original), read(&done[0].patched)))
    }

    #[test]
    fn lines_and_file_names_are_those_of_the_tree() {
        let new = "#include \"h.h\"\nint a = 7;\nint added;\n\nint b = __LINE__ + H;\nconst char *f = __FILE__;\n";
        let (original, patched) = compile(new).expect("both compile");
        for text in [&original, &patched] {
            assert!(text.contains(".long\t4\n"), "b is at line 4 in both\n{text}");
            assert!(text.contains("\"d/u.c\""), "{text}");
        }
        assert!(patched.contains(".long\t7\n") && !original.contains(".long\t7\n"));
    }

    #[test]
    fn a_file_of_another_folder_is_taken_from_the_overlay() {
        let (original, patched) = compile_with("e/part.c", "int part = 77;\n").expect("both compile");
        assert!(patched.contains(".long\t77\n") && !original.contains(".long\t77\n"), "{patched}");
    }

    #[test]
    fn a_change_that_no_unit_takes_in_is_an_error() {
        let error = compile_with("e/other.c", "int other = 77;\n").expect_err("nothing includes it");
        assert!(matches!(&error, CompileError::Unused { path } if path == Path::new("e/other.c")), "{error}");
    }

    #[test]
    fn an_error_names_the_line_that_is_there() {
        let new = "#include \"h.h\"\nint a = 7;\n\n\nint b = __LINE__ + NOTHING;\nconst char *f = __FILE__;\n";
        match compile(new) {
            Err(CompileError::Patched { output, .. }) => assert!(output.contains("d/u.c:5:"), "{output}"),
            other => panic!("expected an error of the patched source, found {other:?}"),
        }
    }
}
