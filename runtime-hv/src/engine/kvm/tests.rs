//! The engine on a guest of a few instructions: wherever KVM works.

use super::little::{self, AFTER_EXITS, AFTER_WRITES, AT_ONCE, COUNT, WRITES, WRITTEN};
use super::{KvmEngine, probe};
use crate::engine::{
    Arena as _, ArenaSource, Attend, CallError, Calls as _, EngineError, Interrupt as _, Pa, Pause as _, ReadMemory,
    Stopped, Trapped, Vcpu, Vcpus as _, Watch as _, WriteMemory as _, Written,
};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Whether KVM works; without it a test says so and passes, or fails where everything is required.
fn fit() -> bool {
    match probe() {
        Ok(()) => true,
        Err(reason) => {
            // What LUCOS_REQUIRE_ALL wants is that this runs somewhere: `cargo xtask ci` runs it in the box.
            assert!(std::env::var_os("LUCOS_REQUIRE_KVM").is_none(), "skipped: {reason}");
            println!("skipped: {reason}; `cargo xtask kvm-tests` runs it in the box");
            false
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Written(u64, u64),
    Reported(u32),
}

struct Log(Sender<Event>);

impl Attend for Log {
    fn written(&mut self, guest: &mut dyn Stopped, _: Vcpu, writes: &[Written]) {
        let word = |bytes: &[u8]| bytes[..8].iter().rev().fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte));
        for Written { at, before, after, .. } in writes {
            assert_eq!(word_at(guest, *at), word(after), "what is told is in memory");
            self.0.send(Event::Written(word(before), word(after))).expect("the test listens");
        }
    }

    fn reported(&mut self, _: &mut dyn Stopped, _: Vcpu, value: u32) {
        self.0.send(Event::Reported(value)).expect("the test listens");
    }
}

fn word_at(memory: &(impl ReadMemory + ?Sized), at: Pa) -> u64 {
    let mut bytes = [0; 8];
    memory.read(at, &mut bytes).expect("memory");
    u64::from_le_bytes(bytes)
}

/// A guest that has been let go, with what it does.
fn started(trapped: bool) -> (KvmEngine, Receiver<Event>) {
    let mut engine = little::start().expect("starts");
    let (told, events) = channel();
    engine.pause().expect("stops");
    engine.attend(Some(Box::new(Log(told))), &[]).expect("stands");
    if trapped {
        engine.trap(&Trapped::page(WRITTEN, 8)).expect("a page");
    }
    engine.resume().expect("goes on");
    little::let_go(&mut engine).expect("goes");
    (engine, events)
}

fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(Duration::from_secs(60)).expect("the guest goes on")
}

/// Waits until the guest counts.
fn counting(events: &Receiver<Event>) {
    while next(events) != Event::Reported(AT_ONCE) {}
}

#[test]
fn every_write_to_a_trapped_page_is_told_and_done_once() {
    if !fit() {
        return;
    }
    let (engine, events) = started(true);
    assert_eq!(next(&events), Event::Reported(AFTER_EXITS));
    for count in 0..u64::from(WRITES) {
        assert_eq!(next(&events), Event::Written(count, count + 1));
    }
    assert_eq!(next(&events), Event::Reported(AFTER_WRITES));
    assert_eq!(next(&events), Event::Reported(AT_ONCE));
    assert_eq!(word_at(&engine, WRITTEN), u64::from(WRITES));
}

#[test]
fn a_page_that_is_not_trapped_any_more_is_silent() {
    if !fit() {
        return;
    }
    let (mut engine, events) = started(true);
    while next(&events) != Event::Written(9, 10) {}
    engine.pause().expect("stops");
    engine.untrap(&Trapped::page(WRITTEN, 8)).expect("a page");
    let told = 10 + events.try_iter().count() as u64;
    assert_eq!(word_at(&engine, WRITTEN), told, "all writes so far were told");
    engine.resume().expect("goes on");
    assert_eq!(next(&events), Event::Reported(AFTER_WRITES));
    assert_eq!(word_at(&engine, WRITTEN), u64::from(WRITES));
}

#[test]
fn a_stopped_guest_stands_and_refuses_only_when_it_runs() {
    if !fit() {
        return;
    }
    let (mut engine, events) = started(false);
    counting(&events);
    assert!(matches!(engine.write(COUNT, &[0]), Err(EngineError::Running(_))));
    assert!(matches!(engine.trap(&Trapped::page(COUNT, 8)), Err(EngineError::Running(_))));
    assert!(matches!(engine.interrupt(0, 0x40), Err(EngineError::Running(_))));
    for _ in 0..100 {
        engine.pause().expect("stops");
        let count = word_at(&engine, COUNT);
        std::thread::sleep(Duration::from_micros(200));
        assert_eq!(word_at(&engine, COUNT), count);
        let [registers] = engine.registers().expect("registers")[..] else { panic!("one processor") };
        assert!((registers.rip & !0xff) == super::layout::HIGH_MEMORY && registers.cpl == 0, "{registers:?}");
        engine.resume().expect("goes on");
        let deadline = Instant::now() + Duration::from_secs(10);
        while word_at(&engine, COUNT) == count {
            assert!(Instant::now() < deadline, "it does not go on");
        }
    }
}

#[test]
fn a_call_returns_its_value_and_changes_no_register() {
    if !fit() {
        return;
    }
    let (mut engine, events) = started(false);
    counting(&events);
    for round in 0..100 {
        engine.pause().expect("stops");
        let before = engine.registers().expect("registers");
        let sum = engine.call(Vcpu(0), &little::call(little::SUM, [round, 1000])).expect("returns");
        assert_eq!((sum, engine.registers().expect("registers")), (round + 1000, before));
        engine.resume().expect("goes on");
    }
    engine.pause().expect("stops");
    let before = engine.registers().expect("registers");
    let late = engine.call(Vcpu(0), &little::call(little::ENDLESS, [0, 0])).expect_err("does not return");
    assert!(matches!(late, CallError::Late { at, .. } if at == little::ENDLESS.0), "{late}");
    assert_eq!(engine.registers().expect("registers"), before);
    let count = word_at(&engine, COUNT);
    engine.resume().expect("goes on");
    let deadline = Instant::now() + Duration::from_secs(10);
    while word_at(&engine, COUNT) == count {
        assert!(Instant::now() < deadline, "it does not go on where it was");
    }
}

#[test]
fn the_arena_is_memory_of_the_engine_alone() {
    if !fit() {
        return;
    }
    let mut engine = little::start().expect("starts");
    let ArenaSource::Slot(base, size) = engine.arena() else { panic!("a slot") };
    assert_eq!((base, size), (Pa(1 << 32), 2 << 20));
    engine.pause().expect("stops");
    engine.write(base, b"code").expect("memory");
    let mut bytes = [0; 4];
    engine.read(base, &mut bytes).expect("memory");
    assert_eq!(&bytes, b"code");
    assert!(matches!(engine.write(Pa(base.0 + size), &[0]), Err(EngineError::Memory { .. })));
}

#[test]
fn costs_are_measured() {
    if !fit() {
        return;
    }
    let costs = super::measure().expect("measured");
    println!("{costs:?}");
    assert!(costs.trap_ns > 0 && costs.empty_exit_ns > 0 && costs.call_ns > 0);
}
