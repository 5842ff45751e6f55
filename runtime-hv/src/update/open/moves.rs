//! Kernel threads that wait inside code that is left, and go on in the other version.
//!
//! Comes in: a frame inside, and the bundle's pairs of return points. Decided: whether what the frame waits for may return to the
//! counterpart of where it would have returned to: the bundle has one, the thread is one of the kernel's own, nobody else has the
//! return address, no hook of the author has to be called when it leaves, and the operator has not asked to leave it there. Goes
//! out: a [`Move`], or why not.
//!
//! A program's thread leaves the kernel sooner or later; a kernel thread in its main loop never does.

use crate::guest::Kernel;
use crate::guest::arena::Write;
use crate::guest::tasks::Task;
use crate::protocol::MovedInfo;
use crate::unwind::Frame;
use lpk_format::{Bundle, FunctionPatch, Hook, HookKind};
use std::collections::BTreeMap;

/// A frame that goes on in the other version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The `task_struct` of its thread.
    pub task: u64,
    /// Thread number.
    pub pid: u32,
    /// Name.
    pub comm: String,
    /// Name of the function.
    pub function: String,
    /// Where its return address is kept, in physical memory.
    pub slot_pa: u64,
    /// Where it would have gone on, live.
    pub from: u64,
    /// Where it goes on, live.
    pub to: u64,
}

impl Move {
    /// What has it go on there.
    #[must_use]
    pub fn write(&self) -> Write {
        Write { pa: self.slot_pa, old: self.from.to_le_bytes().to_vec(), new: self.to.to_le_bytes().to_vec() }
    }

    /// What is shown of it.
    #[must_use]
    pub fn info(&self) -> MovedInfo {
        MovedInfo { pid: self.pid, name: self.comm.clone(), function: self.function.clone() }
    }
}

/// Where frames of a function can go on in the other version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counterparts {
    /// Live return addresses, and their counterparts.
    pairs: BTreeMap<u64, u64>,
    /// Why nobody is moved all the same, for people.
    barred: Option<&'static str>,
    /// They are inside of the new code.
    undo: bool,
}

/// Which way code of a part is left.
#[derive(Debug, Clone, Copy)]
pub struct Way<'a> {
    /// The part.
    pub bundle: &'a Bundle,
    /// The kernel, with the module that it is about.
    pub kernel: &'a Kernel,
    /// Where the new code begins, live.
    pub text: u64,
    /// From new to old.
    pub undo: bool,
    /// Threads are to stay where they are.
    pub stay: bool,
}

impl Way<'_> {
    /// Counterparts of a function that the part replaces.
    #[must_use]
    pub fn of(&self, function: &FunctionPatch) -> Counterparts {
        let kind = if self.undo { HookKind::UndoTransition } else { HookKind::Transition };
        let is_about = |hook: &Hook| hook.kind == kind && hook.subject.old_address() == function.old_address;
        let barred = if self.stay {
            Some("the update was applied with --stay")
        } else {
            let has_hook = self.bundle.payload.hooks.iter().any(is_about);
            has_hook.then_some("a hook of the author is called when it returns")
        };
        let old = self.kernel.live(function.old_address).0;
        let new = self.text.wrapping_add(u64::from(function.new_offset));
        let pair = |pair: &lpk_format::ReturnPair| {
            let (old, new) = (old.wrapping_add(pair.old.into()), new.wrapping_add(pair.new.into()));
            if self.undo { (new, old) } else { (old, new) }
        };
        Counterparts { pairs: function.returns.iter().map(pair).collect(), barred, undo: self.undo }
    }

    /// Those of code that has none.
    #[must_use]
    pub fn nothing(&self) -> Counterparts {
        Counterparts { undo: self.undo, ..Counterparts::default() }
    }

    /// Counterparts of the function at a link address; of what is no such function there are none.
    #[must_use]
    pub fn of_old(&self, start: u64) -> Counterparts {
        let function = self.bundle.functions.iter().find(|function| function.old_address == start);
        function.map_or_else(|| self.nothing(), |function| self.of(function))
    }
}

impl Counterparts {
    /// Whether a thread of the kernel that is inside now may be moved at another time.
    #[must_use]
    pub fn may_come(&self, task: &Task) -> bool {
        task.kernel_thread && self.barred.is_none() && !self.pairs.is_empty()
    }

