//! The bundled hypervisor: a lightweight KVM machine that boots stock kernels and updates them.
//!
//! Comes in: a kernel and the size of a machine. Decided: in `machine`, the machine from the first instruction to the last; here,
//! how each power of the service is had. Goes out: an engine that owns its guest.
//!
//! | power | way |
//! | --- | --- |
//! | pause, resume | a signal to each processor's thread; a `gate` that they wait at |
//! | registers | KVM, while the processors stand |
//! | read, write | the host's own mapping of guest memory (`memory`) |
//! | interrupt | a message-signalled interrupt by ioctl |
//! | arena | a memory slot above all memory, in no memory map of the guest |
//! | trap | the page is made unwritable in the guest's mapping; one single step lets a write through (`events`) |
//! | report | output of 32 bits to a port, from ring 0 |
//! | call | a processor with other registers for a while (`call`) |

mod acpi;
mod bus;
mod call;
mod cpuid;
mod events;
mod gate;
mod ioctls;
mod kernel;
mod layout;
mod little;
mod machine;
mod measure;
mod memory;
mod mptable;
mod probe;
mod serial;
mod start;
#[cfg(test)]
mod tests;
mod vcpu;
pub mod virtio;

use super::{
    Arena, ArenaSource, Attend, Call, CallError, Calls, Engine, EngineError, Interrupt, Pa, Pause, ReadMemory,
    Registers, Trapped, Va, Vcpu, Vcpus, Watch, WriteMemory,
};
use gate::{GateError, Holder};
use kvm_bindings::kvm_msi;
use machine::{Machine, Running};
use std::time::{Duration, Instant};
use vcpu::Processor;

pub use kernel::KernelError;
pub use machine::{CPUS_LIMIT, DEVICES_LIMIT, MachineConfig, MachineError};
pub use measure::{Costs, measure};
pub use probe::{ProbeError, probe};
pub use vcpu::End;

/// A machine of our own. Dropping it ends the guest.
pub struct KvmEngine {
    running: Running,
    /// Since when the service holds it.
    held: Option<Instant>,
    last_pause: Duration,
}

impl KvmEngine {
    /// Starts a machine.
    ///
    /// # Errors
    /// [`MachineError`]; nothing is left behind.
    pub fn start(config: MachineConfig) -> Result<KvmEngine, MachineError> {
        Ok(KvmEngine { running: Running::start(config)?, held: None, last_pause: Duration::ZERO })
    }

    /// How the guest ended, if it has.
    #[must_use]
    pub fn how_it_ended(&self) -> Option<End> {
        self.machine().how_it_ended()
    }

    /// Waits for the guest to end, no longer than `limit`.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> Option<End> {
        self.machine().wait(limit)
    }

    fn machine(&self) -> &Machine {
        &self.running.machine
    }

    fn needs_hold(&self, what: &'static str) -> Result<(), EngineError> {
        if self.held.is_some() { Ok(()) } else { Err(EngineError::Running(what)) }
    }
}

impl Machine {
    fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
        let len = into.len();
        self.memory.read(from, into).map_err(|error| EngineError::Memory { pa: from.0, len, reason: error.to_string() })
    }

    fn write(&self, to: Pa, bytes: &[u8]) -> Result<(), EngineError> {
        let failed = |error: vm_memory::GuestMemoryError| EngineError::Memory {
            pa: to.0,
            len: bytes.len(),
            reason: error.to_string(),
        };
        self.memory.write(to, bytes).map_err(failed)
    }

    fn processor(&self, vcpu: Vcpu) -> Result<&Processor, EngineError> {
        self.processors.get(vcpu.0).ok_or_else(|| connection(format!("there is no processor {}", vcpu.0)))
    }

    fn registers(&self, vcpu: Vcpu) -> Result<Registers, EngineError> {
        let fd = self.processor(vcpu)?.fd();
        let (regs, special) = (fd.get_regs().map_err(registers_failed)?, fd.get_sregs().map_err(registers_failed)?);
        Ok(Registers {
            rip: regs.rip,
            rsp: regs.rsp,
            rbp: regs.rbp,
            rax: regs.rax,
            rbx: regs.rbx,
            rcx: regs.rcx,
            rdx: regs.rdx,
            rsi: regs.rsi,
            rdi: regs.rdi,
            r8: regs.r8,
            r9: regs.r9,
            r10: regs.r10,
            r11: regs.r11,
            r12: regs.r12,
            r13: regs.r13,
            r14: regs.r14,
            r15: regs.r15,
            rflags: regs.rflags,
            // The privilege of the stack segment is the processor's (Intel SDM vol. 3, 5.5).
            cpl: special.ss.dpl,
            cr3: special.cr3,
            cr4: special.cr4,
            idt_base: special.idt.base,
            gs_base: special.gs.base,
        })
    }
}

