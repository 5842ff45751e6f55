//! Kernel threads that go on in the other version, against the fake guest.

use super::area::REPORT_ROOM;
use super::open::{Inside, Open, OpenPart, Way, code};
use super::prepared_tests::{Watched, die_in_undo, interesting, rescue};
use super::tests::{LIVE, PATIENCE, Setup, bundle, bytes, setup};
use super::{Updater, Wishes, admit};
use crate::engine::mock::{Call, MockEngine};
use crate::engine::{Pa, Pause as _, Va};
use crate::guest::fake::{self, IMAGE, Image, OLD, SECOND_STACK, SECOND_TASK, TEXT, live, worker};
use crate::guest::frames::tests as walked;
use crate::journal::Journal;
use crate::protocol::{BundleInfo, BundleState};
use lpk_format::{Bundle, Hook, HookKind, HookSubject, Place, ReturnPair, SectionKind, Symbol, UpdateType};

/// Return points: of the old function, and of the new one.
const PAIR: ReturnPair = ReturnPair { old: 7, new: 9 };
/// What the function has called, and what has called it.
const CALLED: u64 = 0x1020;
const CALLER: u64 = 0x1110;
/// Where the function's own frame has its address, and its caller's.
const SLOT: u64 = SECOND_STACK + 0x3f18;
const RETURN: u64 = SECOND_STACK + 0x3f20;
const KERNEL_THREAD: u32 = 0x0020_0000;
/// First instruction of the new function in the area.
const NEW: u64 = worker::AREAS;

/// An update of type 2, whose function has one pair.
fn paired() -> Bundle {
    let mut bundle = bundle();
    bundle.manifest.update_type = UpdateType::Type2;
    bundle.profile = walked::profile();
    bundle.support = Some(worker::support());
    bundle.functions[0].returns = vec![PAIR];
    bundle
}

/// A guest whose second task is a thread of the kernel's own, and sleeps in what was called at an offset of the old function.
fn guest(offset: u64) -> MockEngine {
    guest_of(walked::image(), offset)
}

fn guest_of(mut image: Image, offset: u64) -> MockEngine {
    image.put(OLD, &LIVE);
    image.word(SECOND_STACK + 0x3f10, live(CALLED));
    image.word(SECOND_STACK + 0x3f30, 0);
    image.word(RETURN, live(CALLER));
    image.word(SECOND_STACK + 0x3f38, live(0x10));
    let mut engine = fake::engine(&image);
    sleep(&mut engine, live(OLD + offset));
    flags(&mut engine, KERNEL_THREAD);
    engine
}

/// The second task sleeps in what returns to an address.
fn sleep(engine: &mut MockEngine, at: u64) {
    put(engine, SLOT, at);
}

fn flags(engine: &mut MockEngine, flags: u32) {
    engine.poke(Pa(IMAGE + SECOND_TASK + 60), &(flags | 0x40).to_le_bytes());
}

fn put(engine: &mut MockEngine, at: u64, word: u64) {
    engine.poke(Pa(IMAGE + at), &word.to_le_bytes());
}

fn word(engine: &MockEngine, at: u64) -> u64 {
    let mut bytes = [0; 8];
    engine.peek(Pa(IMAGE + at), &mut bytes);
    u64::from_le_bytes(bytes)
}

fn moved(info: &BundleInfo) -> Vec<(u32, &str)> {
    info.moved.iter().map(|thread| (thread.pid, thread.function.as_str())).collect()
}

#[test]
fn a_kernel_thread_goes_on_in_the_new_code_and_back() {
    for in_arena in [false, true] {
        let mut setup = setup(guest(7));
        let before = setup.updater.engine.memory();
        for round in 0..3 {
            let info = setup.updater.apply(&bytes(&paired()), in_arena).expect("nobody stays inside");
            assert_eq!((info.state, moved(&info)), (BundleState::Applied, vec![(42, "old")]), "round {round}");
            let new = format!("{:#x}", word(&setup.updater.engine, SLOT) - 9);
            assert_eq!(info.functions[0].new_address, new);
            assert_eq!(word(&setup.updater.engine, RETURN), live(CALLER));
            // It is known to a later service.
            let Setup { updater, journal, _folder } = setup;
            let updater = Updater::open(updater.into_engine(), journal.clone(), PATIENCE).expect("a journal");
            setup = Setup { updater, journal, _folder };
            let info = setup.updater.undo("fix").expect("nobody stays inside");
            assert_eq!((info.state, moved(&info)), (BundleState::Removed, vec![(42, "old")]), "round {round}");
            assert_eq!((info.kept_pages, info.reason), (0, None));
            assert!(setup.updater.engine.memory() == before, "memory differs after undo, in the arena: {in_arena}");
        }
    }
}

