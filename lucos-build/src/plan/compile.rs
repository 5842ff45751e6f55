//! Compiles units, original and patched.
//!
//! Comes in: units with their commands. Decided: what the compiler says; files that are made when their unit is built are made first.
//! Goes out: the objects of each unit, or the compiler's first error at its place in the diff.

use super::{List, Plan};
use crate::faults::Faults;
use crate::kbuild::compile::{Compile, CompileError, CompiledUnit, Side, Unit, children_time};
use crate::kbuild::kept::Kept;
use crate::pipeline::Stop;
use crate::progress::Progress;
use crate::report::{Reason, Report, millis};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

impl Plan<'_, '_> {
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

    pub(super) fn compile_some(
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
