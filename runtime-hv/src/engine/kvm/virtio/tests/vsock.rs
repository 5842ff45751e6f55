//! Streams against real sockets of the host.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::super::driver::{Driver, HOLE, MODERN, STATUS, WRITE, wait};
use super::super::vsock::{Vsock, VsockError};

const CID: u64 = 7;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;
const STREAM: u16 = 1;
/// What the guest says it can keep.
const ROOM: u32 = 0x1_0000;

/// A packet, as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Packet {
    from: (u64, u32),
    to: (u64, u32),
    kind: u16,
    op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
    data: Vec<u8>,
}

impl Packet {
    fn bytes(&self) -> Vec<u8> {
        [
            &self.from.0.to_le_bytes()[..],
            &self.to.0.to_le_bytes(),
            &self.from.1.to_le_bytes(),
            &self.to.1.to_le_bytes(),
            &(self.data.len() as u32).to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
            &self.data,
        ]
        .concat()
    }

    fn parse(bytes: &[u8]) -> Self {
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"));
        assert_eq!(word(24) as usize, bytes.len() - 44, "the length in the header");
        Self {
            from: (long(0), word(16)),
            to: (long(8), word(20)),
            kind: half(28),
            op: half(30),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
            data: bytes[44..].to_vec(),
        }
    }
}

/// The guest.
struct Guest {
    driver: Driver,
    folder: TempDir,
    /// One buffer per descriptor of the receive queue.
    buffers: u64,
    packet: u64,
}

/// Bytes of a receive buffer, as in Linux.
const BUFFER: u32 = 4096;

impl Guest {
    fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.give_buffers(16);
        guest
    }

    /// One that has given the device nothing to answer with.
    fn without_buffers() -> Self {
        let folder = TempDir::new().expect("a folder");
        let device = Vsock::open(CID as u32, &folder.path().join("v")).expect("a device");
        let mut driver = Driver::started(device, MODERN);
        let buffers = driver.memory(16 * 0x1000);
        let packet = driver.memory(0x1_2000);
        Self { driver, folder, buffers, packet }
    }

    fn give_buffers(&mut self, count: u64) {
        for index in 0..count {
            self.driver.add(0, &[(self.buffers + index * 0x1000, BUFFER, WRITE)]);
        }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("v{suffix}"))
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path(&format!("_{port}"))).expect("a listener")
    }

    /// A packet of the guest's port to the host's.
    fn packet(guest: u32, host: u32, op: u16) -> Packet {
        Packet {
            from: (CID, guest),
            to: (2, host),
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: ROOM,
            fwd_cnt: 0,
            data: Vec::new(),
        }
    }

    /// Sends without waiting for the device to take it.
    fn post(&mut self, packet: &Packet) {
        let bytes = packet.bytes();
        self.driver.poke(self.packet, &bytes);
        // Header and data apart, as Linux up to 6.1 does.
        match packet.data.len() as u32 {
            0 => self.driver.add(1, &[(self.packet, 44, 0)]),
            len => self.driver.add(1, &[(self.packet, 44, 0), (self.packet + 44, len, 0)]),
        };
    }

    fn send(&mut self, packet: &Packet) {
        self.post(packet);
        assert_eq!(self.driver.used(1).1, 0);
    }

    fn say(&mut self, guest: u32, host: u32, op: u16) {
        self.send(&Self::packet(guest, host, op));
    }

    fn poll(&mut self) -> Option<Packet> {
        let (index, len) = self.driver.poll_used(0)?;
        let address = self.buffers + u64::from(index) * 0x1000;
        let packet = Packet::parse(&self.driver.peek(address, len as usize));
        assert_eq!((packet.from.0, packet.to.0), (2, CID));
        self.driver.add(0, &[(address, BUFFER, WRITE)]);
        Some(packet)
    }

    fn hear(&mut self) -> Packet {
        wait("a packet", || self.poll())
    }

    /// The next packet, which is for this port and this.
    fn expect(&mut self, guest: u32, op: u16) -> Packet {
        let packet = self.hear();
        assert_eq!((packet.to.1, packet.op), (guest, op), "{packet:?}");
        packet
    }

    /// Nothing comes.
    fn silent(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(self.poll(), None);
    }

    /// A connection that the guest has begun.
    fn dial(&mut self, guest: u32, host: u32) -> UnixStream {
        let listener = self.listen(host);
        self.say(guest, host, REQUEST);
        let answer = self.expect(guest, RESPONSE);
        assert_eq!((answer.from.1, answer.buf_alloc, answer.fwd_cnt), (host, 0x4_0000, 0));
        let (stream, _) = listener.accept().expect("a connection");
        fs::remove_file(self.path(&format!("_{host}"))).expect("removed");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        stream
    }

    /// A connection that the host has begun, to `guest`; the host's port.
    fn called(&mut self, guest: u32) -> (UnixStream, u32) {
        let mut stream = UnixStream::connect(self.path("")).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        stream.write_all(format!("CONNECT {guest}\n").as_bytes()).expect("written");
        let host = self.expect(guest, REQUEST).from.1;
        self.say(guest, host, RESPONSE);
        assert_eq!(line(&mut stream), format!("OK {host}\n"));
        (stream, host)
    }
}

