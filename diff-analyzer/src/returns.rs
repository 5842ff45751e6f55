//! Where a frame of an old function can go on in the new one.
//!
//! Comes in: a changed function in both objects. Decided: for each call of the old one, whether a frame that waits for it to return may
//! as well return into the new one, behind the same call. Goes out: a [`ReturnPoint`] for each call, with its counterpart or the reason
//! why it has none.
//!
//! A frame is its place on the stack, what lies there, and the registers that its function expects back from whom it calls. Debug
//! information tells where variables are, but not what the compiler keeps for itself; so the instructions decide.
//!
//! 1. `code`: both functions become graphs of instructions
//! 2. `frame`: where the stack pointer is at each of them, and what each reads and writes
//! 3. `pairing`: which instruction is which; where several pairings are possible, none counts
//! 4. `acting`, `places`: the change does something at one place only, which runs from its beginning. Otherwise the frame could do the end
//!    of something that it has not begun
//! 5. `values`: whatever either function still reads behind the call, register or byte of the stack, has been made by the same instructions,
//!    of inputs that have been made by the same instructions
//!
//! The unwinder must find the caller in the same way, too. All of this holds in both directions: undo moves frames back by the same pairs.
//!
//! What the instructions have computed meanwhile is the frame's own history, as the contents of memory are: it is kept and not repeated.

mod acting;
mod code;
mod frame;
mod pairing;
mod places;
mod values;

use crate::object_diff::ObjectDiff;
use crate::pieces::{PieceIndex, Pieces};
use code::{Graph, Kind};
use frame::{Frames, Location};
use std::collections::BTreeSet;

/// Data of which new code uses another copy than old code.
#[derive(Debug, Clone, Copy)]
pub struct Moved<'a> {
    /// Those of this unit, in the patched object.
    pub data: &'a BTreeSet<PieceIndex>,
    /// Names of those that other units define.
    pub names: &'a BTreeSet<String>,
}

/// A place that a call of an old function returns to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReturnPoint {
    /// Byte offset in the old function.
    pub old: u64,
    /// Byte offset of its counterpart in the new function.
    pub new: Result<u64, Why>,
}

/// Why a frame cannot go on in the new function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// No instruction is there.
    #[error("what is at +{0:#x} is no instruction")]
    NoCode(u64),
    /// A jump whose targets are not known.
    #[error("the jump at +{0:#x} may lead anywhere")]
    Jump(u64),
    /// Code that boot may have replaced by a jump.
    #[error("boot decides where the code at +{0:#x} leads to")]
    Choice(u64),
    /// Registers that are not followed.
    #[error("the instruction at +{0:#x} uses vector registers")]
    Vectors(u64),
    /// The stack pointer is not followed.
    #[error("where the stack is at +{0:#x} depends on the way there")]
    Stack(u64),
    /// The change is at several places.
    #[error("the change does something at {0} places, and a thread would go on between them")]
    Places(usize),
    /// The one place of the change is entered at several points.
    #[error("what has changed is entered at several points")]
    Ways,
    /// The change decides, in a loop, what is done.
    #[error("the change decides in a loop what is done, and may count on what it has done before")]
    Depends,
    /// The call is in the middle of the change.
    #[error("a thread would go on in the middle of what has changed")]
    Middle,
    /// Too many instructions.
    #[error("the function is too large")]
    Large,
    /// The call has no counterpart, or more than one.
    #[error("no single call of the new function is its counterpart")]
    NoCounterpart,
    /// The frames differ.
    #[error("the frame of the new function is another one there")]
    Frame,
    /// The kernel's unwinder would be told something else.
    #[error("the stack is unwound otherwise from the new function there")]
    Unwind,
    /// Something that is still used.
    #[error("{0} holds something else in the new function there")]
    Value(String),
}

/// One of the two functions.
struct Side {
    graph: Graph,
    frames: Frames,
}

/// The return points of a function, in order, each with its counterpart.
///
/// # Errors
/// [`Why`] when no frame at all can go on.
pub fn points(
    (original, old): (&Pieces<'_>, PieceIndex),
    (patched, new): (&Pieces<'_>, PieceIndex),
    diff: &ObjectDiff,
    moved: Moved<'_>,
) -> Result<Vec<ReturnPoint>, Why> {
    let side = |pieces, function| {
        let graph = code::read(pieces, function)?;
        let frames = frame::follow(&graph)?;
        Ok::<_, Why>(Side { graph, frames })
    };
    let (before, after) = (side(original, old)?, side(patched, new)?);
    if before.frames.escapes != after.frames.escapes {
        return Err(Why::Frame);
    }
    let comparison = diff.comparison(original, patched);
    let pairing = pairing::pair((&before, &after), &comparison, patched, moved);
    let values = values::Values::new(&before, &after, &pairing);
    let place = places::find(&before, &after, &pairing, &values)?;
    let unwind = |pieces: &Pieces<'_>, function: PieceIndex, next: u64| {
        let piece = pieces.piece(function);
        let rows = pieces.unwind(piece.section, piece.range.clone());
        // As the kernel does it: by the last byte of the call (`unwind_next_frame`, arch/x86/kernel/unwind_orc.c).
        rows.iter().rev().find(|(start, _)| *start < next).map(|(_, entry)| entry.to_vec())
    };
    let counterpart = |call: usize| {
        let to = pairing.new_of(call).ok_or(Why::NoCounterpart)?;
        let (here, there) = (&before.graph.nodes[call], &after.graph.nodes[to]);
        if there.part != 0 {
            return Err(Why::NoCounterpart);
        }
        if before.frames.depth(call) != after.frames.depth(to) {
            return Err(Why::Frame);
        }
        let ways = (unwind(original, old, here.next), unwind(patched, new, there.next));
        if ways.0.is_none() || ways.0 != ways.1 {
            return Err(Why::Unwind);
        }
        if !place.is_not_entered_behind(call, to) {
            return Err(Why::Middle);
        }
        values.are_same_behind(call, to).map(|()| there.next)
    };
    // A call that boot may replace returns from something else; and in the unlikely part nobody looks.
    let waits = |call: &usize| {
        let node = &before.graph.nodes[*call];
        matches!(node.kind, Kind::Call(..)) && node.part == 0 && node.site.is_none()
    };
    let calls = before.graph.reached.iter().copied().filter(waits);
    let point = |call: usize| ReturnPoint { old: before.graph.nodes[call].next, new: counterpart(call) };
    let mut points: Vec<ReturnPoint> = calls.map(point).collect();
    points.sort_by_key(|point| point.old);
    Ok(points)
}

/// How a place is called in a message.
fn spell(location: Location) -> String {
    match location {
        Location::Register(number) => {
            const NAMES: [&str; 16] = [
                "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
                "r15",
            ];
            format!("register {}", NAMES[usize::from(number) % 16])
        }
        Location::SecondResult => "register rdx".to_owned(),
        Location::Flags => "the flags register".to_owned(),
        Location::Stack(at) => format!("the stack {:#x} bytes below the return address", at.unsigned_abs()),
        Location::Shared => "what others know of the frame".to_owned(),
    }
}
