//! What goes along with a changed function.
//!
//! Comes in: a function of the patched object. Decided: which clones change with it, which entries of special tables are
//! about it, which strings, constants and data of its own it brings. Goes out: [`Along`].

use diff_analyzer::correlate::is_fresh;
use diff_analyzer::disassemble::string;
use diff_analyzer::object_diff::{Change, ObjectDiff};
use diff_analyzer::pieces::{PieceIndex, PieceKind, Pieces, Target};
use diff_analyzer::special::SectionRole;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What goes along with a function.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Along {
    /// Other functions that the compiler made of the same one and that change as well.
    pub clones: Vec<String>,
    /// Entries of special tables, by section.
    pub table_entries: BTreeMap<String, usize>,
    /// Strings.
    pub strings: Vec<String>,
    /// Number of constants without a name.
    pub constants: usize,
    /// Data that are new, or copied because they have no state (`__func__`).
    pub data: Vec<String>,
}

/// The name in the source: `foo` of `foo.isra.0.cold`.
fn family(name: &str) -> &str {
    match name.find('.') {
        Some(end) if end > 0 => &name[..end],
        _ => name,
    }
}

/// What goes along with a function of the patched object.
pub(super) fn of_function(patched: &Pieces<'_>, diff: &ObjectDiff, function: PieceIndex) -> Along {
    let name = patched.piece(function).name.as_str();
    let kin = diff.changed_functions().map(|other| other.patched).filter(|&other| other != function);
    let mut clones: Vec<String> =
        kin.map(|other| patched.piece(other).name.clone()).filter(|other| family(other) == family(name)).collect();
    clones.sort();
    let mut along = Along { clones, ..Along::default() };
    for entry in patched.entries(function) {
        *along.table_entries.entry(entry.table.section().to_owned()).or_default() += 1;
    }
    let new: BTreeSet<PieceIndex> =
        diff.data.iter().filter(|datum| datum.change == Change::New).map(|datum| datum.patched).collect();
    let mut seen = BTreeSet::new();
    let mut next: Vec<PieceIndex> = vec![function];
    while let Some(piece) = next.pop() {
        for reloc in patched.relocs(piece) {
            let Target::Piece(target, _) = patched.target(reloc) else { continue };
            let found = patched.piece(target);
            let brought = match found.kind {
                PieceKind::Anonymous => !found.role.is_code(),
                PieceKind::Datum => is_fresh(found) || new.contains(&target),
                PieceKind::Function => false,
            };
            if !brought || !seen.insert(target) {
                continue;
            }
            match (found.kind, found.role) {
                (PieceKind::Datum, _) => along.data.push(found.name.clone()),
                (_, SectionRole::Strings) => along.strings.push(string(patched, target)),
                _ => along.constants += 1,
            }
            next.push(target);
        }
    }
    along.data.sort();
    along.strings.sort();
    along
}

impl Along {
    /// In a few words.
    pub fn summary(&self) -> String {
        let mut parts = Vec::new();
        if !self.clones.is_empty() {
            parts.push(self.clones.join(", "));
        }
        parts.extend(self.table_entries.iter().map(|(section, count)| format!("{count} in {section}")));
        let counted = |count: usize, one: &str, many: &str| match count {
            0 => None,
            1 => Some(format!("1 {one}")),
            count => Some(format!("{count} {many}")),
        };
        parts.extend(counted(self.strings.len(), "string", "strings"));
        parts.extend(counted(self.constants, "constant", "constants"));
        parts.extend((!self.data.is_empty()).then(|| self.data.join(", ")));
        parts.join("; ")
    }
}
