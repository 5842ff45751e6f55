//! The kernel, its command line and its initial file system: from files into guest memory.
//!
//! Comes in: files and a memory map. Decided: what kind of image it is, and how it wants to be entered: PVH where an ELF image
//! says so, else the 64-bit protocol (`Documentation/x86/boot.rst`). Goes out: where a processor starts, with everything
//! that the kernel wants to know in place.

use super::layout;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator as _, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::{PvhBootCapability, start_info};
use linux_loader::loader::{BzImage, Elf, KernelLoader as _, KernelLoaderResult};
use start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

/// Memory types of the map (E820; the same numbers in PVH).
const USABLE: u32 = 1;
const RESERVED: u32 = 2;
/// Longest command line of kernels that do not say (`COMMAND_LINE_SIZE`, arch/x86/include/asm/setup.h).
const COMMAND_LINE_LIMIT: usize = 2048;
/// The 64-bit entry of a bzImage lies so far behind its beginning (Documentation/x86/boot.rst, "64-bit Boot Protocol").
const ENTRY_64: u64 = 0x200;
/// `XLF_KERNEL_64` in `xloadflags` (same file).
const HAS_64_BIT_ENTRY: u16 = 1;
/// The initial file system lies below this, as old kernels want (`initrd_addr_max`).
const INITRD_LIMIT: u64 = 0x7fff_ffff;
const PAGE: u64 = 4096;

/// Why a kernel cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file cannot be used.
    #[error("{what} {path}: {source}")]
    File {
        /// Its role.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not a kernel.
    #[error("{path} is neither a bzImage nor a 64-bit ELF kernel: {reason}")]
    NotAKernel {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It does not fit.
    #[error("{what} needs memory up to {end:#x}; the guest has {have_mib} MiB: give it more with --memory")]
    NoRoom {
        /// What does not fit.
        what: &'static str,
        /// How far it would reach.
        end: u64,
        /// Memory of the guest.
        have_mib: u64,
    },
    /// The command line is too long.
    #[error("the kernel command line has {len} bytes; this kernel takes at most {limit}")]
    CommandLine {
        /// Its length.
        len: usize,
        /// Most that it may have.
        limit: usize,
    },
    /// Guest memory could not be filled in.
    #[error("guest memory: {0}")]
    Memory(String),
}

/// How the first processor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// In 64-bit mode, with `boot_params` in RSI.
    Long(u64),
    /// In 32-bit mode without paging, with the start info in EBX (`Documentation/virt/kvm`, Xen's PVH).
    Pvh(u64),
}

/// What to start.
pub(super) struct Boot<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initrd: Option<&'a Path>,
    pub(super) command_line: &'a str,
    /// Address of ACPI's root pointer.
    pub(super) acpi: u64,
}

/// Puts everything in its place.
///
/// # Errors
/// [`KernelError`].
pub(super) fn load(memory: &GuestMemoryMmap, ranges: &[Range<u64>], boot: &Boot<'_>) -> Result<Entry, KernelError> {
    let low_end = ranges.first().map_or(0, |range| range.end);
    let (loaded, is_elf) = image(memory, boot.kernel, low_end)?;
    let header = loaded.setup_header.unwrap_or_default();
    let limit = if header.cmdline_size == 0 { COMMAND_LINE_LIMIT } else { header.cmdline_size as usize + 1 };
    let limit = limit.min((layout::LOW_MEMORY_END - layout::COMMAND_LINE) as usize);
    if boot.command_line.len() >= limit {
        return Err(KernelError::CommandLine { len: boot.command_line.len(), limit: limit - 1 });
    }
    let line = [boot.command_line.as_bytes(), &[0]].concat();
    memory.write_slice(&line, GuestAddress(layout::COMMAND_LINE)).map_err(memory_failed)?;
    // Until it has unpacked itself the kernel wants `init_size` bytes from where it is.
    let wanted = loaded.kernel_end.max(loaded.kernel_load.0.max(header.pref_address) + u64::from(header.init_size));
    let initrd = boot.initrd.map(|path| initrd(memory, path, &header, wanted, low_end)).transpose()?;
    if let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap {
        pvh(memory, ranges, boot.acpi, initrd)?;
        return Ok(Entry::Pvh(entry.0));
    }
    boot_parameters(memory, ranges, header, boot.acpi, initrd, is_elf, limit)?;
    Ok(Entry::Long(if is_elf { loaded.kernel_load.0 } else { loaded.kernel_load.0 + ENTRY_64 }))
}

