//! Rules of new code and data: symbols, relocations, fixups.
//!
//! Comes in: a [`Payload`]. Decided: whether everything lies in its section and in order. Goes out: the first
//! [`Problem`].

use super::{Image, Problem};
use crate::{Fixup, Payload, Place, SectionKind};

/// Bytes of a direct call or jump (Intel SDM volume 2, CALL and JMP rel32).
pub(super) const CALL_SIZE: u8 = 5;
/// Sizes of an immediate that boot sets (`__runtime_fixup_shift`, `__runtime_fixup_ptr`, arch/x86/include/asm/runtime-const.h).
pub(super) const CONSTANT_SIZES: [u8; 2] = [1, 8];

pub(super) fn check(payload: &Payload, image: Image<'_>) -> Result<(), Problem> {
    symbols(payload, image)?;
    relocs(payload)?;
    fixups(payload, image)
}

fn symbols(payload: &Payload, image: Image<'_>) -> Result<(), Problem> {
    for (index, symbol) in payload.symbols.iter().enumerate() {
        let name = || symbol.name.clone();
        if symbol.name.contains('\0') {
            return Err(Problem::SymbolName { index, name: name() });
        }
        match symbol.place {
            Place::Payload { section, offset } => {
                let len = payload.size_of(section);
                if symbol.function && section != SectionKind::Text {
                    return Err(Problem::FunctionNotInText { name: name(), section });
                }
                if u64::from(offset).checked_add(symbol.size).is_none_or(|end| end > u64::from(len)) {
                    return Err(Problem::SymbolRange { name: name(), section, offset, size: symbol.size, len });
                }
            }
            Place::Kernel(address) => image.check("kernel symbol", address, 0)?,
            Place::Absolute(_) => {}
        }
    }
    Ok(())
}

fn relocs(payload: &Payload) -> Result<(), Problem> {
    let mut follows = (SectionKind::Text, 0);
    for (index, reloc) in payload.relocs.iter().enumerate() {
        let (section, offset, kind) = (reloc.section, reloc.offset, reloc.kind);
        let len = payload.size_of(section);
        if section == SectionKind::Bss {
            return Err(Problem::RelocInBss { index, offset });
        }
        let end = u64::from(offset) + u64::from(kind.size());
        if end > u64::from(len) {
            return Err(Problem::RelocRange { index, section, offset, kind, len });
        }
        if (section, u64::from(offset)) < follows {
            return Err(Problem::RelocOrder { index, section, offset });
        }
        follows = (section, end);
        if reloc.symbol as usize >= payload.symbols.len() {
            let count = payload.symbols.len();
            return Err(Problem::RelocSymbol { index, symbol: reloc.symbol, count });
        }
    }
    Ok(())
}

fn fixups(payload: &Payload, image: Image<'_>) -> Result<(), Problem> {
    let text = payload.size_of(SectionKind::Text);
    // Of the fixup before: whether it is an alternative, and where it starts and ends.
    let mut before = (false, 0, 0);
    for (index, fixup) in payload.fixups.iter().enumerate() {
        let inside = |offset: u32, size: u8| {
            let end = u64::from(offset) + u64::from(size);
            let outside = Problem::FixupRange { index, offset, size: size.into(), len: text };
            if end <= u64::from(text) { Ok(end) } else { Err(outside) }
        };
        let (offset, len, min) = match *fixup {
            Fixup::Paravirt { offset, len, .. } => (offset, len, CALL_SIZE),
            Fixup::Retpoline { offset } | Fixup::Return { offset } => (offset, CALL_SIZE, CALL_SIZE),
            Fixup::Alternative { offset, len, .. } | Fixup::Constant { offset, len, .. } => (offset, len, 1),
        };
        if len < min {
            return Err(Problem::FixupLength { index, offset, len, min });
        }
        let end = inside(offset, len)?;
        match *fixup {
            Fixup::Paravirt { slot, .. } => image.check("slot of a paravirt fixup", slot, 8)?,
            Fixup::Alternative { replacement, replacement_len, feature, .. } => {
                if replacement_len > len {
                    return Err(Problem::ReplacementLength { index, offset, len, replacement_len });
                }
                let replacement_end = inside(replacement, replacement_len)?;
                if u64::from(replacement) < end && u64::from(offset) < replacement_end && replacement_len != 0 {
                    return Err(Problem::ReplacementOverlap { index, offset, replacement });
                }
                // ALTINSTR_FLAG_INV, arch/x86/include/asm/alternative.h.
                if feature >= 1 << 15 {
                    return Err(Problem::Feature { index, offset, feature });
                }
            }
            Fixup::Constant { len, variable, .. } => {
                if !CONSTANT_SIZES.contains(&len) {
                    return Err(Problem::ConstantSize { index, len });
                }
                image.check("variable of a constant", variable, 8)?;
            }
            Fixup::Retpoline { .. } | Fixup::Return { .. } => {}
        }
        // ALTERNATIVE_2 makes two alternatives of one place; the later one wins (arch/x86/include/asm/alternative.h).
        let alternative = matches!(fixup, Fixup::Alternative { .. });
        let same_place = before == (true, offset, end);
        let follows = (alternative, u64::from(offset)) >= (before.0, before.2);
        if !(follows || alternative && same_place) {
            return Err(Problem::FixupOrder { index, offset });
        }
        before = (alternative, offset, end);
    }
    Ok(())
}
