//! Memory of a stock kernel whose writes are told, on an emulating QEMU: nothing is missed, every processor goes on, and what that
//! costs.

use lucos_tests::digest::Monitor;
use lucos_tests::guest::{Config, Guest};
use lucos_tests::require;
use runtime_hv::engine::qemu::{Earlier, QemuEngine, Share};
use runtime_hv::engine::{
    Attend, Engine as _, Pa, Pause as _, ReadMemory, Stopped, Trapped, Va, Vcpu, Vcpus as _, Watch, Written,
};
use runtime_hv::guest::paging::{Root, translate};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const LOOK: Duration = Duration::from_secs(6);

/// What was told of one datum.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    last: u64,
    writes: u64,
    late: u64,
}

/// Follows words of memory.
#[derive(Clone, Default)]
struct Follow(Arc<Mutex<BTreeMap<Pa, Told>>>);

impl Attend for Follow {
    fn written(&mut self, guest: &mut dyn Stopped, _: Vcpu, writes: &[Written]) {
        let mut all = self.0.lock().expect("no panic");
        for Written { at, before, after, late } in writes {
            let told = all.get_mut(at).expect("it is trapped");
            let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
            assert_eq!(word(before), told.last, "a write was missed");
            assert_eq!(word_at(guest, *at), word(after));
            *told = Told { last: word(after), writes: told.writes + 1, late: told.late + u64::from(*late) };
        }
    }

    fn reported(&mut self, _: &mut dyn Stopped, _: Vcpu, _: u32) {
        panic!("nothing reports");
    }
}

fn word_at(memory: &(impl ReadMemory + ?Sized), at: Pa) -> u64 {
    let mut bytes = [0; 8];
    memory.read(at, &mut bytes).expect("memory");
    u64::from_le_bytes(bytes)
}

/// A guest with a loop on each processor, and a process that goes from one to the other.
fn boot(name: &str, cpus: u32) -> Option<Guest> {
    let kernel = require::older_kernel()?;
    let mut guest = Guest::under_plain_qemu(&Config { cpus, ..Config::new(name, &kernel.vmlinuz()) }).expect("boots");
    let load = "for c in $(seq 0 $(($(nproc) - 1))); do : > /tmp/c$c; taskset $((1 << c)) sh -c \
                'while :; do cat /proc/version > /dev/null; echo >> /tmp/c'$c'; done' > /dev/null 2>&1 & done; \
                sh -c 'while :; do for c in $(seq 0 $(($(nproc) - 1))); do taskset $((1 << c)) true; done; echo >> /tmp/moved; done' \
                > /dev/null 2>&1 & true";
    guest.run_ok(load).expect("starts");
    Some(guest)
}

/// Rounds of the loop on each processor, and of the process that moves.
fn rounds(guest: &mut Guest) -> Vec<u64> {
    let text =
        guest.run_ok("cat /tmp/c[0-9]* > /dev/null; wc -l < /tmp/moved; for f in /tmp/c[0-9]*; do wc -l < $f; done");
    text.expect("answers").split_whitespace().map(|count| count.parse().expect("a number")).collect()
}

/// Rounds within a while.
fn progress(guest: &mut Guest) -> Vec<u64> {
    let before = rounds(guest);
    std::thread::sleep(LOOK);
    rounds(guest).into_iter().zip(before).map(|(after, before)| after - before).collect()
}

fn ratio(part: &[u64], whole: &[u64]) -> f64 {
    // The first is the process that moves.
    part[1..].iter().sum::<u64>() as f64 / whole[1..].iter().sum::<u64>() as f64
}

fn watch(engine: &mut QemuEngine) -> &mut dyn Watch {
    engine.watch().expect("this QEMU emulates")
}

