//! A small guest with two tasks, one processor, a module, and tracers.

use super::*;
use crate::engine::Pa;
use crate::engine::mock::MockEngine;
use crate::guest::fake::{self, IMAGE, INIT_TASK, Image, PERCPU, SECOND_STACK, SECOND_TASK, STACK, TEXT, live};
use crate::guest::{identity, tasks};
use crate::unwind::{End, FormatError, Stop, TableError};
use lpk_format::GuestProfile;

/// The tables: addresses, entries, a header.
const ADDRESSES: u64 = 0x8400;
const ENTRIES: u64 = 0x8440;
const HEADER: u64 = 0x8480;
/// A module, its tables and its code.
const MODULES: u64 = 0x8a00;
const MODULE: u64 = 0x8a40;
const MODULE_ADDRESSES: u64 = 0x8b40;
const MODULE_ENTRIES: u64 = 0x8b80;
const MODULE_CODE: u64 = TEXT + 0x4000_0000;
/// Records of tracers.
pub(crate) const RECORDS: u64 = 0x8c00;
const TRACER: u64 = 0x8e00;
/// Code: where nobody is called from, a function, another with 16 bytes on the stack, and the code of tracers.
const FIRST: u64 = 0x10;
const LEAF: u64 = 0x1010;
const DEEP: u64 = 0x1110;
pub(crate) const HOOK: u64 = 0x1f00;
const FORK: u64 = 0x40;
/// End of what is used of the two stacks.
const TOP: u64 = 0x3f48;

/// Entries in the format of Linux 4.18.
const END: [u8; 6] = [0, 0, 0, 0, 0x00, 0b100];
const CALL_8: [u8; 6] = [8, 0, 0, 0, 0x05, 0];
const CALL_24: [u8; 6] = [24, 0, 0, 0, 0x05, 0];

pub(crate) fn profile() -> GuestProfile {
    let mut profile = fake::profile();
    let symbols = [
        ("_stext", 0),
        ("_etext", 0x3000),
        ("__start_orc_unwind_ip", ADDRESSES),
        ("__stop_orc_unwind_ip", ADDRESSES + 20),
        ("__start_orc_unwind", ENTRIES),
        ("__stop_orc_unwind", ENTRIES + 30),
        ("return_to_handler", HOOK),
        ("arch_rethook_trampoline", HOOK + 0x20),
        ("ret_from_fork", FORK),
        ("modules", MODULES),
        ("ftrace_ops_list", TRACER),
        ("ftrace_caller", 0x1000),
        ("ftrace_regs_caller", 0x1100),
        ("ftrace_regs_caller_end", 0x1200),
    ];
    profile.symbols.extend(symbols.map(|(name, offset)| (name.to_owned(), TEXT + offset)));
    let offsets = [
        ("orc_entry.sp_offset", 0),
        ("orc_entry.bp_offset", 2),
        ("inactive_task_frame.bp", 40),
        ("inactive_task_frame.ret_addr", 48),
        ("ftrace_ret_stack.ret", 0),
        ("ftrace_ret_stack.retp", 16),
        ("rethook_node.frame", 40),
        ("module.list", 8),
        ("module.name", 24),
        ("module.state", 0),
        ("module.arch", 88),
        ("module.core_layout", 120),
        ("module.init_layout", 136),
        ("mod_arch_specific.num_orcs", 0),
        ("mod_arch_specific.orc_unwind_ip", 8),
        ("mod_arch_specific.orc_unwind", 16),
        ("module_layout.base", 0),
        ("module_layout.text_size", 8),
        ("ftrace_ops.next", 0),
        ("ftrace_ops.trampoline", 8),
        ("ftrace_ops.trampoline_size", 16),
    ];
    profile.offsets.extend(offsets.map(|(name, offset)| (name.to_owned(), offset)));
    profile.sizes.extend([("orc_entry", 6), ("inactive_task_frame", 56)].map(|(name, size)| (name.to_owned(), size)));
    let bits = [("sp_reg", 32, 4), ("bp_reg", 36, 4), ("type", 40, 2), ("end", 42, 1)];
    for (name, first, count) in bits {
        profile.constants.insert(format!("orc_entry.{name}.bit"), first);
        profile.constants.insert(format!("orc_entry.{name}.bits"), count);
    }
    profile.constants.insert("MODULE_STATE_LIVE".into(), 0);
    profile
}

