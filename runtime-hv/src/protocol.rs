//! The words of the control socket: one request and one answer per connection, each a line of JSON.
//!
//! Comes in: bytes of a client that may be anything. Decided: what is well-formed; lengths are bounded before anything is
//! allocated. Goes out: [`Request`] and [`Answer`].
//!
//! ```text
//! client: {"op":"apply","size":N,"in_arena":false,"stay":false}\n  N bytes of bundle
//! client: {"op":"list"}\n | {"op":"show","name":"…"}\n | {"op":"undo","name":"…"}\n | {"op":"status"}\n
//! server: {"ok":…}\n | {"error":{"status":3,"reason":"…","message":"…","help":"…"}}\n
//! ```

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};

/// A request line is never longer than this.
pub const LINE_LIMIT: u64 = 64 << 10;
/// An answer line is never longer than this.
pub const ANSWER_LIMIT: u64 = 16 << 20;
/// A bundle is never larger than this.
pub const BUNDLE_LIMIT: u64 = 64 << 20;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Request {
    /// Apply the bundle that follows the line.
    Apply {
        /// Its length in bytes.
        size: u64,
        /// Leave the guest's module area alone.
        #[serde(default)]
        in_arena: bool,
        /// Leave kernel threads that wait in old code there.
        #[serde(default)]
        stay: bool,
    },
    /// All bundles of this boot.
    List,
    /// One bundle.
    Show {
        /// Name, or the beginning of the id.
        name: String,
    },
    /// Take a bundle back.
    Undo {
        /// Name, or the beginning of the id.
        name: String,
    },
    /// What the service serves.
    Status,
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Done.
    Ok(Reply),
    /// Not done.
    Error(Problem),
}

/// Contents of a good answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// `list`.
    Bundles(Vec<BundleInfo>),
    /// `apply`, `show`, `undo`.
    Bundle(Box<BundleInfo>),
    /// `status`.
    Status(Status),
}

/// State of a bundle: `loaded → applying → open → applied → undoing → removed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BundleState {
    /// Read and checked; the guest is untouched.
    Loaded,
    /// Being applied.
    Applying,
    /// In effect, while threads are still inside the old code.
    Open,
    /// In effect.
    Applied,
    /// Not in effect any more, while threads are still inside the new code.
    Undoing,
    /// Not in effect any more.
    Removed,
}

impl BundleState {
    /// Whether new calls run the new code.
    #[must_use]
    pub fn is_in_effect(self) -> bool {
        matches!(self, BundleState::Open | BundleState::Applied)
    }

    /// Whether threads may run the new code, or use its data.
    #[must_use]
    pub fn is_in_use(self) -> bool {
        self.is_in_effect() || self == BundleState::Undoing
    }

    /// The word used in JSON and tables.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            BundleState::Loaded => "loaded",
            BundleState::Applying => "applying",
            BundleState::Open => "open",
            BundleState::Applied => "applied",
            BundleState::Undoing => "undoing",
            BundleState::Removed => "removed",
        }
    }
}

/// A bundle as `list` shows it; `docs/list-schema.json` is its schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleInfo {
    /// Name from the manifest.
    pub name: String,
    /// Id, hexadecimal.
    pub id: String,
    /// State.
    pub state: BundleState,
    /// Reason code when the state was not reached in the ordinary way.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// `type1` or `type2`.
    #[serde(rename = "type")]
    pub update_type: lpk_format::UpdateType,
    /// Kernel release it was made for.
    pub release: String,
    /// KASLR slide of the guest, `0x…`.
    pub slide: String,
    /// Where its code lives.
    pub memory: MemoryKind,
    /// Name of the module as which the guest lists it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub module: Option<String>,
    /// Functions redirected in the kernel image.
    pub functions: Vec<FunctionInfo>,
    /// Existing data of the kernel image that change.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub data: Vec<DataInfo>,
    /// Objects on the heap, of caches of the kernel image, that get a value for what is new in them.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub objects: Vec<ObjectsInfo>,
    /// Threads inside the old code.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub inside: Vec<ThreadInfo>,
    /// What has happened while threads were inside.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub open: Option<OpenInfo>,
    /// Kernel threads that wait in old code were to stay there.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub stay: bool,
    /// Kernel threads that waited in code that was left and have gone on in the other version: in the new code, after undo in the
    /// old code again.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub moved: Vec<MovedInfo>,
    /// Hooks of the author, in the order of their kinds.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub hooks: Vec<HookInfo>,
    /// Loadable modules that it changes.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub modules: Vec<ModuleInfo>,
    /// When it was applied, RFC 3339, UTC.
    pub applied_at: String,
    /// Microseconds of the last action: `total`, `paused`, and by phase.
    pub times_us: BTreeMap<String, u64>,
    /// Guest pages that are still kept after undo.
    pub kept_pages: u64,
}

