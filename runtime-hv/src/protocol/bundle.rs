//! A bundle, as `list` and `show` tell of it.
//!
//! Comes in: nothing. Decided: nothing. Goes out: [`BundleInfo`]; `docs/list-schema.json` is its schema.

use super::{DataInfo, ModuleInfo, MovedInfo, ObjectsInfo, OpenInfo, ThreadInfo};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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

/// A hook of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookInfo {
    /// When it is called.
    pub kind: lpk_format::HookKind,
    /// Function or datum that it is about; absent for the whole update.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub subject: Option<String>,
}
