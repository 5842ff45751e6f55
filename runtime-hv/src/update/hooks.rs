//! The author's hooks: functions of the bundle, run in the guest while it stands.
//!
//! Comes in: a bundle whose code is in the guest's module memory, and a stopped guest. Decided: on which processor a hook runs, and
//! what its answer means. Goes out: nothing, or why the update cannot go on. What a hook is told is declared in `support/lucos.h`;
//! the area has room for it behind the bundle's data, for a stack, and behind its code for what a hook returns to.

use super::UpdateError;
use super::area::{Area, HOOK_STACK, HOOK_TOLD, REPORT_ROOM};
use super::link::{self, Addresses};
use super::open::Inside;
use crate::engine::{Call, CallError, Engine, Pa, ReadMemory, Registers, Stopped, Va, Vcpu, Wake};
use crate::guest::arena::Write;
use crate::guest::identity::KERNEL_HALF;
use crate::guest::snapshot::Snapshot;
use crate::guest::{Kernel, irq_work, tasks};
use lpk_format::{Bundle, Hook, HookKind, HookSubject, SectionKind};
use std::time::Duration;

/// The guest stands so long at most for one hook.
const LIMIT: Duration = Duration::from_millis(500);
/// Where the name of the update, and a thread's registers, are in what a hook is told.
const NAME_AT: u64 = 64;
const REGISTERS_AT: u64 = 320;
/// Segments of the kernel (`arch/x86/include/asm/segment.h`), for a thread's registers.
const KERNEL_CS: u64 = 0x10;
const KERNEL_DS: u64 = 0x18;

/// Hooks of a bundle, ready to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    name: String,
    list: Vec<Ready>,
    /// Where the new copy of a hook's datum is.
    addresses: Addresses,
    payload_bss: u64,
    /// What a hook returns to.
    back: (Va, Pa),
    /// What it is told.
    told: (Va, Pa),
    stack: Va,
    cr3: u64,
}

/// A hook in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ready {
    hook: Hook,
    /// Where it is.
    function: Va,
    /// Where the old datum is that it is about.
    old: Va,
}

/// A processor that a hook can run on.
struct Processor {
    vcpu: Vcpu,
    gs_base: u64,
    wake: Wake,
}

impl Hooks {
    /// Finds everything that calls need; `None` when the bundle has no hooks.
    ///
    /// # Errors
    /// [`UpdateError::Guest`].
    pub fn prepare<E: Engine>(
        engine: &E,
        kernel: &Kernel,
        bundle: &Bundle,
        area: &Area,
    ) -> Result<Option<Hooks>, UpdateError> {
        if bundle.payload.hooks.is_empty() {
            return Ok(None);
        }
        let addresses = area.parts.addresses(area.base);
        let place = |va: u64| Ok::<_, UpdateError>((Va(va), kernel.translate(engine, Va(va), "the area of a bundle")?));
        let end = area.base.wrapping_add(area.parts.size());
        let ready = |hook: &Hook| Ready {
            hook: hook.clone(),
            function: Va(addresses.text.wrapping_add(u64::from(hook.offset))),
            old: kernel.live(hook.subject.old_address()),
        };
        Ok(Some(Hooks {
            name: bundle.manifest.name.clone(),
            list: bundle.payload.hooks.iter().map(ready).collect(),
            payload_bss: link::data_offset(&bundle.payload, SectionKind::Bss, 0),
            back: place(addresses.rodata.wrapping_sub(REPORT_ROOM))?,
            told: place(end.wrapping_sub(HOOK_STACK + HOOK_TOLD))?,
            stack: Va(end),
            cr3: kernel.root().table.0,
            addresses,
        }))
    }

    /// What has to be in the guest before the first call: the update's name.
    ///
    /// # Errors
    /// Of the engine.
    pub fn writes(&self, memory: &dyn ReadMemory) -> Result<Vec<Write>, UpdateError> {
        let new = [self.name.as_bytes(), &[0]].concat();
        Ok(vec![replaced(memory, Pa(self.told.1.0 + NAME_AT), new)?])
    }

