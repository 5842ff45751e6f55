//! A guest in memory with one slab cache, and what is found of it.

use super::Cache;
use super::{Census, SlabError, Walk, pages, walk};
use crate::engine::mock::MockEngine;
use crate::engine::{Pa, Va};
use crate::guest::fake::{self, Image, live};
use crate::guest::{Kernel, identity};
use lpk_format::GuestProfile;

/// Where the guest has all memory.
const DIRECT_MAP: u64 = 0xffff_8800_0000_0000;
/// The array of pages, behind the image; it tells of 48 MiB.
const ARRAY: u64 = 0x200_0000;
const FRAMES: u64 = 0x3000;
/// Page frames of slabs.
pub(crate) const SLABS: [u64; 5] = [0x2800, 0x2804, 0x2810, 0x2811, 0x2ff8];
/// The cache, its node and its processor's part, in the image.
pub(crate) const CACHE: u64 = 0x8a00;
const NODE: u64 = 0x8b00;
const PROCESSOR: u64 = 0x800;
const NAME: u64 = 0x8b80;
pub(crate) const VARIABLE: u64 = 0x8b90;
/// Objects of 192 bytes, 21 in a page.
const STRIDE: u64 = 192;
pub(crate) const COUNT: u64 = 21;
const POINTER: u64 = 96;
const RANDOM: u64 = 0x1234_5678_9abc_def0;
/// `PG_slab` of Linux 6.1.
const FLAG: u64 = 1 << 9;
const FROZEN: u64 = 1 << 31;

/// The guest, while it is made.
pub(crate) struct Guest {
    image: Image,
    pub(crate) profile: GuestProfile,
    pub(crate) engine: MockEngine,
    hardened: bool,
}

impl Guest {
    fn new(mut image: Image, hardened: bool) -> Guest {
        let mut profile = fake::profile();
        for (name, at, value) in
            [("page_offset_base", 0x8900, DIRECT_MAP), ("max_pfn", 0x8908, FRAMES), ("nr_node_ids", 0x8910, 1)]
        {
            profile.symbols.insert(name.into(), fake::TEXT + at);
            image.word(at, value);
        }
        image.word(fake::variable("vmemmap_base"), DIRECT_MAP + ARRAY);
        let offsets = [
            ("kmem_cache.cpu_slab", 0),
            ("kmem_cache.flags", 8),
            ("kmem_cache.size", 24),
            ("kmem_cache.object_size", 28),
            ("kmem_cache.offset", 40),
            ("kmem_cache.oo", 52),
            ("kmem_cache.min", 56),
            ("kmem_cache.refcount", 64),
            ("kmem_cache.ctor", 72),
            ("kmem_cache.red_left_pad", 88),
            ("kmem_cache.name", 96),
            ("kmem_cache.node", 200),
            ("kmem_cache_cpu.freelist", 0),
            ("kmem_cache_cpu.slab", 16),
            ("kmem_cache_cpu.partial", 24),
            ("kmem_cache_node.partial", 16),
            ("kmem_cache_node.nr_slabs", 32),
            ("kmem_cache_node.total_objects", 40),
            ("slab.slab_list", 8),
            ("slab.next", 8),
            ("slab.slab_cache", 24),
            ("slab.freelist", 32),
        ];
        profile.offsets.extend(offsets.map(|(name, at)| (name.to_owned(), at)));
        if hardened {
            profile.offsets.insert("kmem_cache.random".into(), 104);
        }
        profile.sizes.insert("page".into(), 64);
        let fields = [("inuse", 320, 16), ("objects", 336, 15), ("frozen", 351, 1)];
        for (name, bit, bits) in fields {
            profile.constants.insert(format!("slab.{name}.bit"), bit);
            profile.constants.insert(format!("slab.{name}.bits"), bits);
        }
        profile.constants.insert("PG_slab".into(), 9);
        for (at, value) in [
            (0, PROCESSOR),
            (24, STRIDE | 190 << 32),
            (40, POINTER),
            (52, COUNT | COUNT << 32),
            (64, 1),
            (96, live(NAME)),
            (104, RANDOM),
            (200, live(NODE)),
        ] {
            image.word(CACHE + at, value);
        }
        image.put(NAME, b"things\0");
        image.word(VARIABLE, live(CACHE));
        image.word(NODE + 16, live(NODE) + 16);
        let mut array = vec![0; (FRAMES * 64) as usize];
        // Low memory is reserved.
        array.chunks_exact_mut(64).take(0xa0).for_each(|entry| entry[1] = 1 << 4);
        let mut engine = fake::engine(&image).with_memory(Pa(ARRAY), &array);
        for frame in SLABS {
            engine = engine.with_memory(Pa(frame << 12), &[0xcc; 4096]);
        }
        Guest { image, profile, engine, hardened }
    }

