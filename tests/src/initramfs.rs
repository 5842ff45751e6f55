//! The guest's first file system: Debian's static busybox and an init script of our own.
//!
//! Comes in: busybox on this machine, `testdata/guest/init`, files that a test wants in `/files`. Decided: the few names in it. Goes out: a `newc` archive,
//! the format the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).

use cpio::newc::{Builder, trailer};
use std::collections::HashSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

const INIT: &str = include_str!("../../testdata/guest/init");
const REQUESTS: &str = include_str!("../../testdata/guest/requests");
const ROOT_INIT: &str = include_str!("../../testdata/guest/root-init");
const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;
const SYMLINK: u32 = 0o120_777;

/// Why the archive could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// No static busybox.
    #[error("{path}: {source}; install busybox-static")]
    Busybox {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A dynamic busybox needs libraries that the guest does not have.
    #[error("{0} is not a static program; install busybox-static")]
    Dynamic(PathBuf),
    /// The archive could not be written.
    #[error("initramfs: {0}")]
    Io(#[from] io::Error),
}

/// Writes the archive to `path`.
///
/// # Errors
/// [`InitramfsError`] when busybox is missing or not static, or the archive cannot be written.
pub fn write(path: &Path) -> Result<(), InitramfsError> {
    write_with(path, &[])
}

/// Writes the archive to `path`, with some files of this machine in the folder `/files`.
///
/// # Errors
/// [`InitramfsError`] when busybox is missing or not static, a file cannot be read, or the archive cannot be written.
pub fn write_with(path: &Path, files: &[PathBuf]) -> Result<(), InitramfsError> {
    let program = std::fs::read(busybox()?)?;
    std::fs::write(path, archive(&program, files)?)?;
    Ok(())
}

/// Writes an archive to `path` that loads modules, in their order, and goes on with the root file system that `root=` names.
///
/// # Errors
/// [`InitramfsError`] when busybox is missing or not static, a module cannot be read, or the archive cannot be written.
pub fn write_for_root(path: &Path, modules: &[PathBuf]) -> Result<(), InitramfsError> {
    let mut archive = Archive::new(Vec::new());
    archive.standard(&std::fs::read(busybox()?)?)?;
    archive.file("init", ROOT_INIT.as_bytes())?;
    archive.file("requests", REQUESTS.as_bytes())?;
    archive.folder("root")?;
    archive.modules(modules)?;
    std::fs::write(path, archive.finish()?)?;
    Ok(())
}

/// The static busybox of this machine.
pub(crate) fn busybox() -> Result<PathBuf, InitramfsError> {
    let program = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    let program = program.iter().find(|path| path.exists()).unwrap_or(&program[0]);
    let bytes = std::fs::read(program).map_err(|source| InitramfsError::Busybox { path: program.clone(), source })?;
    if has_interpreter(&bytes) { Err(InitramfsError::Dynamic(program.clone())) } else { Ok(program.clone()) }
}

fn archive(busybox: &[u8], files: &[PathBuf]) -> io::Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::with_capacity(busybox.len() + 8192));
    archive.standard(busybox)?;
    archive.file("init", INIT.as_bytes())?;
    archive.file("requests", REQUESTS.as_bytes())?;
    archive.folder("files")?;
    for file in files {
        let name = file.file_name().ok_or_else(|| io::Error::other("a file without a name"))?;
        archive.copy(&format!("files/{}", name.to_string_lossy()), file)?;
    }
    archive.finish()
}

/// An archive that is being written.
pub(crate) struct Archive<W> {
    out: W,
    folders: HashSet<PathBuf>,
}

