//! The bytes of one unit, and how its entries are read from them.
//!
//! Comes in: a unit with its plans. Decided: what an entry says and where it ends, from its plan where that knows, by gimli
//! otherwise. Goes out: [`Attributes`], or nothing when the entry is only passed over.

use super::bytes::{load, text_length, uleb};
use super::entry::{Attributes, Number, Part, PlainPart, SimpleType};
use super::name::Name;
use super::plan::{Plan, Plans, Role, Window};
use super::unit::Unit;
use crate::dwarf_layout::LayoutError;
use crate::dwarf_layout::sections::Slice;
use gimli::{Dwarf, EndianSlice, EntriesRaw, LittleEndian, UnitOffset, constants as dw};

/// A unit that is being read.
#[derive(Clone, Copy)]
pub(super) struct Reader<'u, 'a> {
    dwarf: &'u Dwarf<Slice<'a>>,
    unit: &'u Unit<'a>,
    plans: &'u Plans,
    /// The unit from its first entry on. Places are places in it.
    bytes: &'a [u8],
    /// Offset of `bytes` in the unit.
    base: usize,
    /// Offset of `bytes` in `.debug_info`.
    base_in_section: usize,
}

impl<'u, 'a> Reader<'u, 'a> {
    pub(super) fn new(dwarf: &'u Dwarf<Slice<'a>>, unit: &'u Unit<'a>, plans: &'u Plans) -> Result<Self, gimli::Error> {
        let base = unit.header.root_offset();
        let bytes = unit.header.range_from(base..)?.slice();
        let base_in_section = unit.header.debug_info_offset().map_or(0, |start| start.0) + base.0;
        Ok(Self { dwarf, unit, plans, bytes, base: base.0, base_in_section })
    }

    /// The place of an offset of the unit.
    #[inline]
    pub(super) fn place(&self, offset: usize) -> Option<usize> {
        offset.checked_sub(self.base)
    }

    /// The offset in the unit of a place.
    #[inline]
    pub(super) fn offset(&self, at: usize) -> usize {
        self.base + at
    }

    fn structure(&self, at: usize) -> LayoutError {
        LayoutError::Structure { offset: self.offset(at) }
    }

