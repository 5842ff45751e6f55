//! New code that is prepared by a fake guest: what it is asked, and that nothing stays behind whatever fails.

use super::tests::{LIVE, PATIENCE, Setup, bundle, bytes, guest, setup};
use super::{UpdateError, Updater};
use crate::engine::mock::MockEngine;
use crate::engine::{
    Arena, ArenaSource, Call, CallError, Calls, Engine, EngineError, Interrupt, Pa, Pause, ReadMemory, Registers, Va,
    Vcpu, Vcpus, Watch, WriteMemory,
};
use crate::guest::fake::{self, OLD, SECOND_STACK, TEXT, live, worker};
use crate::journal::Journal;
use crate::protocol::{BundleState, MemoryKind};
use lpk_format::{Bundle, Reloc, RelocKind, SectionKind, Symbol, Table, TableKind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

type Memory = BTreeMap<Pa, Vec<u8>>;

/// Numbers of calls to fail at: all but reads, and some reads (page walks read thousands of words).
pub(super) fn interesting(engine: &MockEngine) -> Vec<usize> {
    let calls = engine.calls();
    let reads = |n: usize| matches!(calls[n - 1], crate::engine::mock::Call::Read { .. });
    (1..=calls.len()).filter(|&n| !reads(n) || n % 31 == 0).collect()
}

/// The bundle with the support object, a table in its data, and the table's entry about new code.
fn prepared() -> Bundle {
    let mut bundle = bundle();
    bundle.support = Some(worker::support());
    bundle.payload.data = vec![0; 12];
    bundle.payload.tables = vec![Table { kind: TableKind::Exceptions, offset: 0, size: 12 }];
    let reloc = Reloc { section: SectionKind::Data, offset: 0, kind: RelocKind::Pc32, symbol: 0, addend: 3 };
    bundle.payload.relocs.push(reloc);
    bundle
}

/// Memory after the bundle was applied, without a failure.
fn applied() -> Memory {
    let mut setup = setup(guest());
    setup.updater.apply(&bytes(&prepared()), false).expect("applied");
    setup.updater.engine.memory()
}

#[test]
fn code_lives_in_the_guests_module_area_and_leaves_no_trace() {
    let mut setup = setup(guest());
    let before = setup.updater.engine.memory();
    for _ in 0..3 {
        let info = setup.updater.apply(&bytes(&prepared()), false).expect("applied");
        assert_eq!((info.memory, info.module.as_deref()), (MemoryKind::Module, Some("lucos_fix")));
        assert_eq!(info.functions[0].new_address, format!("{:#x}", live(worker::AREAS)));
        let kernel = setup.updater.same_boot(&prepared()).expect("located").0;
        let engine = &setup.updater.engine;
        let mut jump = [0; 5];
        engine.read(kernel.image_pa(TEXT + OLD), &mut jump).expect("memory");
        assert_eq!(super::code::branch_target(&jump, live(OLD)), Some(live(worker::AREAS)));
        let mut entry = [0; 4];
        kernel.read(engine, Va(live(worker::AREAS + 0x2000)), &mut entry, "the table").expect("mapped");
        assert_eq!(i32::from_le_bytes(entry), 3 - 0x2000, "the table's field leads to new code");
        // Low memory is as it was: only the area is taken.
        let memory = engine.memory();
        assert!(before.iter().filter(|(pa, _)| pa.0 < fake::IMAGE).all(|(pa, page)| memory[pa] == *page));

        let info = setup.updater.undo("fix").expect("undone");
        assert_eq!((info.state, info.kept_pages, info.reason), (BundleState::Removed, 0, None));
        assert!(setup.updater.engine.memory() == before, "memory differs after undo");
        assert!(setup.updater.engine.is_running());
    }
}

/// What does not fit into one stop is copied in several, before the request.
#[test]
fn large_code_is_copied_in_stretches() {
    let mut large = prepared();
    large.payload.text.resize(20 << 10, 0xcc);
    let mut setup = setup(guest());
    let before = setup.updater.engine.memory();
    setup.updater.apply(&bytes(&large), false).expect("applied");
    let pauses = |setup: &Setup| {
        let calls = setup.updater.engine.calls();
        calls.iter().filter(|call| matches!(call, crate::engine::mock::Call::Pause)).count()
    };
    assert_eq!(pauses(&setup), 5, "one for each request, two stretches, the jumps");
    let mut end = [0; 16];
    setup.updater.engine.peek(Pa(fake::IMAGE + worker::AREAS + (20 << 10) - 16), &mut end);
    assert_eq!(end, [0xcc; 16]);
    setup.updater.undo("fix").expect("undone");
    assert!(setup.updater.engine.memory() == before);
}

#[test]
fn tables_need_the_guest_and_the_arena_is_for_those_without() {
    let mut setup = setup(guest());
    let problem = setup.updater.apply(&bytes(&prepared()), true).expect_err("it has tables").problem();
    assert_eq!((problem.status, problem.reason.as_str()), (3, "needs-preparation"));
    let mut plain = prepared();
    plain.payload = bundle().payload;
    let info = setup.updater.apply(&bytes(&plain), true).expect("applied");
    assert_eq!((info.memory, info.module), (MemoryKind::Arena, None));
    setup.updater.undo("fix").expect("undone");
    let info = setup.updater.apply(&bytes(&plain), false).expect("applied");
    assert_eq!(info.memory, MemoryKind::Module);

    let mut without = prepared();
    without.support = None;
    let problem = self::setup(guest()).updater.apply(&bytes(&without), false).expect_err("nobody prepares").problem();
    assert_eq!(problem.reason, "cannot-prepare");
}

#[test]
fn a_guest_that_cannot_prepare_is_left_as_it_was() {
    type Change = (&'static str, fn(&mut MockEngine), fn(&mut Bundle));
    let same: fn(&mut Bundle) = |_| {};
    let changes: [Change; 7] = [
        ("guest-does-not-answer", |engine| engine.set_handler(None), same),
        ("no-arena", |engine| engine.set_handler(Some(worker::decline)), same),
        ("guest-damaged", |engine| engine.set_handler(Some(worker::lie)), same),
        ("guest-state", |engine| engine.set_owner_paused(true), same),
        ("cannot-prepare", |engine| engine.poke(Pa(fake::IMAGE + 0x6000 + 0xf60), &[1]), same),
        ("cannot-prepare", |_| {}, |bundle| bundle.support.iter_mut().for_each(|s| s.rodata[0] = 9)),
        ("profile-incomplete", |_| {}, |bundle| bundle.profile.symbols.retain(|name, _| name != "raised_list")),
    ];
    for (reason, change_engine, change_bundle) in changes {
        let (mut engine, mut bundle) = (guest(), prepared());
        change_engine(&mut engine);
        change_bundle(&mut bundle);
        let running = engine.is_running();
        let mut setup = setup(engine);
        let before = setup.updater.engine.memory();
        let problem = setup.updater.apply(&bytes(&bundle), false).expect_err(reason).problem();
        assert_eq!((problem.status, problem.reason.as_str()), (3, reason), "{problem}");
        assert!(setup.updater.engine.memory() == before, "{reason}: memory differs");
        assert!(setup.updater.engine.is_running() == running && setup.updater.list().is_empty());
        assert!(!setup.updater.is_waiting());
    }
}

#[test]
fn an_answer_that_comes_late_is_still_dealt_with() {
    let mut setup = setup(guest());
    let before = setup.updater.engine.memory();
    setup.updater.engine.set_handler(Some(worker::begin));
    let problem = setup.updater.apply(&bytes(&prepared()), false).expect_err("it never ends").problem();
    assert_eq!(problem.reason, "guest-does-not-answer");
    assert!(setup.updater.is_waiting() && setup.updater.engine.memory() != before);
    // While it is at work, nothing else is asked; what needs no answer goes on.
    let mut other = bundle();
    other.manifest.name = "other".into();
    assert_eq!(setup.updater.apply(&bytes(&prepared()), false).expect_err("busy").problem().reason, problem.reason);
    setup.updater.apply(&bytes(&other), true).expect("applied in the arena");
    setup.updater.undo("other").expect("undone");
    // A service that starts meanwhile knows.
    let Setup { updater, journal, _folder } = setup;
    let mut updater = Updater::open(updater.into_engine(), journal, PATIENCE).expect("taken on");
    assert!(updater.is_waiting());
    let request = Pa(updater.document.call.as_ref().expect("one").request);
    updater.engine.poke(Pa(request.0 + 4), &2_u32.to_le_bytes());
    updater.engine.poke(Pa(request.0 + 8), &(-12_i64).to_le_bytes());
    updater.engine.set_handler(Some(worker::interrupt));
    updater.settle();
    assert!(!updater.is_waiting() && updater.engine.memory() == before);
}

#[test]
fn somebody_elses_module_keeps_its_name() {
    let mut setup = setup(guest());
    setup.updater.apply(&bytes(&prepared()), false).expect("applied");
    // Another service on the same guest, which does not know of the first.
    let mut other = prepared();
    other.functions[0].old_address += 32;
    other.manifest.functions[0].old_address = Some(TEXT + OLD + 32);
    let engine = std::mem::take(&mut setup.updater.engine).with_memory(Pa(fake::IMAGE + OLD + 32), &LIVE);
    let mut second = self::setup(engine);
    let info = second.updater.apply(&bytes(&other), false).expect("applied");
    assert_eq!(info.module.as_deref(), Some("lucos_fix_2"));
}

#[test]
fn an_area_is_kept_while_something_may_refer_to_it() {
    let mut setup = setup(guest());
    let before = setup.updater.engine.memory();
    setup.updater.apply(&bytes(&prepared()), false).expect("applied");
    let slot = Pa(fake::IMAGE + SECOND_STACK + 0x3f80);
    setup.updater.engine.poke(slot, &live(worker::AREAS + 7).to_le_bytes());
    let info = setup.updater.undo("fix").expect("undone");
    assert_eq!((info.kept_pages, info.reason.as_deref()), (3, Some("kept-still-in-use")));
    // A new service knows of it; the same bundle uses it again, once nobody is inside.
    let Setup { updater, journal, _folder } = setup;
    let mut updater = Updater::open(updater.into_engine(), journal, PATIENCE).expect("taken on");
    assert_eq!(updater.apply(&bytes(&prepared()), false).expect_err("inside").problem().reason, "busy");
    updater.engine.poke(slot, &[0; 8]);
    let info = updater.apply(&bytes(&prepared()), false).expect("applied in the kept area");
    assert_eq!(info.functions[0].new_address, format!("{:#x}", live(worker::AREAS)));
    assert_eq!(updater.undo("fix").expect("undone").kept_pages, 0);
    assert!(updater.engine.memory() == before);

    // An address of new code or data may have been stored anywhere; data begins afresh, tables do not.
    let mut taken = prepared();
    taken.payload.data = vec![5; 32];
    taken.payload.symbols.push(Symbol {
        name: "state".into(),
        place: lpk_format::Place::Payload { section: SectionKind::Data, offset: 16 },
        size: 16,
        function: false,
    });
    updater.apply(&bytes(&taken), false).expect("applied");
    let info = updater.undo("fix").expect("undone");
    assert_eq!((info.kept_pages, info.reason.as_deref()), (3, Some("kept-address-taken")));
    let data = Pa(fake::IMAGE + worker::AREAS + 0x2000);
    updater.engine.poke(data, &[9; 32]);
    updater.apply(&bytes(&taken), false).expect("applied again");
    let mut now = [0; 32];
    updater.engine.peek(data, &mut now);
    assert_eq!(now, [[9; 12].as_slice(), &[5; 20]].concat()[..]);
}

#[test]
fn a_failure_at_any_call_leaves_nothing_behind() {
    let file = bytes(&prepared());
    let (before, after) = (guest().memory(), applied());
    let mut reference = setup(guest());
    reference.updater.apply(&file, false).expect("applied");
    for n in interesting(&reference.updater.engine) {
        let mut setup = setup(guest());
        setup.updater.engine.fail_at(n);
        let result = setup.updater.apply(&file, false);
        setup.updater.engine.fail_never();
        setup.updater.settle();
        let expected = if result.is_ok() { &after } else { &before };
        assert!(setup.updater.engine.memory() == *expected, "apply, call {n}: {result:?}");
        assert!(setup.updater.engine.is_running() && !setup.updater.is_waiting(), "apply, call {n}");
        if result.is_err() {
            setup.updater.apply(&file, false).unwrap_or_else(|error| panic!("the next attempt, call {n}: {error}"));
        }
    }
    reference.updater.engine.clear_calls();
    reference.updater.undo("fix").expect("undone");
    for n in interesting(&reference.updater.engine) {
        let mut setup = setup(guest());
        setup.updater.apply(&file, false).expect("applied");
        setup.updater.engine.fail_at(n);
        let result = setup.updater.undo("fix");
        setup.updater.engine.fail_never();
        setup.updater.settle();
        let state = setup.updater.list()[0].state;
        let memory = setup.updater.engine.memory();
        assert!(result.is_err() || state == BundleState::Removed, "undo, call {n}: {result:?}");
        let kept = setup.updater.list()[0].kept_pages > 0;
        let expected = if state == BundleState::Removed { &before } else { &after };
        assert!(kept || memory == *expected, "undo, call {n}: {result:?}");
        assert!(setup.updater.engine.is_running(), "undo, call {n}");
    }
}

/// A mock that keeps what a crash of the tool would leave: journal and memory, each time the guest runs again.
pub(super) struct Watched {
    pub(super) inner: MockEngine,
    journal: PathBuf,
    pub(super) moments: Vec<(tempfile::TempDir, Memory)>,
}

impl Watched {
    /// A guest whose journal is in a folder.
    pub(super) fn new(inner: MockEngine, journal: &Path) -> Watched {
        Watched { inner, journal: journal.to_owned(), moments: Vec::new() }
    }

    fn keep(&mut self) {
        let folder = tempfile::tempdir().expect("a folder");
        copy(&self.journal, folder.path());
        self.moments.push((folder, self.inner.memory()));
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        let target = to.join(entry.file_name().expect("a name"));
        if entry.is_dir() {
            copy(&entry, &target);
        } else {
            std::fs::copy(&entry, &target).expect("a copy");
        }
    }
}

impl ReadMemory for Watched {
    fn read(&self, from: Pa, into: &mut [u8]) -> Result<(), EngineError> {
        self.inner.read(from, into)
    }
}

impl WriteMemory for Watched {
    fn write(&mut self, to: Pa, bytes: &[u8]) -> Result<(), EngineError> {
        self.inner.write(to, bytes)
    }
}

impl Pause for Watched {
    fn pause(&mut self) -> Result<(), EngineError> {
        self.keep();
        self.inner.pause()
    }

    fn resume(&mut self) -> Result<(), EngineError> {
        self.inner.resume()?;
        self.keep();
        Ok(())
    }

    fn is_paused(&mut self) -> Result<bool, EngineError> {
        self.inner.is_paused()
    }

    fn is_held(&mut self) -> Result<bool, EngineError> {
        self.inner.is_held()
    }

    fn last_pause(&self) -> Duration {
        self.inner.last_pause()
    }

    fn resets(&self) -> u64 {
        self.inner.resets()
    }
}

impl Vcpus for Watched {
    fn registers(&mut self) -> Result<Vec<Registers>, EngineError> {
        self.inner.registers()
    }
}

impl Interrupt for Watched {
    fn interrupt(&mut self, apic_id: u8, vector: u8) -> Result<(), EngineError> {
        self.inner.interrupt(apic_id, vector)
    }
}

impl Arena for Watched {
    fn arena(&self) -> ArenaSource {
        self.inner.arena()
    }
}

impl Calls for Watched {
    fn report_code(&self) -> &'static [u8] {
        self.inner.report_code()
    }
    fn call(&mut self, vcpu: Vcpu, call: &Call) -> Result<u64, CallError> {
        self.inner.call(vcpu, call)
    }
}

impl Engine for Watched {
    fn name(&self) -> &'static str {
        "watched"
    }

    fn watch(&mut self) -> Option<&mut dyn Watch> {
        self.inner.watch()
    }
}

