//! Updates that change existing data, against the fake guest.

use super::Updater;
use super::prepared_tests::{die_in_undo, interesting, rescue};
use super::tests::{LIVE, PATIENCE, Setup, bundle, bytes, guest, setup};
use crate::engine::mock::MockEngine;
use crate::engine::{Pa, ReadMemory, Va};
use crate::guest::fake::{self, OLD, SECOND_STACK, SLIDE, TEXT, VARIABLES, live, worker};
use crate::protocol::{BundleState, DataStrategy, MemoryKind};
use lpk_format::{
    Bundle, DataChange, DataPatch, OldCode, Place, Reloc, RelocKind, SectionKind, Step, StepKind, Symbol, Table,
    TableKind, UpdateType,
};

/// Offset in the image of the datum: a number of 4 bytes, 4 bytes in which nothing is, a pointer to the old function.
const DATUM: u64 = VARIABLES + 0xc00;

fn initial() -> [u8; 16] {
    let pointer = TEXT + OLD;
    let mut bytes = [0; 16];
    bytes[0] = 5;
    bytes[8..].copy_from_slice(&pointer.to_le_bytes());
    bytes
}

/// A guest that has run with the datum as it was linked.
pub(super) fn guest_with_datum() -> MockEngine {
    let mut engine = guest();
    let mut bytes = initial();
    bytes[8..].copy_from_slice(&(TEXT + OLD + SLIDE).to_le_bytes());
    engine.poke(Pa(fake::IMAGE + DATUM), &bytes);
    engine
}

pub(super) fn datum(engine: &MockEngine) -> [u8; 16] {
    let mut bytes = [0; 16];
    engine.peek(Pa(fake::IMAGE + DATUM), &mut bytes);
    bytes
}

/// The number becomes 9, what was free becomes 7, the pointer leads to the new function.
fn in_place() -> Bundle {
    let mut bundle = bundle();
    bundle.manifest.update_type = UpdateType::Type2;
    bundle.payload.data = [9_u32.to_le_bytes(), 7_u32.to_le_bytes()].concat();
    bundle.payload.data.extend([0; 8]);
    let reloc = Reloc { section: SectionKind::Data, offset: 8, kind: RelocKind::Abs64, symbol: 0, addend: 0 };
    bundle.payload.relocs.push(reloc);
    bundle.payload.changed = vec![DataPatch {
        name: "limits".into(),
        unit: "a.c".into(),
        old_address: TEXT + DATUM,
        old_size: 16,
        section: SectionKind::Data,
        new_offset: 0,
        new_size: 16,
        change: DataChange::InPlace {
            initial: initial().to_vec(),
            slides: vec![8],
            added: std::iter::once(4..8).collect(),
            edited: vec![0..4, 8..16],
            overwrite: false,
        },
    }];
    bundle
}

/// The number becomes a wide one, behind the table of the prepared bundle.
pub(super) fn moved() -> Bundle {
    let mut bundle = bundle();
    bundle.manifest.update_type = UpdateType::Type2;
    bundle.support = Some(worker::support());
    bundle.payload.data = vec![0; 24];
    bundle.payload.data[16] = 0xee;
    bundle.payload.tables = vec![Table { kind: TableKind::Exceptions, offset: 0, size: 12 }];
    let reloc = Reloc { section: SectionKind::Data, offset: 0, kind: RelocKind::Pc32, symbol: 0, addend: 3 };
    bundle.payload.relocs.push(reloc);
    let step = |from_size, to_size, how| Step { from: 0, from_size, to: 0, to_size, how };
    bundle.payload.changed = vec![DataPatch {
        name: "limit".into(),
        unit: "a.c".into(),
        old_address: TEXT + DATUM,
        old_size: 4,
        section: SectionKind::Data,
        new_offset: 16,
        new_size: 8,
        change: DataChange::Moved {
            to_new: vec![step(32, 64, StepKind::SignExtend)],
            to_old: vec![step(64, 32, StepKind::NarrowSigned)],
        },
    }];
    bundle
}

#[test]
fn a_datum_is_edited_in_place_and_given_back() {
    let mut setup = setup(guest_with_datum());
    let before = setup.updater.engine.memory();
    let old = datum(&setup.updater.engine);
    for round in 0..3 {
        let info = setup.updater.apply(&bytes(&in_place()), false).expect("applied");
        assert_eq!((info.data[0].strategy, info.data[0].new_address.as_ref()), (DataStrategy::InPlace, None));
        assert_eq!(info.data[0].old_range(), Some(live(DATUM)..live(DATUM) + 16));
        let now = datum(&setup.updater.engine);
        let target = u64::from_str_radix(&info.functions[0].new_address[2..], 16).expect("an address");
        assert_eq!((now[0], now[4], u64::from_le_bytes(now[8..].try_into().expect("8"))), (9, 7, target));
        // What was free is new code's own; it is given back whatever it holds.
        setup.updater.engine.poke(Pa(fake::IMAGE + DATUM + 4), &[1]);
        let info = setup.updater.undo("fix").expect("undone");
        assert_eq!(info.state, BundleState::Removed, "round {round}");
        assert_eq!(datum(&setup.updater.engine), old);
    }
    // An address of new code was stored in the kernel: the pages are kept, all else is as before.
    let after = setup.updater.engine.memory();
    assert!(
        before
            .iter()
            .filter(|(pa, _)| pa.0 >= fake::IMAGE + OLD && **pa != Pa(fake::IMAGE + 0x5000))
            .all(|(pa, page)| after[pa] == *page)
    );
}

