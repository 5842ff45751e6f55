//! A virtual processor and the thread that runs it.
//!
//! Comes in: a processor of KVM. Decided: what each exit from guest mode means. Goes out: answers to the guest, and why the
//! processor stopped where the machine has to look after it ([`Left`]).
//!
//! A processor that stops has finished its instruction: an access to a device is completed by KVM only at the next KVM_RUN
//! (Documentation/virt/kvm/api.rst, "KVM_RUN"), so it is entered once more with `immediate_exit` set. From then on its
//! registers are what they will be when it goes on.

use super::bus::{Bus, Wish};
use super::gate::{Gate, Turn};
use super::layout;
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::errno::Errno;
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::gettid;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// What gets a thread out of KVM_RUN; it has no other effect.
const KICK: Signal = Signal::SIGUSR1;

/// Why the machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked to be started again.
    Reset,
    /// A processor met a fault while it handled a fault while it handled a fault (Intel SDM vol. 3, 6.15, "double fault").
    TripleFault {
        /// Which processor.
        cpu: usize,
    },
    /// The machine cannot go on.
    Failed(String),
}

/// Why a processor has stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Left {
    /// It was asked to.
    Asked,
    /// It wants to write to a page that it may not write to. The instruction has not been done.
    Denied,
    /// Code of the service in the guest reports this value.
    Reported(u32),
    /// One instruction was done, as asked.
    Stepped,
    /// The machine is at its end.
    Ended(End),
}

/// A processor.
pub(super) struct Processor {
    /// Held by its thread while it runs; free while it stands.
    fd: Mutex<VcpuFd>,
    thread: OnceLock<Pthread>,
}

impl Processor {
    pub(super) fn new(fd: VcpuFd) -> Processor {
        Processor { fd: Mutex::new(fd), thread: OnceLock::new() }
    }

    /// The processor, while it stands.
    pub(super) fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calling thread is the one that runs this processor.
    pub(super) fn adopt(&self) {
        // Only once for each processor.
        let _ = self.thread.set(pthread_self());
    }

    /// Gets the processor out of guest mode.
    pub(super) fn kick(&self) {
        if let Some(&thread) = self.thread.get() {
            // It runs a processor, so it exists; and a signal that it has already is as good as another.
            let _ = pthread_kill(thread, KICK);
        }
    }
}

/// Lets [`Processor::kick`] interrupt without any other effect.
///
/// # Errors
/// Of `sigaction`.
pub(super) fn prepare_kicks() -> std::io::Result<()> {
    extern "C" fn nothing(_: i32, _: *mut nix::libc::siginfo_t, _: *mut nix::libc::c_void) {}
    vmm_sys_util::signal::register_signal_handler(KICK as i32, nothing)
        .map_err(|error| std::io::Error::from_raw_os_error(error.errno()))
}

/// A limit for a stretch of guest code that this thread runs: when it is over, KVM_RUN is interrupted, again and again.
pub(super) struct Limit {
    end: Instant,
    /// Deleted when this is dropped.
    _timer: Timer,
}

impl Limit {
    /// Begins now.
    ///
    /// # Errors
    /// Of `timer_create`.
    pub(super) fn new(limit: Duration) -> nix::Result<Limit> {
        let signal = SigevNotify::SigevThreadId { signal: KICK, thread_id: gettid().as_raw(), si_value: 0 };
        let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(signal))?;
        let every = Duration::from_millis(1);
        timer.set(Expiration::IntervalDelayed(limit.into(), every.into()), TimerSetTimeFlags::empty())?;
        Ok(Limit { end: Instant::now() + limit, _timer: timer })
    }

    /// Whether it is over.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }
}

/// Runs a processor until it is to stop.
pub(super) fn run(fd: &mut VcpuFd, cpu: usize, bus: &Bus, stop: impl Fn() -> bool) -> Left {
    let mut reported = None;
    // Whether KVM has to complete an access first.
    let mut incomplete = false;
    loop {
        let stopping = reported.is_some() || stop();
        if stopping && !incomplete {
            fd.set_kvm_immediate_exit(0);
            return reported.map_or(Left::Asked, Left::Reported);
        }
        fd.set_kvm_immediate_exit(u8::from(stopping));
        let exit = fd.run();
        incomplete = matches!(
            exit,
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..) | VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..))
        );
        match exit {
            Ok(VcpuExit::IoOut(port, data)) if report(port, data).is_some() => {
                let value = report(port, data);
                // Ring 0 only: a program that was given the port by the kernel does not speak for us.
                if fd.get_sregs().is_ok_and(|special| special.ss.dpl == 0) {
                    reported = value;
                }
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                if let Some(wish) = bus.port_out(port, data) {
                    return Left::Ended(match wish {
                        Wish::PowerOff => End::PowerOff,
                        Wish::Reset => End::Reset,
                    });
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => bus.port_in(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => bus.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => bus.write(address, data),
            Ok(VcpuExit::Debug(_)) => return Left::Stepped,
            Ok(VcpuExit::Shutdown) => return Left::Ended(End::TripleFault { cpu }),
            Ok(VcpuExit::MemoryFault { .. }) => return Left::Denied,
            // A processor that waits to be started answers EAGAIN when it has been (arch/x86/kvm/x86.c,
            // kvm_arch_vcpu_ioctl_run).
            Ok(VcpuExit::Intr | VcpuExit::Hlt) => {}
            Ok(other) => {
                let what = format!("processor {cpu}: exit {other:?}");
                return Left::Ended(End::Failed(failure(fd, what)));
            }
            Err(error) => match Errno::from_raw(error.errno()) {
                Errno::EINTR | Errno::EAGAIN => {}
                Errno::EFAULT => return Left::Denied,
                errno => return Left::Ended(End::Failed(failure(fd, format!("processor {cpu}: KVM_RUN: {errno}")))),
            },
        }
    }
}

/// The value that an output reports, if it is a report.
fn report(port: u16, data: &[u8]) -> Option<u32> {
    match (port, data) {
        (layout::REPORT, &[a, b, c, d]) => Some(u32::from_le_bytes([a, b, c, d])),
        (port, &[value]) if port == u16::from(layout::QUIET_REPORT) => Some(value.into()),
        _ => None,
    }
}

/// Adds to a failure where the processor was.
pub(super) fn failure(fd: &VcpuFd, what: String) -> String {
    match (fd.get_regs(), fd.get_sregs()) {
        (Ok(regs), Ok(special)) => {
            format!(
                "{what} at {:#x} (CR0 {:#x}, CR3 {:#x}, CR4 {:#x})",
                regs.rip, special.cr0, special.cr3, special.cr4
            )
        }
        _ => what,
    }
}

/// The life of a processor's thread.
pub(super) fn live(cpu: usize, processor: &Processor, gate: &Gate, bus: &Bus, mut look_after: impl FnMut(Left)) {
    processor.adopt();
    loop {
        match gate.enter(cpu) {
            Turn::Run => {
                let left = run(&mut processor.fd(), cpu, bus, || gate.wants_stop());
                gate.leave(cpu);
                if left != Left::Asked {
                    look_after(left);
                }
            }
            Turn::Do(job) => job(),
            Turn::End => return,
        }
    }
}