    /// Runs the hooks of a kind that are about the whole update, with the number of threads inside what is left.
    ///
    /// # Errors
    /// [`UpdateError::Vetoed`], [`UpdateError::HookFailed`], [`UpdateError::NoProcessor`].
    pub fn about_update<E: Engine>(
        &self,
        engine: &mut E,
        kernel: &Kernel,
        kind: HookKind,
        threads: u32,
    ) -> Result<(), UpdateError> {
        let undo = matches!(kind, HookKind::UndoPre | HookKind::UndoPost);
        let mut told = [24, u32::from(undo), threads, 0].map(u32::to_le_bytes).concat();
        told.extend((self.told.0.0 + NAME_AT).to_le_bytes());
        let may_veto = matches!(kind, HookKind::Pre | HookKind::UndoPre);
        for Ready { hook, function, .. } in self.of(kind) {
            let value = self.call(engine, kernel, hook, *function, &told)?;
            // It returns an int.
            let value = value as u32 as i32;
            if may_veto && value != 0 {
                return Err(UpdateError::Vetoed { hook: hook.kind.name(), value });
            }
        }
        Ok(())
    }

    /// Runs the hooks that make one copy of a datum from the other, all of it, for the first time.
    ///
    /// # Errors
    /// As [`Hooks::about_update`].
    pub fn about_data<E: Engine>(&self, engine: &mut E, kernel: &Kernel, kind: HookKind) -> Result<(), UpdateError> {
        for ready @ Ready { hook, function, .. } in self.of(kind) {
            if let Some(told) = self.copies(ready, 1) {
                self.call(engine, kernel, hook, *function, &told)?;
            }
        }
        Ok(())
    }

    /// Runs the hook that makes one copy of a datum from the other, because the other was written. It runs on the processor that
    /// wrote.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn synchronise(
        &self,
        guest: &mut dyn Stopped,
        kernel: &Kernel,
        vcpu: Vcpu,
        kind: HookKind,
        datum: u64,
    ) -> Result<(), String> {
        let about = |ready: &&Ready| ready.hook.subject.old_address() == datum;
        for ready @ Ready { hook, function, .. } in self.of(kind).filter(about) {
            if let Some(told) = self.copies(ready, 0) {
                self.call_here(guest, kernel, vcpu, hook, *function, &told)?;
            }
        }
        Ok(())
    }

    /// Runs the hook about a function that a thread has just left, on the processor where the thread is.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn transition(
        &self,
        guest: &mut dyn Stopped,
        kernel: &Kernel,
        vcpu: Vcpu,
        kind: HookKind,
        thread: &Inside,
    ) -> Result<(), String> {
        let about = |ready: &&Ready| ready.hook.subject.old_address() == thread.old_address;
        for Ready { hook, function, .. } in self.of(kind).filter(about) {
            let now = guest.registers(vcpu).map_err(|error| error.to_string())?;
            let place = |at: u64| (Va(self.told.0.0 + at), Pa(self.told.1.0 + at));
            guest.write(place(REGISTERS_AT).1, &pt_regs(&now, thread.original)).map_err(|error| error.to_string())?;
            let undo = u32::from(kind == HookKind::UndoTransition);
            let mut told = [24, undo].map(u32::to_le_bytes).concat();
            told.extend([thread.task, place(REGISTERS_AT).0.0].map(u64::to_le_bytes).concat());
            self.call_here(guest, kernel, vcpu, hook, *function, &told)?;
        }
        Ok(())
    }

    /// What a hook about a datum is told.
    fn copies(&self, Ready { hook, old, .. }: &Ready, first: u32) -> Option<Vec<u8>> {
        let HookSubject::Datum { old_size, section, new_offset, new_size, .. } = hook.subject else {
            return None;
        };
        let old = old.0;
        let new = match section {
            SectionKind::Rodata => self.addresses.rodata,
            SectionKind::Bss => self.addresses.data.wrapping_add(self.payload_bss),
            _ => self.addresses.data,
        };
        let new = new.wrapping_add(u64::from(new_offset));
        let (to, from, length) =
            if hook.kind == HookKind::SyncToNew { (new, old, old_size) } else { (old, new, new_size) };
        let mut told = [40_u32, first].map(u32::to_le_bytes).concat();
        told.extend([to, from, 0, u64::from(length)].map(u64::to_le_bytes).concat());
        Some(told)
    }

    /// A call on a processor that is attended to.
    fn call_here(
        &self,
        guest: &mut dyn Stopped,
        kernel: &Kernel,
        vcpu: Vcpu,
        hook: &Hook,
        function: Va,
        told: &[u8],
    ) -> Result<(), String> {
        let registers = guest.registers(vcpu).map_err(|error| error.to_string())?;
        let areas = tasks::per_cpu(guest, kernel).map_err(|error| error.to_string())?;
        if registers.cpl != 0 || !areas.iter().any(|area| area.base == registers.gs_base) {
            return Err(format!("hook {}: the processor is just entering or leaving the kernel", hook.kind.name()));
        }
        guest.write(self.told.1, told).map_err(|error| error.to_string())?;
        // It runs, so there is nothing to wake; and the guest may not go on without the hook, whatever the processor does.
        let call = self.one_call(function, registers.gs_base, None);
        match guest.call(vcpu, &call) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("hook {} of {}: {error}", hook.kind.name(), hook.subject.name())),
        }
    }

    fn one_call(&self, function: Va, gs_base: u64, wake: Option<Wake>) -> Call {
        Call {
            function,
            arguments: [self.told.0.0, 0, 0, 0, 0, 0],
            stack: self.stack,
            back: self.back.0,
            gs_base,
            cr3: self.cr3,
            limit: LIMIT,
            wake,
        }
    }

    fn of(&self, kind: HookKind) -> impl Iterator<Item = &Ready> {
        self.list.iter().filter(move |ready| ready.hook.kind == kind)
    }

    fn call<E: Engine>(
        &self,
        engine: &mut E,
        kernel: &Kernel,
        hook: &Hook,
        function: Va,
        told: &[u8],
    ) -> Result<u64, UpdateError> {
        let subject = hook.subject.name();
        let name =
            if subject.is_empty() { hook.kind.name().to_owned() } else { format!("{} of {subject}", hook.kind.name()) };
        let mut why = "no processor is in the kernel".to_owned();
        for processor in processors(engine, kernel)? {
            engine.write(self.told.1, told)?;
            let call = self.one_call(function, processor.gs_base, Some(processor.wake));
            match engine.call(processor.vcpu, &call) {
                Ok(value) => return Ok(value),
                Err(error @ CallError::NotNow { .. }) => why = error.to_string(),
                Err(source) => return Err(UpdateError::HookFailed { hook: name, source }),
            }
        }
        Err(UpdateError::NoProcessor { hook: name, why })
    }
}

