//! New code at its final address, with the choices that this guest made at boot.
//!
//! Comes in: the payload, the addresses of its sections and the guest's facts. Decided: every relocated field and every
//! fixup, in the order of `arch/x86/kernel/module.c`: relocations, paravirtual calls, retpolines, returns, alternatives.
//! Goes out: the bytes of each section. Pure functions; no guest is touched.

use super::code::{CALL, INT3, JMP, RET, branch, branch_target, decode, fill_nops, is_relative};
use crate::guest::facts::Facts;
use lpk_format::{Fixup, Payload, Place, RelocKind, SectionKind};

/// `.bss` begins at a multiple of this behind `.data`.
const BSS_ALIGN: u64 = 64;
/// Bytes of a cache line; `.text` begins at a multiple of it.
const CACHE_LINE: u64 = 64;
/// `RETPOLINE_THUNK_SIZE` (`arch/x86/include/asm/nospec-branch.h`).
const RETPOLINE_THUNK: u64 = 32;

/// Addresses of the sections; an empty section may be anywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Of `.text`.
    pub text: u64,
    /// Of `.rodata`.
    pub rodata: u64,
    /// Of `.data`; `.bss` follows.
    pub data: u64,
}

/// Linked sections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linked {
    /// `.text`.
    pub text: Vec<u8>,
    /// `.rodata`.
    pub rodata: Vec<u8>,
    /// `.data`, then `.bss`.
    pub data: Vec<u8>,
}

/// Why new code cannot be linked for this guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// A relocation's value does not fit into its field.
    #[error("relocation at {section:?}+{offset:#x} against `{symbol}`: {value:#x} does not fit into 32 bits")]
    Overflow {
        /// Section.
        section: SectionKind,
        /// Byte offset.
        offset: u32,
        /// Symbol name.
        symbol: String,
        /// The value.
        value: u64,
    },
    /// A field or a fixup is outside its section, or a symbol does not exist.
    #[error("the bundle is inconsistent: {0}")]
    Inconsistent(String),
    /// The code at a fixup is not what the fixup says.
    #[error("new code at .text+{offset:#x} is not {expected}")]
    NotAsMarked {
        /// Byte offset in `.text`.
        offset: u32,
        /// What was expected.
        expected: &'static str,
    },
    /// An alternative that cannot be moved.
    #[error("the alternative for .text+{offset:#x} refers to its own place, other than by one call or jump")]
    RelativeAlternative {
        /// Byte offset in `.text`.
        offset: u32,
    },
    /// A value of the guest that a fixup needs was not read.
    #[error("the guest's value behind {link:#x} is not known")]
    Unknown {
        /// Link address.
        link: u64,
    },
}

/// Size of `.text` with the ITS thunks that this guest needs.
#[must_use]
pub fn text_size(payload: &Payload, facts: &Facts) -> u64 {
    let size = payload.text.len() as u64;
    let branches = payload.fixups.iter().any(|fixup| matches!(fixup, Fixup::Retpoline { .. }));
    if facts.its && branches { size.next_multiple_of(CACHE_LINE) + 2 * CACHE_LINE } else { size }
}

/// Offset behind `text` bytes of code of the ITS thunk for a register: each cache line has eight, all in its upper half.
fn its_thunk(text: u64, register: u64) -> u64 {
    text.next_multiple_of(CACHE_LINE) + register / 8 * CACHE_LINE + CACHE_LINE / 2 + register % 8 * 4
}

/// `jmp *%register; int3` for all registers; everything else traps.
fn its_thunks(text: &mut Vec<u8>, size: u64) {
    let code = text.len() as u64;
    text.resize(size as usize, INT3);
    if size > code {
        for register in 0..16 {
            let at = its_thunk(code, register) as usize;
            let modrm = 0xe0 + (register % 8) as u8;
            let jump = if register < 8 { [0xff, modrm, INT3, INT3] } else { [0x41, 0xff, modrm, INT3] };
            text[at..at + 4].copy_from_slice(&jump);
        }
    }
}

