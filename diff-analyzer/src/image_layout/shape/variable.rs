//! How a variable is laid out, with everything that it contains.
//!
//! Comes in: the type of a variable. Decided: what is contained by value, however deep. Goes out: digests of its text and contents.

use super::{Digest, Index, LayoutError, MAX_DEPTH, Names, Part, Shapes, is_alias};
use gimli::constants as dw;

impl<N: Names> Shapes<'_, '_, N> {
    /// How a variable of a type is laid out: text and size of the type, and everything that it contains by value.
    pub(in crate::image_layout) fn variable(
        &mut self,
        ty: Index,
    ) -> Result<(Digest, Option<u64>, Digest), LayoutError> {
        let facts = self.facts(ty, 0)?;
        let text = self.text(ty, 0)?;
        let contents = self.contents(ty, 0)?;
        Ok((text, (facts.size != u64::MAX).then_some(facts.size), contents))
    }

    /// The struct, union or enum with a name that a type is, or is an array of.
    pub(in crate::image_layout) fn element(&self, ty: Index) -> Option<Index> {
        let mut index = ty;
        for _ in 0..MAX_DEPTH {
            let entry = self.entries.get(index);
            if entry.is_aggregate() {
                return (!entry.name.is_none() || entry.named_by != 0).then_some(index);
            }
            if index == 0 || !(is_alias(entry.tag) || entry.tag == dw::DW_TAG_array_type) {
                return None;
            }
            index = entry.ty;
        }
        None
    }

    fn contents(&mut self, ty: Index, depth: u32) -> Result<Digest, LayoutError> {
        let entries = self.entries;
        let entry = entries.get(ty);
        if depth > MAX_DEPTH {
            return Err(LayoutError::TooDeep { offset: entry.offset as usize });
        }
        match entry.tag {
            dw::DW_TAG_structure_type | dw::DW_TAG_union_type => {
                let known = self.known.deep(ty).contents;
                if known != 0 {
                    return Ok(Digest(known));
                }
                let mut contents = self.shape_of(ty, depth)?;
                let (mut parts, mut member) = (entries.parts(ty), Part::new());
                while parts.next(&mut member)? {
                    if member.tag == dw::DW_TAG_member {
                        contents = contents.with(self.contents(entries.type_of(&member)?, depth + 1)?.0);
                    }
                }
                self.known.deep(ty).contents = contents.0;
                Ok(contents)
            }
            dw::DW_TAG_enumeration_type => self.shape_of(ty, depth),
            tag if ty != 0 && (tag == dw::DW_TAG_array_type || is_alias(tag)) => self.contents(entry.ty, depth + 1),
            _ => Ok(self.start),
        }
    }
}
