//! The contents of a bundle as plain values: what the producer fills and the consumer reads.
//!
//! Comes in: nothing; these are the shared words of both sides. Decided: nothing. Goes out: [`Bundle`], which
//! [`crate::write`] turns into a relocatable ELF file and [`crate::read`] turns back after checking everything.
//!
//! All addresses are *link addresses*: those of `vmlinux` and `System.map`, before the guest's KASLR slide is added.

use object::elf;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything a runtime needs to update one kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Which kernel the bundle was made for.
    pub kernel: KernelId,
    /// What the runtime must know of that kernel.
    pub profile: GuestProfile,
    /// What the bundle is, for people and pipelines.
    pub manifest: Manifest,
    /// New code and data.
    pub payload: Payload,
    /// Old functions to redirect, in order of `old_address`.
    pub functions: Vec<FunctionPatch>,
    /// The support object, which prepares the guest for new code from inside; linked as the payload is, without tables.
    pub support: Option<Payload>,
    /// The module whose functions these are; `None` when they are the kernel image's own.
    pub module: Option<ModuleId>,
    /// The parts of the bundle that change loadable modules: bundles of the same kernel and update, each with a
    /// [`Bundle::module`], sorted by its name. A part has no parts and no support object of its own.
    pub modules: Vec<Bundle>,
}

impl Bundle {
    /// The bundle itself, then its parts: everything that redirects functions.
    pub fn parts(&self) -> impl Iterator<Item = &Bundle> {
        std::iter::once(self).chain(&self.modules)
    }
}

/// Identity of a loadable module, and the link addresses that its part of a bundle uses.
///
/// A module is linked when it is loaded, each time elsewhere. So that its functions can be named like those of the kernel
/// image, each of its sections has a *link address* of the bundle's own, in [`MODULE_SPACE`]; the runtime finds out
/// where the section is in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleId {
    /// Name, as `/proc/modules` prints it.
    pub name: String,
    /// GNU build id of the `.ko`, 4 to 64 bytes, written as lower-case hexadecimal in JSON.
    #[serde(with = "crate::hex")]
    pub build_id: Vec<u8>,
    /// Its sections in memory, sorted by address.
    pub sections: Vec<ModuleSection>,
    /// Symbols that it takes from other modules, sorted by address, behind the sections.
    pub imports: Vec<ModuleImport>,
}

/// A section of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleSection {
    /// Name in the `.ko`.
    pub name: String,
    /// Link address.
    pub address: u64,
    /// Size in bytes. An empty section has no known place in a guest, and only the addresses of empty data lie in it.
    pub size: u64,
}

/// A symbol that a module takes from another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleImport {
    /// Name, as exported.
    pub name: String,
    /// Link address that stands for it.
    pub address: u64,
}

/// Link addresses of the sections and imports of a module: where the kernel maps modules
/// (`arch/x86/include/asm/pgtable_64_types.h`), so that displacements from there to the kernel image can be written down.
pub const MODULE_SPACE: std::ops::Range<u64> = 0xffff_ffff_c000_0000..0xffff_ffff_ff00_0000;

/// Identity of a kernel build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelId {
    /// GNU build id of `vmlinux`, 4 to 64 bytes, written as lower-case hexadecimal in JSON.
    #[serde(with = "crate::hex")]
    pub build_id: Vec<u8>,
    /// Release, as `uname -r` prints it.
    pub release: String,
    /// `linux_banner`, without the newline.
    pub banner: String,
}

/// Facts of a kernel that the runtime uses; nothing else about a kernel is built into the runtime.
///
/// A runtime asks for what it needs by name and refuses the bundle when a name is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestProfile {
    /// Link addresses of kernel symbols (per-CPU symbols: offsets in the per-CPU area).
    pub symbols: BTreeMap<String, u64>,
    /// Byte offsets of members, keyed `type.member` (`task_struct.tasks`).
    pub offsets: BTreeMap<String, u64>,
    /// Sizes of types in bytes.
    pub sizes: BTreeMap<String, u64>,
    /// Enumerators and other constants (`PG_reserved`, `THREAD_SIZE`).
    pub constants: BTreeMap<String, u64>,
}

/// Type of an update (the paper's 3.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpdateType {
    /// Functions only.
    Type1,
    /// Functions and existing data.
    Type2,
}