#[test]
fn who_stays_inside_is_waited_for() {
    let refused = |engine: MockEngine, bundle: &Bundle, wishes: Wishes| {
        let mut setup = setup(engine);
        let before = setup.updater.engine.memory();
        let problem = setup.updater.apply(&bytes(bundle), wishes).expect_err("inside").problem();
        assert_eq!(problem.reason, "busy", "{problem}");
        assert!(problem.message.contains("task 42"), "{problem}");
        assert!(setup.updater.engine.memory() == before);
    };
    let stay = Wishes { stay: true, ..Wishes::default() };
    refused(guest(7), &paired(), stay);
    // No pair, or another one.
    refused(guest(8), &paired(), Wishes::default());
    let none = |bundle: &mut Bundle| bundle.functions[0].returns.clear();
    let mut without = paired();
    none(&mut without);
    refused(guest(7), &without, Wishes::default());
    // A program's thread, and one of which it is not known.
    let mut user = guest(7);
    flags(&mut user, 0);
    refused(user, &paired(), Wishes::default());
    let mut unknown = paired();
    unknown.profile.offsets.remove("task_struct.flags");
    refused(guest(7), &unknown, Wishes::default());
    // A tracer has the return address.
    let mut traced = guest(7);
    put(&mut traced, SLOT, live(walked::HOOK));
    put(&mut traced, walked::RECORDS, live(OLD + 7));
    put(&mut traced, walked::RECORDS + 16, live(SLOT));
    put(&mut traced, SECOND_TASK + 88, live(walked::RECORDS));
    traced.poke(Pa(IMAGE + SECOND_TASK + 96), &0_u32.to_le_bytes());
    refused(traced, &paired(), Wishes::default());
    // It is to run the author's hook when it leaves.
    refused(guest(7), &with_hook(HookKind::Transition), Wishes::default());
    // A hook about undo is no matter now.
    let mut setup = setup(guest(7));
    let info = setup.updater.apply(&bytes(&with_hook(HookKind::UndoTransition)), false).expect("nobody stays inside");
    assert_eq!(moved(&info).len(), 1);
    assert_eq!(setup.updater.undo("fix").expect_err("it stays inside").problem().reason, "busy");
    assert_eq!(word(&setup.updater.engine, SLOT), live(NEW + 9));
}

fn with_hook(kind: HookKind) -> Bundle {
    let mut bundle = paired();
    bundle.payload.text.resize(32, 0xcc);
    let place = Place::Payload { section: SectionKind::Text, offset: 16 };
    bundle.payload.symbols.push(Symbol { name: "hook".into(), place, size: 1, function: true });
    let subject = HookSubject::Function { name: "old".into(), old_address: TEXT + OLD };
    bundle.payload.hooks.push(Hook { kind, subject, offset: 16 });
    bundle
}

#[test]
fn threads_that_were_to_stay_are_not_moved_by_undo() {
    for stay in [false, true] {
        let mut setup = setup(guest(0x20));
        let info = setup.updater.apply(&bytes(&paired()), Wishes { stay, in_arena: false }).expect("applied");
        assert_eq!((info.stay, moved(&info)), (stay, vec![]));
        sleep(&mut setup.updater.engine, live(NEW + 9));
        let undone = setup.updater.undo("fix");
        assert_eq!(undone.is_err(), stay);
        let at = if stay { live(NEW + 9) } else { live(OLD + 7) };
        assert_eq!(word(&setup.updater.engine, SLOT), at);
    }
}