fn line(stream: &mut UnixStream) -> String {
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.ends_with('\n') && stream.read(&mut byte).expect("read") == 1 {
        text.push(byte[0].into());
    }
    text
}

fn rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("read to the end");
    bytes
}

#[test]
fn tells_the_guest_its_address() {
    let mut guest = Guest::new();
    assert_eq!(guest.driver.config(0, 8), CID.to_le_bytes());
}

#[test]
fn the_guest_connects_talks_and_closes() {
    let mut guest = Guest::new();
    let mut host = guest.dial(1000, 52);
    guest.send(&Packet { data: b"from the guest".to_vec(), ..Guest::packet(1000, 52, RW) });
    let mut got = [0; 14];
    host.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"from the guest");
    host.write_all(b"from the host").expect("written");
    assert_eq!(guest.expect(1000, RW).data, b"from the host");
    guest.send(&Packet { flags: 3, ..Guest::packet(1000, 52, SHUTDOWN) });
    let end = guest.expect(1000, RST);
    assert_eq!(end.from.1, 52);
    assert_eq!(rest(&mut host), b"");
    // The ports are free again.
    guest.dial(1000, 52);
}

#[test]
fn the_host_connects_talks_and_closes() {
    let mut guest = Guest::new();
    let (mut host, port) = guest.called(80);
    host.write_all(b"question").expect("written");
    assert_eq!(guest.expect(80, RW).data, b"question");
    guest.send(&Packet { data: b"answer".to_vec(), ..Guest::packet(80, port, RW) });
    let mut got = [0; 6];
    host.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"answer");
    drop(host);
    assert_eq!(guest.expect(80, SHUTDOWN).flags, 3);
    guest.say(80, port, RST);
    guest.silent();
    // Another gets another port.
    assert_ne!(guest.called(80).1, port);
}

#[test]
fn what_follows_the_line_is_for_the_guest() {
    let mut guest = Guest::new();
    let mut host = UnixStream::connect(guest.path("")).expect("connected");
    host.write_all(b"CONNECT 80\nat once").expect("written");
    let port = guest.expect(80, REQUEST).from.1;
    guest.say(80, port, RESPONSE);
    assert_eq!(guest.expect(80, RW).data, b"at once");
}

#[test]
fn each_direction_ends_for_itself() {
    let mut guest = Guest::new();
    let mut host = guest.dial(1000, 52);
    host.write_all(b"all of it").expect("written");
    host.shutdown(Shutdown::Write).expect("ended");
    assert_eq!(guest.expect(1000, RW).data, b"all of it");
    assert_eq!(guest.expect(1000, SHUTDOWN).flags, 2, "the host still listens");
    guest.send(&Packet { data: b"the answer".to_vec(), ..Guest::packet(1000, 52, RW) });
    guest.send(&Packet { flags: 2, ..Guest::packet(1000, 52, SHUTDOWN) });
    assert_eq!(rest(&mut host), b"the answer");

    let mut host = guest.dial(1001, 53);
    guest.send(&Packet { data: b"first".to_vec(), ..Guest::packet(1001, 53, RW) });
    guest.send(&Packet { flags: 2, ..Guest::packet(1001, 53, SHUTDOWN) });
    assert_eq!(rest(&mut host), b"first");
    host.write_all(b"then").expect("written");
    assert_eq!(guest.expect(1001, RW).data, b"then");
}