/// Size of `.data` and `.bss` together.
#[must_use]
pub fn data_size(payload: &Payload) -> u64 {
    if payload.bss_size == 0 { payload.data.len() as u64 } else { bss_offset(payload) + u64::from(payload.bss_size) }
}

fn bss_offset(payload: &Payload) -> u64 {
    (payload.data.len() as u64).next_multiple_of(BSS_ALIGN)
}

/// Offset of data of a payload in its part of the memory: `.bss` lies behind `.data`.
#[must_use]
pub fn data_offset(payload: &Payload, section: SectionKind, offset: u32) -> u64 {
    u64::from(offset) + if section == SectionKind::Bss { bss_offset(payload) } else { 0 }
}

/// Live address of a place.
#[must_use]
pub fn address(payload: &Payload, addresses: &Addresses, facts: &Facts, place: Place) -> u64 {
    match place {
        Place::Payload { section, offset } => {
            let base = match section {
                SectionKind::Text => addresses.text,
                SectionKind::Rodata => addresses.rodata,
                SectionKind::Data => addresses.data,
                SectionKind::Bss => addresses.data.wrapping_add(bss_offset(payload)),
            };
            base.wrapping_add(u64::from(offset))
        }
        Place::Kernel(link) => facts.live(link),
        Place::Absolute(value) => value,
    }
}

/// Links the payload.
///
/// # Errors
/// [`LinkError`].
pub fn link(payload: &Payload, addresses: &Addresses, facts: &Facts) -> Result<Linked, LinkError> {
    let mut data = payload.data.clone();
    data.resize(data_size(payload) as usize, 0);
    let mut linked = Linked { text: payload.text.clone(), rodata: payload.rodata.clone(), data };
    relocate(payload, addresses, facts, &mut linked)?;
    let rank = |fixup: &Fixup| match fixup {
        Fixup::Paravirt { .. } => 0,
        Fixup::Retpoline { .. } => 1,
        Fixup::Return { .. } => 2,
        Fixup::Alternative { .. } => 3,
        Fixup::Constant { .. } => 4,
    };
    let mut fixups = payload.fixups.clone();
    fixups.sort_by_key(rank); // stable: the kernel's tables are applied in order
    its_thunks(&mut linked.text, text_size(payload, facts));
    for fixup in &fixups {
        match fixup {
            Fixup::Retpoline { offset } if facts.its => {
                its_branch(*offset, payload.text.len() as u64, addresses.text, facts, &mut linked.text)?;
            }
            other => apply(other, addresses.text, facts, &mut linked.text)?,
        }
    }
    Ok(linked)
}

fn relocate(payload: &Payload, addresses: &Addresses, facts: &Facts, linked: &mut Linked) -> Result<(), LinkError> {
    for reloc in &payload.relocs {
        let symbol = payload
            .symbols
            .get(reloc.symbol as usize)
            .ok_or_else(|| LinkError::Inconsistent(format!("no symbol {}", reloc.symbol)))?;
        let target = address(payload, addresses, facts, symbol.place).wrapping_add(reloc.addend as u64);
        let (bytes, base) = match reloc.section {
            SectionKind::Text => (&mut linked.text, addresses.text),
            SectionKind::Rodata => (&mut linked.rodata, addresses.rodata),
            SectionKind::Data => (&mut linked.data, addresses.data),
            SectionKind::Bss => return Err(LinkError::Inconsistent("a relocation in .bss".into())),
        };
        let value = match reloc.kind {
            RelocKind::Pc32 | RelocKind::Plt32 | RelocKind::Pc64 => {
                target.wrapping_sub(base.wrapping_add(u64::from(reloc.offset)))
            }
            RelocKind::Abs64 | RelocKind::Abs32 | RelocKind::Abs32S => target,
        };
        let fits = match reloc.kind {
            RelocKind::Abs64 | RelocKind::Pc64 => true,
            RelocKind::Abs32 => u32::try_from(value).is_ok(),
            RelocKind::Abs32S | RelocKind::Pc32 | RelocKind::Plt32 => i32::try_from(value as i64).is_ok(),
        };
        if !fits {
            return Err(LinkError::Overflow {
                section: reloc.section,
                offset: reloc.offset,
                symbol: symbol.name.clone(),
                value,
            });
        }
        let length = usize::from(reloc.kind.size());
        let start = reloc.offset as usize;
        bytes
            .get_mut(start..start.saturating_add(length))
            .ok_or_else(|| LinkError::Inconsistent(format!("no field at {:?}+{start:#x}", reloc.section)))?
            .copy_from_slice(&value.to_le_bytes()[..length]);
    }
    Ok(())
}