fn table(image: &mut Image, addresses: u64, entries: u64, code: &[(u64, [u8; 6])]) {
    for (index, (ip, entry)) in (0..).zip(code) {
        let at = addresses + index * 4;
        image.put(at, &(ip.wrapping_sub(live(at)) as i32).to_le_bytes());
        image.put(entries + index * 6, entry);
    }
}

/// The guest: both tasks sleep in two functions.
pub(crate) fn image() -> Image {
    let mut image = fake::image(&[0x90; 8]);
    let code =
        [(live(0), END), (live(0x1000), CALL_8), (live(0x1100), CALL_24), (live(HOOK), END), (live(0x2000), CALL_8)];
    table(&mut image, ADDRESSES, ENTRIES, &code);
    for (task, stack) in [(INIT_TASK, STACK), (SECOND_TASK, SECOND_STACK)] {
        image.word(task + 48, live(stack) + 0x3ee0);
        image.word(stack + 0x3ee0 + 48, live(LEAF));
        image.word(stack + 0x3f18, live(DEEP));
        image.word(stack + 0x3f30, live(FIRST));
    }
    image.word(MODULES, live(MODULES));
    image
}

/// Puts a module with a table on the list.
fn add_module(image: &mut Image) {
    add_module_at(image, MODULE_CODE);
}

/// The same with its code at a live address.
pub(crate) fn add_module_at(image: &mut Image, at: u64) {
    image.word(MODULES, live(MODULE + 8));
    image.word(MODULE + 8, live(MODULES));
    image.put(MODULE + 24, b"m");
    image.word(MODULE + 88, 2);
    image.word(MODULE + 96, live(MODULE_ADDRESSES));
    image.word(MODULE + 104, live(MODULE_ENTRIES));
    image.word(MODULE + 120, at);
    image.word(MODULE + 128, 0x100);
    table(image, MODULE_ADDRESSES, MODULE_ENTRIES, &[(at, CALL_8), (at + 0x80, CALL_24)]);
}

/// A context: the thread, what it does, and the places of its frames, counted from `_text`.
type Found = (Option<u32>, State, Vec<u64>, End);

struct Setup {
    engine: MockEngine,
    kernel: Kernel,
    unwinder: Unwinder,
}

fn setup(image: &Image, profile: &GuestProfile) -> Result<Setup, UnwindError> {
    let engine = fake::engine(image);
    let kernel = identity::locate(&engine, &[fake::user()], &fake::kernel_id(), profile).expect("the kernel");
    let unwinder = Unwinder::read(&engine, &kernel)?;
    Ok(Setup { engine, kernel, unwinder })
}

impl Setup {
    fn contexts(&mut self, registers: Registers) -> Result<Vec<Found>, UnwindError> {
        let processors = tasks::per_cpu(&self.engine, &self.kernel)?;
        let tasks = tasks::all(&self.engine, &self.kernel, &processors)?;
        self.unwinder.refresh(&self.engine, &self.kernel)?;
        let found = self.unwinder.contexts(&self.engine, &self.kernel, &[registers], &processors, &tasks)?;
        let places = |walk: &Walk| walk.frames.iter().map(|frame| frame.ip.wrapping_sub(live(0))).collect();
        let pid = |context: &Context| context.task.map(|index| tasks[index].pid);
        Ok(found.iter().map(|context| (pid(context), context.state, places(&context.walk), context.walk.end)).collect())
    }

    fn poke(&mut self, at: u64, word: u64) {
        self.engine.poke(Pa(IMAGE + at), &word.to_le_bytes());
    }
}

/// The idle task of a processor that is elsewhere, though it is its current task.
fn offline() -> Found {
    (Some(0), State::Offline, vec![], End::Complete)
}

