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
//! | reports | stub, a breakpoint; a thread of ours lets the guest run (`watch`, `drive`) | about 1 ms |
//! | writes | stub, watched ranges; one processor runs at a time (`turns`) | about 1 ms each; see docs/runtime.md |

mod call;
mod description;
mod drive;
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
mod turns;
mod vm;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    Arena, ArenaSource, Call, CallError, Calls, Engine, EngineError, Interrupt, Pa, Pause, ReadMemory, Registers, Vcpu,
    Vcpus, Watch, WriteMemory,
};
use drive::{Driven, Driver};
use monitor::Monitor;
use record::{Mark, Record};
use stub::{Found, Stub};
use vm::Vm;
use watch::Watching;

pub use launch::{Acceleration, LaunchConfig, LaunchError, Serial, launch};
pub use rescue::{Attended, Diverted, RescueError, Rescued, rescue};
pub use turns::Share;

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
    vm: Arc<Vm>,
    hold: Option<Hold>,
    /// What is attended to while the guest runs; the driver has it while it drives.
    watching: Watching,
    /// Who lets the guest run while something is attended to.
    driver: Option<Driver>,
    /// Why nobody has attended for a while.
    trouble: Option<String>,
    /// The guest was had back, and whether it stands is not known yet.
    unsure: bool,
    /// It was let run by a driver, and what it may have written at the end was not looked for yet: resets when it began.
    driven_since: Option<u64>,
    last_pause: Duration,
    /// The stub could not be closed after the last pause.
    stub_left_open: bool,
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

    fn with(monitor: Monitor) -> Result<Self, EngineError> {
        Ok(Self {
            vm: Arc::new(Vm::new(monitor)?),
            hold: None,
            watching: Watching::default(),
            driver: None,
            trouble: None,
            unsure: false,
            driven_since: None,
            last_pause: Duration::ZERO,
            stub_left_open: false,
        })
    }

    /// Whether the QEMU process has ended. (One that its parent has not waited for yet counts as there.)
    pub fn is_gone(&self) -> bool {
        self.vm.is_gone()
    }

    /// Whether memory is read straight out of the QEMU process, rather than through files that QEMU writes.
    pub fn reads_directly(&self) -> bool {
        self.vm.direct
    }

    /// Lets go of the VM: it runs if it ran before, and the stub is closed.
    ///
    /// # Errors
    /// [`EngineError::Connection`] when QEMU does not answer any more.
    pub fn detach(mut self) -> Result<(), EngineError> {
        self.release()
    }

    fn release(&mut self) -> Result<(), EngineError> {
        if self.driver.is_some() {
            self.pause()?;
        }
        // Nobody is left to attend.
        self.watching.forget();
        self.resume()?;
        if std::mem::take(&mut self.stub_left_open) {
            self.vm.monitor().human("gdbserver none")?;
        }
        Ok(())
    }

    /// Has the guest let run while something is attended to.
    fn drive(&mut self) -> Result<(), EngineError> {
        self.tell_missed()?;
        let Some(hold) = self.hold.take() else { return Ok(()) };
        let since = hold.since;
        self.unsure = false;
        match Driver::begin(Arc::clone(&self.vm), hold, std::mem::take(&mut self.watching)) {
            Ok(driver) => {
                self.driver = Some(driver);
                self.last_pause = since.elapsed();
                Ok(())
            }
            Err((mut driven, error)) => {
                // It has not run. Should this fail as well, the error that matters is the first.
                let _ = driven.watching.arms.hand_over(&self.vm, &mut driven.hold);
                (self.hold, self.watching) = (Some(driven.hold), driven.watching);
                Err(error)
            }
        }
    }

    /// How long each processor has run in turns, as of the last pause: while memory is trapped they take turns.
    pub fn shares(&self) -> &[Share] {
        self.watching.turns.shares()
    }

    /// Has the guest back from whoever lets it run. Says whether that was somebody.
    fn take_back(&mut self, since: Instant) -> bool {
        let Some(driver) = self.driver.take() else { return false };
        let Driven { hold, watching, trouble, resets } = driver.end();
        self.hold = Some(Hold { since, ..hold });
        self.watching = watching;
        self.trouble = trouble.or(self.trouble.take());
        self.driven_since = resets;
        true
    }
}

impl Drop for QemuEngine {
    fn drop(&mut self) {
        // Nobody is left to be told; what can fail here is a VM that is gone or stuck.
        let _ = self.release();
        if self.hold.as_ref().is_some_and(|hold| hold.taken.is_some()) && !self.is_gone() {
            // The guest stands with registers that are not its own; they are written down for a rescue.
            if let Some(vm) = Arc::get_mut(&mut self.vm) {
                vm.keep_folder();
            }
        }
    }
}

