//! Whether this host's KVM really runs 64-bit guests.
//!
//! Comes in: a host. Decided: by a guest of a few instructions: it takes a software interrupt and an interrupt message in 64-bit
//! mode, returns from both, and says so. Goes out: yes, or what went wrong. A device file alone says nothing: there are
//! implementations of it that run unmodified guests only as far as these instructions.

use super::bus::Bus;
use super::kernel::Entry;
use super::memory::Memory;
use super::serial::SerialPort;
use super::vcpu::{self, Left, Limit};
use super::{layout, machine, start};
use crate::engine::Pa;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_msi};
use kvm_ioctls::Kvm;
use std::time::Duration;
use vmm_sys_util::eventfd::EventFd;

/// Why KVM is not used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It cannot be opened, or lacks something.
    #[error(transparent)]
    Machine(#[from] super::MachineError),
    /// It does not do what a processor does.
    #[error("/dev/kvm does not run 64-bit guests as a processor would: {0}")]
    Unfit(String),
}

/// Where the little guest is.
const CODE: u64 = 0x1_0000;
const HANDLER: u64 = 0x1_0100;
const TABLE: u64 = 0x1_1000;
/// Interrupt vectors.
const SOFTWARE: u64 = 0x20;
const MESSAGE: u8 = 0x41;
/// What the handler counts up, and what the guest reports at the end.
const SEEN_BOTH: u32 = 2;
const LIMIT: Duration = Duration::from_secs(2);

/// `lidt [rsi]; xor eax, eax; int 0x20; sti; L: cmp eax, 2; jne L; mov dx, REPORT; out dx, eax; hlt` (Intel SDM vol. 2).
/// Waiting is done without `hlt`, so that the guest needs nothing but interrupts.
fn code() -> Vec<u8> {
    let mut code =
        vec![0x0f, 0x01, 0x1e, 0x31, 0xc0, 0xcd, SOFTWARE as u8, 0xfb, 0x83, 0xf8, SEEN_BOTH as u8, 0x75, 0xfb];
    let [low, high] = layout::REPORT.to_le_bytes();
    code.extend([0x66, 0xba, low, high, 0xef, 0xf4]);
    code
}

/// `inc eax; iretq`.
const HANDLER_CODE: [u8; 4] = [0xff, 0xc0, 0x48, 0xcf];

/// An interrupt gate of 64-bit mode (Intel SDM vol. 3, figure 6-8).
fn gate(handler: u64) -> [u8; 16] {
    let mut gate = [0; 16];
    gate[..2].copy_from_slice(&(handler as u16).to_le_bytes());
    gate[2] = 0x10;
    gate[5] = 0x8e;
    gate[6..8].copy_from_slice(&((handler >> 16) as u16).to_le_bytes());
    gate
}

/// Runs the little guest.
///
/// # Errors
/// [`ProbeError`].
pub fn probe() -> Result<(), ProbeError> {
    let unfit = |what: &str| {
        let what = what.to_owned();
        move |error: kvm_ioctls::Error| ProbeError::Unfit(format!("{what}: {error}"))
    };
    let memory = Memory::new(2 << 20).map_err(machine::host("memory for a guest"))?;
    let system = Kvm::new().map_err(machine::kvm("open"))?;
    let vm = machine::virtual_machine(&system, &memory)?;
    let write = |at: u64, bytes: &[u8]| {
        memory.write(Pa(at), bytes).map_err(|error| ProbeError::Unfit(format!("memory of a guest: {error}")))
    };
    write(CODE, &code())?;
    write(HANDLER, &HANDLER_CODE)?;
    for vector in [SOFTWARE, MESSAGE.into()] {
        write(TABLE + vector * 16, &gate(HANDLER))?;
    }
    // The operand of `lidt`, where RSI points: limit and base.
    let operand = [&0xfff_u16.to_le_bytes()[..], &TABLE.to_le_bytes()].concat();
    write(layout::BOOT_PARAMS, &operand)?;
    let entry = Entry::Long(CODE);
    start::write_tables(memory.ram(), entry)
        .map_err(|error| ProbeError::Unfit(format!("memory of a guest: {error}")))?;
    let mut vcpu = vm.create_vcpu(0).map_err(unfit("a processor"))?;
    let supported = system.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(unfit("processor features"))?;
    vcpu.set_cpuid2(&super::cpuid::of(&supported, 0, 1)).map_err(unfit("features of a processor"))?;
    start::every(&vcpu).map_err(unfit("registers of a processor"))?;
    start::first(&vcpu, entry).map_err(unfit("registers of a processor"))?;
    enable_apic(&vcpu).map_err(unfit("the local APIC"))?;
    let message = kvm_msi { address_lo: layout::LOCAL_APIC, data: MESSAGE.into(), ..kvm_msi::default() };
    vm.signal_msi(message).map_err(unfit("an interrupt message"))?;

    let event = EventFd::new(nix::libc::EFD_NONBLOCK).map_err(machine::host("an event file descriptor"))?;
    let (serial, _writer) =
        SerialPort::new(event, Box::new(std::io::sink())).map_err(machine::host("a thread for the console"))?;
    vcpu::prepare_kicks().map_err(machine::host("a signal handler"))?;
    let limit = Limit::new(LIMIT).map_err(|error| ProbeError::Unfit(format!("a timer: {error}")))?;
    let bus = Bus { serial, windows: Vec::new() };
    match vcpu::run(&mut vcpu, 0, &bus, || limit.is_over()) {
        Left::Reported(SEEN_BOTH) => Ok(()),
        Left::Asked => Err(ProbeError::Unfit(vcpu::failure(&vcpu, format!("no end after {} s", LIMIT.as_secs())))),
        left => Err(ProbeError::Unfit(vcpu::failure(&vcpu, format!("{left:?}")))),
    }
}

/// Switches the local APIC on: the spurious-interrupt vector register (Intel SDM vol. 3, 11.9).
fn enable_apic(vcpu: &kvm_ioctls::VcpuFd) -> Result<(), kvm_ioctls::Error> {
    const SPURIOUS: usize = 0xf0;
    let mut apic = vcpu.get_lapic()?;
    for (byte, value) in apic.regs[SPURIOUS..SPURIOUS + 4].iter_mut().zip(0x1ff_u32.to_le_bytes()) {
        *byte = value as i8;
    }
    vcpu.set_lapic(&apic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_hold_the_whole_address() {
        let gate = gate(0x1234_5678);
        assert_eq!((gate[0], gate[1], gate[6], gate[7]), (0x78, 0x56, 0x34, 0x12));
    }

    #[test]
    fn a_host_is_fit_or_says_why_not() {
        if let Err(error) = probe() {
            assert!(error.to_string().contains("/dev/kvm"), "{error}");
            eprintln!("skipped: {error}");
        }
    }
}
