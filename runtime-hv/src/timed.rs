//! A Unix stream socket on which nothing waits for ever.
//!
//! Comes in: a path, or a connected stream. Decided: how long a conversation may take in all, however many reads it needs.
//! Goes out: a reader and writer that fails with `TimedOut` once its deadline has passed.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// How long one command may take before its peer counts as lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A buffered stream with a deadline for the conversation under way.
#[derive(Debug)]
pub(crate) struct Timed {
    reader: BufReader<Raw>,
    outgoing: Vec<u8>,
}

#[derive(Debug)]
struct Raw {
    stream: UnixStream,
    deadline: Instant,
}

impl Raw {
    fn remaining(&self) -> io::Result<Duration> {
        match self.deadline.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// A socket timeout is reported as `WouldBlock` (socket(7), SO_RCVTIMEO).
fn name_timeout(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Read for Raw {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.remaining()?;
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(into).map_err(name_timeout)
    }
}

impl Timed {
    pub(crate) fn new(stream: UnixStream) -> Self {
        let raw = Raw { stream, deadline: Instant::now() + PATIENCE };
        Self { reader: BufReader::new(raw), outgoing: Vec::new() }
    }

    /// Connects to the socket at `path`. An ordinary connect to a Unix socket blocks without limit while the queue of the
    /// listener is full, so this one does not block and is repeated until `patience` is used up.
    pub(crate) fn connect(path: &Path, patience: Duration) -> io::Result<Self> {
        let address = UnixAddr::new(path)?;
        let deadline = Instant::now() + patience;
        loop {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            match connect(socket.as_raw_fd(), &address) {
                Ok(()) => {
                    let stream = UnixStream::from(socket);
                    stream.set_nonblocking(false)?;
                    return Ok(Self::new(stream));
                }
                Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Begins a new conversation, which may take `patience` in all.
    pub(crate) fn begin(&mut self, patience: Duration) {
        self.reader.get_mut().deadline = Instant::now() + patience;
    }

    /// Whether something has arrived that was not read yet.
    pub(crate) fn has_buffered(&self) -> bool {
        !self.reader.buffer().is_empty()
    }

    pub(crate) fn stream(&self) -> &UnixStream {
        &self.reader.get_ref().stream
    }
}

impl Read for Timed {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.reader.read(into)
    }
}

impl BufRead for Timed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.reader.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.reader.consume(amount);
    }
}

impl Write for Timed {
    /// Collects; [`Write::flush`] sends, so that a command leaves as one message.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let outgoing = std::mem::take(&mut self.outgoing);
        let raw = self.reader.get_mut();
        let left = raw.remaining()?;
        raw.stream.set_write_timeout(Some(left))?;
        raw.stream.write_all(&outgoing).map_err(name_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{Backlog, bind, listen};

    #[test]
    fn a_silent_peer_costs_no_more_than_the_deadline() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair of sockets");
        let mut timed = Timed::new(ours);
        let start = Instant::now();
        timed.begin(Duration::from_millis(80));
        let error = timed.read(&mut [0; 4]).expect_err("nobody wrote");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= Duration::from_millis(70) && start.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_dripping_peer_does_not_extend_the_deadline() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let drip = std::thread::spawn(move || {
            while theirs.write_all(b".").is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let mut timed = Timed::new(ours);
        timed.begin(Duration::from_millis(100));
        let error = timed.read_until(b'\n', &mut Vec::new()).expect_err("the line never ends");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(timed);
        drip.join().expect("the dripping thread ends when its peer is gone");
    }

    #[test]
    fn a_full_queue_is_reported_in_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("full");
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        let address = UnixAddr::new(&path).expect("an address");
        bind(listener.as_raw_fd(), &address).expect("bound");
        listen(&listener, Backlog::new(1).expect("a legal length")).expect("listening");
        // Nobody accepts: one or two clients wait in the queue, the next finds it full.
        let mut held = Vec::new();
        let start = Instant::now();
        let error = loop {
            match Timed::connect(&path, Duration::from_millis(80)) {
                Ok(timed) => held.push(timed),
                Err(error) => break error,
            }
            assert!(held.len() < 10, "the queue never fills");
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= Duration::from_millis(70) && start.elapsed() < Duration::from_secs(5));
    }
}
