//! Rules of old code: the functions to redirect, their boot sites and their return points.
//!
//! Comes in: a [`Bundle`] whose payload is sound. Decided: whether every old function lies in the kernel image, has
//! room for the jump and a new function to jump to. Goes out: the first [`Problem`].

use std::cmp::Reverse;
use std::collections::HashSet;

use super::payload::{CALL_SIZE, CONSTANT_SIZES};
use super::{Image, Problem, limit};
use crate::{BootSite, BootSiteKind, Bundle, FunctionPatch, MODULE_SPACE, Place, ReturnPair, SectionKind, limits};

/// `endbr64` (Intel SDM volume 2, ENDBR64).
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

pub(super) fn check(bundle: &Bundle, image: Image<'_>) -> Result<(), Problem> {
    let text = bundle.payload.size_of(SectionKind::Text);
    let new_functions: HashSet<(u32, u64)> =
        bundle.payload.functions().map(|(offset, symbol)| (offset, symbol.size)).collect();
    let mut follows = 0;
    for function in &bundle.functions {
        let name = || function.name.clone();
        let (address, size) = (function.old_address, function.expected.len() as u64);
        image.check("old function", address, size)?;
        if image.module.is_some() != MODULE_SPACE.contains(&address) {
            return Err(Problem::OutsidePart { name: name(), address });
        }
        if address < follows {
            return Err(Problem::FunctionOrder { name: name(), address });
        }
        follows = address + size;
        jump(function)?;
        let (offset, size) = (function.new_offset, function.new_size);
        if size == 0 || u64::from(offset) + u64::from(size) > u64::from(text) {
            return Err(Problem::NewRange { name: name(), offset, size, len: text });
        }
        if !offset.is_multiple_of(16) {
            return Err(Problem::NewAlignment { name: name(), offset });
        }
        if !new_functions.contains(&(offset, u64::from(size))) {
            return Err(Problem::NoSymbol { name: name(), offset, size });
        }
        sites(function, image)?;
        returns(function)?;
    }
    Ok(())
}

/// Return points lie behind an instruction of their function, and no two pairs share one.
fn returns(function: &FunctionPatch) -> Result<(), Problem> {
    limit("return points of one function", function.returns.len(), limits::RETURNS)?;
    let name = || function.name.clone();
    let (old_size, new_size) = (function.expected.len() as u64, function.new_size);
    let mut follows = 0;
    let mut taken = HashSet::new();
    for ReturnPair { old, new } in function.returns.iter().copied() {
        if old == 0 || u64::from(old) > old_size || !(1..=new_size).contains(&new) {
            return Err(Problem::ReturnRange { name: name(), old, new, old_size, new_size });
        }
        if old <= follows {
            return Err(Problem::ReturnOrder { name: name(), old });
        }
        if !taken.insert(new) {
            return Err(Problem::ReturnTwice { name: name(), new });
        }
        follows = old;
    }
    Ok(())
}

/// The jump is at the entry, behind `endbr64`; or behind ftrace's no-op there.
fn jump(function: &FunctionPatch) -> Result<(), Problem> {
    let entry = if function.expected.starts_with(&ENDBR64) { 4 } else { 0 };
    let traced = |site: &BootSite| site.offset == u32::from(entry) && site.kind == BootSiteKind::Ftrace;
    let found = function.jump_offset;
    if found != entry && !(found == entry + CALL_SIZE && function.sites.iter().any(traced)) {
        return Err(Problem::JumpOffset { name: function.name.clone(), found, expected: entry });
    }
    let (len, needed) = (function.expected.len(), usize::from(found + CALL_SIZE));
    if len < needed { Err(Problem::TooShort { name: function.name.clone(), len, needed }) } else { Ok(()) }
}

