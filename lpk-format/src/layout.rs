//! The sections of a bundle file: which, in which order, and with which header fields.
//!
//! Comes in: nothing. Decided: the constants that writer and reader share. Goes out: [`SECTIONS`] and the limits.

use object::elf;

use crate::{Place, SectionKind};

/// Version of the format this crate writes, and the only one it reads.
pub const FORMAT_VERSION: u32 = 7;
/// Number of SHA-256 in `.lucos.digest`.
pub(crate) const ALGORITHM_SHA256: u32 = 1;
/// Bytes of `.lucos.digest`: version, algorithm, digest.
pub(crate) const DIGEST_SIZE: usize = 40;
/// Offset of the digest in `.lucos.digest`.
pub(crate) const DIGEST_AT: usize = 8;
/// Bytes of `.note.gnu.build-id`: note header, `GNU\0`, 20 bytes of id.
pub(crate) const ID_NOTE_SIZE: usize = 36;
/// Offset of the id in `.note.gnu.build-id`.
pub(crate) const ID_AT: usize = 16;
/// Owner of the notes in `.note.lucos.kernel`.
pub(crate) const NOTE_OWNER: &[u8] = b"Lucos\0";
/// Note type: GNU build id of the kernel.
pub(crate) const NOTE_BUILD_ID: u32 = 0x4c01;
/// Note type: release of the kernel.
pub(crate) const NOTE_RELEASE: u32 = 0x4c02;
/// Note type: banner of the kernel.
pub(crate) const NOTE_BANNER: u32 = 0x4c03;
/// Name of the file symbol (`STT_FILE`) that stands before the symbols of the support object.
pub(crate) const SUPPORT_FILE: &str = "support";

/// What a bundle may hold at most. A bundle beyond them is refused by writer and reader alike.
pub mod limits {
    /// Size of a file in bytes.
    pub const FILE_SIZE: u64 = 64 << 20;
    /// Size of `.bss` in bytes.
    pub const BSS_SIZE: u32 = 64 << 20;
    /// Number of symbols.
    pub const SYMBOLS: usize = 1 << 20;
    /// Number of relocations.
    pub const RELOCS: usize = 1 << 20;
    /// Number of fixups.
    pub const FIXUPS: usize = 1 << 20;
    /// Number of functions to redirect.
    pub const FUNCTIONS: usize = 1 << 16;
    /// Number of boot sites of one function.
    pub const SITES: usize = 1 << 16;
    /// Number of return points of one function.
    pub const RETURNS: usize = 1 << 16;
    /// Number of changed data.
    pub const CHANGED_DATA: usize = 1 << 16;
    /// Number of types whose objects get values.
    pub const OBJECTS: usize = 4096;
    /// Size of such an object in bytes.
    pub const OBJECT_SIZE: u32 = 8192;
    /// Length of a path of a translation unit: `PATH_MAX`, `include/uapi/linux/limits.h`.
    pub const PATH_LEN: usize = 4096;
    /// Number of hooks.
    pub const HOOKS: usize = 1 << 16;
    /// Length of a symbol's name: `KSYM_NAME_LEN`, `include/linux/kallsyms.h`, without the zero.
    pub const SYMBOL_NAME_LEN: usize = 511;
    /// Number of forms of one alternative.
    pub const FORMS: usize = 255;
    /// Number of modules that a bundle changes.
    pub const MODULES: usize = 256;
    /// Number of sections, and of imports, of a module.
    pub const MODULE_SECTIONS: usize = 1 << 16;
    /// Length of a module's name: `MODULE_NAME_LEN`, `include/linux/module.h`, without the zero.
    pub const MODULE_NAME_LEN: usize = 55;
    /// Size of a kernel image in memory: `KERNEL_IMAGE_SIZE`, `arch/x86/include/asm/page_64_types.h`.
    pub const KERNEL_IMAGE_SIZE: u64 = 1 << 30;
    /// Length of a kernel build id in bytes, shortest.
    pub const BUILD_ID_MIN: usize = 4;
    /// Length of a kernel build id in bytes, longest.
    pub const BUILD_ID_MAX: usize = 64;
    /// Length of a release: `__NEW_UTS_LEN`, `include/uapi/linux/utsname.h`.
    pub const RELEASE_LEN: usize = 64;
    /// Length of a banner.
    pub const BANNER_LEN: usize = 1024;
    /// Length of a bundle's name.
    pub const NAME_LEN: usize = 255;
}

