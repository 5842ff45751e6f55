//! A small client of the GDB remote protocol: physical memory and processors of a stopped guest.
//!
//! Comes in: a connection to QEMU's stub. Decided: which answer belongs to which command (stop replies arrive unasked), and
//! when to send again. Goes out: writes to guest-physical memory, registers, one processor let run alone for a while, and
//! whether the stub had to stop a running guest for us.
//!
//! The stub writes as a debugger does: translated code is thrown away, so TCG executes what was written. It answers `OK`
//! for holes and writes to ROM as well (QEMU softmmu/physmem.c, `cpu_memory_rw_debug`), so addresses are checked before.

mod run;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use super::description::Layout;
use super::packet::{Arrival, Decoder, bytes_of, encode, hex};
use crate::engine::{EngineError, Pa, Vcpu};
use crate::timed::{PATIENCE, Timed};

pub(super) use run::{Stop, Waited};

const PEER: &str = "GDB stub of QEMU";

/// Bytes in one `M` command: with its head (at most 24 characters) it stays below the 4,096 characters that the stub takes;
/// a longer packet is dropped without any answer (QEMU gdbstub.c, MAX_PACKET_LENGTH).
const CHUNK: usize = 1984;

/// Short writes that are on their way at once; their answers fit into the smallest buffer of a socket.
const AT_ONCE: usize = 64;
/// Bytes of a short write.
const SHORT: usize = 64;

/// How long to wait for an answer after an unasked stop reply.
const AFTER_STOP: Duration = Duration::from_millis(500);

/// Bytes of a description asked for at a time; the stub gives no more than half of its longest packet.
const DESCRIPTION_CHUNK: usize = 0x7f0;
/// More than any description of registers.
const DESCRIPTION_LIMIT: usize = 1 << 20;

/// The signal of a breakpoint and of a single step (QEMU gdbstub, `GDB_SIGNAL_TRAP`).
pub(super) const TRAP: u8 = 5;
/// The signal of a guest that was stopped, by [`Client::halt`] or by its owner (QEMU gdbstub, `GDB_SIGNAL_INT`).
pub(super) const STOPPED: u8 = 2;
/// A byte that stops a running guest (GDB manual, "Interrupts").
const INTERRUPT: u8 = 3;

/// How far one processor is let run alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Far {
    /// One instruction, without interrupts.
    Step,
    /// On and on.
    On,
}

/// Why all processors stand again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stood {
    /// By themselves, with this signal.
    Signal(u8),
    /// They were stopped when the time was over.
    Late,
}

/// A stream whose conversations can be bounded in time.
pub(super) trait Bounded: Read + Write {
    /// Begins a new conversation.
    fn begin(&mut self, patience: Duration);
}

impl Bounded for Timed {
    fn begin(&mut self, patience: Duration) {
        Timed::begin(self, patience);
    }
}

/// A connection to the stub.
#[derive(Debug)]
pub(super) struct Client<S> {
    stream: S,
    decoder: Decoder,
    /// The stub said on its own that the guest stopped.
    stop_reported: bool,
    /// Which registers there are, once that was asked.
    layout: Option<Arc<Layout>>,
}

impl<S: Bounded> Client<S> {
    /// Takes over a connection and switches the stub to physical addresses.
    pub(super) fn begin(stream: S) -> Result<Self, EngineError> {
        let mut client = Self { stream, decoder: Decoder::default(), stop_reported: false, layout: None };
        client.expect_ok(b"Qqemu.PhyMemMode:1", "`OK` for physical addresses (QEMU 4.1 or newer)")?;
        Ok(client)
    }

    /// Back to virtual addresses: the mode is a global of QEMU that would surprise the next debugger.
    pub(super) fn end(mut self) -> Result<(), EngineError> {
        self.expect_ok(b"Qqemu.PhyMemMode:0", "`OK` for virtual addresses")
    }

    /// Whether the stub has reported a stop since the last question. On a guest that was stopped all the while it has no
    /// reason to.
    pub(super) fn take_stop_report(&mut self) -> bool {
        std::mem::take(&mut self.stop_reported)
    }

