//! The entries of one unit that describe types and global variables, without copying a name.
//!
//! Comes in: one unit. Decided: which entries and attributes layouts depend on; what is below a call or an inlined function
//! is jumped over. Goes out: [`Entries`], a flat list that is filled again for the next unit. [`crate::dwarf_layout`] reads
//! the same entries for people, one unit at a time; this is for thousands of units of which all but a few are the same.

use super::entry::Entry;
use super::name::Texts;
use super::plan::Role;
use super::unit::Unit;
use super::walk::Walk;
use crate::dwarf_layout::LayoutError;
use crate::dwarf_layout::sections::Slice;
use gimli::{Dwarf, constants as dw};

/// Index of an entry in its [`Entries`]; 0 is the unit itself and stands for none.
pub(super) type Index = u32;

/// The entries of a unit.
#[derive(Debug)]
pub(super) struct Entries<'a> {
    list: Vec<Entry>,
    /// Where the names are.
    pub(super) texts: Texts<'a>,
    /// Index by offset. Left over from other units where `list` does not confirm it.
    at: Vec<Index>,
    open: Vec<Open>,
}

/// An entry whose children are being read.
#[derive(Debug, Clone, Copy)]
struct Open {
    what: What,
    entry: Index,
    scope: Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// The unit.
    Unit,
    /// A function or a block in one.
    Code,
    /// A type.
    Type,
}

impl<'a> Entries<'a> {
    pub(super) fn new(texts: Texts<'a>) -> Self {
        Self { list: Vec::new(), texts, at: Vec::new(), open: Vec::new() }
    }

    /// Reads a unit.
    ///
    /// # Errors
    /// [`LayoutError`] when the DWARF is malformed or refers to another unit.
    pub(super) fn read(&mut self, dwarf: &Dwarf<Slice<'a>>, unit: &Unit<'a>) -> Result<(), LayoutError> {
        self.list.clear();
        self.open.clear();
        let end = unit.header.length_including_self();
        if u32::try_from(end).is_err() {
            return Err(LayoutError::Structure { offset: end });
        }
        if self.at.len() < end {
            self.at.resize(end, 0);
        }
        let mut walk = Walk::new(unit)?;
        while let Some((offset, depth, plan)) = walk.next()? {
            if depth > self.open.len() || (depth == 0) != self.list.is_empty() {
                return Err(LayoutError::Structure { offset });
            }
            self.open.truncate(depth);
            let Some(&parent) = self.open.last() else {
                walk.skip_attributes(&plan)?;
                self.list.push(Entry::new(offset as u32, plan.tag));
                self.open.push(Open { what: What::Unit, entry: 0, scope: 0 });
                continue;
            };
            let wanted = match plan.role {
                Role::Part => parent.what == What::Type,
                Role::Variable => parent.what == What::Unit,
                Role::Type | Role::Function => true,
                Role::Block => {
                    walk.skip_attributes(&plan)?;
                    if plan.has_children {
                        self.open.push(Open { what: What::Code, ..parent });
                    }
                    continue;
                }
                Role::None => false,
            };
            if !wanted {
                walk.skip(offset, depth, &plan)?;
                continue;
            }
            let index = self.list.len() as Index;
            self.list.push(Entry::new(offset as u32, plan.tag));
            let entry = &mut self.list[index as usize];
            walk.attributes(&plan, dwarf, &mut self.texts, entry)?;
            entry.owner = parent.scope;
            let mut open = Open { what: What::Type, entry: index, scope: parent.scope };
            match plan.role {
                Role::Part => {
                    entry.owner = parent.entry;
                    let parent = &mut self.list[parent.entry as usize];
                    if parent.first == 0 {
                        parent.first = index;
                    }
                    parent.end = index + 1;
                }
                Role::Function => open = Open { what: What::Code, scope: index, ..open },
                _ => {}
            }
            self.at[offset] = index;
            if plan.has_children {
                self.open.push(open);
            }
        }
        if self.list.is_empty() {
            return Err(LayoutError::Structure { offset: 0 });
        }
        self.link()
    }

    /// Turns references into indexes, and finds the typedefs that name anonymous types.
    fn link(&mut self) -> Result<(), LayoutError> {
        for index in 1..self.list.len() {
            let Entry { ty, origin, .. } = self.list[index];
            let ty = self.index(ty)?;
            self.list[index].ty = ty;
            if origin != 0 {
                self.list[index].origin = self.index(origin)?;
            }
            let entry = &self.list[index];
            if entry.tag == dw::DW_TAG_typedef && ty != 0 && !entry.name.is_none() {
                let target = &mut self.list[ty as usize];
                if target.is_aggregate() && target.name.is_none() && target.named_by == 0 {
                    target.named_by = index as Index;
                }
            }
        }
        Ok(())
    }

    /// The entry at an offset of the unit; 0 for 0.
    #[inline]
    fn index(&self, offset: u32) -> Result<Index, LayoutError> {
        if offset == 0 {
            return Ok(0);
        }
        let index = self.at.get(offset as usize).copied().unwrap_or(0);
        match self.list.get(index as usize) {
            Some(entry) if index != 0 && entry.offset == offset => Ok(index),
            _ => Err(LayoutError::Reference { offset: offset as usize }),
        }
    }

    /// An entry by its index.
    #[inline]
    pub(super) fn get(&self, index: Index) -> &Entry {
        &self.list[index as usize]
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Members, enumerators, bounds or parameters of an entry.
    pub(super) fn parts(&self, index: Index) -> impl Iterator<Item = &Entry> {
        let entry = self.get(index);
        let parts = &self.list[entry.first as usize..entry.end as usize];
        parts.iter().filter(move |part| part.owner == index)
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