#[test]
fn a_tool_that_dies_while_the_guest_runs_leaves_nothing_half_done() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = Journal::beside(&folder.path().join("api"));
    let watched = Watched::new(guest(), folder.path());
    let mut updater = Updater::open(watched, journal, PATIENCE).expect("an empty journal");
    updater.apply(&bytes(&prepared()), false).expect("applied");
    updater.undo("fix").expect("undone");
    let moments = std::mem::take(&mut updater.engine.moments);
    assert!(moments.len() >= 12, "{} moments", moments.len());
    let (before, after) = (guest().memory(), applied());
    let mut seen = [0, 0];
    for (number, (folder, memory)) in moments.into_iter().enumerate() {
        let mut engine = guest();
        memory.iter().for_each(|(pa, page)| engine.poke(*pa, page));
        let journal = Journal::beside(&folder.path().join("api"));
        let mut updater = Updater::open(engine, journal, PATIENCE).expect("taken on");
        updater.settle();
        let applied = updater.list().iter().any(|info| info.state == BundleState::Applied);
        let expected = if applied { &after } else { &before };
        assert!(updater.engine.memory() == *expected, "moment {number}, applied: {applied}");
        assert!(updater.engine.is_running() && !updater.is_waiting(), "moment {number}");
        seen[usize::from(applied)] += 1;
        // What comes next works, whatever came before.
        if applied {
            updater.undo("fix").expect("undone");
        } else {
            updater.apply(&bytes(&prepared()), false).expect("applied");
        }
    }
    assert!(seen.iter().all(|&count| count > 1), "{seen:?}");
}