#[test]
fn a_failure_at_any_call_moves_nobody_or_everybody() {
    let file = bytes(&paired());
    let mut reference = setup(guest(7));
    reference.updater.apply(&file, false).expect("applied");
    let applied = interesting(&reference.updater.engine);
    reference.updater.engine.clear_calls();
    reference.updater.undo("fix").expect("undone");
    let undone = interesting(&reference.updater.engine);
    let at = |engine: &MockEngine| (word(engine, SLOT), word(engine, RETURN) == live(CALLER));
    let (old, new) = ((live(OLD + 7), true), (live(NEW + 9), true));
    for n in applied {
        let mut one = setup(guest(7));
        one.updater.engine.fail_at(n);
        let result = one.updater.apply(&file, false);
        assert_eq!(at(&one.updater.engine), if result.is_ok() { new } else { old }, "apply, call {n}");
        assert!(one.updater.engine.is_running(), "apply, call {n}");

        // A tool that dies there.
        let Setup { mut updater, journal, _folder } = setup(guest(7));
        updater.engine.fail_from(n);
        let done = updater.apply(&file, false).is_ok();
        let mut engine = updater.into_engine();
        engine.fail_never();
        rescue(&mut engine, &journal);
        let updater = Updater::open(engine, journal, PATIENCE).expect("recovered");
        assert_eq!(at(&updater.engine), if done { new } else { old }, "died, call {n}");
    }
    for n in undone {
        let mut one = setup(guest(7));
        one.updater.apply(&file, false).expect("applied");
        one.updater.engine.fail_at(n);
        let result = one.updater.undo("fix");
        assert_eq!(at(&one.updater.engine), if result.is_ok() { old } else { new }, "undo, call {n}: {result:?}");
        assert!(one.updater.engine.is_running(), "undo, call {n}");
    }
}

/// A tool that took everything back and died before it could say so: the guest has gone on, and what lies on its stacks is its own.
#[test]
fn a_stack_that_has_changed_since_is_left_alone() {
    let file = bytes(&paired());
    let mut reference = setup(guest(7));
    reference.updater.apply(&file, false).expect("applied");
    let mut tried = 0;
    for n in interesting(&reference.updater.engine) {
        let Setup { mut updater, journal, _folder } = setup(guest(7));
        updater.engine.fail_from(n);
        let done = updater.apply(&file, false).is_ok();
        let mut engine = updater.into_engine();
        engine.fail_never();
        let half_done = journal.half_done().expect("readable").filter(|_| !done && !engine.is_running());
        let Some(action) = half_done.filter(|action| action.moving.contains(&(IMAGE + SLOT))) else { continue };
        for write in action.writes.iter().rev() {
            engine.poke(Pa(write.pa), &write.old);
        }
        engine.resume().expect("the hypervisor is back");
        put(&mut engine, SLOT, 0x1234);
        let updater = Updater::open(engine, journal, PATIENCE).expect("recovered");
        assert_eq!(word(&updater.engine, SLOT), 0x1234, "call {n}");
        tried += 1;
    }
    assert!(tried > 0, "the journal never says that something may have been written");
}

/// An update that the second task is inside of: its return address is replaced.
fn opened(offset: u64, stay: bool) -> Setup {
    let mut setup = setup(guest(0x20));
    let id = setup.updater.apply(&bytes(&paired()), Wishes { stay, in_arena: false }).expect("applied").id;
    let updater = &mut setup.updater;
    let kernel = updater.same_boot(&paired()).expect("located").0;
    let area = updater.area_of(&id).expect("an area");
    let addresses = area.parts.addresses(area.base);
    let trampoline = addresses.rodata - REPORT_ROOM;
    let bundle = paired();
    let way = Way { bundle: &bundle, kernel: &kernel, text: addresses.text, undo: false, stay };
    let code = code(0, &admit::old_code(&bundle), &way);
    let (data, hooks, direct_map) = (Vec::new(), None, 0);
    let part = OpenPart { id: id.clone(), kernel, data, hooks, code, trampoline: Va(trampoline), direct_map };
    let thread = Inside {
        task: live(SECOND_TASK),
        pid: 42,
        comm: "t".into(),
        part: 0,
        function: "old".into(),
        old_address: TEXT + OLD,
        at: live(OLD + offset),
        slot: live(RETURN),
        slot_pa: IMAGE + RETURN,
        original: live(CALLER),
        may_move: !stay,
        why: None,
    };
    let open = Open::new(&id, false, vec![part], vec![thread]);
    updater.document.opens.push(open.record());
    updater.document.bundles[0].info.state = BundleState::Open;
    updater.journal.finish(&updater.document).expect("written");
    updater.opens.lock().push(open);
    sleep(&mut updater.engine, live(OLD + offset));
    put(&mut updater.engine, RETURN, trampoline);
    setup
}

