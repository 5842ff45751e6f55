//! The QEMU engine on a stock kernel.
//!
//! `LUCOS_TEST_KERNEL` names a kernel (`vmlinuz`). Without it, or without QEMU, the test says so and passes;
//! with `LUCOS_REQUIRE_ALL=1` it fails. The kernel gets no initrd: it boots, finds no root and stays in the loop of `panic`
//! (kernel/panic.c), which is a place where it runs for ever.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use runtime_hv::engine::qemu::{
    Acceleration, Attended, Diverted, Earlier, LaunchConfig, LaunchError, QemuEngine, RescueError, Rescued, Serial,
    launch, rescue,
};
use runtime_hv::engine::{
    Attend, Call, CallError, Calls as _, Engine as _, EngineError, Pa, Pause, ReadMemory, Registers, Stopped, Trapped,
    Va, Vcpu, Vcpus, Wake, WriteMemory, Written,
};
use runtime_hv::guest::paging::ADDRESS;

/// Low memory that a booted kernel does not use (it keeps all below 1 MiB for itself: arch/x86/kernel/setup.c).
const SCRATCH: Pa = Pa(0x2000);

/// A guest that is ended with the test, whatever happens.
struct Guest {
    process: Child,
    folder: tempfile::TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Guest {
    fn qmp(&self) -> PathBuf {
        self.folder.path().join("qmp.sock")
    }

    /// A second QMP socket, for use while an engine holds the first.
    fn other_qmp(&self) -> PathBuf {
        self.folder.path().join("other.sock")
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.path().join("serial.log")).unwrap_or_default()).into_owned()
    }

    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(300);
        while !self.console().contains(text) {
            let ended = self.process.try_wait().expect("QEMU can be asked");
            assert!(ended.is_none() && Instant::now() < deadline, "no `{text}` on the console:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn skip(reason: &str) {
    assert!(std::env::var_os("LUCOS_REQUIRE_ALL").is_none_or(|value| value != "1"), "skipped: {reason}");
    println!("skipped: {reason}");
}

fn boot() -> Option<Guest> {
    let Some(kernel) = std::env::var_os("LUCOS_TEST_KERNEL") else {
        skip("LUCOS_TEST_KERNEL names no kernel");
        return None;
    };
    let folder = tempfile::tempdir().expect("a folder for the test");
    let config = LaunchConfig {
        acceleration: Acceleration::None,
        kernel: kernel.into(),
        initrd: None,
        append: "console=ttyS0".to_owned(),
        cpus: 2,
        memory_mib: 256,
        qmp_path: folder.path().join("qmp.sock"),
        serial: Serial::File(folder.path().join("serial.log")),
        extra_args: vec![
            "-action".into(),
            "reboot=reset".into(),
            "-qmp".into(),
            format!("unix:{},server=on,wait=off", folder.path().join("other.sock").display()).into(),
        ],
    };
    match launch(&config) {
        Ok(process) => Some(Guest { process, folder }),
        Err(LaunchError::Missing) => {
            skip(&LaunchError::Missing.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// What another client learns from the human monitor; only possible while no engine holds the socket.
fn monitor(qmp: &Path, line: &str) -> String {
    let stream = std::os::unix::net::UnixStream::connect(qmp).expect("the QMP socket is free");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let reader = std::io::BufReader::new(stream.try_clone().expect("a second handle"));
    let mut qmp = qapi::Qmp::new(qapi::Stream::new(reader, stream));
    qmp.handshake().expect("greeting");
    qmp.execute(&qapi::qmp::human_monitor_command { cpu_index: None, command_line: line.to_owned() })
        .expect("an answer")
}

fn assert_running_and_clean(guest: &Guest) {
    assert!(monitor(&guest.qmp(), "info status").contains("running"));
    let devices = monitor(&guest.qmp(), "info chardev");
    assert!(!devices.contains("gdb: "), "the stub is still open: {devices}");
}

fn attach(guest: &Guest) -> QemuEngine {
    QemuEngine::attach(&guest.qmp(), Earlier::Unknown).expect("attached")
}

/// Walks the four levels of the guest's page table (Intel SDM vol. 3, 4.5).
fn physical(engine: &QemuEngine, cr3: u64, address: u64) -> Pa {
    let mut table = cr3 & 0x000f_ffff_ffff_f000;
    for level in (0..4).rev() {
        let mut entry = [0; 8];
        let index = address >> (12 + 9 * level) & 511;
        engine.read(Pa(table + index * 8), &mut entry).expect("a page table");
        let entry = u64::from_le_bytes(entry);
        assert_eq!(entry & 1, 1, "{address:#x} is not mapped at level {level}");
        table = entry & 0x000f_ffff_ffff_f000;
        if level == 0 || (level < 3 && entry & 0x80 != 0) {
            let mask = (1 << (12 + 9 * level)) - 1;
            return Pa((table & !mask) | (address & mask));
        }
    }
    unreachable!("level 0 returns")
}

fn registers(engine: &mut QemuEngine) -> Vec<Registers> {
    engine.registers().expect("registers")
}

#[test]
fn a_stock_kernel_is_read_written_and_left_running() {
    let Some(mut guest) = boot() else { return };
    guest.wait_for("end Kernel panic");

    let mut engine = attach(&guest);
    reads_and_registers(&mut engine);
    writes(&mut engine);
    changed_code_is_executed(&guest, &mut engine);
    engine.detach().expect("detached");
    assert_running_and_clean(&guest);

    the_owners_pause_is_kept(&guest);
    a_drop_while_stopped_continues(&guest);
    a_second_client_is_told_why(&guest);
    a_dead_tool_is_cleared_up_after(&guest);
    a_second_rescue_goes_on(&guest);
    strangers_stub_is_refused(&guest);
    assert_running_and_clean(&guest);
    a_reset_ends_a_call(&mut guest);
    assert_running_and_clean(&guest);
    a_reset_ends_watching(&guest);
    assert_running_and_clean(&guest);
    pauses_are_timed_and_resets_heard_of(&guest);
    assert_running_and_clean(&guest);
}

/// A function that never returns; its owner resets the guest meanwhile. It boots again, and nothing of the call is left.
fn a_reset_ends_a_call(guest: &mut Guest) {
    const ENDLESS: u64 = 0x40;
    let mut engine = attach(guest);
    engine.pause().expect("stopped");
    // `panic` runs on one processor and has stopped the other, with interrupts off (arch/x86/kernel/smp.c).
    let all = registers(&mut engine);
    let cpu = all.iter().position(|one| one.rflags & 0x200 != 0).expect("one runs");
    let Registers { cr3, gs_base, .. } = all[cpu];
    // A free entry of the table that maps the kernel's last 2 GiB but one leads to one page: code, and behind it a stack.
    let mut entry = [0; 8];
    engine.read(Pa((cr3 & ADDRESS) + 511 * 8), &mut entry).expect("a page table");
    engine.read(Pa((u64::from_le_bytes(entry) & ADDRESS) + 510 * 8), &mut entry).expect("a page table");
    let directory = u64::from_le_bytes(entry) & ADDRESS;
    let is_free = |index: &u64| {
        let mut entry = [0; 8];
        engine.read(Pa(directory + index * 8), &mut entry).expect("a page table");
        entry == [0; 8]
    };
    let index = (1..512).find(is_free).expect("a free entry");
    let (table, page) = (SCRATCH, Pa(SCRATCH.0 + 0x1000));
    let code = engine.report_code();
    engine.write(table, &[0; 4096]).expect("low memory");
    engine.write(table, &(page.0 | 0b10_0011).to_le_bytes()).expect("low memory");
    engine.write(page, code).expect("low memory");
    engine.write(Pa(page.0 + ENDLESS), &[0xeb, 0xfe]).expect("low memory");
    engine.write(Pa(directory + index * 8), &(table.0 | 0b10_0011).to_le_bytes()).expect("a page table");
    let window = 0xffff_ffff_8000_0000 + (index << 21);
    let call = Call {
        function: Va(window + ENDLESS),
        arguments: [0; 6],
        stack: Va(window + 0x1000),
        back: Va(window),
        gs_base,
        cr3,
        limit: Duration::from_secs(60),
        wake: Some(Wake { apic_id: cpu as u8, vector: 0xfd }),
    };
    let other = guest.other_qmp();
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            monitor(&other, "system_reset");
            // All processors run again, and the stub says nothing of it.
            std::thread::sleep(Duration::from_millis(300));
            monitor(&other, "stop");
        });
        engine.call(Vcpu(cpu), &call).expect_err("there is nothing to return to")
    });
    assert!(matches!(error, CallError::Engine(EngineError::State(state)) if state.contains("reset")), "{error}");
    // The firmware may reset once more.
    assert!(engine.resets() >= 1);
    engine.detach().expect("detached");
    let booted = |guest: &Guest| guest.console().matches("end Kernel panic").count();
    let deadline = Instant::now() + Duration::from_secs(300);
    while booted(guest) < 2 {
        assert!(Instant::now() < deadline, "it does not boot again:\n{}", guest.console());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Nobody is to be told anything.
struct Nobody;

impl Attend for Nobody {
    fn written(&mut self, _: &mut dyn Stopped, _: Vcpu, writes: &[Written]) {
        panic!("told of {writes:?}");
    }

    fn reported(&mut self, _: &mut dyn Stopped, _: Vcpu, _: u32) {
        panic!("told of a report");
    }
}

/// Memory of one boot is watched, and the guest is reset: nothing of the next boot is told, and it is not held up.
fn a_reset_ends_watching(guest: &Guest) {
    let mut engine = attach(guest);
    engine.pause().expect("stopped");
    let resets = engine.resets();
    let watch = engine.watch().expect("it emulates");
    watch.attend(Some(Box::new(Nobody)), &[Va(0xffff_ffff_ffff_f000)]).expect("it stands");
    watch.trap(&Trapped::page(SCRATCH, 8)).expect("memory");
    assert!(matches!(watch.trap(&Trapped::page(Pa(0x8000_0000), 8)), Err(EngineError::Memory { .. })));
    engine.resume().expect("continued");
    std::thread::sleep(Duration::from_millis(500));
    assert!(!engine.is_paused().expect("status"), "only between two turns");
    let watch = engine.watch().expect("it emulates");
    assert!(matches!(watch.trap(&Trapped::page(SCRATCH, 8)), Err(EngineError::Running(_))));
    assert!(matches!(engine.write(SCRATCH, &[0]), Err(EngineError::Running(_))));
    let booted = || guest.console().matches("end Kernel panic").count();
    let before = booted();
    monitor(&guest.other_qmp(), "system_reset");
    let deadline = Instant::now() + Duration::from_secs(300);
    while booted() == before {
        assert!(Instant::now() < deadline, "it does not boot again:\n{}", guest.console());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!engine.is_paused().expect("status"));
    assert!(engine.resets() > resets);
    engine.pause().expect("stopped");
    assert_eq!(engine.watch().expect("it emulates").trouble().as_deref(), Some("the guest was reset"));
    engine.resume().expect("continued");
    engine.detach().expect("detached");
}

fn pauses_are_timed_and_resets_heard_of(guest: &Guest) {
    let mut engine = attach(guest);
    engine.pause().expect("stopped");
    std::thread::sleep(Duration::from_millis(20));
    engine.resume().expect("continued");
    let pause = engine.last_pause();
    assert!(pause >= Duration::from_millis(20) && pause < Duration::from_secs(5), "{pause:?}");
    assert_eq!(engine.resets(), 0);
    monitor(&guest.other_qmp(), "system_reset");
    let deadline = Instant::now() + Duration::from_secs(10);
    while engine.resets() == 0 && Instant::now() < deadline {
        engine.is_paused().expect("status");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(engine.resets(), 1);
}

fn reads_and_registers(engine: &mut QemuEngine) {
    assert!(!engine.is_paused().expect("status"));
    engine.pause().expect("stopped");
    engine.pause().expect("twice is no error");
    assert!(!engine.is_paused().expect("status"), "the pause is ours, not the owner's");
    let now = registers(engine);
    assert_eq!(now.len(), 2);
    assert_eq!(now, registers(engine), "nothing moves while it is stopped");
    for registers in &now {
        assert_eq!(registers.cpl, 0);
        assert_eq!(registers.idt_base, now[0].idt_base);
        assert!(registers.rip > 0xffff_ffff_8000_0000 && registers.rsp > 0xffff_8000_0000_0000, "{registers:x?}");
        assert!(registers.gs_base > 0xffff_8000_0000_0000 && registers.cr3 != 0, "{registers:x?}");
    }
    // The interrupt table is memory of the guest; its first gate leads into the kernel (SDM vol. 3, figure 6-8).
    let mut gate = [0; 16];
    engine.read(physical(engine, now[0].cr3, now[0].idt_base), &mut gate).expect("the gate");
    assert_eq!((&gate[2..4], gate[5] & 0x80, &gate[8..12]), (&[0x10, 0][..], 0x80, &[0xff; 4][..]));

    assert!(engine.read(Pa(0x1000_0000 - 2), &mut [0; 2]).is_ok(), "the last bytes of 256 MiB");
    for hole in [Pa(0x1000_0000 - 2), Pa(0x8000_0000), Pa(0xfec0_0000), Pa(u64::MAX - 1)] {
        let error = engine.read(hole, &mut [0; 4]).expect_err("not memory");
        assert!(matches!(error, EngineError::Memory { .. }), "{error}");
    }
    engine.resume().expect("continued");
}

fn writes(engine: &mut QemuEngine) {
    let bytes: Vec<u8> = (0..9000_u32).map(|index| (index * 7 % 251) as u8).collect();
    assert!(matches!(engine.write(SCRATCH, &bytes), Err(EngineError::Running(_))));
    engine.pause().expect("stopped");
    let mut old = vec![0; bytes.len()];
    engine.read(SCRATCH, &mut old).expect("low memory");
    engine.write(SCRATCH, &bytes).expect("written");
    let mut new = vec![0; bytes.len()];
    engine.read(SCRATCH, &mut new).expect("low memory");
    assert!(new == bytes, "read differs from what was written");
    engine.write(SCRATCH, &old).expect("written back");
    for place in [Pa(0x8000_0000), Pa(0xffff_f000), Pa(0xf_0000)] {
        let error = engine.write(place, &[0; 4]).expect_err("a hole, a ROM, a protected part of memory");
        assert!(matches!(error, EngineError::Memory { .. }), "{error}");
    }
    let start = Instant::now();
    let mut page = [0; 4096];
    for _ in 0..100 {
        engine.read(SCRATCH, &mut page).expect("low memory");
    }
    println!("a page read: {:?}; directly: {}", start.elapsed() / 100, engine.reads_directly());
    engine.resume().expect("continued");
    let mut cycles: Vec<_> = (0..50)
        .map(|_| {
            engine.pause().expect("stopped");
            let start = Instant::now();
            engine.write(SCRATCH, &[0; 5]).expect("written");
            let written = start.elapsed();
            engine.resume().expect("continued");
            written
        })
        .collect();
    cycles.sort();
    println!("first write of a pause: median {:?}, longest {:?}", cycles[25], cycles[49]);
}

/// Puts a jump to itself under a processor and sees it caught, then lets it go.
fn changed_code_is_executed(guest: &Guest, engine: &mut QemuEngine) {
    engine.pause().expect("stopped");
    let before = registers(engine);
    let running = before.iter().find(|one| one.rflags & 0x200 != 0 && one.rip & 0xfff < 0xffe).copied();
    let Registers { rip, cr3, .. } = running.unwrap_or(before[0]);
    let place = physical(engine, cr3, rip);
    let mut old = [0; 2];
    engine.read(place, &mut old).expect("code");
    engine.write(place, &[0xeb, 0xfe]).expect("`jmp .`");
    engine.resume().expect("continued");

    // Software emulation stops a waiting loop at the same instruction every time, so the place alone says little: a loop
    // that goes on reads the clock into RAX.
    let place_and_rax = || {
        let text = monitor(&guest.other_qmp(), "info registers -a");
        let at = format!("RIP={rip:016x}");
        let section = text.split("CPU#").find(|section| section.contains(&at))?;
        section.lines().find(|line| line.contains("RAX=")).map(str::to_owned)
    };
    let is_caught = |wanted: bool| {
        (0..100).any(|_| {
            let first = place_and_rax();
            std::thread::sleep(Duration::from_millis(20));
            let caught = first.is_some() && first == place_and_rax();
            caught == wanted
        })
    };
    assert!(is_caught(true), "no processor is caught at {rip:#x}");
    engine.pause().expect("stopped");
    engine.write(place, &old).expect("old code");
    engine.resume().expect("continued");
    assert!(is_caught(false), "a processor is still caught at {rip:#x}");
}

fn the_owners_pause_is_kept(guest: &Guest) {
    monitor(&guest.qmp(), "stop");
    let saved = guest.folder.path().join("saved");
    monitor(&guest.qmp(), &format!("pmemsave 0x1000000 0x200000 \"{}\"", saved.display()));
    let mut engine = attach(guest);
    assert!(engine.is_paused().expect("status"));
    let mut read = vec![0; 0x20_0000];
    engine.read(Pa(0x100_0000), &mut read).expect("memory");
    assert!(read == std::fs::read(&saved).expect("saved memory"), "a read differs from what QEMU saves");
    engine.write(SCRATCH, &[1, 2, 3]).expect("a stopped guest can be written without a pause of ours");
    engine.pause().expect("no error");
    assert!(engine.is_paused().expect("status"));
    engine.resume().expect("no error");
    drop(engine);
    assert!(monitor(&guest.qmp(), "info status").contains("paused"));
    assert!(!monitor(&guest.qmp(), "info chardev").contains("gdb: "));
    monitor(&guest.qmp(), "cont");
}

fn a_drop_while_stopped_continues(guest: &Guest) {
    let mut engine = attach(guest);
    engine.pause().expect("stopped");
    engine.write(SCRATCH, &[0; 5]).expect("written");
    drop(engine);
    assert_running_and_clean(guest);
}

fn a_second_client_is_told_why(guest: &Guest) {
    let engine = attach(guest);
    let start = Instant::now();
    let error = QemuEngine::attach(&guest.qmp(), Earlier::Unknown).err().expect("one client at a time").to_string();
    assert!(error.contains("another client") && start.elapsed() < Duration::from_secs(20), "{error}");
    drop(engine);
}

/// Leaves the VM as a tool does that is killed between two writes.
fn kill_a_tool(guest: &Guest) {
    let mut engine = attach(guest);
    engine.pause().expect("stopped");
    engine.write(SCRATCH, &[9; 5]).expect("written");
    drop(engine);
    // What is left is the same as a killed process leaves: a stopped VM, a stub of ours without a client.
    monitor(&guest.qmp(), "stop");
    let socket = guest.folder.path().join("lucos-qemu-dead");
    std::fs::create_dir_all(&socket).expect("a folder");
    monitor(&guest.qmp(), &format!("gdbserver unix:{}/gdb.sock,server=on,wait=off", socket.display()));
}

fn bring_back(guest: &Guest, old: &[(Pa, Vec<u8>)], owner_paused: bool) -> Result<Rescued, RescueError> {
    rescue(&guest.qmp(), old, &mut Attended::default(), owner_paused, &mut |_, _| Ok(()))
}

fn a_dead_tool_is_cleared_up_after(guest: &Guest) {
    kill_a_tool(guest);
    let error = QemuEngine::attach(&guest.qmp(), Earlier::Unknown).err().expect("it may be half written").to_string();
    assert!(error.contains("died"), "{error}");
    let engine = QemuEngine::attach(&guest.qmp(), Earlier::Died).expect("attached");
    drop(engine);
    assert_running_and_clean(guest);

    kill_a_tool(guest);
    let old = [(SCRATCH, vec![1, 1, 1, 1, 1]), (Pa(SCRATCH.0 + 2), vec![2, 2])];
    assert_eq!(bring_back(guest, &old, true).expect("rescued"), Rescued::Restored { undone: 2 });
    assert!(monitor(&guest.qmp(), "info status").contains("paused"), "its owner had stopped it");
    assert_eq!(bring_back(guest, &old, false).expect("rescued"), Rescued::Restored { undone: 2 });
    assert_running_and_clean(guest);
    let mut bytes = [0; 5];
    attach(guest).read(SCRATCH, &mut bytes).expect("low memory");
    assert_eq!(bytes, [1; 5], "the last write is undone first");
    assert_eq!(bring_back(guest, &[(SCRATCH, vec![7])], false).expect("looked at"), Rescued::WasRunning);
    attach(guest).read(SCRATCH, &mut bytes).expect("low memory");
    assert_eq!(bytes, [1; 5], "a running guest is not written to");

    // A rescue that fails half-way leaves the guest stopped, and says so to whoever comes next.
    monitor(&guest.qmp(), "stop");
    let error = bring_back(guest, &[(Pa(0x8000_0000), vec![7]), (SCRATCH, vec![3])], false).expect_err("a hole");
    assert!(matches!(error, RescueError::Undo { undone: 1, total: 2, .. }), "{error}");
    assert!(error.to_string().contains("left stopped"), "{error}");
    assert!(monitor(&guest.qmp(), "info status").contains("paused"));
    let error = QemuEngine::attach(&guest.qmp(), Earlier::Unknown).err().expect("it is half written").to_string();
    assert!(error.contains("died"), "{error}");
    let rescued = bring_back(guest, &[(SCRATCH, vec![4])], false).expect("rescued");
    assert_eq!(rescued, Rescued::Restored { undone: 1 });
    assert_running_and_clean(guest);
    attach(guest).read(SCRATCH, &mut bytes).expect("low memory");
    assert_eq!(bytes, [4, 1, 1, 1, 1]);
}

/// A tool that died while it attended to a guest, and a rescue that cannot give a thread its way back at first: the second one knows
/// as well that the guest had run with what was written, and that nobody else had stopped it.
fn a_second_rescue_goes_on(guest: &Guest) {
    for driving in [true, false] {
        for owner_paused in [false, true] {
            kill_a_tool(guest);
            if driving {
                monitor(&guest.qmp(), "cont");
            }
            let mark = format!(r#"{{"placed":[],"owner_paused":{owner_paused},"driving":{driving}}}"#);
            std::fs::write(guest.folder.path().join("lucos-qemu-dead/watching"), mark).expect("written");
            let hole = Diverted { slot: 0x1000, slot_pa: Pa(0x8000_0000), diverted: 1, original: 2 };
            let old = [(SCRATCH, vec![5])];
            let mut told = 0;
            let mut rescued = |diverted: Vec<Diverted>| {
                let mut left = Attended { diverted, copies: vec![(SCRATCH, 1)], ..Attended::default() };
                let count = |_, left: &Attended| {
                    told += 1;
                    assert_eq!(left.held, [(SCRATCH, vec![if driving { 9 } else { 5 }])]);
                    Ok(())
                };
                // What the caller thinks of the owner counts less than what is written down.
                rescue(&guest.qmp(), &old, &mut left, !owner_paused, &mut { count })
            };
            for _ in 0..2 {
                rescued(vec![hole]).expect_err("a hole");
                assert!(monitor(&guest.qmp(), "info status").contains("paused"));
            }
            let expected = if driving { Rescued::WasRunning } else { Rescued::Restored { undone: 1 } };
            assert_eq!(rescued(Vec::new()).expect("rescued"), expected);
            assert_eq!(told, 1);
            assert_eq!(monitor(&guest.qmp(), "info status").contains("paused"), owner_paused);
            if owner_paused {
                monitor(&guest.qmp(), "cont");
            }
            assert_running_and_clean(guest);
        }
    }
}

fn strangers_stub_is_refused(guest: &Guest) {
    let socket = guest.folder.path().join("owner.sock");
    monitor(&guest.qmp(), &format!("gdbserver unix:{},server=on,wait=off", socket.display()));
    let error = QemuEngine::attach(&guest.qmp(), Earlier::Unknown).err().expect("in use").to_string();
    assert!(error.contains("owner.sock"), "{error}");
    monitor(&guest.qmp(), "gdbserver none");
}
