//! The entries of one unit that describe types and global variables, without copying a name.
//!
//! Comes in: one unit. Decided: which entries layouts depend on; what is below a call or an inlined function is jumped over,
//! parts of types are only passed over. Goes out: [`Entries`], a flat list in memory that is filled again for the next unit,
//! and the [`Parts`] of each, read when they are needed. [`crate::dwarf_layout`] reads the same entries for people, one unit
//! at a time; this is for thousands of units of which all but a few are the same.

use super::digest::Digest;
use super::entry::{Attributes, Entry, Part, PlainPart, is_aggregate};
use super::name::{Name, Texts};
use super::plan::{Plan, Plans, Role};
use super::reader::Reader;
use super::starts::Starts;
use super::unit::Unit;
use crate::dwarf_layout::LayoutError;
use crate::dwarf_layout::sections::Slice;
use gimli::{Dwarf, UnitHeader, constants as dw};

/// Index of an entry in its [`Entries`]; 0 is the unit itself and stands for none.
pub(super) type Index = u32;

/// Memory that is kept from unit to unit.
#[derive(Debug, Default)]
pub(super) struct Memory {
    list: Vec<Entry>,
    starts: Starts,
    open: Vec<Open>,
    plans: Plans,
    /// Whether parts of structs, unions and enums of file scope are jumped over. Whoever reads these later finds out when there
    /// was anything else among them, and an error says so. gcc puts types of C inside of types only in functions.
    jumps: bool,
}

/// The entries of a unit.
#[derive(Clone, Copy)]
pub(super) struct Entries<'e, 'a> {
    list: &'e [Entry],
    starts: &'e Starts,
    reader: Reader<'e, 'a>,
    /// Where the names are.
    pub(super) texts: Texts<'a>,
}

/// An entry whose children are being read.
#[derive(Debug, Clone, Copy)]
struct Open {
    what: What,
    scope: Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// The unit.
    Unit,
    /// A function or a block in one.
    Code,
    /// A type, or a part of one.
    Type,
}

impl Memory {
    pub(super) fn new(jumps: bool) -> Self {
        Self { jumps, ..Self::default() }
    }

    /// Reads what is known of a unit before its entries.
    ///
    /// # Errors
    /// [`gimli::Error`] when it is malformed.
    pub(super) fn unit<'a>(
        &mut self,
        dwarf: &Dwarf<Slice<'a>>,
        header: UnitHeader<Slice<'a>>,
    ) -> Result<Unit<'a>, gimli::Error> {
        Unit::read(dwarf, header, &mut self.plans)
    }

    /// Reads the entries of the unit that was read last.
    ///
    /// # Errors
    /// [`LayoutError`] when the DWARF is malformed or refers to another unit.
    pub(super) fn entries<'e, 'a>(
        &'e mut self,
        dwarf: &'e Dwarf<Slice<'a>>,
        unit: &'e Unit<'a>,
        start: Digest,
    ) -> Result<Entries<'e, 'a>, LayoutError> {
        let Self { list, starts, open, plans, jumps } = self;
        list.clear();
        open.clear();
        let end = unit.header.length_including_self();
        if u32::try_from(end).is_err() {
            return Err(LayoutError::Structure { offset: end });
        }
        starts.clear(end);
        let reader = Reader::new(dwarf, unit, plans)?;
        scan(reader, list, starts, open, *jumps)?;
        if list.is_empty() {
            return Err(LayoutError::Structure { offset: 0 });
        }
        link(list, starts)?;
        Ok(Entries { list, starts, reader, texts: Texts::new(dwarf, start) })
    }
}

