//! All connections of a guest, and the packets between.
//!
//! Comes in: packets of the guest, events of the host's sockets. Decided: which connection each belongs to, what is answered,
//! whose data goes to the guest next. Goes out: packets and data.
//!
//! What is kept is bounded: connections by [`MOST`], data by [`BUFFER`](super::connection::BUFFER) for each of them, and answers by
//! leaving the guest's packets in their ring once [`MOST_ANSWERS`] wait for a buffer of the guest.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use virtio_queue::Writer;
use vmm_sys_util::epoll::EventSet;

use super::super::ring::Ring;
use super::super::{DeviceError, Watch};
use super::connection::{Connection, FromHost, State};
use super::packet::{CREDIT_REQUEST, CREDIT_UPDATE, HEADER, Header, REQUEST, RESPONSE, RST, RW, SHUTDOWN, STREAM};

/// The host's address (VIRTIO 1.2, 5.10.4).
pub(super) const HOST: u64 = 2;
/// Connections at a time, with those of the host that have not said yet where they want to go.
const MOST: usize = 1023;
/// Answers that wait for the guest.
const MOST_ANSWERS: usize = 256;
/// Bytes of data in a packet, as in Linux (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE).
const MOST_DATA: usize = 0x1_0000;
/// Bytes of the line in which the host says where it wants to go.
const LONGEST_LINE: usize = 32;
/// Ports of the host for connections that it begins: above those that programs choose.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;
/// Tokens of connections: above the listener's, below what [`Watch`] keeps for itself.
const FIRST_TOKEN: u32 = 1;
const LAST_TOKEN: u32 = u32::MAX >> 1;

/// What a connection is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ports {
    host: u32,
    guest: u32,
}

/// A program of the host that has not said yet where it wants to go.
#[derive(Debug)]
struct Arrival {
    stream: UnixStream,
    line: Vec<u8>,
}

/// Everything between the guest and the host.
#[derive(Debug)]
pub(super) struct Exchange {
    cid: u32,
    path: PathBuf,
    connections: HashMap<Ports, Connection>,
    tokens: HashMap<u32, Ports>,
    arrivals: HashMap<u32, Arrival>,
    /// Packets without data, for the guest.
    answers: VecDeque<Header>,
    /// Connections that have data for the guest, each once.
    ready: VecDeque<Ports>,
    next_token: u32,
    next_port: u32,
    /// A connection has ended since this was asked last.
    ended: bool,
    data: Box<[u8]>,
}

impl Exchange {
    pub(super) fn new(cid: u32, path: &Path) -> Self {
        Self {
            cid,
            path: path.to_path_buf(),
            connections: HashMap::new(),
            tokens: HashMap::new(),
            arrivals: HashMap::new(),
            answers: VecDeque::new(),
            ready: VecDeque::new(),
            next_token: FIRST_TOKEN,
            next_port: FIRST_PORT,
            ended: false,
            data: vec![0; MOST_DATA].into(),
        }
    }

    /// The guest's address.
    pub(super) fn cid(&self) -> u32 {
        self.cid
    }

    /// Whether one more connection of the host may come.
    pub(super) fn has_room(&self) -> bool {
        self.connections.len() + self.arrivals.len() < MOST && !self.is_stalled()
    }

    /// Whether too many answers wait for the guest.
    pub(super) fn is_stalled(&self) -> bool {
        self.answers.len() >= MOST_ANSWERS
    }

    /// Whether a connection has ended since the last call.
    pub(super) fn take_ended(&mut self) -> bool {
        std::mem::take(&mut self.ended)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self, watch: &mut Watch<'_, '_>) {
        for (_, mut connection) in self.connections.drain() {
            connection.close(watch);
        }
        for (_, arrival) in self.arrivals.drain() {
            watch.remove(&arrival.stream);
        }
        self.tokens.clear();
        self.answers.clear();
        self.ready.clear();
    }

    /// A program of the host has come.
    pub(super) fn greet(&mut self, stream: UnixStream, watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        if stream.set_nonblocking(true).is_err() {
            return Ok(());
        }
        let token = self.new_token();
        watch.add(&stream, token, EventSet::IN)?;
        self.arrivals.insert(token, Arrival { stream, line: Vec::new() });
        Ok(())
    }

