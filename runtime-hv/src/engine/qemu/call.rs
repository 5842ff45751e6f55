//! A function of the guest, run to its return on a processor that was doing something else.
//!
//! Comes in: a guest that we hold, and a call. Decided: whether the processor is in a state that can be put back, and what
//! follows when something fails half-way. Goes out: the function's value, or a reason; the registers are what they were.
//!
//! ```text
//!  monitor  `info registers` of the processor: halted? in the shadow of `sti`? `info lapic`: would an interrupt wake it?
//!  stub     all registers → a file beside the stub's socket (record.rs); then ring 0, page table, per-CPU area
//!           halted: an interrupt and a single step on `back`
//!           arguments, stack, breakpoint at `back`; the processor alone runs until it is there
//!           all registers back and compared; the file goes
//! ```
//!
//! While the processor runs QEMU counts the guest as running: its clock and its devices go on, and clients of QMP see RESUME and
//! STOP. A stop at a breakpoint makes QEMU throw its translated code away, so the guest is slower for a moment afterwards.
//!
//! Not done: calls with KVM as QEMU's accelerator. An event that KVM has begun to deliver when the guest is stopped is kept with
//! the processor where the stub does not show it; it would be delivered in the middle of the function.

use std::path::Path;

use super::Hold;
use super::monitor::Monitor;
use super::processor::{Outcome, Processor};
use super::record::Record;
use super::registers::State;
use super::stub::{Stub, folder_of_ours};
use super::vm::Vm;
use crate::engine::{Call, CallError, EngineError, Va, Vcpu};
use crate::guest::paging::{Root, translate};
use crate::timed::PATIENCE;

/// `jmp .` (Intel SDM vol. 2): a breakpoint is met before it, and a single step does not leave it.
pub(super) const REPORT_CODE: [u8; 2] = [0xeb, 0xfe];
/// Flags: interrupts are let in.
const INTERRUPTS: u64 = 1 << 9;
/// What is disturbed when somebody else lets the guest run.
const A_CALL: &str = "a call (somebody continued it while we held it stopped)";

/// Runs a function, as [`Calls::call`](crate::engine::Calls::call) says.
pub(super) fn run(vm: &Vm, hold: &mut Hold, vcpu: Vcpu, call: &Call) -> Result<u64, CallError> {
    if hold.taken.is_some() {
        return Err(EngineError::State("half restored after a call").into());
    }
    if vm.is_kvm()? {
        return Err(CallError::Unsupported("QEMU runs it with KVM, whose events on their way its stub does not show"));
    }
    let state = vm.state(vcpu)?;
    suits(vcpu, &state)?;
    if let Some(wake) = call.wake {
        is_open_for(wake.vector, vm.priority(vcpu)?, vcpu)?;
    }
    let top = Va(call.stack.0.wrapping_sub(8));
    let root = Root::of_registers(call.cr3, state.registers.cr4);
    let place = translate(vm, root, top).map_err(|_| EngineError::Connection {
        peer: "page tables of the guest",
        reason: format!("the stack of a call is not mapped at {:#x}", top.0),
    })?;
    vm.pieces(place, 8, true)?;
    hold.stub.write(place, &call.back.0.to_le_bytes())?;
    let resets = vm.monitor().resets();
    let outcome = take(vm, hold, vcpu, call, &state).and_then(|()| enter(hold, vcpu, call, state.halted));
    if !matches!(outcome, Ok(Outcome::Value(_))) {
        look_after(vm, hold, call, resets)?;
    }
    let awake = match outcome {
        Ok(Outcome::Late(_) | Outcome::Strayed(_)) => keep_awake(vm, hold, vcpu, call),
        _ => Ok(()),
    };
    put_back(vm, hold)?;
    awake?;
    match outcome? {
        Outcome::Value(value) => Ok(value),
        Outcome::Late(at) => Err(CallError::Late { function: call.function.0, limit: call.limit, at }),
        Outcome::Strayed(reason) => Err(CallError::Strayed { function: call.function.0, reason }),
        Outcome::Asleep => {
            Err(CallError::NotNow { vcpu: vcpu.0, reason: "is halted and did not wake by the interrupt of the call" })
        }
    }
}

/// Refuses a processor with something that the stub neither shows nor sets.
fn suits(vcpu: Vcpu, state: &State) -> Result<(), CallError> {
    let lets_interrupts_in = state.registers.rflags & INTERRUPTS != 0;
    let reason = match state {
        State { in_long_mode: false, .. } => "has not been started by the guest",
        State { in_smm: true, .. } => "is in system management mode",
        State { in_shadow: true, .. } => "is at an instruction that must not be interrupted",
        State { halted: true, .. } if !lets_interrupts_in || state.registers.cpl != 0 => "is offline",
        _ => return Ok(()),
    };
    Err(CallError::NotNow { vcpu: vcpu.0, reason })
}

