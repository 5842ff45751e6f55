//! Variables of the kernel by name, with their types.
//!
//! Comes in: the units of a kernel, and a name. Decided: which units define a variable of that name outside of functions. Goes out:
//! each with its address and the type that it is or points to.

use crate::dwarf::DwarfError;
use crate::units::{UnitId, UnitIndex};
use diff_analyzer::dwarf_layout::LayoutError;
use diff_analyzer::dwarf_layout::tree::{Node, Tree};
use gimli::constants as dw;
use rayon::prelude::*;

/// Nesting of qualifiers and typedefs beyond this is taken for a circle.
const MAX_DEPTH: u32 = 100;

/// A variable of file scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileVariable {
    /// Unit that defines it.
    pub unit: String,
    /// Link address.
    pub address: u64,
    /// The struct that it points to, by its bare name; none when it is no pointer to one.
    pub points_to: Option<String>,
}

/// All variables of a name, in the order of the units.
///
/// # Errors
/// [`DwarfError`] when the DWARF is malformed.
pub fn named(index: &UnitIndex<'_>, name: &str) -> Result<Vec<FileVariable>, DwarfError> {
    let units: Vec<UnitId> = index.iter().filter(|unit| unit.is_c()).map(|unit| unit.id).collect();
    let look = |&id: &UnitId| -> Result<Vec<FileVariable>, DwarfError> {
        if !mentions(index, id, name)? {
            return Ok(Vec::new());
        }
        let unit = index.unit(id);
        let (_, tree) = unit.tree(index)?;
        in_unit(&tree, name, &unit.name).map_err(|source| unit.error(source))
    };
    let found = units.par_iter().map(look).collect::<Result<Vec<_>, DwarfError>>()?;
    Ok(found.into_iter().flatten().collect())
}

/// Whether a unit declares or defines a variable of that name outside of functions.
fn mentions(index: &UnitIndex<'_>, id: UnitId, name: &str) -> Result<bool, gimli::Error> {
    let dwarf = index.sections().dwarf();
    let header = index.unit(id).header();
    let abbreviations = dwarf.abbreviations(header)?;
    let mut entries = header.entries_raw(&abbreviations, None)?;
    while !entries.is_empty() {
        let top_level = entries.next_depth() == 1;
        let Some(abbreviation) = entries.read_abbreviation()? else { continue };
        if !top_level || abbreviation.tag() != dw::DW_TAG_variable {
            entries.skip_attributes(abbreviation.attributes())?;
            continue;
        }
        for &spec in abbreviation.attributes() {
            if spec.name() != dw::DW_AT_name {
                entries.skip_attributes(&[spec])?;
            } else if let Some(found) = entries.read_attribute(spec)?.value().string_value(&dwarf.debug_str)
                && found.slice() == name.as_bytes()
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn in_unit(tree: &Tree<'_>, name: &str, unit: &str) -> Result<Vec<FileVariable>, LayoutError> {
    let mut found = Vec::new();
    for (id, node) in tree.iter().filter(|(_, node)| node.tag == dw::DW_TAG_variable) {
        let Some(address) = node.address else { continue };
        let origin = tree.node(tree.origin(id)?);
        if origin.name == Some(name) && tree.scope(id)?.is_none() {
            let points_to = points_to(tree, node.ty.or(origin.ty))?.map(str::to_owned);
            found.push(FileVariable { unit: unit.to_owned(), address, points_to });
        }
    }
    Ok(found)
}

/// The struct behind a pointer.
fn points_to<'a>(tree: &Tree<'a>, ty: Option<usize>) -> Result<Option<&'a str>, LayoutError> {
    let plain = |ty: Option<usize>| -> Result<Option<&Node<'a>>, LayoutError> {
        let mut next = ty;
        for _ in 0..MAX_DEPTH {
            let Some(offset) = next else { return Ok(None) };
            let node = tree.node(tree.at(offset)?);
            match node.tag {
                dw::DW_TAG_typedef | dw::DW_TAG_const_type | dw::DW_TAG_volatile_type => next = node.ty,
                _ => return Ok(Some(node)),
            }
        }
        Err(LayoutError::TooDeep { offset: ty.unwrap_or_default() })
    };
    let Some(pointer) = plain(ty)?.filter(|node| node.tag == dw::DW_TAG_pointer_type) else { return Ok(None) };
    let target = plain(pointer.ty)?.filter(|node| node.tag == dw::DW_TAG_structure_type);
    Ok(target.and_then(|node| node.name))
}
