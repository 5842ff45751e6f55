//! What is known of a guest across the death of the tool, on the host beside the control socket.
//!
//! Comes in: actions about to be done and their outcome. Decided: which of them counts. Goes out: files that only the
//! owner can read:
//!
//! | file | content |
//! | --- | --- |
//! | `SOCKET.journal` | [`Document`]: what is applied, which memory is taken |
//! | `SOCKET.d/ID.lpk` | the bundles themselves |
//! | `SOCKET.action` | [`Action`] that is planned; nothing has been written |
//! | `SOCKET.copies` | what copies of data held when a service ended that kept them in line |
//! | `SOCKET.committing` | the same file, renamed while the guest is stopped: from here on writes may have been done. It is renamed back when all are taken back and the guest still stands |
//!
//! A file is replaced by renaming, so it is always whole. Nothing is synced to disk: a crash of the host ends the guest too.

use crate::engine::Pa;
use crate::guest::arena::{State, Write};
use crate::guest::support::Operation;
use crate::protocol::{BundleInfo, ModuleState};
use crate::update::area::Area;
use crate::update::data::Edit;
use crate::update::open::Inside;
use lpk_format::hex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Between the id of a bundle and the name of the module that a part of it is about.
pub const PART_SEPARATOR: char = ':';

/// More than the description of a bundle takes in the document, for each action.
const DESCRIPTION: usize = 64 << 10;

/// A file of the journal could not be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Reading or writing failed.
    #[error("journal file {path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The content is not a journal.
    #[error("journal file {path} is damaged: {reason}; move it away to start without it")]
    Damaged {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
}

/// Identity of a boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Build id of the kernel.
    #[serde(with = "hex")]
    pub build_id: Vec<u8>,
    /// KASLR slide.
    pub slide: u64,
    /// Live minus physical address of the image.
    pub image_delta: u64,
}

/// A bundle of this boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// As shown.
    pub info: BundleInfo,
    /// The jumps: old and new bytes of each redirected entry of the kernel image.
    pub jumps: Vec<Write>,
    /// Edits of existing data.
    #[serde(default)]
    pub data: Vec<Edit>,
    /// What was done to modules, in the order of the description.
    #[serde(default)]
    pub parts: Vec<PartRecord>,
}

/// What a bundle has done to a module that the guest has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    /// The `struct module` that was changed or refused; 0 while the guest does not have it.
    pub at: u64,
    /// First address of the new code's area; 0 while there is none.
    pub area: u64,
    /// The jumps.
    pub jumps: Vec<Jump>,
    /// What was written over data that stay where they are.
    #[serde(default)]
    pub data: Vec<Edit>,
    /// Areas of earlier lives of the module, to be given back when nobody is inside.
    #[serde(default)]
    pub left: Vec<u64>,
}

/// A write into the code of a module, which is at its place only as long as the module is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jump {
    /// Virtual address of the bytes.
    pub va: u64,
    /// The bytes, at their physical address.
    pub write: Write,
}

/// All that is known of a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Which boot this is about.
    pub boot: Option<Boot>,
    /// Number of the last finished action.
    pub sequence: u64,
    /// Guest memory taken.
    pub arena: State,
    /// Bundles, oldest first.
    pub bundles: Vec<Record>,
    /// Module memory that the guest gave.
    #[serde(default)]
    pub areas: Vec<Area>,
    /// What the guest is asked and has not answered yet.
    #[serde(default)]
    pub call: Option<Call>,
    /// Updates that threads were inside of when they began, and whose end was not seen yet.
    #[serde(default)]
    pub opens: Vec<OpenRecord>,
}

/// Threads that return to code of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRecord {
    /// Id of the bundle, or of the part of it that came into effect later.
    pub id: String,
    /// It is being taken back: they are inside of the new code.
    pub undo: bool,
    /// Id of each part, and where threads inside of its code return to.
    pub parts: Vec<(String, u64)>,
    /// The threads. Those that have returned since are still named.
    pub threads: Vec<Inside>,
    /// Copies of data, by physical address and length.
    #[serde(default)]
    pub copies: Vec<(u64, usize)>,
}

impl Document {
    /// Whether the guest holds nothing of ours.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bundles.is_empty() && self.areas.is_empty() && self.call.is_none() && self.arena.allocations.is_empty()
    }

    /// Whether a bundle, or the part of one that is about a module, is in effect.
    #[must_use]
    pub fn is_applied(&self, id: &str) -> bool {
        let (bundle, module) = id.split_once(PART_SEPARATOR).map_or((id, None), |(id, module)| (id, Some(module)));
        let in_effect = |info: &BundleInfo| match module {
            None => true,
            Some(name) => info.modules.iter().any(|part| part.name == name && part.state == ModuleState::Applied),
        };
        let mut records = self.bundles.iter().map(|record| &record.info);
        records.any(|info| info.id == bundle && info.state.is_in_use() && in_effect(info))
    }
}

