//! A rich bundle, and the means to damage its file on purpose.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::ops::Range;

use lpk_format::*;

/// Link address of `_text` in the sample.
pub const TEXT: u64 = 0xffff_ffff_8100_0000;
/// Link address of `_end` in the sample.
pub const END: u64 = 0xffff_ffff_8383_0000;

fn symbol(name: &str, place: Place, size: u64, function: bool) -> Symbol {
    Symbol { name: name.to_owned(), place, size, function }
}

fn payload(section: SectionKind, offset: u32) -> Place {
    Place::Payload { section, offset }
}

fn reloc(section: SectionKind, offset: u32, kind: RelocKind, symbol: u32, addend: i64) -> Reloc {
    Reloc { section, offset, kind, symbol, addend }
}

fn site(offset: u32, len: u8, kind: BootSiteKind) -> BootSite {
    BootSite { offset, len, kind }
}

/// New code: two functions, the second with every kind of place that the kernel's loader rewrites.
fn text() -> Vec<u8> {
    let mut text = Vec::new();
    // 0x00: endbr64; lea message(%rip),%rdi; call _printk; jmp __x86_return_thunk
    text.extend([0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x8d, 0x3d, 0, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0xe9, 0, 0, 0, 0]);
    text.resize(0x20, 0x90);
    // 0x20: endbr64; call *pv_ops+24(%rip); nop; 0x2b: call thunk; 0x30: 5 replaceable bytes; mov %gs:0,%rax; jmp thunk
    text.extend([0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x15, 0, 0, 0, 0, 0x90, 0xe8, 0, 0, 0, 0]);
    text.extend([0x0f, 0x1f, 0x44, 0, 0, 0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0xe9, 0, 0, 0, 0]);
    text.resize(0x50, 0xcc);
    // 0x50: replacements: lfence; call helper
    text.extend([0x0f, 0xae, 0xe8, 0xe8, 0, 0, 0, 0]);
    text
}

/// A bundle with every kind of everything.
pub fn sample() -> Bundle {
    let mut bundle = image_only();
    bundle.modules = vec![module_part(&bundle, "brfs")];
    bundle
}

/// Link address of the first section of a module.
pub const MODULE: u64 = MODULE_SPACE.start;

/// A part for a module: one function with a field of each kind, which calls the kernel, another module and its own data.
pub fn module_part(of: &Bundle, name: &str) -> Bundle {
    let section = |name: &str, address, size| ModuleSection { name: name.to_owned(), address, size };
    let import = |name: &str, address| ModuleImport { name: name.to_owned(), address };
    let relocation = |kind, place, addend| BootSiteKind::Relocation { kind, place, addend };
    let mut expected = vec![0xe8, 1, 2, 3, 4];
    expected.resize(0x60, 0x90);
    let function = FunctionPatch {
        name: "answer".to_owned(),
        unit: "fs/brfs/answer.c".to_owned(),
        old_address: MODULE + 0x40,
        jump_offset: 5,
        expected,
        sites: vec![
            site(0, 5, BootSiteKind::Ftrace),
            site(1, 4, relocation(RelocKind::Plt32, Place::Kernel(TEXT + 0x40), -4)),
            site(10, 4, relocation(RelocKind::Pc32, Place::Kernel(MODULE + 0x1000), i64::MIN)),
            site(14, 8, relocation(RelocKind::Abs64, Place::Kernel(MODULE + 0x2010), 0)),
            site(22, 4, relocation(RelocKind::Abs32S, Place::Absolute(0x1_f000), 8)),
            site(30, 2, BootSiteKind::JumpLabel { target: MODULE + 0x70 }),
        ],
        new_offset: 0,
        new_size: 16,
        returns: vec![ReturnPair { old: 5, new: 16 }],
    };
    let mut listed = listed("answer", Some(MODULE + 0x40), 0x60, 16);
    listed.unit.clone_from(&function.unit);
    Bundle {
        manifest: Manifest {
            functions: vec![listed],
            data: vec![],
            left: vec![],
            left_out: vec![],
            ..of.manifest.clone()
        },
        payload: Payload {
            text: vec![0xcc; 16],
            symbols: vec![
                symbol("answer", payload(SectionKind::Text, 0), 16, true),
                symbol("table", Place::Kernel(MODULE + 0x1000), 8, false),
                symbol("other_export", Place::Kernel(MODULE + 0x2010), 0, false),
            ],
            relocs: vec![reloc(SectionKind::Text, 4, RelocKind::Pc32, 1, -4)],
            objects: vec![ObjectPatch {
                type_name: "struct brfs_node".to_owned(),
                cache: "brfs_node_cache".to_owned(),
                cache_address: MODULE + 0x1010,
                old_size: 8,
                new_size: 8,
                added: vec![AddedBytes { offset: 4, bytes: vec![0; 4] }],
            }],
            ..Payload::default()
        },
        functions: vec![function],
        support: None,
        module: Some(ModuleId {
            name: name.to_owned(),
            build_id: vec![9; 20],
            sections: vec![section(".text", MODULE, 0x200), section(".data", MODULE + 0x1000, 0x100)],
            imports: vec![import("one_export", MODULE + 0x2000), import("other_export", MODULE + 0x2010)],
        }),
        modules: vec![],
        ..of.clone()
    }
}

