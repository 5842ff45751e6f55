//! What happens in the guest and is looked after while it stands: writes to trapped pages, and reports.
//!
//! Comes in: a processor that may not write, or that reports. Decided: which write it was, by comparing the trapped pages before
//! and after the one instruction. Goes out: a call of whoever attends to it, with all processors stopped; then all go on.
//!
//! The write of a processor is let through in the safe way: the others stand, every trapped page is opened, this processor
//! does one instruction with interrupts held back, and the pages are closed again. This is right for every instruction,
//! whatever it writes and however wide, since the processor itself does it.

use super::gate::Holder;
use super::machine::Machine;
use super::memory::PageBytes;
use super::vcpu::{self, End, Left, Limit};
use crate::engine::{
    Attend, Call, CallError, EngineError, Pa, ReadMemory, Registers, Stopped, Trapped, Vcpu, WriteMemory, Written,
};
use kvm_bindings::{KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long one instruction may take. It ends at once unless an exception comes between: then the guest is let go on, and the
/// write is tried again later.
const STEP_LIMIT: Duration = Duration::from_millis(20);
/// What single steps can be like (KVM_CAP_SET_GUEST_DEBUG2, include/uapi/linux/kvm.h).
const STEPS: nix::libc::c_ulong = 195;
/// Denied writes without any trapped page, one after the other, before the host's memory is to blame.
const STRAYS_LIMIT: u32 = 16;

/// Trapped pages and who attends.
#[derive(Default)]
pub(super) struct Events {
    traps: Mutex<BTreeMap<Pa, Box<PageBytes>>>,
    /// For whose sake they are trapped.
    wanted: Mutex<BTreeSet<Trapped>>,
    attendant: Mutex<Option<Box<dyn Attend>>>,
    strays: Mutex<u32>,
}

fn page_of(what: &Trapped) -> Pa {
    Pa(what.at.0 & !0xfff)
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Events {
    /// From now on `attendant` is told.
    pub(super) fn attend(&self, attendant: Option<Box<dyn Attend>>) {
        *lock(&self.attendant) = attendant;
    }
}

impl Machine {
    /// Traps writes to the page of a stretch of memory; the machine stands.
    ///
    /// # Errors
    /// When it is not in a page of memory, or this host's KVM cannot hold interrupts back while it steps.
    pub(super) fn trap(&self, what: &Trapped) -> Result<(), EngineError> {
        if self.vm.check_extension_raw(STEPS) & KVM_GUESTDBG_BLOCKIRQ as i32 == 0 {
            let reason = "it cannot hold interrupts back while it steps; Linux can since 5.16".to_owned();
            return Err(EngineError::Connection { peer: "KVM", reason });
        }
        let page = page_of(what);
        let failed = |reason: String| EngineError::Memory { pa: page.0, len: 4096, reason };
        let contents = self.memory.page(page).map_err(|error| failed(error.to_string()))?;
        self.memory.set_writable(page, false).map_err(|error| failed(error.to_string()))?;
        lock(&self.events.traps).insert(page, contents);
        lock(&self.events.wanted).insert(what.clone());
        Ok(())
    }

    /// Lets writes to a stretch through again, and to its page if nothing else in it is trapped; the machine stands.
    ///
    /// # Errors
    /// When the page cannot be opened.
    pub(super) fn untrap(&self, what: &Trapped) -> Result<(), EngineError> {
        let mut wanted = lock(&self.events.wanted);
        wanted.remove(what);
        let page = page_of(what);
        if !wanted.iter().any(|other| page_of(other) == page) && lock(&self.events.traps).remove(&page).is_some() {
            let failed =
                |error: std::io::Error| EngineError::Memory { pa: page.0, len: 4096, reason: error.to_string() };
            self.memory.set_writable(page, true).map_err(failed)?;
        }
        Ok(())
    }

    /// The trapped pages' contents are what they are now: what the service has written is no write of the guest.
    pub(super) fn refresh(&self) {
        for (page, contents) in lock(&self.events.traps).iter_mut() {
            // A trapped page is memory, and that does not change.
            let _ = self.memory.read(*page, &mut contents[..]);
        }
    }

    /// A processor has stopped because of a trapped page or with a report: stops the others and looks after it.
    pub(super) fn look_after(&self, vcpu: Vcpu, why: &Left) {
        if let Err(error) = self.hold(Holder::Vcpu(vcpu.0)) {
            // Either the end has come, or a processor hangs in the host: no moment to go on as if nothing were.
            return self.end(End::Failed(format!("processor {} could not be looked after: {error}", vcpu.0)));
        }
        match why {
            Left::Reported(value) => {
                if let Some(attendant) = &mut *lock(&self.events.attendant) {
                    attendant.reported(&mut AllStand(self), vcpu, *value);
                }
                // What functions of the guest have written that the attendant has called.
                self.tell_of_writes(vcpu);
            }
            _ => self.let_through(vcpu),
        }
        self.gate.release();
    }

    /// Does something with all trapped pages open: what is written meanwhile is the service's own doing.
    ///
    /// # Errors
    /// When pages cannot be opened or closed.
    pub(super) fn unguarded<T>(&self, work: impl FnOnce() -> T) -> Result<T, EngineError> {
        let pages: Vec<Pa> = lock(&self.events.traps).keys().copied().collect();
        let set = |writable: bool| {
            let failed = |page: Pa, error: std::io::Error| EngineError::Memory {
                pa: page.0,
                len: 4096,
                reason: error.to_string(),
            };
            pages
                .iter()
                .try_for_each(|&page| self.memory.set_writable(page, writable).map_err(|error| failed(page, error)))
        };
        set(true)?;
        let result = work();
        set(false)?;
        Ok(result)
    }

    /// Does the instruction that was denied, with everything else standing.
    fn let_through(&self, vcpu: Vcpu) {
        let pages: Vec<Pa> = lock(&self.events.traps).keys().copied().collect();
        if pages.is_empty() {
            // Untrapped a moment ago. If not, the host cannot give the guest its memory.
            let mut strays = lock(&self.events.strays);
            *strays += 1;
            if *strays > STRAYS_LIMIT {
                let what = format!("processor {}: the host has no memory for the guest", vcpu.0);
                self.end(End::Failed(vcpu::failure(&self.processors[vcpu.0].fd(), what)));
            }
            return;
        }
        *lock(&self.events.strays) = 0;
        let open = |writable: bool| pages.iter().try_for_each(|&page| self.memory.set_writable(page, writable));
        let stepped = open(true).map_err(|error| error.to_string()).and_then(|()| self.step(vcpu));
        let closed = open(false).map_err(|error| error.to_string());
        if let Err(reason) = stepped.and(closed) {
            return self.end(End::Failed(reason));
        }
        self.tell_of_writes(vcpu);
    }

    /// Tells the attendant of all trapped pages that have changed; what it writes itself is no write of the guest.
    fn tell_of_writes(&self, vcpu: Vcpu) {
        let mut written = Vec::new();
        for (page, before) in lock(&self.events.traps).iter_mut() {
            if let Ok(after) = self.memory.page(*page)
                && after != *before
            {
                let was = std::mem::replace(before, after.clone());
                written.push(Written { at: *page, before: was.to_vec(), after: after.to_vec(), late: false });
            }
        }
        if written.is_empty() {
            return;
        }
        if let Some(attendant) = &mut *lock(&self.events.attendant) {
            attendant.written(&mut AllStand(self), vcpu, &written);
        }
        self.refresh();
    }

    /// One instruction of one processor, with interrupts held back.
    fn step(&self, vcpu: Vcpu) -> Result<(), String> {
        let mut fd = self.processors[vcpu.0].fd();
        let debug = |control| kvm_guest_debug { control, ..kvm_guest_debug::default() };
        let failed = |error: kvm_ioctls::Error| format!("single step of processor {}: {error}", vcpu.0);
        fd.set_guest_debug(&debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ))
            .map_err(failed)?;
        let limit = Limit::new(STEP_LIMIT).map_err(|error| format!("a timer for a single step: {error}"))?;
        let left = vcpu::run(&mut fd, vcpu.0, &self.bus, || limit.is_over());
        fd.set_guest_debug(&debug(0)).map_err(failed)?;
        match left {
            Left::Stepped | Left::Asked | Left::Reported(_) => Ok(()),
            Left::Denied => Err(vcpu::failure(&fd, format!("processor {} may not write although it may", vcpu.0))),
            Left::Ended(end) => {
                drop(fd);
                self.end(end);
                Ok(())
            }
        }
    }
}

/// The guest while all its processors stand.
pub(super) struct AllStand<'a>(pub(super) &'a Machine);

impl ReadMemory for AllStand<'_> {
    fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
        self.0.read(from, into)
    }
}

impl WriteMemory for AllStand<'_> {
    fn write(&mut self, to: Pa, bytes: &[u8]) -> Result<(), EngineError> {
        self.0.write(to, bytes)
    }
}

impl Stopped for AllStand<'_> {
    fn registers(&self, vcpu: Vcpu) -> Result<Registers, EngineError> {
        self.0.registers(vcpu)
    }

    fn redirect(&mut self, vcpu: Vcpu, rip: u64) -> Result<(), EngineError> {
        let fd = self.0.processor(vcpu)?.fd();
        let set = fd.get_regs().and_then(|regs| fd.set_regs(&kvm_bindings::kvm_regs { rip, ..regs }));
        set.map_err(super::registers_failed)
    }

    fn call(&mut self, vcpu: Vcpu, call: &Call) -> Result<u64, CallError> {
        // This is the processor's own thread.
        super::call::on_own_thread(self.0, vcpu, call)
    }
}
