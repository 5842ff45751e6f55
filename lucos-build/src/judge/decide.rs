//! What becomes of existing types and data, over all units.
//!
//! Comes in: what each unit's change does to them. Decided: the strategies, by [`crate::data`]; which other units use a datum that
//! moves, and which functions follow it. Goes out: plans for the linker, rows of the report, or the reasons.

use super::Judge;
use super::units::{Judged, Read};
use crate::data::{self, Decided};
use crate::kbuild::compile::CompiledUnit;
use crate::objects::{Heap, ModuleUnit, Placed};
use crate::pipeline::Stop;
use crate::report::{Reason, Report, Verdict};
use crate::{closure, warnings};
use diff_analyzer::pieces::{PieceIndex, Pieces};
use diff_analyzer::semantics::Warning;
use lpk_format::{MODULE_SPACE, ModuleId};
use prelink::link::Linked;
use prelink::link::data::DatumPlan;
use prelink::prove::Proof;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

impl Judge<'_, '_> {
    /// Phases 5 to 8 for a few units of many: whether they already show that existing data changes.
    ///
    /// # Errors
    /// [`Stop`] when they do, or when an object cannot be read.
    pub fn refuse_early(&self, compiled: &[CompiledUnit], report: &mut Report) -> Result<(), Stop> {
        let profile = self.profile()?;
        let read = self.read(compiled)?;
        let pieces = self.cut(&read, &profile)?;
        let judged = self.judge_all(&read, &pieces)?;
        let decided = self.decide(&read, &judged, report);
        if decided.is_err() {
            self.warn(&read, &judged, report);
            self.detail(&read, &pieces, &judged, report)?;
        }
        decided.map(drop)
    }

    /// Puts the warnings that the author has not silenced into the report.
    pub(super) fn warn(&self, read: &[Read], judged: &[Judged], report: &mut Report) {
        for (unit, judged) in read.iter().zip(judged) {
            let silenced = |warning: &&Warning| self.overrides.silences(warning.rule, &warning.subject);
            let (silenced, heard): (Vec<&Warning>, Vec<&Warning>) = judged.warnings.iter().partition(silenced);
            warnings::add(&mut report.warnings, &unit.unit, heard);
            warnings::add(&mut report.silenced, &unit.unit, silenced);
        }
    }

    /// What becomes of existing types and data.
    ///
    /// # Errors
    /// [`Stop`] when something cannot be left to any strategy.
    pub(super) fn decide(&self, read: &[Read], judged: &[Judged], report: &mut Report) -> Result<Decided, Stop> {
        let units: Vec<data::Unit<'_>> = (read.iter().zip(judged))
            .map(|(unit, judged)| data::Unit {
                name: &unit.unit,
                image: self.image_of(unit),
                proof: &judged.proof,
                found: &judged.found,
            })
            .collect();
        let heap = Heap {
            image: self.image,
            units: self.units,
            of_modules: read.iter().filter_map(|unit| self.of_module(unit)).collect(),
        };
        let mut decided = data::decide(&units, self.overrides, &heap).map_err(Stop::failed)?;
        report.data_changes = std::mem::take(&mut decided.data);
        report.types = std::mem::take(&mut decided.types);
        let places = (report.types.iter_mut().map(|row| &mut row.place))
            .chain(report.data_changes.iter_mut().map(|row| &mut row.place));
        for place in places.flatten() {
            place.file = self.relative(&place.file);
        }
        let mut reasons: Vec<Reason> = Vec::new();
        for (mut reason, place) in std::mem::take(&mut decided.reasons) {
            if let Some(place) = place {
                let file = self.relative(&place.file);
                let line = usize::try_from(place.line).ok();
                let change = self.changes.iter().find(|change| change.path.as_os_str() == file.as_str());
                reason.diff_line =
                    change.zip(line).and_then(|(change, line)| change.diff_line_of(line.checked_sub(1)?));
                reason = reason.at(file, line);
            }
            // A type of a header is found again in every unit that sees it.
            let same = |known: &&mut Reason| known.rule == reason.rule && known.message == reason.message;
            match reasons.iter_mut().find(same) {
                Some(known) => known.units.append(&mut reason.units),
                None => reasons.push(reason),
            }
        }
        if !report.data_changes.is_empty() || !report.types.is_empty() {
            report.verdict = Verdict::Type2;
        }
        if reasons.is_empty() { Ok(decided) } else { Err(Stop::Refused(reasons)) }
    }