#[test]
fn a_value_of_the_guests_own_is_not_overwritten() {
    let mut engine = guest_with_datum();
    engine.poke(Pa(fake::IMAGE + DATUM), &[6]);
    let mut setup = setup(engine);
    let before = setup.updater.engine.memory();
    let problem = setup.updater.apply(&bytes(&in_place()), false).expect_err("it was set").problem();
    assert_eq!((problem.status, problem.reason.as_str()), (3, "data-changed"), "{problem}");
    assert!(setup.updater.engine.memory() == before);
    let mut overwrite = in_place();
    if let DataChange::InPlace { overwrite, .. } = &mut overwrite.payload.changed[0].change {
        *overwrite = true;
    }
    setup.updater.apply(&bytes(&overwrite), false).expect("applied");
    setup.updater.engine.poke(Pa(fake::IMAGE + DATUM), &[8]);
    setup.updater.undo("fix").expect("undone");
    assert_eq!(datum(&setup.updater.engine)[0], 6, "the value before, whatever it became");

    // Set by the guest while the update is in effect: the operator is asked.
    let mut setup = self::setup(guest_with_datum());
    setup.updater.apply(&bytes(&in_place()), false).expect("applied");
    setup.updater.engine.poke(Pa(fake::IMAGE + DATUM), &[8]);
    let before = setup.updater.engine.memory();
    let problem = setup.updater.undo("fix").expect_err("it was set").problem();
    assert_eq!((problem.status, problem.reason.as_str()), (3, "data-changed"), "{problem}");
    assert!(setup.updater.engine.memory() == before && setup.updater.list()[0].state == BundleState::Applied);
    setup.updater.engine.poke(Pa(fake::IMAGE + DATUM), &[9]);
    setup.updater.undo("fix").expect("undone");
    assert_eq!(datum(&setup.updater.engine)[0], 5);
}

#[test]
fn a_datum_moves_with_its_value_and_back() {
    let mut setup = setup(guest_with_datum());
    let file = bytes(&moved());
    for value in [5_i32, -3, i32::MAX] {
        setup.updater.engine.poke(Pa(fake::IMAGE + DATUM), &value.to_le_bytes());
        let info = setup.updater.apply(&file, false).expect("applied");
        assert_eq!((info.memory, info.data[0].strategy), (MemoryKind::Module, DataStrategy::Moved));
        let address = info.data[0].new_address.as_ref().expect("it moved");
        let address = Va(u64::from_str_radix(&address[2..], 16).expect("an address"));
        let kernel = setup.updater.same_boot(&moved()).expect("located").0;
        let place = kernel.translate(&setup.updater.engine, address, "the new copy").expect("mapped");
        let mut new = [0; 8];
        setup.updater.engine.read(place, &mut new).expect("memory");
        assert_eq!(i64::from_le_bytes(new), i64::from(value));
        // Too large for the old version: it stays the new one until that changes.
        setup.updater.engine.poke(place, &(1_i64 << 40).to_le_bytes());
        let problem = setup.updater.undo("fix").expect_err("too large").problem();
        assert_eq!((problem.status, problem.reason.as_str()), (3, "data-transfer"), "{problem}");
        setup.updater.engine.poke(place, &(i64::from(value) - 1).to_le_bytes());
        setup.updater.undo("fix").expect("undone");
        assert_eq!(datum(&setup.updater.engine)[..4], (value - 1).to_le_bytes());
        assert!(setup.updater.engine.is_running());
    }
    let problem = setup.updater.apply(&bytes(&Bundle { support: None, ..moved() }), false).expect_err("no").problem();
    assert_eq!(problem.status, 3, "{problem}");
}

#[test]
fn nobody_may_be_inside_old_or_new_code() {
    let slot = Pa(fake::IMAGE + SECOND_STACK + 0x3f80);
    let mut with_cold = in_place();
    let cold = OldCode { address: TEXT + OLD + 0x100, size: 16, name: "old.cold".into(), unit: "a.c".into() };
    with_cold.manifest.left = vec![cold];
    for (inside, busy) in [(1, true), (16, true), (0, false), (17, false), (0x100, true), (0x110, true), (0x111, false)]
    {
        let mut engine = guest_with_datum();
        engine.poke(slot, &live(OLD + inside).to_le_bytes());
        let mut setup = setup(engine);
        let result = setup.updater.apply(&bytes(&with_cold), false);
        assert_eq!(result.is_err(), busy, "{inside:#x}: {result:?}");
        if let Err(error) = result {
            assert_eq!(error.problem().reason, "busy");
            continue;
        }
        let new = setup.updater.list()[0].functions[0].new_address.clone();
        let new = u64::from_str_radix(&new[2..], 16).expect("an address");
        setup.updater.engine.poke(slot, &(new + 7).to_le_bytes());
        assert_eq!(setup.updater.undo("fix").expect_err("inside").problem().reason, "busy");
        assert_eq!(datum(&setup.updater.engine)[0], 9, "the update is in effect as before");
        setup.updater.engine.poke(slot, &[0; 8]);
        setup.updater.undo("fix").expect("undone");
    }
}

