//! What only the page of a build shows: each changed function with all of its instructions, where each symbol was found, what
//! the guest's kernel is told of the new code.
//!
//! Comes in: changed files, compared units, linked parts. Decided: nothing; it is put into words. Goes out: [`Details`], which
//! a report has when a page is wanted, and only then: to disassemble takes time.

use crate::by_hand::HandPieces;
use crate::compare::rows::{Row, Rows, What};
use crate::explain::lines::SourceLines;
use crate::explain::{Compiled, Explained, Explanation, InImage, alone, whole};
use diff_analyzer::dwarf_layout;
use diff_analyzer::object_diff::Compared;
use diff_analyzer::source_diff::{ChangeKind, FileChange};
use lpk_format::{LeftOut, ModuleId, Payload, Place, SectionKind, Table};
use prelink::by_hand::Declared;
use prelink::link::{FoundSymbol, How, Linked};
use prelink::symbol_db::{AddressKind, SymbolKind};
use prelink::vmlinux::KernelImage;
use std::collections::BTreeSet;

/// What only the page shows.
#[derive(Debug, Clone, Default)]
pub struct Details {
    /// Files of the diff.
    pub files: Vec<FileRow>,
    /// Changed and new functions, in the order of the units.
    pub functions: Vec<FunctionDetail>,
    /// Symbols of the kernel that new code refers to, by name.
    pub symbols: Vec<SymbolRow>,
    /// Tables about the new code.
    pub tables: Vec<TableRow>,
    /// Places in the new code that are rewritten for the guest's processor.
    pub fixups: usize,
    /// Sections that are left out.
    pub left_out: Vec<LeftOut>,
}

/// A file of the diff.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRow {
    /// Path in the source tree.
    pub path: String,
    /// What happens to it, where it is not simply changed.
    pub what: Option<String>,
    /// Lines that come.
    pub added: usize,
    /// Lines that go.
    pub removed: usize,
}

impl FileRow {
    /// Counts the lines of a changed file.
    pub fn of(change: &FileChange) -> Self {
        let edits = || change.hunks.iter().flat_map(|hunk| &hunk.edits);
        let what = match &change.kind {
            ChangeKind::Modified => None,
            ChangeKind::New => Some("new".to_owned()),
            ChangeKind::Deleted => Some("deleted".to_owned()),
            ChangeKind::Renamed { from } => Some(format!("was {}", from.display())),
        };
        Self {
            path: change.path.display().to_string(),
            what,
            added: edits().map(|edit| edit.new.len()).sum(),
            removed: edits().map(|edit| edit.old.len()).sum(),
        }
    }
}

/// A changed or new function.
#[derive(Debug, Clone)]
pub struct FunctionDetail {
    /// Translation unit.
    pub unit: String,
    /// Loadable module that it is in.
    pub module: Option<String>,
    /// Name and unit of what it replaces, by which the bundle lists it; its own where it replaces nothing.
    pub listed_as: [String; 2],
    /// What became of it, and what goes along with it.
    pub row: Row,
    /// Patched beside original, all instructions.
    pub code: Explanation,
    /// Original beside image, when it is not proved.
    pub unproved: Option<Explanation>,
}

/// A symbol of the kernel that new code refers to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SymbolRow {
    /// Name.
    pub name: String,
    /// Module whose part of the bundle refers to it.
    pub module: Option<String>,
    /// Link address or value.
    pub address: u64,
    /// `function`, `datum`, `label`, `per-CPU datum`, `value`.
    pub kind: &'static str,
    /// Size in bytes, 0 if unknown.
    pub size: u64,
    /// How it was found.
    pub how: String,
    /// New functions that refer to it.
    pub users: BTreeSet<String>,
}

/// A table about the new code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRow {
    /// Module whose part of the bundle has it.
    pub module: Option<String>,
    /// Section of an object that such entries stand in.
    pub section: &'static str,
    /// Size in bytes.
    pub size: u32,
    /// Whether new code must not run without it.
    pub required: bool,
}

impl Details {
    /// Takes the changed functions of all units.
    pub fn set_functions(&mut self, units: &[Explained<'_, '_>]) {
        self.functions.clear();
        for unit in units {
            let rows = Rows { original: unit.original, patched: unit.patched, diff: unit.diff, types: &[] };
            let module = unit.proof.and_then(|(_, image)| image.module()).map(|module| module.name.clone());
            self.functions.extend(unit.listings().into_iter().map(|listing| {
                let row = rows.row(listing.compared);
                FunctionDetail {
                    unit: unit.unit.to_owned(),
                    module: module.clone(),
                    listed_as: [row.name.clone(), unit.unit.to_owned()],
                    row,
                    code: listing.code,
                    unproved: listing.unproved,
                }
            }));
        }
    }

