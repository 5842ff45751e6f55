//! Description of a slab cache.
//!
//! Comes in: the address of a `struct kmem_cache`, or of a variable that points to it. Decided: whether its numbers fit together.
//! Goes out: [`Cache`], and what the guest counts of it ([`Counts`]).

use super::{SlabError, is_understood};
use crate::engine::{ReadMemory, Va};
use crate::guest::paging::PAGE;
use crate::guest::{GuestError, Kernel};

/// Longest name that is shown.
const NAME: usize = 64;
/// Largest order of a slab, far above `slub_max_order` (`mm/slub.c`; `MAX_ORDER` is at most 11).
const ORDER_LIMIT: u32 = 10;
/// `MAX_NUMNODES` with the largest CONFIG_NODES_SHIFT of x86.
const NODES_LIMIT: u64 = 1024;
/// `OO_SHIFT` of `mm/slub.c`: order above, number of objects below.
const ORDER_SHIFT: u32 = 16;

/// Flags of a cache: the name in `enum _slab_flag_bits`, which has the bit since Linux 6.9, and the value before
/// (`include/linux/slab.h`).
const RED_ZONE: (&str, u32) = ("_SLAB_RED_ZONE", 0x400);
const TYPESAFE_BY_RCU: (&str, u32) = ("_SLAB_TYPESAFE_BY_RCU", 0x8_0000);
const DEBUGGING: [((&str, u32), &str); 6] = [
    (RED_ZONE, "red zones"),
    (("_SLAB_POISON", 0x800), "poison"),
    (("_SLAB_STORE_USER", 0x1_0000), "records of users"),
    (("_SLAB_CONSISTENCY_CHECKS", 0x100), "consistency checks"),
    (("_SLAB_TRACE", 0x20_0000), "traces"),
    (("_SLAB_KASAN", 0x800_0000), "KASAN"),
];

/// A slab cache. Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Its `struct kmem_cache`.
    pub at: Va,
    /// Name, as `/proc/slabinfo` shows it.
    pub name: String,
    /// Size of an object as its users know it.
    pub object_size: u32,
    /// Distance between two objects.
    pub stride: u32,
    /// Where a free object holds the pointer to the next one.
    pub free_pointer: u32,
    /// Flags, as this kernel numbers them.
    pub flags: u32,
    /// How many caches it is: more than one if the kernel has merged several.
    pub refcount: u32,
    /// Runs on each object when its slab is made.
    pub constructor: Option<Va>,
    /// Objects may be looked at after they were freed (`SLAB_TYPESAFE_BY_RCU`).
    pub typesafe: bool,
    /// What watches over its objects: `None` in ordinary operation.
    pub debugging: Option<&'static str>,
    /// Bytes before the first object of a slab.
    pub(super) lead: u32,
    /// Order and number of objects of its slabs: usually, and when memory is short.
    pub(super) shapes: [(u32, u32); 2],
    /// Free pointers are mixed with this, if they are mixed (CONFIG_SLAB_FREELIST_HARDENED).
    pub(super) random: Option<u64>,
}

/// What the guest counts of a cache, over all nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Slabs: `num_slabs` of `/proc/slabinfo`.
    pub slabs: u64,
    /// Objects in them, live or not: `num_objs`.
    pub objects: u64,
}

impl Cache {
    /// The cache that a variable points to, by the variable's link address.
    ///
    /// # Errors
    /// [`SlabError`].
    pub fn behind(memory: &dyn ReadMemory, kernel: &Kernel, variable: u64) -> Result<Cache, SlabError> {
        let mut word = [0; 8];
        kernel.read_image(memory, variable, &mut word)?;
        match u64::from_le_bytes(word) {
            0 => Err(SlabError::Unsupported(
                "the variable does not point to a slab cache: the guest has not made it".into(),
            )),
            at => Cache::read(memory, kernel, Va(at)),
        }
    }

