//! Tables about new code that the guest's kernel has to know.
//!
//! Comes in: carried code with its entries in `__ex_table`, `__bug_table`, `__jump_table`, `.orc_unwind`,
//! `_kprobe_blacklist` and its descriptors in `__dyndbg`. Decided: that every place an entry names is a place of new code, and that the kernel can follow the
//! entry from where new code lives. Goes out: one contiguous range of `.data` per table, with relocations.
//!
//! Entries are in the order of the code that they are about, so that the same units give the same bytes; the kernel sorts
//! them again when it is told of them.

use super::{Key, Linker, append};
use diff_analyzer::correlate::without_number;
use diff_analyzer::object::Reloc;
use diff_analyzer::pieces::{Entry, PieceIndex, PieceKind, Target, field_width};
use diff_analyzer::special::{DYNAMIC_DEBUG, SectionRole, Table, is_unprobed, role};
use lpk_format::{Place, RelocKind, SectionKind, TableKind};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A piece of code, or a part of it, in the bundle.
#[derive(Debug, Clone)]
pub(super) struct Code {
    /// The piece.
    pub(super) piece: PieceIndex,
    /// Which bytes of it.
    pub(super) part: Range<u64>,
    /// Offset of the first of these bytes in `.text`.
    pub(super) offset: u32,
}

impl Code {
    fn holds(&self, piece: PieceIndex, at: u64) -> bool {
        self.piece == piece && (self.part.contains(&at) || at == self.part.end)
    }

    /// Where a byte of it lies in `.text`.
    pub(super) fn at(&self, place: u64) -> u32 {
        self.offset + (place - self.part.start) as u32
    }
}

/// An entry of a table to be.
#[derive(Debug)]
pub(super) struct Row {
    bytes: Vec<u8>,
    /// Fields: offset in the entry, kind, symbol, addend.
    fields: Vec<(u32, RelocKind, u32, i64)>,
}

/// The tables to be: entries by the place in `.text` that they are about.
pub(super) type Rows = BTreeMap<TableKind, Vec<(u32, Row)>>;

/// The kind of table that entries of a special section become.
pub(super) fn kind_of(table: Table) -> Option<TableKind> {
    match table {
        Table::Exceptions => Some(TableKind::Exceptions),
        Table::Bugs => Some(TableKind::Bugs),
        Table::JumpLabels => Some(TableKind::JumpLabels),
        _ => None,
    }
}

impl Linker<'_, '_> {
    /// Takes an entry over: fields that name code lead into new code, all others wherever such a reference leads.
    pub(super) fn register(&mut self, key: Key, entry: &Entry, kind: TableKind, code: &Code) {
        let (pieces, _) = self.piece(key);
        let start = entry.offset as usize;
        let data = &pieces.object.section(entry.section).data;
        let Some(bytes) = data.get(start..start + entry.size as usize) else { return };
        let mut row = Row { bytes: bytes.to_vec(), fields: Vec::new() };
        for reloc in pieces.relocs_in(entry.section, entry.offset..entry.offset + entry.size) {
            let at = (reloc.offset - entry.offset) as usize;
            if let Some(field) = row.bytes.get_mut(at..at + field_width(reloc.kind) as usize) {
                field.fill(0);
            }
            let Some((reloc_kind, symbol, addend)) = self.field(key, reloc, entry.table, code) else { return };
            if kind == TableKind::JumpLabels && field_width(reloc.kind) == 8 && !self.can_follow(key, symbol) {
                return;
            }
            row.fields.push((at as u32, reloc_kind, symbol, addend));
        }
        self.rows.entry(kind).or_default().push((code.at(entry.place), row));
    }

