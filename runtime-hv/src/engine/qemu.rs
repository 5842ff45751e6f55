//! The engine for a VM of QEMU that was started with nothing but a QMP socket.
//!
//! Comes in: the path of that socket. Decided: how each power is had: stop and continue through QMP, registers through the
//! human monitor, reads out of the QEMU process, writes through the debug stub. Goes out: an engine that leaves the VM as it
//! found it, running or stopped, with the stub closed.
//!
//! | power | way | time, 2 processors, TCG |
//! | --- | --- | --- |
//! | pause, resume | QMP `stop`, `cont` | 0.4 ms, 0.3 ms; 2 ms more outside the pause to open and close the stub |
//! | registers | `info registers -a` | 0.5 ms |
//! | read | `process_vm_readv`, else `pmemsave` | a few µs, else about 1 ms |
//! | write | stub, `M`, physical addresses | 0.1 ms once a pause, then 0.05 ms a KB |
//! | call | stub: other registers, one processor run alone (`call`) | about 3 ms |
//! | interrupt | stub, `M`, at the address of a message-signalled interrupt | as a write |

mod call;
mod description;
mod gdb;
mod launch;
mod memory_map;
mod monitor;
mod packet;
mod processor;
mod record;
mod registers;
mod rescue;
mod stub;

use std::cell::{Cell, RefCell};
use std::io::IoSliceMut;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{Arena, ArenaSource, Engine, EngineError, Interrupt, Pa, Pause, ReadMemory, Registers, Vcpus, WriteMemory};
use memory_map::{MemoryMap, Piece};
use monitor::{Monitor, Peer};
use record::Record;
use stub::{Found, Stub};

pub use launch::{LaunchConfig, LaunchError, Serial, launch};
pub use rescue::{RescueError, Rescued, rescue};

/// What is known about an earlier tool on the same VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// Nothing: traces of a dead tool on a stopped VM are a reason to refuse.
    Unknown,
    /// One died, and what it had half written is dealt with: close its stub and let the VM continue.
    Died,
}

/// An attached VM. Dropping it detaches, see [`QemuEngine::detach`].
pub struct QemuEngine {
    monitor: RefCell<Monitor>,
    map: RefCell<MemoryMap>,
    /// Whether memory is read straight out of the QEMU process.
    direct: Cell<bool>,
    /// Whether QEMU runs the guest with KVM, once that was asked.
    kvm: Option<bool>,
    hold: Option<Hold>,
    last_pause: Duration,
    /// The stub could not be closed after the last pause.
    stub_left_open: bool,
    /// For the sockets and files that QEMU makes for us.
    folder: TempDir,
}

/// The VM is stopped by us, or was found stopped and is to stay so.
struct Hold {
    owner_paused: bool,
    since: Instant,
    stub: Stub,
    /// A call has taken these registers and not put them back.
    taken: Option<Record>,
}

impl QemuEngine {
    /// Attaches to the VM behind a QMP socket. A VM that runs goes on running.
    ///
    /// # Errors
    /// [`EngineError::Connection`] when nobody answers, when another client holds the socket, or when the VM's stub is in
    /// use; [`EngineError::Protocol`] when QEMU's answers are not understood.
    pub fn attach(qmp: &Path, earlier: Earlier) -> Result<Self, EngineError> {
        let mut monitor = Monitor::connect(qmp)?;
        clear_leftovers(&mut monitor, earlier)?;
        Self::with(monitor)
    }

    fn with(mut monitor: Monitor) -> Result<Self, EngineError> {
        let folder = private_folder(monitor.peer())?;
        let map = MemoryMap::ask(&mut monitor)?;
        let engine = Self {
            monitor: RefCell::new(monitor),
            map: RefCell::new(map),
            direct: Cell::new(false),
            kvm: None,
            hold: None,
            last_pause: Duration::ZERO,
            stub_left_open: false,
            folder,
        };
        engine.direct.set(engine.direct_reads_are_right());
        Ok(engine)
    }