fn scan(
    reader: Reader<'_, '_>,
    list: &mut Vec<Entry>,
    starts: &mut Starts,
    open: &mut Vec<Open>,
    jumps: bool,
) -> Result<(), LayoutError> {
    let mut at = 0;
    while at < reader.end() {
        let offset = reader.offset(at);
        let Some(plan) = reader.plan(&mut at)? else {
            open.pop(); // a unit may end with more than the needed ends of lists
            continue;
        };
        let Some(&parent) = open.last() else {
            if !list.is_empty() {
                return Err(LayoutError::Structure { offset });
            }
            at = reader.skip(at, plan)?;
            list.push(Entry::new(offset as u32, plan.tag, &Attributes::default()));
            starts.add(offset, 0);
            if plan.has_children {
                open.push(Open { what: What::Unit, scope: 0 });
            }
            continue;
        };
        let index = list.len() as Index;
        let mut inside = Open { what: What::Type, ..parent };
        // Most are types.
        if plan.role != Role::Type {
            let is_needed = match plan.role {
                Role::Part => parent.what == What::Type,
                Role::Variable => parent.what == What::Unit,
                Role::Type | Role::Function | Role::Block => true,
                Role::None => false,
            };
            if !is_needed {
                at = pass(reader, at, plan)?;
                continue;
            }
            inside = match plan.role {
                Role::Function => Open { what: What::Code, scope: index },
                Role::Block => Open { what: What::Code, ..parent },
                _ => inside,
            };
            if matches!(plan.role, Role::Part | Role::Block) {
                at = reader.skip(at, plan)?;
                if plan.has_children {
                    open.push(inside);
                }
                continue;
            }
        }
        starts.add(offset, index);
        let simple = reader.simple_type(at, plan);
        let mut says = Attributes::default();
        at = match simple {
            Some((_, end)) => end,
            None => reader.attributes(at, plan, &mut says)?,
        };
        let (mut parts, mut sibling) = (0, 0);
        if plan.has_children {
            parts = at as u32;
            let next = match jumps && parent.what == What::Unit && is_aggregate(plan.tag) {
                true => reader.sibling(at, plan)?,
                false => None,
            };
            if let Some(next) = next {
                (at, sibling) = (next, next as u32);
            } else {
                open.push(inside);
                if plan.role == Role::Type {
                    at = reader.pass_parts(at)?;
                }
            }
        }
        let owner = parent.scope;
        match simple {
            Some((says, _)) => list.push(Entry { owner, parts, sibling, ..Entry::simple(offset as u32, says, plan) }),
            None => list.push(Entry { owner, parts, sibling, ..Entry::new(offset as u32, plan.tag, &says) }),
        }
    }
    Ok(())
}

/// The place behind an entry, whose attributes start at `at`, and all that is below it.
fn pass(reader: Reader<'_, '_>, at: usize, plan: &Plan) -> Result<usize, LayoutError> {
    let (mut at, mut plan, mut depth) = (at, plan, 0_usize);
    loop {
        let (end, sibling) = reader.skip_to_sibling(at, plan)?;
        at = sibling.unwrap_or(end);
        depth += usize::from(plan.has_children && sibling.is_none());
        plan = loop {
            if depth == 0 || at == reader.end() {
                return Ok(at);
            }
            match reader.plan(&mut at)? {
                Some(plan) => break plan,
                None => depth -= 1,
            }
        };
    }
}

/// Turns references into indexes, and finds the typedefs that name anonymous types.
fn link(list: &mut [Entry], starts: &Starts) -> Result<(), LayoutError> {
    for index in 1..list.len() {
        let entry = &mut list[index];
        let ty = index_at(starts, entry.ty)?;
        entry.ty = ty;
        if entry.origin != 0 {
            entry.origin = index_at(starts, entry.origin)?;
        }
        if entry.tag == dw::DW_TAG_typedef && ty != 0 && !entry.name.is_none() {
            let target = &mut list[ty as usize];
            if target.is_aggregate() && target.name.is_none() && target.named_by == 0 {
                target.named_by = index as Index;
            }
        }
    }
    Ok(())
}

/// The entry at an offset of the unit; 0 for 0.
#[inline]
fn index_at(starts: &Starts, offset: u32) -> Result<Index, LayoutError> {
    if offset == 0 {
        return Ok(0);
    }
    match starts.number(offset) {
        // The unit itself is no type.
        Some(index) if index != 0 => Ok(index),
        _ => Err(LayoutError::Reference { offset: offset as usize }),
    }
}

