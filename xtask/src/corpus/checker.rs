//! Whether units compile with some texts changed, by the kernel's own command, without making objects.
//!
//! Comes in: a kernel of the cache. Decided: nothing. Goes out: the compiler's complaints; the files of the newer tree
//! that a unit takes in.

use super::complaints::{self, Complaint};
use super::plan::{Plan, Trees};
use crate::JobError;
use lucos_build::args::BuildArgs;
use lucos_build::kbuild::command::UnitCommands;
use lucos_build::kbuild::{BuildFolder, overlay};
use lucos_build::pipeline::Stop;
use lucos_build::progress::Progress;
use lucos_build::report::Report;
use lucos_build::request::{self, Request};
use lucos_tests::kernels::Kernel;
use lucos_tests::official;
use prelink::dwarf::DebugSections;
use prelink::units::UnitIndex;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// The prepared kernel.
#[derive(Debug)]
pub(crate) struct Checker {
    request: Request,
    folder: BuildFolder,
    /// make works on one build folder at a time.
    make: Mutex<()>,
}

fn stopped(stop: Stop) -> JobError {
    let text = match stop {
        Stop::Refused(reasons) => {
            reasons.iter().map(|reason| format!("{}: {}", reason.rule, reason.message)).collect::<Vec<_>>().join("; ")
        }
        Stop::Failed(error) => error.to_string(),
    };
    JobError::KernelUnusable(text)
}

impl Checker {
    /// Identifies the kernel and prepares its build folder, as `lucos-build` does.
    pub(crate) fn open(kernel: &Kernel) -> Result<Self, JobError> {
        let vmlinux = kernel.vmlinux();
        let words = ["lucos-build".into(), "-".into(), "--vmlinux".into(), vmlinux.clone().into_os_string()];
        let args = <lucos_build::args::Args as clap::Parser>::try_parse_from(words)?;
        let args: BuildArgs = args.build.expect("the words name a diff to build");
        let progress = Progress::new(false);
        let image = request::open_image(&vmlinux).map_err(stopped)?;
        let debug = |source| JobError::Dwarf { image: vmlinux.clone(), source };
        let sections = DebugSections::load(|name| image.section_data(name)).map_err(debug)?;
        let units = UnitIndex::build(&sections).map_err(debug)?;
        let request = request::identify(&args, None, &image, &units, &mut Report::new(), &progress).map_err(stopped)?;
        let folder = BuildFolder::prepare(&request, &progress)?;
        Ok(Self { request, folder, make: Mutex::default() })
    }

    /// The kernel's commands for a unit.
    pub(crate) fn commands(&self, unit: &str) -> Result<UnitCommands, JobError> {
        let _make = self.make.lock();
        let found = self.folder.commands(&self.request, &[PathBuf::from(unit)])?;
        let commands = found.into_iter().next().map(|(_, commands)| commands);
        commands.ok_or_else(|| JobError::NoCommand { unit: unit.to_owned(), what: "commands" })
    }

    /// Asks for the commands of many units at once, which are then known; a unit that make does not know spoils nothing.
    pub(crate) fn learn(&self, units: &[String]) {
        let _make = self.make.lock();
        for part in units.chunks(40) {
            let paths: Vec<PathBuf> = part.iter().map(PathBuf::from).collect();
            // Failures come up again, with their reason, when a single unit is asked for.
            let _ = self.folder.commands(&self.request, &paths);
        }
    }

    /// What the compiler says about a unit, with the texts of a plan; nothing about a unit that cannot be compiled alone,
    /// which `lucos-build` says then.
    pub(crate) fn complaints(&self, unit: &str, plan: &Plan, trees: &Trees) -> Result<Vec<Complaint>, JobError> {
        if self.commands(unit).is_err() {
            return Ok(Vec::new());
        }
        let output = self.check(unit, plan, trees)?;
        let missing = |complaint: &Complaint| {
            complaint.missing_file.as_ref().is_some_and(|name| {
                let name = name.rsplit('/').next().unwrap_or(name);
                !trees.changed.keys().any(|path| path.rsplit('/').next() == Some(name))
            })
        };
        let found = complaints::read(&output);
        if !found.iter().any(missing) {
            return Ok(found);
        }
        // A file that neither tree has is one that the kernel's build generates.
        {
            let _make = self.make.lock();
            self.folder.generate(&self.request, &[PathBuf::from(unit)])?;
        }
        Ok(complaints::read(&self.check(unit, plan, trees)?))
    }

    fn check(&self, unit: &str, plan: &Plan, trees: &Trees) -> Result<String, JobError> {
        let work = tempfile::tempdir()?;
        let mut files = overlay::Files::new();
        // The unit's folder is a real one, so that `../` in its includes stays in the overlay.
        files.insert(PathBuf::from(unit), official::text(&trees.old, unit)?.map(String::into_bytes));
        for (file, (_, new)) in plan.texts(trees)? {
            files.insert(PathBuf::from(file), new.map(String::into_bytes));
        }
        let root = work.path().join("s");
        overlay::make(&self.request.source, &root, &files)?;
        let output = self.compiler(unit, &root, &["-fsyntax-only"])?;
        let text = String::from_utf8_lossy(&output.stderr).replace(&format!("{}/", root.display()), "");
        if output.status.success() { Ok(String::new()) } else { Ok(text) }
    }

    /// Files of the newer tree that a unit takes in there.
    pub(crate) fn taken_in(&self, unit: &str, trees: &Trees) -> Result<BTreeSet<String>, JobError> {
        let output = self.compiler(unit, &trees.new, &["-M", "-MG"])?;
        let text = String::from_utf8_lossy(&output.stdout).replace("\\\n", " ");
        let prefix = format!("{}/", trees.new.display());
        Ok(text
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix(&prefix))
            .map(|path| official::clean(Path::new(path)))
            .collect())
    }

    /// Runs the unit's compiler over another tree.
    fn compiler(&self, unit: &str, tree: &Path, mode: &[&str]) -> Result<std::process::Output, JobError> {
        let (from, to) = (self.request.source.display().to_string(), tree.display().to_string());
        let commands = self.commands(unit)?.map(|word| word.replace(&from, &to));
        let mut words = commands.compile.into_iter();
        let program = words.next().ok_or_else(|| JobError::NoCommand { unit: unit.to_owned(), what: "compiler" })?;
        let mut kept = Vec::new();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-c" => {}
                "-o" => drop(words.next()),
                _ if word.starts_with("-Wp,-MMD") || word.starts_with("-Wp,-MD") => {}
                _ => kept.push(word),
            }
        }
        Command::new(&program)
            .args(kept)
            .args(mode)
            .current_dir(&self.folder.path)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| JobError::Start { program, source })
    }
}
