//! Lets the guest run while something in it is attended to.
//!
//! Comes in: a guest that stands, with the connection to its stub, and what is watched. Decided: who runs when; whether a stop
//! is a write, a report, the end of a turn, or the owner's will. Goes out: calls of whoever attends; in the end the guest,
//! standing again, and the connection.
//!
//! ```text
//!  service   resume ─ begin ┐                                        ┌ end ─ pause
//!  driver                   └ set, run, stand, attend, run, …, clear ┘
//! ```
//!
//! A write is seen after it has been done, while other processors go on. Two that write to both copies of a datum at once could not
//! be put in order afterwards. So as long as memory is trapped only one processor runs at a time, in [`turns`](super::turns).
//! Where only reports are expected all run.

use std::fs;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Hold;
use super::gdb::{STOPPED, Stop, TRAP, Waited};
use super::record::Mark;
use super::stub::Stub;
use super::turns::Turns;
use super::vm::Vm;
use super::watch::{Standing, Watching};
use crate::engine::{EngineError, Vcpu};

/// How often it is looked whether a processor whose turn it is has gone to sleep.
const LOOK: Duration = Duration::from_micros(150);
/// The same for resets of a guest that only reports.
const LOOK_RESET: Duration = Duration::from_millis(500);
/// How often it is looked whether the owner lets the guest run again, and how long to wait after a failure.
const AGAIN: u8 = 20;
/// What is disturbed when somebody else lets the guest run.
const RUNNING: &str = "a turn (somebody continued it while we held it stopped)";

/// The driver of a guest that runs.
pub(super) struct Driver {
    thread: JoinHandle<()>,
    /// What the driver works with; there again when the thread has ended.
    work: Arc<Mutex<Option<Work>>>,
    /// Closed when the driver is to end.
    wake: PipeWriter,
    owner_paused: Arc<AtomicBool>,
    vm: Arc<Vm>,
}

/// What the driver leaves.
pub(super) struct Driven {
    pub(super) hold: Hold,
    pub(super) watching: Watching,
    pub(super) trouble: Option<String>,
    /// Resets of the guest when it began, unless that is lost.
    pub(super) resets: Option<u64>,
}

/// What the driver works with.
struct Work {
    vm: Arc<Vm>,
    hold: Hold,
    watching: Watching,
    trouble: Option<String>,
    owner_paused: Arc<AtomicBool>,
    /// Resets of the guest when it began.
    resets: u64,
    /// When it was last looked for more.
    checked: Instant,
    /// Host threads of the processors, as far as they are known.
    threads: Vec<u32>,
    /// How long the turn under way has lasted.
    so_far: Duration,
}

/// Why nothing more is to be done for now.
enum Ended {
    /// It is asked for.
    Asked,
    /// The guest was reset, and runs without us.
    Reset,
}

/// How a stretch of running ended.
struct Ran {
    stop: Stop,
    /// We stopped it.
    by_us: bool,
    /// The thread of the processor whose turn it was waited for something then.
    asleep: bool,
}

impl Driver {
    /// Lets the guest run.
    ///
    /// # Consistency on error
    /// The guest stands, and everything is given back.
    pub(super) fn begin(
        vm: Arc<Vm>,
        mut hold: Hold,
        mut watching: Watching,
    ) -> Result<Driver, (Box<Driven>, EngineError)> {
        let prepared = prepare(&vm, &mut hold, &mut watching);
        let (asked, wake, resets) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Err((Box::new(Driven { hold, watching, trouble: None, resets: None }), error)),
        };
        let owner_paused = Arc::new(AtomicBool::new(hold.owner_paused));
        let work = Work {
            vm: Arc::clone(&vm),
            hold,
            watching,
            trouble: None,
            owner_paused: Arc::clone(&owner_paused),
            resets,
            checked: Instant::now(),
            threads: vm.monitor().threads().unwrap_or_default(),
            so_far: Duration::ZERO,
        };
        let work = Arc::new(Mutex::new(Some(work)));
        let shared = Arc::clone(&work);
        let life = move || {
            if let Some(work) = &mut *shared.lock().unwrap_or_else(PoisonError::into_inner) {
                work.live(&asked);
            }
        };
        match std::thread::Builder::new().name("qemu-driver".to_owned()).spawn(life) {
            Ok(thread) => Ok(Driver { thread, work, wake, owner_paused, vm }),
            Err(error) => {
                let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
                Err((Box::new(Driven::of(work, &vm)), no_thread(&error)))
            }
        }
    }

    /// Whether the guest's owner has stopped it.
    pub(super) fn owner_paused(&self) -> bool {
        self.owner_paused.load(Ordering::Acquire)
    }

    /// Whether it has ended by itself: the guest, if there still is one, runs without it.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends: the guest stands, if it still is there.
    pub(super) fn end(self) -> Driven {
        drop(self.wake);
        let panicked = self.thread.join().is_err();
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut driven = Driven::of(work, &self.vm);
        if panicked {
            driven.trouble = Some("the thread that attended to the guest has crashed".to_owned());
        }
        driven
    }
}