#[test]
fn nobody_there_is_answered_at_once() {
    let mut guest = Guest::new();
    guest.say(1000, 99, REQUEST);
    guest.expect(1000, RST);
    // The guest does not listen.
    let mut host = UnixStream::connect(guest.path("")).expect("connected");
    host.write_all(b"CONNECT 81\n").expect("written");
    let port = guest.expect(81, REQUEST).from.1;
    guest.say(81, port, RST);
    assert_eq!(rest(&mut host), b"");
    // The host gives up first.
    let mut host = UnixStream::connect(guest.path("")).expect("connected");
    host.write_all(b"CONNECT 82\n").expect("written");
    let port = guest.expect(82, REQUEST).from.1;
    drop(host);
    guest.expect(82, RST);
    guest.say(82, port, RESPONSE);
    guest.expect(82, RST);
}

#[test]
fn lines_that_mean_nothing_end_the_connection() {
    let mut guest = Guest::new();
    for text in ["\n", "CONNECT\n", "CONNECT x\n", "CONNECT 4294967296\n", "CONNECT -1\n", "connect 80\n", "\u{fe}\n"] {
        let mut host = UnixStream::connect(guest.path("")).expect("connected");
        host.write_all(text.as_bytes()).expect("written");
        assert_eq!(rest(&mut host), b"", "{text:?}");
    }
    let mut host = UnixStream::connect(guest.path("")).expect("connected");
    host.write_all(&[b' '; 33]).expect("written");
    let ended = host.read(&mut [0]);
    assert!(matches!(&ended, Ok(0)) || ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    guest.silent();
}

#[test]
fn the_guest_is_never_sent_more_than_it_has_room_for() {
    let mut guest = Guest::new();
    let mut host = guest.dial(1000, 52);
    host.set_nonblocking(true).expect("not waiting");
    let sent: Vec<u8> = (0..400_000u32).map(|index| (index % 251) as u8).collect();
    let (mut written, mut got) = (0, Vec::new());
    let mut requests = 0;
    while got.len() < sent.len() {
        if let Ok(len) = host.write(&sent[written..]) {
            written += len;
        }
        let Some(packet) = guest.poll() else { continue };
        match packet.op {
            RW => got.extend(packet.data),
            CREDIT_REQUEST => {
                requests += 1;
                assert_eq!(got.len() % ROOM as usize, 0, "all of the room is used before it asks");
                guest.send(&Packet { fwd_cnt: got.len() as u32, ..Guest::packet(1000, 52, CREDIT_UPDATE) });
            }
            _ => panic!("{packet:?}"),
        }
        assert!(got.len() <= ROOM as usize * (requests + 1));
    }
    assert_eq!(got, sent);
    assert_eq!(requests, sent.len() / ROOM as usize);
}

#[test]
fn the_guest_is_told_of_room_as_the_host_reads() {
    let mut guest = Guest::new();
    let mut host = guest.dial(1000, 52);
    let chunk: Vec<u8> = (0..0x1_0000u32).map(|index| (index % 253) as u8).collect();
    let mut told = 0;
    // The host reads nothing: socket and buffer fill up.
    let mut sent = 0u32;
    while sent + 0x1_0000 - told <= 0x4_0000 {
        guest.send(&Packet { data: chunk.clone(), ..Guest::packet(1000, 52, RW) });
        sent += 0x1_0000;
        while let Some(packet) = guest.poll() {
            assert_eq!(packet.op, CREDIT_UPDATE);
            told = packet.fwd_cnt;
        }
    }
    guest.say(1000, 52, CREDIT_REQUEST);
    assert!(guest.expect(1000, CREDIT_UPDATE).fwd_cnt <= sent);
    let mut got = vec![0; sent as usize];
    host.read_exact(&mut got).expect("read");
    assert!(got.chunks(0x1_0000).all(|part| part == chunk));
    wait("credit", || guest.poll().map(|packet| packet.fwd_cnt).filter(|count| *count > sent - 0x1_0000));
}

#[test]
fn more_than_there_is_room_for_ends_the_connection() {
    let mut guest = Guest::new();
    let _host = guest.dial(1000, 52);
    let chunk = vec![1; 0x1_0000];
    let ended = (0..16).any(|_| {
        guest.send(&Packet { data: chunk.clone(), ..Guest::packet(1000, 52, RW) });
        std::iter::from_fn(|| guest.poll()).any(|packet| packet.op == RST)
    });
    assert!(ended || guest.hear().op == RST);
}

#[test]
fn what_the_guest_sent_before_it_closed_arrives() {
    let mut guest = Guest::new();
    let mut host = guest.dial(1000, 52);
    let chunk = vec![9; 0x1_0000];
    for _ in 0..4 {
        guest.send(&Packet { data: chunk.clone(), ..Guest::packet(1000, 52, RW) });
    }
    guest.send(&Packet { flags: 3, ..Guest::packet(1000, 52, SHUTDOWN) });
    // It waits no longer, as Linux after eight seconds.
    guest.say(1000, 52, RST);
    assert_eq!(rest(&mut host).len(), 0x4_0000);
}

#[test]
fn a_host_that_hangs_up_is_told_to_the_guest() {
    let mut guest = Guest::new();
    let mut host = guest.dial(1000, 52);
    host.write_all(b"last words").expect("written");
    drop(host);
    assert_eq!(guest.expect(1000, RW).data, b"last words");
    assert_eq!(guest.expect(1000, SHUTDOWN).flags, 3);
    // Data that was on its way is no harm; nor is the end.
    guest.send(&Packet { data: vec![1; 100], ..Guest::packet(1000, 52, RW) });
    guest.send(&Packet { flags: 3, ..Guest::packet(1000, 52, SHUTDOWN) });
    guest.expect(1000, RST);
    guest.dial(1000, 52);
}

#[test]
fn packets_out_of_order_end_the_connection_and_nothing_else() {
    let mut guest = Guest::new();
    let _other = guest.dial(500, 51);
    // Without a connection.
    for op in [RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 0, 8, 0xffff] {
        guest.say(1000, 52, op);
        guest.expect(1000, RST);
    }
    guest.say(1000, 52, RST);
    // With one.
    for (op, host) in [(REQUEST, 60), (RESPONSE, 61), (0, 62), (8, 63)] {
        let mut stream = guest.dial(1000, host);
        guest.say(1000, host, op);
        guest.expect(1000, RST);
        assert_eq!(rest(&mut stream), b"");
    }
    // Data after the guest said that there would be none.
    let _stream = guest.dial(1000, 64);
    guest.send(&Packet { flags: 2, ..Guest::packet(1000, 64, SHUTDOWN) });
    guest.send(&Packet { data: vec![1], ..Guest::packet(1000, 64, RW) });
    guest.expect(1000, RST);
    // Not a stream; not from this guest; not for the host.
    guest.send(&Packet { kind: 2, ..Guest::packet(1000, 52, REQUEST) });
    assert_eq!(guest.expect(1000, RST).kind, 2);
    guest.send(&Packet { from: (CID + 1, 1000), ..Guest::packet(1000, 52, REQUEST) });
    guest.send(&Packet { to: (3, 52), ..Guest::packet(1000, 52, REQUEST) });
    guest.send(&Packet { to: (1 << 32 | 2, 52), ..Guest::packet(1000, 52, REQUEST) });
    guest.silent();
    guest.say(500, 51, CREDIT_REQUEST);
    guest.expect(500, CREDIT_UPDATE);
}

#[test]
fn packets_may_be_cut_anywhere() {
    let mut guest = Guest::new();
    let mut host = guest.dial(1000, 52);
    let bytes = Packet { data: b"in many pieces".to_vec(), ..Guest::packet(1000, 52, RW) }.bytes();
    let at = guest.driver.bytes(&bytes);
    let pieces: Vec<_> = (0..bytes.len() as u64)
        .step_by(6)
        .map(|from| (at + from, 6.min(bytes.len() as u32 - from as u32), 0))
        .collect();
    guest.driver.add(1, &pieces);
    guest.driver.used(1);
    guest.driver.add(1, &[(at, bytes.len() as u32, 0)]);
    guest.driver.used(1);
    let mut got = [0; 28];
    host.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"in many piecesin many pieces");
}

