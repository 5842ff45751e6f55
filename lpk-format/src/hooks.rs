//! Hooks: functions of the author that run while an update is applied or taken back, and their records.
//!
//! Comes in: hooks to encode, or the bytes of `.lucos.hooks`. Decided: whether the bytes are records at all; what they mean is
//! checked in `check/hooks`. Goes out: bytes, or hooks. When each hook runs is said in `docs/hooks.md`.

use crate::SectionKind;
use crate::records::{Cursor, RecordError};
use serde::{Deserialize, Serialize};

/// Bytes of a record of `.lucos.hooks`, without the name behind it.
const HOOK_SIZE: usize = 32;
/// Sections by their number in a record; 0 is none.
const SECTIONS: [SectionKind; 4] = [SectionKind::Text, SectionKind::Rodata, SectionKind::Data, SectionKind::Bss];

/// A function of the payload that the runtime calls.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hook {
    /// When it is called.
    pub kind: HookKind,
    /// What it is about, as its kind wants.
    pub subject: HookSubject,
    /// Where the function starts in `.text`.
    pub offset: u32,
}

/// When a hook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookKind {
    /// Before the update; may forbid it.
    Pre,
    /// When the update has ended.
    Post,
    /// Makes the new copy of a datum from the old one.
    SyncToNew,
    /// Makes the old copy of a datum from the new one.
    SyncToOld,
    /// A thread leaves the old version of a function.
    Transition,
    /// Before the update is taken back; may forbid that.
    UndoPre,
    /// When the update has been taken back.
    UndoPost,
    /// A thread leaves the new version of a function while the update is taken back.
    UndoTransition,
}

impl HookKind {
    /// Every kind, in order.
    pub const ALL: [Self; 8] = [
        Self::Pre,
        Self::Post,
        Self::SyncToNew,
        Self::SyncToOld,
        Self::Transition,
        Self::UndoPre,
        Self::UndoPost,
        Self::UndoTransition,
    ];

    /// Its name, as tools print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pre => "pre",
            Self::Post => "post",
            Self::SyncToNew => "sync-to-new",
            Self::SyncToOld => "sync-to-old",
            Self::Transition => "transition",
            Self::UndoPre => "undo-pre",
            Self::UndoPost => "undo-post",
            Self::UndoTransition => "undo-transition",
        }
    }

    /// Whether it is about a function.
    pub fn is_of_function(self) -> bool {
        matches!(self, Self::Transition | Self::UndoTransition)
    }

    /// Whether it is about a datum.
    pub fn is_of_datum(self) -> bool {
        matches!(self, Self::SyncToNew | Self::SyncToOld)
    }
}

/// What a hook is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookSubject {
    /// The whole update.
    Update,
    /// A replaced function.
    Function {
        /// Name.
        name: String,
        /// Link address of the old version.
        old_address: u64,
    },
    /// A datum of which the update has a new copy.
    Datum {
        /// Name of the old one.
        name: String,
        /// Its link address.
        old_address: u64,
        /// Its size in bytes.
        old_size: u32,
        /// Section of the new one.
        section: SectionKind,
        /// Byte offset in that section.
        new_offset: u32,
        /// Size of the new one in bytes.
        new_size: u32,
    },
}

impl HookSubject {
    /// Name of the function or datum; empty for the whole update.
    pub fn name(&self) -> &str {
        match self {
            Self::Update => "",
            Self::Function { name, .. } | Self::Datum { name, .. } => name,
        }
    }

    /// Link address of the old function or datum; 0 for the whole update.
    pub fn old_address(&self) -> u64 {
        match self {
            Self::Update => 0,
            Self::Function { old_address, .. } | Self::Datum { old_address, .. } => *old_address,
        }
    }
}

/// Bytes of a hook's record.
pub(crate) fn size(hook: &Hook) -> usize {
    HOOK_SIZE + hook.subject.name().len().next_multiple_of(8)
}

/// Appends one hook.
pub(crate) fn encode(hook: &Hook, out: &mut Vec<u8>) {
    let kind = HookKind::ALL.iter().position(|kind| *kind == hook.kind).map_or(0, |at| at as u8 + 1);
    let (section, [old_size, new_offset, new_size]) = match hook.subject {
        HookSubject::Datum { old_size, section, new_offset, new_size, .. } => {
            let number = SECTIONS.iter().position(|known| *known == section).map_or(0, |at| at as u8 + 1);
            (number, [old_size, new_offset, new_size])
        }
        _ => (0, [0; 3]),
    };
    let name = hook.subject.name();
    out.extend_from_slice(&[kind, section, 0, 0]);
    out.extend_from_slice(&hook.offset.to_le_bytes());
    out.extend_from_slice(&hook.subject.old_address().to_le_bytes());
    for field in [old_size, new_offset, new_size, name.len() as u32] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
}

/// Reads all of `.lucos.hooks`.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Hook>, RecordError> {
    let mut cursor = Cursor::new(bytes);
    let mut hooks = Vec::new();
    while !cursor.is_empty() {
        let index = cursor.index;
        let [kind, section] = [cursor.u8()?, cursor.u8()?];
        let _reserved = cursor.u16()?;
        let (offset, old_address) = (cursor.u32()?, cursor.u64()?);
        let [old_size, new_offset, new_size, len] = [cursor.u32()?, cursor.u32()?, cursor.u32()?, cursor.u32()?];
        let name = cursor.take(len as usize)?.to_vec();
        cursor.take((len as usize).wrapping_neg() % 8)?;
        let name = String::from_utf8(name).map_err(|_| RecordError::Text { index })?;
        let known = usize::from(kind).checked_sub(1).and_then(|at| HookKind::ALL.get(at));
        let kind = *known.ok_or(RecordError::Kind { index, kind })?;
        let subject = if kind.is_of_datum() {
            let known = usize::from(section).checked_sub(1).and_then(|at| SECTIONS.get(at));
            let section = *known.ok_or(RecordError::Kind { index, kind: section })?;
            HookSubject::Datum { name, old_address, old_size, section, new_offset, new_size }
        } else if kind.is_of_function() {
            HookSubject::Function { name, old_address }
        } else {
            HookSubject::Update
        };
        hooks.push(Hook { kind, subject, offset });
        cursor.index += 1;
    }
    Ok(hooks)
}
