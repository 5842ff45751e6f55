//! The guest's loadable modules.
//!
//! Comes in: a located kernel and the module that a part of a bundle is about. Decided: whether the guest has that module, in
//! the very build, and where each of its sections is (`kernel/module/sysfs.c` keeps this for `/sys/module/NAME/sections`).
//! Goes out: [`Loaded`], which turns the link addresses of the part into live ones. The list may change while it is read, and
//! a hostile guest's may loop or lead anywhere: steps are bounded, and a bad pointer is an error.

use super::{GuestError, Kernel};
use crate::engine::{ReadMemory, Va};
use lpk_format::{MODULE_SPACE, ModuleId, hex};
use std::collections::BTreeMap;
use std::ops::Range;

/// More modules than this are taken for a loop.
const MODULES_LIMIT: usize = 4096;
/// A module of a distribution has about 50 sections.
const SECTIONS_LIMIT: u64 = 4096;
/// Exports of one module that are looked at.
const EXPORTS_LIMIT: u64 = 1 << 16;
/// `MODULE_NAME_LEN` (`include/linux/module.h`).
const NAME: usize = 56;
/// Longest name of a section or export that is compared; `KSYM_NAME_LEN` of Linux 6.1 (`include/linux/kallsyms.h`).
const SYMBOL_NAME: usize = 512;
/// More of a note than a build id takes.
const NOTE_LIMIT: u64 = 256;
/// Where modules are mapped begins not below this.
const REACH: u64 = 0xffff_ffff_8000_0000;
/// The section with the module's per-CPU data, which the loader moves away (`kernel/module/main.c`, `layout_and_allocate`).
const PER_CPU: &str = ".data..percpu";
/// The section with its build id.
const BUILD_ID: &str = ".note.gnu.build-id";

/// A module on the guest's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its `struct module`.
    pub at: Va,
    /// Name.
    pub name: String,
    /// Its initialisation is over and its removal has not begun.
    pub live: bool,
}

/// A module that the guest runs, located.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its `struct module`.
    pub at: Va,
    /// Name.
    pub name: String,
    /// Link addresses of each section, its end included, and its live address. An empty section has none that is known; the
    /// module itself stands for it.
    sections: Vec<(Range<u64>, u64)>,
    /// Live addresses of the imports, by link address.
    imports: BTreeMap<u64, u64>,
}

/// What was found of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The guest does not have it.
    Absent,
    /// It is being loaded or removed.
    Changing,
    /// It was built otherwise: the build id found.
    Other(String),
    /// It runs.
    Loaded(Loaded),
}

impl Loaded {
    /// A module at places of a test's choice: sections by first link address, size and live address.
    #[cfg(test)]
    pub(crate) fn with_sections(sections: &[(u64, u64, u64)]) -> Loaded {
        let section = |&(link, size, live): &(u64, u64, u64)| (link..link + size + 1, live);
        let sections = sections.iter().map(section).collect();
        Loaded { at: Va(REACH), name: "m".into(), sections, imports: BTreeMap::new() }
    }

    /// Live address of a link address of the module; `None` for an address of the kernel.
    #[must_use]
    pub fn live(&self, link: u64) -> Option<u64> {
        if !MODULE_SPACE.contains(&link) {
            return None;
        }
        let section = self.sections.iter().find(|(range, _)| range.contains(&link));
        let address = section.map(|(range, live)| live.wrapping_add(link - range.start));
        // What is nowhere leads nowhere: address 0 is never mapped.
        Some(address.or_else(|| self.imports.get(&link).copied()).unwrap_or(0))
    }

    /// Whether a link address is in an empty section, whose live address nobody knows.
    #[must_use]
    pub fn is_empty_datum(&self, link: u64) -> bool {
        self.sections.iter().any(|(range, _)| range.contains(&link) && range.end - range.start == 1)
    }
}

