//! Stack walks from outside, against the kernel's own: what it says of sleeping tasks (`/proc/PID/task/TID/stack`) is what is
//! found from outside, frame for frame; and whatever a guest under load is stopped in, its stacks can be walked, or there is a
//! reason that is named here.

mod common;

use common::outside::{self, END_LOAD, on_another_series, on_older_kernel};
use lpk_format::ReadBundle;
use lucos_tests::guest::{Config, Guest};
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::{VISIBLE_FILE, VISIBLE_WORDS};
use runtime_hv::engine::qemu::QemuEngine;
use runtime_hv::engine::{Pause as _, Vcpus as _};
use runtime_hv::guest;
use runtime_hv::guest::frames::{Context, State, Unwinder};
use runtime_hv::guest::snapshot::Snapshot;
use runtime_hv::guest::tasks::{self, Task};
use runtime_hv::unwind::{End, Frame, Stop, Walk};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// A module of the kernel whose threads sleep in its own code.
const MODULE: &str = "kernel/net/core/pktgen.ko";
const MODULE_FUNCTION: &str = "pktgen_thread_worker";
const TRACING: &str = "/sys/kernel/tracing";
/// Code of tracers that a return address is in the hands of (`arch/x86/kernel/ftrace_64.S`, `rethook.c`).
const RETURNING: &[&str] = &["return_to_handler", "arch_rethook_trampoline"];
/// Functions that put a tracer's address into a slot before the record of it is complete (`arch/x86/kernel/ftrace.c`,
/// `kernel/trace/fgraph.c`, `kernel/trace/rethook.c`).
const TAKING: &[&str] = &["ftrace_graph_func", "prepare_ftrace_return", "function_graph_enter", "rethook_hook"];

/// Symbols of a running kernel by address.
struct Symbols {
    names: BTreeMap<u64, Vec<String>>,
    /// Code of the scheduler, which the kernel leaves out of what it shows (`kernel/stacktrace.c`, `stack_trace_consume_entry_nosched`).
    scheduler: std::ops::Range<u64>,
}

impl Symbols {
    /// Those of the image from its `System.map`, those of modules as the guest says.
    fn of(kernel: &Kernel, guest: &mut Guest, slide: u64) -> Symbols {
        let text = std::fs::read_to_string(kernel.system_map()).expect("a System.map");
        let modules = guest.run_ok(r"grep '\[' /proc/kallsyms; true").expect("the symbols of modules");
        let mut names: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        let lines = text.lines().map(|line| (line, slide)).chain(modules.lines().map(|line| (line, 0)));
        for (line, slide) in lines {
            let mut words = line.split_whitespace();
            let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
            let address = u64::from_str_radix(address, 16).expect("an address");
            if "tTwW".contains(kind) && address > u64::MAX >> 1 {
                names.entry(address.wrapping_add(slide)).or_default().push(name.to_owned());
            }
        }
        let place = |name: &str| kernel.symbol(name).expect("a symbol").wrapping_add(slide);
        let scheduler = place("__sched_text_start")..place("__sched_text_end");
        Symbols { names, scheduler }
    }

    /// Names of the function of a frame, and how far the frame's address is into it.
    fn of_frame(&self, frame: &Frame) -> (&[String], u64) {
        let found = self.names.range(..=frame.code()).next_back();
        found.map_or((&[], frame.ip), |(start, names)| (names.as_slice(), frame.ip.wrapping_sub(*start)))
    }

    /// Places where the tables are wrong. For the instruction behind the call of `error_entry` those of Linux 6.1 say where the
    /// saved registers were before it (`arch/x86/entry/entry_64.S`, `idtentry_body`); the kernel's own walks go astray there, too.
    /// While tasks change, the return stack buffer is filled by calls that the tables do not see (`__switch_to_asm`).
    fn is_misleading(&self, walk: &Walk, stop: &Stop) -> bool {
        let Some(last) = walk.frames.last().filter(|frame| frame.exact) else { return false };
        let names = self.of_frame(last).0;
        match stop {
            Stop::NotSaved { .. } => names.iter().any(|name| name.starts_with("asm_")),
            Stop::LeftOut { .. } => names.iter().any(|name| name == "__switch_to_asm"),
            _ => false,
        }
    }

    fn name(&self, frame: &Frame) -> String {
        let (names, offset) = self.of_frame(frame);
        format!("{}+{offset:#x}", names.first().map_or("", String::as_str))
    }

