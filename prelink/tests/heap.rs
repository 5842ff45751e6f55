//! What holds objects of a type besides the heap, and which variable points to their cache.
//!
//! One image is made here from small C files; the other is a kernel named by `LUCOS_TEST_VMLINUX`.

use goblin::elf::Elf;
use prelink::dwarf::{DebugSections, DwarfError};
use prelink::holders::{self, Holder};
use prelink::units::UnitIndex;
use prelink::variables;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn sections(bytes: &[u8]) -> Result<HashMap<String, &[u8]>, goblin::error::Error> {
    let elf = Elf::parse(bytes)?;
    let named = elf.section_headers.iter().filter_map(|header| {
        let name = elf.shdr_strtab.get_at(header.sh_name)?;
        Some((name.to_owned(), bytes.get(header.file_range()?)?))
    });
    Ok(named.collect())
}

fn load<'a>(sections: &HashMap<String, &'a [u8]>) -> Result<DebugSections<'a>, DwarfError> {
    DebugSections::load(|name| sections.get(name).copied().unwrap_or(&[]))
}

fn image(folder: &Path) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let write = |path: &str, text: &str| std::fs::write(folder.join(path), text);
    write(
        "x.h",
        "struct x { int a; char b; };\ntypedef struct x x_t;\nstruct kmem_cache;\nextern struct kmem_cache *x_cache;\n\
         struct holder { int n; union { long l; struct { int m; const x_t in[2]; } deep; }; };\n\
         struct points { struct x *to; };\ntypedef struct { struct x it; } wrapped;\n",
    )?;
    write(
        "main.c",
        "#include \"x.h\"\nstruct kmem_cache *x_cache;\nstatic struct kmem_cache *volatile own;\nint other;\n\
         static x_t table[3];\nstruct points p;\nstruct holder *h;\nwrapped *w;\n\
         int far(struct x);\nint *near(void);\n\
         int _start(void) { struct x local = { other, 2 }; own = x_cache; return far(local) + table[other].a + p.to->a + h->n + w->it.a + *near(); }\n",
    )?;
    write(
        "far.c",
        "#include \"x.h\"\nstatic struct kmem_cache *own;\nstruct kmem_cache *const *keep(void) { return &own; }\n\
         int far(struct x by_value) { return by_value.a + (own == x_cache); }\n",
    )?;
    write(
        "third.c",
        "struct x { long other[2]; };\nstruct x same_name;\nint *near(void) { return (int *)&same_name; }\n",
    )?;
    let output = Command::new("gcc")
        .current_dir(folder)
        .args(["-g", "-O1", "-static", "-nostdlib", "-o", "image", "main.c", "far.c", "third.c"])
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(std::fs::read(folder.join("image"))?)
}

#[test]
fn what_holds_an_object_is_found() -> Outcome {
    let folder = tempfile::tempdir()?;
    let bytes = image(folder.path())?;
    let all = sections(&bytes)?;
    let index = UnitIndex::build(&load(&all)?)?;
    let found = holders::of(&index, "struct x", 8)?;
    assert_eq!((found.units, found.defining), (3, 2));
    let holders: BTreeSet<Holder> = found.holders.into_iter().map(|(holder, _)| holder).collect();
    let member = |of: &str, member: &str| Holder::Member { of: of.to_owned(), member: member.to_owned() };
    let local = |function: &str, name: &str| Holder::Local { function: function.to_owned(), name: name.to_owned() };
    let expected = BTreeSet::from([
        Holder::Variable("table".to_owned()),
        member("struct holder", "deep.in"),
        member("wrapped", "it"),
        local("_start", "local"),
        local("far", "by_value"),
    ]);
    // The declaration of `far` has a parameter, too; it holds nothing.
    assert_eq!(holders, expected);
    // The same name with another size is another type.
    let of_the_other: Vec<(Holder, String)> = holders::of(&index, "struct x", 16)?.holders.into_iter().collect();
    assert_eq!(of_the_other, [(Holder::Variable("same_name".to_owned()), "third.c".to_owned())]);
    assert_eq!(holders::of(&index, "struct points", 8)?.holders.len(), 1);
    assert_eq!(holders::of(&index, "struct none", 8)?.defining, 0);
    Ok(())
}

#[test]
fn variables_are_found_with_what_they_point_to() -> Outcome {
    let folder = tempfile::tempdir()?;
    let bytes = image(folder.path())?;
    let all = sections(&bytes)?;
    let index = UnitIndex::build(&load(&all)?)?;
    let named = |name: &str| -> Result<Vec<(String, Option<String>)>, DwarfError> {
        Ok(variables::named(&index, name)?.into_iter().map(|found| (found.unit, found.points_to)).collect())
    };
    let cache = || Some("kmem_cache".to_owned());
    assert_eq!(named("x_cache")?, [("main.c".to_owned(), cache())]);
    assert_eq!(named("own")?, [("main.c".to_owned(), cache()), ("far.c".to_owned(), cache())]);
    assert_eq!(named("other")?, [("main.c".to_owned(), None)]);
    assert_eq!(named("local")?, []);
    let elf = Elf::parse(&bytes)?;
    let symbol = elf.syms.iter().find(|symbol| elf.strtab.get_at(symbol.st_name) == Some("x_cache"));
    assert_eq!(variables::named(&index, "x_cache")?[0].address, symbol.ok_or("x_cache")?.st_value);
    Ok(())
}

#[test]
fn of_a_real_kernel_everything_is_found_in_seconds() -> Outcome {
    let Some(path) = std::env::var_os("LUCOS_TEST_VMLINUX") else {
        assert!(std::env::var_os("LUCOS_REQUIRE_ALL").is_none(), "LUCOS_TEST_VMLINUX names no vmlinux");
        println!("skipped: set LUCOS_TEST_VMLINUX to a vmlinux with DWARF");
        return Ok(());
    };
    let bytes = std::fs::read(path)?;
    let all = sections(&bytes)?;
    let index = UnitIndex::build(&load(&all)?)?;
    let size = |unit: &str, key: &str| -> Result<u64, Box<dyn std::error::Error>> {
        let types = index.find(unit).ok_or("the unit")?.types(&index, |name| key.ends_with(name))?;
        Ok(types.get(key).ok_or("the type")?.size)
    };
    for (key, unit, holder) in [
        ("struct epitem", "fs/eventpoll.c", None),
        ("struct task_struct", "kernel/fork.c", Some(Holder::Variable("init_task".to_owned()))),
        (
            "struct inode",
            "fs/inode.c",
            Some(Holder::Member { of: "struct socket_alloc".to_owned(), member: "vfs_inode".to_owned() }),
        ),
    ] {
        let start = Instant::now();
        let found = holders::of(&index, key, size(unit, key)?)?;
        println!("{key}: {} of {} units define it, {:?}", found.defining, found.units, start.elapsed());
        println!("  {:?}", found.holders);
        match holder {
            None => assert!(found.holders.is_empty() && found.defining > 0),
            Some(holder) => assert!(found.holders.iter().any(|(known, _)| *known == holder)),
        }
    }
    let start = Instant::now();
    let found = variables::named(&index, "pwq_cache")?;
    println!("pwq_cache: {:?}", start.elapsed());
    let units: Vec<&str> = found.iter().map(|found| found.unit.as_str()).collect();
    assert_eq!(units, ["kernel/workqueue.c", "fs/eventpoll.c"]);
    assert!(found.iter().all(|found| found.points_to.as_deref() == Some("kmem_cache")));
    Ok(())
}
