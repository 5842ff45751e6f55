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

mod bundle;
mod data;
mod module;
mod threads;
mod wire;

pub use bundle::{BundleInfo, BundleState, FunctionInfo, HookInfo, MemoryKind};
pub use data::{DataInfo, DataStrategy, ObjectsCount, ObjectsInfo};
pub use module::{ModuleFunction, ModuleInfo, ModuleState};
pub use threads::{MovedInfo, OpenInfo, ThreadInfo};
pub use wire::{ANSWER_LIMIT, BUNDLE_LIMIT, LINE_LIMIT, read_bundle, read_line, write_line};

use serde::{Deserialize, Serialize};

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
