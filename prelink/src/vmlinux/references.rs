//! What leads to an address of the image.
//!
//! Comes in: an address, or a range. Decided: which fields lead there: by the relocations that the linker kept, else by what the
//! bytes look like. Goes out: the addresses of the fields, sorted.

use super::{ImageReloc, KernelImage};
use diff_analyzer::pieces::is_pc_relative;
use iced_x86::{Decoder, DecoderOptions};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of an instruction at most (Intel SDM, volume 2, section 2.3.11).
const MAX_INSTRUCTION: usize = 15;

impl KernelImage {
    /// Fields of the image that hold an address or lead there, sorted; those of debug information left out. Where the linker
    /// kept no relocations, all bytes that look like such a field count: rather one too many than one too few.
    pub fn references(&self, address: u64) -> Vec<u64> {
        let sections = self.sections.iter().enumerate().filter(|(_, section)| section.allocated);
        let leads = |reloc: &ImageReloc| {
            let behind = is_pc_relative(reloc.kind) && reloc.target.wrapping_add(4) == address;
            behind || reloc.target == address
        };
        let mut fields: Vec<u64> = if let Some(relocs) = self.module_relocs() {
            relocs.filter(|reloc| leads(reloc)).map(|reloc| reloc.address).collect()
        } else if self.rela.is_empty() {
            sections.flat_map(|(_, section)| lookalikes(section.address, self.contents(section), address)).collect()
        } else {
            let raw = sections.filter_map(|(index, _)| self.rela.get(&index));
            let relocs = raw.flat_map(|&raw| self.read_relocs(raw));
            relocs.filter(|reloc| leads(reloc)).map(|reloc| reloc.address).collect()
        };
        fields.sort_unstable();
        fields
    }

    /// Fields of the image that hold an address of a range or lead into it, as [`KernelImage::references`] finds them.
    pub fn references_into(&self, range: &Range<u64>) -> Vec<u64> {
        let sections = self.sections.iter().enumerate().filter(|(_, section)| section.allocated);
        let mut fields: Vec<u64> = if let Some(relocs) = self.module_relocs() {
            relocs.filter(|reloc| self.leads_into(reloc, range)).map(|reloc| reloc.address).collect()
        } else if self.rela.is_empty() {
            let all = sections.map(|(_, section)| (section.address, self.contents(section))).collect::<Vec<_>>();
            all.par_iter().flat_map_iter(|(start, bytes)| lookalikes_into(*start, bytes, range)).collect()
        } else {
            let raw = sections.filter_map(|(index, _)| self.rela.get(&index)).collect::<Vec<_>>();
            let relocs = raw.par_iter().flat_map_iter(|&&raw| self.read_relocs(raw));
            relocs.filter(|reloc| self.leads_into(reloc, range)).map(|reloc| reloc.address).collect()
        };
        fields.sort_unstable();
        fields
    }

    /// Whether nothing lies in a range behind a datum: no symbol, no contents, nothing that leads there.
    pub fn is_room(&self, range: &Range<u64>) -> bool {
        let Some(section) = self.section_at(range.start.saturating_sub(1)) else { return false };
        let inside = range.end <= section.address + section.size;
        let empty = !section.has_contents
            || self
                .bytes(range.start, (range.end - range.start) as usize)
                .is_some_and(|bytes| bytes.iter().all(|&byte| byte == 0));
        let symbol = || self.symbols.iter().any(|symbol| range.contains(&symbol.address));
        inside && empty && !symbol() && self.references_into(range).is_empty()
    }

    /// All relocations of a module that is loaded; those of the kernel's image are read when they are needed.
    fn module_relocs(&self) -> Option<impl Iterator<Item = &ImageReloc>> {
        self.module.as_ref()?;
        let relocs = self.relocs.get()?.iter();
        Some(relocs.filter(|(index, _)| self.sections[**index].allocated).flat_map(|(_, relocs)| relocs))
    }

    fn leads_into(&self, reloc: &ImageReloc, range: &Range<u64>) -> bool {
        if !is_pc_relative(reloc.kind) {
            return range.contains(&reloc.target);
        }
        // The processor counts from the end of the instruction, where an immediate of up to four bytes may follow the field.
        let next = reloc.target.wrapping_add(4);
        let farthest = next.wrapping_add(4);
        if farthest < range.start || next >= range.end {
            return false;
        }
        let is_clear = next >= range.start && farthest < range.end;
        is_clear || range.contains(&next.wrapping_add(self.behind_field(reloc.address)))
    }

    /// Bytes of an instruction behind the field of a relocation in it.
    fn behind_field(&self, field: u64) -> u64 {
        let Some((_, offset)) = self.symbols.containing(field) else { return 0 };
        let start = field - offset;
        let len = offset as usize + MAX_INSTRUCTION;
        let code = (offset as usize..=len).rev().find_map(|len| self.bytes(start, len));
        let mut decoder = Decoder::with_ip(64, code.unwrap_or_default(), start, DecoderOptions::NONE);
        while decoder.can_decode() {
            let instruction = decoder.decode();
            if instruction.next_ip() > field {
                return instruction.next_ip().saturating_sub(field + 4);
            }
        }
        0
    }
}

/// Places in the bytes at `start` whose next four hold the low half of an address, or the way to it from themselves or from
/// behind themselves.
fn lookalikes(start: u64, bytes: &[u8], address: u64) -> impl Iterator<Item = u64> {
    let low = address as u32;
    bytes.windows(4).enumerate().filter_map(move |(offset, field)| {
        let at = start + offset as u64;
        let value = u32::from_le_bytes(field.try_into().expect("four bytes"));
        let here = low.wrapping_sub(at as u32);
        // Zeros right before the place are the end of what fills the gap.
        let behind = value == here.wrapping_sub(4) && value != 0;
        (value == low || value == here || behind).then_some(at)
    })
}

/// The same for a range; an immediate of up to four bytes may follow a field.
fn lookalikes_into(start: u64, bytes: &[u8], range: &Range<u64>) -> impl Iterator<Item = u64> {
    let inside = range.clone();
    bytes.windows(4).enumerate().filter_map(move |(offset, field)| {
        let at = start + offset as u64;
        let value = u32::from_le_bytes(field.try_into().expect("four bytes"));
        let leads = |base: u32| {
            u64::from(base.wrapping_add(value).wrapping_sub(inside.start as u32)) < inside.end - inside.start
        };
        let behind = value != 0 && [4, 5, 6, 8].iter().any(|behind| leads((at as u32).wrapping_add(*behind)));
        (leads(0) || leads(at as u32) || behind).then_some(at)
    })
}
