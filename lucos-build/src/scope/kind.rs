//! What a changed file is to a running kernel, by its path alone.
//!
//! Comes in: a path relative to the source tree. Decided: whether it is compiled, or has no effect, or cannot be updated. Goes out:
//! [`FileKind`].

use std::path::Path;

/// What a file is, by its path alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
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

/// What a file is.
pub(super) fn kind(path: &Path) -> FileKind {
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