/// The modules on the guest's list (`kernel/module/main.c`, `modules`), newest first.
///
/// # Errors
/// [`GuestError`].
pub fn all(memory: &dyn ReadMemory, kernel: &Kernel) -> Result<Vec<Entry>, GuestError> {
    let head = kernel.live(kernel.symbol("modules")?).0;
    let (list, name, state) =
        (kernel.offset("module.list")?, kernel.offset("module.name")?, kernel.offset("module.state")?);
    let live = kernel.constant("MODULE_STATE_LIVE")?;
    // State, list and name begin the structure: one read for all of them.
    let end = name.max(list).max(state).saturating_add(NAME as u64);
    let mut bytes = vec![0; usize::try_from(end).unwrap_or(usize::MAX).min(4096)];
    let mut at = kernel.read_u64(memory, Va(head), "the list of modules")?;
    let mut found = Vec::new();
    while at != head {
        if found.len() >= MODULES_LIMIT {
            let detail = format!("no end after {MODULES_LIMIT} entries");
            return Err(GuestError::Damaged { what: "list of modules", detail });
        }
        let module = at.wrapping_sub(list);
        kernel.read(memory, Va(module), &mut bytes, "a module")?;
        let part = |from: u64, length: usize| bytes.get(from as usize..from as usize + length).unwrap_or_default();
        let text = part(name, NAME);
        found.push(Entry {
            at: Va(module),
            name: text.iter().take_while(|&&byte| byte != 0).map(|&byte| printable(byte)).collect(),
            live: part(state, 4) == &live.to_le_bytes()[..4],
        });
        at = part(list, 8).try_into().map_or(0, u64::from_le_bytes);
    }
    Ok(found)
}

/// Looks for a module.
///
/// # Errors
/// [`GuestError`].
pub fn find(memory: &dyn ReadMemory, kernel: &Kernel, id: &ModuleId) -> Result<Found, GuestError> {
    let modules = all(memory, kernel)?;
    let Some(entry) = modules.iter().find(|entry| entry.name == id.name) else { return Ok(Found::Absent) };
    if !entry.live {
        return Ok(Found::Changing);
    }
    let places = sections(memory, kernel, entry.at)?;
    let build_id = match places.get(BUILD_ID) {
        Some(&at) => build_id(memory, kernel, id, at)?,
        None => None,
    };
    if build_id.as_deref() != Some(id.build_id.as_slice()) {
        return Ok(Found::Other(build_id.map_or_else(|| "none".to_owned(), |found| hex::encode(&found))));
    }
    let missing = |what: &str| GuestError::Damaged { what: "module", detail: format!("`{}` has no {what}", id.name) };
    let mut located = Vec::new();
    for section in &id.sections {
        let live = match places.get(section.name.as_str()) {
            _ if section.size == 0 => entry.at.0,
            _ if section.name == PER_CPU => {
                kernel.read_u64(memory, Va(entry.at.0.wrapping_add(kernel.offset("module.percpu")?)), "a module")?
            }
            Some(&live) if live >= REACH && live.checked_add(section.size).is_some() => live,
            _ => return Err(missing(&format!("section {}", section.name))),
        };
        located.push((section.address..section.address.saturating_add(section.size).saturating_add(1), live));
    }
    let mut imports = BTreeMap::new();
    for import in &id.imports {
        let live = export(memory, kernel, &modules, &import.name)?;
        imports.insert(import.address, live.ok_or_else(|| missing(&format!("symbol `{}`", import.name)))?);
    }
    Ok(Found::Loaded(Loaded { at: entry.at, name: id.name.clone(), sections: located, imports }))
}

/// Whether a module that was located is still there, as it was: on the list at the same place, running, with the same build id
/// in the same place. What its code holds has to be looked at besides.
///
/// # Errors
/// [`GuestError`].
pub fn is_still(memory: &dyn ReadMemory, kernel: &Kernel, loaded: &Loaded, id: &ModuleId) -> Result<bool, GuestError> {
    let listed = |entry: &Entry| entry.at == loaded.at && entry.name == loaded.name && entry.live;
    if !all(memory, kernel)?.iter().any(listed) {
        return Ok(false);
    }
    let note = id.sections.iter().find(|section| section.name == BUILD_ID);
    let Some(at) = note.and_then(|section| loaded.live(section.address)) else { return Ok(false) };
    Ok(build_id(memory, kernel, id, at)?.as_deref() == Some(id.build_id.as_slice()))
}

