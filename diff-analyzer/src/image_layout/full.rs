//! Full layouts of the few definitions that a person has to see.
//!
//! Comes in: positions of definitions. Decided: nothing. Goes out: [`TypeLayout`]s and [`Variable`]s, as
//! [`crate::dwarf_layout`] reads them; each unit that holds some is read once.

use super::index::{Index, IndexError, Position};
use crate::dwarf_layout::{self, TypeLayout, Variable};
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
            .map(|(number, (types, variables))| {
                let unit = index.dwarf.unit(index.headers[number as usize])?;
                let offsets = |positions: &[Position]| -> Vec<usize> {
                    positions.iter().map(|position| position.offset as usize).collect()
                };
                let local = types.iter().any(|position| position.local);
                let full = dwarf_layout::at_offsets(&index.dwarf, &unit, &offsets(&types), &offsets(&variables), local);
                let name = || String::from_utf8_lossy(index.names[number as usize]).into_owned();
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