    /// A unit whose code is in a module.
    fn of_module<'a>(&'a self, unit: &'a Read) -> Option<ModuleUnit<'a>> {
        let image = self.image_of(unit);
        let original = unit.compiled.original.clone();
        image.module().map(|_| ModuleUnit { name: &unit.unit, image, original })
    }

    /// Units that use data which move, and are not compiled yet; all users go into the report.
    pub(super) fn needed(
        &self,
        units: &[(&Read, &Pieces<'_>, &Proof, &[DatumPlan])],
        added: &BTreeSet<PathBuf>,
        report: &mut Report,
    ) -> BTreeMap<PathBuf, BTreeSet<String>> {
        let is_known = |name: &PathBuf| added.contains(name) || units.iter().any(|unit| unit.0.compiled.unit == *name);
        let mut needed: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
        for (unit, original, proof, plans) in units {
            // Data of a module are used by it alone, or else refused.
            let moved = plans.iter().filter(|plan| plan.fate.moves());
            for plan in moved.filter(|_| self.image_of(unit).module().is_none()) {
                let datum = original.piece(plan.original);
                let Some(address) = proof.address(plan.original) else { continue };
                let users = closure::users(self.image, self.units, &(address..address + datum.size()));
                let row = report.data_changes.iter_mut().find(|row| row.name == datum.name && row.unit == unit.unit);
                if let Some(row) = row {
                    row.users.extend(users.functions);
                }
                for unit in users.units.into_iter().filter(|unit| !is_known(unit)) {
                    needed.entry(unit).or_default().insert(datum.name.clone());
                }
            }
        }
        needed
    }

    /// A path in debug information, relative to the source tree.
    pub(super) fn relative(&self, file: &str) -> String {
        let known = self.changes.iter().find(|change| file.ends_with(&format!("/{}", change.path.display())));
        known.map_or_else(|| file.to_owned(), |change| change.path.display().to_string())
    }
}

/// Puts what objects on the heap get into the parts whose new code uses it. A part in which no new code runs is not there.
///
/// # Errors
/// [`Stop`] when objects of one cache would be those of two types.
pub(super) fn place_objects(parts: &mut [(Option<ModuleId>, Linked)], objects: Vec<Placed>) -> Result<(), Stop> {
    let mut types: BTreeMap<(Option<String>, u64), String> = BTreeMap::new();
    for Placed { part, patch } in objects {
        // Link addresses of modules mean something else in each.
        let of_module = part.clone().filter(|_| MODULE_SPACE.contains(&patch.cache_address));
        let key = (of_module, patch.cache_address);
        if let Some(other) = types.insert(key, patch.type_name.clone()) {
            let (one, cache) = (&patch.type_name, &patch.cache);
            let message = format!("objects of cache `{cache}` cannot be both `{other}` and `{one}`");
            let help = "name the cache of each type in the file beside the diff";
            return Err(Stop::refused(Reason::new("override-refused", message).help(help)));
        }
        let is_it = |module: &Option<ModuleId>| module.as_ref().map(|module| &module.name) == part.as_ref();
        if let Some((_, linked)) = parts.iter_mut().find(|(module, _)| is_it(module)) {
            linked.payload.objects.push(patch);
        }
    }
    for (_, linked) in parts {
        linked.payload.objects.sort_by_key(|objects| objects.cache_address);
    }
    Ok(())
}

/// What refers to a datum that moves changes with it, in all units.
pub(super) fn follow_moved(judged: &mut [Judged], pieces: &[(Pieces<'_>, Pieces<'_>)], plans: &[Vec<DatumPlan>]) {
    let moved = |plans: &[DatumPlan]| -> BTreeSet<PieceIndex> {
        let moved = plans.iter().filter(|plan| plan.fate.moves());
        moved.map(|plan| plan.patched).collect()
    };
    let names: BTreeSet<String> = (plans.iter().zip(pieces))
        .flat_map(|(plans, (_, patched))| moved(plans).into_iter().map(move |datum| patched.piece(datum)))
        .filter(|piece| piece.global)
        .map(|piece| piece.name.clone())
        .collect();
    for ((judged, (_, patched)), plans) in judged.iter_mut().zip(pieces).zip(plans) {
        let here = moved(plans);
        if !here.is_empty() || !names.is_empty() {
            judged.diff.follow_data(patched, &here, &names);
        }
    }
}
