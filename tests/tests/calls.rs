//! Functions of a stock kernel, called on an emulated processor through QEMU's debug stub: from whatever it was doing, with every
//! register as it was afterwards, and with a tool that dies half-way.

use lucos_tests::digest::Monitor;
use lucos_tests::guest::{Config, Guest};
use lucos_tests::kernels::Kernel;
use lucos_tests::{programs, require};
use runtime_hv::engine::qemu::{Attended, Earlier, QemuEngine, Rescued, rescue};
use runtime_hv::engine::{
    Call, CallError, Calls as _, Pa, Pause as _, ReadMemory as _, Va, Vcpu, Vcpus as _, Wake, WriteMemory as _,
};
use runtime_hv::guest::paging::{LARGE, Root, translate};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

/// `__START_KERNEL_map` (arch/x86/include/asm/page_64_types.h).
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// Entries of page tables: present; and writable; and not executable. Accessed and dirty, so that nobody writes to them.
const READ_EXECUTE: u64 = 1 | 1 << 5;
const READ_WRITE: u64 = 0b11 | 1 << 5 | 1 << 6 | 1 << 63;
const TABLE: u64 = 0b11 | 1 << 5;
/// The kernel's own interrupt for "look again whether to reschedule" (arch/x86/include/asm/irq_vectors.h, `RESCHEDULE_VECTOR`).
const RESCHEDULE: u8 = 0xfd;
/// Low memory that the kernel keeps for itself and does not use (arch/x86/kernel/setup.c): a page table; then what it maps.
const LOW: u64 = 0x2000;
/// Offsets in the window: what calls return to, `jmp .`, `cli; hlt; jmp` back to the `hlt`; the end of a stack; a buffer.
const BACK: u64 = 0x1000;
const ENDLESS: u64 = BACK + 0x40;
const HALTED: u64 = BACK + 0x80;
const STACK: u64 = 0x4000;
const BUFFER: u64 = 0x1_0000;
const BUFFER_SIZE: u64 = 0x1_0000;
/// Where the guest's own program says whether it found its registers as they should be (testdata/guest/registers.c).
const PROGRAM: &str = "registers";
const FOUND: &str = "/tmp/found";
/// Carry, parity, adjust, zero, sign, overflow (Intel SDM vol. 1, 3.4.3.1).
const ARITHMETIC: u64 = 0x8d5;
/// Where the child finds what to do.
const TOOL: &str = "LUCOS_TEST_CALL";

struct Calls {
    engine: QemuEngine,
    monitor: Monitor,
    symbols: BTreeMap<String, u64>,
    /// Live address less physical address of the image.
    delta: u64,
    window: u64,
    /// `__per_cpu_offset` of both processors.
    areas: Vec<u64>,
}

impl Calls {
    /// Attaches to a guest, and maps code and data in it.
    fn of(guest: &mut Guest) -> Calls {
        let names =
            ["asm_exc_divide_error", "level2_kernel_pgt", "init_top_pgt", "__per_cpu_offset", "int_sqrt", "memset"];
        let live = guest.symbols(&names).expect("symbols");
        let symbols: BTreeMap<String, u64> = names.map(str::to_owned).into_iter().zip(live).collect();
        let mut engine = QemuEngine::attach(guest.qmp().expect("a socket"), Earlier::Unknown).expect("attached");
        engine.pause().expect("stops");
        let registers = engine.registers().expect("registers")[0];
        let root = Root::of_registers(registers.cr3, registers.cr4);
        // Gate 0 of the interrupt table leads there (arch/x86/kernel/idt.c), also through a user page table.
        let handler = symbols["asm_exc_divide_error"];
        let delta = handler - translate(&engine, root, Va(handler)).expect("mapped").0;
        let monitor = Monitor::connect(guest.monitor().expect("a second socket")).expect("connects");
        let mut calls = Calls { engine, monitor, symbols, delta, window: 0, areas: Vec::new() };
        calls.map();
        calls.engine.resume().expect("goes on");
        calls
    }