impl BundleInfo {
    /// More of them are not named.
    const MOVED_LIMIT: usize = 1024;

    /// Names threads that have gone on in the other version, the newest last.
    pub fn add_moved(&mut self, moved: impl IntoIterator<Item = MovedInfo>) {
        self.moved.extend(moved);
        let more = self.moved.len().saturating_sub(Self::MOVED_LIMIT);
        self.moved.drain(..more);
    }
}

/// A thread that has gone on in the other version of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedInfo {
    /// Thread number.
    pub pid: u32,
    /// Name.
    pub name: String,
    /// The function.
    pub function: String,
}

/// A thread inside the old code of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadInfo {
    /// Thread number.
    pub pid: u32,
    /// Name.
    pub name: String,
    /// The old function that it is inside.
    pub function: String,
    /// Where it goes on in it, `0x…`.
    pub at: String,
    /// Of a thread of the kernel's own: why it was not moved over to the other version.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
}

/// What has happened while an update was open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenInfo {
    /// How long it has been, or was, in milliseconds.
    pub ms: u64,
    /// Frames that were inside when it began.
    pub frames: u64,
    /// Frames that have been left.
    pub left: u64,
    /// Writes to an old copy that were carried to the new one.
    pub to_new: u64,
    /// Writes to a new copy that were carried to the old one.
    pub to_old: u64,
    /// Writes to something else in the same pages.
    pub false_sharing: u64,
    /// Writes that were carried a moment late.
    #[serde(default)]
    pub late: u64,
    /// Writes that could not be carried, and hooks that failed.
    pub lost: u64,
    /// What went wrong last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trouble: Option<String>,
}

/// A datum that a bundle changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataInfo {
    /// Name.
    pub name: String,
    /// Translation unit.
    pub unit: String,
    /// What becomes of it.
    pub strategy: DataStrategy,
    /// Where the old one is, `0x…`; unknown while the guest does not have the module that it is in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub old_address: Option<String>,
    /// Its size in bytes.
    pub old_size: u64,
    /// Where the new copy is, if there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_address: Option<String>,
    /// Size of the new contents in bytes.
    pub new_size: u64,
}

impl DataInfo {
    /// Live addresses of the old one, if it is there.
    #[must_use]
    pub fn old_range(&self) -> Option<std::ops::Range<u64>> {
        let digits = self.old_address.as_ref()?.trim_start_matches("0x");
        let start = u64::from_str_radix(digits, 16).ok()?;
        Some(start..start.saturating_add(self.old_size))
    }
}

/// Objects of a type that get a value for what is new in them. Sizes and places are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectsInfo {
    /// The type, as `struct file`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The variable that points to their slab cache.
    pub variable: String,
    /// Name of the cache in `/proc/slabinfo`; unknown while the guest does not have the module.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cache: Option<String>,
    /// Where the cache's description is, `0x…`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cache_address: Option<String>,
    /// Size of an object before.
    pub old_size: u64,
    /// Size of an object after.
    pub new_size: u64,
    /// What is new: offset and length of each stretch.
    pub added: Vec<[u64; 2]>,
    /// What was found at the switch.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub count: Option<ObjectsCount>,
}

/// Objects of a slab cache at the moment of the switch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectsCount {
    /// Live ones; each holds the new value.
    pub live: u64,
    /// Free ones that hold it as well, because their cache keeps what free objects hold.
    pub free: u64,
    /// All that the guest counts, live or not: `num_objs` of `/proc/slabinfo`.
    pub of: u64,
    /// Slabs that it counts: `num_slabs`.
    pub slabs: u64,
}

/// What becomes of a datum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataStrategy {
    /// Bytes of it are written where it is.
    InPlace,
    /// New code uses a new copy.
    Moved,
}

/// A hook of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookInfo {
    /// When it is called.
    pub kind: lpk_format::HookKind,
    /// Function or datum that it is about; absent for the whole update.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub subject: Option<String>,
}

