//! Is the old function, as it stands in the guest, the one that the bundle was made against?
//!
//! Comes in: the function of the bundle, the live bytes and the guest's boot-time choices. Decided: whether every byte is
//! either equal or a permitted result of what the kernel itself patches (`arch/x86/kernel/alternative.c`). Goes out:
//! nothing, or the first place that is not accounted for.

use super::code::{
    CALL, INT3, JMP, NOP2, NOP5, RET, branch_target, decode, equal_up_to_nops, fill_nops,
};
use crate::guest::facts::Facts;
use iced_x86::{FlowControl, Mnemonic, OpKind, Register};
use lpk_format::{BootSite, BootSiteKind, FunctionPatch, hex};

/// A place of an old function that is not as expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SiteError {
    /// The entry is used by ftrace, kprobes or BPF.
    #[error("`{function}`+{offset:#x} is traced or probed now: the ftrace place holds {found}")]
    Traced {
        /// Function.
        function: String,
        /// Byte offset.
        offset: usize,
        /// Bytes found.
        found: String,
    },
    /// A breakpoint stands in it.
    #[error("`{function}`+{offset:#x} holds a breakpoint: a kprobe, or the kernel is patching its code right now")]
    Breakpoint {
        /// Function.
        function: String,
        /// Byte offset.
        offset: usize,
    },
    /// Anything else.
    #[error("`{function}`+{offset:#x} differs from the kernel that the bundle was made for: expected {expected}, found {found} ({place})")]
    Differs {
        /// Function.
        function: String,
        /// Byte offset.
        offset: usize,
        /// Bytes expected.
        expected: String,
        /// Bytes found.
        found: String,
        /// What kind of place it is.
        place: &'static str,
    },
}

/// Compares a whole function.
///
/// `live` has the length of `patch.expected`. The places that the kernel patches are accepted one by one into a model of
/// the function, inner ones before the alternatives that contain them; what is left must be equal.
///
/// # Errors
/// [`SiteError`] for the first place that differs.
pub fn compare(patch: &FunctionPatch, live: &[u8], facts: &Facts, thunk_at: &dyn Fn(u64) -> Option<[u8; 4]>) -> Result<(), SiteError> {
    let mut model = patch.expected.clone();
    let base = patch.old_address.wrapping_add(facts.slide);
    let range = |site: &BootSite| site.offset as usize..(site.offset as usize).saturating_add(usize::from(site.len));
    let is_alternative = |site: &&BootSite| matches!(site.kind, BootSiteKind::Alternative { .. });

    for site in patch.sites.iter().filter(|site| !is_alternative(site)) {
        let (Some(expected), Some(found)) = (patch.expected.get(range(site)), live.get(range(site))) else { continue };
        let at = base.wrapping_add(u64::from(site.offset));
        if accepts(&site.kind, expected, found, at, facts, thunk_at) {
            model[range(site)].copy_from_slice(found);
        }
    }
    let mut alternatives: Vec<&BootSite> = patch.sites.iter().filter(is_alternative).collect();
    alternatives.sort_by_key(|site| site.len);
    for site in alternatives {
        let BootSiteKind::Alternative { forms } = &site.kind else { continue };
        let (Some(original), Some(found)) = (model.get(range(site)), live.get(range(site))) else { continue };
        // Branches of a form are as at the link address; both sides move by the slide, so the bytes stay.
        let link = patch.old_address.wrapping_add(u64::from(site.offset));
        let same = |form: &[u8]| equal_up_to_nops(form, found, link);
        if same(original) || forms.iter().any(|form| same(form)) {
            model[range(site)].copy_from_slice(found);
        }
    }

    let Some(offset) = model.iter().zip(live).position(|(a, b)| a != b) else { return Ok(()) };
    let function = patch.name.clone();
    let inside = patch.sites.iter().filter(|site| range(site).contains(&offset)).min_by_key(|site| site.len);
    let shown = inside.map_or(offset..(offset + 8).min(model.len()), range);
    let found = hex::encode(&live[shown.clone()]);
    let ftrace = inside.is_some_and(|site| site.kind == BootSiteKind::Ftrace);
    if ftrace {
        return Err(SiteError::Traced { function, offset: shown.start, found });
    }
    if live[offset] == INT3 {
        return Err(SiteError::Breakpoint { function, offset });
    }
    let place = inside.map_or("plain code", |site| kind_name(&site.kind));
    Err(SiteError::Differs { function, offset, expected: hex::encode(&model[shown]), found, place })
}

fn kind_name(kind: &BootSiteKind) -> &'static str {
    match kind {
        BootSiteKind::Slide32 | BootSiteKind::Slide64 | BootSiteKind::SlideNegative32 => "an address that KASLR moves",
        BootSiteKind::Ftrace => "an ftrace place",
        BootSiteKind::Alternative { .. } => "an alternative",
        BootSiteKind::Paravirt { .. } => "a paravirtual call",
        BootSiteKind::Retpoline => "an indirect branch",
        BootSiteKind::Return => "a return",
        BootSiteKind::StaticCall { .. } => "a static call",
        BootSiteKind::JumpLabel { .. } => "a jump label",
        BootSiteKind::SmpLock => "a lock prefix",
    }
}

