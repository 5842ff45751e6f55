//! The special sections of a kernel object: which exist, how long an entry is, and what becomes of it.
//!
//! Comes in: section names, entry sizes from the kernel's own DWARF. Decided: whether a section is a table whose entries
//! belong to functions, plain code or data, or nothing that reaches a running kernel. Goes out: [`SectionRole`]. A
//! section that nobody knows has the role [`SectionRole::Unknown`], and whatever refers to it is refused by that name.

use std::collections::BTreeMap;

/// What a section of a kernel object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectionRole {
    /// Functions that may run at any time.
    Code,
    /// Such functions that the kernel recognises by their section, for nothing that matters: (what it no longer sees).
    MarkedCode(&'static str),
    /// Functions in a section with rules of its own (`.noinstr.text`, …): (why they are not replaced).
    SpecialCode(&'static str),
    /// Functions that have run at boot or never run: (which of it).
    BootCode(&'static str),
    /// Writable data.
    Data,
    /// Data that is not written after boot (`.rodata`, `.data..ro_after_init`).
    ReadOnly,
    /// Mergeable strings of characters of any width.
    Strings,
    /// Per-CPU data.
    PerCpu,
    /// Data that only boot uses.
    BootData,
    /// A list that the kernel has read at boot, of which an entry may be missing: (what a guest goes without).
    List(&'static str),
    /// A table whose entries belong to functions.
    Table(Table),
    /// How to unwind the stack from code (`.orc_unwind`, `.orc_unwind_ip`).
    Unwind,
    /// A table of places in code that new code cannot do without, and that is not supported: (what it is for).
    Unsupported(&'static str),
    /// A list of functions in which no kprobe may be (`NOKPROBE_SYMBOL`).
    Unprobed,
    /// Never loaded, or only of use to the build (`.debug_*`, `.discard.*`).
    NotLoaded,
    /// Loaded, and no part of what a function means: (what a guest goes without).
    LeftOut(&'static str),
    /// Not known, or known to be beyond what can be done: see [`why_not`].
    Unknown,
}

impl SectionRole {
    /// Whether functions lie there.
    pub fn is_code(self) -> bool {
        matches!(self, Self::Code | Self::MarkedCode(_) | Self::SpecialCode(_) | Self::BootCode(_))
    }
}

/// Tables whose entries belong to functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// `.altinstructions`, `struct alt_instr`.
    Alternatives,
    /// `.parainstructions`, `struct paravirt_patch_site`.
    Paravirt,
    /// `.retpoline_sites`, 32-bit self-relative.
    Retpolines,
    /// `.return_sites`, 32-bit self-relative.
    Returns,
    /// `.static_call_sites`, `struct static_call_site`.
    StaticCalls,
    /// `.smp_locks`, 32-bit self-relative.
    SmpLocks,
    /// `__mcount_loc`, 64-bit addresses.
    Mcount,
    /// `__jump_table`, `struct jump_entry`.
    JumpLabels,
    /// `__bug_table`, `struct bug_entry`.
    Bugs,
    /// `__ex_table`, `struct exception_table_entry`.
    Exceptions,
    /// `runtime_ptr_VARIABLE`, 32-bit self-relative: immediates of 8 bytes that boot sets to a variable's value
    /// (arch/x86/include/asm/runtime-const.h, since Linux 6.11).
    ConstantPointers,
    /// `runtime_shift_VARIABLE`, the same for immediates of one byte.
    ConstantShifts,
}

impl Table {
    /// Name of the section in an object; of the tables of constants, the part before the variable's name.
    pub fn section(self) -> &'static str {
        match self {
            Self::Alternatives => ".altinstructions",
            Self::Paravirt => ".parainstructions",
            Self::Retpolines => ".retpoline_sites",
            Self::Returns => ".return_sites",
            Self::StaticCalls => ".static_call_sites",
            Self::SmpLocks => ".smp_locks",
            Self::Mcount => "__mcount_loc",
            Self::JumpLabels => "__jump_table",
            Self::Bugs => "__bug_table",
            Self::Exceptions => "__ex_table",
            Self::ConstantPointers => "runtime_ptr_",
            Self::ConstantShifts => "runtime_shift_",
        }
    }

    /// The variable whose value boot puts into the places of a table of constants, by the section's name.
    pub fn variable(self, section: &str) -> Option<&str> {
        let of_constants = matches!(self, Self::ConstantPointers | Self::ConstantShifts);
        section.strip_prefix(self.section()).filter(|name| of_constants && !name.is_empty())
    }

    /// Whether a section is such a table.
    fn is(self, section: &str) -> bool {
        self.section() == section || self.variable(section).is_some()
    }

    /// The kernel's type of an entry, where it has one.
    fn entry_type(self) -> Option<&'static str> {
        match self {
            Self::Alternatives => Some("alt_instr"),
            Self::Paravirt => Some("paravirt_patch_site"),
            Self::StaticCalls => Some("static_call_site"),
            Self::JumpLabels => Some("jump_entry"),
            Self::Bugs => Some("bug_entry"),
            Self::Exceptions => Some("exception_table_entry"),
            Self::Retpolines
            | Self::Returns
            | Self::SmpLocks
            | Self::Mcount
            | Self::ConstantPointers
            | Self::ConstantShifts => None,
        }
    }

    /// Size of an entry in bytes, from the sizes of types in the kernel's DWARF.
    ///
    /// `None` when the kernel has no such type.
    pub fn entry_size(self, type_sizes: &BTreeMap<String, u64>) -> Option<u64> {
        match (self, self.entry_type()) {
            (Self::Mcount, _) => Some(8),
            (_, None) => Some(4),
            (_, Some(name)) => type_sizes.get(name).copied().filter(|&size| size > 0),
        }
    }
}

/// Section of what an update written by hand says about itself (`support/lucos.h`); read, and never loaded.
pub const DECLARATIONS: &str = ".lucos.declare";

/// Section of the descriptors of `pr_debug` (`struct _ddebug`): data that code refers to, and a table for the kernel.
pub const DYNAMIC_DEBUG: &str = "__dyndbg";

const TABLES: [Table; 12] = [
    Table::Alternatives,
    Table::Paravirt,
    Table::Retpolines,
    Table::Returns,
    Table::StaticCalls,
    Table::SmpLocks,
    Table::Mcount,
    Table::JumpLabels,
    Table::Bugs,
    Table::Exceptions,
    Table::ConstantPointers,
    Table::ConstantShifts,
];

/// Section of code by prefix. The sections and what the kernel does with them: `include/asm-generic/vmlinux.lds.h`.
const CODE: [(&str, SectionRole); 13] = [
    (".init.text", SectionRole::BootCode("has run at boot and is gone")),
    (".meminit.text", SectionRole::BootCode("has run at boot and is gone")),
    (".exit.text", SectionRole::BootCode("never runs in a unit that is built in")),
    (".head.text", SectionRole::SpecialCode("code that runs before the kernel is mapped")),
    (
        ".noinstr.text",
        SectionRole::SpecialCode("code that must not be probed or traced, which the kernel tells by its section"),
    ),
    (".entry.text", SectionRole::SpecialCode("entry code, which must be mapped while user page tables are in use")),
    (".static_call.text", SectionRole::SpecialCode("a trampoline that the kernel itself rewrites")),
    // in_sched_functions, kernel/sched/core.c
    (
        ".sched.text",
        SectionRole::MarkedCode("wait channels and stacks of sleeping tasks show the new code instead of its caller"),
    ),
    // in_lock_functions, kernel/locking/spinlock.c
    (
        ".spinlock.text",
        SectionRole::MarkedCode("profiles count the time spent in the new code for it instead of its caller"),
    ),
    // filter_irq_stacks, kernel/stacktrace.c
    (
        ".irqentry.text",
        SectionRole::MarkedCode("stacks that the kernel keeps for debugging are not cut at the new code"),
    ),
    (
        ".softirqentry.text",
        SectionRole::MarkedCode("stacks that the kernel keeps for debugging are not cut at the new code"),
    ),
    // cpu_in_idle, kernel/sched/idle.c; prelink refuses it where the kernel has the section among .noinstr.text
    (".cpuidle.text", SectionRole::MarkedCode("backtraces of all processors show those that idle in the new code")),
    // Told from the rest by is_unprobed.
    (UNPROBED_CODE, SectionRole::Code),
];

/// Section of functions in which no kprobe may be (`within_kprobe_blacklist`, kernel/kprobes.c).
const UNPROBED_CODE: &str = ".kprobes.text";

/// Sections of data, tables and lists by prefix: the first that fits counts.
const DATA: [(&str, SectionRole); 25] = [
    (".orc_unwind", SectionRole::Unwind),
    (".orc_unwind_ip", SectionRole::Unwind),
    // A hash of the layout of ORC entries, which the module loader compares with the kernel's.
    (".orc_header", SectionRole::NotLoaded),
    // Where functions have room before them; the linker discards it on x86 (`PATCHABLE_DISCARDS`, include/asm-generic/vmlinux.lds.h).
    ("__patchable_function_entries", SectionRole::NotLoaded),
    (".printk_index", SectionRole::LeftOut("messages of the new code are not in the guest's printk index")),
    ("_kprobe_blacklist", SectionRole::Unprobed),
    ("_error_injection_whitelist", SectionRole::LeftOut("errors cannot be injected into the new code")),
    (".ibt_endbr_seal", SectionRole::LeftOut("the new code stays a valid target of indirect calls")),
    (
        ".call_sites",
        SectionRole::LeftOut("calls of the new code are not counted where the guest counts calls (retbleed=stuff)"),
    ),
    (".export_symbol", SectionRole::LeftOut("modules loaded later link to the old function")),
    (".kcfi_traps", SectionRole::Unsupported("checks of indirect calls (kCFI)")),
    (".cfi_sites", SectionRole::Unsupported("checks of indirect calls (FineIBT)")),
    ("__param", SectionRole::List("the new parameter has its default value and no file in /sys/module")),
    ("__modver", SectionRole::List("the version of the unit in /sys/module stays as it was")),
    (".init", SectionRole::BootData),
    (".meminit", SectionRole::BootData),
    (".exit", SectionRole::BootData),
    (".exitcall", SectionRole::BootData),
    ("__earlycon_table", SectionRole::BootData),
    (".apicdrivers", SectionRole::BootData),
    (".kunit_test_suites", SectionRole::BootData),
    (DYNAMIC_DEBUG, SectionRole::Data),
    (".data..ro_after_init", SectionRole::ReadOnly),
    (".ref.data", SectionRole::Data),
    (".ref.rodata", SectionRole::ReadOnly),
];

/// Why what lies in a section of no known role cannot be brought along, by prefix.
const REFUSED: [(&str, &str); 8] = [
    ("__tracepoint", "tracepoints are registered at boot: a new one cannot be added"),
    ("_ftrace_e", "trace events are registered at boot: a new one cannot be added"),
    ("__bpf_raw_tp_map", "tracepoints are registered at boot: a new one cannot be added"),
    ("__syscalls_metadata", "system calls are registered at boot: a new one cannot be added"),
    ("__trace_printk_fmt", "trace_printk needs a list of its formats"),
    (".pci_fixup", "quirks of PCI devices are a list of the kernel that cannot grow"),
    ("__dyndbg_classes", "classes of pr_debug are registered at boot: a new one cannot be added"),
    (".bss..", "its memory is set up at boot"),
];

/// Why a section of no known role is beyond what can be done, if the section is known.
pub fn why_not(name: &str) -> Option<&'static str> {
    REFUSED.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, why)| *why)
}

