//! Where the references of new code and data lead.
//!
//! Comes in: a relocation of a carried piece. Decided: its target. A direct call goes to the new version of a replaced
//! function; a stored or taken address goes to the old entry, which is still good after undo. Data that exists in the
//! kernel stays there; strings, constants and new data come along. Goes out: a payload relocation, or a refusal where
//! the reference could mean more than one thing.

use super::{FoundSymbol, How, Key, Linker, append, describe};
use crate::prove::Mismatch;
use crate::symbol_db::{AddressKind, KernelSymbol, SymbolKind};
use diff_analyzer::correlate::{is_fresh, without_number};
use diff_analyzer::object::{Definition, Reloc, SymbolIndex};
use diff_analyzer::pieces::{Piece, PieceIndex, PieceKind, Target, bias, is_pc_relative};
use diff_analyzer::special::{DYNAMIC_DEBUG, SectionRole, why_not};
use lpk_format::{ManifestDatum, Place, RelocKind, SectionKind};
use object::elf;

/// Alignment of the payload's data sections in memory, in bytes.
const MAX_ALIGN: u64 = 64;

/// Where the kernel's image and modules are mapped (Documentation/x86/x86_64/mm.rst).
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

impl Linker<'_, '_> {
    /// Adds the payload relocation for `reloc`, whose field lies at `offset` of `section`.
    pub(super) fn relocate(&mut self, from: Key, reloc: &Reloc, section: SectionKind, offset: u32) {
        if reloc.kind == elf::R_X86_64_NONE.0 {
            return;
        }
        if let Some((kind, symbol, addend)) = self.reference(from, reloc) {
            self.push_reloc(section, offset, kind, symbol, addend);
        }
    }

    /// Where a relocation leads: kind, symbol and addend of the payload's.
    pub(super) fn reference(&mut self, from: Key, reloc: &Reloc) -> Option<(RelocKind, u32, i64)> {
        let Some(kind) = reloc_kind(reloc.kind) else {
            let message = format!("a relocation of type {} is not supported", reloc.kind);
            self.refuse("relocation-type", from, message, "report the function and the compiler version");
            return None;
        };
        let call = reloc.branch && is_pc_relative(reloc.kind);
        let found = match self.units[from.0].patched.target(reloc) {
            Target::External(symbol) => self.external(from, symbol, call).map(|symbol| (symbol, reloc.addend)),
            Target::Piece(piece, at) => {
                if self.is_vague(from, reloc, piece) {
                    let name = &self.piece((from.0, piece)).1.name;
                    let message = format!(
                        "it refers to `{name}`, or to a place before or behind a neighbour of it in its section"
                    );
                    self.refuse("vague-reference", from, message, "give new data of the file no section attribute");
                    return None;
                }
                let addend = at - bias(reloc);
                self.local(from, piece, at, call).map(|(symbol, base)| (symbol, base + addend))
            }
        };
        found.map(|(symbol, addend)| (kind, symbol, addend))
    }

    /// Whether an address by section and offset may be that of the neighbour of a datum: the end of an array is where the
    /// next datum begins. That makes no difference as long as the whole section stays as it was.
    fn is_vague(&self, from: Key, reloc: &Reloc, target: PieceIndex) -> bool {
        let unit = &self.units[from.0];
        let piece = unit.patched.piece(target);
        // A PC-relative field is an access, which stays inside its datum.
        let by_section =
            unit.patched.object.symbol(reloc.symbol).kind == elf::STT_SECTION.0 && !is_pc_relative(reloc.kind);
        // Nobody takes the end of a descriptor.
        let descriptor = unit.patched.object.section(piece.section).name == DYNAMIC_DEBUG;
        if !by_section || piece.kind != PieceKind::Datum || descriptor {
            return false;
        }
        let mut distances =
            unit.patched.iter().filter(|(_, other)| other.section == piece.section).map(|(index, other)| {
                let original = unit.diff.correlation.original(index)?;
                let original = unit.original.piece(original);
                Some((original.section, other.range.start.wrapping_sub(original.range.start)))
            });
        let first = distances.next();
        let rest: Vec<_> = distances.collect();
        !rest.is_empty() && (first == Some(None) || rest.iter().any(|other| Some(*other) != first))
    }

