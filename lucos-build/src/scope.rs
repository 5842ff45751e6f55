//! Which units a diff touches.
//!
//! Comes in: the changed files, the units of the image, the source tree. Decided: what each file means for this kernel:
//! a unit to compile, nothing, or something that cannot be updated live, by where the file is and what it is. Goes out:
//! [`Scope`]; nothing is left out without a note or a reason.

use crate::identity::Config;
use crate::report::Reason;
use crate::rules;
use diff_analyzer::source_diff::{ChangeKind, FileChange, lines};
use prelink::dwarf::DwarfError;
use prelink::units::UnitIndex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a diff touches.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Units to compile, sorted; a renamed one under its old name.
    pub units: BTreeSet<PathBuf>,
    /// New names of renamed units.
    pub renamed: BTreeMap<PathBuf, PathBuf>,
    /// Units that are new.
    pub new_units: Vec<NewUnit>,
    /// Changed files that are compiled, by themselves or as a part of a unit.
    pub files: BTreeSet<PathBuf>,
    /// Changed headers, under their old name.
    pub headers: BTreeSet<PathBuf>,
    /// Changed Kconfig files: whether they change this kernel's configuration is to be found out.
    pub options: BTreeSet<PathBuf>,
    /// Units that the image does not have: each is of a module, or else this is why it cannot be updated.
    pub outside: BTreeMap<PathBuf, Reason>,
    /// What cannot be done.
    pub reasons: Vec<Reason>,
    /// Files without effect on this kernel, and why.
    pub notes: Vec<String>,
}

/// A unit that a Makefile of the diff adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUnit {
    /// Its source.
    pub source: PathBuf,
    /// The object that it is a part of, when it is not one by itself.
    pub composite: Option<String>,
}

/// What a file is, by its path alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileKind {
    /// C source.
    Source,
    /// A header.
    Header,
    /// A Makefile.
    Rules,
    /// Configuration options.
    Options,
    /// Nothing of it is in the running kernel.
    NoEffect(&'static str),
    /// It cannot be updated: rule, why.
    Refused(&'static str, &'static str),
}

/// Folders whose files are not in a running kernel.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("Documentation", "documentation"),
    ("LICENSES", "documentation"),
    ("debian", "packaging"),
    ("samples", "examples"),
    ("scripts", "a tool of the build"),
    ("tools", "a program of user space or a tool of the build"),
    ("usr", "the built-in initramfs"),
];

/// Folders whose code is not patched in the running kernel.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("arch/x86/boot", "boot-code", "it belongs to the boot code, which ran before the kernel"),
    ("arch/x86/realmode", "boot-code", "it runs in real mode, from a copy made at boot"),
    ("arch/x86/purgatory", "boot-code", "it runs between two kernels (kexec), from a copy of its own"),
    ("arch/x86/entry/vdso", "vdso", "it runs in user space, in pages that processes have mapped already"),
    ("drivers/firmware/efi/libstub", "boot-code", "it belongs to the EFI stub, which ran before the kernel"),
];

/// Headers that tools of the build make other source of.
const GENERATE: &[(&str, &str)] = &[
    ("security/selinux/include/classmap.h", "the build makes flask.h of it (scripts/selinux/genheaders)"),
    ("security/selinux/include/initial_sid_to_string.h", "the build makes flask.h of it (scripts/selinux/genheaders)"),
    ("kernel/bounds.c", "the build makes a header of it, which every unit takes in"),
    ("arch/x86/kernel/asm-offsets.c", "the build makes a header of it, which assembly takes in"),
    ("arch/x86/kernel/asm-offsets_64.c", "the build makes a header of it, which assembly takes in"),
];

/// Why code of a folder is not patched in the running kernel, and the rule that says so.
pub fn elsewhere(path: &Path) -> Option<(&'static str, &'static str)> {
    ELSEWHERE.iter().find(|(folder, ..)| path.starts_with(folder)).map(|(_, rule, why)| (*rule, *why))
}