#[test]
fn a_tool_that_dies_while_the_guest_stands_leaves_it_as_it_was() {
    let file = bytes(&prepared());
    let before = guest().memory();
    let mut reference = setup(guest());
    reference.updater.apply(&file, false).expect("applied");
    for n in interesting(&reference.updater.engine) {
        let Setup { mut updater, journal, _folder } = setup(guest());
        updater.engine.fail_from(n);
        assert!(updater.apply(&file, false).is_err(), "call {n}");
        let mut engine = updater.into_engine();
        engine.fail_never();
        rescue(&mut engine, &journal);
        let mut updater = Updater::open(engine, journal, PATIENCE).expect("recovered");
        updater.settle();
        assert!(updater.engine.memory() == before && updater.list().is_empty(), "call {n}");
        assert!(updater.engine.is_running() && !updater.is_waiting(), "call {n}");
    }
}

/// Undoes a bundle with a tool that dies at each call, and checks what the next service finds.
pub(super) fn die_in_undo(make: impl Fn() -> Setup, check: impl Fn(Updater<MockEngine>, &str)) {
    let mut reference = make();
    reference.updater.engine.clear_calls();
    reference.updater.undo("fix").expect("undone");
    for n in interesting(&reference.updater.engine) {
        let Setup { mut updater, journal, _folder } = make();
        updater.engine.fail_from(n);
        let result = updater.undo("fix").map(drop);
        let mut engine = updater.into_engine();
        engine.fail_never();
        rescue(&mut engine, &journal);
        let updater = Updater::open(engine, journal, PATIENCE).expect("recovered");
        assert!(updater.engine.is_running(), "call {n}");
        check(updater, &format!("call {n}, {result:?}"));
    }
}