fn apply(fixup: &Fixup, text_address: u64, facts: &Facts, text: &mut [u8]) -> Result<(), LinkError> {
    match *fixup {
        // Calls of thunks are right as they are: the thunks themselves hold what the guest chose. Not so with ITS.
        Fixup::Retpoline { .. } => Ok(()),
        Fixup::Paravirt { offset, len, slot } => {
            // `paravirt_patch`, `arch/x86/kernel/paravirt.c`.
            let place = slice(text, offset, usize::from(len))?;
            if place.len() < 5 {
                return Err(LinkError::NotAsMarked { offset, expected: "a paravirtual call" });
            }
            let operation = *facts.words.get(&slot).ok_or(LinkError::Unknown { link: slot })?;
            let used = if facts.paravirt_nop == Some(operation) {
                0
            } else {
                let target = match operation {
                    0 => facts.paravirt_bug.ok_or(LinkError::Unknown { link: slot })?,
                    operation => operation,
                };
                place[..5].copy_from_slice(&near(CALL, text_address, offset, target)?);
                5
            };
            fill_nops(&mut place[used..]);
            Ok(())
        }
        Fixup::Return { offset } => {
            // `patch_return`.
            let place = slice(text, offset, 5)?;
            if place[0] != JMP {
                return Err(LinkError::NotAsMarked { offset, expected: "a jump to the return thunk" });
            }
            if facts.rethunk {
                let thunk = facts.return_thunk.ok_or(LinkError::Unknown { link: 0 })?;
                place.copy_from_slice(&near(JMP, text_address, offset, thunk)?);
            } else {
                place.copy_from_slice(&[RET, INT3, INT3, INT3, INT3]);
            }
            Ok(())
        }
        Fixup::Constant { offset, len, variable } => {
            // `runtime_const_fixup`, `arch/x86/include/asm/runtime-const.h`: the variable's low bytes.
            let value = *facts.words.get(&variable).ok_or(LinkError::Unknown { link: variable })?;
            let place = slice(text, offset, usize::from(len))?;
            let bytes = value.to_le_bytes();
            let bytes = bytes.get(..place.len()).ok_or(LinkError::NotAsMarked { offset, expected: "a constant" })?;
            place.copy_from_slice(bytes);
            Ok(())
        }
        Fixup::Alternative { offset, len, replacement, replacement_len, feature, inverted } => {
            // `apply_alternatives`.
            if facts.has(feature) == inverted {
                return Ok(());
            }
            let mut bytes = slice(text, replacement, usize::from(replacement_len))?.to_vec();
            let from = text_address.wrapping_add(u64::from(replacement));
            if let ([CALL | JMP, _, _, _, _], Some(target)) = (&bytes[..], branch_target(&bytes, from)) {
                bytes = near(bytes[0], text_address, offset, target)?.to_vec();
            } else if decode(&bytes, from).is_none_or(|list| list.iter().any(|i| leaves(i, from, bytes.len()))) {
                return Err(LinkError::RelativeAlternative { offset });
            }
            let place = slice(text, offset, usize::from(len))?;
            if bytes.len() > place.len() {
                return Err(LinkError::Inconsistent(format!("the replacement for .text+{offset:#x} is too long")));
            }
            place[..bytes.len()].copy_from_slice(&bytes);
            fill_nops(&mut place[bytes.len()..]);
            Ok(())
        }
    }
}

