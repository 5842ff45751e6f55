//! Stacks made by hand, on tables in each of the formats.

use super::*;
use crate::unwind::format::Format;
use crate::unwind::format::tests::all;
use crate::unwind::{Table, Tables};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Code begins here; each place of [`PLACES`] has 0x100 bytes.
const CODE: u64 = 0xffff_ffff_8100_0000;
const TASK: u64 = 0xffff_c900_0000_0000;
const OTHER_TASK: u64 = 0xffff_c900_0001_0000;
const INTERRUPT: u64 = 0xffff_c900_0002_0000;
const EXCEPTION: u64 = 0xffff_fe00_0000_2000;
const ENTRY: u64 = 0xffff_fe00_0000_1000;
const SIZE: u64 = 0x1000;
/// A tracer's code, in none of the tables.
const HOOK: u64 = CODE + 0x10_0000;

/// What the code at a place does to its stack: stack pointer and its offset, frame pointer and its offset, kind, signal.
type Rule = (Register, i16, Register, i16, Kind, bool);

/// Words of stacks, by address.
type Words = Vec<(u64, u64)>;
/// A frame: the place where it is, and its slot.
type Place = (&'static str, Option<u64>);

/// Places by name, in order of addresses.
const PLACES: [(&str, Rule); 16] = {
    use Kind::{Call, EndOfStack, Regs, RegsPartial};
    use Register::{Bp, BpIndirect, Di, Dx, PrevSp, R10, R13, Sp, SpIndirect, Undefined};
    [
        ("leaf", (Sp, 8, Undefined, 0, Call, false)),
        ("with 16", (Sp, 24, Undefined, 0, Call, false)),
        ("framed", (Bp, 16, PrevSp, -16, Call, false)),
        ("saves bp", (Sp, 16, PrevSp, -16, Call, false)),
        ("bp from bp", (Sp, 8, Bp, 0, Call, false)),
        ("r10", (R10, 0, Undefined, 0, Call, false)),
        ("r13", (R13, 0, Undefined, 0, Call, false)),
        ("di", (Di, 0, Undefined, 0, Call, false)),
        ("dx", (Dx, 0, Undefined, 0, Call, false)),
        ("switched", (SpIndirect, 8, Undefined, 0, Call, false)),
        ("bp indirect", (BpIndirect, -8, Undefined, 0, Call, false)),
        ("interrupt", (Sp, 0, Undefined, 0, Regs, true)),
        ("early", (Sp, 0, Undefined, 0, RegsPartial, true)),
        ("end", (Undefined, 0, Undefined, 0, EndOfStack, false)),
        ("thunk", (Undefined, 0, Undefined, 0, Kind::Undefined, false)),
        ("left out", (Undefined, 0, Undefined, 0, Kind::Undefined, false)),
    ]
};

/// Address of a place, some bytes into it.
fn place(name: &str) -> u64 {
    let index = PLACES.iter().position(|(known, _)| *known == name).expect("a place");
    CODE + index as u64 * 0x100 + 0x10
}

/// The bytes of a rule in a format, or `None` when it has no words for it.
fn encode(name: &str, format: &Format, rule: &Rule) -> Option<[u8; 6]> {
    let (sp, sp_offset, bp, bp_offset, kind, signal) = *rule;
    let expected = Entry { sp, sp_offset, bp, bp_offset, kind, signal };
    let [a, b] = sp_offset.to_le_bytes();
    let [c, d] = bp_offset.to_le_bytes();
    // All numbers are tried: what a format means is told in its own tests.
    let raw = |word: u16| [a, b, c, d, word as u8, (word >> 8) as u8];
    let found = (0..=0x0fff).map(raw).find(|raw| format.decode(raw) == Ok(expected));
    assert!(found.is_some() || name == "4.14" && kind == Kind::EndOfStack, "{name}: {expected:?}");
    found
}

struct Fake {
    tables: Tables,
    words: BTreeMap<u64, u64>,
    originals: BTreeMap<u64, u64>,
    returns: Vec<u64>,
    reads: Cell<usize>,
}

impl Fake {
    fn new(name: &str, format: Format, words: &[(u64, u64)]) -> Fake {
        let mut entries = Vec::new();
        let mut addresses = Vec::new();
        for (index, (_, rule)) in PLACES.iter().enumerate() {
            entries.extend(encode(name, &format, rule).unwrap_or_default());
            addresses.extend((index as i32 * (0x100 - 4)).to_le_bytes());
        }
        let table = Table::read(format, CODE, &addresses, entries).expect("a table");
        let mut tables = Tables::default();
        tables.add(CODE..CODE + PLACES.len() as u64 * 0x100, Arc::new(table));
        let words = words.iter().copied().collect();
        Fake { tables, words, originals: BTreeMap::new(), returns: Vec::new(), reads: Cell::new(0) }
    }
}

impl Source for Fake {
    fn word(&self, at: u64) -> Option<u64> {
        self.reads.set(self.reads.get() + 1);
        self.words.get(&at).copied()
    }

    fn stack(&self, at: u64) -> Option<Stack> {
        [
            (StackKind::Task(1), TASK),
            (StackKind::Task(2), OTHER_TASK),
            (StackKind::Interrupt, INTERRUPT),
            (StackKind::Exception(1), EXCEPTION),
            (StackKind::Entry, ENTRY),
        ]
        .into_iter()
        .map(|(kind, start)| Stack { kind, range: start..start + SIZE })
        .find(|stack| stack.range.contains(&at))
    }

    fn entry(&self, ip: u64) -> Option<Result<Entry, Undefined>> {
        self.tables.entry(ip)
    }

    fn is_hook(&self, address: u64) -> bool {
        address == HOOK
    }

    fn original(&self, slot: u64) -> Option<u64> {
        self.originals.get(&slot).copied()
    }

    fn is_beginning(&self, address: u64) -> bool {
        address == place("end") - 0x10
    }

    fn is_thunk(&self, ip: u64) -> bool {
        ip & !0xff == place("thunk") & !0xff
    }

    fn is_return(&self, ip: u64) -> bool {
        self.returns.contains(&ip)
    }
}

fn running(name: &str, sp: u64) -> Start {
    let registers = Saved { ax: 0, dx: 0, di: 0, bp: 0x5555, r10: 0, r13: 0 };
    Start { ip: place(name), exact: true, slot: None, sp, bp: 0x5555, registers: Some(registers) }
}

/// A place that stands there because it was called.
fn returned(name: &str, sp: u64) -> Start {
    Start { exact: false, slot: Some(sp - 8), registers: None, ..running(name, sp) }
}

/// Names of the frames, and where the address of each is.
fn names(walk: &Walk) -> Vec<Place> {
    let index = |frame: &Frame| ((frame.code() - CODE) / 0x100) as usize;
    walk.frames.iter().map(|frame| (PLACES[index(frame)].0, frame.slot)).collect()
}

/// Words of `struct pt_regs` at an address.
fn saved_registers(at: u64, ip: u64, cs: u64, sp: u64, bp: u64) -> Words {
    let mut words: Words = (0..21).map(|index| (at + index * 8, 0)).collect();
    for (place, value) in [(4, bp), (16, ip), (17, cs), (18, 0x202), (19, sp)] {
        words[place].1 = value;
    }
    words
}

#[test]
fn frames_and_their_slots() {
    let top = TASK + SIZE;
    let end = top - 0xa8;
    // Where it starts, the words of the stack, the frames that are expected.
    let cases: [(&str, Start, Words, Vec<Place>); 9] = [
        ("nothing called", running("end", end), vec![], vec![("end", None)]),
        (
            "calls",
            running("leaf", end - 40),
            vec![(end - 40, place("with 16")), (end - 16, place("leaf")), (end - 8, place("end"))],
            vec![("leaf", None), ("with 16", Some(end - 40)), ("leaf", Some(end - 16)), ("end", Some(end - 8))],
        ),
        (
            "frame pointers",
            Start { bp: end - 16, ..running("framed", end - 64) },
            vec![(end - 16, end + 0x1000), (end - 8, place("end"))],
            vec![("framed", None), ("end", Some(end - 8))],
        ),
        (
            "a saved frame pointer",
            running("saves bp", end - 48),
            vec![(end - 48, end - 16), (end - 40, place("framed")), (end - 16, 0), (end - 8, place("end"))],
            vec![("saves bp", None), ("framed", Some(end - 40)), ("end", Some(end - 8))],
        ),
        (
            "a frame pointer kept behind itself",
            Start { bp: end - 32, ..running("bp from bp", end - 48) },
            vec![(end - 48, place("framed")), (end - 32, end - 16), (end - 16, 0), (end - 8, place("end"))],
            vec![("bp from bp", None), ("framed", Some(end - 48)), ("end", Some(end - 8))],
        ),
        (
            "the word behind the frame pointer",
            Start { bp: end - 32, ..running("bp indirect", end - 48) },
            vec![(end - 40, end), (end - 8, place("end"))],
            vec![("bp indirect", None), ("end", Some(end - 8))],
        ),
        (
            "a register of the processor",
            Start { registers: Some(Saved { r10: end, ..Saved::default() }), ..running("r10", end - 64) },
            vec![(end - 8, place("end"))],
            vec![("r10", None), ("end", Some(end - 8))],
        ),
        (
            "a thunk that was called",
            running("thunk", end - 8),
            vec![(end - 8, place("end"))],
            vec![("thunk", None), ("end", Some(end - 8))],
        ),
        (
            "a thunk with an address of its own",
            running("thunk", end - 16),
            vec![(end - 16, place("thunk") + 5), (end - 8, place("end"))],
            vec![("thunk", None), ("end", Some(end - 8))],
        ),
    ];
    for (name, format) in all() {
        for (what, start, words, expected) in &cases {
            let fake = Fake::new(name, format, words);
            let walk = walk(&fake, start);
            assert_eq!(names(&walk), *expected, "{name}, {what}");
            // The first format cannot tell the end of a stack.
            let ip = if walk.frames.len() == 1 { place("end") } else { place("end") - 1 };
            let end = if name == "4.14" { End::Stopped(Stop::LeftOut { ip }) } else { End::Complete };
            let stacks = if words.is_empty() { vec![] } else { vec![StackKind::Task(1)] };
            assert_eq!((walk.end, walk.stacks), (end, stacks), "{name}, {what}");
        }
    }
}

/// An interrupt on its own stack, of a function whose frame pointer counts; before it, a non-maskable interrupt in the first
/// code of the interrupt.
#[test]
fn interrupted_and_on_other_stacks() {
    let top = TASK + SIZE;
    let user = top - 0xa8;
    let interrupted = user - 0x200;
    let mut words = saved_registers(user, 0x40_1000, 0x33, 0x7fff_0000, 0);
    // The system call: `framed` was called by `interrupt`, below whose stack pointer are the program's registers.
    words.extend([(user - 16, 0x7777), (user - 8, place("interrupt"))]);
    words.extend(saved_registers(interrupted, place("framed"), 0x10, interrupted + 0xc0, user - 16));
    // The interrupt's handler runs on its own stack; `switched` finds the way back.
    let back = INTERRUPT + SIZE - 8;
    words.extend([(back, interrupted - 8), (interrupted - 8, place("interrupt"))]);
    words.extend([(back - 8, place("switched"))]);
    for (name, format) in all() {
        let fake = Fake::new(name, format, &words);
        let walk = walk(&fake, &running("leaf", back - 8));
        let expected = [
            ("leaf", None),
            ("switched", Some(back - 8)),
            ("interrupt", Some(interrupted - 8)),
            ("framed", Some(interrupted + 16 * 8)),
            ("interrupt", Some(user - 8)),
        ];
        assert_eq!((names(&walk), walk.end), (expected.to_vec(), End::Complete), "{name}");
        assert_eq!(walk.stacks, [StackKind::Interrupt, StackKind::Task(1)], "{name}");
        let exact: Vec<bool> = walk.frames.iter().map(|frame| frame.exact).collect();
        assert_eq!(exact, [true, false, false, true, false], "{name}");
    }

    // The same function, found by an exception at a moment when the interrupt has saved no more than `iret` takes.
    let at = EXCEPTION + 0x800;
    let early = user - 0x100;
    words.extend(saved_registers(at, place("early"), 0x10, early, user - 16));
    words.extend([(early, place("framed")), (early + 8, 0x10), (early + 16, 0x46), (early + 24, early + 40)]);
    for (name, format) in all() {
        let fake = Fake::new(name, format, &words);
        let walk = walk(&fake, &running("interrupt", at));
        let expected =
            [("interrupt", None), ("early", Some(at + 16 * 8)), ("framed", Some(early)), ("interrupt", Some(user - 8))];
        assert_eq!((names(&walk), walk.end), (expected.to_vec(), End::Complete), "{name}");
    }
}

#[test]
fn on_the_way_from_user_mode() {
    let (name, format) = all()[3];
    // The stack pointer is still the program's.
    let walked = walk(&Fake::new(name, format, &[]), &running("end", 0x7fff_0000));
    assert_eq!((walked.frames.len(), walked.end, walked.stacks), (1, End::Complete, vec![]));
    // A program may choose one that is on a stack of the kernel: that does not make it its own.
    let walked = walk(&Fake::new(name, format, &[]), &running("end", OTHER_TASK + SIZE - 64));
    assert_eq!((walked.frames.len(), walked.end, walked.stacks), (1, End::Complete, vec![]));
    // On the entry stack, with what the processor has saved there.
    let words = saved_registers(ENTRY + SIZE - 0xa8, 0x40_1000, 0x33, 0x7fff_0000, 0);
    let walked = walk(&Fake::new(name, format, &words), &running("early", ENTRY + SIZE - 40));
    assert_eq!((walked.frames.len(), walked.end, walked.stacks), (1, End::Complete, vec![StackKind::Entry]));
    // A return address cannot be one of that code.
    let stop = walk(&Fake::new(name, format, &[]), &returned("end", 0x7fff_0000)).end;
    assert_eq!(stop, End::Stopped(Stop::EndsEarly { ip: place("end") - 1, sp: 0x7fff_0000 }));
}

#[test]
fn what_tracers_took_is_seen_through() {
    let (name, format) = all()[1];
    let end = TASK + SIZE - 0xa8;
    let mut fake = Fake::new(name, format, &[(end - 16, HOOK), (end - 8, HOOK)]);
    fake.originals = [(end - 16, place("leaf")), (end - 8, place("end"))].into();
    let walked = walk(&fake, &running("leaf", end - 16));
    assert_eq!(names(&walked), [("leaf", None), ("leaf", Some(end - 16)), ("end", Some(end - 8))]);
    assert_eq!((walked.end, walked.frames[0].hooked, walked.frames[1].hooked), (End::Complete, false, true));
    // About to run the tracer's code: the function has returned, its slot is the last one below.
    let start = Start { ip: HOOK, ..running("leaf", end - 8) };
    let walked = walk(&fake, &start);
    assert_eq!((names(&walked).len(), walked.end, walked.frames[0].exact), (2, End::Complete, true));
    // It does not keep the address.
    fake.originals.clear();
    let walked = walk(&fake, &running("leaf", end - 16));
    assert_eq!(walked.end, End::Stopped(Stop::Taken { slot: end - 16 }));
    assert_eq!(walk(&fake, &start).end, End::Stopped(Stop::Taken { slot: end - 16 }));
}

/// The instruction in front of such an address is of another function.
#[test]
fn addresses_that_no_call_has_left() {
    let (name, format) = all()[3];
    let end = TASK + SIZE - 0xa8;
    // A thunk has put the first instruction of a function on the stack, and is about to go there.
    let target = place("left out") - 0x10;
    let mut fake = Fake::new(name, format, &[(end - 16, target), (end - 8, place("end"))]);
    assert_eq!(names(&walk(&fake, &running("leaf", end - 16)))[1].0, "thunk");
    fake.returns = vec![place("leaf")];
    assert_eq!(names(&walk(&fake, &running("leaf", end - 16)))[1].0, "left out");
    // A new task goes on where nobody has been.
    let fake = Fake::new(name, format, &[(end - 8, place("end") - 0x10)]);
    let walked = walk(&fake, &running("leaf", end - 8));
    assert_eq!((names(&walked), walked.end), (vec![("leaf", None), ("end", Some(end - 8))], End::Complete));
    assert!(walked.frames[1].exact);
}

#[test]
fn what_cannot_be_told_is_said() {
    let end = TASK + SIZE - 0xa8;
    let low = TASK + 0x100;
    let ip = place;
    let behind = |name: &str| place(name) - 1;
    let regs = |ip, sp| saved_registers(low, ip, 0x10, sp, 0);
    let cases: Vec<(&str, Start, Words, Stop)> = vec![
        ("no table", Start { ip: 0x1000, ..running("leaf", low) }, vec![], Stop::NoTable { ip: 0x1000 }),
        ("left out", running("left out", low), vec![], Stop::LeftOut { ip: ip("left out") }),
        ("a thunk as a caller", returned("thunk", low), vec![], Stop::LeftOut { ip: behind("thunk") }),
        ("an end in the middle", returned("end", low), vec![], Stop::EndsEarly { ip: behind("end"), sp: low }),
        (
            "an end on an interrupt's stack",
            returned("end", INTERRUPT + SIZE),
            vec![],
            Stop::EndsEarly { ip: behind("end"), sp: INTERRUPT + SIZE },
        ),
        (
            "a register that a call does not keep",
            returned("r13", low),
            vec![],
            Stop::Register { ip: behind("r13"), register: Register::R13 },
        ),
        ("likewise", returned("di", low), vec![], Stop::Register { ip: behind("di"), register: Register::Di }),
        ("likewise", returned("dx", low), vec![], Stop::Register { ip: behind("dx"), register: Register::Dx }),
        (
            "off the stack",
            Start { bp: 0, ..returned("framed", low) },
            vec![],
            Stop::NoStack { ip: behind("framed"), at: 8 },
        ),
        ("between words", running("leaf", low + 4), vec![], Stop::NoStack { ip: ip("leaf"), at: low + 4 }),
        (
            "over the end",
            running("early", TASK + SIZE - 32),
            vec![],
            Stop::NoStack { ip: ip("early"), at: TASK + SIZE - 32 },
        ),
        ("unreadable", running("leaf", low), vec![], Stop::Unreadable { at: low }),
        (
            "no flags",
            running("early", low),
            vec![(low + 8, 0x33), (low + 16, 0x8246)],
            Stop::NotSaved { ip: ip("early"), at: low },
        ),
        (
            "no code segment",
            running("early", low),
            vec![(low + 8, 0x1231), (low + 16, 0x202)],
            Stop::NotSaved { ip: ip("early"), at: low },
        ),
        ("downwards", running("interrupt", low), regs(ip("leaf"), low), Stop::Loop { ip: ip("interrupt"), at: low }),
        (
            "by frame pointer downwards",
            Start { bp: low - 0x80, ..returned("framed", low) },
            vec![(low - 0x80, 0), (low - 0x78, place("leaf"))],
            Stop::Loop { ip: behind("framed"), at: low - 0x70 },
        ),
        (
            "another task's stack",
            running("interrupt", low),
            {
                let mut words = regs(ip("leaf"), OTHER_TASK);
                words.push((OTHER_TASK, place("leaf")));
                words
            },
            Stop::Loop { ip: ip("leaf"), at: OTHER_TASK },
        ),
        (
            "two stacks in turn",
            running("switched", INTERRUPT),
            { vec![(INTERRUPT, low), (low, place("switched")), (low + 8, INTERRUPT + 0x100)] },
            Stop::Loop { ip: behind("switched"), at: INTERRUPT + 0x100 },
        ),
        (
            "at the top of addresses",
            running("interrupt", u64::MAX - 7),
            vec![],
            Stop::NoStack { ip: ip("interrupt"), at: (u64::MAX - 7).wrapping_add(16 * 8) },
        ),
    ];
    for (what, start, words, stop) in cases {
        let (name, format) = all()[3];
        let walk = walk(&Fake::new(name, format, &words), &start);
        assert_eq!(walk.end, End::Stopped(stop), "{what}");
        assert!(!stop.to_string().is_empty());
    }
    // The end of `end`'s stack is the only one with room above.
    let (name, format) = all()[3];
    assert_eq!(walk(&Fake::new(name, format, &[]), &returned("end", end)).end, End::Complete);
}

/// Whatever a stack holds, a walk of it is short.
#[test]
fn any_stack_ends() {
    let mut random = 0x1234_5678_9abc_def1_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for (name, format) in all() {
        for _ in 0..200 {
            let starts = [TASK, OTHER_TASK, INTERRUPT, EXCEPTION, ENTRY];
            let mut words = Vec::new();
            for start in starts {
                for index in 0..SIZE / 8 {
                    let value = match next() % 4 {
                        0 => CODE + next() % (PLACES.len() as u64 * 0x100),
                        1 => starts[(next() % 5) as usize] + (next() % (SIZE / 8)) * 8,
                        2 => 0x10,
                        _ => next(),
                    };
                    words.push((start + index * 8, value));
                }
            }
            let fake = Fake::new(name, format, &words);
            let (sp, bp) =
                (starts[(next() % 5) as usize] + (next() % (SIZE / 8)) * 8, starts[(next() % 5) as usize] + 0x100);
            let registers = Some(Saved { ax: sp, dx: bp, di: sp + 64, bp, r10: bp + 64, r13: sp });
            let start = Start { ip: CODE + next() % 0x1000, exact: true, slot: None, sp, bp, registers };
            let walk = walk(&fake, &start);
            assert!(walk.frames.len() <= FRAMES_LIMIT && walk.stacks.len() <= 5, "{walk:?}");
            assert!(fake.reads.get() <= (walk.frames.len() + 1) * 10, "{} reads", fake.reads.get());
        }
    }
}