    /// Something happened on a socket of the host.
    pub(super) fn host_event(
        &mut self,
        token: u32,
        events: EventSet,
        watch: &mut Watch<'_, '_>,
    ) -> Result<(), DeviceError> {
        if self.arrivals.contains_key(&token) {
            return self.arrival_event(token, watch);
        }
        let Some(&ports) = self.tokens.get(&token) else { return Ok(()) };
        let Some(connection) = self.connections.get_mut(&ports) else { return Ok(()) };
        if connection.state == State::Requested {
            if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
                self.reset(ports, watch);
            }
            return Ok(());
        }
        if events.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::ERROR)
            && connection.wants_host()
            && !connection.queued
        {
            connection.queued = true;
            self.ready.push_back(ports);
        }
        self.attend(ports, watch)
    }

    /// Reads where an arrival wants to go, a byte at a time: what follows belongs to the guest.
    fn arrival_event(&mut self, token: u32, watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        let Some(arrival) = self.arrivals.get_mut(&token) else { return Ok(()) };
        let mut byte = [0];
        let port = loop {
            match arrival.stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break port_of(&arrival.line),
                Ok(1) if arrival.line.len() < LONGEST_LINE => arrival.line.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Ok(_) | Err(_) => break None,
            }
        };
        let Some(Arrival { stream, .. }) = self.arrivals.remove(&token) else { return Ok(()) };
        watch.remove(&stream);
        match port {
            None => self.ended = true,
            Some(guest) => {
                let ports = Ports { host: self.new_port(guest), guest };
                self.insert(ports, stream, State::Requested);
                self.answer(ports, REQUEST, 0);
                self.attend(ports, watch)?;
            }
        }
        Ok(())
    }

    /// Takes packets of the guest, until their answers become too many or others should have their turn.
    pub(super) fn from_guest(&mut self, ring: &mut Ring, watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        let ram = ring.ram();
        for _ in 0..ring.turn() {
            if self.is_stalled() {
                return Ok(ring.signal()?);
            }
            let Some(chain) = ring.take()? else {
                return Ok(ring.signal()?);
            };
            let head = chain.head_index();
            let outside = |_| DeviceError::Driver("a packet lies outside of the memory");
            let mut reader = chain.reader(&*ram).map_err(outside)?;
            let mut bytes = [0; HEADER];
            reader.read_exact(&mut bytes).map_err(|_| DeviceError::Driver("a packet without a header"))?;
            let header = Header::from_bytes(&bytes);
            let mut data = std::mem::take(&mut self.data);
            let read = match data.get_mut(..header.len as usize) {
                Some(data) => reader.read_exact(data).map_err(|_| DeviceError::Driver("a packet without its data")),
                None => Err(DeviceError::Driver("a packet of more than 64 KiB")),
            };
            let done = read.and_then(|()| self.packet(&header, &data[..header.len as usize], watch));
            self.data = data;
            done?;
            ring.finish(head, 0)?;
        }
        ring.signal()?;
        ring.again();
        Ok(())
    }

    fn packet(&mut self, header: &Header, data: &[u8], watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        // For or from somebody else: there is nobody to answer (VIRTIO 1.2, 5.10.6.4.1 leaves it to us).
        if header.src_cid != u64::from(self.cid) || header.dst_cid != HOST {
            return Ok(());
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        if header.kind != STREAM {
            if header.op != RST {
                let answer = Header { kind: header.kind, ..self.header(ports, RST) };
                self.answers.push_back(answer);
            }
            return Ok(());
        }
        if header.op == REQUEST {
            return self.request(ports, header, watch);
        }
        let known = self.connections.get_mut(&ports).filter(|connection| connection.state != State::Draining);
        let Some(connection) = known else {
            if header.op != RST {
                self.answer(ports, RST, 0);
            }
            return Ok(());
        };
        connection.hear_credit(header);
        let fits = match (header.op, connection.state) {
            (RESPONSE, State::Requested) => {
                connection.state = State::Open;
                connection.greet(ports.host)
            }
            (RW, _) => connection.take(data),
            (SHUTDOWN, State::Open) => {
                connection.hear_shutdown(header.flags);
                true
            }
            (CREDIT_UPDATE, _) => true,
            (CREDIT_REQUEST, _) => {
                self.answer(ports, CREDIT_UPDATE, 0);
                true
            }
            (RST, _) => {
                if !connection.drains() {
                    self.remove(ports, watch);
                }
                true
            }
            _ => false,
        };
        if fits {
            self.attend(ports, watch)
        } else {
            self.reset(ports, watch);
            Ok(())
        }
    }

    /// The guest wants a connection.
    fn request(&mut self, ports: Ports, header: &Header, watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        match self.connections.get(&ports).map(|connection| connection.state) {
            Some(State::Draining) => self.remove(ports, watch),
            Some(_) => {
                self.reset(ports, watch);
                return Ok(());
            }
            None => {}
        }
        let full = self.connections.len() + self.arrivals.len() >= MOST;
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", ports.host));
        match connect_to(Path::new(&path)) {
            Ok(stream) if !full => {
                self.insert(ports, stream, State::Open).hear_credit(header);
                self.answer(ports, RESPONSE, 0);
                self.attend(ports, watch)
            }
            // Nobody listens, or not to so many.
            Ok(_) | Err(_) => {
                self.answer(ports, RST, 0);
                Ok(())
            }
        }
    }

    /// Fills buffers of the guest, with answers first, then with data of each connection in turn.
    pub(super) fn to_guest(&mut self, ring: &mut Ring, watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        let ram = ring.ram();
        for _ in 0..ring.turn() {
            if self.answers.is_empty() && self.ready.is_empty() {
                return Ok(ring.signal()?);
            }
            let Some(chain) = ring.take()? else {
                return Ok(ring.signal()?);
            };
            let head = chain.head_index();
            let outside = |_| DeviceError::Driver("a buffer for a packet lies outside of the memory");
            let mut writer = chain.writer(&*ram).map_err(outside)?;
            if writer.available_bytes() <= HEADER {
                return Err(DeviceError::Driver("a buffer for a packet has no room for data"));
            }
            let written = match self.answers.pop_front() {
                Some(answer) => Some(put(&mut writer, &answer, &[])?),
                None => self.data_packet(&mut writer, watch)?,
            };
            match written {
                Some(written) => ring.finish(head, written)?,
                None => ring.put_back(),
            }
        }
        ring.signal()?;
        ring.again();
        Ok(())
    }

    /// A packet with data of the next connection that has some; its length.
    fn data_packet(&mut self, writer: &mut Writer<'_>, watch: &mut Watch<'_, '_>) -> Result<Option<u32>, DeviceError> {
        while let Some(ports) = self.ready.pop_front() {
            let mut header = self.header(ports, RW);
            let Some(connection) = self.connections.get_mut(&ports) else { continue };
            connection.queued = false;
            let room = writer.available_bytes() - HEADER;
            let limit = room.min(connection.credit() as usize).min(self.data.len());
            if connection.wants_host() && limit > 0 {
                match connection.read(&mut self.data[..limit]) {
                    FromHost::Data(len) => {
                        header.len = len as u32;
                        connection.tell_credit(&mut header);
                        connection.queued = true;
                        self.ready.push_back(ports);
                        return put(writer, &header, &self.data[..len]).map(Some);
                    }
                    FromHost::End => {
                        let flags = connection.host_shutdown();
                        self.answer(ports, SHUTDOWN, flags);
                    }
                    FromHost::Later => {}
                }
            } else if connection.wants_host() && !std::mem::replace(&mut connection.asked, true) {
                self.answer(ports, CREDIT_REQUEST, 0);
            }
            self.attend(ports, watch)?;
        }
        Ok(None)
    }

    /// After something happened to a connection: what the host can take goes there, and what follows from that.
    fn attend(&mut self, ports: Ports, watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        let Some(connection) = self.connections.get_mut(&ports) else { return Ok(()) };
        let broke = connection.flush();
        if connection.state == State::Draining {
            if connection.is_drained() {
                self.remove(ports, watch);
                return Ok(());
            }
        } else if connection.is_over() {
            self.reset(ports, watch);
            return Ok(());
        } else if broke {
            let flags = connection.host_shutdown();
            self.answer(ports, SHUTDOWN, flags);
        } else if connection.owes_credit() {
            self.answer(ports, CREDIT_UPDATE, 0);
        }
        match self.connections.get_mut(&ports) {
            Some(connection) => connection.watch(watch),
            None => Ok(()),
        }
    }

    fn insert(&mut self, ports: Ports, stream: UnixStream, state: State) -> &mut Connection {
        let token = self.new_token();
        self.tokens.insert(token, ports);
        self.connections.entry(ports).insert_entry(Connection::new(stream, token, state)).into_mut()
    }

    /// Ends a connection and tells the guest.
    fn reset(&mut self, ports: Ports, watch: &mut Watch<'_, '_>) {
        self.answer(ports, RST, 0);
        self.remove(ports, watch);
    }

    fn remove(&mut self, ports: Ports, watch: &mut Watch<'_, '_>) {
        if let Some(mut connection) = self.connections.remove(&ports) {
            self.tokens.remove(&connection.token);
            self.ready.retain(|other| *other != ports);
            connection.close(watch);
            self.ended = true;
        }
    }

    fn answer(&mut self, ports: Ports, op: u16, flags: u32) {
        let mut header = Header { flags, ..self.header(ports, op) };
        if let Some(connection) = self.connections.get_mut(&ports) {
            connection.tell_credit(&mut header);
        }
        self.answers.push_back(header);
    }

    fn header(&self, ports: Ports, op: u16) -> Header {
        Header {
            src_cid: HOST,
            dst_cid: self.cid.into(),
            src_port: ports.host,
            dst_port: ports.guest,
            kind: STREAM,
            op,
            ..Header::default()
        }
    }

    fn new_token(&mut self) -> u32 {
        loop {
            let token = self.next_token;
            self.next_token = if token == LAST_TOKEN { FIRST_TOKEN } else { token + 1 };
            if !self.tokens.contains_key(&token) && !self.arrivals.contains_key(&token) {
                return token;
            }
        }
    }

    fn new_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = if host == LAST_PORT { FIRST_PORT } else { host + 1 };
            if !self.connections.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }
}

/// The port in `CONNECT PORT`.
fn port_of(line: &[u8]) -> Option<u32> {
    std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?.trim().parse().ok()
}

/// Connects without waiting for a listener that is slow to accept.
fn connect_to(path: &Path) -> nix::Result<UnixStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

/// Writes a packet; its length.
fn put(writer: &mut Writer<'_>, header: &Header, data: &[u8]) -> Result<u32, DeviceError> {
    let failed = |source: io::Error| DeviceError::Host { what: "filling a buffer", source };
    writer.write_all(&header.to_bytes()).and_then(|()| writer.write_all(data)).map_err(failed)?;
    Ok((HEADER + data.len()) as u32)
}
