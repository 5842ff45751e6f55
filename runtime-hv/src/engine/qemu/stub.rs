//! QEMU's GDB stub, opened for the time of one pause.
//!
//! Comes in: a monitor and a private folder. Decided: whether the stub is free, ours from an earlier life, or the owner's.
//! Goes out: a listener opened before the guest is stopped (about 1.5 ms that the guest does not notice), a connection made
//! at the first write (0.1 ms), and both closed again after the guest runs. An idle stub costs a running guest nothing, but a
//! stranger who connects to it stops the guest, so it is open only while it is needed.

use std::path::{Path, PathBuf};

use super::gdb::Client;
use super::monitor::Monitor;
use super::record::{Mark, Record};
use crate::engine::{EngineError, Pa};
use crate::timed::{PATIENCE, Timed};

/// Name of the folders in which we keep sockets, before the part made at random.
pub(super) const FOLDER_PREFIX: &str = "lucos-qemu-";
const SOCKET_NAME: &str = "gdb.sock";

/// What the VM says about its stub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// There is none.
    Closed,
    /// One of ours, at this socket; `connected` when a client holds it.
    Ours { socket: PathBuf, connected: bool },
    /// The owner's own, at this address.
    Owners(String),
}

impl Found {
    /// Looks at the character devices: the stub's is named `gdb` (QEMU gdbstub.c, `gdbserver_start`).
    pub(super) fn ask(monitor: &mut Monitor) -> Result<Self, EngineError> {
        Ok(Self::parse(&monitor.human("info chardev")?))
    }

    fn parse(text: &str) -> Self {
        let Some(address) = text.lines().find_map(|line| line.trim().strip_prefix("gdb: filename=")) else {
            return Self::Closed;
        };
        let waiting = address.strip_prefix("disconnected:");
        let path = waiting.unwrap_or(address).strip_prefix("unix:").map(|rest| rest.split(',').next().unwrap_or(rest));
        match path.map(Path::new) {
            Some(path) if folder_of_ours(path).is_some() => {
                Self::Ours { socket: path.to_owned(), connected: waiting.is_none() }
            }
            _ => Self::Owners(address.to_owned()),
        }
    }
}

/// The folder of a socket that carries our names.
pub(super) fn folder_of_ours(socket: &Path) -> Option<&Path> {
    let folder = socket.parent()?;
    let ours = folder.file_name()?.to_str()?.starts_with(FOLDER_PREFIX) && socket.file_name()?.to_str()? == SOCKET_NAME;
    ours.then_some(folder)
}

/// Whether a dead tool left registers beside its stub that it had not put back, or a guest that it had attended to.
pub(super) fn has_record(socket: &Path) -> Result<bool, EngineError> {
    let Some(folder) = folder_of_ours(socket) else { return Ok(false) };
    Ok(Record::load(folder)?.is_some() || Mark::load(folder)?.is_some())
}

/// Closes a stub that a dead tool left open, and removes its folder.
pub(super) fn clear(monitor: &mut Monitor, socket: &Path) -> Result<(), EngineError> {
    monitor.human("gdbserver none")?;
    let _ = std::fs::remove_file(socket);
    if let Some(folder) = folder_of_ours(socket) {
        let _ = Mark::forget(folder);
        let _ = std::fs::remove_dir(folder);
    }
    Ok(())
}

/// The stub, open for us.
#[derive(Debug)]
pub(super) struct Stub {
    socket: PathBuf,
    client: Option<Client<Timed>>,
    /// The stub was switched to physical addresses and not back yet.
    physical: bool,
}

impl Stub {
    /// Opens the listener. The guest goes on as it was.
    pub(super) fn open(monitor: &mut Monitor, folder: &Path) -> Result<Self, EngineError> {
        if let Found::Owners(address) = Found::ask(monitor)? {
            return Err(owned(&address));
        }
        let socket = folder.join(SOCKET_NAME);
        let answer = monitor.human(&format!("gdbserver unix:{},server=on,wait=off", socket.display()))?;
        if !answer.contains("Waiting for gdb connection") {
            return Err(EngineError::Protocol {
                peer: "`gdbserver`",
                expected: "QEMU to open its debug stub in our folder (it needs access to the folder for temporary files)",
                answer: answer.trim().to_owned(),
            });
        }
        Ok(Self { socket, client: None, physical: false })
    }

    /// One that was opened in a folder of ours before.
    pub(super) fn known(folder: &Path) -> Self {
        Self { socket: folder.join(SOCKET_NAME), client: None, physical: true }
    }

    /// Gives up the connection.
    pub(super) fn drop_connection(&mut self) {
        self.client = None;
    }

    /// Writes guest-physical memory of a stopped guest.
    ///
    /// # Consistency on error
    /// A prefix of `bytes` may have been written. [`EngineError::Running`]: somebody else had let the guest continue; it is
    /// stopped again, and all or part of `bytes` may have been written.
    pub(super) fn write(&mut self, to: Pa, bytes: &[u8]) -> Result<(), EngineError> {
        self.with("a write (somebody continued it while we held it stopped)", |client| client.write(to, bytes))
    }

