//! Who runs: the processors, or one who needs all of them to stand.
//!
//! Comes in: processors that ask to run, and a holder that asks them to stop. Decided: one holder at a time; a processor runs
//! only while nobody holds. Goes out: a stopped machine, in a bounded time.
//!
//! A processor in guest mode does not look at flags, so it is *kicked*: a signal ends its KVM_RUN. The signal may come in the
//! moment between its last look and KVM_RUN; it is then kicked again a moment later, until it stands.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A processor that has been kicked and still runs is kicked again after this.
const KICK_AGAIN: Duration = Duration::from_micros(500);

/// Who holds the machine stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// The update service.
    Service,
    /// A processor that has to look after a trapped write or a report, and needs the others to stand meanwhile.
    Vcpu(usize),
}

/// Something that the service wants done by a processor's own thread while the machine stands.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// What a processor may do next.
pub(super) enum Turn {
    /// Run.
    Run,
    /// Do this, and ask again.
    Do(Job),
    /// Nothing ever more: the machine is at its end.
    End,
}

#[derive(Default)]
struct State {
    holder: Option<Holder>,
    /// By processor.
    runs: Vec<bool>,
    /// By processor.
    jobs: Vec<Option<Job>>,
    /// The machine is at its end; nobody runs again.
    closed: bool,
}

/// The gate of one machine.
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether a processor shall stop as soon as it can; a quick look at the state.
    stop: AtomicBool,
}

/// The machine did not stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum GateError {
    /// Processors that still run.
    #[error("processor {0} did not stop in time")]
    Late(usize),
    /// The machine is at its end.
    #[error("the guest has ended")]
    Closed,
}

