//! The special-section entries of new functions.
//!
//! Comes in: a carried function and its place. Decided, per table: handled here (`__mcount_loc`: nobody traces new code, so
//! its entry is a no-op), handed to the runtime as a fix-up (paravirt, retpolines, returns, alternatives), carried for the
//! guest's kernel to know (exceptions, bugs, jump labels: link/registered.rs), or right as it stands (static calls go
//! through their trampoline, which follows later changes; lock prefixes stay). Goes out: fix-ups, rows of tables, and the
//! fields that need no relocation any more.

use super::registered::{Code, kind_of};
use super::{Key, Linker};
use crate::prove::straight_line;
use diff_analyzer::object::Reloc;
use diff_analyzer::pieces::{Entry, PieceIndex, Target, bias};
use diff_analyzer::special::Table;
use lpk_format::{Fixup, Place, SectionKind};
use std::collections::BTreeSet;
use std::ops::Range;

/// The five-byte no-op that ftrace leaves at the entry of a function (`arch/x86/include/asm/text-patching.h`, `BYTES_NOP5`).
const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0, 0];

/// `call rel32` (Intel SDM vol. 2, CALL).
const CALL: u8 = 0xe8;

/// The numbers of a `struct alt_instr` (arch/x86/include/asm/alternative.h).
struct Alternative {
    feature: u16,
    inverted: bool,
    direct_call: bool,
    len: u8,
    replacement_len: u8,
}

impl Alternative {
    fn read(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            // Before Linux 6.3: ALTINSTR_FLAG_INV is the highest bit of the feature.
            [_, _, _, _, _, _, _, _, low, high, len, replacement_len] => {
                let feature = u16::from_le_bytes([low, high]);
                let (inverted, feature) = (feature & 1 << 15 != 0, feature & !(1 << 15));
                Some(Self { feature, inverted, direct_call: false, len, replacement_len })
            }
            // Since: ALT_FLAG_NOT and ALT_FLAG_DIRECT_CALL behind the feature; more flags are not known.
            [_, _, _, _, _, _, _, _, low, high, flags @ 0..=3, 0, len, replacement_len] => {
                let feature = u16::from_le_bytes([low, high]);
                let (inverted, direct_call) = (flags & 1 != 0, flags & 2 != 0);
                Some(Self { feature, inverted, direct_call, len, replacement_len })
            }
            _ => None,
        }
    }
}

impl Linker<'_, '_> {
    /// Handles the table entries of a function; returns the offsets, in the function, of fields that need no relocation.
    pub(super) fn apply_tables(&mut self, key: Key, code: &Code) -> BTreeSet<u64> {
        let mut dropped = BTreeSet::new();
        let (pieces, piece) = self.piece(key);
        for entry in pieces.entries(key.1) {
            if entry.place >= piece.size() {
                let message = format!(
                    "an entry of {} is about {:#x}, behind the end of the function",
                    entry.table.section(),
                    entry.place
                );
                self.refuse("table-unsupported", key, message, "report the function");
                continue;
            }
            let at = code.at(entry.place);
            match entry.table {
                Table::Mcount => {
                    let start = at as usize;
                    match self.linked.payload.text.get_mut(start..start + NOP5.len()) {
                        Some(field) if field[0] == CALL || field == NOP5 => {
                            field.copy_from_slice(&NOP5);
                            dropped.insert(entry.place + 1);
                        }
                        _ => {
                            let message =
                                "its place for tracing is neither a call nor a no-op of five bytes".to_owned();
                            self.refuse("table-unsupported", key, message, "this kernel version is not supported yet");
                        }
                    }
                }
                Table::Paravirt => self.paravirt(key, entry, at),
                Table::Retpolines => self.linked.payload.fixups.push(Fixup::Retpoline { offset: at }),
                Table::Returns => self.linked.payload.fixups.push(Fixup::Return { offset: at }),
                Table::Alternatives => self.alternative(key, entry, at),
                Table::StaticCalls | Table::SmpLocks => {}
                Table::ConstantPointers => self.constant(key, entry, at, 8),
                Table::ConstantShifts => self.constant(key, entry, at, 1),
                Table::JumpLabels | Table::Bugs | Table::Exceptions => {
                    if let Some(kind) = kind_of(entry.table) {
                        self.register(key, entry, kind, code);
                    }
                }
            }
        }
        dropped
    }

    fn entry_bytes(&self, key: Key, entry: &Entry) -> Vec<u8> {
        let data = &self.piece(key).0.object.section(entry.section).data;
        data.get(entry.offset as usize..(entry.offset + entry.size) as usize).unwrap_or_default().to_vec()
    }

