//! Each unit by itself: read, proved, compared, classified.
//!
//! Comes in: both objects of each unit. Decided: whether the original is what the kernel runs; what changes in functions, data and
//! types; what old and new code may disagree about. Goes out: [`Judged`].

use super::{Judge, JudgeError};
use crate::kbuild::compile::CompiledUnit;
use crate::pipeline::Stop;
use diff_analyzer::classify::{Classification, classify};
use diff_analyzer::dwarf_layout::sections::ObjectDebug;
use diff_analyzer::dwarf_layout::{self, Layouts};
use diff_analyzer::layout_diff;
use diff_analyzer::object::Object;
use diff_analyzer::object_diff::{ObjectDiff, compare, compare_resigned};
use diff_analyzer::pieces::Pieces;
use diff_analyzer::semantics::inlined::{self, Inlined};
use diff_analyzer::semantics::text::Texts;
use diff_analyzer::semantics::{self, Warning};
use lpk_format::GuestProfile;
use prelink::prove::{Proof, prove};
use prelink::vmlinux::KernelImage;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A unit's objects, read.
pub(super) struct Read {
    pub(super) unit: String,
    pub(super) original: Object,
    pub(super) patched: Object,
    pub(super) compiled: CompiledUnit,
}

/// What a unit's debug information says.
#[derive(Default)]
struct DebugInfo {
    layouts: Layouts,
    inlined: Vec<Inlined>,
}

impl DebugInfo {
    pub(super) fn read(path: &PathBuf) -> Result<Self, JudgeError> {
        let bytes = std::fs::read(path).map_err(|source| JudgeError::Read { path: path.clone(), source })?;
        let unusable = |source| JudgeError::Layout { path: path.clone(), source };
        let debug = ObjectDebug::read(&bytes).map_err(|source| unusable(source.into()))?;
        let layouts = dwarf_layout::of_source(&debug, |_| true).map_err(unusable)?;
        Ok(Self { layouts, inlined: inlined::read(&debug).map_err(unusable)? })
    }
}

/// A unit, proved, compared and classified.
pub(super) struct Judged {
    pub(super) proof: Proof,
    pub(super) diff: ObjectDiff,
    pub(super) found: Classification,
    pub(super) warnings: Vec<Warning>,
    /// Time taken: prove, compare, classify.
    pub(super) times: [Duration; 3],
}

impl Judge<'_, '_> {
    /// The image that a unit's code is in.
    pub(super) fn image_of(&self, unit: &Read) -> &KernelImage {
        self.modules.of(&unit.compiled.unit).unwrap_or(self.image)
    }

    pub(super) fn read(&self, compiled: &[CompiledUnit]) -> Result<Vec<Read>, Stop> {
        compiled.par_iter().map(|unit| read(unit.clone())).collect::<Result<_, _>>().map_err(Stop::failed)
    }

    pub(super) fn cut<'o>(
        &self,
        read: &'o [Read],
        profile: &GuestProfile,
    ) -> Result<Vec<(Pieces<'o>, Pieces<'o>)>, Stop> {
        read.par_iter().map(|unit| cut(unit, &profile.sizes)).collect::<Result<_, _>>().map_err(Stop::failed)
    }

    pub(super) fn judge_all(&self, read: &[Read], pieces: &[(Pieces<'_>, Pieces<'_>)]) -> Result<Vec<Judged>, Stop> {
        let texts = Texts::of(self.changes);
        let judge = |(unit, (original, patched)): (&Read, &(Pieces<'_>, Pieces<'_>))| {
            self.judge(unit, original, patched, &texts)
        };
        let mut judged: Vec<Judged> =
            read.par_iter().zip(pieces).map(judge).collect::<Result<_, _>>().map_err(Stop::failed)?;
        let globals = |(judged, (_, patched)): (&Judged, &(Pieces<'_>, Pieces<'_>))| -> Vec<String> {
            judged.diff.resigned_globals(patched).map(str::to_owned).collect()
        };
        let resigned: BTreeSet<String> = judged.iter().zip(pieces).flat_map(globals).collect();
        if !resigned.is_empty() {
            judged.par_iter_mut().zip(pieces).for_each(|(judged, (_, patched))| judged.diff.follow(patched, &resigned));
        }
        Ok(judged)
    }

    /// Code of a unit in the image.
    pub(super) fn ranges(&self, unit: &str) -> Vec<Range<u64>> {
        (self.units.named(unit).iter())
            .flat_map(|&id| self.units.unit(id).ranges.iter().map(|range| range.start..range.end))
            .collect()
    }

    pub(super) fn judge(
        &self,
        unit: &Read,
        original: &Pieces<'_>,
        patched: &Pieces<'_>,
        texts: &Texts<'_>,
    ) -> Result<Judged, JudgeError> {
        let clock = Instant::now();
        // A module has no debug information: its functions are found by name and contents.
        let image = self.image_of(unit);
        let ranges = if image.module().is_some() { Vec::new() } else { self.ranges(&unit.unit) };
        let proof = prove(image, original, &ranges);
        let proved = clock.elapsed();
        let mut diff = compare(original, patched);
        let compared = clock.elapsed();
        let (mut found, mut warnings) = (Classification::default(), Vec::new());
        if !diff.is_empty() {
            let (old, new) = rayon::join(
                || unit.compiled.original.as_ref().map_or_else(|| Ok(DebugInfo::default()), DebugInfo::read),
                || DebugInfo::read(&unit.compiled.patched),
            );
            let (old, new) = (old?, new?);
            let signatures = layout_diff::compare_functions(&old.layouts, &new.layouts);
            if !signatures.is_empty() {
                let resigned = signatures.iter().map(|change| change.name.clone()).collect();
                diff = compare_resigned(original, patched, resigned);
            }
            diff.locks = layout_diff::locks(&new.layouts);
            found = classify(&diff, original, patched, &old.layouts, &new.layouts);
            let both = semantics::Unit {
                pieces: [original, patched],
                diff: &diff,
                layouts: [&old.layouts, &new.layouts],
                types: &layout_diff::compare(&old.layouts, &new.layouts),
                signatures: &signatures,
                inlined: [&old.inlined, &new.inlined],
            };
            warnings = semantics::check(&both, texts);
        }
        let times = [proved, compared.saturating_sub(proved), clock.elapsed().saturating_sub(compared)];
        Ok(Judged { proof, diff, found, warnings, times })
    }
}

fn read(compiled: CompiledUnit) -> Result<Read, JudgeError> {
    let object = |path: &PathBuf| {
        let bytes = std::fs::read(path).map_err(|source| JudgeError::Read { path: path.clone(), source })?;
        Object::parse(&bytes).map_err(|source| JudgeError::Object { path: path.clone(), source })
    };
    let original = compiled.original.as_ref().map_or_else(|| Ok(Object::default()), &object)?;
    let patched = object(&compiled.patched)?;
    Ok(Read { unit: compiled.unit.display().to_string(), original, patched, compiled })
}

fn cut<'o>(unit: &'o Read, sizes: &BTreeMap<String, u64>) -> Result<(Pieces<'o>, Pieces<'o>), JudgeError> {
    let cut = |object: &'o Object, path: &PathBuf| {
        Pieces::cut(object, sizes).map_err(|source| JudgeError::Pieces { path: path.clone(), source })
    };
    let original = unit.compiled.original.as_ref().unwrap_or(&unit.compiled.patched);
    Ok((cut(&unit.original, original)?, cut(&unit.patched, &unit.compiled.patched)?))
}
