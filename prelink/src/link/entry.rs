//! What an old function does to its own entry.
//!
//! Comes in: an old function, its unlikely part and its boot sites. Decided: whether anything in them jumps to the bytes
//! that the jump to the new code will take. A thread inside the old function would run into the middle of that jump, or
//! start the new function half way through the old one. Goes out: the offset of such an instruction.

use super::Linker;
use diff_analyzer::correlate::without_number;
use diff_analyzer::pieces::{PieceIndex, PieceKind};
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use lpk_format::{BootSite, BootSiteKind};

impl Linker<'_, '_> {
    /// The first instruction of an old function that jumps into the first `taken` bytes of it.
    pub(super) fn jump_into_entry(
        &self,
        unit: usize,
        original: PieceIndex,
        address: u64,
        taken: usize,
        sites: &[BootSite],
    ) -> Option<u64> {
        let taken = address..address + taken as u64;
        let unit = &self.units[unit];
        let name = &unit.original.piece(original).name;
        let parts = unit.original.iter().filter(|(_, piece)| {
            let cold = piece.name.strip_suffix(".cold").or_else(|| without_number(&piece.name).strip_suffix(".cold"));
            piece.kind == PieceKind::Function && (cold == Some(name) || piece.name == *name)
        });
        for (part, piece) in parts {
            let Some(&start) = unit.proof.functions.get(&part) else { continue };
            let code = self.image.bytes(start, piece.size() as usize).unwrap_or_default();
            for instruction in Decoder::with_ip(64, code, start, DecoderOptions::NONE) {
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
