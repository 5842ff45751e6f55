//! From compiled units to a bundle: the phases behind the compiler.
//!
//! Comes in: both objects of each unit, the kernel image and its DWARF. Decided: whether the original is what the kernel
//! runs, what changed, Type 1 or Type 2, where each reference leads. Goes out: a [`Bundle`], `None` when nothing changes,
//! or the reasons for a refusal.

use crate::by_hand::{HandObject, HandPieces, Replacement};
use crate::closure;
use crate::data::{self, Decided};
use crate::explain::{self, Explained};
use crate::kbuild::compile::CompiledUnit;
use crate::kbuild::{BuildFolder, support};
use crate::modules::Modules;
use crate::overrides::Overrides;
use crate::pipeline::Stop;
use crate::progress::Progress;
use crate::report::{DatumRow, FunctionRow, HookRow, Reason, Report, Verdict, millis};
use crate::request::Request;
use crate::warnings;
use diff_analyzer::classify::{Classification, classify};
use diff_analyzer::dwarf_layout::sections::ObjectDebug;
use diff_analyzer::dwarf_layout::{self, LayoutError, Layouts};
use diff_analyzer::layout_diff;
use diff_analyzer::object::{Object, ObjectError};
use diff_analyzer::object_diff::{ObjectDiff, compare, compare_resigned};
use diff_analyzer::pieces::{PieceIndex, Pieces, PiecesError};
use diff_analyzer::semantics::inlined::{self, Inlined};
use diff_analyzer::semantics::text::Texts;
use diff_analyzer::semantics::{self, Warning};
use diff_analyzer::source_diff::FileChange;
use diff_analyzer::special::SectionRole;
use lpk_format::{
    BootSiteKind, Bundle, FunctionPatch, GuestProfile, KernelId, LeftOut, Manifest, ModuleId, Omitted, Payload,
    TableKind, UpdateType,
};
use prelink::link::data::DatumPlan;
use prelink::link::{self, Linked};
use prelink::prove::{Proof, prove};
use prelink::refusal::Refusal;
use prelink::sites::{BootTables, SitesError};
use prelink::units::UnitIndex;
use prelink::vmlinux::KernelImage;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

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

/// A unit's objects, read.
struct Read {
    unit: String,
    original: Object,
    patched: Object,
    compiled: CompiledUnit,
}

/// What a unit's debug information says.
#[derive(Default)]
struct DebugInfo {
    layouts: Layouts,
    inlined: Vec<Inlined>,
}

impl DebugInfo {
    fn read(path: &PathBuf) -> Result<Self, JudgeError> {
        let bytes = std::fs::read(path).map_err(|source| JudgeError::Read { path: path.clone(), source })?;
        let unusable = |source| JudgeError::Layout { path: path.clone(), source };
        let debug = ObjectDebug::read(&bytes).map_err(|source| unusable(source.into()))?;
        let layouts = dwarf_layout::of_source(&debug, |_| true).map_err(unusable)?;
        Ok(Self { layouts, inlined: inlined::read(&debug).map_err(unusable)? })
    }
}