    /// A symbol that another unit defines.
    fn external(&mut self, from: Key, index: SymbolIndex, call: bool) -> Option<u32> {
        let symbol = self.units[from.0].patched.object.symbol(index);
        let name = symbol.name.clone();
        if symbol.definition == Definition::Absolute {
            let message = format!("`{name}` is a plain value, not a place");
            self.refuse("absolute-symbol", from, message, "report the function");
            return None;
        }
        if let Some(symbol) =
            self.declared.filter(|declared| declared.unit == from.0).and_then(|of| of.symbols.get(&name))
        {
            return self.kernel_symbol(from, symbol, How::Declared);
        }
        if let Some(&key) = self.globals.get(&name) {
            return self.named(from, key, 0, call);
        }
        let all: Vec<&KernelSymbol> = self.image.symbols().lookup(&name).collect();
        let global: Vec<&KernelSymbol> = all.iter().copied().filter(|symbol| symbol.global).collect();
        let candidates = if global.is_empty() { all } else { global };
        match one_address(&candidates) {
            Ok(symbol) => self.kernel_symbol(from, &symbol.clone(), How::Name),
            Err(true) => {
                let message =
                    format!("`{name}` names {} places of the kernel: {}", candidates.len(), list(&candidates));
                self.refuse(
                    "ambiguous-symbol",
                    from,
                    message,
                    "name a symbol that occurs once, or patch the file that defines it",
                );
                None
            }
            Err(false) => {
                if self.elsewhere.is_some_and(|names| names.contains(&name)) {
                    let message = format!(
                        "`{name}` is new in another part of the diff: a part for a module is linked by itself and can refer to \
                         nothing that the kernel, or another module, does not have yet"
                    );
                    let help =
                        "give each module that uses it a copy of its own (`static`, or `static inline` in a header)";
                    self.refuse("unresolved-symbol", from, message, help);
                    return None;
                }
                let message = format!("`{name}` is neither in the kernel image nor in the diff");
                self.refuse(
                    "unresolved-symbol",
                    from,
                    message,
                    "new code of the kernel can use the kernel's symbols, that of a module also those which the module takes \
                     from other modules already",
                );
                None
            }
        }
    }

    /// A place of the same object: the symbol, and the offset of the piece from it.
    fn local(&mut self, from: Key, index: PieceIndex, at: i64, call: bool) -> Option<(u32, i64)> {
        let key = (from.0, index);
        let (pieces, piece) = self.piece(key);
        if piece.role == SectionRole::Strings {
            // The caller adds `at`; the symbol stands for the start of `.rodata`.
            let place = self.string(pieces.bytes(index), pieces.object.section(piece.section).entry_size);
            return Some((self.section_symbol(SectionKind::Rodata), i64::from(place)));
        }
        match piece.kind {
            PieceKind::Function | PieceKind::Datum => self.named(from, key, at, call).map(|symbol| (symbol, 0)),
            PieceKind::Anonymous if piece.name == ".altinstr_aux" => {
                self.aux(from, key, at).map(|symbol| (symbol, -at))
            }
            PieceKind::Anonymous => self.payload_symbol_of_data(from, key).map(|symbol| (symbol, 0)),
        }
    }

    /// A function or datum of a unit of the diff.
    fn named(&mut self, from: Key, key: Key, at: i64, call: bool) -> Option<u32> {
        let (_, piece) = self.piece(key);
        if piece.kind == PieceKind::Datum {
            let stays = !is_fresh(piece) && self.is_existing(key);
            return if stays && !self.is_moved(key) {
                self.existing(from, key)
            } else {
                self.payload_symbol_of_data(from, key)
            };
        }
        let carried = self.placed.contains_key(&key);
        // A reference into the middle comes from the other half of the same function.
        if carried && (call || at != 0 || !self.replacing.contains(&key)) {
            return self.payload_symbol(key);
        }
        self.existing(from, key)
    }