/// Sends a branch to a retpoline thunk of the kernel to the bundle's own ITS thunk of the same register.
fn its_branch(offset: u32, code: u64, text_address: u64, facts: &Facts, text: &mut [u8]) -> Result<(), LinkError> {
    let marked = || LinkError::NotAsMarked { offset, expected: "a branch to a retpoline thunk" };
    let at = text_address.wrapping_add(u64::from(offset));
    let place = text.get_mut(offset as usize..).ok_or_else(marked)?;
    let target = branch_target(place, at).ok_or_else(marked)?;
    let array = facts.thunk_array.ok_or(LinkError::Unknown { link: 0 })?;
    let distance = target.wrapping_sub(array);
    if distance >= 16 * RETPOLINE_THUNK || !distance.is_multiple_of(RETPOLINE_THUNK) {
        return Err(marked());
    }
    let thunk = text_address.wrapping_add(its_thunk(code, distance / RETPOLINE_THUNK));
    // A prefix, or the two bytes of a conditional branch (see `branch_target`).
    let field = if matches!(place, [CALL | JMP, ..]) { 1 } else { 2 };
    let displacement = thunk.wrapping_sub(at.wrapping_add(field + 4)) as u32;
    place[field as usize..field as usize + 4].copy_from_slice(&displacement.to_le_bytes());
    Ok(())
}

/// Whether an instruction of a replacement would mean something else at another place.
fn leaves(instruction: &iced_x86::Instruction, from: u64, length: usize) -> bool {
    let within = instruction.near_branch_target().wrapping_sub(from) <= length as u64;
    is_relative(instruction) && (instruction.is_ip_rel_memory_operand() || !within)
}

fn near(opcode: u8, text_address: u64, offset: u32, target: u64) -> Result<[u8; 5], LinkError> {
    branch(opcode, text_address.wrapping_add(u64::from(offset)), target).ok_or_else(|| LinkError::Overflow {
        section: SectionKind::Text,
        offset,
        symbol: "a function of the guest".into(),
        value: target,
    })
}

