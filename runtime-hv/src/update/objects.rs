//! Objects on the heap: all that exist at the switch get a value for what is new in them.
//!
//! Comes in: the types that a bundle adds members to, and a guest. Decided, before anything is prepared: whether their cache is the
//! one that the bundle means, and keeps its objects so that bytes can be added to them ([`locate`]). Decided, while the guest stands:
//! where all objects are, proved complete by what the guest counts ([`Objects::census`]). Goes out: writes.
//!
//! Only live objects are written to: a free one is initialised by whoever takes it. Where free objects keep what they hold (a
//! constructor, `SLAB_TYPESAFE_BY_RCU`), they are written to as well. The pointer to the next free object is never touched, also in an
//! object that counts as live: a processor may stand where it has set the pointer and not yet put the object on its list.
//!
//! These writes are not in the journal. Before the switch nobody reads what is written, and two bundles never write to the same bytes:
//! where a tool dies in between, they stay, and mean nothing. While it lives, it puts the old bytes back.

use super::UpdateError;
use super::parts::bundle_of;
use crate::engine::ReadMemory;
use crate::guest::Kernel;
use crate::guest::arena::Write;
use crate::guest::slab::{Cache, Census, SlabError, Walk, pages, walk};
use crate::guest::snapshot::Snapshot;
use crate::journal::{Document, Record};
use crate::protocol::{ObjectsCount, ObjectsInfo};
use lpk_format::{Bundle, ObjectPatch};

/// The array of pages is read once more while the guest stands if it tells of no more than this: 4 GiB of memory, some 64 MiB of
/// array. In a larger guest slabs that have come meanwhile are looked for while it runs.
const FRAMES_AGAIN: u64 = 1 << 20;
const TOO_LARGE: &str = "its slabs must be looked for while the guest stands, because free objects keep what they hold (a constructor, or \
                         SLAB_TYPESAFE_BY_RCU): that is done in guests with at most 4 GiB of memory";
/// Size of the pointer to the next free object.
const POINTER: u32 = 8;

/// The objects of a type, located.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objects {
    patch: ObjectPatch,
    /// Their cache, as it was when it was found right.
    cache: Cache,
}

/// What becomes of the objects of a type in the moment of the switch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filled {
    /// Bytes that change.
    pub writes: Vec<Write>,
    /// How many objects there are.
    pub count: ObjectsCount,
}

/// Finds the caches of a bundle's objects right, or says why not.
///
/// # Errors
/// [`UpdateError::Objects`], [`UpdateError::ObjectsTaken`], and of the engine.
pub fn locate(
    memory: &dyn ReadMemory,
    kernel: &Kernel,
    document: &Document,
    bundle: &Bundle,
    id: &str,
) -> Result<Vec<Objects>, UpdateError> {
    let memory = Snapshot::of(memory);
    let one = |patch: &ObjectPatch| {
        let refused = |reason: String| UpdateError::Objects {
            type_name: patch.type_name.clone(),
            cache: patch.cache.clone(),
            reason,
        };
        let cache = match Cache::behind(&memory, kernel, patch.cache_address) {
            Err(SlabError::Unsupported(reason)) => return Err(refused(reason)),
            other => other?,
        };
        objection(patch, &cache).map_or(Ok(()), |reason| Err(refused(reason)))?;
        match pages::are_understood(&memory, kernel) {
            Err(SlabError::Unsupported(reason)) => return Err(refused(reason)),
            other => other?,
        }
        let objects = Objects { patch: patch.clone(), cache };
        let others = document.bundles.iter().filter(|record| record.info.state.is_in_use());
        match others.filter(|record| record.info.id != bundle_of(id)).find(|record| objects.is_taken(record)) {
            Some(Record { info, .. }) => Err(UpdateError::ObjectsTaken {
                type_name: patch.type_name.clone(),
                by: info.name.clone(),
                id: info.id.clone(),
            }),
            None => Ok(objects),
        }
    };
    bundle.payload.objects.iter().map(one).collect()
}

/// Why bytes cannot be added to the objects of a cache.
fn objection(patch: &ObjectPatch, cache: &Cache) -> Option<String> {
    let name = &cache.name;
    if cache.object_size != patch.old_size {
        return Some(format!(
            "slab cache `{name}` has objects of {} bytes; expected {}: the variable is that of another cache",
            cache.object_size, patch.old_size
        ));
    }
    if cache.refcount != 1 {
        return Some(format!(
            "the guest has merged it with others to one (`{name}`, {} users), so that objects of other types are among them; start the guest with slab_nomerge",
            cache.refcount
        ));
    }
    if let Some(what) = cache.debugging {
        return Some(format!(
            "the guest watches over objects of `{name}` ({what}), and would take what is added for damage; start it without slub_debug"
        ));
    }
    if patch.new_size > cache.stride {
        return Some(format!(
            "objects of `{name}` lie {} bytes apart, and need {}: there is no room between them",
            cache.stride, patch.new_size
        ));
    }
    let pointer = u64::from(cache.free_pointer)..u64::from(cache.free_pointer) + u64::from(POINTER);
    let mut added = patch.added.iter();
    let clash = added.find(|added| u64::from(added.offset) < pointer.end && pointer.start < added.end())?;
    Some(format!(
        "bytes {} to {} are added, and a free object of `{name}` has the pointer to the next one at bytes {} to {}; place the new member elsewhere",
        clash.offset,
        clash.end().saturating_sub(1),
        pointer.start,
        pointer.end - 1
    ))
}