#[test]
fn a_thread_that_is_inside_is_moved_when_it_waits_at_a_counterpart() {
    let mut setup = opened(8, false);
    let trampoline = word(&setup.updater.engine, RETURN);
    let before = setup.updater.engine.memory();
    setup.updater.close_open(true);
    let info = setup.updater.show("fix").expect("known");
    assert_eq!((info.state, info.inside.len(), moved(&info)), (BundleState::Open, 1, vec![]));
    let why = info.inside[0].why.as_deref().expect("a reason");
    assert_eq!(why, "it waits at +0x8, which has no counterpart in the new code");
    assert!(setup.updater.engine.memory() == before);
    // Somebody else has replaced the address by which it comes back.
    sleep(&mut setup.updater.engine, trampoline);
    setup.updater.close_open(true);
    assert_eq!(word(&setup.updater.engine, RETURN), trampoline);

    sleep(&mut setup.updater.engine, live(OLD + 7));
    setup.updater.close_open(true);
    let info = setup.updater.show("fix").expect("known");
    assert_eq!((info.state, info.inside.len(), moved(&info)), (BundleState::Applied, 0, vec![(42, "old")]));
    let open = info.open.expect("it was open");
    assert_eq!((open.frames, open.left, open.lost), (1, 1, 0));
    assert_eq!(word(&setup.updater.engine, SLOT), live(NEW + 9));
    assert_eq!(word(&setup.updater.engine, RETURN), live(CALLER));
    assert_eq!(setup.journal.load().expect("written"), setup.updater.document);
    assert!(setup.updater.document.opens.is_empty());
    let info = setup.updater.undo("fix").expect("nobody stays inside");
    assert_eq!((info.kept_pages, moved(&info)), (0, vec![(42, "old")]));
    assert_eq!(word(&setup.updater.engine, SLOT), live(OLD + 7));
}

#[test]
fn a_thread_that_is_to_stay_is_not_looked_at_again() {
    let mut setup = opened(7, true);
    let before = setup.updater.engine.memory();
    setup.updater.close_open(true);
    assert_eq!(setup.updater.show("fix").expect("known").inside.len(), 1);
    assert!(setup.updater.engine.memory() == before);
}

#[test]
fn a_failure_at_any_call_of_a_later_look_moves_it_whole_or_not() {
    let mut reference = opened(7, false);
    let trampoline = word(&reference.updater.engine, RETURN);
    reference.updater.engine.clear_calls();
    reference.updater.close_open(true);
    let (old, new) = ((live(OLD + 7), trampoline), (live(NEW + 9), live(CALLER)));
    let at = |engine: &MockEngine| (word(engine, SLOT), word(engine, RETURN));
    assert_eq!(at(&reference.updater.engine), new);
    for n in interesting(&reference.updater.engine) {
        let mut setup = opened(7, false);
        setup.updater.engine.fail_at(n);
        setup.updater.close_open(true);
        let now = at(&setup.updater.engine);
        assert!(now == old || now == new, "call {n}: {now:x?}");
        assert!(setup.updater.engine.is_running(), "call {n}");
        setup.updater.engine.fail_never();
        setup.updater.settle();
        setup.updater.close_open(true);
        setup.updater.close_open(true);
        assert_eq!(at(&setup.updater.engine), new, "call {n}");
        let info = setup.updater.show("fix").expect("known");
        assert_eq!((info.state, moved(&info)), (BundleState::Applied, vec![(42, "old")]), "call {n}");

        // A tool that dies there.
        let Setup { mut updater, journal, _folder } = opened(7, false);
        updater.engine.fail_from(n);
        updater.close_open(true);
        let mut engine = updater.into_engine();
        engine.fail_never();
        rescue(&mut engine, &journal);
        let now = at(&engine);
        let updater = Updater::open(engine, journal, PATIENCE).expect("recovered");
        assert_eq!(at(&updater.engine), now, "died, call {n}");
        let inside = updater.document.opens.iter().map(|open| open.threads.len()).sum::<usize>();
        assert!(now == if inside == 1 { old } else { new }, "died, call {n}: {now:x?}");
    }
}