    /// Whether the kernel's text about a task says the same as a walk.
    fn agree(&self, lines: &[&str], frames: &[Frame]) -> bool {
        let frames: Vec<&Frame> = frames.iter().filter(|frame| !self.scheduler.contains(&frame.ip)).collect();
        lines.len() == frames.len()
            && lines.iter().zip(frames).all(|(line, frame)| {
                // `[<0>] do_nanosleep+0x67/0x190 [module]`
                let place = line.split_whitespace().nth(1).expect("a place");
                let (name, offsets) = place.split_once('+').expect("name and offset");
                let offset = offsets.split('/').next().and_then(|text| u64::from_str_radix(text.get(2..)?, 16).ok());
                let (names, distance) = self.of_frame(frame);
                offset == Some(distance) && names.iter().any(|known| known == name)
            })
    }

    fn describe(&self, task: Option<&Task>, context: &Context) -> String {
        let mut text = match task {
            Some(task) => format!("{} {} {:?}", task.pid, task.comm, context.state),
            None => format!("{:?}", context.state),
        };
        for frame in &context.walk.frames {
            let _ = write!(text, "\n  {}{}", self.name(frame), if frame.exact { " (exact)" } else { "" });
        }
        let _ = write!(text, "\n  {:?}", context.walk.end);
        text
    }
}

/// An attached guest, and what is needed to walk its stacks.
struct Outside {
    engine: QemuEngine,
    kernel: guest::Kernel,
    unwinder: Unwinder,
}

/// What one stop gives.
struct Look {
    tasks: Vec<Task>,
    contexts: Vec<Context>,
    /// Reading the list of tasks and what is new of tables, walking all stacks, and walking them with their pages at hand.
    times: [Duration; 3],
}

impl Outside {
    fn attach(guest: &Guest, bundle: &ReadBundle) -> Outside {
        let (engine, kernel) = outside::attach(guest, bundle);
        let unwinder = Unwinder::read(&engine, &kernel).expect("tables");
        Outside { engine, kernel, unwinder }
    }

    fn look(&mut self) -> Look {
        self.engine.pause().expect("stops");
        let registers = self.engine.registers().expect("registers");
        let start = Instant::now();
        let memory = Snapshot::of(&self.engine);
        let processors = tasks::per_cpu(&memory, &self.kernel).expect("per-CPU areas");
        let tasks = tasks::all(&memory, &self.kernel, &processors).expect("tasks");
        self.unwinder.refresh(&memory, &self.kernel).expect("tables");
        let listed = start.elapsed();
        let contexts = self.unwinder.contexts(&memory, &self.kernel, &registers, &processors, &tasks).expect("walks");
        let walked = start.elapsed() - listed;
        let again = self.unwinder.contexts(&memory, &self.kernel, &registers, &processors, &tasks).expect("walks");
        let times = [listed, walked, start.elapsed() - listed - walked];
        assert_eq!(contexts, again);
        // The word in the slot of every frame is its address, unless a tracer has put its own there.
        for frame in contexts.iter().flat_map(|context| &context.walk.frames).filter(|frame| !frame.hooked) {
            if let Some(slot) = frame.slot {
                let found = self.kernel.read_u64(&memory, runtime_hv::engine::Va(slot), "a slot").expect("a slot");
                assert_eq!(found, frame.ip, "slot {slot:#x}");
            }
        }
        drop(memory);
        self.engine.resume().expect("continues");
        Look { tasks, contexts, times }
    }
}

/// A file of every thread, by thread number: the lines in it that hold a word.
fn inside(guest: &mut Guest, file: &str, word: &str) -> BTreeMap<u32, Vec<String>> {
    let text = guest.run_ok(&format!("grep -s '{word}' /proc/[0-9]*/task/[0-9]*/{file}; true")).expect("answers");
    let mut found: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let (path, line) = line.split_once(':').expect("path and line");
        let thread = path.split('/').nth(4).and_then(|word| word.parse().ok()).expect("a thread");
        found.entry(thread).or_default().push(line.to_owned());
    }
    found
}

fn start_load(guest: &mut Guest) {
    guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS).expect("starts");
}

fn boot(name: &str, kernel: &Kernel, append: &str) -> (Guest, ReadBundle) {
    let mut config = Config::new(name, &kernel.vmlinuz());
    append.clone_into(&mut config.append);
    let module = [kernel.module(MODULE), kernel.module(&format!("{MODULE}.xz"))].into_iter().find(|path| path.exists());
    config.files = module.into_iter().collect();
    let (mut guest, bundle) = outside::boot(&config, kernel);
    guest.run_ok("insmod /files/pktgen.ko* && (sleep 1000 & sleep 1001 | cat > /tmp/x &)").expect("loads");
    (guest, bundle)
}

