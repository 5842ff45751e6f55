//! The QMP connection.
//!
//! Comes in: the path of a QMP socket. Decided: who is at the other end (process and user), whether a broken conversation
//! can be taken up again. Goes out: the few commands that the engine uses, each bounded in time.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use qapi::{Command, ExecuteError, Qmp, qmp};

use crate::engine::{EngineError, Pa};
use crate::timed::{PATIENCE, Timed};

const PEER: &str = "QMP socket";

/// The process behind a QMP socket (unix(7), SO_PEERCRED: as of its call to `listen`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) pid: i32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A QMP connection that has finished its greeting.
pub(super) struct Monitor {
    path: PathBuf,
    peer: Peer,
    /// `None` after a failure: what arrives late would be taken for the answer to the next command.
    link: Option<Qmp<Timed>>,
    /// Resets heard of. Events come before the answer to the next command, and only while we are connected.
    resets: u64,
}

impl Monitor {
    pub(super) fn connect(path: &Path) -> Result<Self, EngineError> {
        let (link, peer) = open(path)?;
        Ok(Self { path: path.to_owned(), peer, link: Some(link), resets: 0 })
    }

    /// Resets of the guest heard of since we were connected.
    pub(super) fn resets(&self) -> u64 {
        self.resets
    }

    pub(super) fn peer(&self) -> Peer {
        self.peer
    }

    /// Runs one command; after a failure of the connection, on a new one to the same process.
    fn call<C: Command>(&mut self, command: &C, patience: Duration) -> Result<C::Ok, EngineError> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => {
                let (link, peer) = open(&self.path)?;
                if peer.pid != self.peer.pid {
                    return Err(lost(format!(
                        "process {} is gone and process {} listens at {}; attach again",
                        self.peer.pid,
                        peer.pid,
                        self.path.display()
                    )));
                }
                link
            }
        };
        let answer = converse(&mut link, command, patience);
        // Left alone, events would pile up.
        let resets = link.events().filter(|event| matches!(event, qmp::Event::RESET { .. })).count();
        self.resets += resets as u64;
        if !matches!(answer, Err(ExecuteError::Io(_))) {
            self.link = Some(link);
        }
        answer.map_err(|error| match error {
            ExecuteError::Qapi(error) => lost(format!("`{}` was refused: {}", C::NAME, error.desc)),
            ExecuteError::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                lost(format!("no answer to `{}` within {} s", C::NAME, patience.as_secs()))
            }
            ExecuteError::Io(error) => lost(format!("`{}`: {error}", C::NAME)),
        })
    }

    /// What the human monitor prints for `line`.
    pub(super) fn human(&mut self, line: &str) -> Result<String, EngineError> {
        self.call(&qmp::human_monitor_command { cpu_index: None, command_line: line.to_owned() }, PATIENCE)
    }

    /// What the human monitor prints for `line` about one processor.
    pub(super) fn human_of(&mut self, cpu: usize, line: &str) -> Result<String, EngineError> {
        let cpu_index = Some(i64::try_from(cpu).unwrap_or(i64::MAX));
        self.call(&qmp::human_monitor_command { cpu_index, command_line: line.to_owned() }, PATIENCE)
    }

    /// Whether the processors are the host's own (KVM), and not emulated.
    pub(super) fn is_kvm(&mut self) -> Result<bool, EngineError> {
        self.call(&qmp::query_kvm {}, PATIENCE).map(|kvm| kvm.enabled)
    }

    /// Host threads of the processors, in their order (`* CPU #0: thread_id=4711`).
    pub(super) fn threads(&mut self) -> Result<Vec<u32>, EngineError> {
        let text = self.human("info cpus")?;
        let ids = text.split_whitespace().filter_map(|word| word.strip_prefix("thread_id="));
        Ok(ids.map_while(|id| id.parse().ok()).collect())
    }

    pub(super) fn stop(&mut self) -> Result<(), EngineError> {
        self.call(&qmp::stop {}, PATIENCE).map(drop)
    }

    pub(super) fn cont(&mut self) -> Result<(), EngineError> {
        self.call(&qmp::cont {}, PATIENCE).map(drop)
    }

    /// Whether the processors run.
    pub(super) fn is_running(&mut self) -> Result<bool, EngineError> {
        self.call(&qmp::query_status {}, PATIENCE).map(|status| status.running)
    }

    /// Whether the processors run; an error in a state in which stopping, changing and continuing would be wrong: `cont`
    /// takes a VM out of these, or its memory is not its own any more.
    pub(super) fn is_running_or_stopped(&mut self) -> Result<bool, EngineError> {
        use qmp::RunState;
        let status = self.call(&qmp::query_status {}, PATIENCE)?;
        let state = match status.status {
            RunState::shutdown => "shutdown",
            RunState::suspended => "suspended",
            RunState::guest_panicked => "guest-panicked",
            RunState::internal_error => "internal-error",
            RunState::inmigrate => "inmigrate",
            RunState::finish_migrate => "finish-migrate",
            RunState::postmigrate => "postmigrate",
            RunState::save_vm => "save-vm",
            RunState::restore_vm => "restore-vm",
            _ => return Ok(status.running),
        };
        Err(EngineError::State(state))
    }

    /// Lets QEMU write guest-physical memory into a file.
    pub(super) fn save_memory(&mut self, from: Pa, len: usize, file: &str) -> Result<(), EngineError> {
        let save = qmp::pmemsave { val: from.0, size: len as u64, filename: file.to_owned() };
        // A disk may be slow: one second more for every 64 MiB.
        self.call(&save, PATIENCE + Duration::from_secs(len as u64 >> 26)).map(drop)
    }
}