fn watching(offset: u64) -> MockEngine {
    let mut engine = guest(offset);
    engine.set_watching();
    engine
}

#[test]
fn an_update_opens_and_ends_when_the_last_thread_was_moved() {
    let mut setup = setup(watching(8));
    let info = setup.updater.apply(&bytes(&paired()), false).expect("open");
    assert_eq!((info.state, info.inside.len(), moved(&info)), (BundleState::Open, 1, vec![]));
    assert!(info.inside[0].why.as_deref().is_some_and(|why| why.starts_with("it waits at +0x8")));
    let trampoline = word(&setup.updater.engine, RETURN);
    assert_ne!(trampoline, live(CALLER));
    setup.updater.close_open(true);
    assert_eq!(word(&setup.updater.engine, RETURN), trampoline);
    sleep(&mut setup.updater.engine, live(OLD + 7));
    setup.updater.close_open(false);
    assert_eq!(word(&setup.updater.engine, RETURN), trampoline, "it is not looked so often");
    setup.updater.close_open(true);
    assert_eq!((word(&setup.updater.engine, SLOT), word(&setup.updater.engine, RETURN)), (live(NEW + 9), live(CALLER)));
    let info = setup.updater.show("fix").expect("known");
    assert_eq!((info.state, moved(&info)), (BundleState::Applied, vec![(42, "old")]));
    let info = setup.updater.undo("fix").expect("nobody stays inside");
    assert_eq!((info.state, moved(&info)), (BundleState::Removed, vec![(42, "old")]));
    // One that is to stay keeps it open, and is never moved.
    let info = setup.updater.apply(&bytes(&paired()), Wishes { stay: true, in_arena: false }).expect("open");
    assert_eq!((info.state, info.stay), (BundleState::Open, true));
    setup.updater.close_open(true);
    assert_eq!(word(&setup.updater.engine, SLOT), live(OLD + 7));
    let info = setup.updater.undo("fix").expect("it is in old code");
    assert_eq!((info.state, moved(&info)), (BundleState::Removed, vec![]));
    assert_eq!(word(&setup.updater.engine, RETURN), live(CALLER));
}

#[test]
fn a_service_that_takes_an_update_over_moves_threads_as_well() {
    for stay in [false, true] {
        let mut first = setup(watching(8));
        first.updater.apply(&bytes(&paired()), Wishes { stay, in_arena: false }).expect("open");
        first.updater.leave_open().expect("nobody is leaving");
        let Setup { updater, journal, _folder } = first;
        let mut engine = updater.into_engine();
        assert_eq!(word(&engine, RETURN), live(CALLER), "it returns as ever");
        sleep(&mut engine, live(OLD + 7));
        let mut updater = Updater::open(engine, journal, PATIENCE).expect("a journal");
        updater.close_open(true);
        updater.close_open(true);
        let info = updater.show("fix").expect("known");
        let at = if stay { live(OLD + 7) } else { live(NEW + 9) };
        assert_eq!(word(&updater.engine, SLOT), at);
        assert_eq!(word(&updater.engine, RETURN) == live(CALLER), !stay);
        let expected = if stay { (BundleState::Open, vec![]) } else { (BundleState::Applied, vec![(42, "old")]) };
        assert_eq!((info.state, moved(&info)), expected);
        let info = updater.undo("fix").expect("nobody stays in new code");
        assert_eq!((info.state, word(&updater.engine, SLOT)), (BundleState::Removed, live(OLD + 7)));
        assert_eq!(word(&updater.engine, RETURN), live(CALLER));
    }
}

/// A guest that has tables of the new code; its second task sleeps at an offset of the old function.
fn with_tables(offset: u64) -> MockEngine {
    let mut image = walked::image();
    walked::add_module_at(&mut image, live(NEW));
    let mut engine = guest_of(image, offset);
    engine.set_watching();
    engine
}

