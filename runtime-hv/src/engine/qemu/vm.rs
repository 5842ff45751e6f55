//! A VM of QEMU as far as it can be looked at without stopping it: its monitor and its memory.
//!
//! Comes in: a QMP connection. Decided: in which of two ways memory is read. Goes out: bytes of guest-physical memory, and
//! answers of the monitor, for whichever thread asks.

use std::cell::OnceCell;
use std::io::IoSliceMut;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::memory_map::{MemoryMap, Piece};
use super::monitor::{Monitor, Peer};
use super::registers::{self, State};
use super::stub;
use crate::engine::{EngineError, Pa, ReadMemory, Registers, Vcpu};

/// The VM. Two threads may use it: the service, and the one that attends to the guest while it runs.
pub(super) struct Vm {
    monitor: Mutex<Monitor>,
    map: Mutex<MemoryMap>,
    peer: Peer,
    /// Whether memory is read straight out of the QEMU process.
    pub(super) direct: bool,
    /// Whether QEMU runs the guest with KVM, once that was asked.
    kvm: Mutex<OnceCell<bool>>,
    /// For the sockets and files that QEMU makes for us.
    folder: TempDir,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vm {
    /// Takes over a connection.
    pub(super) fn new(mut monitor: Monitor) -> Result<Vm, EngineError> {
        let peer = monitor.peer();
        let folder = private_folder(peer)?;
        let map = MemoryMap::ask(&mut monitor)?;
        let (monitor, map) = (Mutex::new(monitor), Mutex::new(map));
        let mut vm = Vm { monitor, map, peer, direct: false, kvm: Mutex::default(), folder };
        vm.direct = vm.direct_reads_are_right();
        Ok(vm)
    }

    /// The monitor, for one command or a few.
    pub(super) fn monitor(&self) -> MutexGuard<'_, Monitor> {
        lock(&self.monitor)
    }

    /// The QEMU process.
    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.peer.pid)
    }

    /// Whether the QEMU process has ended. (One that its parent has not waited for yet counts as there.)
    pub(super) fn is_gone(&self) -> bool {
        nix::sys::signal::kill(self.pid(), None) == Err(nix::errno::Errno::ESRCH)
    }

    /// A folder for QEMU and us alone.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder stays when we end.
    pub(super) fn keep_folder(&mut self) {
        self.folder.disable_cleanup(true);
    }

    pub(super) fn is_kvm(&self) -> Result<bool, EngineError> {
        let known = lock(&self.kvm);
        if let Some(&kvm) = known.get() {
            return Ok(kvm);
        }
        let kvm = self.monitor().is_kvm()?;
        // Only asked under the lock.
        let _ = known.set(kvm);
        Ok(kvm)
    }

    /// Registers of all processors.
    pub(super) fn registers(&self) -> Result<Vec<Registers>, EngineError> {
        registers::parse(&self.monitor().human("info registers -a")?)
    }

    /// One processor.
    pub(super) fn state(&self, vcpu: Vcpu) -> Result<State, EngineError> {
        registers::state(&self.monitor().human_of(vcpu.0, "info registers")?)
    }

    /// The priority of the interrupt that a processor serves.
    pub(super) fn priority(&self, vcpu: Vcpu) -> Result<u8, EngineError> {
        registers::priority(&self.monitor().human_of(vcpu.0, "info lapic")?)
    }

    /// Resets heard of, up to now.
    pub(super) fn resets_now(&self) -> Result<u64, EngineError> {
        let mut monitor = self.monitor();
        monitor.is_running()?;
        Ok(monitor.resets())
    }

    /// Reads some memory that does not change in both ways. A wrong process id (QEMU in a container, a socket that another
    /// process opened for it) or a missing permission (ptrace_scope) shows here once, and not as wrong bytes later.
    fn direct_reads_are_right(&self) -> bool {
        let sample = {
            let map = lock(&self.map);
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
    pub(super) fn pieces(&self, from: Pa, len: usize, for_writing: bool) -> Result<Vec<Piece>, EngineError> {
        if let Ok(pieces) = lock(&self.map).pieces(from, len, for_writing) {
            return Ok(pieces);
        }
        let map = MemoryMap::ask(&mut self.monitor())?;
        let pieces = map.pieces(from, len, for_writing).map_err(|at| {
            let kind = if for_writing { "writable memory" } else { "memory" };
            failed(from, len, format!("{:#x} is not {kind} of this guest", at.0))
        });
        *lock(&self.map) = map;
        pieces
    }

    fn read_process(&self, from: Pa, pieces: &[Piece], into: &mut [u8]) -> Result<(), EngineError> {
        let len = into.len();
        let pid = self.pid();
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
        // The monitor is held all the while, so that two threads do not share the file.
        let mut monitor = self.monitor();
        let path = self.folder().join("memory");
        let len = into.len();
        monitor.save_memory(from, len, &path.to_string_lossy())?;
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

impl ReadMemory for Vm {
    fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
        if into.is_empty() {
            return Ok(());
        }
        self.read_by(self.direct, from, into)
    }
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

pub(super) fn failed(from: Pa, len: usize, reason: String) -> EngineError {
    EngineError::Memory { pa: from.0, len, reason }
}