/// Writes the command and reads up to its answer. A message that the schema does not know (an event of a newer QEMU) is
/// passed over; if nothing better comes in time, it is reported.
fn converse<C: Command>(link: &mut Qmp<Timed>, command: &C, patience: Duration) -> Result<C::Ok, ExecuteError> {
    link.inner_mut().begin(patience);
    link.write_command(command)?;
    let mut unknown = None;
    loop {
        match link.read_response::<C>() {
            Err(ExecuteError::Io(error)) if error.kind() == std::io::ErrorKind::InvalidData => unknown = Some(error),
            Err(ExecuteError::Io(error)) => return Err(unknown.unwrap_or(error).into()),
            answer => return answer,
        }
    }
}

fn open(path: &Path) -> Result<(Qmp<Timed>, Peer), EngineError> {
    let at = path.display();
    let busy = || {
        lost(format!(
            "{at} gives no greeting within {} s: QEMU is stuck, or another client holds the socket (it serves one at a \
             time; close the other, or start the VM with a second -qmp socket)",
            PATIENCE.as_secs()
        ))
    };
    let mut timed = Timed::connect(path, PATIENCE).map_err(|error| match error.kind() {
        std::io::ErrorKind::TimedOut => busy(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            lost(format!("nobody listens at {at} ({error}); the VM must run with `-qmp unix:{at},server=on,wait=off`"))
        }
        _ => lost(format!("{at}: {error}")),
    })?;
    let peer = getsockopt(timed.stream(), PeerCredentials).map_err(|error| lost(format!("{at}: {error}")))?;
    let peer = Peer { pid: peer.pid(), uid: peer.uid(), gid: peer.gid() };

    timed.begin(PATIENCE);
    let mut greeting = Vec::new();
    timed.read_until(b'\n', &mut greeting).map_err(|error| match error.kind() {
        std::io::ErrorKind::TimedOut => busy(),
        _ => lost(format!("{at}: {error}")),
    })?;
    if !greeting.windows(5).any(|word| word == b"\"QMP\"") {
        return Err(EngineError::Protocol {
            peer: PEER,
            expected: "the greeting of a QMP server",
            answer: String::from_utf8_lossy(&greeting).trim().chars().take(120).collect(),
        });
    }
    let mut link = Qmp::new(timed);
    converse(&mut link, &qmp::qmp_capabilities { enable: None }, PATIENCE)
        .map_err(|error| lost(format!("{at}: {error}")))?;
    Ok((link, peer))
}

fn lost(reason: String) -> EngineError {
    EngineError::Connection { peer: PEER, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufReader, Write};
    use std::os::unix::net::UnixListener;
    use std::thread::{JoinHandle, spawn};

    /// A server that greets every client and answers each of its lines with the next of `answers`.
    fn server(clients: Vec<Vec<&'static str>>) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).expect("a listener");
        let thread = spawn(move || {
            for answers in clients {
                let (mut stream, _) = listener.accept().expect("a client");
                stream.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").expect("greeting");
                let mut lines = BufReader::new(stream.try_clone().expect("a second handle"));
                for answer in answers {
                    let mut line = String::new();
                    if lines.read_line(&mut line).expect("a command") == 0 {
                        break;
                    }
                    stream.write_all(answer.as_bytes()).expect("answer");
                }
            }
        });
        (folder, path, thread)
    }

    #[test]
    fn events_known_and_unknown_are_passed_over() {
        let noise = "{\"event\": \"FROM_THE_FUTURE\", \"data\": {}, \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\r\n\
                     {\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"STOP\"}\r\n\
                     {\"return\": \"VM status: paused\\r\\n\"}\r\n";
        let (_folder, path, thread) = server(vec![vec!["{\"return\": {}}\r\n", noise]]);
        let mut monitor = Monitor::connect(&path).expect("greeted");
        assert_eq!(monitor.human("info status").expect("answer"), "VM status: paused\r\n");
        assert_eq!(monitor.peer().pid, std::process::id() as i32);
        thread.join().expect("server");
    }

    #[test]
    fn a_refusal_keeps_the_connection_and_a_hangup_is_followed_by_a_new_one() {
        let refusal = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}}\r\n";
        let (_folder, path, thread) = server(vec![
            vec!["{\"return\": {}}\r\n", refusal, "{\"return\": {}}\r\n"],
            vec!["{\"return\": {}}\r\n", "{\"return\": {}}\r\n"],
        ]);
        let mut monitor = Monitor::connect(&path).expect("greeted");
        assert!(monitor.stop().expect_err("refused").to_string().contains("not now"));
        monitor.stop().expect("same connection");
        monitor.stop().expect_err("the server hung up");
        monitor.stop().expect("new connection");
        thread.join().expect("server");
    }

    #[test]
    fn another_protocol_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("other");
        let listener = UnixListener::bind(&path).expect("a listener");
        let thread =
            spawn(move || listener.accept().expect("a client").0.write_all(b"220 mail\r\n").expect("greeting"));
        let error = Monitor::connect(&path).err().expect("not QMP").to_string();
        assert!(error.contains("220 mail") && error.contains("QMP"), "{error}");
        thread.join().expect("server");
        assert!(Monitor::connect(&folder.path().join("none")).err().expect("no socket").to_string().contains("-qmp"));
    }
}
