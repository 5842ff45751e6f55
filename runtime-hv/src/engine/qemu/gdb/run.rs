//! The guest let run by the stub, and waited for together with something else.
//!
//! Comes in: which processors shall run. Decided: nothing; a guest that stops says so by itself. Goes out: how it came to stand.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::{Client, INTERRUPT, endless_damage, lost, unexpected};
use crate::engine::qemu::packet::{Arrival, bytes_of, encode};
use crate::engine::{EngineError, Vcpu};
use crate::timed::{PATIENCE, Timed};

/// A stop reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::qemu) struct Stop {
    /// The signal: [`super::TRAP`], [`super::STOPPED`], or another that says that the guest does not go on.
    pub(in crate::engine::qemu) signal: u8,
    /// The processor that it is about.
    pub(in crate::engine::qemu) vcpu: Option<Vcpu>,
    /// A watched range was written.
    pub(in crate::engine::qemu) watch: bool,
}

impl Stop {
    /// `T05thread:01;watch:ffffffff82a09540;`, `T02thread:02;` (QEMU gdbstub, `gdb_vm_state_change`).
    pub(super) fn parse(reply: &[u8]) -> Option<Stop> {
        let (kind, rest) = reply.split_first()?;
        if !matches!(kind, b'T' | b'S') {
            return None;
        }
        let signal = *bytes_of(rest.get(..2)?)?.first()?;
        let text = std::str::from_utf8(rest.get(2..)?).ok()?;
        let field = |name: &str| text.split(';').find_map(|field| field.strip_prefix(name)?.strip_prefix(':'));
        // Counted from 1; in a form with a process, `p01.01`.
        let thread = field("thread").and_then(|id| usize::from_str_radix(id.rsplit('.').next()?, 16).ok());
        let vcpu = thread.and_then(|thread| thread.checked_sub(1)).map(Vcpu);
        Some(Stop { signal, vcpu, watch: field("watch").is_some() })
    }
}

/// What came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::qemu) enum Waited {
    /// The guest stands.
    Stood(Stop),
    /// Somebody wants something else; the guest runs.
    Woken,
    /// Neither; the guest runs.
    Late,
}

impl Client<Timed> {
    /// Lets one processor run, or all. Until the guest stands again nothing else may be said to the stub.
    pub(in crate::engine::qemu) fn start(&mut self, vcpu: Option<Vcpu>) -> Result<(), EngineError> {
        let command = vcpu.map_or_else(|| "vCont;c".to_owned(), |vcpu| format!("vCont;c:{:x}", vcpu.0 + 1));
        let packet = encode(command.as_bytes());
        self.stream.begin(PATIENCE);
        let mut damaged = 0;
        let failed = |error: io::Error| lost(format!("`{command}`: {error}"));
        self.send(&packet).map_err(failed)?;
        loop {
            match self.arrival().map_err(failed)? {
                Arrival::Taken => return Ok(()),
                Arrival::Damaged if damaged < 3 => {
                    damaged += 1;
                    self.send(&packet).map_err(failed)?;
                }
                Arrival::Damaged => return Err(failed(endless_damage())),
                // An acknowledgement comes first, so this is not about our command.
                Arrival::Garbled | Arrival::Packet(_) => {}
            }
        }
    }

    /// Waits for a guest that runs to stand, for `limit` at most, or until `wake` has something or is closed.
    pub(in crate::engine::qemu) fn wait(
        &mut self,
        limit: Duration,
        wake: BorrowedFd<'_>,
    ) -> Result<Waited, EngineError> {
        let deadline = Instant::now() + limit;
        let failed = |error: io::Error| lost(format!("while the guest ran: {error}"));
        loop {
            if !self.stream.has_buffered() {
                let mut files = [
                    PollFd::new(self.stream.stream().as_fd(), PollFlags::POLLIN),
                    PollFd::new(wake, PollFlags::POLLIN),
                ];
                let left = TimeSpec::from_duration(deadline.saturating_duration_since(Instant::now()));
                match ppoll(&mut files, Some(left), None) {
                    Ok(0) => return Ok(Waited::Late),
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(failed(error.into())),
                }
                if !files[0].any().unwrap_or(true) {
                    if files[1].any().unwrap_or(true) {
                        return Ok(Waited::Woken);
                    }
                    continue;
                }
            }
            self.stream.begin(PATIENCE);
            match self.arrival().map_err(failed)? {
                Arrival::Packet(reply) => return self.stood(&reply).map(Waited::Stood),
                Arrival::Garbled => self.send(b"-").map_err(failed)?,
                Arrival::Taken | Arrival::Damaged => {}
            }
        }
    }

