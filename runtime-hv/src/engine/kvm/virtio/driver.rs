//! A driver for tests: what a guest does, on real rings in real memory, and what it must not do.
//!
//! Comes in: a device. Decided: nothing. Goes out: what the device did, or a failed test after [`PATIENCE`].

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Device, GuestRam, VirtioMmio, run};

pub(super) const STATUS: u64 = 0x70;
pub(super) const NOTIFY: u64 = 0x50;
pub(super) const MODERN: u64 = 1 << VIRTIO_F_VERSION_1;
pub(super) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub(super) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub(super) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// First byte behind the guest's low memory; a second piece follows after a hole.
pub(super) const HOLE: u64 = 0x100_0000;
const SECOND: u64 = 0x200_0000;
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a queue is, and how far it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    pub(super) size: u16,
    pub(super) next: u16,
    pub(super) offered: u16,
    pub(super) seen: u16,
}

/// The driver, with the machine that the device is in.
pub(super) struct Driver {
    pub(super) window: VirtioMmio,
    pub(super) ram: GuestRam,
    pub(super) queues: Vec<Place>,
    irq: EventFd,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
    free: u64,
}

impl Driver {
    /// A machine with the device, whose driver has done nothing yet.
    pub(super) fn new(device: impl Device + 'static) -> Self {
        let ranges = [(GuestAddress(0), HOLE as usize), (GuestAddress(SECOND), 0x10_0000)];
        let ram = GuestRam::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"));
        let event = || EventFd::new(EFD_NONBLOCK).expect("an event descriptor");
        let (irq, stop) = (event(), event());
        let sizes = device.queue_sizes();
        let (window, worker) =
            VirtioMmio::new(Box::new(device), GuestRam::clone(&ram), irq.try_clone().expect("a copy"))
                .expect("a window");
        let end = stop.try_clone().expect("a copy");
        let thread = thread::spawn(move || run(vec![worker], end).expect("a device thread"));
        let queues = (0..).zip(sizes).map(|(index, size)| place(0x10_0000 + index * 0x1_0000, 16.min(*size))).collect();
        Self { window, ram, queues, irq, stop, thread: Some(thread), free: 0x40_0000 }
    }

    /// A machine whose driver has taken exactly these features and has started.
    pub(super) fn started(device: impl Device + 'static, features: u64) -> Self {
        let mut driver = Self::new(device);
        driver.start(features);
        driver
    }

    pub(super) fn get(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.window.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(super) fn set(&mut self, offset: u64, value: u32) {
        self.window.write(offset, &value.to_le_bytes());
    }

    pub(super) fn config(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xaa; len];
        self.window.read(0x100 + offset, &mut bytes);
        bytes
    }

