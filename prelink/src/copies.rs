//! Copies of a function that the compiler has put into others.
//!
//! Comes in: a function of the image and the DWARF of its unit. Decided: which other functions hold its code, inlined, or are copies
//! made for some callers. A jump at the function's entry reaches none of them. Goes out: their names and addresses.

use crate::dwarf::DwarfError;
use crate::units::UnitIndex;
use diff_analyzer::dwarf_layout::sections::Slice;
use gimli::{AttributeValue, DebuggingInformationEntry, Unit, UnitOffset, constants as dw};
use std::collections::{BTreeSet, HashSet};

/// A function that holds the code of another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Its name in the source.
    pub name: String,
    /// Its link address.
    pub address: u64,
}

/// The functions that hold copies of the function `name`, which is at `address`; sorted, without itself.
///
/// # Errors
/// [`DwarfError`] when the DWARF of the unit is malformed.
pub fn of_function(index: &UnitIndex<'_>, name: &str, address: u64) -> Result<Vec<Holder>, DwarfError> {
    let Some(unit) = index.at(address) else { return Ok(Vec::new()) };
    let dwarf = index.sections().dwarf();
    let entries = dwarf.unit(*unit.header())?;
    let named = definitions(dwarf, &entries, name)?;
    let mut holders = BTreeSet::new();
    // The functions around an entry that have code, by depth.
    let mut around: Vec<(isize, u64, UnitOffset)> = Vec::new();
    let mut walk = entries.entries();
    while walk.next_dfs()?.is_some() {
        let Some(entry) = walk.current() else { break };
        let depth = entry.depth();
        around.retain(|(of, ..)| *of < depth);
        match entry.tag() {
            dw::DW_TAG_subprogram => {
                let Some(low) = entry_address(dwarf, &entries, entry)? else { continue };
                let origin = reference(entry, dw::DW_AT_abstract_origin).unwrap_or(entry.offset());
                // A copy for some callers (`.constprop`, `.isra`) has the original's name in the DWARF.
                if named.contains(&origin) && low != address {
                    holders.insert((low, origin));
                }
                around.push((depth, low, origin));
            }
            dw::DW_TAG_inlined_subroutine => {
                let origin = reference(entry, dw::DW_AT_abstract_origin);
                if let Some(&(_, low, holder)) = around.last().filter(|_| origin.is_some_and(|of| named.contains(&of)))
                    && low != address
                {
                    holders.insert((low, holder));
                }
            }
            _ => {}
        }
    }
    holders
        .into_iter()
        .map(|(address, holder)| Ok(Holder { name: name_of(dwarf, &entries, holder)?.unwrap_or_default(), address }))
        .collect()
}

/// Entries of the unit that define a function of that name, and those that stand for them.
fn definitions<'a>(
    dwarf: &gimli::Dwarf<Slice<'a>>,
    unit: &Unit<Slice<'a>>,
    name: &str,
) -> Result<HashSet<UnitOffset>, gimli::Error> {
    let mut named = HashSet::new();
    let mut walk = unit.entries();
    while walk.next_dfs()?.is_some() {
        let Some(entry) = walk.current() else { break };
        if entry.tag() != dw::DW_TAG_subprogram {
            continue;
        }
        let own = match entry.attr_value(dw::DW_AT_name) {
            Some(value) => dwarf.attr_string(unit, value)?.slice() == name.as_bytes(),
            None => false,
        };
        let declared = reference(entry, dw::DW_AT_specification).is_some_and(|of| named.contains(&of));
        if own || declared {
            named.insert(entry.offset());
        }
    }
    Ok(named)
}

fn reference(entry: &DebuggingInformationEntry<Slice<'_>>, attribute: gimli::DwAt) -> Option<UnitOffset> {
    match entry.attr_value(attribute) {
        Some(AttributeValue::UnitRef(offset)) => Some(offset),
        _ => None,
    }
}

/// Where the code of a function begins, if it has any.
fn entry_address<'a>(
    dwarf: &gimli::Dwarf<Slice<'a>>,
    unit: &Unit<Slice<'a>>,
    entry: &DebuggingInformationEntry<Slice<'a>>,
) -> Result<Option<u64>, gimli::Error> {
    if let Some(AttributeValue::Addr(low)) = entry.attr_value(dw::DW_AT_low_pc) {
        return Ok(Some(low));
    }
    let mut ranges = dwarf.die_ranges(unit, entry)?;
    while let Some(range) = ranges.next()? {
        if range.begin < range.end {
            return Ok(Some(range.begin));
        }
    }
    Ok(None)
}

fn name_of<'a>(
    dwarf: &gimli::Dwarf<Slice<'a>>,
    unit: &Unit<Slice<'a>>,
    offset: UnitOffset,
) -> Result<Option<String>, gimli::Error> {
    let entry = unit.entry(offset)?;
    let name = match (entry.attr_value(dw::DW_AT_name), reference(&entry, dw::DW_AT_specification)) {
        (Some(value), _) => Some(value),
        (None, Some(of)) => unit.entry(of)?.attr_value(dw::DW_AT_name),
        (None, None) => None,
    };
    name.map(|value| Ok(dwarf.attr_string(unit, value)?.to_string_lossy().into_owned())).transpose()
}
