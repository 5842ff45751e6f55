//! Where the jump to the new code goes in an old function.
//!
//! Comes in: an old function as proved, its unlikely part and its boot sites. Decided: the offset of the jump. Behind
//! ftrace's no-op, if there is one and the bytes behind it are free: so the guest can go on tracing and probing the entry, whose bytes
//! its ftrace compares before every change (`arch/x86/kernel/ftrace.c`, `ftrace_verify_code`). Else at the entry. Free
//! means: nothing jumps there (a thread inside the old function would run into the middle of the jump, or start the new function
//! half way through the old one), and the guest never writes there. Goes out: the offset, or why there is none.

use super::Linker;
use crate::sites::BootTables;
use diff_analyzer::correlate::without_number;
use diff_analyzer::pieces::{Piece, PieceIndex, PieceKind};
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use lpk_format::{BootSite, BootSiteKind};
use std::ops::Range;

/// `jmp rel32` (Intel SDM vol. 2, JMP); ftrace's call and no-op are as long.
const JUMP_LEN: usize = 5;
/// `endbr64` (Intel SDM vol. 2, ENDBR64).
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// Why a jump has no place.
pub(super) enum NoPlace {
    /// The function ends before the jump would.
    TooShort,
    /// The instruction at this offset jumps to where the jump would be.
    Target(u64),
}

impl Linker<'_, '_> {
    /// Offset of the jump in an old function, whose code and unlikely part are `parts` of the image.
    pub(super) fn jump_offset(
        &self,
        tables: &BootTables<'_>,
        parts: &[Range<u64>],
        address: u64,
        code: &[u8],
        sites: &[BootSite],
    ) -> Result<usize, NoPlace> {
        let entry = if code.starts_with(&ENDBR64) { ENDBR64.len() } else { 0 };
        if code.len() < entry + JUMP_LEN {
            return Err(NoPlace::TooShort);
        }
        let traced = sites.iter().any(|site| site.offset as usize == entry && site.kind == BootSiteKind::Ftrace);
        if !traced {
            let target = self.jump_into(tables, parts, address, 0..entry + JUMP_LEN, sites);
            return target.map_or(Ok(entry), |at| Err(NoPlace::Target(at)));
        }
        let behind = entry + JUMP_LEN..entry + 2 * JUMP_LEN;
        let patched = |site: &BootSite| {
            let (start, end) = (site.offset as usize, site.offset as usize + usize::from(site.len));
            let live = matches!(
                site.kind,
                BootSiteKind::JumpLabel { .. } | BootSiteKind::StaticCall { .. } | BootSiteKind::SmpLock
            );
            live && start < behind.end && end > behind.start
        };
        let free = code.len() >= behind.end
            && !sites.iter().any(patched)
            && self.jump_into(tables, parts, address, behind.clone(), sites).is_none();
        // The traced entry is one instruction of five bytes: nothing can lead into it.
        Ok(if free { behind.start } else { entry })
    }

    /// Where a proved function of the original object and its unlikely part lie in the image.
    pub(super) fn parts(&self, (unit, original): (usize, PieceIndex)) -> Vec<Range<u64>> {
        let unit = &self.units[unit];
        let name = &unit.original.piece(original).name;
        let of_it = unit.original.iter().filter(|(_, piece)| {
            let cold = piece.name.strip_suffix(".cold").or_else(|| without_number(&piece.name).strip_suffix(".cold"));
            piece.kind == PieceKind::Function && (cold == Some(name) || piece.name == *name)
        });
        let place = |(part, piece): (PieceIndex, &Piece)| {
            let start = *unit.proof.functions.get(&part)?;
            Some(start..start + piece.size())
        };
        of_it.filter_map(place).collect()
    }

    /// The first instruction of an old function that jumps, or whose fault leads, into bytes of it.
    fn jump_into(
        &self,
        tables: &BootTables<'_>,
        parts: &[Range<u64>],
        address: u64,
        taken: Range<usize>,
        sites: &[BootSite],
    ) -> Option<u64> {
        let taken = address + taken.start as u64..address + taken.end as u64;
        if let Some(instruction) = tables.fault_leading_to(&taken) {
            return Some(instruction.wrapping_sub(address));
        }
        for part in parts {
            let code = self.image.bytes(part.start, (part.end - part.start) as usize).unwrap_or_default();
            for instruction in Decoder::with_ip(64, code, part.start, DecoderOptions::NONE) {
                let jump = matches!(
                    instruction.flow_control(),
                    FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend
                );
                if jump && taken.contains(&instruction.near_branch_target()) {
                    return Some(instruction.ip().wrapping_sub(address));
                }
            }
        }
        sites.iter().find_map(|site| match site.kind {
            BootSiteKind::JumpLabel { target } if taken.contains(&target) => Some(u64::from(site.offset)),
            _ => None,
        })
    }
}