    /// Writes to many places of guest-physical memory of the stopped guest, in order.
    ///
    /// # Consistency on error
    /// Any of them may have been written to; else as [`Stub::write`].
    pub(super) fn write_each(&mut self, places: &[(Pa, &[u8])]) -> Result<(), EngineError> {
        self.with("writes (somebody continued it while we held it stopped)", |client| client.write_each(places))
    }

    /// Does something over the connection, which is made if there is none.
    ///
    /// # Consistency on error
    /// As [`Stub::write`]; `what` is then the operation that was disturbed.
    pub(super) fn with<T>(
        &mut self,
        what: &'static str,
        operation: impl FnOnce(&mut Client<Timed>) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.connect()?,
        };
        let done = operation(&mut client);
        if client.take_stop_report() {
            return Err(EngineError::Running(what));
        }
        // After an error the connection is given up: a late answer would be taken for the next one's.
        done.inspect(|_| self.client = Some(client))
    }

    /// Does something that can be done twice: once more, on a new connection, if the first breaks.
    ///
    /// # Consistency on error
    /// As [`Stub::with`].
    pub(super) fn surely<T>(
        &mut self,
        what: &'static str,
        mut operation: impl FnMut(&mut Client<Timed>) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        match self.with(what, &mut operation) {
            Err(EngineError::Connection { .. }) => self.with(what, operation),
            done => done,
        }
    }

    fn connect(&mut self) -> Result<Client<Timed>, EngineError> {
        let stream = Timed::connect(&self.socket, PATIENCE).map_err(|error| EngineError::Connection {
            peer: "GDB stub of QEMU",
            reason: format!("{}: {error}", self.socket.display()),
        })?;
        self.physical = true;
        Client::begin(stream)
    }

    /// Ends the connection; call it while the guest is still stopped. The stub's mode is put back on a new connection when
    /// the old one broke; that is worth one attempt, since a stub that no longer answers is closed in any case.
    pub(super) fn disconnect(&mut self) {
        if std::mem::take(&mut self.physical) {
            let client = self.client.take().map_or_else(|| self.connect(), Ok);
            let _ = client.and_then(Client::end);
            self.physical = false;
        }
    }

    /// Closes the listener.
    pub(super) fn close(mut self, monitor: &mut Monitor) -> Result<(), EngineError> {
        self.client = None;
        monitor.human("gdbserver none").map(drop)
    }
}

pub(super) fn owned(address: &str) -> EngineError {
    EngineError::Connection {
        peer: "GDB stub of QEMU",
        reason: format!(
            "it is already open for somebody else, at {address}; close it with `gdbserver none` in the human monitor, or \
             start the VM without -s and -gdb"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::encode;
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;

    #[test]
    fn what_can_be_done_twice_survives_a_broken_connection() {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join(SOCKET_NAME)).expect("a socket");
        let server = std::thread::spawn(move || {
            // The first connection breaks when the write comes, the second does it; after that each one breaks.
            for does_it in [false, true, false, false] {
                let (mut client, _) = listener.accept().expect("a client");
                let mut expect = |expected: &[u8], answer: &[u8]| {
                    let mut got = vec![0; expected.len()];
                    client.read_exact(&mut got).expect("bytes of the client");
                    assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(expected));
                    client.write_all(answer).expect("answer");
                };
                expect(&encode(b"Qqemu.PhyMemMode:1"), b"+$OK#9a");
                let write = [b"+", &encode(b"M1000,1:07")[..]].concat();
                expect(&write, if does_it { b"+$OK#9a" } else { b"" });
                if does_it {
                    expect(b"+", b"");
                }
            }
        });
        let mut stub = Stub::known(folder.path());
        stub.surely("a test", |client| client.write(Pa(0x1000), &[7])).expect("written at the second attempt");
        stub.drop_connection();
        assert!(stub.surely("a test", |client| client.write(Pa(0x1000), &[7])).is_err(), "it breaks twice");
        server.join().expect("the stub saw what it expected");
    }

    #[test]
    fn whose_stub_it_is_shows_in_its_address() {
        let none = "#chr036: filename=gdb\r\nserial0: filename=file\r\n";
        assert_eq!(Found::parse(none), Found::Closed);
        let ours = |connected| Found::Ours { socket: PathBuf::from("/tmp/lucos-qemu-Ab/gdb.sock"), connected };
        let text = "gdb: filename=disconnected:unix:/tmp/lucos-qemu-Ab/gdb.sock,server=on\r\n";
        assert_eq!(Found::parse(text), ours(false));
        assert_eq!(Found::parse(&text.replace("disconnected:", "")), ours(true));
        for other in
            ["disconnected:tcp:0.0.0.0:1234,server=on", "unix:/tmp/gdb.sock,server=on", "unix:/tmp/lucos-qemu-Ab/x"]
        {
            assert_eq!(Found::parse(&format!("{none}gdb: filename={other}\r\n")), Found::Owners(other.to_owned()));
        }
    }
}