/// The sample without its modules.
pub fn image_only() -> Bundle {
    let symbols = [("_text", TEXT), ("_end", END), ("init_task", TEXT + 0x1a0_0000), ("pcpu_hot", 0x1_f000)];
    let map = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    let profile = GuestProfile {
        symbols: map(&symbols),
        offsets: map(&[("task_struct.tasks", 2200), ("task_struct.comm", 2904)]),
        sizes: map(&[
            ("task_struct", 9600),
            ("page", 64),
            ("exception_table_entry", 12),
            ("bug_entry", 12),
            ("jump_entry", 16),
            ("orc_entry", 6),
            ("_ddebug", 56),
        ]),
        constants: map(&[("PG_reserved", 12), ("THREAD_SIZE", 16384)]),
    };
    let mut first = vec![0xf3, 0x0f, 0x1e, 0xfa, 0xe8, 1, 2, 3, 4];
    first.resize(0x80, 0x55);
    let second = vec![0x90; 0x23];
    let functions = vec![
        FunctionPatch {
            name: "show".to_owned(),
            unit: "fs/proc/show.c".to_owned(),
            old_address: TEXT + 0x1000,
            jump_offset: 4,
            expected: first,
            sites: vec![
                site(4, 5, BootSiteKind::Ftrace),
                site(9, 4, BootSiteKind::Slide32),
                site(13, 8, BootSiteKind::Slide64),
                site(21, 4, BootSiteKind::SlideNegative32),
                site(32, 7, BootSiteKind::Paravirt { slot: TEXT + 0x1a3_98c0 }),
                site(32, 7, BootSiteKind::Alternative { forms: vec![vec![0x90; 7], vec![0xfa; 7]] }),
                site(35, 4, BootSiteKind::Slide32),
                site(40, 5, BootSiteKind::Retpoline),
                site(48, 5, BootSiteKind::Return),
                site(54, 5, BootSiteKind::StaticCall { key: TEXT + 0x1a4_0000 }),
                site(60, 2, BootSiteKind::JumpLabel { target: TEXT + 0x1040 }),
                site(62, 1, BootSiteKind::SmpLock),
                site(64, 8, BootSiteKind::Constant { variable: TEXT + 0x1a4_0100 }),
                site(74, 1, BootSiteKind::Constant { variable: TEXT + 0x1a4_0108 }),
            ],
            new_offset: 0,
            new_size: 21,
            returns: vec![ReturnPair { old: 9, new: 16 }, ReturnPair { old: 0x80, new: 5 }],
        },
        FunctionPatch {
            name: "count".to_owned(),
            unit: "fs/proc/show.c".to_owned(),
            old_address: TEXT + 0x1080,
            jump_offset: 0,
            expected: second,
            sites: Vec::new(),
            new_offset: 0x20,
            new_size: 0x23,
            returns: Vec::new(),
        },
    ];
    Bundle {
        kernel: KernelId {
            build_id: (1..=20).collect(),
            release: "6.1.0-1-test-amd64".to_owned(),
            banner: "Linux version 6.1.0-1-test-amd64 (a@b) (gcc 12.2.0) #1 SMP".to_owned(),
        },
        profile,
        manifest: Manifest {
            name: "show-more".to_owned(),
            update_type: UpdateType::Type2,
            built_by: "lucos-build 0.1.0".to_owned(),
            diff_sha256: "0123456789abcdef".repeat(4),
            files: vec!["fs/proc/internal.h".to_owned(), "fs/proc/show.c".to_owned()],
            functions: vec![
                listed("count", Some(TEXT + 0x1080), 0x23, 0x23),
                listed("helper", None, 0, 8),
                listed("show", Some(TEXT + 0x1000), 0x80, 21),
            ],
            data: vec![ManifestDatum { name: "calls".to_owned(), unit: "fs/proc/show.c".to_owned(), size: 8 }],
            left: vec![OldCode {
                address: TEXT + 0x10e0,
                size: 0x12,
                name: "show.cold".to_owned(),
                unit: "fs/proc/show.c".to_owned(),
            }],
            left_out: vec![LeftOut {
                section: ".orc_unwind".to_owned(),
                unit: "fs/proc/show.c".to_owned(),
                consequence: "stack traces through the new code are guesses".to_owned(),
            }],
            omitted: Vec::new(),
            vouched: vec![Vouched {
                about: "lock-calls".to_owned(),
                subject: "show".to_owned(),
                says: "silenced".to_owned(),
                reason: "the lock is new".to_owned(),
            }],
            unchanged_modules: Vec::new(),
        },
        payload: Payload {
            text: text(),
            rodata: b"<6>shown \xc2\xb5\n\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
            data: vec![7; 168],
            bss_size: 4096,
            symbols: vec![
                symbol("show", payload(SectionKind::Text, 0), 21, true),
                symbol("count", payload(SectionKind::Text, 0x20), 0x23, true),
                symbol("helper", payload(SectionKind::Text, 0x50), 8, true),
                symbol(".LC0", payload(SectionKind::Rodata, 0), 0, false),
                symbol("calls", payload(SectionKind::Data, 8), 8, false),
                symbol("buffer", payload(SectionKind::Bss, 64), 4032, false),
                symbol("_printk", Place::Kernel(TEXT + 0x2000), 0x40, true),
                symbol("__x86_return_thunk", Place::Kernel(END - 1), 0, true),
                symbol("pcpu_hot", Place::Absolute(0x1_f000), 64, false),
                symbol("calls", Place::Kernel(TEXT), 0, false),
                symbol("", Place::Absolute(u64::MAX), 0, false),
            ],
            relocs: vec![
                reloc(SectionKind::Text, 7, RelocKind::Pc32, 3, -4),
                reloc(SectionKind::Text, 12, RelocKind::Plt32, 6, -4),
                reloc(SectionKind::Text, 17, RelocKind::Plt32, 7, -4),
                reloc(SectionKind::Text, 0x26, RelocKind::Pc32, 9, 20),
                reloc(SectionKind::Text, 0x3a, RelocKind::Abs32S, 8, 0),
                reloc(SectionKind::Rodata, 20, RelocKind::Abs32, 4, i64::MIN),
                reloc(SectionKind::Data, 0, RelocKind::Abs64, 5, 0x10),
                reloc(SectionKind::Data, 8, RelocKind::Abs64, 0, i64::MAX),
                reloc(SectionKind::Data, 64, RelocKind::Pc32, 0, 0x10),
                reloc(SectionKind::Data, 72, RelocKind::Pc64, 6, 1),
            ],
            fixups: vec![
                Fixup::Return { offset: 16 },
                Fixup::Paravirt { offset: 0x24, len: 7, slot: TEXT + 0x1a3_98c0 },
                Fixup::Retpoline { offset: 0x2b },
                Fixup::Return { offset: 0x3e },
                Fixup::Constant { offset: 0x44, len: 8, variable: TEXT + 0x1a4_0100 },
                Fixup::Constant { offset: 0x4f, len: 1, variable: TEXT + 0x1a4_0108 },
                alternative(3 * 32 + 21, false),
                alternative(8 * 32 + 15, true),
            ],
            tables: vec![
                table(TableKind::Exceptions, 24, 12),
                table(TableKind::Bugs, 36, 24),
                table(TableKind::JumpLabels, 64, 16),
                table(TableKind::OrcIp, 80, 8),
                table(TableKind::Orc, 88, 12),
                table(TableKind::DynamicDebug, 104, 56),
                table(TableKind::Unprobed, 160, 8),
            ],
            hooks: hooks(),
            changed: changed(),
            objects: objects(),
        },
        functions,
        support: Some(support()),
        module: None,
        modules: Vec::new(),
    }
}