/// Compares with the kernel's own walks, and gives how many tasks were compared, and what was found.
fn compare(guest: &mut Guest, outside: &mut Outside, symbols: &Symbols) -> (usize, Look) {
    // Who has not run in between stands where the kernel said.
    let before = inside(guest, "status", "ctxt_switches");
    let stacks = inside(guest, "stack", "");
    let look = outside.look();
    let after = inside(guest, "status", "ctxt_switches");
    let mut compared = 0;
    for context in &look.contexts {
        let Some(task) = context.task.map(|index| &look.tasks[index]) else { continue };
        let (Some(lines), Some(switches)) = (stacks.get(&task.pid), before.get(&task.pid)) else { continue };
        if after.get(&task.pid) != Some(switches) {
            continue;
        }
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let said = symbols.describe(Some(task), context);
        assert!(symbols.agree(&lines, &context.walk.frames), "the kernel says\n{}\nfound:\n{said}", lines.join("\n"));
        assert_eq!(context.walk.end, End::Complete, "{said}");
        compared += 1;
    }
    (compared, look)
}

/// Stops the guest at random moments and says what was found, by kind; gives how often a processor was idle.
fn stops(outside: &mut Outside, symbols: &Symbols, count: usize, permitted: impl Fn(&Walk, &Stop) -> bool) -> usize {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let (mut frames, mut walks, mut idle, mut times) = (0, 0, 0, Vec::new());
    for _ in 0..count {
        // Long enough for a processor to get somewhere else.
        std::thread::sleep(Duration::from_micros(fastrand::u64(1_000..30_000)));
        let look = outside.look();
        times.push(look.times);
        for context in &look.contexts {
            walks += 1;
            let is_idle = context.task.is_some_and(|index| look.tasks[index].pid == 0);
            idle += usize::from(is_idle && matches!(context.state, State::Running(_)));
            frames += context.walk.frames.len();
            let state = match context.state {
                State::Running(_) => "running",
                State::User => "in user mode",
                State::SwitchedOut => "switched out",
                State::New => "new",
                State::Dead => "dead",
                State::Offline => "offline",
                State::Unsettled => "unsettled",
            };
            let end = match context.walk.end {
                End::Complete => "complete".to_owned(),
                End::Stopped(stop) => {
                    let task = context.task.map(|index| &look.tasks[index]);
                    let said = symbols.describe(task, context);
                    assert!(
                        permitted(&context.walk, &stop) || symbols.is_misleading(&context.walk, &stop),
                        "{stop}: {said}"
                    );
                    format!("{stop:?}").split([' ', '{']).next().unwrap_or_default().to_owned()
                }
            };
            *kinds.entry(format!("{state}, {end}")).or_default() += 1;
        }
    }
    let median = |index: usize| {
        let mut all: Vec<u128> = times.iter().map(|times: &[Duration; 3]| times[index].as_micros()).collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    eprintln!("{count} stops: {walks} walks, {frames} frames: {kinds:?}");
    let (listed, walked, again) = (median(0), median(1), median(2));
    eprintln!(
        "medians of a stop: {listed} µs for tasks and tables, {walked} µs for the walks, {again} µs with pages at hand"
    );
    idle
}

/// On a kernel: against its own walks, and at random moments.
fn truth(name: &str, kernel: &Kernel) {
    let (mut guest, bundle) = boot(name, kernel, "");
    start_load(&mut guest);
    let mut outside = Outside::attach(&guest, &bundle);
    let symbols = Symbols::of(kernel, &mut guest, outside.kernel.slide());
    let looks: Vec<_> = (0..5).map(|_| compare(&mut guest, &mut outside, &symbols)).collect();
    let compared = looks.iter().map(|(compared, _)| *compared).min().unwrap_or(0);
    eprintln!("{compared} tasks and more as the kernel walks them");
    assert!(compared > 40, "{compared} tasks");
    let is_in_module = |frame: &Frame| symbols.of_frame(frame).0.iter().any(|name| name == MODULE_FUNCTION);
    for (_, look) in &looks {
        let threads = look.contexts.iter().filter(|context| context.walk.frames.iter().any(is_in_module));
        assert!(threads.count() >= 2, "a thread for each processor sleeps in {MODULE_FUNCTION}");
    }
    stops(&mut outside, &symbols, 50, |_, _| false);

    // A processor that is taken away, and comes back.
    let online = "/sys/devices/system/cpu/cpu1/online";
    guest.run_ok(&format!("echo 0 > {online}")).expect("goes");
    stops(&mut outside, &symbols, 10, |_, _| false);
    guest.run_ok(&format!("echo 1 > {online}")).expect("comes");
    stops(&mut outside, &symbols, 10, |_, _| false);

    // An idle guest, with more tasks.
    let sleepers = "for i in $(seq 100); do sleep 3000 & done";
    guest.run_ok(&format!("{END_LOAD}; {sleepers}; usleep 300000")).expect("ends the load");
    let idle = stops(&mut outside, &symbols, 30, |_, _| false);
    assert!(idle > 30, "of 30 stops of 2 processors each, {idle} in the idle loop");
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

/// On a kernel whose functions are traced on entry and return.
fn traced(name: &str, kernel: &Kernel) {
    let (mut guest, bundle) = boot(name, kernel, "");
    let mut outside = Outside::attach(&guest, &bundle);
    let symbols = Symbols::of(kernel, &mut guest, outside.kernel.slide());
    // Few functions, and no load yet: QEMU 7.2's emulation of several processors can go on with a stale translation while code
    // changes that runs (docs/runtime.md).
    let sleepers = "hrtimer_nanosleep do_nanosleep pipe_read vfs_read ksys_read kernel_wait4 do_wait";
    let busy = "seq_read_iter seq_printf version_proc_show meminfo_proc_show loadavg_proc_show proc_single_show";
    let setup = format!(
        "mount -t tracefs tracefs {TRACING}; cd {TRACING}
         echo '{sleepers} {busy}' > set_ftrace_filter; echo function_graph > current_tracer
         for f in hrtimer_nanosleep vfs_read kernel_wait4; do echo \"r:lucos/$f $f\" >> kprobe_events; done
         echo 1 > events/lucos/enable
         mkdir instances/lucos; cd instances/lucos; echo '{busy}' > set_ftrace_filter; echo function > current_tracer"
    );
    guest.run_ok(&setup).expect("traces");
    start_load(&mut guest);
    guest.run_ok("(sleep 2000 & sleep 2001 | cat > /tmp/y &); usleep 200000").expect("sleeps");
    let hooked = |look: &Look, comm: &str| {
        let of = |context: &&Context| context.task.is_some_and(|index| look.tasks[index].comm == comm);
        let walks = look.contexts.iter().filter(of);
        walks.map(|context| context.walk.frames.iter().filter(|frame| frame.hooked).count()).max().unwrap_or(0)
    };
    let (compared, look) = compare(&mut guest, &mut outside, &symbols);
    assert!(compared > 30, "{compared} tasks");
    let (sleep, cat) = (hooked(&look, "sleep"), hooked(&look, "cat"));
    eprintln!("{compared} tasks as the kernel walks them; {sleep} and {cat} taken return addresses on two stacks");
    assert!(sleep >= 2 && cat >= 2, "{sleep}, {cat} return addresses are taken");

    // While a tracer takes a return address, or gives it back, it is in a register: the tables leave out the code that does
    // it, or the slot holds the tracer's address already and its records do not have it yet.
    let moving = |walk: &Walk, stop: &Stop| {
        let own = match stop {
            Stop::EndsEarly { .. } | Stop::LeftOut { .. } => RETURNING,
            Stop::Taken { .. } => TAKING,
            _ => return false,
        };
        walk.frames.iter().any(|frame| symbols.of_frame(frame).0.iter().any(|name| own.contains(&name.as_str())))
    };
    stops(&mut outside, &symbols, 200, moving);
    let end = format!(
        "{END_LOAD}; cd {TRACING}; echo nop > instances/lucos/current_tracer; echo nop > current_tracer
         echo 0 > events/lucos/enable; usleep 100000"
    );
    guest.run_ok(&end).expect("stops tracing");
    // What sleeps now returns through the tracers' code later.
    let (compared, look) = compare(&mut guest, &mut outside, &symbols);
    assert!(compared > 30 && hooked(&look, "sleep") >= 2, "{compared} tasks");
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

#[test]
fn with_return_addresses_taken_by_tracers() {
    on_older_kernel(|kernel| traced("unwind-traced", kernel));
}

#[test]
#[ignore = "needs a kernel of another series: cargo xtask series"]
fn with_return_addresses_taken_by_tracers_of_another_series() {
    on_another_series(|kernel| traced("unwind-traced-series", kernel));
}

/// Page-table isolation gives each way into the kernel a stack of its own first.
#[test]
fn with_page_table_isolation() {
    on_older_kernel(|kernel| {
        let (mut guest, bundle) = boot("unwind-pti", kernel, "pti=on");
        start_load(&mut guest);
        let mut outside = Outside::attach(&guest, &bundle);
        let symbols = Symbols::of(kernel, &mut guest, outside.kernel.slide());
        stops(&mut outside, &symbols, 200, |_, _| false);
        assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    });
}

#[test]
fn as_the_kernel_walks_them() {
    on_older_kernel(|kernel| truth("unwind", kernel));
}

#[test]
#[ignore = "needs a kernel of another series: cargo xtask series"]
fn as_a_kernel_of_another_series_walks_them() {
    on_another_series(|kernel| truth("unwind-series", kernel));
}
