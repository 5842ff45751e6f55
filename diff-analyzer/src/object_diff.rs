//! Compares two compilations of one unit, function by function and datum by datum.
//!
//! Comes in: the original and the patched object in pieces. Decided: which functions and data changed; equal means equal
//! after relocations are resolved to what they mean (symbol and addend, string contents, anonymous data by contents), and
//! a difference that is only a line number is none. Goes out: [`ObjectDiff`].

use crate::correlate::{Correlation, correlate, is_fresh, without_counter, without_number};
use crate::object::{Definition, Object, Reloc, Section};
use crate::pieces::{Entry, Piece, PieceIndex, PieceKind, Pieces, Target, field_width};
use crate::special::{SectionRole, Table, role};
use object::elf;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;

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

/// Sections of a role, by name.
fn sections_of(object: &Object, wanted: SectionRole) -> BTreeMap<&str, Vec<&Section>> {
    let mut sections: BTreeMap<&str, Vec<&Section>> = BTreeMap::new();
    for section in &object.sections {
        let loaded = section.size > 0 && section.flags & elf::SHF_ALLOC.0 != 0;
        if loaded && role(&section.name, section.is_code()) == wanted {
            sections.entry(&section.name).or_default().push(section);
        }
    }
    sections
}

/// A function and its `.cold` part jump into each other's middle: they change together.
fn join_families(patched: &Pieces<'_>, functions: &mut [Compared]) {
    let family = |piece: PieceIndex| {
        let name = patched.piece(piece).name.as_str();
        name.strip_suffix(".cold").or_else(|| without_number(name).strip_suffix(".cold")).unwrap_or(name).to_owned()
    };
    let changed: HashSet<String> =
        functions.iter().filter(|f| f.change != Change::Same).map(|function| family(function.patched)).collect();
    for function in functions.iter_mut().filter(|function| function.change == Change::Same) {
        if changed.contains(&family(function.patched)) {
            function.change = Change::Changed(Difference::Reference(0));
        }
    }
}

/// Whether the compiler made a function for some of the calls of another one, with other parameters or less code.
pub fn is_clone(name: &str) -> bool {
    [".isra.", ".constprop.", ".part."].iter().any(|mark| name.contains(mark))
}

/// What calls a changed clone changes with it: a call of the old clone passes what the old clone takes, so its entry
/// cannot lead to the new one.
fn join_callers_of_clones(patched: &Pieces<'_>, functions: &mut [Compared], resigned: &BTreeSet<String>) {
    let apart = |name: &str| is_clone(name) || resigned.contains(name);
    loop {
        let clones: HashSet<PieceIndex> = (functions.iter())
            .filter(|function| function.change != Change::Same && apart(&patched.piece(function.patched).name))
            .map(|function| function.patched)
            .collect();
        let joined = join_callers(
            patched,
            functions,
            |target| matches!(target, Target::Piece(piece, _) if clones.contains(&piece)),
        );
        if !joined {
            return;
        }
        join_families(patched, functions);
    }
}

/// Marks the unchanged functions that refer to some targets as changed; whether there were any. What is gone after boot may
/// go on calling what it called.
fn join_callers(patched: &Pieces<'_>, functions: &mut [Compared], is_meant: impl Fn(Target) -> bool) -> bool {
    let mut joined = false;
    for function in functions.iter_mut().filter(|function| function.change == Change::Same) {
        let piece = patched.piece(function.patched);
        let section = &patched.object.section(piece.section).name;
        if section.starts_with(".init.") || section.starts_with(".exit.") {
            continue;
        }
        if let Some(reloc) = patched.relocs(function.patched).iter().find(|reloc| is_meant(patched.target(reloc))) {
            function.change = Change::Changed(Difference::Reference(reloc.offset - piece.range.start));
            joined = true;
        }
    }
    joined
}

pub(crate) struct Comparison<'a, 'o> {
    original: &'a Pieces<'o>,
    patched: &'a Pieces<'o>,
    correlation: &'a Correlation,
    /// Pairs that are being compared, which may refer to themselves.
    under_way: RefCell<HashSet<(PieceIndex, PieceIndex)>>,
}