/// A unit, proved, compared and classified.
struct Judged {
    proof: Proof,
    diff: ObjectDiff,
    found: Classification,
    warnings: Vec<Warning>,
    /// Time taken: prove, compare, classify.
    times: [Duration; 3],
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
        let is_type_2 = |linked: &Linked| !linked.payload.hooks.is_empty() || !linked.payload.changed.is_empty();
        // Types were looked at before; hooks are the author's word that old and new code differ in meaning.
        if parts.iter().any(|(_, linked)| is_type_2(linked)) {
            report.verdict = Verdict::Type2;
        } else if report.verdict != Verdict::Type2 {
            report.verdict = Verdict::Type1;
        }
        Ok(self.bundle(parts, support, profile, report))
    }

    /// Links the changed units of the kernel image, and those of each module; which module it is stands beside each.
    fn link<'p>(
        &self,
        units: Vec<(&Read, link::Unit<'p, 'p>)>,
        hooks: Option<&'p HandPieces<'p>>,
        sizes: &BTreeMap<String, u64>,
        report: &mut Report,
    ) -> Result<Vec<(Option<ModuleId>, Linked)>, Stop> {
        let mut groups: BTreeMap<Option<&str>, (&KernelImage, Vec<link::Unit<'p, 'p>>)> = BTreeMap::new();
        for (read, unit) in units {
            let image = self.image_of(read);
            let module = image.module().map(|module| module.name.as_str());
            groups.entry(module).or_insert_with(|| (image, Vec::new())).1.push(unit);
        }
        let (mut parts, mut refusals) = (Vec::new(), Vec::new());
        let mut declared = None;
        if let Some(hooks) = hooks {
            let (_, units) = groups.entry(None).or_insert_with(|| (self.image, Vec::new()));
            units.push(hooks.unit());
            match hooks.declared(self.image, self.units, units.len() - 1, &[]) {
                Ok(found) => declared = Some(found),
                Err(more) => refusals.extend(more),
            }
        }
        for (&part, (image, units)) in &groups {
            let others = groups.iter().filter(|&(&other, _)| other != part).flat_map(|(_, (_, units))| units);
            let elsewhere: BTreeSet<String> = others.flat_map(global_names).collect();
            let tables = BootTables::read(image, sizes).map_err(of_sites)?;
            let declared = declared.as_ref().filter(|_| part.is_none());
            match link::link_declared(image, &tables, units, &elsewhere, declared) {
                Ok(linked) => parts.push((image.module().cloned(), linked)),
                Err(more) => refusals.extend(more),
            }
        }
        if !refusals.is_empty() {
            return Err(self.of_refusals(refusals));
        }
        for (module, linked) in parts.extract_if(.., |(_, linked)| is_idle(linked)) {
            let place = module.map_or_else(String::new, |module| format!(" in module {}", module.name));
            let new: Vec<String> =
                linked.manifest_functions.iter().map(|function| format!("`{}`", function.name)).collect();
            report.notes.push(format!("no existing function leads to the new code{place}: {}", new.join(", ")));
        }
        Ok(parts)
    }

    /// Links a unit that is written by hand, and nothing else.
    ///
    /// # Errors
    /// [`Stop::Refused`] with all reasons.
    pub fn link_by_hand(
        &self,
        pieces: &HandPieces<'_>,
        replace: &[Replacement],
        sizes: &BTreeMap<String, u64>,
        report: &mut Report,
    ) -> Result<Linked, Stop> {
        let refuse = |refusals| self.of_refusals(refusals);
        let declared = pieces.declared(self.image, self.units, 0, replace).map_err(refuse)?;
        if let Some(details) = &mut report.details {
            details.set_by_hand(pieces, &declared, self.image);
        }
        let tables = BootTables::read(self.image, sizes).map_err(of_sites)?;
        let (units, elsewhere) = ([pieces.unit()], BTreeSet::new());
        let linked = link::link_declared(self.image, &tables, &units, &elsewhere, Some(&declared)).map_err(refuse)?;
        if linked.functions.is_empty() {
            let message = "it replaces no function of the kernel, so nothing would ever run it";
            let help = "say what replaces what: LUCOS_REPLACE(old, new) in the file, or --replace OLD=NEW";
            return Err(Stop::refused(Reason::new("nothing-replaced", message).help(help)));
        }
        Ok(linked)
    }

    /// The image that a unit's code is in.
    fn image_of(&self, unit: &Read) -> &KernelImage {
        self.modules.of(&unit.compiled.unit).unwrap_or(self.image)
    }

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

    fn read(&self, compiled: &[CompiledUnit]) -> Result<Vec<Read>, Stop> {
        compiled.par_iter().map(|unit| read(unit.clone())).collect::<Result<_, _>>().map_err(Stop::failed)
    }

    fn cut<'o>(&self, read: &'o [Read], profile: &GuestProfile) -> Result<Vec<(Pieces<'o>, Pieces<'o>)>, Stop> {
        read.par_iter().map(|unit| cut(unit, &profile.sizes)).collect::<Result<_, _>>().map_err(Stop::failed)
    }

    fn judge_all(&self, read: &[Read], pieces: &[(Pieces<'_>, Pieces<'_>)]) -> Result<Vec<Judged>, Stop> {
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

    /// The support object, or why this kernel cannot have one.
    fn support(&self, sizes: &BTreeMap<String, u64>) -> Result<Payload, String> {
        let object = support::object(self.folder, self.request).map_err(|error| error.to_string())?;
        let bytes = std::fs::read(&object).map_err(|error| format!("{}: {error}", object.display()))?;
        let patched = Object::parse(&bytes).map_err(|error| error.to_string())?;
        let original = Object::default();
        let cut = |object| Pieces::cut(object, sizes).map_err(|error| error.to_string());
        let (original, patched) = (cut(&original)?, cut(&patched)?);
        let (diff, proof) = (compare(&original, &patched), Proof::default());
        let unit = link::Unit {
            name: "support/support.c",
            original: &original,
            patched: &patched,
            diff: &diff,
            proof: &proof,
            data: &[],
        };
        link::link_support(self.image, &unit).map_err(|refusals| {
            let list: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            list.join("; ")
        })
    }

    /// Shows the functions that were asked for, whatever the answer is.
    fn explain(
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
    fn detail(
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
    fn with_explained<R>(
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

    /// Code of a unit in the image.
    fn ranges(&self, unit: &str) -> Vec<Range<u64>> {
        (self.units.named(unit).iter())
            .flat_map(|&id| self.units.unit(id).ranges.iter().map(|range| range.start..range.end))
            .collect()
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

    fn judge(
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

    /// Puts the warnings that the author has not silenced into the report.
    fn warn(&self, read: &[Read], judged: &[Judged], report: &mut Report) {
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
    fn decide(&self, read: &[Read], judged: &[Judged], report: &mut Report) -> Result<Decided, Stop> {
        let units: Vec<data::Unit<'_>> = (read.iter().zip(judged))
            .map(|(unit, judged)| data::Unit {
                name: &unit.unit,
                image: self.image_of(unit),
                proof: &judged.proof,
                found: &judged.found,
            })
            .collect();
        let mut decided = data::decide(&units, self.overrides);
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

    /// Units that use data which move, and are not compiled yet; all users go into the report.
    fn needed(
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
    fn relative(&self, file: &str) -> String {
        let known = self.changes.iter().find(|change| file.ends_with(&format!("/{}", change.path.display())));
        known.map_or_else(|| file.to_owned(), |change| change.path.display().to_string())
    }

    fn of_refusals(&self, refusals: Vec<Refusal>) -> Stop {
        Stop::Refused(refusals.into_iter().map(Reason::from).collect())
    }

    fn bundle(
        &self,
        parts: Vec<(Option<ModuleId>, Linked)>,
        support: Option<Payload>,
        profile: GuestProfile,
        report: &mut Report,
    ) -> Bundle {
        for (module, linked) in &parts {
            report.functions.extend(linked.manifest_functions.iter().map(|function| FunctionRow {
                name: function.name.clone(),
                unit: function.unit.clone(),
                module: module.as_ref().map(|module| module.name.clone()),
                old_address: function.old_address.map(|address| format!("{address:#x}")),
                old_size: function.old_size,
                new_size: function.new_size,
            }));
            report.data.extend(linked.manifest_data.iter().map(|datum| DatumRow {
                name: datum.name.clone(),
                unit: datum.unit.clone(),
                size: datum.size,
            }));
            report.hooks.extend(linked.payload.hooks.iter().map(|hook| HookRow {
                kind: hook.kind,
                subject: Some(hook.subject.name().to_owned()).filter(|name| !name.is_empty()),
            }));
        }
        let mut files: Vec<String> = self.changes.iter().map(|change| change.path.display().to_string()).collect();
        files.sort();
        files.dedup();
        let empty = Bundle {
            kernel: KernelId {
                build_id: self.image.build_id().to_vec(),
                release: self.image.release().to_owned(),
                banner: self.image.banner().to_owned(),
            },
            profile,
            manifest: Manifest {
                name: self.name.clone(),
                update_type: if report.verdict == Verdict::Type2 { UpdateType::Type2 } else { UpdateType::Type1 },
                built_by: format!("lucos-build {}", env!("CARGO_PKG_VERSION")),
                diff_sha256: lpk_format::hex::encode(&Sha256::digest(&report.diff)),
                files,
                functions: Vec::new(),
                data: Vec::new(),
                left_out: Vec::new(),
                omitted: Vec::new(),
                vouched: report.vouched.clone(),
                unchanged_modules: Vec::new(),
            },
            payload: Payload::default(),
            functions: Vec::new(),
            support: None,
            module: None,
            modules: Vec::new(),
        };
        let mut bundle = Bundle { support, ..empty.clone() };
        bundle.manifest.omitted = omitted(&report.omitted);
        let modules: BTreeSet<&String> = report.modules.iter().map(|unit| &unit.module).collect();
        bundle.manifest.unchanged_modules = modules.into_iter().cloned().collect();
        for (module, linked) in parts {
            let mut part = empty.clone();
            let into = if module.is_some() { &mut part } else { &mut bundle };
            into.manifest.functions = linked.manifest_functions;
            into.manifest.data = linked.manifest_data;
            into.manifest.left_out = linked.left_out;
            into.payload = linked.payload;
            into.functions = linked.functions;
            if module.is_some() {
                bundle.modules.push(Bundle { module, ..part });
            }
        }
        bundle
    }
}

/// Whether nothing would ever run or use what is linked.
fn is_idle(linked: &Linked) -> bool {
    linked.functions.is_empty() && linked.payload.changed.is_empty() && linked.payload.hooks.is_empty()
}

/// What refers to a datum that moves changes with it, in all units.
fn follow_moved(judged: &mut [Judged], pieces: &[(Pieces<'_>, Pieces<'_>)], plans: &[Vec<DatumPlan>]) {
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

/// Functions and data of a patched unit that other units can see.
fn global_names<'p>(unit: &link::Unit<'p, 'p>) -> impl Iterator<Item = String> + use<'p> {
    let patched = unit.patched;
    let global = patched.iter().filter(|(_, piece)| piece.global);
    global
        .flat_map(move |(_, piece)| piece.symbols.iter().map(move |&symbol| patched.object.symbol(symbol).name.clone()))
}

/// Code that only a module has and runs: when it is unloaded.
fn exit_code(unit: &str, patched: &Pieces<'_>, function: PieceIndex) -> Option<Reason> {
    let piece = patched.piece(function);
    let section = &patched.object.section(piece.section).name;
    section.starts_with(".exit.text").then(|| {
        let message = format!("`{}` is in {section}: it runs when the module is unloaded", piece.name);
        let help = "leave it out of the diff; the exit code of a loaded module cannot be replaced yet";
        Reason::new("special-code", message).at(unit.to_owned(), None).help(help)
    })
}

/// Changes that a running kernel does not see: what has run or been read at boot, and lists that do not grow.
fn without_effect(unit: &str, patched: &Pieces<'_>, diff: &ObjectDiff, when: &str) -> Vec<LeftOut> {
    let section_of = |piece: PieceIndex| patched.object.section(patched.piece(piece).section).name.clone();
    let note = |section: String, consequence: String| LeftOut { section, unit: unit.to_owned(), consequence };
    let functions = diff.changed_boot_functions().map(|function| {
        let piece = patched.piece(function);
        let SectionRole::BootCode(what) = piece.role else { return None };
        Some(note(section_of(function), format!("`{}` {what}: its change takes effect {when}", piece.name)))
    });
    let sections = diff.boot_sections.iter().map(|section| {
        Some(note(section.clone(), format!("{section} has been read already: its change takes effect {when}")))
    });
    let entries = diff.new_entries.iter().map(|&entry| {
        let SectionRole::List(what) = patched.piece(entry).role else { return None };
        Some(note(section_of(entry), format!("`{}`: {what}", patched.piece(entry).name)))
    });
    let exports = diff.new_exports.iter().map(|name| {
        let consequence = format!("`{name}` is newly exported: modules cannot link to it before the next boot");
        Some(note(format!("___ksymtab+{name}"), consequence))
    });
    functions.chain(sections).chain(entries).chain(exports).flatten().collect()
}

/// What the bundle leaves out of the diff, for its manifest.
fn omitted(reasons: &[Reason]) -> Vec<Omitted> {
    let mut omitted: Vec<Omitted> = reasons
        .iter()
        .map(|reason| Omitted {
            file: reason.file.clone().unwrap_or_default(),
            rule: reason.rule.clone(),
            message: reason.message.clone(),
        })
        .collect();
    omitted.sort();
    omitted.dedup();
    omitted
}

/// Functions whose jump had to be written over ftrace's no-op.
fn untraceable(linked: &Linked) -> impl Iterator<Item = Reason> {
    let over = |function: &&FunctionPatch| {
        let at = u32::from(function.jump_offset);
        function.sites.iter().any(|site| site.kind == BootSiteKind::Ftrace && site.offset == at)
    };
    linked.functions.iter().filter(over).map(|function| {
        let message = format!(
            "`{}` has no room for a jump behind its ftrace no-op: while the bundle is applied, tracing or probing its entry \
             would make the guest's ftrace warn and switch itself off",
            function.name
        );
        let help = "change its callers instead, or take that with --allow-untraceable";
        Reason::new("untraceable", message).at(function.unit.clone(), None).help(help)
    })
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

fn of_sites(error: SitesError) -> Stop {
    Stop::refused(Reason::new("unknown-kernel", error.to_string()))
}