/// An update that is applied, with the second task inside of the new code, at an offset.
fn inside_new(offset: u64) -> Setup {
    let mut setup = setup(with_tables(0x20));
    setup.updater.apply(&bytes(&paired()), false).expect("applied");
    sleep(&mut setup.updater.engine, live(NEW + offset));
    setup
}

#[test]
fn a_service_that_takes_an_undo_over_moves_threads_as_well() {
    for died in [false, true] {
        let mut first = inside_new(8);
        first.updater.undo("fix").expect("it will be over");
        if died {
            // Its watchdog does this.
            put(&mut first.updater.engine, RETURN, live(CALLER));
        } else {
            first.updater.leave_open().expect("nobody is leaving");
        }
        let Setup { updater, journal, _folder } = first;
        let mut updater = Updater::open(updater.into_engine(), journal, PATIENCE).expect("a journal");
        assert_eq!(word(&updater.engine, RETURN), live(CALLER), "it returns as ever");
        // Nobody attends to it yet, and its memory is in use.
        updater.close_open(false);
        assert_eq!(updater.show("fix").expect("known").state, BundleState::Undoing);
        updater.close_open(true);
        let info = updater.show("fix").expect("known");
        assert_eq!((info.state, info.inside.len(), moved(&info)), (BundleState::Undoing, 1, vec![]));
        let why = info.inside[0].why.as_deref().expect("a reason");
        assert_eq!(why, "it waits at +0x8, which has no counterpart in the old code");
        assert_ne!(word(&updater.engine, RETURN), live(CALLER));
        sleep(&mut updater.engine, live(NEW + 9));
        updater.close_open(true);
        let info = updater.show("fix").expect("known");
        assert_eq!((info.state, info.kept_pages, moved(&info)), (BundleState::Removed, 0, vec![(42, "old")]));
        assert_eq!((word(&updater.engine, SLOT), word(&updater.engine, RETURN)), (live(OLD + 7), live(CALLER)));
        assert!(updater.document.opens.is_empty());
    }
}

/// It has left while nobody attended.
#[test]
fn an_undo_that_nobody_is_inside_of_any_more_ends_when_it_is_taken_over() {
    let mut first = inside_new(8);
    first.updater.undo("fix").expect("it will be over");
    first.updater.leave_open().expect("nobody is leaving");
    let Setup { updater, journal, _folder } = first;
    let mut engine = updater.into_engine();
    sleep(&mut engine, live(OLD + 0x20));
    let mut updater = Updater::open(engine, journal, PATIENCE).expect("a journal");
    updater.close_open(true);
    let info = updater.show("fix").expect("known");
    assert_eq!((info.state, info.kept_pages, moved(&info)), (BundleState::Removed, 0, vec![]));
    assert!(updater.document.opens.is_empty());
}

#[test]
fn a_thread_inside_the_new_code_holds_undo_up_until_it_waits_at_a_counterpart() {
    let mut setup = inside_new(8);
    let info = setup.updater.undo("fix").expect("it will be over");
    assert_eq!((info.state, moved(&info)), (BundleState::Undoing, vec![]));
    let why = info.inside[0].why.as_deref().expect("a reason");
    assert_eq!(why, "it waits at +0x8, which has no counterpart in the old code");
    setup.updater.close_open(true);
    assert_eq!(setup.updater.show("fix").expect("known").state, BundleState::Undoing);
    sleep(&mut setup.updater.engine, live(NEW + 9));
    setup.updater.close_open(true);
    let info = setup.updater.show("fix").expect("known");
    assert_eq!((info.state, info.kept_pages, moved(&info)), (BundleState::Removed, 0, vec![(42, "old")]));
    assert_eq!((word(&setup.updater.engine, SLOT), word(&setup.updater.engine, RETURN)), (live(OLD + 7), live(CALLER)));
}

/// As the watchdog does (`watchdog::bring_back`): threads return as if nobody had waited for them.
fn let_go(engine: &mut MockEngine, journal: &Journal) {
    let documents = [Some(journal.load().expect("readable")), journal.half_done().expect("readable").map(|a| a.after)];
    for open in documents.into_iter().flatten().flat_map(|document| document.opens) {
        for thread in &open.threads {
            let (mut live, diverted) = ([0; 8], open.parts[thread.part].1);
            engine.peek(Pa(thread.slot_pa), &mut live);
            if u64::from_le_bytes(live) == diverted {
                engine.poke(Pa(thread.slot_pa), &thread.original.to_le_bytes());
            }
        }
    }
}

