//! The guest's first file system: Debian's static busybox and an init script of our own.
//!
//! Comes in: busybox on this machine, `testdata/guest/init`, files that a test wants in `/files`. Decided: the few names in it. Goes out: a `newc` archive,
//! the format the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).

use cpio::newc::{Builder, trailer};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

const INIT: &str = include_str!("../../testdata/guest/init");
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
    let program = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    let program = program.iter().find(|path| path.exists()).unwrap_or(&program[0]);
    let busybox = std::fs::read(program).map_err(|source| InitramfsError::Busybox { path: program.clone(), source })?;
    if has_interpreter(&busybox) {
        return Err(InitramfsError::Dynamic(program.clone()));
    }
    std::fs::write(path, archive(&busybox, files)?)?;
    Ok(())
}

fn archive(busybox: &[u8], files: &[PathBuf]) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(busybox.len() + 8192);
    for name in ["bin", "dev", "proc", "sys", "tmp"] {
        entry(&mut out, Builder::new(name).mode(DIRECTORY).nlink(2), &[])?;
    }
    // Init's input and output before devtmpfs is mounted: character device 5:1 (Documentation/admin-guide/devices.txt).
    entry(&mut out, Builder::new("dev/console").mode(CHARACTER_DEVICE).rdev_major(5).rdev_minor(1), &[])?;
    entry(&mut out, Builder::new("bin/busybox").mode(EXECUTABLE), busybox)?;
    entry(&mut out, Builder::new("bin/sh").mode(SYMLINK), b"busybox")?;
    entry(&mut out, Builder::new("init").mode(EXECUTABLE), INIT.as_bytes())?;
    entry(&mut out, Builder::new("files").mode(DIRECTORY).nlink(2), &[])?;
    for file in files {
        let name = file.file_name().ok_or_else(|| io::Error::other("a file without a name"))?;
        entry(
            &mut out,
            Builder::new(&format!("files/{}", name.to_string_lossy())).mode(EXECUTABLE),
            &std::fs::read(file)?,
        )?;
    }
    trailer(&mut out)?;
    Ok(out)
}

fn entry(out: &mut Vec<u8>, header: Builder, contents: &[u8]) -> io::Result<()> {
    let len = u32::try_from(contents.len()).map_err(|_| io::Error::other("a file over 4 GiB"))?;
    let mut writer = header.write(out, len);
    writer.write_all(contents)?;
    writer.finish()?;
    Ok(())
}

/// Whether an ELF program asks for a dynamic loader (`PT_INTERP`, gABI "Program Header").
fn has_interpreter(elf: &[u8]) -> bool {
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