fn connection(reason: String) -> EngineError {
    EngineError::Connection { peer: "KVM", reason }
}

fn registers_failed(error: kvm_ioctls::Error) -> EngineError {
    connection(format!("registers of a processor: {error}"))
}

impl ReadMemory for KvmEngine {
    fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
        self.machine().read(from, into)
    }
}

impl WriteMemory for KvmEngine {
    fn write(&mut self, to: Pa, bytes: &[u8]) -> Result<(), EngineError> {
        self.needs_hold("a write")?;
        self.machine().write(to, bytes)
    }
}

impl Pause for KvmEngine {
    fn pause(&mut self) -> Result<(), EngineError> {
        if self.held.is_none() {
            let since = Instant::now();
            self.machine().hold(Holder::Service).map_err(|error| match error {
                GateError::Closed => EngineError::State("ended"),
                late @ GateError::Late(_) => connection(late.to_string()),
            })?;
            self.held = Some(since);
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), EngineError> {
        if let Some(since) = self.held.take() {
            self.machine().refresh();
            self.machine().gate.release();
            self.last_pause = since.elapsed();
        }
        Ok(())
    }

    fn is_paused(&mut self) -> Result<bool, EngineError> {
        // Nobody else can stop this guest.
        Ok(false)
    }

    fn is_held(&mut self) -> Result<bool, EngineError> {
        Ok(self.machine().gate.is_held())
    }

    fn last_pause(&self) -> Duration {
        self.last_pause
    }

    fn resets(&self) -> u64 {
        // A guest that resets itself ends.
        0
    }
}

impl Vcpus for KvmEngine {
    fn registers(&mut self) -> Result<Vec<Registers>, EngineError> {
        // KVM tells nothing of a processor that runs.
        let brief = self.held.is_none();
        if brief {
            self.pause()?;
        }
        let machine = self.machine();
        let registers = (0..machine.processors.len()).map(|cpu| machine.registers(Vcpu(cpu))).collect();
        if brief {
            self.resume()?;
        }
        registers
    }
}

impl Interrupt for KvmEngine {
    fn interrupt(&mut self, apic_id: u8, vector: u8) -> Result<(), EngineError> {
        self.needs_hold("an interrupt")?;
        // Physical destination, fixed delivery (Intel SDM vol. 3, 11.11).
        let message = kvm_msi {
            address_lo: layout::LOCAL_APIC | u32::from(apic_id) << 12,
            data: vector.into(),
            ..kvm_msi::default()
        };
        match self.machine().vm.signal_msi(message) {
            Ok(delivered) if delivered > 0 => Ok(()),
            Ok(_) => Err(connection(format!("no processor with APIC id {apic_id} takes vector {vector:#x}"))),
            Err(error) => Err(connection(format!("KVM_SIGNAL_MSI: {error}"))),
        }
    }
}

impl Arena for KvmEngine {
    fn arena(&self) -> ArenaSource {
        let arena = self.machine().memory.arena();
        ArenaSource::Slot(Pa(arena.start), arena.end - arena.start)
    }
}

impl Watch for KvmEngine {
    // Reports come through a port, from wherever they come.
    fn attend(&mut self, attendant: Option<Box<dyn Attend>>, _: &[Va]) -> Result<(), EngineError> {
        self.needs_hold("an attendant")?;
        self.machine().events.attend(attendant);
        Ok(())
    }

    fn trap(&mut self, what: &Trapped) -> Result<(), EngineError> {
        self.needs_hold("a trap")?;
        self.machine().trap(what)
    }

    fn untrap(&mut self, what: &Trapped) -> Result<(), EngineError> {
        self.needs_hold("a trap")?;
        self.machine().untrap(what)
    }
}

impl Calls for KvmEngine {
    fn report_code(&self) -> &'static [u8] {
        &layout::REPORT_CODE
    }

    fn call(&mut self, vcpu: Vcpu, call: &Call) -> Result<u64, CallError> {
        self.needs_hold("a call")?;
        call::run(&self.running.machine, vcpu, call)
    }
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn watch(&mut self) -> Option<&mut dyn Watch> {
        Some(self)
    }
}