/// Somebody is inside of the new code, so the undo opens.
#[test]
fn a_tool_that_dies_in_an_undo_that_opens_is_followed_by_one_that_ends_it() {
    let made = inside_new(8);
    let after = made.updater.engine.memory();
    let before = with_tables(7).memory();
    let seen = std::cell::Cell::new([0, 0]);
    die_in_undo(
        || inside_new(8),
        |mut updater, at| {
            let state = updater.show("fix").expect("known").state;
            let is_open = state == BundleState::Undoing;
            let mut count = seen.get();
            count[usize::from(is_open)] += 1;
            seen.set(count);
            if is_open {
                // It died after it had let the guest run: its watchdog had let the thread go by now.
                let_go(&mut updater.engine, &updater.journal);
                assert_eq!(updater.document.opens[0].threads.len(), 1, "{at}");
            } else {
                assert_eq!(state, BundleState::Applied, "{at}");
                assert!(updater.engine.memory() == after, "{at}");
                assert!(updater.document.opens.is_empty(), "{at}");
                assert_eq!(updater.undo("fix").expect("it opens").state, BundleState::Undoing, "{at}");
            }
            updater.close_open(true);
            sleep(&mut updater.engine, live(NEW + 9));
            updater.close_open(true);
            let info = updater.show("fix").expect("known");
            let expected = (BundleState::Removed, 0, vec![(42, "old")]);
            assert_eq!((info.state, info.kept_pages, moved(&info)), expected, "{at}");
            assert!(updater.engine.memory() == before, "{at}, open: {is_open}");
        },
    );
    assert!(seen.get()[0] > 0, "{:?}", seen.get());
}

/// Somebody is inside of the old code, and returns there as ever.
#[test]
fn a_tool_that_dies_in_the_undo_of_an_open_update_is_followed_by_one_that_ends_it() {
    let made = || {
        let mut setup = setup(watching(8));
        setup.updater.apply(&bytes(&paired()), false).expect("open");
        setup
    };
    let (before, after) = (guest(8).memory(), made().updater.engine.memory());
    die_in_undo(made, |mut updater, at| {
        if updater.show("fix").expect("known").state == BundleState::Open {
            assert!(updater.engine.memory() == after, "{at}");
            let_go(&mut updater.engine, &updater.journal);
            updater.close_open(true);
            assert!(updater.engine.memory() == after, "{at}");
            updater.undo("fix").expect("it is in old code");
        }
        updater.settle();
        assert_eq!(updater.show("fix").expect("known").state, BundleState::Removed, "{at}");
        assert_eq!(word(&updater.engine, RETURN), live(CALLER), "{at}");
        if updater.show("fix").expect("known").kept_pages > 0 {
            // It was not looked again whether somebody is inside. The next undo does.
            sleep(&mut updater.engine, live(OLD + 0x20));
            updater.apply(&bytes(&paired()), false).expect("applied");
            updater.undo("fix").expect("undone");
            sleep(&mut updater.engine, live(OLD + 8));
        }
        assert!(updater.engine.memory() == before, "{at}");
    });
}

/// The same tool on a guest that keeps what a crash would leave.
fn watched(setup: Setup) -> (Updater<Watched>, Journal, tempfile::TempDir) {
    let Setup { updater, journal, _folder } = setup;
    let Updater { engine, journal: own, document, bundles, patience, resets, unsettled, seen, looks, unwinder, opens } =
        updater;
    let engine = Watched::new(engine, _folder.path());
    let updater =
        Updater { engine, journal: own, document, bundles, patience, resets, unsettled, seen, looks, unwinder, opens };
    (updater, journal, _folder)
}