    fn put(&mut self, at: u64, value: u64) {
        self.engine.poke(Pa(at), &value.to_le_bytes());
    }

    /// A word of the image.
    pub(crate) fn set(&mut self, at: u64, value: u64) {
        self.image.word(at, value);
        self.put(fake::IMAGE + at, value);
    }

    /// The slab that is on no list is none of the cache any more.
    pub(crate) fn without_loose_slab(&mut self) {
        self.put(ARRAY + SLABS[4] * 64, 0);
    }

    /// Where an object is in physical memory.
    pub(crate) fn place(frame: u64, index: u64) -> u64 {
        (frame << 12) + index * STRIDE
    }

    fn object(frame: u64, index: u64) -> u64 {
        DIRECT_MAP + (frame << 12) + index * STRIDE
    }

    /// Links objects of a slab; gives the first.
    fn chain(&mut self, frame: u64, objects: &[u64]) -> u64 {
        let addresses: Vec<u64> = objects.iter().map(|&index| Guest::object(frame, index)).chain([0]).collect();
        for pair in addresses.windows(2) {
            let place = pair[0] + POINTER;
            let stored = if self.hardened { pair[1] ^ RANDOM ^ place.swap_bytes() } else { pair[1] };
            self.put(place - DIRECT_MAP, stored);
        }
        addresses[0]
    }

    /// A slab with these free objects on its list.
    fn slab(&mut self, frame: u64, free: &[u64], taken: u64, frozen: bool) {
        let first = self.chain(frame, free);
        let entry = ARRAY + frame * 64;
        for (at, value) in
            [(0, FLAG), (24, live(CACHE)), (32, first), (40, taken | COUNT << 16 | if frozen { FROZEN } else { 0 })]
        {
            self.put(entry + at, value);
        }
    }

    /// Puts slabs on the node's list.
    fn list(&mut self, frames: &[u64]) {
        let head = live(NODE) + 16;
        let links = frames.iter().map(|frame| DIRECT_MAP + ARRAY + frame * 64 + 8);
        let links: Vec<u64> = std::iter::once(head).chain(links).chain([head]).collect();
        self.set(NODE + 16, links[1]);
        for pair in links.windows(2).skip(1) {
            self.put(pair[0] - DIRECT_MAP, pair[1]);
        }
    }

    fn counts(&mut self, slabs: u64) {
        self.set(NODE + 32, slabs);
        self.set(NODE + 40, slabs * COUNT);
    }

    /// What the processor has: list, slab, slabs set aside.
    fn processor(&mut self, first: u64, slab: u64, aside: u64) {
        let entry = |frame: u64| if frame == 0 { 0 } else { DIRECT_MAP + ARRAY + frame * 64 };
        for (at, value) in [(0, first), (16, entry(slab)), (24, entry(aside))] {
            self.set(fake::PERCPU + PROCESSOR + at, value);
        }
    }

    fn kernel(&mut self) -> Kernel {
        identity::find(&mut self.engine, &fake::kernel_id(), &self.profile).expect("the kernel")
    }

    fn cache(&mut self) -> Result<Cache, SlabError> {
        let kernel = self.kernel();
        Cache::behind(&self.engine, &kernel, fake::TEXT + VARIABLE)
    }

    fn walk(&mut self) -> Walk {
        let (kernel, cache) = (self.kernel(), self.cache().expect("a cache"));
        let frames = pages::find(&self.engine, &kernel, &cache).expect("pages");
        walk::walk(&self.engine, &kernel, &cache, &frames, true).expect("walks")
    }

    fn census(&mut self) -> Census {
        match self.walk() {
            Walk::Complete(census) => census,
            other => panic!("{other:?}"),
        }
    }

    fn says(&mut self, what: &str) {
        match self.walk() {
            Walk::Damaged(said) => assert!(said.contains(what), "{said}"),
            other => panic!("{other:?}"),
        }
    }

    fn is_unclear(&mut self, what: &str) {
        match self.walk() {
            Walk::Unclear(said) => assert!(said.contains(what), "{said}"),
            other => panic!("{other:?}"),
        }
    }
}