impl Objects {
    /// For the description of the bundle.
    #[must_use]
    pub fn info(patch: &ObjectPatch, located: Option<&Objects>) -> ObjectsInfo {
        ObjectsInfo {
            type_name: patch.type_name.clone(),
            variable: patch.cache.clone(),
            cache: located.map(|objects| objects.cache.name.clone()),
            cache_address: located.map(|objects| format!("{:#x}", objects.cache.at.0)),
            old_size: patch.old_size.into(),
            new_size: patch.new_size.into(),
            added: patch.added.iter().map(|added| [added.offset.into(), added.bytes.len() as u64]).collect(),
            count: None,
        }
    }

    /// Type, for people.
    #[must_use]
    pub fn type_name(&self) -> &str {
        &self.patch.type_name
    }

    /// Whether another bundle has added some of the same bytes.
    fn is_taken(&self, record: &Record) -> bool {
        let at = format!("{:#x}", self.cache.at.0);
        let theirs = record.info.modules.iter().flat_map(|module| &module.objects).chain(&record.info.objects);
        let same = theirs.filter(|theirs| theirs.cache_address.as_ref() == Some(&at));
        same.flat_map(|theirs| &theirs.added).any(|&[start, length]| {
            let ours = |added: &lpk_format::AddedBytes| {
                u64::from(added.offset) < start.saturating_add(length) && start < added.end()
            };
            self.patch.added.iter().any(ours)
        })
    }

    /// Page frames of the cache's slabs, in the running guest.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub fn find(&self, memory: &dyn ReadMemory, kernel: &Kernel) -> Result<Vec<u64>, UpdateError> {
        Ok(pages::find(memory, kernel, &self.cache)?)
    }

    /// All objects in the stopped guest, of slabs that were found before it was stopped, and if they have changed since, of those found
    /// now; or why this is not the moment.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub fn census(
        &self,
        memory: &dyn ReadMemory,
        kernel: &Kernel,
        frames: &[u64],
    ) -> Result<Result<Census, String>, UpdateError> {
        if !Cache::behind(memory, kernel, self.patch.cache_address).is_ok_and(|now| now == self.cache) {
            return Ok(Err(format!("the guest is changing the slab cache `{}`", self.cache.name)));
        }
        let walked = self.walk(memory, kernel, frames).map_err(|error| match error {
            SlabError::Unsupported(reason) => self.refused(reason),
            SlabError::Guest(error) => error.into(),
        })?;
        Ok(match walked {
            // Its constructor may have run on some of its objects and not on others.
            Walk::Complete(census)
                if self.cache.constructor.is_some() && !census.slabs.iter().all(|slab| slab.counted) =>
            {
                Err(format!("a slab of `{}` is being made or given back", self.cache.name))
            }
            Walk::Complete(census) => Ok(census),
            Walk::Unclear(why) | Walk::Damaged(why) => Err(why),
        })
    }

    /// What was found before is enough if the counts say so; but objects of a slab that is being made, which is not counted yet, may
    /// have been initialised already where free objects keep what they hold.
    fn walk(&self, memory: &dyn ReadMemory, kernel: &Kernel, frames: &[u64]) -> Result<Walk, SlabError> {
        let again = || walk::walk(memory, kernel, &self.cache, &pages::find(memory, kernel, &self.cache)?, true);
        let is_small = kernel.image_u64(memory, kernel.symbol("max_pfn")?)? <= FRAMES_AGAIN;
        if self.cache.keeps_free_objects() {
            return if is_small { again() } else { Err(SlabError::Unsupported(TOO_LARGE.to_owned())) };
        }
        match walk::walk(memory, kernel, &self.cache, frames, false)? {
            Walk::Unclear(_) if is_small => again(),
            walked => Ok(walked),
        }
    }

    fn refused(&self, reason: String) -> UpdateError {
        UpdateError::Objects { type_name: self.patch.type_name.clone(), cache: self.patch.cache.clone(), reason }
    }

    /// What is written to the objects.
    ///
    /// # Errors
    /// Of the engine.
    pub fn fill(&self, memory: &dyn ReadMemory, census: &Census) -> Result<Filled, UpdateError> {
        let memory = Snapshot::of(memory);
        let all = self.cache.keeps_free_objects();
        let mut filled = Filled::default();
        for object in census.objects().filter(|object| all || object.live) {
            filled.count.live += u64::from(object.live);
            filled.count.free += u64::from(!object.live);
            for added in &self.patch.added {
                let pa = crate::engine::Pa(object.pa.0.saturating_add(added.offset.into()));
                let mut old = vec![0; added.bytes.len()];
                memory.read(pa, &mut old)?;
                if old != added.bytes {
                    filled.writes.push(Write { pa: pa.0, old, new: added.bytes.clone() });
                }
            }
        }
        filled.count.of = census.counts.objects;
        filled.count.slabs = census.counts.slabs;
        Ok(filled)
    }
}
