//! The network device (VIRTIO 1.2, 5.1): an Ethernet interface of the guest, behind a TAP interface of the host.
//!
//! Comes in: frames from either side. Decided: nothing about their contents; a frame that the other side has no room for is
//! dropped, as a network does. Goes out: the same frames.
//!
//! Checksums may be left to the other side in both directions, and large TCP segments from the guest are cut up by the host:
//! the header before each frame says so, and the host's TAP driver understands the same header. Frames to the guest are
//! never larger than the TAP interface's MTU.

mod tap;

use std::fs;
use std::io::{ErrorKind, Read, Write};

use nix::errno::Errno;
use sha2::{Digest, Sha256};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
};
use vmm_sys_util::epoll::EventSet;

use super::ring::Ring;
use super::{Device, DeviceError, Watch};
use tap::Tap;
pub use tap::TapError;

/// Queue of the frames to the guest.
const RECEIVE: usize = 0;
/// Queue of the frames from the guest.
const SEND: usize = 1;
/// Bytes of the header before each frame: `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
/// Where in it the number of buffers is that a frame is spread over: always one.
const NUM_BUFFERS: std::ops::Range<usize> = 10..12;
/// Bytes of the largest frame: a TCP segment for the host to cut up, with its headers.
const MOST: usize = HEADER + 0x1_0000 + 64;
/// Stale frames that are thrown away when a driver starts: more than a TAP interface keeps.
const STALE: usize = 4096;
/// The one descriptor that is watched.
const TAP: u32 = 0;

/// An interface of the guest.
#[derive(Debug)]
pub struct Net {
    tap: Tap,
    mac: [u8; 6],
    /// The frame that waits for a buffer of the guest, with its header.
    frame: Box<[u8]>,
    /// Its length; 0 when none waits.
    waiting: usize,
    /// Whether TAP is watched for frames.
    watched: bool,
}

impl Net {
    /// Takes the TAP interface, which exists. Without a `mac` the guest gets one that stays the same for this interface of this
    /// host.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &str, mac: Option<[u8; 6]>) -> Result<Self, TapError> {
        let mac = mac.unwrap_or_else(|| derived_mac(name));
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(TapError::Mac(mac.map(|byte| format!("{byte:02x}")).join(":")));
        }
        let tap = Tap::open(name)?;
        Ok(Self { tap, mac, frame: vec![0; MOST].into(), waiting: 0, watched: false })
    }

    /// The address of the guest's interface.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Moves frames to the guest while there are frames and buffers.
    fn receive(&mut self, ring: &mut Ring, watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        let ram = ring.ram();
        for _ in 0..ring.turn() {
            if self.waiting == 0 {
                match self.tap.read(&mut self.frame) {
                    Ok(len) if len >= HEADER => self.waiting = len,
                    Ok(_) => continue,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(source) => return Err(DeviceError::Host { what: "reading from its TAP interface", source }),
                }
                self.frame[NUM_BUFFERS].copy_from_slice(&1u16.to_le_bytes());
            }
            let Some(chain) = ring.take()? else {
                // The driver will say when it has buffers again.
                self.watch_tap(false, watch)?;
                return Ok(ring.signal()?);
            };
            let head = chain.head_index();
            let outside = |_| DeviceError::Driver("a buffer for a frame lies outside of the memory");
            let mut writer = chain.writer(&*ram).map_err(outside)?;
            let frame = &self.frame[..self.waiting];
            self.waiting = 0;
            if writer.available_bytes() < frame.len() {
                // Dropped: what the guest has no room for now it will have none for later.
                ring.put_back();
                continue;
            }
            writer.write_all(frame).map_err(|source| DeviceError::Host { what: "filling a buffer", source })?;
            ring.finish(head, frame.len() as u32)?;
        }
        ring.signal()?;
        self.watch_tap(true, watch)
    }

    /// Moves frames from the guest.
    fn send(&mut self, ring: &mut Ring) -> Result<(), DeviceError> {
        let mut bytes = [0; MOST];
        ring.serve(|ram, chain| {
            let mut reader =
                chain.reader(&**ram).map_err(|_| DeviceError::Driver("a frame lies outside of the memory"))?;
            let frame = match bytes.get_mut(..reader.available_bytes()) {
                Some(frame) if frame.len() > HEADER => frame,
                _ => return Ok(0),
            };
            reader.read_exact(frame).map_err(|source| DeviceError::Host { what: "reading a frame", source })?;
            match self.tap.write(frame) {
                // The interface is gone for good; anything else is about this frame, or about now.
                Err(source) if source.raw_os_error() == Some(Errno::EBADFD as i32) => {
                    Err(DeviceError::Host { what: "writing to its TAP interface", source })
                }
                Ok(_) | Err(_) => Ok(0),
            }
        })
    }

    fn watch_tap(&mut self, wanted: bool, watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        if wanted && !self.watched {
            watch.add(&self.tap, TAP, EventSet::IN)?;
        } else if !wanted && self.watched {
            watch.remove(&self.tap);
        }
        self.watched = wanted;
        Ok(())
    }
}

/// An address that nobody was given by a manufacturer, from the names of the host and of the interface.
fn derived_mac(name: &str) -> [u8; 6] {
    // Without the file two hosts may derive the same: it matters only if they share a network.
    let host = fs::read("/etc/machine-id").unwrap_or_default();
    let digest = Sha256::new().chain_update(host).chain_update([0]).chain_update(name).finalize();
    let mut mac: [u8; 6] = std::array::from_fn(|index| digest[index]);
    // Locally administered, one receiver (IEEE 802, 8.4).
    mac[0] = mac[0] & !1 | 2;
    mac
}

impl Device for Net {
    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> String {
        format!("the network interface behind `{}`", self.tap.name())
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[256, 256]
    }

    fn config(&self) -> Vec<u8> {
        // struct virtio_net_config (VIRTIO 1.2, 5.1.4): what follows the address goes with features that are not offered.
        self.mac.to_vec()
    }

    fn start(&mut self, features: u64, watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        let unfinished = features & 1 << VIRTIO_NET_F_GUEST_CSUM != 0;
        self.tap
            .allow_unfinished_checksums(unfinished)
            .map_err(|source| DeviceError::Host { what: "setting up its TAP interface", source })?;
        // What came while no driver was there is old, and may have headers that this driver does not know.
        for _ in 0..STALE {
            if self.tap.read(&mut self.frame).is_err() {
                break;
            }
        }
        self.watch_tap(true, watch)
    }

    fn stop(&mut self, watch: &mut Watch<'_, '_>) {
        // Taking off cannot fail.
        let _ = self.watch_tap(false, watch);
        self.waiting = 0;
    }

    fn queue(&mut self, index: usize, rings: &mut [Ring], watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        match index {
            RECEIVE => self.receive(&mut rings[RECEIVE], watch),
            _ => self.send(&mut rings[SEND]),
        }
    }

    fn event(&mut self, _: u32, _: EventSet, rings: &mut [Ring], watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        self.receive(&mut rings[RECEIVE], watch)
    }
}