    /// Whether the QEMU process has ended. (One that its parent has not waited for yet counts as there.)
    pub fn is_gone(&self) -> bool {
        let pid = Pid::from_raw(self.monitor.borrow().peer().pid);
        nix::sys::signal::kill(pid, None) == Err(nix::errno::Errno::ESRCH)
    }

    /// Whether memory is read straight out of the QEMU process, rather than through files that QEMU writes.
    pub fn reads_directly(&self) -> bool {
        self.direct.get()
    }

    /// Lets go of the VM: it runs if it ran before, and the stub is closed.
    ///
    /// # Errors
    /// [`EngineError::Connection`] when QEMU does not answer any more.
    pub fn detach(mut self) -> Result<(), EngineError> {
        self.release()
    }

    fn release(&mut self) -> Result<(), EngineError> {
        self.resume()?;
        if std::mem::take(&mut self.stub_left_open) {
            self.monitor.get_mut().human("gdbserver none")?;
        }
        Ok(())
    }

    /// Reads some memory that does not change in both ways. A wrong process id (QEMU in a container, a socket that another
    /// process opened for it) or a missing permission (ptrace_scope) shows here once, and not as wrong bytes later.
    fn direct_reads_are_right(&self) -> bool {
        let sample = {
            let map = self.map.borrow();
            let stable = map.ranges().filter(|range| !range.writable).last();
            stable
                .or_else(|| map.ranges().next())
                .map(|range| (range.first, (range.last.0 - range.first.0).min(0xfff) + 1))
        };
        let Some((from, len)) = sample else { return false };
        // ROM is the same at the first attempt; ordinary memory may be written in between.
        (0..3).any(|_| {
            let (mut direct, mut saved) = (vec![0; len as usize], vec![0; len as usize]);
            self.read_by(true, from, &mut direct).is_ok()
                && self.read_by(false, from, &mut saved).is_ok()
                && direct == saved
        })
    }

    fn read_by(&self, direct: bool, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
        let pieces = self.pieces(from, into.len(), false)?;
        if direct { self.read_process(from, &pieces, into) } else { self.read_saved(from, into) }
    }

    /// Where a range lies; the map is asked for anew before a range is refused, since memory can be plugged in.
    fn pieces(&self, from: Pa, len: usize, for_writing: bool) -> Result<Vec<Piece>, EngineError> {
        if let Ok(pieces) = self.map.borrow().pieces(from, len, for_writing) {
            return Ok(pieces);
        }
        let map = MemoryMap::ask(&mut self.monitor.borrow_mut())?;
        let pieces = map.pieces(from, len, for_writing).map_err(|at| {
            let kind = if for_writing { "writable memory" } else { "memory" };
            failed(from, len, format!("{:#x} is not {kind} of this guest", at.0))
        });
        *self.map.borrow_mut() = map;
        pieces
    }

    fn read_process(&self, from: Pa, pieces: &[Piece], into: &mut [u8]) -> Result<(), EngineError> {
        let len = into.len();
        let pid = Pid::from_raw(self.monitor.borrow().peer().pid);
        let mut rest = into;
        for piece in pieces {
            let (mut part, after) = rest.split_at_mut(piece.len);
            rest = after;
            let mut host = piece.host.0;
            while !part.is_empty() {
                let remote = [RemoteIoVec { base: host as usize, len: part.len() }];
                match process_vm_readv(pid, &mut [IoSliceMut::new(part)], &remote) {
                    Ok(0) => return Err(failed(from, len, "QEMU's memory ends early".to_owned())),
                    Ok(read) => {
                        host = host.wrapping_add(read as u64);
                        part = part.get_mut(read..).unwrap_or_default();
                    }
                    Err(error) => return Err(failed(from, len, format!("QEMU process {pid}: {error}"))),
                }
            }
        }
        Ok(())
    }