#[test]
fn malformed_packets_cost_the_device_until_reset() {
    let mut guest = Guest::new();
    let at = guest.driver.bytes(&Packet { data: vec![1; 100], ..Guest::packet(1000, 52, RW) }.bytes());
    let huge = guest.driver.bytes(&Guest::packet(1000, 52, RW).bytes());
    guest.driver.poke(huge + 24, &u32::MAX.to_le_bytes());
    for chain in [
        &[(at, 43, 0)][..],             // half a header
        &[(at, 44, 0)],                 // no data
        &[(at, 44, 0), (at, 99, 0)],    // too little data
        &[(at, 144, WRITE)],            // to write
        &[(huge, 0x1000, 0)],           // too much data
        &[(at, 44, 0), (HOLE, 100, 0)], // outside of memory
    ] {
        let mut host = guest.dial(1000, 52);
        guest.driver.add(1, chain);
        guest.driver.fails();
        assert_eq!(rest(&mut host), b"", "connections end with the device");
        guest.driver.start(MODERN);
        guest.give_buffers(16);
    }
    // Receive buffers without room for data, or to read.
    for buffer in [(at, 44, WRITE), (at, 4096, 0), (HOLE, 4096, WRITE)] {
        guest.driver.start(MODERN);
        guest.driver.add(0, &[buffer]);
        guest.say(1000, 99, REQUEST);
        guest.driver.fails();
    }
    guest.driver.start(MODERN);
    guest.give_buffers(16);
    guest.dial(1000, 52);
}