    /// Stops a guest that runs. It may have come to stand for another reason just before.
    pub(in crate::engine::qemu) fn halt(&mut self) -> Result<Stop, EngineError> {
        self.stream.begin(PATIENCE);
        let failed = |error: io::Error| lost(format!("while the guest was stopped: {error}"));
        let reply = self.send(&[INTERRUPT]).and_then(|()| self.stop_reply(&[INTERRUPT])).map_err(failed)?;
        Stop::parse(&reply).ok_or_else(|| unexpected("a stop reply", &reply))
    }

    fn stood(&mut self, reply: &[u8]) -> Result<Stop, EngineError> {
        self.send(b"+").map_err(|error| lost(error.to_string()))?;
        Stop::parse(reply).ok_or_else(|| unexpected("a stop reply", reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_replies_are_read() {
        let stop = |signal, vcpu, watch| Some(Stop { signal, vcpu, watch });
        assert_eq!(Stop::parse(b"T05thread:01;watch:ffffffff82a09540;"), stop(5, Some(Vcpu(0)), true));
        assert_eq!(Stop::parse(b"T02thread:0a;"), stop(2, Some(Vcpu(9)), false));
        assert_eq!(Stop::parse(b"T05thread:p01.02;"), stop(5, Some(Vcpu(1)), false));
        assert_eq!(Stop::parse(b"S05"), stop(5, None, false));
        assert_eq!(Stop::parse(b"T05thread:00;"), stop(5, None, false));
        for other in [&b"OK"[..], b"T", b"Tx5", b"W00", b""] {
            assert_eq!(Stop::parse(other), None);
        }
    }

    #[test]
    fn a_guest_is_let_run_and_comes_to_stand_in_each_way() {
        use std::io::{Read as _, Write as _};
        use std::os::unix::net::UnixStream;
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let mut expect = move |expected: &[u8], answer: &[u8]| {
            let mut got = vec![0; expected.len()];
            theirs.read_exact(&mut got).expect("bytes of the client");
            assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(expected));
            theirs.write_all(answer).expect("answer");
        };
        let stub = std::thread::spawn(move || {
            expect(&encode(b"Qqemu.PhyMemMode:1"), b"+$OK#9a");
            // It stands at once; the acknowledgement and the stop reply come together.
            let stood = encode(b"T05thread:02;watch:1000;");
            expect(&[b"+", &encode(b"vCont;c:2")[..]].concat(), &[b"+", &stood[..]].concat());
            // A damaged command is sent again; later it is stopped.
            expect(&[b"+", &encode(b"vCont;c")[..]].concat(), b"-");
            expect(&encode(b"vCont;c"), b"+");
            expect(&[INTERRUPT], &encode(b"T02thread:01;"));
            expect(b"+", b"");
        });
        let (asked, wake) = std::io::pipe().expect("a pipe");
        let mut client = Client::begin(Timed::new(ours)).expect("physical mode");
        client.start(Some(Vcpu(1))).expect("runs");
        let stood = client.wait(PATIENCE, asked.as_fd()).expect("stands");
        assert_eq!(stood, Waited::Stood(Stop { signal: super::super::TRAP, vcpu: Some(Vcpu(1)), watch: true }));
        client.start(None).expect("runs");
        assert_eq!(client.wait(Duration::from_millis(5), asked.as_fd()).expect("runs on"), Waited::Late);
        drop(wake);
        assert_eq!(client.wait(PATIENCE, asked.as_fd()).expect("runs on"), Waited::Woken);
        let stop = client.halt().expect("stands");
        assert_eq!(stop, Stop { signal: super::super::STOPPED, vcpu: Some(Vcpu(0)), watch: false });
        stub.join().expect("the stub saw what it expected");
        assert!(client.start(None).is_err(), "the stub is gone");
    }
}
