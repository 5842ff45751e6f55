//! Guest memory: one file in memory, mapped twice.
//!
//! Comes in: a size. Decided: which of two mappings a page is reached through. The *guest's* mapping is what KVM maps into the
//! guest; its pages can be made unwritable one by one, so that a write of the guest comes to us. The *host's* mapping is
//! what devices and the update service use; it is always writable. Goes out: [`Memory`], and the memory slots of a VM.
//!
//! The arena is a third piece: in a slot of its own, in no memory map, out of reach for devices.

use super::layout;
use crate::engine::Pa;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestRegionMmap, MmapRegion,
};

const PAGE: u64 = 4096;
/// A page as bytes.
pub(super) type PageBytes = [u8; PAGE as usize];

/// Guest memory as devices see it: without the arena.
pub(super) type Ram = Arc<GuestMemoryMmap>;

/// Memory of one guest.
pub(super) struct Memory {
    ram: Ram,
    /// As the service sees it: with the arena.
    all: GuestMemoryMmap,
    /// The guest's mapping of each range.
    slots: Vec<Slot>,
    arena: Range<u64>,
}

struct Slot {
    range: Range<u64>,
    mapping: MmapRegion,
}

impl Memory {
    /// Makes memory of `size` bytes, a multiple of the page size.
    ///
    /// # Errors
    /// Of `memfd_create`, `ftruncate` or `mmap`.
    pub(super) fn new(size: u64) -> io::Result<Memory> {
        let mut ranges = layout::ram(size);
        let arena = layout::arena(ranges.iter().map(|range| range.end).max().unwrap_or(0));
        let arena = arena..arena + layout::ARENA_SIZE;
        ranges.push(arena.clone());
        let total = ranges.iter().map(|range| range.end - range.start).sum();
        let file = Arc::new(File::from(memfd_create(c"lucos-guest", MFdFlags::MFD_CLOEXEC)?));
        file.set_len(total)?;
        let (mut slots, mut host, mut offset) = (Vec::new(), Vec::new(), 0);
        for range in ranges {
            let len = range.end - range.start;
            slots.push(Slot { range: range.clone(), mapping: map(&file, offset, len)? });
            let region = GuestRegionMmap::new(map(&file, offset, len)?, GuestAddress(range.start));
            host.push(Arc::new(region.ok_or_else(|| io::Error::other("memory ends above the last address"))?));
            offset += len;
        }
        let collect = |regions: &[Arc<GuestRegionMmap>]| {
            GuestMemoryMmap::from_arc_regions(regions.to_vec()).map_err(io::Error::other)
        };
        let ram = Arc::new(collect(&host[..host.len() - 1])?);
        Ok(Memory { ram, all: collect(&host)?, slots, arena })
    }

    /// Without the arena.
    pub(super) fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Where the arena is.
    pub(super) fn arena(&self) -> Range<u64> {
        self.arena.clone()
    }

    /// Ranges of memory, without the arena.
    pub(super) fn ranges(&self) -> Vec<Range<u64>> {
        self.slots[..self.slots.len() - 1].iter().map(|slot| slot.range.clone()).collect()
    }

