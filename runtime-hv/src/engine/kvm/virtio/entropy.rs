//! The entropy device (VIRTIO 1.2, 5.4): random bytes of the host.
//!
//! Comes in: buffers to fill. Decided: how many bytes are given at once. Goes out: what `getrandom(2)` gives.

use std::io::{self, Write};

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::GuestMemoryMmap;

use super::ring::{Chain, Ring};
use super::{Device, DeviceError, Watch};

/// Bytes given for one request. Linux asks for less than a page.
const MOST: usize = 4096;

/// Gives the guest random bytes.
#[derive(Debug, Default)]
pub struct Entropy;

impl Entropy {
    /// The device.
    pub fn new() -> Self {
        Self
    }

    fn fill(ram: &GuestMemoryMmap, chain: Chain) -> Result<u32, DeviceError> {
        let failed = |source| DeviceError::Host { what: "getting random bytes", source };
        let mut writer =
            chain.writer(ram).map_err(|_| DeviceError::Driver("a buffer to fill lies outside of the memory"))?;
        let mut bytes = [0; MOST];
        let given = &mut bytes[..writer.available_bytes().min(MOST)];
        getrandom::fill(given).map_err(|error| failed(io::Error::other(error)))?;
        writer.write_all(given).map_err(failed)?;
        Ok(given.len() as u32)
    }
}

impl Device for Entropy {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> String {
        "the entropy device".into()
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn start(&mut self, _: u64, _: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn stop(&mut self, _: &mut Watch<'_, '_>) {}

    fn queue(&mut self, index: usize, rings: &mut [Ring], _: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        rings[index].serve(|ram, chain| Self::fill(ram, chain))
    }
}