#[test]
fn a_tool_that_dies_in_an_undo_gives_all_data_back_or_none() {
    for bundle in [in_place(), moved()] {
        let make = || {
            let mut setup = setup(guest_with_datum());
            setup.updater.apply(&bytes(&bundle), false).expect("applied");
            setup
        };
        let (old, made) = (datum(&guest_with_datum()), make());
        let (new, after) = (datum(&made.updater.engine), made.updater.engine.memory());
        die_in_undo(make, |mut updater, at| {
            updater.settle();
            let is_removed = updater.list()[0].state == BundleState::Removed;
            assert_eq!(datum(&updater.engine), if is_removed { old } else { new }, "{at}");
            if !is_removed {
                assert!(updater.engine.memory() == after, "{at}");
                updater.undo("fix").expect("undone");
            }
            assert_eq!(datum(&updater.engine), old, "{at}");
        });
    }
}

#[test]
fn two_bundles_do_not_change_one_datum() {
    let mut setup = setup(guest_with_datum());
    setup.updater.apply(&bytes(&moved()), false).expect("applied");
    let mut other = bundle();
    other.manifest.name = "other".into();
    other.functions[0].old_address += 32;
    other.manifest.functions[0].old_address = Some(TEXT + OLD + 32);
    setup.updater.engine.poke(Pa(fake::IMAGE + OLD + 32), &LIVE);
    let refused = |setup: &mut Setup, bundle: &Bundle| {
        let problem = setup.updater.apply(&bytes(bundle), false).expect_err("taken").problem();
        assert_eq!((problem.status, problem.reason.as_str()), (3, "data-taken"), "{problem}");
    };
    let mut uses = other.clone();
    let place = Place::Kernel(TEXT + DATUM);
    uses.payload.symbols.push(Symbol { name: "limit".into(), place, size: 4, function: false });
    refused(&mut setup, &uses);
    let changes = Bundle { functions: other.functions.clone(), manifest: other.manifest.clone(), ..in_place() };
    let manifest = lpk_format::Manifest { update_type: UpdateType::Type2, ..changes.manifest.clone() };
    refused(&mut setup, &Bundle { manifest, ..changes });
    setup.updater.apply(&bytes(&other), false).expect("it has nothing to do with the datum");
}

#[test]
fn a_failure_at_any_call_changes_nothing_or_everything() {
    for bundle in [in_place(), moved()] {
        let file = bytes(&bundle);
        let mut reference = setup(guest_with_datum());
        let old = datum(&reference.updater.engine);
        reference.updater.apply(&file, false).expect("applied");
        let new = datum(&reference.updater.engine);
        for n in interesting(&reference.updater.engine) {
            let mut setup = setup(guest_with_datum());
            setup.updater.engine.fail_at(n);
            let result = setup.updater.apply(&file, false);
            assert_eq!(datum(&setup.updater.engine), if result.is_ok() { new } else { old }, "apply, call {n}");
            assert!(setup.updater.engine.is_running(), "apply, call {n}");
            setup.updater.engine.fail_never();
            if result.is_err() {
                setup.updater.apply(&file, false).expect("the next attempt succeeds");
            }

            // A tool that dies there.
            let Setup { mut updater, journal, _folder } = self::setup(guest_with_datum());
            updater.engine.fail_from(n);
            let done = updater.apply(&file, false).is_ok();
            let mut engine = updater.into_engine();
            engine.fail_never();
            rescue(&mut engine, &journal);
            let updater = Updater::open(engine, journal, PATIENCE).expect("recovered");
            assert_eq!(datum(&updater.engine), if done { new } else { old }, "died, call {n}");
            let applied = updater.list().iter().any(|info| info.state == BundleState::Applied);
            assert_eq!(applied, done, "died, call {n}");
        }
        reference.updater.engine.clear_calls();
        reference.updater.undo("fix").expect("undone");
        for n in interesting(&reference.updater.engine) {
            let mut setup = setup(guest_with_datum());
            setup.updater.apply(&file, false).expect("applied");
            setup.updater.engine.fail_at(n);
            let result = setup.updater.undo("fix");
            assert_eq!(
                datum(&setup.updater.engine),
                if result.is_ok() { old } else { new },
                "undo, call {n}: {result:?}"
            );
            assert!(setup.updater.engine.is_running(), "undo, call {n}");
        }
    }
}
