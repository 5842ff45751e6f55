//! What names count by in digests.
//!
//! Comes in: the places of names. Decided: whether a digest holds within one image, or for all images of a run. Goes out: a number
//! per name.

use super::{Name, Texts};
use crate::image_layout::digest::OfNumber;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;

/// What names count by.
pub(in crate::image_layout) trait Names {
    /// What a name counts as.
    fn number(&mut self, name: Name) -> u64;
}

/// By their place: such digests hold within one image.
pub(in crate::image_layout) struct ByPlace;

impl Names for ByPlace {
    #[inline]
    fn number(&mut self, name: Name) -> u64 {
        name.0
    }
}

/// By their text: such digests hold for all images of a run. Those of one image are kept.
pub(in crate::image_layout) struct ByText<'e, 'a> {
    pub(in crate::image_layout) texts: Texts<'a>,
    pub(in crate::image_layout) known: &'e mut NameDigests,
}

/// Digests of names by their place.
pub(in crate::image_layout) type NameDigests = HashMap<u64, u64, BuildHasherDefault<OfNumber>>;

impl Names for ByText<'_, '_> {
    fn number(&mut self, name: Name) -> u64 {
        *self.known.entry(name.0).or_insert_with(|| self.texts.digest(name))
    }
}
