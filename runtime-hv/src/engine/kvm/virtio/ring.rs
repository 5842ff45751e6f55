//! One queue of a device that is in use.
//!
//! Comes in: where the driver has put the three parts of a split ring (VIRTIO 1.2, 2.7). Decided: whether they are well
//! formed and lie in guest memory; how many chains are served before others get their turn; whether the driver wants an
//! interrupt. Goes out: descriptor chains, one at a time, and used buffers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_VRING;
use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::{DeviceError, GuestRam};

/// A chain of buffers that the driver has made available.
pub type Chain = DescriptorChain<GuestRam>;

/// What is wrong with a ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The driver chose a size that the device does not have.
    #[error("its driver in the guest set queue {queue} to {size} entries; expected a power of two from 1 to {max}")]
    Size {
        /// Index of the queue.
        queue: usize,
        /// Entries wanted.
        size: u32,
        /// Entries offered.
        max: u16,
    },
    /// A part of the ring is not, or not wholly, in guest memory.
    #[error("its driver in the guest put queue {queue} where no memory is")]
    Outside {
        /// Index of the queue.
        queue: usize,
    },
    /// An index or address of the ring cannot be.
    #[error("its driver in the guest damaged queue {queue}: {source}")]
    Damaged {
        /// Index of the queue.
        queue: usize,
        /// What was found.
        source: QueueError,
    },
}

/// What the driver wrote about a queue, unchecked.
#[derive(Debug, Clone, Copy, Default)]
pub struct RingSetup {
    /// Number of entries.
    pub size: u32,
    /// Whether the queue is in use.
    pub ready: bool,
    /// Address of the descriptor table.
    pub descriptors: u64,
    /// Address of the driver's ring.
    pub available: u64,
    /// Address of the device's ring.
    pub used: u64,
}

/// The interrupt of a device and why it was raised last.
#[derive(Debug)]
pub(super) struct Line {
    /// InterruptStatus (VIRTIO 1.2, 4.2.2).
    pub(super) status: AtomicU32,
    irq: EventFd,
}

impl Line {
    pub(super) fn new(irq: EventFd) -> Self {
        Self { status: AtomicU32::new(0), irq }
    }

    /// Raises the interrupt for a reason.
    pub(super) fn raise(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        // Fails only when the counter is full: then an interrupt is on its way already.
        let _ = self.irq.write(1);
    }
}

/// A queue in use.
#[derive(Debug)]
pub struct Ring {
    index: usize,
    queue: Queue,
    ram: GuestRam,
    kick: Arc<EventFd>,
    line: Arc<Line>,
    unsignalled: bool,
}

impl Ring {
    /// Checks what the driver wrote and takes the ring into use. A queue that is not ready becomes a ring that stays empty.
    pub(super) fn new(
        index: usize,
        setup: &RingSetup,
        max: u16,
        event_idx: bool,
        ram: GuestRam,
        kick: Arc<EventFd>,
        line: Arc<Line>,
    ) -> Result<Self, RingError> {
        let damaged = |source| RingError::Damaged { queue: index, source };
        let mut queue = Queue::new(max).map_err(damaged)?;
        if setup.ready {
            let wrong_size = || RingError::Size { queue: index, size: setup.size, max };
            let size = u16::try_from(setup.size).map_err(|_| wrong_size())?;
            queue.try_set_size(size).map_err(|_| wrong_size())?;
            queue.try_set_desc_table_address(GuestAddress(setup.descriptors)).map_err(damaged)?;
            queue.try_set_avail_ring_address(GuestAddress(setup.available)).map_err(damaged)?;
            queue.try_set_used_ring_address(GuestAddress(setup.used)).map_err(damaged)?;
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
            if !queue.is_valid(&*ram) {
                return Err(RingError::Outside { queue: index });
            }
        }
        Ok(Self { index, queue, ram, kick, line, unsignalled: false })
    }

    /// The memory that its chains refer to.
    pub fn ram(&self) -> GuestRam {
        Arc::clone(&self.ram)
    }

    /// Takes the ring out of use: it stays empty from now on.
    pub(super) fn close(&mut self) {
        self.queue.set_ready(false);
    }

    /// The next chain; with none left, the driver is asked to say when there is one again.
    ///
    /// # Errors
    /// [`RingError::Damaged`]: the driver claims more chains than the ring has entries.
    pub fn take(&mut self) -> Result<Option<Chain>, RingError> {
        if !self.queue.ready() {
            return Ok(None);
        }
        if let Some(chain) = self.pop()? {
            return Ok(Some(chain));
        }
        let more = self.queue.enable_notification(&*self.ram).map_err(|source| self.damaged(source))?;
        if more { self.pop() } else { Ok(None) }
    }

