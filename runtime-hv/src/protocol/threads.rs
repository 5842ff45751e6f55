//! Threads inside of code that was left, and what has happened because of them.
//!
//! Comes in: nothing. Decided: nothing. Goes out: [`ThreadInfo`], [`MovedInfo`] and [`OpenInfo`].

use serde::{Deserialize, Serialize};

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
