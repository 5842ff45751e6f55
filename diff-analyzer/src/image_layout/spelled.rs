//! The name of a type as people write it, while it still lies in the file.
//!
//! Comes in: an entry. Decided: what names it: itself, a typedef, or the first enumerator. Goes out: [`Spelled`], a few places;
//! only names that are shown become text.

use super::name::{Name, Texts};
use super::scan::{Entries, Index};
use crate::dwarf_layout::LayoutError;
use gimli::constants as dw;

/// The name of a struct, union, enum or typedef.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spelled {
    /// What stands before the name: `struct`, or nothing.
    keyword: &'static str,
    /// Name without keyword; of an enum without a name its first enumerator.
    bare: Name,
    /// Whether it is an enum without a name.
    pub(super) is_enumerator: bool,
    /// Function that it is local to.
    function: Name,
}

impl Spelled {
    /// The name of a struct, union, enum or typedef.
    ///
    /// # Errors
    /// [`LayoutError`] when a part of it is malformed.
    pub(super) fn of(entries: &Entries<'_, '_>, index: Index) -> Result<Self, LayoutError> {
        let entry = entries.get(index);
        let name = entry.name;
        let (keyword, bare) = match entry.tag {
            _ if name.is_none() && entry.named_by != 0 => ("", entries.get(entry.named_by).name),
            _ if name.is_none() => ("enum", entries.first_name(index)?.unwrap_or(Name::NONE)),
            dw::DW_TAG_structure_type => ("struct", name),
            dw::DW_TAG_union_type => ("union", name),
            dw::DW_TAG_enumeration_type => ("enum", name),
            _ => ("", name),
        };
        let function = match entry.owner {
            0 => Name::NONE,
            function => entries.get(entries.origin(function)?).name,
        };
        Ok(Self { keyword, bare, is_enumerator: name.is_none() && entry.named_by == 0, function })
    }

    /// The name without keyword and function.
    pub(super) fn bare(self, texts: Texts<'_>) -> String {
        texts.string(self.bare)
    }

    /// As [`crate::dwarf_layout::Layouts::types`] has it.
    pub(super) fn text(self, texts: Texts<'_>) -> String {
        let bare = self.bare(texts);
        let mut text = match self.keyword {
            _ if self.is_enumerator => format!("enum {{ {bare} }}"),
            "" => bare,
            keyword => format!("{keyword} {bare}"),
        };
        let function = texts.string(self.function);
        if !function.is_empty() {
            text.push_str(&format!(" in {function}()"));
        }
        text
    }
}