    fn read_saved(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
        let path = self.folder.path().join("memory");
        let len = into.len();
        self.monitor.borrow_mut().save_memory(from, len, &path.to_string_lossy())?;
        let saved = std::fs::read(&path).map_err(|error| failed(from, len, format!("{}: {error}", path.display())));
        let _ = std::fs::remove_file(&path);
        let saved = saved?;
        if saved.len() != len {
            return Err(failed(from, len, format!("QEMU saved {} bytes", saved.len())));
        }
        into.copy_from_slice(&saved);
        Ok(())
    }
}

impl Drop for QemuEngine {
    fn drop(&mut self) {
        // Nobody is left to be told; what can fail here is a VM that is gone or stuck.
        let _ = self.release();
        if self.hold.as_ref().is_some_and(|hold| hold.taken.is_some()) && !self.is_gone() {
            // The guest stands with registers that are not its own; they are written down for a rescue.
            self.folder.disable_cleanup(true);
        }
    }
}

impl ReadMemory for QemuEngine {
    fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
        if into.is_empty() {
            return Ok(());
        }
        self.read_by(self.direct.get(), from, into)
    }
}

impl WriteMemory for QemuEngine {
    /// As the trait says. Without a [`Pause::pause`] before, a stopped VM is written to as well, with a stub for this write.
    fn write(&mut self, to: Pa, bytes: &[u8]) -> Result<(), EngineError> {
        self.pieces(to, bytes.len(), true)?;
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(hold) = &mut self.hold {
            return hold.stub.write(to, bytes);
        }
        if self.monitor.get_mut().is_running()? {
            return Err(EngineError::Running("a write"));
        }
        self.pause()?;
        let written = self.hold.as_mut().map_or(Ok(()), |hold| hold.stub.write(to, bytes));
        let resumed = self.resume();
        written.and(resumed)
    }
}

impl Pause for QemuEngine {
    fn pause(&mut self) -> Result<(), EngineError> {
        if self.hold.is_some() {
            return Ok(());
        }
        let monitor = self.monitor.get_mut();
        monitor.is_running_or_stopped()?;
        let stub = Stub::open(monitor, self.folder.path())?;
        // Asked again: opening took a while.
        let running = monitor.is_running_or_stopped();
        let since = Instant::now();
        let stopped = running.and_then(|running| {
            // `stop` returns when every processor has stopped; on a stopped VM it does nothing.
            let stopped = monitor.stop();
            if running && stopped.is_err() {
                // It may have been done although no answer came.
                let _ = monitor.cont();
            }
            stopped.map(|()| !running)
        });
        match stopped {
            Ok(owner_paused) => {
                self.hold = Some(Hold { owner_paused, since, stub, taken: None });
                Ok(())
            }
            Err(error) => {
                self.stub_left_open = stub.close(monitor).is_err();
                Err(error)
            }
        }
    }

    /// Continues a VM that [`Pause::pause`] stopped; one that its owner had stopped stays stopped. Without a pause before it
    /// does nothing.
    ///
    /// # Consistency on error
    /// The VM may still be stopped; call it again.
    fn resume(&mut self) -> Result<(), EngineError> {
        self.put_back()?;
        let Some(hold) = &mut self.hold else { return Ok(()) };
        let monitor = self.monitor.get_mut();
        hold.stub.disconnect();
        if !hold.owner_paused {
            monitor.cont()?;
        }
        self.last_pause = hold.since.elapsed();
        if let Some(hold) = self.hold.take() {
            // The guest runs: a stub that is still open is no reason to fail. It is closed later.
            self.stub_left_open = hold.stub.close(monitor).is_err();
        }
        Ok(())
    }

    fn is_paused(&mut self) -> Result<bool, EngineError> {
        match &self.hold {
            Some(hold) => Ok(hold.owner_paused),
            None => self.monitor.get_mut().is_running().map(|running| !running),
        }
    }

    fn is_held(&mut self) -> Result<bool, EngineError> {
        Ok(self.hold.is_some() && !self.monitor.get_mut().is_running()?)
    }

