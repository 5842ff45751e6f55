//! Units, functions, variables and layout facts of a linked image, checked against its symbol table.
//!
//! One image is made here from small C files; the other is a kernel named by `LUCOS_TEST_VMLINUX`.

use goblin::elf::Elf;
use prelink::dwarf::{DebugSections, DwarfError};
use prelink::profile::layout_facts;
use prelink::units::UnitIndex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn sections<'a>(bytes: &'a [u8], elf: &Elf<'_>) -> HashMap<String, &'a [u8]> {
    let mut sections = HashMap::new();
    for header in &elf.section_headers {
        let name = elf.shdr_strtab.get_at(header.sh_name).unwrap_or("");
        if let Some(range) = header.file_range()
            && let Some(data) = bytes.get(range)
        {
            sections.insert(name.to_owned(), data);
        }
    }
    sections
}

fn load<'a>(sections: &HashMap<String, &'a [u8]>) -> Result<DebugSections<'a>, DwarfError> {
    DebugSections::load(|name| sections.get(name).copied().unwrap_or(&[]))
}

/// Functions (or objects) of the symbol table: address to name and size.
fn symbols(elf: &Elf<'_>, kind: u8) -> HashMap<u64, Vec<(String, u64)>> {
    let mut found: HashMap<u64, Vec<(String, u64)>> = HashMap::new();
    for symbol in elf.syms.iter().filter(|symbol| symbol.st_type() == kind && symbol.st_shndx != 0) {
        let name = elf.strtab.get_at(symbol.st_name).unwrap_or("").to_owned();
        found.entry(symbol.st_value).or_default().push((name, symbol.st_size));
    }
    found
}

fn small_image(folder: &Path) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let write = |path: &str, text: &str| -> std::io::Result<()> {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(folder))?;
        std::fs::write(path, text)
    };
    write("tree/include/shared.h", "struct shared { int a; long b : 7; };\n")?;
    write("tree/include/quiet.h", "#define QUIET 3\n")?;
    write(
        "tree/init/main.c",
        "#include \"../include/shared.h\"\nint far(int);\nstruct shared shared;\n\
         static int __attribute__((noinline)) near(int x) { static int calls; calls += x; return calls; }\n\
         int _start(void) { return near(far(2)) + shared.a; }\n",
    )?;
    write(
        "tree/lib/far.c",
        "#include \"../include/quiet.h\"\nint table[2];\nint far(int x) { static int calls[2]; calls[x & 1]++; return calls[0] * QUIET + table[x & 1]; }\n",
    )?;
    std::fs::create_dir_all(folder.join("build"))?;
    let output = Command::new("gcc")
        .current_dir(folder.join("build"))
        .args(["-g", "-O2", "-static", "-nostdlib", "-o", "image", "../tree/init/main.c", "../tree/lib/far.c"])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(std::fs::read(folder.join("build/image"))?)
}