    fn is_existing(&self, (unit, piece): Key) -> bool {
        let diff = self.units[unit].diff;
        diff.correlation.original(piece).is_some() || diff.correlation.is_ambiguous(piece)
    }

    /// A function or datum of this unit that stays where it is in the kernel.
    pub(super) fn existing(&mut self, from: Key, key: Key) -> Option<u32> {
        if self.refused.contains(&key) {
            return None;
        }
        // Its address is that of what it replaces, which is still good after undo.
        if let Some(old) = self.declared_function(key) {
            return self.kernel_symbol(from, &old.symbol, How::Declared);
        }
        let unit = &self.units[key.0];
        let piece = unit.patched.piece(key.1);
        let original = unit.diff.correlation.original(key.1);
        let bound = original.and_then(|original| unit.proof.address(original));
        let candidates = self.candidates(unit.name, piece);
        if let Some(address) = bound {
            // The proof has found a symbol of that name there, if the compiler's number is left aside.
            let same = |symbol: &&KernelSymbol| {
                let stem = without_number(&symbol.name);
                piece.symbols.iter().any(|&name| without_number(&unit.patched.object.symbol(name).name) == stem)
            };
            let found = candidates.iter().find(|symbol| symbol.address == address).cloned();
            let found = found.or_else(|| self.image.symbols().at(address).find(same).cloned());
            if let Some(symbol) = found {
                return self.kernel_symbol(from, &symbol, How::Proof);
            }
        }
        let refs: Vec<&KernelSymbol> = candidates.iter().collect();
        let missing = original.and_then(|original| unit.proof.mismatches.get(&original));
        let missing = !piece.global && matches!(missing, Some(Mismatch::Missing { .. }));
        match one_address(&refs) {
            Ok(_) if missing => {
                let message = format!(
                    "the kernel image has no function `{}` of this unit, only of other files of that name",
                    piece.name
                );
                self.refuse(
                    "unresolved-symbol",
                    from,
                    message,
                    "the source, configuration and compiler must be the kernel's own",
                );
                None
            }
            // A module's local symbols do not say which of its units they are of: only a proof does.
            Ok(symbol) if self.image.module().is_some() && !symbol.global => {
                let message = format!(
                    "no proved code tells whether `{}` of the module, at {:#x}, is the one of this unit",
                    piece.name, symbol.address
                );
                self.refuse("ambiguous-symbol", from, message, "give the new function another way to reach it");
                None
            }
            Ok(symbol) if !unit.diff.correlation.is_ambiguous(key.1) => {
                let how = if symbol.file.is_some() { How::File } else { How::Name };
                self.kernel_symbol(from, &symbol.clone(), how)
            }
            Err(false) => {
                let message = format!("the {} `{}` is not in the kernel image", describe(piece.kind), piece.name);
                self.refuse(
                    "unresolved-symbol",
                    from,
                    message,
                    "the compiler kept it out of the image; change the patch so that it is not needed",
                );
                None
            }
            _ => {
                let message = format!(
                    "no proved code tells whether `{}` is new or which place of the kernel it is: {}",
                    piece.name,
                    list(&refs)
                );
                self.refuse("ambiguous-symbol", from, message, "give the new function another way to reach it");
                None
            }
        }
    }

    fn candidates(&self, unit: &str, piece: &Piece) -> Vec<KernelSymbol> {
        let file = unit.rsplit('/').next().unwrap_or(unit);
        let same_size = |symbol: &&KernelSymbol| symbol.size == 0 || symbol.size == piece.size();
        let visible = |symbol: &&KernelSymbol| match &symbol.file {
            // Modules are shipped without the names of their files.
            None => piece.global == symbol.global,
            Some(name) => !piece.global && name == file,
        };
        let exact: Vec<KernelSymbol> = self.image.symbols().lookup(&piece.name).filter(visible).cloned().collect();
        if piece.global || without_number(&piece.name) == piece.name || piece.kind == PieceKind::Function {
            return exact;
        }
        let stem = without_number(&piece.name);
        let numbered = |symbol: &&KernelSymbol| without_number(&symbol.name) == stem;
        self.image.symbols().iter().filter(numbered).filter(visible).filter(same_size).cloned().collect()
    }

