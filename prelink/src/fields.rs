//! Fields of code that move with the kernel, found by decoding.
//!
//! Comes in: code of an image whose linker kept no relocations (`arch/x86/Makefile.postlink` takes them out since Linux 6.5), and
//! for which no original was compiled. Decided: which fields of its instructions hold an address of the image, or count from
//! themselves to something outside of it, which is per-CPU data. Goes out: the fields as the linker would have kept them, as
//! far as they move. A constant that happens to look like an address makes a field too many: then the guest is found to
//! differ, and nothing is done.

use crate::symbol_db::AddressKind;
use crate::vmlinux::{ImageReloc, KernelImage};
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};
use object::elf;
use std::ops::RangeInclusive;

/// Where the first byte of physical memory is mapped (`__START_KERNEL_map`, arch/x86/include/asm/page_64_types.h).
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// The fields of the code at `address` that KASLR moves, sorted.
pub fn of_code(image: &KernelImage, address: u64, code: &[u8]) -> Vec<ImageReloc> {
    let bound = |name| image.symbols().address_of(name).unwrap_or(0);
    of_range(bound("_text")..=bound("_end"), address, code)
}

fn of_range(kernel: RangeInclusive<u64>, address: u64, code: &[u8]) -> Vec<ImageReloc> {
    let mut fields = Vec::new();
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let offsets = decoder.get_constant_offsets(&instruction);
        let mut field = |offset: usize, kind: u32, target: u64, target_kind| {
            let address = instruction.ip() + offset as u64;
            fields.push(ImageReloc { address, kind, target, symbol: target, target_kind });
        };
        if offsets.has_displacement() && offsets.displacement_size() == 4 {
            let at = offsets.displacement_offset();
            let target = instruction.memory_displacement64();
            match instruction.memory_base() {
                Register::RIP if !kernel.contains(&target) => {
                    // S + A: the field counts from its own place, the processor from the end of the instruction.
                    let behind = instruction.len() - at;
                    field(at, elf::R_X86_64_PC32.0, target.wrapping_sub(behind as u64), AddressKind::PerCpu);
                }
                Register::RIP => {}
                _ if kernel.contains(&target) => field(at, elf::R_X86_64_32S.0, target, AddressKind::Image),
                _ => {}
            }
        }
        if offsets.has_immediate() {
            let at = offsets.immediate_offset();
            let is_immediate = |operand: &u32| {
                let kind = instruction.op_kind(*operand);
                matches!(kind, OpKind::Immediate32to64 | OpKind::Immediate64)
            };
            let value = (0..instruction.op_count()).find(is_immediate).map(|operand| instruction.immediate(operand));
            match (value, offsets.immediate_size()) {
                // A physical address (`__pa_symbol`) has eight bytes only because it is an address.
                (Some(value), 8) if kernel.contains(&value) || kernel.contains(&value.wrapping_add(KERNEL_MAP)) => {
                    field(at, elf::R_X86_64_64.0, value, AddressKind::Image);
                }
                // An operand of 32 bits cannot hold an address of the kernel.
                (Some(value), 4) if kernel.contains(&value) => {
                    field(at, elf::R_X86_64_32S.0, value, AddressKind::Image)
                }
                _ => {}
            }
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: u64 = 0xffff_ffff_8100_0000;
    const KERNEL: RangeInclusive<u64> = TEXT..=0xffff_ffff_8300_0000;

    fn found(code: &[u8]) -> Vec<(u64, u32, u64, AddressKind)> {
        let fields = of_range(KERNEL, TEXT, code);
        fields.iter().map(|f| (f.address - TEXT, f.kind, f.target, f.target_kind)).collect()
    }

    #[test]
    fn fields_that_move_are_found_and_no_others() {
        let at = 0xffff_ffff_8200_0010;
        let image = |kind: u32, offset| vec![(offset, kind, at, AddressKind::Image)];
        // mov $at,%rdi; movabs $at,%rax; mov at(,%rax,8),%rax; movq $at,8(%rdi); cmp $at,%rax
        assert_eq!(found(&[0x48, 0xc7, 0xc7, 0x10, 0, 0, 0x82]), image(elf::R_X86_64_32S.0, 3));
        assert_eq!(found(&[0x48, 0xb8, 0x10, 0, 0, 0x82, 0xff, 0xff, 0xff, 0xff]), image(elf::R_X86_64_64.0, 2));
        assert_eq!(found(&[0x48, 0x8b, 0x04, 0xc5, 0x10, 0, 0, 0x82]), image(elf::R_X86_64_32S.0, 4));
        assert_eq!(found(&[0x48, 0xc7, 0x47, 0x08, 0x10, 0, 0, 0x82]), image(elf::R_X86_64_32S.0, 4));
        assert_eq!(found(&[0x48, 0x3d, 0x10, 0, 0, 0x82]), image(elf::R_X86_64_32S.0, 2));
        // movabs of the physical address of something; cmp with the end of the image.
        let physical = [0x48, 0xb8, 0x10, 0, 0, 2, 0, 0, 0, 0];
        assert_eq!(found(&physical), [(2, elf::R_X86_64_64.0, 0x200_0010, AddressKind::Image)]);
        assert_eq!(found(&[0x48, 0x3d, 0, 0, 0, 0x83]).len(), 1);
        // mov %gs:0x1f000(%rip),%rax, linked: the displacement leads to the per-CPU offset.
        let displacement = (0x1_f000u64.wrapping_sub(TEXT + 8) as u32).to_le_bytes();
        let code = [&[0x65, 0x48, 0x8b, 0x05][..], &displacement].concat();
        assert_eq!(found(&code), [(4, elf::R_X86_64_PC32.0, 0x1_f000 - 4, AddressKind::PerCpu)]);
        // call and lea to places of the image; mov %gs:0x1f000,%rax; small and large constants.
        for code in [
            &[0xe8, 0, 0, 0, 0][..],
            &[0x48, 0x8d, 0x05, 0, 0, 0, 0],
            &[0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0xf0, 1, 0],
            &[0xb8, 1, 0, 0, 0],
            &[0xba, 0, 2, 0, 0x81],
        ] {
            assert_eq!(found(code), [], "{code:x?}");
        }
    }
}
