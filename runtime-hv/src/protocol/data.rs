//! Existing data and objects on the heap that a bundle changes.
//!
//! Comes in: nothing. Decided: nothing. Goes out: [`DataInfo`] and [`ObjectsInfo`].

use serde::{Deserialize, Serialize};

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

/// What becomes of a datum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataStrategy {
    /// Bytes of it are written where it is.
    InPlace,
    /// New code uses a new copy.
    Moved,
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
