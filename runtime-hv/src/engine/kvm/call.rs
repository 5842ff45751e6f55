//! A function of the guest, run to its return on a processor that was doing something else.
//!
//! Comes in: a stopped machine and a call. Decided: nothing of what the processor was: user mode or kernel, running or halted, with
//! an exception on its way or not, everything is set aside and put back. Goes out: the function's value.
//!
//! While it runs: ring 0, flat segments, interrupts off, a stack of its own, the kernel's page table and per-CPU area. Events
//! that wait for the processor go on waiting: those already on their way are set aside with the registers.

use super::events::AllStand;
use super::machine::Machine;
use super::vcpu::{self, End, Left, Limit};
use super::{connection, ioctls, registers_failed};
use crate::engine::{Call, CallError, EngineError, Vcpu};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xsave};
use kvm_ioctls::VcpuFd;
use std::sync::Arc;
use std::sync::mpsc::channel;

/// Flags: bit 1 is always set, and nothing else is: interrupts are off.
const FLAGS: u64 = 2;
/// Ring 0 code and data of Linux (`arch/x86/include/asm/segment.h`).
const KERNEL_CS: u16 = 0x10;
const KERNEL_DS: u16 = 0x18;

/// What a processor is, apart from its model-specific registers, which a function may change on purpose.
struct Before {
    regs: kvm_regs,
    special: kvm_sregs,
    vector: kvm_xsave,
    events: kvm_vcpu_events,
    state: kvm_mp_state,
}

impl Before {
    fn of(fd: &VcpuFd) -> Result<Before, kvm_ioctls::Error> {
        Ok(Before {
            regs: fd.get_regs()?,
            special: fd.get_sregs()?,
            vector: fd.get_xsave()?,
            events: fd.get_vcpu_events()?,
            state: fd.get_mp_state()?,
        })
    }

    /// # Errors
    /// Of KVM; the processor is then in no state to go on.
    fn put_back(&self, fd: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        fd.set_sregs(&self.special)?;
        fd.set_regs(&self.regs)?;
        ioctls::set_vectors(fd, &self.vector)?;
        fd.set_vcpu_events(&self.events)?;
        fd.set_mp_state(self.state)
    }
}

/// Ring 0 in 64-bit mode, whatever it was before.
fn kernel_mode(before: &kvm_sregs, call: &Call) -> kvm_sregs {
    let code = kvm_segment {
        limit: u32::MAX,
        selector: KERNEL_CS,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment {
        limit: u32::MAX,
        selector: KERNEL_DS,
        type_: 3,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let mut special = *before;
    (special.cs, special.ss) = (code, data);
    (special.gs.base, special.cr3) = (call.gs_base, call.cr3);
    special
}

/// Runs it, on the processor's own thread: KVM waits for an RCU grace period, milliseconds, when a processor is run by another
/// thread than the last time (`virt/kvm/kvm_main.c`, `kvm_vcpu_ioctl`, KVM_RUN).
///
/// # Errors
/// [`CallError`].
pub(super) fn run(machine: &Arc<Machine>, vcpu: Vcpu, call: &Call) -> Result<u64, CallError> {
    machine.processor(vcpu)?;
    let (told, outcome) = channel();
    let (there, call) = (Arc::clone(machine), *call);
    machine.gate.post(
        vcpu.0,
        Box::new(move || {
            // Whoever asked waits for this.
            let _ = told.send(on_own_thread(&there, vcpu, &call));
        }),
    );
    // No answer: the machine was ended before the thread could begin.
    outcome.recv().unwrap_or(Err(CallError::Engine(EngineError::State("ended"))))
}

/// The same from the processor's own thread.
///
/// # Errors
/// [`CallError`].
pub(super) fn on_own_thread(machine: &Machine, vcpu: Vcpu, call: &Call) -> Result<u64, CallError> {
    let processor = machine.processor(vcpu)?;
    let before = Before::of(&processor.fd()).map_err(registers_failed)?;
    let outcome = machine.unguarded(|| enter(machine, vcpu, call, &before))?;
    let back = before.put_back(&processor.fd());
    if let Err(error) = back {
        machine.end(End::Failed(format!("processor {} could not be put back after a call: {error}", vcpu.0)));
        return Err(registers_failed(error).into());
    }
    outcome
}

fn enter(machine: &Machine, vcpu: Vcpu, call: &Call, before: &Before) -> Result<u64, CallError> {
    // The return address lies on top of the stack, so that the function begins as if it had been called.
    let top = call.stack.0.wrapping_sub(8);
    let root = crate::guest::paging::Root::of_registers(call.cr3, before.special.cr4);
    let place = crate::guest::paging::translate(&AllStand(machine), root, crate::engine::Va(top))
        .map_err(|_| connection(format!("the stack of a call is not mapped at {top:#x}")))?;
    machine.write(place, &call.back.0.to_le_bytes())?;
    let processor = machine.processor(vcpu)?;
    let mut fd = processor.fd();
    let [rdi, rsi, rdx, rcx, r8, r9] = call.arguments;
    let regs =
        kvm_regs { rip: call.function.0, rsp: top, rflags: FLAGS, rdi, rsi, rdx, rcx, r8, r9, ..kvm_regs::default() };
    let events = kvm_vcpu_events { flags: 0, ..kvm_vcpu_events::default() };
    let set = |fd: &VcpuFd| {
        fd.set_vcpu_events(&events)?;
        fd.set_sregs(&kernel_mode(&before.special, call))?;
        fd.set_regs(&regs)?;
        fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
    };
    set(&fd).map_err(registers_failed)?;
    let limit = Limit::new(call.limit).map_err(|error| connection(format!("a timer for a call: {error}")))?;
    let left = vcpu::run(&mut fd, vcpu.0, &machine.bus, || limit.is_over());
    let after = fd.get_regs().map_err(registers_failed)?;
    drop(fd);
    let strayed = |reason: String| CallError::Strayed { function: call.function.0, reason };
    match left {
        // The report has been done, so the processor stands behind it: within an instruction's length.
        Left::Reported(_) if after.rip.wrapping_sub(call.back.0) <= 15 => Ok(after.rax),
        Left::Reported(value) => Err(strayed(format!("it reported {value:#x} at {:#x}", after.rip))),
        Left::Asked => Err(CallError::Late { function: call.function.0, limit: call.limit, at: after.rip }),
        Left::Denied => Err(strayed(format!("at {:#x} it wrote to a trapped page", after.rip))),
        Left::Stepped => Err(strayed(format!("a debug exception at {:#x}", after.rip))),
        Left::Ended(end) => {
            machine.end(end);
            Err(CallError::Engine(EngineError::State("ended")))
        }
    }
}