    /// `struct paravirt_patch_site`: address, operation, length.
    fn paravirt(&mut self, key: Key, entry: &Entry, at: u32) {
        let bytes = self.entry_bytes(key, entry);
        let pv_ops = self.image.symbols().address_of("pv_ops");
        let (Some(pv_ops), [operation, len]) = (pv_ops, [bytes.get(8).copied(), bytes.get(9).copied()]) else {
            let message = "the kernel has no `pv_ops`, but new code has entries in .parainstructions".to_owned();
            return self.refuse("table-unsupported", key, message, "the configuration is not the kernel's");
        };
        if let (Some(operation), Some(len)) = (operation, len) {
            self.linked.payload.fixups.push(Fixup::Paravirt {
                offset: at,
                len,
                slot: pv_ops + 8 * u64::from(operation),
            });
        }
    }

    /// An immediate that boot sets to the value of a variable, as it is in the rest of the kernel.
    fn constant(&mut self, key: Key, entry: &Entry, at: u32, len: u8) {
        let section = &self.piece(key).0.object.section(entry.section).name;
        let variable = entry.table.variable(section).and_then(|name| self.image.symbols().address_of(name));
        match variable {
            Some(variable) => self.linked.payload.fixups.push(Fixup::Constant { offset: at, len, variable }),
            None => {
                let message = format!("its entry in {section} is about no variable of the kernel");
                self.refuse("table-unsupported", key, message, "report the function");
            }
        }
    }

    /// `struct alt_instr`: place, replacement, feature (and flags), lengths.
    fn alternative(&mut self, key: Key, entry: &Entry, at: u32) {
        let bytes = self.entry_bytes(key, entry);
        let (pieces, _) = self.piece(key);
        let relocs = pieces.relocs_in(entry.section, entry.offset..entry.offset + entry.size);
        let replacement = relocs.iter().find(|reloc| reloc.offset == entry.offset + 4);
        let (Some(reloc), Some(alternative)) = (replacement, Alternative::read(&bytes)) else {
            let message = format!("an entry of {} bytes in .altinstructions is not understood", bytes.len());
            return self.refuse("table-unsupported", key, message, "this kernel version is not supported yet");
        };
        let Alternative { feature, inverted, direct_call, replacement_len, .. } = alternative;
        // The kernel takes all alternatives of one place for as long as the longest (`apply_alternatives`).
        let same_place = pieces.entries(key.1).iter().filter(|other| {
            other.table == Table::Alternatives && other.place == entry.place && other.section == entry.section
        });
        let lens = same_place.filter_map(|other| Alternative::read(&self.entry_bytes(key, other)));
        let len = lens.map(|other| other.len).max().unwrap_or(alternative.len);
        if direct_call {
            return self.direct_call(key, entry, at, len);
        }
        // Nothing but no-ops needs no code; the place itself stands for it.
        let found = if replacement_len == 0 { Some(at) } else { self.replacement(key, reloc, replacement_len) };
        let Some(replacement) = found else { return };
        let fixup = Fixup::Alternative { offset: at, len, replacement, replacement_len, feature, inverted };
        self.linked.payload.fixups.push(fixup);
    }

    /// A paravirtual call since Linux 6.8: an alternative that always calls what the pointer holds (`alt_replace_call`,
    /// `arch/x86/kernel/alternative.c`). The instruction names the pointer: `call *slot(%rip)`, six bytes.
    fn direct_call(&mut self, key: Key, entry: &Entry, at: u32, len: u8) {
        let (pieces, piece) = self.piece(key);
        let field = piece.range.start + entry.place + 2;
        let reloc = pieces.relocs(key.1).iter().find(|reloc| reloc.offset == field);
        let slot = reloc.and_then(|reloc| match pieces.target(reloc) {
            Target::External(symbol) => {
                let base = self.image.symbols().address_of(&pieces.object.symbol(symbol).name)?;
                base.checked_add_signed(reloc.addend + bias(reloc))
            }
            Target::Piece(..) => None,
        });
        match slot {
            Some(slot) => self.linked.payload.fixups.push(Fixup::Paravirt { offset: at, len, slot }),
            None => {
                let message = "an alternative that calls through a pointer names none".to_owned();
                self.refuse("table-unsupported", key, message, "report the function");
            }
        }
    }