/// A request that the guest works on: the support object is in the arena, and the guest may be inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// What is asked.
    pub operation: Operation,
    /// The area it is about; without an address when one is asked for.
    pub area: Area,
    /// Name of the arena's allocation that holds the support object.
    pub allocation: String,
    /// Live addresses of the object's code: nobody may be inside when its pages are given back.
    pub code: Range<u64>,
    /// Physical address of the request.
    pub request: u64,
    /// Live address of the object's `struct irq_work`.
    pub work: u64,
    /// Its physical address.
    pub work_pa: u64,
    /// Physical address of the head of the list that it was put on.
    pub head: u64,
    /// Processor of the list.
    pub apic_id: u8,
    /// Interrupt that makes the processor look there.
    pub vector: u8,
    /// The guest has answered, and what it answered is in the document: the object may be asked again.
    #[serde(default)]
    pub answered: bool,
}

/// An action in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Number of the action.
    pub sequence: u64,
    /// Which boot it is about.
    pub boot: Boot,
    /// Id of the bundle.
    pub bundle: String,
    /// The guest's owner had stopped it, so it stays stopped.
    pub owner_paused: bool,
    /// All writes, in order.
    pub writes: Vec<Write>,
    /// Physical addresses of those writes that the guest itself changes again as soon as it runs.
    #[serde(default)]
    pub moving: Vec<u64>,
    /// Physical address of that write, if there is one, that puts something of ours on a list of the guest. While the guest
    /// runs it is taken back only where it still stands.
    #[serde(default)]
    pub list: Option<u64>,
    /// Virtual and physical addresses of those writes that go into modules. While the guest runs they are taken back only
    /// where the module is still at its place.
    #[serde(default)]
    pub mapped: Vec<(u64, u64)>,
    /// What holds once the writes are done and the guest runs.
    pub after: Document,
}

/// The files of one service.
#[derive(Debug, Clone)]
pub struct Journal {
    base: PathBuf,
}

impl Journal {
    /// Journal of the service at a control socket.
    #[must_use]
    pub fn beside(socket: &Path) -> Journal {
        Journal { base: socket.to_owned() }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        let mut name = self.base.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    /// The document; empty when there is none.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn load(&self) -> Result<Document, JournalError> {
        Ok(read_json(&self.path(".journal"))?.unwrap_or_default())
    }

    /// Writes down what is about to be done, and makes sure that the document that follows will find room on the disk.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn begin(&self, action: &Action, before: &Document) -> Result<(), JournalError> {
        let (action, before) = (to_json(action), to_json(before));
        write(&self.path(".action"), &action)?;
        // An action adds to the document what it writes, and the description of a bundle.
        let room = before.len() + 2 * action.len() + DESCRIPTION;
        reserve(&self.path(".journal"), room)
    }

    /// From now on, writes may have been done.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn committing(&self) -> Result<(), JournalError> {
        let (from, to) = (self.path(".action"), self.path(".committing"));
        fs::rename(&from, &to).map_err(file_error(&from))
    }

    /// What was written has been taken back while the guest stands: the action is only planned again. Said before the guest runs,
    /// for afterwards its memory does not tell in every case whether it has run with what was written.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn taken_back(&self) -> Result<(), JournalError> {
        let (from, to) = (self.path(".committing"), self.path(".action"));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error(&from)(error)),
            _ => Ok(()),
        }
    }

    /// The action is done: the document counts.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn finish(&self, document: &Document) -> Result<(), JournalError> {
        write(&self.path(".journal"), &to_json(document))?;
        self.forget_action()
    }

    /// The action was not done, or was taken back.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn forget_action(&self) -> Result<(), JournalError> {
        for path in [self.path(".action"), self.path(".committing"), new(&self.path(".journal"))] {
            remove(&path)?;
        }
        Ok(())
    }

    /// The action that a dead tool left half done: its writes may be in the guest.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn half_done(&self) -> Result<Option<Action>, JournalError> {
        let action: Option<Action> = read_json(&self.path(".committing"))?;
        let finished = self.load()?.sequence;
        Ok(action.filter(|action| action.sequence > finished))
    }

    /// The action that a dead tool had planned; it may have stopped the guest, but has not written.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn planned(&self) -> Result<Option<Action>, JournalError> {
        read_json(&self.path(".action"))
    }

    /// Writes down what copies of data hold at the moment from which on nobody keeps them in line.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn save_copies(&self, held: &[(Pa, Vec<u8>)]) -> Result<(), JournalError> {
        let held: Vec<(u64, &Vec<u8>)> = held.iter().map(|(pa, bytes)| (pa.0, bytes)).collect();
        write(&self.path(".copies"), &to_json(&held))
    }

    /// What they held; empty when nothing was written down.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn load_copies(&self) -> Result<BTreeMap<Pa, Vec<u8>>, JournalError> {
        let held: Option<Vec<(u64, Vec<u8>)>> = read_json(&self.path(".copies"))?;
        Ok(held.unwrap_or_default().into_iter().map(|(pa, bytes)| (Pa(pa), bytes)).collect())
    }

    /// They are kept in line again.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn forget_copies(&self) -> Result<(), JournalError> {
        remove(&self.path(".copies"))
    }

    /// Keeps a bundle's bytes.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn save_bundle(&self, id: &str, bytes: &[u8]) -> Result<(), JournalError> {
        let folder = self.path(".d");
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&folder).map_err(file_error(&folder))?;
        write(&folder.join(format!("{id}.lpk")), bytes)
    }

    /// A kept bundle's bytes.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn load_bundle(&self, id: &str) -> Result<Vec<u8>, JournalError> {
        let path = self.path(".d").join(format!("{id}.lpk"));
        fs::read(&path).map_err(file_error(&path))
    }

    /// Moves everything away: it belongs to another boot.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn set_aside(&self) -> Result<(), JournalError> {
        for suffix in [".journal", ".action", ".committing", ".copies", ".d"] {
            let (from, to) = (self.path(suffix), self.path(&format!("{suffix}.old")));
            if to.is_dir() {
                fs::remove_dir_all(&to).map_err(file_error(&to))?;
            }
            match fs::rename(&from, &to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file_error(&from)(error)),
                _ => {}
            }
        }
        Ok(())
    }
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.display().to_string();
    |source| JournalError::File { path, source }
}

