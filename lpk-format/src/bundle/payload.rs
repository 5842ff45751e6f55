//! New code and data.
//!
//! Comes in: nothing. Decided: nothing. Goes out: [`Payload`], the four sections with all that is said of places in them.

use super::{Place, Reloc, Symbol, Table};
use crate::{DataPatch, Hook, ObjectPatch};
use serde::{Deserialize, Serialize};

/// New code and data, laid out but not yet at an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Payload {
    /// `.text`; functions start at multiples of 16.
    pub text: Vec<u8>,
    /// `.rodata`; aligned to 64 bytes in memory.
    pub rodata: Vec<u8>,
    /// `.data`; aligned to 64 bytes in memory.
    pub data: Vec<u8>,
    /// Size of `.bss` in bytes; aligned to 64 bytes in memory.
    pub bss_size: u32,
    /// Symbols, those of the payload and those of the kernel.
    pub symbols: Vec<Symbol>,
    /// Relocations, sorted by section and offset.
    pub relocs: Vec<Reloc>,
    /// Choices that the guest made at boot, to be made in `.text` again; sorted by offset, alternatives last.
    pub fixups: Vec<Fixup>,
    /// Tables about new code that the guest's kernel has to know, sorted by kind, at most one of each.
    pub tables: Vec<Table>,
    /// Functions of the author that run at the switch, sorted by kind, name and old address.
    pub hooks: Vec<Hook>,
    /// Existing data that change, in order of `old_address`.
    pub changed: Vec<DataPatch>,
    /// Objects on the heap that get a value for what is new in them, in order of `cache_address`, each cache once.
    pub objects: Vec<ObjectPatch>,
}

impl Payload {
    /// Size of a section in bytes. A section of a sound bundle is below 4 GiB.
    pub fn size_of(&self, section: SectionKind) -> u32 {
        match section {
            SectionKind::Bss => self.bss_size,
            _ => u32::try_from(self.bytes_of(section).len()).unwrap_or(u32::MAX),
        }
    }

    /// Contents of a section; empty for `.bss`.
    pub fn bytes_of(&self, section: SectionKind) -> &[u8] {
        match section {
            SectionKind::Text => &self.text,
            SectionKind::Rodata => &self.rodata,
            SectionKind::Data => &self.data,
            SectionKind::Bss => &[],
        }
    }

    /// The new functions: offset in `.text`, and symbol.
    pub fn functions(&self) -> impl Iterator<Item = (u32, &Symbol)> {
        self.symbols.iter().filter(|symbol| symbol.function).filter_map(|symbol| match symbol.place {
            Place::Payload { section: SectionKind::Text, offset } => Some((offset, symbol)),
            _ => None,
        })
    }
}

/// The four sections of new code and data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SectionKind {
    /// `.text`: executable.
    Text,
    /// `.rodata`: read only.
    Rodata,
    /// `.data`: writable, initialised.
    Data,
    /// `.bss`: writable, zero.
    Bss,
}

/// A place in new code that the kernel's loader would rewrite for the processor it runs on.
///
/// The order of application is the kernel's own (`arch/x86/kernel/module.c`, `module_finalize`): paravirt,
/// retpolines, returns, alternatives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fixup {
    /// `call *pv_ops+N(%rip)` (6 bytes): the guest's operation is called directly.
    Paravirt {
        /// Byte offset in `.text`.
        offset: u32,
        /// Length of the patchable place.
        len: u8,
        /// Link address of the member of `pv_ops` that is called through.
        slot: u64,
    },
    /// A call or jump to `__x86_indirect_thunk_REG`.
    Retpoline {
        /// Byte offset in `.text`.
        offset: u32,
    },
    /// `jmp __x86_return_thunk` (5 bytes).
    Return {
        /// Byte offset in `.text`.
        offset: u32,
    },
    /// An alternative: taken when the guest's processor has the feature (or, inverted, lacks it).
    Alternative {
        /// Byte offset in `.text`.
        offset: u32,
        /// Length of the patchable place.
        len: u8,
        /// Byte offset in `.text` of the replacement.
        replacement: u32,
        /// Its length, at most `len`.
        replacement_len: u8,
        /// Number of the processor feature: word * 32 + bit of `boot_cpu_data.x86_capability`.
        feature: u16,
        /// Taken when the feature is absent (`ALT_NOT`).
        inverted: bool,
    },
    /// An immediate of 8 or 1 bytes that holds what a variable holds (`arch/x86/include/asm/runtime-const.h`).
    Constant {
        /// Byte offset in `.text`.
        offset: u32,
        /// Length of the immediate.
        len: u8,
        /// Link address of the variable.
        variable: u64,
    },
}