impl<'e, 'a> Entries<'e, 'a> {
    /// An entry by its index.
    #[inline]
    pub(super) fn get(&self, index: Index) -> &'e Entry {
        &self.list[index as usize]
    }

    /// The entry at an offset.
    pub(super) fn index(&self, offset: u32) -> Option<Index> {
        self.starts.number(offset)
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Members, enumerators, bounds or parameters of an entry.
    #[inline]
    pub(super) fn parts(&self, index: Index) -> Parts<'e, 'a> {
        let entry = self.get(index);
        let at = match entry.parts {
            0 => self.reader.end(),
            at => at as usize,
        };
        let jumped_to = if entry.sibling == 0 { None } else { Some(entry.sibling as usize) };
        Parts { reader: self.reader, at, depth: 0, is_dirty: false, jumped_to }
    }

    /// Sees to it that a type has nothing but parts, when they were jumped over.
    ///
    /// # Errors
    /// [`LayoutError`] when it has.
    pub(super) fn check_parts(&self, index: Index) -> Result<(), LayoutError> {
        if self.get(index).sibling != 0 {
            let (mut parts, mut part) = (self.parts(index), Part::new());
            while parts.next(&mut part)? {}
        }
        Ok(())
    }

    /// The first name that a part has.
    ///
    /// # Errors
    /// [`LayoutError`] when a part is malformed.
    pub(super) fn first_name(&self, index: Index) -> Result<Option<Name>, LayoutError> {
        let (mut parts, mut part) = (self.parts(index), Part::new());
        while parts.next(&mut part)? {
            if !part.says.name.is_none() {
                return Ok(Some(part.says.name));
            }
        }
        Ok(None)
    }

    /// The type of a part.
    ///
    /// # Errors
    /// [`LayoutError`] when it refers to no type.
    #[inline]
    pub(super) fn type_of(&self, part: &Part) -> Result<Index, LayoutError> {
        // Only copies of functions have parameters that state their origin instead (DWARF 5, section 3.3.8.3).
        if part.says.origin != 0 {
            return Err(LayoutError::Reference { offset: part.says.origin as usize });
        }
        self.type_at(part.says.ty)
    }

    /// The type at an offset of the unit; 0 for 0.
    ///
    /// # Errors
    /// [`LayoutError`] when there is none.
    #[inline]
    pub(super) fn type_at(&self, offset: u32) -> Result<Index, LayoutError> {
        index_at(self.starts, offset)
    }

    /// The entry that states name and type: itself, or what it completes or copies.
    ///
    /// # Errors
    /// [`LayoutError`] when the chain leads nowhere or in a circle.
    pub(super) fn origin(&self, index: Index) -> Result<Index, LayoutError> {
        let mut current = index;
        for _ in 0..8 {
            match self.get(current).origin {
                0 => return Ok(current),
                origin => current = origin,
            }
        }
        Err(LayoutError::TooDeep { offset: self.get(index).offset as usize })
    }
}

/// The parts of an entry, in their order.
pub(super) struct Parts<'e, 'a> {
    reader: Reader<'e, 'a>,
    at: usize,
    /// How far below the parts the next entry is.
    depth: usize,
    /// Whether the part that was read last said what simple ones do not.
    is_dirty: bool,
    /// Where they have to end, when they were jumped over; then there is nothing else among them or below them.
    jumped_to: Option<usize>,
}

impl Parts<'_, '_> {
    /// Reads the next part; false when there is none. Not an iterator, which would have to move each part several times.
    ///
    /// # Errors
    /// [`LayoutError`] when the DWARF is malformed.
    #[inline(always)] // as `Reader::simple_part`
    pub(super) fn next(&mut self, part: &mut Part) -> Result<bool, LayoutError> {
        if self.depth == 0
            && !self.is_dirty
            && let Some(end) = self.reader.simple_part(self.at, part)
        {
            self.at = end;
            return Ok(true);
        }
        if self.is_done() {
            return Ok(false);
        }
        self.next_of_any_form(part)
    }

    /// Reads the next part, when it says no more than most members and parameters do.
    #[inline(always)]
    pub(super) fn next_plain(&mut self) -> Option<PlainPart> {
        if self.depth != 0 {
            return None;
        }
        let (part, end) = self.reader.plain_part(self.at)?;
        self.at = end;
        Some(part)
    }

    /// Whether the next entry is the end of the parts, as expected.
    #[inline(always)]
    fn is_done(&self) -> bool {
        self.depth == 0 && self.reader.is_end(self.at) && self.jumped_to.is_none_or(|end| end == self.at + 1)
    }

    #[inline(never)]
    fn next_of_any_form(&mut self, part: &mut Part) -> Result<bool, LayoutError> {
        loop {
            let offset = self.reader.offset(self.at);
            let Some(plan) = self.reader.plan(&mut self.at)? else {
                let Some(depth) = self.depth.checked_sub(1) else {
                    if self.jumped_to.is_some_and(|end| end != self.at) {
                        return Err(LayoutError::Structure { offset });
                    }
                    self.jumped_to = None;
                    self.at = self.reader.end();
                    return Ok(false);
                };
                self.depth = depth;
                continue;
            };
            let is_part = self.depth == 0 && plan.role == Role::Part;
            if self.jumped_to.is_some() && !plan.is_plain_part() {
                return Err(LayoutError::Structure { offset });
            }
            self.depth += usize::from(plan.has_children);
            if is_part {
                *part = Part { says: Attributes::default(), offset: offset as u32, tag: plan.tag };
                self.at = self.reader.attributes(self.at, plan, &mut part.says)?;
                self.is_dirty = !plan.is_simple;
                return Ok(true);
            }
            self.at = self.reader.skip(self.at, plan)?;
        }
    }
}
