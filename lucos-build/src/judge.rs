//! From compiled units to a bundle: the phases behind the compiler.
//!
//! Comes in: both objects of each unit, the kernel image and its DWARF. Decided: whether the original is what the kernel
//! runs, what changed, Type 1 or Type 2, where each reference leads. Goes out: a [`Bundle`], `None` when nothing changes,
//! or the reasons for a refusal.
mod bundle;
mod consequences;
mod decide;
mod linking;
mod show;
mod units;

use crate::by_hand::HandObject;
use crate::kbuild::BuildFolder;
use crate::kbuild::compile::CompiledUnit;
use crate::modules::Modules;
use crate::overrides::Overrides;
use crate::pipeline::Stop;
use crate::progress::Progress;
use crate::report::{Reason, Report, Verdict, millis};
use crate::request::Request;
use consequences::{exit_code, untraceable, without_effect};
use decide::{follow_moved, place_objects};
use diff_analyzer::dwarf_layout::LayoutError;
use diff_analyzer::object::ObjectError;
use diff_analyzer::pieces::PiecesError;
use diff_analyzer::source_diff::FileChange;
use lpk_format::{Bundle, GuestProfile, LeftOut, ModuleId, TableKind};
use prelink::link::{self, Linked};
use prelink::units::UnitIndex;
use prelink::vmlinux::KernelImage;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Instant;

/// What the phases behind the compiler work on.
pub struct Judge<'a, 'i> {
    /// The request.
    pub request: &'a Request,
    /// The kernel image.
    pub image: &'a KernelImage,
    /// The modules of the diff.
    pub modules: &'a Modules,
    /// Its units.
    pub units: &'a UnitIndex<'i>,
    /// Its prepared build folder.
    pub folder: &'a BuildFolder,
    /// Changed files of the diff.
    pub changes: &'a [FileChange],
    /// Name of the update.
    pub name: String,
    /// Functions to explain.
    pub explain: &'a [String],
    /// Functions may be replaced that can then not be traced.
    pub allow_untraceable: bool,
    /// The author says that it is Type 2, whatever is found.
    pub type2: bool,
    /// What the author says of the change.
    pub overrides: &'a Overrides,
    /// Hooks that go along.
    pub hooks: Option<&'a HandObject>,
}

/// An object that cannot be used.
#[derive(Debug, thiserror::Error)]
enum JudgeError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: not a kernel object", path.display())]
    Object { path: PathBuf, source: ObjectError },
    #[error("{}: its special sections cannot be read", path.display())]
    Pieces { path: PathBuf, source: PiecesError },
    #[error("{}: its debug information cannot be used", path.display())]
    Layout { path: PathBuf, source: LayoutError },
}

/// What the phases behind the compiler come to.
pub enum Judgement {
    /// A bundle.
    Bundle(Box<Bundle>),
    /// The change has no effect.
    NoEffect,
    /// More units have to be compiled: they use a datum that moves. With the names of these data.
    Needs(BTreeMap<PathBuf, BTreeSet<String>>),
}

