//! The places of a function that a booted kernel has rewritten, from the image's own tables.
//!
//! Comes in: the kernel image and a function's address range. Decided: every place that boot code or later patching may
//! have changed, and to what. Goes out: boot sites for the bundle, so that the runtime can demand that all other bytes
//! are equal and that each of these holds one of the permitted contents.

use crate::symbol_db::AddressKind;
use crate::vmlinux::{ImageReloc, KernelImage};
use diff_analyzer::pieces::is_pc_relative;
use diff_analyzer::special::Table;
use iced_x86::{BlockEncoder, BlockEncoderOptions, Decoder, DecoderOptions, InstructionBlock};
use lpk_format::{BootSite, BootSiteKind, Place, RelocKind};
use std::collections::BTreeMap;
use std::ops::Range;

/// Tables of the image that name places in code.
pub struct BootTables<'i> {
    image: &'i KernelImage,
    /// (address, length, contents of the replacement, its address), sorted by address.
    alternatives: Vec<Alternative>,
    paravirt: Vec<(u64, u8, u64)>,
    retpolines: Vec<u64>,
    returns: Vec<u64>,
    static_calls: Vec<(u64, u64)>,
    jump_labels: Vec<(u64, u64)>,
    locks: Vec<u64>,
    fentries: Vec<u64>,
    /// `endbr64` of functions that nothing calls through a pointer.
    sealed: Vec<u64>,
    /// Immediates that boot sets: address, length, and the variable whose value they get.
    constants: Vec<(u64, u8, u64)>,
    /// Instructions that may fault, and where the kernel goes on then.
    faults: Vec<(u64, u64)>,
}

struct Alternative {
    site: u64,
    len: u8,
    replacement: u64,
    replacement_len: u8,
    /// Calls what the pointer of the call in its place holds (`ALT_FLAG_DIRECT_CALL`, since Linux 6.8).
    direct_call: bool,
}

/// A table that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SitesError {
    /// The size of its entries is not one this program knows.
    #[error(
        "`struct {name}` has {size:?} bytes in this kernel; known are {known}. This kernel version is not supported yet"
    )]
    EntrySize {
        /// Kernel type.
        name: &'static str,
        /// Its size in the image's DWARF.
        size: Option<u64>,
        /// Sizes that are understood.
        known: &'static str,
    },
}

