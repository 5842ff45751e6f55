//! `lucos-build compare`: what changes between two objects of one unit.
//!
//! Comes in: an original and a patched object, and the kernel image if there is one. Decided: what changed, what goes along
//! with it, what a bundle could not replace, by the same rules as a build. Goes out: [`Comparison`]. No source and no compiler
//! is needed: this is for pipelines that have both objects already.

pub(crate) mod along;
mod objections;
mod report;
pub(crate) mod rows;
mod sizes;

pub use report::{Comparison, Verdict};

use crate::args::CompareArgs;
use crate::explain::{self, Explained};
use crate::pipeline::Stop;
use crate::report::Reason;
use crate::request::open_image;
use diff_analyzer::classify::{Classification, classify};
use diff_analyzer::dwarf_layout::{self, LayoutError, Layouts};
use diff_analyzer::layout_diff;
use diff_analyzer::object::Object;
use diff_analyzer::object_diff::{compare, compare_resigned};
use diff_analyzer::pieces::{PieceKind, Pieces, PiecesError};
use diff_analyzer::special::SectionRole;
use object::{Architecture, Object as _, ObjectKind};
use prelink::dwarf::{DebugSections, DwarfError};
use prelink::prove::{Proof, prove};
use prelink::sites::{BootTables, SitesError};
use prelink::units::UnitIndex;
use prelink::vmlinux::KernelImage;
use prelink::{link, profile};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An input cannot be used, through no fault of the objects.
#[derive(Debug, thiserror::Error)]
enum CompareError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: the debug information of the kernel image cannot be used", path.display())]
    Dwarf { path: PathBuf, source: DwarfError },
}

/// LLVM's bitcode, which `-flto` writes instead of an object (LLVM bitcode file format, "Magic Numbers").
const BITCODE: &[u8] = b"BC\xc0\xde";

/// One of the two objects.
struct Side {
    path: PathBuf,
    bytes: Vec<u8>,
    object: Object,
    layouts: Option<Layouts>,
}

/// Compares two objects.
///
/// # Errors
/// The failure of the tool or its environment; objects that cannot be compared are a comparison with reasons.
pub fn run(args: &CompareArgs) -> Result<Comparison, Box<dyn std::error::Error + Send + Sync>> {
    let mut comparison = Comparison::new(&args.original, &args.patched);
    match drive(args, &mut comparison) {
        Ok(()) => {}
        Err(Stop::Refused(reasons)) => comparison.reasons = reasons,
        Err(Stop::Failed(error)) => return Err(error),
    }
    comparison.decide();
    Ok(comparison)
}

/// The kernel image, as far as a comparison needs it.
struct Kernel<'i> {
    image: &'i KernelImage,
    units: UnitIndex<'i>,
    sizes: BTreeMap<String, u64>,
}

fn drive(args: &CompareArgs, comparison: &mut Comparison) -> Result<(), Stop> {
    let (original, patched) = (read(&args.original)?, read(&args.patched)?);
    let image = args.vmlinux.as_deref().map(open_image).transpose()?;
    let kernel = image.as_ref().map(|image| open_kernel(image, args)).transpose()?;
    let known = kernel.as_ref().map(|kernel| kernel.sizes.clone()).unwrap_or_default();
    comparison.entry_sizes =
        sizes::entry_sizes(&known, [&original, &patched].map(|side| (&side.object, side.layouts.as_ref())));
    let sizes: BTreeMap<String, u64> =
        comparison.entry_sizes.iter().map(|entry| (entry.name.clone(), entry.size)).collect();
    let (old, new) = (cut(&original, &sizes)?, cut(&patched, &sizes)?);
    comparison.notes.extend(notes(&original, &patched, [&old, &new]));

    let mut diff = compare(&old, &new);
    let mut types = Vec::new();
    let mut findings = Classification::default();
    if let (Some(before), Some(after)) = (&original.layouts, &patched.layouts) {
        types = layout_diff::compare_functions(before, after);
        let resigned: BTreeSet<String> = types.iter().map(|change| change.name.clone()).collect();
        if !diff.is_empty() && !resigned.is_empty() {
            diff = compare_resigned(&old, &new, resigned);
        }
        findings = classify(&diff, &old, &new, before, after);
    }
    let rows = rows::Rows { original: &old, patched: &new, diff: &diff, types: &types };
    (comparison.functions, comparison.data) = (rows.functions(), rows.data());

    comparison.unit = unit_name([&original, &patched], kernel.as_ref());
    let name = comparison.unit.clone().unwrap_or_else(|| args.original.display().to_string());
    let proof = kernel.as_ref().map(|kernel| kernel.prove(comparison.unit.as_deref(), &old));
    let mut reasons = objections::of_findings(&findings, &name);
    match (&kernel, &proof) {
        (Some(kernel), Some(proof)) if reasons.is_empty() && !diff.is_empty() => {
            let tables = BootTables::read(kernel.image, &kernel.sizes).map_err(unknown_kernel)?;
            let unit = link::Unit { name: &name, original: &old, patched: &new, diff: &diff, proof, data: &[] };
            if let Err(refusals) = link::link(kernel.image, &tables, &[unit], &BTreeSet::new()) {
                reasons.extend(refusals.into_iter().map(Reason::from));
            }
        }
        _ => reasons.extend(objections::of_objects(&old, &new, &diff, &name)),
    }
    comparison.reasons = reasons;

    if !args.explain.is_empty() {
        let unit = Explained {
            unit: &name,
            original: &old,
            patched: &new,
            diff: &diff,
            bytes: [&original.bytes, &patched.bytes],
            proof: proof.as_ref().zip(kernel.as_ref().map(|kernel| kernel.image)),
            ranges: kernel.as_ref().map(|kernel| kernel.ranges(comparison.unit.as_deref())).unwrap_or_default(),
        };
        let (explanations, notes) = explain::functions(&args.explain, &[unit]);
        comparison.explanations = explanations;
        comparison.notes.extend(notes);
    }
    Ok(())
}

