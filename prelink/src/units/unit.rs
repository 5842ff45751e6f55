//! One translation unit.
//!
//! Comes in: the header of the unit; its contents when they are asked for. Decided: which of its functions and variables are
//! in the image: the linker leaves out some. Goes out: [`Unit`], and what it holds.

use super::paths::unit_path;
use super::{UnitId, UnitIndex};
use crate::dwarf::{DebugSections, DwarfError};
use diff_analyzer::dwarf_layout::sections::Slice;
use diff_analyzer::dwarf_layout::tree::{Node, NodeId, Tree};
use diff_analyzer::dwarf_layout::{self, LayoutError, Layouts, TypeLayout};
use gimli::{AttributeValue, DebugLineOffset, UnitHeader, constants as dw};
use std::collections::{BTreeMap, BTreeSet};

/// A range of link addresses, the end excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PcRange {
    /// First address.
    pub start: u64,
    /// Address behind the last one.
    pub end: u64,
}

impl PcRange {
    /// Whether an address lies in the range.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// A translation unit.
#[derive(Debug, Clone)]
pub struct Unit<'a> {
    /// Its index.
    pub id: UnitId,
    /// Path of its source file relative to the source tree (`kernel/fork.c`).
    pub name: String,
    /// `DW_AT_name` as recorded.
    pub recorded_name: String,
    /// `DW_AT_comp_dir` as recorded.
    pub comp_dir: String,
    /// `DW_AT_producer`: compiler, version and options.
    pub producer: String,
    /// `DW_AT_language` (DWARF 5, table 7.17): 0x1d is C11, 0x8001 is assembly.
    pub language: u16,
    /// Code of the unit, sorted.
    pub ranges: Vec<PcRange>,
    pub(super) header: UnitHeader<Slice<'a>>,
    pub(super) lines: Option<DebugLineOffset>,
}

/// A function of a unit, at its link address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitFunction {
    /// Name in the source; copies such as `.isra.0` have the name of their original.
    pub name: String,
    /// Entry, as a link address.
    pub low_pc: u64,
    /// End of the range that holds the entry.
    pub high_pc: u64,
    /// All its code, the range of the entry first; `.cold` parts are further ones.
    pub ranges: Vec<PcRange>,
    /// Whether other units see it.
    pub external: bool,
}

/// A variable of a unit, at its link address (a per-CPU variable: its offset in the per-CPU area).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitVariable {
    /// Name in the source.
    pub name: String,
    /// Link address.
    pub address: u64,
    /// Function that it is local to.
    pub function: Option<String>,
    /// Whether other units see it.
    pub external: bool,
}

impl<'a> Unit<'a> {
    /// Whether the unit was compiled from C.
    pub fn is_c(&self) -> bool {
        let language = gimli::DwLang(self.language);
        matches!(language, dw::DW_LANG_C | dw::DW_LANG_C89 | dw::DW_LANG_C99 | dw::DW_LANG_C11 | dw::DW_LANG_C17)
    }

    /// Functions that have code in the unit, by address.
    ///
    /// # Errors
    /// [`DwarfError`] when the unit's DWARF is malformed.
    pub fn functions(&self, index: &UnitIndex<'a>) -> Result<Vec<UnitFunction>, DwarfError> {
        let (unit, tree) = self.tree(index)?;
        let mut functions = Vec::new();
        for (id, node) in tree.iter().filter(|(_, n)| n.tag == dw::DW_TAG_subprogram && n.has_code()) {
            let origin = tree.node(tree.origin(id).map_err(|source| self.error(source))?);
            let Some(name) = origin.name else { continue };
            let ranges = ranges(index, &unit, node)?;
            let Some(entry) = ranges.first() else { continue };
            functions.push(UnitFunction {
                name: name.to_owned(),
                low_pc: entry.start,
                high_pc: entry.end,
                external: node.external || origin.external,
                ranges,
            });
        }
        functions.sort_by(|a: &UnitFunction, b| (a.low_pc, &a.name).cmp(&(b.low_pc, &b.name)));
        functions.dedup();
        Ok(functions)
    }

    /// Variables with a fixed address in the unit, static locals included, by address.
    ///
    /// # Errors
    /// [`DwarfError`] when the unit's DWARF is malformed.
    pub fn variables(&self, index: &UnitIndex<'a>) -> Result<Vec<UnitVariable>, DwarfError> {
        let (_, tree) = self.tree(index)?;
        let mut variables = Vec::new();
        for (id, node) in tree.iter().filter(|(_, n)| n.tag == dw::DW_TAG_variable) {
            let Some(address) = node.address else { continue };
            variables.extend(variable(&tree, id, node, address).map_err(|source| self.error(source))?);
        }
        variables.sort_by(|a: &UnitVariable, b| (a.address, &a.name).cmp(&(b.address, &b.name)));
        variables.dedup();
        Ok(variables)
    }

