//! Objects of slab caches, found from outside, against what the guest counts itself: `/proc/slabinfo`, and what its processes hold.

mod common;

use common::outside::{self, END_LOAD, on_another_series, on_older_kernel};
use lpk_format::ReadBundle;
use lucos_tests::guest::{Config, Guest};
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::{VISIBLE_FILE, VISIBLE_WORDS};
use runtime_hv::engine::Pause as _;
use runtime_hv::engine::qemu::QemuEngine;
use runtime_hv::guest::slab::{Cache, Census, Walk, pages, walk};
use runtime_hv::guest::{self, tasks};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Variables of the kernel that point to caches. Some of these have objects freed late (by RCU), some slabs of several pages, one
/// a constructor.
const CACHES: [&str; 8] = [
    "task_struct_cachep",
    "filp_cachep",
    "dentry_cache",
    "vm_area_cachep",
    "cred_jar",
    "signal_cachep",
    "sighand_cachep",
    "names_cachep",
];

/// Files below `/sys/kernel/slab/NAME` that tell what watches over objects, in the order in which the first is named.
const WATCHERS: [(&str, &str); 4] = [
    ("red_zone", "red zones"),
    ("poison", "poison"),
    ("store_user", "records of users"),
    ("sanity_checks", "consistency checks"),
];

/// What `/proc/slabinfo` says of a cache: objects active and in all, slabs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Said {
    active: u64,
    objects: u64,
    slabs: u64,
}

/// An attached guest and its caches.
struct Outside {
    engine: QemuEngine,
    kernel: guest::Kernel,
    caches: Vec<Cache>,
    /// Tasks that were live in the last look and on no list.
    unlisted: usize,
}

impl Outside {
    fn attach(guest: &Guest, kernel: &Kernel, bundle: &ReadBundle) -> Outside {
        let (engine, located) = outside::attach(guest, bundle);
        let cache = |name: &&str| {
            let variable = kernel.symbol(name).expect("a variable");
            Cache::behind(&engine, &located, variable).expect("a cache")
        };
        let caches = CACHES.iter().map(cache).collect();
        Outside { engine, kernel: located, caches, unlisted: 0 }
    }

    /// Walks all caches in one stop, with the slabs as they were found before it; also says how long each took.
    fn look(&mut self) -> Vec<(Walk, Duration)> {
        self.engine.pause().expect("stops");
        let one = |cache: &Cache| {
            let start = Instant::now();
            let frames = pages::find(&self.engine, &self.kernel, cache).expect("pages");
            let walk = walk::walk(&self.engine, &self.kernel, cache, &frames, true).expect("walks");
            (walk, start.elapsed())
        };
        let walks: Vec<(Walk, Duration)> = self.caches.iter().map(one).collect();
        self.tasks_are_live(&walks[0].0);
        self.engine.resume().expect("continues");
        walks
    }

    /// Whoever is on the guest's lists of tasks has a live `struct task_struct`. The first one is no object.
    fn tasks_are_live(&mut self, walk: &Walk) {
        let Walk::Complete(census) = walk else { return };
        let live: BTreeSet<u64> = census.objects().filter(|object| object.live).map(|object| object.va.0).collect();
        let first = self.kernel.live(self.kernel.symbol("init_task").expect("a symbol")).0;
        let processors = tasks::per_cpu(&self.engine, &self.kernel).expect("processors");
        let mut listed = 0;
        for task in tasks::all(&self.engine, &self.kernel, &processors).expect("tasks") {
            assert!(task.at.0 == first || live.contains(&task.at.0), "task {} ({})", task.pid, task.comm);
            listed += usize::from(task.at.0 != first);
        }
        self.unlisted = live.len() - listed;
    }

    /// The censuses of a guest at rest.
    fn censuses(&mut self) -> Vec<Census> {
        for _ in 0..20 {
            let walks = self.look().into_iter().map(|(walk, _)| match walk {
                Walk::Complete(census) => Some(census),
                _ => None,
            });
            if let Some(all) = walks.collect() {
                return all;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("no moment at which all caches were clear");
    }

    fn live(&mut self, name: &str) -> u64 {
        let index = CACHES.iter().position(|known| *known == name).expect("a cache");
        self.censuses()[index].live()
    }
}

/// What the guest says of all its caches.
fn said(guest: &mut Guest) -> BTreeMap<String, Said> {
    let text = guest.run_ok("cat /proc/slabinfo").expect("answers");
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at)?.parse().ok();
        let said = Said { active: number(1)?, objects: number(2)?, slabs: number(14)? };
        Some((words[0].to_owned(), said))
    };
    text.lines().filter_map(line).collect()
}

