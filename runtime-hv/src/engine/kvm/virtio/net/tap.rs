//! A TAP interface of the host: frames as a file.
//!
//! Comes in: the name of an interface. Decided: whether it is there and ours to use. Goes out: a file that gives and takes
//! whole frames, each with a virtio header, and never waits. Linux's side is `drivers/net/tun.c`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::engine::kvm::ioctls;
use nix::errno::Errno;
use nix::libc;

/// Where the host's kernel hands out TAP interfaces.
const TUN: &str = "/dev/net/tun";

/// Why a TAP interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The address is one that no interface can have.
    #[error(
        "the MAC address {0} is no interface's own: its first byte is odd, or all are 0; choose one like 02:00:00:00:00:01"
    )]
    Mac(String),
    /// A name that no interface can have.
    #[error("`{0}` cannot be the name of a network interface: expected 1 to 15 characters")]
    Name(String),
    /// The host's kernel has no TAP interfaces, or we may not use them.
    #[error("{TUN} cannot be opened: {0}; `modprobe tun` brings it, and its mode must let you write to it")]
    Tun(#[source] io::Error),
    /// No such interface.
    #[error(
        "there is no network interface `{0}`; `ip tuntap add dev {0} mode tap user USER` makes it, `ip link set {0} up` starts it"
    )]
    Missing(String),
    /// Another program has it.
    #[error("the TAP interface `{0}` is in use by another program; give each virtual machine one of its own")]
    Busy(String),
    /// It belongs to somebody else.
    #[error("the TAP interface `{0}` is not yours: `ip tuntap add dev {0} mode tap user USER` makes one for you")]
    Permission(String),
    /// It is an interface of another kind.
    #[error(
        "the network interface `{0}` is not a TAP interface with one queue; `ip tuntap add dev NAME mode tap` makes one"
    )]
    Kind(String),
    /// Anything else.
    #[error("the TAP interface `{name}` cannot be set up: {source}")]
    SetUp {
        /// The interface.
        name: String,
        /// What the host said.
        source: io::Error,
    },
}

/// A TAP interface that is ours until it is dropped.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Takes the interface.
    pub(super) fn open(name: &str) -> Result<Self, TapError> {
        let named = || name.to_owned();
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['\0', '/', '%']) {
            return Err(TapError::Name(named()));
        }
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN);
        let file = file.map_err(TapError::Tun)?;
        // The kernel would make one, which nobody has connected to anything.
        nix::net::if_::if_nametoindex(name).map_err(|_| TapError::Missing(named()))?;
        ioctls::set_interface(&file, name).map_err(|errno| match errno {
            Errno::EBUSY => TapError::Busy(named()),
            Errno::EPERM | Errno::EACCES => TapError::Permission(named()),
            Errno::EINVAL => TapError::Kind(named()),
            other => TapError::SetUp { name: named(), source: other.into() },
        })?;
        ioctls::set_header_size(&file, super::HEADER)
            .map_err(|errno| TapError::SetUp { name: named(), source: errno.into() })?;
        Ok(Self { file, name: named() })
    }

    /// The interface's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether frames to read may have a checksum that is still to be computed, as their header then says.
    pub(super) fn allow_unfinished_checksums(&self, allowed: bool) -> io::Result<()> {
        let flags = if allowed { libc::TUN_F_CSUM } else { 0 };
        Ok(ioctls::set_offloads(&self.file, flags)?)
    }

    /// Reads one frame; [`io::ErrorKind::WouldBlock`] when there is none.
    pub(super) fn read(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        self.file.read(frame)
    }

    /// Writes one frame.
    pub(super) fn write(&mut self, frame: &[u8]) -> io::Result<usize> {
        self.file.write(frame)
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