    /// Types, variables and functions of the unit, as the comparison of two versions sees them.
    ///
    /// # Errors
    /// [`DwarfError`] when the unit's DWARF is malformed.
    pub fn layouts(&self, index: &UnitIndex<'a>) -> Result<Layouts, DwarfError> {
        let unit = index.sections.dwarf().unit(self.header)?;
        dwarf_layout::of_unit(index.sections.dwarf(), &unit).map_err(|source| self.error(source))
    }

    /// Types of the unit whose bare name is wanted, by key (`struct page`).
    ///
    /// # Errors
    /// [`DwarfError`] when the unit's DWARF is malformed.
    pub fn types(
        &self,
        index: &UnitIndex<'a>,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<BTreeMap<String, TypeLayout>, DwarfError> {
        let unit = index.sections.dwarf().unit(self.header)?;
        dwarf_layout::types_of_unit(index.sections.dwarf(), &unit, wanted).map_err(|source| self.error(source))
    }

    /// Files of the unit, relative to the source tree.
    ///
    /// # Errors
    /// [`DwarfError`] when the file table is malformed.
    pub fn files(&self, index: &UnitIndex<'a>) -> Result<BTreeSet<String>, DwarfError> {
        let dwarf = index.sections.dwarf();
        let mut files = BTreeSet::new();
        let Some(lines) = self.lines else { return Ok(files) };
        let program = dwarf.debug_line.program(lines, self.header.address_size(), None, None)?;
        for file in program.header().file_names() {
            files.insert(unit_path(dwarf, self, program.header(), file, &index.roots)?);
        }
        Ok(files)
    }

    pub(crate) fn tree(&self, index: &UnitIndex<'a>) -> Result<(gimli::Unit<Slice<'a>>, Tree<'a>), DwarfError> {
        let dwarf = index.sections.dwarf();
        let unit = dwarf.unit(self.header)?;
        let tree = Tree::read(dwarf, &unit).map_err(|source| self.error(source))?;
        Ok((unit, tree))
    }

    pub(crate) fn error(&self, source: LayoutError) -> DwarfError {
        DwarfError::Unit { unit: self.name.clone(), source }
    }

    pub(crate) fn header(&self) -> &UnitHeader<Slice<'a>> {
        &self.header
    }
}

pub(super) fn read_unit<'a>(
    sections: &DebugSections<'a>,
    id: UnitId,
    header: UnitHeader<Slice<'a>>,
) -> Result<Unit<'a>, gimli::Error> {
    let dwarf = sections.dwarf();
    let unit = dwarf.unit(header)?;
    let mut producer = String::new();
    let mut language = 0;
    let mut lines = None;
    {
        let mut entries = unit.entries();
        if entries.next_dfs()?.is_some()
            && let Some(root) = entries.current()
        {
            for attribute in root.attrs() {
                match (attribute.name(), attribute.value()) {
                    (dw::DW_AT_producer, value) => {
                        producer = dwarf.attr_string(&unit, value)?.to_string_lossy().into_owned();
                    }
                    (dw::DW_AT_language, AttributeValue::Language(value)) => language = value.0,
                    (dw::DW_AT_stmt_list, AttributeValue::DebugLineRef(offset)) => lines = Some(offset),
                    _ => {}
                }
            }
        }
    }
    let mut ranges = Vec::new();
    let mut iter = dwarf.unit_ranges(&unit)?;
    while let Some(range) = iter.next()? {
        if range.begin < range.end {
            ranges.push(PcRange { start: range.begin, end: range.end });
        }
    }
    ranges.sort();
    let lossy = |text: Option<Slice<'a>>| text.map(|t| t.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Unit {
        id,
        name: String::new(),
        recorded_name: lossy(unit.name),
        comp_dir: lossy(unit.comp_dir),
        producer,
        language,
        ranges,
        lines,
        header: unit.header,
    })
}

fn ranges<'a>(
    index: &UnitIndex<'a>,
    unit: &gimli::Unit<Slice<'a>>,
    node: &Node<'a>,
) -> Result<Vec<PcRange>, DwarfError> {
    let mut ranges = Vec::new();
    if let (Some(start), Some(end)) = (node.low_pc, node.high_pc)
        && node.ranges.is_none()
    {
        ranges.push(PcRange { start, end });
    }
    if let Some(value) = &node.ranges
        && let Some(mut iter) = index.sections.dwarf().attr_ranges(unit, *value)?
    {
        while let Some(range) = iter.next()? {
            ranges.push(PcRange { start: range.begin, end: range.end });
        }
    }
    ranges.retain(|range| range.start < range.end);
    Ok(ranges)
}

fn variable(tree: &Tree<'_>, id: NodeId, node: &Node<'_>, address: u64) -> Result<Option<UnitVariable>, LayoutError> {
    let origin = tree.node(tree.origin(id)?);
    let Some(name) = origin.name else { return Ok(None) };
    let external = node.external || origin.external;
    // The linker leaves 0 for what it threw away (`.discard.addressable`, always static). The one datum that is really
    // there is external: fixed_percpu_data (arch/x86/kernel/cpu/common.c).
    if address == 0 && !external {
        return Ok(None);
    }
    let function = tree.scope(id)?.map(str::to_owned);
    Ok(Some(UnitVariable { name: name.to_owned(), address, function, external }))
}
