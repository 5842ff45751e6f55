//! Links changed functions into a payload at no address yet: every symbol has one place, only the slide is missing.
//!
//! Comes in: per unit, both objects in pieces, their comparison and the proof of the original; the kernel image. Decided:
//! what goes into the bundle (changed and new functions, new data, strings and constants they use), and where every
//! reference leads. Goes out: [`Linked`], or all reasons why it cannot be done.
//!
//! 1. `Linker::select`: which functions are carried, and which of these replace an old one; link/select.rs
//! 2. `Linker::place_functions`: their place in `.text`
//! 3. `Linker::relocate_functions`: their references, which bring data, strings and replacement code along;
//!    link/refer.rs, link/tables.rs
//! 4. `Linker::change_data`: the new contents of existing data; link/data.rs
//! 5. `Linker::place_tables`: the tables about them that the guest's kernel has to know; link/registered.rs
//! 6. `Linker::replace`: the old functions, their bytes as proved or as the image has them, their boot sites, and where their
//!    frames can go on; link/replace.rs, link/entry.rs, link/returns.rs
//! 7. `Linker::place_hooks`: the author's hooks; link/hooks.rs

pub mod data;
mod entry;
mod hooks;
mod refer;
mod registered;
mod replace;
mod result;
mod returns;
mod select;
mod tables;

pub use result::{FoundSymbol, How, Linked};
pub use returns::Returns;

use crate::by_hand::Declared;
use crate::prove::Proof;
use crate::refusal::Refusal;
use crate::sites::BootTables;
use crate::vmlinux::KernelImage;
use data::DatumPlan;
use diff_analyzer::correlate::without_number;
use diff_analyzer::object_diff::ObjectDiff;
use diff_analyzer::pieces::{Piece, PieceIndex, PieceKind, Pieces};
use lpk_format::{Payload, Place, Reloc, RelocKind, SectionKind, Symbol};
use registered::{Code, Rows};
use std::collections::{BTreeSet, HashMap};

/// A unit with all that is known of it.
pub struct Unit<'a, 'o> {
    /// Path relative to the source tree.
    pub name: &'a str,
    /// The original object.
    pub original: &'a Pieces<'o>,
    /// The patched object.
    pub patched: &'a Pieces<'o>,
    /// Their comparison.
    pub diff: &'a ObjectDiff,
    /// What was proved about the original.
    pub proof: &'a Proof,
    /// What becomes of existing data that the change alters.
    pub data: &'a [DatumPlan],
}

/// Links units. `elsewhere` names what another part of the same change defines; it cannot be referred to, and is said.
///
/// # Errors
/// All [`Refusal`]s found, sorted; never a part of the change.
pub fn link<'a>(
    image: &'a KernelImage,
    tables: &BootTables<'_>,
    units: &'a [Unit<'a, '_>],
    elsewhere: &'a BTreeSet<String>,
) -> Result<Linked, Vec<Refusal>> {
    link_declared(image, tables, units, elsewhere, None)
}

/// Links units of which one is written by hand: it declares what its functions and data replace, and hooks.
///
/// # Errors
/// All [`Refusal`]s found, sorted; never a part of the change.
pub fn link_declared<'a>(
    image: &'a KernelImage,
    tables: &BootTables<'_>,
    units: &'a [Unit<'a, '_>],
    elsewhere: &'a BTreeSet<String>,
    declared: Option<&'a Declared>,
) -> Result<Linked, Vec<Refusal>> {
    let mut linker = Linker { elsewhere: Some(elsewhere), declared, ..Linker::new(image, units) };
    linker.select();
    linker.place_functions();
    linker.place_descriptors();
    linker.relocate_functions();
    linker.change_data();
    linker.relocate_descriptors();
    linker.refuse_boot_setup();
    linker.register_unprobed();
    linker.place_tables();
    linker.replace(tables);
    linker.place_hooks();
    linker.finish()
}

/// Links all of an object that no kernel has yet, the support object: nothing is replaced, and nobody is told of it.
///
/// # Errors
/// All [`Refusal`]s found, sorted.
pub fn link_support(image: &KernelImage, unit: &Unit<'_, '_>) -> Result<Payload, Vec<Refusal>> {
    let mut linker = Linker::new(image, std::slice::from_ref(unit));
    linker.select();
    linker.place_functions();
    linker.relocate_functions();
    for datum in &unit.diff.data {
        linker.payload_symbol((0, datum.patched));
    }
    linker.refuse_tables();
    linker.finish().map(|linked| linked.payload)
}

/// A function of a unit: index of the unit, and of the piece in the patched object.
type Key = (usize, PieceIndex);

/// A function that the bundle carries.
struct Carried {
    key: Key,
    /// In the original object, when it replaces an old function.
    original: Option<PieceIndex>,
}

