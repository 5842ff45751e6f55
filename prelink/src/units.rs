//! The translation units of a linked kernel: their names, files, functions and variables.
//!
//! Comes in: the kernel's debug sections. Decided: what a unit and its files are called relative to the source tree,
//! whatever folder the kernel was built in. Goes out: [`UnitIndex`]. Only unit headers and root entries are read to
//! build it; the contents of a unit are read when they are asked for.

use crate::dwarf::{DebugSections, DwarfError};
use diff_analyzer::dwarf_layout::sections::Slice;
use diff_analyzer::dwarf_layout::tree::{Node, NodeId, Tree};
use diff_analyzer::dwarf_layout::{self, LayoutError, Layouts, TypeLayout, clean_path, join_path};
use gimli::{AttributeValue, DebugLineOffset, UnitHeader, constants as dw};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Index of a unit in its [`UnitIndex`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub usize);

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
    header: UnitHeader<Slice<'a>>,
    lines: Option<DebugLineOffset>,
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

fn read_unit<'a>(
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

fn unit_path<'a>(
    dwarf: &gimli::Dwarf<Slice<'a>>,
    unit: &Unit<'a>,
    header: &gimli::LineProgramHeader<Slice<'a>>,
    file: &gimli::FileEntry<Slice<'a>>,
    roots: &[String],
) -> Result<String, gimli::Error> {
    let mut path = dwarf.attr_line_string(file.path_name())?.to_string_lossy().into_owned();
    // Directory 0 is the folder of the compilation, to which relative paths refer (DWARF 5, section 6.2.4).
    if file.directory_index() != 0
        && let Some(directory) = file.directory(header)
    {
        path = join_path(&dwarf.attr_line_string(directory)?.to_string_lossy(), &path);
    }
    Ok(normalise(&path, &unit.comp_dir, roots))
}

/// Absolute folders that the source tree was in when the kernel was built, longest first.
///
/// Every x86-64 kernel has these two units (init/Makefile, arch/x86/kernel/Makefile); where their names are recorded as
/// absolute paths, or lead out of the build folder, what stands before is the source tree.
fn source_roots(units: &[Unit<'_>]) -> Vec<String> {
    const ANCHORS: [&str; 2] = ["/init/main.c", "/arch/x86/kernel/head_64.S"];
    let mut roots = BTreeSet::new();
    for unit in units {
        let path = absolute(&unit.recorded_name, &unit.comp_dir);
        for anchor in ANCHORS {
            if path.starts_with('/')
                && let Some(root) = path.strip_suffix(anchor)
            {
                roots.insert(root.to_owned());
            }
        }
    }
    let mut roots: Vec<String> = roots.into_iter().collect();
    roots.sort_by_key(|root| std::cmp::Reverse(root.len()));
    roots
}

/// A path as it is, or seen from the build folder when it leads out of it.
fn absolute(path: &str, comp_dir: &str) -> String {
    let clean = clean_path(path);
    if clean.starts_with("../") { clean_path(&join_path(comp_dir, &clean)) } else { clean }
}

/// A recorded path relative to the source tree; a generated file relative to the build folder.
fn normalise(path: &str, comp_dir: &str, roots: &[String]) -> String {
    let path = absolute(path, comp_dir);
    let inside = |folder: &str| path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')).map(str::to_owned);
    let build = clean_path(comp_dir);
    let from_build = if build.is_empty() { None } else { inside(&build) };
    from_build.or_else(|| roots.iter().find_map(|root| inside(root))).unwrap_or_else(|| path.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_seen_from_the_source_tree() {
        let roots = ["/src/linux".to_owned()];
        let cases = [
            ("kernel/fork.c", "debian/build", "kernel/fork.c"),
            ("/src/linux/arch/x86/kernel/head_64.S", "/src/linux/build/x", "arch/x86/kernel/head_64.S"),
            ("../linux/init/main.c", "/src/build", "init/main.c"),
            ("./arch/x86/include/generated/asm/a.h", "/src/build", "arch/x86/include/generated/asm/a.h"),
            ("/src/build/include/generated/b.h", "/src/build", "include/generated/b.h"),
            ("kernel/sched/../../io_uring/io-wq.h", "debian/build", "io_uring/io-wq.h"),
            ("/usr/lib/gcc/x.h", "/src/build", "/usr/lib/gcc/x.h"),
        ];
        for (path, comp_dir, expected) in cases {
            assert_eq!(normalise(path, comp_dir, &roots), expected, "{path}");
        }
    }
}
