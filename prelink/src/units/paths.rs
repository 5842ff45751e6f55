//! What the files of a kernel are called.
//!
//! Comes in: paths as the compiler recorded them. Decided: where the source tree was when the kernel was built. Goes out: paths
//! relative to it, or to the build folder for generated files.

use super::Unit;
use diff_analyzer::dwarf_layout::sections::Slice;
use diff_analyzer::dwarf_layout::{clean_path, join_path};
use std::collections::BTreeSet;

/// Path of a file that a unit's file table lists.
pub(super) fn unit_path<'a>(
    dwarf: &gimli::Dwarf<Slice<'a>>,
    unit: &Unit<'a>,
    header: &gimli::LineProgramHeader<Slice<'a>>,
    file: &gimli::FileEntry<Slice<'a>>,
    roots: &[String],
) -> Result<String, gimli::Error> {
    let mut path = dwarf.attr_line_string(file.path_name())?.to_string_lossy().into_owned();
    // Directory 0 is the folder of the compilation, to which relative paths refer (DWARF 5, section 6.2.4).
    if file.directory_index() != 0
        && let Some(directory) = file.directory(header)
    {
        path = join_path(&dwarf.attr_line_string(directory)?.to_string_lossy(), &path);
    }
    Ok(normalise(&path, &unit.comp_dir, roots))
}

/// Absolute folders that the source tree was in when the kernel was built, longest first.
///
/// Every x86-64 kernel has these two units (init/Makefile, arch/x86/kernel/Makefile); where their names are recorded as
/// absolute paths, or lead out of the build folder, what stands before is the source tree.
pub(super) fn source_roots(units: &[Unit<'_>]) -> Vec<String> {
    const ANCHORS: [&str; 2] = ["/init/main.c", "/arch/x86/kernel/head_64.S"];
    let mut roots = BTreeSet::new();
    for unit in units {
        let path = absolute(&unit.recorded_name, &unit.comp_dir);
        for anchor in ANCHORS {
            if path.starts_with('/')
                && let Some(root) = path.strip_suffix(anchor)
            {
                roots.insert(root.to_owned());
            }
        }
    }
    let mut roots: Vec<String> = roots.into_iter().collect();
    roots.sort_by_key(|root| std::cmp::Reverse(root.len()));
    roots
}

/// A path as it is, or seen from the build folder when it leads out of it.
fn absolute(path: &str, comp_dir: &str) -> String {
    let clean = clean_path(path);
    if clean.starts_with("../") { clean_path(&join_path(comp_dir, &clean)) } else { clean }
}

/// A recorded path relative to the source tree; a generated file relative to the build folder.
pub(super) fn normalise(path: &str, comp_dir: &str, roots: &[String]) -> String {
    let path = absolute(path, comp_dir);
    let inside = |folder: &str| path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')).map(str::to_owned);
    let build = clean_path(comp_dir);
    let from_build = if build.is_empty() { None } else { inside(&build) };
    from_build.or_else(|| roots.iter().find_map(|root| inside(root))).unwrap_or_else(|| path.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_seen_from_the_source_tree() {
        let roots = ["/src/linux".to_owned()];
        let cases = [
            ("kernel/fork.c", "debian/build", "kernel/fork.c"),
            ("/src/linux/arch/x86/kernel/head_64.S", "/src/linux/build/x", "arch/x86/kernel/head_64.S"),
            ("../linux/init/main.c", "/src/build", "init/main.c"),
            ("./arch/x86/include/generated/asm/a.h", "/src/build", "arch/x86/include/generated/asm/a.h"),
            ("/src/build/include/generated/b.h", "/src/build", "include/generated/b.h"),
            ("kernel/sched/../../io_uring/io-wq.h", "debian/build", "io_uring/io-wq.h"),
            ("/usr/lib/gcc/x.h", "/src/build", "/usr/lib/gcc/x.h"),
        ];
        for (path, comp_dir, expected) in cases {
            assert_eq!(normalise(path, comp_dir, &roots), expected, "{path}");
        }
    }
}