#[test]
fn a_small_image_is_indexed() -> Outcome {
    let folder = tempfile::tempdir()?;
    let bytes = small_image(folder.path())?;
    let elf = Elf::parse(&bytes)?;
    let all = sections(&bytes, &elf);
    let index = UnitIndex::build(&load(&all)?)?;
    let names: Vec<&str> = index.iter().map(|unit| unit.name.as_str()).collect();
    assert_eq!(names, ["init/main.c", "lib/far.c"]);
    let main = index.find("init/main.c").ok_or("init/main.c")?;
    assert!(main.is_c() && main.producer.starts_with("GNU C"), "{}", main.producer);
    let functions = symbols(&elf, goblin::elf::sym::STT_FUNC);
    let found = main.functions(&index)?;
    let mut found_names: Vec<(&str, bool)> = found.iter().map(|f| (f.name.as_str(), f.external)).collect();
    found_names.sort_unstable();
    assert_eq!(found_names, [("_start", true), ("near", false)]);
    for function in &found {
        let expected = (function.name.clone(), function.high_pc - function.low_pc);
        assert!(functions[&function.low_pc].contains(&expected), "{function:?}");
        assert_eq!(index.at(function.low_pc).map(|unit| unit.id), Some(main.id));
    }
    let objects = symbols(&elf, goblin::elf::sym::STT_OBJECT);
    let far = index.find("./lib/../lib/far.c").ok_or("lib/far.c")?;
    let variables = far.variables(&index)?;
    let scopes: BTreeMap<_, _> =
        variables.iter().map(|v| (v.name.as_str(), (v.function.as_deref(), v.external))).collect();
    assert_eq!(scopes, BTreeMap::from([("calls", (Some("far"), false)), ("table", (None, true))]));
    for variable in &variables {
        // The symbol of a static local has a number behind its name.
        assert!(objects[&variable.address].iter().any(|(name, _)| name.starts_with(&variable.name)), "{variable:?}");
    }
    assert_eq!(index.units_including("include/shared.h")?, [main.id]);
    assert_eq!(index.units_including("lib/far.c")?, [far.id]);
    assert_eq!(index.units_including("include/none.h")?, []);
    // Nothing of a header that has only macros is recorded.
    assert_eq!(index.units_including("include/quiet.h")?, []);
    Ok(())
}

#[test]
fn an_image_without_debug_information_is_refused() {
    assert!(matches!(DebugSections::load(|_| &[]), Err(DwarfError::NoDebugInfo)));
}

#[test]
fn damaged_sections_are_refused_or_read_but_never_panic() -> Outcome {
    let folder = tempfile::tempdir()?;
    let bytes = small_image(folder.path())?;
    let elf = Elf::parse(&bytes)?;
    let good = sections(&bytes, &elf);
    let mut refused = 0;
    for section in [".debug_info", ".debug_abbrev", ".debug_line", ".debug_rnglists"] {
        let Some(data) = good.get(section) else { continue };
        for at in 0..data.len() {
            let mut bad = data.to_vec();
            bad[at] ^= 0x5a;
            let mut all = good.clone();
            all.insert(section.to_owned(), &bad);
            let Ok(index) = load(&all).and_then(|sections| UnitIndex::build(&sections)) else {
                refused += 1;
                continue;
            };
            for unit in index.iter() {
                refused += usize::from(unit.functions(&index).is_err());
                refused += usize::from(unit.variables(&index).is_err());
                refused += usize::from(unit.layouts(&index).is_err());
            }
            refused += usize::from(index.units_including("lib/far.c").is_err());
            refused += usize::from(layout_facts(&index).is_err());
        }
    }
    assert!(refused > 0);
    Ok(())
}

