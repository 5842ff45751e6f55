//! Full layouts of the few definitions that a person has to see.
//!
//! Comes in: positions of definitions. Decided: nothing. Goes out: [`TypeLayout`]s and [`Variable`]s, as
//! [`crate::dwarf_layout`] reads them; each unit that holds some is read once.

use super::digest::Digest;
use super::index::{Index, IndexError, Position};
use super::needed::needed;
use super::scan::Memory;
use crate::dwarf_layout::tree::Tree;
use crate::dwarf_layout::{self, LayoutError, TypeLayout, Variable};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// Full layouts by position.
#[derive(Debug, Default)]
pub(super) struct Full {
    pub(super) types: HashMap<Position, TypeLayout>,
    pub(super) variables: HashMap<Position, Variable>,
}

impl Full {
    /// Reads what is at some positions.
    ///
    /// # Errors
    /// [`IndexError`] when a unit cannot be used.
    pub(super) fn read(index: &Index<'_>, types: &[Position], variables: &[Position]) -> Result<Self, IndexError> {
        let mut units: BTreeMap<u32, (Vec<Position>, Vec<Position>)> = BTreeMap::new();
        for &position in types {
            units.entry(position.unit).or_default().0.push(position);
        }
        for &position in variables {
            units.entry(position.unit).or_default().1.push(position);
        }
        let read = units
            .into_par_iter()
            .map_init(Memory::default, |memory, (number, (types, variables))| {
                let name = || String::from_utf8_lossy(index.names[number as usize]).into_owned();
                let full = read_unit(index, number, memory, &offsets(&types), &offsets(&variables));
                let full = full.map_err(|source| IndexError::Unit { unit: name(), source })?;
                Ok((types.into_iter().zip(full.0), variables.into_iter().zip(full.1)))
            })
            .collect::<Result<Vec<_>, IndexError>>()?;
        let mut full = Self::default();
        for (types, variables) in read {
            full.types.extend(types);
            full.variables.extend(variables);
        }
        Ok(full)
    }
}

fn offsets(positions: &[Position]) -> Vec<usize> {
    positions.iter().map(|position| position.offset as usize).collect()
}

/// Reads what a unit has at some offsets of types and variables: only the entries needed, or all when these cannot be told.
fn read_unit(
    index: &Index<'_>,
    number: u32,
    memory: &mut Memory,
    types: &[usize],
    variables: &[usize],
) -> Result<(Vec<TypeLayout>, Vec<Variable>), LayoutError> {
    let header = index.headers[number as usize];
    let unit = index.dwarf.unit(header)?;
    let known = memory.unit(&index.dwarf, header)?;
    let entries = memory.entries(&index.dwarf, &known, Digest::default())?;
    if let Some(places) = needed(entries, &[types, variables].concat())? {
        let tree = Tree::read_at(&index.dwarf, &unit, &places)?;
        if let Ok(full) = dwarf_layout::at_offsets(&index.dwarf, &unit, &tree, types, variables) {
            return Ok(full);
        }
    }
    let tree = Tree::read(&index.dwarf, &unit)?;
    dwarf_layout::at_offsets(&index.dwarf, &unit, &tree, types, variables)
}