    /// Where a frame goes on instead, and where its return address is kept; or why it stays. Of a program's thread nothing is said.
    /// `start` is that of the code that it is in; `taken` the slot that is diverted because what the frame has called is left, too;
    /// `away`: it is on no processor. On one a tracer may have read the return address, and be about to put its own there.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn of_frame(
        &self,
        frame: &Frame,
        task: &Task,
        thread_size: u64,
        start: u64,
        taken: Option<u64>,
        away: bool,
    ) -> Result<(u64, u64), Option<String>> {
        if !task.kernel_thread {
            return Err(None);
        }
        if let Some(barred) = self.barred {
            return Err(Some(barred.to_owned()));
        }
        let offset = frame.ip.wrapping_sub(start);
        if frame.exact {
            return Err(Some(format!("it was interrupted at +{offset:#x}")));
        }
        if !away {
            return Err(Some("it was on a processor".to_owned()));
        }
        let Some(&to) = self.pairs.get(&frame.ip) else {
            let other = if self.undo { "old" } else { "new" };
            return Err(Some(format!("it waits at +{offset:#x}, which has no counterpart in the {other} code")));
        };
        match frame.slot {
            Some(slot) if frame.hooked || taken == Some(slot) || task.returns.contains(&frame.ip) => {
                Err(Some(format!("the address by which it comes back to +{offset:#x} is replaced already")))
            }
            Some(slot) if slot % 8 == 0 && slot.wrapping_sub(task.stack) < thread_size => Ok((to, slot)),
            _ => Err(Some(format!("the address by which it comes back to +{offset:#x} is not on its stack"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Va;

    const STACK: u64 = 0xffff_c900_0000_0000;
    const START: u64 = 0xffff_ffff_8100_0000;

    fn counterparts() -> Counterparts {
        Counterparts { pairs: BTreeMap::from([(START + 0x1a5, 0x9000)]), barred: None, undo: false }
    }

    fn task(kernel_thread: bool) -> Task {
        let (at, comm) = (Va(0), String::new());
        Task { at, stack: STACK, sp: STACK, pid: 7, comm, kernel_thread, returns: Vec::new() }
    }

    fn frame() -> Frame {
        Frame { ip: START + 0x1a5, exact: false, slot: Some(STACK + 0x100), hooked: false, sp: STACK + 0x108 }
    }

    fn decide(counterparts: &Counterparts, frame: &Frame, taken: Option<u64>) -> Result<(u64, u64), Option<String>> {
        counterparts.of_frame(frame, &task(true), 0x4000, START, taken, true)
    }

    #[test]
    fn only_what_waits_for_a_call_on_its_own_stack_is_moved() {
        let slot = STACK + 0x100;
        assert_eq!(decide(&counterparts(), &frame(), None), Ok((0x9000, slot)));
        assert_eq!(decide(&counterparts(), &frame(), Some(slot + 8)), Ok((0x9000, slot)));
        let stays = |counterparts: &Counterparts, frame: Frame, taken, why: &str| {
            let found = decide(counterparts, &frame, taken).expect_err("it stays").expect("a reason");
            assert!(found.contains(why), "{found}");
        };
        let known = counterparts();
        stays(&known, Frame { exact: true, ..frame() }, None, "interrupted at +0x1a5");
        stays(&known, Frame { ip: START + 0x1a6, ..frame() }, None, "waits at +0x1a6");
        stays(&known, Frame { hooked: true, ..frame() }, None, "replaced already");
        stays(&known, frame(), Some(slot), "replaced already");
        for slot in [None, Some(STACK - 8), Some(STACK + 0x4000), Some(STACK + 0x104)] {
            stays(&known, Frame { slot, ..frame() }, None, "not on its stack");
        }
        stays(&Counterparts { barred: Some("no"), ..known.clone() }, frame(), None, "no");
        stays(&Counterparts { undo: true, ..Counterparts::default() }, frame(), None, "in the old code");
        // Of a program's thread nothing is said.
        assert_eq!(known.of_frame(&frame(), &task(false), 0x4000, START, None, true), Err(None));
        let runs = known.of_frame(&frame(), &task(true), 0x4000, START, None, false);
        assert_eq!(runs, Err(Some("it was on a processor".to_owned())));
        let traced = Task { returns: vec![START + 0x1a5], ..task(true) };
        assert!(known.of_frame(&frame(), &traced, 0x4000, START, None, true).is_err());
        assert!(known.may_come(&task(true)) && !known.may_come(&task(false)));
        assert!(!Counterparts::default().may_come(&task(true)));
    }
}