    fn physical(&self, name: &str) -> Pa {
        Pa(self.symbols[name] - self.delta)
    }

    fn word(&self, at: Pa) -> u64 {
        let mut bytes = [0; 8];
        self.engine.read(at, &mut bytes).expect("memory");
        u64::from_le_bytes(bytes)
    }

    fn map(&mut self) {
        let directory = self.physical("level2_kernel_pgt");
        let entry = (1..512).find(|entry| self.word(Pa(directory.0 + entry * 8)) == 0).expect("a free entry");
        let page = |index: u64| match index * 0x1000 {
            BACK => (LOW + BACK) | READ_EXECUTE,
            0x2000..STACK => (LOW + index * 0x1000) | READ_WRITE,
            at if (BUFFER..BUFFER + BUFFER_SIZE).contains(&at) => (LOW + at) | READ_WRITE,
            _ => 0,
        };
        let table: Vec<u8> = (0..512).flat_map(|index| page(index).to_le_bytes()).collect();
        let code = self.engine.report_code();
        for (at, bytes) in
            [(0, &table[..]), (BACK, code), (ENDLESS, &[0xeb, 0xfe]), (HALTED, &[0xfa, 0xf4, 0xeb, 0xfd])]
        {
            self.engine.write(Pa(LOW + at), bytes).expect("memory");
        }
        self.engine.write(Pa(directory.0 + entry * 8), &(LOW | TABLE).to_le_bytes()).expect("memory");
        self.window = KERNEL_MAP + entry * LARGE;
        let areas = self.physical("__per_cpu_offset");
        self.areas = (0..2).map(|cpu| self.word(Pa(areas.0 + cpu * 8))).collect();
    }

    fn call(&self, cpu: usize, function: u64, arguments: [u64; 3], limit: Duration) -> Call {
        let [first, second, third] = arguments;
        Call {
            function: Va(function),
            arguments: [first, second, third, 0, 0, 0],
            stack: Va(self.window + STACK),
            back: Va(self.window + BACK),
            gs_base: self.areas[cpu],
            cr3: self.physical("init_top_pgt").0,
            limit,
            wake: Some(Wake { apic_id: cpu as u8, vector: RESCHEDULE }),
        }
    }

    fn processors(&mut self) -> Vec<String> {
        processors(&mut self.monitor)
    }
}

/// Everything that QEMU tells another client of all processors, but for two things that no program can see. Arithmetic flags: what
/// is shown of a stopped emulated processor are those that it goes on with, and beside them what the last instruction done there
/// left behind (QEMU target/i386/cpu.h, `cpu_compute_eflags`); the engine itself compares the former. Bits 16 to 19 of the last word
/// of CS and SS: a copy of the limit that `sysret` leaves out (target/i386/tcg/seg_helper.c) and a descriptor has.
fn processors(monitor: &mut Monitor) -> Vec<String> {
    let text = monitor.human("info registers -a").expect("an answer");
    let hex = |word: &str| u64::from_str_radix(word, 16).expect("a number");
    let visible = |line: &str| {
        if let Some((before, flags)) = line.split_once("FL=") {
            let (value, rest) = flags.split_at(8);
            let letters = rest.split_once(']').expect("the same in letters").1;
            format!("{before}FL={:08x}{letters}", hex(value) & !ARITHMETIC)
        } else if line.starts_with("CS =") || line.starts_with("SS =") {
            let words: Vec<&str> = line.split(' ').collect();
            format!("{} {:08x} {}", words[..4].join(" "), hex(words[4]) & !0xf_0000, words[5..].join(" "))
        } else {
            line.to_owned()
        }
    };
    text.split("CPU#").skip(1).map(|part| part.lines().map(visible).collect::<Vec<_>>().join("\n")).collect()
}

/// Names the lines that differ.
fn assert_same(after: &[String], before: &[String], when: &str) {
    assert_eq!(after.len(), before.len());
    let lines = |all: &[String]| all.join("\n").lines().map(str::to_owned).collect::<Vec<_>>();
    let (after, before) = (lines(after), lines(before));
    let different: Vec<_> = after.iter().zip(&before).filter(|(after, before)| after != before).collect();
    assert!(different.is_empty() && after.len() == before.len(), "{when}: after and before: {different:#?}");
}

