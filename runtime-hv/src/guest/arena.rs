//! Guest memory for new code: which pages, at which addresses, and giving them back.
//!
//! Comes in: where the engine says memory is, and what is taken so far. Decided: pages for a bundle. Goes out: plain
//! values: the new state and the writes that lead to it; nothing is written here.
//!
//! Every page of the pool has one fixed virtual address, so that a translation that a processor still remembers is never a
//! wrong one: page `n` of the pool is at `window + n * 4096`. The window is a free entry of `level2_kernel_pgt` below the
//! kernel's text (`arch/x86/kernel/head64.c`, `__startup_64`, clears those), never entry 0, so that PC-relative
//! displacements to per-CPU offsets fit into 32 bits.

use super::paging::{self, ACCESSED, DIRTY, LARGE, NO_EXECUTE, PAGE, PRESENT, WRITE};
use super::{GuestError, Kernel};
use crate::engine::{ArenaSource, EngineError, Pa, ReadMemory, Va};
use lpk_format::hex;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// `__START_KERNEL_map` (`arch/x86/include/asm/page_64_types.h`): what entry 0 of `level2_kernel_pgt` covers.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// Low memory that Linux since 5.13 reserves and never hands out (`arch/x86/realmode/init.c`,
/// `memblock_reserve(0, SZ_1M)`), without page 0 and without what firmware may use at the end.
const LOW_MEMORY: Range<u64> = 0x1000..0x9_e000;
/// Pages that one window covers.
const WINDOW_PAGES: u64 = LARGE / PAGE as u64;

/// Why no memory was found.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// Not enough pages in a row.
    #[error(
        "the bundle needs {wanted} pages of guest memory in a row for its {what}; {free} are free in all, {kept} are kept by bundles that were undone"
    )]
    Full {
        /// Pages wanted.
        wanted: u64,
        /// For which section.
        what: &'static str,
        /// Pages free.
        free: usize,
        /// Pages kept by bundles that were undone.
        kept: u64,
    },
    /// No free entry in the kernel's page tables.
    #[error("no free entry below the kernel's text in `level2_kernel_pgt`")]
    NoWindow,
    /// The kernel keeps `struct page` in pieces.
    #[error(
        "the guest's kernel has no array of all pages (CONFIG_SPARSEMEM_VMEMMAP), by which low memory is known to be reserved"
    )]
    NoPageArray,
    /// Low memory is not reserved by this guest.
    #[error("page {pa:#x} of low memory is not reserved by the guest (kernels before 5.13 do not)")]
    NotReserved {
        /// The page.
        pa: u64,
    },
    /// Somebody else's window, or one of ours that nothing is known of any more.
    #[error(
        "entry {entry} of `level2_kernel_pgt` leads to page {pa:#x} already: bundles were applied to this boot of the guest by a service whose journal is not here"
    )]
    Taken {
        /// The entry.
        entry: u64,
        /// The page.
        pa: u64,
    },
    /// The guest could not be read.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// Pages that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Physical address of page number 0.
    pub base: Pa,
    /// Usable page numbers, ascending.
    pub pages: Vec<u64>,
}

/// One write to be done while the guest is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// Guest-physical address.
    pub pa: u64,
    /// What must be there before.
    #[serde(with = "hex")]
    pub old: Vec<u8>,
    /// What is written.
    #[serde(with = "hex")]
    pub new: Vec<u8>,
}

/// What a run of pages is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protection {
    /// Read-only and executable.
    Text,
    /// Read-only.
    Rodata,
    /// Writable.
    Data,
}

impl Protection {
    fn entry(self, pa: u64) -> u64 {
        // Accessed and dirty are set so that no processor writes to the entry.
        let bits = match self {
            Protection::Text => 0,
            Protection::Rodata => NO_EXECUTE,
            Protection::Data => NO_EXECUTE | WRITE | DIRTY,
        };
        pa | PRESENT | ACCESSED | bits
    }

    fn name(self) -> &'static str {
        match self {
            Protection::Text => "code",
            Protection::Rodata => "read-only data",
            Protection::Data => "data",
        }
    }
}

/// A run of pages in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// First page number.
    pub page: u64,
    /// What it is used for.
    pub protection: Protection,
    /// What the guest had in the bytes used, from the start of the first page; given back with the pages.
    #[serde(with = "hex")]
    pub original: Vec<u8>,
}