    fn kernel_symbol(&mut self, from: Key, symbol: &KernelSymbol, how: How) -> Option<u32> {
        let place = match symbol.address_kind {
            AddressKind::Absolute if symbol.address >= KERNEL_MAP => {
                // `init_per_cpu__*` of the linker script: an address of the image by value, a plain value by kind.
                let message = format!("`{}` is a value that the linker script computes from addresses", symbol.name);
                self.refuse("absolute-symbol", from, message, "new code cannot refer to it");
                return None;
            }
            AddressKind::Image => Place::Kernel(symbol.address),
            AddressKind::PerCpu | AddressKind::Absolute => Place::Absolute(symbol.address),
        };
        if self.is_gone(symbol) && symbol.kind != SymbolKind::Label {
            let section = self.image.section_at(symbol.address).map_or("", |section| section.name.as_str());
            let message = format!("it refers to `{}` in {section}, which the kernel has freed after boot", symbol.name);
            self.refuse("init-reference", from, message, "new code cannot use what exists at boot only");
            return None;
        }
        let index = self.symbol(&symbol.name, place, symbol.size, symbol.kind == SymbolKind::Function);
        self.linked.found.entry(index).or_insert_with(|| FoundSymbol { symbol: symbol.clone(), how });
        Some(index)
    }

    /// Whether the kernel has given a place back after boot.
    pub(super) fn is_gone(&self, symbol: &KernelSymbol) -> bool {
        let section = self.image.section_at(symbol.address).map_or("", |section| section.name.as_str());
        symbol.address_kind == AddressKind::Image && (section.starts_with(".init.") || section.starts_with(".exit."))
    }

    pub(super) fn payload_symbol(&mut self, key: Key) -> Option<u32> {
        if !self.placed.contains_key(&key) {
            return self.payload_symbol_of_data(key, key);
        }
        let (section, offset) = *self.placed.get(&key)?;
        let (_, piece) = self.piece(key);
        let (name, size, function) = (piece.name.clone(), piece.size(), piece.kind == PieceKind::Function);
        Some(self.symbol(&name, Place::Payload { section, offset }, size, function))
    }

    pub(super) fn section_symbol(&mut self, section: SectionKind) -> u32 {
        let name = match section {
            SectionKind::Text => ".text",
            SectionKind::Rodata => ".rodata",
            SectionKind::Data => ".data",
            SectionKind::Bss => ".bss",
        };
        self.symbol(name, Place::Payload { section, offset: 0 }, 0, false)
    }

    /// A string with its terminating zero, whose characters have `width` bytes.
    fn string(&mut self, text: &[u8], width: u64) -> u32 {
        if let Some(&offset) = self.strings.get(&(width, text.to_vec())) {
            return offset;
        }
        let offset = append(&mut self.linked.payload.rodata, text, width.clamp(1, MAX_ALIGN) as usize, 0);
        self.strings.insert((width, text.to_vec()), offset);
        offset
    }

    /// Data that comes along: new, fresh, anonymous or moved.
    fn payload_symbol_of_data(&mut self, from: Key, key: Key) -> Option<u32> {
        let (section, offset) = self.place_datum(from, key)?;
        let (_, piece) = self.piece(key);
        let (name, size) = (piece.name.clone(), piece.size());
        Some(self.symbol(&name, Place::Payload { section, offset }, size, false))
    }

