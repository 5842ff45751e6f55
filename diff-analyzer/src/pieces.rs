//! An object cut into pieces: one function, one datum, or one run of anonymous contents each.
//!
//! Comes in: an [`Object`] compiled with function and data sections. Decided: which bytes belong to which symbol, and
//! which piece a relocation means (assemblers name local targets by section and offset). Strings and constants that a
//! linker may merge are pieces of their own. Goes out: [`Pieces`].

use crate::object::{Definition, Object, Reloc, Section, SectionIndex, SymbolIndex};
use crate::special::{SectionRole, Table, role};
use object::elf;
use std::collections::BTreeMap;
use std::ops::Range;

/// Index into [`Pieces::pieces`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PieceIndex(pub usize);

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PieceKind {
    /// A function, with a name.
    Function,
    /// A datum, with a name.
    Datum,
    /// Contents without a name: a string, a constant, replacement code.
    Anonymous,
}

/// A run of bytes of one section.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Name of its first symbol, or of its section when it has none.
    pub name: String,
    /// What it is.
    pub kind: PieceKind,
    /// Role of its section.
    pub role: SectionRole,
    /// Section.
    pub section: SectionIndex,
    /// Byte range in the section.
    pub range: Range<u64>,
    /// All symbols that start it.
    pub symbols: Vec<SymbolIndex>,
    /// Whether one of them is visible to other units.
    pub global: bool,
}

impl Piece {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// What a relocation refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A symbol that is defined elsewhere, or has a plain value.
    External(SymbolIndex),
    /// A place in a piece: byte offset from its start. It may lie outside (a pointer to the end of an array).
    Piece(PieceIndex, i64),
}

/// An entry of a special table that belongs to a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Which table.
    pub table: Table,
    /// Section of the table.
    pub section: SectionIndex,
    /// Byte offset of the entry in it.
    pub offset: u64,
    /// Size of the entry.
    pub size: u64,
    /// Byte offset, in the function, of the place the entry is about.
    pub place: u64,
}

/// An object and its pieces.
pub struct Pieces<'o> {
    /// The object.
    pub object: &'o Object,
    /// All pieces of code and data sections.
    pub pieces: Vec<Piece>,
    /// Entries of special tables by function.
    entries: BTreeMap<PieceIndex, Vec<Entry>>,
    /// How to unwind the stack from code, by section: (offset of the first instruction, entry), in order.
    unwind: BTreeMap<SectionIndex, Vec<(u64, &'o [u8])>>,
    by_section: Vec<Vec<PieceIndex>>,
}

/// Why an object could not be cut.
#[derive(Debug, thiserror::Error)]
pub enum PiecesError {
    /// A special table whose entries have no known size, or that is not a whole number of entries.
    #[error("section {section} of {size} bytes is no whole number of entries ({entry_size:?} bytes each)")]
    Table {
        /// Its name.
        section: String,
        /// Its size.
        size: u64,
        /// Size of an entry in this kernel, if it is known.
        entry_size: Option<u64>,
    },
    /// Unwind entries that do not belong to instruction pointers one by one.
    #[error("section .orc_unwind has {size} bytes, no whole number of entries for {count} instruction pointers")]
    Unwind {
        /// Instruction pointers in `.orc_unwind_ip`.
        count: u64,
        /// Size of `.orc_unwind`.
        size: u64,
    },
    /// An entry that does not begin with the place in the code that it is about.
    #[error("section {section}: the entry at {offset:#x} belongs to no code of this object")]
    Place {
        /// Name of the section.
        section: String,
        /// Byte offset of the entry.
        offset: u64,
    },
}

/// Whether a relocation is relative to its own place (psABI 1.0, table 4.9).
pub fn is_pc_relative(kind: u32) -> bool {
    [elf::R_X86_64_PC8, elf::R_X86_64_PC32, elf::R_X86_64_PLT32, elf::R_X86_64_PC64].iter().any(|known| known.0 == kind)
}