/// Whether `found`, at live address `at`, is a permitted content of a place that held `expected` at link time.
fn accepts(
    kind: &BootSiteKind,
    expected: &[u8],
    found: &[u8],
    at: u64,
    facts: &Facts,
    thunk_at: &dyn Fn(u64) -> Option<[u8; 4]>,
) -> bool {
    match kind {
        BootSiteKind::Slide32 => moved::<4>(expected, found, |value| value.wrapping_add(facts.slide)),
        BootSiteKind::Slide64 => moved::<8>(expected, found, |value| value.wrapping_add(facts.slide)),
        BootSiteKind::SlideNegative32 => moved::<4>(expected, found, |value| value.wrapping_sub(facts.slide)),
        BootSiteKind::Ftrace => found == NOP5,
        BootSiteKind::Alternative { .. } => false, // compared after all others
        BootSiteKind::SmpLock => matches!(found, [0xf0 | 0x3e]),
        BootSiteKind::Return => is_return(found, at, facts) || found == expected,
        BootSiteKind::JumpLabel { target } => {
            let target = target.wrapping_add(facts.slide);
            match found {
                [0xeb, distance] => at.wrapping_add(2).wrapping_add(i64::from(*distance as i8) as u64) == target,
                [JMP, _, _, _, _] => branch_target(found, at) == Some(target),
                _ => found == NOP2 || found == NOP5,
            }
        }
        BootSiteKind::StaticCall { key } => {
            let Some(&function) = facts.words.get(key) else { return false };
            static_call(expected, found, at, function, facts)
        }
        BootSiteKind::Paravirt { slot } => {
            let Some(&operation) = facts.words.get(slot) else { return false };
            let target = if operation == 0 { facts.paravirt_bug } else { Some(operation) };
            let mut nops = found.to_vec();
            fill_nops(&mut nops);
            let called = found.first() == Some(&CALL)
                && target.is_some()
                && branch_target(found, at) == target
                && all_nops(&found[5..]);
            called || (facts.paravirt_nop == Some(operation) && found == nops)
        }
        BootSiteKind::Retpoline => found == expected || indirect(expected, found, at, facts, thunk_at),
    }
}

fn moved<const N: usize>(expected: &[u8], found: &[u8], change: impl Fn(u64) -> u64) -> bool {
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..N].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    expected.len() == N && found.len() == N && change(word(expected)).to_le_bytes()[..N] == *found
}

fn all_nops(bytes: &[u8]) -> bool {
    decode(bytes, 0).is_some_and(|instructions| instructions.iter().all(|i| i.mnemonic() == Mnemonic::Nop))
}

/// `patch_return`: a jump to the thunk in use, or `ret` padded with `int3`.
fn is_return(found: &[u8], at: u64, facts: &Facts) -> bool {
    match found {
        [RET, padding @ ..] => padding.iter().all(|&byte| byte == INT3),
        [JMP, ..] => facts.return_thunk.is_some() && branch_target(found, at) == facts.return_thunk,
        _ => false,
    }
}

/// `__static_call_transform` (`arch/x86/kernel/static_call.c`), or the trampoline as linked.
fn static_call(expected: &[u8], found: &[u8], at: u64, function: u64, facts: &Facts) -> bool {
    if found == expected {
        return true;
    }
    let conditional = |bytes: &[u8]| matches!(bytes, [0x0f, condition @ 0x80..=0x8f, ..] if expected.get(1) == Some(condition));
    match expected {
        [CALL, ..] => {
            // `cs cs cs xor %eax, %eax` stands for a function that returns 0.
            let zero = found == [0x2e, 0x2e, 0x2e, 0x31, 0xc0] && facts.static_call_return0.is_none_or(|f| f == function);
            (function == 0 && found == NOP5)
                || (found.first() == Some(&CALL) && branch_target(found, at) == Some(function))
                || zero
        }
        [JMP, ..] => {
            (function == 0 && is_return(found, at, facts))
                || (found.first() == Some(&JMP) && branch_target(found, at) == Some(function))
        }
        [0x0f, 0x80..=0x8f, ..] => conditional(found) && branch_target(found, at) == Some(function),
        _ => false,
    }
}

/// `patch_retpoline`: `[lfence] call/jmp *%reg` padded, or a call or jump to an ITS thunk of the register.
fn indirect(
    expected: &[u8],
    found: &[u8],
    at: u64,
    facts: &Facts,
    thunk_at: &dyn Fn(u64) -> Option<[u8; 4]>,
) -> bool {
    // The distance between branch and thunk array does not move with the slide.
    let Some(target) = branch_target(expected, at) else { return false };
    // `RETPOLINE_THUNK_SIZE` is 32 (`arch/x86/include/asm/nospec-branch.h`).
    let register = facts.thunk_array.map(|array| target.wrapping_sub(array) / 32);
    let call = expected.iter().find(|&&byte| byte != 0x2e) == Some(&CALL);
    if let Some(thunk) = branch_target(found, at) {
        let number = match thunk_at(thunk) {
            Some([0xff, modrm @ 0xe0..=0xe7, ..]) => u64::from(modrm - 0xe0),
            Some([0x41, 0xff, modrm @ 0xe0..=0xe7, _]) => u64::from(modrm - 0xe0) + 8,
            _ => return false,
        };
        let opcode = |bytes: &[u8]| bytes.iter().copied().find(|&byte| byte != 0x2e);
        return register == Some(number) && opcode(expected) == opcode(found);
    }
    let Some(instructions) = decode(found, at) else { return false };
    let mut branches = 0;
    for instruction in &instructions {
        let padding = matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3);
        let fence = branches == 0 && instruction.mnemonic() == Mnemonic::Lfence;
        let flow = if call { FlowControl::IndirectCall } else { FlowControl::IndirectBranch };
        if instruction.flow_control() == flow && instruction.op0_kind() == OpKind::Register {
            let number = (instruction.op0_register() as u32).wrapping_sub(Register::RAX as u32);
            if register.is_some_and(|wanted| wanted != u64::from(number)) {
                return false;
            }
            branches += 1;
        } else if !padding && !fence {
            return false;
        }
    }
    branches == 1
}