#[test]
fn a_guest_that_takes_no_answers_is_not_served_for_ever() {
    let mut guest = Guest::without_buffers();
    let mut taken = 0;
    while {
        guest.post(&Guest::packet(1000, 52, RW));
        let end = Instant::now() + Duration::from_millis(500);
        std::iter::repeat_with(|| guest.driver.poll_used(1).is_some())
            .take_while(|_| Instant::now() < end)
            .any(|used| used)
    } {
        taken += 1;
        assert!(taken < 300, "answers are piled up without end");
    }
    assert_eq!(taken, 256);
    // With buffers, all are answered.
    guest.give_buffers(16);
    for _ in 0..=taken {
        guest.expect(1000, RST);
    }
    assert_eq!(guest.driver.used(1).1, 0);
}

#[test]
fn connections_are_bounded() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let mut streams = Vec::new();
    for port in 0..1023 {
        guest.say(port, 52, REQUEST);
        guest.expect(port, RESPONSE);
        streams.push(listener.accept().expect("a connection").0);
    }
    guest.say(1023, 52, REQUEST);
    guest.expect(1023, RST);
    // One of the host waits until another has ended.
    let mut late = UnixStream::connect(guest.path("")).expect("in the backlog");
    late.write_all(b"CONNECT 80\n").expect("written");
    guest.silent();
    guest.say(0, 52, RST);
    guest.expect(80, REQUEST);
}

#[test]
fn a_reset_ends_all_connections() {
    let mut guest = Guest::new();
    for _ in 0..5 {
        let mut streams = [guest.dial(1000, 52), guest.called(80).0];
        let mut silent = UnixStream::connect(guest.path("")).expect("connected");
        guest.driver.set(STATUS, 0);
        streams.iter_mut().for_each(|stream| assert_eq!(rest(stream), b""));
        guest.driver.start(MODERN);
        guest.give_buffers(16);
        silent
            .write_all(b"CONNECT 80\n")
            .or_else(|error| match error.kind() {
                ErrorKind::BrokenPipe => Ok(()),
                _ => Err(error),
            })
            .expect("written, or ended");
        drop(silent);
        while guest.poll().is_some() {}
        std::thread::sleep(Duration::from_millis(20));
        while guest.poll().is_some() {}
    }
}

#[test]
fn places_that_cannot_be_used_are_refused_by_name() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("v");
    let open = |cid, path: &Path| Vsock::open(cid, path);
    for cid in [0, 1, 2, u32::MAX] {
        assert!(matches!(open(cid, &path), Err(VsockError::Cid(bad)) if bad == cid));
    }
    assert!(matches!(open(3, &folder.path().join("x".repeat(100))), Err(VsockError::TooLong { .. })));
    assert!(matches!(open(3, Path::new("/nowhere/at/all")), Err(VsockError::Bind { .. })));
    assert!(matches!(open(3, folder.path()), Err(VsockError::NotASocket { .. })));
    let first = open(3, &path).expect("a device");
    assert_eq!(fs::metadata(&path).expect("the socket").mode() & 0o777, 0o600);
    assert!(matches!(open(4, &path), Err(VsockError::Taken { .. })));
    drop(first);
    assert!(!path.exists(), "the socket goes with the device");
    // Left behind by one that was killed.
    drop(UnixListener::bind(&path).expect("a listener"));
    let second = open(3, &path).expect("a device");
    // Somebody else's by now: it stays.
    fs::remove_file(&path).expect("removed");
    let _other = UnixListener::bind(&path).expect("a listener");
    drop(second);
    assert!(path.exists());
}