/// Indexes of the sections in the section header table.
pub(crate) mod index {
    pub(crate) const TEXT: usize = 1;
    pub(crate) const RODATA: usize = 2;
    pub(crate) const DATA: usize = 3;
    pub(crate) const BSS: usize = 4;
    pub(crate) const RELA_TEXT: usize = 5;
    pub(crate) const RELA_RODATA: usize = 6;
    pub(crate) const RELA_DATA: usize = 7;
    pub(crate) const SUPPORT_TEXT: usize = 8;
    pub(crate) const SUPPORT_RODATA: usize = 9;
    pub(crate) const SUPPORT_DATA: usize = 10;
    pub(crate) const SUPPORT_BSS: usize = 11;
    pub(crate) const RELA_SUPPORT_TEXT: usize = 12;
    pub(crate) const RELA_SUPPORT_RODATA: usize = 13;
    pub(crate) const RELA_SUPPORT_DATA: usize = 14;
    pub(crate) const KERNEL: usize = 15;
    pub(crate) const FUNCTIONS: usize = 16;
    pub(crate) const EXPECTED: usize = 17;
    pub(crate) const SITES: usize = 18;
    pub(crate) const RETURNS: usize = 19;
    pub(crate) const FIXUPS: usize = 20;
    pub(crate) const SUPPORT_FIXUPS: usize = 21;
    pub(crate) const TABLES: usize = 22;
    pub(crate) const CHANGED: usize = 23;
    pub(crate) const OBJECTS: usize = 24;
    pub(crate) const HOOKS: usize = 25;
    pub(crate) const MODULE: usize = 26;
    pub(crate) const MODULES: usize = 27;
    pub(crate) const PROFILE: usize = 28;
    pub(crate) const MANIFEST: usize = 29;
    pub(crate) const NOTE_KERNEL: usize = 30;
    pub(crate) const NOTE_ID: usize = 31;
    pub(crate) const DIGEST: usize = 32;
    pub(crate) const SYMTAB: usize = 33;
    pub(crate) const STRTAB: usize = 34;
    pub(crate) const SHSTRTAB: usize = 35;
    pub(crate) const COUNT: usize = 36;
}

/// The fields of a section header that never change (`sh_info` of `.symtab` does: it counts the symbols).
pub(crate) struct SectionSpec {
    pub(crate) name: &'static str,
    pub(crate) kind: elf::SectionType,
    pub(crate) flags: u64,
    pub(crate) align: u64,
    pub(crate) entry_size: u64,
    pub(crate) link: u32,
    pub(crate) info: u32,
}

impl SectionSpec {
    /// Whether the section has bytes in the file.
    pub(crate) fn in_file(&self) -> bool {
        self.kind != elf::SHT_NOBITS && self.kind != elf::SHT_NULL
    }
}

const A: u64 = elf::SHF_ALLOC.0;
const AX: u64 = elf::SHF_ALLOC.0 | elf::SHF_EXECINSTR.0;
const WA: u64 = elf::SHF_WRITE.0 | elf::SHF_ALLOC.0;

const fn spec(name: &'static str, kind: elf::SectionType, flags: u64, align: u64, entry_size: u64) -> SectionSpec {
    SectionSpec { name, kind, flags, align, entry_size, link: 0, info: 0 }
}

/// A relocation section (gABI "Relocation": `sh_link` is the symbol table, `sh_info` the section they apply to).
const fn rela(name: &'static str, target: usize) -> SectionSpec {
    SectionSpec {
        name,
        kind: elf::SHT_RELA,
        flags: elf::SHF_INFO_LINK.0,
        align: 8,
        entry_size: 24,
        link: index::SYMTAB as u32,
        info: target as u32,
    }
}

/// Every section, in the order of the section header table and of the file.
pub(crate) const SECTIONS: [SectionSpec; index::COUNT] = [
    spec("", elf::SHT_NULL, 0, 0, 0),
    spec(".text", elf::SHT_PROGBITS, AX, 64, 0),
    spec(".rodata", elf::SHT_PROGBITS, A, 64, 0),
    spec(".data", elf::SHT_PROGBITS, WA, 64, 0),
    spec(".bss", elf::SHT_NOBITS, WA, 64, 0),
    rela(".rela.text", index::TEXT),
    rela(".rela.rodata", index::RODATA),
    rela(".rela.data", index::DATA),
    spec(".support.text", elf::SHT_PROGBITS, AX, 64, 0),
    spec(".support.rodata", elf::SHT_PROGBITS, A, 64, 0),
    spec(".support.data", elf::SHT_PROGBITS, WA, 64, 0),
    spec(".support.bss", elf::SHT_NOBITS, WA, 64, 0),
    rela(".rela.support.text", index::SUPPORT_TEXT),
    rela(".rela.support.rodata", index::SUPPORT_RODATA),
    rela(".rela.support.data", index::SUPPORT_DATA),
    spec(".lucos.kernel", elf::SHT_NOBITS, 0, 1, 0),
    spec(".lucos.functions", elf::SHT_PROGBITS, 0, 8, crate::records::FUNCTION_SIZE as u64),
    spec(".lucos.expected", elf::SHT_PROGBITS, 0, 1, 0),
    spec(".lucos.sites", elf::SHT_PROGBITS, 0, 1, 0),
    spec(".lucos.returns", elf::SHT_PROGBITS, 0, 4, crate::returns::RETURN_SIZE as u64),
    spec(".lucos.fixups", elf::SHT_PROGBITS, 0, 8, crate::records::FIXUP_SIZE as u64),
    spec(".lucos.support.fixups", elf::SHT_PROGBITS, 0, 8, crate::records::FIXUP_SIZE as u64),
    spec(".lucos.tables", elf::SHT_PROGBITS, 0, 4, crate::records::TABLE_SIZE as u64),
    spec(".lucos.data", elf::SHT_PROGBITS, 0, 8, 0),
    spec(".lucos.objects", elf::SHT_PROGBITS, 0, 8, 0),
    spec(".lucos.hooks", elf::SHT_PROGBITS, 0, 8, 0),
    spec(".lucos.module", elf::SHT_PROGBITS, 0, 1, 0),
    spec(".lucos.modules", elf::SHT_PROGBITS, 0, 8, 0),
    spec(".lucos.profile", elf::SHT_PROGBITS, 0, 1, 0),
    spec(".lucos.manifest", elf::SHT_PROGBITS, 0, 1, 0),
    spec(".note.lucos.kernel", elf::SHT_NOTE, 0, 4, 0),
    spec(".note.gnu.build-id", elf::SHT_NOTE, 0, 4, 0),
    spec(".lucos.digest", elf::SHT_PROGBITS, 0, 8, 0),
    SectionSpec { link: index::STRTAB as u32, ..spec(".symtab", elf::SHT_SYMTAB, 0, 8, 24) },
    spec(".strtab", elf::SHT_STRTAB, 0, 1, 0),
    spec(".shstrtab", elf::SHT_STRTAB, 0, 1, 0),
];

