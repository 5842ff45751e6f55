//! Members of a struct or union, and enumerators.
//!
//! Comes in: the entries below a type. Decided: where each member lies, in bits, and what alignment the members show. Goes out: the
//! digest of the type with them.

use super::{Digest, Index, LayoutError, MAX_DEPTH, Names, Number, Part, Shapes};
use gimli::constants as dw;

impl<N: Names> Shapes<'_, '_, N> {
    /// Members of a struct or union. Widens `align` to that of the members.
    pub(super) fn members(
        &mut self,
        digest: Digest,
        index: Index,
        depth: u32,
        align: &mut u32,
    ) -> Result<Digest, LayoutError> {
        let entries = self.entries;
        let entry = entries.get(index);
        if depth > MAX_DEPTH {
            return Err(LayoutError::TooDeep { offset: entry.offset as usize });
        }
        let whole = entry.byte_size().unwrap_or(0);
        let mut digest = digest;
        let (mut parts, mut member) = (entries.parts(index), Part::new());
        loop {
            let (name, ty, facts, bit_offset, bit_size);
            // Few are bit-fields or aligned.
            if let Some(member) = parts.next_plain() {
                if member.tag != dw::DW_TAG_member {
                    continue;
                }
                (name, ty) = (member.name, entries.type_at(member.ty)?);
                facts = self.facts(ty, depth + 1)?;
                widen(align, None, member.location, facts.align(), whole);
                bit_offset = member.location.get().unwrap_or(0).wrapping_mul(8);
                bit_size = facts.size().saturating_mul(8);
            } else if !parts.next(&mut member)? {
                return Ok(digest);
            } else if member.tag == dw::DW_TAG_member {
                let says = &member.says;
                (name, ty) = (says.name, entries.type_of(&member)?);
                facts = self.facts(ty, depth + 1)?;
                widen(align, says.alignment.get(), says.location, facts.align(), whole);
                bit_offset = offset_in_bits(&member, facts.size());
                bit_size = says.bit_size.get().unwrap_or(facts.size().saturating_mul(8));
            } else {
                continue;
            }
            digest = digest.with_two(self.names.number(name), bit_offset);
            digest = match if facts.is_anonymous() { self.anonymous(ty)? } else { None } {
                Some((inner, qualifiers)) => {
                    let Digest(shape) = self.shape_of(inner, depth + 1)?;
                    digest.with_two(bit_size, qualifiers).with(shape)
                }
                None if facts.is_anonymous() => digest.with_two(bit_size, self.text(ty, depth + 1)?.0),
                None => digest.with_two(bit_size, facts.text),
            };
        }
    }

    /// The anonymous struct or union that a member's type is, seen through qualifiers, and these.
    fn anonymous(&self, ty: Index) -> Result<Option<(Index, u64)>, LayoutError> {
        let (mut index, mut qualifiers) = (ty, 0);
        for _ in 0..MAX_DEPTH {
            let entry = self.entries.get(index);
            match entry.tag {
                dw::DW_TAG_const_type | dw::DW_TAG_volatile_type => {
                    qualifiers = qualifiers * 2 + 1 + u64::from(entry.tag == dw::DW_TAG_const_type);
                }
                dw::DW_TAG_structure_type | dw::DW_TAG_union_type => {
                    let unnamed = entry.name.is_none() && entry.named_by == 0;
                    return Ok(unnamed.then_some((index, qualifiers)));
                }
                _ => return Ok(None),
            }
            index = entry.ty;
        }
        Err(LayoutError::TooDeep { offset: self.entries.get(ty).offset as usize })
    }

    pub(super) fn enumerators(&mut self, digest: Digest, index: Index) -> Result<Digest, LayoutError> {
        let mut digest = digest;
        let (mut parts, mut part) = (self.entries.parts(index), Part::new());
        while parts.next(&mut part)? {
            if part.tag == dw::DW_TAG_enumerator {
                digest = digest.with_two(self.names.number(part.says.name), part.says.value());
                digest = digest.with(u64::from(part.says.negative));
            }
        }
        Ok(digest)
    }
}

/// Takes the alignment of a member into that of its struct or union, when its offset and the whole size agree with it.
#[inline]
fn widen(align: &mut u32, stated: Option<u64>, location: Number, natural: u32, whole: u64) {
    let natural = stated.map_or(natural, |stated| stated as u32).max(1);
    if natural > *align
        && whole.is_multiple_of(u64::from(natural))
        && location.get().is_none_or(|location| location.is_multiple_of(u64::from(natural)))
    {
        *align = natural;
    }
}

/// Offset of a member in bits within its struct or union; one of a union has none stated.
fn offset_in_bits(member: &Part, type_size: u64) -> u64 {
    let bytes = member.says.location.get().unwrap_or(0).wrapping_mul(8);
    match (member.says.bit_offset.get(), member.says.from_top, member.says.bit_size.get()) {
        (Some(bits), false, _) => bytes.wrapping_add(bits),
        // Little-endian: from the top of the storage unit down (DWARF 4, section 5.5.6).
        (Some(from_top), true, Some(bits)) => {
            let unit = member.says.byte_size().unwrap_or(type_size).wrapping_mul(8);
            bytes.wrapping_add(unit.wrapping_sub(from_top).wrapping_sub(bits))
        }
        _ => bytes,
    }
}