    /// The plan of the entry at a place, and `at` behind its code; no plan for the end of a list or of the unit.
    ///
    /// # Errors
    /// [`LayoutError`] when there is no such abbreviation.
    #[inline]
    pub(super) fn plan(&self, at: &mut usize) -> Result<Option<&'u Plan>, LayoutError> {
        match uleb(self.bytes, at) {
            Some(0) => Ok(None),
            Some(code) => Ok(Some(self.plans.get(code)?)),
            None if *at == self.bytes.len() => Ok(None),
            None => Err(self.structure(*at)),
        }
    }

    /// The place behind the unit.
    #[inline]
    pub(super) fn end(&self) -> usize {
        self.bytes.len()
    }

    /// Passes over the children of an entry from `at` on, as long as they are parts of it and nothing else.
    #[inline]
    pub(super) fn pass_parts(&self, mut at: usize) -> Result<usize, LayoutError> {
        loop {
            at = self.plans.pass_parts(self.bytes, at);
            let start = at;
            match self.plan(&mut at)? {
                Some(plan) if plan.is_plain_part() => at = self.skip(at, plan)?,
                _ => return Ok(start),
            }
        }
    }

    /// The place behind the attributes of an entry, which start at `at`.
    #[inline]
    pub(super) fn skip(&self, at: usize, plan: &Plan) -> Result<usize, LayoutError> {
        let start = if plan.text_first { self.text(at)?.1 } else { at };
        match self.length(start, plan) {
            Some(length) => self.behind(start, length),
            None => self.by_gimli(at, |raw| Ok(raw.skip_attributes(self.plans.specs(plan))?)),
        }
    }

    /// The place behind the attributes of an entry, and where the next entry is that is not below it, if it says so.
    #[inline]
    pub(super) fn skip_to_sibling(&self, at: usize, plan: &Plan) -> Result<(usize, Option<usize>), LayoutError> {
        let end = self.skip(at, plan)?;
        Ok((end, self.sibling(end, plan)?))
    }

    /// The place of the next entry that is not below one whose attributes end at `end`, if it says so.
    #[inline]
    pub(super) fn sibling(&self, end: usize, plan: &Plan) -> Result<Option<usize>, LayoutError> {
        let (true, Some(sibling)) = (plan.has_children, plan.sibling) else { return Ok(None) };
        // Counted from the end, since a name in place and the expression lie before it; behind a later expression it is not looked for.
        let (Some(length), true) = (plan.length, plan.expression.is_none_or(|expression| expression <= sibling)) else {
            return Ok(None);
        };
        let place = end.checked_sub((length - sibling) as usize).ok_or_else(|| self.structure(end))?;
        match self.place(load(self.bytes, place) as u32 as usize) {
            Some(sibling) if sibling >= end && sibling <= self.bytes.len() => Ok(Some(sibling)),
            _ => Err(self.structure(end)),
        }
    }

    /// What an entry says that matters to layouts, and the place behind it.
    #[inline]
    pub(super) fn attributes(&self, at: usize, plan: &Plan, attributes: &mut Attributes) -> Result<usize, LayoutError> {
        match if plan.is_simple { self.simple(at, plan, attributes) } else { None } {
            Some(end) => Ok(end),
            None => self.attributes_one_by_one(at, plan, attributes),
        }
    }

    /// The attributes of a simple plan, and the place behind them; none at the end of the unit.
    #[inline(always)]
    fn simple(&self, at: usize, plan: &Plan, attributes: &mut Attributes) -> Option<usize> {
        let (name, window, end) = self.window(at, plan)?;
        attributes.simple(name, window, plan);
        Some(end)
    }

    /// What most members and parameters say, and the place behind one; none when it says more, or is anything else.
    #[inline(always)]
    pub(super) fn plain_part(&self, at: usize) -> Option<(PlainPart, usize)> {
        let plan = self.plans.simple_part(*self.bytes.get(at)?)?;
        let (name, window, end) = self.window(at + 1, plan)?;
        let location = Number::of(plan.location.within(window));
        Some((PlainPart { tag: plan.tag, name, ty: plan.ty.within(window) as u32, location }, end))
    }

    /// What a type with a simple plan says, its attributes starting at `at`, and the place behind it; none when it is anything
    /// else.
    #[inline(always)]
    pub(super) fn simple_type(&self, at: usize, plan: &Plan) -> Option<(SimpleType, usize)> {
        if !plan.is_simple || plan.role != Role::Type {
            return None;
        }
        let (name, window, end) = self.window(at, plan)?;
        let size = Number::of(plan.amount.within(window));
        Some((SimpleType { name, ty: plan.ty.within(window) as u32, size }, end))
    }

    /// The name in an entry with a simple plan whose attributes start at `at`, the attributes behind a name in place, and the
    /// place behind them; none at the end of the unit.
    #[inline(always)] // for each type and each member of each type: a call takes as long as this
    fn window(&self, at: usize, plan: &Plan) -> Option<(Name, &'a Window, usize)> {
        let length = plan.length? as usize;
        if plan.text_first {
            let (name, at) = self.text(at).ok()?;
            return Some((name, self.bytes.get(at..)?.first_chunk()?, at + length));
        }
        let window = self.bytes.get(at..)?.first_chunk()?;
        Some((Name(plan.name.within(window)), window, at + length))
    }

    /// Whether the list of entries ends at a place.
    #[inline(always)]
    pub(super) fn is_end(&self, at: usize) -> bool {
        self.bytes.get(at) == Some(&0)
    }

    /// Reads a part of a type that has a simple plan and nothing below it; none when it is anything else.
    #[inline(always)]
    pub(super) fn simple_part(&self, at: usize, part: &mut Part) -> Option<usize> {
        let plan = self.plans.simple_part(*self.bytes.get(at)?)?;
        let end = self.simple(at + 1, plan, &mut part.says)?;
        part.offset = self.offset(at) as u32;
        part.tag = plan.tag;
        Some(end)
    }

    #[inline(never)]
    fn attributes_one_by_one(&self, at: usize, plan: &Plan, attributes: &mut Attributes) -> Result<usize, LayoutError> {
        if !plan.regular {
            return self.attributes_by_gimli(at, plan, attributes);
        }
        let mut start = at;
        if plan.text_first {
            (attributes.name, start) = self.text(at)?;
        } else {
            attributes.name = Name(plan.name.of(self.bytes, start));
        }
        let Some(length) = self.length(start, plan) else { return self.attributes_by_gimli(at, plan, attributes) };
        attributes.regular(self.bytes, start, plan, self.plans.rare(plan));
        if let (true, Some(expression)) = (plan.has_location, plan.expression) {
            let at = start + expression as usize;
            // One byte for the length of the expression, one for the operation, eight for the address.
            let expected = u64::from(dw::DW_OP_addr.0) << 8 | 9;
            if load(self.bytes, at) & 0xffff == expected {
                attributes.location = Number::of(load(self.bytes, at + 2));
            }
        }
        self.behind(start, length)
    }

    #[cold]
    fn attributes_by_gimli(&self, at: usize, plan: &Plan, attributes: &mut Attributes) -> Result<usize, LayoutError> {
        let offset = self.offset(at);
        self.by_gimli(at, |raw| {
            for &spec in self.plans.specs(plan) {
                attributes.attribute(self.dwarf, self.unit, offset, &raw.read_attribute(spec)?)?;
            }
            Ok(())
        })
    }

    /// Bytes of the attributes of an entry, which start at `start` but for a name in place; none when its plan does not know.
    #[inline]
    fn length(&self, start: usize, plan: &Plan) -> Option<usize> {
        let length = plan.length? as usize;
        match plan.expression {
            None => Some(length),
            Some(place) => {
                let &expression = self.bytes.get(start + place as usize)?;
                (expression < 0x80).then_some(length + 1 + usize::from(expression))
            }
        }
    }

    #[inline]
    fn behind(&self, start: usize, length: usize) -> Result<usize, LayoutError> {
        let end = start + length;
        if end > self.bytes.len() { Err(self.structure(start)) } else { Ok(end) }
    }

    /// A name that starts at `at`, and the place behind it.
    #[inline]
    fn text(&self, at: usize) -> Result<(Name, usize), LayoutError> {
        let length = text_length(self.bytes, at).ok_or(LayoutError::Name { offset: self.offset(at) })?;
        let name = match length {
            0..8 => Name::short(load(self.bytes, at), length),
            _ => Name::in_entries(self.base_in_section + at),
        };
        Ok((name, at + length + 1))
    }

    #[inline(never)]
    fn by_gimli(
        &self,
        at: usize,
        read: impl FnOnce(&mut EntriesRaw<'_, Slice<'a>>) -> Result<(), LayoutError>,
    ) -> Result<usize, LayoutError> {
        let rest = self.bytes.get(at..).ok_or_else(|| self.structure(at))?;
        let rest = EndianSlice::new(rest, LittleEndian);
        let offset = UnitOffset(self.offset(at));
        let mut raw = EntriesRaw::new(rest, self.unit.header.encoding(), &self.plans.no_abbreviations, offset);
        read(&mut raw)?;
        self.place(raw.next_offset().0).ok_or_else(|| self.structure(at))
    }
}
