//! The state in which the first processor begins.
//!
//! Comes in: an entry point. Decided: flat segments, and page tables that map the first 4 GiB one to one. Goes out: a
//! processor that is ready to run, in 64-bit mode (`Documentation/x86/boot.rst`, "64-bit Boot Protocol") or, for PVH, in
//! 32-bit mode without paging. The other processors wait for the kernel to start them (INIT and SIPI, which KVM's local
//! APICs carry).

use super::kernel::Entry;
use super::layout;
use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

/// A present segment descriptor of 4 GiB (Intel SDM vol. 3, figure 3-8): code for 64-bit mode, code for 32-bit mode, data.
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
/// A busy 32-bit task state segment, which VM entry wants.
const TASK: u64 = 0x0000_8b00_0000_0067;
/// Where the boot protocol wants code and data: `__BOOT_CS` and `__BOOT_DS`.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Control register 0: protection, and paging (Intel SDM vol. 3, 2.5).
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
/// Control register 4: physical addresses of more than 32 bits.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled, and active.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Flags: bit 1 is always set.
const FLAGS: u64 = 2;

/// Page table entry: present and writable; a 2 MiB page.
const TABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 0b1000_0011;
const PAGE: u64 = 4096;

/// Model-specific registers (Intel SDM vol. 4, 2.1).
const IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRING: u64 = 1;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Enabled, and write-back is the default.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Writes the tables that the first instructions use.
///
/// # Errors
/// When guest memory is smaller than their place.
pub(super) fn write_tables(memory: &GuestMemoryMmap, entry: Entry) -> Result<(), vm_memory::GuestMemoryError> {
    let code = if matches!(entry, Entry::Long(_)) { CODE_64 } else { CODE_32 };
    for (index, descriptor) in [0, 0, code, DATA, TASK].into_iter().enumerate() {
        memory.write_obj::<u64>(descriptor, GuestAddress(layout::GDT + index as u64 * 8))?;
    }
    if matches!(entry, Entry::Pvh(_)) {
        return Ok(());
    }
    let (level4, level3) = (layout::PAGE_TABLES, layout::PAGE_TABLES + PAGE);
    memory.write_obj(level3 | TABLE, GuestAddress(level4))?;
    for gib in 0..4 {
        let level2 = level3 + PAGE * (gib + 1);
        memory.write_obj(level2 | TABLE, GuestAddress(level3 + gib * 8))?;
        for index in 0..512 {
            let page = gib << 30 | index << 21;
            memory.write_obj(page | LARGE_PAGE, GuestAddress(level2 + index * 8))?;
        }
    }
    Ok(())
}

/// A segment register that holds one of the descriptors above.
fn segment(descriptor: u64, selector: u16) -> kvm_segment {
    let bit = |at: u32| (descriptor >> at & 1) as u8;
    kvm_segment {
        base: 0,
        limit: if bit(55) == 1 { u32::MAX } else { (descriptor & 0xffff) as u32 },
        selector,
        type_: (descriptor >> 40 & 0xf) as u8,
        present: bit(47),
        dpl: (descriptor >> 45 & 3) as u8,
        db: bit(54),
        s: bit(44),
        l: bit(53),
        g: bit(55),
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// General and special registers for an entry.
fn registers(entry: Entry, mut special: kvm_sregs) -> (kvm_regs, kvm_sregs) {
    let regs = kvm_regs { rflags: FLAGS, ..kvm_regs::default() };
    let (regs, code) = match entry {
        Entry::Long(rip) => {
            special.cr3 = layout::PAGE_TABLES;
            special.cr4 |= CR4_PAE;
            special.cr0 |= CR0_PG;
            special.efer |= EFER_LME | EFER_LMA;
            let stack = layout::BOOT_STACK;
            (kvm_regs { rip, rsp: stack, rbp: stack, rsi: layout::BOOT_PARAMS, ..regs }, CODE_64)
        }
        Entry::Pvh(rip) => {
            special.cr4 = 0;
            special.efer = 0;
            (kvm_regs { rip, rbx: layout::BOOT_PARAMS, ..regs }, CODE_32)
        }
    };
    special.cr0 = special.cr0 & CR0_PG | CR0_PE | CR0_ET;
    special.cs = segment(code, CODE_SELECTOR);
    let data = segment(DATA, DATA_SELECTOR);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.tr = segment(TASK, TASK_SELECTOR);
    (special.gdt.base, special.gdt.limit) = (layout::GDT, 5 * 8 - 1);
    (special.idt.base, special.idt.limit) = (layout::IDT, 0);
    (regs, special)
}

/// Sets up the first processor.
///
/// # Errors
/// Of KVM.
pub(super) fn first(vcpu: &VcpuFd, entry: Entry) -> Result<(), kvm_ioctls::Error> {
    let (regs, special) = registers(entry, vcpu.get_sregs()?);
    vcpu.set_sregs(&special)?;
    vcpu.set_regs(&regs)
}

/// Local APIC registers of the pins LINT0 and LINT1, and how they deliver (Intel SDM vol. 3, 11.5.1).
const LINT: [(usize, u32); 2] = [(0x350, EXTINT), (0x360, NMI)];
const EXTINT: u32 = 7 << 8;
const NMI: u32 = 4 << 8;

/// Connects the pins as firmware leaves them: the legacy interrupt controller and NMI (MultiProcessor Specification, 3.6.2.2).
fn connect_pins(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut apic = vcpu.get_lapic()?;
    for (at, value) in LINT {
        for (register, byte) in apic.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
            *register = byte.cast_signed();
        }
    }
    vcpu.set_lapic(&apic)
}

/// Sets up what every processor has when it comes out of reset, beyond what KVM does.
///
/// # Errors
/// Of KVM.
pub(super) fn every(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entry = |index, data| kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
    // One by one: a processor without a register is no reason to leave the others alone.
    for one in [entry(IA32_MISC_ENABLE, FAST_STRING), entry(IA32_MTRR_DEF_TYPE, MTRR_WRITE_BACK)] {
        if let Ok(registers) = Msrs::from_entries(&[one]) {
            vcpu.set_msrs(&registers)?;
        }
    }
    connect_pins(vcpu)?;
    // Control word 0x37f and MXCSR 0x1f80, as after FNINIT and reset (Intel SDM vol. 3, table 10-1).
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..kvm_fpu::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_four_gib_are_mapped_one_to_one() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        write_tables(&memory, Entry::Long(0)).expect("written");
        let read = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).expect("read");
        for at in [0_u64, 0x20_0000, 0xc000_1234, 0xffff_ffff] {
            let level3 = read(layout::PAGE_TABLES) & !0xfff;
            let level2 = read(level3 + (at >> 30) * 8) & !0xfff;
            assert_eq!(read(level2 + (at >> 21 & 511) * 8), at & !0x1f_ffff | LARGE_PAGE);
        }
    }

    #[test]
    fn segments_are_as_their_descriptors_say() {
        let (regs, special) = registers(Entry::Long(0x100_0200), kvm_sregs::default());
        assert_eq!((regs.rip, regs.rsi, special.cs.l, special.cs.db), (0x100_0200, layout::BOOT_PARAMS, 1, 0));
        assert_eq!((special.ss.type_, special.ss.limit, special.tr.type_, special.tr.s), (3, u32::MAX, 11, 0));
        let (regs, special) = registers(Entry::Pvh(0x100_0000), kvm_sregs::default());
        assert_eq!((regs.rbx, special.cs.l, special.cs.db, special.cr0), (layout::BOOT_PARAMS, 0, 1, CR0_PE | CR0_ET));
    }
}
