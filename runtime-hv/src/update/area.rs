//! An area of the guest's module memory: what goes where in it, and how the kernel will know it.
//!
//! Comes in: a payload, the guest's choices and the address that the guest gave. Decided: the layout `text | read-only data |
//! data`, each part of whole pages; the symbols and the name under which the guest lists it. Goes out: the area's bytes and
//! the request to register it. Pure functions; no guest is touched.

use super::link::{self, Addresses, LinkError, Linked};
use crate::engine::{EngineError, Pa, ReadMemory, Va};
use crate::guest::facts::Facts;
use crate::guest::paging::{self, PAGE, Root, WalkError};
use crate::guest::support::{Extent, NAME_SIZE, Operation, Request, SymbolTable};
use lpk_format::{Payload, Place, SectionKind, TableKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::Range;

/// `sizeof(Elf64_Sym)` (gABI, "Symbol Table").
const SYMBOL_SIZE: u64 = 24;
/// `SHN_ABS`: the kernel looks only whether a symbol is defined (`kernel/module/kallsyms.c`).
const DEFINED: u16 = 0xfff1;
/// Behind the names of new code and data in the guest's symbol table. Old functions of the same names are there, too, and the
/// guest refuses to probe a name that means two places (`kernel/trace/trace_kprobe.c`, `number_of_same_symbols`).
const SUFFIX: &str = ".lucos";
/// At the end of the code: what hooks, and threads that leave old code, return to. No engine's code is longer.
pub const REPORT_ROOM: u64 = 16;
/// At the end of its data: the stack that hooks run on, as large as a task's (`THREAD_SIZE`, `arch/x86/include/asm/page_64_types.h`).
pub const HOOK_STACK: u64 = 16 << 10;
/// Before the stack, in one page: what a hook is told, and the update's name.
pub const HOOK_TOLD: u64 = 512;
/// Where modules may be: the last 2 GiB, which code of the kernel reaches (`arch/x86/include/asm/pgtable_64_types.h`).
const REACH: u64 = 0xffff_ffff_8000_0000;

/// Memory of the guest's module area that holds a bundle; kept in the journal from the moment the guest has given it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// Id of the bundle.
    pub bundle: String,
    /// Name of the module.
    pub name: String,
    /// Kept after undo, because something may still refer to it.
    pub kept: bool,
    /// First address.
    pub base: u64,
    /// Sizes of its parts.
    pub parts: Parts,
    /// The `struct module`, once it is registered; 0 before.
    pub module: u64,
    /// How to find it again.
    pub witness: Witness,
}

/// Places in guest-physical memory that tell whether an area of the journal is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// The kernel's top page table.
    pub table: u64,
    /// It has five levels.
    pub five_levels: bool,
    /// The area's first page.
    pub page: u64,
    /// The module's name, once it is registered; 0 before.
    pub name: u64,
}

impl Area {
    /// Addresses of the area.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.base..self.base.saturating_add(self.parts.size())
    }

    /// Pages of the area.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.parts.size() / PAGE as u64
    }

    /// Whether the guest still has it. The kernel's page tables are made anew at every boot, and the name is in memory that
    /// the guest allocated: both as they were means that it is the same boot.
    ///
    /// # Errors
    /// Of the engine.
    pub fn is_there(&self, memory: &dyn ReadMemory) -> Result<bool, EngineError> {
        let root = Root { table: Pa(self.witness.table), five_levels: self.witness.five_levels };
        match paging::translate(memory, root, Va(self.base)) {
            Ok(page) if page.0 == self.witness.page => {}
            Ok(_) | Err(WalkError::NotMapped) => return Ok(false),
            // Page tables of another boot may lead out of memory.
            Err(WalkError::Engine(EngineError::Memory { .. })) => return Ok(false),
            Err(WalkError::Engine(error)) => return Err(error),
        }
        if self.witness.name == 0 {
            return Ok(true);
        }
        let mut name = [0; NAME_SIZE];
        memory.read(Pa(self.witness.name), &mut name)?;
        Ok(name.starts_with(self.name.as_bytes()) && name.get(self.name.len()) == Some(&0))
    }
}

/// Sizes of the three parts in bytes, each a multiple of a page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Code.
    pub text: u64,
    /// Read-only data.
    pub rodata: u64,
    /// Data.
    pub data: u64,
}

impl Parts {
    /// Of a payload, with its symbols.
    #[must_use]
    pub fn of(payload: &Payload, facts: &Facts) -> Parts {
        let pages = |bytes: u64| bytes.next_multiple_of(PAGE as u64);
        let symbols = Symbols::of(payload);
        let hooks = if payload.hooks.is_empty() { 0 } else { HOOK_STACK + HOOK_TOLD };
        Parts {
            text: pages(link::text_size(payload, facts) + REPORT_ROOM),
            rodata: pages(symbols.offset(payload) + symbols.size()),
            data: pages(link::data_size(payload) + hooks),
        }
    }

