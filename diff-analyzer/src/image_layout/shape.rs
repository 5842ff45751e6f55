//! Digests of the types of one unit: what a type is called, and how it is laid out.
//!
//! Comes in: the entries of a unit. Decided: what two types have to have in common to be laid out the same: all that
//! [`crate::layout_diff`] looks at. Goes out: a digest per type. A type that is referred to counts by its name and size,
//! one without a name by its contents; what is behind a pointer counts by its name alone.

use super::digest::Digest;
use super::entry::Entry;
use super::name::Name;
use super::scan::{Entries, Index};
use crate::dwarf_layout::LayoutError;
use gimli::{DwTag, constants as dw};

/// Nesting beyond this is taken for a circle. Of a circle no part is ever known, so that its depth has no end.
const MAX_DEPTH: u32 = 100;

/// What a type is to a member of it.
#[derive(Debug, Clone, Copy, Default)]
struct Facts {
    /// How it is written; 0 while nothing is known.
    text: u64,
    /// Size in bytes; `u64::MAX` for an incomplete type.
    size: u64,
    /// Alignment in bytes.
    align: u64,
}

/// What is known of an entry so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known {
    facts: Facts,
    shape: u64,
    contents: u64,
}

/// What names count by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// By their place: such digests hold within one image.
    Places,
    /// By their text: such digests hold for all images of a run.
    Texts,
}

/// Works out the digests of one unit.
pub(super) struct Shapes<'e, 'a> {
    entries: &'e Entries<'a>,
    start: Digest,
    names: Names,
    known: &'e mut Vec<Known>,
}

impl<'e, 'a> Shapes<'e, 'a> {
    /// `known` is memory that is kept from unit to unit.
    pub(super) fn new(entries: &'e Entries<'a>, start: Digest, names: Names, known: &'e mut Vec<Known>) -> Self {
        known.clear();
        Self { entries, start, names, known }
    }

    #[inline]
    fn name(&self, name: Name) -> u64 {
        match self.names {
            Names::Places => name.0,
            Names::Texts => self.entries.texts.digest(name),
        }
    }

