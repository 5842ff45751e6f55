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
//! 6. `Linker::replace`: the old functions, their bytes as proved or as the image has them, their boot sites, and where their frames
//!    can go on; link/returns.rs
//! 7. `Linker::place_hooks`: the author's hooks; link/hooks.rs

pub mod data;
mod entry;
mod hooks;
mod refer;
mod registered;
mod returns;
mod select;
mod tables;

use crate::by_hand::{Declared, OldFunction};
use crate::prove::Proof;
use crate::refusal::Refusal;
use crate::sites::BootTables;
use crate::symbol_db::KernelSymbol;
use crate::vmlinux::{ImageReloc, KernelImage};
use data::DatumPlan;
use diff_analyzer::correlate::without_number;
use diff_analyzer::object_diff::ObjectDiff;
use diff_analyzer::pieces::{PieceIndex, PieceKind, Pieces, Target};
use diff_analyzer::special::SectionRole;
use entry::NoPlace;
use lpk_format::{
    FunctionPatch, LeftOut, ManifestDatum, ManifestFunction, OldCode, Payload, Place, RelocKind, SectionKind, Symbol,
};
use registered::{Code, Rows};
pub use returns::Returns;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

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

/// A linked payload and what it replaces.
#[derive(Debug, Default)]
pub struct Linked {
    /// New code and data.
    pub payload: Payload,
    /// Old functions, sorted by address.
    pub functions: Vec<FunctionPatch>,
    /// Replaced and new functions for the manifest.
    pub manifest_functions: Vec<ManifestFunction>,
    /// New data for the manifest.
    pub manifest_data: Vec<ManifestDatum>,
    /// Old code that gives way without a jump of its own, sorted by address.
    pub left: Vec<OldCode>,
    /// Sections that are left out.
    pub left_out: Vec<LeftOut>,
    /// What the author should look at, though nothing forbids it.
    pub warnings: Vec<Refusal>,
    /// Where frames of the old functions can go on, by address, of those that are compiled twice.
    pub returns: BTreeMap<u64, Returns>,
    /// The symbols of the payload that are the kernel's, by their index, and how each was found.
    pub found: BTreeMap<u32, FoundSymbol>,
}

/// A symbol of the kernel that new code refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundSymbol {
    /// The symbol.
    pub symbol: KernelSymbol,
    /// How it was found.
    pub how: How,
}

/// How the place behind a name was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The proof of the original code led there.
    Proof,
    /// The image has one place of that name that others can see, or one at all.
    Name,
    /// The file of the unit has one place of that name.
    File,
    /// An update written by hand says which one is meant.
    Declared,
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

