//! Hooks, against the fake guest, which acts them out.

use super::data_tests::{datum, guest_with_datum, moved};
use super::tests::{Setup, bytes, setup};
use crate::engine::mock::MockEngine;
use crate::engine::{Call, CallError, Pa};
use crate::guest::fake::{self, SECOND_STACK, TEXT, VARIABLES, live, worker};
use crate::protocol::BundleState;
use lpk_format::{Bundle, Hook, HookKind, HookSubject, Place, SectionKind, Symbol};

/// Where the fake writes down which hooks ran, a byte each, and what each shall return.
const LOG: Pa = Pa(fake::IMAGE + VARIABLES + 0xd00);
const ANSWERS: Pa = Pa(fake::IMAGE + VARIABLES + 0xd80);
/// A hook that does not come back.
const ENDLESS: u8 = 99;

/// Where the image and the areas behind it are in physical memory.
fn physical(va: u64) -> Pa {
    Pa(va - live(0) + fake::IMAGE)
}

fn read<const N: usize>(engine: &MockEngine, at: Pa) -> [u8; N] {
    let mut bytes = [0; N];
    engine.peek(at, &mut bytes);
    bytes
}

fn u64_at(engine: &MockEngine, at: Pa) -> u64 {
    u64::from_le_bytes(read(engine, at))
}

/// Hook number n lies at 16 * (n + 1) in the area.
fn function(engine: &mut MockEngine, call: &Call) -> Result<u64, CallError> {
    let number = ((call.function.0 - live(worker::AREAS)) / 16 - 1) as usize;
    assert_eq!(read::<2>(engine, physical(call.back.0)), [0xeb, 0xfe], "what it returns to");
    assert_eq!(call.gs_base, live(fake::PERCPU));
    let count = read::<1>(engine, LOG)[0];
    engine.poke(Pa(LOG.0 + 1 + u64::from(count)), &[number as u8 + 1]);
    engine.poke(LOG, &[count + 1]);
    let told = physical(call.arguments[0]);
    let size = u32::from_le_bytes(read(engine, told));
    match HookKind::ALL[number] {
        HookKind::SyncToNew | HookKind::SyncToOld => {
            let (to, from) = (u64_at(engine, Pa(told.0 + 8)), u64_at(engine, Pa(told.0 + 16)));
            let length = u64_at(engine, Pa(told.0 + 32));
            assert_eq!((size, read::<4>(engine, Pa(told.0 + 4))), (40, 1_u32.to_le_bytes()));
            assert_eq!((to.min(from), length), (live(VARIABLES + 0xc00), if to > from { 4 } else { 8 }));
            // It counts on from what it finds.
            let value = i32::from_le_bytes(read(engine, physical(from))) + 100;
            engine.poke(physical(to), &value.to_le_bytes());
        }
        kind => {
            let undo = u32::from(matches!(kind, HookKind::UndoPre | HookKind::UndoPost));
            assert_eq!((size, u32::from_le_bytes(read(engine, Pa(told.0 + 4)))), (24, undo));
            assert_eq!(read::<4>(engine, physical(u64_at(engine, Pa(told.0 + 16)))), *b"fix\0");
        }
    }
    match read::<1>(engine, Pa(ANSWERS.0 + number as u64))[0] {
        ENDLESS => Err(CallError::Late { function: call.function.0, limit: call.limit, at: call.function.0 }),
        value => Ok(u64::from(u32::from(value)) | 0xdead << 32),
    }
}

/// The datum moves, and hooks of every kind but transitions look on or change it.
fn hooked() -> Bundle {
    let mut bundle = moved();
    bundle.payload.text.resize(16 * 9, 0xcc);
    let subject = |kind: HookKind| match kind {
        HookKind::SyncToNew | HookKind::SyncToOld => HookSubject::Datum {
            name: "limit".into(),
            old_address: TEXT + VARIABLES + 0xc00,
            old_size: 4,
            section: SectionKind::Data,
            new_offset: 16,
            new_size: 8,
        },
        _ => HookSubject::Update,
    };
    for (number, kind) in HookKind::ALL.into_iter().enumerate().filter(|(_, kind)| !kind.is_of_function()) {
        let offset = 16 * (number as u32 + 1);
        let place = Place::Payload { section: SectionKind::Text, offset };
        bundle.payload.symbols.push(Symbol { name: kind.name().into(), place, size: 1, function: true });
        bundle.payload.hooks.push(Hook { kind, subject: subject(kind), offset });
    }
    bundle
}

