//! Units that changed headers may change.
//!
//! Comes in: the changed headers. Decided: by their text and by the preprocessor, which units see something else; existing data that
//! change with the first of many are found early. Goes out: the units, added to the list.

use super::{List, Plan, of_kbuild};
use crate::faults::Faults;
use crate::headers;
use crate::kbuild::command::UnitCommands;
use crate::kbuild::compile::Unit;
use crate::pipeline::Stop;
use crate::progress::Progress;
use crate::report::{Report, millis};
use crate::scope::Scope;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

/// So many units of a header that no other file of the diff needs are compiled first.
const FIRST: usize = 2;
/// Where more units than this may change with a header, the first ones are looked at before the others are preprocessed:
/// a change of existing data is found early.
const MANY: usize = 16;

impl Plan<'_, '_> {
    /// Adds the units that changed headers may change.
    pub(super) fn headers(
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
}