/// A changed datum of every kind, with a step of every kind.
fn changed() -> Vec<DataPatch> {
    let datum = |name: &str, at: u64, change| DataPatch {
        name: name.to_owned(),
        unit: "fs/proc/show.c".to_owned(),
        old_address: TEXT + 0x1b0_0000 + at,
        old_size: 24,
        section: SectionKind::Data,
        new_offset: 8,
        new_size: 32,
        change,
    };
    let step = |from, from_size, to, to_size, how| Step { from, from_size, to, to_size, how };
    vec![
        datum(
            "limits",
            0,
            DataChange::InPlace {
                initial: vec![7; 24],
                slides: vec![0, 16],
                added: vec![12..16, 24..32],
                edited: vec![0..4, 4..8],
                overwrite: true,
            },
        ),
        datum(
            "state",
            24,
            DataChange::Moved {
                to_new: vec![
                    step(0, 3, 4, 3, StepKind::Copy),
                    step(32, 16, 64, 64, StepKind::ZeroExtend),
                    step(64, 32, 128, 64, StepKind::SignExtend),
                    step(0, 1, 192, 8, StepKind::Constant(0xff)),
                ],
                to_old: vec![
                    step(4, 3, 0, 3, StepKind::Copy),
                    step(64, 64, 32, 16, StepKind::NarrowUnsigned),
                    step(128, 64, 64, 32, StepKind::NarrowSigned),
                ],
            },
        ),
    ]
}