    /// Writes guest-physical memory.
    ///
    /// # Consistency on error
    /// A prefix of `bytes` may have been written.
    pub(super) fn write(&mut self, to: Pa, bytes: &[u8]) -> Result<(), EngineError> {
        let mut at = to.0;
        for chunk in bytes.chunks(CHUNK) {
            let mut command = format!("M{at:x},{:x}:", chunk.len()).into_bytes();
            command.extend(hex(chunk));
            self.expect_ok(&command, "`OK` for a write")?;
            at = at.wrapping_add(chunk.len() as u64);
        }
        Ok(())
    }

    /// Writes to many places, in order. Short writes do not wait for each other's answers: a packet that comes before the last answer
    /// was acknowledged stands for that (QEMU gdbstub.c, `gdb_read_byte`).
    ///
    /// # Consistency on error
    /// Any of them may have been written to.
    pub(super) fn write_each(&mut self, places: &[(Pa, &[u8])]) -> Result<(), EngineError> {
        for places in places.chunks(AT_ONCE) {
            if places.iter().any(|(_, bytes)| bytes.len() > SHORT) {
                places.iter().try_for_each(|&(to, bytes)| self.write(to, bytes))?;
                continue;
            }
            let command = |(to, bytes): &(Pa, &[u8])| {
                let head = format!("M{:x},{:x}:", to.0, bytes.len()).into_bytes();
                encode(&[head, hex(bytes)].concat())
            };
            let packets: Vec<u8> = places.iter().flat_map(command).collect();
            self.stream.begin(PATIENCE);
            self.answers(&packets, places.len()).map_err(|error| lost(format!("{} writes: {error}", places.len())))?;
        }
        Ok(())
    }

    /// Sends packets that are each answered by `OK`. Nothing is sent again: whoever disturbs them ends them.
    fn answers(&mut self, packets: &[u8], count: usize) -> io::Result<()> {
        self.send(packets)?;
        let mut open = count;
        while open != 0 {
            match self.arrival()? {
                Arrival::Taken => {}
                Arrival::Packet(payload) if payload == b"OK" => open -= 1,
                Arrival::Packet(payload) => {
                    self.stop_reported |= matches!(payload.first(), Some(b'T' | b'S'));
                    let said = String::from_utf8_lossy(&payload).into_owned();
                    return Err(io::Error::new(io::ErrorKind::InvalidData, format!("`{said}` instead of `OK`")));
                }
                Arrival::Damaged | Arrival::Garbled => return Err(endless_damage()),
            }
        }
        self.send(b"+")
    }

    /// Chooses the processor whose registers are meant from now on, until the guest has run. Processors are threads, counted
    /// from 1 (QEMU gdbstub, `cpu_gdb_index`).
    pub(super) fn select(&mut self, vcpu: Vcpu) -> Result<(), EngineError> {
        self.expect_ok(format!("Hg{:x}", vcpu.0 + 1).as_bytes(), "`OK` for the choice of a processor")
    }

    /// All registers of the processor that was chosen, one behind the other.
    pub(super) fn registers(&mut self) -> Result<Vec<u8>, EngineError> {
        let answer = self.exchange(b"g")?;
        bytes_of(&answer)
            .filter(|bytes| !bytes.is_empty())
            .ok_or_else(|| unexpected("registers in hexadecimal", &answer))
    }

    /// Writes a register of the processor that was chosen. The stub does this once a description has been read.
    pub(super) fn set_register(&mut self, number: usize, value: &[u8]) -> Result<(), EngineError> {
        let mut command = format!("P{number:x}=").into_bytes();
        command.extend(hex(value));
        self.expect_ok(&command, "`OK` for a register")
    }

    /// Which registers there are. The stub lets them be written one by one once it was asked.
    pub(super) fn layout(&mut self) -> Result<Arc<Layout>, EngineError> {
        if let Some(layout) = &self.layout {
            return Ok(Arc::clone(layout));
        }
        let target = self.description("target.xml")?;
        let mut documents = vec![target.clone()];
        for name in Layout::documents(&target) {
            documents.push(self.description(name)?);
        }
        let layout = Arc::new(Layout::parse(documents.iter().map(String::as_str))?);
        self.layout = Some(Arc::clone(&layout));
        Ok(layout)
    }