impl<'i> BootTables<'i> {
    /// Reads the tables. `type_sizes` are sizes of kernel types in bytes, by name.
    ///
    /// # Errors
    /// [`SitesError`] when a table of the image has entries of an unknown shape.
    pub fn read(image: &'i KernelImage, type_sizes: &BTreeMap<String, u64>) -> Result<Self, SitesError> {
        let table = |start, stop, name: &'static str, known: u64, text: &'static str| {
            // Without a table in it, the kernel need not have the type of its entries.
            let found = image.between(start, stop).filter(|(_, bytes)| !bytes.is_empty());
            let Some((base, bytes)) = found else { return Ok((0, &[][..])) };
            match type_sizes.get(name).copied() {
                Some(size) if size == known => Ok((base, bytes)),
                size => Err(SitesError::EntrySize { name, size, known: text }),
            }
        };
        // struct alt_instr { s32 instr_offset, repl_offset; u16 cpuid; u8 instrlen, replacementlen; } (6.1) or with
        // a u32 for cpuid and flags (6.3); arch/x86/include/asm/alternative.h. The lengths are the last two bytes.
        let alt_size = type_sizes.get("alt_instr").copied();
        let (base, bytes) = image.between("__alt_instructions", "__alt_instructions_end").unwrap_or((0, &[]));
        let size = match alt_size {
            Some(size @ (12 | 14)) => size as usize,
            _ if bytes.is_empty() => 12,
            size => return Err(SitesError::EntrySize { name: "alt_instr", size, known: "12 and 14" }),
        };
        let mut alternatives: Vec<Alternative> = entries(base, bytes, size)
            .map(|(at, entry)| Alternative {
                site: relative(at, entry, 0),
                replacement: relative(at, entry, 4),
                len: entry[size - 2],
                replacement_len: entry[size - 1],
                direct_call: size == 14 && entry[10] & 2 != 0,
            })
            .collect();
        alternatives.sort_by_key(|alternative| alternative.site);
        // struct paravirt_patch_site { u8 *instr; u8 type, len; } (arch/x86/include/asm/paravirt_types.h).
        let (base, bytes) = table("__parainstructions", "__parainstructions_end", "paravirt_patch_site", 16, "16")?;
        let pv_ops = image.symbols().address_of("pv_ops").unwrap_or(0);
        let paravirt = entries(base, bytes, 16)
            .map(|(_, entry)| (word(entry, 0), entry[9], pv_ops + 8 * u64::from(entry[8])))
            .collect();
        // struct static_call_site { s32 addr, key; } with flags in the key's two low bits (include/linux/static_call_types.h).
        let (base, bytes) = table("__start_static_call_sites", "__stop_static_call_sites", "static_call_site", 8, "8")?;
        let static_calls = entries(base, bytes, 8)
            .map(|(at, entry)| (relative(at, entry, 0), key_of(image, relative(at, entry, 4) & !3)))
            .collect();
        // struct jump_entry { s32 code, target; long key; } (include/linux/jump_label.h).
        let (base, bytes) = table("__start___jump_table", "__stop___jump_table", "jump_entry", 16, "16")?;
        let jump_labels =
            entries(base, bytes, 16).map(|(at, entry)| (relative(at, entry, 0), relative(at, entry, 4))).collect();
        let places = |start, stop| {
            let (base, bytes) = image.between(start, stop).unwrap_or((0, &[]));
            entries(base, bytes, 4).map(|(at, entry)| relative(at, entry, 0)).collect()
        };
        // struct exception_table_entry { int insn, fixup; … } (arch/x86/include/asm/extable.h).
        let (base, bytes) = table("__start___ex_table", "__stop___ex_table", "exception_table_entry", 12, "12")?;
        let faults =
            entries(base, bytes, 12).map(|(at, entry)| (relative(at, entry, 0), relative(at, entry, 4))).collect();
        let (base, bytes) = image.between("__start_mcount_loc", "__stop_mcount_loc").unwrap_or((0, &[]));
        Ok(Self {
            image,
            faults,
            alternatives,
            paravirt,
            retpolines: places("__retpoline_sites", "__retpoline_sites_end"),
            returns: places("__return_sites", "__return_sites_end"),
            static_calls,
            jump_labels,
            locks: places("__smp_locks", "__smp_locks_end"),
            sealed: places("__ibt_endbr_seal", "__ibt_endbr_seal_end"),
            constants: constants(image),
            fentries: entries(base, bytes, 8).map(|(_, entry)| word(entry, 0)).collect(),
        })
    }

    /// An instruction whose fault leads into a range.
    pub fn fault_leading_to(&self, range: &Range<u64>) -> Option<u64> {
        self.faults.iter().find(|(_, fixup)| range.contains(fixup)).map(|(instruction, _)| *instruction)
    }

    /// Sites of the function in `[address, address + code.len())`, sorted, none overlapping another. `relocs` are its relocated
    /// fields.
    pub fn of_function(&self, address: u64, code: &[u8], relocs: &[ImageReloc]) -> Vec<BootSite> {
        let range = address..address + code.len() as u64;
        let mut sites = Sites { range: range.clone(), list: Vec::new() };
        let opcode = |at: u64| code.get((at - address) as usize).copied().unwrap_or(0);
        let inside = |at: &u64| range.contains(at);
        for &(at, len, variable) in self.constants.iter().filter(|(at, ..)| range.contains(at)) {
            sites.add(at, len, BootSiteKind::Constant { variable });
        }
        let mut index = self.alternatives.partition_point(|alternative| alternative.site < address);
        while let Some(first) = self.alternatives.get(index).filter(|alternative| range.contains(&alternative.site)) {
            let same = self.alternatives[index..].iter().take_while(|other| other.site == first.site).count();
            let group = &self.alternatives[index..index + same];
            let len = group.iter().map(|alternative| alternative.len).max().unwrap_or(0);
            let plain = group.iter().filter(|alternative| !alternative.direct_call);
            let forms: Vec<_> = plain.filter_map(|alternative| self.form(alternative, len)).collect();
            match self.call_slot(first.site) {
                Some(slot) if forms.is_empty() => sites.add(first.site, len, BootSiteKind::Paravirt { slot }),
                _ => sites.add(first.site, len, BootSiteKind::Alternative { forms }),
            }
            index += same;
        }
        for &(at, len, slot) in self.paravirt.iter().filter(|(at, ..)| range.contains(at)) {
            sites.add(at, len, BootSiteKind::Paravirt { slot });
        }
        for &at in self.fentries.iter().filter(|at| inside(at)) {
            sites.add(at, 5, BootSiteKind::Ftrace);
        }
        for &at in self.sealed.iter().filter(|at| inside(at)) {
            // Boot writes one of these over it (`gen_endbr_poison`, arch/x86/include/asm/ibt.h): `nopw (%rax)`, later `nopl -42(%rax)`.
            let forms = vec![vec![0x66, 0x0f, 0x1f, 0x00], vec![0x0f, 0x1f, 0x40, 0xd6]];
            sites.add(at, 4, BootSiteKind::Alternative { forms });
        }
        for &at in self.retpolines.iter().filter(|at| inside(at)) {
            // `cs call thunk` and `cs jmp thunk` (-mindirect-branch-cs-prefix) have six bytes, as has `jcc thunk`.
            let len = if matches!(opcode(at), 0x2e | 0x0f) { 6 } else { 5 };
            sites.add(at, len, BootSiteKind::Retpoline);
        }
        for &at in self.returns.iter().filter(|at| inside(at)) {
            sites.add(at, 5, BootSiteKind::Return);
        }
        for &(at, key) in self.static_calls.iter().filter(|(at, _)| range.contains(at)) {
            sites.add(at, if opcode(at) == 0x0f { 6 } else { 5 }, BootSiteKind::StaticCall { key });
        }
        for &(at, target) in self.jump_labels.iter().filter(|(at, _)| range.contains(at)) {
            let len = if matches!(opcode(at), 0xeb | 0x66) { 2 } else { 5 };
            sites.add(at, len, BootSiteKind::JumpLabel { target });
        }
        for &at in self.locks.iter().filter(|at| inside(at)) {
            sites.add(at, 1, BootSiteKind::SmpLock);
        }
        self.add_slides(&mut sites, relocs);
        sites.list.sort_by_key(|site| site.offset);
        sites.list
    }