/// What a bundle is, for people and pipelines; kept as JSON in the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Name by which the operator refers to the bundle: the diff's file name without its extension.
    pub name: String,
    /// Type of the update.
    pub update_type: UpdateType,
    /// Version of the tool that wrote it.
    pub built_by: String,
    /// SHA-256 of the diff, or of the update written by hand, lower-case hexadecimal.
    pub diff_sha256: String,
    /// Files the diff changes, as named in it, sorted.
    pub files: Vec<String>,
    /// Functions replaced: name and unit.
    pub functions: Vec<ManifestFunction>,
    /// Data the bundle brings: name, unit, section and size.
    pub data: Vec<ManifestDatum>,
    /// Old code beside the functions replaced, in an update of type 2, sorted by address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<OldCode>,
    /// Object sections that were left out, with the consequence for the guest.
    pub left_out: Vec<LeftOut>,
    /// Parts of the diff that were left out because they cannot be applied live, with `--allow-partial`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<Omitted>,
    /// What the author vouches for, in the order of the file that says it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vouched: Vec<Vouched>,
    /// Loadable modules that the diff would change as well and that stay as they are, with `--built-in-only`, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unchanged_modules: Vec<String>,
}

/// What the author of an update says that no tool can see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vouched {
    /// What it is about: a rule, a type or a datum.
    pub about: String,
    /// Function, type, datum or member.
    pub subject: String,
    /// What is said of it.
    pub says: String,
    /// Why.
    pub reason: String,
}

/// A part of a diff that a bundle does not carry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Omitted {
    /// File of the diff, or translation unit.
    pub file: String,
    /// Rule that forbids it.
    pub rule: String,
    /// Why.
    pub message: String,
}

/// A replaced or new function in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFunction {
    /// Symbol name.
    pub name: String,
    /// Translation unit, relative to the source tree (`fs/proc/cmdline.c`).
    pub unit: String,
    /// Link address of the old function; absent for a new one.
    pub old_address: Option<u64>,
    /// Size of the old function in bytes; 0 for a new one.
    pub old_size: u64,
    /// Size of the new function in bytes.
    pub new_size: u64,
}

/// Old code that gives way without a jump of its own, because only replaced functions lead into it: the unlikely part of one,
/// or a copy that the compiler made for some callers. Who is inside it is inside old code.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OldCode {
    /// Link address.
    pub address: u64,
    /// Size in bytes.
    pub size: u64,
    /// Symbol name.
    pub name: String,
    /// Translation unit.
    pub unit: String,
}

/// A datum that the bundle brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestDatum {
    /// Symbol or section name.
    pub name: String,
    /// Translation unit.
    pub unit: String,
    /// Size in bytes.
    pub size: u64,
}

/// An object section that the bundle does not carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Section name in the compiled object (`.orc_unwind`).
    pub section: String,
    /// Translation unit.
    pub unit: String,
    /// What the guest goes without.
    pub consequence: String,
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
    pub hooks: Vec<crate::Hook>,
    /// Existing data that change, in order of `old_address`.
    pub changed: Vec<crate::DataPatch>,
    /// Objects on the heap that get a value for what is new in them, in order of `cache_address`, each cache once.
    pub objects: Vec<crate::ObjectPatch>,
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

/// A table about new code that the guest's kernel has to know.
///
/// Tables lie in `.data`, because the kernel sorts some of them and marks entries of others. Their fields are filled by
/// ordinary relocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Table {
    /// What its entries are.
    pub kind: TableKind,
    /// Byte offset in `.data`.
    pub offset: u32,
    /// Size in bytes; not 0.
    pub size: u32,
}

/// What the entries of a [`Table`] are, named by the section of an object that the kernel's loader takes them from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableKind {
    /// `__ex_table`: where execution goes on when an instruction faults. Not sorted.
    Exceptions,
    /// `__bug_table`: file, line and flags of `WARN` and `BUG`.
    Bugs,
    /// `__jump_table`: the sites of static keys. Not sorted.
    JumpLabels,
    /// `.orc_unwind_ip`: the instructions that the entries of `.orc_unwind` begin at. Not sorted.
    OrcIp,
    /// `.orc_unwind`: how to unwind the stack from there; as many entries as `.orc_unwind_ip` has.
    Orc,
    /// `__dyndbg`: descriptors of `pr_debug`.
    DynamicDebug,
    /// `_kprobe_blacklist`: functions in which no kprobe may be.
    Unprobed,
}

impl TableKind {
    /// Every kind, in order.
    pub const ALL: [Self; 7] =
        [Self::Exceptions, Self::Bugs, Self::JumpLabels, Self::OrcIp, Self::Orc, Self::DynamicDebug, Self::Unprobed];