impl Driven {
    fn of(work: Option<Work>, vm: &Vm) -> Driven {
        match work {
            Some(Work { hold, watching, trouble, resets, .. }) => {
                Driven { hold, watching, trouble, resets: Some(resets) }
            }
            None => Driven { hold: Hold::lost(vm), watching: Watching::default(), trouble: None, resets: None },
        }
    }
}

/// What a driver needs before it begins.
fn prepare(vm: &Vm, hold: &mut Hold, watching: &mut Watching) -> Result<(PipeReader, PipeWriter, u64), EngineError> {
    if !watching.arms.traps.is_empty() {
        let processors = vm.registers()?.len();
        if watching.turns.shares().len() != processors {
            watching.turns = Turns::new(processors);
        }
    }
    // What the service has written is no write of the guest.
    watching.arms.refresh(vm)?;
    watching.arms.mark(hold.owner_paused, true).store(vm.folder())?;
    watching.arms.set(&mut hold.stub)?;
    let (asked, wake) = std::io::pipe().map_err(|error| no_thread(&error))?;
    Ok((asked, wake, vm.resets_now()?))
}

fn no_thread(error: &std::io::Error) -> EngineError {
    EngineError::Connection { peer: "a thread that attends to the guest", reason: error.to_string() }
}

impl Hold {
    /// Of a guest whose connection is lost.
    fn lost(vm: &Vm) -> Hold {
        Hold { owner_paused: false, since: Instant::now(), stub: Stub::known(vm.folder()), taken: None }
    }
}

impl Work {
    /// Until it is asked to end, the guest is reset, or its process is gone.
    fn live(&mut self, asked: &PipeReader) {
        loop {
            let error = match self.drive(asked) {
                Ok(Ended::Asked) => return,
                Ok(Ended::Reset) => {
                    self.trouble = Some("the guest was reset".to_owned());
                    return;
                }
                Err(error) => error,
            };
            if self.vm.is_gone() {
                self.trouble = Some("the guest is gone".to_owned());
                return;
            }
            self.trouble = Some(format!("for a while nobody attended to the guest: {error}"));
            if is_asked(asked, AGAIN) {
                return;
            }
            // Whatever state the connection is in, a new one is to find the guest standing, with what is to be set.
            self.hold.stub.drop_connection();
            if self.vm.monitor().stop().is_ok() {
                let _ = self.watching.arms.set(&mut self.hold.stub);
            }
        }
    }

    fn drive(&mut self, asked: &PipeReader) -> Result<Ended, EngineError> {
        loop {
            if self.hold.owner_paused {
                let Some(stop) = self.until_owner_goes_on(asked)? else { return self.end() };
                if !self.look_after(stop.vcpu, &stop, false)? {
                    return self.let_go();
                }
            }
            let vcpu = self.watching.turns.next().filter(|_| !self.watching.arms.traps.is_empty());
            let Ran { stop, by_us, asleep } = self.let_run(vcpu, asked)?;
            if !self.look_after(vcpu.or(stop.vcpu), &stop, asleep)? {
                return self.let_go();
            }
            if stop.signal != TRAP && !by_us {
                self.set_owner_paused(true)?;
            }
            if is_asked(asked, 0) {
                return self.end();
            }
        }
    }

    /// Hands the guest over, standing.
    fn end(&mut self) -> Result<Ended, EngineError> {
        self.watching.arms.hand_over(&self.vm, &mut self.hold)?;
        Ok(Ended::Asked)
    }

    /// After a reset: nothing of what was watched exists any more.
    fn let_go(&mut self) -> Result<Ended, EngineError> {
        self.watching.forget();
        self.watching.arms.clear(&mut self.hold.stub)?;
        self.hold.stub.disconnect();
        self.vm.monitor().cont()?;
        Mark::forget(self.vm.folder())?;
        Ok(Ended::Reset)
    }

    fn set_owner_paused(&mut self, paused: bool) -> Result<(), EngineError> {
        self.hold.owner_paused = paused;
        self.owner_paused.store(paused, Ordering::Release);
        self.watching.arms.mark(paused, true).store(self.vm.folder())
    }

