//! The slabs of a cache, by the `struct page` of their first page.
//!
//! Comes in: a located kernel and a cache. Decided: of each page of memory, whether it begins a slab of the cache. Goes out: page
//! frame numbers, ascending. The array of all `struct page` is read in large pieces; parts of it that the guest does not map are
//! holes in its memory.

use super::walk::OBJECTS_LIMIT;
use super::{Cache, SlabError};
use crate::engine::{Pa, ReadMemory, Va};
use crate::guest::snapshot::Snapshot;
use crate::guest::{GuestError, Kernel, paging};

/// Page frames that are looked at: 256 GiB of memory.
const FRAMES_LIMIT: u64 = 1 << 26;
/// Bytes read at a time.
const PIECE: u64 = 1 << 20;

/// How a `struct page` tells of a slab.
#[derive(Debug)]
pub(super) struct Pages {
    /// Address of the array.
    pub(super) base: u64,
    /// Distance between its entries.
    pub(super) size: u64,
    /// Page frame numbers end here.
    pub(super) end: u64,
    mark: Mark,
    /// Where the cache is named.
    owner: usize,
}

/// What says that a page is the first of a slab.
#[derive(Debug, Clone, Copy)]
enum Mark {
    /// A bit of the flags (until Linux 6.9): offset and mask.
    Flag(usize, u64),
    /// The uppermost byte of the type (since Linux 6.12): offset and value.
    Type(usize, u8),
}

impl Pages {
    pub(super) fn of(memory: &dyn ReadMemory, kernel: &Kernel) -> Result<Pages, SlabError> {
        let base = match kernel.symbol("vmemmap_base") {
            Ok(variable) => kernel.image_u64(memory, variable)?,
            Err(_) => kernel.constant("VMEMMAP_START")?,
        };
        let mark = match (kernel.constant("PG_slab"), kernel.constant("PGTY_slab")) {
            (Ok(bit), _) => Mark::Flag(kernel.offset("page.flags")? as usize, 1 << (bit & 63)),
            (Err(_), Ok(value)) => Mark::Type(kernel.offset("page.page_type")? as usize, value as u8),
            (Err(_), Err(_)) => {
                let what = "the kernel marks pages of slabs neither by a flag (until Linux 6.9) nor by a type of its own (since 6.12)";
                return Err(SlabError::Unsupported(what.to_owned()));
            }
        };
        let end = kernel.image_u64(memory, kernel.symbol("max_pfn")?)?;
        if end > FRAMES_LIMIT {
            let what = format!("the guest has {end} pages of memory; slabs are looked for in {FRAMES_LIMIT} at most");
            return Err(SlabError::Unsupported(what));
        }
        let (size, owner) = (kernel.size("page")?, kernel.offset("slab.slab_cache")? as usize);
        if !(32..=256).contains(&size) {
            return Err(
                GuestError::Damaged { what: "profile", detail: format!("a `struct page` of {size} bytes") }.into()
            );
        }
        Ok(Pages { base, size, end, mark, owner })
    }

    /// Address of a page's entry.
    pub(super) fn entry(&self, frame: u64) -> Va {
        Va(self.base.wrapping_add(frame.wrapping_mul(self.size)))
    }

    /// Page frame number of an entry, if it is one.
    pub(super) fn frame(&self, entry: u64) -> Option<u64> {
        let distance = entry.wrapping_sub(self.base);
        Some(distance / self.size).filter(|frame| distance.is_multiple_of(self.size) && *frame < self.end)
    }

    /// Whether an entry is that of a slab of a cache.
    pub(super) fn is_slab(&self, entry: &[u8], cache: Va) -> bool {
        let marked = match self.mark {
            Mark::Flag(at, mask) => word(entry, at) & mask != 0,
            Mark::Type(at, value) => entry.get(at.saturating_add(3)) == Some(&value),
        };
        marked && word(entry, self.owner) == cache.0
    }
}

/// A word of an entry.
pub(super) fn word(entry: &[u8], at: usize) -> u64 {
    let bytes = entry.get(at..).and_then(<[u8]>::first_chunk::<8>);
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Refuses a guest whose pages do not tell of slabs in a way that is known, or that has too many.
///
/// # Errors
/// [`SlabError`].
pub fn are_understood(memory: &dyn ReadMemory, kernel: &Kernel) -> Result<(), SlabError> {
    Pages::of(memory, kernel).map(drop)
}

/// Page frame numbers of all slabs of a cache. On a running guest some may be gone already, and others have come.
///
/// # Errors
/// [`SlabError`].
pub fn find(memory: &dyn ReadMemory, kernel: &Kernel, cache: &Cache) -> Result<Vec<u64>, SlabError> {
    let pages = Pages::of(memory, kernel)?;
    let tables = Snapshot::of(memory);
    let (mut found, mut buffer) = (Vec::new(), Vec::new());
    let mut frame = 0;
    while frame < pages.end {
        if found.len() as u64 > OBJECTS_LIMIT {
            let what = format!(
                "more than {OBJECTS_LIMIT} pages of the guest say that they are of slab cache `{}`",
                cache.name
            );
            return Err(SlabError::Unsupported(what));
        }
        let at = pages.entry(frame);
        let step = paging::walk(&tables, kernel.root(), at)?;
        let whole = (step.rest / pages.size).min(pages.end - frame);
        match step.pa {
            // The entry goes on in another page of the array.
            Some(_) if whole == 0 => {
                let mut entry = vec![0; pages.size as usize];
                match kernel.read(&tables, at, &mut entry, "the page array") {
                    Ok(()) if pages.is_slab(&entry, cache.at) => found.push(frame),
                    Ok(()) | Err(GuestError::NotMapped { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                frame += 1;
            }
            Some(pa) => {
                let count = whole.min(PIECE / pages.size);
                buffer.resize((count * pages.size) as usize, 0);
                memory.read(Pa(pa.0), &mut buffer)?;
                let entries = (frame..).zip(buffer.chunks_exact(pages.size as usize));
                found.extend(entries.filter(|(_, entry)| pages.is_slab(entry, cache.at)).map(|(frame, _)| frame));
                frame += count;
            }
            None => frame += step.rest.div_ceil(pages.size).max(1),
        }
    }
    Ok(found)
}