#[test]
fn a_tool_that_dies_in_an_undo_has_taken_back_all_or_nothing() {
    let mut plain = prepared();
    plain.payload = bundle().payload;
    for (bundle, in_arena) in [(prepared(), false), (plain, true)] {
        let make = || {
            let mut setup = setup(guest());
            setup.updater.apply(&bytes(&bundle), in_arena).expect("applied");
            setup
        };
        let (before, after) = (guest().memory(), make().updater.engine.memory());
        let seen = std::cell::Cell::new([0, 0]);
        die_in_undo(make, |mut updater, at| {
            updater.settle();
            let info = &updater.list()[0];
            let is_removed = info.state == BundleState::Removed;
            let mut count = seen.get();
            count[usize::from(is_removed)] += 1;
            seen.set(count);
            assert!(!updater.is_waiting(), "{at}");
            if !is_removed {
                assert_eq!(info.state, BundleState::Applied, "{at}");
                assert!(updater.engine.memory() == after, "{at}");
                updater.undo("fix").expect("undone");
            }
            // Pages of the arena that a dead tool had not given back are used again and given back then.
            if updater.list()[0].kept_pages > 0 {
                updater.apply(&bytes(&bundle), in_arena).expect("applied");
                updater.undo("fix").expect("undone");
            }
            assert!(updater.engine.memory() == before, "{at}: removed: {is_removed}");
        });
        assert!(seen.get()[0] > 0 && (in_arena || seen.get()[1] > 0), "{:?}", seen.get());
    }
}