impl Gate {
    pub(super) fn new(cpus: usize) -> Gate {
        let jobs = std::iter::repeat_with(|| None).take(cpus).collect();
        let state = State { runs: vec![false; cpus], jobs, ..State::default() };
        Gate { state: Mutex::new(state), changed: Condvar::new(), stop: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a processor shall leave guest mode.
    pub(super) fn wants_stop(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// A processor waits for its turn.
    pub(super) fn enter(&self, cpu: usize) -> Turn {
        let mut state = self.lock();
        loop {
            if state.closed {
                return Turn::End;
            }
            if let Some(job) = state.jobs.get_mut(cpu).and_then(Option::take) {
                return Turn::Do(job);
            }
            if state.holder.is_none() {
                break;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(runs) = state.runs.get_mut(cpu) {
            *runs = true;
        }
        Turn::Run
    }

    /// Lets a processor's own thread do something while the service holds the machine.
    pub(super) fn post(&self, cpu: usize, job: Job) {
        let mut state = self.lock();
        // A job that is dropped tells who waits for it.
        if !state.closed
            && let Some(place) = state.jobs.get_mut(cpu)
        {
            *place = Some(job);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// A processor has stopped.
    pub(super) fn leave(&self, cpu: usize) {
        if let Some(runs) = self.lock().runs.get_mut(cpu) {
            *runs = false;
        }
        self.changed.notify_all();
    }

    /// Stops all processors; a processor that calls this has left before.
    ///
    /// # Errors
    /// [`GateError`]; the machine then runs on.
    pub(super) fn hold(&self, holder: Holder, limit: Duration, kick: impl Fn(usize)) -> Result<(), GateError> {
        let mut deadline = Instant::now() + limit;
        let mut state = self.lock();
        while state.holder.is_some() && !state.closed {
            // The service may need this processor's thread while it holds the machine.
            if let Holder::Vcpu(cpu) = holder
                && let Some(job) = state.jobs.get_mut(cpu).and_then(Option::take)
            {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match holder {
                // Whoever holds it will release it; a processor has nothing else to do meanwhile.
                Holder::Vcpu(_) => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Holder::Service if left.is_zero() => return Err(GateError::Late(0)),
                Holder::Service => {
                    state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        if matches!(holder, Holder::Vcpu(_)) {
            deadline = Instant::now() + limit;
        }
        if state.closed {
            return Err(GateError::Closed);
        }
        state.holder = Some(holder);
        self.stop.store(true, Ordering::Release);
        loop {
            let running: Vec<usize> = (0..state.runs.len()).filter(|&cpu| state.runs[cpu]).collect();
            let Some(&first) = running.first() else { return Ok(()) };
            if Instant::now() >= deadline {
                self.release_locked(&mut state);
                return Err(GateError::Late(first));
            }
            running.into_iter().for_each(&kick);
            state = self.changed.wait_timeout(state, KICK_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets the processors run again.
    pub(super) fn release(&self) {
        self.release_locked(&mut self.lock());
    }

    fn release_locked(&self, state: &mut State) {
        state.holder = None;
        self.stop.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether the service holds the machine.
    pub(super) fn is_held(&self) -> bool {
        self.lock().holder == Some(Holder::Service)
    }

    /// Nobody runs again; whoever waits is let go.
    pub(super) fn close(&self, kick: impl Fn(usize)) {
        let mut state = self.lock();
        state.closed = true;
        state.jobs.iter_mut().for_each(|job| *job = None);
        self.stop.store(true, Ordering::Release);
        self.changed.notify_all();
        for cpu in (0..state.runs.len()).filter(|&cpu| state.runs[cpu]) {
            kick(cpu);
        }
    }

    /// Whether a processor has not left yet.
    pub(super) fn runs(&self, cpu: usize) -> bool {
        self.lock().runs.get(cpu).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    const LIMIT: Duration = Duration::from_secs(5);

    /// Processors that count while they run, and holders that see the counts stand still.
    #[test]
    fn nobody_runs_while_one_holds() {
        let (gate, counts) = (Gate::new(3), [(); 3].map(|()| AtomicUsize::new(0)));
        std::thread::scope(|scope| {
            for (cpu, count) in counts.iter().enumerate() {
                let gate = &gate;
                scope.spawn(move || {
                    while matches!(gate.enter(cpu), Turn::Run) {
                        while !gate.wants_stop() {
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        gate.leave(cpu);
                        // Processor 2 holds the machine itself now and then.
                        if cpu == 2 && gate.hold(Holder::Vcpu(2), LIMIT, |_| {}).is_ok() {
                            gate.release();
                        }
                    }
                });
            }
            let seen = || counts.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>();
            for _ in 0..200 {
                gate.hold(Holder::Service, LIMIT, |_| {}).expect("stopped");
                let before = seen();
                std::thread::sleep(Duration::from_micros(100));
                assert_eq!(before, seen());
                assert!(gate.is_held());
                gate.release();
            }
            gate.close(|_| {});
        });
        assert_eq!(gate.hold(Holder::Service, LIMIT, |_| {}), Err(GateError::Closed));
    }

    #[test]
    fn a_waiting_processor_does_jobs_for_the_holder() {
        let gate = Gate::new(2);
        gate.hold(Holder::Service, LIMIT, |_| {}).expect("stopped");
        std::thread::scope(|scope| {
            // One waits for its turn, the other to hold the machine itself.
            scope.spawn(|| {
                let Turn::Do(job) = gate.enter(0) else { panic!("a job") };
                job();
            });
            scope.spawn(|| gate.hold(Holder::Vcpu(1), LIMIT, |_| {}).expect("held, later"));
            let (told, done) = std::sync::mpsc::channel();
            for cpu in 0..2 {
                let told = told.clone();
                gate.post(cpu, Box::new(move || told.send(cpu).expect("the test listens")));
                assert_eq!(done.recv_timeout(LIMIT), Ok(cpu));
            }
            gate.release();
        });
    }

    #[test]
    fn a_processor_that_does_not_stop_is_named_and_the_others_run_on() {
        let gate = Gate::new(2);
        assert!(matches!((gate.enter(0), gate.enter(1)), (Turn::Run, Turn::Run)));
        gate.leave(0);
        let kicks = AtomicUsize::new(0);
        let kick = |cpu: usize| {
            assert_eq!(cpu, 1);
            kicks.fetch_add(1, Ordering::Relaxed);
        };
        assert_eq!(gate.hold(Holder::Service, Duration::from_millis(20), kick), Err(GateError::Late(1)));
        assert!(kicks.load(Ordering::Relaxed) > 1);
        assert!(!gate.is_held() && !gate.wants_stop() && matches!(gate.enter(0), Turn::Run));
    }
}