    /// Under which name a definition is found, as [`crate::dwarf_layout::Layouts::types`] has it; none for an anonymous
    /// struct or union, which is a part of what contains it, and for a typedef that only names one.
    pub(super) fn key(&self, index: Index) -> Result<Option<Digest>, LayoutError> {
        let entry = self.entries.get(index);
        let (tag, name) = match entry.tag {
            dw::DW_TAG_typedef => {
                let named_by = self.entries.get(entry.ty).named_by;
                let only_names = named_by != 0 && self.entries.get(named_by).name == entry.name;
                if only_names || entry.name.is_none() {
                    return Ok(None);
                }
                (dw::DW_TAG_typedef, entry.name)
            }
            tag if !entry.name.is_none() => (tag, entry.name),
            _ if entry.named_by != 0 => (dw::DW_TAG_typedef, self.entries.get(entry.named_by).name),
            dw::DW_TAG_enumeration_type => match self.entries.parts(index).find(|part| !part.name.is_none()) {
                Some(first) => (dw::DW_TAG_enumerator, first.name),
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        let key = self.start.with(u64::from(tag.0)).with(self.name(name));
        Ok(Some(match entry.owner {
            0 => key,
            scope => key.with(self.name(self.entries.get(self.entries.origin(scope)?).name)),
        }))
    }

    /// How a definition is laid out.
    #[inline]
    pub(super) fn shape(&mut self, index: Index) -> Result<Digest, LayoutError> {
        self.make_room();
        self.shape_of(index)
    }

    /// Not before it is needed.
    #[inline]
    fn make_room(&mut self) {
        if self.known.is_empty() {
            self.known.resize(self.entries.len(), Known::default());
        }
    }

    fn shape_of(&mut self, index: Index) -> Result<Digest, LayoutError> {
        let known = self.known[index as usize].shape;
        if known != 0 {
            return Ok(Digest(known));
        }
        let entries = self.entries;
        let entry = entries.get(index);
        let mut shape = self.start.with(u64::from(entry.tag.0));
        match entry.tag {
            dw::DW_TAG_structure_type | dw::DW_TAG_union_type => {
                shape = shape.with(entry.byte_size().unwrap_or(0));
                let mut align = 1;
                shape = self.members(shape, index, 0, 0, &mut align)?;
                shape = shape.with(entry.alignment.get().unwrap_or(align));
            }
            dw::DW_TAG_enumeration_type => {
                shape = self.enumerators(shape.with(entry.byte_size().unwrap_or(0)), index);
            }
            _ => {
                let facts = self.facts(entry.ty, 0)?;
                shape = shape.with(facts.size).with(facts.align).with(facts.text);
            }
        }
        self.known[index as usize].shape = shape.0;
        Ok(shape)
    }

    /// Members of a struct or union, those of anonymous ones in their place. Widens `align` to that of the members.
    fn members(
        &mut self,
        digest: Digest,
        index: Index,
        base: u64,
        depth: u32,
        align: &mut u64,
    ) -> Result<Digest, LayoutError> {
        let entries = self.entries;
        let whole = entries.get(index).byte_size().unwrap_or(0);
        let mut digest = digest;
        for member in entries.parts(index).filter(|part| part.tag == dw::DW_TAG_member) {
            if depth > MAX_DEPTH {
                return Err(LayoutError::TooDeep { offset: member.offset as usize });
            }
            let facts = self.facts(member.ty, 0)?;
            widen(align, member, facts.align, whole);
            let size = if facts.size == u64::MAX { 0 } else { facts.size };
            let bit_offset = base.wrapping_add(offset_in_bits(member, size));
            let bit_size = member.bit_size.get().unwrap_or(size.saturating_mul(8));
            digest = digest.with(self.name(member.name)).with(bit_offset).with(bit_size);
            digest = match self.anonymous(member.ty)? {
                Some((inner, qualifiers)) => {
                    let tag = entries.get(inner).tag;
                    let start = digest.with(u64::from(tag.0)).with(qualifiers);
                    self.members(start, inner, bit_offset, depth + 1, &mut 1)?.with(END)
                }
                None => digest.with(facts.text),
            };
        }
        Ok(digest)
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

    /// What a type is to a member of it.
    #[inline]
    fn facts(&mut self, ty: Index, depth: u32) -> Result<Facts, LayoutError> {
        let known = self.known[ty as usize].facts;
        if known.text != 0 { Ok(known) } else { self.find_facts(ty, depth) }
    }

    fn find_facts(&mut self, ty: Index, depth: u32) -> Result<Facts, LayoutError> {
        let entries = self.entries;
        let entry = entries.get(ty);
        if depth > MAX_DEPTH {
            return Err(LayoutError::TooDeep { offset: entry.offset as usize });
        }
        let mut facts = Facts { text: 0, size: u64::MAX, align: 1 };
        if ty == 0 {
            facts.text = self.start.with(VOID).0;
            return Ok(facts);
        }
        let tag = entry.tag;
        facts.size = entry.byte_size().unwrap_or(u64::MAX);
        if is_alias(tag) || tag == dw::DW_TAG_array_type {
            let target = self.facts(entry.ty, depth + 1)?;
            if facts.size == u64::MAX && target.size != u64::MAX {
                facts.size = self.elements(ty).map_or(u64::MAX, |count| count.saturating_mul(target.size));
            }
            facts.align = target.align;
        } else if matches!(tag, dw::DW_TAG_structure_type | dw::DW_TAG_union_type) {
            for member in entries.parts(ty).filter(|part| part.tag == dw::DW_TAG_member) {
                let natural = match member.alignment.get() {
                    Some(stated) => stated,
                    None => self.facts(member.ty, depth + 1)?.align,
                };
                widen(&mut facts.align, member, natural, entry.byte_size().unwrap_or(0));
            }
        } else {
            facts.align = entry.byte_size().unwrap_or(1).clamp(1, 16);
        }
        facts.align = entry.alignment.get().unwrap_or(facts.align).max(1);
        facts.text = self.text(ty, depth)?.0.max(1);
        self.known[ty as usize].facts = facts;
        Ok(facts)
    }

    /// Elements of an array, one of anything else; none when the bound is not stated.
    fn elements(&self, ty: Index) -> Option<u64> {
        let mut bounds = self.entries.parts(ty).filter(|part| part.tag == dw::DW_TAG_subrange_type);
        bounds.try_fold(1_u64, |product, bound| Some(product.saturating_mul(bound.count()?)))
    }

    /// How a type is written.
    fn text(&mut self, ty: Index, depth: u32) -> Result<Digest, LayoutError> {
        if ty == 0 {
            return Ok(self.start.with(VOID));
        }
        let known = self.known[ty as usize].facts.text;
        if known != 0 {
            return Ok(Digest(known));
        }
        let entries = self.entries;
        let entry = entries.get(ty);
        if depth > MAX_DEPTH {
            return Err(LayoutError::TooDeep { offset: entry.offset as usize });
        }
        let text = self.start.with(u64::from(entry.tag.0));
        if !entry.name.is_none() {
            return Ok(text.with(self.name(entry.name)));
        }
        if entry.named_by != 0 {
            let typedef = self.start.with(u64::from(dw::DW_TAG_typedef.0));
            return Ok(typedef.with(self.name(entries.get(entry.named_by).name)));
        }
        let mut text = text;
        match entry.tag {
            dw::DW_TAG_structure_type | dw::DW_TAG_union_type => {
                for member in entries.parts(ty).filter(|part| part.tag == dw::DW_TAG_member) {
                    let bits = member.bit_size.get().unwrap_or(u64::MAX);
                    text = text.with(self.name(member.name)).with(bits).with(self.text(member.ty, depth + 1)?.0);
                }
                Ok(text.with(END))
            }
            dw::DW_TAG_enumeration_type => Ok(self.enumerators(text, ty)),
            dw::DW_TAG_array_type => {
                for bound in entries.parts(ty).filter(|part| part.tag == dw::DW_TAG_subrange_type) {
                    text = text.with(bound.count().unwrap_or(u64::MAX));
                }
                Ok(text.with(self.text(entry.ty, depth + 1)?.0))
            }
            dw::DW_TAG_subroutine_type => {
                text = text.with(u64::from(entry.prototyped));
                for parameter in entries.parts(ty) {
                    let mut ty = parameter.ty;
                    if parameter.origin != 0 {
                        ty = entries.get(entries.origin(parameter.origin)?).ty;
                    }
                    text = match parameter.tag {
                        dw::DW_TAG_formal_parameter => text.with(self.text(ty, depth + 1)?.0),
                        tag => text.with(u64::from(tag.0)),
                    };
                }
                Ok(text.with(self.text(entry.ty, depth + 1)?.0))
            }
            _ => Ok(text.with(self.text(entry.ty, depth + 1)?.0)),
        }
    }

    fn enumerators(&self, digest: Digest, index: Index) -> Digest {
        let named = self.entries.parts(index).filter(|part| part.tag == dw::DW_TAG_enumerator);
        named.fold(digest, |digest, part| {
            digest.with(self.name(part.name)).with(part.value()).with(u64::from(part.negative))
        })
    }

    /// How a variable of a type is laid out: text and size of the type, and everything that it contains by value.
    pub(super) fn variable(&mut self, ty: Index) -> Result<(Digest, Option<u64>, Digest), LayoutError> {
        self.make_room();
        let facts = self.facts(ty, 0)?;
        let contents = self.contents(ty, 0)?;
        Ok((Digest(facts.text), (facts.size != u64::MAX).then_some(facts.size), contents))
    }

    /// The struct, union or enum with a name that a type is, or is an array of.
    pub(super) fn element(&self, ty: Index) -> Option<Index> {
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
                let known = self.known[ty as usize].contents;
                if known != 0 {
                    return Ok(Digest(known));
                }
                let mut contents = self.shape_of(ty)?;
                for member in entries.parts(ty).filter(|part| part.tag == dw::DW_TAG_member) {
                    contents = contents.with(self.contents(member.ty, depth + 1)?.0);
                }
                self.known[ty as usize].contents = contents.0;
                Ok(contents)
            }
            dw::DW_TAG_enumeration_type => self.shape_of(ty),
            tag if ty != 0 && (tag == dw::DW_TAG_array_type || is_alias(tag)) => self.contents(entry.ty, depth + 1),
            _ => Ok(self.start),
        }
    }
}

/// Marks in digests that no tag and no name is.
const VOID: u64 = 1 << 32;
const END: u64 = 1 << 33;

/// Takes the alignment of a member into that of its struct or union, when its offset and the whole size agree with it.
fn widen(align: &mut u64, member: &Entry, natural: u64, whole: u64) {
    let natural = member.alignment.get().unwrap_or(natural).max(1);
    if natural > *align
        && whole.is_multiple_of(natural)
        && member.location.get().is_none_or(|location| location.is_multiple_of(natural))
    {
        *align = natural;
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

/// Offset of a member in bits within its struct or union; one of a union has none stated.
fn offset_in_bits(member: &Entry, type_size: u64) -> u64 {
    let bytes = member.location.get().unwrap_or(0).wrapping_mul(8);
    match (member.bit_offset.get(), member.from_top, member.bit_size.get()) {
        (Some(bits), false, _) => bytes.wrapping_add(bits),
        // Little-endian: from the top of the storage unit down (DWARF 4, section 5.5.6).
        (Some(from_top), true, Some(bits)) => {
            let unit = member.byte_size().unwrap_or(type_size).wrapping_mul(8);
            bytes.wrapping_add(unit.wrapping_sub(from_top).wrapping_sub(bits))
        }
        _ => bytes,
    }
}
