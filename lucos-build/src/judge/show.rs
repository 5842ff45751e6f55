//! Functions shown with their instructions, for `--explain` and for the page of `--report`.
//!
//! Comes in: the units, compared. Decided: nothing. Goes out: rows of the report.

use super::units::{Judged, Read};
use super::{Judge, JudgeError};
use crate::explain::{self, Explained};
use crate::pipeline::Stop;
use crate::report::Report;
use diff_analyzer::pieces::Pieces;
use std::path::PathBuf;

impl Judge<'_, '_> {
    /// Shows the functions that were asked for, whatever the answer is.
    pub(super) fn explain(
        &self,
        read: &[Read],
        pieces: &[(Pieces<'_>, Pieces<'_>)],
        judged: &[Judged],
        report: &mut Report,
    ) -> Result<(), Stop> {
        let (explanations, notes) =
            self.with_explained(read, pieces, judged, |units| explain::functions(self.explain, units))?;
        report.explanations = explanations;
        report.notes.extend(notes);
        Ok(())
    }

    /// What only the page shows, if one is wanted.
    pub(super) fn detail(
        &self,
        read: &[Read],
        pieces: &[(Pieces<'_>, Pieces<'_>)],
        judged: &[Judged],
        report: &mut Report,
    ) -> Result<(), Stop> {
        let Some(details) = &mut report.details else { return Ok(()) };
        self.with_explained(read, pieces, judged, |units| details.set_functions(units))
    }

    /// Does something with all units as they can be explained.
    pub(super) fn with_explained<R>(
        &self,
        read: &[Read],
        pieces: &[(Pieces<'_>, Pieces<'_>)],
        judged: &[Judged],
        explain: impl FnOnce(&[Explained<'_, '_>]) -> R,
    ) -> Result<R, Stop> {
        let load = |path: &PathBuf| {
            let failed = |source| Stop::failed(JudgeError::Read { path: path.clone(), source });
            std::fs::read(path).map_err(failed)
        };
        let files = read
            .iter()
            .map(|unit| {
                let patched = &unit.compiled.patched;
                Ok([load(unit.compiled.original.as_ref().unwrap_or(patched))?, load(patched)?])
            })
            .collect::<Result<Vec<_>, Stop>>()?;
        let units: Vec<Explained<'_, '_>> = (read.iter().zip(pieces).zip(judged).zip(&files))
            .map(|(((unit, (original, patched)), judged), [old, new])| Explained {
                unit: &unit.unit,
                original,
                patched,
                diff: &judged.diff,
                bytes: [old, new],
                proof: Some((&judged.proof, self.image_of(unit))),
                ranges: self.ranges(&unit.unit),
            })
            .collect();
        Ok(explain(&units))
    }
}
