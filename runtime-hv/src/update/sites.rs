//! Is the old function, as it stands in the guest, the one that the bundle was made against?
//!
//! Comes in: the function of the bundle, the live bytes and the guest's boot-time choices. Decided: whether every byte is
//! either equal or a permitted result of what the kernel itself patches (`arch/x86/kernel/alternative.c`). Goes out:
//! nothing, or the first place that is not accounted for.

use super::code::{CALL, INT3, JMP, NOP2, NOP5, RET, branch_target, decode, equal_up_to_nops, fill_nops};
use crate::guest::facts::Facts;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic, OpKind, Register};
use lpk_format::{BootSite, BootSiteKind, FunctionPatch, Place, hex};

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
    /// A kprobe where the jump would be, on or off, or one that the kernel has made a jump of.
    #[error("`{function}`+{offset:#x} has a kprobe, which runs a copy of the old instruction once it is on")]
    Registered {
        /// Function.
        function: String,
        /// Byte offset.
        offset: usize,
    },
    /// Anything else.
    #[error(
        "`{function}`+{offset:#x} differs from the kernel that the bundle was made for: expected {expected}, found {found} ({place})"
    )]
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
pub fn compare(
    patch: &FunctionPatch,
    live: &[u8],
    facts: &Facts,
    thunk_at: &dyn Fn(u64) -> Option<[u8; 4]>,
) -> Result<(), SiteError> {
    let base = facts.live(patch.old_address);
    let linked = relocated(patch, live, base, facts);
    let mut model = linked.clone();
    let range = |site: &BootSite| site.offset as usize..(site.offset as usize).saturating_add(usize::from(site.len));
    let is_alternative = |site: &&BootSite| matches!(site.kind, BootSiteKind::Alternative { .. });

    // A place that is not accepted counts as different even where its bytes are those of the link: an address that KASLR
    // did not move, a call of ftrace that was not made a no-op.
    let mut rejected: Vec<&BootSite> = Vec::new();
    let is_relocation = |site: &&BootSite| matches!(site.kind, BootSiteKind::Relocation { .. });
    for site in patch.sites.iter().filter(|site| !is_alternative(site) && !is_relocation(site)) {
        let (Some(expected), Some(found)) = (linked.get(range(site)), live.get(range(site))) else { continue };
        let at = base.wrapping_add(u64::from(site.offset));
        if accepts(&site.kind, expected, found, at, facts, thunk_at) {
            model[range(site)].copy_from_slice(found);
        } else {
            rejected.push(site);
        }
    }
    let mut alternatives: Vec<&BootSite> = patch.sites.iter().filter(is_alternative).collect();
    alternatives.sort_by_key(|site| site.len);
    for site in alternatives {
        let BootSiteKind::Alternative { forms } = &site.kind else { continue };
        let (Some(original), Some(found)) = (model.get(range(site)), live.get(range(site))) else { continue };
        let at = base.wrapping_add(u64::from(site.offset));
        let same = |form: &[u8]| equal_up_to_nops(form, found, at);
        // Branches of a form are as at the link address. In the image both sides move by the slide, so the bytes stay.
        let link = patch.old_address.wrapping_add(u64::from(site.offset));
        let moved = |form: &Vec<u8>| match &facts.module {
            Some(_) => moved_form(form, link, at, facts),
            None => Some(form.clone()),
        };
        if forms.iter().filter_map(moved).any(|form| same(&form)) {
            // Where a form was taken, the places in the original are gone.
            rejected.retain(|inner| inner.offset < site.offset || range(inner).end > range(site).end);
            model[range(site)].copy_from_slice(found);
        } else if same(original) {
            model[range(site)].copy_from_slice(found);
        }
    }

    let different = model.iter().zip(live).position(|(a, b)| a != b);
    let Some(offset) = different.into_iter().chain(rejected.iter().map(|site| site.offset as usize)).min() else {
        return Ok(());
    };
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

/// The old function as a loader fills its fields: the places that a running kernel patches are as they were before that.
fn relocated(patch: &FunctionPatch, live: &[u8], base: u64, facts: &Facts) -> Vec<u8> {
    let mut bytes = patch.expected.clone();
    for site in &patch.sites {
        let BootSiteKind::Relocation { kind, place, addend } = site.kind else { continue };
        let start = site.offset as usize;
        let field = start..start.saturating_add(usize::from(kind.size()));
        let symbol = match place {
            Place::Kernel(link) if facts.module.as_ref().is_some_and(|module| module.is_empty_datum(link)) => {
                // The address of a datum without contents: nothing depends on it, and nobody knows it.
                if let (Some(into), Some(found)) = (bytes.get_mut(field.clone()), live.get(field)) {
                    into.copy_from_slice(found);
                }
                continue;
            }
            Place::Kernel(link) => facts.live(link),
            Place::Absolute(value) => value,
            Place::Payload { .. } => continue, // refused by the format
        };
        let value = symbol.wrapping_add_signed(addend);
        let at = base.wrapping_add(u64::from(site.offset));
        let value = if kind.is_pc_relative() { value.wrapping_sub(at) } else { value };
        if let Some(into) = bytes.get_mut(field) {
            let length = into.len();
            into.copy_from_slice(&value.to_le_bytes()[..length]);
        }
    }
    bytes
}

/// A form of an alternative in a module, moved with what it refers to; `None` when that is not possible.
fn moved_form(form: &[u8], link: u64, at: u64, facts: &Facts) -> Option<Vec<u8>> {
    let mut moved = form.to_vec();
    let mut decoder = Decoder::with_ip(64, form, link, DecoderOptions::NONE);
    let inside = link..link.wrapping_add(form.len() as u64 + 1);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return None;
        }
        let offsets = decoder.get_constant_offsets(&instruction);
        let near = instruction.op_count() == 1 && instruction.op0_kind() == OpKind::NearBranch64;
        let (target, field, size) = if near {
            (instruction.near_branch_target(), offsets.immediate_offset(), offsets.immediate_size())
        } else if instruction.is_ip_rel_memory_operand() {
            (instruction.ip_rel_memory_address(), offsets.displacement_offset(), offsets.displacement_size())
        } else {
            continue;
        };
        if inside.contains(&target) {
            continue;
        }
        let start = (instruction.ip() - link) as usize + field;
        let next = at.wrapping_add(instruction.next_ip() - link);
        let distance = i32::try_from(facts.live(target).wrapping_sub(next) as i64).ok().filter(|_| size == 4)?;
        moved.get_mut(start..start + 4)?.copy_from_slice(&distance.to_le_bytes());
    }
    Some(moved)
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
        BootSiteKind::Constant { .. } => "a constant that boot sets",
        BootSiteKind::Relocation { .. } => "an address that the module's loader filled",
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
        BootSiteKind::Constant { variable } => {
            facts.words.get(variable).is_some_and(|value| value.to_le_bytes().starts_with(found))
        }
        BootSiteKind::Relocation { .. } => true, // compared with the plain code around it
        BootSiteKind::Return => is_return(found, at, facts) || found == expected,
        BootSiteKind::JumpLabel { target } => {
            let target = facts.live(*target);
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
    let conditional =
        |bytes: &[u8]| matches!(bytes, [0x0f, condition @ 0x80..=0x8f, ..] if expected.get(1) == Some(condition));
    match expected {
        [CALL, ..] => {
            // `cs cs cs xor %eax, %eax` stands for a function that returns 0.
            let zero =
                found == [0x2e, 0x2e, 0x2e, 0x31, 0xc0] && facts.static_call_return0.is_none_or(|f| f == function);
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
fn indirect(expected: &[u8], found: &[u8], at: u64, facts: &Facts, thunk_at: &dyn Fn(u64) -> Option<[u8; 4]>) -> bool {
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

#[cfg(test)]
mod tests {
    use super::super::code::branch;
    use super::*;
    use crate::guest::modules::Loaded;
    use BootSiteKind as Kind;
    use lpk_format::RelocKind;

    const SLIDE: u64 = 0x20_0000;
    const LINK: u64 = 0xffff_ffff_8100_1000;
    const THUNK: u64 = 0xffff_ffff_8120_0600;
    const FUNCTION: u64 = 0xffff_ffff_8120_0a00;
    const ARRAY: u64 = 0xffff_ffff_8120_2000;
    const KEY: u64 = 0xffff_ffff_8180_0000;

    fn facts() -> Facts {
        Facts {
            slide: SLIDE,
            return_thunk: Some(THUNK),
            words: [(KEY, FUNCTION), (KEY + 8, 0), (KEY + 16, FUNCTION + 0x10)].into(),
            paravirt_nop: Some(FUNCTION + 0x10),
            thunk_array: Some(ARRAY),
            ..Facts::default()
        }
    }

    fn try_site(kind: Kind, expected: &[u8], live: &[u8]) -> Result<(), SiteError> {
        let site = BootSite { offset: 2, len: expected.len() as u8, kind };
        try_sites(vec![site], expected, live)
    }

    fn try_sites(sites: Vec<BootSite>, expected: &[u8], live: &[u8]) -> Result<(), SiteError> {
        let wrap = |inner: &[u8]| [&[0x31, 0xc0], inner, &[0x5b]].concat();
        let patch = FunctionPatch {
            name: "f".into(),
            unit: "f.c".into(),
            old_address: LINK - 2,
            jump_offset: 0,
            expected: wrap(expected),
            sites,
            new_offset: 0,
            new_size: 0,
            returns: Vec::new(),
        };
        let thunk_at = |at: u64| match at {
            0xffff_ffff_8120_0b00 => Some([0xff, 0xe0, 0xcc, 0xcc]),
            0xffff_ffff_8120_0b40 => Some([0x41, 0xff, 0xe3, 0xcc]),
            _ => None,
        };
        compare(&patch, &wrap(live), &facts(), &thunk_at)
    }

    fn to(opcode: u8, target: u64) -> Vec<u8> {
        branch(opcode, LINK + SLIDE, target).expect("near").to_vec()
    }

    #[test]
    fn every_kind_of_place_accepts_what_the_kernel_writes_and_nothing_else() {
        let call = to(CALL, FUNCTION + 0x100);
        let thunk = |register: u64| to(CALL, ARRAY + 32 * register);
        let indirect_jmp = to(JMP, ARRAY + 32 * 3);
        let address = 0x8100_2000_u32;
        let moved = (address + SLIDE as u32).to_le_bytes();
        let pv = [&[0xff, 0x14, 0x25, 1, 2, 3, 4][..6], &[0x90]].concat();
        let cases: Vec<(Kind, Vec<u8>, Vec<u8>, bool)> = vec![
            (Kind::Slide32, address.to_le_bytes().into(), moved.into(), true),
            (Kind::Slide32, address.to_le_bytes().into(), address.to_le_bytes().into(), false),
            (Kind::Slide64, (LINK).to_le_bytes().into(), (LINK + SLIDE).to_le_bytes().into(), true),
            (Kind::Slide64, (LINK).to_le_bytes().into(), (LINK + SLIDE + 1).to_le_bytes().into(), false),
            (Kind::SlideNegative32, moved.into(), address.to_le_bytes().into(), true),
            (Kind::SlideNegative32, moved.into(), moved.into(), false),
            (Kind::Ftrace, call.clone(), NOP5.into(), true),
            (Kind::Ftrace, call.clone(), to(CALL, FUNCTION), false),
            (Kind::Paravirt { slot: KEY }, pv.clone(), [to(CALL, FUNCTION), vec![0x66, 0x90]].concat(), true),
            (Kind::Paravirt { slot: KEY }, pv.clone(), [to(CALL, FUNCTION + 1), vec![0x66, 0x90]].concat(), false),
            (Kind::Paravirt { slot: KEY }, pv.clone(), [to(CALL, FUNCTION), vec![0x31, 0xc0]].concat(), false),
            (Kind::Paravirt { slot: KEY + 16 }, pv.clone(), vec![0x0f, 0x1f, 0x80, 0, 0, 0, 0], true),
            (Kind::Paravirt { slot: KEY }, pv, vec![0x0f, 0x1f, 0x80, 0, 0, 0, 0], false),
            (Kind::Constant { variable: KEY }, vec![0; 8], FUNCTION.to_le_bytes().into(), true),
            (Kind::Constant { variable: KEY }, vec![0; 8], (FUNCTION + 1).to_le_bytes().into(), false),
            (Kind::Constant { variable: KEY }, vec![0; 8], vec![0; 8], false),
            (Kind::Constant { variable: KEY + 16 }, vec![12], vec![0x10], true),
            (Kind::Constant { variable: KEY + 16 }, vec![12], vec![12], false),
            (Kind::Constant { variable: KEY + 24 }, vec![12], vec![12], false),
            (Kind::Retpoline, thunk(0), thunk(0), true),
            (Kind::Retpoline, thunk(0), vec![0xff, 0xd0, 0x0f, 0x1f, 0x00], true),
            (Kind::Retpoline, thunk(11), vec![0x41, 0xff, 0xd3, 0x66, 0x90], true),
            (Kind::Retpoline, thunk(0), vec![0x0f, 0xae, 0xe8, 0xff, 0xd0], true),
            (Kind::Retpoline, indirect_jmp.clone(), vec![0xff, 0xe3, 0xcc, 0x66, 0x90], true),
            (Kind::Retpoline, thunk(0), vec![0xff, 0xd3, 0x0f, 0x1f, 0x00], false),
            (Kind::Retpoline, thunk(3), vec![0xff, 0xe3, 0xcc, 0x66, 0x90], false),
            (Kind::Retpoline, thunk(0), vec![0xff, 0xd0, 0x31, 0xc0, 0x90], false),
            (Kind::Retpoline, thunk(0), to(CALL, FUNCTION + 0x180), false),
            (Kind::Retpoline, thunk(0), to(CALL, 0xffff_ffff_8120_0b00), true),
            (Kind::Retpoline, thunk(11), to(CALL, 0xffff_ffff_8120_0b40), true),
            (Kind::Retpoline, thunk(3), to(CALL, 0xffff_ffff_8120_0b00), false),
            (Kind::Return, to(JMP, THUNK + 8), to(JMP, THUNK), true),
            (Kind::Return, to(JMP, THUNK + 8), vec![RET, INT3, INT3, INT3, INT3], true),
            (Kind::Return, to(JMP, THUNK + 8), vec![RET, 0x90, INT3, INT3, INT3], false),
            (Kind::Return, to(JMP, THUNK + 8), to(JMP, THUNK + 16), false),
            (Kind::StaticCall { key: KEY }, call.clone(), call.clone(), true),
            (Kind::StaticCall { key: KEY }, call.clone(), to(CALL, FUNCTION), true),
            (Kind::StaticCall { key: KEY }, call.clone(), to(JMP, FUNCTION), false),
            (Kind::StaticCall { key: KEY }, call.clone(), NOP5.into(), false),
            (Kind::StaticCall { key: KEY }, call.clone(), vec![0x2e, 0x2e, 0x2e, 0x31, 0xc0], true),
            (Kind::StaticCall { key: KEY + 8 }, call.clone(), NOP5.into(), true),
            (Kind::StaticCall { key: KEY + 8 }, to(JMP, FUNCTION + 1), to(JMP, THUNK), true),
            (Kind::StaticCall { key: KEY + 8 }, to(JMP, FUNCTION + 1), vec![RET, INT3, INT3, INT3, INT3], true),
            (Kind::StaticCall { key: KEY }, to(JMP, FUNCTION + 1), vec![RET, INT3, INT3, INT3, INT3], false),
            (Kind::JumpLabel { target: LINK + 0x40 }, NOP2.into(), vec![0xeb, 0x3e], true),
            (Kind::JumpLabel { target: LINK + 0x40 }, vec![0xeb, 0x3e], NOP2.into(), true),
            (Kind::JumpLabel { target: LINK + 0x40 }, NOP2.into(), vec![0xeb, 0x3f], false),
            (Kind::JumpLabel { target: LINK + 0x400 }, NOP5.into(), to(JMP, LINK + SLIDE + 0x400), true),
            (Kind::JumpLabel { target: LINK + 0x400 }, NOP5.into(), to(JMP, LINK + SLIDE + 0x401), false),
            (Kind::SmpLock, vec![0xf0], vec![0x3e], true),
            (Kind::SmpLock, vec![0xf0], vec![0x90], false),
        ];
        for (index, (kind, expected, live, good)) in cases.into_iter().enumerate() {
            let result = try_site(kind.clone(), &expected, &live);
            assert_eq!(result.is_ok(), good, "case {index}, {kind:?}: {result:?}");
        }
    }

    #[test]
    fn alternatives_are_compared_up_to_no_ops_with_what_is_inside_them() {
        let form = vec![0x0f, 0x01, 0xca, 0x90, 0x90, 0x90];
        let kind = || Kind::Alternative { forms: vec![form.clone()] };
        let original = [0xff, 0x15, 1, 2, 3, 4];
        let inner = BootSite { offset: 2, len: 6, kind: Kind::Paravirt { slot: KEY } };
        let sites = || vec![BootSite { offset: 2, len: 6, kind: kind() }, inner.clone()];
        try_sites(sites(), &original, &[0x0f, 0x01, 0xca, 0x0f, 0x1f, 0x00]).expect("the form");
        try_sites(sites(), &original, &[to(CALL, FUNCTION), vec![0x90]].concat()).expect("the original, patched");
        assert!(try_sites(sites(), &original, &[to(CALL, FUNCTION + 1), vec![0x90]].concat()).is_err());
        assert!(try_sites(sites(), &original, &[0x0f, 0x01, 0xcb, 0x0f, 0x1f, 0x00]).is_err(), "stac, not clac");
        // A long jump may have become a short one.
        let jump = Kind::Alternative { forms: vec![vec![0xe9, 0x10, 0, 0, 0]] };
        let original = [0x90, 0x90, 0x90, 0x90, 0x90];
        try_site(jump.clone(), &original, &[0xeb, 0x13, 0x0f, 0x1f, 0x00]).expect("the same target");
        try_site(jump.clone(), &original, &[0xeb, 0x13, 0xcc, 0xcc, 0xcc]).expect("filled up as since 6.3");
        assert!(try_site(jump.clone(), &original, &[0xeb, 0x12, 0xcc, 0xcc, 0xcc]).is_err());
        assert!(try_site(jump.clone(), &original, &[0xeb, 0x13, 0xcc, 0x66, 0x90]).is_err(), "a breakpoint");
        assert!(try_site(jump, &original, &[0xeb, 0x12, 0x0f, 0x1f, 0x00]).is_err());
    }

    #[test]
    fn a_module_is_compared_where_its_loader_has_put_it() {
        const MODULE: u64 = lpk_format::MODULE_SPACE.start;
        const LIVE: u64 = 0xffff_ffff_a123_4000;
        let module = Loaded::with_sections(&[
            (MODULE, 0x100, LIVE),
            (MODULE + 0x200, 0x40, LIVE + 0x5000),
            (MODULE + 0x300, 0, LIVE),
        ]);
        let facts = Facts { module: Some(std::sync::Arc::new(module)), ..facts() };
        let relocation = |offset, kind: RelocKind, place, addend| BootSite {
            offset,
            len: kind.size(),
            kind: Kind::Relocation { kind, place, addend },
        };
        // call kernel; mov data, %eax; mov $text, %rdi; lea empty(%rip); an alternative; padding
        let patch = FunctionPatch {
            name: "f".into(),
            unit: "f.c".into(),
            old_address: MODULE + 0x10,
            jump_offset: 0,
            expected: [
                &[CALL, 0, 0, 0, 0, 0x8b, 0x05, 0, 0, 0, 0, 0x48, 0xc7, 0xc7, 0, 0, 0, 0, 0x48, 0x8d, 0x05, 0, 0, 0, 0]
                    [..],
                &NOP5,
                &[0x5b],
            ]
            .concat(),
            sites: vec![
                relocation(1, RelocKind::Plt32, Place::Kernel(FUNCTION - SLIDE), -4),
                relocation(7, RelocKind::Pc32, Place::Kernel(MODULE + 0x200), 4),
                relocation(14, RelocKind::Abs32S, Place::Kernel(MODULE), 0x20),
                relocation(21, RelocKind::Pc32, Place::Kernel(MODULE + 0x300), -4),
                BootSite {
                    offset: 25,
                    len: 5,
                    kind: Kind::Alternative {
                        forms: vec![branch(CALL, MODULE + 0x10 + 25, FUNCTION - SLIDE).expect("near").to_vec()],
                    },
                },
            ],
            new_offset: 0,
            new_size: 0,
            returns: Vec::new(),
        };
        let base = LIVE + 0x10;
        let mut live = patch.expected.clone();
        let mut put = |at: usize, bytes: &[u8]| live[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &branch(CALL, base, FUNCTION).expect("near"));
        put(7, &((LIVE + 0x5000 + 4).wrapping_sub(base + 7) as u32).to_le_bytes());
        put(14, &((LIVE + 0x20) as u32).to_le_bytes());
        put(21, &[1, 2, 3, 4]); // the address of nothing
        let check = |live: &[u8]| compare(&patch, live, &facts, &|_| None);
        check(&live).expect("as the loader leaves it");
        let mut taken = live.clone();
        taken[25..30].copy_from_slice(&branch(CALL, base + 25, FUNCTION).expect("near"));
        check(&taken).expect("the alternative taken");
        taken[26] ^= 1;
        assert!(check(&taken).is_err(), "a call that leads elsewhere");
        for at in [1, 7, 14] {
            let mut other = live.clone();
            other[at] ^= 1;
            let error = check(&other).expect_err("another target").to_string();
            assert!(error.contains("loader"), "{error}");
        }
    }

    #[test]
    fn the_difference_is_named() {
        let error = try_site(Kind::SmpLock, &[0xf0], &[0xcc]).expect_err("a breakpoint");
        assert_eq!(error, SiteError::Breakpoint { function: "f".into(), offset: 2 });
        let text = try_sites(vec![], &[1, 2, 3], &[1, 9, 3]).expect_err("changed").to_string();
        assert!(text.contains("`f`+0x3") && text.contains("plain code"), "{text}");
    }
}