    /// Where a field of a table entry leads.
    fn field(&mut self, key: Key, reloc: &Reloc, table: Table, code: &Code) -> Option<(RelocKind, u32, i64)> {
        let (pieces, piece) = self.piece(key);
        let Target::Piece(target, at) = pieces.target(reloc) else { return self.reference(key, reloc) };
        let other = pieces.piece(target);
        let is_code = other.kind == PieceKind::Function || pieces.object.section(other.section).is_code();
        if !is_code {
            return self.reference(key, reloc);
        }
        let kind = super::refer::reloc_kind(reloc.kind)?;
        let place = at.max(0) as u64;
        if code.holds(target, place) {
            // By the section: the code may be a copy that has no symbol.
            let text = self.section_symbol(SectionKind::Text);
            return Some((kind, text, i64::from(code.at(place))));
        }
        let carried = self.carried.iter().any(|carried| carried.key == (key.0, target));
        let symbol = carried.then(|| self.payload_symbol((key.0, target))).flatten();
        if symbol.is_none() {
            let message = format!(
                "an entry of `{}` in {} leads into `{}`, which stays as it is",
                piece.name,
                table.section(),
                other.name
            );
            self.refuse("table-unsupported", key, message, "report the function");
        }
        Some((kind, symbol?, at))
    }

    /// Whether a kernel that loads a module can make its sites follow this key. The list of sites hangs on the key
    /// (`jump_label_add_module`, kernel/jump_label.c): a key that is read-only after boot cannot take it.
    fn can_follow(&mut self, key: Key, symbol: u32) -> bool {
        let symbol = &self.linked.payload.symbols[symbol as usize];
        let Place::Kernel(address) = symbol.place else { return true };
        let bound = |name| self.image.symbols().address_of(name);
        let sealed = bound("__start_ro_after_init")
            .zip(bound("__end_ro_after_init"))
            .is_some_and(|(start, end)| (start..end).contains(&address));
        if sealed {
            let message = format!(
                "new code tests the static key `{}`, which the kernel has made read-only after boot: sites cannot be added to it",
                symbol.name
            );
            self.refuse("table-unsupported", key, message, "test something else than this key");
        }
        !sealed
    }

    /// Takes over how to unwind the stack from a piece of code, and says at its end that nothing is known behind it
    /// (`orc_create`, tools/objtool/orc_gen.c, does so at the end of each section).
    pub(super) fn register_unwind(&mut self, key: Key, code: &Code) {
        let (pieces, _) = self.piece(key);
        let piece = pieces.piece(code.piece);
        let range = piece.range.start + code.part.start..piece.range.start + code.part.end;
        let entries = pieces.unwind(piece.section, range);
        let Some(&(_, first)) = entries.first() else { return };
        let text = self.section_symbol(SectionKind::Text);
        let end = (code.part.end - code.part.start, vec![0; first.len()]);
        for (at, entry) in entries.into_iter().map(|(at, entry)| (at, entry.to_vec())).chain([end]) {
            let place = code.offset + at as u32;
            let ip = Row { bytes: vec![0; 4], fields: vec![(0, RelocKind::Pc32, text, i64::from(place))] };
            self.rows.entry(TableKind::OrcIp).or_default().push((place, ip));
            self.rows.entry(TableKind::Orc).or_default().push((place, Row { bytes: entry, fields: Vec::new() }));
        }
    }

    /// Places the descriptors of `pr_debug` that carried functions use, one behind the other: the kernel takes them as
    /// an array (`ddebug_add_module`, lib/dynamic_debug.c).
    pub(super) fn place_descriptors(&mut self) {
        let start = self.linked.payload.data.len().next_multiple_of(TableKind::DynamicDebug.align() as usize);
        for index in 0..self.carried.len() {
            let key = self.carried[index].key;
            let (pieces, _) = self.piece(key);
            let of_entries = pieces
                .entries(key.1)
                .iter()
                .flat_map(|entry| pieces.relocs_in(entry.section, entry.offset..entry.offset + entry.size));
            for reloc in pieces.relocs(key.1).iter().chain(of_entries) {
                let Target::Piece(target, _) = pieces.target(reloc) else { continue };
                let descriptor = (key.0, target);
                let (_, piece) = self.piece(descriptor);
                let section = &pieces.object.section(piece.section).name;
                if piece.role == SectionRole::Data && section == DYNAMIC_DEBUG && !self.placed.contains_key(&descriptor)
                {
                    self.place_descriptor(descriptor);
                }
            }
        }
        let size = self.linked.payload.data.len().saturating_sub(start);
        if size > 0 {
            let table = lpk_format::Table { kind: TableKind::DynamicDebug, offset: start as u32, size: size as u32 };
            self.linked.payload.tables.push(table);
        }
    }