/// What hooks, and threads that leave old code, return to, at the end of the code of a bundle in the guest's module memory.
///
/// # Errors
/// [`UpdateError::Guest`].
pub fn report_code<E: Engine>(engine: &E, kernel: &Kernel, addresses: &Addresses) -> Result<Vec<Write>, UpdateError> {
    let at = Va(addresses.rodata.wrapping_sub(REPORT_ROOM));
    let place = kernel.translate(engine, at, "the area of a bundle")?;
    Ok(vec![replaced(engine, place, engine.report_code().to_vec())?])
}

fn replaced(memory: &dyn ReadMemory, place: Pa, new: Vec<u8>) -> Result<Write, UpdateError> {
    let mut old = vec![0; new.len()];
    memory.read(place, &mut old)?;
    Ok(Write { pa: place.0, old, new })
}

/// Processors whose per-CPU area is certain: those in the kernel.
fn processors<E: Engine>(engine: &mut E, kernel: &Kernel) -> Result<Vec<Processor>, UpdateError> {
    let registers: Vec<Registers> = engine.registers()?;
    let vector = irq_work::vector(engine, kernel, &registers)?;
    let memory = Snapshot::of(engine);
    let areas = tasks::per_cpu(&memory, kernel)?;
    let ids = kernel.symbol("x86_cpu_to_apicid")?;
    let mut found = Vec::new();
    for (index, one) in registers.iter().enumerate() {
        let is_started = one.idt_base >= KERNEL_HALF;
        if let Some(area) = areas.iter().find(|area| is_started && one.cpl == 0 && area.base == one.gs_base) {
            let mut id = [0; 2];
            kernel.read(&memory, Va(area.base.wrapping_add(ids)), &mut id, "a processor's APIC id")?;
            let apic_id = u8::try_from(u16::from_le_bytes(id)).unwrap_or(u8::MAX);
            found.push(Processor { vcpu: Vcpu(index), gs_base: area.base, wake: Wake { apic_id, vector } });
        }
    }
    Ok(found)
}

/// A thread's registers as `struct pt_regs` (`arch/x86/include/asm/ptrace.h`), where it returns to `ip`.
fn pt_regs(now: &Registers, ip: u64) -> Vec<u8> {
    let Registers { r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, rflags, rsp, .. } = *now;
    // No system call is behind it.
    let orig_ax = u64::MAX;
    let all = [
        r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_ax, ip, KERNEL_CS, rflags, rsp,
        KERNEL_DS,
    ];
    all.map(u64::to_le_bytes).concat()
}