/// Refuses a processor that serves an interrupt as urgent as the one that wakes: were it halted by the function, nothing would wake
/// it for what it was doing.
fn is_open_for(vector: u8, priority: u8, vcpu: Vcpu) -> Result<(), CallError> {
    if vector >> 4 > priority >> 4 {
        return Ok(());
    }
    Err(CallError::NotNow { vcpu: vcpu.0, reason: "serves an interrupt that keeps the one of the call out" })
}

/// Writes down the registers of a processor before the first is changed.
fn take(vm: &Vm, hold: &mut Hold, vcpu: Vcpu, call: &Call, state: &State) -> Result<(), EngineError> {
    let seen = hold.stub.with(A_CALL, |client| Processor::choose(client, vcpu)?.registers())?;
    let whole = state.in_64_bit_code.then(|| seen.clone());
    let record = Record { vcpu: vcpu.0, breakpoint: call.back.0, seen, whole, owner_paused: hold.owner_paused };
    record.store(vm.folder())?;
    let record = hold.taken.insert(record);
    if record.whole.is_none() {
        record.whole = Some(hold.stub.with(A_CALL, |client| {
            let mut processor = Processor::choose(client, vcpu)?;
            processor.enter_ring_0(&record.seen)?;
            processor.registers()
        })?);
        record.store(vm.folder())?;
    }
    Ok(())
}

fn enter(hold: &mut Hold, vcpu: Vcpu, call: &Call, halted: bool) -> Result<Outcome, EngineError> {
    hold.stub.with(A_CALL, |client| Processor::choose(client, vcpu)?.call(call, halted))
}

/// After a call that did not return: the guest is to stand, and after a reset there is nothing to put back.
fn look_after(vm: &Vm, hold: &mut Hold, call: &Call, resets: u64) -> Result<(), EngineError> {
    vm.monitor().stop()?;
    if vm.resets_now()? == resets {
        return Ok(());
    }
    hold.taken = None;
    Record::forget(vm.folder())?;
    hold.stub.with(A_CALL, |client| client.clear_breakpoint(call.back.0))?;
    Err(EngineError::State("reset while one of its functions was called"))
}

/// A function may have halted the processor, with interrupts off for ever; what the processor was doing may not wait for one.
fn keep_awake(vm: &Vm, hold: &mut Hold, vcpu: Vcpu, call: &Call) -> Result<(), EngineError> {
    if !vm.state(vcpu)?.halted {
        return Ok(());
    }
    let awake = hold.stub.with(A_CALL, |client| {
        let mut processor = Processor::choose(client, vcpu)?;
        let now = processor.registers()?;
        processor.enter_ring_0(&now)?;
        processor.wake(call, PATIENCE)
    })?;
    if awake {
        Ok(())
    } else {
        Err(EngineError::State("left with a processor that a function has halted and nothing wakes"))
    }
}

/// Puts back the registers that a call has taken, if any. When that fails the guest stays as it is: it must not run.
pub(super) fn put_back(vm: &Vm, hold: &mut Hold) -> Result<(), EngineError> {
    let Some(record) = &hold.taken else { return Ok(()) };
    put_back_with(&mut hold.stub, &mut vm.monitor(), record)?;
    Record::forget(vm.folder())?;
    hold.taken = None;
    Ok(())
}

/// Tries it again on a new connection.
fn put_back_with(stub: &mut Stub, monitor: &mut Monitor, record: &Record) -> Result<(), EngineError> {
    let mut attempt = || stub.with(A_CALL, |client| Processor::choose(client, Vcpu(record.vcpu))?.put_back(record));
    attempt().or_else(|_| {
        // The connection may have broken while the processor ran.
        monitor.stop()?;
        attempt()
    })
}

/// Puts back the registers that a dead tool had taken, if it had; `socket` is that of its stub. Gives what it had written down;
/// the guest then stands.
///
/// # Consistency on error
/// What was written down stays, and so does a stub of ours by which it can be found.
pub(super) fn put_back_after_death(monitor: &mut Monitor, socket: &Path) -> Result<Option<Record>, EngineError> {
    let Some(folder) = folder_of_ours(socket) else { return Ok(None) };
    let Some(record) = Record::load(folder)? else { return Ok(None) };
    // The function may not have returned yet.
    monitor.stop()?;
    monitor.human("gdbserver none")?;
    let mut stub = Stub::open(monitor, folder)?;
    put_back_with(&mut stub, monitor, &record)?;
    Record::forget(folder)?;
    stub.disconnect();
    Ok(Some(record))
}
