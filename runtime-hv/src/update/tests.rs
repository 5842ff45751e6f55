//! The whole service against a fake guest that can fail at any call.

use super::{Patience, UpdateError, Updater};
use crate::engine::mock::MockEngine;
use crate::engine::{ArenaSource, Pa, ReadMemory};
use crate::guest::fake::{self, INIT_TASK, Image, OLD, SECOND_STACK, SECOND_TASK, TEXT, VARIABLES, live, variable};
use crate::journal::Journal;
use crate::protocol::BundleState;
use crate::service::{ControlSocket, Ended, serve};
use lpk_format::{
    BootSite, BootSiteKind, Bundle, FunctionPatch, Hook, HookKind, HookSubject, Manifest, ManifestFunction, Payload,
    Place, Reloc, RelocKind, SectionKind, Symbol, UpdateType,
};
use std::time::Duration;

pub(super) const LIVE: [u8; 16] = [0x0f, 0x1f, 0x44, 0, 0, 0xb8, 1, 0, 0, 0, 0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc];
pub(super) const PATIENCE: Patience = Patience { attempts: 2, wait: Duration::ZERO, answer: Duration::ZERO };

pub(super) fn bundle() -> Bundle {
    let mut expected = LIVE;
    expected[..5].copy_from_slice(&[0xe8, 1, 2, 3, 4]);
    let text = vec![0x48, 0x8d, 0x3d, 0, 0, 0, 0, 0xb8, 2, 0, 0, 0, 0xc3, 0xcc, 0xcc, 0xcc];
    let symbol = |name: &str, section, size, function| Symbol {
        name: name.into(),
        place: Place::Payload { section, offset: 0 },
        size,
        function,
    };
    Bundle {
        kernel: fake::kernel_id(),
        profile: fake::profile(),
        manifest: Manifest {
            name: "fix".into(),
            update_type: UpdateType::Type1,
            built_by: "test".into(),
            diff_sha256: "0".repeat(64),
            files: vec!["a.c".into()],
            functions: vec![ManifestFunction {
                name: "old".into(),
                unit: "a.c".into(),
                old_address: Some(TEXT + OLD),
                old_size: 16,
                new_size: 13,
            }],
            data: Vec::new(),
            left: Vec::new(),
            left_out: Vec::new(),
            omitted: Vec::new(),
            vouched: Vec::new(),
            unchanged_modules: Vec::new(),
        },
        payload: Payload {
            text,
            rodata: b"hello\0".to_vec(),
            symbols: vec![symbol("old", SectionKind::Text, 13, true), symbol(".str", SectionKind::Rodata, 6, false)],
            relocs: vec![Reloc { section: SectionKind::Text, offset: 3, kind: RelocKind::Pc32, symbol: 1, addend: -4 }],
            ..Payload::default()
        },
        functions: vec![FunctionPatch {
            name: "old".into(),
            unit: "a.c".into(),
            old_address: TEXT + OLD,
            jump_offset: 0,
            expected: expected.to_vec(),
            sites: vec![BootSite { offset: 0, len: 5, kind: BootSiteKind::Ftrace }],
            new_offset: 0,
            new_size: 13,
            returns: Vec::new(),
        }],
        support: None,
        module: None,
        modules: vec![],
    }
}

pub(super) fn bytes(bundle: &Bundle) -> Vec<u8> {
    lpk_format::write(bundle).expect("a sound bundle")
}

pub(super) struct Setup {
    pub(super) updater: Updater<MockEngine>,
    pub(super) journal: Journal,
    pub(super) _folder: tempfile::TempDir,
}

pub(super) fn setup(engine: MockEngine) -> Setup {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = Journal::beside(&folder.path().join("api"));
    let updater = Updater::open(engine, journal.clone(), PATIENCE).expect("an empty journal");
    Setup { updater, journal, _folder: folder }
}

pub(super) fn guest() -> MockEngine {
    fake::engine(&fake::image(&LIVE))
}