    fn last_pause(&self) -> Duration {
        self.last_pause
    }

    fn resets(&self) -> u64 {
        self.monitor.borrow().resets()
    }
}

impl Vcpus for QemuEngine {
    fn registers(&mut self) -> Result<Vec<Registers>, EngineError> {
        registers::parse(&self.monitor.get_mut().human("info registers -a")?)
    }
}

/// Where a write is a message to the local APIC whose id is in bits 12 to 19 (Intel SDM vol. 3, 11.11.1).
const MESSAGES: u64 = 0xfee0_0000;

impl Interrupt for QemuEngine {
    fn interrupt(&mut self, apic_id: u8, vector: u8) -> Result<(), EngineError> {
        let Some(hold) = &mut self.hold else { return Err(EngineError::Running("an interrupt")) };
        let to = Pa(MESSAGES | u64::from(apic_id) << 12);
        hold.stub.write(to, &u32::from(vector).to_le_bytes())
    }
}

impl Arena for QemuEngine {
    fn arena(&self) -> ArenaSource {
        ArenaSource::ReservedLowMemory
    }
}

impl Engine for QemuEngine {
    fn name(&self) -> &'static str {
        "qemu"
    }
}

/// Finds what a dead tool left. Its stub is closed in any case; a VM that stands still beside it may be half written, so it
/// continues only when the caller says that this is dealt with.
fn clear_leftovers(monitor: &mut Monitor, earlier: Earlier) -> Result<(), EngineError> {
    let running = monitor.is_running()?;
    let mut stands = !running;
    let mut owner_paused = false;
    match Found::ask(monitor)? {
        Found::Owners(address) => return Err(stub::owned(&address)),
        Found::Ours { socket, connected: true } => {
            return Err(EngineError::Connection {
                peer: "GDB stub of QEMU",
                reason: format!("another lucos-hv is at work on this VM (its stub {} is in use)", socket.display()),
            });
        }
        Found::Ours { socket, .. } if earlier == Earlier::Unknown && (!running || stub::has_record(&socket)?) => {
            return Err(EngineError::Connection {
                peer: "GDB stub of QEMU",
                reason: format!(
                    "a tool died while it held this VM stopped (its stub {} is still open), and may have left it half \
                     written; undo that first, or restart the VM",
                    socket.display()
                ),
            });
        }
        Found::Ours { socket, .. } => {
            if let Some(record) = call::put_back_after_death(monitor, &socket)? {
                (stands, owner_paused) = (true, record.owner_paused);
            }
            stub::clear(monitor, &socket)?;
        }
        Found::Closed => {}
    }
    if stands && !owner_paused && earlier == Earlier::Died { monitor.cont() } else { Ok(()) }
}

/// A folder for QEMU and us alone. QEMU makes the files in it, so it belongs to QEMU's user.
fn private_folder(peer: Peer) -> Result<TempDir, EngineError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| EngineError::Connection {
        peer: "folder for temporary files",
        reason: format!("{what}: {error}"),
    };
    let base = std::env::temp_dir();
    // The path goes through the human monitor and a socket address (unix(7): at most 107 bytes); both take plain short ones.
    let plain = |path: &Path| {
        let text = path.to_string_lossy();
        text.len() < 70 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte))
    };
    let base = if base.is_absolute() && plain(&base) { base } else { "/tmp".into() };
    let folder = tempfile::Builder::new()
        .prefix(stub::FOLDER_PREFIX)
        .tempdir_in(&base)
        .map_err(|error| failed(&base.to_string_lossy(), &error))?;
    if peer.uid != nix::unistd::geteuid().as_raw() {
        std::os::unix::fs::chown(folder.path(), Some(peer.uid), Some(peer.gid))
            .map_err(|error| failed("cannot be given to QEMU's user; run as root or as that user", &error))?;
    }
    Ok(folder)
}

fn failed(from: Pa, len: usize, reason: String) -> EngineError {
    EngineError::Memory { pa: from.0, len, reason }
}