fn memory_failed(error: impl std::fmt::Display) -> KernelError {
    KernelError::Memory(error.to_string())
}

/// Loads the image; says whether it is an ELF file.
fn image(memory: &GuestMemoryMmap, path: &Path, low_end: u64) -> Result<(KernelLoaderResult, bool), KernelError> {
    let failed = |source| KernelError::File { what: "kernel", path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut magic = [0; 4];
    let is_elf = file.read_exact(&mut magic).is_ok() && &magic == b"\x7fELF";
    file.rewind().map_err(failed)?;
    let high = Some(GuestAddress(layout::HIGH_MEMORY));
    let loaded =
        if is_elf { Elf::load(memory, None, &mut file, None) } else { BzImage::load(memory, None, &mut file, high) };
    let loaded = loaded.map_err(|error| KernelError::NotAKernel {
        path: path.to_owned(),
        reason: format!("{error} ({} MiB of memory)", low_end >> 20),
    })?;
    if let Some(header) = loaded.setup_header.filter(|header| header.xloadflags & HAS_64_BIT_ENTRY == 0) {
        let version = header.version;
        let reason = format!("it has no 64-bit entry (boot protocol {}.{:02})", version >> 8, version & 0xff);
        return Err(KernelError::NotAKernel { path: path.to_owned(), reason });
    }
    Ok((loaded, is_elf))
}

/// Loads the initial file system as high as the kernel allows; gives address and size.
fn initrd(
    memory: &GuestMemoryMmap,
    path: &Path,
    header: &setup_header,
    kernel_end: u64,
    low_end: u64,
) -> Result<(u64, u64), KernelError> {
    let failed = |source| KernelError::File { what: "initrd", path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let limit = if header.initrd_addr_max == 0 { INITRD_LIMIT } else { u64::from(header.initrd_addr_max) };
    let top = low_end.min(limit.saturating_add(1));
    let at = top.saturating_sub(size) & !(PAGE - 1);
    if at < kernel_end {
        let end = kernel_end.saturating_add(size);
        return Err(KernelError::NoRoom { what: "the kernel with its initrd", end, have_mib: low_end >> 20 });
    }
    memory.read_exact_volatile_from(GuestAddress(at), &mut file, size as usize).map_err(memory_failed)?;
    Ok((at, size))
}

/// Fills in `struct boot_params`.
fn boot_parameters(
    memory: &GuestMemoryMmap,
    ranges: &[Range<u64>],
    header: setup_header,
    acpi: u64,
    initrd: Option<(u64, u64)>,
    is_elf: bool,
    command_line_limit: usize,
) -> Result<(), KernelError> {
    let mut parameters = boot_params { hdr: header, ..boot_params::default() };
    let hdr = &mut parameters.hdr;
    if is_elf {
        // What a bzImage would have said (Documentation/x86/boot.rst).
        (hdr.boot_flag, hdr.header, hdr.kernel_alignment) = (0xaa55, 0x5372_6448, 0x0100_0000);
        hdr.cmdline_size = command_line_limit as u32 - 1;
    }
    // A loader without a number of its own.
    hdr.type_of_loader = 0xff;
    hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    if let Some((at, size)) = initrd {
        (hdr.ramdisk_image, hdr.ramdisk_size) = (at as u32, size as u32);
    }
    parameters.acpi_rsdp_addr = acpi;
    let map = memory_map(ranges);
    for (entry, (range, kind)) in parameters.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr: range.start, size: range.end - range.start, r#type: *kind };
    }
    parameters.e820_entries = map.len() as u8;
    let parameters = BootParams::new(&parameters, GuestAddress(layout::BOOT_PARAMS));
    LinuxBootConfigurator::write_bootparams(&parameters, memory).map_err(memory_failed)
}

/// Fills in what PVH wants (xen/include/public/arch-x86/hvm/start_info.h).
fn pvh(
    memory: &GuestMemoryMmap,
    ranges: &[Range<u64>],
    acpi: u64,
    initrd: Option<(u64, u64)>,
) -> Result<(), KernelError> {
    let map: Vec<hvm_memmap_table_entry> = memory_map(ranges)
        .into_iter()
        .map(|(range, type_)| hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_,
            reserved: 0,
        })
        .collect();
    let modules: Vec<hvm_modlist_entry> = initrd
        .into_iter()
        .map(|(paddr, size)| hvm_modlist_entry { paddr, size, cmdline_paddr: 0, reserved: 0 })
        .collect();
    let info = hvm_start_info {
        magic: 0x336e_c578,
        version: 1,
        flags: 0,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { layout::PVH_MODULES },
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: acpi,
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        reserved: 0,
    };
    let mut parameters = BootParams::new(&info, GuestAddress(layout::BOOT_PARAMS));
    parameters.set_sections(&map, GuestAddress(layout::PVH_MEMORY_MAP));
    parameters.set_modules(&modules, GuestAddress(layout::PVH_MODULES));
    PvhBootConfigurator::write_bootparams(&parameters, memory).map_err(memory_failed)
}

