use super::kind::{FileKind, kind};
use super::makefile::{configured, only_version};
use super::*;
use object::{Object as _, ObjectSection as _};
use prelink::dwarf::DebugSections;

#[test]
fn files_by_their_place() {
    let cases = [
        ("fs/inode.c", FileKind::Source),
        ("arch/x86/mm/init.c", FileKind::Source),
        ("include/linux/fs.h", FileKind::Header),
        ("fs/Makefile", FileKind::Rules),
        ("fs/Kconfig", FileKind::Options),
        ("arch/arm64/mm/init.c", FileKind::NoEffect("another architecture")),
        ("Documentation/x.c", FileKind::NoEffect("documentation")),
    ];
    for (path, expected) in cases {
        assert_eq!(kind(Path::new(path)), expected, "{path}");
    }
    for (path, expected) in [
        ("scripts2/Makefile.extra", "build-rules"),
        ("security/selinux/include/classmap.h", "generated-code"),
        ("arch/x86/kernel/vmlinux.lds.S", "build-rules"),
        ("arch/x86/lib/memcpy_64.S", "assembly"),
        ("arch/x86/entry/vdso/vclock_gettime.c", "vdso"),
        ("arch/x86/boot/compressed/misc.c", "boot-code"),
        ("arch/x86/entry/syscalls/syscall_64.tbl", "unknown-file"),
    ] {
        assert!(matches!(kind(Path::new(path)), FileKind::Refused(rule, _) if rule == expected), "{path}");
    }
}

#[test]
fn options_of_files() {
    let tree = tempfile::tempdir().expect("a temporary folder");
    let rules = "obj-$(CONFIG_A) += a.o\nobj-$(CONFIG_B) += big.o\nbig-y := one.o \\\n\ttwo.o\nbig-$(CONFIG_C) += three.o\nobj-y += always.o\n";
    std::fs::create_dir(tree.path().join("d")).expect("made");
    std::fs::write(tree.path().join("d/Makefile"), rules).expect("written");
    let config = Config::parse("CONFIG_B=m\nCONFIG_C=y\n");
    for (file, word) in [
        ("d/a.c", "CONFIG_A is not set"),
        ("d/two.c", "CONFIG_B=m"),
        ("d/three.c", "CONFIG_B=m"),
        ("d/always.c", "no option"),
        ("d/none.c", "no rule for none.o"),
        ("e/x.c", "no Makefile"),
    ] {
        let (why, may_be_module) = configured(tree.path(), Path::new(file), &config);
        assert!(why.contains(word), "{file}: {why}");
        assert_eq!(may_be_module, !matches!(file, "d/a.c" | "e/x.c"), "{file}");
    }
}

/// An image that was linked of objects of one source, compiled in two ways.
#[test]
fn a_file_that_is_in_the_image_twice_is_refused() {
    let tree = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| tree.path().join(name);
    let run = |program: &str, args: &[&str]| {
        let status = std::process::Command::new(program).current_dir(tree.path()).args(args).status();
        assert!(status.expect("it is installed").success(), "{program} {args:?}");
    };
    std::fs::create_dir_all(path("lib")).expect("made");
    std::fs::write(path("lib/both.c"), "int NAME(int n)\n{\n\treturn n;\n}\n").expect("written");
    for name in ["narrow", "wide"] {
        run("gcc", &["-g", "-c", &format!("-DNAME={name}"), "lib/both.c", "-o", &format!("{name}.o")]);
    }
    run("ld", &["-e", "narrow", "narrow.o", "wide.o", "-o", "image"]);
    let image = std::fs::read(path("image")).expect("read");
    let file = object::File::parse(image.as_slice()).expect("an ELF file");
    let section = |name: &str| file.section_by_name(name).and_then(|section| section.data().ok()).unwrap_or_default();
    let units = UnitIndex::build(&DebugSections::load(section).expect("debug information")).expect("units");

    let diff = "--- a/lib/both.c\n+++ b/lib/both.c\n@@ -1,4 +1,4 @@\n int NAME(int n)\n {\n-\treturn n;\n+\treturn n + 1;\n }\n";
    let changes = diff_analyzer::source_diff::read(diff.as_bytes(), tree.path()).expect("applies");
    let scope = Scope::of(&changes, &units, tree.path(), &Config::parse("")).expect("well-formed");
    assert!(scope.is_empty(), "{scope:?}");
    let [reason] = scope.reasons.as_slice() else { panic!("{scope:?}") };
    assert_eq!((reason.rule.as_str(), reason.file.as_deref()), ("compiled-twice", Some("lib/both.c")));
    assert!(reason.message.contains("2 times"), "{}", reason.message);
}

#[test]
fn a_version_bump_has_no_effect() {
    let tree = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(tree.path().join("Makefile"), "VERSION = 6\nSUBLEVEL = 1\nall:\n").expect("written");
    let change =
        |diff: &str| diff_analyzer::source_diff::read(diff.as_bytes(), tree.path()).expect("applies").remove(0);
    let bump = "--- a/Makefile\n+++ b/Makefile\n@@ -1,3 +1,3 @@\n VERSION = 6\n-SUBLEVEL = 1\n+SUBLEVEL = 2\n all:\n";
    assert!(only_version(&change(bump)));
    assert!(!only_version(&change(&bump.replace("+SUBLEVEL = 2", "+CFLAGS = 2"))));
}