    /// Fields that a module's loader fills, apart from those that stay the same wherever the module is. They may lie inside
    /// other sites.
    fn add_relocations(&self, sites: &mut Sites, relocs: &[ImageReloc]) {
        let start = sites.range.start;
        let section = |address| self.image.section_at(address).map(|section| section.address);
        for reloc in relocs {
            let Some(kind) = RelocKind::of_elf(reloc.kind) else { continue }; // R_X86_64_NONE
            if kind.is_pc_relative() && section(reloc.symbol) == section(reloc.address) {
                continue;
            }
            let place = match reloc.target_kind {
                AddressKind::Image => Place::Kernel(reloc.symbol),
                AddressKind::PerCpu | AddressKind::Absolute => Place::Absolute(reloc.symbol),
            };
            let addend = reloc.target.wrapping_sub(reloc.symbol) as i64;
            let offset = (reloc.address - start) as u32;
            let len = kind.size();
            sites.list.push(BootSite { offset, len, kind: BootSiteKind::Relocation { kind, place, addend } });
        }
    }

    /// Fields that KASLR moves, as `arch/x86/tools/relocs.c` collects them.
    fn add_slides(&self, sites: &mut Sites, relocs: &[ImageReloc]) {
        if self.image.module().is_some() {
            return self.add_relocations(sites, relocs);
        }
        for reloc in relocs {
            let eight = reloc.kind == goblin::elf::reloc::R_X86_64_64;
            match (is_pc_relative(reloc.kind), reloc.target_kind) {
                (true, AddressKind::PerCpu) => sites.add(reloc.address, 4, BootSiteKind::SlideNegative32),
                (false, AddressKind::Image) if eight => sites.add(reloc.address, 8, BootSiteKind::Slide64),
                (false, AddressKind::Image) => sites.add(reloc.address, 4, BootSiteKind::Slide32),
                _ => {}
            }
        }
    }

    /// The pointer that `call *slot(%rip)` at an address calls through.
    fn call_slot(&self, at: u64) -> Option<u64> {
        let code = self.image.bytes(at, 6)?;
        // `ff /2` with a displacement behind it (Intel SDM vol. 2, CALL).
        code.starts_with(&[0xff, 0x15]).then(|| relative(at, code, 2).wrapping_add(4))
    }

    /// What a site holds when this alternative is taken: the replacement moved to the site, padded with no-ops.
    fn form(&self, alternative: &Alternative, len: u8) -> Option<Vec<u8>> {
        // An empty replacement may lie at the end of its section: then there is nothing to read.
        let len_in_file = usize::from(alternative.replacement_len);
        let code = if len_in_file == 0 { &[] } else { self.image.bytes(alternative.replacement, len_in_file)? };
        let mut form = move_code(code, alternative.replacement, alternative.site)?;
        if form.len() > usize::from(len) {
            return None;
        }
        form.resize(usize::from(len), 0x90);
        Some(form)
    }
}

