//! Compares two compilations of one unit, function by function and datum by datum.
//!
//! Comes in: the original and the patched object in pieces. Decided: which functions and data changed; equal means equal
//! after relocations are resolved to what they mean (symbol and addend, string contents, anonymous data by contents), and
//! a difference that is only a line number is none. Goes out: [`ObjectDiff`].

use crate::correlate::{Correlation, correlate, is_fresh};
use crate::pieces::{PieceIndex, PieceKind, Pieces, Target};
use crate::special::{SectionRole, Table};
use std::cell::RefCell;
use std::collections::BTreeSet;

mod comparison;
mod follow;

pub use comparison::blank;
pub(crate) use comparison::{Comparison, same_kind};
pub use follow::is_clone;
use follow::{join_callers, join_callers_of_clones, join_families};

/// What became of a function or datum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Same,
    /// It is different: how.
    Changed(Difference),
    /// It exists in the patched object only.
    New,
}

/// The first difference found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Size in bytes, before and after.
    Size(u64, u64),
    /// Contents at a byte offset.
    Bytes(u64),
    /// What a relocation at a byte offset refers to.
    Reference(u64),
    /// Entries of a special section.
    Table(Table),
    /// How to unwind the stack from an instruction at a byte offset.
    Unwind(u64),
    /// The section, before and after.
    Section(String, String),
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Size(old, new) => write!(f, "its size changes from {old} to {new} bytes"),
            Self::Bytes(at) => write!(f, "its contents change at offset {at:#x}"),
            Self::Reference(at) => write!(f, "what it refers to at offset {at:#x} changes"),
            Self::Unwind(at) => write!(f, "how to unwind the stack from offset {at:#x} changes"),
            Self::Table(table) => write!(f, "its entries in {} change", table.section()),
            Self::Section(old, new) => write!(f, "it moves from section {old} to {new}"),
        }
    }
}

/// A function or datum of the patched object, and what became of it.
#[derive(Debug, Clone)]
pub struct Compared {
    /// In the patched object.
    pub patched: PieceIndex,
    /// In the original object, if it is there.
    pub original: Option<PieceIndex>,
    /// The difference.
    pub change: Change,
}

/// The comparison of one unit.
pub struct ObjectDiff {
    /// Functions of the patched object.
    pub functions: Vec<Compared>,
    /// Named data of the patched object.
    pub data: Vec<Compared>,
    /// Named functions and data that the patched object no longer has.
    pub removed: Vec<PieceIndex>,
    /// Sections that no rule knows and whose contents change, by name.
    pub unknown_sections: Vec<String>,
    /// Symbols that the patched object exports to modules and the original does not.
    pub new_exports: Vec<String>,
    /// Functions of the patched object that only boot runs.
    pub boot_functions: Vec<Compared>,
    /// Sections that only boot reads and whose contents change, by name.
    pub boot_sections: Vec<String>,
    /// New entries of lists that the kernel has read at boot.
    pub new_entries: Vec<PieceIndex>,
    /// Whether the patched object brings data that other units can see.
    pub new_global_data: bool,
    /// Names of functions that take or return other types than before.
    pub resigned: BTreeSet<String>,
    /// Names of data that are locks (debug information says so; [`crate::layout_diff::locks`]).
    pub locks: BTreeSet<String>,
    /// Which piece is which.
    pub correlation: Correlation,
}

impl ObjectDiff {
    /// Functions that are new or changed.
    pub fn changed_functions(&self) -> impl Iterator<Item = &Compared> {
        self.functions.iter().filter(|function| function.change != Change::Same)
    }

    /// Functions that only boot runs and that are new or changed.
    pub fn changed_boot_functions(&self) -> impl Iterator<Item = PieceIndex> {
        self.boot_functions.iter().filter(|function| function.change != Change::Same).map(|function| function.patched)
    }

    /// Existing data that changed.
    pub fn changed_data(&self) -> impl Iterator<Item = (&Compared, &Difference)> {
        self.data.iter().filter_map(|datum| match &datum.change {
            Change::Changed(difference) => Some((datum, difference)),
            _ => None,
        })
    }

    /// Functions that other units see and that take or return other types than before.
    pub fn resigned_globals<'p>(&self, patched: &'p Pieces<'_>) -> impl Iterator<Item = &'p str> {
        let changed = self.changed_functions().filter(|function| function.original.is_some());
        let pieces = changed.map(|function| patched.piece(function.patched));
        pieces.filter(|piece| piece.global && self.resigned.contains(&piece.name)).map(|piece| piece.name.as_str())
    }