    /// Reads memory or arena.
    ///
    /// # Errors
    /// When a byte of the range is neither.
    pub(super) fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), vm_memory::GuestMemoryError> {
        self.all.read_slice(into, GuestAddress(from.0))
    }

    /// Writes memory or arena.
    ///
    /// # Errors
    /// When a byte of the range is neither; then nothing is written.
    pub(super) fn write(&self, to: Pa, bytes: &[u8]) -> Result<(), vm_memory::GuestMemoryError> {
        if !self.all.check_range(GuestAddress(to.0), bytes.len()) {
            return Err(vm_memory::GuestMemoryError::InvalidGuestAddress(GuestAddress(to.0)));
        }
        self.all.write_slice(bytes, GuestAddress(to.0))
    }

    /// Gives all of it to a VM, one slot for each range.
    ///
    /// # Errors
    /// Of `KVM_SET_USER_MEMORY_REGION`.
    pub(super) fn give_to(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        for (number, slot) in self.slots.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: number as u32,
                flags: 0,
                guest_phys_addr: slot.range.start,
                memory_size: slot.range.end - slot.range.start,
                userspace_addr: slot.mapping.as_ptr() as u64,
            };
            // SAFETY: the mapping is as long as the slot says, no two slots overlap, and the mapping lives as long as the VM:
            // the machine that owns both drops its memory last.
            #[allow(unsafe_code)]
            unsafe { vm.set_user_memory_region(region) }?;
        }
        Ok(())
    }

    /// Makes a page of the guest's mapping writable or not. The kernel takes it out of the guest's tables at once
    /// (`virt/kvm/kvm_main.c`, `kvm_mmu_notifier_invalidate_range_start`); the guest's next write then ends KVM_RUN with
    /// EFAULT (`arch/x86/kvm/mmu/mmu.c`, `kvm_handle_error_pfn`).
    ///
    /// # Errors
    /// When the page is no memory, and of `mprotect`.
    pub(super) fn set_writable(&self, page: Pa, writable: bool) -> io::Result<()> {
        let slot = self.slots.iter().find(|slot| slot.range.contains(&page.0));
        let slot = slot.filter(|_| page.0.is_multiple_of(PAGE));
        let slot =
            slot.ok_or_else(|| io::Error::other(format!("{:#x} is not a page of this guest's memory", page.0)))?;
        let host = slot.mapping.as_ptr().wrapping_add((page.0 - slot.range.start) as usize);
        let host = std::ptr::NonNull::new(host.cast()).ok_or_else(|| io::Error::other("a mapping at address 0"))?;
        let mut flags = nix::sys::mman::ProtFlags::PROT_READ;
        flags.set(nix::sys::mman::ProtFlags::PROT_WRITE, writable);
        // SAFETY: the page lies inside a mapping that we own and that no Rust code reads or writes through: the host's side
        // uses another mapping of the same file. KVM reports a write that is not allowed; it does not fault in us.
        #[allow(unsafe_code)]
        unsafe { nix::sys::mman::mprotect(host, PAGE as usize, flags) }?;
        Ok(())
    }

    /// A page's contents.
    ///
    /// # Errors
    /// When the page is no memory.
    pub(super) fn page(&self, page: Pa) -> Result<Box<PageBytes>, vm_memory::GuestMemoryError> {
        let mut bytes = Box::new([0; PAGE as usize]);
        self.read(page, &mut bytes[..])?;
        Ok(bytes)
    }
}

fn map(file: &Arc<File>, offset: u64, len: u64) -> io::Result<MmapRegion> {
    let protection = nix::libc::PROT_READ | nix::libc::PROT_WRITE;
    MmapRegionBuilder::new(usize::try_from(len).map_err(io::Error::other)?)
        .with_mmap_prot(protection)
        .with_mmap_flags(nix::libc::MAP_SHARED | nix::libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::from_arc(Arc::clone(file), offset))
        .build()
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryRegion as _;

    #[test]
    fn both_sides_see_the_same_bytes_and_the_arena_is_not_ram() {
        let memory = Memory::new(16 << 20).expect("memory");
        let arena = memory.arena();
        memory.write(Pa(0x1ffe), b"abcd").expect("written");
        memory.write(Pa(arena.start), b"code").expect("written");
        memory.set_writable(Pa(0x1000), false).expect("protected");
        memory.write(Pa(0x1000), b"x").expect("the host's side stays writable");
        memory.set_writable(Pa(0x1000), true).expect("opened");
        let mut seen = [0; 4];
        memory.read(Pa(0x1ffe), &mut seen).expect("read");
        assert_eq!(&seen, b"abcd");
        assert!(memory.ram().read_slice(&mut seen, GuestAddress(arena.start)).is_err());
        assert!(memory.read(Pa((16 << 20) - 2), &mut seen).is_err());
        assert!(memory.write(Pa((16 << 20) - 2), &seen).is_err());
        assert!(memory.set_writable(Pa(16 << 20), false).is_err());
        assert!(memory.set_writable(Pa(0x1001), false).is_err());
        assert_eq!(memory.ram().num_regions(), 1);
        assert_eq!(memory.ram().iter().map(|region| region.len()).sum::<u64>(), 16 << 20);
    }
}