    /// Lets a processor run for its turn, or all of them until something happens.
    fn let_run(&mut self, vcpu: Option<Vcpu>, asked: &PipeReader) -> Result<Ran, EngineError> {
        let stub = &mut self.hold.stub;
        let since = Instant::now();
        stub.with(RUNNING, |client| client.start(vcpu))?;
        let mut asleep = false;
        let step = if vcpu.is_some() { LOOK } else { LOOK_RESET };
        let stood = loop {
            match stub.with(RUNNING, |client| client.wait(step, asked.as_fd()))? {
                Waited::Stood(stop) => break Some(stop),
                Waited::Woken => break None,
                Waited::Late => {
                    let ran = self.so_far + since.elapsed();
                    match vcpu {
                        Some(vcpu) => {
                            asleep = is_asleep(&self.vm, self.threads.get(vcpu.0));
                            if self.watching.turns.is_over(ran, asleep) {
                                break None;
                            }
                        }
                        None if self.vm.resets_now()? != self.resets => break None,
                        None => {}
                    }
                }
            }
        };
        let (stop, by_us) = match stood {
            Some(stop) => (stop, false),
            None => (stub.with(RUNNING, super::gdb::Client::halt)?, true),
        };
        self.so_far += since.elapsed();
        // A write does not cost the rest of a turn.
        if vcpu.is_some() && (by_us || self.watching.turns.is_over(self.so_far, asleep)) {
            self.watching.turns.ended(std::mem::take(&mut self.so_far), asleep);
        }
        Ok(Ran { stop, by_us, asleep })
    }

    /// Looks what a stop was about; `asleep`: the processor's thread had not been running. `false`: the guest was reset.
    fn look_after(&mut self, vcpu: Option<Vcpu>, stop: &Stop, asleep: bool) -> Result<bool, EngineError> {
        let mut changes = self.watching.arms.changes(&*self.vm)?;
        if !changes.is_empty() && !stop.watch {
            // A processor that stood without being halted had met a watched range, and we came before QEMU had told.
            let met = asleep && vcpu.is_some_and(|vcpu| self.vm.state(vcpu).is_ok_and(|state| !state.halted));
            changes.iter_mut().for_each(|change| change.late = !met);
        }
        let may_report = stop.signal == TRAP && !stop.watch && !self.watching.arms.reports.is_empty();
        if self.checked.elapsed() >= LOOK_RESET || may_report || !changes.is_empty() {
            self.checked = Instant::now();
            if self.vm.resets_now()? != self.resets {
                return Ok(false);
            }
        }
        let Watching { attendant: Some(attendant), arms, .. } = &mut self.watching else { return Ok(true) };
        if !changes.is_empty() {
            let mut guest = Standing { vm: &self.vm, hold: &mut self.hold, arms };
            attendant.written(&mut guest, vcpu.unwrap_or(Vcpu(0)), &changes);
            arms.refresh(&*self.vm)?;
        }
        if may_report {
            for (index, registers) in self.vm.registers()?.iter().enumerate() {
                if !arms.reports.contains(&registers.rip) {
                    continue;
                }
                let vcpu = Vcpu(index);
                attendant.reported(&mut Standing { vm: &self.vm, hold: &mut self.hold, arms }, vcpu, 0);
                // Nobody knows the thread: it goes round in the report code, and others may run meanwhile.
                if self.vm.state(vcpu)?.registers.rip == registers.rip {
                    arms.ignore(&mut self.hold.stub, registers.rip)?;
                }
            }
        }
        if may_report {
            // A hook may have written.
            arms.refresh(&*self.vm)?;
        }
        Ok(true)
    }

    /// The owner has stopped the guest: waits until it goes on, and stops it. `None`: something else is asked for.
    fn until_owner_goes_on(&mut self, asked: &PipeReader) -> Result<Option<Stop>, EngineError> {
        loop {
            let stub = &mut self.hold.stub;
            let wait = Duration::from_millis(AGAIN.into());
            let stop = match stub.with(RUNNING, |client| client.wait(wait, asked.as_fd()))? {
                // It went on and was stopped again.
                Waited::Stood(stop) if stop.signal != TRAP => continue,
                Waited::Stood(stop) => stop,
                Waited::Woken => return Ok(None),
                Waited::Late if self.vm.monitor().is_running()? => stub.with(RUNNING, super::gdb::Client::halt)?,
                Waited::Late => continue,
            };
            if stop.signal == TRAP || stop.signal == STOPPED {
                self.set_owner_paused(false)?;
                return Ok(Some(stop));
            }
        }
    }
}

/// Whether a processor's thread waits for something. What cannot be told is no.
fn is_asleep(vm: &Vm, thread: Option<&u32>) -> bool {
    let Some(thread) = thread else { return false };
    // The state follows the name, which is in parentheses and may contain any (proc(5)).
    let text = fs::read_to_string(format!("/proc/{}/task/{thread}/stat", vm.pid())).unwrap_or_default();
    text.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('S'))
}

/// Whether the driver is to end, now or within some milliseconds.
fn is_asked(asked: &PipeReader, milliseconds: u8) -> bool {
    let mut files = [PollFd::new(asked.as_fd(), PollFlags::POLLIN)];
    poll(&mut files, PollTimeout::from(milliseconds)).is_ok_and(|ready| ready > 0)
}