fn kind(path: &Path) -> FileKind {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    if let Some((_, why)) = WITHOUT_EFFECT.iter().find(|(folder, _)| path.starts_with(folder)) {
        return FileKind::NoEffect(why);
    }
    let mut parts = path.components().map(|part| part.as_os_str().to_string_lossy());
    if parts.next().as_deref() == Some("arch") && parts.next().is_some_and(|arch| arch != "x86" && arch != "Kconfig") {
        return FileKind::NoEffect("another architecture");
    }
    if let Some((rule, why)) = elsewhere(path) {
        return FileKind::Refused(rule, why);
    }
    if let Some((_, why)) = GENERATE.iter().find(|(file, _)| path == Path::new(file)) {
        return FileKind::Refused("generated-code", why);
    }
    if name.starts_with("Kconfig") {
        return FileKind::Options;
    }
    if name == "Makefile" || name == "Kbuild" {
        return FileKind::Rules;
    }
    if name.starts_with("Makefile") || name.ends_with(".lds") || name.ends_with(".lds.S") {
        return FileKind::Refused("build-rules", "it changes how the kernel is compiled or linked");
    }
    match extension.as_ref() {
        "c" => FileKind::Source,
        "h" => FileKind::Header,
        "S" => {
            FileKind::Refused("assembly", "functions in assembly have no compiled form that can be compared and moved")
        }
        "rst" | "txt" | "md" | "dts" | "dtsi" | "yaml" => FileKind::NoEffect("documentation"),
        _ if name.starts_with('.') || matches!(name.as_ref(), "MAINTAINERS" | "CREDITS" | "COPYING" | "README") => {
            FileKind::NoEffect("documentation")
        }
        _ => FileKind::Refused("unknown-file", "what this kind of file does to the kernel is not known"),
    }
}