/// Looks later with a write that fails, or none; then with a tool that dies at it and another one that takes it back. Of each moment at
/// which the guest runs, what a service says that begins then is what the guest shows.
#[test]
fn who_was_moved_is_told_as_it_is_whenever_a_tool_dies() {
    let mut reference = opened(7, false);
    reference.updater.engine.clear_calls();
    reference.updater.close_open(true);
    let calls = reference.updater.engine.calls();
    let is_write = |n: &usize| matches!(calls[n - 1], Call::Write { .. });
    let writes: Vec<usize> = (1..=calls.len()).filter(is_write).collect();
    assert!(writes.len() >= 2);
    let mut seen = [0, 0];
    let mut check = |updater: Updater<Watched>, what: &str| {
        for (number, (folder, memory)) in updater.engine.moments.into_iter().enumerate() {
            let mut engine = guest(7);
            memory.iter().for_each(|(pa, page)| engine.poke(*pa, page));
            let journal = Journal::beside(&folder.path().join("api"));
            let updater = Updater::open(engine, journal, PATIENCE).expect("taken on");
            let is_moved = word(&updater.engine, SLOT) == live(NEW + 9);
            let inside = updater.document.opens.iter().map(|open| open.threads.len()).sum::<usize>();
            let info = updater.show("fix").expect("known");
            assert_eq!((inside == 0, moved(&info).len() == 1), (is_moved, is_moved), "{what}, moment {number}");
            seen[usize::from(is_moved)] += 1;
        }
    };
    for n in [0].into_iter().chain(writes) {
        let mut setup = opened(7, false);
        if n != 0 {
            setup.updater.engine.fail_at(n);
        }
        let (mut updater, _journal, _folder) = watched(setup);
        updater.close_open(true);
        check(updater, &format!("call {n} fails"));
        if n == 0 {
            continue;
        }
        let Setup { mut updater, journal, _folder } = opened(7, false);
        updater.engine.fail_from(n);
        updater.close_open(true);
        let mut engine = updater.into_engine();
        engine.fail_never();
        let engine = Watched::new(engine, _folder.path());
        check(Updater::open(engine, journal, PATIENCE).expect("recovered"), &format!("died at call {n}"));
    }
    assert!(seen.iter().all(|&count| count > 2), "{seen:?}");
}

#[test]
fn the_guest_is_stopped_once_a_look_as_long_as_nobody_can_be_moved() {
    let mut setup = setup(watching(8));
    setup.updater.apply(&bytes(&paired()), false).expect("open");
    let stops = |setup: &mut Setup| {
        setup.updater.engine.clear_calls();
        setup.updater.close_open(true);
        setup.updater.engine.calls().iter().filter(|call| matches!(call, Call::Pause)).count()
    };
    assert_eq!((stops(&mut setup), stops(&mut setup)), (1, 1));
    assert!(setup.updater.show("fix").expect("known").inside[0].why.is_some(), "it was looked all the same");
    sleep(&mut setup.updater.engine, live(OLD + 7));
    assert_eq!(stops(&mut setup), 3, "to look, to move it, and to end the update");
    assert_eq!(setup.updater.show("fix").expect("known").state, BundleState::Applied);
    assert_eq!(stops(&mut setup), 0);
}

#[test]
fn a_failure_at_any_call_of_leaving_lets_nobody_go_or_everybody() {
    let open = || {
        let mut setup = setup(watching(8));
        setup.updater.apply(&bytes(&paired()), false).expect("open");
        setup
    };
    let mut reference = open();
    let trampoline = word(&reference.updater.engine, RETURN);
    reference.updater.engine.clear_calls();
    reference.updater.leave_open().expect("nobody is leaving");
    let mut failed = 0;
    for n in interesting(&reference.updater.engine) {
        let mut setup = open();
        setup.updater.engine.fail_at(n);
        let left = setup.updater.leave_open();
        let at = word(&setup.updater.engine, RETURN);
        assert_eq!(at, if left.is_ok() { live(CALLER) } else { trampoline }, "call {n}: {left:?}");
        assert_eq!(setup.updater.has_open(), left.is_err(), "call {n}");
        assert!(setup.updater.engine.is_running(), "call {n}");
        if left.is_err() {
            failed += 1;
            setup.updater.settle();
            setup.updater.leave_open().expect("the next attempt succeeds");
            assert_eq!(word(&setup.updater.engine, RETURN), live(CALLER), "call {n}");
        }
    }
    assert!(failed > 2, "{failed}");
}
