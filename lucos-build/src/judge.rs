//! From compiled units to a bundle: the phases behind the compiler.
//!
//! Comes in: both objects of each unit, the kernel image and its DWARF. Decided: whether the original is what the kernel
//! runs, what changed, Type 1 or Type 2, where each reference leads. Goes out: a [`Bundle`], `None` when nothing changes,
//! or the reasons for a refusal.

use crate::kbuild::compile::CompiledUnit;
use crate::kbuild::{BuildFolder, support};
use crate::pipeline::Stop;
use crate::progress::Progress;
use crate::report::{DatumRow, FunctionRow, Reason, Report, Verdict, millis};
use crate::request::Request;
use diff_analyzer::classify::{Finding, classify};
use diff_analyzer::dwarf_layout::{self, LayoutError, Layouts};
use diff_analyzer::layout_diff;
use diff_analyzer::object::{Object, ObjectError};
use diff_analyzer::object_diff::{ObjectDiff, compare, compare_resigned};
use diff_analyzer::pieces::{PieceIndex, Pieces, PiecesError};
use diff_analyzer::source_diff::FileChange;
use diff_analyzer::special::SectionRole;
use lpk_format::{
    BootSiteKind, Bundle, FunctionPatch, GuestProfile, KernelId, LeftOut, Manifest, Omitted, Payload, TableKind,
    UpdateType,
};
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
    /// Its units.
    pub units: &'a UnitIndex<'i>,
    /// Its prepared build folder.
    pub folder: &'a BuildFolder,
    /// Changed files of the diff.
    pub changes: &'a [FileChange],
    /// Name of the update.
    pub name: String,
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

/// A unit's objects, read.
struct Read {
    unit: String,
    original: Object,
    patched: Object,
    compiled: CompiledUnit,
}

/// A unit, proved, compared and classified.
struct Judged {
    proof: Proof,
    diff: ObjectDiff,
    findings: Vec<Finding>,
    /// Time taken: prove, compare and classify.
    times: [Duration; 2],
}

impl Judge<'_, '_> {
    /// Phases 5 to 9: a bundle, if the change has any effect.
    ///
    /// # Errors
    /// [`Stop`] when the change is refused or an object cannot be read.
    pub fn run(
        &self,
        compiled: &[CompiledUnit],
        report: &mut Report,
        progress: &Progress,
    ) -> Result<Option<Bundle>, Stop> {
        progress.phase("reading what the runtime must know of this kernel");
        let profile = self.profile()?;

        // 5. Prove, 6. compare, 7. and 8. compare layouts and classify: each unit by itself
        progress.phase(format!("proving and comparing {} units", compiled.len()));
        let read = self.read(compiled)?;
        let pieces = self.cut(&read, &profile)?;
        let judged = self.judge_all(&read, &pieces)?;
        let sum = |index: usize| millis(judged.iter().map(|unit| unit.times[index]).sum());
        (report.timings_ms.prove, report.timings_ms.compare) = (sum(0), sum(1));
        let without_effect: Vec<LeftOut> = (read.iter().zip(&pieces).zip(&judged))
            .flat_map(|((unit, (_, patched)), judged)| without_effect(&unit.unit, patched, &judged.diff))
            .collect();
        report.notes.extend(without_effect.iter().map(|note| format!("{}: {}", note.unit, note.consequence)));
        for (unit, _) in read.iter().zip(&judged).filter(|(_, judged)| judged.diff.is_empty()) {
            report.notes.push(format!("{}: the change makes no difference to its code or data", unit.unit));
        }
        if judged.iter().all(|unit| unit.diff.is_empty()) {
            return Ok(None);
        }
        self.refuse_type2(&read, &judged, report)?;

        // 9. Pre-link: prelink/src/link.rs
        let clock = Instant::now();
        progress.phase("resolving symbols");
        let tables = BootTables::read(self.image, &profile.sizes).map_err(of_sites)?;
        let units: Vec<link::Unit<'_, '_>> = (read.iter().zip(&pieces).zip(&judged))
            .filter(|(_, judged)| !judged.diff.is_empty())
            .map(|((unit, (original, patched)), judged)| link::Unit {
                name: &unit.unit,
                original,
                patched,
                diff: &judged.diff,
                proof: &judged.proof,
            })
            .collect();
        let mut linked = link::link(self.image, &tables, &units).map_err(|refusals| self.of_refusals(refusals))?;
        linked.left_out.extend(without_effect);
        report.timings_ms.link = millis(clock.elapsed());
        if linked.functions.is_empty() {
            let reason =
                Reason::new("nothing-to-redirect", "the change brings new code, but no existing function leads to it");
            return Err(Stop::refused(reason.help("a bundle needs at least one existing function that changes")));
        }
        report.notes.extend(untraceable(&linked));

        // The part that runs in the guest: kbuild/support.rs
        progress.phase("linking the support object");
        let support = match self.support(&profile.sizes) {
            Ok(support) => Some(support),
            Err(why) => {
                let tables = linked.payload.tables.iter().map(|table| table.kind);
                let required: Vec<&str> = tables.filter(|kind| kind.is_required()).map(TableKind::section).collect();
                if !required.is_empty() {
                    let message = format!("the guest has to know of entries in {}, but {why}", required.join(", "));
                    return Err(Stop::refused(Reason::new("no-support-object", message)));
                }
                report.notes.push(format!("the bundle can be applied in the arena only: {why}"));
                None
            }
        };
        report.verdict = Verdict::Type1;
        Ok(Some(self.bundle(linked, support, profile, report)))
    }