/// The role of a section of that name; `executable` says whether it has `SHF_EXECINSTR`.
pub fn role(name: &str, executable: bool) -> SectionRole {
    if let Some(table) = TABLES.into_iter().find(|table| table.is(name)) {
        return SectionRole::Table(table);
    }
    if let Some((_, role)) = CODE.iter().find(|(prefix, _)| in_family(name, prefix)) {
        return *role;
    }
    if executable {
        let known = in_family(name, ".text") || in_family(name, ".ref.text") || name.starts_with(".altinstr_");
        return if known { SectionRole::Code } else { SectionRole::Unknown };
    }
    if let Some((_, role)) = DATA.iter().find(|(prefix, _)| in_family(name, prefix)) {
        return *role;
    }
    match name {
        _ if name.starts_with(".debug_")
            || name.starts_with(".discard.")
            || name.starts_with(".note.")
            || name.starts_with(".gnu")
            || name.starts_with(".llvm")
            || matches!(
                name,
                "" | ".comment" | ".symtab" | ".strtab" | ".shstrtab" | ".modinfo" | ".discard" | DECLARATIONS
            )
            || name.starts_with(".rela") =>
        {
            SectionRole::NotLoaded
        }
        _ if name.starts_with("___ksymtab") || name.starts_with("___kcrctab") || name.starts_with("__ksymtab") => {
            SectionRole::LeftOut("modules loaded later link to the old function, whose entry leads to the new one")
        }
        _ if in_family(name, ".rodata") && is_strings(name) => SectionRole::Strings,
        _ if in_family(name, ".rodata") || in_family(name, ".data.rel.ro") => SectionRole::ReadOnly,
        _ if name.starts_with(".data..percpu") || name.starts_with(".bss..percpu") => SectionRole::PerCpu,
        // Memory shared with the host, and memory that is given out at boot.
        ".data..decrypted" | ".bss..decrypted" | ".bss..brk" => SectionRole::Unknown,
        _ if in_family(name, ".data") || in_family(name, ".bss") => SectionRole::Data,
        // `.initcall6.init`, `.con_initcall.init`, `.x86_cpu_dev.init`, …
        _ if name.ends_with(".init") => SectionRole::BootData,
        _ => SectionRole::Unknown,
    }
}