fn remove(path: &Path) -> Result<(), JournalError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error(path)(error)),
        _ => Ok(()),
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, JournalError> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(file_error(path))?,
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| JournalError::Damaged { path: path.display().to_string(), reason: error.to_string() })
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain values with string keys are always JSON")
}

/// Name of the file that is going to replace another.
fn new(path: &Path) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(".new");
    name.into()
}

/// A file that [`write`] will fill, with room for `length` bytes.
fn reserve(path: &Path, length: usize) -> Result<(), JournalError> {
    let new = new(path);
    remove(&new)?;
    let mut file = options().create_new(true).open(&new).map_err(file_error(&new))?;
    io::Write::write_all(&mut file, &vec![b' '; length]).map_err(file_error(&new))
}

fn options() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.write(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
    options
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), JournalError> {
    let new = new(path);
    let written = options().create(true).truncate(false).open(&new).and_then(|mut file| {
        io::Write::write_all(&mut file, bytes)?;
        file.set_len(bytes.len() as u64)
    });
    if let Err(source) = written {
        let _ = remove(&new); // what is half written only takes room
        return Err(file_error(&new)(source));
    }
    fs::rename(&new, path).map_err(file_error(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_action_finds_the_room_it_was_promised() {
        let folder = tempfile::tempdir().expect("a folder");
        let journal = Journal::beside(&folder.path().join("api"));
        let action = Action {
            sequence: 1,
            boot: Boot { build_id: vec![1], slide: 0, image_delta: 0 },
            bundle: "b".into(),
            owner_paused: false,
            writes: vec![Write { pa: 1, old: vec![0; 5000], new: vec![1; 5000] }],
            moving: Vec::new(),
            list: None,
            mapped: vec![],
            after: Document::default(),
        };
        journal.begin(&action, &Document::default()).expect("written");
        let reserved = folder.path().join("api.journal.new");
        let length = fs::metadata(&reserved).expect("reserved").len();
        assert!(length > 40_000, "{length}");
        assert_eq!(journal.planned().expect("read"), Some(action.clone()));
        journal.committing().expect("renamed");
        assert_eq!(journal.half_done().expect("read"), Some(action.clone()));
        // Taken back while the guest stands, it is only planned again.
        journal.taken_back().expect("renamed");
        journal.taken_back().expect("twice is no error");
        assert_eq!(
            (journal.half_done().expect("read"), journal.planned().expect("read")),
            (None, Some(action.clone()))
        );
        journal.committing().expect("renamed");
        let document = Document { sequence: 1, ..Document::default() };
        journal.finish(&document).expect("finished");
        assert_eq!(journal.load().expect("whole, without what was reserved"), document);
        assert_eq!((journal.half_done().expect("read"), journal.planned().expect("read")), (None, None));
        // What is not done gives the room back.
        journal.begin(&action, &document).expect("written");
        journal.forget_action().expect("forgotten");
        assert!(!reserved.exists());
        assert_eq!(journal.load().expect("as before"), document);
    }
}