impl Run {
    fn pages(&self) -> u64 {
        (self.original.len() as u64).div_ceil(PAGE as u64)
    }
}

/// The window in the kernel's page tables while any page is in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Entry of `level2_kernel_pgt`.
    pub entry: u64,
    /// Physical address of that entry.
    pub directory: u64,
    /// Physical address of page number 0.
    pub base: u64,
    /// Page number of the page table.
    pub table: u64,
    /// What the guest had in it.
    #[serde(with = "hex")]
    pub original: Vec<u8>,
}

impl Window {
    fn va(&self, page: u64) -> Va {
        Va(KERNEL_MAP + self.entry * LARGE + page * PAGE as u64)
    }

    fn pa(&self, page: u64) -> u64 {
        self.base + page * PAGE as u64
    }

    /// What the entry holds while the window is there.
    fn value(&self) -> [u8; 8] {
        (self.pa(self.table) | PRESENT | WRITE | ACCESSED | DIRTY).to_le_bytes()
    }

    /// Whether the guest has the window. The kernel's image is loaded anew at every boot, and only we make such an entry: a
    /// guest without it is another boot, wherever KASLR has put it.
    ///
    /// # Errors
    /// Of the engine.
    pub fn is_there(&self, memory: &dyn ReadMemory) -> Result<bool, EngineError> {
        let mut entry = [0; 8];
        memory.read(Pa(self.directory), &mut entry)?;
        Ok(entry == self.value())
    }

    /// Addresses of a run.
    #[must_use]
    pub fn place(&self, run: &Run) -> Placed {
        Placed { va: self.va(run.page), pa: Pa(self.pa(run.page)) }
    }
}

/// Pages of one bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Id of the bundle.
    pub bundle: String,
    /// Kept after undo, because something may still refer to them.
    pub kept: bool,
    /// Its runs.
    pub runs: Vec<Run>,
}

impl Allocation {
    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(Run::pages).sum()
    }
}

/// What is taken of the pool; kept in the journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Present while any page is in use.
    pub window: Option<Window>,
    /// Pages by bundle.
    pub allocations: Vec<Allocation>,
}

/// A run with its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Where the guest sees it.
    pub va: Va,
    /// Where it is.
    pub pa: Pa,
}

/// Pages of the engine's arena that may be used, each proved free.
///
/// # Errors
/// [`ArenaError`].
pub fn pool(memory: &dyn ReadMemory, kernel: &Kernel, source: ArenaSource) -> Result<Pool, ArenaError> {
    let page = PAGE as u64;
    match source {
        ArenaSource::Slot(base, length) => Ok(Pool { base, pages: (0..(length / page).min(WINDOW_PAGES)).collect() }),
        ArenaSource::ReservedLowMemory => {
            let pointer = kernel.image_u64(memory, kernel.symbol("real_mode_header")?).map_err(ArenaError::Guest)?;
            let blob = kernel.symbol("real_mode_blob_end")?.saturating_sub(kernel.symbol("real_mode_blob")?);
            // Used to start processors and to wake up (`arch/x86/realmode/init.c`).
            let trampoline = if pointer == 0 {
                0..0
            } else {
                let start = kernel.translate(memory, Va(pointer), "the real-mode trampoline")?.0;
                start..start.saturating_add(blob)
            };
            let flags = page_array(memory, kernel)?.wrapping_add(kernel.offset("page.flags")?);
            let (size, reserved) = (kernel.size("page")?, kernel.constant("PG_reserved")?);
            let mut pages = Vec::new();
            for pa in LOW_MEMORY.step_by(PAGE) {
                if pa < trampoline.end && pa + page > trampoline.start {
                    continue;
                }
                let at = Va(flags.wrapping_add(pa / page * size));
                if kernel.read_u64(memory, at, "the page array")? >> (reserved & 63) & 1 == 0 {
                    return Err(ArenaError::NotReserved { pa });
                }
                pages.push(pa / page);
            }
            Ok(Pool { base: Pa(0), pages })
        }
    }
}

