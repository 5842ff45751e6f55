//! Small facts of x86 code: branches, no-ops, equality up to the choice of no-ops.
//!
//! Comes in: bytes and the address they stand at. Decided: what they mean. Goes out: values.

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};

/// The kernel's five-byte no-op (`arch/x86/include/asm/nops.h`, `BYTES_NOP5`).
pub const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
/// The kernel's two-byte no-op (`BYTES_NOP2`).
pub const NOP2: [u8; 2] = [0x66, 0x90];
/// Opcode of `call rel32`.
pub const CALL: u8 = 0xe8;
/// Opcode of `jmp rel32`.
pub const JMP: u8 = 0xe9;
/// Opcode of `jmp rel8`.
const SHORT_JMP: u8 = 0xeb;
/// Opcode of `ret`.
pub const RET: u8 = 0xc3;
/// Opcode of `int3`.
pub const INT3: u8 = 0xcc;

/// The kernel's no-ops by length (`arch/x86/include/asm/nops.h`).
const NOPS: [&[u8]; 8] = [
    &[0x90],
    &NOP2,
    &[0x0f, 0x1f, 0x00],
    &[0x0f, 0x1f, 0x40, 0x00],
    &NOP5,
    &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
    &[0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00],
    &[0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
];

/// Fills a place with as few no-ops as possible.
pub fn fill_nops(place: &mut [u8]) {
    for part in place.chunks_mut(NOPS.len()) {
        part.copy_from_slice(NOPS[part.len() - 1]);
    }
}

/// A branch of five bytes, `opcode rel32`; `None` when the target is too far.
#[must_use]
pub fn branch(opcode: u8, at: u64, target: u64) -> Option<[u8; 5]> {
    let distance = i32::try_from(target.wrapping_sub(at.wrapping_add(5)) as i64).ok()?.to_le_bytes();
    Some([opcode, distance[0], distance[1], distance[2], distance[3]])
}

/// Target of the near branch with a 32-bit displacement that begins a byte string (`call`, `jmp`, `jcc`).
#[must_use]
pub fn branch_target(bytes: &[u8], at: u64) -> Option<u64> {
    let (length, displacement) = match bytes {
        [CALL | JMP, a, b, c, d, ..] => (5, [*a, *b, *c, *d]),
        [0x0f, 0x80..=0x8f, a, b, c, d, ..] => (6, [*a, *b, *c, *d]),
        // A segment prefix fills six bytes (`-mindirect-branch-cs-prefix`).
        [0x2e, CALL | JMP, a, b, c, d, ..] => (6, [*a, *b, *c, *d]),
        _ => return None,
    };
    Some(at.wrapping_add(length).wrapping_add(i64::from(i32::from_le_bytes(displacement)) as u64))
}

/// The instructions of a byte string; `None` if one is invalid or cut off.
#[must_use]
pub fn decode(bytes: &[u8], at: u64) -> Option<Vec<Instruction>> {
    let mut decoder = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE);
    let mut found = Vec::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return None;
        }
        found.push(instruction);
    }
    Some(found)
}

/// Length of the first instruction.
#[must_use]
pub fn first_length(bytes: &[u8]) -> Option<usize> {
    let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then(|| instruction.len())
}

/// Whether two byte strings of the same length do the same, whatever no-ops and lengths of `jmp` were chosen.
#[must_use]
pub fn equal_up_to_nops(a: &[u8], b: &[u8], at: u64) -> bool {
    if a == b {
        return true;
    }
    a.len() == b.len()
        && match (essence(a, at), essence(b, at)) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        }
}

/// The instructions that are not no-ops: bytes, or for an unconditional jump its target.
///
/// A long jump that became a short one is filled up with no-ops, since 6.3 with three `int3`, which nothing reaches
/// (`arch/x86/kernel/alternative.c`, `recompute_jump`, later `__apply_relocation`).
fn essence(bytes: &[u8], at: u64) -> Option<Vec<(Vec<u8>, u64)>> {
    let mut parts = Vec::new();
    let mut filled_to = 0;
    for instruction in decode(bytes, at)? {
        let start = (instruction.ip().wrapping_sub(at)) as usize;
        if instruction.mnemonic() == Mnemonic::Nop || start < filled_to {
            continue;
        }
        if let [SHORT_JMP, _, INT3, INT3, INT3, ..] = bytes[start..] {
            filled_to = start + 5;
        }
        let near = instruction.op_count() == 1 && instruction.op0_kind() == OpKind::NearBranch64;
        if near && instruction.flow_control() == FlowControl::UnconditionalBranch {
            parts.push((vec![JMP], instruction.near_branch_target()));
        } else if near {
            // Conditional branches and calls mean a target, too: they may stand at another offset.
            let opcode = bytes[start..start + instruction.len() - if instruction.len() == 2 { 1 } else { 4 }].to_vec();
            parts.push((opcode, instruction.near_branch_target()));
        } else if instruction.is_ip_rel_memory_operand() {
            parts.push((bytes[start..start + instruction.len()].to_vec(), instruction.ip_rel_memory_address()));
        } else {
            parts.push((bytes[start..start + instruction.len()].to_vec(), 0));
        }
    }
    Some(parts)
}

/// Whether an instruction's meaning depends on where it stands.
#[must_use]
pub fn is_relative(instruction: &Instruction) -> bool {
    instruction.is_ip_rel_memory_operand()
        || (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::NearBranch64)
}