/// What the addend of a PC-relative field takes off, because the processor counts from the end of the instruction.
pub fn bias(reloc: &Reloc) -> i64 {
    if reloc.code && is_pc_relative(reloc.kind) { field_width(reloc.kind) as i64 + i64::from(reloc.tail) } else { 0 }
}

/// Width of the field of a relocation in bytes.
pub fn field_width(kind: u32) -> u64 {
    match kind {
        kind if kind == elf::R_X86_64_64.0 || kind == elf::R_X86_64_PC64.0 => 8,
        kind if kind == elf::R_X86_64_PC8.0 => 1,
        _ => 4,
    }
}

impl<'o> Pieces<'o> {
    /// Cuts an object. `type_sizes` are sizes of kernel types in bytes, by name.
    ///
    /// # Errors
    /// [`PiecesError::Table`] when a special table cannot be read.
    pub fn cut(object: &'o Object, type_sizes: &BTreeMap<String, u64>) -> Result<Self, PiecesError> {
        let mut this = Self {
            object,
            pieces: Vec::new(),
            entries: BTreeMap::new(),
            unwind: BTreeMap::new(),
            by_section: Vec::new(),
        };
        let mut starts: Vec<BTreeMap<u64, Vec<SymbolIndex>>> = vec![BTreeMap::new(); object.sections.len()];
        for (index, symbol) in object.symbols.iter().enumerate() {
            if let Definition::Section(section) = symbol.definition
                && (symbol.kind == elf::STT_FUNC.0 || symbol.kind == elf::STT_OBJECT.0)
                && !is_padding(&symbol.name)
            {
                starts[section.0].entry(symbol.value).or_default().push(SymbolIndex(index));
            }
        }
        for (index, starts) in starts.into_iter().enumerate() {
            let indices = this.cut_section(SectionIndex(index), starts);
            this.by_section.push(indices);
        }
        this.read_tables(type_sizes)?;
        this.read_unwind()?;
        Ok(this)
    }

    fn cut_section(&mut self, index: SectionIndex, starts: BTreeMap<u64, Vec<SymbolIndex>>) -> Vec<PieceIndex> {
        let section = self.object.section(index);
        let role = role(&section.name, section.is_code());
        if matches!(
            role,
            SectionRole::Unwind
                | SectionRole::NotLoaded
                | SectionRole::Table(_)
                | SectionRole::LeftOut(_)
                | SectionRole::Unprobed
        ) {
            return Vec::new();
        }
        let mut indices = Vec::new();
        let mut push = |name: &str, kind, range: Range<u64>, symbols: Vec<SymbolIndex>| {
            let global = symbols.iter().any(|&symbol| self.object.symbol(symbol).binding != elf::STB_LOCAL.0);
            indices.push(PieceIndex(self.pieces.len()));
            self.pieces.push(Piece { name: name.to_owned(), kind, role, section: index, range, symbols, global });
        };
        if let Some(unit) =
            section.mergeable().filter(|_| starts.is_empty() && section.data.len() as u64 == section.size)
        {
            for range in elements(section, unit) {
                push(&section.name, PieceKind::Anonymous, range, Vec::new());
            }
            return indices;
        }
        let mut at = 0;
        for (start, symbols) in starts {
            let first = self.object.symbol(symbols[0]);
            let size = symbols.iter().map(|&symbol| self.object.symbol(symbol).size).max().unwrap_or(0);
            let end = start.saturating_add(size).min(section.size);
            if start < at || end < start {
                continue; // inside its predecessor: a label of assembly code
            }
            if start > at && has_contents(section.data.get(at as usize..start as usize)) {
                push(&section.name, PieceKind::Anonymous, at..start, Vec::new());
            }
            let function = first.kind == elf::STT_FUNC.0;
            push(&first.name, if function { PieceKind::Function } else { PieceKind::Datum }, start..end, symbols);
            at = end;
        }
        if section.size > at {
            push(&section.name, PieceKind::Anonymous, at..section.size, Vec::new());
        }
        indices
    }