fn memory_map(ranges: &[Range<u64>]) -> Vec<(Range<u64>, u32)> {
    let usable = layout::usable(ranges).into_iter().map(|range| (range, USABLE));
    let mut map: Vec<_> = usable.chain([(layout::ACPI, RESERVED)]).collect();
    map.sort_by_key(|(range, _)| range.start);
    map
}

/// Size of `struct setup_header`; the loader reads so much.
const _: () = assert!(size_of::<setup_header>() <= 0x290 - 0x1f1);

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::ByteValued as _;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).expect("memory")
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let ranges = [0..64 << 20];
        let boot = |kernel: &Path| {
            let boot = Boot { kernel, initrd: None, command_line: "", acpi: 0 };
            load(&memory(), &ranges, &boot).expect_err("no kernel").to_string()
        };
        let path = folder.path().join("kernel");
        assert!(boot(&path).starts_with("kernel "), "{}", boot(&path));
        for contents in [&b""[..], b"\x7fELF", b"\x7fELF\x02\x01", &[0; 4096]] {
            std::fs::write(&path, contents).expect("a file");
            assert!(boot(&path).contains("is neither a bzImage nor"), "{}", boot(&path));
        }
        // A setup header of a kernel without a 64-bit entry.
        let mut old = vec![0; 4096];
        let header = setup_header {
            header: 0x5372_6448,
            version: 0x20b,
            loadflags: 1,
            code32_start: 0x10_0000,
            ..setup_header::default()
        };
        old[0x1f1..0x1f1 + size_of::<setup_header>()].copy_from_slice(header.as_slice());
        std::fs::write(&path, old).expect("a file");
        assert!(boot(&path).contains("no 64-bit entry (boot protocol 2.11)"), "{}", boot(&path));
    }

    #[test]
    fn an_initrd_lies_at_the_end_or_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("initrd");
        std::fs::write(&path, vec![7; 5000]).expect("a file");
        let header = setup_header { initrd_addr_max: 0x1ff_ffff, ..setup_header::default() };
        let (at, size) = initrd(&memory(), &path, &header, 16 << 20, 64 << 20).expect("loaded");
        assert_eq!((at, size), ((32 << 20) - 8192, 5000));
        let error = initrd(&memory(), &path, &header, 32 << 20, 64 << 20).expect_err("no room");
        assert!(error.to_string().contains("--memory"), "{error}");
    }

    #[test]
    fn the_memory_map_is_in_order_and_reserves_acpi() {
        let map = memory_map(&layout::ram(5 << 30));
        assert!(map.is_sorted_by_key(|(range, _)| range.start));
        assert_eq!(map[1], (layout::ACPI, RESERVED));
        assert_eq!(map.len(), 4);
    }
}
