//! A processor with other registers for a while, through the stub.
//!
//! Comes in: a connection to the stub of a stopped guest. Decided: in which order registers are changed and put back. Goes
//! out: how a function ended, and a processor whose registers are proved to be what they were.
//!
//! What the stub does with a register that is written (QEMU target/i386/gdbstub.c): a segment is loaded from the guest's
//! descriptor table when its selector changes, and the privilege follows SS; the table lies in the part of the address space
//! that user page tables map, too. Flags, control registers and segment bases take effect. In 32-bit code only low halves are
//! shown and taken. The x87 stack is read from its top and written from its bottom.

use std::sync::Arc;
use std::time::Duration;

use super::MESSAGES;
use super::description::{Layout, Register};
use super::gdb::{Bounded, Client, Far, Stood, TRAP, unexpected};
use super::record::Record;
use crate::engine::{Call, EngineError, Pa, Vcpu, Wake};
use crate::timed::PATIENCE;

/// Flags: bit 1 is always set, and nothing else is: interrupts are off.
const FLAGS: u64 = 1 << 1;
/// Flags: interrupts are let in.
const INTERRUPTS: u64 = 1 << 9;
/// Ring 0 code and data of Linux (`arch/x86/include/asm/segment.h`).
pub(super) const KERNEL_CS: u64 = 0x10;
const KERNEL_DS: u64 = 0x18;
/// Arguments (System V psABI 3.2.3).
const ARGUMENTS: [&str; 6] = ["rdi", "rsi", "rdx", "rcx", "r8", "r9"];
/// Where the top of the x87 stack is in the status word (Intel SDM vol. 1, 8.1.3).
const TOP: u64 = 7 << 11;
/// A register that depends on another is right after the second round.
const ROUNDS: usize = 3;

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It returned.
    Value(u64),
    /// It did not return in time, and was here.
    Late(u64),
    /// It came to stand for another reason.
    Strayed(String),
    /// The interrupt did not wake the processor.
    Asleep,
}

/// A processor that was chosen.
pub(super) struct Processor<'a, S> {
    client: &'a mut Client<S>,
    layout: Arc<Layout>,
    vcpu: Vcpu,
}

impl<'a, S: Bounded> Processor<'a, S> {
    pub(super) fn choose(client: &'a mut Client<S>, vcpu: Vcpu) -> Result<Self, EngineError> {
        let layout = client.layout()?;
        client.select(vcpu)?;
        Ok(Self { client, layout, vcpu })
    }

    /// All registers.
    pub(super) fn registers(&mut self) -> Result<Vec<u8>, EngineError> {
        let all = self.client.registers()?;
        if all.len() == self.layout.length() {
            return Ok(all);
        }
        let found = format!("{} bytes; {} are described", all.len(), self.layout.length());
        Err(unexpected("the registers of the target description", found.as_bytes()))
    }

    fn set(&mut self, name: &'static str, value: u64) -> Result<(), EngineError> {
        let register = self.layout.find(name)?;
        self.client.set_register(register.number, &register.bytes(value))
    }

    fn get(&self, name: &'static str, all: &[u8]) -> Result<u64, EngineError> {
        self.layout.find(name)?.value(all)
    }

    /// 64-bit code in ring 0; says whether it was anything else. A processor that is there already has the flat segments, or none,
    /// which is the same.
    pub(super) fn enter_ring_0(&mut self, now: &[u8]) -> Result<bool, EngineError> {
        let other = self.get("cs", now)? != KERNEL_CS;
        if other {
            self.set("cs", KERNEL_CS)?;
            self.set("ss", KERNEL_DS)?;
        }
        Ok(other)
    }

    /// Lets it go on at another instruction.
    pub(super) fn go_to(&mut self, rip: u64) -> Result<(), EngineError> {
        self.set("rip", rip)
    }

    /// Runs a function; a processor that is halted is woken first.
    pub(super) fn call(&mut self, call: &Call, halted: bool) -> Result<Outcome, EngineError> {
        let now = self.registers()?;
        self.enter_ring_0(&now)?;
        self.set("cr3", call.cr3)?;
        self.set("gs_base", call.gs_base)?;
        if halted && !self.wake(call, call.limit.min(PATIENCE))? {
            return Ok(Outcome::Asleep);
        }
        for (name, value) in ARGUMENTS.into_iter().zip(call.arguments) {
            self.set(name, value)?;
        }
        // The return address lies on top of the stack, so that the function begins as if it had been called.
        self.set("rsp", call.stack.0.wrapping_sub(8))?;
        self.set("eflags", FLAGS)?;
        self.set("rip", call.function.0)?;
        self.client.set_breakpoint(call.back.0)?;
        let stood = self.client.run(self.vcpu, Far::On, call.limit)?;
        self.client.select(self.vcpu)?;
        let now = self.registers()?;
        let rip = self.get("rip", &now)?;
        Ok(match stood {
            Stood::Signal(TRAP) if rip == call.back.0 => Outcome::Value(self.get("rax", &now)?),
            Stood::Signal(signal) => Outcome::Strayed(format!("it stopped with signal {signal} at {rip:#x}")),
            Stood::Late => Outcome::Late(rip),
        })
    }