/// Address of the array of all `struct page`: in a variable where the kernel may place it elsewhere, else where the architecture
/// has it (`VMEMMAP_START`, arch/x86/include/asm/pgtable_64_types.h).
fn page_array(memory: &dyn ReadMemory, kernel: &Kernel) -> Result<u64, ArenaError> {
    if let Ok(variable) = kernel.symbol("vmemmap_base") {
        return Ok(kernel.image_u64(memory, variable)?);
    }
    kernel.constant("VMEMMAP_START").map_err(|_| ArenaError::NoPageArray)
}

/// Number of the free entry of `level2_kernel_pgt` to use as the window. An entry that leads into the pool means that its
/// pages are in use, though nobody here knows by what.
fn free_entry(memory: &dyn ReadMemory, kernel: &Kernel, pool: &Pool) -> Result<u64, ArenaError> {
    let table = kernel.symbol("level2_kernel_pgt")?;
    let text = kernel.live(kernel.symbol("_text")?).0.wrapping_sub(KERNEL_MAP) / LARGE;
    let mut free = None;
    for entry in 1..text.min(512) {
        let value = kernel.image_u64(memory, table.wrapping_add(entry * 8))?;
        let pa = value & paging::ADDRESS;
        let page = pa.wrapping_sub(pool.base.0) / PAGE as u64;
        if value & PRESENT != 0 && pool.pages.binary_search(&page).is_ok() {
            return Err(ArenaError::Taken { entry, pa });
        }
        if value == 0 {
            free = free.or(Some(entry));
        }
    }
    free.ok_or(ArenaError::NoWindow)
}

/// Takes pages for a bundle: the window if there is none yet, then one run per non-empty section.
///
/// Code grows from the low end and data from the high end, so that a page seldom changes its use.
///
/// # Errors
/// [`ArenaError`]; `state` is then unchanged.
pub fn take(
    memory: &dyn ReadMemory,
    kernel: &Kernel,
    pool: &Pool,
    state: &mut State,
    bundle: &str,
    sizes: [(Protection, u64); 3],
) -> Result<Vec<Option<Placed>>, ArenaError> {
    let mut next = state.clone();
    let window = match next.window.take() {
        Some(window) => window,
        None => {
            let table = pool.pages.first().copied().ok_or(ArenaError::Full {
                wanted: 1,
                what: "page table",
                free: 0,
                kept: 0,
            })?;
            let entry = free_entry(memory, kernel, pool)?;
            let directory = kernel.image_pa(kernel.symbol("level2_kernel_pgt")?).0 + entry * 8;
            let mut window = Window { entry, directory, base: pool.base.0, table, original: vec![0; PAGE] };
            let pa = Pa(window.pa(table));
            memory.read(pa, &mut window.original).map_err(GuestError::Engine)?;
            window
        }
    };
    let in_use = next.allocations.iter().flat_map(|a| &a.runs).map(|run| run.page..run.page + run.pages());
    let mut used: Vec<Range<u64>> = in_use.chain(std::iter::once(window.table..window.table + 1)).collect();
    let mut allocation = Allocation { bundle: bundle.to_owned(), kept: false, runs: Vec::new() };
    let mut placed = Vec::new();
    for (protection, size) in sizes {
        if size == 0 {
            placed.push(None);
            continue;
        }
        let wanted = size.div_ceil(PAGE as u64);
        let free: Vec<u64> =
            pool.pages.iter().copied().filter(|page| !used.iter().any(|range| range.contains(page))).collect();
        let fits = |start: &u64| {
            let at = free.partition_point(|page| page < start);
            free.get(at + wanted as usize - 1) == Some(&(start + wanted - 1))
        };
        let page = match protection {
            Protection::Text => free.iter().copied().find(|start| fits(start)),
            Protection::Rodata | Protection::Data => free.iter().rev().copied().find(|start| fits(start)),
        };
        let Some(page) = page else {
            let kept = next.allocations.iter().filter(|a| a.kept).map(Allocation::pages).sum();
            return Err(ArenaError::Full { wanted, what: protection.name(), free: free.len(), kept });
        };
        used.push(page..page + wanted);
        let mut original = vec![0; size as usize];
        memory.read(Pa(window.pa(page)), &mut original).map_err(GuestError::Engine)?;
        placed.push(Some(Placed { va: window.va(page), pa: Pa(window.pa(page)) }));
        allocation.runs.push(Run { page, protection, original });
    }
    next.window = Some(window);
    next.allocations.push(allocation);
    *state = next;
    Ok(placed)
}

