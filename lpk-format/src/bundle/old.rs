//! Old functions that give way.
//!
//! Comes in: nothing. Decided: nothing. Goes out: [`FunctionPatch`]: the old bytes, the places that boot may have rewritten
//! in them, and which new function is entered instead.

use super::{Place, RelocKind};
use crate::ReturnPair;

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
    pub returns: Vec<ReturnPair>,
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
