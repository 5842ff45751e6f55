//! Compiles units twice, as they were and as the diff makes them, in the same way.
//!
//! Comes in: the kernel's commands for each unit and the changed files. Decided: nothing about the code; both times
//! the commands are the same, with the source folder and the object replaced by names of equal length. Goes out: two
//! objects per unit; or the compiler's words about the patched source.

use super::command::UnitCommands;
use super::kept::Kept;
use super::lines;
use super::overlay::{self, Files, OverlayError};
use diff_analyzer::source_diff::{ChangeKind, FileChange};
use nix::sys::resource::{UsageWho, getrusage};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A unit to compile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Source file before, relative to the tree; for a new unit, after.
    pub name: PathBuf,
    /// Source file after.
    pub source: PathBuf,
    /// It did not exist.
    pub new: bool,
    /// How it is compiled.
    pub commands: UnitCommands,
}

/// A unit compiled twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledUnit {
    /// Source file, relative to the tree.
    pub unit: PathBuf,
    /// Object of the original source; nothing for a new unit.
    pub original: Option<PathBuf>,
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
    /// What the diff changes.
    pub changes: &'a [FileChange],
    /// Original objects of earlier builds.
    pub kept: Option<Kept<'a>>,
}

/// The two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// As it was.
    Original,
    /// As the diff makes it.
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

/// What became of a unit: the original object, the patched one, and the error that explains most.
type Sides = (Option<PathBuf>, Option<PathBuf>, Option<CompileError>);