    fn read_tables(&mut self, type_sizes: &BTreeMap<String, u64>) -> Result<(), PiecesError> {
        for (index, section) in self.object.sections.iter().enumerate() {
            let SectionRole::Table(table) = role(&section.name, false) else { continue };
            if section.size == 0 {
                continue;
            }
            let entry_size = table.entry_size(type_sizes);
            let Some(size) = entry_size.filter(|size| section.size.is_multiple_of(*size)) else {
                return Err(PiecesError::Table { section: section.name.clone(), size: section.size, entry_size });
            };
            for offset in (0..section.size).step_by(size as usize) {
                let first = section.relocs.partition_point(|reloc| reloc.offset < offset);
                let reloc = section.relocs.get(first).filter(|reloc| reloc.offset == offset);
                let Some(Target::Piece(piece, place)) = reloc.map(|reloc| self.target(reloc)) else {
                    return Err(PiecesError::Place { section: section.name.clone(), offset });
                };
                let place = place.max(0) as u64;
                let entry = Entry { table, section: SectionIndex(index), offset, size, place };
                self.entries.entry(piece).or_default().push(entry);
            }
        }
        Ok(())
    }

    /// Reads `.orc_unwind_ip` and `.orc_unwind`: one entry for each instruction pointer (`tools/objtool/orc_gen.c`).
    fn read_unwind(&mut self) -> Result<(), PiecesError> {
        let object = self.object;
        let section = |name: &str| object.sections.iter().find(|section| section.name == name && section.size > 0);
        let Some(ips) = section(".orc_unwind_ip") else { return Ok(()) };
        let entries = section(".orc_unwind").map_or(&[][..], |section| &section.data);
        let (count, size) = (ips.size / 4, entries.len() as u64);
        if !ips.size.is_multiple_of(4) || size == 0 || !size.is_multiple_of(count) {
            return Err(PiecesError::Unwind { count, size });
        }
        let entry = (size / count) as usize;
        for reloc in &ips.relocs {
            let symbol = object.symbol(reloc.symbol);
            let bytes = entries.get((reloc.offset / 4) as usize * entry..).and_then(|rest| rest.get(..entry));
            if let (Definition::Section(section), Some(bytes)) = (symbol.definition, bytes) {
                let place = (symbol.value as i64).wrapping_add(reloc.addend).max(0) as u64;
                self.unwind.entry(section).or_default().push((place, bytes));
            }
        }
        for rows in self.unwind.values_mut() {
            // Where two begin at one place, the end of what is before it (all zeros) comes first; see `orc_sort_cmp`,
            // arch/x86/kernel/unwind_orc.c.
            rows.sort_by_key(|&(place, entry)| (place, entry.iter().any(|&byte| byte != 0)));
        }
        Ok(())
    }

    /// How to unwind the stack from a range of a section: (offset from its start, entry), in order, beginning at its
    /// start. Empty if nothing is known. An entry of zeros says that nothing is known from there on.
    pub fn unwind(&self, section: SectionIndex, range: Range<u64>) -> Vec<(u64, &'o [u8])> {
        let rows = self.unwind.get(&section).map_or(&[][..], Vec::as_slice);
        let first = rows.partition_point(|&(place, _)| place <= range.start);
        let end = rows.partition_point(|&(place, _)| place < range.end);
        let begin = first.checked_sub(1).map(|before| (range.start, rows[before].1));
        let inside = rows.get(first..end).unwrap_or_default().iter().copied();
        let mut found: Vec<(u64, &'o [u8])> = Vec::new();
        for (place, entry) in begin.into_iter().chain(inside) {
            let known = found.last().map_or(&[][..], |&(_, before)| before);
            if known != entry && !(found.is_empty() && entry.iter().all(|&byte| byte == 0)) {
                found.push((place - range.start, entry));
            }
        }
        found
    }

    /// The piece behind an index.
    pub fn piece(&self, index: PieceIndex) -> &Piece {
        &self.pieces[index.0]
    }

    /// All pieces with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (PieceIndex, &Piece)> {
        self.pieces.iter().enumerate().map(|(index, piece)| (PieceIndex(index), piece))
    }

