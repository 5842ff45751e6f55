//! The symbols of a kernel image, by name and by address.
//!
//! Comes in: the symbol table of `vmlinux`, in file order. Decided: which source file a local symbol belongs to (an
//! `STT_FILE` symbol heads the local symbols of its file, gABI chapter 4). Goes out: [`SymbolDb`].

use goblin::elf::sym::{STT_FUNC, STT_OBJECT};
use std::collections::HashMap;

/// What a symbol names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymbolKind {
    /// A function (`STT_FUNC`).
    Function,
    /// A datum (`STT_OBJECT`).
    Object,
    /// Anything else: labels of assembly code and of the linker script.
    Label,
}

impl SymbolKind {
    /// What an ELF symbol of a type stands for.
    pub(crate) fn of_elf(kind: u8) -> Self {
        match kind {
            STT_FUNC => Self::Function,
            STT_OBJECT => Self::Object,
            _ => Self::Label,
        }
    }
}

/// How its address moves when the kernel is loaded elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressKind {
    /// By the KASLR slide.
    Image,
    /// Not at all: an offset in the per-CPU area.
    PerCpu,
    /// Not at all: a plain value.
    Absolute,
}

/// A symbol of the kernel image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelSymbol {
    /// Name.
    pub name: String,
    /// Link address.
    pub address: u64,
    /// Size in bytes; 0 for most labels.
    pub size: u64,
    /// What it names.
    pub kind: SymbolKind,
    /// Whether other files can see it.
    pub global: bool,
    /// How its address moves.
    pub address_kind: AddressKind,
    /// Base name of the source file, for local symbols.
    pub file: Option<String>,
}

/// All symbols of an image.
#[derive(Debug, Default)]
pub struct SymbolDb {
    symbols: Vec<KernelSymbol>,
    by_name: HashMap<String, Vec<u32>>,
    by_address: Vec<u32>,
}

impl SymbolDb {
    /// Indexes symbols.
    pub fn new(symbols: Vec<KernelSymbol>) -> Self {
        let mut by_name: HashMap<String, Vec<u32>> = HashMap::with_capacity(symbols.len());
        for (index, symbol) in (0u32..).zip(&symbols) {
            by_name.entry(symbol.name.clone()).or_default().push(index);
        }
        let mut by_address: Vec<u32> = (0u32..).take(symbols.len()).collect();
        by_address.sort_by_key(|&index| symbols[index as usize].address);
        Self { symbols, by_name, by_address }
    }

    /// All symbols, in file order.
    pub fn iter(&self) -> impl Iterator<Item = &KernelSymbol> {
        self.symbols.iter()
    }

    /// All symbols of a name, in file order.
    pub fn lookup<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a KernelSymbol> + use<'a> {
        self.by_name.get(name).into_iter().flatten().map(|&index| &self.symbols[index as usize])
    }

    /// The address of a name that occurs once, or whose occurrences all have the same address.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        let mut found = self.lookup(name).map(|symbol| symbol.address);
        let first = found.next()?;
        found.all(|address| address == first).then_some(first)
    }

    /// All symbols at an address.
    pub fn at(&self, address: u64) -> impl Iterator<Item = &KernelSymbol> {
        let start = self.by_address.partition_point(|&index| self.symbols[index as usize].address < address);
        self.by_address[start..]
            .iter()
            .map(|&index| &self.symbols[index as usize])
            .take_while(move |symbol| symbol.address == address)
    }

    /// The symbol whose bytes an address is among, and the offset in it.
    pub fn containing(&self, address: u64) -> Option<(&str, u64)> {
        let end = self.by_address.partition_point(|&index| self.symbols[index as usize].address <= address);
        // A function has few other names inside it; what is farther away does not reach here.
        let before = self.by_address[..end].iter().rev().take(64).map(|&index| &self.symbols[index as usize]);
        let mut around = before.filter(|symbol| address - symbol.address < symbol.size);
        around.next().map(|symbol| (symbol.name.as_str(), address - symbol.address))
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(name: &str, address: u64) -> KernelSymbol {
        KernelSymbol {
            name: name.into(),
            address,
            size: 4,
            kind: SymbolKind::Function,
            global: false,
            address_kind: AddressKind::Image,
            file: None,
        }
    }

    #[test]
    fn a_name_that_means_two_addresses_has_none() {
        let db = SymbolDb::new(vec![symbol("a", 8), symbol("b", 16), symbol("a", 24), symbol("c", 16)]);
        assert_eq!(db.address_of("a"), None);
        assert_eq!(db.address_of("b"), Some(16));
        assert_eq!(db.at(16).map(|s| s.name.as_str()).collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(db.lookup("a").count(), 2);
        assert_eq!(db.containing(18).map(|(_, offset)| offset), Some(2));
        assert_eq!(db.containing(21), None);
    }
}