    /// A document of the target description.
    fn description(&mut self, name: &str) -> Result<String, EngineError> {
        let mut text = Vec::new();
        loop {
            let answer =
                self.exchange(format!("qXfer:features:read:{name}:{:x},{DESCRIPTION_CHUNK:x}", text.len()).as_bytes())?;
            let (more, part) = match answer.split_first() {
                Some((b'm', part)) if !part.is_empty() && text.len() < DESCRIPTION_LIMIT => (true, part),
                Some((b'l', part)) => (false, part),
                _ => return Err(unexpected("a part of the target description", &answer)),
            };
            text.extend_from_slice(part);
            if !more {
                return String::from_utf8(text)
                    .map_err(|_| unexpected("a target description in UTF-8", name.as_bytes()));
            }
        }
    }

    /// Sets a breakpoint, on all processors.
    pub(super) fn set_breakpoint(&mut self, at: u64) -> Result<(), EngineError> {
        self.expect_ok(format!("Z0,{at:x},1").as_bytes(), "`OK` for a breakpoint")
    }

    /// Removes a breakpoint; one that is not there is no error.
    pub(super) fn clear_breakpoint(&mut self, at: u64) -> Result<(), EngineError> {
        let answer = self.exchange(format!("z0,{at:x},1").as_bytes())?;
        // ENOENT comes as EINVAL (QEMU gdbstub, `handle_remove_bp`).
        if answer == b"OK" || answer.first() == Some(&b'E') {
            return Ok(());
        }
        Err(unexpected("`OK` for a breakpoint removed", &answer))
    }

    /// Has writes to a range of virtual addresses stop the guest, on all processors. Ranges may overlap.
    pub(super) fn set_watch(&mut self, at: u64, length: usize) -> Result<(), EngineError> {
        self.expect_ok(format!("Z2,{at:x},{length:x}").as_bytes(), "`OK` for a watched range")
    }

    /// Removes it; one that is not there is no error.
    pub(super) fn clear_watch(&mut self, at: u64, length: usize) -> Result<(), EngineError> {
        let answer = self.exchange(format!("z2,{at:x},{length:x}").as_bytes())?;
        if answer == b"OK" || answer.first() == Some(&b'E') {
            return Ok(());
        }
        Err(unexpected("`OK` for a watched range removed", &answer))
    }

