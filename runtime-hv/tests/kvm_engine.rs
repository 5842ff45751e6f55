//! The bundled hypervisor's powers on a stock kernel: calls from whatever a processor was doing, and traps under load.
//!
//! `cargo xtask kvm` runs this where KVM works. `LUCOS_KVM_KERNEL` names a kernel, `LUCOS_KVM_IMAGE` its vmlinux,
//! `LUCOS_KVM_INITRD` an initial file system with a shell on the console, `LUCOS_KVM_SYMBOLS` the kernel's System.map. Without
//! them, or without KVM, a test says so and passes.

use runtime_hv::engine::kvm::{End, KvmEngine, MachineConfig, probe};
use runtime_hv::engine::{
    Arena as _, ArenaSource, Attend, Call, Calls as _, Pa, Pause as _, ReadMemory, Registers, Stopped, Trapped, Va,
    Vcpu, Vcpus as _, Wake, Watch as _, WriteMemory as _, Written,
};
use runtime_hv::guest::paging::{ADDRESS, LARGE, Root, translate};
use std::collections::BTreeMap;
use std::io::{PipeWriter, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// `__START_KERNEL_map` (arch/x86/include/asm/page_64_types.h).
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// The kernel's half of the address space begins above this.
const KERNEL_HALF: u64 = 0xff00_0000_0000_0000;
const LIMIT: Duration = Duration::from_secs(240);
/// Entries of page tables: present; and writable; and not executable. Accessed and dirty, so that nobody writes to them.
const READ_EXECUTE: u64 = 1 | 1 << 5;
const READ_WRITE: u64 = 0b11 | 1 << 5 | 1 << 6 | 1 << 63;
const TABLE: u64 = 0b11 | 1 << 5;
/// The kernel's own interrupt for "look again whether to reschedule" (arch/x86/include/asm/irq_vectors.h, `RESCHEDULE_VECTOR`).
const RESCHEDULE: u8 = 0xfd;

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A booted kernel.
struct Guest {
    engine: KvmEngine,
    screen: Screen,
    keys: PipeWriter,
    symbols: BTreeMap<String, u64>,
    slide: u64,
    /// Live address less physical address of the image.
    delta: u64,
}

/// A skipped test says why; where everything is required it fails.
fn skip(reason: &str) -> Option<Guest> {
    assert!(std::env::var_os("LUCOS_REQUIRE_KVM").is_none(), "skipped: {reason}");
    println!("skipped: {reason}; `cargo xtask kvm` runs it");
    None
}

fn file(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

fn boot(append: &str) -> Option<Guest> {
    boot_from(file("LUCOS_KVM_KERNEL"), append)
}

fn boot_from(kernel: Option<PathBuf>, append: &str) -> Option<Guest> {
    let (Some(kernel), Some(initrd), Some(map)) = (kernel, file("LUCOS_KVM_INITRD"), file("LUCOS_KVM_SYMBOLS")) else {
        return skip("no kernel is named");
    };
    if let Err(reason) = probe() {
        return skip(&reason.to_string());
    }
    let text = std::fs::read_to_string(map).expect("a System.map");
    let symbol = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((words.nth(1)?.to_owned(), address))
    };
    let (input, keys) = std::io::pipe().expect("a pipe");
    let screen = Screen::default();
    let config = MachineConfig {
        kernel,
        initrd: Some(initrd),
        append: format!("console=ttyS0 panic=-1 {append}"),
        cpus: 2,
        memory_mib: 512,
        devices: Vec::new(),
        input: Some(Box::new(input)),
        output: Box::new(screen.clone()),
    };
    let engine = KvmEngine::start(config).expect("starts");
    let symbols = text.lines().filter_map(symbol).collect();
    let mut guest = Guest { engine, screen, keys, symbols, slide: 0, delta: 0 };
    guest.wait_for("Enter 'help'");
    guest.locate();
    Some(guest)
}

impl Guest {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.screen.0.lock().expect("no panic")).into_owned()
    }

    fn wait_for(&self, mark: &str) {
        let deadline = Instant::now() + LIMIT;
        while !self.text().contains(mark) {
            let end = self.engine.how_it_ended();
            assert!(end.is_none() && Instant::now() < deadline, "no `{mark}` ({end:?}):\n{}", self.text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Types a command and waits until it has ended.
    fn run(&mut self, command: &str, mark: u32) {
        // What is typed comes back as an echo; only the shell knows the sum.
        writeln!(self.keys, "{command}\necho done-$(({mark} + 1000))").expect("typed");
        self.wait_for(&format!("done-{}", mark + 1000));
    }

    /// Gate 0 of the interrupt table leads to `asm_exc_divide_error` (arch/x86/kernel/idt.c).
    fn locate(&mut self) {
        self.engine.pause().expect("stops");
        let registers = self.engine.registers().expect("registers");
        let processor = registers.iter().find(|one| one.idt_base >= KERNEL_HALF).expect("a booted kernel");
        let root = Root::of_registers(processor.cr3, processor.cr4);
        let mut gate = [0; 16];
        let table = translate(&self.engine, root, Va(processor.idt_base)).expect("mapped");
        self.engine.read(table, &mut gate).expect("memory");
        let handler = u64::from_le_bytes([gate[0], gate[1], gate[6], gate[7], gate[8], gate[9], gate[10], gate[11]]);
        self.slide = handler - self.symbols["asm_exc_divide_error"];
        self.delta = handler - translate(&self.engine, root, Va(handler)).expect("mapped").0;
        self.engine.resume().expect("goes on");
        assert!(self.slide.is_multiple_of(LARGE) && self.slide < 1 << 30, "{:#x}", self.slide);
    }

    fn live(&self, name: &str) -> u64 {
        self.symbols[name] + self.slide
    }

    fn physical(&self, name: &str) -> Pa {
        Pa(self.live(name) - self.delta)
    }

    fn word(&self, at: Pa) -> u64 {
        word_at(&self.engine, at)
    }

    /// Maps three pages of the arena through a free entry of the kernel's own table; the guest is stopped. Gives the address of
    /// the page with the report, and the end of a stack of two pages.
    fn map_arena(&mut self) -> (Va, Va) {
        let ArenaSource::Slot(base, _) = self.engine.arena() else { panic!("a slot") };
        let directory = self.physical("level2_kernel_pgt");
        let entry = (1..512).find(|entry| self.word(Pa(directory.0 + entry * 8)) == 0).expect("a free entry");
        let table =
            [(1, READ_EXECUTE), (2, READ_WRITE), (3, READ_WRITE)].map(|(page, bits)| (base.0 + page * 0x1000) | bits);
        self.engine.write(base, &table.map(u64::to_le_bytes).concat()).expect("memory");
        let report = self.engine.report_code();
        self.engine.write(Pa(base.0 + 0x1000), report).expect("memory");
        self.engine.write(Pa(directory.0 + entry * 8), &(base.0 | TABLE).to_le_bytes()).expect("memory");
        let window = KERNEL_MAP + entry * LARGE;
        (Va(window), Va(window + 0x3000))
    }

    /// No kernel warning, and the guest switches itself off.
    fn finish(mut self) {
        self.run("dmesg | grep -cE 'WARNING|BUG|Oops|stall|lockup' || echo no-warnings", 900);
        assert!(self.text().contains("\nno-warnings") || self.text().contains("\rno-warnings"), "{}", self.text());
        writeln!(self.keys, "poweroff -f").expect("typed");
        assert_eq!(self.engine.wait(LIMIT), Some(End::PowerOff), "{}", self.text());
    }
}

fn word_at(memory: &(impl ReadMemory + ?Sized), at: Pa) -> u64 {
    let mut bytes = [0; 8];
    memory.read(at, &mut bytes).expect("memory");
    u64::from_le_bytes(bytes)
}

/// What `pvh_start_xen` leaves as the type of loader outside Xen (arch/x86/platform/pvh/enlighten.c), and what a loader without a
/// number of its own says (Documentation/x86/boot.rst).
const PVH_LOADER: u8 = 0xb0;
const NO_LOADER: u8 = 0xff;

#[test]
fn an_elf_image_boots_the_way_it_offers() {
    let Some(image) = file("LUCOS_KVM_IMAGE") else {
        skip("no ELF image of a kernel is named");
        return;
    };
    // Without its notes nothing says that it can be entered by PVH.
    let plain = image.with_extension("plain");
    std::fs::write(&plain, without_notes(std::fs::read(&image).expect("an image"))).expect("written");
    for (image, loader) in [(&image, PVH_LOADER), (&plain, NO_LOADER)] {
        let Some(mut guest) = boot_from(Some(image.clone()), "") else { return };
        guest.run("echo loader=$(cat /proc/sys/kernel/bootloader_type) cpus=$(nproc)", 1);
        assert!(guest.text().contains(&format!("loader={loader} cpus=2")), "{}", guest.text());
        guest.finish();
    }
    std::fs::remove_file(plain).expect("ours");
}

/// Turns program headers of type `PT_NOTE` into `PT_NULL` (gABI, "Program Header").
fn without_notes(mut image: Vec<u8>) -> Vec<u8> {
    let field = |image: &[u8], at: usize, size: usize| {
        image[at..at + size].iter().rev().fold(0_usize, |value, byte| value << 8 | usize::from(*byte))
    };
    let (first, size, count) = (field(&image, 0x20, 8), field(&image, 0x36, 2), field(&image, 0x38, 2));
    let headers = (0..count).map(|index| first + index * size);
    let notes: Vec<usize> = headers.filter(|&at| field(&image, at, 4) == 4).collect();
    assert!(!notes.is_empty(), "the image has no notes");
    notes.into_iter().for_each(|at| image[at..at + 4].fill(0));
    image
}

/// One processor runs a program for ever, the other idles and takes timer interrupts; with page-table isolation.
#[test]
fn calls_return_the_right_value_from_whatever_a_processor_was_doing() {
    let Some(mut guest) = boot("pti=on") else { return };
    guest.run(
        "taskset 1 sh -c 'while :; do :; done' & taskset 1 sh -c 'while :; do cat /proc/version > /dev/null; done' &",
        1,
    );
    guest.engine.pause().expect("stops");
    let (back, stack) = guest.map_arena();
    let kernel_table = guest.physical("init_top_pgt").0 & ADDRESS;
    guest.engine.resume().expect("goes on");
    let (mut user, mut idle, mut kernel) = (0, 0, 0);
    let mut round = 0_u64;
    // Chance decides what a processor is found at: calls go on until each state has been met often enough.
    while round < 200 || user.min(idle) < 10 {
        assert!(round < 2000, "{user} {idle} {kernel}");
        std::thread::sleep(Duration::from_millis(3 + round % 7));
        guest.engine.pause().expect("stops");
        let cpu = (round % 2) as usize;
        let before: Vec<Registers> = guest.engine.registers().expect("registers");
        match before[cpu] {
            Registers { cpl: 3, .. } => user += 1,
            // `sti; hlt` of the idle loop: interrupts are on in the kernel, on a processor that does nothing.
            Registers { rflags, .. } if cpu == 1 && rflags & 1 << 9 != 0 => idle += 1,
            _ => kernel += 1,
        }
        let area = guest.word(Pa(guest.physical("__per_cpu_offset").0 + cpu as u64 * 8));
        let call = Call {
            function: Va(guest.live("int_sqrt")),
            arguments: [round * round + round, 0, 0, 0, 0, 0],
            stack,
            back,
            gs_base: area,
            cr3: kernel_table,
            limit: Duration::from_secs(2),
            wake: Some(Wake { apic_id: cpu as u8, vector: RESCHEDULE }),
        };
        let value = guest.engine.call(Vcpu(cpu), &call).expect("returns");
        assert_eq!((value, guest.engine.registers().expect("registers")), (round, before), "round {round}");
        guest.engine.resume().expect("goes on");
        round += 1;
    }
    println!("{user} calls from user mode, {idle} from an idle processor, {kernel} from elsewhere in the kernel");
    guest.finish();
}

/// Follows one word of a trapped page.
struct Follow {
    offset: usize,
    /// Contents after the last write to the page, and how often the page and the word were written.
    seen: Arc<Mutex<(u64, u64, u64)>>,
}

impl Attend for Follow {
    fn written(&mut self, guest: &mut dyn Stopped, _: Vcpu, writes: &[Written]) {
        let [Written { at: page, before, after, .. }] = writes else { panic!("one page is trapped") };
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes[self.offset..self.offset + 8].try_into().expect("8 bytes"));
        let mut seen = self.seen.lock().expect("no panic");
        let (last, writes, ticks) = *seen;
        assert!(writes == 0 || word(before) == last, "a write was missed: {:#x}, then {:#x}", last, word(before));
        assert_eq!(word_at(guest, Pa(page.0 + self.offset as u64)), word(after));
        *seen = (word(after), writes + 1, ticks + u64::from(word(before) != word(after)));
    }

    fn reported(&mut self, _: &mut dyn Stopped, _: Vcpu, _: u32) {}
}

/// The page of `jiffies_64`, which the timer interrupt writes and whoever shares the page.
#[test]
fn no_write_of_the_kernel_to_a_trapped_page_is_missed() {
    let Some(mut guest) = boot("") else { return };
    guest.run("for i in 0 1; do while :; do cat /proc/version > /dev/null; done & done", 1);
    let jiffies = guest.physical("jiffies_64");
    let (page, offset) = (Pa(jiffies.0 & !0xfff), (jiffies.0 & 0xfff) as usize);
    let seen = Arc::new(Mutex::new((0, 0, 0)));
    guest.engine.pause().expect("stops");
    let begin = guest.word(jiffies);
    guest.engine.attend(Some(Box::new(Follow { offset, seen: Arc::clone(&seen) })), &[]).expect("stands");
    guest.engine.trap(&Trapped::page(page, 0x1000)).expect("a page");
    guest.engine.resume().expect("goes on");
    std::thread::sleep(Duration::from_secs(10));
    guest.engine.pause().expect("stops");
    guest.engine.untrap(&Trapped::page(page, 0x1000)).expect("a page");
    guest.engine.attend(None, &[]).expect("stands");
    let (last, writes, ticks) = *seen.lock().expect("no panic");
    let end = guest.word(jiffies);
    guest.engine.resume().expect("goes on");
    println!("{writes} writes to the page, {ticks} of them ticks; jiffies went on by {}", end - begin);
    assert!(ticks > 10 && last == end, "{ticks} ticks told, the last {last:#x}; memory has {end:#x}");
    guest.run("cat /proc/uptime", 2);
    guest.finish();
}