    /// All together.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.text.saturating_add(self.rodata).saturating_add(self.data)
    }

    /// Where the sections are when the area is at `base`.
    #[must_use]
    pub fn addresses(&self, base: u64) -> Addresses {
        Addresses {
            text: base,
            rodata: base.wrapping_add(self.text),
            data: base.wrapping_add(self.text).wrapping_add(self.rodata),
        }
    }
}

/// Symbols that the guest will show, and their names.
struct Symbols<'a> {
    entries: Vec<(&'a str, SectionKind, u32, u64, u8)>,
    names: usize,
}

impl<'a> Symbols<'a> {
    fn of(payload: &'a Payload) -> Symbols<'a> {
        let named = payload.symbols.iter().filter(|symbol| !symbol.name.is_empty() && !symbol.name.starts_with('.'));
        let entries: Vec<_> = named
            .filter_map(|symbol| match symbol.place {
                Place::Payload { section, offset } => {
                    let letter = match section {
                        SectionKind::Text => b't',
                        SectionKind::Rodata => b'r',
                        SectionKind::Data => b'd',
                        SectionKind::Bss => b'b',
                    };
                    Some((symbol.name.as_str(), section, offset, symbol.size, letter))
                }
                Place::Kernel(_) | Place::Absolute(_) => None,
            })
            .collect();
        let names = 1 + entries.iter().map(|entry| entry.0.len() + SUFFIX.len() + 1).sum::<usize>();
        Symbols { entries, names }
    }

    /// Entries, with the empty one that every table begins with.
    fn count(&self) -> u64 {
        self.entries.len() as u64 + 1
    }

    /// Where they begin in the read-only part: behind the read-only data.
    fn offset(&self, payload: &Payload) -> u64 {
        (payload.rodata.len() as u64).next_multiple_of(8)
    }

    fn size(&self) -> u64 {
        self.count() * (SYMBOL_SIZE + 1) + self.names as u64
    }

    /// Entries, types, names: in this order behind one another.
    fn to_bytes(&self, address: impl Fn(SectionKind, u32) -> u64) -> Vec<u8> {
        let mut entries = vec![0; SYMBOL_SIZE as usize];
        let (mut types, mut names) = (vec![b'?'], vec![0]);
        for &(name, section, offset, size, letter) in &self.entries {
            // STT_FUNC or STT_OBJECT, local.
            let kind: u8 = if section == SectionKind::Text { 2 } else { 1 };
            entries.extend((names.len() as u32).to_le_bytes());
            entries.extend([kind, 0]);
            entries.extend(DEFINED.to_le_bytes());
            entries.extend(address(section, offset).to_le_bytes());
            entries.extend(size.to_le_bytes());
            types.push(letter);
            names.extend(name.as_bytes());
            names.extend(SUFFIX.as_bytes());
            names.push(0);
        }
        [entries, types, names].concat()
    }
}

/// An area filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filled {
    /// Runs of bytes by address; what lies between is zero.
    pub contents: Vec<(u64, Vec<u8>)>,
    /// What makes it known.
    pub register: Request,
}

/// Links a payload for an area and describes it to the kernel.
///
/// # Errors
/// [`LinkError`].
pub fn fill(payload: &Payload, facts: &Facts, base: u64, parts: &Parts, name: &str) -> Result<Filled, LinkError> {
    let addresses = parts.addresses(base);
    let Linked { text, mut rodata, data } = link::link(payload, &addresses, facts)?;
    let symbols = Symbols::of(payload);
    let at = addresses.rodata.wrapping_add(symbols.offset(payload));
    rodata.resize(symbols.offset(payload) as usize, 0);
    rodata.extend(
        symbols
            .to_bytes(|section, offset| link::address(payload, &addresses, facts, Place::Payload { section, offset })),
    );
    let types = at.wrapping_add(symbols.count() * SYMBOL_SIZE);
    let mut register = Request::new(Operation::Register, parts.size());
    register.base = base;
    register.text_size = parts.text;
    register.ro_size = parts.text + parts.rodata;
    register.symbols =
        SymbolTable { symbols: at, count: symbols.count(), types, names: types.wrapping_add(symbols.count()) };
    register.name = name.to_owned();
    for (kind, extent) in TableKind::ALL.iter().zip(&mut register.tables) {
        if let Some(table) = payload.tables.iter().find(|table| table.kind == *kind) {
            let address = addresses.data.wrapping_add(u64::from(table.offset));
            *extent = Extent { address, size: u64::from(table.size) };
        }
    }
    let contents = [(addresses.text, text), (addresses.rodata, rodata), (addresses.data, data)];
    Ok(Filled { contents: contents.into_iter().filter(|(_, bytes)| !bytes.is_empty()).collect(), register })
}

/// Whether an address that the guest gave can be an area: whole pages in reach of the kernel's code, and not the kernel
/// itself.
#[must_use]
pub fn is_plausible(base: u64, size: u64, image: &Range<u64>) -> bool {
    let end = base.checked_add(size);
    base.is_multiple_of(PAGE as u64) && base >= REACH && end.is_some_and(|end| end <= image.start || base >= image.end)
}