fn boot(name: &str, kernel: &Kernel) -> Option<Guest> {
    let folder = tempfile::tempdir().expect("a folder");
    let program = require::or_skip(programs::compile(PROGRAM, folder.path()))?;
    let config = Config { append: "pti=on".to_owned(), files: vec![program], ..Config::new(name, &kernel.vmlinuz()) };
    let mut guest = Guest::under_plain_qemu(&config).expect("boots");
    // One processor runs a program that shows every wrong register, and system calls beside it; the other idles and takes
    // interrupts.
    guest
        .run_ok(&format!(
            "taskset 1 /files/{PROGRAM} > {FOUND} 2>&1 & \
             taskset 1 nice -n 10 sh -c 'while :; do cat /proc/version > /dev/null; done' > /dev/null 2>&1 &"
        ))
        .expect("starts");
    Some(guest)
}

/// The programs went on and were never wrong, and the kernel has not complained.
fn assert_unharmed(guest: &mut Guest) {
    let mut found = || {
        let text = guest.run_ok(&format!("sort {FOUND} | uniq -c")).expect("answers");
        let words: Vec<&str> = text.split_whitespace().collect();
        let [count, "right"] = words[..] else { panic!("{text}") };
        count.parse::<u64>().expect("a number")
    };
    let before = found();
    std::thread::sleep(Duration::from_secs(2));
    assert!(found() > before && before > 1);
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// What a processor was doing, by the text about it.
fn doing(text: &str) -> &'static str {
    if text.contains("HLT=1") {
        "halted"
    } else if text.contains("CPL=3") && text.contains("CS32") {
        "32-bit user mode"
    } else if text.contains("CPL=3") {
        "user mode"
    } else {
        "the kernel"
    }
}

/// A processor that was halted is awake afterwards; nothing else may differ.
fn woken(mut before: Vec<String>, cpu: usize) -> Vec<String> {
    before[cpu] = before[cpu].replace("HLT=1", "HLT=0");
    before
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let (Some(median), Some(longest)) = (times.get(times.len() / 2), times.last()) else { return };
    println!("{what}: {} calls, median {median:?}, longest {longest:?}", times.len());
}

#[test]
fn calls_return_the_right_value_from_whatever_a_processor_was_doing() {
    let Some(kernel) = require::older_kernel() else { return };
    if !require::qemu("it is about QEMU's debug stub") {
        return;
    }
    let Some(mut guest) = boot("calls", &kernel) else { return };
    let mut calls = Calls::of(&mut guest);
    let (mut times, mut not_now) = (BTreeMap::<_, Vec<Duration>>::new(), 0);
    for round in 0..200_u64 {
        std::thread::sleep(Duration::from_millis(3 + round % 7));
        calls.engine.pause().expect("stops");
        let cpu = (round % 2) as usize;
        let before = calls.processors();
        let call = calls.call(cpu, calls.symbols["int_sqrt"], [round * round + round, 0, 0], Duration::from_secs(2));
        let start = Instant::now();
        match calls.engine.call(Vcpu(cpu), &call) {
            Ok(value) => {
                times.entry(doing(&before[cpu])).or_default().push(start.elapsed());
                assert_eq!(value, round, "round {round}");
                assert_same(&calls.processors(), &woken(before, cpu), &format!("round {round}"));
            }
            Err(CallError::NotNow { .. }) => {
                not_now += 1;
                assert_same(&calls.processors(), &before, &format!("round {round}"));
            }
            Err(error) => panic!("round {round}: {error}"),
        }
        assert!(calls.engine.is_held().expect("told") && !calls.engine.is_paused().expect("told"));
        calls.engine.resume().expect("goes on");
    }
    println!("not at this moment: {not_now}");
    assert!(not_now < 20, "{not_now}");
    for (what, least) in [("user mode", 10), ("32-bit user mode", 10), ("halted", 20), ("the kernel", 1)] {
        assert!(times.get(what).is_some_and(|times| times.len() >= least), "{what}: {times:?}");
    }
    times.into_iter().for_each(|(what, times)| print(what, times));
    long_calls(&mut calls);
    calls_that_do_not_return(&mut calls);
    calls.engine.detach().expect("detached");
    assert!(!calls.monitor.human("info chardev").expect("an answer").contains("gdb: "));
    assert_unharmed(&mut guest);
}