impl Judge<'_, '_> {
    /// Phases 5 to 9. `added`: units that were compiled because an earlier run asked for them.
    ///
    /// # Errors
    /// [`Stop`] when the change is refused or an object cannot be read.
    pub fn run(
        &self,
        compiled: &[CompiledUnit],
        added: &BTreeSet<PathBuf>,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<Judgement, Stop> {
        progress.phase("reading what the runtime must know of this kernel");
        let profile = self.profile()?;

        // 5. Prove, 6. compare, 7. and 8. compare layouts and classify: each unit by itself
        progress.phase(format!("proving and comparing {} units", compiled.len()));
        let read = self.read(compiled)?;
        let pieces = self.cut(&read, &profile)?;
        let mut judged = self.judge_all(&read, &pieces)?;
        let sum = |index: usize| millis(judged.iter().map(|unit| unit.times[index]).sum());
        let times = &mut report.timings_ms;
        (times.prove, times.compare, times.classify) = (sum(0), sum(1), sum(2));
        // Units may have been left out since the last time.
        report.warnings.clear();
        report.silenced.clear();
        self.warn(&read, &judged, report);
        if !self.explain.is_empty() {
            self.explain(&read, &pieces, &judged, report)?;
        }
        let without_effect: Vec<LeftOut> = (read.iter().zip(&pieces).zip(&judged))
            .flat_map(|((unit, (_, patched)), judged)| {
                let when = match self.image_of(unit).module() {
                    Some(_) => "when the module is loaded from a new file",
                    None => "at the next boot",
                };
                without_effect(&unit.unit, patched, &judged.diff, when)
            })
            .collect();
        report.notes.extend(without_effect.iter().map(|note| format!("{}: {}", note.unit, note.consequence)));
        let same = read.iter().zip(&judged).filter(|(_, judged)| judged.diff.is_empty());
        for (unit, _) in same.filter(|(unit, _)| !added.contains(&unit.compiled.unit)) {
            report.notes.push(format!("{}: the change makes no difference to its code or data", unit.unit));
        }
        let exits = (read.iter().zip(&pieces).zip(&judged)).flat_map(|((unit, (_, patched)), judged)| {
            let in_module = self.image_of(unit).module().is_some();
            let functions = judged.diff.changed_boot_functions().filter(move |_| in_module);
            functions.filter_map(|function| exit_code(&unit.unit, patched, function))
        });
        let exits: Vec<Reason> = exits.collect();
        if !exits.is_empty() {
            return Err(Stop::Refused(exits));
        }
        if judged.iter().all(|unit| unit.diff.is_empty()) {
            if self.hooks.is_some() {
                report.notes.push("without a change the hooks are not used".to_owned());
            }
            return Ok(Judgement::NoEffect);
        }
        let clock = Instant::now();
        let decided = self.decide(&read, &judged, report);
        report.timings_ms.classify += millis(clock.elapsed());
        let decided = match decided {
            Ok(decided) => decided,
            Err(stop) => {
                self.detail(&read, &pieces, &judged, report)?;
                return Err(stop);
            }
        };
        let units = (read.iter().zip(&pieces).zip(&judged).zip(&decided.plans))
            .map(|(((unit, (original, _)), judged), plans)| (unit, original, &judged.proof, plans.as_slice()));
        let needed = self.needed(&units.collect::<Vec<_>>(), added, report);
        if !needed.is_empty() {
            return Ok(Judgement::Needs(needed));
        }
        follow_moved(&mut judged, &pieces, &decided.plans);
        self.detail(&read, &pieces, &judged, report)?;

        // 9. Pre-link: prelink/src/link.rs
        let clock = Instant::now();
        progress.phase("resolving symbols");
        let changed = (read.iter().zip(&pieces).zip(&judged).zip(&decided.plans))
            .filter(|((_, judged), _)| !judged.diff.is_empty());
        let units = changed.map(|(((unit, (original, patched)), judged), data)| {
            let (diff, proof) = (&judged.diff, &judged.proof);
            (unit, link::Unit { name: &unit.unit, original, patched, diff, proof, data })
        });
        let hooks = self.hooks.map(|hooks| hooks.cut(&profile.sizes)).transpose()?;
        let mut parts = self.link(units.collect(), hooks.as_ref(), &profile.sizes, report)?;
        place_objects(&mut parts, decided.objects)?;
        if parts.is_empty() {
            // Data may be kept as they are, and new functions may be reached by nothing.
            report.verdict = Verdict::NoEffect;
            return Ok(Judgement::NoEffect);
        }
        for note in without_effect {
            let unit = read.iter().find(|unit| unit.unit == note.unit);
            let of = unit.and_then(|unit| self.image_of(unit).module());
            let part = parts.iter_mut().find(|(module, _)| module.as_ref() == of);
            if let Some((_, linked)) = part {
                linked.left_out.push(note);
            }
        }
        report.timings_ms.link = millis(clock.elapsed());
        self.complete(parts, profile, report, progress).map(|bundle| Judgement::Bundle(Box::new(bundle)))
    }

    /// From linked parts to a bundle: what forbids it all the same, and the part that runs in the guest.
    ///
    /// # Errors
    /// [`Stop`] when it is refused.
    pub fn complete(
        &self,
        parts: Vec<(Option<ModuleId>, Linked)>,
        profile: GuestProfile,
        report: &mut Report,
        progress: &Progress,
    ) -> Result<Bundle, Stop> {
        if let Some(details) = &mut report.details {
            details.set_linked(&parts);
        }
        let untraceable: Vec<Reason> = parts.iter().flat_map(|(_, linked)| untraceable(linked)).collect();
        if !untraceable.is_empty() && !self.allow_untraceable {
            return Err(Stop::Refused(untraceable));
        }
        report.notes.extend(untraceable.into_iter().map(|reason| reason.message));

        // The part that runs in the guest: kbuild/support.rs
        progress.phase("linking the support object");
        let support = match self.support(&profile.sizes) {
            Ok(support) => Some(support),
            Err(why) => {
                let tables = parts.iter().flat_map(|(_, linked)| &linked.payload.tables).map(|table| table.kind);
                let required: BTreeSet<&str> =
                    tables.filter(|kind| kind.is_required()).map(TableKind::section).collect();
                if !required.is_empty() {
                    let list = required.into_iter().collect::<Vec<_>>().join(", ");
                    let message = format!("the guest has to know of entries in {list}, but {why}");
                    return Err(Stop::refused(Reason::new("no-support-object", message)));
                }
                if parts.iter().any(|(module, _)| module.is_some()) {
                    let message = format!("new code of a module has to be prepared in the guest, but {why}");
                    return Err(Stop::refused(Reason::new("no-support-object", message)));
                }
                report.notes.push(format!("the bundle can be applied in the arena only: {why}"));
                None
            }
        };
        let warnings = parts.iter().flat_map(|(_, linked)| &linked.warnings);
        report
            .notes
            .extend(warnings.map(|warning| format!("{}: {} ({})", warning.unit, warning.message, warning.rule)));
        let is_type_2 = |linked: &Linked| {
            let payload = &linked.payload;
            !payload.hooks.is_empty() || !payload.changed.is_empty() || !payload.objects.is_empty()
        };
        // Types were looked at before; hooks are the author's word that old and new code differ in meaning.
        if self.type2 || parts.iter().any(|(_, linked)| is_type_2(linked)) {
            report.verdict = Verdict::Type2;
        } else if report.verdict != Verdict::Type2 {
            report.verdict = Verdict::Type1;
        }
        Ok(self.bundle(parts, support, profile, report))
    }

    /// What the runtime must know of the kernel.
    ///
    /// # Errors
    /// [`Stop`] when it cannot be read.
    pub fn profile(&self) -> Result<GuestProfile, Stop> {
        let path = self.request.source.join("arch/x86/include/asm/cpufeatures.h");
        let features =
            std::fs::read_to_string(&path).map_err(|source| Stop::failed(JudgeError::Read { path, source }))?;
        prelink::guest::profile(self.image, self.units, &features).map_err(Stop::failed)
    }
}
