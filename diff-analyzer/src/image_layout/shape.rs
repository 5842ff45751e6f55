//! Digests of the types of one unit: what a type is called, and how it is laid out.
//!
//! Comes in: the entries of a unit. Decided: what two types have to have in common to be laid out the same: all that
//! [`crate::layout_diff`] looks at. Goes out: a digest per type. A type that is referred to counts by its name and size,
//! one without a name by its contents; what is behind a pointer counts by its name alone.

use super::digest::{Digest, OfNumber};
use super::entry::{Number, Part};
use super::name::{Name, Texts};
use super::scan::{Entries, Index};
use crate::dwarf_layout::LayoutError;
use gimli::{DwTag, constants as dw};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;

/// Nesting beyond this is taken for a circle. Of a circle no part is ever known, so that its depth has no end.
const MAX_DEPTH: u32 = 100;

/// What a type is to a member of it.
#[derive(Debug, Clone, Copy, Default)]
struct Facts {
    /// How it is written.
    text: u64,
    /// Size in bytes; `u64::MAX` for an incomplete type.
    size: u64,
    /// Alignment in bytes, less than [`ANONYMOUS`]; and that bit for an anonymous struct or union, perhaps with qualifiers.
    align: u32,
    /// What is known: [`Known::all`], perhaps without [`TEXT`] or [`REST`].
    known: u32,
}

impl Facts {
    /// Size in bytes; 0 for an incomplete type.
    #[inline]
    fn size(self) -> u64 {
        if self.size == u64::MAX { 0 } else { self.size }
    }

    fn align(self) -> u32 {
        self.align & !ANONYMOUS
    }

    fn is_anonymous(self) -> bool {
        self.align & ANONYMOUS != 0
    }
}

/// Not an alignment.
const ANONYMOUS: u32 = 1 << 31;

/// The text of a type is known.
const TEXT: u32 = 1;

/// All but the text of a type is known.
const REST: u32 = 2;

/// What is known of a struct, union or enum besides.
#[derive(Debug, Clone, Copy, Default)]
struct Deep {
    shape: u64,
    contents: u64,
    /// Alignment of a struct or union, known with its shape.
    align: u32,
    unit: u32,
}

/// What is known of the types of a unit so far; memory that is kept from unit to unit.
#[derive(Debug, Default)]
pub(super) struct Known {
    facts: Vec<Facts>,
    deep: Vec<Deep>,
    /// How many units there have been; what is left over from others is known by that.
    unit: u32,
}

impl Known {
    /// Forgets all, for a unit of so many entries.
    fn clear(&mut self, entries: usize) {
        self.unit += 1; // an image has fewer units than that
        if self.facts.len() < entries {
            self.facts.resize(entries, Facts::default());
            self.deep.resize(entries, Deep::default());
        }
    }

    /// Marks facts of this unit of which all is known.
    #[inline]
    fn all(&self) -> u32 {
        self.unit << 2 | TEXT | REST
    }

    #[inline]
    fn deep(&mut self, index: Index) -> &mut Deep {
        let deep = &mut self.deep[index as usize];
        if deep.unit != self.unit {
            *deep = Deep { unit: self.unit, ..Deep::default() };
        }
        deep
    }
}

/// What names count by.
pub(super) trait Names {
    /// What a name counts as.
    fn number(&mut self, name: Name) -> u64;
}

/// By their place: such digests hold within one image.
pub(super) struct ByPlace;

impl Names for ByPlace {
    #[inline]
    fn number(&mut self, name: Name) -> u64 {
        name.0
    }
}

/// By their text: such digests hold for all images of a run. Those of one image are kept.
pub(super) struct ByText<'e, 'a> {
    pub(super) texts: Texts<'a>,
    pub(super) known: &'e mut NameDigests,
}

/// Digests of names by their place.
pub(super) type NameDigests = HashMap<u64, u64, BuildHasherDefault<OfNumber>>;

impl Names for ByText<'_, '_> {
    fn number(&mut self, name: Name) -> u64 {
        *self.known.entry(name.0).or_insert_with(|| self.texts.digest(name))
    }
}

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

    /// Members of a struct or union. Widens `align` to that of the members.
    fn members(&mut self, digest: Digest, index: Index, depth: u32, align: &mut u32) -> Result<Digest, LayoutError> {
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

    /// How a type is written.
    #[inline]
    fn text(&mut self, ty: Index, depth: u32) -> Result<Digest, LayoutError> {
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

    fn enumerators(&mut self, digest: Digest, index: Index) -> Result<Digest, LayoutError> {
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

    /// How a variable of a type is laid out: text and size of the type, and everything that it contains by value.
    pub(super) fn variable(&mut self, ty: Index) -> Result<(Digest, Option<u64>, Digest), LayoutError> {
        let facts = self.facts(ty, 0)?;
        let text = self.text(ty, 0)?;
        let contents = self.contents(ty, 0)?;
        Ok((text, (facts.size != u64::MAX).then_some(facts.size), contents))
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

/// Marks in digests that no tag and no name is.
const VOID: u64 = 1 << 32;
const END: u64 = 1 << 33;

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
