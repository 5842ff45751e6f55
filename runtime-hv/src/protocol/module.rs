//! What a bundle does to a loadable module, which may come and go.
//!
//! Comes in: nothing. Decided: nothing. Goes out: [`ModuleInfo`].

use super::{DataInfo, HookInfo, ObjectsInfo};
use serde::{Deserialize, Serialize};

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