    /// Wakes a halted processor without running anything of the guest: an interrupt that it lets in ends the halt, and a single
    /// step without interrupts goes no further than the jump to itself at [`Call::back`]. The guest takes the interrupt when it
    /// runs again. Says whether it woke within `limit`; without an interrupt it does not.
    pub(super) fn wake(&mut self, call: &Call, limit: Duration) -> Result<bool, EngineError> {
        let Some(Wake { apic_id, vector }) = call.wake else { return Ok(false) };
        self.set("rsp", call.stack.0)?;
        self.set("rip", call.back.0)?;
        self.set("eflags", FLAGS | INTERRUPTS)?;
        let to = Pa(MESSAGES | u64::from(apic_id) << 12);
        self.client.write(to, &u32::from(vector).to_le_bytes())?;
        let stood = self.client.run(self.vcpu, Far::Step, limit.max(Duration::from_millis(1)))?;
        self.client.select(self.vcpu)?;
        let now = self.registers()?;
        Ok(stood == Stood::Signal(TRAP) && self.get("rip", &now)? == call.back.0)
    }

    /// Gives the processor its registers back, whatever it has now.
    pub(super) fn put_back(&mut self, record: &Record) -> Result<(), EngineError> {
        self.client.clear_breakpoint(record.breakpoint)?;
        let mut now = self.registers()?;
        if let Some(whole) = &record.whole {
            if self.enter_ring_0(&now)? {
                now = self.registers()?;
            }
            for _ in 0..ROUNDS {
                if !self.put_back_once(&now, whole)? {
                    break;
                }
                now = self.registers()?;
            }
        }
        for name in ["cs", "ss"] {
            let old = self.get(name, &record.seen)?;
            if self.get(name, &now)? != old {
                self.set(name, old)?;
            }
        }
        if now != record.seen {
            now = self.registers()?;
        }
        if now == record.seen {
            return Ok(());
        }
        for register in self.layout.all() {
            if register.of(&now)? != register.of(&record.seen)? {
                return Err(unexpected("the register as it was", register.name.as_bytes()));
            }
        }
        Err(unexpected("as many registers as there were", b"others"))
    }

    /// Writes what is different; says whether anything was.
    fn put_back_once(&mut self, now: &[u8], whole: &[u8]) -> Result<bool, EngineError> {
        let layout = Arc::clone(&self.layout);
        let mut different = Vec::new();
        for register in layout.all() {
            if !matches!(register.name.as_str(), "cs" | "ss") && register.of(now)? != register.of(whole)? {
                different.push(register);
            }
        }
        if different.iter().any(|register| is_x87(register)) {
            self.put_back_x87(whole)?;
        }
        for register in different.iter().filter(|register| !is_x87(register)) {
            self.client.set_register(register.number, register.of(whole)?)?;
        }
        Ok(!different.is_empty())
    }

    /// With the top at 0, reading and writing mean the same registers.
    fn put_back_x87(&mut self, whole: &[u8]) -> Result<(), EngineError> {
        let status = self.get("fstat", whole)?;
        let top = (status & TOP) >> TOP.trailing_zeros();
        self.set("fstat", status & !TOP)?;
        const STACK: [&str; 8] = ["st0", "st1", "st2", "st3", "st4", "st5", "st6", "st7"];
        for (index, from) in STACK.into_iter().enumerate() {
            let into = STACK[(index + top as usize) % STACK.len()];
            let number = self.layout.find(into)?.number;
            self.client.set_register(number, self.layout.find(from)?.of(whole)?)?;
        }
        self.set("fstat", status)
    }
}

/// The x87 stack and its top.
fn is_x87(register: &Register) -> bool {
    register.name == "fstat" || register.name.strip_prefix("st").is_some_and(|index| index.parse::<u8>().is_ok())
}

#[cfg(test)]
mod tests;
