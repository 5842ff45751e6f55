//! What the fake guest does when it is asked: the support object acted out, on a few slots of module memory.

use super::{IMAGE, LIST, PERCPU, TOP, VECTOR, live};
use crate::engine::mock::MockEngine;
use crate::engine::{EngineError, Pa, ReadMemory, Va};
use crate::guest::paging::{self, Root};
use crate::guest::support::{NAME_SIZE, REQUEST_SIZE};
use lpk_format::{Payload, Place, SectionKind, Symbol};

/// Module memory: slots, then a `struct module` for each.
pub(crate) const AREAS: u64 = 0x2_0000;
const SLOT: u64 = 0x8000;
const SLOTS: u64 = 4;
const MODULES: u64 = AREAS + SLOTS * SLOT;
const MODULE: u64 = 0x100;
pub(crate) const END: u64 = MODULES + 0x1000;
/// A byte for each slot in use.
const USED: u64 = MODULES + 0x800;

const WORK: u32 = 64;
const REQUEST: u32 = 128;
const NAME: u64 = 24;

/// A support object.
pub(crate) fn support() -> Payload {
    let symbol = |name: &str, section, offset, size, function| Symbol {
        name: name.into(),
        place: Place::Payload { section, offset },
        size,
        function,
    };
    let mut data = vec![0; REQUEST as usize + REQUEST_SIZE];
    data[WORK as usize + 8] = 0x23;
    Payload {
        text: vec![0xc3; 16],
        rodata: [2, REQUEST_SIZE as u32, 0, 8, 3, NAME as u32].iter().flat_map(|word| word.to_le_bytes()).collect(),
        data,
        symbols: vec![
            symbol("lucos_support_interrupt", SectionKind::Text, 0, 16, true),
            symbol("lucos_support_abi", SectionKind::Rodata, 0, 24, false),
            symbol("lucos_support_work", SectionKind::Data, WORK, 32, false),
            symbol("lucos_support_request", SectionKind::Data, REQUEST, REQUEST_SIZE as u64, false),
        ],
        ..Payload::default()
    }
}

/// Memory as the guest sees it.
struct Own<'a>(&'a MockEngine);

impl ReadMemory for Own<'_> {
    fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
        self.0.peek(from, into);
        Ok(())
    }
}

fn physical(engine: &MockEngine, va: u64) -> Pa {
    let root = Root { table: Pa(IMAGE + TOP), five_levels: false };
    paging::translate(&Own(engine), root, Va(va)).expect("the guest's own pointers are right")
}

fn word(engine: &MockEngine, at: Pa) -> u64 {
    let mut bytes = [0; 8];
    engine.peek(at, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// The request on the processor's list, which is then empty, with the interrupt over.
fn take(engine: &mut MockEngine, vector: u8) -> Option<Pa> {
    assert_eq!(vector, VECTOR);
    let head = Pa(IMAGE + PERCPU + LIST);
    let node = word(engine, head);
    if node == 0 {
        return None; // the tool died before it had put anything there, or it was done already
    }
    engine.poke(head, &[0; 8]);
    let work = physical(engine, node);
    assert_eq!(word(engine, work), 0, "nothing else was on the list");
    engine.poke(Pa(work.0 + 8), &[0x20, 0, 0, 0]);
    Some(Pa(work.0 - u64::from(WORK) + u64::from(REQUEST)))
}

fn answer(engine: &mut MockEngine, request: Pa, result: i64) {
    engine.poke(Pa(request.0 + 8), &result.to_le_bytes());
    engine.poke(Pa(request.0 + 4), &2_u32.to_le_bytes());
}

/// Does what it is asked.
pub(crate) fn interrupt(engine: &mut MockEngine, _: u8, vector: u8) {
    let Some(request) = take(engine, vector) else { return };
    let field = |engine: &MockEngine, at: u64| word(engine, Pa(request.0 + at));
    let base = field(engine, 16);
    let slot = base.wrapping_sub(live(AREAS)) / SLOT;
    let result = match field(engine, 0) & 0xffff_ffff {
        1 => {
            let free = (0..SLOTS).find(|slot| word(engine, Pa(IMAGE + USED + slot * 8)) == 0);
            let Some(slot) = free else { return answer(engine, request, -12) };
            assert!(field(engine, 24) <= SLOT);
            engine.poke(Pa(IMAGE + USED + slot * 8), &[1]);
            engine.poke(Pa(request.0 + 16), &live(AREAS + slot * SLOT).to_le_bytes());
            0
        }
        2 => {
            let mut name = [0; NAME_SIZE];
            engine.peek(Pa(request.0 + 200), &mut name);
            let known = |slot: u64| {
                let mut other = [0; NAME_SIZE];
                engine.peek(Pa(IMAGE + MODULES + slot * MODULE + NAME), &mut other);
                other == name
            };
            if (0..SLOTS).any(known) {
                return answer(engine, request, -17);
            }
            engine.poke(Pa(IMAGE + MODULES + slot * MODULE + NAME), &name);
            engine.poke(Pa(request.0 + 48), &live(MODULES + slot * MODULE).to_le_bytes());
            0
        }
        3 => {
            let module = field(engine, 48);
            assert!(module == 0 || module == live(MODULES + slot * MODULE), "{module:#x} for slot {slot}");
            engine.poke(Pa(IMAGE + MODULES + slot * MODULE), &[0; MODULE as usize]);
            engine.poke(Pa(IMAGE + AREAS + slot * SLOT), &[0; SLOT as usize]);
            engine.poke(Pa(IMAGE + USED + slot * 8), &[0]);
            0
        }
        _ => -95,
    };
    answer(engine, request, result);
}

/// Takes the request and never comes to it.
pub(crate) fn begin(engine: &mut MockEngine, _: u8, vector: u8) {
    if let Some(request) = take(engine, vector) {
        engine.poke(Pa(request.0 + 4), &1_u32.to_le_bytes());
    }
}

/// Has no memory.
pub(crate) fn decline(engine: &mut MockEngine, _: u8, vector: u8) {
    if let Some(request) = take(engine, vector) {
        answer(engine, request, -12);
    }
}

/// Gives addresses that make no sense.
pub(crate) fn lie(engine: &mut MockEngine, _: u8, vector: u8) {
    if let Some(request) = take(engine, vector) {
        engine.poke(Pa(request.0 + 16), &live(0x1000).to_le_bytes());
        answer(engine, request, 0);
    }
}
