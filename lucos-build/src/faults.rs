//! What cannot be done, and whether the build goes on all the same.
//!
//! Comes in: reasons of any phase. Decided: by what was asked for: the first phase with reasons ends the build; with
//! `--keep-going` all phases say theirs, and the build ends then; with `--allow-partial` what is at fault is left out, and
//! the report and the bundle say so. Goes out: units that are left, or all reasons.

use crate::args::BuildArgs;
use crate::judge::{Judge, Judgement};
use crate::kbuild::compile::CompiledUnit;
use crate::pipeline::Stop;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::report::{Reason, Report, Verdict};
use lpk_format::Bundle;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Reasons so far.
#[derive(Debug)]
pub struct Faults {
    keep_going: bool,
    partial: bool,
    reasons: Vec<Reason>,
}

impl Faults {
    /// Nothing so far.
    pub fn new(args: &BuildArgs) -> Self {
        Self { keep_going: args.keep_going, partial: args.allow_partial, reasons: Vec::new() }
    }

    /// Whether the build goes on in spite of reasons.
    pub fn goes_on(&self) -> bool {
        self.keep_going || self.partial
    }

    /// Takes reasons of a phase.
    ///
    /// # Errors
    /// [`Stop::Refused`] when there are some, unless the build goes on.
    pub fn take(&mut self, reasons: Vec<Reason>, report: &mut Report) -> Result<(), Stop> {
        if reasons.is_empty() {
            return Ok(());
        }
        if self.partial {
            report.omitted.extend(reasons);
        } else if self.keep_going {
            self.reasons.extend(reasons);
        } else {
            return Err(Stop::Refused(reasons));
        }
        Ok(())
    }

    /// Takes the reasons of a phase that ends a unit or the whole.
    ///
    /// # Errors
    /// The failure, or the reasons unless the build goes on.
    pub fn take_stop(&mut self, stop: Stop, report: &mut Report) -> Result<(), Stop> {
        match stop {
            Stop::Refused(reasons) => self.take(reasons, report),
            failed @ Stop::Failed(_) => Err(failed),
        }
    }

    /// The end of all phases; `some` of the diff is in the bundle.
    ///
    /// # Errors
    /// All reasons, if there are some; also those for what was left out, when nothing else is left.
    pub fn end(&mut self, some: bool, report: &mut Report) -> Result<(), Stop> {
        if !some {
            self.reasons.append(&mut report.omitted);
        }
        if self.reasons.is_empty() { Ok(()) } else { Err(Stop::Refused(std::mem::take(&mut self.reasons))) }
    }

    /// Judges units; if the build goes on, again without those at fault, until the rest has none. Units that are found
    /// to be needed are compiled.
    ///
    /// # Errors
    /// The failure, or the reasons.
    pub fn judge(
        &mut self,
        plan: &Plan<'_, '_>,
        judge: &Judge<'_, '_>,
        mut compiled: Vec<CompiledUnit>,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<Option<Bundle>, Stop> {
        let mut added = BTreeSet::new();
        while !compiled.is_empty() {
            let reasons = match judge.run(&compiled, &added, report, progress) {
                Ok(Judgement::Bundle(bundle)) => return Ok(Some(*bundle)),
                Ok(Judgement::NoEffect) => return Ok(None),
                Ok(Judgement::Needs(needed)) => {
                    report.notes.extend(needed.iter().map(|(unit, data)| {
                        let data: Vec<String> = data.iter().map(|name| format!("`{name}`")).collect();
                        format!("{}: compiled because it uses {}, which moves", unit.display(), data.join(", "))
                    }));
                    let units: BTreeSet<PathBuf> = needed.into_keys().collect();
                    compiled.extend(plan.compile_more(&units, self, report, progress)?);
                    added.extend(units);
                    continue;
                }
                Err(Stop::Refused(reasons)) if self.goes_on() => reasons,
                Err(stop) => return Err(stop),
            };
            let at_fault: BTreeSet<String> = reasons.iter().flat_map(|reason| reason.units.iter().cloned()).collect();
            let before = compiled.len();
            compiled.retain(|unit| !at_fault.contains(&unit.unit.display().to_string()));
            if compiled.len() == before {
                // It is about all of them together.
                self.reasons.extend(reasons);
                return Ok(None);
            }
            self.take(reasons, report)?;
            if self.partial {
                report.verdict = Verdict::NoEffect;
            }
        }
        Ok(None)
    }
}