fn in_the_kernel() -> Setup {
    let mut engine = guest_with_datum();
    engine.set_registers(vec![fake::kernel(live(0x2200))]);
    engine.set_function(function);
    // The stack of the task that runs holds nothing but zeros.
    setup(engine)
}

/// Names of the hooks that have run since the last time.
fn ran(setup: &mut Setup) -> Vec<&'static str> {
    let log: [u8; 64] = read(&setup.updater.engine, LOG);
    setup.updater.engine.poke(LOG, &[0; 64]);
    log[1..=usize::from(log[0])].iter().map(|number| HookKind::ALL[usize::from(*number) - 1].name()).collect()
}

fn answer(setup: &mut Setup, kind: HookKind, value: u8) {
    let number = HookKind::ALL.iter().position(|known| *known == kind).expect("one of all");
    setup.updater.engine.poke(Pa(ANSWERS.0 + number as u64), &[value]);
}

#[test]
fn hooks_run_in_order_and_know_what_they_are_about() {
    let mut setup = in_the_kernel();
    for round in 0..3 {
        setup.updater.apply(&bytes(&hooked()), false).expect("applied");
        assert_eq!(ran(&mut setup), ["pre", "sync-to-new", "post"], "round {round}");
        setup.updater.undo("fix").expect("undone");
        assert_eq!(ran(&mut setup), ["undo-pre", "sync-to-old", "undo-post"], "round {round}");
        // Behind the steps: each hook has added 100.
        assert_eq!(datum(&setup.updater.engine)[..4], (5 + 200 * (round + 1_i32)).to_le_bytes());
    }
}

#[test]
fn a_hook_may_forbid_and_one_that_hangs_undoes_everything() {
    let kinds = [(HookKind::Pre, 7, "hook-veto"), (HookKind::Pre, ENDLESS, "hook-failed")];
    let late = [HookKind::SyncToNew, HookKind::Post].map(|kind| (kind, ENDLESS, "hook-failed"));
    for (kind, value, reason) in kinds.into_iter().chain(late) {
        let mut setup = in_the_kernel();
        let before = setup.updater.engine.memory();
        answer(&mut setup, kind, value);
        let problem = setup.updater.apply(&bytes(&hooked()), false).expect_err(reason).problem();
        assert_eq!((problem.status, problem.reason.as_str()), (3, reason), "{problem}");
        ran(&mut setup);
        answer(&mut setup, kind, 0);
        assert!(setup.updater.engine.memory() == before, "{} {reason}", kind.name());
        assert!(setup.updater.engine.is_running() && setup.updater.list().is_empty());
        setup.updater.apply(&bytes(&hooked()), false).expect("applied now");
    }
    let late = [HookKind::SyncToOld, HookKind::UndoPost].map(|kind| (kind, ENDLESS, "hook-failed"));
    for (kind, value, reason) in [(HookKind::UndoPre, 7, "hook-veto")].into_iter().chain(late) {
        let mut setup = in_the_kernel();
        setup.updater.apply(&bytes(&hooked()), false).expect("applied");
        let before = datum(&setup.updater.engine);
        answer(&mut setup, kind, value);
        let problem = setup.updater.undo("fix").expect_err(reason).problem();
        assert_eq!((problem.status, problem.reason.as_str()), (3, reason), "{problem}");
        assert_eq!((setup.updater.list()[0].state, datum(&setup.updater.engine)), (BundleState::Applied, before));
        answer(&mut setup, kind, 0);
        setup.updater.undo("fix").expect("undone now");
    }
}

#[test]
fn without_a_processor_in_the_kernel_there_is_no_moment() {
    let mut setup = in_the_kernel();
    let before = setup.updater.engine.memory();
    setup.updater.engine.set_registers(vec![fake::user()]);
    let problem = setup.updater.apply(&bytes(&hooked()), false).expect_err("busy").problem();
    assert_eq!((problem.status, problem.reason.as_str()), (3, "busy"), "{problem}");
    assert!(setup.updater.engine.memory() == before);
    let problem = setup.updater.apply(&bytes(&hooked()), true).expect_err("no area").problem();
    assert_eq!((problem.status, problem.reason.as_str()), (3, "needs-preparation"), "{problem}");
    // Nobody may be inside, as ever.
    setup.updater.engine.set_registers(vec![fake::kernel(live(0x2200))]);
    setup.updater.engine.poke(Pa(fake::IMAGE + SECOND_STACK + 0x3f80), &live(fake::OLD + 7).to_le_bytes());
    assert_eq!(setup.updater.apply(&bytes(&hooked()), false).expect_err("inside").problem().reason, "busy");
    assert!(ran(&mut setup).is_empty(), "no hook without need");
}
