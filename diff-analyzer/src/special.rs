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
    /// Functions in a section with rules of its own (`.noinstr.text`, `.init.text`, …).
    SpecialCode(&'static str),
    /// Writable data.
    Data,
    /// Data that is not written after boot (`.rodata`, `.data..ro_after_init`).
    ReadOnly,
    /// Mergeable strings of characters of any width.
    Strings,
    /// Per-CPU data.
    PerCpu,
    /// A table whose entries belong to functions.
    Table(Table),
    /// How to unwind the stack from code (`.orc_unwind`, `.orc_unwind_ip`).
    Unwind,
    /// Never loaded, or only of use to the build (`.debug_*`, `.discard.*`).
    NotLoaded,
    /// Loaded, and no part of what a function means: (what a guest goes without).
    LeftOut(&'static str),
    /// Not known.
    Unknown,
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
}

impl Table {
    /// Name of the section in an object.
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
        }
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
            Self::Retpolines | Self::Returns | Self::SmpLocks | Self::Mcount => None,
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

/// Section of the descriptors of `pr_debug` (`struct _ddebug`): data that code refers to, and a table for the kernel.
pub const DYNAMIC_DEBUG: &str = "__dyndbg";

const TABLES: [Table; 10] = [
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
];

/// Sections of functions with rules of their own, by prefix, with the reason why they are not replaced.
const SPECIAL_CODE: [(&str, &str); 10] = [
    (".init.text", "code that ran at boot and is gone; a change of it takes effect at the next boot only"),
    (".exit.text", "code of a built-in unit that never runs"),
    (".head.text", "code that runs before the kernel is mapped"),
    (".noinstr.text", "code that must not be traced or instrumented; new code would lie outside that section"),
    (".entry.text", "entry code, which must be mapped while user page tables are in use"),
    (".kprobes.text", "code that must not be probed; new code would lie outside that section"),
    (".sched.text", "scheduler code, which the kernel recognises by its section (`in_sched_functions`)"),
    (".cpuidle.text", "idle code, which the kernel recognises by its section"),
    (".softirqentry.text", "interrupt code, which the kernel recognises by its section"),
    (".irqentry.text", "interrupt code, which the kernel recognises by its section"),
];

/// The role of a section of that name; `executable` says whether it has `SHF_EXECINSTR`.
pub fn role(name: &str, executable: bool) -> SectionRole {
    if let Some(table) = TABLES.into_iter().find(|table| table.section() == name) {
        return SectionRole::Table(table);
    }
    if let Some((_, why)) = SPECIAL_CODE.iter().find(|(prefix, _)| in_family(name, prefix)) {
        return SectionRole::SpecialCode(why);
    }
    if in_family(name, ".spinlock.text") {
        return SectionRole::SpecialCode("lock code, which the kernel recognises by its section");
    }
    if executable {
        let known = in_family(name, ".text") || in_family(name, ".ref.text") || name.starts_with(".altinstr_");
        return if known { SectionRole::Code } else { SectionRole::Unknown };
    }
    match name {
        _ if name.starts_with(".debug_")
            || name.starts_with(".discard.")
            || name.starts_with(".note.")
            || name.starts_with(".gnu")
            || name.starts_with(".llvm")
            || matches!(name, "" | ".comment" | ".symtab" | ".strtab" | ".shstrtab" | ".modinfo")
            || name.starts_with(".rela") =>
        {
            SectionRole::NotLoaded
        }
        ".orc_unwind" | ".orc_unwind_ip" => SectionRole::Unwind,
        // A hash of the entry's layout, which the module loader compares with the kernel's.
        ".orc_header" => SectionRole::NotLoaded,
        ".printk_index" => SectionRole::LeftOut("messages of the new code are not in the guest's printk index"),
        _ if name.starts_with("___ksymtab") || name.starts_with("___kcrctab") || name.starts_with("__ksymtab") => {
            SectionRole::LeftOut("modules loaded later link to the old function, whose entry leads to the new one")
        }
        ".export_symbol" => SectionRole::LeftOut("modules loaded later link to the old function"),
        _ if in_family(name, ".rodata") && is_strings(name) => SectionRole::Strings,
        _ if in_family(name, ".rodata") || in_family(name, ".data.rel.ro") => SectionRole::ReadOnly,
        _ if name.starts_with(".data..ro_after_init") => SectionRole::ReadOnly,
        _ if name.starts_with(".data..percpu") || name.starts_with(".bss..percpu") => SectionRole::PerCpu,
        _ if name.starts_with(".init.") || name.starts_with(".exit.") => SectionRole::Unknown,
        DYNAMIC_DEBUG => SectionRole::Data,
        _ if in_family(name, ".data") || in_family(name, ".bss") => SectionRole::Data,
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
            (".init.data", false, SectionRole::Unknown),
            (".discard.reachable", false, SectionRole::NotLoaded),
        ] {
            assert_eq!(role(name, executable), expected, "{name}");
        }
        assert!(matches!(role(".init.text", true), SectionRole::SpecialCode(_)));
        assert!(matches!(role(".noinstr.text", true), SectionRole::SpecialCode(_)));
    }
}