fn sites(function: &FunctionPatch, image: Image<'_>) -> Result<(), Problem> {
    limit("boot sites of one function", function.sites.len(), limits::SITES)?;
    let mut follows = 0;
    for (index, site) in function.sites.iter().enumerate() {
        let (name, offset, len) = (|| function.name.clone(), site.offset, site.len);
        if u64::from(offset) + u64::from(len) > function.expected.len() as u64 {
            return Err(Problem::SiteRange { name: name(), site: index, offset, len });
        }
        if offset < follows {
            return Err(Problem::SiteOrder { name: name(), site: index, offset });
        }
        follows = offset;
        let (min, max) = lengths(&site.kind);
        if !(min..=max).contains(&len) {
            return Err(Problem::SiteLength { name: name(), site: index, len, min, max });
        }
        match &site.kind {
            BootSiteKind::Alternative { forms } => self::forms(function, index, len, forms)?,
            BootSiteKind::Paravirt { slot } => image.check("slot of a paravirt site", *slot, 8)?,
            BootSiteKind::StaticCall { key } => image.check("key of a static call", *key, 8)?,
            BootSiteKind::JumpLabel { target } => image.check("target of a jump label", *target, 1)?,
            BootSiteKind::Constant { variable } => {
                if !CONSTANT_SIZES.contains(&len) {
                    return Err(Problem::ConstantSize { index, len });
                }
                image.check("variable of a constant", *variable, 8)?;
            }
            BootSiteKind::Relocation { place: Place::Kernel(address), .. } => {
                image.check("symbol of a relocation", *address, 0)?;
            }
            _ => {}
        }
        let of_image = matches!(
            site.kind,
            BootSiteKind::Slide32
                | BootSiteKind::Slide64
                | BootSiteKind::SlideNegative32
                | BootSiteKind::Constant { .. }
        );
        let relocation = matches!(site.kind, BootSiteKind::Relocation { .. });
        let payload = matches!(site.kind, BootSiteKind::Relocation { place: Place::Payload { .. }, .. });
        // The image is moved as a whole; a module is relocated field by field, and has no constants that boot sets.
        if (of_image && image.module.is_some()) || (relocation && image.module.is_none()) || payload {
            return Err(Problem::SiteOfOther { name: name(), site: index });
        }
    }
    nesting(function)
}

/// Lengths that a site of a kind may have.
fn lengths(kind: &BootSiteKind) -> (u8, u8) {
    match kind {
        BootSiteKind::Slide32 | BootSiteKind::SlideNegative32 => (4, 4),
        BootSiteKind::Slide64 => (8, 8),
        BootSiteKind::Ftrace => (CALL_SIZE, CALL_SIZE),
        BootSiteKind::Alternative { .. } => (1, u8::MAX),
        BootSiteKind::Paravirt { .. } => (CALL_SIZE, u8::MAX),
        // One instruction, with prefixes: 15 bytes at most (Intel SDM volume 2, 2.3.11).
        BootSiteKind::Retpoline | BootSiteKind::Return => (CALL_SIZE, 15),
        // A call or jump, or a conditional jump with an opcode of two bytes.
        BootSiteKind::StaticCall { .. } => (CALL_SIZE, CALL_SIZE + 1),
        // arch_jump_entry_size, arch/x86/kernel/jump_label.c: a short or a near jump.
        BootSiteKind::JumpLabel { .. } => (2, CALL_SIZE),
        BootSiteKind::SmpLock => (1, 1),
        BootSiteKind::Constant { .. } => (CONSTANT_SIZES[0], CONSTANT_SIZES[1]),
        BootSiteKind::Relocation { kind, .. } => (kind.size(), kind.size()),
    }
}

fn forms(function: &FunctionPatch, site: usize, len: u8, forms: &[Vec<u8>]) -> Result<(), Problem> {
    limit("forms of one alternative", forms.len(), limits::FORMS)?;
    if forms.is_empty() {
        return Err(Problem::NoForms { name: function.name.clone(), site });
    }
    match forms.iter().find(|form| form.len() != usize::from(len)) {
        Some(form) => Err(Problem::FormLength { name: function.name.clone(), site, found: form.len(), len }),
        None => Ok(()),
    }
}

/// Two sites are apart, or one holds the other: the kernel puts alternatives around paravirt calls
/// (`PVOP_ALT_CALL`, `arch/x86/include/asm/paravirt_types.h`), and address fields lie inside both.
fn nesting(function: &FunctionPatch) -> Result<(), Problem> {
    let end = |site: &BootSite| u64::from(site.offset) + u64::from(site.len);
    let mut sites: Vec<_> = function.sites.iter().collect();
    sites.sort_by_key(|site| (site.offset, Reverse(site.len)));
    let mut open: Vec<u64> = Vec::new();
    for site in sites {
        while open.pop_if(|around| *around <= u64::from(site.offset)).is_some() {}
        if open.last().is_some_and(|around| *around < end(site)) {
            let (name, offset, len) = (function.name.clone(), site.offset, site.len);
            return Err(Problem::SiteOverlap { name, offset, len });
        }
        open.push(end(site));
    }
    Ok(())
}
