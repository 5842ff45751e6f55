//! How a type is written, as a digest.
//!
//! Comes in: a type. Decided: which types are written the same: those of one name, or without a name of the same parts. Goes out:
//! a digest of its text.

use super::known::{REST, TEXT};
use super::{Digest, Index, LayoutError, MAX_DEPTH, Names, Part, Shapes, is_alias};
use gimli::constants as dw;

/// Marks in digests that no tag and no name is.
const VOID: u64 = 1 << 32;
const END: u64 = 1 << 33;

impl<N: Names> Shapes<'_, '_, N> {
    /// How a type is written.
    #[inline]
    pub(super) fn text(&mut self, ty: Index, depth: u32) -> Result<Digest, LayoutError> {
        let facts = self.known.facts[ty as usize];
        if facts.known | REST == self.known.all() {
            return Ok(Digest(facts.text));
        }
        self.find_text(ty, depth)
    }

    #[inline(never)]
    fn find_text(&mut self, ty: Index, depth: u32) -> Result<Digest, LayoutError> {
        let entry = self.entries.get(ty);
        if depth > MAX_DEPTH {
            return Err(LayoutError::TooDeep { offset: entry.offset as usize });
        }
        let tag = u64::from(entry.tag.0);
        let text = if ty == 0 {
            self.start.with(VOID)
        } else if !entry.name.is_none() {
            self.start.with_two(tag, self.names.number(entry.name))
        } else if entry.named_by != 0 {
            let name = self.names.number(self.entries.get(entry.named_by).name);
            self.start.with_two(u64::from(dw::DW_TAG_typedef.0), name)
        } else if is_alias(entry.tag) || entry.tag == dw::DW_TAG_pointer_type {
            self.start.with(tag).with(self.text(entry.ty, depth + 1)?.0)
        } else {
            self.text_with_parts(ty, depth)?
        };
        let all = self.known.all();
        let facts = &mut self.known.facts[ty as usize];
        facts.known = if facts.known | TEXT == all { all } else { all & !REST };
        facts.text = text.0;
        Ok(text)
    }

    /// How a type without a name is written that may have members, bounds or parameters.
    fn text_with_parts(&mut self, ty: Index, depth: u32) -> Result<Digest, LayoutError> {
        let entries = self.entries;
        let entry = entries.get(ty);
        let mut text = self.start.with(u64::from(entry.tag.0));
        match entry.tag {
            dw::DW_TAG_structure_type | dw::DW_TAG_union_type => {
                let (mut parts, mut member) = (entries.parts(ty), Part::new());
                while parts.next(&mut member)? {
                    if member.tag == dw::DW_TAG_member {
                        let bits = member.says.bit_size.get().unwrap_or(u64::MAX);
                        let inner = self.text(entries.type_of(&member)?, depth + 1)?;
                        text = text.with_two(self.names.number(member.says.name), bits).with(inner.0);
                    }
                }
                return Ok(text.with(END));
            }
            dw::DW_TAG_enumeration_type => return self.enumerators(text, ty),
            dw::DW_TAG_array_type => {
                let (mut parts, mut bound) = (entries.parts(ty), Part::new());
                while parts.next(&mut bound)? {
                    if bound.tag == dw::DW_TAG_subrange_type {
                        text = text.with(bound.says.count().unwrap_or(u64::MAX));
                    }
                }
            }
            dw::DW_TAG_subroutine_type => {
                text = text.with(u64::from(entry.prototyped));
                let (mut parts, mut parameter) = (entries.parts(ty), Part::new());
                loop {
                    let (tag, ty) = match parts.next_plain() {
                        Some(plain) => (plain.tag, entries.type_at(plain.ty)?),
                        None if !parts.next(&mut parameter)? => break,
                        None => (parameter.tag, entries.type_of(&parameter)?),
                    };
                    text = text.with(match tag {
                        dw::DW_TAG_formal_parameter => self.text(ty, depth + 1)?.0,
                        tag => u64::from(tag.0),
                    });
                }
            }
            _ => {}
        }
        Ok(text.with(self.text(entry.ty, depth + 1)?.0))
    }
}