/// What the second task always gives.
fn asleep(pid: u32) -> Found {
    (Some(pid), State::SwitchedOut, vec![LEAF, DEEP, FIRST], End::Complete)
}

fn running(rip: u64, rsp: u64) -> Registers {
    Registers { rsp, ..fake::kernel(rip) }
}

#[test]
fn each_task_and_processor_has_its_context() {
    let stopped = |stop| End::Stopped(stop);
    let stack = live(STACK);
    let unsettled = Registers { gs_base: 0, ..running(live(FIRST), 0x7fff_0000) };
    let cases = [
        ("elsewhere", fake::user(), vec![offline(), asleep(42)]),
        (
            "in a function",
            running(live(LEAF), stack + 0x3f18),
            vec![(Some(0), State::Running(0), vec![LEAF, DEEP, FIRST], End::Complete), asleep(42)],
        ),
        (
            "where nobody was called",
            running(live(FIRST), stack + TOP),
            vec![(Some(0), State::Running(0), vec![FIRST], End::Complete), asleep(42)],
        ),
        (
            "in the middle of a switch",
            running(live(LEAF), live(SECOND_STACK) + 0x3f18),
            vec![(Some(42), State::Running(0), vec![LEAF, DEEP, FIRST], End::Complete), asleep(0)],
        ),
        ("entering", unsettled, vec![(None, State::Running(0), vec![FIRST], End::Complete), offline(), asleep(42)]),
        (
            "in the middle of a switch, with a program's GS base",
            Registers { rip: live(LEAF), rsp: live(SECOND_STACK) + 0x3f18, ..unsettled },
            vec![
                (Some(42), State::Running(0), vec![LEAF, DEEP, FIRST], End::Complete),
                (Some(0), State::Unsettled, vec![], stopped(Stop::Unsettled)),
            ],
        ),
        (
            "in code of a tracer",
            running(live(HOOK + 0x10), stack + TOP),
            vec![
                (Some(0), State::Running(0), vec![HOOK + 0x10], stopped(Stop::LeftOut { ip: live(HOOK + 0x10) })),
                asleep(42),
            ],
        ),
        (
            "entering, with a stack pointer that a program chose",
            Registers { rsp: live(SECOND_STACK) + TOP, ..unsettled },
            vec![(None, State::Running(0), vec![FIRST], End::Complete), offline(), asleep(42)],
        ),
        (
            "on no stack",
            running(live(LEAF), 0x7fff_0000),
            vec![
                (Some(0), State::Running(0), vec![LEAF], stopped(Stop::NoStack { ip: live(LEAF), at: 0x7fff_0000 })),
                asleep(42),
            ],
        ),
        (
            "in code without tables",
            running(live(0x4000), stack + 0x3f18),
            vec![(Some(0), State::Running(0), vec![0x4000], stopped(Stop::NoTable { ip: live(0x4000) })), asleep(42)],
        ),
        ("not started", Registers { idt_base: 0, ..fake::kernel(0) }, vec![offline(), asleep(42)]),
    ];
    for (what, registers, expected) in cases {
        let mut setup = setup(&image(), &profile()).expect("tables");
        assert_eq!(setup.contexts(registers).expect("contexts"), expected, "{what}");
    }
}

#[test]
fn beginnings_and_ends_of_tasks() {
    let mut setup = setup(&image(), &profile()).expect("tables");
    // The current task of a processor in user mode, which is not its idle task.
    setup.poke(PERCPU, live(SECOND_TASK));
    let found = setup.contexts(fake::user()).expect("contexts");
    assert_eq!(found, [asleep(0), (Some(42), State::User, vec![], End::Complete)]);
    setup.poke(PERCPU, live(INIT_TASK));
    // It has not run yet.
    setup.poke(SECOND_STACK + 0x3ee0 + 48, live(FORK));
    let found = setup.contexts(fake::user()).expect("contexts");
    assert_eq!(found[1].1, State::New);
    // Its saved stack pointer leads nowhere.
    setup.poke(SECOND_TASK + 48, 0x1000);
    let found = setup.contexts(fake::user()).expect("contexts");
    assert_eq!(found[1], (Some(42), State::SwitchedOut, vec![0_u64.wrapping_sub(live(0))], found[1].3));
    assert!(matches!(found[1].3, End::Stopped(Stop::NoTable { .. })));
    // It has ended.
    setup.poke(SECOND_TASK + 40, 0);
    let found = setup.contexts(fake::user()).expect("contexts");
    assert_eq!(found, [offline(), (Some(42), State::Dead, vec![], End::Complete)]);
}