    /// The section of an object that holds such entries.
    pub fn section(self) -> &'static str {
        match self {
            Self::Exceptions => "__ex_table",
            Self::Bugs => "__bug_table",
            Self::JumpLabels => "__jump_table",
            Self::OrcIp => ".orc_unwind_ip",
            Self::Orc => ".orc_unwind",
            Self::DynamicDebug => "__dyndbg",
            Self::Unprobed => "_kprobe_blacklist",
        }
    }

    /// The kernel's type of an entry, whose size the guest profile gives; none where an entry is one number, as wide as it is
    /// aligned.
    pub fn entry_type(self) -> Option<&'static str> {
        match self {
            Self::Exceptions => Some("exception_table_entry"),
            Self::Bugs => Some("bug_entry"),
            Self::JumpLabels => Some("jump_entry"),
            Self::OrcIp | Self::Unprobed => None,
            Self::Orc => Some("orc_entry"),
            Self::DynamicDebug => Some("_ddebug"),
        }
    }

    /// Whether new code must not run before the kernel knows the table. Without the others it is traced less well, or, where
    /// the kernel does not know the code either, not probed at all.
    pub fn is_required(self) -> bool {
        match self {
            Self::Exceptions | Self::Bugs | Self::JumpLabels | Self::DynamicDebug => true,
            Self::OrcIp | Self::Orc | Self::Unprobed => false,
        }
    }

    /// Alignment of the table in bytes: that of the widest field of an entry.
    pub fn align(self) -> u32 {
        match self {
            Self::Exceptions | Self::Bugs | Self::OrcIp => 4,
            Self::JumpLabels | Self::DynamicDebug | Self::Unprobed => 8,
            Self::Orc => 2,
        }
    }
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

/// A relocation of the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloc {
    /// Section that holds the field; never `Bss`.
    pub section: SectionKind,
    /// Byte offset of the field.
    pub offset: u32,
    /// How it is computed.
    pub kind: RelocKind,
    /// Index into [`Payload::symbols`].
    pub symbol: u32,
    /// Addend.
    pub addend: i64,
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

/// An old function and what redirects it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionPatch {
    /// Symbol name.
    pub name: String,
    /// Translation unit.
    pub unit: String,
    /// Link address of the old function.
    pub old_address: u64,
    /// Offset of the jump in the old function: at its entry (4 behind `endbr64`, else 0), or 5 more, behind ftrace's no-op.
    pub jump_offset: u8,
    /// The whole old function as it stands in `vmlinux`.
    pub expected: Vec<u8>,
    /// Places of it that the kernel may have rewritten since, sorted by offset; all others must be equal.
    pub sites: Vec<BootSite>,
    /// Offset of the new function in `.text`.
    pub new_offset: u32,
    /// Size of the new function in bytes.
    pub new_size: u32,
    /// Return points at which a frame of the old function can go on in the new one, and the reverse; sorted by `old`.
    pub returns: Vec<crate::ReturnPair>,
}

/// A place of an old function that a booted kernel may have rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootSite {
    /// Byte offset in the function.
    pub offset: u32,
    /// Length in bytes.
    pub len: u8,
    /// Who rewrites it and to what.
    pub kind: BootSiteKind,
}

/// Who rewrites a place of old code, and to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootSiteKind {
    /// An address field that KASLR moves by the slide (`+slide`, 4 bytes).
    Slide32,
    /// The same, 8 bytes.
    Slide64,
    /// A PC-relative field that names a per-CPU symbol (`-slide`, 4 bytes).
    SlideNegative32,
    /// `call __fentry__`: a no-op while nobody traces.
    Ftrace,
    /// `.altinstructions`: one of these contents, or the original; compared up to the choice of no-ops.
    Alternative {
        /// The possible contents as they would stand at the link address, shorter ones padded with no-ops.
        forms: Vec<Vec<u8>>,
    },
    /// `.parainstructions`: a direct call of the operation in this member of `pv_ops` (link address).
    Paravirt {
        /// Link address of the member.
        slot: u64,
    },
    /// `.retpoline_sites`: a call or jump to the thunk of a register, or an indirect one, with or without `lfence`.
    Retpoline,
    /// `.return_sites`: a jump to the return thunk in use, or `ret` padded with `int3`.
    Return,
    /// `.static_call_sites`: a call or tail jump to the key's present target, a no-op, or its trampoline.
    StaticCall {
        /// Link address of the `struct static_call_key`.
        key: u64,
    },
    /// `__jump_table`: a no-op or a jump to `target`.
    JumpLabel {
        /// Link address of the target.
        target: u64,
    },
    /// `.smp_locks`: `lock`, or a `ds` prefix on a kernel that runs on one processor.
    SmpLock,
    /// A field of a module that its loader filled (`arch/x86/kernel/module.c`, `apply_relocate_add`).
    Relocation {
        /// How it is computed.
        kind: RelocKind,
        /// The symbol's place; never in the payload.
        place: Place,
        /// Addend.
        addend: i64,
    },
    /// `runtime_ptr_VARIABLE`, `runtime_shift_VARIABLE`: an immediate of 8 or 1 bytes that boot has set to the variable's value.
    Constant {
        /// Link address of the variable.
        variable: u64,
    },
}
