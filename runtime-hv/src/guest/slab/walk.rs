//! A census of the objects of a slab cache, in a guest that stands.
//!
//! Comes in: a cache, and the page frames of its slabs. Decided: which objects are on a list of free ones: that of their slab, or that
//! of a processor; whether these lists hold together, and whether the slabs are all that the guest counts. Goes out: [`Walk`].
//!
//! A processor may stand in the middle of the allocator. What it has taken off a list and not put elsewhere yet is on none, so
//! it counts as live: a few objects may be live that nobody has, but none is left out that somebody has.

use super::pages::{Pages, word};
use super::{Cache, Census, Counts, Slab, SlabError, Walk};
use crate::engine::{Pa, ReadMemory, Va};
use crate::guest::paging::PAGE;
use crate::guest::snapshot::Snapshot;
use crate::guest::{GuestError, Kernel, tasks};
use std::collections::{BTreeMap, BTreeSet};

/// More objects of one cache are not looked at.
pub const OBJECTS_LIMIT: u64 = 1 << 20;
/// Objects of slabs that are being made or given back, which a guest may have besides those that it counts.
const LOOSE_LIMIT: u64 = 1 << 17;

/// Why a walk ended.
enum Stop {
    Walk(Walk),
    Error(SlabError),
}

impl<E: Into<SlabError>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Error(error.into())
    }
}

fn unclear(what: String) -> Stop {
    Stop::Walk(Walk::Unclear(what))
}

fn damaged(what: String) -> Stop {
    Stop::Walk(Walk::Damaged(what))
}

/// Walks a cache whose slabs begin at `frames`. With `all` they were found in the guest as it stands now; else they may be from
/// before, and slabs that have come since are missed, which the counts tell.
///
/// # Errors
/// [`SlabError`]; [`SlabError::Unsupported`] beyond [`OBJECTS_LIMIT`]. Contents of the guest that do not fit together are no error but
/// [`Walk::Damaged`] or [`Walk::Unclear`].
pub fn walk(
    memory: &dyn ReadMemory,
    kernel: &Kernel,
    cache: &Cache,
    frames: &[u64],
    all: bool,
) -> Result<Walk, SlabError> {
    let memory = Snapshot::of(memory);
    let pages = Pages::of(&memory, kernel)?;
    let direct_map = kernel.direct_map(&memory)?;
    let walker = Walker { memory: &memory, kernel, cache, pages, direct_map };
    match walker.census(frames, all) {
        Ok(census) => Ok(Walk::Complete(census)),
        Err(Stop::Walk(walk)) => Ok(walk),
        // A list may lead anywhere.
        Err(Stop::Error(SlabError::Guest(error @ (GuestError::NotMapped { .. } | GuestError::Damaged { .. })))) => {
            Ok(Walk::Unclear(error.to_string()))
        }
        Err(Stop::Error(error)) => Err(error),
    }
}

struct Walker<'a> {
    memory: &'a Snapshot<'a>,
    kernel: &'a Kernel,
    cache: &'a Cache,
    pages: Pages,
    direct_map: u64,
}