/// Holds what is said of caches against `/sys/kernel/slab`: the numbers of flags differ between kernels.
fn compare_descriptions(guest: &mut Guest, caches: &[Cache]) {
    for cache in caches {
        let mut file = |name: &str| {
            let text = guest.run_ok(&format!("cat /sys/kernel/slab/{}/{name}", cache.name)).expect("answers");
            text.trim().to_owned()
        };
        let debugging = WATCHERS.iter().find(|(name, _)| file(name) == "1").map(|(_, what)| *what);
        let said = (file("object_size"), file("slab_size"), file("aliases"), file("destroy_by_rcu") == "1");
        let Cache { object_size, stride, refcount, typesafe, .. } = cache;
        let found = (object_size.to_string(), stride.to_string(), (refcount - 1).to_string(), *typesafe);
        eprintln!("{}: {found:?}, {:?}", cache.name, cache.debugging);
        assert_eq!((found, cache.debugging), (said, debugging), "{}", cache.name);
        assert_eq!(cache.constructor.is_some(), !file("ctor").is_empty(), "{}", cache.name);
    }
    assert!(caches.iter().any(|cache| cache.typesafe) && caches.iter().any(|cache| !cache.typesafe));
}

fn boot(name: &str, kernel: &Kernel, append: &str) -> (Guest, ReadBundle) {
    let mut config = Config::new(name, &kernel.vmlinuz());
    append.clone_into(&mut config.append);
    outside::boot(&config, kernel)
}

#[test]
fn objects_are_as_many_as_the_guest_counts() {
    on_older_kernel(|kernel| as_counted("slab", kernel));
}

#[test]
#[ignore = "needs a kernel of another series: cargo xtask series"]
fn objects_of_another_series_are_as_many_as_the_guest_counts() {
    on_another_series(|kernel| as_counted("slab-series", kernel));
}

/// Objects of a guest at rest, of what its processes hold, under load, and after it.
fn as_counted(name: &str, kernel: &Kernel) {
    let (mut guest, bundle) = boot(name, kernel, "");
    let mut outside = Outside::attach(&guest, kernel, &bundle);
    for cache in &outside.caches {
        eprintln!(
            "{}: {} bytes every {}, free pointer at {}, flags {:#x}, {} users, constructor {:?}",
            cache.name,
            cache.object_size,
            cache.stride,
            cache.free_pointer,
            cache.flags,
            cache.refcount,
            cache.constructor
        );
    }
    compare_descriptions(&mut guest, &outside.caches);
    compare(&mut guest, &mut outside);

    // What processes hold is live.
    let before = [outside.live("filp_cachep"), outside.live("task_struct_cachep")];
    let hold =
        "for i in $(seq 100); do sleep 1000 5</proc/version 6</proc/version 7</proc/version & done; usleep 300000";
    guest.run_ok(hold).expect("holds");
    let [files, tasks] = [outside.live("filp_cachep") - before[0], outside.live("task_struct_cachep") - before[1]];
    eprintln!("100 processes with 3 files each: {tasks} more tasks, {files} more files");
    // Those of ended processes may be freed meanwhile.
    assert!((90..120).contains(&tasks) && files >= 3 * 100, "{tasks} tasks, {files} files");

    guest.start_load(VISIBLE_FILE, &VISIBLE_WORDS).expect("starts");
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut times = vec![Vec::new(); CACHES.len()];
    for _ in 0..100 {
        std::thread::sleep(Duration::from_micros(fastrand::u64(1_000..20_000)));
        for (index, (walk, time)) in outside.look().into_iter().enumerate() {
            times[index].push(time.as_micros());
            let kind = match walk {
                Walk::Complete(_) => "complete".to_owned(),
                Walk::Unclear(why) => format!("unclear: {why}"),
                Walk::Damaged(why) => panic!("{why}"),
            };
            *kinds.entry(kind).or_default() += 1;
        }
    }
    eprintln!("800 walks under load: {kinds:#?}");
    assert!(kinds.get("complete").is_some_and(|complete| *complete > 700));
    for (cache, times) in outside.caches.iter().zip(&mut times) {
        times.sort_unstable();
        eprintln!("{}: {} µs in the median", cache.name, times[times.len() / 2]);
    }

    // Slabs are no longer full.
    guest.run_ok(&format!("{END_LOAD}; for p in $(pidof sleep); do kill $p; done; usleep 500000")).expect("ends");
    let free = compare(&mut guest, &mut outside);
    assert!(free > 0, "no free object on the list of a node");
    assert_eq!(guest.kernel_warnings().expect("answers"), Vec::<String>::new());
}

