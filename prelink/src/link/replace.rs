//! The old functions: what leads from them to the new ones.
//!
//! Comes in: the carried functions, and which old ones they replace. Decided: whether an old function is proved and has room for a
//! jump; which old code gives way without one; which sections about the new code nobody reads. Goes out: the bundle's functions,
//! with their bytes as they were proved or as the image has them, and the entries of the manifest.

use super::entry::NoPlace;
use super::{Carried, Key, Linker, is_cold};
use crate::by_hand::OldFunction;
use crate::sites::BootTables;
use crate::vmlinux::ImageReloc;
use diff_analyzer::pieces::{PieceIndex, PieceKind, Target};
use diff_analyzer::special::SectionRole;
use lpk_format::{FunctionPatch, LeftOut, ManifestFunction, OldCode};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// An old function as it stands in the image.
struct Old<'a> {
    name: String,
    unit: String,
    address: u64,
    expected: Vec<u8>,
    relocs: &'a [ImageReloc],
    parts: &'a [Range<u64>],
}

impl<'a> Linker<'a, '_> {
    pub(super) fn replace(&mut self, tables: &BootTables<'_>) {
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
    pub(super) fn declared_function(&self, (unit, piece): Key) -> Option<&'a OldFunction> {
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
}