    /// Phases 5 to 8 for a few units of many: whether they already show that existing data changes.
    ///
    /// # Errors
    /// [`Stop`] when they do, or when an object cannot be read.
    pub fn refuse_early(&self, compiled: &[CompiledUnit], report: &mut Report) -> Result<(), Stop> {
        let profile = self.profile()?;
        let read = self.read(compiled)?;
        let judged = self.judge_all(&read, &self.cut(&read, &profile)?)?;
        self.refuse_type2(&read, &judged, report)
    }

    fn read(&self, compiled: &[CompiledUnit]) -> Result<Vec<Read>, Stop> {
        compiled.par_iter().map(|unit| read(unit.clone())).collect::<Result<_, _>>().map_err(Stop::failed)
    }

    fn cut<'o>(&self, read: &'o [Read], profile: &GuestProfile) -> Result<Vec<(Pieces<'o>, Pieces<'o>)>, Stop> {
        read.par_iter().map(|unit| cut(unit, &profile.sizes)).collect::<Result<_, _>>().map_err(Stop::failed)
    }

    fn judge_all(&self, read: &[Read], pieces: &[(Pieces<'_>, Pieces<'_>)]) -> Result<Vec<Judged>, Stop> {
        let judge =
            |(unit, (original, patched)): (&Read, &(Pieces<'_>, Pieces<'_>))| self.judge(unit, original, patched);
        read.par_iter().zip(pieces).map(judge).collect::<Result<_, _>>().map_err(Stop::failed)
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
        };
        link::link_support(self.image, &unit).map_err(|refusals| {
            let list: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            list.join("; ")
        })
    }

    fn profile(&self) -> Result<GuestProfile, Stop> {
        let path = self.request.source.join("arch/x86/include/asm/cpufeatures.h");
        let features =
            std::fs::read_to_string(&path).map_err(|source| Stop::failed(JudgeError::Read { path, source }))?;
        prelink::guest::profile(self.image, self.units, &features).map_err(Stop::failed)
    }

    fn judge(&self, unit: &Read, original: &Pieces<'_>, patched: &Pieces<'_>) -> Result<Judged, JudgeError> {
        let clock = Instant::now();
        let ranges: Vec<Range<u64>> = (self.units.named(&unit.unit).iter())
            .flat_map(|&id| self.units.unit(id).ranges.iter().map(|range| range.start..range.end))
            .collect();
        let proof = prove(self.image, original, &ranges);
        let proved = clock.elapsed();
        let mut diff = compare(original, patched);
        let mut findings = Vec::new();
        if !diff.is_empty() {
            let layouts = |path: &PathBuf| {
                let bytes = std::fs::read(path).map_err(|source| JudgeError::Read { path: path.clone(), source })?;
                dwarf_layout::of_object(&bytes).map_err(|source| JudgeError::Layout { path: path.clone(), source })
            };
            let original_layouts = || unit.compiled.original.as_ref().map_or_else(|| Ok(Layouts::default()), &layouts);
            let (old, new) = rayon::join(original_layouts, || layouts(&unit.compiled.patched));
            let (old, new) = (old?, new?);
            let resigned: BTreeSet<String> =
                layout_diff::compare_functions(&old, &new).into_iter().map(|change| change.name).collect();
            if !resigned.is_empty() {
                diff = compare_resigned(original, patched, resigned);
            }
            findings = classify(&diff, patched, &old, &new);
        }
        Ok(Judged { proof, diff, findings, times: [proved, clock.elapsed().saturating_sub(proved)] })
    }

    /// Type 2 is recognised and explained; applying it is not part of this version.
    fn refuse_type2(&self, read: &[Read], judged: &[Judged], report: &mut Report) -> Result<(), Stop> {
        let mut reasons: Vec<Reason> = Vec::new();
        for (unit, judged) in read.iter().zip(judged) {
            for finding in &judged.findings {
                let mut reason = Reason::new(finding.rule, finding.message.clone()).at(unit.unit.clone(), None);
                if let Some(place) = &finding.place {
                    let file = self.relative(&place.file);
                    let line = usize::try_from(place.line).ok();
                    let change = self.changes.iter().find(|change| change.path.as_os_str() == file.as_str());
                    reason.diff_line =
                        change.zip(line).and_then(|(change, line)| change.diff_line_of(line.checked_sub(1)?));
                    reason = reason.at(file, line);
                }
                reason = reason.help(
                    "existing data changes: this is a Type 2 update, which this version recognises but does not build",
                );
                // A type of a header is found again in every unit that sees it.
                let same = |known: &&mut Reason| known.rule == reason.rule && known.message == reason.message;
                match reasons.iter_mut().find(same) {
                    Some(known) => drop(known.units.insert(unit.unit.clone())),
                    None => reasons.push(reason.of_unit(unit.unit.clone())),
                }
            }
        }
        if reasons.is_empty() {
            return Ok(());
        }
        report.verdict = Verdict::Type2;
        Err(Stop::Refused(reasons))
    }

    /// A path in debug information, relative to the source tree.
    fn relative(&self, file: &str) -> String {
        let known = self.changes.iter().find(|change| file.ends_with(&format!("/{}", change.path.display())));
        known.map_or_else(|| file.to_owned(), |change| change.path.display().to_string())
    }

    fn of_refusals(&self, refusals: Vec<Refusal>) -> Stop {
        Stop::Refused(
            refusals
                .into_iter()
                .map(|refusal| {
                    let reason = Reason::new(refusal.rule, refusal.message).at(refusal.unit.clone(), None);
                    reason.help(refusal.help).of_unit(refusal.unit)
                })
                .collect(),
        )
    }

    fn bundle(&self, linked: Linked, support: Option<Payload>, profile: GuestProfile, report: &mut Report) -> Bundle {
        report.functions = (linked.manifest_functions.iter())
            .map(|function| FunctionRow {
                name: function.name.clone(),
                unit: function.unit.clone(),
                old_address: function.old_address.map(|address| format!("{address:#x}")),
                old_size: function.old_size,
                new_size: function.new_size,
            })
            .collect();
        report.data = (linked.manifest_data.iter())
            .map(|datum| DatumRow { name: datum.name.clone(), unit: datum.unit.clone(), size: datum.size })
            .collect();
        let mut files: Vec<String> = self.changes.iter().map(|change| change.path.display().to_string()).collect();
        files.sort();
        files.dedup();
        Bundle {
            kernel: KernelId {
                build_id: self.image.build_id().to_vec(),
                release: self.image.release().to_owned(),
                banner: self.image.banner().to_owned(),
            },
            profile,
            manifest: Manifest {
                name: self.name.clone(),
                update_type: UpdateType::Type1,
                built_by: format!("lucos-build {}", env!("CARGO_PKG_VERSION")),
                diff_sha256: lpk_format::hex::encode(&Sha256::digest(&report.diff)),
                files,
                functions: linked.manifest_functions,
                data: linked.manifest_data,
                left_out: linked.left_out,
                omitted: omitted(&report.omitted),
                unchanged_modules: (report.modules.iter().map(|unit| unit.module.clone()))
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect(),
            },
            payload: linked.payload,
            functions: linked.functions,
            support,
        }
    }
}

