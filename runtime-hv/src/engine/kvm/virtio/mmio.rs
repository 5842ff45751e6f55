//! The transport: registers in a window of the guest's address space (VIRTIO 1.2, 4.2, version 2).
//!
//! Comes in: reads and writes of processors. Decided: which of them are in order (status bits only one after the other,
//! features before queues, queues before DRIVER_OK); anything else has no effect. Goes out: rings for the device thread, once
//! they are known to be whole, and its end when the driver resets the device.
//!
//! Linux's side is `drivers/virtio/virtio_mmio.c`; it finds the window by the ACPI id `LNRO0005`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_LEN_HIGH,
    VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ring::{Line, Ring, RingError, RingSetup};
use super::worker::{Active, Shared, Worker};
use super::{Device, GuestRam};

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;
/// Not a legacy device.
const VERSION: u32 = 2;
/// "LUCO", little endian. Drivers do not look at it.
const VENDOR: u32 = 0x4f43_554c;
/// What the transport can do with any device.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;

/// A device's window of registers.
pub struct VirtioMmio {
    id: u32,
    config: Vec<u8>,
    offered: u64,
    sizes: &'static [u16],
    ram: GuestRam,
    shared: Arc<Shared>,
    /// Without DEVICE_NEEDS_RESET, which the device thread sets.
    status: u32,
    /// Features the driver has taken.
    taken: u64,
    offered_half: u32,
    taken_half: u32,
    selected: u32,
    queues: Vec<RingSetup>,
}

impl VirtioMmio {
    /// A window for `device`, whose buffers are in `ram` and whose interrupt is raised by `irq`. The [`Worker`] goes to
    /// [`super::run`].
    ///
    /// # Errors
    /// When the host has no more event descriptors.
    pub fn new(device: Box<dyn Device>, ram: GuestRam, irq: EventFd) -> io::Result<(Self, Worker)> {
        let sizes = device.queue_sizes();
        let (id, config, offered) = (device.id(), device.config(), device.features() | TRANSPORT_FEATURES);
        let kicks = sizes.iter().map(|_| Ok(Arc::new(EventFd::new(EFD_NONBLOCK)?))).collect::<io::Result<_>>()?;
        let line = Arc::new(Line::new(irq));
        let shared = Arc::new(Shared::new(device, line, EventFd::new(EFD_NONBLOCK)?, kicks));
        let worker = Worker::new(Arc::clone(&shared));
        let queues = vec![RingSetup::default(); sizes.len()];
        let window = Self {
            id,
            config,
            offered,
            sizes,
            ram,
            shared,
            status: 0,
            taken: 0,
            offered_half: 0,
            taken_half: 0,
            selected: 0,
            queues,
        };
        Ok((window, worker))
    }

    /// Each queue's index with the event descriptor that says it has something. A write of the index to
    /// [`super::NOTIFY_OFFSET`] that reaches [`Self::write`] has the same effect as the descriptor.
    pub fn notify_fds(&self) -> impl Iterator<Item = (u32, &EventFd)> {
        (0..).zip(self.shared.kicks.iter().map(|kick| &**kick))
    }