#[test]
fn caches_that_are_watched_over_are_told() {
    on_older_kernel(|kernel| watched("slab-watched", kernel));
}

#[test]
#[ignore = "needs a kernel of another series: cargo xtask series"]
fn caches_of_another_series_that_are_watched_over_are_told() {
    on_another_series(|kernel| watched("slab-watched-series", kernel));
}

/// Each way of watching, on a cache of its own; the others stay as they are.
fn watched(name: &str, kernel: &Kernel) {
    let append = "slub_debug=Z,filp;P,task_struct;U,signal_cache;F,vm_area_struct";
    let (mut guest, bundle) = boot(name, kernel, append);
    let mut outside = Outside::attach(&guest, kernel, &bundle);
    compare_descriptions(&mut guest, &outside.caches);
    let kinds: BTreeSet<&str> = outside.caches.iter().filter_map(|cache| cache.debugging).collect();
    assert_eq!(kinds, WATCHERS.iter().map(|(_, what)| *what).collect());
    assert!(outside.caches.iter().any(|cache| cache.debugging.is_none()));
    // Processors set nothing aside, so that what the guest calls active is live. Whoever reads it there is live then, too.
    let (before, censuses, after) = (said(&mut guest), outside.censuses(), said(&mut guest));
    let mut compared = Vec::new();
    for (cache, census) in outside.caches.iter().zip(&censuses).filter(|(cache, _)| cache.debugging.is_some()) {
        assert_eq!(census.live(), census.active(), "{}", cache.name);
        let (before, after) = (before[&cache.name], after[&cache.name]);
        let found = (census.counts.objects, census.counts.slabs);
        eprintln!("{}: {} live of {found:?}, {before:?}, {after:?}", cache.name, census.live());
        if (before.objects, before.slabs) == (after.objects, after.slabs) {
            assert_eq!(found, (before.objects, before.slabs), "{}", cache.name);
            compared.push(&cache.name);
        }
    }
    assert!(compared.len() >= 3, "{compared:?}");

    // Ended tasks are freed late (by RCU); in a guest at rest those that are listed are all.
    let unlisted: Vec<usize> = (0..30)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(100));
            outside.censuses();
            outside.unlisted
        })
        .collect();
    eprintln!("tasks that are live and not listed, every 100 ms: {unlisted:?}");
    assert!(unlisted.contains(&0), "{unlisted:?}");
}

/// Compares with what the guest says before and after a look, where that is the same; gives how many objects of the last look are
/// free in slabs of a node's list.
fn compare(guest: &mut Guest, outside: &mut Outside) -> u64 {
    let (mut compared, mut free) = (BTreeMap::<String, usize>::new(), 0);
    for _ in 0..5 {
        let before = said(guest);
        let censuses = outside.censuses();
        let after = said(guest);
        free = 0;
        for (cache, census) in outside.caches.iter().zip(&censuses) {
            let found = Said { active: census.active(), objects: census.counts.objects, slabs: census.counts.slabs };
            free += found.objects - found.active;
            assert!(census.live() <= found.active, "{}: {} of {found:?} are live", cache.name, census.live());
            // Where caches were merged, one name is listed for all.
            if before.contains_key(&cache.name) && before.get(&cache.name) == after.get(&cache.name) {
                assert_eq!(Some(&found), before.get(&cache.name), "{}", cache.name);
                *compared.entry(cache.name.clone()).or_default() += 1;
            }
        }
    }
    eprintln!("as the guest counts them: {compared:?}, {free} free on lists of nodes");
    assert!(compared.len() >= 6 && compared.values().all(|times| *times >= 2), "{compared:?}");
    free
}
