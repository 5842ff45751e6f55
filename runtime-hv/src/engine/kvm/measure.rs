//! What the engine's operations cost on this host.
//!
//! Comes in: a host on which KVM works. Decided: by a guest of a few instructions ([`little`]), so that nothing but the operations
//! themselves is measured. Goes out: times beside that of an empty exit, the least that any exit to us costs.

use super::little::{self, AFTER_EXITS, AFTER_WRITES, AT_ONCE, EXITS, WRITES};
use super::probe::ProbeError;
use crate::engine::{Attend, Calls as _, Pause as _, Stopped, Trapped, Vcpu, Watch as _, Written};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// How often an operation of the host's side is done; the median counts.
const ROUNDS: usize = 200;
/// How long the guest runs between two pauses.
const RUN: Duration = Duration::from_millis(2);
/// The little guest is done long before.
const LIMIT: Duration = Duration::from_secs(60);

/// Times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Costs {
    /// The guest writes to a port where nothing is, and goes on.
    pub empty_exit_ns: u64,
    /// All processors are out of guest mode.
    pub pause_ns: u64,
    /// A report: all stand, it is attended to, all go on.
    pub report_ns: u64,
    /// A write to a trapped page: all stand, the page is opened, one step, the page is closed, contents compared, all go on.
    pub trap_ns: u64,
    /// A page is opened and trapped again.
    pub protect_again_ns: u64,
    /// A function of the guest is run that returns at once.
    pub call_ns: u64,
}

/// Tells when each report came.
struct Clock(Sender<(u32, Instant)>);

impl Attend for Clock {
    fn written(&mut self, _: &mut dyn Stopped, _: Vcpu, _: &[Written]) {}

    fn reported(&mut self, _: &mut dyn Stopped, _: Vcpu, value: u32) {
        // Nobody listens any more once all have come.
        let _ = self.0.send((value, Instant::now()));
    }
}

/// Measures.
///
/// # Errors
/// [`ProbeError`] when KVM cannot be used, or does not do what it should.
pub fn measure() -> Result<Costs, ProbeError> {
    let unfit = |error: &dyn std::fmt::Display| ProbeError::Unfit(error.to_string());
    let mut engine = little::start().map_err(ProbeError::Machine)?;
    let (told, reports) = channel();
    let written = Trapped::page(little::WRITTEN, 8);
    engine.pause().map_err(|error| unfit(&error))?;
    engine.attend(Some(Box::new(Clock(told))), &[]).map_err(|error| unfit(&error))?;
    engine.trap(&written).map_err(|error| unfit(&error))?;
    engine.resume().map_err(|error| unfit(&error))?;
    little::let_go(&mut engine).map_err(|error| unfit(&error))?;
    let let_go = Instant::now();
    let at = |expected: u32| match reports.recv_timeout(LIMIT) {
        Ok((value, at)) if value == expected => Ok(at),
        Ok((value, _)) => Err(ProbeError::Unfit(format!("the guest reported {value}; expected {expected}"))),
        Err(_) => Err(ProbeError::Unfit(match engine.how_it_ended() {
            Some(end) => format!("the guest has ended: {end:?}"),
            None => format!("the guest did not report {expected}"),
        })),
    };
    let (exits, writes, once) = (at(AFTER_EXITS)?, at(AFTER_WRITES)?, at(AT_ONCE)?);

    let (mut pauses, mut protects, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // A processor that has not gone on yet has nothing to stop.
        std::thread::sleep(RUN);
        let start = Instant::now();
        engine.pause().map_err(|error| unfit(&error))?;
        pauses.push(start.elapsed());
        let start = Instant::now();
        engine.untrap(&written).map_err(|error| unfit(&error))?;
        engine.trap(&written).map_err(|error| unfit(&error))?;
        protects.push(start.elapsed());
        let start = Instant::now();
        engine.call(Vcpu(0), &little::call(little::SUM, [1, 2])).map_err(|error| unfit(&error))?;
        calls.push(start.elapsed());
        engine.resume().map_err(|error| unfit(&error))?;
    }
    Ok(Costs {
        empty_exit_ns: nanoseconds(exits - let_go) / u64::from(EXITS),
        pause_ns: median(pauses),
        report_ns: nanoseconds(once - writes),
        trap_ns: nanoseconds(writes - exits) / u64::from(WRITES),
        protect_again_ns: median(protects),
        call_ns: median(calls),
    })
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn median(mut times: Vec<Duration>) -> u64 {
    times.sort_unstable();
    times.get(times.len() / 2).copied().map_or(0, nanoseconds)
}