/// Five slabs: full, on the node's list, the processor's, set aside by it, and one that is being given back.
pub(crate) fn guest_with(image: Image, hardened: bool) -> Guest {
    let mut guest = Guest::new(image, hardened);
    let every: Vec<u64> = (0..COUNT).collect();
    guest.slab(SLABS[0], &[], COUNT, false);
    guest.slab(SLABS[1], &[3, 1, 20], COUNT - 3, false);
    guest.slab(SLABS[2], &[7], COUNT - 1, true);
    guest.slab(SLABS[3], &[0, 2], COUNT - 2, true);
    guest.slab(SLABS[4], &every, 0, false);
    let first = guest.chain(SLABS[2], &[5, 0, 11]);
    guest.processor(first, SLABS[2], SLABS[3]);
    guest.list(&[SLABS[1]]);
    guest.counts(4);
    guest
}

fn guest(hardened: bool) -> Guest {
    guest_with(fake::image(&[0; 16]), hardened)
}

#[test]
fn objects_on_no_list_are_live() {
    for hardened in [false, true] {
        let mut guest = guest(hardened);
        let census = guest.census();
        assert_eq!(census.slabs.iter().map(|slab| slab.frame).collect::<Vec<_>>(), SLABS);
        assert_eq!(census.slabs.iter().map(|slab| slab.counted).collect::<Vec<_>>(), [true, true, true, true, false]);
        // 84 that count, without 3, 1 + 3 and 2 free ones; of these, those on the node's list are not active.
        assert_eq!((census.live(), census.active(), census.counts.objects), (75, 81, 84));
        let free: Vec<u64> = census.objects().filter(|object| !object.live).map(|object| object.va.0).collect();
        let expected = [(SLABS[1], [1, 3, 20].as_slice()), (SLABS[2], &[0, 5, 7, 11]), (SLABS[3], &[0, 2])];
        let expected = expected.iter().flat_map(|(frame, all)| all.iter().map(|&index| Guest::object(*frame, index)));
        let loose = (0..COUNT).map(|index| Guest::object(SLABS[4], index));
        assert_eq!(free, expected.chain(loose).collect::<Vec<_>>());
        let object = census.objects().nth(1).expect("an object");
        assert_eq!((object.va, object.pa), (Va(Guest::object(SLABS[0], 1)), Pa((SLABS[0] << 12) + STRIDE)));
    }
}

#[test]
fn the_cache_is_described() {
    let mut guest = guest(true);
    let cache = guest.cache().expect("a cache");
    assert_eq!((cache.at, cache.name.as_str()), (Va(live(CACHE)), "things"));
    assert_eq!((cache.object_size, cache.stride, cache.free_pointer, cache.refcount), (190, 192, 96, 1));
    assert!(!cache.keeps_free_objects() && cache.debugging.is_none());
    guest.set(CACHE + 8, 0x8_0000);
    assert!(guest.cache().expect("a cache").keeps_free_objects());
    guest.set(CACHE + 8, 0x800);
    assert_eq!(guest.cache().expect("a cache").debugging, Some("poison"));
    // Numbered anew, this bit is another flag's.
    guest.profile.constants.extend([("_SLAB_POISON".to_owned(), 2), ("_SLAB_TYPESAFE_BY_RCU".to_owned(), 9)]);
    assert_eq!(guest.cache().expect("a cache").debugging, None);
    guest.set(CACHE + 8, 0x204);
    let cache = guest.cache().expect("a cache");
    assert!(cache.typesafe && cache.debugging == Some("poison"));
    guest.set(CACHE + 8, 0);
    guest.set(CACHE + 52, (COUNT + 1) | (COUNT << 32));
    assert!(guest.cache().is_err_and(|error| error.to_string().contains("(0, 22)")));
    guest.set(VARIABLE, 0);
    assert!(guest.cache().is_err_and(|error| error.to_string().contains("has not made it")));
}

#[test]
fn slabs_by_page_type() {
    let mut guest = guest(true);
    guest.profile.constants.remove("PG_slab");
    guest.profile.constants.insert("PGTY_slab".into(), 0xf5);
    guest.profile.offsets.insert("page.page_type".into(), 48);
    guest.is_unclear("that is new");
    for frame in SLABS {
        guest.put(ARRAY + frame * 64 + 48, 0xf500_0000);
    }
    assert_eq!(guest.census().live(), 75);
}

