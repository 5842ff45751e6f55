//! A stub with one processor, as peculiar as QEMU's own: narrow in 32-bit code, with an x87 stack that is read from its top and
//! written from its bottom. What a real one does is in `tests/tests/calls.rs`.

use super::*;
use crate::engine::qemu::packet::{bytes_of, encode, hex};
use crate::engine::{Va, Wake};
use crate::timed::Timed;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

const BACK: u64 = 0xffff_ffff_8020_1000;
const FUNCTION: u64 = 0xffff_ffff_8110_0000;
const USER_CS: u64 = 0x33;
const NARROW_CS: u64 = 0x23;
const RFLAGS: u64 = 0x246;
/// A name, and its length in bytes. Numbers follow from the order.
const REGISTERS: &[(&str, usize)] = &[
    ("rax", 8),
    ("rcx", 8),
    ("rdx", 8),
    ("rsi", 8),
    ("rdi", 8),
    ("rsp", 8),
    ("r8", 8),
    ("r9", 8),
    ("rip", 8),
    ("eflags", 4),
    ("cs", 4),
    ("ss", 4),
    ("gs_base", 8),
    ("cr3", 8),
    ("st0", 10),
    ("st1", 10),
    ("st2", 10),
    ("st3", 10),
    ("st4", 10),
    ("st5", 10),
    ("st6", 10),
    ("st7", 10),
    ("fstat", 4),
    ("xmm0", 16),
];

/// What the processor does when it is let run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// It changes all that a function may, and returns.
    Return,
    /// It runs until it is stopped.
    Loop,
    /// It stops somewhere else.
    Stray,
    /// The connection breaks.
    Break,
}

#[derive(Debug, Clone, PartialEq)]
struct Machine {
    registers: BTreeMap<&'static str, Vec<u8>>,
    breakpoints: Vec<u64>,
    halted: bool,
    /// Messages to local APICs: address and data.
    messages: Vec<(u64, u32)>,
    does: Does,
    /// A register that cannot be written.
    stuck: Option<&'static str>,
}

impl Machine {
    fn new(cs: u64, does: Does) -> Machine {
        let mut registers = BTreeMap::new();
        for (number, &(name, len)) in REGISTERS.iter().enumerate() {
            registers.insert(name, vec![number as u8 + 1; len]);
        }
        let mut machine =
            Machine { registers, breakpoints: Vec::new(), halted: false, messages: Vec::new(), does, stuck: None };
        let ss = if cs == KERNEL_CS { 0 } else { 0x2b };
        // The top of the x87 stack is 3.
        for (name, value) in [("cs", cs), ("ss", ss), ("eflags", RFLAGS), ("fstat", 3 << 11)] {
            machine.set(name, value);
        }
        machine
    }