impl Scope {
    /// Whether nothing is left to be compiled or looked into.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty() && self.new_units.is_empty() && self.headers.is_empty() && self.options.is_empty()
    }

    /// Sorts the changed files.
    ///
    /// # Errors
    /// [`DwarfError`] when the image's debug information is malformed.
    pub fn of(
        changes: &[FileChange],
        units: &UnitIndex<'_>,
        source: &Path,
        config: &Config<'_>,
    ) -> Result<Self, DwarfError> {
        let mut scope = Self::default();
        for change in changes {
            scope.file(change, units, source, config)?;
        }
        for change in changes.iter().filter(|change| kind(&change.path) == FileKind::Rules) {
            scope.rules(change, changes, units, source, config);
        }
        let known: BTreeSet<&Path> = scope.new_units.iter().map(|unit| unit.source.as_path()).collect();
        let unlisted = |change: &&FileChange| {
            change.kind == ChangeKind::New
                && kind(&change.path) == FileKind::Source
                && !known.contains(change.path.as_path())
        };
        scope.notes.extend(changes.iter().filter(unlisted).map(|change| {
            format!(
                "{}: a new file that no line of the diff's Makefiles compiles into this kernel",
                change.path.display()
            )
        }));
        Ok(scope)
    }

    fn file(
        &mut self,
        change: &FileChange,
        units: &UnitIndex<'_>,
        source: &Path,
        config: &Config<'_>,
    ) -> Result<(), DwarfError> {
        let path = change.path.display().to_string();
        let diff_line = change.hunks.first().and_then(|hunk| hunk.diff_line);
        let mut refuse = |rule: &str, message: String, help: &str| {
            self.reasons.push(Reason::new(rule, message).at(&path, None).in_diff(diff_line).help(help));
        };
        match kind(&change.path) {
            FileKind::NoEffect(why) => self.notes.push(format!("{path}: no effect on this kernel ({why})")),
            _ if change.kind == ChangeKind::Modified && change.old == change.new => {
                self.notes.push(format!("{path}: no effect (its text does not change)"));
            }
            FileKind::Refused(rule, why) => {
                refuse(rule, why.to_owned(), "leave this file out of the diff, or reboot into the new kernel")
            }
            FileKind::Rules => {}
            FileKind::Options => drop(self.options.insert(change.path.clone())),
            FileKind::Header => match &change.kind {
                ChangeKind::New => {
                    self.notes.push(format!("{path}: a new header, which only the changed files can use"))
                }
                ChangeKind::Renamed { from } => drop(self.headers.insert(from.clone())),
                ChangeKind::Modified | ChangeKind::Deleted => drop(self.headers.insert(change.path.clone())),
            },
            FileKind::Source => {
                let before = match &change.kind {
                    // The lists of the Makefiles say what becomes of it.
                    ChangeKind::New => return Ok(()),
                    ChangeKind::Deleted => {
                        let what = if units.named(&path).is_empty() {
                            "no effect on this kernel (it was not compiled into it)"
                        } else {
                            "its functions and data stay in the running kernel; nothing is redirected to or from them"
                        };
                        self.notes.push(format!("{path}: {what}"));
                        return Ok(());
                    }
                    ChangeKind::Renamed { from } => from,
                    ChangeKind::Modified => &change.path,
                };
                let name = before.display().to_string();
                match units.named(&name).len() {
                    1 => {
                        self.files.insert(change.path.clone());
                        self.units.insert(before.clone());
                        if before != &change.path {
                            self.notes.push(format!("{path}: is compared with {name}, which it was"));
                            self.renamed.insert(before.clone(), change.path.clone());
                        }
                    }
                    0 => {
                        let including = units.units_including(&name)?;
                        if including.is_empty() {
                            // Only make knows for certain what goes into a module; it is asked when nothing says no.
                            let (why, may_be_module) = configured(source, before, config);
                            let message = format!("it was not compiled into this vmlinux: {why}");
                            let help = "leave this file out of the diff";
                            if may_be_module {
                                let reason = Reason::new("not-built-in", message).at(&path, None).in_diff(diff_line);
                                self.outside.insert(before.clone(), reason.help(help));
                                self.files.insert(change.path.clone());
                                self.units.insert(before.clone());
                                if before != &change.path {
                                    self.renamed.insert(before.clone(), change.path.clone());
                                }
                            } else {
                                refuse("not-built-in", message, help);
                            }
                        }
                        for id in including {
                            let unit = &units.unit(id).name;
                            self.notes.push(format!("{path}: is compiled as a part of {unit}"));
                            self.files.insert(change.path.clone());
                            self.units.insert(PathBuf::from(unit));
                        }
                    }
                    count => refuse(
                        "compiled-twice",
                        format!("vmlinux has this file {count} times, compiled in different ways"),
                        "leave this file out of the diff",
                    ),
                }
            }
        }
        Ok(())
    }

    /// Objects that a Makefile adds or takes away.
    fn rules(
        &mut self,
        change: &FileChange,
        changes: &[FileChange],
        units: &UnitIndex<'_>,
        source: &Path,
        config: &Config<'_>,
    ) {
        let path = change.path.display().to_string();
        if path == "Makefile" && only_version(change) {
            self.notes.push(format!("{path}: no effect (the version number)"));
            return;
        }
        let diff_line = change.hunks.first().and_then(|hunk| hunk.diff_line);
        let mut refuse = |rule: &str, message: String| {
            let help = "leave this file out of the diff, or reboot into the new kernel";
            self.reasons.push(Reason::new(rule, message).at(&path, None).in_diff(diff_line).help(help));
        };
        if change.kind != ChangeKind::Modified {
            return refuse("build-rules", "a Makefile comes, goes or moves".to_owned());
        }
        let rules = match rules::read(change) {
            Ok(rules) => rules,
            Err(why) => return refuse("build-rules", why),
        };
        let folder = change.path.parent().unwrap_or(Path::new(""));
        let new_text = String::from_utf8_lossy(&change.new).into_owned();
        for listed in &rules.added {
            let unit = folder.join(&listed.object).with_extension("c");
            let text = format!("{path}: `{} += {}`", listed.list, listed.object);
            match listed.option().map(|option| (option, config.get(option))) {
                Some((option, None)) => {
                    self.notes.push(format!("{text}: no effect on this kernel ({option} is not set)"));
                    continue;
                }
                Some((option, Some("m"))) => {
                    self.notes.push(format!("{text}: no effect on this image ({option}=m)"));
                    continue;
                }
                _ if listed.list.ends_with("-m") => {
                    self.notes.push(format!("{text}: no effect on this image (a loadable module)"));
                    continue;
                }
                _ => {}
            }
            if !units.named(&unit.display().to_string()).is_empty() || self.renamed.values().any(|new| *new == unit) {
                continue;
            }
            let there = changes.iter().any(|change| change.path == unit && change.kind != ChangeKind::Deleted);
            if !there && !source.join(&unit).is_file() {
                refuse("new-file", format!("{text}: {} is neither in the source nor in the diff", unit.display()));
                continue;
            }
            if new_text.contains(&format!("_{}", listed.object)) {
                refuse("new-file", format!("{text}: the Makefile has compiler options for this object alone"));
                continue;
            }
            self.files.insert(unit.clone());
            self.new_units.push(NewUnit { source: unit, composite: listed.composite().map(str::to_owned) });
        }
        for listed in &rules.removed {
            let unit = folder.join(&listed.object).with_extension("c");
            let moved = rules.added.iter().any(|added| added.object == listed.object);
            if !moved && !self.renamed.contains_key(&unit) && !units.named(&unit.display().to_string()).is_empty() {
                self.notes.push(format!(
                    "{path}: {} is no longer compiled; what it made stays in the running kernel",
                    listed.object
                ));
            }
        }
    }
}

