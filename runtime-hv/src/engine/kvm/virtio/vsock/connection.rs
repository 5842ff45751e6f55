//! One connection between a port of the guest and a socket of the host.
//!
//! Comes in: data and ends of either side. Decided: how much may go which way (credit, VIRTIO 1.2, 5.10.6.3), and which halves
//! are still open. Goes out: data for the socket, and what the guest has to be told.
//!
//! Each direction ends for itself, as with TCP:
//!
//! ```text
//!             host sends to guest            guest sends to host
//!  host ends  socket at its end: host_done   socket broken: host_deaf
//!  guest ends NO_RECEIVE: guest_deaf         NO_SEND: guest_done
//! ```

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::epoll::EventSet;

use super::super::{DeviceError, Watch};
use super::packet::{Header, NO_RECEIVE, NO_SEND};

/// Bytes kept for a host that does not read.
pub(super) const BUFFER: u32 = 0x4_0000;
/// The guest is told of room again when this many bytes of it are free that it does not know of.
const TELL_AFTER: u32 = BUFFER / 4;

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The host has asked; the guest has not answered.
    Requested,
    /// Data may go both ways.
    Open,
    /// The guest has forgotten it; the host still gets what the guest had sent.
    Draining,
}

/// What reading from the host gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FromHost {
    /// Bytes.
    Data(usize),
    /// Nothing yet.
    Later,
    /// The end.
    End,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// None once neither direction needs it.
    stream: Option<UnixStream>,
    /// What events on the stream are told with.
    pub(super) token: u32,
    watched: Option<EventSet>,
    pub(super) state: State,
    /// It stands in the line of connections that have something for the guest.
    pub(super) queued: bool,
    /// The guest was asked for credit, and has not answered.
    pub(super) asked: bool,

    to_host: VecDeque<u8>,
    /// Bytes that went to the socket, and how many of them the guest knows of.
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
    /// Bytes that went to the guest, how many of them it has taken, and how many it can keep.
    sent: Wrapping<u32>,
    guest_forwarded: Wrapping<u32>,
    guest_buffer: u32,

    host_done: bool,
    host_deaf: bool,
    guest_done: bool,
    guest_deaf: bool,
    /// The socket knows that the guest is done.
    ended: bool,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, token: u32, state: State) -> Self {
        Self {
            stream: Some(stream),
            token,
            watched: None,
            state,
            queued: false,
            asked: false,
            to_host: VecDeque::new(),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            sent: Wrapping(0),
            guest_forwarded: Wrapping(0),
            guest_buffer: 0,
            host_done: false,
            host_deaf: false,
            guest_done: false,
            guest_deaf: false,
            ended: false,
        }
    }

    /// Every packet of the guest says how much room it has.
    pub(super) fn hear_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = Wrapping(header.fwd_cnt);
        self.asked = false;
    }

    /// Fills in how much room the host has.
    pub(super) fn tell_credit(&mut self, header: &mut Header) {
        header.buf_alloc = BUFFER;
        header.fwd_cnt = self.forwarded.0;
        self.told = self.forwarded;
    }

    /// Whether the guest should be told of room.
    pub(super) fn owes_credit(&self) -> bool {
        self.state == State::Open && !self.guest_done && (self.forwarded - self.told).0 >= TELL_AFTER
    }

    /// Bytes that the guest has room for.
    pub(super) fn credit(&self) -> u32 {
        self.guest_buffer.saturating_sub((self.sent - self.guest_forwarded).0)
    }

    /// Whether there may be something to read for the guest.
    pub(super) fn wants_host(&self) -> bool {
        self.state == State::Open && !self.host_done && !self.guest_deaf && self.stream.is_some()
    }

    /// Reads what the host has for the guest, into at most all of `bytes`.
    pub(super) fn read(&mut self, bytes: &mut [u8]) -> FromHost {
        let Some(stream) = &mut self.stream else { return FromHost::Later };
        match stream.read(bytes) {
            Ok(0) => {
                // Only the sending half may be closed: then the guest's answer is still wanted.
                self.host_deaf |= hung_up(stream);
            }
            Ok(len) => {
                self.sent += Wrapping(len as u32);
                return FromHost::Data(len);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return FromHost::Later;
            }
            Err(_) => self.host_deaf = true,
        }
        self.host_done = true;
        if self.host_deaf {
            self.discard();
        }
        FromHost::End
    }

    /// Takes data of the guest; false when it sent more than there was room for, or after it had said that it would not.
    pub(super) fn take(&mut self, data: &[u8]) -> bool {
        if self.state != State::Open || self.guest_done || data.len() > BUFFER as usize - self.to_host.len() {
            return false;
        }
        self.to_host.extend(data);
        true
    }

    /// Writes to the socket what it takes now. True when the host turned out to take nothing any more.
    pub(super) fn flush(&mut self) -> bool {
        let was_deaf = self.host_deaf;
        while let (Some(stream), false, false) = (&mut self.stream, self.host_deaf, self.to_host.is_empty()) {
            match stream.write(self.to_host.as_slices().0) {
                Ok(len) => {
                    self.to_host.drain(..len);
                    self.forwarded += Wrapping(len as u32);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.host_deaf = true,
            }
        }
        if self.host_deaf || self.stream.is_none() {
            self.discard();
        }
        if self.guest_done && self.to_host.is_empty() && !self.ended {
            self.ended = true;
            self.shut(Shutdown::Write);
        }
        !was_deaf && self.host_deaf
    }

    /// Answers the host that the connection is there. False when the host is gone.
    pub(super) fn greet(&mut self, port: u32) -> bool {
        let greeting = format!("OK {port}\n");
        // The socket is empty: it takes so few bytes at once, or is broken.
        let written = self.stream.as_mut().map(|stream| stream.write(greeting.as_bytes()));
        matches!(written, Some(Ok(len)) if len == greeting.len())
    }

    /// The guest closes one or both directions.
    pub(super) fn hear_shutdown(&mut self, flags: u32) {
        self.guest_done |= flags & NO_SEND != 0;
        if flags & NO_RECEIVE != 0 && !self.guest_deaf {
            self.guest_deaf = true;
            self.shut(Shutdown::Read);
        }
    }

    /// What the guest has to be told about the host's side, as flags of a shutdown.
    pub(super) fn host_shutdown(&self) -> u32 {
        let receive = if self.host_deaf { NO_RECEIVE } else { 0 };
        let send = if self.host_done { NO_SEND } else { 0 };
        receive | send
    }

    /// Whether the guest has closed both directions and the host has everything.
    pub(super) fn is_over(&self) -> bool {
        self.guest_done && self.guest_deaf && self.to_host.is_empty()
    }

    /// The guest has forgotten the connection. Whether something of it is still on its way to the host.
    pub(super) fn drains(&mut self) -> bool {
        self.state = State::Draining;
        self.guest_done && !self.to_host.is_empty()
    }

    /// Whether the host has everything that the guest had sent.
    pub(super) fn is_drained(&self) -> bool {
        self.to_host.is_empty()
    }

    /// Waits for what is needed next, and for nothing else: level-triggered events that nobody handles would keep the thread
    /// busy.
    pub(super) fn watch(&mut self, watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        let idle = self.host_done && self.host_deaf;
        let Some(stream) = &self.stream else { return Ok(()) };
        if idle {
            // Nothing can go either way: the socket is closed now, the guest's answer is still to come.
            self.close(watch);
            return Ok(());
        }
        let mut wanted = EventSet::empty();
        if self.wants_host() && !self.queued && self.credit() > 0 {
            wanted |= EventSet::IN;
        }
        if !self.to_host.is_empty() {
            wanted |= EventSet::OUT;
        }
        // A host that gives up before the guest has answered is told by its hang-up, which is reported unasked.
        let wanted = (!wanted.is_empty() || self.state == State::Requested).then_some(wanted);
        match (self.watched, wanted) {
            (None, Some(events)) => watch.add(stream, self.token, events)?,
            (Some(old), Some(events)) if old != events => watch.change(stream, self.token, events)?,
            (Some(_), None) => watch.remove(stream),
            _ => {}
        }
        self.watched = wanted;
        Ok(())
    }

    /// Closes the socket.
    pub(super) fn close(&mut self, watch: &mut Watch<'_, '_>) {
        if let (Some(stream), true) = (self.stream.take(), self.watched.take().is_some()) {
            watch.remove(&stream);
        }
    }

    fn discard(&mut self) {
        self.forwarded += Wrapping(self.to_host.len() as u32);
        self.to_host.clear();
    }

    fn shut(&self, direction: Shutdown) {
        if let Some(stream) = &self.stream {
            // Fails when the host is gone, which is noticed elsewhere.
            let _ = stream.shutdown(direction);
        }
    }
}

/// Whether the other end is closed altogether.
fn hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let found = poll(&mut fds, PollTimeout::ZERO);
    found.is_ok() && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}
