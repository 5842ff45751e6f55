//! Digests of the types of one unit: what a type is called, and how it is laid out.
//!
//! Comes in: the entries of a unit. Decided: what two types have to have in common to be laid out the same: all that
//! [`crate::layout_diff`] looks at. Goes out: a digest per type. A type that is referred to counts by its name and size,
//! one without a name by its contents; what is behind a pointer counts by its name alone.

mod known;
mod members;
mod names;
mod text;
mod variable;

pub(super) use known::Known;
pub(super) use names::{ByPlace, ByText, NameDigests, Names};

use super::digest::Digest;
use super::entry::{Number, Part};
use super::name::{Name, Texts};
use super::scan::{Entries, Index};
use crate::dwarf_layout::LayoutError;
use gimli::{DwTag, constants as dw};
use known::{ANONYMOUS, Facts, REST, TEXT};

/// Nesting beyond this is taken for a circle. Of a circle no part is ever known, so that its depth has no end.
const MAX_DEPTH: u32 = 100;

/// Works out the digests of one unit.
pub(super) struct Shapes<'e, 'a, N> {
    entries: Entries<'e, 'a>,
    start: Digest,
    pub(super) names: N,
    known: &'e mut Known,
}

impl<'e, 'a, N: Names> Shapes<'e, 'a, N> {
    pub(super) fn new(entries: Entries<'e, 'a>, start: Digest, names: N, known: &'e mut Known) -> Self {
        known.clear(entries.len());
        Self { entries, start, names, known }
    }

    /// Under which name a definition is found, as [`crate::dwarf_layout::Layouts::types`] has it; none for an anonymous
    /// struct or union, which is a part of what contains it, and for a typedef that only names one.
    pub(super) fn key(&mut self, index: Index) -> Result<Option<Digest>, LayoutError> {
        let entry = self.entries.get(index);
        let name = entry.name;
        let (tag, name) = match entry.tag {
            dw::DW_TAG_typedef => {
                let named_by = self.entries.get(entry.ty).named_by;
                let only_names = named_by != 0 && self.entries.get(named_by).name == name;
                if only_names || name.is_none() {
                    return Ok(None);
                }
                (dw::DW_TAG_typedef, name)
            }
            tag if !name.is_none() => (tag, name),
            _ if entry.named_by != 0 => (dw::DW_TAG_typedef, self.entries.get(entry.named_by).name),
            dw::DW_TAG_enumeration_type => match self.entries.first_name(index)? {
                Some(first) => (dw::DW_TAG_enumerator, first),
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        let key = self.start.with_two(u64::from(tag.0), self.names.number(name));
        Ok(Some(match entry.owner {
            0 => key,
            scope => key.with(self.names.number(self.entries.get(self.entries.origin(scope)?).name)),
        }))
    }

    /// How a definition is laid out.
    #[inline]
    pub(super) fn shape(&mut self, index: Index) -> Result<Digest, LayoutError> {
        self.shape_of(index, 0)
    }

    fn shape_of(&mut self, index: Index, depth: u32) -> Result<Digest, LayoutError> {
        let known = self.known.deep(index).shape;
        if known != 0 {
            return Ok(Digest(known));
        }
        let entry = self.entries.get(index);
        let size = entry.byte_size().unwrap_or(0);
        let mut shape = self.start.with_two(u64::from(entry.tag.0), size);
        match entry.tag {
            dw::DW_TAG_structure_type | dw::DW_TAG_union_type => {
                let mut align = 1;
                shape = self.members(shape, index, depth, &mut align)?;
                let align = entry.alignment.get().map_or(align, |stated| stated as u32);
                shape = shape.with(u64::from(align));
                self.known.deep(index).align = align.max(1);
            }
            dw::DW_TAG_enumeration_type => shape = self.enumerators(shape, index)?,
            _ => {
                let facts = self.facts(entry.ty, depth)?;
                let Digest(text) = self.text(entry.ty, depth)?;
                shape = shape.with_two(facts.size, u64::from(facts.align())).with(text);
            }
        }
        self.known.deep(index).shape = shape.0.max(1);
        Ok(Digest(shape.0.max(1)))
    }

    /// What a type is to a member of it. The text of an anonymous struct or union need not be known: seldom is it asked for.
    #[inline]
    fn facts(&mut self, ty: Index, depth: u32) -> Result<Facts, LayoutError> {
        if self.known.facts[ty as usize].known | TEXT != self.known.all() {
            self.find_facts(ty, depth)?;
        }
        Ok(self.known.facts[ty as usize])
    }

    #[inline(never)]
    fn find_facts(&mut self, ty: Index, depth: u32) -> Result<(), LayoutError> {
        let entry = self.entries.get(ty);
        if depth > MAX_DEPTH {
            return Err(LayoutError::TooDeep { offset: entry.offset as usize });
        }
        let tag = entry.tag;
        let stated = entry.byte_size();
        let (mut size, mut align, mut is_anonymous) = (stated.unwrap_or(u64::MAX), 1, false);
        if ty == 0 {
            size = u64::MAX; // void
        } else if is_alias(tag) || tag == dw::DW_TAG_array_type {
            let target = self.facts(entry.ty, depth + 1)?;
            if size == u64::MAX && target.size != u64::MAX {
                let elements = if tag == dw::DW_TAG_array_type { self.elements(ty)? } else { Some(1) };
                size = elements.map_or(u64::MAX, |count| count.saturating_mul(target.size));
            }
            align = target.align();
            is_anonymous = target.is_anonymous() && matches!(tag, dw::DW_TAG_const_type | dw::DW_TAG_volatile_type);
        } else if matches!(tag, dw::DW_TAG_structure_type | dw::DW_TAG_union_type) {
            self.shape_of(ty, depth + 1)?;
            align = self.known.deep(ty).align;
            is_anonymous = entry.name.is_none() && entry.named_by == 0;
        } else {
            align = stated.unwrap_or(1).clamp(1, 16) as u32;
        }
        align = entry.alignment.get().map_or(align, |stated| stated as u32).clamp(1, ANONYMOUS - 1);
        align |= if is_anonymous { ANONYMOUS } else { 0 };
        if !is_anonymous {
            self.text(ty, depth)?;
        }
        let all = self.known.all();
        let facts = &mut self.known.facts[ty as usize];
        let known = if facts.known | REST == all { all } else { all & !TEXT };
        *facts = Facts { size, align, known, ..*facts };
        Ok(())
    }

    /// Elements of an array; none when the bound is not stated.
    fn elements(&self, ty: Index) -> Result<Option<u64>, LayoutError> {
        let mut product = Some(1_u64);
        let (mut parts, mut bound) = (self.entries.parts(ty), Part::new());
        while parts.next(&mut bound)? {
            if bound.tag == dw::DW_TAG_subrange_type {
                product = product.zip(bound.says.count()).map(|(product, count)| product.saturating_mul(count));
            }
        }
        Ok(product)
    }
}
fn is_alias(tag: DwTag) -> bool {
    matches!(
        tag,
        dw::DW_TAG_typedef
            | dw::DW_TAG_const_type
            | dw::DW_TAG_volatile_type
            | dw::DW_TAG_restrict_type
            | dw::DW_TAG_atomic_type
    )
}