fn no_write_is_missed(name: &str, cpus: u32) {
    if !require::qemu("it is about QEMU's debug stub") {
        return;
    }
    let Some(mut guest) = boot(name, cpus) else { return };
    // A plain word, and one that is only written by instructions with a lock (mm/vmstat.c).
    let names = ["jiffies_64", "vm_zone_stat", "page_offset_base"];
    let symbols = guest.symbols(&names).expect("symbols");
    let free = progress(&mut guest);

    let mut engine = QemuEngine::attach(guest.qmp().expect("a socket"), Earlier::Unknown).expect("attached");
    engine.pause().expect("stops");
    let registers = engine.registers().expect("registers")[0];
    let root = Root::of_registers(registers.cr3, registers.cr4);
    let physical: Vec<Pa> = symbols.iter().map(|&at| translate(&engine, root, Va(at)).expect("mapped")).collect();
    let direct_map = word_at(&engine, physical[2]);
    let follow = Follow::default();
    let mut traps = Vec::new();
    for (&va, &at) in symbols.iter().zip(&physical).take(2) {
        let last = word_at(&engine, at);
        follow.0.lock().expect("no panic").insert(at, Told { last, ..Told::default() });
        traps.push(Trapped { at, length: 8, aliases: vec![Va(va), Va(direct_map + at.0)] });
    }
    // Report code that nobody runs: all processors run.
    watch(&mut engine).attend(Some(Box::new(follow.clone())), &[Va(0xffff_ffff_ffff_f000)]).expect("stands");
    engine.resume().expect("goes on");
    let expecting = progress(&mut guest);

    engine.pause().expect("stops");
    for trap in &traps {
        watch(&mut engine).trap(trap).expect("memory");
    }
    for (at, told) in follow.0.lock().expect("no panic").iter_mut() {
        told.last = word_at(&engine, *at);
    }
    engine.resume().expect("goes on");
    let watched = progress(&mut guest);
    the_owner_is_respected(&guest, &mut engine, &follow, physical[0]);
    let start = Instant::now();
    engine.pause().expect("stops");
    let pause = start.elapsed();
    let told = follow.0.lock().expect("no panic").clone();
    for (at, told) in &told {
        assert_eq!(word_at(&engine, *at), told.last, "all that is there was told");
        assert!(told.writes > 20, "{told:?}");
        assert!(told.late * 3 < told.writes, "{told:?}");
    }
    let shares: Vec<Share> = engine.shares().to_vec();
    for trap in &traps {
        watch(&mut engine).untrap(trap).expect("memory");
    }
    watch(&mut engine).attend(None, &[]).expect("stands");
    assert_eq!(watch(&mut engine).trouble(), None);
    engine.resume().expect("goes on");
    engine.detach().expect("detached");
    let after = progress(&mut guest);

    println!("{cpus} processors; rounds in {LOOK:?} of the process that moves, and on each processor:");
    println!("  nobody watches {free:?}, afterwards {after:?}");
    println!("  reports only {expecting:?}: {:.2}", ratio(&expecting, &free));
    println!("  in turns {watched:?}: {:.2}", ratio(&watched, &free));
    let turns: u64 = shares.iter().map(|share| share.turns).sum();
    println!("  {turns} turns, a pause of {pause:?}: {shares:?}");
    println!("  told: {:?}", told.values().collect::<Vec<_>>());
    for rounds in [&free, &expecting, &watched, &after] {
        assert!(rounds.iter().all(|&rounds| rounds > 0), "somebody does not go on: {rounds:?}");
    }
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
    assert_eq!(guest.power_off().expect("powers off"), Some(0));
}

/// A guest that its owner stops meanwhile stands, and goes on when the owner wants, with everything told.
fn the_owner_is_respected(guest: &Guest, engine: &mut QemuEngine, follow: &Follow, ticks: Pa) {
    let mut owner = Monitor::connect(guest.monitor().expect("a second socket")).expect("connects");
    let deadline = Instant::now() + Duration::from_secs(20);
    // Between two turns the guest stands anyway, and QEMU does not remember who wanted that.
    while !engine.is_paused().expect("answers") {
        assert!(Instant::now() < deadline, "the owner is not heard");
        owner.human("stop").expect("stops");
        std::thread::sleep(Duration::from_millis(50));
    }
    let told = |follow: &Follow| follow.0.lock().expect("no panic")[&ticks].writes;
    let before = (told(follow), word_at(engine, ticks));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((told(follow), word_at(engine, ticks)), before);
    engine.pause().expect("stands already");
    engine.resume().expect("stays");
    assert!(engine.is_paused().expect("answers") && owner.human("info status").expect("answers").contains("paused"));
    owner.human("cont").expect("continues");
    std::thread::sleep(Duration::from_millis(500));
    assert!(!engine.is_paused().expect("answers"));
    assert!(told(follow) > before.0 + 5, "{} of {}", told(follow), before.0);
}

#[test]
fn no_write_is_missed_with_two_processors() {
    no_write_is_missed("watching-2", 2);
}

#[test]
fn no_write_is_missed_with_four_processors() {
    no_write_is_missed("watching-4", 4);
}
