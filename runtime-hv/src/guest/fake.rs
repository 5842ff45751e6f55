//! A small Linux-like guest in memory, for tests: page tables, interrupt table, notes, page array, one processor, tasks.

pub(crate) mod worker;

use super::paging::PAGE;
use crate::engine::mock::MockEngine;
use crate::engine::{Pa, Registers};
use lpk_format::{GuestProfile, KernelId};
use std::collections::BTreeMap;

/// Link address of the image.
pub(crate) const TEXT: u64 = 0xffff_ffff_8100_0000;
/// Slide of the guest.
pub(crate) const SLIDE: u64 = 0x140_0000;
/// Physical address of the image.
pub(crate) const IMAGE: u64 = 0x100_0000;
/// Offset of the old function in the image.
pub(crate) const OLD: u64 = 0x1000;
const DIVIDE: u64 = 0x2000;
const NOTES: u64 = 0x3000;
const TOP: u64 = 0x4000;
const LEVEL2: u64 = 0x5000;
const IDT: u64 = 0x6000;
pub(crate) const INIT_TASK: u64 = 0x7000;
pub(crate) const SECOND_TASK: u64 = 0x7400;
/// Variables.
pub(crate) const VARIABLES: u64 = 0x8000;
const LEVEL3: u64 = 0x9000;
/// Stack of the first task.
pub(crate) const STACK: u64 = 0xa000;
pub(crate) const PERCPU: u64 = 0xe000;
/// The processor's list of work, in its per-CPU area.
pub(crate) const LIST: u64 = 32;
/// Handler of the interrupt that looks there, and its vector.
const IRQ_WORK: u64 = 0x2100;
pub(crate) const VECTOR: u8 = 0xf6;
const PAGES: u64 = 0xf000;
const IRQ_STACK: u64 = 0x1_0000;
const DIRECT3: u64 = 0x1_4000;
/// Stack of the second task.
pub(crate) const SECOND_STACK: u64 = 0x1_8000;
const END: u64 = 0x1_c000;
const DIRECT_MAP: u64 = 0xffff_8800_0000_0000;

/// Live address of an offset in the image.
pub(crate) fn live(offset: u64) -> u64 {
    TEXT + SLIDE + offset
}

/// Variables that the profile names.
const NAMED: [&str; 8] = [
    "vmemmap_base",
    "real_mode_header",
    "x86_return_thunk",
    "__per_cpu_offset",
    "nr_cpu_ids",
    "text_mutex",
    "kprobe_table",
    "__cpu_online_mask",
];

/// Variables that only addresses lead to.
const UNNAMED: [&str; 2] = ["pv_slot", "static_key"];

/// Offset of a variable.
pub(crate) fn variable(name: &str) -> u64 {
    let mut names = NAMED.iter().chain(&UNNAMED);
    VARIABLES + names.position(|known| *known == name).expect("a variable of the fake") as u64 * 16
}

/// The kernel's identity.
pub(crate) fn kernel_id() -> KernelId {
    KernelId { build_id: vec![7; 20], release: "6.1.0-fake".into(), banner: "Linux version 6.1.0-fake".into() }
}

/// The profile that a bundle for it carries.
pub(crate) fn profile() -> GuestProfile {
    let mut symbols: BTreeMap<String, u64> = [
        ("_text", 0),
        ("_end", END),
        ("asm_exc_divide_error", DIVIDE),
        ("__start_notes", NOTES),
        ("__stop_notes", NOTES + 36),
        ("init_top_pgt", TOP),
        ("level2_kernel_pgt", LEVEL2),
        ("init_task", INIT_TASK),
        ("boot_cpu_data", VARIABLES + 0x800),
        ("real_mode_blob", 0x400),
        ("real_mode_blob_end", 0x400 + 0x1800),
        ("_paravirt_nop", 0x500),
        ("its_return_thunk", 0x700),
        ("__x86_indirect_thunk_array", 0x2400),
        ("asm_sysvec_irq_work", IRQ_WORK),
    ]
    .map(|(name, offset)| (name.to_owned(), TEXT + offset))
    .into();
    for name in NAMED {
        symbols.insert(name.to_owned(), TEXT + variable(name));
    }
    for (name, offset) in [
        ("current_task", 0),
        ("hardirq_stack_ptr", 8),
        ("cea_exception_stacks", 16),
        ("idle_threads", 24),
        ("raised_list", LIST),
        ("x86_cpu_to_apicid", 40),
    ] {
        symbols.insert(name.to_owned(), offset);
    }
    let map = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    GuestProfile {
        symbols,
        offsets: map(&[
            ("task_struct.tasks", 0),
            ("task_struct.thread_node", 16),
            ("task_struct.signal", 32),
            ("task_struct.stack", 40),
            ("task_struct.thread", 48),
            ("thread_struct.sp", 0),
            ("task_struct.pid", 56),
            ("task_struct.flags", 60),
            ("task_struct.comm", 64),
            ("task_struct.ret_stack", 88),
            ("task_struct.curr_ret_stack", 96),
            ("task_struct.rethooks", 104),
            ("rethook_node.llist", 16),
            ("rethook_node.ret_addr", 32),
            ("signal_struct.thread_head", 0),
            ("page.flags", 0),
            ("mutex.owner", 0),
            ("kprobe.hlist", 0),
            ("kprobe.addr", 32),
            ("kprobe.flags", 112),
            ("cpuinfo_x86.x86_capability", 0),
        ]),
        sizes: map(&[
            ("page", 8),
            ("cpuinfo_x86.x86_capability", 96),
            ("ftrace_ret_stack", 24),
            ("exception_table_entry", 12),
        ]),
        constants: map(&[
            ("KPROBE_TABLE_SIZE", 2),
            ("THREAD_SIZE", 0x4000),
            ("PG_reserved", 12),
            ("X86_FEATURE_RETHUNK", 11 * 32 + 14),
        ]),
    }
}

