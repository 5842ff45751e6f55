//! A packet's header (VIRTIO 1.2, 5.10.6).
//!
//! Comes in: 44 bytes. Decided: nothing. Goes out: the fields, and back.
//!
//! Written out here because the rust-vmm crate for it takes packets of one or two buffers only, and Linux from 6.17 on
//! sends them in more.

/// Bytes of a header.
pub(super) const HEADER: usize = 44;
/// The only type of connection offered: a stream.
pub(super) const STREAM: u16 = 1;

/// The other side wants a connection.
pub(super) const REQUEST: u16 = 1;
/// It is there.
pub(super) const RESPONSE: u16 = 2;
/// There is none, or none any more.
pub(super) const RST: u16 = 3;
/// One side will send or receive no more, see [`NO_RECEIVE`] and [`NO_SEND`].
pub(super) const SHUTDOWN: u16 = 4;
/// Data.
pub(super) const RW: u16 = 5;
/// How much room the sender has.
pub(super) const CREDIT_UPDATE: u16 = 6;
/// Asks for a [`CREDIT_UPDATE`].
pub(super) const CREDIT_REQUEST: u16 = 7;

/// Flag of [`SHUTDOWN`]: its sender receives no more.
pub(super) const NO_RECEIVE: u32 = 1;
/// Flag of [`SHUTDOWN`]: its sender sends no more.
pub(super) const NO_SEND: u32 = 2;

/// A header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of data that follow.
    pub(super) len: u32,
    /// The type of connection.
    pub(super) kind: u16,
    /// What the packet is for.
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Bytes that its sender can keep for this connection.
    pub(super) buf_alloc: u32,
    /// Bytes that its sender has taken out of its buffer since the beginning, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes
    }
}
