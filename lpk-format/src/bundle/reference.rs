//! Where references lead: symbols, their places, and the relocations that name them.
//!
//! Comes in: nothing. Decided: which relocation types of x86-64 a bundle has. Goes out: [`Symbol`] and [`Reloc`].

use super::SectionKind;
use object::elf;
use serde::{Deserialize, Serialize};

/// A symbol of the bundle. Names are kept for diagnosis; the place decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    /// Name; need not be unique.
    pub name: String,
    /// Where it lives.
    pub place: Place,
    /// Size in bytes, 0 if unknown.
    pub size: u64,
    /// Whether it is a function.
    pub function: bool,
}

/// Where a symbol lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the bundle.
    Payload {
        /// Section.
        section: SectionKind,
        /// Byte offset in it.
        offset: u32,
    },
    /// In the kernel image: a link address, to which the guest's slide is added. In the part of a module also a link address
    /// of that module.
    Kernel(u64),
    /// A value without slide: a per-CPU offset or an absolute symbol.
    Absolute(u64),
}

/// A relocation of the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloc {
    /// Section that holds the field; never `Bss`.
    pub section: SectionKind,
    /// Byte offset of the field.
    pub offset: u32,
    /// How it is computed.
    pub kind: RelocKind,
    /// Index into [`Payload::symbols`](super::Payload::symbols).
    pub symbol: u32,
    /// Addend.
    pub addend: i64,
}

/// Relocation types of x86-64 that a kernel uses (psABI 1.0, table 4.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RelocKind {
    /// `R_X86_64_64`: S + A, 8 bytes.
    Abs64,
    /// `R_X86_64_32`: S + A, 4 bytes, zero-extended.
    Abs32,
    /// `R_X86_64_32S`: S + A, 4 bytes, sign-extended.
    Abs32S,
    /// `R_X86_64_PC32`: S + A - P, 4 bytes.
    Pc32,
    /// `R_X86_64_PLT32`: a call or jump; computed as `Pc32`.
    Plt32,
    /// `R_X86_64_PC64`: S + A - P, 8 bytes.
    Pc64,
}

impl RelocKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [Self::Abs64, Self::Abs32, Self::Abs32S, Self::Pc32, Self::Plt32, Self::Pc64];

    /// Number of the type in ELF.
    pub fn elf_type(self) -> u32 {
        match self {
            Self::Abs64 => elf::R_X86_64_64.0,
            Self::Abs32 => elf::R_X86_64_32.0,
            Self::Abs32S => elf::R_X86_64_32S.0,
            Self::Pc32 => elf::R_X86_64_PC32.0,
            Self::Plt32 => elf::R_X86_64_PLT32.0,
            Self::Pc64 => elf::R_X86_64_PC64.0,
        }
    }

    /// The kind of an ELF type.
    pub fn of_elf(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.elf_type() == number)
    }

    /// Whether the place of the field is subtracted.
    pub fn is_pc_relative(self) -> bool {
        matches!(self, Self::Pc32 | Self::Plt32 | Self::Pc64)
    }

    /// Bytes of the field.
    pub fn size(self) -> u8 {
        match self {
            Self::Abs64 | Self::Pc64 => 8,
            Self::Abs32 | Self::Abs32S | Self::Pc32 | Self::Plt32 => 4,
        }
    }
}
