//! Reads `.lucos.functions` and what it refers to.
//!
//! Comes in: the sections of a file, and its manifest. Decided: that the old bytes, sites and return points of the functions
//! stand one behind the other, with nothing between them. Goes out: the [`FunctionPatch`]es.

use super::{ReadError, Sections, in_section};
use crate::layout::{SECTION_NAMES, index};
use crate::records::{self, Cursor, FunctionRecord};
use crate::{FunctionPatch, Manifest, returns};

/// Hands out the parts of a section one behind the other.
struct Parts<'data> {
    section: &'static str,
    bytes: &'data [u8],
    used: u32,
}

impl<'data> Parts<'data> {
    fn of(sections: &Sections<'data>, at: usize) -> Self {
        Self { section: SECTION_NAMES[at], bytes: sections.get(at), used: 0 }
    }

    fn next(&mut self, index: usize, offset: u32, size: u32) -> Result<&'data [u8], ReadError> {
        let part = offset.checked_add(size).and_then(|end| Some((end, self.bytes.get(offset as usize..end as usize)?)));
        match part {
            Some((end, part)) if offset == self.used => {
                self.used = end;
                Ok(part)
            }
            _ => Err(ReadError::FunctionPart { index, section: self.section, offset, size, expected: self.used }),
        }
    }

    fn finish(self) -> Result<(), ReadError> {
        let (section, size, used) = (self.section, self.bytes.len(), self.used);
        if size == used as usize { Ok(()) } else { Err(ReadError::Unused { section, size, used }) }
    }
}

/// The redirected functions; name and unit of each stand in the manifest.
pub(super) fn functions(sections: &Sections<'_>, manifest: &Manifest) -> Result<Vec<FunctionPatch>, ReadError> {
    let mut cursor = Cursor::new(sections.get(index::FUNCTIONS));
    let mut expected = Parts::of(sections, index::EXPECTED);
    let mut sites = Parts::of(sections, index::SITES);
    let mut pairs = Parts::of(sections, index::RETURNS);
    let mut functions = Vec::new();
    while !cursor.is_empty() {
        let index = cursor.index;
        let entry = FunctionRecord::decode(&mut cursor).map_err(in_section(index::FUNCTIONS))?;
        let listed = manifest.functions.get(entry.manifest_index as usize).ok_or(ReadError::ManifestIndex {
            index,
            found: entry.manifest_index,
            count: manifest.functions.len(),
        })?;
        let site_bytes = sites.next(index, entry.sites_offset, entry.sites_size)?;
        let returns_size = entry.returns_count.saturating_mul(returns::RETURN_SIZE as u32);
        let return_bytes = pairs.next(index, entry.returns_offset, returns_size)?;
        functions.push(FunctionPatch {
            name: listed.name.clone(),
            unit: listed.unit.clone(),
            old_address: entry.old_address,
            jump_offset: entry.jump_offset,
            expected: expected.next(index, entry.expected_offset, entry.old_size)?.to_vec(),
            sites: records::decode_sites(site_bytes, entry.sites_count).map_err(in_section(index::SITES))?,
            new_offset: entry.new_offset,
            new_size: entry.new_size,
            returns: returns::decode(return_bytes).map_err(in_section(index::RETURNS))?,
        });
    }
    expected.finish()?;
    sites.finish()?;
    pairs.finish()?;
    Ok(functions)
}