/// What a bundle does to a loadable module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleInfo {
    /// Name of the module that is changed.
    pub name: String,
    /// State.
    pub state: ModuleState,
    /// Reason code of a refusal, and when a state was not reached in the ordinary way.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Name of the module as which the guest lists the new code.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub module: Option<String>,
    /// Functions to redirect; they have addresses while they are redirected.
    pub functions: Vec<ModuleFunction>,
    /// Existing data of the module that change; they have addresses while they are changed.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub data: Vec<DataInfo>,
    /// Objects on the heap whose cache the module has, or whose new code does; they have a count once they have got a value.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub objects: Vec<ObjectsInfo>,
    /// The author's functions that are called about the module.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub hooks: Vec<HookInfo>,
}

/// A function of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleFunction {
    /// Symbol name.
    pub name: String,
    /// Translation unit.
    pub unit: String,
    /// Where the old function is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub old_address: Option<String>,
    /// Where the new one is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_address: Option<String>,
    /// Size of the new one in bytes.
    pub size: u64,
}

/// State of a bundle in a loadable module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModuleState {
    /// The guest does not have the module; the bundle is applied to it when it is loaded.
    Waiting,
    /// In effect.
    Applied,
    /// The module as loaded is not the one, or not in the state, that the bundle was made for. It is not touched.
    Refused,
    /// Not in effect any more.
    Removed,
}

impl ModuleState {
    /// The word used in JSON and tables.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            ModuleState::Waiting => "waiting",
            ModuleState::Applied => "applied",
            ModuleState::Refused => "refused",
            ModuleState::Removed => "removed",
        }
    }
}

/// Memory that holds a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryKind {
    /// The guest's module area; the guest knows the code.
    Module,
    /// Memory that the guest does not use; it does not know the code.
    Arena,
}

impl MemoryKind {
    /// The word used in JSON and tables.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            MemoryKind::Module => "module",
            MemoryKind::Arena => "arena",
        }
    }
}

/// A redirected function. Addresses are live, `0x…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionInfo {
    /// Symbol name.
    pub name: String,
    /// Translation unit.
    pub unit: String,
    /// Where the old function is.
    pub old_address: String,
    /// Where the new one is.
    pub new_address: String,
    /// Size of the new one in bytes.
    pub size: u64,
}

/// What a service serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the tool.
    pub version: String,
    /// Engine.
    pub engine: String,
    /// Whether the guest's processors are stopped.
    pub paused: bool,
    /// Number of bundles in effect.
    pub applied: usize,
    /// The guest was asked something and has not answered yet.
    pub waiting: bool,
    /// Pages of guest memory that are lost to answers that came while somebody seemed to be inside.
    pub lost_pages: u64,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// Exit status: 1 the tool or its environment failed, 3 refused.
    pub status: u8,
    /// Reason code.
    pub reason: String,
    /// What was expected and found.
    pub message: String,
    /// What to do next.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub help: Option<String>,
}

impl Problem {
    /// The tool or its environment failed.
    pub fn failed(reason: &str, message: impl ToString) -> Problem {
        Problem { status: 1, reason: reason.to_owned(), message: message.to_string(), help: None }
    }

    /// Refused.
    pub fn refused(reason: &str, message: impl ToString) -> Problem {
        Problem { status: 3, reason: reason.to_owned(), message: message.to_string(), help: None }
    }

    /// With advice.
    #[must_use]
    pub fn help(mut self, help: impl ToString) -> Problem {
        self.help = Some(help.to_string());
        self
    }
}

/// Reads one bounded line of JSON.
///
/// # Errors
/// `InvalidData` when the line is too long, unfinished or not what it should be.
pub fn read_line<T: for<'de> Deserialize<'de>>(from: &mut impl BufRead, limit: u64) -> io::Result<T> {
    let mut line = Vec::new();
    from.take(limit).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        let reason =
            format!("expected one line of JSON, at most {limit} bytes; got {} bytes without its end", line.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    serde_json::from_slice(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// One line of JSON.
///
/// # Errors
/// As `write_all`.
pub fn write_line(to: &mut impl io::Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads the bundle that follows an `apply` line.
///
/// # Errors
/// `InvalidData` when it is too large or cut off.
pub fn read_bundle(from: &mut impl Read, size: u64) -> io::Result<Vec<u8>> {
    if size > BUNDLE_LIMIT {
        let reason = format!("a bundle of {size} bytes; at most {BUNDLE_LIMIT} are taken");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    let mut bytes = Vec::new();
    from.take(size).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != size {
        let reason = format!("{size} bytes of bundle were announced, {} came", bytes.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(bytes)
}
