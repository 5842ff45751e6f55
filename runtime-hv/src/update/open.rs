//! Both versions at once: an update that threads are still inside.
//!
//! Comes in: a stopped guest with threads inside old code, and later what the guest does. Decided: which frames are old, when each of
//! them is left, which copy of a datum has been written. Goes out: return addresses that lead to the service, copies in
//! line with each other, and the list of those who are still inside; when it is empty the update has ended.
//!
//! [`survey`] finds the threads (the paper's 3.2.2), and those among them that need not be waited for ([`Move`]); [`Open`] is what is known
//! while they are inside, and [`Attendant`] what happens meanwhile, each time with all processors stopped.

mod attend;
mod close;
mod later;
mod moves;
mod resume;
mod survey;

pub use attend::{Attendant, Open, OpenPart, Shared};
pub(crate) use close::LOOK_EVERY;
pub use moves::{Counterparts, Move, Way};
pub use survey::{Code, Frames, Survey, code, survey};

use crate::guest::arena::Write;
use serde::{Deserialize, Serialize};

/// A thread inside an old function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inside {
    /// Its `task_struct`.
    pub task: u64,
    /// Thread number.
    pub pid: u32,
    /// Name.
    pub comm: String,
    /// Which part of the update the function belongs to.
    pub part: usize,
    /// The function.
    pub function: String,
    /// Link address of the function.
    pub old_address: u64,
    /// Where it goes on inside, live.
    pub at: u64,
    /// Where its return address is kept.
    pub slot: u64,
    /// The same in physical memory.
    pub slot_pa: u64,
    /// The return address.
    pub original: u64,
    /// It is a thread of the kernel's own, inside a function of which some return points have counterparts: later looks may move it.
    #[serde(default)]
    pub may_move: bool,
    /// Of a thread of the kernel's own: why it was not moved, for people.
    #[serde(default)]
    pub why: Option<String>,
}

impl Inside {
    /// Whether it is the same frame of the same thread.
    #[must_use]
    pub fn is_frame_of(&self, other: &Inside) -> bool {
        (self.task, self.slot) == (other.task, other.slot)
    }

    /// Has it return to `trampoline` instead.
    #[must_use]
    pub fn divert(&self, trampoline: u64) -> Write {
        Write { pa: self.slot_pa, old: self.original.to_le_bytes().to_vec(), new: trampoline.to_le_bytes().to_vec() }
    }
}

/// Names who is inside, for people.
#[must_use]
pub fn who(threads: &[Inside]) -> String {
    let one = |thread: &Inside| format!("task {} ({}) is inside `{}`", thread.pid, thread.comm, thread.function);
    let mut names: Vec<String> = threads.iter().take(NAMED).map(one).collect();
    if threads.len() > NAMED {
        names.push(format!("and {} others", threads.len() - NAMED));
    }
    names.join(", ")
}

/// Threads that are named in a message.
const NAMED: usize = 4;

/// What has happened while an update was open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Frames that were inside when it began.
    pub frames: u64,
    /// Frames that have been left.
    pub left: u64,
    /// Writes to an old copy that were carried to the new one.
    pub to_new: u64,
    /// Writes to a new copy that were carried to the old one.
    pub to_old: u64,
    /// Writes to the same pages, but to something else.
    pub false_sharing: u64,
    /// Writes that the engine did not see at the moment they happened, but a moment later. They were carried then.
    #[serde(default)]
    pub late: u64,
    /// Writes that could not be carried: the value does not fit into the other version, or a hook failed.
    pub lost: u64,
}
