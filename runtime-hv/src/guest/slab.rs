//! Objects of a slab cache, found from outside: `struct kmem_cache` of SLUB (`mm/slub.c`).
//!
//! Comes in: a located kernel and the address of a cache. Decided: nothing but what the guest's memory says, held against what
//! the guest counts itself. Goes out: the cache's description ([`Cache`]), the pages of its slabs ([`pages::find`]), and a
//! [`Census`] of its objects ([`walk::walk`]): where each is, and whether it is on a list of free ones.
//!
//! The kernel lists only slabs that have a free object. All of them are found by their `struct page`, which says what a page is used
//! for. A running guest gives slabs that may be gone a moment later; a census is for a guest that stands.
//!
//! Read are Linux 6.1 to 6.9 and 6.12 to 6.17, as far as the profile names what is needed: not the allocators SLAB and SLOB (until 6.7
//! and 6.3), not `CONFIG_SLUB_TINY`, which have no lists of free objects for each processor, nor the sheaves of 6.18, which hide
//! free objects elsewhere.

pub mod cache;
pub mod census;
pub mod pages;
#[cfg(test)]
pub(crate) mod tests;
pub mod walk;

pub use cache::{Cache, Counts};
pub use census::{Census, Object, Slab, Walk};

use super::{GuestError, Kernel};
use crate::engine::ReadMemory;

/// Why objects of a cache cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum SlabError {
    /// The guest could not be read.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The kernel keeps its objects in a way that is not read here.
    #[error("{0}")]
    Unsupported(String),
}

impl From<crate::engine::EngineError> for SlabError {
    fn from(error: crate::engine::EngineError) -> SlabError {
        SlabError::Guest(error.into())
    }
}

/// Refuses a kernel whose slab allocator is not understood.
///
/// # Errors
/// [`SlabError::Unsupported`] with the reason.
pub fn is_understood(memory: &dyn ReadMemory, kernel: &Kernel) -> Result<(), SlabError> {
    let has = |name: &str| kernel.offset(name).is_ok();
    let reason = if has("kmem_cache.cpu_sheaves") {
        "its slab caches have sheaves (Linux 6.18): free objects are kept in more places than are known here"
    } else if !has("kmem_cache.cpu_slab") || !has("slab.slab_cache") {
        "its slab allocator is not SLUB with lists for each processor (CONFIG_SLUB without CONFIG_SLUB_TINY), or the profile of the bundle is older: build the bundle again to tell"
    } else if !has("kmem_cache_node.nr_slabs") {
        "it does not count its slabs (CONFIG_SLUB_DEBUG), so that nothing tells whether all were found"
    } else if kernel.symbol("vmemmap_base").is_err() && kernel.constant("VMEMMAP_START").is_err() {
        "it has no array of all pages (CONFIG_SPARSEMEM_VMEMMAP), by which slabs are found"
    } else if pool_of_kfence(memory, kernel)? != 0 {
        "KFENCE takes objects of all caches now and then, which are in no slab: start it with kfence.sample_interval=0"
    } else {
        return Ok(());
    };
    Err(SlabError::Unsupported(format!("objects of the guest's slab caches cannot be told: {reason}")))
}

/// Where KFENCE keeps its objects (`mm/kfence/core.c`, `__kfence_pool`); 0 if the kernel has none, or it was not started.
fn pool_of_kfence(memory: &dyn ReadMemory, kernel: &Kernel) -> Result<u64, GuestError> {
    kernel.symbol("__kfence_pool").map_or(Ok(0), |pool| kernel.image_u64(memory, pool))
}