    fn get(&self, name: &str) -> u64 {
        self.registers[name].iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn set(&mut self, name: &'static str, value: u64) {
        let mut bytes = value.to_le_bytes().to_vec();
        bytes.resize(self.registers[name].len(), 0);
        self.registers.insert(name, bytes);
    }

    fn is_narrow(&self) -> bool {
        self.get("cs") == NARROW_CS
    }

    /// A register of the x87 stack as the stub reads it.
    fn read_as(&self, name: &'static str) -> Option<&'static str> {
        let index: u64 = name.strip_prefix("st")?.parse().ok()?;
        Some(REGISTERS[14 + ((index + (self.get("fstat") >> 11)) % 8) as usize].0)
    }

    fn shown(&self) -> Vec<u8> {
        let show = |&(name, len): &(&'static str, usize)| {
            let mut bytes = self.registers[self.read_as(name).unwrap_or(name)].clone();
            match name {
                "r8" | "r9" if self.is_narrow() => bytes.fill(0),
                "gs_base" | "cr3" => {}
                _ if len == 8 && self.is_narrow() => bytes[4..].fill(0),
                _ => {}
            }
            bytes
        };
        REGISTERS.iter().flat_map(show).collect()
    }

    fn written(&mut self, number: usize, mut bytes: Vec<u8>) {
        let (name, len) = REGISTERS[number];
        assert_eq!(bytes.len(), len, "{name}");
        if self.stuck == Some(name) || (self.is_narrow() && matches!(name, "r8" | "r9")) {
            return;
        }
        if self.is_narrow() && len == 8 {
            bytes[4..].fill(0);
        }
        self.registers.insert(name, bytes);
    }

    /// Runs; `None` when it has not come to stand.
    fn run(&mut self, step: bool) -> Option<&'static [u8]> {
        if self.halted {
            // An interrupt for it is waiting, and is let in.
            let woken = self.get("eflags") & INTERRUPTS != 0 && self.messages == [(0xfee0_1000, 0xfd)];
            self.halted = !woken;
            assert_eq!((step, self.get("rip")), (true, BACK), "it is woken where no code of the guest is");
            return woken.then_some(b"T05thread:02;");
        }
        assert_eq!((step, self.get("rip"), self.get("eflags"), self.get("cs")), (false, FUNCTION, FLAGS, KERNEL_CS));
        match self.does {
            Does::Return => {
                for name in ["rcx", "r8", "r9", "st2", "xmm0"] {
                    self.registers.get_mut(name).expect("there").fill(0xee);
                }
                let sum = self.get("rdi") + self.get("rsi");
                let top = self.get("rsp") + 8;
                for (name, value) in [("rax", sum), ("rsp", top), ("rip", BACK), ("fstat", 5 << 11)] {
                    self.set(name, value);
                }
                assert_eq!(self.breakpoints, [BACK]);
                Some(b"T05thread:02;")
            }
            Does::Stray => Some(b"T0bthread:02;"),
            Does::Loop | Does::Break => None,
        }
    }

    fn answer(&mut self, command: &str) -> Option<Vec<u8>> {
        let number = |text: &str| u64::from_str_radix(text, 16).expect("a number");
        if command.starts_with("Qqemu.PhyMemMode:") || command == "Hg2" {
        } else if command == "g" {
            return Some(hex(&self.shown()));
        } else if let Some((register, value)) = command.strip_prefix('P').and_then(|rest| rest.split_once('=')) {
            self.written(number(register) as usize, bytes_of(value.as_bytes()).expect("digits"));
        } else if let Some(range) = command.strip_prefix("qXfer:features:read:target.xml:") {
            let registers =
                REGISTERS.iter().map(|(name, len)| format!("<reg name=\"{name}\" bitsize=\"{}\"/>", len * 8));
            let text: String = registers.collect();
            let (from, len) = range.split_once(',').expect("a range");
            let (from, len) = (number(from) as usize, number(len) as usize);
            let end = (from + len).min(text.len());
            return Some(format!("{}{}", if end < text.len() { 'm' } else { 'l' }, &text[from..end]).into_bytes());
        } else if let Some(place) = command.strip_prefix("Z0,") {
            self.breakpoints.push(number(place.strip_suffix(",1").expect("one byte")));
        } else if let Some(place) = command.strip_prefix("z0,") {
            let place = number(place.strip_suffix(",1").expect("one byte"));
            let there = self.breakpoints.contains(&place);
            self.breakpoints.retain(|&at| at != place);
            return Some(if there { b"OK".to_vec() } else { b"E22".to_vec() });
        } else if let Some((to, value)) = command.strip_prefix('M').and_then(|rest| rest.split_once(",4:")) {
            let bytes: [u8; 4] = bytes_of(value.as_bytes()).expect("digits").try_into().expect("four");
            self.messages.push((number(to), u32::from_le_bytes(bytes)));
        } else if let Some(action) = command.strip_prefix("vCont;") {
            let (action, thread) = action.split_once(':').expect("a thread");
            assert_eq!(thread, "2");
            return self.run(action == "s").map(<[u8]>::to_vec);
        } else {
            panic!("`{command}`");
        }
        Some(b"OK".to_vec())
    }
}

/// A new connection to the stub of a machine.
fn connect(machine: &Arc<Mutex<Machine>>) -> Client<Timed> {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let machine = Arc::clone(machine);
    std::thread::spawn(move || {
        let mut byte = [0];
        let mut packet: Option<Vec<u8>> = None;
        while theirs.read_exact(&mut byte).is_ok() {
            match (&mut packet, byte[0]) {
                (None, b'$') => packet = Some(Vec::new()),
                (None, 3) => theirs.write_all(&encode(b"T02thread:02;")).expect("a client"),
                (None, _) => {}
                (Some(payload), b'#') => {
                    theirs.read_exact(&mut [0; 2]).expect("a checksum");
                    let command = String::from_utf8(std::mem::take(payload)).expect("text");
                    packet = None;
                    theirs.write_all(b"+").expect("a client");
                    let mut machine = machine.lock().expect("no panic");
                    match machine.answer(&command) {
                        Some(answer) => theirs.write_all(&encode(&answer)).expect("a client"),
                        None if machine.does == Does::Break => return,
                        None => {}
                    }
                }
                (Some(payload), byte) => payload.push(byte),
            }
        }
    });
    Client::begin(Timed::new(ours)).expect("a stub")
}

fn call(limit: Duration) -> Call {
    Call {
        function: Va(FUNCTION),
        arguments: [40, 2, 0, 0, 0, 0],
        stack: Va(0xffff_ffff_8020_4000),
        back: Va(BACK),
        gs_base: 0xffff_8880_0000_0000,
        cr3: 0x261_0000,
        limit,
        wake: Some(Wake { apic_id: 1, vector: 0xfd }),
    }
}

/// Calls, and puts back by the connection or by another; gives what came of both.
fn called(machine: Machine, limit: Duration) -> (Result<Outcome, EngineError>, Result<(), EngineError>, Machine) {
    let halted = machine.halted;
    let machine = Arc::new(Mutex::new(machine));
    let mut client = connect(&machine);
    let mut processor = Processor::choose(&mut client, Vcpu(1)).expect("there");
    let seen = processor.registers().expect("shown");
    processor.enter_ring_0(&seen).expect("entered");
    let whole = Some(processor.registers().expect("shown"));
    let record = Record { vcpu: 1, breakpoint: BACK, seen, whole, owner_paused: false };
    let outcome = processor.call(&call(limit), halted);
    let put_back = processor.put_back(&record).or_else(|_| {
        let mut client = connect(&machine);
        Processor::choose(&mut client, Vcpu(1)).expect("there").put_back(&record)
    });
    let after = machine.lock().expect("no panic").clone();
    (outcome, put_back, after)
}

const SOON: Duration = Duration::from_secs(5);
const AT_ONCE: Duration = Duration::from_millis(30);

#[test]
fn a_function_returns_and_everything_is_put_back() {
    for cs in [KERNEL_CS, USER_CS, NARROW_CS] {
        let before = Machine::new(cs, Does::Return);
        let (outcome, put_back, after) = called(before.clone(), SOON);
        assert_eq!(outcome.expect("called"), Outcome::Value(42), "{cs:#x}");
        put_back.expect("put back");
        assert_eq!(after, before, "{cs:#x}");
    }
}

#[test]
fn one_that_does_not_return_is_told_apart_and_put_back() {
    let stray = Outcome::Strayed(format!("it stopped with signal 11 at {FUNCTION:#x}"));
    for (does, limit, expected) in [(Does::Loop, AT_ONCE, Outcome::Late(FUNCTION)), (Does::Stray, SOON, stray)] {
        let before = Machine::new(USER_CS, does);
        let (outcome, put_back, after) = called(before.clone(), limit);
        assert_eq!(outcome.expect("called"), expected);
        put_back.expect("put back");
        assert_eq!(after, before);
    }
}

#[test]
fn a_broken_connection_is_followed_by_a_new_one() {
    let before = Machine::new(NARROW_CS, Does::Break);
    let (outcome, put_back, after) = called(before.clone(), SOON);
    assert!(matches!(outcome, Err(EngineError::Connection { .. })), "{outcome:?}");
    put_back.expect("put back");
    assert_eq!(after, before);
}

#[test]
fn a_halted_processor_is_woken_by_an_interrupt_that_waits() {
    let before = Machine { halted: true, ..Machine::new(KERNEL_CS, Does::Return) };
    let (outcome, put_back, after) = called(before.clone(), SOON);
    assert_eq!(outcome.expect("called"), Outcome::Value(42));
    put_back.expect("put back");
    assert_eq!(after, Machine { halted: false, messages: vec![(0xfee0_1000, 0xfd)], ..before });

    // A message that does not reach it: there is one for another processor already.
    let before = Machine { messages: vec![(0xfee0_0000, 0xfd)], halted: true, ..Machine::new(KERNEL_CS, Does::Return) };
    let (outcome, put_back, after) = called(before.clone(), AT_ONCE);
    assert_eq!(outcome.expect("tried"), Outcome::Asleep);
    put_back.expect("put back");
    assert_eq!((after.registers, after.breakpoints, after.halted), (before.registers, Vec::new(), true));
}

#[test]
fn a_register_that_stays_wrong_is_named() {
    let mut before = Machine::new(USER_CS, Does::Return);
    before.stuck = Some("xmm0");
    let (outcome, put_back, _) = called(before, SOON);
    assert_eq!(outcome.expect("called"), Outcome::Value(42));
    assert!(put_back.expect_err("one is wrong").to_string().contains("xmm0"));
}