impl Walker<'_> {
    fn census(&self, frames: &[u64], all: bool) -> Result<Census, Stop> {
        let counts = self.cache.counts(self.memory, self.kernel)?;
        if counts.objects > OBJECTS_LIMIT {
            let (name, count) = (&self.cache.name, counts.objects);
            let what = format!("slab cache `{name}` has {count} objects; at most {OBJECTS_LIMIT} are looked at");
            return Err(Stop::Error(SlabError::Unsupported(what)));
        }
        let (mut slabs, mut objects, mut end) = (BTreeMap::new(), 0, 0);
        for &frame in frames {
            let Some((slab, first)) = self.slab(frame)? else { continue };
            objects += u64::from(slab.count());
            if objects > counts.objects + LOOSE_LIMIT || frame < end {
                let name = &self.cache.name;
                return Err(damaged(format!("slabs of `{name}` overlap, or are more than the guest counts by far")));
            }
            end = frame.saturating_add(slab.frames());
            slabs.insert(frame, (slab, first));
        }
        let limit = counts.slabs.saturating_add(frames.len() as u64);
        let partial = self.partial(limit)?;
        let (processors, listed) = self.processors(limit)?;
        let listed: BTreeSet<u64> = listed.union(&partial).copied().collect();
        let mut found = Vec::new();
        for (frame, (mut slab, first)) in slabs {
            slab.partial = partial.contains(&frame);
            // It was made a moment ago and may not be counted yet; one that was found before may be missed in its place.
            if !all && slab.frozen && first == 0 && !listed.contains(&frame) {
                return Err(unclear(format!("a slab of `{}` is on its way to a processor", self.cache.name)));
            }
            slab.counted = !slab.is_loose(&listed);
            if !slab.counted {
                // Its list may be in the making.
                slab.lists.fill(1);
                found.push(slab);
                continue;
            }
            let free = self.follow(&mut slab, first, 1)?;
            if free != slab.count() - slab.taken {
                let (count, taken) = (slab.count(), slab.taken);
                return Err(unclear(format!(
                    "a slab of `{}` has {free} free objects on its list, and {taken} of {count} taken",
                    self.cache.name
                )));
            }
            found.push(slab);
        }
        for (list, first) in (2..).zip(processors) {
            let before = found.partition_point(|slab| slab.va.0 <= first);
            let slab = before.checked_sub(1).and_then(|index| found.get_mut(index));
            match slab.filter(|slab| slab.index(first).is_some()) {
                Some(slab) => self.follow(slab, first, list)?,
                None => return Err(unclear(format!("a processor has a slab of `{}` that is new", self.cache.name))),
            };
        }
        let census = Census { slabs: found, counts };
        self.is_whole(&census, all)?;
        Ok(census)
    }

    /// Reads a slab, and the address of its first free object; `None` if the page is none of the cache's any more.
    fn slab(&self, frame: u64) -> Result<Option<(Slab, u64)>, Stop> {
        let mut entry = vec![0; self.pages.size as usize];
        self.kernel.read(self.memory, self.pages.entry(frame), &mut entry, "the page array")?;
        if !self.pages.is_slab(&entry, self.cache.at) {
            return Ok(None);
        }
        let field = |name: &str| {
            let at = self.kernel.constant(&format!("slab.{name}.bit"))?;
            let width = self.kernel.constant(&format!("slab.{name}.bits"))?.min(32);
            let word = word(&entry, (at / 64 * 8) as usize);
            Ok::<_, GuestError>((word >> (at % 64) & ((1 << width) - 1)) as u32)
        };
        let (objects, taken) = (field("objects")?, field("inuse")?);
        if !self.cache.shapes.iter().any(|&(_, known)| known == objects) || taken > objects {
            let name = &self.cache.name;
            return Err(unclear(format!("a slab of `{name}` says that {taken} of its {objects} objects are taken")));
        }
        let pa = frame.saturating_mul(PAGE as u64).saturating_add(self.cache.lead.into());
        let slab = Slab {
            frame,
            va: Va(self.direct_map.wrapping_add(pa)),
            pa: Pa(pa),
            taken,
            counted: true,
            partial: false,
            frozen: field("frozen")? != 0,
            stride: self.cache.stride.into(),
            lists: vec![0; objects as usize],
        };
        Ok(Some((slab, word(&entry, self.kernel.offset("slab.freelist")? as usize))))
    }

    /// Follows a list of free objects of one slab, and says how many there are.
    fn follow(&self, slab: &mut Slab, first: u64, list: u32) -> Result<u32, Stop> {
        let (mut at, mut free) = (first, 0);
        while at != 0 {
            let name = &self.cache.name;
            let Some(index) = slab.index(at) else {
                return Err(damaged(format!(
                    "a list of free objects of `{name}` leads to {at:#x}, which is no object of its slab"
                )));
            };
            match slab.lists.get_mut(index) {
                Some(known) if *known == 0 => *known = list,
                Some(known) if *known == list => {
                    return Err(damaged(format!("a list of free objects of `{name}` comes back to {at:#x}")));
                }
                _ => return Err(unclear(format!("the object of `{name}` at {at:#x} is on two lists of free ones"))),
            }
            free += 1;
            let place = at.wrapping_add(self.cache.free_pointer.into());
            let mut bytes = [0; 8];
            self.memory.read(Pa(place.wrapping_sub(self.direct_map)), &mut bytes)?;
            let stored = u64::from_le_bytes(bytes);
            // mm/slub.c, freelist_ptr (since Linux 6.6 freelist_ptr_decode).
            at = self.cache.random.map_or(stored, |random| stored ^ random ^ place.swap_bytes());
        }
        Ok(free)
    }

    /// Page frames of the slabs on the lists of nodes.
    fn partial(&self, limit: u64) -> Result<BTreeSet<u64>, Stop> {
        let (list, link) = (self.kernel.offset("kmem_cache_node.partial")?, self.kernel.offset("slab.slab_list")?);
        let mut found = BTreeSet::new();
        for node in self.cache.nodes(self.memory, self.kernel)? {
            let head = node.wrapping_add(list);
            let mut at = self.word(head)?;
            while at != head {
                self.note(&mut found, at.wrapping_sub(link), limit)?;
                at = self.word(at)?;
            }
        }
        Ok(found)
    }

    /// Lists of free objects that processors have, and page frames of the slabs that they have set aside.
    fn processors(&self, limit: u64) -> Result<(Vec<u64>, BTreeSet<u64>), Stop> {
        let area = self.word(self.cache.at.0.wrapping_add(self.kernel.offset("kmem_cache.cpu_slab")?))?;
        let (mut free, mut listed) = (Vec::new(), BTreeSet::new());
        for processor in tasks::per_cpu(self.memory, self.kernel)? {
            let own = processor.base.wrapping_add(area);
            let member = |name: &str| Ok::<_, Stop>(self.word(own.wrapping_add(self.kernel.offset(name)?))?);
            free.extend(Some(member("kmem_cache_cpu.freelist")?).filter(|&first| first != 0));
            let slab = member("kmem_cache_cpu.slab")?;
            if slab != 0 {
                self.note(&mut listed, slab, u64::MAX)?;
            }
            // Without CONFIG_SLUB_CPU_PARTIAL there is no such list.
            let mut at = if self.kernel.offset("kmem_cache_cpu.partial").is_ok() {
                member("kmem_cache_cpu.partial")?
            } else {
                0
            };
            let mut own = BTreeSet::new();
            while at != 0 {
                self.note(&mut own, at, limit)?;
                at = self.word(at.wrapping_add(self.kernel.offset("slab.next")?))?;
            }
            listed.extend(own);
        }
        Ok((free, listed))
    }

    /// Notes a slab that a list leads to.
    fn note(&self, known: &mut BTreeSet<u64>, slab: u64, limit: u64) -> Result<(), Stop> {
        let name = &self.cache.name;
        match self.pages.frame(slab) {
            Some(frame) if known.len() as u64 <= limit && known.insert(frame) => Ok(()),
            Some(_) => Err(unclear(format!("a list of slabs of `{name}` does not end"))),
            None => Err(unclear(format!("a list of slabs of `{name}` leads to {slab:#x}, which is none"))),
        }
    }

    /// Whether these are all slabs that the guest counts. A loose one, which is being made or given back, may be counted or not; slabs
    /// that were found before may have been replaced by it.
    fn is_whole(&self, census: &Census, all: bool) -> Result<(), Stop> {
        let (mut sure, mut loose) = (Counts::default(), Counts::default());
        for slab in &census.slabs {
            let sum = if slab.counted { &mut sure } else { &mut loose };
            sum.slabs += 1;
            sum.objects += u64::from(slab.count());
        }
        let Counts { slabs, objects } = census.counts;
        let fits = |counted: u64, sure: u64, loose: u64| (sure..=sure + if all { loose } else { 0 }).contains(&counted);
        if fits(slabs, sure.slabs, loose.slabs) && fits(objects, sure.objects, loose.objects) {
            return Ok(());
        }
        Err(unclear(format!(
            "the guest counts {slabs} slabs of `{}` with {objects} objects; found were {} with {}, and {} more on no list",
            self.cache.name, sure.slabs, sure.objects, loose.slabs
        )))
    }

    fn word(&self, at: u64) -> Result<u64, GuestError> {
        self.kernel.read_u64(self.memory, Va(at), "a list of slabs")
    }
}