#[test]
fn apply_switches_and_undo_gives_everything_back() {
    for arena in [ArenaSource::ReservedLowMemory, ArenaSource::Slot(Pa(0x10_0000_0000), 0x10000)] {
        let mut engine = guest().with_arena(arena);
        if let ArenaSource::Slot(base, length) = arena {
            engine = engine.with_memory(base, &vec![9; length as usize]);
        }
        let mut setup = setup(engine);
        let before = setup.updater.engine.memory();
        for _ in 0..3 {
            let info = setup.updater.apply(&bytes(&bundle()), false).expect("applied");
            assert_eq!((info.state, info.functions.len()), (BundleState::Applied, 1));
            assert!(setup.updater.engine.is_running());
            // Follow the jump through the guest's own tables.
            let kernel = setup.updater.same_boot(&bundle()).expect("located").0;
            let engine = &setup.updater.engine;
            let mut jump = [0; 5];
            engine.read(kernel.image_pa(TEXT + OLD), &mut jump).expect("memory");
            let target = super::code::branch_target(&jump, live(OLD)).expect("a jump");
            assert_eq!(format!("{target:#x}"), info.functions[0].new_address);
            let mut code = [0; 13];
            kernel.read(engine, crate::engine::Va(target), &mut code, "code").expect("mapped");
            assert_eq!((&code[..3], code[7], code[12]), (&[0x48, 0x8d, 0x3d][..], 0xb8, 0xc3));
            let distance = i32::from_le_bytes([code[3], code[4], code[5], code[6]]);
            let mut text = [0; 6];
            let string = target.wrapping_add(7).wrapping_add(i64::from(distance) as u64);
            kernel.read(engine, crate::engine::Va(string), &mut text, "string").expect("mapped");
            assert_eq!(&text, b"hello\0");
            assert!(matches!(setup.updater.apply(&bytes(&bundle()), false), Err(UpdateError::AlreadyApplied { .. })));

            let info = setup.updater.undo("fix").expect("undone");
            assert_eq!((info.state, info.kept_pages, info.reason), (BundleState::Removed, 0, None));
            assert!(setup.updater.engine.memory() == before, "memory differs after undo");
            assert!(setup.updater.engine.is_running());
        }
        assert!(matches!(setup.updater.undo("fix"), Err(UpdateError::NotApplied { .. })));
        assert!(matches!(setup.updater.undo("other"), Err(UpdateError::Unknown { .. })));
    }
}

/// The guest has a kprobe.
fn probe(image: &mut Image, at: u64, flags: u64) {
    const PROBE: u64 = fake::VARIABLES + 0xc00;
    image.word(variable("kprobe_table") + 8, live(PROBE));
    image.word(PROBE + 32, live(at));
    image.word(PROBE + 112, flags);
}

#[test]
fn a_probe_under_the_jump_is_in_the_way_and_no_other() {
    for (at, flags) in [(OLD + 5, 0), (OLD, 1)] {
        let mut image = fake::image(&LIVE);
        probe(&mut image, at, flags);
        let mut setup = setup(fake::engine(&image));
        setup.updater.apply(&bytes(&bundle()), false).expect("behind the jump, or gone for good");
        setup.updater.undo("fix").expect("undone");
    }
    let mut setup = setup(guest());
    setup.updater.apply(&bytes(&bundle()), false).expect("applied");
    let mut image = fake::image(&LIVE);
    probe(&mut image, OLD, 2);
    let of = |offset: u64| image.0[offset as usize..offset as usize + 0x400].to_vec();
    let variables = of(fake::VARIABLES + 0xc00);
    let table = image.0[variable("kprobe_table") as usize..][..16].to_vec();
    let engine = std::mem::take(&mut setup.updater.engine);
    setup.updater.engine = engine
        .with_memory(Pa(fake::IMAGE + fake::VARIABLES + 0xc00), &variables)
        .with_memory(Pa(fake::IMAGE + variable("kprobe_table")), &table);
    let before = setup.updater.engine.memory();
    let problem = setup.updater.undo("fix").expect_err("probed since").problem();
    assert_eq!((problem.status, problem.reason.as_str()), (3, "probed"));
    assert!(setup.updater.engine.memory() == before);
}

