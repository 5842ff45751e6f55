//! Updates that add to objects on the heap, against the fake guest.

use super::tests::{LIVE, Setup, bundle, bytes, setup};
use super::{UpdateError, Updater};
use crate::engine::{Pa, ReadMemory as _};
use crate::guest::fake::{self, OLD, SECOND_STACK, TEXT, live};
use crate::guest::slab::tests::{CACHE, COUNT, Guest, SLABS, VARIABLE, guest_with};
use crate::protocol::{BundleState, ObjectsCount};
use lpk_format::{AddedBytes, Bundle, ObjectPatch, UpdateType};

/// Four bytes in a hole, and two in the room behind an object of 190 bytes.
fn adding(guest: &Guest) -> Bundle {
    let mut bundle = bundle();
    bundle.manifest.update_type = UpdateType::Type2;
    bundle.profile = guest.profile.clone();
    bundle.payload.objects = vec![ObjectPatch {
        type_name: "struct thing".into(),
        cache: "things_cachep".into(),
        cache_address: TEXT + VARIABLE,
        old_size: 190,
        new_size: 192,
        added: vec![
            AddedBytes { offset: 20, bytes: vec![1, 2, 3, 4] },
            AddedBytes { offset: 190, bytes: vec![5, 0xcc] },
        ],
    }];
    bundle
}

fn guest() -> Guest {
    guest_with(fake::image(&LIVE), true)
}

/// The service, and a bundle for its guest.
fn service(guest: Guest) -> (Setup, Bundle) {
    let bundle = adding(&guest);
    (setup(guest.engine), bundle)
}

/// What is new in an object.
fn new_of(setup: &Setup, frame: u64, index: u64) -> [u8; 6] {
    let mut bytes = [0; 6];
    let (first, second) = bytes.split_at_mut(4);
    setup.updater.engine.peek(Pa(Guest::place(frame, index) + 20), first);
    setup.updater.engine.peek(Pa(Guest::place(frame, index) + 190), second);
    bytes
}

const OLD_BYTES: [u8; 6] = [0xcc; 6];
const NEW_BYTES: [u8; 6] = [1, 2, 3, 4, 5, 0xcc];

fn refused(guest: Guest, change: impl FnOnce(&mut Bundle)) -> String {
    let (mut setup, mut bundle) = service(guest);
    change(&mut bundle);
    let before = setup.updater.engine.memory();
    let error = setup.updater.apply(&bytes(&bundle), false).expect_err("refused");
    assert!(setup.updater.engine.memory() == before && setup.updater.engine.is_running());
    assert_eq!(error.problem().reason, "objects", "{error}");
    error.to_string()
}

#[test]
fn live_objects_get_what_is_new() {
    let (mut setup, bundle) = service(guest());
    for round in 0..2 {
        let info = setup.updater.apply(&bytes(&bundle), false).expect("applied");
        let objects = &info.objects[0];
        assert_eq!(objects.count, Some(ObjectsCount { live: 75, free: 0, of: 84, slabs: 4 }), "round {round}");
        assert_eq!((objects.cache.as_deref(), objects.added.as_slice()), (Some("things"), &[[20, 4], [190, 2]][..]));
        assert_eq!(objects.cache_address, Some(format!("{:#x}", live(CACHE))));
        for (frame, index, expected) in [
            (SLABS[0], 0, NEW_BYTES),
            (SLABS[0], COUNT - 1, NEW_BYTES),
            (SLABS[1], 0, NEW_BYTES),
            (SLABS[1], 3, OLD_BYTES),
            (SLABS[2], 5, OLD_BYTES),
            (SLABS[2], 7, OLD_BYTES),
            (SLABS[2], 8, NEW_BYTES),
            (SLABS[3], 2, OLD_BYTES),
            (SLABS[4], 9, OLD_BYTES),
        ] {
            assert_eq!(new_of(&setup, frame, index), expected, "object {index} of {frame:#x}");
        }
        // The rest keeps what it holds.
        let mut byte = [0];
        setup.updater.engine.peek(Pa(Guest::place(SLABS[0], 0) + 24), &mut byte);
        assert_eq!(byte, [0xcc]);
        let info = setup.updater.undo("fix").expect("undone");
        assert_eq!(info.state, BundleState::Removed);
        // Nobody reads it; applied again, what has been made since gets it, too.
        assert_eq!(new_of(&setup, SLABS[0], 0), NEW_BYTES);
        setup.updater.engine.poke(Pa(Guest::place(SLABS[0], 0) + 20), &[0xcc; 4]);
    }
}

