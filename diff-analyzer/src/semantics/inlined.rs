//! Which inline functions a unit's compiled functions contain, and where.
//!
//! Comes in: the DWARF of an object. Decided: which entries are copies of an inline function, which function each is a copy
//! of. Goes out: [`Inlined`], one for each copy, with the function it stands in.

use crate::dwarf_layout::LayoutError;
use crate::dwarf_layout::sections::{DebugSource, Slice, dwarf_of};
use gimli::{AttributeValue, DwTag, Dwarf, Unit, UnitOffset, constants as dw};
use std::collections::HashMap;
use std::ops::Range;

/// A compiled function, or a copy of an inline function in one. Addresses are those of
/// [`crate::dwarf_layout::sections::code_address`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inlined {
    /// Name of the function in the source.
    pub name: String,
    /// The copy, or compiled function, that it stands in: an index of the list, lower than its own.
    pub parent: Option<usize>,
    /// Where it is entered.
    pub entry: Option<u64>,
    /// Its code; none where it makes none.
    pub ranges: Vec<Range<u64>>,
}

/// The compiled functions of an object, each before the copies in it.
///
/// # Errors
/// [`LayoutError`] when the DWARF cannot be used.
pub fn read<S: DebugSource + ?Sized>(source: &S) -> Result<Vec<Inlined>, LayoutError> {
    let dwarf = dwarf_of(source);
    let mut found = Vec::new();
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        read_unit(&dwarf, &dwarf.unit(header)?, &mut found)?;
    }
    Ok(found)
}

/// What matters of an entry.
#[derive(Default)]
struct Entry {
    name: Option<String>,
    origin: Option<usize>,
    low: Option<u64>,
    high: Option<u64>,
    high_is_length: bool,
    entry: Option<u64>,
    ranges: Vec<Range<u64>>,
    parent: Option<usize>,
}

fn is_meant(tag: DwTag) -> bool {
    tag == dw::DW_TAG_subprogram || tag == dw::DW_TAG_inlined_subroutine
}

fn read_unit(dwarf: &Dwarf<Slice<'_>>, unit: &Unit<Slice<'_>>, found: &mut Vec<Inlined>) -> Result<(), LayoutError> {
    // Functions by their offset: name, or what they are a copy of.
    let mut functions: HashMap<usize, (Option<String>, Option<usize>)> = HashMap::new();
    let mut copies: Vec<Entry> = Vec::new();
    // Copies and functions that are open: depth, index in `copies` if it has code or a place.
    let mut open: Vec<(isize, usize)> = Vec::new();
    let mut entries = unit.entries_raw(None)?;
    while !entries.is_empty() {
        let (depth, offset) = (entries.next_depth(), entries.next_offset().0);
        let Some(abbreviation) = entries.read_abbreviation()? else { continue };
        open.truncate(open.partition_point(|&(above, _)| above < depth));
        let tag = abbreviation.tag();
        if !is_meant(tag) {
            entries.skip_attributes(abbreviation.attributes())?;
            continue;
        }
        let mut entry = Entry { parent: open.last().map(|&(_, index)| index), ..Entry::default() };
        for &spec in abbreviation.attributes() {
            entry.attribute(dwarf, unit, &entries.read_attribute(spec)?)?;
        }
        entry.finish();
        let compiled = !entry.ranges.is_empty();
        if tag == dw::DW_TAG_subprogram {
            functions.insert(offset, (entry.name.take(), entry.origin));
            entry.origin = Some(offset);
            entry.parent = None;
        }
        // Copies inside the abstract description of an inline function are in no code.
        if (tag == dw::DW_TAG_subprogram && compiled)
            || (tag == dw::DW_TAG_inlined_subroutine && entry.parent.is_some())
        {
            open.push((depth, copies.len()));
            copies.push(entry);
        }
    }
    let base = found.len();
    for copy in copies {
        let mut at = copy.origin;
        let mut name = None;
        for _ in 0..8 {
            let Some((own, origin)) = at.and_then(|at| functions.get(&at)) else { break };
            name = name.or_else(|| own.clone());
            at = *origin;
        }
        let parent = copy.parent.map(|parent| parent + base);
        found.push(Inlined { name: name.unwrap_or_default(), parent, entry: copy.entry, ranges: copy.ranges });
    }
    Ok(())
}

impl Entry {
    fn attribute(
        &mut self,
        dwarf: &Dwarf<Slice<'_>>,
        unit: &Unit<Slice<'_>>,
        attribute: &gimli::Attribute<Slice<'_>>,
    ) -> Result<(), LayoutError> {
        let value = attribute.value();
        match attribute.name() {
            dw::DW_AT_name => self.name = Some(dwarf.attr_string(unit, value)?.to_string_lossy().into_owned()),
            dw::DW_AT_abstract_origin | dw::DW_AT_specification => {
                self.origin = match value {
                    AttributeValue::UnitRef(UnitOffset(target)) => Some(target),
                    AttributeValue::DebugInfoRef(target) => target.to_unit_offset(&unit.header).map(|offset| offset.0),
                    _ => None,
                };
            }
            dw::DW_AT_low_pc => self.low = dwarf.attr_address(unit, value)?,
            dw::DW_AT_entry_pc => self.entry = dwarf.attr_address(unit, value)?,
            dw::DW_AT_high_pc => {
                // A constant counts from low_pc (DWARF 5, section 2.17.2).
                self.high = dwarf.attr_address(unit, value)?;
                if self.high.is_none() {
                    (self.high, self.high_is_length) = (value.udata_value(), true);
                }
            }
            dw::DW_AT_ranges => {
                if let Some(mut ranges) = dwarf.attr_ranges(unit, value)? {
                    while let Some(range) = ranges.next()? {
                        self.ranges.push(range.begin..range.end);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self) {
        if let (Some(low), Some(high)) = (self.low, self.high) {
            self.ranges.push(low..if self.high_is_length { low.wrapping_add(high) } else { high });
        }
        self.entry = self.entry.or(self.low).or_else(|| self.ranges.first().map(|range| range.start));
        self.ranges.retain(|range| range.start < range.end);
    }
}
