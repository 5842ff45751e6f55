//! A walk of one stack, frame by frame.
//!
//! Comes in: where a thread of control stands ([`Start`]), and its surroundings ([`Source`]). Decided: each caller in turn, as
//! the kernel's own unwinder does (`arch/x86/kernel/unwind_orc.c`, `unwind_next_frame`), but nothing is guessed: where the
//! kernel goes on with a doubt, this stops and says why. Goes out: a [`Walk`].
//!
//! Contents of stacks are the guest's: each stack is entered once at most, and on it the walk only goes up.

use super::format::{Entry, Kind, Register, Undefined};
use std::ops::Range;

/// Size of `struct pt_regs`, and in it what `iret` takes (`arch/x86/include/asm/ptrace.h`; the same in all 64-bit kernels).
const PT_REGS: u64 = 21 * 8;
const IRET_FRAME: u64 = 5 * 8;
/// Distances from the saved instruction pointer.
const CS: u64 = 8;
const FLAGS: u64 = 16;
const SP: u64 = 24;
/// Bits of the flags that are never set (Intel SDM vol. 1, 3.4.3). Bit 1 always is, but the kernel begins programs without it
/// (`arch/x86/kernel/process_64.c`, `start_thread`).
const FLAGS_CLEAR: u64 = 0xffff_ffff_0000_8028;
/// `__KERNEL_CS` (`arch/x86/include/asm/segment.h`).
const KERNEL_CS: u64 = 0x10;
/// The end of a stack holds the registers of a system call and, since Linux 6.9, 16 bytes for FRED
/// (`TOP_OF_KERNEL_STACK_PADDING`, `arch/x86/include/asm/thread_info.h`); the first code of a thread runs right below, with a
/// few words of its own.
const TOP: u64 = 256;
/// More frames than this are not followed; stacks of 32 KiB (KASAN) have room for 4,096 return addresses.
const FRAMES_LIMIT: usize = 4096;

/// Registers, beyond the pointers, that tables may count from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Saved {
    /// RAX.
    pub ax: u64,
    /// RDX.
    pub dx: u64,
    /// RDI.
    pub di: u64,
    /// RBP.
    pub bp: u64,
    /// R10.
    pub r10: u64,
    /// R13.
    pub r13: u64,
}

impl Saved {
    /// Places in `struct pt_regs`, in the order of the fields.
    const PLACES: [u64; 6] = [10 * 8, 12 * 8, 14 * 8, 4 * 8, 7 * 8, 2 * 8];
}

/// Where a walk starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Instruction pointer.
    pub ip: u64,
    /// It is that of the next instruction; otherwise a return address.
    pub exact: bool,
    /// Where it is kept, unless it is in a register of a processor.
    pub slot: Option<u64>,
    /// Stack pointer: behind the slot of a return address.
    pub sp: u64,
    /// Frame pointer.
    pub bp: u64,
    /// The other registers, of a processor.
    pub registers: Option<Saved>,
}

/// Which stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StackKind {
    /// Of the task with this `task_struct`.
    Task(u64),
    /// Of a processor, for interrupts.
    Interrupt,
    /// Of a processor, for the exception with this number in `enum exception_stack_ordering`.
    Exception(u8),
    /// Of a processor, for the way from user mode.
    Entry,
}

/// A stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// Which.
    pub kind: StackKind,
    /// Its addresses.
    pub range: Range<u64>,
}

/// What a walk sees of the guest.
pub trait Source {
    /// The word at an address of a stack, or `None` when it cannot be read.
    fn word(&self, at: u64) -> Option<u64>;
    /// The stack that an address is on.
    fn stack(&self, at: u64) -> Option<Stack>;
    /// What the tables say of an instruction; `None` for code without a table.
    fn entry(&self, ip: u64) -> Option<Result<Entry, Undefined>>;
    /// Whether an address is that of a tracer's code, put in the place of a return address.
    fn is_hook(&self, address: u64) -> bool;
    /// The return address that tracers have taken out of a slot.
    fn original(&self, slot: u64) -> Option<u64>;
    /// Whether a new task begins at an address (`ret_from_fork`): it lies on the stack like a return address, but no call is
    /// before it.
    fn is_beginning(&self, address: u64) -> bool;
    /// Whether an instruction is in a thunk for indirect branches (`arch/x86/lib/retpoline.S`), of which the tables say little.
    fn is_thunk(&self, ip: u64) -> bool;
    /// Whether an instruction is `ret`, or goes on to one: the address on top of the stack is the next instruction, and if a thunk
    /// put it there, it is not one behind a call.
    fn is_return(&self, ip: u64) -> bool;
}