/// Objects of two caches: new bytes in a hole, and at and behind the end.
fn objects() -> Vec<ObjectPatch> {
    let added = |offset, bytes: &[u8]| AddedBytes { offset, bytes: bytes.to_vec() };
    let of = |type_name: &str, cache: &str, at: u64, added| ObjectPatch {
        type_name: type_name.to_owned(),
        cache: cache.to_owned(),
        cache_address: TEXT + 0x1b0_1000 + at,
        old_size: 40,
        new_size: 56,
        added,
    };
    vec![
        of("struct shown", "shown_cachep", 0, vec![added(12, &[5, 0, 0, 0]), added(36, &[0; 20])]),
        of("struct counted", "counted_cache", 8, vec![added(7, &[1])]),
    ]
}

/// A hook of every kind.
fn hooks() -> Vec<Hook> {
    let function = || HookSubject::Function { name: "show".to_owned(), old_address: TEXT + 0x1000 };
    let datum = |section, new_offset| HookSubject::Datum {
        name: "calls".to_owned(),
        old_address: TEXT + 0x1a0_0000,
        old_size: 4,
        section,
        new_offset,
        new_size: 8,
    };
    let subject = |kind: HookKind| match kind {
        HookKind::Transition | HookKind::UndoTransition => function(),
        HookKind::SyncToNew => datum(SectionKind::Data, 8),
        HookKind::SyncToOld => datum(SectionKind::Bss, 64),
        _ => HookSubject::Update,
    };
    HookKind::ALL.map(|kind| Hook { kind, subject: subject(kind), offset: 0x50 }).to_vec()
}

fn table(kind: TableKind, offset: u32, size: u32) -> Table {
    Table { kind, offset, size }
}

/// A support object: one function, its request, its work, its facts.
fn support() -> Payload {
    Payload {
        // endbr64; mov request(%rip),%rax; lock addl; jmp __x86_return_thunk
        text: vec![0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x8b, 0x05, 0, 0, 0, 0, 0xe9, 0, 0, 0, 0],
        rodata: vec![1, 0, 0, 0, 32, 0, 0, 0],
        data: vec![0; 32],
        bss_size: 8,
        symbols: vec![
            symbol("lucos_support_interrupt", payload(SectionKind::Text, 0), 16, true),
            symbol("lucos_support_abi", payload(SectionKind::Rodata, 0), 8, false),
            symbol("calls", payload(SectionKind::Data, 8), 24, false),
            symbol("__x86_return_thunk", Place::Kernel(END - 1), 0, true),
        ],
        relocs: vec![
            reloc(SectionKind::Text, 7, RelocKind::Pc32, 2, -4),
            reloc(SectionKind::Text, 12, RelocKind::Plt32, 3, -4),
            reloc(SectionKind::Data, 8, RelocKind::Abs64, 0, 0),
        ],
        fixups: vec![Fixup::Return { offset: 11 }],
        tables: Vec::new(),
        hooks: Vec::new(),
        changed: Vec::new(),
        objects: Vec::new(),
    }
}

fn alternative(feature: u16, inverted: bool) -> Fixup {
    Fixup::Alternative { offset: 0x30, len: 5, replacement: 0x50, replacement_len: 3, feature, inverted }
}

fn listed(name: &str, old_address: Option<u64>, old_size: u64, new_size: u64) -> ManifestFunction {
    ManifestFunction { name: name.to_owned(), unit: "fs/proc/show.c".to_owned(), old_address, old_size, new_size }
}

/// The file of the sample.
pub fn file() -> Vec<u8> {
    write(&sample()).expect("the sample is sound")
}

/// Number in a file.
pub fn number(file: &[u8], at: usize, width: usize) -> u64 {
    file[at..at + width].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// File offset of the header of a section.
pub fn header(file: &[u8], section: &str) -> usize {
    let index = SECTION_NAMES.iter().position(|name| *name == section).expect("a section of the format");
    number(file, 0x28, 8) as usize + index * 64
}

/// File range of a section.
pub fn section(file: &[u8], name: &str) -> Range<usize> {
    let at = header(file, name);
    let start = number(file, at + 24, 8) as usize;
    start..start + number(file, at + 32, 8) as usize
}

/// The file with `bytes` written at an offset, sealed again.
pub fn patched(mut file: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    file[at..at + bytes.len()].copy_from_slice(bytes);
    seal(&mut file).expect("digest and id are untouched");
    file
}

/// The sample's file with `bytes` written into a section, sealed again.
pub fn patched_section(name: &str, at: usize, bytes: &[u8]) -> Vec<u8> {
    let file = file();
    let start = section(&file, name).start;
    patched(file, start + at, bytes)
}

/// Small generator of numbers for repeatable damage (Marsaglia's xorshift64).
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// The next number below a bound above 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
