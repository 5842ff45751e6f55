//! Which instructions act: do something that others can see, or decide what runs.
//!
//! Comes in: a function, and what is live before each of its instructions. Decided: what only computes in registers and in a frame that nobody
//! else knows; everything else acts. Goes out: the instructions that act.

use super::Side;
use super::code::{Kind, Node};
use super::frame::{Location, Written};
use iced_x86::{ConditionCode, Mnemonic, OpKind};
use std::collections::BTreeSet;

/// Instructions that do nothing but to compute, unless they write memory; besides those with a condition.
const COMPUTES: [Mnemonic; 52] = [
    Mnemonic::Mov,
    Mnemonic::Movzx,
    Mnemonic::Movsx,
    Mnemonic::Movsxd,
    Mnemonic::Lea,
    Mnemonic::Push,
    Mnemonic::Pop,
    Mnemonic::Leave,
    Mnemonic::Add,
    Mnemonic::Adc,
    Mnemonic::Sub,
    Mnemonic::Sbb,
    Mnemonic::Inc,
    Mnemonic::Dec,
    Mnemonic::Neg,
    Mnemonic::Not,
    Mnemonic::And,
    Mnemonic::Andn,
    Mnemonic::Or,
    Mnemonic::Xor,
    Mnemonic::Cmp,
    Mnemonic::Test,
    Mnemonic::Mul,
    Mnemonic::Mulx,
    Mnemonic::Imul,
    Mnemonic::Div,
    Mnemonic::Idiv,
    Mnemonic::Shl,
    Mnemonic::Shr,
    Mnemonic::Sal,
    Mnemonic::Sar,
    Mnemonic::Shlx,
    Mnemonic::Shrx,
    Mnemonic::Sarx,
    Mnemonic::Shld,
    Mnemonic::Shrd,
    Mnemonic::Rol,
    Mnemonic::Ror,
    Mnemonic::Rorx,
    Mnemonic::Bt,
    Mnemonic::Bts,
    Mnemonic::Btr,
    Mnemonic::Btc,
    Mnemonic::Bsf,
    Mnemonic::Bsr,
    Mnemonic::Tzcnt,
    Mnemonic::Lzcnt,
    Mnemonic::Popcnt,
    Mnemonic::Bswap,
    Mnemonic::Cdq,
    Mnemonic::Cqo,
    Mnemonic::Cdqe,
];

/// The instructions of a function that act. `live`: what is read from each on.
pub(super) fn all(side: &Side, live: &[BTreeSet<Location>]) -> BTreeSet<usize> {
    let acts = |node: &usize| {
        let access = &side.frames.access[*node];
        let mut made = access.writes.iter().filter(|(_, written)| *written != Written::Undefined);
        let is_used = made.any(|(at, _)| side.graph.after(*node).any(|next| live[next].contains(at)));
        // What is read for nothing is read for the sake of reading: a register of a device.
        access.stores || !computes(&side.graph.nodes[*node]) || access.loads && !is_used
    };
    side.graph.reached.iter().copied().filter(acts).collect()
}

fn computes(node: &Node) -> bool {
    let instruction = &node.instruction;
    let is_known = COMPUTES.contains(&instruction.mnemonic()) || instruction.condition_code() != ConditionCode::None;
    let sets_segment = instruction.op_count() > 0
        && instruction.op0_kind() == OpKind::Register
        && instruction.op0_register().is_segment_register();
    // What may fault decides what runs.
    let decides = node.kind != Kind::Plain || node.steps[2].is_some();
    !decides && node.site.is_none() && is_known && !instruction.has_lock_prefix() && !sets_segment
}
