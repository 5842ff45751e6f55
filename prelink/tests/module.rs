//! A small module of `testdata/module`, built as a kernel's modules are (relocatable, with a build id and `.modinfo`), linked
//! against a small kernel, proved and linked into a payload. And what is not a module of that kernel.

use diff_analyzer::object::Object;
use diff_analyzer::object_diff::compare;
use diff_analyzer::pieces::Pieces;
use lpk_format::{BootSiteKind, MODULE_SPACE, Place, RelocKind};
use prelink::link::{Unit, link};
use prelink::module::{self, ModuleError};
use prelink::prove::prove;
use prelink::sites::BootTables;
use prelink::vmlinux::KernelImage;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const OPTIONS: &str = "-std=gnu11 -O2 -mcmodel=kernel -fno-pic -fno-pie -fno-common -fno-asynchronous-unwind-tables \
    -fcf-protection=none -mno-sse -mno-mmx -mno-80387 -mno-red-zone -fno-stack-protector -fno-optimize-sibling-calls -w";

fn testdata(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name)
}

fn run(command: &mut Command) {
    let output = command.output().expect("gcc and ld are there");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Compiles a file of the folder under a name that all versions of it share.
fn compile(dir: &Path, file: &str, options: &[&str]) -> PathBuf {
    let name = format!("{}.c", file.split('.').next().unwrap_or(file));
    std::fs::copy(testdata("module").join(format!("{file}.c")), dir.join(&name)).expect("copied");
    let object = dir.join(format!("{file}{}.o", options.len()));
    run(Command::new("gcc")
        .current_dir(dir)
        .args(OPTIONS.split_whitespace())
        .args(options)
        .args(["-c", &name, "-o"])
        .arg(&object));
    object
}

/// A kernel and the file of its module.
fn build(dir: &Path) -> (KernelImage, Vec<u8>) {
    let image = dir.join("vmlinux");
    let kernel = compile(dir, "kernel", &[]);
    run(Command::new("ld")
        .args(["-q", "-static", "--build-id=sha1", "-z", "noexecstack", "--no-warn-rwx-segments", "-e", "_text", "-T"])
        .arg(testdata("link/kernel.lds"))
        .arg("-o")
        .arg(&image)
        .arg(kernel));
    let file = dir.join("small.ko");
    let (unit, info) = (compile(dir, "unit.old", &[]), compile(dir, "info", &[]));
    run(Command::new("ld").args(["-r", "--build-id=sha1", "-o"]).arg(&file).arg(unit).arg(info));
    (KernelImage::open(&image).expect("a kernel"), std::fs::read(file).expect("a module"))
}

fn object(path: &Path) -> Object {
    Object::parse(&std::fs::read(path).expect("an object")).expect("an object")
}

#[test]
fn a_module_is_proved_and_linked_as_the_kernel_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let (kernel, file) = build(dir.path());
    let image = module::open(Path::new("small.ko"), &file, &kernel).expect("a module");
    let id = image.module().expect("a module").clone();
    assert_eq!((id.name.as_str(), id.build_id.len()), ("small", 20));
    assert_eq!(id.imports.iter().map(|import| import.name.as_str()).collect::<Vec<_>>(), ["other_export"]);
    assert!(id.sections.windows(2).all(|pair| pair[0].address + pair[0].size < pair[1].address));

    let split = ["-ffunction-sections", "-fdata-sections"];
    let (old, new) =
        (object(&compile(dir.path(), "unit.old", &split)), object(&compile(dir.path(), "unit.new", &split)));
    let sizes = BTreeMap::from([("alt_instr".to_owned(), 12)]);
    let (old, new) = (Pieces::cut(&old, &sizes).expect("pieces"), Pieces::cut(&new, &sizes).expect("pieces"));
    let proof = prove(&image, &old, &[]);
    assert!(proof.mismatches.is_empty(), "{:?}", proof.mismatches);
    assert_eq!(proof.functions.len(), 3, "module_function, inner and plain");

    let diff = compare(&old, &new);
    let tables = BootTables::read(&image, &sizes).expect("known tables");
    let unit = Unit { name: "unit.c", original: &old, patched: &new, diff: &diff, proof: &proof, data: &[] };
    let linked = link(&image, &tables, &[unit], &std::collections::BTreeSet::new()).expect("linked");
    let [function] = linked.functions.as_slice() else { panic!("one function changes: {:?}", linked.functions) };
    assert!(function.name == "module_function" && MODULE_SPACE.contains(&function.old_address));

    // Each field that the loader fills is a site; what stays wherever the module is is not.
    let symbol = |name: &str| image.symbols().address_of(name).expect("a symbol");
    let of = |name: &str| {
        let mut found = function.sites.iter().filter_map(|site| match site.kind {
            BootSiteKind::Relocation { kind, place: Place::Kernel(at), .. } if at == symbol(name) => Some(kind),
            _ => None,
        });
        found.next()
    };
    for (name, kind) in [("base_function", RelocKind::Plt32), ("other_export", RelocKind::Plt32)] {
        assert_eq!(of(name), Some(kind), "{name}: {:?}", function.sites);
    }
    assert_eq!(of("inner"), None, "a call inside of the section");
    let forms = function.sites.iter().find_map(|site| match &site.kind {
        BootSiteKind::Alternative { forms } => Some((site.offset, forms.clone())),
        _ => None,
    });
    let (offset, forms) = forms.expect("an alternative");
    let displacement = i32::from_le_bytes(forms[0][1..5].try_into().expect("a call"));
    let end = function.old_address + u64::from(offset) + 5;
    assert_eq!(end.wrapping_add_signed(displacement.into()), symbol("base_function"), "the form calls the kernel");

    // New code names the module's data by its link addresses.
    let names: BTreeMap<&str, Place> =
        linked.payload.symbols.iter().map(|symbol| (symbol.name.as_str(), symbol.place)).collect();
    assert_eq!(names["inner"], Place::Kernel(symbol("inner")));
    assert_eq!(names["other_export"], Place::Kernel(id.imports[0].address));
    assert_eq!(names["base_function"], Place::Kernel(symbol("base_function")));
    assert_eq!(names["own"], Place::Kernel(symbol("own")), "the module's own per-CPU data");
}

#[test]
fn what_is_no_module_of_this_kernel_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let (kernel, file) = build(dir.path());
    let open = |bytes: &[u8]| module::open(Path::new("small.ko"), bytes, &kernel).map(drop);
    let at = file.windows(9).position(|window| window == b"vermagic=").expect("vermagic");
    let mut other = file.clone();
    other[at + 9] = b'9';
    assert!(matches!(open(&other), Err(ModuleError::OtherKernel { found, .. }) if found == "9.0.0-test"));
    let mut nameless = file.clone();
    let name = file.windows(10).position(|window| window == b"name=small").expect("name");
    nameless[name] = b'g';
    assert!(matches!(open(&nameless), Err(ModuleError::NotAModule(_))));
    let image = std::fs::read(kernel.path()).expect("the kernel");
    assert!(matches!(open(&image), Err(ModuleError::NotAModule(_))));
    assert!(matches!(open(b"not at all"), Err(ModuleError::Elf(_))));
    // Damage is an error or another module, never a crash.
    for cut in (0..file.len()).step_by(97) {
        assert!(open(&file[..cut]).is_err(), "cut at {cut}");
    }
    let mut random = 1_u64;
    for _ in 0..2000 {
        let mut damaged = file.clone();
        for _ in 0..3 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (random >> 33) as usize % damaged.len();
            damaged[at] = (random >> 25) as u8;
        }
        let _ = open(&damaged);
    }
}