/// Name of the module for a bundle, unlike all of `taken`: letters, digits and `_`, as names of modules have.
#[must_use]
pub fn module_name(bundle: &str, taken: &BTreeSet<String>) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let stem = format!("lucos_{}", bundle.chars().map(plain).collect::<String>());
    let cut = |suffix: &str| {
        let room = NAME_SIZE - 1 - suffix.len();
        format!("{}{suffix}", &stem[..stem.len().min(room)])
    };
    let numbered = (2..).map(|number: u32| cut(&format!("_{number}")));
    std::iter::once(cut("")).chain(numbered).find(|name| !taken.contains(name)).expect("numbers do not end")
}

#[cfg(test)]
mod tests {
    use super::*;
    use lpk_format::{Reloc, RelocKind, Symbol, Table};

    fn payload() -> Payload {
        let symbol = |name: &str, section, offset, function| Symbol {
            name: name.into(),
            place: Place::Payload { section, offset },
            size: 4,
            function,
        };
        Payload {
            text: vec![0x90; 5000],
            rodata: vec![7; 13],
            data: vec![1; 16],
            bss_size: 8,
            symbols: vec![
                symbol("new", SectionKind::Text, 16, true),
                symbol(".str", SectionKind::Rodata, 0, false),
                Symbol { name: "old".into(), place: Place::Kernel(TEXT), size: 0, function: true },
                symbol("state", SectionKind::Bss, 4, false),
            ],
            relocs: vec![Reloc { section: SectionKind::Data, offset: 8, kind: RelocKind::Abs64, symbol: 0, addend: 1 }],
            tables: vec![Table { kind: TableKind::Bugs, offset: 8, size: 8 }],
            ..Payload::default()
        }
    }

    const TEXT: u64 = 0xffff_ffff_8100_0000;
    const BASE: u64 = 0xffff_ffff_c020_0000;

    #[test]
    fn the_area_is_laid_out_by_protection() {
        let (payload, facts) = (payload(), Facts::default());
        let parts = Parts::of(&payload, &facts);
        assert_eq!(parts, Parts { text: 0x2000, rodata: 0x1000, data: 0x1000 });
        let filled = fill(&payload, &facts, BASE, &parts, "lucos_x").expect("linked");
        let places: Vec<(u64, usize)> = filled.contents.iter().map(|(at, bytes)| (at - BASE, bytes.len())).collect();
        let names = "\0new.lucos\0state.lucos\0".len();
        assert_eq!(places, [(0, 5000), (0x2000, 16 + 3 * 25 + names), (0x3000, 72)]);
        let register = &filled.register;
        assert_eq!((register.size, register.text_size, register.ro_size), (0x4000, 0x2000, 0x3000));
        assert_eq!(register.tables[1], Extent { address: BASE + 0x3008, size: 8 });
        assert_eq!(register.tables[0], Extent::default());
        // Symbols: the empty one, `new`, `state`.
        let rodata = &filled.contents[1].1;
        assert_eq!(register.symbols.symbols, BASE + 0x2010);
        assert_eq!((register.symbols.count, register.symbols.types), (3, BASE + 0x2010 + 72));
        let second = &rodata[16 + 24..16 + 48];
        assert_eq!(second[..8], [1, 0, 0, 0, 2, 0, 0xf1, 0xff]);
        assert_eq!(second[8..16], (BASE + 16).to_le_bytes());
        assert_eq!(rodata[16 + 72..16 + 75], *b"?tb");
        assert_eq!(rodata[16 + 75..], *b"\0new.lucos\0state.lucos\0");
        // The table's field was relocated.
        assert_eq!(filled.contents[2].1[8..16], (BASE + 17).to_le_bytes());
    }

    #[test]
    fn names_are_those_of_modules_and_differ() {
        let mut taken = BTreeSet::new();
        for (bundle, expected) in
            [("CVE-2026-1.fix", "lucos_CVE_2026_1_fix"), ("CVE-2026-1.fix", "lucos_CVE_2026_1_fix_2"), ("é", "lucos__")]
        {
            let name = module_name(bundle, &taken);
            assert_eq!(name, expected);
            taken.insert(name);
        }
        let long = "x".repeat(200);
        taken.insert(module_name(&long, &taken));
        let second = module_name(&long, &taken);
        assert!(second.ends_with("x_2") && second.len() == NAME_SIZE - 1, "{second}");
    }

    #[test]
    fn addresses_that_cannot_be_an_area_are_known() {
        let image = TEXT..TEXT + 0x200_0000;
        assert!(is_plausible(BASE, 0x4000, &image));
        for base in [BASE + 8, 0, 0xffff_8880_0000_0000, TEXT - 0x1000, TEXT + 0x1000, u64::MAX - 0xfff] {
            assert!(!is_plausible(base, 0x4000, &image), "{base:#x}");
        }
    }
}