impl Comparison<'_, '_> {
    /// Sections of a role that differ, by name; also those that come or go.
    fn sections_that_differ(&self, role: SectionRole) -> Vec<String> {
        let (old, new) = (sections_of(self.original.object, role), sections_of(self.patched.object, role));
        let names: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        let same = |name: &str| match (old.get(name), new.get(name)) {
            (Some(old), Some(new)) => {
                old.len() == new.len() && old.iter().zip(new).all(|(old, new)| self.same_section(old, new))
            }
            _ => false,
        };
        names.into_iter().filter(|name| !same(name)).map(str::to_owned).collect()
    }

    fn same_section(&self, old: &Section, new: &Section) -> bool {
        let (mut old_bytes, mut new_bytes) = (old.data.clone(), new.data.clone());
        blank(&mut old_bytes, &old.relocs, 0);
        blank(&mut new_bytes, &new.relocs, 0);
        old.size == new.size
            && old_bytes == new_bytes
            && old.relocs.len() == new.relocs.len()
            && old.relocs.iter().zip(&new.relocs).all(|(old, new)| self.same_reference(old, 0, new, 0))
    }

    fn piece(&self, old: PieceIndex, new: PieceIndex) -> Option<Difference> {
        let (old_piece, new_piece) = (self.original.piece(old), self.patched.piece(new));
        if old_piece.size() != new_piece.size() {
            return Some(Difference::Size(old_piece.size(), new_piece.size()));
        }
        if old_piece.role != new_piece.role {
            let name = |pieces: &Pieces<'_>, piece: PieceIndex| {
                pieces.object.section(pieces.piece(piece).section).name.clone()
            };
            return Some(Difference::Section(name(self.original, old), name(self.patched, new)));
        }
        if !self.under_way.borrow_mut().insert((old, new)) {
            // Equal as far as this reference goes: whoever began to compare these two decides.
            return None;
        }
        let found = self
            .contents((old, old_piece.range.clone()), (new, new_piece.range.clone()))
            .or_else(|| self.tables(old, new))
            .or_else(|| self.unwind(old_piece, new_piece));
        self.under_way.borrow_mut().remove(&(old, new));
        found
    }

    /// Compares two ranges of sections: bytes outside relocated fields, and what the fields refer to.
    fn contents(&self, old: (PieceIndex, Range<u64>), new: (PieceIndex, Range<u64>)) -> Option<Difference> {
        let (mut old_bytes, mut new_bytes) =
            (bytes_of(self.original, old.0, &old.1), bytes_of(self.patched, new.0, &new.1));
        blank(&mut old_bytes, self.original.relocs_in(self.original.piece(old.0).section, old.1.clone()), old.1.start);
        blank(&mut new_bytes, self.patched.relocs_in(self.patched.piece(new.0).section, new.1.clone()), new.1.start);
        // A section of zeros may have no contents in the file.
        let len = old_bytes.len().max(new_bytes.len());
        for (bytes, range) in [(&mut old_bytes, &old.1), (&mut new_bytes, &new.1)] {
            if bytes.is_empty() && range.end - range.start == len as u64 {
                bytes.resize(len, 0);
            }
        }
        first_difference(&old_bytes, &new_bytes).map(Difference::Bytes).or_else(|| self.references(old, new))
    }

    /// Compares what the fields of two ranges refer to.
    fn references(
        &self,
        (old, old_range): (PieceIndex, Range<u64>),
        (new, new_range): (PieceIndex, Range<u64>),
    ) -> Option<Difference> {
        let old_relocs = self.original.relocs_in(self.original.piece(old).section, old_range.clone());
        let new_relocs = self.patched.relocs_in(self.patched.piece(new).section, new_range.clone());
        let mut pairs = old_relocs.iter().zip(new_relocs);
        if let Some((_, new)) =
            pairs.find(|(old, new)| !self.same_reference(old, old_range.start, new, new_range.start))
        {
            return Some(Difference::Reference(new.offset - new_range.start));
        }
        let shorter = old_relocs.len().min(new_relocs.len());
        let extra = old_relocs.get(shorter).map(|reloc| reloc.offset - old_range.start);
        extra.or_else(|| new_relocs.get(shorter).map(|reloc| reloc.offset - new_range.start)).map(Difference::Reference)
    }

    pub(crate) fn same_reference(&self, old: &Reloc, old_start: u64, new: &Reloc, new_start: u64) -> bool {
        if !same_kind(old.kind, new.kind) || old.offset - old_start != new.offset - new_start {
            return false;
        }
        self.same_target(self.original.target(old), self.patched.target(new), old.addend == new.addend)
    }

    fn same_target(&self, old: Target, new: Target, same_addend: bool) -> bool {
        match (old, new) {
            (Target::External(a), Target::External(b)) => {
                let (a, b) = (self.original.object.symbol(a), self.patched.object.symbol(b));
                let same_value = a.definition != Definition::Absolute || a.value == b.value;
                a.name == b.name && a.definition == b.definition && same_value && same_addend
            }
            (Target::Piece(a, x), Target::Piece(b, y)) => self.same_place(a, x, b, y),
            _ => false,
        }
    }

    fn same_place(&self, old: PieceIndex, x: i64, new: PieceIndex, y: i64) -> bool {
        let (old_piece, new_piece) = (self.original.piece(old), self.patched.piece(new));
        if let Some(original) = self.correlation.original(new) {
            return original == old && x == y;
        }
        if old_piece.kind != new_piece.kind || x != y {
            return false;
        }
        match new_piece.kind {
            // A function or a datum with state of its own that has no original is new.
            PieceKind::Function => false,
            PieceKind::Datum if !is_fresh(new_piece) => false,
            PieceKind::Datum => {
                let same_name = without_counter(&old_piece.name) == without_counter(&new_piece.name);
                let difference = if may_hold_line(&new_piece.name) && old_piece.size() == new_piece.size() {
                    self.references((old, old_piece.range.clone()), (new, new_piece.range.clone()))
                } else {
                    self.piece(old, new)
                };
                same_name && difference.is_none()
            }
            PieceKind::Anonymous => self.piece(old, new).is_none(),
        }
    }

    fn tables(&self, old: PieceIndex, new: PieceIndex) -> Option<Difference> {
        let (old_entries, new_entries) = (self.original.entries(old), self.patched.entries(new));
        let counted = |entries: &[Entry], table| entries.iter().filter(|entry| entry.table == table).count();
        for entry in old_entries.iter().chain(new_entries) {
            if counted(old_entries, entry.table) != counted(new_entries, entry.table) {
                return Some(Difference::Table(entry.table));
            }
        }
        let mut pairs = old_entries.iter().zip(new_entries);
        pairs.find(|(old, new)| !self.same_entry(old, new)).map(|(_, new)| Difference::Table(new.table))
    }

    /// Unwind entries follow from the code, except for hints of inline assembly.
    fn unwind(&self, old: &Piece, new: &Piece) -> Option<Difference> {
        let old = self.original.unwind(old.section, old.range.clone());
        let new = self.patched.unwind(new.section, new.range.clone());
        let at = old.iter().zip(&new).position(|(old, new)| old != new);
        let at = at.or_else(|| (old.len() != new.len()).then_some(old.len().min(new.len())))?;
        let place = new.get(at).or_else(|| old.get(at)).map_or(0, |&(place, _)| place);
        Some(Difference::Unwind(place))
    }

    fn same_entry(&self, old: &Entry, new: &Entry) -> bool {
        let section = |pieces: &Pieces<'_>, entry: &Entry| pieces.object.section(entry.section).name.clone();
        // The name of a table of constants tells the variable.
        let other_variable = || section(self.original, old) != section(self.patched, new);
        if old.table != new.table || old.place != new.place || old.size != new.size || other_variable() {
            return false;
        }
        let range = |entry: &Entry| entry.offset..entry.offset + entry.size;
        let old_relocs = self.original.relocs_in(old.section, range(old));
        let new_relocs = self.patched.relocs_in(new.section, range(new));
        let take = |pieces: &Pieces<'_>, entry: &Entry| {
            let data = &pieces.object.section(entry.section).data;
            data.get(entry.offset as usize..(entry.offset + entry.size) as usize).unwrap_or(&[]).to_vec()
        };
        let (mut old_bytes, mut new_bytes) = (take(self.original, old), take(self.patched, new));
        blank(&mut old_bytes, old_relocs, old.offset);
        blank(&mut new_bytes, new_relocs, new.offset);
        if old.table == Table::Bugs && old_bytes.len() == 12 && new_bytes.len() == 12 {
            // struct bug_entry with CONFIG_DEBUG_BUGVERBOSE: the line number (include/asm-generic/bug.h).
            old_bytes[8..10].fill(0);
            new_bytes[8..10].fill(0);
        }
        if old.table == Table::Alternatives {
            return old_bytes == new_bytes && self.same_replacement(old, old_relocs, new, new_relocs);
        }
        old_bytes == new_bytes
            && old_relocs.len() == new_relocs.len()
            && old_relocs.iter().zip(new_relocs).skip(1).all(|(a, b)| self.same_reference(a, old.offset, b, new.offset))
    }

    /// Replacement code is anonymous and packed: compare what each of the two entries means.
    fn same_replacement(&self, old: &Entry, old_relocs: &[Reloc], new: &Entry, new_relocs: &[Reloc]) -> bool {
        let ([_, old_reloc], [_, new_reloc]) = (old_relocs, new_relocs) else { return false };
        let place = |pieces: &Pieces<'_>, reloc: &Reloc| match pieces.resolve(reloc.symbol, reloc.addend) {
            Target::Piece(piece, at) => Some((piece, pieces.piece(piece).range.start + at.max(0) as u64)),
            Target::External(_) => None,
        };
        let len = |pieces: &Pieces<'_>, entry: &Entry| {
            // struct alt_instr ends with instrlen, replacementlen (arch/x86/include/asm/alternative.h).
            let data = &pieces.object.section(entry.section).data;
            data.get((entry.offset + entry.size - 1) as usize).copied().map(u64::from)
        };
        if (len(self.original, old), len(self.patched, new)) == (Some(0), Some(0)) {
            return true;
        }
        match (
            place(self.original, old_reloc),
            len(self.original, old),
            place(self.patched, new_reloc),
            len(self.patched, new),
        ) {
            (Some((a, x)), Some(old_len), Some((b, y)), Some(new_len)) => {
                old_len == new_len && self.contents((a, x..x + old_len), (b, y..y + new_len)).is_none()
            }
            _ => false,
        }
    }
}

