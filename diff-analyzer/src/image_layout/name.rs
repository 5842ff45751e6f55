//! Names that are compared without being read.
//!
//! Comes in: a place in `.debug_str`, or text elsewhere. Decided: nothing. Goes out: [`Name`], a number that stands for the
//! name within one image: a linker keeps each string once. The text is read only to compare with another image.

use super::digest::Digest;
use std::collections::HashMap;
use std::ffi::CStr;

/// A name: 0 for none, a place in `.debug_str` plus one, up to seven bytes of text, or a digest of a longer text elsewhere.
/// Equal ones are the same name; the same name may be written in two ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Name(pub(super) u64);

const SHORT: u64 = 1 << 63;
const LONG: u64 = 1 << 62;

impl Name {
    pub(super) const NONE: Self = Self(0);

    pub(super) fn is_none(self) -> bool {
        self.0 == 0
    }

    /// The name at a place of `.debug_str`.
    #[inline]
    pub(super) fn at(place: u32) -> Self {
        Self(u64::from(place) + 1)
    }

    /// A name of at most seven bytes.
    #[inline]
    fn short(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; 8];
        bytes.get_mut(..text.len()).filter(|bytes| bytes.len() < 8)?.copy_from_slice(text);
        Some(Self(SHORT | (text.len() as u64) << 56 | u64::from_le_bytes(bytes)))
    }
}

/// Where the texts of names are.
#[derive(Debug, Default)]
pub(super) struct Texts<'a> {
    /// `.debug_str`.
    section: &'a [u8],
    long: HashMap<u64, &'a [u8]>,
    start: Digest,
}

impl<'a> Texts<'a> {
    pub(super) fn new(section: &'a [u8], start: Digest) -> Self {
        Self { section, long: HashMap::new(), start }
    }

    /// A name that is not in `.debug_str`.
    #[inline]
    pub(super) fn name(&mut self, text: &'a [u8]) -> Name {
        Name::short(text).unwrap_or_else(|| {
            let digest = self.start.with_bytes(text).0 >> 2 | LONG;
            self.long.insert(digest, text);
            Name(digest)
        })
    }

    /// The text of a name.
    pub(super) fn text(&self, name: Name) -> Vec<u8> {
        let Name(token) = name;
        if token & SHORT != 0 {
            let length = (token >> 56 & 0x7f) as usize;
            return token.to_le_bytes()[..length.min(7)].to_vec();
        }
        if token & LONG != 0 {
            return self.long.get(&token).copied().unwrap_or_default().to_vec();
        }
        let place = token.checked_sub(1).and_then(|place| usize::try_from(place).ok());
        let from = place.and_then(|place| self.section.get(place..)).unwrap_or_default();
        CStr::from_bytes_until_nul(from).map_or(from, CStr::to_bytes).to_vec()
    }

    /// A digest that stands for the text in all images.
    pub(super) fn digest(&self, name: Name) -> u64 {
        self.start.with_bytes(&self.text(name)).0
    }
}

#[cfg(test)]
mod tests {
    use super::{Digest, Name, Texts};

    #[test]
    fn every_name_has_its_text_back() {
        let mut texts = Texts::new(b"first\0second\0", Digest::start());
        for text in [&b""[..], b"a", b"seven77", b"eight888", b"a name of some length"] {
            let name = texts.name(text);
            assert_eq!(texts.text(name), text);
            assert!(!name.is_none());
        }
        assert_eq!(texts.text(Name::at(6)), b"second");
        assert_eq!(texts.text(Name::at(99)), b"");
        assert_eq!(texts.digest(Name::at(0)), {
            let name = texts.name(b"first");
            texts.digest(name)
        });
        assert!(Name::NONE.is_none());
    }
}