    /// Lets one processor run while the others stand, for `limit` at most. All stand afterwards.
    ///
    /// # Consistency on error
    /// The processor may run.
    pub(super) fn run(&mut self, vcpu: Vcpu, far: Far, limit: Duration) -> Result<Stood, EngineError> {
        let action = if far == Far::Step { 's' } else { 'c' };
        let packet = encode(format!("vCont;{action}:{:x}", vcpu.0 + 1).as_bytes());
        let failed = |error: io::Error| lost(format!("while processor {} ran: {error}", vcpu.0));
        // The limit is the guest's: however long we take, the command is on its way before the byte that stops what it began.
        self.stream.begin(PATIENCE);
        self.send(&packet).map_err(failed)?;
        self.stream.begin(limit);
        let reply = self.stop_reply(&packet);
        let (reply, late) = match reply {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                self.stream.begin(PATIENCE);
                (self.send(&[INTERRUPT]).and_then(|()| self.stop_reply(&packet)).map_err(failed)?, true)
            }
            reply => (reply.map_err(failed)?, false),
        };
        let signal = reply.get(1..3).and_then(bytes_of).and_then(|bytes| bytes.first().copied());
        match (reply.first(), signal) {
            // It may have come to its end just before it was stopped.
            (Some(b'T' | b'S'), Some(signal)) if late && signal != TRAP => Ok(Stood::Late),
            (Some(b'T' | b'S'), Some(signal)) => Ok(Stood::Signal(signal)),
            _ => Err(unexpected("a stop reply", &reply)),
        }
    }

    /// Waits for the next packet. Nothing may be sent meanwhile: any byte stops a running guest.
    fn stop_reply(&mut self, packet: &[u8]) -> io::Result<Vec<u8>> {
        let mut damaged = 0;
        loop {
            let arrival = self.arrival()?;
            if arrival != Arrival::Taken {
                // The time that the guest had does not end the conversation about what it did: an answer that came in its last
                // moment is acknowledged, or QEMU takes the next byte for that.
                self.stream.begin(PATIENCE);
            }
            match arrival {
                Arrival::Taken => {}
                Arrival::Packet(payload) => {
                    self.send(b"+")?;
                    return Ok(payload);
                }
                Arrival::Damaged | Arrival::Garbled if damaged == 3 => return Err(endless_damage()),
                Arrival::Damaged => {
                    damaged += 1;
                    self.send(packet)?;
                }
                Arrival::Garbled => {
                    damaged += 1;
                    self.send(b"-")?;
                }
            }
        }
    }

    fn expect_ok(&mut self, command: &[u8], expected: &'static str) -> Result<(), EngineError> {
        let answer = self.exchange(command)?;
        if answer == b"OK" {
            return Ok(());
        }
        Err(unexpected(expected, &answer))
    }

    /// Sends a command until it is acknowledged; returns its answer.
    fn exchange(&mut self, command: &[u8]) -> Result<Vec<u8>, EngineError> {
        self.stream.begin(PATIENCE);
        self.converse(command).map_err(|error| {
            let name = String::from_utf8_lossy(&command[..command.len().min(24)]).into_owned();
            let reason = match error.kind() {
                io::ErrorKind::TimedOut => format!("no answer to `{name}` within {} s", PATIENCE.as_secs()),
                _ => format!("`{name}`: {error}"),
            };
            lost(reason)
        })
    }

    fn converse(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        let packet = encode(command);
        self.send(&packet)?;
        let mut taken = false;
        let mut damaged = 0;
        loop {
            match self.arrival()? {
                Arrival::Taken => taken = true,
                Arrival::Damaged | Arrival::Garbled if damaged == 3 => {
                    return Err(endless_damage());
                }
                Arrival::Damaged => {
                    damaged += 1;
                    self.send(&packet)?;
                }
                Arrival::Garbled => {
                    damaged += 1;
                    self.send(b"-")?;
                }
                Arrival::Packet(payload) => {
                    self.send(b"+")?;
                    // No command of ours is answered by a stop reply.
                    if matches!(payload.first(), Some(b'T' | b'S')) {
                        self.stop_reported = true;
                        // If the guest was running, the stub has thrown our command away (QEMU gdbstub.c, `gdb_read_byte`).
                        self.stream.begin(AFTER_STOP);
                    } else if taken {
                        return Ok(payload);
                    }
                }
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    fn arrival(&mut self) -> io::Result<Arrival> {
        loop {
            let mut byte = [0];
            if self.stream.read(&mut byte)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(arrival) = self.decoder.feed(byte[0]) {
                return Ok(arrival);
            }
        }
    }
}

fn endless_damage() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "damaged packets, four times in a row")
}

fn lost(reason: String) -> EngineError {
    EngineError::Connection { peer: PEER, reason }
}