struct Linker<'a, 'o> {
    image: &'a KernelImage,
    units: &'a [Unit<'a, 'o>],
    /// What another part of the same change defines.
    elsewhere: Option<&'a BTreeSet<String>>,
    /// What a unit that is written by hand replaces.
    declared: Option<&'a Declared>,
    carried: Vec<Carried>,
    /// Carried functions that have an old version, whose entry will lead to the new one.
    replacing: BTreeSet<Key>,
    /// Functions that cannot be carried, for which a reason is known.
    refused: BTreeSet<Key>,
    /// Functions and data of the units by name, for references between them.
    globals: HashMap<String, Key>,
    /// Where pieces lie in the payload.
    placed: HashMap<Key, (SectionKind, u32)>,
    /// Places of strings, by width of a character and contents.
    strings: HashMap<(u64, Vec<u8>), u32>,
    /// Tables about new code, until all of it has its place.
    rows: Rows,
    /// Descriptors of `pr_debug` in the order of their table.
    descriptors: Vec<Key>,
    /// Data whose contents hooks carry: name and old address.
    by_hooks: Vec<(Key, String, u64)>,
    /// Indices of the payload's symbols.
    symbols: HashMap<(String, Place), u32>,
    linked: Linked,
    refusals: BTreeSet<Refusal>,
}

impl<'a, 'o> Linker<'a, 'o> {
    fn new(image: &'a KernelImage, units: &'a [Unit<'a, 'o>]) -> Self {
        Self {
            image,
            units,
            elsewhere: None,
            declared: None,
            carried: Vec::new(),
            replacing: BTreeSet::new(),
            refused: BTreeSet::new(),
            globals: HashMap::new(),
            placed: HashMap::new(),
            strings: HashMap::new(),
            rows: Rows::new(),
            descriptors: Vec::new(),
            by_hooks: Vec::new(),
            symbols: HashMap::new(),
            linked: Linked::default(),
            refusals: BTreeSet::new(),
        }
    }

    fn refuse(&mut self, rule: &'static str, (unit, piece): Key, message: String, help: &str) {
        let unit = &self.units[unit];
        let subject = unit.patched.piece(piece).name.clone();
        self.refusals.insert(Refusal { rule, unit: unit.name.to_owned(), subject, message, help: help.to_owned() });
    }

    fn place_functions(&mut self) {
        for index in 0..self.carried.len() {
            let key = self.carried[index].key;
            let (pieces, piece) = self.piece(key);
            let (code, name, size) = (pieces.bytes(key.1), piece.name.clone(), piece.size());
            let offset = self.append_text(code, 16);
            self.placed.insert(key, (SectionKind::Text, offset));
            let place = Place::Payload { section: SectionKind::Text, offset };
            self.symbol(&name, place, size, true);
        }
    }

    fn relocate_functions(&mut self) {
        for index in 0..self.carried.len() {
            let key = self.carried[index].key;
            let (pieces, piece) = self.piece(key);
            let offset = self.placed[&key].1;
            let code = Code { piece: key.1, part: 0..piece.size(), offset };
            let dropped = self.apply_tables(key, &code);
            self.register_unwind(key, &code);
            for reloc in pieces.relocs(key.1) {
                let at = reloc.offset - piece.range.start;
                if !dropped.contains(&at) {
                    self.relocate(key, reloc, SectionKind::Text, offset + at as u32);
                }
            }
        }
    }

    fn finish(mut self) -> Result<Linked, Vec<Refusal>> {
        if !self.refusals.is_empty() {
            return Err(self.refusals.into_iter().collect());
        }
        let payload = &mut self.linked.payload;
        payload.relocs.sort_by_key(|reloc| (reloc.section, reloc.offset));
        payload.fixups.sort_by_key(tables::fixup_order);
        payload.changed.sort_by_key(|datum| datum.old_address);
        Ok(self.linked)
    }

    fn piece(&self, (unit, piece): Key) -> (&'a Pieces<'o>, &'a Piece) {
        let pieces = self.units[unit].patched;
        (pieces, pieces.piece(piece))
    }

    /// Appends code, padded with `int3` to the alignment.
    fn append_text(&mut self, code: &[u8], align: usize) -> u32 {
        append(&mut self.linked.payload.text, code, align, 0xcc)
    }

    /// The one symbol of that name and place.
    fn symbol(&mut self, name: &str, place: Place, size: u64, function: bool) -> u32 {
        let symbols = &mut self.linked.payload.symbols;
        *self.symbols.entry((name.to_owned(), place)).or_insert_with(|| {
            symbols.push(Symbol { name: name.to_owned(), place, size, function });
            symbols.len() as u32 - 1
        })
    }

    fn push_reloc(&mut self, section: SectionKind, offset: u32, kind: RelocKind, symbol: u32, addend: i64) {
        self.linked.payload.relocs.push(Reloc { section, offset, kind, symbol, addend });
    }
}

/// Whether a function is the unlikely part of another one and is never entered by a call.
fn is_cold(name: &str) -> bool {
    without_number(name).ends_with(".cold")
}

fn append(to: &mut Vec<u8>, bytes: &[u8], align: usize, fill: u8) -> u32 {
    to.resize(to.len().next_multiple_of(align.max(1)), fill);
    let offset = to.len() as u32;
    to.extend_from_slice(bytes);
    offset
}

/// What a piece is called in messages.
fn describe(kind: PieceKind) -> &'static str {
    match kind {
        PieceKind::Function => "function",
        PieceKind::Datum => "datum",
        PieceKind::Anonymous => "contents",
    }
}
