//! The socket device (VIRTIO 1.2, 5.10): streams between programs of the guest and Unix sockets of the host.
//!
//! Comes in: connections from both sides. Decided: which socket of the host is meant, and how many connections there may be.
//! Goes out: their data.
//!
//! - A program of the host connects to the socket at PATH and sends `CONNECT PORT` and a line feed; it is answered `OK`,
//!   a number and a line feed when a program of the guest listens at that port, or else with the end. From then on the
//!   connection is the guest's.
//! - A program of the guest connects to host 2, port PORT: it gets whoever listens at the socket PATH_PORT.
//!
//! Nothing of the host's kernel is needed for it. The same manner is known from Firecracker and Cloud Hypervisor.

mod connection;
mod exchange;
mod packet;

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::epoll::EventSet;

use super::ring::Ring;
use super::{Device, DeviceError, Watch};
use exchange::Exchange;

/// Queue of the packets to the guest.
const RECEIVE: usize = 0;
/// Queue of the packets from the guest.
const SEND: usize = 1;
/// Events on the socket at PATH; connections have higher tokens.
const LISTENER: u32 = 0;
/// Bytes of the longest path of a Unix socket (`sun_path`, without its final zero).
const LONGEST_PATH: usize = 107;
/// Bytes that a port adds to a path: `_4294967295`.
const PORT_SUFFIX: usize = 11;

/// Why a socket device cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The guest cannot have this address.
    #[error("the guest cannot have CID {0}: 0 to 2 and 4294967295 have a meaning of their own; choose one from 3 on")]
    Cid(u32),
    /// The host's sockets would have names that are too long.
    #[error("the socket path `{path}` is too long: {LONGEST_PATH} bytes with `_PORT`; choose a shorter one")]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// A virtual machine or another program listens there.
    #[error("the socket `{path}` is taken by a running program; choose another path")]
    Taken {
        /// The path.
        path: PathBuf,
    },
    /// Something else has this name.
    #[error("`{path}` exists and is not a socket; choose another path, or remove it")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The host does not allow it.
    #[error("the socket `{path}` cannot be made: {source}")]
    Bind {
        /// The path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// Streams between guest and host.
#[derive(Debug)]
pub struct Vsock {
    socket: Socket,
    /// Whether new connections of the host are accepted now.
    listening: bool,
    /// The host had no room for one more connection; tried again when one has ended.
    full: bool,
    exchange: Exchange,
}

impl Vsock {
    /// Listens at `path`, for its owner only; the guest is `cid`.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn open(cid: u32, path: &Path) -> Result<Self, VsockError> {
        if cid <= exchange::HOST as u32 || cid == u32::MAX {
            return Err(VsockError::Cid(cid));
        }
        let socket = Socket::bind(path)?;
        Ok(Self { socket, listening: false, full: false, exchange: Exchange::new(cid, path) })
    }

    /// Takes connections of the host, as many as are waiting and have room.
    fn accept(&mut self, watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        while self.exchange.has_room() {
            match self.socket.listener.accept() {
                Ok((stream, _)) => self.exchange.greet(stream, watch)?,
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(_) => {
                    self.full = true;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// After everything that happened: what the guest can get now goes there, and the host is listened to if there is room.
    fn settle(&mut self, rings: &mut [Ring], watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        let stalled = self.exchange.is_stalled();
        self.exchange.to_guest(&mut rings[RECEIVE], watch)?;
        if stalled && !self.exchange.is_stalled() {
            // Packets of the guest were left in their ring because nothing could be answered.
            rings[SEND].again();
        }
        self.full &= !self.exchange.take_ended();
        let wanted = self.exchange.has_room() && !self.full;
        if wanted != self.listening {
            self.listening = wanted;
            match wanted {
                true => watch.add(&self.socket.listener, LISTENER, EventSet::IN)?,
                false => watch.remove(&self.socket.listener),
            }
        }
        Ok(())
    }
}

impl Device for Vsock {
    fn id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn name(&self) -> String {
        format!("the vsock device at `{}`", self.socket.path.display())
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        // To the guest, from the guest, events: of the last nothing is sent, connections do not outlive their device.
        &[128, 128, 8]
    }

    fn config(&self) -> Vec<u8> {
        u64::from(self.exchange.cid()).to_le_bytes().to_vec()
    }

    fn start(&mut self, _: u64, watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        self.full = false;
        self.listening = true;
        watch.add(&self.socket.listener, LISTENER, EventSet::IN)
    }

    fn stop(&mut self, watch: &mut Watch<'_, '_>) {
        if std::mem::take(&mut self.listening) {
            watch.remove(&self.socket.listener);
        }
        self.exchange.clear(watch);
    }

    fn queue(&mut self, index: usize, rings: &mut [Ring], watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        if index == SEND {
            self.exchange.from_guest(&mut rings[SEND], watch)?;
        }
        self.settle(rings, watch)
    }

    fn event(
        &mut self,
        token: u32,
        events: EventSet,
        rings: &mut [Ring],
        watch: &mut Watch<'_, '_>,
    ) -> Result<(), DeviceError> {
        match token {
            LISTENER => self.accept(watch)?,
            _ => self.exchange.host_event(token, events, watch)?,
        }
        self.settle(rings, watch)
    }
}

/// The socket at PATH, which goes with it.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and number of the file, to tell it from another that has taken its name.
    file: Option<(u64, u64)>,
}

impl Socket {
    fn bind(path: &Path) -> Result<Self, VsockError> {
        let named = || path.to_path_buf();
        let failed = |source| VsockError::Bind { path: named(), source };
        if path.as_os_str().len() + PORT_SUFFIX > LONGEST_PATH {
            return Err(VsockError::TooLong { path: named() });
        }
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(found) if !found.file_type().is_socket() => return Err(VsockError::NotASocket { path: named() }),
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(VsockError::Taken { path: named() }),
            // Left behind by a machine that was killed.
            Ok(_) => fs::remove_file(path).map_err(failed)?,
        }
        // Nobody else may connect, not even in the moment before the mode could be changed.
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener.map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let file = fs::symlink_metadata(path).ok().map(|about| (about.dev(), about.ino()));
        Ok(Self { listener, path: named(), file })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path).ok().map(|about| (about.dev(), about.ino()));
        if found.is_some() && found == self.file {
            // Nothing can be done about a failure; the next machine finds the socket dead and removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}