#[test]
fn return_addresses_that_tracers_keep() {
    let slots = [0x3f18, 0x3f30].map(|offset| live(SECOND_STACK) + offset);
    let hooked = |profile: &GuestProfile| {
        let mut setup = setup(&image(), profile).expect("tables");
        for slot in [0x3f18, 0x3f30] {
            setup.poke(SECOND_STACK + slot, live(HOOK));
        }
        setup
    };
    let taken = |found: &[Found]| matches!(found[1].3, End::Stopped(Stop::Taken { .. }));
    let mut setup = hooked(&profile());
    assert!(taken(&setup.contexts(fake::user()).expect("contexts")), "nobody keeps them");

    // Function graphs, as an array of records.
    let records = [(slots[1], FIRST), (slots[0], DEEP), (slots[0], HOOK)];
    for (index, (slot, address)) in (0..).zip(records) {
        setup.poke(RECORDS + index * 24, live(address));
        setup.poke(RECORDS + index * 24 + 16, slot);
    }
    setup.poke(SECOND_TASK + 88, live(RECORDS));
    setup.poke(SECOND_TASK + 96, 2);
    assert_eq!(setup.contexts(fake::user()).expect("contexts")[1], asleep(42));
    setup.poke(SECOND_TASK + 96, 0);
    assert!(taken(&setup.contexts(fake::user()).expect("contexts")), "what is above the top does not count");

    // As a stack of words: the top word of each record tells how far it goes down.
    let mut words = profile();
    words.offsets.insert("fgraph_ops.idx".into(), 0);
    let mut setup = hooked(&words);
    for (at, word) in [(0, live(FIRST)), (2, slots[1]), (3, 3), (4, live(DEEP)), (6, slots[0]), (7, 77), (8, 0x400 | 4)]
    {
        setup.poke(RECORDS + at * 8, word);
    }
    setup.poke(SECOND_TASK + 88, live(RECORDS));
    setup.poke(SECOND_TASK + 96, 9);
    assert_eq!(setup.contexts(fake::user()).expect("contexts")[1], asleep(42));
    for (place, word, top) in
        [(8, 9, 9), (8, 2, 9), (8, 0, 9), (3, 4, 9), (8, 4, 513), (8, 4, u64::from(u32::MAX) >> 1)]
    {
        setup.poke(RECORDS + place * 8, word);
        setup.poke(SECOND_TASK + 96, top);
        let error = setup.contexts(fake::user()).expect_err("damaged").to_string();
        assert!(error.contains("return stack"), "{place} {word} {top}: {error}");
    }

    // Probes on returns: a list.
    let mut setup = hooked(&profile());
    for (node, next, slot, address) in [(0, 0x40, slots[0], DEEP), (0x40, 0, slots[1], FIRST)] {
        setup.poke(RECORDS + node + 16, if next == 0 { 0 } else { live(RECORDS + next + 16) });
        setup.poke(RECORDS + node + 32, live(address));
        setup.poke(RECORDS + node + 40, slot);
    }
    setup.poke(SECOND_TASK + 104, live(RECORDS + 16));
    assert_eq!(setup.contexts(fake::user()).expect("contexts")[1], asleep(42));
    setup.poke(RECORDS + 0x40 + 16, live(RECORDS + 16));
    let error = setup.contexts(fake::user()).expect_err("a loop").to_string();
    assert!(error.contains("no end"), "{error}");
}