    /// Has the callers of functions of other units change with these, which take or return other types now.
    pub fn follow(&mut self, patched: &Pieces<'_>, resigned: &BTreeSet<String>) {
        join_callers(patched, &mut self.functions, |target| match target {
            Target::External(symbol) => resigned.contains(&patched.object.symbol(symbol).name),
            Target::Piece(..) => false,
        });
        join_families(patched, &mut self.functions);
        join_callers_of_clones(patched, &mut self.functions, &self.resigned);
    }

    /// Has the functions change that refer to data of this unit, or to those of some names of others, which move.
    pub fn follow_data(&mut self, patched: &Pieces<'_>, data: &BTreeSet<PieceIndex>, names: &BTreeSet<String>) {
        join_callers(patched, &mut self.functions, |target| match target {
            Target::External(symbol) => names.contains(&patched.object.symbol(symbol).name),
            Target::Piece(piece, _) => data.contains(&piece),
        });
        join_families(patched, &mut self.functions);
        join_callers_of_clones(patched, &mut self.functions, &self.resigned);
    }

    /// The comparison, to be asked for more.
    pub(crate) fn comparison<'a, 'o>(
        &'a self,
        original: &'a Pieces<'o>,
        patched: &'a Pieces<'o>,
    ) -> Comparison<'a, 'o> {
        Comparison { original, patched, correlation: &self.correlation, under_way: RefCell::default() }
    }

    /// Whether the patch has no effect on this unit.
    pub fn is_empty(&self) -> bool {
        self.changed_functions().next().is_none()
            && self.changed_data().next().is_none()
            && self.unknown_sections.is_empty()
            && !self.new_global_data
    }
}

/// Compares an original and a patched unit.
pub fn compare(original: &Pieces<'_>, patched: &Pieces<'_>) -> ObjectDiff {
    compare_resigned(original, patched, BTreeSet::new())
}

/// Compares two units of which it is known that functions of the names `resigned` take or return other types now. As with a
/// clone, a call of the old one cannot lead to the new one, so their callers change with them.
pub fn compare_resigned(original: &Pieces<'_>, patched: &Pieces<'_>, resigned: BTreeSet<String>) -> ObjectDiff {
    let correlation = correlate(original, patched);
    let comparison = Comparison { original, patched, correlation: &correlation, under_way: RefCell::default() };
    let (mut functions, mut data) = (Vec::new(), Vec::new());
    for (index, piece) in patched.iter() {
        let list = match piece.kind {
            PieceKind::Function => &mut functions,
            PieceKind::Datum if !is_fresh(piece) => &mut data,
            _ => continue,
        };
        let original = correlation.original(index);
        let change = match original {
            None => Change::New,
            Some(old) => comparison.piece(old, index).map_or(Change::Same, Change::Changed),
        };
        list.push(Compared { patched: index, original, change });
    }
    join_families(patched, &mut functions);
    join_callers_of_clones(patched, &mut functions, &resigned);
    let role_of = |compared: &Compared| patched.piece(compared.patched).role;
    let boot_functions = take(&mut functions, |function| matches!(role_of(function), SectionRole::BootCode(_)));
    take(&mut data, |datum| role_of(datum) == SectionRole::BootData);
    let new = |datum: &Compared| datum.change == Change::New && matches!(role_of(datum), SectionRole::List(_));
    let new_entries = take(&mut data, new).iter().map(|entry| entry.patched).collect();
    let kept = correlation.originals();
    let named = |kind| matches!(kind, PieceKind::Function | PieceKind::Datum);
    let removed = original
        .iter()
        .filter(|(index, piece)| named(piece.kind) && !is_fresh(piece) && !kept.contains(index))
        .map(|(index, _)| index)
        .collect();
    let unknown_sections = comparison.sections_that_differ(SectionRole::Unknown);
    let boot_sections = comparison.sections_that_differ(SectionRole::BootData);
    let new_exports = exports(patched).difference(&exports(original)).cloned().collect();
    let new_global_data = data.iter().any(|datum| datum.change == Change::New && patched.piece(datum.patched).global);
    ObjectDiff {
        functions,
        data,
        removed,
        unknown_sections,
        new_exports,
        boot_functions,
        boot_sections,
        new_entries,
        new_global_data,
        resigned,
        locks: BTreeSet::new(),
        correlation,
    }
}

/// Takes out of a list what is set apart.
fn take(list: &mut Vec<Compared>, apart: impl Fn(&Compared) -> bool) -> Vec<Compared> {
    list.extract_if(.., |compared| apart(compared)).collect()
}

/// Names that `EXPORT_SYMBOL` puts into sections of their own (`___ksymtab+NAME`, `___ksymtab_gpl+NAME`).
fn exports(pieces: &Pieces<'_>) -> BTreeSet<String> {
    let sections = pieces.object.sections.iter().filter(|section| section.name.starts_with("___ksymtab"));
    sections.filter_map(|section| section.name.split_once('+').map(|(_, name)| name.to_owned())).collect()
}
