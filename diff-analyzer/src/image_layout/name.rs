//! Names that are compared without being read.
//!
//! Comes in: a place in a section, or a short text. Decided: nothing. Goes out: [`Name`], a number that stands for the name
//! within one image: a linker keeps each string once. The text is read only to compare with another image.

use super::bytes::text_length;
use super::digest::Digest;
use crate::dwarf_layout::sections::Slice;
use gimli::{Dwarf, Section as _};
use std::borrow::Cow;

/// A name: 0 for none, a place in `.debug_str` plus one, up to seven bytes of text, or a place in another section. Equal ones
/// are the same name; the same name may be written in several ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Name(pub(super) u64);

const SHORT: u64 = 1 << 63;
const IN_ENTRIES: u64 = 1 << 62;
const IN_LINES: u64 = 1 << 61;

impl Name {
    pub(super) const NONE: Self = Self(0);

    pub(super) fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The name at a place of `.debug_str`.
    pub(super) fn in_strings(place: usize) -> Self {
        Self(place as u64 + 1)
    }

    /// The name at a place of `.debug_info`.
    pub(super) fn in_entries(place: usize) -> Self {
        Self(IN_ENTRIES | place as u64)
    }

    /// The name at a place of `.debug_line_str`.
    pub(super) fn in_lines(place: usize) -> Self {
        Self(IN_LINES | place as u64)
    }

    /// A name of at most seven bytes: the first of these eight.
    #[inline]
    pub(super) fn short(eight: u64, length: usize) -> Self {
        let length = length.min(7);
        Self(SHORT | (length as u64) << 56 | eight & ((1 << (8 * length)) - 1))
    }
}

/// Where the texts of names are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Texts<'a> {
    strings: &'a [u8],
    entries: &'a [u8],
    lines: &'a [u8],
    start: Digest,
}

impl<'a> Texts<'a> {
    pub(super) fn new(dwarf: &Dwarf<Slice<'a>>, start: Digest) -> Self {
        Self {
            strings: dwarf.debug_str.reader().slice(),
            entries: dwarf.debug_info.reader().slice(),
            lines: dwarf.debug_line_str.reader().slice(),
            start,
        }
    }

    /// The text of a name.
    pub(super) fn text(&self, name: Name) -> Cow<'a, [u8]> {
        let Name(token) = name;
        if token & SHORT != 0 {
            let length = (token >> 56 & 7) as usize;
            return Cow::Owned(token.to_le_bytes()[..length].to_vec());
        }
        let place = (token & !(IN_ENTRIES | IN_LINES)) as usize;
        let (section, place) = match token {
            0 => return Cow::Borrowed(&[]),
            _ if token & IN_ENTRIES != 0 => (self.entries, place),
            _ if token & IN_LINES != 0 => (self.lines, place),
            _ => (self.strings, place - 1),
        };
        let rest = section.get(place..).unwrap_or_default();
        Cow::Borrowed(&rest[..text_length(rest, 0).unwrap_or(rest.len())])
    }

    /// The text of a name, for people.
    pub(super) fn string(&self, name: Name) -> String {
        String::from_utf8_lossy(&self.text(name)).into_owned()
    }

    /// A digest that stands for the text in all images.
    pub(super) fn digest(&self, name: Name) -> u64 {
        self.start.with_bytes(&self.text(name)).0
    }
}

#[cfg(test)]
mod tests {
    use super::super::bytes::load;
    use super::{Digest, Name, Texts};

    #[test]
    fn every_name_has_its_text_back() {
        let start = Digest::start();
        let texts = Texts { strings: b"first\0second\0", entries: b"..first\0", lines: b"...first\0open", start };
        for text in [&b""[..], b"a", b"seven77"] {
            let name = Name::short(load(text, 0), text.len());
            assert_eq!(*texts.text(name), *text);
            assert!(!name.is_none());
        }
        assert_eq!(*texts.text(Name::in_strings(6)), *b"second");
        assert_eq!(*texts.text(Name::in_strings(99)), *b"");
        assert_eq!(*texts.text(Name::in_lines(9)), *b"open");
        assert_eq!(*texts.text(Name::NONE), *b"");
        let first = [Name::in_strings(0), Name::in_entries(2), Name::in_lines(3), Name::short(load(b"first", 0), 5)];
        assert!(first.iter().all(|&name| texts.digest(name) == texts.digest(first[0])));
    }
}