fn slice(text: &mut [u8], offset: u32, length: usize) -> Result<&mut [u8], LinkError> {
    let start = offset as usize;
    text.get_mut(start..start.saturating_add(length))
        .ok_or_else(|| LinkError::Inconsistent(format!("nothing at .text+{start:#x}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lpk_format::{Reloc, Symbol};

    const AT: Addresses =
        Addresses { text: 0xffff_ffff_8020_1000, rodata: 0xffff_ffff_8020_2000, data: 0xffff_ffff_8020_3000 };

    fn facts() -> Facts {
        let mut capabilities = vec![0; 22];
        capabilities[1] = 1 << 3; // feature 35
        Facts {
            slide: 0x20_0000,
            capabilities,
            return_thunk: Some(0xffff_ffff_8120_0600),
            rethunk: true,
            words: [(8, 0xffff_ffff_8120_0a00), (16, 0xffff_ffff_8120_0b00), (24, 0)].into(),
            paravirt_nop: Some(0xffff_ffff_8120_0b00),
            ..Facts::default()
        }
    }

    fn relocated(kind: RelocKind, place: Place, addend: i64) -> Result<Vec<u8>, LinkError> {
        let payload = Payload {
            text: vec![0; 16],
            data: vec![0; 8],
            bss_size: 8,
            symbols: vec![Symbol { name: "s".into(), place, size: 0, function: false }],
            relocs: vec![Reloc { section: SectionKind::Text, offset: 4, kind, symbol: 0, addend }],
            ..Payload::default()
        };
        link(&payload, &AT, &facts()).map(|linked| linked.text[4..12].to_vec())
    }

    #[test]
    fn relocations_are_computed_at_the_final_address() {
        let low = |value: i64| [&(value as i32).to_le_bytes()[..], &[0; 4]].concat();
        let bss = Place::Payload { section: SectionKind::Bss, offset: 4 };
        let rodata = Place::Payload { section: SectionKind::Rodata, offset: 8 };
        let kernel = Place::Kernel(0xffff_ffff_8100_0000);
        let cases = [
            (RelocKind::Abs64, kernel, 1, 0xffff_ffff_8120_0001_u64.to_le_bytes().to_vec()),
            (RelocKind::Abs32S, rodata, 0, low(0x8020_2008_u32 as i32 as i64)),
            (RelocKind::Abs32S, bss, 0, low(0x8020_3044_u32 as i32 as i64)),
            (RelocKind::Pc32, kernel, -4, low(0x8120_0000 - 4 - 0x8020_1004)),
            (RelocKind::Pc64, bss, 2, (0xffff_ffff_8020_3046_u64 - 0xffff_ffff_8020_1004).to_le_bytes().to_vec()),
            (RelocKind::Plt32, rodata, -4, low(0x8020_2008 - 4 - 0x8020_1004)),
            // A per-CPU offset has no slide; PC-relative it reaches around zero.
            (RelocKind::Abs32, Place::Absolute(0x1fb80), 0, low(0x1fb80)),
            (RelocKind::Pc32, Place::Absolute(0x1fb80), -4, low(0x1fb80 - 4 + 0x7fdf_effc)),
        ];
        for (kind, place, addend, expected) in cases {
            assert_eq!(relocated(kind, place, addend), Ok(expected), "{kind:?} {place:?}");
        }
        for (kind, place) in [
            (RelocKind::Abs32, kernel),
            (RelocKind::Abs32S, Place::Absolute(0x8000_0000)),
            (RelocKind::Pc32, Place::Absolute(0x9000_0000)),
        ] {
            assert!(matches!(relocated(kind, place, 0), Err(LinkError::Overflow { .. })), "{kind:?} {place:?}");
        }
    }

    fn fixed(fixups: Vec<Fixup>, text: &[u8], facts: &Facts) -> Result<Vec<u8>, LinkError> {
        let payload = Payload { text: text.to_vec(), fixups, ..Payload::default() };
        link(&payload, &AT, facts).map(|linked| linked.text)
    }

    #[test]
    fn fixups_repeat_the_guests_choices() {
        let pv = |slot| vec![Fixup::Paravirt { offset: 0, len: 6, slot }];
        let call = branch(CALL, AT.text, 0xffff_ffff_8120_0a00).expect("near");
        let indirect = [0xff, 0x15, 0, 0, 0, 0];
        assert_eq!(fixed(pv(8), &indirect, &facts()), Ok([&call[..], &[0x90]].concat()));
        assert_eq!(fixed(pv(16), &indirect, &facts()), Ok(vec![0x66, 0x0f, 0x1f, 0x44, 0, 0]));
        assert_eq!(fixed(pv(24), &indirect, &facts()), Err(LinkError::Unknown { link: 24 }));
        assert_eq!(fixed(pv(32), &indirect, &facts()), Err(LinkError::Unknown { link: 32 }));

        let constant = |len, variable| vec![Fixup::Constant { offset: 1, len, variable }];
        let loaded = [&[0x48][..], &0xffff_ffff_8120_0a00_u64.to_le_bytes()].concat();
        assert_eq!(fixed(constant(8, 8), &[0x48; 9], &facts()), Ok(loaded));
        assert_eq!(fixed(constant(1, 8), &[0x48; 3], &facts()), Ok(vec![0x48, 0x00, 0x48]));
        assert_eq!(fixed(constant(1, 32), &[0x48; 3], &facts()), Err(LinkError::Unknown { link: 32 }));
        assert!(matches!(fixed(constant(8, 8), &[0x48; 8], &facts()), Err(LinkError::Inconsistent(_))));

        let ret = || vec![Fixup::Return { offset: 0 }];
        let thunk = branch(JMP, AT.text, 0xffff_ffff_8120_0600).expect("near").to_vec();
        assert_eq!(fixed(ret(), &[JMP, 0, 0, 0, 0], &facts()), Ok(thunk));
        let plain = Facts { rethunk: false, ..facts() };
        assert_eq!(fixed(ret(), &[JMP, 0, 0, 0, 0], &plain), Ok(vec![RET, INT3, INT3, INT3, INT3]));
        assert!(matches!(fixed(ret(), &[0x90; 5], &plain), Err(LinkError::NotAsMarked { .. })));
    }

    #[test]
    fn indirect_branches_use_its_thunks_where_the_guest_does() {
        let array = 0xffff_ffff_8120_2000;
        let plain = Facts { thunk_array: Some(array), ..facts() };
        let its = Facts { its: true, ..plain.clone() };
        let marked = || vec![Fixup::Retpoline { offset: 0 }];
        for (register, jump) in [(0, &[0xff, 0xe0][..]), (7, &[0xff, 0xe7]), (11, &[0x41, 0xff, 0xe3])] {
            let call = branch(CALL, AT.text, array + 32 * register).expect("near").to_vec();
            let prefixed = [&[0x2e], &branch(JMP, AT.text + 1, array + 32 * register).expect("near")[..]].concat();
            let mut conditional =
                [&[0x0f], &branch(0x84, AT.text + 1, array + 32 * register).expect("near")[..]].concat();
            conditional.resize(70, 0x90);
            for code in [call, prefixed, conditional] {
                assert_eq!(fixed(marked(), &code, &plain), Ok(code.clone()));
                let linked = fixed(marked(), &code, &its).expect("linked");
                let target = branch_target(&linked, AT.text).expect("a branch") - AT.text;
                assert!(target % 64 >= 32 && target as usize >= code.len(), "{target:#x}");
                assert!(linked[target as usize..].starts_with(&[jump, &[INT3]].concat()), "{register}");
                assert_eq!(linked.get(6..code.len()), code.get(6..), "nothing else is changed");
                assert_eq!(linked.len() as u64, (code.len() as u64).next_multiple_of(64) + 128);
            }
        }
        let odd = branch(CALL, AT.text, array + 8).expect("near");
        assert!(matches!(fixed(marked(), &odd, &its), Err(LinkError::NotAsMarked { .. })));
        assert!(matches!(fixed(marked(), &[0x90; 8], &its), Err(LinkError::NotAsMarked { .. })));
        // Without indirect branches there is nothing to add.
        assert_eq!(fixed(vec![], &[0x90; 8], &its), Ok(vec![0x90; 8]));
    }

    #[test]
    fn alternatives_are_taken_by_feature() {
        let alternative = |feature, inverted, replacement_len| {
            vec![Fixup::Alternative { offset: 0, len: 6, replacement: 8, replacement_len, feature, inverted }]
        };
        // Original: six no-ops; replacement behind it.
        let text = |replacement: &[u8]| [&[0x90; 8][..], replacement].concat();
        let clac = text(&[0x0f, 0x01, 0xca]);
        let taken = Ok([&[0x0f, 0x01, 0xca, 0x0f, 0x1f, 0x00, 0x90, 0x90][..], &[0x0f, 0x01, 0xca]].concat());
        assert_eq!(fixed(alternative(35, false, 3), &clac, &facts()), taken);
        assert_eq!(fixed(alternative(36, true, 3), &clac, &facts()), taken);
        assert_eq!(fixed(alternative(36, false, 3), &clac, &facts()), Ok(clac.clone()));
        assert_eq!(fixed(alternative(35, true, 3), &clac, &facts()), Ok(clac));
        // A call keeps its target.
        let call = branch(CALL, AT.text + 8, AT.text + 0x100).expect("near");
        let moved = branch(CALL, AT.text, AT.text + 0x100).expect("near");
        let result = fixed(alternative(35, false, 5), &text(&call), &facts()).expect("taken");
        assert_eq!(result[..6], [&moved[..], &[0x90]].concat());
        // Other references to its own place are refused.
        let lea = text(&[0x8b, 0x05, 0, 0, 0, 0]);
        assert_eq!(fixed(alternative(35, false, 6), &lea, &facts()), Err(LinkError::RelativeAlternative { offset: 0 }));
        assert_eq!(
            fixed(alternative(35, false, 6), &text(&[0x0f, 0x84, 0, 1, 0, 0]), &facts()),
            Err(LinkError::RelativeAlternative { offset: 0 })
        );
    }
}
