//! What a guest is missing while we work on it, written down for whoever comes after us.
//!
//! Comes in: registers of a processor, before the first of them is changed; what is set at the stub, before it is. Decided:
//! where: beside the stub's socket, which QEMU itself names when it is asked. Goes out: files, each of which is there exactly as
//! long as the guest is not what it was.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::engine::EngineError;

const NAME: &str = "registers";
/// Of a guest that is attended to.
const MARK: &str = "watching";
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
        store(folder, NAME, self)
    }

    /// What an earlier tool wrote down and did not put back.
    pub(super) fn load(folder: &Path) -> Result<Option<Record>, EngineError> {
        load(folder, NAME)
    }

    /// The registers are what they were.
    pub(super) fn forget(folder: &Path) -> Result<(), EngineError> {
        forget(folder, NAME)
    }
}

/// Something that may be set at the stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Placed {
    /// A breakpoint.
    Report(u64),
    /// A watched range of virtual addresses.
    Range(u64, usize),
}

/// A guest that is attended to: it may stand at any moment, or only one of its processors may run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// What may be set.
    pub(super) placed: Vec<Placed>,
    /// The guest's owner had stopped it.
    pub(super) owner_paused: bool,
    /// It was let run, and not held by the service.
    pub(super) driving: bool,
}

impl Mark {
    /// Writes it down.
    pub(super) fn store(&self, folder: &Path) -> Result<(), EngineError> {
        store(folder, MARK, self)
    }

    /// What an earlier tool wrote down and did not take back.
    pub(super) fn load(folder: &Path) -> Result<Option<Mark>, EngineError> {
        load(folder, MARK)
    }

    /// The guest runs without us.
    pub(super) fn forget(folder: &Path) -> Result<(), EngineError> {
        forget(folder, MARK)
    }
}

fn store(folder: &Path, name: &str, value: &impl Serialize) -> Result<(), EngineError> {
    let new = folder.join(format!("{name}.new"));
    let write = || -> io::Result<()> {
        remove(&new)?;
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        std::fs::rename(&new, folder.join(name))
    };
    write().map_err(|error| failed(folder, name, &error))
}

fn load<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Option<T>, EngineError> {
    let read = || -> io::Result<Option<T>> {
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let file = match File::options().read(true).custom_flags(flags).open(folder.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut text = Vec::new();
        file.take(LIMIT).read_to_end(&mut text)?;
        Ok(Some(serde_json::from_slice(&text)?))
    };
    read().map_err(|error| failed(folder, name, &error))
}

fn forget(folder: &Path, name: &str) -> Result<(), EngineError> {
    remove(&folder.join(name)).map_err(|error| failed(folder, name, &error))
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn failed(folder: &Path, name: &str, error: &io::Error) -> EngineError {
    let reason = format!("{}: {error}", folder.join(name).display());
    EngineError::Connection { peer: "file for whoever comes after us", reason }
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
        for name in ["registers.new", NAME] {
            std::os::unix::fs::symlink(&other, folder.path().join(name)).expect("a link");
        }
        assert!(Record::load(folder.path()).is_err());
        record.store(folder.path()).expect("written");
        assert_eq!(std::fs::read(&other).expect("there"), b"mine");
        assert_eq!(Record::load(folder.path()).expect("a file"), Some(record));
    }
}
