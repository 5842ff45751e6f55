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
use diff_analyzer::pieces::{Entry, PieceIndex, Target};
use diff_analyzer::special::Table;
use lpk_format::{Fixup, Place, SectionKind};
use std::collections::BTreeSet;
use std::ops::Range;

/// The five-byte no-op that ftrace leaves at the entry of a function (`arch/x86/include/asm/text-patching.h`, `BYTES_NOP5`).
const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0, 0];

/// `call rel32` (Intel SDM vol. 2, CALL).
const CALL: u8 = 0xe8;

/// `ALTINSTR_FLAG_INV` of Linux before 6.3 (arch/x86/include/asm/alternative.h).
const ALT_INVERTED_6_1: u16 = 1 << 15;

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

    /// `struct alt_instr`: place, replacement, feature (and flags), lengths.
    fn alternative(&mut self, key: Key, entry: &Entry, at: u32) {
        let bytes = self.entry_bytes(key, entry);
        let (pieces, _) = self.piece(key);
        let relocs = pieces.relocs_in(entry.section, entry.offset..entry.offset + entry.size);
        let replacement = relocs.iter().find(|reloc| reloc.offset == entry.offset + 4);
        let (Some(reloc), 12) = (replacement, bytes.len()) else {
            let message = format!("entries of {} bytes in .altinstructions are not supported yet", bytes.len());
            return self.refuse("table-unsupported", key, message, "this kernel version is not supported yet");
        };
        let cpuid = u16::from_le_bytes([bytes[8], bytes[9]]);
        let (len, replacement_len) = (bytes[10], bytes[11]);
        // Nothing but no-ops needs no code; the place itself stands for it.
        let found = if replacement_len == 0 { Some(at) } else { self.replacement(key, reloc, replacement_len) };
        let Some(replacement) = found else { return };
        self.linked.payload.fixups.push(Fixup::Alternative {
            offset: at,
            len,
            replacement,
            replacement_len,
            feature: cpuid & !ALT_INVERTED_6_1,
            inverted: cpuid & ALT_INVERTED_6_1 != 0,
        });
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
        Fixup::Paravirt { offset, .. } | Fixup::Retpoline { offset } | Fixup::Return { offset } => (false, offset, 0),
        Fixup::Alternative { offset, replacement, .. } => (true, offset, replacement),
    }
}