/// `.rodata.str1.8`, or `.rodata.FUNCTION.str1.8` with data sections: `.str`, width of a character, alignment.
fn is_strings(name: &str) -> bool {
    let mut parts = name.rsplit('.');
    let alignment = parts.next().is_some_and(|part| part.parse::<u64>().is_ok());
    alignment
        && parts.next().and_then(|part| part.strip_prefix("str")).is_some_and(|width| width.parse::<u64>().is_ok())
}

/// Whether functions of a section must not be probed.
pub fn is_unprobed(name: &str) -> bool {
    in_family(name, UNPROBED_CODE)
}

/// `name` is `family` itself or `family.something`.
fn in_family(name: &str, family: &str) -> bool {
    name.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_follow_names() {
        for (name, executable, expected) in [
            (".text.foo", true, SectionRole::Code),
            (".text", true, SectionRole::Code),
            (".text.unlikely.foo", true, SectionRole::Code),
            (".textual", true, SectionRole::Unknown),
            (".altinstr_replacement", true, SectionRole::Code),
            (".altinstructions", false, SectionRole::Table(Table::Alternatives)),
            (".rodata.str1.8", false, SectionRole::Strings),
            (".rodata.foo.str1.1", false, SectionRole::Strings),
            (".rodata.str2.2", false, SectionRole::Strings),
            (".rodata.foo", false, SectionRole::ReadOnly),
            (".rodata.str1.foo", false, SectionRole::ReadOnly),
            (".data..read_mostly", false, SectionRole::Data),
            (".data..percpu..shared_aligned", false, SectionRole::PerCpu),
            (".data..ro_after_init", false, SectionRole::ReadOnly),
            ("__tracepoints", false, SectionRole::Unknown),
            (".init.data", false, SectionRole::BootData),
            (".initcall6.init", false, SectionRole::BootData),
            (".data..once", false, SectionRole::Data),
            (".data..unlikely", false, SectionRole::Data),
            (".data.init", false, SectionRole::Data),
            (".bss..decrypted", false, SectionRole::Unknown),
            (".orc_unwind_ip", false, SectionRole::Unwind),
            ("runtime_ptr_USER_PTR_MAX", false, SectionRole::Table(Table::ConstantPointers)),
            ("runtime_shift_d_hash_shift", false, SectionRole::Table(Table::ConstantShifts)),
            ("__patchable_function_entries", false, SectionRole::NotLoaded),
            ("__dyndbg", false, SectionRole::Data),
            (".discard.reachable", false, SectionRole::NotLoaded),
        ] {
            assert_eq!(role(name, executable), expected, "{name}");
        }
        assert!(matches!(role(".init.text", true), SectionRole::BootCode(_)));
        assert!(matches!(role(".sched.text", true), SectionRole::MarkedCode(_)));
        assert!(matches!(role("__param", false), SectionRole::List(_)));
        assert!(why_not("__tracepoints_ptrs").is_some() && why_not("_ftrace_events").is_some());
        assert_eq!(why_not(".data..unheard_of"), None);
        assert!(matches!(role(".noinstr.text", true), SectionRole::SpecialCode(_)));
    }
}
