//! How a guest without ACPI learns of processors and interrupts: the tables of Intel's MultiProcessor Specification 1.4.
//!
//! Comes in: the number of processors. Decided: the tables, as PCs have them: an ISA bus whose interrupts go to the I/O APIC, the legacy
//! controller at LINT0, NMI at LINT1. Goes out: the tables in guest memory, where kernels look for them (4, "MP Configuration
//! Table"). Kernels with ACPI look there first and use nothing of this.

use super::layout;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Length of the structure that points to the table (4.1), and of the table's header (4.2).
const POINTER: u64 = 16;
const HEADER: usize = 44;
/// Types of entries (4.3, table 4-3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
/// Interrupt types (4.3.4, table 4-10).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;
/// Version 1.4.
const REVISION: u8 = 4;
/// Versions of the APICs that KVM has.
const LOCAL_VERSION: u8 = 0x14;
const IO_VERSION: u8 = 0x11;
/// Interrupts of an ISA bus.
const ISA_INTERRUPTS: u8 = 16;
/// All local APICs.
const EVERY: u8 = 0xff;
/// Family 6, and an APIC and an x87 unit on the chip: nobody looks closer (4.3.1).
const SIGNATURE: u32 = 0x600;
const FEATURES: u32 = 1 << 9 | 1;

/// Writes the tables.
///
/// # Errors
/// When the memory is not there.
pub(super) fn write(memory: &GuestMemoryMmap, cpus: u8) -> Result<(), GuestMemoryError> {
    let table_at = layout::MP_TABLES + POINTER;
    let mut pointer = b"_MP_".to_vec();
    pointer.extend((table_at as u32).to_le_bytes());
    pointer.extend([1, REVISION, 0, 0, 0, 0, 0, 0]);
    sum_up(&mut pointer, 10);
    memory.write_slice(&pointer, GuestAddress(layout::MP_TABLES))?;
    memory.write_slice(&table(cpus), GuestAddress(table_at))
}

fn table(cpus: u8) -> Vec<u8> {
    // The I/O APIC's id comes behind those of the processors.
    let io_apic = cpus;
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for cpu in 0..cpus {
        let flags = 1 | u8::from(cpu == 0) << 1;
        let mut entry = vec![PROCESSOR, cpu, LOCAL_VERSION, flags];
        entry.extend([SIGNATURE, FEATURES, 0, 0].map(u32::to_le_bytes).concat());
        entries.push(entry);
    }
    entries.push([&[BUS, 0][..], b"ISA   "].concat());
    entries.push([&[IO_APIC, io_apic, IO_VERSION, 1][..], &layout::IO_APIC.to_le_bytes()].concat());
    entries.extend((0..ISA_INTERRUPTS).map(|irq| vec![IO_INTERRUPT, INT, 0, 0, 0, irq, io_apic, irq]));
    entries.push(vec![LOCAL_INTERRUPT, EXTINT, 0, 0, 0, 0, EVERY, 0]);
    entries.push(vec![LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, EVERY, 1]);

    let length = HEADER + entries.iter().map(Vec::len).sum::<usize>();
    let mut table = b"PCMP".to_vec();
    table.extend((length as u16).to_le_bytes());
    table.extend([REVISION, 0]);
    table.extend(b"LUCOS   LUCOS-HV    ");
    // No table of the manufacturer's own.
    table.extend([0; 6]);
    table.extend((entries.len() as u16).to_le_bytes());
    table.extend(layout::LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries.concat());
    sum_up(&mut table, 7);
    table
}

/// Makes all bytes add up to 0.
fn sum_up(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[at] = bytes[at].wrapping_sub(sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_found_and_add_up() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("memory");
        write(&memory, 16).expect("written");
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(at)).expect("read");
            bytes
        };
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        // Kernels look at every 16 bytes of the last 64 KiB below 1 MiB.
        assert!(layout::MP_TABLES >= 0xf_0000 && layout::MP_TABLES.is_multiple_of(16));
        let pointer = read(layout::MP_TABLES, 16);
        assert_eq!((&pointer[..4], sum(&pointer)), (&b"_MP_"[..], 0));
        let at = u32::from_le_bytes(pointer[4..8].try_into().expect("4 bytes")).into();
        let header = read(at, HEADER);
        let length = u16::from_le_bytes([header[4], header[5]]).into();
        let table = read(at, length);
        assert_eq!((&table[..4], sum(&table), length), (&b"PCMP"[..], 0, HEADER + 16 * 20 + 8 + 8 + 16 * 8 + 16));
        assert!(at + (length as u64) <= layout::ACPI.end);
    }
}