/// The virtual ranges of an allocation.
#[must_use]
pub fn ranges(state: &State, allocation: &Allocation) -> Vec<Range<u64>> {
    runs(state, allocation, |_| true)
}

/// Those of them that hold code.
#[must_use]
pub fn code(state: &State, allocation: &Allocation) -> Vec<Range<u64>> {
    runs(state, allocation, |run| run.protection == Protection::Text)
}

fn runs(state: &State, allocation: &Allocation, wanted: impl Fn(&&Run) -> bool) -> Vec<Range<u64>> {
    let Some(window) = &state.window else { return Vec::new() };
    let range = |run: &Run| window.va(run.page).0..window.va(run.page + run.pages()).0;
    allocation.runs.iter().filter(wanted).map(range).collect()
}

/// Forgets an allocation; the window goes with the last one.
pub fn give_back(state: &mut State, bundle: &str) {
    state.allocations.retain(|allocation| allocation.bundle != bundle);
    if state.allocations.is_empty() {
        state.window = None;
    }
}

/// The writes that lead from one state to another, apart from the contents of new pages: those are `contents`, physical
/// address and bytes. New pages are filled before they are mapped; old ones are unmapped before they are given back.
#[must_use]
pub fn transition(before: &State, after: &State, contents: &[(Pa, Vec<u8>)]) -> Vec<Write> {
    let entries = |state: &State| state.window.as_ref().map(|window| table(state, window));
    let directory_write = |window: &Window, mapped: bool| {
        let entry = window.value().to_vec();
        let (old, new) = if mapped { (vec![0; 8], entry) } else { (entry, vec![0; 8]) };
        Write { pa: window.directory, old, new }
    };
    let gone: Vec<&Allocation> = missing_from(before, after);
    let come: Vec<&Allocation> = missing_from(after, before);
    let mut writes = Vec::new();
    if let Some(window) = &after.window {
        for run in come.iter().flat_map(|allocation| &allocation.runs) {
            let pa = window.pa(run.page);
            let new = contents.iter().find(|(at, _)| at.0 == pa).map(|(_, bytes)| bytes.clone());
            writes.push(Write { pa, old: run.original.clone(), new: new.unwrap_or_else(|| run.original.clone()) });
        }
    }
    match (&before.window, &after.window) {
        (None, Some(window)) => {
            let new = entries(after).unwrap_or_default();
            writes.push(Write { pa: window.pa(window.table), old: window.original.clone(), new });
            writes.push(directory_write(window, true));
        }
        (Some(window), None) => {
            writes.push(directory_write(window, false));
            let old = entries(before).unwrap_or_default();
            writes.push(Write { pa: window.pa(window.table), old, new: window.original.clone() });
        }
        (Some(window), Some(_)) => {
            let (old, new) = (entries(before).unwrap_or_default(), entries(after).unwrap_or_default());
            let changed = |at: &usize| old[*at..*at + 8] != new[*at..*at + 8];
            let places: Vec<usize> = (0..old.len()).step_by(8).filter(changed).collect();
            for run in places.chunk_by(|a, b| a + 8 == *b) {
                let bytes = run[0]..run[run.len() - 1] + 8;
                writes.push(Write {
                    pa: window.pa(window.table) + bytes.start as u64,
                    old: old[bytes.clone()].to_vec(),
                    new: new[bytes].to_vec(),
                });
            }
        }
        (None, None) => {}
    }
    if let Some(window) = &before.window {
        for run in gone.iter().flat_map(|allocation| &allocation.runs) {
            // The old contents are whatever the bundle's own code made of them: read by the caller.
            writes.push(Write { pa: window.pa(run.page), old: Vec::new(), new: run.original.clone() });
        }
    }
    writes
}

fn missing_from<'a>(state: &'a State, other: &State) -> Vec<&'a Allocation> {
    state
        .allocations
        .iter()
        .filter(|allocation| !other.allocations.iter().any(|known| known.runs == allocation.runs))
        .collect()
}

/// Contents of the page table.
fn table(state: &State, window: &Window) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    for run in state.allocations.iter().flat_map(|allocation| &allocation.runs) {
        for page in run.page..run.page + run.pages() {
            let at = (page % WINDOW_PAGES) as usize * 8;
            bytes[at..at + 8].copy_from_slice(&run.protection.entry(window.pa(page)).to_le_bytes());
        }
    }
    bytes
}