    /// Puts a datum into the payload, if it is not there yet.
    pub(super) fn place_datum(&mut self, from: Key, key: Key) -> Option<(SectionKind, u32)> {
        if let Some(&place) = self.placed.get(&key) {
            return Some(place);
        }
        let (pieces, piece) = self.piece(key);
        let name = pieces.object.section(piece.section).name.clone();
        let bytes = pieces.bytes(key.1);
        // In a section that several data share, no datum has a larger alignment than its place has.
        let align = pieces.object.section(piece.section).align;
        let align = if piece.range.start == 0 { align } else { align.min(1 << piece.range.start.trailing_zeros()) };
        if self.units[key.0].diff.correlation.is_ambiguous(key.1) {
            // Only a datum of another unit comes here: its own unit asks for the existing one.
            let message = format!("`{}` may be a datum of the kernel or a new one", piece.name);
            self.refuse(
                "ambiguous-symbol",
                from,
                message,
                "give a new datum another name than one that the diff removes",
            );
            return None;
        }
        if align > MAX_ALIGN {
            let message =
                format!("`{}` has an alignment of {align} bytes, more than the {MAX_ALIGN} of new data", piece.name);
            self.refuse("alignment", from, message, "allocate it instead");
            return None;
        }
        if piece.kind == PieceKind::Anonymous && piece.role == SectionRole::Data {
            let message = format!("it refers to data without a name in section {name}, which may be in use");
            self.refuse("anonymous-data", from, message, "give the data a name");
            return None;
        }
        let align = align as usize;
        let (section, offset) = match piece.role {
            SectionRole::ReadOnly => (SectionKind::Rodata, append(&mut self.linked.payload.rodata, bytes, align, 0)),
            SectionRole::Data if bytes.is_empty() => {
                let start = self.linked.payload.bss_size.next_multiple_of(align as u32);
                self.linked.payload.bss_size = start + piece.size() as u32;
                (SectionKind::Bss, start)
            }
            SectionRole::Data => (SectionKind::Data, append(&mut self.linked.payload.data, bytes, align, 0)),
            SectionRole::PerCpu => {
                let message =
                    format!("`{}` is new per-CPU data, which cannot be added to a running kernel yet", piece.name);
                self.refuse("per-cpu-data", from, message, "use an array indexed by processor");
                return None;
            }
            _ => {
                let why = why_not(&name).unwrap_or("new code cannot bring along what is there");
                let message = format!("it refers to `{}` in section {name}: {why}", piece.name);
                self.refuse("unknown-section", from, message, "avoid what puts data there");
                return None;
            }
        };
        self.placed.insert(key, (section, offset));
        if piece.kind == PieceKind::Datum && self.plan(key).is_none() {
            let unit = self.units[key.0].name.to_owned();
            self.linked.manifest_data.push(ManifestDatum { name: piece.name.clone(), unit, size: piece.size() });
        }
        for reloc in pieces.relocs(key.1) {
            let at = reloc.offset - piece.range.start;
            self.relocate(key, reloc, section, offset + at as u32);
        }
        Some((section, offset))
    }
}

/// The symbol, if all candidates mean one address; otherwise whether there are any.
fn one_address<'s>(candidates: &[&'s KernelSymbol]) -> Result<&'s KernelSymbol, bool> {
    match candidates {
        [] => Err(false),
        [first, rest @ ..] if rest.iter().all(|other| other.address == first.address) => Ok(first),
        _ => Err(true),
    }
}

fn list(candidates: &[&KernelSymbol]) -> String {
    let describe =
        |symbol: &&KernelSymbol| format!("{:#x} ({})", symbol.address, symbol.file.as_deref().unwrap_or("global"));
    let mut text: Vec<String> = candidates.iter().map(describe).collect();
    text.dedup();
    text.join(", ")
}

pub(super) fn reloc_kind(kind: u32) -> Option<RelocKind> {
    let known = [
        (elf::R_X86_64_64, RelocKind::Abs64),
        (elf::R_X86_64_32, RelocKind::Abs32),
        (elf::R_X86_64_32S, RelocKind::Abs32S),
        (elf::R_X86_64_PC32, RelocKind::Pc32),
        (elf::R_X86_64_PLT32, RelocKind::Plt32),
        (elf::R_X86_64_PC64, RelocKind::Pc64),
    ];
    known.into_iter().find(|(known, _)| known.0 == kind).map(|(_, kind)| kind)
}
