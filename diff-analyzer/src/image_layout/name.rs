//! Names that are compared without being read.
//!
//! Comes in: a place in `.debug_str`, or text elsewhere. Decided: nothing. Goes out: [`Name`]. A linker keeps each string
//! once, so that its place stands for it within one image; the text is read only to compare with another image.

use super::digest::Digest;
use std::ffi::CStr;

/// A name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    /// Place in `.debug_str` plus one, or a digest with the highest bit set; 0 for no name. Two names with the same token
    /// are the same; the same name may have two tokens.
    pub(super) token: u64,
    /// From its first byte on, maybe far beyond its end.
    from: &'a [u8],
}

impl<'a> Name<'a> {
    pub(super) const NONE: Self = Self { token: 0, from: &[] };

    /// The name at a place of `.debug_str`; none when the place is outside.
    #[inline]
    pub(super) fn at(section: &'a [u8], place: u32) -> Option<Self> {
        let from = section.get(place as usize..)?;
        Some(Self { token: u64::from(place) + 1, from })
    }

    /// A name that lies elsewhere.
    pub(super) fn of(text: &'a [u8], start: Digest) -> Self {
        Self { token: start.with_bytes(text).0 | 1 << 63, from: text }
    }

    pub(super) fn is_none(&self) -> bool {
        self.token == 0
    }

    /// The text.
    pub(super) fn text(&self) -> &'a [u8] {
        CStr::from_bytes_until_nul(self.from).map_or(self.from, CStr::to_bytes)
    }
}
