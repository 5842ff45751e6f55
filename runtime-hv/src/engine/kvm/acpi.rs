//! ACPI tables: how a guest learns of its processors, its interrupt controllers and its devices.
//!
//! Comes in: the number of processors and the virtio windows. Decided: a *hardware-reduced* platform (ACPI 6.5, 4.1): no
//! legacy timers, no power-management interrupt; sleep and reset through three ports. Goes out: tables in guest memory and
//! the address of the root pointer.
//!
//! A kernel with more than one processor needs them: distribution kernels have no parser for the older MP table.

use super::layout;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, ONE, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

const OEM: [u8; 6] = *b"LUCOS ";
const TABLE: [u8; 8] = *b"LUCOSHV ";
/// There are no VGA registers, no CMOS clock and no interrupts that PCI devices must not use (ACPI 6.5, table 5.11).
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;

/// A virtio window to announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// First address.
    pub(super) base: u32,
    /// Global system interrupt.
    pub(super) gsi: u32,
}

/// Bytes of a table.
struct Bytes8(Vec<u8>);

impl AmlSink for Bytes8 {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut sink = Bytes8(Vec::new());
    table.to_aml_bytes(&mut sink);
    sink.0
}

/// Writes the tables; gives the address of the root pointer.
///
/// # Errors
/// When they do not fit into their place.
pub(super) fn write(memory: &GuestMemoryMmap, cpus: u8, windows: &[Window]) -> Result<u64, GuestMemoryError> {
    let mut next = layout::ACPI.start + Rsdp::len() as u64;
    let mut place = |table: Vec<u8>| {
        let at = next.next_multiple_of(16);
        next = at + table.len() as u64;
        if next > layout::ACPI.end {
            return Err(GuestMemoryError::InvalidGuestAddress(GuestAddress(next)));
        }
        memory.write_slice(&table, GuestAddress(at)).map(|()| at)
    };
    let dsdt = place(dsdt(cpus, windows))?;
    let fadt = place(bytes(&fadt(dsdt)))?;
    let madt = place(bytes(&madt(cpus)))?;
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(bytes(&xsdt))?;
    let root = layout::ACPI.start;
    memory.write_slice(&bytes(&Rsdp::new(OEM, xsdt)), GuestAddress(root))?;
    Ok(root)
}

fn register(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = register(layout::RESET);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = register(layout::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(layout::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(layout::LOCAL_APIC));
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

/// The differentiated definition block: processors, the serial port, the virtio windows, and how to switch off.
fn dsdt(cpus: u8, windows: &[Window]) -> Vec<u8> {
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, 1);
    // Type 5 in the sleep control register: off.
    let off = Package::new(vec![&5_u8, &ZERO, &ZERO, &ZERO]);
    table.append_slice(&bytes(&Name::new(Path::new("_S5_"), &off)));
    for cpu in 0..cpus {
        let (id, uid) = (Name::new(Path::new("_HID"), &"ACPI0007"), Name::new(Path::new("_UID"), &cpu));
        let name = format!("C{cpu:03}");
        let device = Device::new(Path::new(&name), vec![&id, &uid]);
        table.append_slice(&bytes(&Scope::new(Path::new("_SB_"), vec![&device])));
    }
    let ports = IO::new(layout::COM1.start, layout::COM1.start, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, layout::COM1_GSI);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    let (id, uid) = (Name::new(Path::new("_HID"), &EISAName::new("PNP0501")), Name::new(Path::new("_UID"), &ONE));
    let resources = Name::new(Path::new("_CRS"), &resources);
    let device = Device::new(Path::new("COM1"), vec![&id, &uid, &resources]);
    table.append_slice(&bytes(&Scope::new(Path::new("_SB_"), vec![&device])));
    for (number, window) in windows.iter().enumerate() {
        table.append_slice(&virtio(number, *window));
    }
    table.as_slice().to_vec()
}

/// The id under which Linux looks for virtio-mmio (`drivers/virtio/virtio_mmio.c`, `virtio_mmio_acpi_match`).
fn virtio(number: usize, window: Window) -> Vec<u8> {
    let memory = Memory32Fixed::new(true, window.base, layout::VIRTIO_WINDOW as u32);
    let interrupt = Interrupt::new(true, true, false, false, window.gsi);
    let resources = ResourceTemplate::new(vec![&memory, &interrupt]);
    let (id, uid) = (Name::new(Path::new("_HID"), &"LNRO0005"), Name::new(Path::new("_UID"), &(number as u32)));
    // Devices do not share memory with the processor's cache in any other way than RAM does.
    let coherent = Name::new(Path::new("_CCA"), &ONE);
    let resources = Name::new(Path::new("_CRS"), &resources);
    let name = format!("V{number:03}");
    let device = Device::new(Path::new(&name), vec![&id, &uid, &coherent, &resources]);
    bytes(&Scope::new(Path::new("_SB_"), vec![&device]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn the_root_leads_to_every_table_and_all_checksums_hold() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("memory");
        let window = Window { base: layout::DEVICES as u32, gsi: 5 };
        let root = write(&memory, 16, &[window; layout::VIRTIO_LIMIT]).expect("written");
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(at)).expect("read");
            bytes
        };
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        let rsdp = read(root, 36);
        assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp)), (&b"RSD PTR "[..], 0, 0));
        let table = |at: u64| {
            let len = u32::from_le_bytes(read(at + 4, 4).try_into().expect("4 bytes"));
            let table = read(at, len as usize);
            assert_eq!(sum(&table), 0);
            table
        };
        let xsdt = table(word(&rsdp[24..32]));
        let tables: Vec<Vec<u8>> = xsdt[36..].chunks(8).map(|entry| table(word(entry))).collect();
        assert_eq!([&tables[0][..4], &tables[1][..4]], [b"FACP", b"APIC"]);
        let dsdt = table(word(&tables[0][140..148]));
        assert_eq!(&dsdt[..4], b"DSDT");
        assert_eq!(dsdt.windows(8).filter(|bytes| bytes == b"LNRO0005").count(), layout::VIRTIO_LIMIT);
        assert_eq!(dsdt.windows(8).filter(|bytes| bytes == b"ACPI0007").count(), 16);
    }
}
