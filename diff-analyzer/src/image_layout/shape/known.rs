//! What is known of the types of a unit so far.
//!
//! Comes in: what [`super::Shapes`] has worked out. Decided: nothing. Goes out: the same, by the index of a type. The memory is
//! kept from unit to unit.

use super::Index;

/// What a type is to a member of it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Facts {
    /// How it is written.
    pub(super) text: u64,
    /// Size in bytes; `u64::MAX` for an incomplete type.
    pub(super) size: u64,
    /// Alignment in bytes, less than [`ANONYMOUS`]; and that bit for an anonymous struct or union, perhaps with qualifiers.
    pub(super) align: u32,
    /// What is known: [`Known::all`], perhaps without [`TEXT`] or [`REST`].
    pub(super) known: u32,
}

impl Facts {
    /// Size in bytes; 0 for an incomplete type.
    #[inline]
    pub(super) fn size(self) -> u64 {
        if self.size == u64::MAX { 0 } else { self.size }
    }

    pub(super) fn align(self) -> u32 {
        self.align & !ANONYMOUS
    }

    pub(super) fn is_anonymous(self) -> bool {
        self.align & ANONYMOUS != 0
    }
}

/// Not an alignment.
pub(super) const ANONYMOUS: u32 = 1 << 31;

/// The text of a type is known.
pub(super) const TEXT: u32 = 1;

/// All but the text of a type is known.
pub(super) const REST: u32 = 2;

/// What is known of a struct, union or enum besides.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Deep {
    pub(super) shape: u64,
    pub(super) contents: u64,
    /// Alignment of a struct or union, known with its shape.
    pub(super) align: u32,
    unit: u32,
}

/// What is known of the types of a unit so far; memory that is kept from unit to unit.
#[derive(Debug, Default)]
pub(in crate::image_layout) struct Known {
    pub(super) facts: Vec<Facts>,
    deep: Vec<Deep>,
    /// How many units there have been; what is left over from others is known by that.
    unit: u32,
}

impl Known {
    /// Forgets all, for a unit of so many entries.
    pub(super) fn clear(&mut self, entries: usize) {
        self.unit += 1; // an image has fewer units than that
        if self.facts.len() < entries {
            self.facts.resize(entries, Facts::default());
            self.deep.resize(entries, Deep::default());
        }
    }

    /// Marks facts of this unit of which all is known.
    #[inline]
    pub(super) fn all(&self) -> u32 {
        self.unit << 2 | TEXT | REST
    }

    #[inline]
    pub(super) fn deep(&mut self, index: Index) -> &mut Deep {
        let deep = &mut self.deep[index as usize];
        if deep.unit != self.unit {
            *deep = Deep { unit: self.unit, ..Deep::default() };
        }
        deep
    }
}
