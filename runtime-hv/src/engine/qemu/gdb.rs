//! A small client of the GDB remote protocol: physical memory of a stopped guest.
//!
//! Comes in: a connection to QEMU's stub. Decided: which answer belongs to which command (stop replies arrive unasked), and
//! when to send again. Goes out: writes to guest-physical memory, and whether the stub had to stop a running guest for us.
//!
//! The stub writes as a debugger does: translated code is thrown away, so TCG executes what was written. It answers `OK`
//! for holes and writes to ROM as well (QEMU softmmu/physmem.c, `cpu_memory_rw_debug`), so addresses are checked before.

use std::io::{self, Read, Write};
use std::time::Duration;

use super::packet::{Arrival, Decoder, encode, hex};
use crate::engine::{EngineError, Pa};
use crate::timed::{PATIENCE, Timed};

const PEER: &str = "GDB stub of QEMU";

/// Bytes in one `M` command: with its head (at most 24 characters) it stays below the 4,096 characters that the stub takes;
/// a longer packet is dropped without any answer (QEMU gdbstub.c, MAX_PACKET_LENGTH).
const CHUNK: usize = 1984;

/// How long to wait for an answer after an unasked stop reply.
const AFTER_STOP: Duration = Duration::from_millis(500);

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
}

impl<S: Bounded> Client<S> {
    /// Takes over a connection and switches the stub to physical addresses.
    pub(super) fn begin(stream: S) -> Result<Self, EngineError> {
        let mut client = Self { stream, decoder: Decoder::default(), stop_reported: false };
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

    fn expect_ok(&mut self, command: &[u8], expected: &'static str) -> Result<(), EngineError> {
        let answer = self.exchange(command)?;
        if answer == b"OK" {
            return Ok(());
        }
        Err(EngineError::Protocol { peer: PEER, expected, answer: String::from_utf8_lossy(&answer).into_owned() })
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
            EngineError::Connection { peer: PEER, reason }
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
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "damaged packets, four times in a row"));
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
