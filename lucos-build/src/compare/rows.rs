//! The comparison of two objects as rows: one for each function and datum that is changed, new or gone.
//!
//! Comes in: the comparison. Decided: how a difference is told, with both sides of it. Goes out: [`Row`]s, sorted by name.

use super::along::{Along, of_function};
use diff_analyzer::disassemble::reference;
use diff_analyzer::layout_diff::SignatureChange;
use diff_analyzer::object::Reloc;
use diff_analyzer::object_diff::{Change, Compared, Difference, ObjectDiff, is_clone};
use diff_analyzer::pieces::{PieceIndex, PieceKind, Pieces, Target};
use serde::Serialize;

/// What became of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// It is different.
    Changed,
    /// It exists in the patched object only.
    New,
    /// It exists in the original only.
    Removed,
}

/// How something differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Its contents.
    Bytes,
    /// What a field of it refers to.
    Reference,
    /// Its size.
    Size,
    /// Its entries in a special table.
    Table,
    /// Its section.
    Section,
    /// The types it takes or returns.
    Signature,
    /// A part or clone of it, or a clone that it calls.
    Family,
}

/// A changed, new or removed function or datum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Name.
    pub name: String,
    /// What became of it.
    pub change: What,
    /// How it differs; absent when it is new or gone.
    pub kind: Option<Kind>,
    /// The same in words.
    pub reason: Option<String>,
    /// Section, in the patched object if it is there.
    pub section: String,
    /// Bytes in the original; absent when it is new.
    pub old_size: Option<u64>,
    /// Bytes in the patched object; absent when it is gone.
    pub new_size: Option<u64>,
    /// What goes along with it; for functions of the patched object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub along: Option<Along>,
}

/// What rows are made of.
pub(crate) struct Rows<'a, 'o> {
    pub(crate) original: &'a Pieces<'o>,
    pub(crate) patched: &'a Pieces<'o>,
    pub(crate) diff: &'a ObjectDiff,
    pub(crate) types: &'a [SignatureChange],
}

impl Rows<'_, '_> {
    /// Rows of functions.
    pub(super) fn functions(&self) -> Vec<Row> {
        self.rows(&self.diff.functions, PieceKind::Function)
    }

    /// Rows of data.
    pub(super) fn data(&self) -> Vec<Row> {
        self.rows(&self.diff.data, PieceKind::Datum)
    }

    fn rows(&self, list: &[Compared], kind: PieceKind) -> Vec<Row> {
        let removed = self.diff.removed.iter().filter(|&&gone| self.original.piece(gone).kind == kind);
        let removed = removed.map(|&gone| {
            let piece = self.original.piece(gone);
            Row {
                name: piece.name.clone(),
                change: What::Removed,
                kind: None,
                reason: None,
                section: self.original.object.section(piece.section).name.clone(),
                old_size: Some(piece.size()),
                new_size: None,
                along: None,
            }
        });
        let there = list.iter().filter(|compared| compared.change != Change::Same).map(|compared| self.row(compared));
        let mut rows: Vec<Row> = there.chain(removed).collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        rows
    }

    /// The row of one of them.
    pub(crate) fn row(&self, compared: &Compared) -> Row {
        let piece = self.patched.piece(compared.patched);
        let function = piece.kind == PieceKind::Function;
        let (kind, reason) = match &compared.change {
            Change::Changed(difference) => {
                let (kind, reason) = self.reason(compared, difference);
                (Some(kind), Some(reason))
            }
            Change::New | Change::Same => (None, None),
        };
        Row {
            name: piece.name.clone(),
            change: if compared.change == Change::New { What::New } else { What::Changed },
            kind,
            reason,
            section: self.patched.object.section(piece.section).name.clone(),
            old_size: compared.original.map(|original| self.original.piece(original).size()),
            new_size: Some(piece.size()),
            along: function.then(|| of_function(self.patched, self.diff, compared.patched)),
        }
    }

    /// The difference in words, with both sides.
    fn reason(&self, compared: &Compared, difference: &Difference) -> (Kind, String) {
        let name = &self.patched.piece(compared.patched).name;
        if let Some(types) = self.types.iter().find(|change| change.name == *name)
            && self.diff.resigned.contains(name)
        {
            return (Kind::Signature, format!("its type changes from `{}` to `{}`", types.old, types.new));
        }
        match difference {
            Difference::Size(..) => (Kind::Size, difference.to_string()),
            Difference::Bytes(_) => (Kind::Bytes, difference.to_string()),
            Difference::Table(_) => (Kind::Table, difference.to_string()),
            Difference::Section(..) => (Kind::Section, difference.to_string()),
            Difference::Reference(at) => self.reference(compared, *at),
            #[allow(unreachable_patterns, reason = "other kinds of difference say enough by themselves")]
            other => (Kind::Bytes, other.to_string()),
        }
    }

    fn reference(&self, compared: &Compared, at: u64) -> (Kind, String) {
        let new = field(self.patched, compared.patched, at);
        let old = compared.original.and_then(|original| field(self.original, original, at));
        let names = [(self.original, old), (self.patched, new)]
            .map(|(pieces, reloc)| reloc.map(|reloc| reference(pieces, reloc).text));
        if let Some(Target::Piece(target, _)) = new.map(|reloc| self.patched.target(reloc)) {
            let callee = &self.patched.piece(target).name;
            let clone = is_clone(callee) || self.diff.resigned.contains(callee);
            let pairs = self.diff.correlation.original(target);
            let same = old.is_some_and(
                |old| matches!(self.original.target(old), Target::Piece(piece, _) if Some(piece) == pairs),
            );
            if clone && same {
                return (
                    Kind::Family,
                    format!("at offset {at:#x} it calls `{callee}`, which changes with its callers"),
                );
            }
        }
        match names {
            [Some(old), Some(new)] if old != new => {
                (Kind::Reference, format!("at offset {at:#x} it refers to `{new}`, before to `{old}`"))
            }
            [Some(old), Some(_)] => {
                (Kind::Reference, format!("at offset {at:#x} it refers to `{old}`, which has other contents"))
            }
            [None, Some(new)] => {
                (Kind::Reference, format!("at offset {at:#x} it refers to `{new}`, before to nothing"))
            }
            [Some(old), None] => (Kind::Reference, format!("at offset {at:#x} it no longer refers to `{old}`")),
            [None, None] => (Kind::Family, "a part of it changes, which is entered from inside it".to_owned()),
        }
    }
}

/// The relocation at an offset of a piece.
fn field<'p>(pieces: &'p Pieces<'_>, piece: PieceIndex, at: u64) -> Option<&'p Reloc> {
    let place = pieces.piece(piece).range.start + at;
    let relocs = pieces.relocs(piece);
    relocs.binary_search_by_key(&place, |reloc| reloc.offset).ok().map(|index| &relocs[index])
}