/// Contents of the image.
pub(crate) struct Image(pub(crate) Vec<u8>);

impl Image {
    /// Writes bytes at an offset.
    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes a word at an offset.
    pub(crate) fn word(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
}

/// A booted guest's image, with `old` as the live bytes of the old function.
pub(crate) fn image(old: &[u8]) -> Image {
    let mut image = Image(vec![0; END as usize]);
    image.put(OLD, old);
    // Notes: one that is not ours, then GNU build id.
    image.put(NOTES, &[4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0]);
    image.put(NOTES + 12, b"GNU\0");
    image.put(NOTES + 16, &[7; 20]);
    // Page tables: the kernel's 2 MiB page, and a direct map of the first GiB.
    image.word(TOP + 511 * 8, (IMAGE + LEVEL3) | 0x63);
    image.word(TOP + 272 * 8, (IMAGE + DIRECT3) | 0x63);
    image.word(LEVEL3 + 510 * 8, (IMAGE + LEVEL2) | 0x63);
    image.word(DIRECT3, 0xe3);
    image.word(LEVEL2 + (TEXT + SLIDE - 0xffff_ffff_8000_0000) / (2 << 20) * 8, IMAGE | 0xe3);
    for (vector, entry) in [(0, DIVIDE), (u64::from(VECTOR), IRQ_WORK)] {
        let [a, b, c, d, rest @ ..] = live(entry).to_le_bytes();
        let mut gate = vec![a, b, 0x10, 0, 0, 0x8e, c, d];
        gate.extend(rest);
        image.put(IDT + vector * 16, &gate);
    }
    for page in 0..0xa0 {
        image.word(PAGES + page * 8, 1 << 12);
    }
    for (name, value) in [
        ("vmemmap_base", live(PAGES)),
        ("real_mode_header", DIRECT_MAP + 0x9_8000),
        ("x86_return_thunk", live(0x600)),
        ("__per_cpu_offset", live(PERCPU)),
        ("nr_cpu_ids", 1),
        ("text_mutex", 0),
        ("pv_slot", live(0x900)),
        ("static_key", live(0xa00)),
        ("__cpu_online_mask", 1),
    ] {
        image.word(variable(name), value);
    }
    // Per-CPU: current is the first task.
    for (at, value) in
        [(0, live(INIT_TASK)), (8, live(IRQ_STACK) + 0x4000 - 8), (16, 0xffff_fe00_0000_1000), (24, live(INIT_TASK))]
    {
        image.word(PERCPU + at, value);
    }
    // Two tasks; the signal structure of the second holds one thread.
    let task = |image: &mut Image, at: u64, next: u64, stack: u64, pid: u8| {
        image.word(at, live(next));
        image.word(at + 16, live(at + 0x200));
        image.word(at + 32, live(at + 0x200));
        image.word(at + 0x200, live(at + 16));
        image.word(at + 40, live(stack));
        image.word(at + 48, live(stack) + 0x3f00);
        image.put(at + 56, &[pid]);
        image.put(at + 64, b"task\x1b[31m");
        image.put(at + 96, &(-1_i32).to_le_bytes());
    };
    task(&mut image, INIT_TASK, SECOND_TASK, STACK, 0);
    task(&mut image, SECOND_TASK, INIT_TASK, SECOND_STACK, 42);
    image
}

/// Registers of the processor: in user mode with the kernel's page table.
pub(crate) fn user() -> Registers {
    Registers {
        rip: 0x40_0000,
        rsp: 0x7fff_0000,
        cpl: 3,
        cr3: (IMAGE + TOP) | 3,
        idt_base: live(IDT),
        ..Registers::default()
    }
}

/// Registers of the processor: in the kernel, on the first task's stack.
pub(crate) fn kernel(rip: u64) -> Registers {
    Registers { rip, rsp: live(STACK) + 0x3e00, cpl: 0, gs_base: live(PERCPU), ..user() }
}

/// The guest.
pub(crate) fn engine(image: &Image) -> MockEngine {
    // Low memory is not all zeros: firmware has used it.
    let low: Vec<u8> = (0..0xa0 * PAGE).map(|at| (at / 7 + at / PAGE) as u8).collect();
    let modules = vec![0; (worker::END - worker::AREAS) as usize];
    let mut engine = MockEngine::new()
        .with_memory(Pa(0), &low)
        .with_memory(Pa(IMAGE), &image.0)
        .with_memory(Pa(IMAGE + worker::AREAS), &modules)
        .with_handler(worker::interrupt);
    engine.set_registers(vec![user()]);
    engine
}
