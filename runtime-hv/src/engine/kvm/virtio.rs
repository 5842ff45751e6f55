//! The devices of the bundled hypervisor, as stock kernels know them: virtio over memory-mapped registers.
//!
//! Comes in: what a driver in the guest writes into registers and rings, and what files, networks and sockets of the host
//! have for it. Decided: what each device is and does ([`block`], [`net`], [`vsock`], [`entropy`]) behind one trait,
//! [`Device`]; when it may touch the guest's rings ([`mmio`], [`worker`]). Goes out: buffers filled in guest memory, one
//! interrupt line per device, and the host's side of the data.
//!
//! The guest is not trusted. Every address is checked against the guest's memory when it is used, every loop over guest
//! memory is bounded by a size that the host has set, and a driver that breaks the protocol costs its device: the device
//! says so with DEVICE_NEEDS_RESET (VIRTIO 1.2, 2.1.2) and waits for the driver to start again.
//!
//! Two kinds of threads meet here. A processor that touches a register calls [`mmio::VirtioMmio`] and is never kept waiting by
//! input or output, with two exceptions: a reset, and a queue taken out of use, end only when the device has let go of the
//! rings. Everything else happens on the one device thread, [`run`].

pub mod block;
pub mod entropy;
pub mod mmio;
pub mod net;
pub mod ring;
pub mod vsock;
pub mod worker;

#[cfg(test)]
mod driver;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

pub use block::Block;
pub use entropy::Entropy;
pub use mmio::VirtioMmio;
pub use net::Net;
pub use vsock::Vsock;
pub use worker::{Watch, Worker, run};

use ring::{Ring, RingError};

/// The memory that devices may touch: the guest's RAM and nothing else.
pub type GuestRam = Arc<GuestMemoryMmap>;

/// Length in bytes of a device's window of registers.
pub const MMIO_WINDOW: u64 = 0x1000;

/// Where in its window a driver says which queue has new buffers (VIRTIO 1.2, 4.2.2): here the machine lets KVM signal the
/// event descriptors of [`VirtioMmio::notify_fds`].
pub const NOTIFY_OFFSET: u64 = virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// Why a device stopped. It works again when its driver resets it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A ring is not what the specification says.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The driver sent something that has no meaning and leaves no room for an answer.
    #[error("its driver in the guest broke the protocol: {0}")]
    Driver(&'static str),
    /// A buffer is not in the guest's memory.
    #[error("its driver in the guest named memory that does not exist: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The host's side failed for good.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

/// One kind of device, without its transport. All calls come from the device thread.
pub trait Device: Send {
    /// Its number in VIRTIO 1.2, section 5.
    fn id(&self) -> u32;

    /// What people call it: kind, and what is behind it on the host.
    fn name(&self) -> String;

    /// Feature bits of this kind of device; the transport adds its own.
    fn features(&self) -> u64;

    /// The most entries of each queue, powers of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// The configuration space. It never changes.
    fn config(&self) -> Vec<u8>;

    /// A driver is there, and has taken `features`. What the device waits for on the host is put on `watch`.
    ///
    /// # Errors
    /// When the host does not let the device work.
    fn start(&mut self, features: u64, watch: &mut Watch<'_, '_>) -> Result<(), DeviceError>;

    /// The driver is gone. Everything of it is forgotten, and everything that was put on `watch` is taken off.
    fn stop(&mut self, watch: &mut Watch<'_, '_>);

    /// The driver has put something into the queue with this index, or has said so.
    ///
    /// # Errors
    /// When the device cannot go on.
    fn queue(&mut self, index: usize, rings: &mut [Ring], watch: &mut Watch<'_, '_>) -> Result<(), DeviceError>;

    /// Something happened on a descriptor that was put on `watch` as `token`. It may be one that was taken off meanwhile.
    ///
    /// # Errors
    /// When the device cannot go on.
    fn event(
        &mut self,
        token: u32,
        events: EventSet,
        rings: &mut [Ring],
        watch: &mut Watch<'_, '_>,
    ) -> Result<(), DeviceError> {
        let _ = (token, events, rings, watch);
        Ok(())
    }
}
