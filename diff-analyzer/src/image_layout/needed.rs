//! Which entries of a unit the layouts of some types and variables depend on.
//!
//! Comes in: the entries of a unit, and offsets of types and variables. Decided: what they contain, and what has to be known of
//! the rest to write it down: behind a pointer only names. Goes out: the offset of each such entry and of that above it.

use super::entry::Part;
use super::scan::{Entries, Index};
use crate::dwarf_layout::LayoutError;
use gimli::constants as dw;

/// How much of an entry is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Depth {
    Nothing,
    /// The entry, its parts, and what its name depends on.
    Name,
    /// All that is laid out inside.
    Contents,
}

/// Offsets of the entries that some types and variables depend on, each with that of the entry above it, in their order; none
/// when some of them are local to functions, or when there is no entry at an offset.
///
/// # Errors
/// [`LayoutError`] when the DWARF is malformed.
pub(super) fn needed(entries: Entries<'_, '_>, offsets: &[usize]) -> Result<Option<Vec<(usize, usize)>>, LayoutError> {
    let root = entries.get(0).offset as usize;
    let mut places = vec![(root, root)];
    let mut seen = vec![Depth::Nothing; entries.len()];
    let mut left = Vec::new();
    for &offset in offsets {
        match entries.at(offset) {
            Some(index) => left.push((index, Depth::Contents)),
            None => return Ok(None),
        }
    }
    while let Some((index, depth)) = left.pop() {
        let before = seen[index as usize];
        if index == 0 || before >= depth {
            continue;
        }
        seen[index as usize] = depth;
        let entry = entries.get(index);
        if entry.owner != 0 {
            return Ok(None);
        }
        let offset = entry.offset as usize;
        if before == Depth::Nothing {
            places.push((offset, root));
        }
        left.extend([entry.named_by, entry.origin].map(|other| (other, Depth::Name)));
        let only_named = matches!(entry.tag, dw::DW_TAG_pointer_type | dw::DW_TAG_subroutine_type);
        let inside = if only_named { Depth::Name } else { depth };
        left.push((entry.ty, inside));
        let is_named = !entry.name.is_none() || entry.named_by != 0;
        let (mut parts, mut part) = (entries.parts(index), Part::new());
        while parts.next(&mut part)? {
            if before == Depth::Nothing {
                places.push((part.offset as usize, offset));
            }
            if depth == Depth::Contents || !is_named {
                left.push((entries.type_of(&part)?, inside));
            }
        }
    }
    places.sort_unstable();
    Ok(Some(places))
}

impl Entries<'_, '_> {
    fn at(&self, offset: usize) -> Option<Index> {
        self.index(u32::try_from(offset).ok()?).filter(|&index| index != 0)
    }
}