pub(super) fn unexpected(expected: &'static str, answer: &[u8]) -> EngineError {
    let answer = String::from_utf8_lossy(answer.get(..120).unwrap_or(answer)).into_owned();
    EngineError::Protocol { peer: PEER, expected, answer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::thread::{JoinHandle, spawn};

    /// A stub that expects the first bytes of each step from us and then says the second.
    fn stub(steps: Vec<(Vec<u8>, Vec<u8>)>) -> (Timed, JoinHandle<()>) {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let thread = spawn(move || {
            for (expected, answer) in steps {
                let mut got = vec![0; expected.len()];
                theirs.read_exact(&mut got).expect("bytes of the client");
                assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&expected));
                theirs.write_all(&answer).expect("answer");
            }
        });
        (Timed::new(ours), thread)
    }

    fn step(expected: impl Into<Vec<u8>>, answer: impl Into<Vec<u8>>) -> (Vec<u8>, Vec<u8>) {
        (expected.into(), answer.into())
    }

    fn begun() -> (Vec<u8>, Vec<u8>) {
        step(encode(b"Qqemu.PhyMemMode:1"), "+$OK#9a")
    }

    #[test]
    fn a_write_is_cut_into_chunks_and_the_mode_is_put_back() {
        let bytes: Vec<u8> = (0..CHUNK + 3).map(|index| index as u8).collect();
        let first = [format!("M{:x},7c0:", 0x1000).into_bytes(), hex(&bytes[..CHUNK])].concat();
        let second = [format!("M{:x},3:", 0x1000 + CHUNK).into_bytes(), hex(&bytes[CHUNK..])].concat();
        assert!(encode(&first).len() < 4096);
        let ok = "+$OK#9a";
        let (stream, thread) = stub(vec![
            begun(),
            step("+", ""),
            step(encode(&first), ok),
            step("+", ""),
            step(encode(&second), ok),
            step("+", ""),
            step(encode(b"Qqemu.PhyMemMode:0"), ok),
            step("+", ""),
        ]);
        let mut client = Client::begin(stream).expect("physical mode");
        client.write(Pa(0x1000), &bytes).expect("written");
        assert!(!client.take_stop_report());
        client.end().expect("virtual mode");
        thread.join().expect("the stub saw what it expected");
    }

    #[test]
    fn short_writes_are_on_their_way_together() {
        let places: Vec<(Pa, &[u8])> =
            (0..AT_ONCE as u64 + 1).map(|index| (Pa(0x1000 + index * 16), &b"ab"[..])).collect();
        let packet = |index: u64| encode(format!("M{:x},2:6162", 0x1000 + index * 16).as_bytes());
        let together: Vec<u8> = (0..AT_ONCE as u64).flat_map(packet).collect();
        let (stream, thread) = stub(vec![
            begun(),
            step("+", ""),
            step(together, "+$OK#9a".repeat(AT_ONCE)),
            step("+", ""),
            step(packet(AT_ONCE as u64), "+$OK#9a"),
            step("+", ""),
            step([packet(0), packet(1)].concat(), "+$OK#9a+$E14#aa"),
        ]);
        let mut client = Client::begin(stream).expect("physical mode");
        client.write_each(&places).expect("written");
        let error = client.write_each(&places[..2]).expect_err("the second fails");
        assert!(error.to_string().contains("`E14` instead of `OK`"), "{error}");
        thread.join().expect("the stub saw what it expected");
    }

    #[test]
    fn unasked_stop_replies_are_drained_and_remembered() {
        let (stream, thread) = stub(vec![
            step(encode(b"Qqemu.PhyMemMode:1"), "+$T02thread:01;#04$OK#9a"),
            step("++", ""),
            step(encode(b"M0,1:aa"), "$T02thread:01;#04+$OK#9a"),
            step("++", ""),
        ]);
        let mut client = Client::begin(stream).expect("physical mode");
        assert!(client.take_stop_report() && !client.take_stop_report());
        client.write(Pa(0), &[0xaa]).expect("written");
        assert!(client.take_stop_report());
        thread.join().expect("the stub saw what it expected");
    }

    #[test]
    fn a_damaged_command_is_repeated_and_a_damaged_answer_asked_for_again() {
        let write = encode(b"M0,1:aa");
        let (stream, thread) = stub(vec![
            begun(),
            step("+", ""),
            step(write.clone(), "-"),
            step(write, "+$OK#00"),
            step("-", "$OK#9a"),
            step("+", ""),
        ]);
        let mut client = Client::begin(stream).expect("physical mode");
        client.write(Pa(0), &[0xaa]).expect("written at the second attempt");
        thread.join().expect("the stub saw what it expected");
    }

    #[test]
    fn endless_damage_gives_up() {
        let write = encode(b"M0,1:aa");
        let mut steps = vec![begun(), step("+", "")];
        steps.extend((0..4).map(|_| step(write.clone(), "-")));
        let (stream, thread) = stub(steps);
        let mut client = Client::begin(stream).expect("physical mode");
        assert!(client.write(Pa(0), &[0xaa]).expect_err("always damaged").to_string().contains("damaged"));
        thread.join().expect("the stub saw what it expected");
    }

    #[test]
    fn refusals_and_hangups_are_told() {
        let (stream, thread) = stub(vec![begun(), step("+", ""), step(encode(b"M0,1:aa"), "+$E14#aa"), step("+", "")]);
        let mut client = Client::begin(stream).expect("physical mode");
        assert!(client.write(Pa(0), &[0xaa]).expect_err("refused").to_string().contains("E14"));
        thread.join().expect("the stub saw what it expected");
        assert!(matches!(client.write(Pa(0), &[0xaa]), Err(EngineError::Connection { .. })), "the stub is gone");

        let (stream, thread) = stub(vec![step(encode(b"Qqemu.PhyMemMode:1"), "+$#00"), step("+", "")]);
        assert!(Client::begin(stream).expect_err("an old stub").to_string().contains("QEMU 4.1"));
        thread.join().expect("the stub saw what it expected");
    }
}
