//! The file of an image, and where its debug sections are.
//!
//! Comes in: a path. Decided: that it is an x86-64 ELF file with DWARF of its own, linked (used where it lies in the file)
//! or relocatable (copied, because its relocations have to be applied). Goes out: [`Image`].

use crate::dwarf_layout::sections::{DebugSource, ObjectDebug, READ, SectionsError};
use memmap2::Mmap;
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectKind, ObjectSection as _, ObjectSymbol as _, elf};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// LLVM's bitcode, which `-flto` writes instead of an object (LLVM bitcode file format, "Magic Numbers").
const BITCODE: &[u8] = b"BC\xc0\xde";

/// Why a file cannot be used as an image.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be opened or mapped.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// No x86-64 ELF file.
    #[error("{}: {reason}", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: String,
    },
    /// No DWARF.
    #[error("{}: no debug information{}", path.display(), if *btf { " other than BTF, which has no line numbers, alignments or functions" } else { "" })]
    NoDebugInfo {
        /// The file.
        path: PathBuf,
        /// Whether it has BTF.
        btf: bool,
    },
    /// Debug sections that cannot be prepared.
    #[error("{}: the debug sections cannot be used", path.display())]
    Sections {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: SectionsError,
    },
}

/// A file whose layouts are read.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    map: Mmap,
    debug: Debug,
}

/// Debug sections: where they lie in the mapped file, or copies.
#[derive(Debug)]
enum Debug {
    Linked { ranges: HashMap<String, Range<usize>>, unpacked: HashMap<String, Vec<u8>> },
    Relocated(ObjectDebug),
}

impl Image {
    /// Opens a file: a linked image such as `vmlinux`, or a relocatable object (`.o`, `.ko`).
    ///
    /// # Errors
    /// [`SourceError`] when it cannot be read, is no x86-64 ELF file or has no DWARF.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let io = |source| SourceError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the file is only read. Whoever truncates it meanwhile ends this process with SIGBUS, as for every tool that
        // maps its input; nothing else depends on its contents staying the same.
        #[expect(unsafe_code, reason = "mapping a file has no safe form; images are too large to be copied")]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Self::of_map(path, map)
    }

    fn of_map(path: &Path, map: Mmap) -> Result<Self, SourceError> {
        let not = |reason: String| SourceError::NotAnImage { path: path.to_owned(), reason };
        if map.starts_with(BITCODE) {
            return Err(not("this is LLVM bitcode, of a build with link-time optimisation".to_owned()));
        }
        let bytes: &[u8] = &map;
        let elf = ElfFile64::<Endianness>::parse(bytes).map_err(|error| not(error.to_string()))?;
        if elf.elf_header().e_machine.get(elf.endian()) != elf::EM_X86_64 {
            return Err(not(format!("an ELF file for {:?}, not for x86-64", elf.architecture())));
        }
        let has_btf = elf.section_by_name(".BTF").is_some();
        let none = || SourceError::NoDebugInfo { path: path.to_owned(), btf: has_btf };
        let broken = |source| SourceError::Sections { path: path.to_owned(), source };
        if elf.kind() == ObjectKind::Relocatable {
            let debug = ObjectDebug::read(bytes).map_err(|error| match error {
                SectionsError::NoDebugInfo => none(),
                error => broken(error),
            })?;
            return Ok(Self { path: path.to_owned(), map, debug: Debug::Relocated(debug) });
        }
        let (mut ranges, mut unpacked) = (HashMap::new(), HashMap::new());
        for section in elf.sections() {
            let Ok(name) = section.name() else { continue };
            if !READ.contains(&name) {
                continue;
            }
            let place = section.compressed_file_range().map_err(|error| broken(error.into()))?;
            if place.format == object::CompressionFormat::None {
                let range = usize::try_from(place.offset).ok().and_then(|start| {
                    let end = start.checked_add(usize::try_from(place.uncompressed_size).ok()?)?;
                    (end <= bytes.len()).then_some(start..end)
                });
                let Some(range) = range else {
                    return Err(not(format!("the section {name} lies outside the file")));
                };
                ranges.insert(name.to_owned(), range);
            } else {
                let data = section.uncompressed_data().map_err(|error| broken(error.into()))?;
                unpacked.insert(name.to_owned(), data.into_owned());
            }
        }
        let empty = ranges.get(".debug_info").is_none_or(Range::is_empty);
        if empty && unpacked.get(".debug_info").is_none_or(Vec::is_empty) {
            return Err(none());
        }
        Ok(Self { path: path.to_owned(), map, debug: Debug::Linked { ranges, unpacked } })
    }

    /// Closes two files at once: to unmap all that was read of them takes a while.
    pub fn close(old: Self, new: Self) {
        rayon::join(|| drop(old), || drop(new));
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the per-CPU variables.
    pub(super) fn per_cpu(&self) -> HashSet<String> {
        let Ok(elf) = ElfFile64::<Endianness>::parse(&*self.map) else { return HashSet::new() };
        let in_section = elf.sections().filter(|section| section.name().is_ok_and(|name| name.starts_with(PER_CPU)));
        let sections: HashSet<_> = in_section.map(|section| section.index()).collect();
        let inside =
            elf.symbols().filter(|symbol| symbol.section_index().is_some_and(|index| sections.contains(&index)));
        inside.filter_map(|symbol| symbol.name().ok().map(str::to_owned)).collect()
    }
}

/// Section of per-CPU variables (include/asm-generic/vmlinux.lds.h, `PERCPU_SECTION`).
const PER_CPU: &str = ".data..percpu";

impl DebugSource for Image {
    fn debug_section(&self, name: &str) -> &[u8] {
        match &self.debug {
            Debug::Relocated(debug) => debug.debug_section(name),
            Debug::Linked { ranges, unpacked } => match (ranges.get(name), unpacked.get(name)) {
                (Some(range), _) => &self.map[range.clone()],
                (None, Some(data)) => data,
                (None, None) => &[],
            },
        }
    }
}