#[test]
fn a_real_kernel_agrees_with_its_symbol_table() -> Outcome {
    let Some(path) = std::env::var_os("LUCOS_TEST_VMLINUX") else {
        assert!(std::env::var_os("LUCOS_REQUIRE_ALL").is_none(), "LUCOS_TEST_VMLINUX names no vmlinux");
        println!("skipped: set LUCOS_TEST_VMLINUX to a vmlinux with DWARF");
        return Ok(());
    };
    let bytes = std::fs::read(path)?;
    let elf = Elf::parse(&bytes)?;
    let all = sections(&bytes, &elf);
    let debug = load(&all)?;

    let start = Instant::now();
    let index = UnitIndex::build(&debug)?;
    println!("index of {} units: {:?}", index.len(), start.elapsed());
    assert!(index.len() > 1000);
    let odd: Vec<&str> =
        index.iter().map(|u| u.name.as_str()).filter(|n| n.starts_with('/') || n.contains("..")).collect();
    assert!(odd.is_empty(), "names outside the source tree: {odd:?}");

    let start = Instant::now();
    let including = index.units_including("include/linux/sched.h")?;
    println!("{} units list include/linux/sched.h: {:?}", including.len(), start.elapsed());
    assert!(including.len() > 500 && including.len() < index.len());
    let listed: BTreeSet<_> = including.iter().map(|id| index.unit(*id).name.as_str()).collect();
    assert!(listed.contains("kernel/fork.c"));
    assert_eq!(index.units_including("kernel/fork.c")?, index.named("kernel/fork.c"));

    let functions = symbols(&elf, goblin::elf::sym::STT_FUNC);
    let objects = symbols(&elf, goblin::elf::sym::STT_OBJECT);
    let named: BTreeSet<&str> = functions.values().flatten().map(|(name, _)| name.as_str()).collect();
    for name in ["kernel/fork.c", "mm/filemap.c", "net/ipv4/tcp_input.c", "kernel/sched/core.c", "fs/proc/cmdline.c"] {
        let unit = index.find(name).ok_or(name)?;
        let start = Instant::now();
        let found = unit.functions(&index)?;
        let variables = unit.variables(&index)?;
        println!("{name}: {} functions, {} variables: {:?}", found.len(), variables.len(), start.elapsed());
        assert!(!found.is_empty());
        for function in &found {
            assert!(unit.ranges.iter().any(|range| range.contains(function.low_pc)), "{name}: {function:?}");
            let Some(here) = functions.get(&function.low_pc) else {
                // A weak function that another unit overrides has code and no symbol; the name's symbol is elsewhere.
                assert!(function.external && named.contains(function.name.as_str()), "{name}: no symbol: {function:?}");
                continue;
            };
            let size = function.high_pc - function.low_pc;
            let fits = |(symbol, length): &(String, u64)| {
                *length == size && (symbol == &function.name || symbol.starts_with(&format!("{}.", function.name)))
            };
            // Another name at the same address is an alias.
            assert!(here.iter().any(fits) || here.iter().any(|(_, length)| *length == size), "{function:?} {here:?}");
        }
        let unnamed = variables.iter().filter(|variable| {
            let same = |(symbol, _): &(String, u64)| {
                symbol == &variable.name || symbol.starts_with(&format!("{}.", variable.name))
            };
            !objects.get(&variable.address).is_some_and(|here| here.iter().any(same))
        });
        let unnamed: Vec<_> = unnamed.map(|v| (&v.name, v.address, &v.function)).collect();
        println!("  {} of {} variables have no symbol of their name: {unnamed:x?}", unnamed.len(), variables.len());
        assert!(unnamed.is_empty(), "{name}: {unnamed:x?}");
    }

    let start = Instant::now();
    let profile = layout_facts(&index)?;
    println!("profile: {:?}\n{profile:#?}", start.elapsed());
    // The first thread's name and the size of its structure are in the image: init_task (init/init_task.c).
    let (&init_task, _) =
        objects.iter().find(|(_, here)| here.iter().any(|(n, _)| n == "init_task")).ok_or("init_task")?;
    let size = objects[&init_task].iter().find(|(n, _)| n == "init_task").map_or(0, |(_, size)| *size);
    assert_eq!(profile.sizes["task_struct"], size);
    let header = elf.program_headers.iter().find(|h| h.vm_range().contains(&(init_task as usize))).ok_or("segment")?;
    let at = (init_task - header.p_vaddr + header.p_offset) as usize;
    let comm = at + profile.offsets["task_struct.comm"] as usize;
    assert_eq!(&bytes[comm..comm + 8], b"swapper\0");
    // .orc_unwind and .orc_unwind_ip belong together (scripts/sorttable.h), 4 bytes for each entry of the latter.
    let entries = all[".orc_unwind_ip"].len() as u64 / 4;
    assert_eq!(all[".orc_unwind"].len() as u64, entries * profile.sizes["orc_entry"]);
    for (section, ty) in [(".altinstructions", "alt_instr"), (".parainstructions", "paravirt_patch_site")] {
        let size = profile.sizes[ty];
        assert_eq!(all[section].len() as u64 % size, 0, "{section}");
    }
    Ok(())
}