/// Names of the sections of a bundle, in the order of the file; the first is the empty name of section 0.
pub const SECTION_NAMES: [&str; index::COUNT] = {
    let mut names = [""; index::COUNT];
    let mut at = 0;
    while at < index::COUNT {
        names[at] = SECTIONS[at].name;
        at += 1;
    }
    names
};

/// Contents of `.shstrtab`, and the offset of each section's name in it.
pub(crate) fn section_names() -> (Vec<u8>, [u32; index::COUNT]) {
    let mut bytes = vec![0];
    let mut offsets = [0; index::COUNT];
    for (offset, name) in offsets.iter_mut().zip(SECTION_NAMES).skip(1) {
        *offset = bytes.len() as u32;
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
    }
    (bytes, offsets)
}

/// `offset` rounded up to a multiple of `align`; 0 counts as 1.
pub(crate) fn align_up(offset: u64, align: u64) -> u64 {
    offset.next_multiple_of(align.max(1))
}

/// Which of the two parts of a bundle that are linked like a module: the new code, or the support object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Payload,
    Support,
}

/// Indexes of the sections of a part.
pub(crate) struct PartSections {
    pub(crate) text: usize,
    pub(crate) rodata: usize,
    pub(crate) data: usize,
    pub(crate) bss: usize,
    pub(crate) rela: [(usize, SectionKind); 3],
    pub(crate) fixups: usize,
}

impl Part {
    pub(crate) fn sections(self) -> PartSections {
        let rela =
            |text, rodata, data| [(text, SectionKind::Text), (rodata, SectionKind::Rodata), (data, SectionKind::Data)];
        match self {
            Self::Payload => PartSections {
                text: index::TEXT,
                rodata: index::RODATA,
                data: index::DATA,
                bss: index::BSS,
                rela: rela(index::RELA_TEXT, index::RELA_RODATA, index::RELA_DATA),
                fixups: index::FIXUPS,
            },
            Self::Support => PartSections {
                text: index::SUPPORT_TEXT,
                rodata: index::SUPPORT_RODATA,
                data: index::SUPPORT_DATA,
                bss: index::SUPPORT_BSS,
                rela: rela(index::RELA_SUPPORT_TEXT, index::RELA_SUPPORT_RODATA, index::RELA_SUPPORT_DATA),
                fixups: index::SUPPORT_FIXUPS,
            },
        }
    }

    /// Index of a section of new code or data.
    pub(crate) fn index_of(self, section: SectionKind) -> usize {
        let sections = self.sections();
        match section {
            SectionKind::Text => sections.text,
            SectionKind::Rodata => sections.rodata,
            SectionKind::Data => sections.data,
            SectionKind::Bss => sections.bss,
        }
    }

    /// The section of new code or data with this index.
    pub(crate) fn section_at(self, index: usize) -> Option<SectionKind> {
        [SectionKind::Text, SectionKind::Rodata, SectionKind::Data, SectionKind::Bss]
            .into_iter()
            .find(|section| self.index_of(*section) == index)
    }
}

/// `st_shndx` and `st_value` of a symbol of a part, with the link address of `_text`.
pub(crate) fn symbol_position(part: Part, place: Place, text: u64) -> (u16, u64) {
    match place {
        Place::Payload { section, offset } => (part.index_of(section) as u16, u64::from(offset)),
        Place::Kernel(address) => (index::KERNEL as u16, address.wrapping_sub(text)),
        Place::Absolute(value) => (elf::SHN_ABS.0, value),
    }
}