#[test]
fn what_the_guest_counts_must_be_found() {
    let mut guest = guest(true);
    // One that is being given back may be counted still.
    guest.counts(5);
    assert_eq!(guest.census().live(), 75);
    guest.counts(6);
    guest.is_unclear("the guest counts 6 slabs of `things` with 126 objects; found were 4 with 84, and 1 more");
    guest.counts(3);
    guest.is_unclear("counts 3 slabs");
    // Found before, a slab that has come since is missed.
    guest.counts(4);
    let (kernel, cache) = (guest.kernel(), guest.cache().expect("a cache"));
    let walk = |frames: &[u64]| walk::walk(&guest.engine, &kernel, &cache, frames, false).expect("walks");
    assert!(matches!(walk(&SLABS), Walk::Complete(_)));
    assert!(matches!(walk(&[0x2801, SLABS[0], SLABS[1], SLABS[2], SLABS[3]]), Walk::Complete(_)));
    assert!(matches!(walk(&SLABS[1..]), Walk::Unclear(_)));
    assert!(matches!(walk(&[SLABS[0], SLABS[1], SLABS[3]]), Walk::Unclear(_)));
}

#[test]
fn lists_that_lead_astray() {
    let far = Guest::object(SLABS[0], 3);
    let next = |guest: &mut Guest, frame: u64, index: u64, to: u64| {
        let place = Guest::object(frame, index) + POINTER;
        guest.put(place - DIRECT_MAP, to ^ RANDOM ^ place.swap_bytes());
    };
    let mut damaged = guest(true);
    next(&mut damaged, SLABS[1], 1, far);
    damaged.says("which is no object of its slab");
    let mut damaged = guest(true);
    next(&mut damaged, SLABS[1], 1, Guest::object(SLABS[1], 4) + 8);
    damaged.says("which is no object of its slab");
    let mut damaged = guest(true);
    next(&mut damaged, SLABS[1], 20, Guest::object(SLABS[1], 3));
    damaged.says("comes back to");
    let mut damaged = guest(true);
    damaged.put(Guest::object(SLABS[2], 5) + POINTER - DIRECT_MAP, 1);
    damaged.says("which is no object");
    // Also found while the allocator is at work.
    let mut other = guest(true);
    next(&mut other, SLABS[2], 11, Guest::object(SLABS[2], 7));
    other.is_unclear("is on two lists");
    let mut other = guest(true);
    other.slab(SLABS[1], &[3, 1], COUNT - 3, false);
    other.is_unclear("has 2 free objects on its list, and 18 of 21 taken");
    let mut other = guest(true);
    other.processor(Guest::object(0x2900, 0), SLABS[2], SLABS[3]);
    other.is_unclear("that is new");
    let mut other = guest(true);
    other.put(ARRAY + SLABS[3] * 64 + 8, DIRECT_MAP + ARRAY + SLABS[3] * 64);
    other.is_unclear("does not end");
    let mut other = guest(true);
    other.put(ARRAY + SLABS[1] * 64 + 8, 0x1234);
    other.is_unclear("leads to");
}

#[test]
fn other_allocators_are_refused() {
    let refused = |change: &dyn Fn(&mut Guest), what: &str| {
        let mut guest = guest(true);
        change(&mut guest);
        match guest.cache() {
            Err(SlabError::Unsupported(said)) => assert!(said.contains(what), "{said}"),
            other => panic!("{other:?}"),
        }
    };
    let without = |name: &'static str| {
        move |guest: &mut Guest| {
            guest.profile.offsets.remove(name);
        }
    };
    refused(&without("kmem_cache.cpu_slab"), "is not SLUB");
    refused(&without("kmem_cache_node.nr_slabs"), "CONFIG_SLUB_DEBUG");
    let sheaves = |guest: &mut Guest| guest.profile.offsets.extend([("kmem_cache.cpu_sheaves".to_owned(), 0)]);
    refused(&sheaves, "sheaves");
    refused(&|guest| guest.profile.symbols.retain(|name, _| name != "vmemmap_base"), "no array of all pages");
    refused(
        &|guest| {
            guest.set(0x8918, DIRECT_MAP);
            guest.profile.symbols.insert("__kfence_pool".into(), fake::TEXT + 0x8918);
        },
        "KFENCE",
    );
    let mut large = guest(true);
    large.set(0x8908, u64::MAX);
    let (kernel, cache) = (large.kernel(), large.cache().expect("a cache"));
    assert!(matches!(pages::find(&large.engine, &kernel, &cache), Err(SlabError::Unsupported(_))));
    // Memory that the array does not tell of is a hole.
    large.set(0x8908, FRAMES);
    large.set(fake::variable("vmemmap_base"), 0xffff_ea00_0000_0000);
    assert!(pages::find(&large.engine, &kernel, &cache).expect("pages").is_empty());
}