impl Compile<'_> {
    /// Makes both trees, with the folders of all units that will be asked for.
    ///
    /// # Errors
    /// [`CompileError`] when a folder cannot be made.
    pub fn prepare(&self, units: &[Unit]) -> Result<(), CompileError> {
        let (mut before, mut after) = (Files::new(), Files::new());
        for change in self.changes {
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
        for unit in units {
            let named =
                |files: &Files, path: &Path| files.contains_key(path) || files.contains_key(&overlay::clean(path));
            if named(&after, &unit.source) || named(&before, &unit.name) {
                continue;
            }
            // `arch/x86/kvm/../../../virt/kvm/vfio.c` is below `virt`.
            let name = overlay::clean(&unit.name);
            // A generated source is in the build folder.
            let Ok(text) = fs::read(self.source.join(&name)) else { continue };
            before.insert(name.clone(), Some(text.clone()));
            after.insert(name, Some(text));
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
        for unit in units {
            for side in [Side::Original, Side::Patched] {
                let object = self.object(unit, side);
                let folder = object.parent().unwrap_or(self.work);
                fs::create_dir_all(folder).map_err(|source| CompileError::Write { path: folder.to_owned(), source })?;
            }
        }
        Ok(())
    }

    /// Runs something for many units at a time.
    ///
    /// # Errors
    /// [`CompileError::Threads`].
    pub fn parallel<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R, CompileError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.jobs)
            .build()
            .map_err(|error| CompileError::Threads { jobs: self.jobs, message: error.to_string() })?;
        Ok(pool.install(work))
    }

    /// Compiles units, original and patched, after [`Compile::prepare`]; the order is that of `units`.
    ///
    /// # Errors
    /// [`CompileError`] for the whole, or for a unit; one of the patched source only when the original compiles.
    pub fn run(
        &self,
        units: &[Unit],
        done: &(dyn Fn() + Sync),
    ) -> Result<Vec<Result<CompiledUnit, CompileError>>, CompileError> {
        let sides = |unit: &Unit| if unit.new { &[Side::Patched][..] } else { &[Side::Original, Side::Patched] };
        let jobs: Vec<(usize, Side)> = (units.iter().enumerate())
            .flat_map(|(index, unit)| sides(unit).iter().map(move |&side| (index, side)))
            .collect();
        let results: Vec<Result<PathBuf, CompileError>> = self.parallel(|| {
            let compile = |&(index, side): &(usize, Side)| {
                let result = self.unit(&units[index], side);
                done();
                result
            };
            jobs.par_iter().map(compile).collect()
        })?;
        let mut objects: Vec<Sides> = units.iter().map(|_| (None, None, None)).collect();
        for ((index, side), result) in jobs.into_iter().zip(results) {
            let (original, patched, failed) = &mut objects[index];
            match (result, side) {
                (Ok(object), Side::Original) => *original = Some(object),
                (Ok(object), Side::Patched) => *patched = Some(object),
                // An original that does not compile explains everything else; it comes first.
                (Err(error), _) => *failed = failed.take().or(Some(error)),
            }
        }
        let shown = if objects.iter().any(|(.., failed)| matches!(failed, Some(CompileError::Patched { .. }))) {
            self.without_directives()?
        } else {
            false
        };
        let finish = |(unit, (original, patched, failed)): (&Unit, Sides)| {
            let patched = match (failed, patched) {
                // Compiled again without `#line`, the compiler shows the lines that are there; if it compiles so, that
                // object is as good.
                (Some(CompileError::Patched { .. }), _) if shown => self.unit(unit, Side::Patched)?,
                (Some(error), _) => return Err(error),
                (None, patched) => patched.unwrap_or_else(|| self.object(unit, Side::Patched)),
            };
            Ok(CompiledUnit { unit: unit.name.clone(), original, patched })
        };
        self.parallel(|| units.par_iter().zip(objects).map(finish).collect())
    }

    /// What the preprocessor makes of a unit, after [`Compile::prepare`].
    ///
    /// # Errors
    /// [`CompileError`] when it fails.
    pub fn preprocess(&self, unit: &Unit, side: Side) -> Result<Vec<u8>, CompileError> {
        let mut words = self.commands(unit, side).compile;
        words.retain(|word| !word.starts_with("-Wp,-M") && word != "-c");
        if let Some(at) = words.iter().position(|word| word == "-o") {
            words.drain(at..(at + 2).min(words.len()));
        }
        words.extend(["-E".to_owned(), "-P".to_owned()]);
        let output = self.call(&words, side)?;
        if output.status.success() { Ok(output.stdout) } else { Err(self.failure(unit, side, &words[0], output)) }
    }

    /// Changed files that the compiler read for none of the patched objects: their change would be left out without a word.
    ///
    /// # Errors
    /// [`CompileError::Read`].
    pub fn unused<'f>(
        &self,
        compiled: &[CompiledUnit],
        files: &'f BTreeSet<PathBuf>,
    ) -> Result<Vec<&'f PathBuf>, CompileError> {
        let mut used = BTreeSet::new();
        for unit in compiled {
            let path = PathBuf::from(format!("{}.d", unit.patched.display()));
            let text = fs::read_to_string(&path).map_err(|source| CompileError::Read { path, source })?;
            let folder = self.folder(Side::Patched);
            used.extend(text.split_ascii_whitespace().filter_map(|word| folder.join(word).canonicalize().ok()));
        }
        let overlay = self.overlay(Side::Patched);
        let overlay = overlay.canonicalize().unwrap_or(overlay);
        Ok(files.iter().filter(|file| !used.contains(&overlay.join(file))).collect())
    }

    /// Writes the patched texts without `#line`; whether that makes a difference.
    fn without_directives(&self) -> Result<bool, CompileError> {
        let mut plain = false;
        for change in self.changes.iter().filter(|change| change.kind != ChangeKind::Deleted) {
            if lines::keep_numbers(change).is_some() {
                let path = self.overlay(Side::Patched).join(&change.path);
                fs::write(&path, &change.new).map_err(|source| CompileError::Write { path, source })?;
                plain = true;
            }
        }
        Ok(plain)
    }

    fn unit(&self, unit: &Unit, side: Side) -> Result<PathBuf, CompileError> {
        let object = self.object(unit, side);
        let kept = self.kept.as_ref().filter(|_| side == Side::Original);
        if kept.is_some_and(|kept| kept.fetch(unit, &object)) {
            return Ok(object);
        }
        let commands = self.commands(unit, side);
        for words in std::iter::once(&commands.compile).chain(&commands.after) {
            let output = self.call(words, side)?;
            if !output.status.success() {
                return Err(self.failure(unit, side, &words[0], output));
            }
        }
        if let Some(kept) = kept {
            kept.store(unit, &object, &self.overlay(side), self.source);
        }
        Ok(object)
    }

    fn call(&self, words: &[String], side: Side) -> Result<Output, CompileError> {
        let (program, arguments) = words.split_first().expect("a command has at least its program");
        Command::new(program)
            .args(arguments)
            .current_dir(self.folder(side))
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| CompileError::Start { program: program.clone(), source })
    }

    fn failure(&self, unit: &Unit, side: Side, program: &str, output: Output) -> CompileError {
        let said = if output.stderr.is_empty() { output.stdout } else { output.stderr };
        let overlay = format!("{}/", self.overlay(side).display());
        let mut said = String::from_utf8_lossy(&said).replace(&overlay, "");
        if said.trim().is_empty() {
            said = format!("{program}: {}", output.status);
        }
        match side {
            Side::Original => CompileError::Original { unit: unit.name.clone(), output: said },
            Side::Patched => CompileError::Patched { unit: unit.source.clone(), output: said },
        }
    }

    /// The kernel's commands with the overlay for the tree and our object for theirs.
    pub fn commands(&self, unit: &Unit, side: Side) -> UnitCommands {
        let tree = self.source.display().to_string();
        let (tree_slash, overlay) = (format!("{tree}/"), self.overlay(side).display().to_string());
        let theirs = unit.name.with_extension("o").display().to_string();
        let ours = self.object(unit, side).display().to_string();
        let dependencies = depend_file(&theirs);
        let our_dependencies = format!("{ours}.d");
        let moved = side == Side::Patched && unit.source != unit.name;
        let (from, to) = (unit.name.display().to_string(), unit.source.display().to_string());
        let mut commands = unit.commands.map(|word| {
            if word == theirs {
                ours.clone()
            } else if word == tree {
                overlay.clone()
            } else if moved && word == format!("{tree_slash}{from}") {
                format!("{overlay}/{to}")
            } else if word.starts_with("-Wp,-M") {
                word.replace(&dependencies, &our_dependencies)
            } else if let Some(option) = word.strip_suffix(&tree).filter(|option| option.starts_with('-')) {
                format!("{option}{overlay}")
            } else {
                word.replace(&tree_slash, &format!("{overlay}/"))
            }
        });
        if moved {
            // `__FILE__` keeps the name it has in the image: a move alone changes nothing.
            commands.compile.push(format!("-fmacro-prefix-map={overlay}/{to}={from}"));
        }
        commands
    }

    /// Where the commands run.
    fn folder(&self, side: Side) -> PathBuf {
        self.below.map_or_else(|| self.build.to_owned(), |below| self.overlay(side).join(below))
    }

    /// The tree of a side.
    pub fn overlay(&self, side: Side) -> PathBuf {
        self.work.join(side.letter())
    }

    /// Where the object of a side goes.
    pub fn object(&self, unit: &Unit, side: Side) -> PathBuf {
        self.work.join(format!("o{}", side.letter())).join(overlay::clean(&unit.name).with_extension("o"))
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
    fn compile(new: &str) -> Result<Done, CompileError> {
        compile_with("d/u.c", new)
    }

    #[derive(Debug)]
    struct Done {
        original: String,
        patched: String,
        unused: bool,
    }

    fn compile_with(touched: &str, new: &str) -> Result<Done, CompileError> {
        compile_at(touched, new, None)
    }

    /// `below`: the build folder, in the source tree, and what its commands call that.
    fn compile_at(touched: &str, new: &str, below: Option<(&str, &str)>) -> Result<Done, CompileError> {
        let root = tempfile::tempdir().expect("a temporary folder");
        let root = root.path().canonicalize().expect("there");
        let (source, work) = (root.join("src"), root.join("work"));
        let build = below.map_or_else(|| root.join("build"), |(below, _)| source.join(below));
        for folder in [source.join("d"), source.join("e"), build.clone(), work.clone()] {
            fs::create_dir_all(folder).expect("made");
        }
        let old = "#include \"h.h\"\nint a = 1;\n\nint b = __LINE__ + H;\nconst char *f = __FILE__;\n";
        fs::write(source.join("d/u.c"), old).expect("written");
        fs::write(source.join("d/h.h"), "#define H 0\n#include \"../e/part.c\"\n").expect("written");
        fs::write(source.join("e/part.c"), "int part = 1;\n").expect("written");
        fs::write(source.join("e/other.c"), "int other = 1;\n").expect("written");
        if below.is_some() {
            fs::write(build.join("Makefile"), "").expect("written");
        }
        let listing = |folder: &Path| fs::read_dir(folder).expect("there").count();
        let before = listing(&build);
        let named = below.map_or_else(|| format!("{}/", source.display()), |(_, named)| named.to_owned());
        let old = fs::read_to_string(source.join(touched)).expect("there");
        let diff = similar::TextDiff::from_lines(old.as_str(), new)
            .unified_diff()
            .header(&format!("a/{touched}"), &format!("b/{touched}"))
            .to_string();
        let changes = diff_analyzer::source_diff::read(diff.as_bytes(), &source).expect("applies");
        let line =
            format!("cc -Wp,-MMD,d/.u.o.d -fmacro-prefix-map={named}= -I{named}d -S -c -o d/u.o {named}d/u.c ; true");
        let commands = UnitCommands::parse(&line, "d/u.o").expect("a command");
        let compile = Compile {
            source: &source,
            build: &build,
            below: below.map(|(below, _)| Path::new(below)),
            work: &work,
            jobs: 2,
            changes: &changes,
            kept: None,
        };
        let name = PathBuf::from("d/u.c");
        let unit = Unit { name: name.clone(), source: name, new: false, commands };
        compile.prepare(std::slice::from_ref(&unit))?;
        let mut done = compile.run(&[unit], &|| {})?;
        let done = done.pop().expect("one unit")?;
        assert_eq!(listing(&build), before, "nothing is written to the build folder");
        let touched = BTreeSet::from([PathBuf::from(touched)]);
        let unused = !compile.unused(std::slice::from_ref(&done), &touched)?.is_empty();
        let read = |path: &Path| fs::read_to_string(path).expect("compiled");
        Ok(Done { original: read(&done.original.expect("not new")), patched: read(&done.patched), unused })
    }

    #[test]
    fn lines_and_file_names_are_those_of_the_tree() {
        let new = "#include \"h.h\"\nint a = 7;\nint added;\n\nint b = __LINE__ + H;\nconst char *f = __FILE__;\n";
        let Done { original, patched, .. } = compile(new).expect("both compile");
        for text in [&original, &patched] {
            assert!(text.contains(".long\t4\n"), "b is at line 4 in both\n{text}");
            assert!(text.contains("\"d/u.c\""), "{text}");
        }
        assert!(patched.contains(".long\t7\n") && !original.contains(".long\t7\n"));
    }

    #[test]
    fn builds_in_the_tree_are_compiled_in_the_overlay() {
        for below in [("", ""), ("out", "../")] {
            let new = "#include \"h.h\"\nint a = 7;\nint added;\n\nint b = __LINE__ + H;\nconst char *f = __FILE__;\n";
            let Done { original, patched, unused } = compile_at("d/u.c", new, Some(below)).expect("both compile");
            assert!(patched.contains(".long\t7\n") && !original.contains(".long\t7\n") && !unused, "{below:?}");
            assert!(patched.contains("\"d/u.c\"") && original.contains("\"d/u.c\""), "{below:?}\n{patched}");
            let done = compile_at("e/part.c", "int part = 77;\n", Some(below)).expect("both compile");
            assert!(done.patched.contains(".long\t77\n") && !done.original.contains(".long\t77\n"), "{below:?}");
            assert!(!done.unused, "{below:?}");
        }
    }

    #[test]
    fn a_file_of_another_folder_is_taken_from_the_overlay() {
        let Done { original, patched, .. } = compile_with("e/part.c", "int part = 77;\n").expect("both compile");
        assert!(patched.contains(".long\t77\n") && !original.contains(".long\t77\n"), "{patched}");
    }

    #[test]
    fn a_change_that_no_unit_takes_in_is_found() {
        assert!(compile_with("e/other.c", "int other = 77;\n").expect("both compile").unused);
        assert!(!compile_with("e/part.c", "int part = 77;\n").expect("both compile").unused);
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