/// Whether only the version lines of the top Makefile change.
fn only_version(change: &FileChange) -> bool {
    const NAMES: [&str; 5] = ["VERSION", "PATCHLEVEL", "SUBLEVEL", "EXTRAVERSION", "NAME"];
    let (old, new) = (lines(&change.old), lines(&change.new));
    let version = |line: &&[u8]| {
        let line = String::from_utf8_lossy(line);
        line.split_once('=').is_some_and(|(name, _)| NAMES.contains(&name.trim()))
    };
    change
        .hunks
        .iter()
        .flat_map(|hunk| &hunk.edits)
        .all(|edit| old[edit.old.clone()].iter().all(version) && new[edit.new.clone()].iter().all(version))
}

/// What the configuration says about a file, by the rules beside it (`obj-$(CONFIG_X) += name.o`), and whether it may be
/// part of a module.
fn configured(source: &Path, path: &Path, config: &Config<'_>) -> (String, bool) {
    let rules = ["Makefile", "Kbuild"].iter().find_map(|name| {
        let folder = path.parent()?;
        std::fs::read_to_string(source.join(folder).join(name)).ok()
    });
    let Some(rules) = rules else {
        return ("no Makefile beside it names it".to_owned(), false);
    };
    let rules = rules.replace("\\\n", " ");
    let mut object = path.with_extension("o").file_name().unwrap_or_default().to_string_lossy().into_owned();
    // A file may be part of an object that is part of another.
    for _ in 0..4 {
        let rule = rules.lines().find_map(|line| {
            let (left, right) = line.split_once('=')?;
            right
                .split_whitespace()
                .any(|word| word == object)
                .then(|| left.trim().trim_end_matches(['+', ':']).trim().to_owned())
        });
        let Some(left) = rule else { return (format!("no rule for {object} is known"), true) };
        if let Some(option) = left.split_once("$(").and_then(|(_, rest)| Some(rest.split_once(')')?.0))
            && option.starts_with("CONFIG_")
        {
            match config.get(option) {
                Some("m") => return (format!("{option}=m, it is in a loadable module"), true),
                None => return (format!("{option} is not set"), false),
                Some(_) if left.starts_with("obj-") => {
                    return (format!("{option} is set, but the file is not in the image"), true);
                }
                Some(_) => {}
            }
        }
        object = match left.strip_suffix("-objs").or_else(|| left.rsplit_once('-').map(|(name, _)| name)) {
            Some(name) if !matches!(name, "obj" | "lib") => format!("{name}.o"),
            _ => return ("no option decides about it, but the file is not in the image".to_owned(), true),
        };
    }
    ("the rule for it is not understood".to_owned(), true)
}

#[cfg(test)]
mod tests {
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
        let section =
            |name: &str| file.section_by_name(name).and_then(|section| section.data().ok()).unwrap_or_default();
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
        let bump =
            "--- a/Makefile\n+++ b/Makefile\n@@ -1,3 +1,3 @@\n VERSION = 6\n-SUBLEVEL = 1\n+SUBLEVEL = 2\n all:\n";
        assert!(only_version(&change(bump)));
        assert!(!only_version(&change(&bump.replace("+SUBLEVEL = 2", "+CFLAGS = 2"))));
    }
}
