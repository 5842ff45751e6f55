//! The author's hooks: functions of the bundle, run in the guest while it stands.
//!
//! Comes in: a bundle whose code is in the guest's module memory, and a stopped guest. Decided: on which processor a hook runs, and
//! what its answer means. Goes out: nothing, or why the update cannot go on. What a hook is told is declared in `support/lucos.h`;
//! the area has room for it behind the bundle's data, for a stack, and behind its code for what a hook returns to.

use super::UpdateError;
use super::area::{Area, HOOK_STACK, HOOK_TOLD, REPORT_ROOM};
use super::link::{self, Addresses};
use crate::engine::{Call, CallError, Engine, Pa, Registers, Va, Vcpu, Wake};
use crate::guest::arena::Write;
use crate::guest::identity::KERNEL_HALF;
use crate::guest::snapshot::Snapshot;
use crate::guest::{Kernel, irq_work, tasks};
use lpk_format::{Bundle, Hook, HookKind, HookSubject};
use std::time::Duration;

/// The guest stands so long at most for one hook.
const LIMIT: Duration = Duration::from_millis(500);
/// Where the name of the update is in what a hook is told.
const NAME_AT: u64 = 64;

/// Hooks of a bundle, ready to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    name: String,
    list: Vec<(Hook, Va)>,
    /// Where the new copy of a hook's datum is.
    addresses: Addresses,
    payload_bss: u64,
    slide: u64,
    /// What a hook returns to.
    back: (Va, Pa),
    /// What it is told.
    told: (Va, Pa),
    stack: Va,
    cr3: u64,
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
        let function = |hook: &Hook| Va(addresses.text.wrapping_add(u64::from(hook.offset)));
        Ok(Some(Hooks {
            name: bundle.manifest.name.clone(),
            list: bundle.payload.hooks.iter().map(|hook| (hook.clone(), function(hook))).collect(),
            payload_bss: link::data_offset(&bundle.payload, lpk_format::SectionKind::Bss, 0),
            slide: kernel.slide(),
            back: place(addresses.rodata.wrapping_sub(REPORT_ROOM))?,
            told: place(end.wrapping_sub(HOOK_STACK + HOOK_TOLD))?,
            stack: Va(end),
            cr3: kernel.root().table.0,
            addresses,
        }))
    }

    /// What has to be in the guest before the first call: what hooks return to, and the update's name.
    ///
    /// # Errors
    /// Of the engine.
    pub fn writes<E: Engine>(&self, engine: &E) -> Result<Vec<Write>, UpdateError> {
        let name = [self.name.as_bytes(), &[0]].concat();
        let mut writes = Vec::new();
        for (pa, new) in [(self.back.1.0, engine.report_code().to_vec()), (self.told.1.0 + NAME_AT, name)] {
            let mut old = vec![0; new.len()];
            engine.read(Pa(pa), &mut old)?;
            writes.push(Write { pa, old, new });
        }
        Ok(writes)
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
        for (hook, function) in self.of(kind) {
            let value = self.call(engine, kernel, hook, *function, &told)?;
            // It returns an int.
            let value = value as u32 as i32;
            if may_veto && value != 0 {
                return Err(UpdateError::Vetoed { hook: hook.kind.name(), value });
            }
        }
        Ok(())
    }

    /// Runs the hooks that make one copy of a datum from the other, all of it.
    ///
    /// # Errors
    /// As [`Hooks::about_update`].
    pub fn about_data<E: Engine>(&self, engine: &mut E, kernel: &Kernel, kind: HookKind) -> Result<(), UpdateError> {
        for (hook, function) in self.of(kind) {
            let HookSubject::Datum { old_address, old_size, section, new_offset, new_size, .. } = hook.subject else {
                continue;
            };
            let old = old_address.wrapping_add(self.slide);
            let new = match section {
                lpk_format::SectionKind::Rodata => self.addresses.rodata,
                lpk_format::SectionKind::Bss => self.addresses.data.wrapping_add(self.payload_bss),
                _ => self.addresses.data,
            };
            let new = new.wrapping_add(u64::from(new_offset));
            let (to, from, length) =
                if kind == HookKind::SyncToNew { (new, old, old_size) } else { (old, new, new_size) };
            let mut told = [40_u32, 1].map(u32::to_le_bytes).concat();
            told.extend([to, from, 0, u64::from(length)].map(u64::to_le_bytes).concat());
            self.call(engine, kernel, hook, *function, &told)?;
        }
        Ok(())
    }

    fn of(&self, kind: HookKind) -> impl Iterator<Item = &(Hook, Va)> {
        self.list.iter().filter(move |(hook, _)| hook.kind == kind)
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
            let call = Call {
                function,
                arguments: [self.told.0.0, 0, 0, 0, 0, 0],
                stack: self.stack,
                back: self.back.0,
                gs_base: processor.gs_base,
                cr3: self.cr3,
                limit: LIMIT,
                wake: processor.wake,
            };
            match engine.call(processor.vcpu, &call) {
                Ok(value) => return Ok(value),
                Err(error @ CallError::NotNow { .. }) => why = error.to_string(),
                Err(source) => return Err(UpdateError::HookFailed { hook: name, source }),
            }
        }
        Err(UpdateError::NoProcessor { hook: name, why })
    }
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