/// An old function as it stands in the image.
struct Old<'a> {
    name: String,
    unit: String,
    address: u64,
    expected: Vec<u8>,
    relocs: &'a [ImageReloc],
    parts: &'a [Range<u64>],
}

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

    fn replace(&mut self, tables: &BootTables<'_>) {
        for index in 0..self.carried.len() {
            let Carried { key, original } = self.carried[index];
            let unit = &self.units[key.0];
            let (_, piece) = self.piece(key);
            let mut entry = ManifestFunction {
                name: piece.name.clone(),
                unit: unit.name.to_owned(),
                old_address: None,
                old_size: 0,
                new_size: piece.size(),
            };
            if let Some(original) = original {
                let Some(&address) = unit.proof.functions.get(&original) else {
                    let why = unit.proof.mismatches.get(&original).map_or_else(String::new, ToString::to_string);
                    let help = "the source, configuration and compiler must be those the running kernel was built with";
                    self.refuse("not-proved", key, format!("compiled from the original source, {why}"), help);
                    continue;
                };
                if self.replacing.contains(&key) {
                    entry.old_address = Some(address);
                    entry.old_size = unit.original.piece(original).size();
                    self.replace_function(tables, key, original, address);
                }
            }
            if let Some(old) = self.declared_function(key) {
                entry.name.clone_from(&old.symbol.name);
                entry.unit.clone_from(&old.unit);
                entry.old_address = Some(old.symbol.address);
                entry.old_size = old.symbol.size;
                self.replace_declared(tables, key, old);
            }
            if !is_cold(&entry.name) {
                self.linked.manifest_functions.push(entry);
            }
        }
        self.linked.functions.sort_by_key(|function| function.old_address);
        self.note_old_code();
        self.note_left_out();
    }

    fn replace_function(&mut self, tables: &BootTables<'_>, key: Key, original: PieceIndex, address: u64) {
        let unit = &self.units[key.0];
        let len = unit.original.bytes(original).len();
        // The proof has compared these bytes with the image.
        let expected = self.image.bytes(address, len).unwrap_or_default().to_vec();
        let fields = unit.proof.fields.get(&address);
        let relocs = if self.image.has_relocs() {
            self.image.relocs(address, len as u64)
        } else {
            fields.expect("the proof has the fields of every function that it proved in an image without relocations")
        };
        let parts = self.parts((key.0, original));
        let (name, unit) = (self.piece(key).1.name.clone(), unit.name.to_owned());
        self.redirect(tables, key, Old { name, unit, address, expected, relocs, parts: &parts });
        self.find_returns(key, original, address);
    }

    /// A function that a unit written by hand declares to be replaced: the image itself says what its bytes are.
    fn replace_declared(&mut self, tables: &BootTables<'_>, key: Key, old: &OldFunction) {
        let (name, unit, address) = (old.symbol.name.clone(), old.unit.clone(), old.symbol.address);
        let expected = self.image.bytes(address, old.symbol.size as usize).unwrap_or_default().to_vec();
        self.redirect(tables, key, Old { name, unit, address, expected, relocs: &old.fields, parts: &old.parts });
    }

    /// What a function of a unit written by hand replaces.
    fn declared_function(&self, (unit, piece): Key) -> Option<&'a OldFunction> {
        self.declared.filter(|declared| declared.unit == unit)?.functions.get(&piece)
    }

    /// Leads the entry of an old function to the new one.
    fn redirect(&mut self, tables: &BootTables<'_>, key: Key, old: Old<'_>) {
        let Old { name, unit, address, expected, relocs, parts } = old;
        let size = self.piece(key).1.size() as u32;
        let sites = tables.of_function(address, &expected, relocs);
        let jump_offset = match self.jump_offset(tables, parts, address, &expected, &sites) {
            Ok(offset) => offset,
            Err(NoPlace::TooShort) => {
                let message = format!("`{name}` has {} bytes, too few for a jump", expected.len());
                return self.refuse("too-short", key, message, "change its callers instead");
            }
            Err(NoPlace::Target(at)) => {
                let message =
                    format!("the instruction at {at:#x} of `{name}` leads to where the jump to the new code would be");
                return self.refuse("jump-target", key, message, "change its callers instead");
            }
        };
        if self.linked.functions.iter().any(|other| other.old_address == address) {
            let message = format!("`{name}` is at {address:#x}, as is another function of the diff");
            self.refuse("alias-splits", key, message, "change its callers instead");
            return;
        }
        self.linked.functions.push(FunctionPatch {
            name,
            unit,
            old_address: address,
            jump_offset: jump_offset as u8,
            expected,
            sites,
            new_offset: self.placed[&key].1,
            new_size: size,
            returns: Vec::new(),
        });
    }

    /// Old code that no jump leads away from: what is carried without being redirected, what the new version has no more, and the
    /// unlikely parts of what is replaced.
    fn note_old_code(&mut self) {
        let mut left = BTreeMap::new();
        let mut note = |unit: &str, name: &str, code: Range<u64>| {
            let (name, unit) = (name.to_owned(), unit.to_owned());
            left.insert(code.start, OldCode { address: code.start, size: code.end - code.start, name, unit });
        };
        for carried in &self.carried {
            if let Some(old) = self.declared_function(carried.key) {
                old.parts.iter().for_each(|part| note(&old.unit, &old.symbol.name, part.clone()));
            }
        }
        for (index, unit) in self.units.iter().enumerate() {
            let carried = self.carried.iter().filter(|carried| carried.key.0 == index);
            for original in carried.filter_map(|carried| carried.original).chain(unit.diff.removed.iter().copied()) {
                let piece = unit.original.piece(original);
                if piece.kind == PieceKind::Function
                    && let Some(&address) = unit.proof.functions.get(&original)
                {
                    note(unit.name, &piece.name, address..address + piece.size());
                }
            }
        }
        for function in &self.linked.functions {
            left.remove(&function.old_address);
        }
        self.linked.left = left.into_values().filter(|code| code.size > 0).collect();
    }

    /// Sections that speak of carried functions, or hold them, and whose meaning is not carried.
    fn note_left_out(&mut self) {
        let carried: BTreeSet<Key> = self.carried.iter().map(|carried| carried.key).collect();
        let mut left_out = BTreeSet::new();
        for (unit_index, unit) in self.units.iter().enumerate() {
            for section in &unit.patched.object.sections {
                let role = diff_analyzer::special::role(&section.name, section.is_code());
                let (SectionRole::LeftOut(what) | SectionRole::Unsupported(what)) = role else { continue };
                let speaks_of = |reloc: &diff_analyzer::object::Reloc| {
                    let target = unit.patched.resolve(reloc.symbol, reloc.addend);
                    let Target::Piece(piece, _) = target else { return None };
                    carried.get(&(unit_index, piece)).copied()
                };
                let Some(key) = section.relocs.iter().find_map(speaks_of) else { continue };
                if let SectionRole::Unsupported(_) = role {
                    let message = format!("an entry of section {} is about it: {what}", section.name);
                    self.refuse("table-unsupported", key, message, "this kernel configuration is not supported yet");
                } else {
                    left_out.insert((unit.name, section.name.as_str(), what.to_owned()));
                }
            }
            for carried in self.carried.iter().filter(|carried| carried.key.0 == unit_index) {
                let piece = unit.patched.piece(carried.key.1);
                let section = unit.patched.object.section(piece.section).name.as_str();
                if let SectionRole::MarkedCode(what) = piece.role {
                    left_out.insert((unit.name, section, format!("`{}`: {what}", piece.name)));
                }
            }
        }
        let entry = |(unit, section, consequence): (&str, &str, String)| LeftOut {
            section: section.to_owned(),
            unit: unit.to_owned(),
            consequence,
        };
        self.linked.left_out.extend(left_out.into_iter().map(entry));
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

    fn piece(&self, (unit, piece): Key) -> (&'a Pieces<'o>, &'a diff_analyzer::pieces::Piece) {
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
        self.linked.payload.relocs.push(lpk_format::Reloc { section, offset, kind, symbol, addend });
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

/// Whether a piece can be a function of its own in messages.
fn describe(kind: PieceKind) -> &'static str {
    match kind {
        PieceKind::Function => "function",
        PieceKind::Datum => "datum",
        PieceKind::Anonymous => "contents",
    }
}