impl ReadMemory for QemuEngine {
    fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
        self.vm.read(from, into)
    }
}

impl WriteMemory for QemuEngine {
    /// As the trait says. Without a [`Pause::pause`] before, a stopped VM is written to as well, with a stub for this write.
    fn write(&mut self, to: Pa, bytes: &[u8]) -> Result<(), EngineError> {
        self.vm.pieces(to, bytes.len(), true)?;
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(hold) = &mut self.hold {
            return hold.stub.write(to, bytes);
        }
        if self.is_running()? {
            return Err(EngineError::Running("a write"));
        }
        self.pause()?;
        let written = self.hold.as_mut().map_or(Ok(()), |hold| hold.stub.write(to, bytes));
        let resumed = self.resume();
        written.and(resumed)
    }

    fn write_each(&mut self, places: &[(Pa, &[u8])]) -> Result<(), EngineError> {
        for &(to, bytes) in places {
            self.vm.pieces(to, bytes.len(), true)?;
        }
        match &mut self.hold {
            Some(hold) => hold.stub.write_each(places),
            None => places.iter().try_for_each(|&(to, bytes)| self.write(to, bytes)),
        }
    }
}

impl QemuEngine {
    /// Whether the guest runs. While it is let run by us it does although QEMU may say otherwise between two turns.
    fn is_running(&self) -> Result<bool, EngineError> {
        let running = self.vm.monitor().is_running()?;
        let driver = self.driver.as_ref().filter(|driver| !driver.is_finished());
        Ok(driver.map_or(running, |driver| !driver.owner_paused()))
    }
}

impl Pause for QemuEngine {
    fn pause(&mut self) -> Result<(), EngineError> {
        self.unsure |= self.take_back(Instant::now());
        if self.unsure {
            // A state in which it must not be touched is said now.
            let mut monitor = self.vm.monitor();
            if monitor.is_running_or_stopped()? {
                monitor.stop()?;
            }
            self.unsure = false;
        }
        if self.hold.is_some() {
            return self.tell_missed();
        }
        let mut monitor = self.vm.monitor();
        monitor.is_running_or_stopped()?;
        let stub = Stub::open(&mut monitor, self.vm.folder())?;
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
                self.stub_left_open = stub.close(&mut monitor).is_err();
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
        let Some(hold) = &mut self.hold else { return Ok(()) };
        call::put_back(&self.vm, hold)?;
        if self.watching.is_needed() {
            return self.drive();
        }
        self.watching.arms.clear(&mut hold.stub)?;
        let mut monitor = self.vm.monitor();
        hold.stub.disconnect();
        if !hold.owner_paused {
            monitor.cont()?;
        }
        self.unsure = false;
        self.last_pause = hold.since.elapsed();
        // It runs without us; should this fail, the next tool finds a guest that is not missing anything.
        let _ = Mark::forget(self.vm.folder());
        if let Some(hold) = self.hold.take() {
            // The guest runs: a stub that is still open is no reason to fail. It is closed later.
            self.stub_left_open = hold.stub.close(&mut monitor).is_err();
        }
        Ok(())
    }

    fn is_paused(&mut self) -> Result<bool, EngineError> {
        match &self.hold {
            Some(hold) if !self.unsure => Ok(hold.owner_paused),
            _ => self.is_running().map(|running| !running),
        }
    }

    fn is_held(&mut self) -> Result<bool, EngineError> {
        Ok(self.hold.is_some() && !self.vm.monitor().is_running()?)
    }

    fn last_pause(&self) -> Duration {
        self.last_pause
    }

    fn resets(&self) -> u64 {
        self.vm.monitor().resets()
    }
}

impl Vcpus for QemuEngine {
    fn registers(&mut self) -> Result<Vec<Registers>, EngineError> {
        self.vm.registers()
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

    /// Where QEMU emulates the processors. With KVM its stub's watchpoints are those of the processor, four of eight bytes each.
    fn watch(&mut self) -> Option<&mut dyn Watch> {
        match self.vm.is_kvm() {
            Ok(false) => Some(self),
            _ => None,
        }
    }
}

impl Calls for QemuEngine {
    fn report_code(&self) -> &'static [u8] {
        &call::REPORT_CODE
    }

    fn call(&mut self, vcpu: Vcpu, call: &Call) -> Result<u64, CallError> {
        let Some(hold) = &mut self.hold else { return Err(EngineError::Running("a call").into()) };
        call::run(&self.vm, hold, vcpu, call)
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
            if let Some(mark) = rescue::stop_watching(monitor, &socket)? {
                (stands, owner_paused) = (true, mark.owner_paused);
            }
            stub::clear(monitor, &socket)?;
        }
        Found::Closed => {}
    }
    if stands && !owner_paused && earlier == Earlier::Died { monitor.cont() } else { Ok(()) }
}
