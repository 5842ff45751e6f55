//! Where everything is in the guest's physical memory.
//!
//! Comes in: how much memory a guest shall have. Decided: the ranges that are memory, and the fixed places below. Goes out:
//! constants and [`ram`].
//!
//! ```text
//! 0x0000_0500  GDT and an empty IDT            boot only
//! 0x0000_7000  boot_params ("zero page") or PVH start info
//! 0x0000_8ff0  stack of the first instructions boot only
//! 0x0000_9000  page tables of the first instructions (6 pages)
//! 0x0002_0000  kernel command line
//! 0x0009_fc00  end of low memory, as firmware reports it
//! 0x000e_0000  ACPI: RSDP, then the tables     reserved in the memory map
//! 0x000f_0000  MultiProcessor tables           likewise
//! 0x0010_0000  the kernel, as far as it says it wants
//! …            the initial file system, at the end of memory below 3 GiB
//! 0xc000_0000  devices, up to 4 GiB: virtio windows here, I/O APIC at 0xfec0_0000, local APICs at 0xfee0_0000
//! 0x1_0000_0000 the rest of memory
//! …            the arena: the next multiple of 1 GiB behind all memory, 2 MiB; in no memory map
//! ```

use std::ops::Range;

/// Global descriptor table of the first instructions.
pub(super) const GDT: u64 = 0x500;
/// Interrupt descriptor table of the first instructions: empty.
pub(super) const IDT: u64 = 0x520;
/// `struct boot_params` (`Documentation/x86/zero-page.rst`), or `struct hvm_start_info`.
pub(super) const BOOT_PARAMS: u64 = 0x7000;
/// PVH: list of modules, and the memory map.
pub(super) const PVH_MODULES: u64 = 0x7100;
/// PVH: the memory map.
pub(super) const PVH_MEMORY_MAP: u64 = 0x7200;
/// First stack pointer.
pub(super) const BOOT_STACK: u64 = 0x8ff0;
/// Page tables that map the first 4 GiB one to one: one page of level 4, one of level 3, four of level 2.
pub(super) const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub(super) const COMMAND_LINE: u64 = 0x2_0000;
/// End of memory below the extended BIOS data area, as PCs report it.
pub(super) const LOW_MEMORY_END: u64 = 0x9_fc00;
/// ACPI's root pointer, where kernels look for it (ACPI 6.5, 5.2.5.1), and the tables behind it.
pub(super) const ACPI: Range<u64> = 0xe_0000..0x10_0000;
/// The tables for kernels without ACPI, in the last 64 KiB of the same area.
pub(super) const MP_TABLES: u64 = 0xf_0000;
/// Where memory goes on after the BIOS area.
pub(super) const HIGH_MEMORY: u64 = 0x10_0000;
/// Devices begin here; memory goes on at [`FOUR_GIB`].
pub(super) const DEVICES: u64 = 0xc000_0000;
/// Length of one virtio-mmio window.
pub(super) const VIRTIO_WINDOW: u64 = super::virtio::MMIO_WINDOW;
/// Interrupt of the first virtio device (global system interrupt); the others follow.
pub(super) const VIRTIO_FIRST_GSI: u32 = 5;
/// Most devices: interrupts up to the I/O APIC's last but one.
pub(super) const VIRTIO_LIMIT: usize = 16;
/// Where memory goes on above the devices.
pub(super) const FOUR_GIB: u64 = 1 << 32;
/// I/O APIC (fixed by KVM's own model).
pub(super) const IO_APIC: u32 = 0xfec0_0000;
/// Local APICs (Intel SDM vol. 3, 11.4.1).
pub(super) const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM wants for real mode on Intel processors (Documentation/virt/kvm/api.rst, KVM_SET_TSS_ADDR).
pub(super) const KVM_TSS: usize = 0xfffb_d000;
/// One page that KVM wants for real mode without paging (same file, KVM_SET_IDENTITY_MAP_ADDR).
pub(super) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Memory for new code; one page directory entry's worth.
pub(super) const ARENA_SIZE: u64 = 2 << 20;

/// First serial port.
pub(super) const COM1: Range<u16> = 0x3f8..0x400;
/// Its interrupt.
pub(super) const COM1_GSI: u32 = 4;
/// Command port of the keyboard controller, through which PCs are reset.
pub(super) const I8042_COMMAND: u16 = 0x64;
/// ACPI sleep control register (ACPI 6.5, 4.8.3.7).
pub(super) const SLEEP_CONTROL: u16 = 0x600;
/// ACPI sleep status register.
pub(super) const SLEEP_STATUS: u16 = 0x601;
/// ACPI reset register (ACPI 6.5, 4.8.3.6).
pub(super) const RESET: u16 = 0x602;
/// What is written to [`RESET`].
pub(super) const RESET_VALUE: u8 = 1;
/// The port through which code of the service in the guest reports; the value is 32 bits wide.
pub(super) const REPORT: u16 = 0x6c75;
/// The same for code that may change no register; the value is 8 bits wide. Nothing else is at this port, and Linux looks for nothing
/// there.
pub(super) const QUIET_REPORT: u8 = 0xea;
/// Code that reports AL and never runs on: `out QUIET_REPORT, al; jmp` back to it (Intel SDM vol. 2). So a report that nobody could take
/// comes again.
pub(super) const REPORT_CODE: [u8; 4] = [0xe6, QUIET_REPORT, 0xeb, 0xfc];

/// Ranges of memory of a guest with `size` bytes: below the devices, and what does not fit there above 4 GiB.
pub(super) fn ram(size: u64) -> Vec<Range<u64>> {
    let low = size.min(DEVICES);
    [0..low, FOUR_GIB..FOUR_GIB + (size - low)].into_iter().filter(|range| !range.is_empty()).collect()
}

/// First address of the arena, for memory that ends at `ram_end`.
pub(super) fn arena(ram_end: u64) -> u64 {
    ram_end.max(FOUR_GIB).next_multiple_of(1 << 30)
}

/// Memory that the guest may use as it likes, as its memory map says (type 1 of E820).
pub(super) fn usable(ram: &[Range<u64>]) -> Vec<Range<u64>> {
    let high = ram.iter().map(|range| range.start.max(HIGH_MEMORY)..range.end);
    std::iter::once(0..LOW_MEMORY_END).chain(high).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_leaves_a_hole_for_devices() {
        const GIB: u64 = 1 << 30;
        assert_eq!((ram(GIB).len(), ram(GIB)[0].end), (1, GIB));
        assert_eq!((ram(3 * GIB).len(), ram(3 * GIB)[0].end), (1, 3 * GIB));
        assert_eq!(ram(5 * GIB), [0..3 * GIB, 4 * GIB..6 * GIB]);
        assert_eq!((arena(GIB), arena(6 * GIB), arena(6 * GIB + 1)), (4 * GIB, 6 * GIB, 7 * GIB));
        assert_eq!(usable(&ram(5 * GIB))[1..], [0x10_0000..3 * GIB, 4 * GIB..6 * GIB]);
    }
}