    /// Takes the functions of an update written by hand, beside those of the kernel that they replace.
    pub fn set_by_hand(&mut self, pieces: &HandPieces<'_>, declared: &Declared, image: &KernelImage) {
        // The folder of the author's file is nobody's business.
        let file = dwarf_layout::unit_name(pieces.bytes());
        let file = file.as_deref().map(|file| file.rsplit('/').next().unwrap_or(file));
        let lines = SourceLines::of_object(pieces.bytes(), file).ok();
        let unit = pieces.unit();
        let rows = Rows { original: unit.original, patched: unit.patched, diff: unit.diff, types: &[] };
        let detail = |compared: &Compared| {
            let mut row = rows.row(compared);
            let old = declared.functions.get(&compared.patched);
            let new = Compiled {
                title: "update",
                pieces: unit.patched,
                function: compared.patched,
                lines: lines.as_ref(),
                against_image: old.is_some(),
            };
            let code = match old {
                Some(old) => {
                    let reason = format!("it replaces `{}` of {}, as the update declares", old.symbol.name, old.unit);
                    (row.change, row.old_size, row.reason) =
                        (What::Changed, Some(old.symbol.size), Some(reason.clone()));
                    let old = InImage { image, address: old.symbol.address, size: old.symbol.size };
                    whole(&row.name, unit.name, reason, &old, &new)
                }
                None => alone(&row.name, unit.name, "it is new".to_owned(), &new),
            };
            let listed_as = match old {
                Some(old) => [old.symbol.name.clone(), old.unit.clone()],
                None => [row.name.clone(), unit.name.to_owned()],
            };
            FunctionDetail { unit: unit.name.to_owned(), module: None, listed_as, row, code, unproved: None }
        };
        self.functions = unit.diff.changed_functions().map(detail).collect();
    }

    /// Takes what was linked, for the kernel image and for modules.
    pub fn set_linked(&mut self, parts: &[(Option<ModuleId>, Linked)]) {
        self.symbols.clear();
        self.tables.clear();
        self.left_out.clear();
        self.fixups = 0;
        for (module, linked) in parts {
            let module = module.as_ref().map(|module| module.name.clone());
            let users = users(&linked.payload);
            self.symbols.extend((0u32..).zip(&linked.payload.symbols).filter_map(|(index, symbol)| {
                let address = match symbol.place {
                    Place::Payload { .. } => return None,
                    Place::Kernel(address) | Place::Absolute(address) => address,
                };
                let found = linked.found.get(&index);
                Some(SymbolRow {
                    name: symbol.name.clone(),
                    module: module.clone(),
                    address,
                    kind: found.map_or("label", kind),
                    size: symbol.size,
                    how: found.map_or_else(String::new, |found| how(found, module.as_deref())),
                    users: (users.iter().filter(|(_, used)| *used == index))
                        .map(|(user, _)| (*user).to_owned())
                        .collect(),
                })
            }));
            self.tables.extend(linked.payload.tables.iter().map(|&Table { kind, size, .. }| TableRow {
                module: module.clone(),
                section: kind.section(),
                size,
                required: kind.is_required(),
            }));
            self.fixups += linked.payload.fixups.len();
            self.left_out.extend(linked.left_out.iter().cloned());
        }
        self.symbols.sort();
    }
}

/// Which function refers to which symbol; data are named by their section.
fn users(payload: &Payload) -> BTreeSet<(&str, u32)> {
    let mut functions: Vec<(u32, &str, u64)> =
        payload.functions().map(|(offset, symbol)| (offset, symbol.name.as_str(), symbol.size)).collect();
    functions.sort_unstable();
    let user = |section, offset: u32| match section {
        SectionKind::Text => {
            let end = functions.partition_point(|(start, ..)| *start <= offset);
            let (start, name, size) = *functions.get(end.checked_sub(1)?)?;
            (u64::from(offset - start) < size).then_some(name)
        }
        SectionKind::Rodata => Some("(constants)"),
        SectionKind::Data | SectionKind::Bss => Some("(data and tables)"),
    };
    let relocs = payload.relocs.iter();
    relocs.filter_map(|reloc| Some((user(reloc.section, reloc.offset)?, reloc.symbol))).collect()
}

fn kind(found: &FoundSymbol) -> &'static str {
    match (found.symbol.address_kind, found.symbol.kind) {
        (AddressKind::PerCpu, _) => "per-CPU datum",
        (AddressKind::Absolute, _) => "value",
        (AddressKind::Image, SymbolKind::Function) => "function",
        (AddressKind::Image, SymbolKind::Object) => "datum",
        (AddressKind::Image, SymbolKind::Label) => "label",
    }
}

fn how(found: &FoundSymbol, module: Option<&str>) -> String {
    let image = module.map_or_else(|| "vmlinux".to_owned(), |module| format!("module {module} and what it imports"));
    match (found.how, &found.symbol.file) {
        (How::Proof, _) => format!("{image}: the proof of the original code leads there"),
        (How::Name, _) => format!("{image}: the one place of this name"),
        (How::File, Some(file)) => format!("{image}: the one place of this name in {file}"),
        (How::File, None) => format!("{image}: the one place of this name in its file"),
        (How::Declared, _) => format!("{image}: declared by the author"),
    }
}