impl<W: io::Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, folders: HashSet::new() }
    }

    /// Folders for the usual file systems, the console, and a shell.
    pub(crate) fn standard(&mut self, busybox: &[u8]) -> io::Result<()> {
        for name in ["bin", "dev", "proc", "sys", "tmp"] {
            self.folder(name)?;
        }
        // Init's input and output before devtmpfs is mounted: character device 5:1 (Documentation/admin-guide/devices.txt).
        self.entry(Builder::new("dev/console").mode(CHARACTER_DEVICE).rdev_major(5).rdev_minor(1), &[])?;
        self.file("bin/busybox", busybox)?;
        self.link("bin/sh", "busybox")
    }

    /// A folder, with those that it is in; one that is there already is left alone.
    pub(crate) fn folder(&mut self, name: &str) -> io::Result<()> {
        for folder in Path::new(name).ancestors().collect::<Vec<_>>().into_iter().rev() {
            if !folder.as_os_str().is_empty() && self.folders.insert(folder.to_owned()) {
                self.entry(Builder::new(&folder.to_string_lossy()).mode(DIRECTORY).nlink(2), &[])?;
            }
        }
        Ok(())
    }

    /// An executable file, and the folders that it is in.
    pub(crate) fn file(&mut self, name: &str, contents: &[u8]) -> io::Result<()> {
        self.parents(name)?;
        self.entry(Builder::new(name).mode(EXECUTABLE), contents)
    }

    /// A file of this machine, executable.
    pub(crate) fn copy(&mut self, name: &str, file: &Path) -> io::Result<()> {
        self.file(name, &std::fs::read(file)?)
    }

    /// Modules of a kernel, and a list of them in the order in which they are to be loaded.
    pub(crate) fn modules(&mut self, modules: &[PathBuf]) -> io::Result<()> {
        let mut order = String::new();
        for module in modules {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            order += &format!("{name}\n");
            let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", module.display()));
            self.copy(&format!("modules/{name}"), module).map_err(named)?;
        }
        self.file("modules/order", order.as_bytes())
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.parents(name)?;
        self.entry(Builder::new(name).mode(SYMLINK), target.as_bytes())
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        trailer(&mut self.out)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, name: &str) -> io::Result<()> {
        Path::new(name).parent().map_or(Ok(()), |folder| self.folder(&folder.to_string_lossy()))
    }

    fn entry(&mut self, header: Builder, contents: &[u8]) -> io::Result<()> {
        let len = u32::try_from(contents.len()).map_err(|_| io::Error::other("a file over 4 GiB"))?;
        let mut writer = header.write(&mut self.out, len);
        writer.write_all(contents)?;
        writer.finish()?;
        Ok(())
    }
}

/// Whether an ELF program asks for a dynamic loader (`PT_INTERP`, gABI "Program Header").
pub(crate) fn has_interpreter(elf: &[u8]) -> bool {
    let field = |at: usize, len: usize| {
        elf.get(at..at + len).map_or(0, |bytes| bytes.iter().rev().fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte)))
    };
    let (table, size, count) = (field(0x20, 8) as usize, field(0x36, 2) as usize, field(0x38, 2) as usize);
    (0..count).any(|index| table.checked_add(index * size).is_some_and(|at| at < elf.len() && field(at, 4) == 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_reads_back() {
        let bytes = archive(b"program", &[]).expect("an archive in memory");
        let mut names = Vec::new();
        let mut input = bytes.as_slice();
        loop {
            let reader = cpio::NewcReader::new(input).expect("an entry");
            if reader.entry().is_trailer() {
                break;
            }
            names.push((reader.entry().name().to_owned(), reader.entry().file_size()));
            input = reader.finish().expect("the next entry");
        }
        assert!(names.contains(&("bin/busybox".to_owned(), 7)), "{names:?}");
        assert!(names.contains(&("init".to_owned(), INIT.len() as u32)), "{names:?}");
        assert!(names.contains(&("dev/console".to_owned(), 0)), "{names:?}");
    }

    #[test]
    fn a_dynamic_program_is_noticed() {
        let own = std::fs::read(std::env::current_exe().expect("own path")).expect("own program");
        assert!(has_interpreter(&own));
        assert!(!has_interpreter(b"\x7fELF"));
    }
}
