//! What a bundle could not replace, as far as two objects alone tell.
//!
//! Comes in: the comparison of two objects. Decided: by the rules of docs/rules.md that need no kernel image. Goes out:
//! [`Reason`]s. With an image at hand the linker itself says more, and what this module says is not needed.

use crate::report::Reason;
use diff_analyzer::classify::Classification;
use diff_analyzer::dwarf_layout::Place;
use diff_analyzer::object_diff::{Change, ObjectDiff};
use diff_analyzer::pieces::{PieceIndex, PieceKind, Pieces, Target};
use diff_analyzer::special::{SectionRole, why_not};

const REBOOT: &str = "leave it out of the diff, or reboot into the new kernel";

/// What a build does about existing data.
const TYPE_2: &str =
    "existing data change: a build with the whole diff and the kernel image decides what becomes of them";

/// Existing types and data that change.
pub(super) fn of_findings(found: &Classification, unit: &str) -> Vec<Reason> {
    let reason = |rule, message: &str, place: &Option<Place>| {
        let reason = Reason::new(rule, message);
        let reason = match place {
            Some(place) => reason.at(place.file.clone(), usize::try_from(place.line).ok()),
            None => reason.at(unit, None),
        };
        reason.help(TYPE_2)
    };
    let types = found.types.iter().map(|finding| reason(finding.rule, &finding.message, &finding.change.place));
    types.chain(found.data.iter().map(|finding| reason(finding.rule, &finding.message, &finding.place))).collect()
}

/// What the two objects alone forbid.
pub(super) fn of_objects(original: &Pieces<'_>, patched: &Pieces<'_>, diff: &ObjectDiff, unit: &str) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut refuse =
        |rule, message: String, help: &str| reasons.push(Reason::new(rule, message).at(unit, None).help(help));
    for name in &diff.unknown_sections {
        let why = why_not(name).unwrap_or("a running kernel has read it already, or this version does not know it");
        let message = format!("section {name} changes: {why}");
        refuse("unknown-section", message, REBOOT);
    }
    for function in diff.changed_functions() {
        let piece = patched.piece(function.patched);
        let before = function.original.map(|index| (original, index));
        for (pieces, index) in before.into_iter().chain([(patched, function.patched)]) {
            let side = pieces.piece(index);
            let section = &pieces.object.section(side.section).name;
            match side.role {
                SectionRole::Code | SectionRole::MarkedCode(_) => continue,
                SectionRole::SpecialCode(why) => {
                    refuse("special-code", format!("`{}` is in section {section}: {why}", side.name), REBOOT);
                }
                _ => {
                    let why = why_not(section).unwrap_or("this version does not know it");
                    refuse("unknown-section", format!("`{}` is in section {section}: {why}", side.name), REBOOT);
                }
            }
            break;
        }
        let changed = matches!(function.change, Change::Changed(_));
        if changed && diff.resigned.contains(&piece.name) && !only_called(patched, function.patched) {
            let message = format!(
                "`{}` takes or returns other types than before, and is not only called by functions of its file",
                piece.name
            );
            refuse("signature-changed", message, "give the new version another name, and let the old one call it");
        }
        for target in targets(patched, function.patched) {
            if diff.correlation.is_ambiguous(target) {
                let message = format!(
                    "`{}` uses `{}`: whether that is the datum of the original or a new one cannot be told",
                    piece.name,
                    patched.piece(target).name
                );
                refuse("ambiguous-symbol", message, "give the new datum a name of its own");
            }
        }
    }
    for datum in diff.data.iter().filter(|datum| datum.change == Change::New) {
        let piece = patched.piece(datum.patched);
        if piece.role == SectionRole::PerCpu {
            let message = format!("`{}` is a new per-CPU datum; a running kernel has no room for it", piece.name);
            refuse("per-cpu-data", message, "use an array with an element for each processor");
        }
    }
    // Without debug information the classification had nothing to say.
    for (datum, difference) in diff.changed_data() {
        let name = &patched.piece(datum.patched).name;
        refuse("data-value", format!("existing datum `{name}`: {difference}"), TYPE_2);
    }
    reasons
}

fn targets(pieces: &Pieces<'_>, function: PieceIndex) -> impl Iterator<Item = PieceIndex> {
    pieces.relocs(function).iter().filter_map(|reloc| match pieces.target(reloc) {
        Target::Piece(piece, _) => Some(piece),
        Target::External(_) => None,
    })
}

/// Whether all that refers to a function are calls and jumps of functions of its own file.
fn only_called(pieces: &Pieces<'_>, function: PieceIndex) -> bool {
    !pieces.piece(function).global
        && pieces.iter().all(|(index, piece)| {
            let refers = |target| matches!(target, Target::Piece(piece, _) if piece == function);
            let mut references = pieces.relocs(index).iter().filter(|reloc| refers(pieces.target(reloc)));
            references.all(|reloc| piece.kind == PieceKind::Function && reloc.branch)
        })
}
