//! Where frames can go on, for the function `loop` of each folder of `testdata/returns`, compiled as a kernel's units are.
//!
//! The folder's name says whether a frame that waits for `nap` goes on. `moved.txt` names data of which new code uses another copy.
//! `expect.txt` holds what is found of each call. Offsets of code are left out: they are the compiler's. `LUCOS_BLESS=1` rewrites
//! the reports.

use diff_analyzer::object::{Definition, Object, Reloc, Section, SymbolIndex};
use diff_analyzer::object_diff::compare;
use diff_analyzer::pieces::{PieceIndex, Pieces, Target};
use diff_analyzer::returns::{Moved, Why, points};
use object::elf;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The options of a kernel build that decide what an object looks like.
const OPTIONS: &str = "-std=gnu11 -O2 -ffunction-sections -fdata-sections -mcmodel=kernel -fno-pic -fno-pie -fno-common \
    -fno-asynchronous-unwind-tables -fcf-protection=none -mno-sse -mno-mmx -mno-80387 -mno-red-zone -fno-stack-protector \
    -fno-strict-aliasing -fno-delete-null-pointer-checks -fno-jump-tables -mpreferred-stack-boundary=3 -w";

/// Bytes of an entry that tells how to unwind (`struct orc_entry`).
const ENTRY: usize = 6;

fn compile(source: &Path, into: &Path) -> Outcome<Object> {
    let object = into.join("unit.o");
    let mut gcc = Command::new("gcc");
    let output = gcc.args(OPTIONS.split_whitespace()).arg("-c").arg(source).arg("-o").arg(&object).output()?;
    if !output.status.success() {
        return Err(format!("gcc {}: {}", source.display(), String::from_utf8_lossy(&output.stderr)).into());
    }
    let mut object = Object::parse(&std::fs::read(object)?)?;
    unwind(&mut object);
    Ok(object)
}

/// Has all functions be unwound in one way, as the kernel's tools would say it.
fn unwind(object: &mut Object) {
    let symbols = object.symbols.iter().enumerate();
    let functions = symbols
        .filter(|(_, symbol)| symbol.kind == elf::STT_FUNC.0 && matches!(symbol.definition, Definition::Section(_)));
    let mut relocs = Vec::new();
    for (index, _) in functions {
        let offset = 4 * relocs.len() as u64;
        let kind = elf::R_X86_64_PC32.0;
        relocs.push(Reloc { offset, kind, symbol: SymbolIndex(index), addend: 0, tail: 0, branch: false, code: false });
    }
    let section = |name: &str, data: Vec<u8>, relocs| Section {
        name: name.to_owned(),
        flags: elf::SHF_ALLOC.0,
        entry_size: 0,
        size: data.len() as u64,
        data,
        align: 1,
        relocs,
    };
    let count = relocs.len();
    object.sections.push(section(".orc_unwind_ip", vec![0; 4 * count], relocs));
    object.sections.push(section(".orc_unwind", vec![1; ENTRY * count], Vec::new()));
}

/// The function that a call ending at an offset of a piece calls.
fn callee(pieces: &Pieces<'_>, piece: PieceIndex, end: u64) -> String {
    let start = pieces.piece(piece).range.start;
    let field = pieces.relocs(piece).iter().find(|reloc| reloc.offset + 4 == start + end);
    match field.map(|reloc| pieces.target(reloc)) {
        Some(Target::External(symbol)) => pieces.object.symbol(symbol).name.clone(),
        Some(Target::Piece(called, _)) => pieces.piece(called).name.clone(),
        None => "a pointer".to_owned(),
    }
}

/// What is found, and whether a frame that waits for `nap` goes on.
fn examine(case: &Path, work: &Path) -> Outcome<(String, bool)> {
    let (old, new) = (compile(&case.join("old.c"), work)?, compile(&case.join("new.c"), work)?);
    let sizes = [("jump_entry", 16), ("exception_table_entry", 12), ("alt_instr", 12)];
    let sizes = sizes.map(|(name, size)| (name.to_owned(), size)).into();
    let (old, new) = (Pieces::cut(&old, &sizes)?, Pieces::cut(&new, &sizes)?);
    let function = |pieces: &Pieces<'_>| pieces.iter().find(|(_, piece)| piece.name == "loop").map(|(index, _)| index);
    let (before, after) = (function(&old).ok_or("no loop")?, function(&new).ok_or("no loop")?);
    let diff = compare(&old, &new);
    let names = std::fs::read_to_string(case.join("moved.txt")).unwrap_or_default();
    let moved = Moved { data: &BTreeSet::new(), names: &names.lines().map(str::to_owned).collect() };
    let points = match points((&old, before), (&new, after), &diff, moved) {
        Ok(points) => points,
        Err(why @ Why::Jump(_)) => return Ok((format!("{}\n", anywhere(&why)), false)),
        Err(why) => return Ok((format!("{why}\n"), false)),
    };
    let (mut text, mut goes_on) = (String::new(), true);
    for point in points {
        let name = callee(&old, before, point.old);
        match &point.new {
            Ok(there) => {
                assert_eq!(callee(&new, after, *there), name, "{}", case.display());
                writeln!(text, "{name}: goes on")?;
            }
            Err(why) => writeln!(text, "{name}: {why}")?,
        }
        goes_on &= name != "nap" || point.new.is_ok();
    }
    Ok((text, goes_on))
}

/// A reason without its offset.
fn anywhere(why: &Why) -> String {
    why.to_string().split(" at +").next().unwrap_or_default().to_owned()
}

#[test]
fn frames_go_on_where_the_folder_says() -> Outcome {
    let bless = std::env::var_os("LUCOS_BLESS").is_some();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/returns");
    let work = tempfile::tempdir()?;
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(&root)? {
        let case = entry?.path();
        let name = case.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (text, goes_on) = examine(&case, work.path())?;
        count += 1;
        if goes_on != name.starts_with("goes-on-") {
            wrong.push(format!("{name}:\n{text}"));
        }
        let expected = case.join("expect.txt");
        if bless {
            std::fs::write(&expected, &text)?;
        } else if std::fs::read_to_string(&expected)? != text {
            wrong.push(format!("{name}: not as in expect.txt:\n{text}"));
        }
    }
    assert!(count > 15, "{count} cases");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