#[test]
fn modules_and_tracers_come_and_go() {
    let module = MODULE_CODE + 0x10;
    let mut with = image();
    add_module(&mut with);
    let mut setup = setup(&with, &profile()).expect("tables");
    let offset = |setup: &Setup, ip| setup.unwinder.tables().entry(ip).map(|entry| entry.expect("an entry").sp_offset);
    assert_eq!([module, module + 0x80, module + 0x100].map(|ip| offset(&setup, ip)), [Some(8), Some(24), None]);
    setup.poke(MODULES, live(MODULES));
    let refresh = |setup: &mut Setup| setup.unwinder.refresh(&setup.engine, &setup.kernel);
    refresh(&mut setup).expect("without it");
    assert_eq!(offset(&setup, module), None);
    setup.poke(MODULES, live(MODULE + 8));
    refresh(&mut setup).expect("with it again");
    assert_eq!(offset(&setup, module), Some(8));
    // Its table is another one, and damaged.
    setup.poke(MODULE + 96, live(MODULE_ADDRESSES) + 4);
    let error = refresh(&mut setup).expect_err("not in order").to_string();
    assert!(error.contains("module m"), "{error}");
    setup.poke(MODULE + 88, u64::from(u32::MAX));
    assert!(matches!(refresh(&mut setup), Err(UnwindError::Guest(GuestError::Damaged { .. }))), "too large");
    setup.poke(MODULE + 88, 0);
    refresh(&mut setup).expect("a module without a table");

    // Copies of ftrace's code: a small one of one function, a large one of the other.
    let (small, large) = (TEXT + 0x5000_0000, TEXT + 0x5000_1000);
    for (at, next, start, size) in [(0x40, 0x80, small, 0xf0), (0x80, 0, large, 0x100)] {
        setup.poke(TRACER + at, if next == 0 { 0 } else { live(TRACER + next) });
        setup.poke(TRACER + at + 8, start);
        setup.poke(TRACER + at + 16, size);
    }
    setup.poke(TRACER, live(TRACER + 0x40));
    refresh(&mut setup).expect("tracers");
    let found = [small, small + 0xf0, large, large + 0xff, large + 0x100].map(|ip| offset(&setup, ip));
    assert_eq!(found, [Some(8), None, Some(24), Some(24), None]);
    setup.poke(TRACER + 0x80, live(TRACER + 0x40));
    let error = refresh(&mut setup).expect_err("a loop").to_string();
    assert!(error.contains("no end"), "{error}");
}

#[test]
fn kernels_without_good_tables_are_refused() {
    let without = |name: &str| {
        let mut profile = profile();
        profile.symbols.remove(name);
        profile.constants.remove(name);
        profile.sizes.remove(name);
        setup(&image(), &profile).err().expect("refused").to_string()
    };
    assert!(without("__start_orc_unwind_ip").contains("CONFIG_UNWINDER_ORC"));
    for name in ["__stop_orc_unwind", "orc_entry", "orc_entry.type.bit", "THREAD_SIZE", "inactive_task_frame"] {
        assert!(without(name).contains(name), "{name}");
    }
    let mut unsorted = image();
    unsorted.put(ADDRESSES, &0x7000_0000_u32.to_le_bytes());
    let refused = setup(&unsorted, &profile()).err();
    assert!(
        matches!(refused, Some(UnwindError::Table { source: TableError::Order { index: 1, .. }, .. })),
        "{refused:?}"
    );
    let mut huge = profile();
    huge.symbols.insert("__stop_orc_unwind_ip".into(), TEXT + (1 << 30));
    assert!(matches!(setup(&image(), &huge).err(), Some(UnwindError::Guest(GuestError::Damaged { .. }))));
    // A hash where the form of the entries is one that has none.
    let mut header = profile();
    header.symbols.extend(
        [("__start_orc_header", 0), ("__stop_orc_header", 20)].map(|(name, at)| (name.to_owned(), TEXT + HEADER + at)),
    );
    assert!(matches!(setup(&image(), &header).err(), Some(UnwindError::Format(FormatError::Header(_)))));
}