/// Functions that take a while.
fn long_calls(calls: &mut Calls) {
    let mut times = Vec::new();
    for round in 0..50_u64 {
        std::thread::sleep(Duration::from_millis(3 + round % 7));
        calls.engine.pause().expect("stops");
        let (cpu, buffer) = ((round % 2) as usize, calls.window + BUFFER);
        let before = calls.processors();
        let call = calls.call(cpu, calls.symbols["memset"], [buffer, round + 1, BUFFER_SIZE], Duration::from_secs(5));
        let start = Instant::now();
        match calls.engine.call(Vcpu(cpu), &call) {
            Ok(value) => assert_eq!(value, buffer),
            Err(CallError::NotNow { .. }) => {
                calls.engine.resume().expect("goes on");
                continue;
            }
            Err(error) => panic!("round {round}: {error}"),
        }
        times.push(start.elapsed());
        assert_same(&calls.processors(), &woken(before, cpu), &format!("round {round}"));
        let mut bytes = vec![0; BUFFER_SIZE as usize];
        calls.engine.read(Pa(LOW + BUFFER), &mut bytes).expect("memory");
        assert!(bytes.iter().all(|&byte| u64::from(byte) == round + 1), "round {round}");
        calls.engine.resume().expect("goes on");
    }
    assert!(times.len() >= 40, "{}", times.len());
    print("memset of 64 KiB", times);
}

/// Code that loops for ever, or halts the processor for ever; and an owner who stops the guest meanwhile.
fn calls_that_do_not_return(calls: &mut Calls) {
    let mut done = 0;
    for round in 0..60 {
        std::thread::sleep(Duration::from_millis(5));
        calls.engine.pause().expect("stops");
        let (cpu, offset) = (round % 2, [ENDLESS, HALTED][round / 2 % 2]);
        let before = calls.processors();
        let call = calls.call(cpu, calls.window + offset, [0; 3], Duration::from_millis(100));
        match calls.engine.call(Vcpu(cpu), &call) {
            Err(CallError::Late { at, .. }) => {
                assert!((calls.window + offset..calls.window + offset + 4).contains(&at), "{at:#x}");
                assert_same(&calls.processors(), &woken(before, cpu), &format!("{offset:#x} on {cpu}"));
                done += 1;
            }
            Err(CallError::NotNow { .. }) => {}
            other => panic!("{other:x?}"),
        }
        calls.engine.resume().expect("goes on");
        if done == 12 {
            break;
        }
    }
    assert_eq!(done, 12);
    calls.engine.pause().expect("stops");
    let before = calls.processors();
    let call = calls.call(0, calls.window + ENDLESS, [0; 3], Duration::from_secs(20));
    std::thread::scope(|scope| {
        let monitor = &mut calls.monitor;
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            monitor.human("stop").expect("an answer");
        });
        let error = calls.engine.call(Vcpu(0), &call).expect_err("it was stopped");
        assert!(matches!(error, CallError::Strayed { .. }), "{error}");
    });
    assert_same(&calls.processors(), &woken(before, 0), "an owner's stop");
    calls.engine.resume().expect("goes on");
}