fn read(path: &Path) -> Result<Side, Stop> {
    let bytes =
        std::fs::read(path).map_err(|source| Stop::failed(CompareError::Read { path: path.to_owned(), source }))?;
    let refuse = |message: String, help: &str| {
        Stop::refused(Reason::new("not-an-object", message).at(path.display().to_string(), None).help(help))
    };
    let help = "give the .o file of one unit, as the kernel's build makes it";
    if bytes.starts_with(BITCODE) {
        let message = "this is LLVM bitcode, of a build with link-time optimisation: it has no code yet";
        return Err(refuse(message.to_owned(), "compile the unit without -flto (CONFIG_LTO_NONE)"));
    }
    let file = object::File::parse(bytes.as_slice()).map_err(|error| refuse(error.to_string(), help))?;
    if file.architecture() != Architecture::X86_64 || file.kind() != ObjectKind::Relocatable {
        let message =
            format!("{:?} for {:?}: this is no relocatable object for x86-64", file.kind(), file.architecture());
        return Err(refuse(message, help));
    }
    let object = Object::parse(&bytes).map_err(|error| refuse(error.to_string(), help))?;
    let layouts = match dwarf_layout::of_object(&bytes) {
        Ok(layouts) => Some(layouts),
        Err(LayoutError::Sections(dwarf_layout::sections::SectionsError::NoDebugInfo)) => None,
        Err(error) => {
            let message = format!("its debug information cannot be used: {error}");
            return Err(refuse(message, "compile it again, or strip its debug information"));
        }
    };
    Ok(Side { path: path.to_owned(), bytes, object, layouts })
}

fn cut<'o>(side: &'o Side, sizes: &BTreeMap<String, u64>) -> Result<Pieces<'o>, Stop> {
    Pieces::cut(&side.object, sizes).map_err(|error| {
        let rule = match error {
            PiecesError::Table { .. } => "unknown-entry-size",
            PiecesError::Unwind { .. } | PiecesError::Place { .. } => "not-an-object",
        };
        let help = "give the kernel image with --vmlinux: its debug information has the types of these tables";
        Stop::refused(Reason::new(rule, error.to_string()).at(side.path.display().to_string(), None).help(help))
    })
}

/// What a reader should know of the objects.
fn notes(original: &Side, patched: &Side, pieces: [&Pieces<'_>; 2]) -> Vec<String> {
    let mut notes = Vec::new();
    for side in [original, patched].into_iter().filter(|side| side.layouts.is_none()) {
        notes.push(format!(
            "{}: no debug information, so that types of data and functions cannot be compared",
            side.path.display()
        ));
    }
    let shares = |pieces: &&Pieces<'_>| {
        let mut in_section = BTreeMap::<_, usize>::new();
        for (_, piece) in pieces.iter() {
            if piece.kind == PieceKind::Function && piece.role == SectionRole::Code {
                *in_section.entry(piece.section).or_default() += 1;
            }
        }
        in_section.values().any(|&count| count > 1)
    };
    if pieces.iter().any(shares) {
        notes.push(
            "compiled without -ffunction-sections: a jump between functions that becomes shorter or longer makes its \
             function count as changed"
                .to_owned(),
        );
    }
    notes
}

fn unknown_kernel(error: SitesError) -> Stop {
    Stop::refused(Reason::new("unknown-kernel", error.to_string()))
}

fn open_kernel<'i>(image: &'i KernelImage, args: &CompareArgs) -> Result<Kernel<'i>, Stop> {
    let path = args.vmlinux.clone().unwrap_or_default();
    let failed = |source| Stop::failed(CompareError::Dwarf { path: path.clone(), source });
    let sections = DebugSections::load(|name| image.section_data(name)).map_err(|error| {
        Stop::refused(Reason::new("no-debug-information", error.to_string()).at(path.display().to_string(), None))
    })?;
    let units = UnitIndex::build(&sections).map_err(failed)?;
    let sizes = profile::layout_facts(&units).map_err(failed)?.sizes;
    Ok(Kernel { image, units, sizes })
}

impl Kernel<'_> {
    fn ranges(&self, unit: Option<&str>) -> Vec<Range<u64>> {
        let ids = unit.map(|unit| self.units.named(unit)).unwrap_or_default();
        ids.iter().flat_map(|&id| self.units.unit(id).ranges.iter().map(|range| range.start..range.end)).collect()
    }

    fn prove(&self, unit: Option<&str>, original: &Pieces<'_>) -> Proof {
        prove(self.image, original, &self.ranges(unit))
    }
}

/// The unit's name: as the image knows it, else the part that both objects were compiled by, whatever tree they were in.
fn unit_name(sides: [&Side; 2], kernel: Option<&Kernel<'_>>) -> Option<String> {
    let [old, new] = sides.map(|side| dwarf_layout::unit_name(&side.bytes));
    let old = old?;
    let parts: Vec<&str> = old.split('/').collect();
    let mut ends = (0..parts.len()).map(|from| parts[from..].join("/"));
    // The longest end of its path that names a unit of the image.
    if let Some(kernel) = kernel
        && let Some(end) = ends.clone().find(|end| !kernel.units.named(end).is_empty())
    {
        return Some(end);
    }
    let new = new.unwrap_or_default();
    ends.find(|end| new == *end || new.ends_with(&format!("/{end}"))).or(Some(old))
}