/// The tables of constants (`RUNTIME_CONST`, include/asm-generic/vmlinux.lds.h): one for each variable. A place whose variable is not
/// known is left out, and found to differ by the runtime.
fn constants(image: &KernelImage) -> Vec<(u64, u8, u64)> {
    let mut found = Vec::new();
    for symbol in image.symbols().iter() {
        let Some(section) = symbol.name.strip_prefix("__start_") else { continue };
        for (table, len) in [(Table::ConstantPointers, 8), (Table::ConstantShifts, 1)] {
            let variable = table.variable(section).and_then(|name| image.symbols().address_of(name));
            let contents = image.between(&symbol.name, &format!("__stop_{section}"));
            let (Some(variable), Some((base, bytes))) = (variable, contents) else { continue };
            found.extend(entries(base, bytes, 4).map(|(at, entry)| (relative(at, entry, 0), len, variable)));
        }
    }
    found
}

/// The key of a static call. A module that may not change the key names the trampoline instead, and the kernel looks the key
/// up (`kernel/static_call_inline.c`, `static_call_add_module`).
fn key_of(image: &KernelImage, named: u64) -> u64 {
    let mut names = image.symbols().at(named).filter_map(|symbol| symbol.name.strip_prefix("__SCT__"));
    let key = names.next().and_then(|name| image.symbols().address_of(&format!("__SCK__{name}")));
    key.filter(|_| image.module().is_some()).unwrap_or(named)
}

/// Code at another address, with its relative fields adjusted.
fn move_code(code: &[u8], from: u64, to: u64) -> Option<Vec<u8>> {
    let instructions: Vec<_> = Decoder::with_ip(64, code, from, DecoderOptions::NONE).into_iter().collect();
    if instructions.iter().any(iced_x86::Instruction::is_invalid) {
        return None;
    }
    let outside = |instruction: &iced_x86::Instruction| {
        instruction.is_ip_rel_memory_operand()
            || (instruction.near_branch_target() != 0
                && !(from..from + code.len() as u64).contains(&instruction.near_branch_target()))
    };
    if !instructions.iter().any(outside) {
        return Some(code.to_vec());
    }
    let block = InstructionBlock::new(&instructions, to);
    BlockEncoder::encode(64, block, BlockEncoderOptions::NONE).ok().map(|result| result.code_buffer)
}

struct Sites {
    range: Range<u64>,
    list: Vec<BootSite>,
}

impl Sites {
    /// Adds a site unless an earlier, stronger one covers it.
    fn add(&mut self, at: u64, len: u8, kind: BootSiteKind) {
        let offset = (at - self.range.start) as u32;
        let end = offset + u32::from(len);
        let fits = at + u64::from(len) <= self.range.end && len > 0;
        let free = self.list.iter().all(|site| end <= site.offset || offset >= site.offset + u32::from(site.len));
        if fits && free {
            self.list.push(BootSite { offset, len, kind });
        }
    }
}

fn entries(base: u64, bytes: &[u8], size: usize) -> impl Iterator<Item = (u64, &[u8])> {
    bytes.chunks_exact(size).enumerate().map(move |(index, entry)| (base + (index * size) as u64, entry))
}

/// Target of a 32-bit field that counts from itself.
fn relative(at: u64, entry: &[u8], field: usize) -> u64 {
    let value = i32::from_le_bytes(entry[field..field + 4].try_into().expect("four bytes"));
    (at + field as u64).wrapping_add_signed(i64::from(value))
}

fn word(entry: &[u8], field: usize) -> u64 {
    u64::from_le_bytes(entry[field..field + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_call_reaches_the_same_place() {
        // call from 0x1000 to 0x2000
        let code = [0xe8, 0xfb, 0x0f, 0, 0];
        let moved = move_code(&code, 0x1000, 0x1800).expect("valid code");
        assert_eq!(moved, [0xe8, 0xfb, 0x07, 0, 0]);
        assert_eq!(move_code(&[0x9c, 0x58], 0x1000, 0x1800).expect("valid code"), [0x9c, 0x58]);
    }

    #[test]
    fn the_first_and_stronger_site_wins() {
        let mut sites = Sites { range: 0x100..0x120, list: Vec::new() };
        sites.add(0x104, 6, BootSiteKind::Paravirt { slot: 8 });
        sites.add(0x106, 4, BootSiteKind::Slide32);
        sites.add(0x11e, 5, BootSiteKind::Return);
        sites.add(0x10a, 4, BootSiteKind::Slide32);
        assert_eq!(sites.list.iter().map(|site| site.offset).collect::<Vec<_>>(), [4, 10]);
    }
}
