//! Registers of a processor that is given others, written down for whoever comes after us.
//!
//! Comes in: registers, before the first of them is changed. Decided: where: beside the stub's socket, which QEMU itself names
//! when it is asked. Goes out: the file, which is there exactly as long as the registers are not what they were.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use crate::engine::EngineError;

const NAME: &str = "registers";
/// The file while it is written.
const NEW: &str = "registers.new";
/// Longer than any such file.
const LIMIT: u64 = 1 << 20;

/// All registers of a processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Index of the processor.
    pub(super) vcpu: usize,
    /// Where a breakpoint may be.
    pub(super) breakpoint: u64,
    /// As the stub showed them at first.
    pub(super) seen: Vec<u8>,
    /// As it shows them in 64-bit code: of a processor in 32-bit code it shows only the low halves of some. `None` until they are
    /// known; before that nothing but the code and stack segments is changed.
    pub(super) whole: Option<Vec<u8>>,
    /// The guest's owner had stopped it.
    pub(super) owner_paused: bool,
}

impl Record {
    /// Writes it down. It survives us, not the host.
    pub(super) fn store(&self, folder: &Path) -> Result<(), EngineError> {
        let new = folder.join(NEW);
        let write = || -> io::Result<()> {
            remove(&new)?;
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            std::fs::rename(&new, folder.join(NAME))
        };
        write().map_err(|error| failed(folder, &error))
    }

    /// What an earlier tool wrote down and did not put back.
    pub(super) fn load(folder: &Path) -> Result<Option<Record>, EngineError> {
        let read = || -> io::Result<Option<Record>> {
            let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
            let file = match File::options().read(true).custom_flags(flags).open(folder.join(NAME)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => file?,
            };
            let mut text = Vec::new();
            file.take(LIMIT).read_to_end(&mut text)?;
            Ok(Some(serde_json::from_slice(&text)?))
        };
        read().map_err(|error| failed(folder, &error))
    }

    /// The registers are what they were.
    pub(super) fn forget(folder: &Path) -> Result<(), EngineError> {
        remove(&folder.join(NAME)).map_err(|error| failed(folder, &error))
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn failed(folder: &Path, error: &io::Error) -> EngineError {
    let reason = format!("{}: {error}", folder.join(NAME).display());
    EngineError::Connection { peer: "file with a processor's registers", reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_there_until_it_is_forgotten() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut record = Record { vcpu: 1, breakpoint: u64::MAX, seen: vec![1, 2], whole: None, owner_paused: true };
        assert_eq!(Record::load(folder.path()).expect("no file"), None);
        record.store(folder.path()).expect("written");
        record.whole = Some(vec![3]);
        record.store(folder.path()).expect("written over the first");
        assert_eq!(Record::load(folder.path()).expect("a file"), Some(record));
        Record::forget(folder.path()).expect("removed");
        Record::forget(folder.path()).expect("twice is no error");
        assert_eq!(Record::load(folder.path()).expect("no file"), None);
        std::fs::write(folder.path().join(NAME), "{").expect("written");
        assert!(Record::load(folder.path()).is_err(), "a file that is no record is no reason to go on");
    }

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let other = folder.path().join("other");
        std::fs::write(&other, "mine").expect("written");
        let record = Record { vcpu: 0, breakpoint: 0, seen: Vec::new(), whole: None, owner_paused: false };
        for name in [NEW, NAME] {
            std::os::unix::fs::symlink(&other, folder.path().join(name)).expect("a link");
        }
        assert!(Record::load(folder.path()).is_err());
        record.store(folder.path()).expect("written");
        assert_eq!(std::fs::read(&other).expect("there"), b"mine");
        assert_eq!(Record::load(folder.path()).expect("a file"), Some(record));
    }
}