#[test]
fn refusals_leave_the_guest_untouched() {
    type Change = (&'static str, fn(&mut Image), fn(&mut Bundle));
    let no: fn(&mut Image) = |_| {};
    let changes: [Change; 18] = [
        ("wrong-kernel", no, |b| b.kernel.build_id = vec![8; 20]),
        ("wrong-kernel", |i| i.put(0x6000, &[1]), |_| {}),
        ("not-booted", |i| i.put(0x6008, &[0; 4]), |_| {}),
        ("not-booted", |i| i.word(INIT_TASK, live(INIT_TASK)), |_| {}),
        ("code-differs", |i| i.put(OLD + 6, &[3]), |_| {}),
        ("traced", |i| i.put(OLD, &[0xe8, 1, 1, 1, 1]), |_| {}),
        ("traced", |i| i.put(OLD, &[0xcc]), |_| {}),
        ("probed", |i| i.put(OLD + 5, &[0xcc]), |_| {}),
        ("probed", |i| probe(i, OLD + 4, 0), |_| {}),
        ("busy", |i| i.word(variable("text_mutex"), live(INIT_TASK) | 1), |_| {}),
        ("no-arena", |i| i.word(0xf000 + 8 * 5, 0), |_| {}),
        (
            "no-arena",
            |i| {
                (1..20).for_each(|e| {
                    if e != 18 {
                        i.word(0x5000 + e * 8, 1)
                    }
                })
            },
            |_| {},
        ),
        ("no-arena", no, |b| b.payload.bss_size = 0xa_0000),
        ("profile-incomplete", no, |b| b.profile.symbols.retain(|name, _| name != "init_top_pgt")),
        ("profile-incomplete", no, |b| b.profile.constants.clear()),
        ("guest-damaged", |i| i.word(variable("vmemmap_base"), 0xdead_0000_0000_0000), |_| {}),
        ("unsupported", no, |b| {
            b.manifest.update_type = UpdateType::Type2;
            b.payload.hooks = vec![Hook { kind: HookKind::Pre, subject: HookSubject::Update, offset: 0 }];
        }),
        ("cannot-link", no, |b| {
            b.payload.symbols[1].place = Place::Absolute(0x1_0000_0000);
        }),
    ];
    for (reason, change_image, change_bundle) in changes {
        let mut image = fake::image(&LIVE);
        change_image(&mut image);
        let mut bundle = bundle();
        change_bundle(&mut bundle);
        let mut setup = setup(fake::engine(&image));
        let before = setup.updater.engine.memory();
        let problem = setup.updater.apply(&bytes(&bundle), false).expect_err(reason).problem();
        assert_eq!((problem.status, problem.reason.as_str()), (3, reason), "{problem}");
        assert!(setup.updater.engine.memory() == before, "{reason}: memory differs");
        assert!(setup.updater.engine.is_running() && setup.updater.list().is_empty());
    }
    let mut setup = setup(guest());
    let mut damaged = bytes(&bundle());
    damaged[100] ^= 1;
    assert_eq!(setup.updater.apply(&damaged, false).expect_err("damaged").problem().reason, "corrupted-bundle");
}

/// The process that a processor ran a moment ago may be gone, and its page table with it.
#[test]
fn a_page_table_that_is_gone_is_no_other_kernel() {
    for cr3 in [0x5000, fake::IMAGE + OLD, 0x7fff_ffff_f000] {
        let mut engine = guest();
        engine.set_registers(vec![crate::engine::Registers { cr3, ..fake::user() }]);
        engine.then_registers(vec![fake::user()]);
        let mut setup = setup(engine);
        setup.updater.apply(&bytes(&bundle()), false).expect("applied at the second look");
    }
}

/// Numbers of calls to fail at: all but reads, and every seventh read (page walks read thousands of words).
fn interesting(engine: &MockEngine) -> Vec<usize> {
    let calls = engine.calls();
    let reads = |n: usize| matches!(calls[n - 1], crate::engine::mock::Call::Read { .. });
    (1..=calls.len()).filter(|&n| !reads(n) || n % 7 == 0).collect()
}

#[test]
fn a_failure_at_any_call_changes_nothing_or_everything() {
    let file = bytes(&bundle());
    let mut reference = setup(guest());
    let before = reference.updater.engine.memory();
    reference.updater.apply(&file, false).expect("applied");
    let after = reference.updater.engine.memory();
    for n in interesting(&reference.updater.engine) {
        let mut setup = setup(guest());
        setup.updater.engine.fail_at(n);
        let result = setup.updater.apply(&file, false);
        let expected = if result.is_ok() { &after } else { &before };
        assert!(setup.updater.engine.memory() == *expected, "apply, call {n}: {result:?}");
        assert!(setup.updater.engine.is_running(), "apply, call {n}");
        setup.updater.engine.fail_never();
        if result.is_err() {
            setup.updater.apply(&file, false).expect("the next attempt succeeds");
        }
    }
    reference.updater.engine.clear_calls();
    reference.updater.undo("fix").expect("undone");
    for n in interesting(&reference.updater.engine) {
        let mut setup = setup(guest());
        setup.updater.apply(&file, false).expect("applied");
        setup.updater.engine.fail_at(n);
        let result = setup.updater.undo("fix");
        let memory = setup.updater.engine.memory();
        let kept = result.as_ref().is_ok_and(|info| info.kept_pages > 0);
        let old = memory[&Pa(fake::IMAGE + OLD)][..16] == LIVE;
        assert_eq!(old, result.is_ok(), "undo, call {n}: {result:?}");
        assert!(kept || memory == if result.is_ok() { before.clone() } else { after.clone() }, "undo, call {n}");
        assert!(setup.updater.engine.is_running(), "undo, call {n}");
    }
}

#[test]
fn what_a_dead_tool_left_is_taken_back() {
    let file = bytes(&bundle());
    let before = guest().memory();
    let mut reference = setup(guest());
    reference.updater.apply(&file, false).expect("applied");
    for n in interesting(&reference.updater.engine) {
        let Setup { mut updater, journal, _folder } = setup(guest());
        updater.engine.fail_from(n);
        let done = updater.apply(&file, false).is_ok();
        let mut engine = updater.into_engine();
        engine.fail_never();
        super::prepared_tests::rescue(&mut engine, &journal);
        let updater = Updater::open(engine, journal, PATIENCE).expect("recovered");
        assert!(!done && updater.engine.memory() == before && updater.list().is_empty(), "call {n}");
        assert!(updater.engine.is_running(), "call {n}");
    }
}

#[test]
fn a_new_service_knows_what_is_applied_and_notices_another_boot() {
    let Setup { mut updater, journal, _folder } = setup(guest());
    let before = updater.engine.memory();
    let id = updater.apply(&bytes(&bundle()), false).expect("applied").id;
    let mut again = Updater::open(updater.into_engine(), journal.clone(), PATIENCE).expect("taken on");
    assert_eq!(again.show(&id[..8]).expect("known").state, BundleState::Applied);
    again.undo(&id[..8]).expect("undone from the journal's copy");
    assert!(again.engine.memory() == before);
    again.apply(&bytes(&bundle()), false).expect("applied");
    // The same kernel at the same place, but booted anew: no jump is there.
    let other = Updater::open(guest(), journal, PATIENCE).expect("taken on");
    assert!(other.list().is_empty() && other.engine.memory() == before);
}

#[test]
fn a_reset_ends_what_was_applied() {
    // The hypervisor tells of it, though the old memory is still there.
    let mut setup = setup(guest());
    setup.updater.apply(&bytes(&bundle()), false).expect("applied");
    let before = setup.updater.engine.memory();
    setup.updater.engine.reset();
    assert!(matches!(setup.updater.undo("fix"), Err(UpdateError::OtherBoot)));
    assert!(setup.updater.list().is_empty() && setup.updater.engine.memory() == before);
    assert!(matches!(setup.updater.undo("fix"), Err(UpdateError::Unknown { .. })));

    // Nobody tells, the kernel is where it was, low memory is as it was left, and only kept pages were known.
    let mut setup = self::setup(guest());
    let mut taken = bundle();
    taken.payload.relocs[0].symbol = 0;
    setup.updater.apply(&bytes(&taken), false).expect("applied");
    assert_eq!(setup.updater.undo("fix").expect("undone").kept_pages, 2);
    let low: Vec<(Pa, Vec<u8>)> =
        setup.updater.engine.memory().into_iter().filter(|(pa, _)| pa.0 < fake::IMAGE).collect();
    setup.updater.engine = low.iter().fold(guest(), |engine, (pa, page)| engine.with_memory(*pa, page));
    assert!(setup.updater.look().expect("looked"));
    let info = setup.updater.apply(&bytes(&taken), false).expect("applied");
    let target = u64::from_str_radix(&info.functions[0].new_address[2..], 16).expect("an address");
    let kernel = setup.updater.same_boot(&taken).expect("located").0;
    kernel
        .translate(&setup.updater.engine, crate::engine::Va(target), "new code")
        .expect("the jump leads to mapped memory");
}

#[test]
fn memory_of_an_unknown_service_is_not_touched() {
    let mut first = setup(guest());
    first.updater.apply(&bytes(&bundle()), false).expect("applied");
    let mut other = bundle();
    other.functions[0].old_address += 32;
    other.manifest.functions[0].old_address = Some(TEXT + OLD + 32);
    let mut second = setup(std::mem::take(&mut first.updater.engine).with_memory(Pa(fake::IMAGE + OLD + 32), &LIVE));
    let before = second.updater.engine.memory();
    let problem = second.updater.apply(&bytes(&other), false).expect_err("its pages are in use").problem();
    assert_eq!((problem.status, problem.reason.as_str()), (3, "unknown-service"));
    assert!(second.updater.engine.memory() == before);
}

#[test]
fn an_entry_that_was_put_back_needs_no_undo() {
    let mut setup = setup(guest());
    let before = setup.updater.engine.memory();
    setup.updater.apply(&bytes(&bundle()), false).expect("applied");
    setup.updater.engine = std::mem::take(&mut setup.updater.engine).with_memory(Pa(fake::IMAGE + OLD), &LIVE[..5]);
    setup.updater.look().expect("looked");
    assert_eq!(setup.updater.list()[0].reason.as_deref(), Some("changed-since"));
    let info = setup.updater.undo("fix").expect("undone");
    assert_eq!((info.state, info.kept_pages, info.reason), (BundleState::Removed, 0, None));
    assert!(setup.updater.engine.memory() == before);
}

#[test]
fn an_entry_changed_by_someone_else_is_not_overwritten() {
    let mut setup = setup(guest());
    setup.updater.apply(&bytes(&bundle()), false).expect("applied");
    let engine = std::mem::take(&mut setup.updater.engine).with_memory(Pa(fake::IMAGE + OLD), &[0xcc]);
    setup.updater.engine = engine;
    let before = setup.updater.engine.memory();
    let problem = setup.updater.undo("fix").expect_err("not ours").problem();
    assert_eq!(problem.reason, "changed-since");
    assert!(setup.updater.engine.memory() == before);
}

#[test]
fn memory_is_kept_while_something_may_refer_to_it() {
    // A sleeping task inside the new function.
    let mut setup = setup(guest());
    let info = setup.updater.apply(&bytes(&bundle()), false).expect("applied");
    let inside = u64::from_str_radix(&info.functions[0].new_address[2..], 16).expect("an address") + 7;
    let slot = Pa(fake::IMAGE + SECOND_STACK + 0x3f80);
    setup.updater.engine = std::mem::take(&mut setup.updater.engine).with_memory(slot, &inside.to_le_bytes());
    let info = setup.updater.undo("fix").expect("undone");
    assert_eq!((info.kept_pages, info.reason.as_deref()), (2, Some("kept-still-in-use")));
    // The same bundle again: not while the task is inside, then in the same place.
    assert_eq!(setup.updater.apply(&bytes(&bundle()), false).expect_err("inside").problem().reason, "busy");
    setup.updater.engine = std::mem::take(&mut setup.updater.engine).with_memory(slot, &[0; 8]);
    setup.updater.apply(&bytes(&bundle()), false).expect("applied in the kept pages");
    assert_eq!(setup.updater.undo("fix").expect("undone").kept_pages, 0);
    assert!(setup.updater.engine.memory()[&Pa(0x1000)] == guest().memory()[&Pa(0x1000)]);

    // An address of new code may have been stored anywhere.
    let mut taken = bundle();
    taken.payload.relocs[0].symbol = 0;
    setup.updater.apply(&bytes(&taken), false).expect("applied");
    let info = setup.updater.undo("fix").expect("undone");
    assert_eq!((info.kept_pages, info.reason.as_deref()), (2, Some("kept-address-taken")));
}

#[test]
fn nobody_may_stand_inside_the_bytes_of_the_jump() {
    // An entry of several instructions: push rbp; mov rbp, rsp; nop.
    let mut old = LIVE;
    old[..5].copy_from_slice(&[0x55, 0x48, 0x89, 0xe5, 0x90]);
    let mut bundle = bundle();
    bundle.functions[0].expected = old.to_vec();
    bundle.functions[0].sites.clear();
    let file = bytes(&bundle);

    let apply = |change: &dyn Fn(&mut Image), registers| {
        let mut image = fake::image(&old);
        change(&mut image);
        let mut engine = fake::engine(&image);
        engine.set_registers(vec![registers]);
        let before = engine.memory();
        let mut setup = setup(engine);
        let result = setup.updater.apply(&file, false);
        assert!(result.is_ok() || setup.updater.engine.memory() == before);
        assert!(setup.updater.engine.is_running());
        result.map_err(|error| error.problem().message)
    };
    let word = |at: u64, value: u64| move |image: &mut Image| image.word(at, value);
    let inside = live(OLD + 1);
    apply(&|_| {}, fake::user()).expect("nobody");
    apply(&|_| {}, fake::kernel(live(OLD))).expect("at the start is not inside");
    apply(&|_| {}, fake::kernel(live(OLD + 5))).expect("behind is not inside");
    let message = apply(&|_| {}, fake::kernel(inside)).expect_err("a processor");
    assert!(message.contains("processor 0"), "{message}");
    let message = apply(&word(SECOND_STACK + 0x3f80, inside), fake::user()).expect_err("a task");
    assert!(message.contains("task 42 (task?[31m)"), "{message}");
    apply(&word(SECOND_STACK + 0x100, inside), fake::user()).expect("below the saved stack pointer: stale");
    apply(&word(fake::STACK + 0x3f80, inside), fake::user()).expect("the current task is in user mode");
    apply(&word(fake::STACK + 0x3f80, inside), fake::kernel(live(0))).expect_err("the current task is in the kernel");
    // Return addresses that tracers keep elsewhere.
    let shadow = SECOND_TASK + 0x280;
    let graphed = |index: i32| {
        move |image: &mut Image| {
            image.word(SECOND_TASK + 88, live(shadow));
            image.put(SECOND_TASK + 96, &index.to_le_bytes());
            image.word(shadow + 24, inside);
        }
    };
    let message = apply(&graphed(1), fake::user()).expect_err("a traced function returns there");
    assert!(message.contains("task 42") && message.contains("tracers"), "{message}");
    apply(&graphed(0), fake::user()).expect("the second entry is not in use");
    let probed = move |image: &mut Image| {
        image.word(SECOND_TASK + 104, live(shadow + 16));
        image.word(shadow + 32, inside);
    };
    apply(&probed, fake::user()).expect_err("a probed function returns there");
    let endless = move |image: &mut Image| {
        image.word(SECOND_TASK + 104, live(shadow + 16));
        image.word(shadow + 16, live(shadow + 16));
    };
    assert!(apply(&endless, fake::user()).expect_err("a loop").contains("no end"));
    let lost = crate::engine::Registers { rsp: 0x1234, ..fake::kernel(live(0)) };
    assert!(apply(&|_| {}, lost).expect_err("unknown stack").contains("is not a known one"));
    // Hostile lists end.
    let looping = apply(&word(SECOND_TASK, live(SECOND_TASK)), fake::user()).expect_err("a loop");
    assert!(looping.contains("no end"), "{looping}");
    let garbage = apply(&word(SECOND_TASK, 0x1122_3344_5566_7788), fake::user()).expect_err("a bad pointer");
    assert!(garbage.contains("does not map"), "{garbage}");
    assert!(apply(&word(VARIABLES + 4 * 16, u64::MAX), fake::user()).is_err(), "absurd number of processors");
}

#[test]
fn a_guest_that_could_not_be_let_go_is_let_go_later() {
    let file = bytes(&bundle());
    let mut reference = setup(guest());
    let before = reference.updater.engine.memory();
    reference.updater.apply(&file, false).expect("applied");
    let resume = reference
        .updater
        .engine
        .calls()
        .iter()
        .position(|call| *call == crate::engine::mock::Call::Resume)
        .expect("one");
    let mut setup = setup(guest());
    setup.updater.engine.fail_from(resume + 1);
    setup.updater.apply(&file, false).expect_err("the guest does not continue");
    assert!(!setup.updater.engine.is_running());
    setup.updater.engine.fail_never();
    setup.updater.settle();
    assert!(setup.updater.engine.is_running() && setup.updater.engine.memory() == before);
    setup.updater.apply(&file, false).expect("applied");
}

#[test]
fn times_are_civil() {
    let at = |seconds| super::rfc3339(std::time::UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(at(0), "1970-01-01T00:00:00Z");
    assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
    assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
    assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59Z");
}

#[test]
fn the_service_answers_and_refuses_a_second_one() {
    use crate::client::ask;
    use crate::protocol::{Reply, Request};
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("api");
    drop(UnixListener::bind(&path).expect("a socket that will be stale"));
    let socket = ControlSocket::open(&path).expect("the stale socket is replaced");
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(ControlSocket::open(&path).expect_err("served").reason, "already-served");
    let (stop, stopped) = UnixStream::pair().expect("a pair");
    let server = std::thread::spawn(move || {
        let mut updater =
            Updater::open(guest(), Journal::beside(&folder.path().join("api")), PATIENCE).expect("opened");
        let ended = serve(&mut updater, &socket, &stopped, |_: &MockEngine| false).expect("served");
        drop(socket);
        (ended, folder)
    });
    let file = bytes(&bundle());
    let size = file.len() as u64;
    let Ok(Reply::Bundle(info)) = ask(&path, &Request::Apply { size, in_arena: false, stay: false }, &file) else {
        panic!("not applied")
    };
    assert_eq!(info.state, BundleState::Applied);
    let Ok(Reply::Bundles(list)) = ask(&path, &Request::List, &[]) else { panic!("no list") };
    assert_eq!(list, [*info]);
    let Ok(Reply::Status(status)) = ask(&path, &Request::Status, &[]) else { panic!("no status") };
    assert_eq!((status.engine.as_str(), status.applied, status.paused), ("mock", 1, false));
    let problem =
        ask(&path, &Request::Apply { size: u64::MAX, in_arena: false, stay: false }, &[]).expect_err("too large");
    assert_eq!((problem.status, problem.reason.as_str()), (3, "corrupted-bundle"));
    for nonsense in [&b"nonsense\n"[..], b"{}\n", &[b'x'; 70_000]] {
        let mut stream = UnixStream::connect(&path).expect("connected");
        // The service may hang up before it has read everything.
        let _ = stream.write_all(nonsense);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        if stream.read_to_string(&mut answer).is_ok() {
            assert!(answer.contains("bad-request"), "{answer}");
        }
    }
    // A client that goes away in the middle of its bundle.
    let mut half = UnixStream::connect(&path).expect("connected");
    half.write_all(format!("{{\"op\":\"apply\",\"size\":{size}}}\n").as_bytes()).expect("sent");
    half.write_all(&file[..100]).expect("sent");
    drop(half);
    assert!(ask(&path, &Request::Undo { name: "fix".into() }, &[]).is_ok());
    drop(stop);
    let (ended, _folder) = server.join().expect("no panic");
    assert_eq!(ended, Ended::Asked);
    assert_eq!(ask(&path, &Request::List, &[]).expect_err("gone").reason, "no-service");
}