/// Whether two relocation types make the same field: assemblers write a call as one or the other, by who can see the callee.
pub(crate) fn same_kind(old: u32, new: u32) -> bool {
    let plain = |kind| if kind == elf::R_X86_64_PLT32.0 { elf::R_X86_64_PC32.0 } else { kind };
    plain(old) == plain(new)
}

/// Data that hold the line of the source they stand in.
fn may_hold_line(name: &str) -> bool {
    let stem = without_number(name);
    stem == "descriptor" || stem.starts_with("__UNIQUE_ID_") || stem == "_entry"
}

fn bytes_of(pieces: &Pieces<'_>, piece: PieceIndex, range: &Range<u64>) -> Vec<u8> {
    let data = &pieces.object.section(pieces.piece(piece).section).data;
    data.get(range.start as usize..range.end as usize).unwrap_or(&[]).to_vec()
}

/// Sets relocated fields to zero.
pub fn blank(bytes: &mut [u8], relocs: &[Reloc], start: u64) {
    for reloc in relocs.iter().filter(|reloc| reloc.kind != elf::R_X86_64_NONE.0) {
        let at = (reloc.offset - start) as usize;
        let end = (at + field_width(reloc.kind) as usize).min(bytes.len());
        bytes[at.min(end)..end].fill(0);
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<u64> {
    if a.len() != b.len() {
        return Some(a.len().min(b.len()) as u64);
    }
    a.iter().zip(b).position(|(a, b)| a != b).map(|at| at as u64)
}
