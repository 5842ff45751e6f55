//! Which units are compiled, and how.
//!
//! Comes in: what the diff touches by the names of its files. Decided: the units that see a changed header and may change;
//! the commands of units that exist and of new ones; whether the configuration stays what it is. Goes out: compiled units.

use crate::args::BuildArgs;
use crate::by_hand::HandObject;
use crate::faults::Faults;
use crate::headers;
use crate::identity::Config;
use crate::judge::Judge;
use crate::kbuild::command::{CommandError, UnitCommands};
use crate::kbuild::compile::{Compile, CompileError, CompiledUnit, Side, Unit, children_time};
use crate::kbuild::kept::Kept;
use crate::kbuild::{BuildFolder, KbuildError};
use crate::modules::Modules;
use crate::overrides::Overrides;
use crate::pipeline::Stop;
use crate::progress::Progress;
use crate::report::{Reason, Report, millis};
use crate::request::Request;
use crate::scope::{NewUnit, Scope};
use diff_analyzer::source_diff::FileChange;
use prelink::units::UnitIndex;
use prelink::vmlinux::KernelImage;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// So many units of a header that no other file of the diff needs are compiled first.
const FIRST: usize = 2;
/// Where more units than this may change with a header, the first ones are looked at before the others are preprocessed:
/// a change of existing data is found early.
const MANY: usize = 16;

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

    /// A new unit, compiled like one of the same object or folder that has no options of its own.
    fn new_unit(&self, new: &NewUnit, progress: &Progress) -> Result<Unit, Stop> {
        let listing = self.folder.listing(self.request, progress).map_err(Stop::failed)?;
        let folder = new.source.parent().unwrap_or(Path::new(""));
        let rules = ["Makefile", "Kbuild"]
            .iter()
            .find_map(|name| std::fs::read_to_string(self.request.source.join(folder).join(name)).ok());
        let rules = rules.unwrap_or_default();
        let beside = listing.units.iter().filter(|(unit, listed)| {
            unit.parent() == Some(folder)
                && unit.extension().is_some_and(|extension| extension == "c")
                && listed.iter().all(|listed| listed.module.is_none())
                && !rules.contains(&format!("_{}.o", stem(unit)))
        });
        for (unit, _) in beside {
            let commands = self.commands(unit, None)?;
            let name = commands.compile.iter().find_map(|word| word.strip_prefix("-DKBUILD_MODNAME="));
            let name = name.unwrap_or_default().trim_matches('"').to_owned();
            let fits = match &new.composite {
                Some(composite) => name == identifier(composite),
                None => name == identifier(&stem(unit)),
            };
            if fits {
                let commands = renamed(&commands, unit, &new.source, new.composite.is_none());
                return Ok(Unit { name: new.source.clone(), source: new.source.clone(), new: true, commands });
            }
        }
        let what = new.composite.as_ref().map_or_else(|| "its folder".to_owned(), |composite| format!("{composite}.o"));
        let message = format!(
            "no unit of {what} is built in and has no compiler options of its own, so its options are not known"
        );
        let reason = Reason::new("new-file", message).at(new.source.display().to_string(), None);
        Err(Stop::refused(reason.help("put the new functions into an existing .c file")))
    }

    /// Whether changed Kconfig files give this kernel another configuration.
    fn options(
        &self,
        scope: &Scope,
        faults: &mut Faults,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<(), Stop> {
        progress.phase("configuring the kernel with the changed options");
        let kept = self.folder.kept_objects();
        let compile = self.compiler(&kept);
        compile.prepare(&[]).map_err(Stop::failed)?;
        let now = self.folder.configure(self.request, &compile.overlay(Side::Patched), &self.work.join("config"));
        let (before, now) = match (self.folder.config(), now) {
            (Ok(before), Ok(now)) => (before, now),
            (Err(error), _) | (_, Err(error)) => return Err(Stop::failed(error)),
        };
        let (before, now) = (Config::parse(&before), Config::parse(&now));
        let names: BTreeSet<&str> = before.iter().chain(now.iter()).map(|(name, _)| name).collect();
        let differ: Vec<String> = names
            .into_iter()
            .filter(|name| before.get(name) != now.get(name))
            .map(|name| {
                format!(
                    "{name} from {} to {}",
                    before.get(name).unwrap_or("not set"),
                    now.get(name).unwrap_or("not set")
                )
            })
            .collect();
        for file in &scope.options {
            let path = file.display().to_string();
            if differ.is_empty() {
                report.notes.push(format!("{path}: no effect (this kernel's configuration stays the same)"));
                continue;
            }
            let shown = differ.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let message =
                format!("it changes this kernel's configuration: {shown}{}", if differ.len() > 5 { ", …" } else { "" });
            let reason = Reason::new("build-rules", message).at(path, None);
            faults.take(vec![reason.help("leave this file out of the diff, or reboot into the new kernel")], report)?;
        }
        Ok(())
    }

    /// Adds the units that changed headers may change.
    fn headers(
        &self,
        scope: &Scope,
        list: &mut List,
        faults: &mut Faults,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<(), Stop> {
        let clock = Instant::now();
        let listing = self.folder.listing(self.request, progress).map_err(Stop::failed)?;
        let direct: BTreeSet<PathBuf> = list.units.iter().map(|unit| unit.name.clone()).collect();
        let sources = headers::Sources {
            request: self.request,
            folder: self.folder,
            listing: &listing,
            index: self.units,
            changes: self.changes,
        };
        let found = sources.by_text(&scope.headers, progress).map_err(Stop::failed)?;
        let by_text = clock.elapsed();
        if found.len() > MANY && !faults.goes_on() {
            self.first(&found, list, faults, report, progress)?;
        }
        let clock = Instant::now();
        let units =
            found.to_preprocess(self.request, self.folder, &direct, self.args.built_in_only).map_err(of_kbuild)?;
        let kept = self.folder.kept_objects();
        let compile = self.compiler(&kept);
        if !units.is_empty() {
            compile.prepare(&units).map_err(Stop::failed)?;
        }
        let affected = found.by_preprocessor(&compile, &units, &direct, progress).map_err(Stop::failed)?;
        report.timings_ms.headers = millis(by_text) + millis(clock.elapsed());
        report.notes.extend(affected.notes);
        faults.take(affected.reasons, report)?;
        let by_name: BTreeMap<PathBuf, Unit> = units.into_iter().map(|unit| (unit.name.clone(), unit)).collect();
        let mut more: BTreeSet<PathBuf> =
            affected.units.iter().filter(|unit| !direct.contains(*unit)).cloned().collect();
        if self.args.built_in_only {
            report.modules = affected.modules;
        } else {
            more.extend(
                affected.modules.iter().map(|unit| PathBuf::from(&unit.unit)).filter(|unit| !direct.contains(unit)),
            );
        }
        list.units.extend(more.iter().filter_map(|unit| by_name.get(unit).cloned()));
        Ok(())
    }

    /// Compiles and judges the first units of a wide header, to see early whether existing data changes.
    fn first(
        &self,
        found: &headers::ByText,
        list: &mut List,
        faults: &mut Faults,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<(), Stop> {
        progress.phase("compiling the first units, to see whether existing data changes");
        let units = if list.units.is_empty() {
            let names: Vec<PathBuf> = found.units.iter().take(FIRST).cloned().collect();
            let commands = self.folder.commands(self.request, &names).map_err(of_kbuild)?;
            let unit =
                |(name, commands): (PathBuf, UnitCommands)| Unit { source: name.clone(), name, new: false, commands };
            commands.into_iter().map(unit).collect()
        } else {
            list.units.clone()
        };
        let mut first = List { units, done: Vec::new() };
        let modules = self.modules(&mut first, faults, report, progress)?;
        let kept = self.folder.kept_objects();
        let compile = self.compiler(&kept);
        compile.prepare(&first.units).map_err(Stop::failed)?;
        list.done = self.compile_some(&compile, &first.units, faults, report, progress, &|| {})?;
        self.judge(&modules, None).refuse_early(&list.done, report)
    }

    /// Compiles the units, original and patched.
    ///
    /// # Errors
    /// [`Stop`] when the build ends here.
    pub fn compile(
        &self,
        list: &List,
        files: &BTreeSet<PathBuf>,
        faults: &mut Faults,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<Vec<CompiledUnit>, Stop> {
        if list.units.is_empty() {
            return Ok(Vec::new());
        }
        let (clock, before) = (Instant::now(), children_time());
        let kept = self.folder.kept_objects();
        let compile = self.compiler(&kept);
        Kept { folder: &kept, build: &self.folder.path }.make_room();
        compile.prepare(&list.units).map_err(Stop::failed)?;
        let known: BTreeSet<&PathBuf> = list.done.iter().map(|done| &done.unit).collect();
        let rest: Vec<Unit> = list.units.iter().filter(|unit| !known.contains(&unit.name)).cloned().collect();
        let named: BTreeSet<&PathBuf> = list.units.iter().map(|unit| &unit.name).collect();
        let count = AtomicUsize::new(0);
        let step = || {
            let count = count.fetch_add(1, Ordering::Relaxed) + 1;
            progress.phase(format!("compiling {} of {} units twice", count.div_ceil(2), rest.len()));
        };
        let mut compiled: Vec<CompiledUnit> =
            list.done.iter().filter(|done| named.contains(&done.unit)).cloned().collect();
        compiled.extend(self.compile_some(&compile, &rest, faults, report, progress, &step)?);
        let unused = compile.unused(&compiled, files).map_err(Stop::failed)?;
        // A file of a unit that was left out is left out with it.
        let left_out = compiled.len() < list.units.len();
        let reasons = unused.into_iter().filter(|_| !left_out).map(|file| {
            let message = "none of the compiled units took in the changed file";
            let reason = Reason::new("change-not-compiled", message).at(file.display().to_string(), None);
            reason.help("leave this file out of the diff")
        });
        faults.take(reasons.collect(), report)?;
        if self.request.keep_dir.is_some() {
            self.keep_texts(&compile, list).map_err(Stop::failed)?;
        }
        report.timings_ms.compile = millis(clock.elapsed());
        report.timings_ms.compiler = millis(children_time().saturating_sub(before));
        Ok(compiled)
    }

    /// Compiles units that the diff does not touch, for what they use.
    ///
    /// # Errors
    /// [`Stop`] when the build ends here.
    pub fn compile_more(
        &self,
        units: &BTreeSet<PathBuf>,
        faults: &mut Faults,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<Vec<CompiledUnit>, Stop> {
        let (clock, before) = (Instant::now(), children_time());
        progress.phase("asking make how the units are compiled that use data which move");
        let mut more = Vec::new();
        for unit in units {
            let commands = self.commands(unit, None)?;
            more.push(Unit { name: unit.clone(), source: unit.clone(), new: false, commands });
        }
        let kept = self.folder.kept_objects();
        let compile = self.compiler(&kept);
        compile.prepare(&more).map_err(Stop::failed)?;
        let count = AtomicUsize::new(0);
        let step = || {
            let count = count.fetch_add(1, Ordering::Relaxed) + 1;
            progress.phase(format!(
                "compiling {} of {} units twice that use data which move",
                count.div_ceil(2),
                more.len()
            ));
        };
        let compiled = self.compile_some(&compile, &more, faults, report, progress, &step)?;
        report.timings_ms.compile += millis(clock.elapsed());
        report.timings_ms.compiler += millis(children_time().saturating_sub(before));
        Ok(compiled)
    }

    fn compile_some(
        &self,
        compile: &Compile<'_>,
        units: &[Unit],
        faults: &mut Faults,
        report: &mut Report,
        progress: &Progress,
        step: &(dyn Fn() + Sync),
    ) -> Result<Vec<CompiledUnit>, Stop> {
        let mut results = compile.run(units, step).map_err(Stop::failed)?;
        for (unit, result) in units.iter().zip(results.iter_mut()) {
            // Some files are generated when their unit is built (`security/selinux/flask.h`).
            if matches!(result, Err(CompileError::Original { .. })) {
                progress.phase(format!("generating what {} needs", unit.name.display()));
                self.folder.generate(self.request, std::slice::from_ref(&unit.name)).map_err(Stop::failed)?;
                if let Some(again) = compile.run(std::slice::from_ref(unit), step).map_err(Stop::failed)?.pop() {
                    *result = again;
                }
            }
        }
        let mut compiled = Vec::new();
        for (unit, result) in units.iter().zip(results) {
            match result {
                Ok(done) => compiled.push(done),
                Err(error) => {
                    let stop = self.of_compile(error, unit);
                    faults.take_stop(stop, report)?;
                }
            }
        }
        Ok(compiled)
    }

    /// What the preprocessor made of each unit, and how it was called, for people.
    fn keep_texts(&self, compile: &Compile<'_>, list: &List) -> Result<(), CompileError> {
        compile.parallel(|| {
            list.units.par_iter().try_for_each(|unit| {
                for side in [Side::Original, Side::Patched] {
                    if let Ok(text) = compile.preprocess(unit, side) {
                        let path = compile.object(unit, side).with_extension("i");
                        std::fs::write(&path, text).map_err(|source| CompileError::Write { path, source })?;
                    }
                    let path = compile.object(unit, side).with_extension("command");
                    let commands = compile.commands(unit, side);
                    let lines = std::iter::once(&commands.compile).chain(&commands.after);
                    let text: String = lines.map(|words| shell_words::join(words) + "\n").collect();
                    std::fs::write(&path, text).map_err(|source| CompileError::Write { path, source })?;
                }
                Ok(())
            })
        })?
    }

    /// The compiler's first error, at its place in the diff.
    fn of_compile(&self, error: CompileError, unit: &Unit) -> Stop {
        let CompileError::Patched { unit: source, output } = &error else { return Stop::failed(error) };
        let first = output.lines().find(|line| line.contains(" error: ") || line.contains("fatal error: "));
        let mut reason =
            Reason::new("compile-error", format!("the patched source does not compile\n{}", output.trim_end()));
        reason.file = Some(source.display().to_string());
        if let Some((place, _)) = first.and_then(|line| line.split_once(": "))
            && let Some((file, rest)) = place.split_once(':')
        {
            let line = rest.split(':').next().and_then(|line| line.parse::<usize>().ok());
            reason.file = Some(file.to_owned());
            reason.line = line;
            let change = self.changes.iter().find(|change| change.path == Path::new(file));
            reason.diff_line = change.zip(line).and_then(|(change, line)| change.diff_line_of(line.checked_sub(1)?));
        }
        let reason = reason.of_unit(unit.name.display().to_string());
        Stop::refused(reason.help("the original source compiles; correct the diff"))
    }
}

fn stem(unit: &Path) -> String {
    unit.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A name as it stands in macros (scripts/Makefile.lib, `name-fix`).
fn identifier(name: &str) -> String {
    name.replace(['-', ','], "_")
}

/// The commands of a unit for another one of its folder. `own`: the object's name follows the source.
fn renamed(commands: &UnitCommands, from: &Path, to: &Path, own: bool) -> UnitCommands {
    let text = |path: &Path| path.display().to_string();
    let (old, new) = (text(&from.with_extension("")), text(&to.with_extension("")));
    let (old_name, new_name) = (identifier(&stem(from)), identifier(&stem(to)));
    let (old_object, new_object) = (text(&from.with_extension("o")), text(&to.with_extension("o")));
    let folder = from.parent().map(text).unwrap_or_default();
    commands.map(|word| {
        if word == old_object {
            new_object.clone()
        } else if word.starts_with("-Wp,-M") {
            word.replace(&format!("{folder}/.{}.o.d", stem(from)), &format!("{folder}/.{}.o.d", stem(to)))
        } else if word.ends_with(&format!("/{old}.c")) {
            format!("{}{new}.c", &word[..word.len() - old.len() - 2])
        } else if word == format!("-DKBUILD_BASENAME=\"{old_name}\"") {
            format!("-DKBUILD_BASENAME=\"{new_name}\"")
        } else if own && word.starts_with("-DKBUILD_MODFILE=") {
            word.replace(&old, &new)
        } else if own && (word.starts_with("-DKBUILD_MODNAME=") || word.starts_with("-D__KBUILD_MODNAME=")) {
            word.replace(&old_name, &new_name)
        } else {
            word.to_owned()
        }
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_unit_is_compiled_like_its_neighbour() {
        let line = "gcc -Wp,-MMD,fs/.a-b.o.d -DKBUILD_MODFILE='\"fs/a-b\"' -DKBUILD_BASENAME='\"a_b\"' -DKBUILD_MODNAME='\"a_b\"' -c -o fs/a-b.o /src/fs/a-b.c";
        let commands = UnitCommands::parse(line, "fs/a-b.o").expect("a command");
        let new = renamed(&commands, Path::new("fs/a-b.c"), Path::new("fs/new.c"), true);
        assert_eq!(
            shell_words::join(&new.compile),
            "gcc -Wp,-MMD,fs/.new.o.d '-DKBUILD_MODFILE=\"fs/new\"' '-DKBUILD_BASENAME=\"new\"' '-DKBUILD_MODNAME=\"new\"' -c -o fs/new.o /src/fs/new.c"
        );
        let part = renamed(&commands, Path::new("fs/a-b.c"), Path::new("fs/new.c"), false);
        assert!(part.compile.contains(&"-DKBUILD_MODNAME=\"a_b\"".to_owned()), "{part:?}");
    }
}