    /// Puts the chain taken last back.
    pub fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back to the driver; the device has written its first `written` writable bytes.
    ///
    /// # Errors
    /// [`RingError::Damaged`]: the chain began outside of the descriptor table.
    pub fn finish(&mut self, head: u16, written: u32) -> Result<(), RingError> {
        self.queue.add_used(&*self.ram, head, written).map_err(|source| self.damaged(source))?;
        self.unsignalled = true;
        Ok(())
    }

    /// Interrupts the driver if chains were given back and it wants to hear of them.
    ///
    /// # Errors
    /// [`RingError::Damaged`] when the ring cannot be read.
    pub fn signal(&mut self) -> Result<(), RingError> {
        if std::mem::take(&mut self.unsignalled)
            && self.queue.needs_notification(&*self.ram).map_err(|source| self.damaged(source))?
        {
            self.line.raise(VIRTIO_MMIO_INT_VRING);
        }
        Ok(())
    }

    /// Has the device called for this queue again, after others had their turn.
    pub fn again(&self) {
        // Fails only when the counter is full: then the call is on its way already.
        let _ = self.kick.write(1);
    }

    /// How many chains are served in one turn.
    pub fn turn(&self) -> usize {
        usize::from(self.queue.size())
    }

    /// Serves chains until none is left or the turn is over. `serve` says how many bytes it has written.
    ///
    /// # Errors
    /// What `serve` returns, and [`RingError`].
    pub fn serve(
        &mut self,
        mut serve: impl FnMut(&GuestRam, Chain) -> Result<u32, DeviceError>,
    ) -> Result<(), DeviceError> {
        let ram = self.ram();
        for _ in 0..self.turn() {
            let Some(chain) = self.take()? else {
                return Ok(self.signal()?);
            };
            let head = chain.head_index();
            let written = serve(&ram, chain)?;
            self.finish(head, written)?;
        }
        self.signal()?;
        self.again();
        Ok(())
    }

    fn pop(&mut self) -> Result<Option<Chain>, RingError> {
        let queue = self.index;
        let mut chains =
            self.queue.iter(Arc::clone(&self.ram)).map_err(|source| RingError::Damaged { queue, source })?;
        Ok(chains.next())
    }

    fn damaged(&self, source: QueueError) -> RingError {
        RingError::Damaged { queue: self.index, source }
    }
}

/// The buffers of a chain in one direction, in order: guest addresses that nobody has checked yet, and lengths in bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Buffers(VecDeque<(GuestAddress, u32)>);

impl Buffers {
    /// The buffers that the device reads and those that it writes.
    ///
    /// # Errors
    /// [`DeviceError::Driver`] when one to read comes after one to write (VIRTIO 1.2, 2.7.4.2).
    pub fn of(chain: Chain) -> Result<(Self, Self), DeviceError> {
        let (mut readable, mut writable) = (Self::default(), Self::default());
        for descriptor in chain {
            let buffer = (descriptor.addr(), descriptor.len());
            match descriptor.is_write_only() {
                true => writable.0.push_back(buffer),
                false if writable.0.is_empty() => readable.0.push_back(buffer),
                false => return Err(DeviceError::Driver("a buffer to read follows one to write")),
            }
        }
        Ok((readable, writable))
    }

    /// Bytes in all of them.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(_, len)| u64::from(*len)).sum()
    }

    /// Whether there is not a byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes buffers of `count` bytes off the front; `None`, and nothing taken, when there are fewer.
    pub fn split_front(&mut self, count: u64) -> Option<Self> {
        if count > self.len() {
            return None;
        }
        let (mut front, mut left) = (VecDeque::new(), count);
        while left > 0 {
            let (address, len) = self.0.pop_front()?;
            let taken = left.min(u64::from(len));
            front.push_back((address, taken as u32));
            left -= taken;
            if taken < u64::from(len) {
                // An address that wraps around is found out when it is used: it is not in memory.
                let rest = GuestAddress(address.0.wrapping_add(taken));
                self.0.push_front((rest, len - taken as u32));
            }
        }
        Some(Self(front))
    }

    /// Address and length of each.
    pub fn iter(&self) -> impl Iterator<Item = (GuestAddress, usize)> {
        self.0.iter().filter(|(_, len)| *len > 0).map(|&(address, len)| (address, len as usize))
    }
}