    /// The piece that a byte of a section is in.
    pub fn piece_at(&self, section: SectionIndex, offset: u64) -> Option<PieceIndex> {
        let pieces = self.by_section.get(section.0)?;
        let next = pieces.partition_point(|&piece| self.piece(piece).range.start <= offset);
        let piece = *pieces.get(next.checked_sub(1)?)?;
        self.piece(piece).range.contains(&offset).then_some(piece)
    }

    /// Bytes of a piece; empty for zero-initialised data.
    pub fn bytes(&self, index: PieceIndex) -> &'o [u8] {
        let piece = self.piece(index);
        let data = &self.object.section(piece.section).data;
        data.get(piece.range.start as usize..piece.range.end as usize).unwrap_or(&[])
    }

    /// Relocations of a piece, sorted by offset in the *section*.
    pub fn relocs(&self, index: PieceIndex) -> &'o [Reloc] {
        let piece = self.piece(index);
        self.relocs_in(piece.section, piece.range.clone())
    }

    /// Relocations of a range of a section.
    pub fn relocs_in(&self, section: SectionIndex, range: Range<u64>) -> &'o [Reloc] {
        let relocs = &self.object.section(section).relocs;
        let first = relocs.partition_point(|reloc| reloc.offset < range.start);
        let last = relocs.partition_point(|reloc| reloc.offset < range.end);
        &relocs[first..last]
    }

    /// Special-table entries of a function, in order of table section and offset.
    pub fn entries(&self, index: PieceIndex) -> &[Entry] {
        self.entries.get(&index).map_or(&[], Vec::as_slice)
    }

    /// What a relocation of code or data refers to.
    pub fn target(&self, reloc: &Reloc) -> Target {
        self.resolve(reloc.symbol, reloc.addend.wrapping_add(bias(reloc)))
    }

    /// The place `addend` bytes behind a symbol.
    pub fn resolve(&self, index: SymbolIndex, addend: i64) -> Target {
        let symbol = self.object.symbol(index);
        let Definition::Section(section) = symbol.definition else { return Target::External(index) };
        let whole_section = symbol.kind == elf::STT_SECTION.0;
        // A named symbol means its own piece, wherever the addend leads; a section symbol means what lies there.
        let position = (symbol.value as i64).wrapping_add(addend);
        let look_up = if whole_section { position.max(0) as u64 } else { symbol.value };
        let pieces = &self.by_section[section.0];
        let next = pieces.partition_point(|&piece| self.piece(piece).range.start <= look_up);
        match pieces.get(next.saturating_sub(1)) {
            Some(&piece) => Target::Piece(piece, position.wrapping_sub(self.piece(piece).range.start as i64)),
            None => Target::External(index),
        }
    }
}

/// The strings or constants of a mergeable section.
fn elements(section: &Section, unit: u64) -> Vec<Range<u64>> {
    let unit = unit.min(section.size.max(1));
    let mut elements = Vec::new();
    let mut start = 0;
    while start < section.size {
        let mut end = (start + unit).min(section.size);
        if section.has_strings() {
            let ends = |end: u64| {
                section.data.get((end - unit) as usize..end as usize).is_none_or(|last| last.iter().all(|&b| b == 0))
            };
            while end + unit <= section.size && !ends(end) {
                end += unit;
            }
            if section.size - end < unit {
                end = section.size;
            }
        }
        elements.push(start..end);
        start = end;
    }
    elements
}

/// Symbols that the kernel's tools put on the padding before a function, so that nobody takes it for the end of another one
/// (`tools/objtool/elf.c`, `elf_create_prefix_symbol`).
fn is_padding(name: &str) -> bool {
    name.starts_with("__pfx_")
}

/// Whether a gap between two symbols holds more than padding (zeros, `int3` or no-ops).
fn has_contents(gap: Option<&[u8]>) -> bool {
    gap.is_some_and(|bytes| bytes.iter().any(|byte| !matches!(byte, 0 | 0xcc | 0x90)))
}
