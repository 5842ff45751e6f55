//! A walk over the entries of one unit in the order of the file.
//!
//! Comes in: one unit. Decided: where the next entry starts and how deep it lies; what is jumped over and how. Goes out:
//! one entry after the other. Only forwards, so that no input can make the walk endless.

use super::entry::Entry;
use super::name::Texts;
use super::plan::{Plan, Plans};
use super::unit::Unit;
use crate::dwarf_layout::LayoutError;
use crate::dwarf_layout::sections::Slice;
use gimli::{Dwarf, EndianSlice, EntriesRaw, LittleEndian, Reader as _, UnitOffset};

/// The place of a walk.
pub(super) struct Walk<'u, 'a> {
    unit: &'u Unit<'a>,
    /// The unit from its first entry on.
    bytes: &'a [u8],
    /// Offset of `bytes` in the unit.
    base: usize,
    /// Next entry in `bytes`.
    at: usize,
    /// Depth of the next entry; a unit may end with more than the needed ends of lists.
    depth: isize,
    /// Entries below this depth are passed over.
    skip_below: isize,
    plans: Plans<'u>,
}

impl<'u, 'a> Walk<'u, 'a> {
    pub(super) fn new(unit: &'u Unit<'a>) -> Result<Self, LayoutError> {
        let base = unit.header.root_offset();
        Ok(Self {
            unit,
            bytes: unit.header.range_from(base..)?.slice(),
            base: base.0,
            at: 0,
            depth: 0,
            skip_below: isize::MAX,
            plans: Plans::new(&unit.abbreviations),
        })
    }

    /// Offset in the unit, depth and form of the next entry, whose attributes the caller reads or skips.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<(usize, usize, Plan<'u>)>, LayoutError> {
        while let Some(&first) = self.bytes.get(self.at) {
            let offset = self.base + self.at;
            let code = if first < 0x80 {
                self.at += 1;
                u64::from(first)
            } else {
                let mut rest = EndianSlice::new(&self.bytes[self.at..], LittleEndian);
                let code = rest.read_uleb128()?;
                self.at = self.bytes.len() - rest.len();
                code
            };
            if code == 0 {
                self.depth -= 1;
                continue;
            }
            let plan = self.plans.get(code, &self.unit.header)?;
            let depth = self.depth;
            self.depth += isize::from(plan.has_children);
            if depth > self.skip_below {
                self.skip_attributes(&plan)?;
                continue;
            }
            self.skip_below = isize::MAX;
            let depth = usize::try_from(depth).map_err(|_| LayoutError::Structure { offset })?;
            return Ok(Some((offset, depth, plan)));
        }
        if self.at > self.bytes.len() {
            return Err(LayoutError::Structure { offset: self.base + self.at });
        }
        Ok(None)
    }

    /// The attributes of the entry that `next` returned.
    #[inline]
    pub(super) fn attributes(
        &mut self,
        plan: &Plan<'u>,
        dwarf: &Dwarf<Slice<'a>>,
        texts: &mut Texts<'a>,
        entry: &mut Entry,
    ) -> Result<(), LayoutError> {
        if let (true, Some(length)) = (plan.regular, plan.length) {
            if plan.text_first {
                entry.name = texts.name(self.text()?);
            }
            let end = self.at + length as usize;
            let data = self.bytes.get(self.at..end).ok_or(LayoutError::Structure { offset: entry.offset as usize })?;
            self.at = end;
            entry.regular(data, self.plans.reads(plan));
            return Ok(());
        }
        self.by_gimli(|raw, unit| {
            for &spec in plan.abbreviation.attributes() {
                entry.attribute(dwarf, unit, texts, &raw.read_attribute(spec)?)?;
            }
            Ok(())
        })
    }

    /// Passes over the attributes of the entry that `next` returned.
    #[inline]
    pub(super) fn skip_attributes(&mut self, plan: &Plan<'u>) -> Result<(), LayoutError> {
        match plan.length {
            Some(length) => {
                if plan.text_first {
                    self.text()?;
                }
                self.at += length as usize;
            }
            None => self.by_gimli(|raw, _| Ok(raw.skip_attributes(plan.abbreviation.attributes())?))?,
        }
        Ok(())
    }

    /// Passes over the entry that `next` returned, and over all that is below it.
    pub(super) fn skip(&mut self, offset: usize, depth: usize, plan: &Plan<'u>) -> Result<(), LayoutError> {
        if plan.text_first && plan.length.is_some() {
            self.text()?;
        }
        let start = self.at;
        match plan.length {
            Some(length) => self.at += length as usize,
            None => self.skip_attributes(plan)?,
        }
        if !plan.has_children {
            return Ok(());
        }
        let depth = depth as isize; // it was one
        let Some(place) = plan.sibling else {
            self.skip_below = depth;
            return Ok(());
        };
        let place = start + place as usize;
        let bytes = self.bytes.get(place..place + 4).and_then(|bytes| bytes.try_into().ok());
        let sibling = bytes.map(|bytes| u32::from_le_bytes(bytes) as usize).and_then(|at| at.checked_sub(self.base));
        match sibling {
            Some(sibling) if sibling >= self.at => (self.at, self.depth) = (sibling, depth),
            _ => return Err(LayoutError::Structure { offset }),
        }
        Ok(())
    }

    /// Text up to a zero byte.
    #[inline]
    fn text(&mut self) -> Result<&'a [u8], LayoutError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == 0);
        let length = length.ok_or(LayoutError::Name { offset: self.base + self.at })?;
        self.at += length + 1;
        Ok(&rest[..length])
    }

    fn by_gimli(
        &mut self,
        read: impl FnOnce(&mut EntriesRaw<'_, Slice<'a>>, &Unit<'a>) -> Result<(), LayoutError>,
    ) -> Result<(), LayoutError> {
        let offset = UnitOffset(self.base + self.at);
        let rest = self.bytes.get(self.at..).ok_or(LayoutError::Structure { offset: offset.0 })?;
        let rest = EndianSlice::new(rest, LittleEndian);
        let mut raw = EntriesRaw::new(rest, self.unit.header.encoding(), &self.unit.abbreviations, offset);
        read(&mut raw, self.unit)?;
        self.at = raw.next_offset().0 - self.base;
        Ok(())
    }
}