#[test]
fn free_objects_that_keep_what_they_hold_get_it_as_well() {
    let (constructor, typesafe) = ((72, live(OLD)), (8, 0x8_0000));
    for ((at, value), is_making) in [(constructor, true), (constructor, false), (typesafe, true), (typesafe, false)] {
        let mut guest = guest();
        guest.set(CACHE + at, value);
        if !is_making {
            guest.without_loose_slab();
        }
        let (mut setup, bundle) = service(guest);
        let outcome = setup.updater.apply(&bytes(&bundle), false);
        if at == constructor.0 && is_making {
            // Its constructor may run at this moment.
            assert!(matches!(outcome, Err(UpdateError::Busy { .. })), "{outcome:?}");
            continue;
        }
        let free = 9 + if is_making { COUNT } else { 0 };
        assert_eq!(outcome.expect("applied").objects[0].count, Some(ObjectsCount { live: 75, free, of: 84, slabs: 4 }));
        assert_eq!(new_of(&setup, SLABS[1], 3), NEW_BYTES);
        assert_eq!(new_of(&setup, SLABS[4], 9), if is_making { NEW_BYTES } else { OLD_BYTES });
    }
}

#[test]
fn a_failure_leaves_objects_as_they_were() {
    let (mut setup, bundle) = service(guest());
    let before = setup.updater.engine.memory();
    setup.updater.engine.clear_calls();
    setup.updater.apply(&bytes(&bundle), false).expect("applied");
    let calls = setup.updater.engine.calls().len();
    let mut failed = 0;
    // Each call of the action in its turn; the last ones are those of the switch.
    for at in (1..=calls).rev().take(400).chain((1..calls).step_by(97)) {
        let (mut setup, bundle) = service(guest());
        let start = setup.updater.engine.calls().len();
        setup.updater.engine.fail_at(start + at);
        if setup.updater.apply(&bytes(&bundle), false).is_err() {
            failed += 1;
            assert!(setup.updater.engine.memory() == before, "failing at {at} of {calls}");
        }
        assert!(setup.updater.engine.is_running());
    }
    assert!(failed > 100, "{failed} failures of {calls} calls");
}

#[test]
fn nobody_may_be_inside() {
    let mut guest = guest();
    guest.engine.poke(Pa(fake::IMAGE + SECOND_STACK + 0x3f20), &live(OLD + 9).to_le_bytes());
    let (mut setup, bundle) = service(guest);
    let before = setup.updater.engine.memory();
    match setup.updater.apply(&bytes(&bundle), false) {
        Err(UpdateError::Busy { who, attempts: 2 }) => assert!(who.contains("task 42"), "{who}"),
        other => panic!("{other:?}"),
    }
    assert!(setup.updater.engine.memory() == before);
}

#[test]
fn objects_that_cannot_all_be_found_are_waited_for() {
    let mut guest = guest();
    // The slab that nobody has anything of is counted, and one more.
    guest.set(0x8b20, 6);
    let (mut setup, bundle) = service(guest);
    match setup.updater.apply(&bytes(&bundle), false) {
        Err(UpdateError::Busy { who, attempts: 2 }) => assert!(who.contains("the guest counts 6 slabs"), "{who}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn caches_that_are_not_as_expected_are_refused() {
    let cache = |at: u64, value: u64| {
        let mut guest = guest();
        guest.set(CACHE + at, value);
        guest
    };
    assert!(
        refused(guest(), |b| b.payload.objects[0].old_size = 188).contains("has objects of 190 bytes; expected 188")
    );
    assert!(refused(guest(), |b| b.payload.objects[0].new_size = 200).contains("lie 192 bytes apart, and need 200"));
    assert!(refused(cache(64, 2), |_| {}).contains("has merged it with others to one (`things`, 2 users)"));
    assert!(refused(cache(8, 0x800), |_| {}).contains("(poison)"));
    let under_the_pointer = |b: &mut Bundle| b.payload.objects[0].added[0].offset = 102;
    assert!(refused(guest(), under_the_pointer).contains("bytes 102 to 105 are added"));
    let mut none = guest();
    none.set(VARIABLE, 0);
    assert!(refused(none, |_| {}).contains("has not made it"));
    let mut other = guest();
    other.profile.offsets.remove("kmem_cache.cpu_slab");
    assert!(refused(other, |_| {}).contains("is not SLUB"));
}

#[test]
fn two_bundles_do_not_add_in_the_same_place() {
    let (mut setup, bundle) = service(guest());
    let mut other = bundle.clone();
    other.manifest.name = "other".into();
    other.functions.clear();
    other.manifest.functions.clear();
    other.payload.text.clear();
    other.payload.rodata.clear();
    other.payload.symbols.clear();
    other.payload.relocs.clear();
    let apply = |updater: &mut Updater<_>, bundle: &Bundle| updater.apply(&bytes(bundle), false);
    apply(&mut setup.updater, &bundle).expect("applied");
    other.payload.objects[0].added = vec![AddedBytes { offset: 23, bytes: vec![9; 2] }];
    match apply(&mut setup.updater, &other) {
        Err(error @ UpdateError::ObjectsTaken { .. }) => assert_eq!(error.problem().reason, "data-taken"),
        other => panic!("{other:?}"),
    }
    other.payload.objects[0].added[0].offset = 24;
    let info = apply(&mut setup.updater, &other).expect("beside it");
    assert_eq!(info.objects[0].count.map(|count| count.live), Some(75));
    let mut both = [0; 6];
    setup.updater.engine.read(Pa(Guest::place(SLABS[0], 1) + 20), &mut both).expect("memory");
    assert_eq!(both, [1, 2, 3, 4, 9, 9]);
}