/// A frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Where it goes on.
    pub ip: u64,
    /// It stands before this instruction: it was interrupted, or a processor has it. Otherwise it waits for a call to return.
    pub exact: bool,
    /// Where this address is kept: a word that may be written to have it go on elsewhere. `None` in a processor's register.
    pub slot: Option<u64>,
    /// A tracer has put its own address into the slot.
    pub hooked: bool,
    /// Stack pointer when it goes on.
    pub sp: u64,
}

impl Frame {
    /// An address inside the instruction that it stands in: the next one, or the call. (The address behind a call may be that
    /// of the next function.)
    #[must_use]
    pub fn code(&self) -> u64 {
        if self.exact { self.ip } else { self.ip.wrapping_sub(1) }
    }
}

/// Why a walk stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// Code that was generated, or that is not the kernel's.
    #[error("there are no tables for the code at {ip:#x}")]
    NoTable {
        /// The instruction.
        ip: u64,
    },
    /// The tables say that they do not know.
    #[error("the tables leave out the code at {ip:#x}")]
    LeftOut {
        /// The instruction.
        ip: u64,
    },
    /// An entry that its format does not define.
    #[error("at {ip:#x}: {undefined}")]
    Entry {
        /// The instruction.
        ip: u64,
        /// The entry.
        undefined: Undefined,
    },
    /// The tables say that nobody called this code, but the stack goes on.
    #[error("the tables end at {ip:#x}, in the middle of a stack ({sp:#x})")]
    EndsEarly {
        /// The instruction.
        ip: u64,
        /// The stack pointer.
        sp: u64,
    },
    /// A register that was not saved.
    #[error("the stack of the code at {ip:#x} depends on {register:?}, which is not known there")]
    Register {
        /// The instruction.
        ip: u64,
        /// Which.
        register: Register,
    },
    /// It leads to no stack of this thread.
    #[error("the code at {ip:#x} leads to {at:#x}, which is on no stack")]
    NoStack {
        /// The instruction.
        ip: u64,
        /// Where.
        at: u64,
    },
    /// It leads back to a stack where it has been.
    #[error("the code at {ip:#x} leads back to {at:#x}")]
    Loop {
        /// The instruction.
        ip: u64,
        /// Where.
        at: u64,
    },
    /// There are no saved registers where the tables say that they are.
    #[error("the code at {ip:#x} has no saved registers at {at:#x}")]
    NotSaved {
        /// The instruction.
        ip: u64,
        /// Where.
        at: u64,
    },
    /// A stack that cannot be read.
    #[error("the stack at {at:#x} cannot be read")]
    Unreadable {
        /// Where.
        at: u64,
    },
    /// A tracer has taken the return address, and does not have it.
    #[error("a tracer has taken the return address at {slot:#x}, and does not keep it")]
    Taken {
        /// The slot.
        slot: u64,
    },
    /// The task may be on a processor or not.
    #[error(
        "a processor changes from one task to another, and its GS base does not tell which; look again a moment later"
    )]
    Unsettled,
    /// Too many frames.
    #[error("there are more than {FRAMES_LIMIT} frames")]
    Deep,
}

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// There are no other frames.
    Complete,
    /// There are others that cannot be told.
    Stopped(Stop),
}

/// What was found on a stack, from the newest frame on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// The frames.
    pub frames: Vec<Frame>,
    /// The stacks that were read, in the order they were come to.
    pub stacks: Vec<StackKind>,
    /// Whether they are all.
    pub end: End,
}

impl Walk {
    /// The walk of what has no frames in the kernel.
    #[must_use]
    pub fn empty() -> Walk {
        Walk { frames: Vec::new(), stacks: Vec::new(), end: End::Complete }
    }
}

/// Walks a stack.
pub fn walk<S: Source + ?Sized>(source: &S, start: &Start) -> Walk {
    // An interrupt or a system call may have been taken a moment ago, and the stack pointer still be one of the program's choice:
    // a stack counts once something was read from it.
    let mut walker = Walker {
        source,
        frame: Frame { ip: start.ip, exact: start.exact, slot: start.slot, hooked: false, sp: start.sp },
        bp: start.bp,
        registers: start.registers,
        stack: source.stack(start.sp),
        visited: Vec::new(),
    };
    let mut frames = Vec::new();
    let first = if start.exact { walker.see_through_interrupted() } else { walker.see_through() };
    let end = match first {
        Err(stop) => End::Stopped(stop),
        Ok(()) => loop {
            if frames.len() == FRAMES_LIMIT {
                break End::Stopped(Stop::Deep);
            }
            frames.push(walker.frame);
            match walker.up() {
                Ok(true) => {}
                Ok(false) => break End::Complete,
                Err(stop) => break End::Stopped(stop),
            }
        },
    };
    Walk { frames, stacks: walker.visited, end }
}