    /// Brings the replacement of an alternative along.
    fn replacement(&mut self, key: Key, reloc: &Reloc, len: u8) -> Option<u32> {
        let (pieces, _) = self.piece(key);
        let Target::Piece(index, at) = pieces.resolve(reloc.symbol, reloc.addend) else {
            let message = "an alternative's replacement is in no section".to_owned();
            self.refuse("table-unsupported", key, message, "report the function");
            return None;
        };
        let start = at.max(0) as u64;
        self.copy_code(key, index, start..start + u64::from(len), false)
    }

    /// The slow path of `static_cpu_has`, which lies in `.altinstr_aux`: from its entry to the jump that leaves it.
    pub(super) fn aux(&mut self, from: Key, key: Key, at: i64) -> Option<u32> {
        let (pieces, _) = self.piece(key);
        let code = pieces.bytes(key.1).get(at.max(0) as usize..).unwrap_or_default();
        let Some(len) = straight_line(code).map(|len| len as u64) else {
            self.refuse(
                "unknown-section",
                from,
                "a slow path in .altinstr_aux has no end".to_owned(),
                "report the function",
            );
            return None;
        };
        let start = at.max(0) as u64;
        let offset = self.copy_code(from, key.1, start..start + len, true)?;
        Some(self.symbol(".altinstr_aux", Place::Payload { section: SectionKind::Text, offset }, len, false))
    }

    /// Copies a part of anonymous code, with relocations, to the end of `.text`. Code that is to `run` where it lies takes
    /// its table entries along; a replacement runs in another place only.
    fn copy_code(&mut self, from: Key, index: PieceIndex, part: Range<u64>, run: bool) -> Option<u32> {
        let (pieces, _) = self.piece(from);
        let piece = pieces.piece(index);
        let Some(bytes) = pieces.bytes(index).get(part.start as usize..part.end as usize) else {
            let (start, len) = (part.start, part.end - part.start);
            let message = format!("code of {len} bytes at {start:#x} is not inside its section {}", piece.name);
            self.refuse("table-unsupported", from, message, "report the function");
            return None;
        };
        let entries: Vec<&Entry> = pieces.entries(index).iter().filter(|entry| part.contains(&entry.place)).collect();
        let plain = |entry: &Entry| match entry.table {
            Table::SmpLocks | Table::StaticCalls => true,
            table => run && kind_of(table).is_some(),
        };
        if let Some(entry) = entries.iter().find(|entry| !plain(entry)) {
            let message = format!("code in {} has entries in {}", piece.name, entry.table.section());
            self.refuse("table-unsupported", from, message, "report the function");
            return None;
        }
        let offset = self.append_text(bytes, 1);
        let range = piece.range.start + part.start..piece.range.start + part.end;
        for reloc in pieces.relocs_in(piece.section, range.clone()) {
            self.relocate(from, reloc, SectionKind::Text, offset + (reloc.offset - range.start) as u32);
        }
        if run {
            let code = Code { piece: index, part, offset };
            for entry in entries {
                if let Some(kind) = kind_of(entry.table) {
                    self.register(from, entry, kind, &code);
                }
            }
            self.register_unwind(from, &code);
        }
        Some(offset)
    }
}

/// Order of fix-ups in a bundle: alternatives last, each group by offset.
pub(super) fn fixup_order(fixup: &Fixup) -> (bool, u32, u32) {
    match *fixup {
        Fixup::Paravirt { offset, .. }
        | Fixup::Retpoline { offset }
        | Fixup::Return { offset }
        | Fixup::Constant { offset, .. } => (false, offset, 0),
        Fixup::Alternative { offset, replacement, .. } => (true, offset, replacement),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_of_both_shapes_are_read() {
        let read = |tail: &[u8]| {
            Alternative::read(&[&[0; 8], tail].concat())
                .map(|found| (found.feature, found.inverted, found.direct_call, found.len, found.replacement_len))
        };
        assert_eq!(read(&[0x75, 0x00, 6, 5]), Some((0x75, false, false, 6, 5)));
        assert_eq!(read(&[0x75, 0x80, 6, 5]), Some((0x75, true, false, 6, 5)));
        assert_eq!(read(&[0x75, 0x00, 0, 0, 6, 5]), Some((0x75, false, false, 6, 5)));
        assert_eq!(read(&[0x75, 0x02, 1, 0, 6, 5]), Some((0x275, true, false, 6, 5)));
        assert_eq!(read(&[0x75, 0x00, 2, 0, 6, 5]), Some((0x75, false, true, 6, 5)));
        assert_eq!(read(&[0x75, 0x00, 4, 0, 6, 5]), None, "a flag that is not known");
        assert_eq!(read(&[0x75, 0x00, 0, 0, 6, 5, 0]), None);
    }
}
