//! Tables about new code that the guest's kernel has to know.
//!
//! Comes in: nothing. Decided: which of the kernel's tables a bundle can carry, and what happens without each. Goes out:
//! [`Table`] and [`TableKind`].

use serde::{Deserialize, Serialize};

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