    /// Resets, and goes as far as FEATURES_OK; whether the device took the features.
    pub(super) fn negotiate(&mut self, features: u64) -> bool {
        self.set(STATUS, 0);
        self.set(STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.set(STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
        for (half, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set(0x24, half);
            self.set(0x20, value);
        }
        let status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
        self.set(STATUS, status);
        self.get(STATUS) & VIRTIO_CONFIG_S_FEATURES_OK != 0
    }

    /// Tells the device where a queue is.
    pub(super) fn set_queue(&mut self, index: usize, size: u32, place: Place) {
        self.set(0x30, index as u32);
        self.set(0x38, size);
        for (register, address) in [(0x80, place.descriptors), (0x90, place.available), (0xa0, place.used)] {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
        self.set(0x44, 1);
    }

    pub(super) fn driver_ok(&mut self) {
        let status = self.get(STATUS);
        self.set(STATUS, status | VIRTIO_CONFIG_S_DRIVER_OK);
    }

    /// From a reset to a device at work, with fresh rings.
    pub(super) fn start(&mut self, features: u64) {
        assert!(self.negotiate(features), "features {features:#x} refused");
        for index in 0..self.queues.len() {
            let base = self.queues[index].descriptors;
            self.ram.write_slice(&[0; 0x3000], GuestAddress(base)).expect("memory");
            self.queues[index] = place(base, self.queues[index].size);
            self.set_queue(index, self.queues[index].size.into(), self.queues[index]);
        }
        self.driver_ok();
    }

    /// Memory of the guest that nothing else uses.
    pub(super) fn memory(&mut self, len: u64) -> u64 {
        let address = self.free;
        self.free += len.next_multiple_of(0x1000);
        assert!(self.free <= HOLE, "the test's memory is used up");
        address
    }

    /// Memory with these bytes in it.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let address = self.memory(bytes.len() as u64);
        self.poke(address, bytes);
        address
    }

    pub(super) fn poke(&self, address: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(address)).expect("memory");
    }

    pub(super) fn peek(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_slice(&mut bytes, GuestAddress(address)).expect("memory");
        bytes
    }

    /// Writes a descriptor of a table.
    pub(super) fn descriptor(&self, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = table + u64::from(index) * 16;
        self.poke(at, &address.to_le_bytes());
        self.poke(at + 8, &len.to_le_bytes());
        self.poke(at + 12, &flags.to_le_bytes());
        self.poke(at + 14, &next.to_le_bytes());
    }

    /// Makes a chain available, without saying so.
    pub(super) fn offer(&mut self, queue: usize, head: u16) {
        let place = &mut self.queues[queue];
        let slot = place.available + 4 + u64::from(place.offered % place.size) * 2;
        place.offered = place.offered.wrapping_add(1);
        let (available, offered) = (place.available, place.offered);
        self.poke(slot, &head.to_le_bytes());
        self.poke(available + 2, &offered.to_le_bytes());
    }

    pub(super) fn kick(&mut self, queue: usize) {
        self.set(NOTIFY, queue as u32);
    }

    /// Makes a chain of buffers (address, length, flags) available and says so; its head.
    pub(super) fn add(&mut self, queue: usize, buffers: &[(u64, u32, u16)]) -> u16 {
        let Place { descriptors, size, next: head, .. } = self.queues[queue];
        for (step, &(address, len, flags)) in buffers.iter().enumerate() {
            let index = (head + step as u16) % size;
            let more = if step + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(descriptors, index, address, len, flags | more, (index + 1) % size);
        }
        self.queues[queue].next = (head + buffers.len() as u16) % size;
        self.offer(queue, head);
        self.kick(queue);
        head
    }

    /// A chain that the device has given back by now: head and bytes written.
    pub(super) fn poll_used(&mut self, queue: usize) -> Option<(u32, u32)> {
        let Place { used, size, seen, .. } = self.queues[queue];
        let index = u16::from_le_bytes(self.peek(used + 2, 2).try_into().expect("two bytes"));
        if index == seen {
            return None;
        }
        self.queues[queue].seen = seen.wrapping_add(1);
        let element = self.peek(used + 4 + u64::from(seen % size) * 8, 8);
        let half = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().expect("four bytes"));
        Some((half(0), half(4)))
    }

    /// The next chain that the device gives back.
    pub(super) fn used(&mut self, queue: usize) -> (u32, u32) {
        wait("a used buffer", || self.poll_used(queue))
    }

    /// Waits for an interrupt and takes it as Linux does; its reasons.
    pub(super) fn interrupt(&mut self) -> u32 {
        wait("an interrupt", || self.irq.read().ok());
        let reasons = self.get(0x60);
        self.set(0x64, reasons);
        reasons
    }

    /// Whether an interrupt was raised since the last one was taken.
    pub(super) fn interrupted(&mut self) -> bool {
        self.irq.read().is_ok()
    }

    /// Waits until the device gives up.
    pub(super) fn fails(&mut self) {
        wait("DEVICE_NEEDS_RESET", || (self.get(STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0).then_some(()));
    }

    /// Whether the device has given up.
    pub(super) fn has_failed(&mut self) -> bool {
        self.get(STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop.write(1).expect("an event descriptor");
        let ended = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the device thread panicked");
        }
    }
}

/// A queue of `size` entries at `base`.
pub(super) fn place(base: u64, size: u16) -> Place {
    Place { descriptors: base, available: base + 0x1000, used: base + 0x2000, size, next: 0, offered: 0, seen: 0 }
}

/// Waits for something that takes a moment.
pub(super) fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not come within {PATIENCE:?}");
        thread::sleep(Duration::from_micros(200));
    }
}