    /// The cache at an address.
    ///
    /// # Errors
    /// [`SlabError`].
    pub fn read(memory: &dyn ReadMemory, kernel: &Kernel, at: Va) -> Result<Cache, SlabError> {
        is_understood(memory, kernel)?;
        let place = |member: &str| Ok::<_, GuestError>(Va(at.0.wrapping_add(kernel.offset(member)?)));
        let word = |member: &str| kernel.read_u64(memory, place(member)?, "a slab cache");
        let half = |member: &str| {
            let mut bytes = [0; 4];
            kernel.read(memory, place(member)?, &mut bytes, "a slab cache")?;
            Ok::<_, GuestError>(u32::from_le_bytes(bytes))
        };
        let flags = half("kmem_cache.flags")?;
        let is = |(name, before): (&str, u32)| flags & mask(kernel, name, before) != 0;
        let shape = |member: &str| half(member).map(|both| (both >> ORDER_SHIFT, both & ((1 << ORDER_SHIFT) - 1)));
        let lead = if is(RED_ZONE) { half("kmem_cache.red_left_pad")? } else { 0 };
        let cache = Cache {
            at,
            name: name(memory, kernel, Va(word("kmem_cache.name")?)),
            object_size: half("kmem_cache.object_size")?,
            stride: half("kmem_cache.size")?,
            free_pointer: half("kmem_cache.offset")?,
            flags,
            refcount: half("kmem_cache.refcount")?,
            constructor: Some(Va(word("kmem_cache.ctor")?)).filter(|at| at.0 != 0),
            typesafe: is(TYPESAFE_BY_RCU),
            debugging: DEBUGGING.iter().find(|(flag, _)| is(*flag)).map(|(_, what)| *what),
            lead,
            shapes: [shape("kmem_cache.oo")?, shape("kmem_cache.min")?],
            random: kernel.offset("kmem_cache.random").ok().map(|_| word("kmem_cache.random")).transpose()?,
        };
        cache.fits_together()?;
        Ok(cache)
    }

    /// Whether free objects keep what they hold: then a new one is not initialised when it is handed out.
    #[must_use]
    pub fn keeps_free_objects(&self) -> bool {
        self.typesafe || self.constructor.is_some()
    }

    /// What the guest counts now (`mm/slub.c`, `inc_slabs_node`).
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn counts(&self, memory: &dyn ReadMemory, kernel: &Kernel) -> Result<Counts, GuestError> {
        let mut counts = Counts::default();
        for node in self.nodes(memory, kernel)? {
            let word = |name: &str| {
                kernel.read_u64(memory, Va(node.wrapping_add(kernel.offset(name)?)), "a node of a slab cache")
            };
            counts.slabs = counts.slabs.wrapping_add(word("kmem_cache_node.nr_slabs")?);
            counts.objects = counts.objects.wrapping_add(word("kmem_cache_node.total_objects")?);
        }
        Ok(counts)
    }

    /// Addresses of its `struct kmem_cache_node`s: as many as there are nodes, at the end of the cache.
    pub(super) fn nodes(&self, memory: &dyn ReadMemory, kernel: &Kernel) -> Result<Vec<u64>, GuestError> {
        let count = match kernel.symbol("nr_node_ids") {
            Ok(variable) => (kernel.image_u64(memory, variable)? & 0xffff_ffff).clamp(1, NODES_LIMIT),
            Err(_) => 1, // a kernel without CONFIG_NUMA
        };
        let array = self.at.0.wrapping_add(kernel.offset("kmem_cache.node")?);
        let node = |index: u64| kernel.read_u64(memory, Va(array.wrapping_add(index * 8)), "a slab cache");
        let nodes = (0..count).map(node).collect::<Result<Vec<_>, _>>()?;
        Ok(nodes.into_iter().filter(|&node| node != 0).collect())
    }

    fn fits_together(&self) -> Result<(), GuestError> {
        let room = |&(order, objects): &(u32, u32)| {
            let bytes = u64::from(objects) * u64::from(self.stride) + u64::from(self.lead);
            order <= ORDER_LIMIT && objects != 0 && bytes <= (PAGE as u64) << order
        };
        let pointer_end = u64::from(self.free_pointer) + 8;
        if self.stride != 0
            && u64::from(self.object_size.max(8)) <= u64::from(self.stride)
            && pointer_end <= u64::from(self.stride)
            && self.shapes.iter().all(room)
        {
            return Ok(());
        }
        let Cache { object_size, stride, free_pointer, shapes, .. } = self;
        let detail = format!(
            "objects of {object_size} bytes every {stride} bytes, with the free pointer at {free_pointer}, in slabs of (order, objects) {shapes:?}"
        );
        Err(GuestError::Damaged { what: "slab cache", detail })
    }
}

/// Where the kernel has the bit of a flag.
fn mask(kernel: &Kernel, name: &str, before: u32) -> u32 {
    match kernel.constant(name) {
        Ok(bit) => 1_u32.checked_shl(u32::try_from(bit).unwrap_or(u32::MAX)).unwrap_or(0),
        // Bits have names since they were numbered anew; one that the kernel is built without has none.
        Err(_) if kernel.constant("_SLAB_POISON").is_ok() => 0,
        Err(_) => before,
    }
}

/// A name that is fit to be shown; empty when it cannot be read.
fn name(memory: &dyn ReadMemory, kernel: &Kernel, at: Va) -> String {
    let byte = |index: usize| {
        let mut byte = [0];
        kernel.read(memory, Va(at.0.wrapping_add(index as u64)), &mut byte, "the name of a slab cache").ok()?;
        Some(byte[0]).filter(|&byte| byte != 0)
    };
    let shown = |byte: u8| if byte.is_ascii_graphic() { char::from(byte) } else { '?' };
    (0..NAME).map_while(byte).map(shown).collect()
}