    fn place_descriptor(&mut self, key: Key) {
        let (pieces, piece) = self.piece(key);
        let align = TableKind::DynamicDebug.align() as usize;
        let offset = append(&mut self.linked.payload.data, pieces.bytes(key.1), align, 0);
        self.placed.insert(key, (SectionKind::Data, offset));
        self.descriptors.push(key);
        let unit = self.units[key.0].name.to_owned();
        let datum = lpk_format::ManifestDatum { name: piece.name.clone(), unit, size: piece.size() };
        self.linked.manifest_data.push(datum);
    }

    /// The references of the descriptors, once all code and data has its place.
    pub(super) fn relocate_descriptors(&mut self) {
        for key in std::mem::take(&mut self.descriptors) {
            let (pieces, piece) = self.piece(key);
            let Some(&(section, offset)) = self.placed.get(&key) else { continue };
            for reloc in pieces.relocs(key.1) {
                self.relocate(key, reloc, section, offset + (reloc.offset - piece.range.start) as u32);
            }
        }
    }

    /// Lists the carried functions in which no kprobe may be, with their unlikely parts: the kernel looks at the symbol that an
    /// address lies in (`kprobe_add_ksym_blacklist`, kernel/kprobes.c).
    pub(super) fn register_unprobed(&mut self) {
        let mut listed = BTreeSet::new();
        for (unit, pieces) in self.units.iter().map(|unit| unit.patched).enumerate() {
            let lists = pieces.object.sections.iter();
            let lists = lists.filter(|section| role(&section.name, section.is_code()) == SectionRole::Unprobed);
            for reloc in lists.flat_map(|section| &section.relocs) {
                if let Target::Piece(piece, _) = pieces.resolve(reloc.symbol, reloc.addend) {
                    listed.insert((unit, pieces.piece(piece).name.clone()));
                }
            }
        }
        let text = self.section_symbol(SectionKind::Text);
        for index in 0..self.carried.len() {
            let key = self.carried[index].key;
            let (pieces, piece) = self.piece(key);
            let whole = without_number(&piece.name);
            let whole = whole.strip_suffix(".cold").unwrap_or(&piece.name);
            let by_name = [whole, &piece.name].iter().any(|name| listed.contains(&(key.0, (*name).to_owned())));
            if !by_name && !is_unprobed(&pieces.object.section(piece.section).name) {
                continue;
            }
            if let Some(&(_, offset)) = self.placed.get(&key) {
                let fields = vec![(0, RelocKind::Abs64, text, i64::from(offset))];
                self.rows.entry(TableKind::Unprobed).or_default().push((offset, Row { bytes: vec![0; 8], fields }));
            }
        }
    }

    /// Drops the unwind entries of the support object and refuses what would need a kernel that knows of it.
    pub(super) fn refuse_tables(&mut self) {
        let Some(first) = self.carried.first().map(|carried| carried.key) else { return };
        for kind in std::mem::take(&mut self.rows).into_keys() {
            if !matches!(kind, TableKind::OrcIp | TableKind::Orc) {
                let message = format!("the support object has entries in {}", kind.section());
                self.refuse("no-support-object", first, message, "report the kernel version and its configuration");
            }
        }
    }

    /// Puts the tables into `.data`.
    pub(super) fn place_tables(&mut self) {
        for (kind, mut rows) in std::mem::take(&mut self.rows) {
            rows.sort_by_key(|(place, _)| *place);
            let align = kind.align() as usize;
            let start = append(&mut self.linked.payload.data, &[], align, 0);
            for (_, row) in rows {
                let offset = append(&mut self.linked.payload.data, &row.bytes, 1, 0);
                for (at, reloc_kind, symbol, addend) in row.fields {
                    self.push_reloc(SectionKind::Data, offset + at, reloc_kind, symbol, addend);
                }
            }
            let size = self.linked.payload.data.len() as u32 - start;
            self.linked.payload.tables.push(lpk_format::Table { kind, offset: start, size });
        }
        self.linked.payload.tables.sort_by_key(|table| table.kind);
    }
}