    /// A processor reads at `offset` in the window.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            let rest = usize::try_from(at).ok().and_then(|at| self.config.get(at..)).unwrap_or_default();
            for (byte, value) in data.iter_mut().zip(rest) {
                *byte = *value;
            }
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.register(offset as u32).to_le_bytes());
        }
    }

    /// A processor writes at `offset` in the window. No configuration space here can be written.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(bytes), true) = (<[u8; 4]>::try_from(data), offset < u64::from(VIRTIO_MMIO_CONFIG)) {
            self.set_register(offset as u32, u32::from_le_bytes(bytes));
        }
    }

    fn register(&self, offset: u32) -> u32 {
        let queue = self.queues.get(self.selected as usize);
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.id,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match self.offered_half {
                0 => self.offered as u32,
                1 => (self.offered >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => self.sizes.get(self.selected as usize).copied().map_or(0, u32::from),
            VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(|queue| queue.ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.shared.line.status.load(Ordering::SeqCst),
            VIRTIO_MMIO_STATUS => match self.shared.needs_reset.load(Ordering::SeqCst) {
                true => self.status | VIRTIO_CONFIG_S_NEEDS_RESET,
                false => self.status,
            },
            // No shared memory: length and base of all ones (VIRTIO 1.2, 4.2.2).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            // The configuration never changes.
            VIRTIO_MMIO_CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.offered_half = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.taken_half = value,
            VIRTIO_MMIO_DRIVER_FEATURES if self.is_at(VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_FEATURES_OK) => {
                match self.taken_half {
                    0 => set_low(&mut self.taken, value),
                    1 => set_high(&mut self.taken, value),
                    _ => {}
                }
            }
            VIRTIO_MMIO_QUEUE_SEL => self.selected = value,
            VIRTIO_MMIO_QUEUE_READY => self.set_queue_ready(value),
            VIRTIO_MMIO_QUEUE_NUM
            | VIRTIO_MMIO_QUEUE_DESC_LOW..=VIRTIO_MMIO_QUEUE_DESC_HIGH
            | VIRTIO_MMIO_QUEUE_AVAIL_LOW..=VIRTIO_MMIO_QUEUE_AVAIL_HIGH
            | VIRTIO_MMIO_QUEUE_USED_LOW..=VIRTIO_MMIO_QUEUE_USED_HIGH => self.set_queue(offset, value),
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(kick) = self.shared.kicks.get(value as usize) {
                    // Fails only when the counter is full: then the device will look anyway.
                    let _ = kick.write(1);
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.shared.line.status.fetch_and(!value, Ordering::SeqCst);
            }
            VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => {}
        }
    }

    /// Whether the driver has set status bit `reached` and not yet `next`.
    fn is_at(&self, reached: u32, next: u32) -> bool {
        self.status & reached != 0 && self.status & next == 0
    }

    fn set_queue(&mut self, offset: u32, value: u32) {
        let open = self.is_at(VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER_OK);
        let Some(queue) = self.queues.get_mut(self.selected as usize).filter(|queue| open && !queue.ready) else {
            return;
        };
        match offset {
            VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.available, value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.available, value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used, value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used, value),
            _ => {}
        }
    }

    fn set_queue_ready(&mut self, value: u32) {
        let open = self.is_at(VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER_OK);
        let index = self.selected as usize;
        let Some(queue) = self.queues.get_mut(index) else { return };
        if value == 0 {
            queue.ready = false;
            // Once the driver reads 0 it may free the ring: the device has to be out of it.
            if let Some(ring) = self.shared.core().active.as_mut().and_then(|active| active.rings.get_mut(index)) {
                ring.close();
            }
        } else if value == 1 && open {
            queue.ready = true;
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        // A driver adds bits one after the other and never takes one back (VIRTIO 1.2, 2.1.1).
        if self.status & !value != 0 {
            return;
        }
        let mut next = self.status | value & (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_FAILED);
        let acceptable = self.taken & !self.offered == 0 && self.taken & 1 << VIRTIO_F_VERSION_1 != 0;
        for (bit, after, allowed) in [
            (VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_ACKNOWLEDGE, true),
            (VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER, acceptable),
            (VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, next & VIRTIO_CONFIG_S_FAILED == 0),
        ] {
            if value & bit != 0 && next & after != 0 && allowed {
                next |= bit;
            }
        }
        let starts = next & !self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        self.status = next;
        if starts {
            self.activate();
        }
    }

    /// The driver is ready: hands its rings to the device thread.
    fn activate(&mut self) {
        let rings = self.rings();
        let mut core = self.shared.core();
        match rings {
            Ok(rings) => {
                core.active = Some(Active { features: self.taken, rings });
                core.epoch += 1;
            }
            Err(error) => self.shared.fail(&mut core, &error.into()),
        }
        drop(core);
        self.wake();
    }

    fn rings(&self) -> Result<Vec<Ring>, RingError> {
        let event_idx = self.taken & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let parts = self.queues.iter().zip(self.sizes).zip(&self.shared.kicks);
        parts
            .enumerate()
            .map(|(index, ((setup, &max), kick))| {
                let (ram, line) = (Arc::clone(&self.ram), Arc::clone(&self.shared.line));
                Ring::new(index, setup, max, event_idx, ram, Arc::clone(kick), line)
            })
            .collect()
    }

    /// Back to the beginning. When this returns the device uses no memory of the guest any more.
    fn reset(&mut self) {
        let mut core = self.shared.core();
        core.active = None;
        core.epoch += 1;
        self.shared.needs_reset.store(false, Ordering::SeqCst);
        self.shared.line.status.store(0, Ordering::SeqCst);
        drop(core);
        self.status = 0;
        self.taken = 0;
        self.offered_half = 0;
        self.taken_half = 0;
        self.selected = 0;
        self.queues.fill(RingSetup::default());
        self.wake();
    }

    fn wake(&self) {
        // Fails only when the counter is full: then the thread will wake anyway.
        let _ = self.shared.control.write(1);
    }
}

fn set_low(whole: &mut u64, value: u32) {
    *whole = *whole & !0xffff_ffff | u64::from(value);
}

fn set_high(whole: &mut u64, value: u32) {
    *whole = *whole & 0xffff_ffff | u64::from(value) << 32;
}