/// The owner has stopped the guest, so that its registers are known; a tool attaches, calls, and is killed.
#[test]
fn a_tool_that_dies_in_a_call_leaves_what_a_rescue_needs() {
    let Some(kernel) = require::older_kernel() else { return };
    if !require::qemu("it is about QEMU's debug stub") {
        return;
    }
    let Some(mut guest) = boot("calls-died", &kernel) else { return };
    let calls = Calls::of(&mut guest);
    let call = |calls: &Calls, cpu| calls.call(cpu, calls.window + ENDLESS, [0; 3], Duration::from_secs(60));
    let both = [call(&calls, 0), call(&calls, 1)];
    calls.engine.detach().expect("detached");
    let qmp = guest.qmp().expect("a socket").to_owned();
    let mut monitor = calls.monitor;
    for (round, owner_paused) in [(0, true), (1, true), (2, false), (3, false)] {
        let cpu = round % 2;
        monitor.human("stop").expect("stops");
        let before = processors(&mut monitor);
        if !owner_paused {
            monitor.human("cont").expect("goes on");
        }
        let Call { function, stack, back, gs_base, cr3, .. } = both[cpu];
        let words = [cpu as u64, function.0, stack.0, back.0, gs_base, cr3].map(|word| word.to_string()).join(" ");
        let mut tool = Command::new(std::env::current_exe().expect("this program"))
            .args(["--ignored", "--exact", "a_tool_that_never_comes_back"])
            .env(TOOL, format!("{words} {}", qmp.display()))
            .spawn()
            .expect("starts");
        // The function runs.
        let deadline = Instant::now() + Duration::from_secs(30);
        let at = format!("RIP={:016x}", function.0);
        while !monitor.human("info registers -a").expect("an answer").contains(&at) {
            assert!(Instant::now() < deadline && tool.try_wait().expect("told").is_none(), "it does not get there");
            std::thread::sleep(Duration::from_millis(5));
        }
        tool.kill().expect("killed");
        tool.wait().expect("gone");
        let error = QemuEngine::attach(&qmp, Earlier::Unknown).err().expect("half done").to_string();
        assert!(error.contains("died"), "{error}");
        // Half of the time by the watchdog, else by the next to attach. What the watchdog believes of the owner does not count.
        if cpu == 0 {
            assert_eq!(
                rescue(&qmp, &[], &mut Attended::default(), !owner_paused, &mut |_, _| Ok(())).expect("rescued"),
                Rescued::Restored { undone: 0 }
            );
        } else {
            drop(QemuEngine::attach(&qmp, Earlier::Died).expect("attached"));
        }
        let state = monitor.human("info status").expect("an answer");
        assert_eq!(state.contains("paused"), owner_paused, "{state}");
        if owner_paused {
            assert_same(&processors(&mut monitor), &woken(before, cpu), "rescued");
            monitor.human("cont").expect("goes on");
        }
        assert!(!monitor.human("info chardev").expect("an answer").contains("gdb: "));
        drop(QemuEngine::attach(&qmp, Earlier::Unknown).expect("attached: nothing is left behind"));
        assert_eq!(guest.run_ok("echo alive").expect("answers").trim(), "alive");
    }
    assert_unharmed(&mut guest);
}

#[test]
#[ignore = "it is the tool that another test kills"]
fn a_tool_that_never_comes_back() {
    let Ok(words) = std::env::var(TOOL) else { return };
    let mut words = words.splitn(7, ' ');
    let mut word = || words.next().and_then(|word| word.parse::<u64>().ok()).expect("a number");
    let [cpu, function, stack, back, gs_base, cr3] = [(); 6].map(|()| word());
    let qmp = words.next().expect("a path");
    let mut engine = QemuEngine::attach(qmp.as_ref(), Earlier::Unknown).expect("attached");
    let call = Call {
        function: Va(function),
        arguments: [0; 6],
        stack: Va(stack),
        back: Va(back),
        gs_base,
        cr3,
        limit: Duration::from_secs(60),
        wake: Some(Wake { apic_id: cpu as u8, vector: RESCHEDULE }),
    };
    loop {
        engine.pause().expect("stops");
        // At a moment at which it cannot be called the guest runs on.
        let error = engine.call(Vcpu(cpu as usize), &call).expect_err("it never returns");
        assert!(matches!(error, CallError::NotNow { .. }), "{error}");
        engine.resume().expect("goes on");
    }
}