/// Addresses of a module's sections, by name.
fn sections(memory: &dyn ReadMemory, kernel: &Kernel, module: Va) -> Result<BTreeMap<String, u64>, GuestError> {
    let word = |at: u64| kernel.read_u64(memory, Va(at), "the sections of a module");
    let list = word(module.0.wrapping_add(kernel.offset("module.sect_attrs")?))?;
    if list == 0 {
        return Ok(BTreeMap::new());
    }
    let count = word(list.wrapping_add(kernel.offset("module_sect_attrs.nsections")?))? & 0xffff_ffff;
    let (first, size) = (kernel.offset("module_sect_attrs.attrs")?, kernel.size("module_sect_attr")?);
    // The name is that of the file in sysfs: `battr.attr.name`.
    let attribute = kernel.offset("module_sect_attr.battr")?.wrapping_add(kernel.offset("bin_attribute.attr")?);
    let name = attribute.wrapping_add(kernel.offset("attribute.name")?);
    let address = kernel.offset("module_sect_attr.address")?;
    let mut found = BTreeMap::new();
    for index in 0..count.min(SECTIONS_LIMIT) {
        let entry = list.wrapping_add(first).wrapping_add(index * size);
        let text = word(entry.wrapping_add(name))?;
        found.insert(string(memory, kernel, Va(text))?, word(entry.wrapping_add(address))?);
    }
    Ok(found)
}

/// The build id in a module's note: owner `GNU`, type 3 (gABI, "Note Section").
fn build_id(memory: &dyn ReadMemory, kernel: &Kernel, id: &ModuleId, at: u64) -> Result<Option<Vec<u8>>, GuestError> {
    let size = id.sections.iter().find(|section| section.name == BUILD_ID).map_or(0, |section| section.size);
    let mut note = vec![0; size.min(NOTE_LIMIT) as usize];
    kernel.read(memory, Va(at), &mut note, "the build id of a module")?;
    let header = [4, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, b'G', b'N', b'U', 0];
    let Some((head, rest)) = note.split_at_checked(header.len()) else { return Ok(None) };
    let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    let same = head[..4] == header[..4] && head[8..] == header[8..];
    Ok(rest.get(..length).filter(|_| same).map(<[u8]>::to_vec))
}

/// Live address of a symbol that some module exports; `struct kernel_symbol` counts from itself and is sorted by name
/// (`include/linux/export.h`, `kernel/module/main.c`, `find_symbol`).
fn export(memory: &dyn ReadMemory, kernel: &Kernel, modules: &[Entry], name: &str) -> Result<Option<u64>, GuestError> {
    let size = kernel.size("kernel_symbol")?;
    let (value, text) = (kernel.offset("kernel_symbol.value_offset")?, kernel.offset("kernel_symbol.name_offset")?);
    let word = |at: u64| kernel.read_u64(memory, Va(at), "the exports of a module");
    let relative = |at: u64| {
        let mut field = [0; 4];
        kernel.read(memory, Va(at), &mut field, "the exports of a module")?;
        Ok::<_, GuestError>(at.wrapping_add_signed(i64::from(i32::from_le_bytes(field))))
    };
    for module in modules.iter().filter(|module| module.live) {
        for (list, count) in [("module.syms", "module.num_syms"), ("module.gpl_syms", "module.num_gpl_syms")] {
            let (Ok(list), Ok(count)) = (kernel.offset(list), kernel.offset(count)) else { continue };
            let start = word(module.at.0.wrapping_add(list))?;
            let count = (word(module.at.0.wrapping_add(count))? & 0xffff_ffff).min(EXPORTS_LIMIT);
            let (mut low, mut high) = (0, count);
            while low < high {
                let middle = low + (high - low) / 2;
                let entry = start.wrapping_add(middle * size);
                let found = string(memory, kernel, Va(relative(entry.wrapping_add(text))?))?;
                match found.as_str().cmp(name) {
                    std::cmp::Ordering::Less => low = middle + 1,
                    std::cmp::Ordering::Greater => high = middle,
                    std::cmp::Ordering::Equal => return relative(entry.wrapping_add(value)).map(Some),
                }
            }
        }
    }
    Ok(None)
}

/// A zero-terminated string, cut off at a length that no name has.
fn string(memory: &dyn ReadMemory, kernel: &Kernel, at: Va) -> Result<String, GuestError> {
    let mut text = Vec::new();
    while text.len() < SYMBOL_NAME {
        // Up to the end of the page at most: the next one may not be there.
        let here = (64 - (at.0 as usize + text.len()) % 64).min(SYMBOL_NAME - text.len());
        let mut part = [0; 64];
        let from = Va(at.0.wrapping_add(text.len() as u64));
        kernel.read(memory, from, &mut part[..here], "a name in a module")?;
        if let Some(end) = part[..here].iter().position(|&byte| byte == 0) {
            text.extend_from_slice(&part[..end]);
            break;
        }
        text.extend_from_slice(&part[..here]);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The guest chooses its names: keep them from playing with the operator's terminal.
fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() { char::from(byte) } else { '?' }
}
