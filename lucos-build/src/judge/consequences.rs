//! What a change does not do, or costs, in a kernel that runs already.
//!
//! Comes in: a unit's comparison, or a linked part. Decided: what takes effect at the next boot only, and what cannot be. Goes out: notes
//! for the manifest and reasons.

use crate::report::Reason;
use diff_analyzer::object_diff::ObjectDiff;
use diff_analyzer::pieces::{PieceIndex, Pieces};
use diff_analyzer::special::SectionRole;
use lpk_format::{BootSiteKind, FunctionPatch, LeftOut};
use prelink::link::Linked;

/// Code that only a module has and runs: when it is unloaded.
pub(super) fn exit_code(unit: &str, patched: &Pieces<'_>, function: PieceIndex) -> Option<Reason> {
    let piece = patched.piece(function);
    let section = &patched.object.section(piece.section).name;
    section.starts_with(".exit.text").then(|| {
        let message = format!("`{}` is in {section}: it runs when the module is unloaded", piece.name);
        let help = "leave it out of the diff; the exit code of a loaded module cannot be replaced yet";
        Reason::new("special-code", message).at(unit.to_owned(), None).help(help)
    })
}

/// Changes that a running kernel does not see: what has run or been read at boot, and lists that do not grow.
pub(super) fn without_effect(unit: &str, patched: &Pieces<'_>, diff: &ObjectDiff, when: &str) -> Vec<LeftOut> {
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

/// Functions whose jump had to be written over ftrace's no-op.
pub(super) fn untraceable(linked: &Linked) -> impl Iterator<Item = Reason> {
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
