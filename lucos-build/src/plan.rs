//! Which units are compiled, and how.
//!
//! Comes in: what the diff touches by the names of its files. Decided: the units that see a changed header and may change;
//! the commands of units that exist and of new ones; whether the configuration stays what it is. Goes out: compiled units.

mod compile;
mod headers;
mod new_unit;
mod options;

use crate::args::BuildArgs;
use crate::by_hand::HandObject;
use crate::faults::Faults;
use crate::judge::Judge;
use crate::kbuild::command::{CommandError, UnitCommands};
use crate::kbuild::compile::{Compile, CompiledUnit, Unit};
use crate::kbuild::kept::Kept;
use crate::kbuild::{BuildFolder, KbuildError};
use crate::modules::Modules;
use crate::overrides::Overrides;
use crate::pipeline::Stop;
use crate::progress::Progress;
use crate::report::{Reason, Report};
use crate::request::Request;
use crate::scope::Scope;
use diff_analyzer::source_diff::FileChange;
use prelink::units::UnitIndex;
use prelink::vmlinux::KernelImage;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What is needed to find and compile the units.
pub struct Plan<'a, 'i> {
    /// What was asked for.
    pub args: &'a BuildArgs,
    /// The request.
    pub request: &'a Request,
    /// The prepared build folder.
    pub folder: &'a BuildFolder,
    /// The kernel image.
    pub image: &'a KernelImage,
    /// Units of the image.
    pub units: &'a UnitIndex<'i>,
    /// What the diff changes.
    pub changes: &'a [FileChange],
    /// What the author says of the change.
    pub overrides: &'a Overrides,
    /// Where trees and objects go.
    pub work: &'a Path,
}

/// Units to compile, those that the diff names first.
pub struct List {
    units: Vec<Unit>,
    /// Units that are compiled already.
    done: Vec<CompiledUnit>,
}

impl<'i> Plan<'_, 'i> {
    /// What the phases behind the compiler work on.
    pub fn judge<'s>(&'s self, modules: &'s Modules, hooks: Option<&'s HandObject>) -> Judge<'s, 'i> {
        Judge {
            request: self.request,
            image: self.image,
            units: self.units,
            folder: self.folder,
            modules,
            changes: self.changes,
            name: self.args.name(),
            explain: &self.args.explain,
            allow_untraceable: self.args.allow_untraceable,
            type2: self.args.type2,
            overrides: self.overrides,
            hooks,
        }
    }

    fn compiler<'s>(&'s self, kept: &'s Path) -> Compile<'s> {
        Compile {
            source: &self.request.source,
            build: &self.folder.path,
            below: self.request.build.as_ref().and_then(|given| given.below.as_deref()),
            work: self.work,
            jobs: self.request.jobs,
            changes: self.changes,
            kept: Some(Kept { folder: kept, build: &self.folder.path }),
        }
    }

    /// All units to compile.
    ///
    /// # Errors
    /// [`Stop`] when the build ends here.
    pub fn units(
        &self,
        scope: &Scope,
        faults: &mut Faults,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<List, Stop> {
        progress.phase("asking make how the units are compiled");
        let mut direct: Vec<Unit> = Vec::new();
        for unit in &scope.units {
            match self.commands(unit, scope.outside.get(unit)) {
                Ok(commands) => {
                    let source = scope.renamed.get(unit).unwrap_or(unit).clone();
                    direct.push(Unit { name: unit.clone(), source, new: false, commands });
                }
                Err(stop) => faults.take_stop(stop, report)?,
            }
        }
        for new in &scope.new_units {
            match self.new_unit(new, progress) {
                Ok(unit) => direct.push(unit),
                Err(stop) => faults.take_stop(stop, report)?,
            }
        }
        if !scope.options.is_empty() {
            self.options(scope, faults, report, progress)?;
        }
        let mut list = List { units: direct, done: Vec::new() };
        if !scope.headers.is_empty() {
            self.headers(scope, &mut list, faults, report, progress)?;
        }
        Ok(list)
    }

    /// The command of a unit of the image, or of one that is not in it: of a module, or `outside` says why not.
    fn commands(&self, unit: &Path, outside: Option<&Reason>) -> Result<UnitCommands, Stop> {
        let found = match (self.folder.commands(self.request, &[unit.to_owned()]), outside) {
            (Ok(found), _) => found.into_iter().next().map(|(_, commands)| commands),
            // make has no rule for a file that the configuration leaves out.
            (Err(KbuildError::Ask { .. }), Some(_)) => None,
            (Err(error), _) => return Err(of_kbuild(error)),
        };
        match (found, outside) {
            (Some(commands), outside) if commands.is_module() == outside.is_some() => Ok(commands),
            (_, Some(reason)) => Err(Stop::refused(reason.clone())),
            (Some(_), None) => {
                let message =
                    "the kernel's build compiles it for a loadable module, though vmlinux has a unit of this name";
                let reason = Reason::new("not-built-in", message).at(unit.display().to_string(), None);
                Err(Stop::refused(reason.help("is the configuration the right one?")))
            }
            (None, None) => Err(of_kbuild(CommandError::NotCompiled { object: unit.display().to_string() }.into())),
        }
    }

    /// The modules that the units belong to; units whose module cannot be updated are taken out if the build goes on.
    ///
    /// # Errors
    /// [`Stop`] when the build ends here.
    pub fn modules(
        &self,
        list: &mut List,
        faults: &mut Faults,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<Modules, Stop> {
        loop {
            let commands: Vec<(PathBuf, UnitCommands)> =
                list.units.iter().map(|unit| (unit.name.clone(), unit.commands.clone())).collect();
            match Modules::find(self.args, self.image, &commands) {
                Ok(modules) => {
                    for (name, path, how) in &modules.found {
                        progress.say(&format!("module {name}: {} ({how})", path.display()));
                    }
                    return Ok(modules);
                }
                Err(Stop::Refused(reasons)) if faults.goes_on() => {
                    let at_fault: BTreeSet<String> = reasons.iter().filter_map(|reason| reason.file.clone()).collect();
                    list.units.retain(|unit| !at_fault.contains(&unit.name.display().to_string()));
                    faults.take(reasons, report)?;
                }
                Err(stop) => return Err(stop),
            }
        }
    }
}

fn of_kbuild(error: KbuildError) -> Stop {
    match error {
        KbuildError::Command(error @ (CommandError::UnknownStep { .. } | CommandError::Twice { .. })) => {
            Stop::refused(Reason::new("unknown-build-step", error.to_string()))
        }
        KbuildError::Command(error @ CommandError::NotCompiled { .. }) => {
            Stop::refused(Reason::new("not-built-in", error.to_string()))
        }
        other => Stop::failed(other),
    }
}