/// Changes that a running kernel does not see: what has run or been read at boot, and lists that do not grow.
fn without_effect(unit: &str, patched: &Pieces<'_>, diff: &ObjectDiff) -> Vec<LeftOut> {
    let section_of = |piece: PieceIndex| patched.object.section(patched.piece(piece).section).name.clone();
    let note = |section: String, consequence: String| LeftOut { section, unit: unit.to_owned(), consequence };
    let functions = diff.boot_functions.iter().map(|&function| {
        let piece = patched.piece(function);
        let SectionRole::BootCode(what) = piece.role else { return None };
        Some(note(section_of(function), format!("`{}` {what}: its change takes effect at the next boot", piece.name)))
    });
    let sections = diff.boot_sections.iter().map(|section| {
        Some(note(
            section.clone(),
            format!("{section} has been read at boot: its change takes effect at the next boot"),
        ))
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
fn untraceable(linked: &Linked) -> impl Iterator<Item = String> {
    let over = |function: &&FunctionPatch| {
        let at = u32::from(function.jump_offset);
        function.sites.iter().any(|site| site.kind == BootSiteKind::Ftrace && site.offset == at)
    };
    linked.functions.iter().filter(over).map(|function| {
        format!(
            "{}: `{}` has no room for a jump behind its ftrace no-op; while the bundle is applied, tracing or probing \
             its entry makes the guest's ftrace warn and switch itself off",
            function.unit, function.name
        )
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
