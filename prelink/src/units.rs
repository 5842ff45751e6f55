//! The translation units of a linked kernel: their names, files, functions and variables.
//!
//! Comes in: the kernel's debug sections. Decided: what a unit and its files are called relative to the source tree,
//! whatever folder the kernel was built in. Goes out: [`UnitIndex`]. Only unit headers and root entries are read to
//! build it; the contents of a unit are read when they are asked for.

mod paths;
mod unit;

pub use unit::{PcRange, Unit, UnitFunction, UnitVariable};

use crate::dwarf::{DebugSections, DwarfError};
use diff_analyzer::dwarf_layout::clean_path;
use paths::{normalise, source_roots, unit_path};
use rayon::prelude::*;
use std::collections::HashMap;
use unit::read_unit;

/// Index of a unit in its [`UnitIndex`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub usize);

/// The units of a kernel.
#[derive(Debug)]
pub struct UnitIndex<'a> {
    sections: DebugSections<'a>,
    units: Vec<Unit<'a>>,
    by_name: HashMap<String, Vec<UnitId>>,
    roots: Vec<String>,
}

impl<'a> UnitIndex<'a> {
    /// Reads the headers and root entries of all units.
    ///
    /// # Errors
    /// [`DwarfError`] when the DWARF is malformed.
    pub fn build(sections: &DebugSections<'a>) -> Result<Self, DwarfError> {
        let sections = sections.clone();
        let mut headers = Vec::new();
        let mut iter = sections.dwarf().units();
        while let Some(header) = iter.next()? {
            headers.push(header);
        }
        let mut units = headers
            .into_par_iter()
            .enumerate()
            .map(|(index, header)| read_unit(&sections, UnitId(index), header))
            .collect::<Result<Vec<_>, gimli::Error>>()?;
        let roots = source_roots(&units);
        let mut by_name: HashMap<String, Vec<UnitId>> = HashMap::new();
        for unit in &mut units {
            unit.name = normalise(&unit.recorded_name, &unit.comp_dir, &roots);
            by_name.entry(unit.name.clone()).or_default().push(unit.id);
        }
        Ok(Self { sections, units, by_name, roots })
    }

    /// The first unit of a source file, by its path relative to the source tree.
    pub fn find(&self, path: &str) -> Option<&Unit<'a>> {
        self.named(path).first().map(|&id| self.unit(id))
    }

    /// All units of a source file: the kernel compiles a few files more than once.
    pub fn named(&self, path: &str) -> &[UnitId] {
        self.by_name.get(&clean_path(path)).map_or(&[], Vec::as_slice)
    }

    /// The unit behind an id of this index.
    pub fn unit(&self, id: UnitId) -> &Unit<'a> {
        &self.units[id.0]
    }

    /// All units, in the order of the image.
    pub fn iter(&self) -> impl Iterator<Item = &Unit<'a>> {
        self.units.iter()
    }

    /// Number of units.
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// The unit whose code holds a link address.
    pub fn at(&self, address: u64) -> Option<&Unit<'a>> {
        self.units.iter().find(|unit| unit.ranges.iter().any(|range| range.contains(address)))
    }

    /// The DWARF the index was made from.
    pub fn sections(&self) -> &DebugSections<'a> {
        &self.sections
    }

    /// All units whose file table names a file, given relative to the source tree, in order.
    ///
    /// A file table lists the files that something of the unit was declared in or compiled from. A header that gives a
    /// unit only macros, or types it does not use, is not listed.
    ///
    /// # Errors
    /// [`DwarfError`] when a file table is malformed.
    pub fn units_including(&self, path: &str) -> Result<Vec<UnitId>, DwarfError> {
        let path = clean_path(path);
        let base = path.rsplit('/').next().unwrap_or(&path).to_owned();
        let found = self
            .units
            .par_iter()
            .map(|unit| Ok(self.lists(unit, &path, &base)?.then_some(unit.id)))
            .collect::<Result<Vec<_>, gimli::Error>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    fn lists(&self, unit: &Unit<'a>, path: &str, base: &str) -> Result<bool, gimli::Error> {
        let dwarf = self.sections.dwarf();
        let Some(lines) = unit.lines else { return Ok(false) };
        let program = dwarf.debug_line.program(lines, unit.header.address_size(), None, None)?;
        let header = program.header();
        for file in header.file_names() {
            // The last part of the path is compared first: nearly all files end here.
            let name = dwarf.attr_line_string(file.path_name())?;
            if !name.slice().ends_with(base.as_bytes()) {
                continue;
            }
            if unit_path(dwarf, unit, header, file, &self.roots)? == path {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