/// As the watchdog does (`watchdog::bring_back`): a guest that stands gets its old bytes back and goes on.
pub(super) fn rescue(engine: &mut MockEngine, journal: &Journal) {
    if engine.is_running() {
        return;
    }
    let half_done = journal.half_done().expect("readable");
    for write in half_done.iter().flat_map(|action| action.writes.iter().rev()) {
        engine.write(Pa(write.pa), &write.old).expect("the guest stands");
    }
    engine.resume().expect("the hypervisor is back");
    journal.forget_action().expect("writable");
}

#[test]
fn another_boot_is_noticed_without_the_arena() {
    let Setup { mut updater, journal, _folder } = setup(guest());
    updater.apply(&bytes(&prepared()), false).expect("applied");
    let other = Updater::open(guest(), journal, PATIENCE).expect("taken on");
    assert!(other.list().is_empty() && other.engine.memory() == guest().memory());
    // The area alone is enough to know the boot, when nothing is applied.
    let Setup { mut updater, journal, _folder } = setup(guest());
    let mut taken = prepared();
    taken.payload.bss_size = 8;
    updater.apply(&bytes(&taken), false).expect("applied");
    assert_eq!(updater.undo("fix").expect("undone").kept_pages, 3);
    let updater = Updater::open(updater.into_engine(), journal.clone(), PATIENCE).expect("taken on");
    assert_eq!(updater.list().len(), 1);
    let other = Updater::open(guest(), journal, PATIENCE).expect("taken on");
    assert!(other.list().is_empty());
    assert!(matches!(other.show("fix"), Err(UpdateError::Unknown { .. })));
}