struct Walker<'a, S: ?Sized> {
    source: &'a S,
    frame: Frame,
    bp: u64,
    /// Registers as they were in this frame, where they are known.
    registers: Option<Saved>,
    stack: Option<Stack>,
    visited: Vec<StackKind>,
}

impl<S: Source + ?Sized> Walker<'_, S> {
    /// Goes to the caller; `false` when there is none in the kernel.
    fn up(&mut self) -> Result<bool, Stop> {
        let from = self.frame;
        let ip = from.code();
        let mut entry = self.source.entry(ip).ok_or(Stop::NoTable { ip })?;
        let mut returns = from.exact && self.source.is_return(ip);
        if let (true, Ok(known)) = (from.exact && self.source.is_thunk(ip), &mut entry) {
            if matches!(known.kind, Kind::Undefined | Kind::EndOfStack) {
                *known = self.thunk_entry();
            } else {
                // The address on top of the stack is where the branch leads by now.
                returns = true;
            }
        }
        let entry = entry.map_err(|undefined| Stop::Entry { ip, undefined })?;
        match entry.kind {
            Kind::Undefined => return Err(Stop::LeftOut { ip }),
            Kind::EndOfStack if self.is_end() => return Ok(false),
            Kind::EndOfStack => return Err(Stop::EndsEarly { ip, sp: from.sp }),
            Kind::Call | Kind::Regs | Kind::RegsPartial => {}
        }
        let sp = self.previous_sp(&entry)?;
        let was_on = self.stack.as_ref().map(|stack| stack.kind);
        match entry.kind {
            Kind::Call => {
                let slot = sp.wrapping_sub(8);
                let ip = self.read(slot)?;
                let exact = entry.signal || returns || self.source.is_beginning(ip);
                self.frame = Frame { ip, exact, slot: Some(slot), hooked: false, sp };
                self.registers = None;
                self.see_through()?;
            }
            _ => {
                let slot = if entry.kind == Kind::Regs { sp.wrapping_add(PT_REGS - IRET_FRAME) } else { sp };
                self.check(slot, IRET_FRAME)?;
                let cs = self.read(slot.wrapping_add(CS))? & 0xffff;
                let flags = self.read(slot.wrapping_add(FLAGS))?;
                // The tables can be wrong for an instruction of the entry code: what are no saved registers is not taken for a
                // program's.
                if flags & FLAGS_CLEAR != 0 || cs & 3 != 3 && cs != KERNEL_CS {
                    return Err(Stop::NotSaved { ip, at: slot });
                }
                if cs != KERNEL_CS {
                    return Ok(false); // the rest is the program's
                }
                let ip = self.read(slot)?;
                let before = self.read(slot.wrapping_add(SP))?;
                if entry.kind == Kind::Regs {
                    self.check(sp, PT_REGS)?;
                    let mut word = [0; 6];
                    for (word, place) in word.iter_mut().zip(Saved::PLACES) {
                        *word = self.read(sp.wrapping_add(place))?;
                    }
                    let [ax, dx, di, bp, r10, r13] = word;
                    self.registers = Some(Saved { ax, dx, di, bp, r10, r13 });
                }
                self.frame = Frame { ip, exact: entry.signal, slot: Some(slot), hooked: false, sp: before };
                self.see_through_interrupted()?;
            }
        }
        self.bp = match entry.bp {
            Register::Undefined => self.registers.map_or(self.bp, |registers| registers.bp),
            Register::PrevSp => self.read(add(sp, entry.bp_offset))?,
            Register::Bp => self.read(add(self.bp, entry.bp_offset))?,
            register => return Err(Stop::Register { ip, register }),
        };
        let stack = self.stack.as_ref();
        let same = stack.filter(|stack| Some(stack.kind) == was_on && stack.range.contains(&self.frame.sp));
        if same.is_some() && self.frame.sp <= from.sp {
            return Err(Stop::Loop { ip, at: self.frame.sp });
        }
        Ok(true)
    }

    /// A thunk was called, or jumped to by a function that was: a return address is on top of the stack. The thunk may have put
    /// an address of its own above it.
    fn thunk_entry(&self) -> Entry {
        let top = self.source.word(self.frame.sp);
        let sp_offset = if top.is_some_and(|top| self.source.is_thunk(top)) { 16 } else { 8 };
        let (sp, bp) = (Register::Sp, Register::Undefined);
        Entry { sp, sp_offset, bp, bp_offset: 0, kind: Kind::Call, signal: false }
    }

    /// Whether the stack is empty, as it is where a thread began. While the stack pointer is still a program's there is nothing
    /// on the kernel's either.
    fn is_end(&self) -> bool {
        let sp = self.frame.sp;
        match self.source.stack(sp).or_else(|| self.source.stack(sp.wrapping_sub(8))) {
            None => self.frame.exact,
            Some(stack) => {
                matches!(stack.kind, StackKind::Task(_) | StackKind::Entry) && stack.range.end.wrapping_sub(sp) <= TOP
            }
        }
    }

    fn previous_sp(&mut self, entry: &Entry) -> Result<u64, Stop> {
        let ip = self.frame.code();
        let offset = entry.sp_offset;
        let saved = |value: fn(&Saved) -> u64| {
            self.registers.as_ref().map(value).ok_or(Stop::Register { ip, register: entry.sp })
        };
        match entry.sp {
            Register::Sp => Ok(add(self.frame.sp, offset)),
            Register::Bp => Ok(add(self.bp, offset)),
            Register::SpIndirect => Ok(add(self.read(self.frame.sp)?, offset)),
            Register::BpIndirect => self.read(add(self.bp, offset)),
            // The offset is none of these: `unwind_next_frame` leaves it out.
            Register::Ax => saved(|registers| registers.ax),
            Register::Dx => saved(|registers| registers.dx),
            Register::Di => saved(|registers| registers.di),
            Register::R10 => saved(|registers| registers.r10),
            Register::R13 => saved(|registers| registers.r13),
            register @ (Register::Undefined | Register::PrevSp) => Err(Stop::Register { ip, register }),
        }
    }

    /// Takes the original address for one that a tracer has put in its place.
    fn see_through(&mut self) -> Result<(), Stop> {
        if let (true, Some(slot)) = (self.source.is_hook(self.frame.ip), self.frame.slot) {
            self.frame.ip = self.source.original(slot).ok_or(Stop::Taken { slot })?;
            self.frame.hooked = true;
        }
        Ok(())
    }

    /// The same for a frame that was interrupted right behind a return to the tracer's code: the slot is below.
    fn see_through_interrupted(&mut self) -> Result<(), Stop> {
        if self.source.is_hook(self.frame.ip) {
            let slot = self.frame.sp.wrapping_sub(8);
            self.frame.ip = self.source.original(slot).ok_or(Stop::Taken { slot })?;
            (self.frame.exact, self.frame.hooked) = (true, true);
        }
        Ok(())
    }

    /// Reads a word of the stack, and changes over to the stack that it is on.
    fn read(&mut self, at: u64) -> Result<u64, Stop> {
        self.check(at, 8)?;
        self.source.word(at).ok_or(Stop::Unreadable { at })
    }

    /// Changes over to the stack that a range is on.
    fn check(&mut self, at: u64, length: u64) -> Result<(), Stop> {
        let ip = self.frame.code();
        let holds = |stack: &Stack| {
            stack.range.contains(&at) && at.checked_add(length).is_some_and(|end| end <= stack.range.end)
        };
        if !at.is_multiple_of(8) {
            return Err(Stop::NoStack { ip, at });
        }
        if let Some(stack) = self.stack.as_ref().filter(|stack| holds(stack)) {
            if self.visited.is_empty() {
                self.visited.push(stack.kind);
            }
            return Ok(());
        }
        let stack = self.source.stack(at).filter(holds).ok_or(Stop::NoStack { ip, at })?;
        let is_task = |kind: &StackKind| matches!(kind, StackKind::Task(_));
        if self.visited.iter().any(|kind| *kind == stack.kind || is_task(kind) && is_task(&stack.kind)) {
            return Err(Stop::Loop { ip, at });
        }
        self.visited.push(stack.kind);
        self.stack = Some(stack);
        Ok(())
    }
}

fn add(base: u64, offset: i16) -> u64 {
    base.wrapping_add_signed(i64::from(offset))
}

#[cfg(test)]
mod tests;
