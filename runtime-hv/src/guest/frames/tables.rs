//! The unwind tables of a running kernel.
//!
//! Comes in: a located kernel. Decided: the format, the tables of the image and of each module, and which code tracers have
//! copied. Goes out: [`Tables`], which are made up to date in a pause by reading what is new.

use crate::engine::{ReadMemory, Va};
use crate::guest::modules::{self, Entry};
use crate::guest::{GuestError, Kernel};
use crate::unwind::format::{Bits, HEADER};
use crate::unwind::tables::ADDRESS;
use crate::unwind::{Fields, Format, FormatError, Table, TableError, Tables};
use std::ops::Range;
use std::sync::Arc;

/// More bytes of tables than this are not read: those of a large kernel have 6 MiB.
const BYTES_LIMIT: u64 = 64 << 20;
/// More users of ftrace are taken for a loop.
const TRACERS_LIMIT: usize = 4096;

/// Why the tables of a kernel could not be read.
#[derive(Debug, thiserror::Error)]
pub enum UnwindError {
    /// No tables.
    #[error(
        "the bundle's guest profile names no unwind tables: the kernel was built without CONFIG_UNWINDER_ORC, or the bundle with an older lucos-build"
    )]
    NoTables,
    /// The format.
    #[error("the kernel's stacks cannot be walked: {0}")]
    Format(#[from] FormatError),
    /// A damaged table.
    #[error("the unwind table of {owner} is damaged: {source}")]
    Table {
        /// `the kernel`, or a module.
        owner: String,
        /// What is wrong with it.
        source: TableError,
    },
    /// The guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// A module with a table, as its `struct module` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Described {
    at: Va,
    name: String,
    addresses: u64,
    entries: u64,
    count: u64,
    code: Vec<Range<u64>>,
}

/// What is known so far.
#[derive(Debug, Clone)]
pub(super) struct Known {
    format: Format,
    image: Tables,
    modules: Vec<(Described, Arc<Table>)>,
    all: Tables,
}

impl Known {
    pub(super) fn read(memory: &dyn ReadMemory, kernel: &Kernel) -> Result<Known, UnwindError> {
        if kernel.symbol("__start_orc_unwind_ip").is_err() {
            return Err(UnwindError::NoTables);
        }
        let format = Format::of(fields(kernel)?, header(memory, kernel)?.as_deref())?;
        let [ips, ips_end, entries, entries_end] =
            ["__start_orc_unwind_ip", "__stop_orc_unwind_ip", "__start_orc_unwind", "__stop_orc_unwind"]
                .map(|name| kernel.symbol(name));
        let (ips, entries) = (ips?..ips_end?, entries?..entries_end?);
        let read = |range: &Range<u64>| {
            let mut bytes = vec![0; sane(range.end.saturating_sub(range.start))?];
            kernel.read_image(memory, range.start, &mut bytes)?;
            Ok::<_, GuestError>(bytes)
        };
        let table = Table::read(format, kernel.live(ips.start).0, &read(&ips)?, read(&entries)?);
        let table = Arc::new(table.map_err(|source| UnwindError::Table { owner: "the kernel".into(), source })?);
        let mut image = Tables::default();
        for (start, end) in [("_stext", "_etext"), ("_sinittext", "_einittext")] {
            if let (Ok(start), Ok(end)) = (kernel.symbol(start), kernel.symbol(end)) {
                image.add(kernel.live(start).0..kernel.live(end).0, Arc::clone(&table));
            }
        }
        let mut known = Known { format, all: image.clone(), image, modules: Vec::new() };
        match known.refresh(memory, kernel) {
            // The list may change while it is read; the pause will tell.
            Err(
                UnwindError::Table { .. }
                | UnwindError::Guest(GuestError::NotMapped { .. } | GuestError::Damaged { .. }),
            ) => {}
            result => result?,
        }
        Ok(known)
    }

    pub(super) fn tables(&self) -> &Tables {
        &self.all
    }

    pub(super) fn refresh(&mut self, memory: &dyn ReadMemory, kernel: &Kernel) -> Result<(), UnwindError> {
        let mut all = self.image.clone();
        let mut now = Vec::new();
        let mut bytes = 0;
        for entry in modules::all(memory, kernel)? {
            let Some(described) = describe(memory, kernel, entry)? else { continue };
            let table = match self.modules.iter().find(|(known, _)| *known == described) {
                Some((_, table)) => Arc::clone(table),
                None => {
                    bytes += described.count.saturating_mul((ADDRESS + self.format.size()) as u64);
                    sane(bytes)?;
                    Arc::new(read_module(memory, kernel, self.format, &described)?)
                }
            };
            for code in &described.code {
                all.add(code.clone(), Arc::clone(&table));
            }
            now.push((described, table));
        }
        for (code, from) in copies(memory, kernel)? {
            all.add_copy(code, from);
        }
        (self.modules, self.all) = (now, all);
        Ok(())
    }
}

/// Size of a table in memory, if it is one that a kernel has.
fn sane(bytes: u64) -> Result<usize, GuestError> {
    let detail = || format!("they have {bytes} bytes; expected at most {BYTES_LIMIT}");
    let fits = usize::try_from(bytes).ok().filter(|_| bytes <= BYTES_LIMIT);
    fits.ok_or_else(|| GuestError::Damaged { what: "unwind tables", detail: detail() })
}

fn fields(kernel: &Kernel) -> Result<Fields, GuestError> {
    let bits = |name: &str| {
        let part = |part: &str| kernel.constant(&format!("orc_entry.{name}.{part}"));
        Ok::<_, GuestError>(Bits { first: part("bit")?, count: part("bits")? })
    };
    Ok(Fields {
        size: kernel.size("orc_entry")?,
        sp_offset: kernel.offset("orc_entry.sp_offset")?,
        bp_offset: kernel.offset("orc_entry.bp_offset")?,
        sp_reg: bits("sp_reg")?,
        bp_reg: bits("bp_reg")?,
        kind: bits("type")?,
        signal: bits("signal").ok(),
        end: bits("end").ok(),
    })
}

/// Contents of `.orc_header`, if the kernel has one.
fn header(memory: &dyn ReadMemory, kernel: &Kernel) -> Result<Option<Vec<u8>>, GuestError> {
    let (Ok(start), Ok(stop)) = (kernel.symbol("__start_orc_header"), kernel.symbol("__stop_orc_header")) else {
        return Ok(None);
    };
    // The section may be there and empty.
    let length = stop.saturating_sub(start).min(HEADER as u64 + 1) as usize;
    let mut bytes = vec![0; length];
    kernel.read_image(memory, start, &mut bytes)?;
    Ok(Some(bytes).filter(|bytes| !bytes.is_empty()))
}

/// What `struct module` says of its table and code (`arch/x86/include/asm/module.h`, `include/linux/module.h`); `None` when it has
/// no table (yet).
fn describe(memory: &dyn ReadMemory, kernel: &Kernel, entry: Entry) -> Result<Option<Described>, GuestError> {
    let word = |at: u64| kernel.read_u64(memory, Va(entry.at.0.wrapping_add(at)), "a module");
    let arch = kernel.offset("module.arch")?;
    let arch = |name: &str| Ok::<_, GuestError>(arch + kernel.offset(&format!("mod_arch_specific.{name}"))?);
    let count = word(arch("num_orcs")?)? & 0xffff_ffff;
    if count == 0 {
        return Ok(None);
    }
    let text = |at: u64, base: &str, size: &str| {
        let (base, mut bytes) = (word(at.wrapping_add(kernel.offset(base)?))?, [0; 4]);
        let size = entry.at.0.wrapping_add(at).wrapping_add(kernel.offset(size)?);
        kernel.read(memory, Va(size), &mut bytes, "a module")?;
        Ok::<_, GuestError>(base..base.saturating_add(u64::from(u32::from_le_bytes(bytes))))
    };
    // One layout for each kind of memory since Linux 6.4.
    let code = match kernel.offset("module.mem") {
        Ok(first) => {
            let size = kernel.size("module_memory")?;
            let places = ["MOD_TEXT", "MOD_INIT_TEXT"].map(|kind| kernel.constant(kind));
            let text = |place: Result<u64, GuestError>| {
                text(first.wrapping_add(place?.wrapping_mul(size)), "module_memory.base", "module_memory.size")
            };
            places.map(text)
        }
        Err(_) => ["module.core_layout", "module.init_layout"]
            .map(|layout| text(kernel.offset(layout)?, "module_layout.base", "module_layout.text_size")),
    };
    let code = code.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(Some(Described {
        addresses: word(arch("orc_unwind_ip")?)?,
        entries: word(arch("orc_unwind")?)?,
        count,
        code: code.into_iter().filter(|code| !code.is_empty()).collect(),
        at: entry.at,
        name: entry.name,
    }))
}

fn read_module(
    memory: &dyn ReadMemory,
    kernel: &Kernel,
    format: Format,
    module: &Described,
) -> Result<Table, UnwindError> {
    let read = |at: u64, size: usize| {
        let mut bytes = vec![0; sane(module.count.saturating_mul(size as u64))?];
        kernel.read(memory, Va(at), &mut bytes, "the unwind table of a module")?;
        Ok::<_, GuestError>(bytes)
    };
    let (addresses, entries) = (read(module.addresses, ADDRESS)?, read(module.entries, format.size())?);
    Table::read(format, module.addresses, &addresses, entries)
        .map_err(|source| UnwindError::Table { owner: format!("module {}", module.name), source })
}

/// Copies of ftrace's own code that tracers run through (`arch/x86/kernel/ftrace.c`, `create_trampoline`): where each is, and what
/// it is a copy of. Which of the two it is, its size tells.
fn copies(memory: &dyn ReadMemory, kernel: &Kernel) -> Result<Vec<(Range<u64>, u64)>, GuestError> {
    let names = ["ftrace_ops_list", "ftrace_caller", "ftrace_regs_caller", "ftrace_regs_caller_end"];
    let members = ["ftrace_ops.next", "ftrace_ops.trampoline", "ftrace_ops.trampoline_size"];
    let (names, members) = (names.map(|name| kernel.symbol(name)), members.map(|name| kernel.offset(name)));
    let ([Ok(list), Ok(plain), Ok(with_registers), Ok(end)], [Ok(next), Ok(start), Ok(size)]) = (names, members) else {
        return Ok(Vec::new()); // a kernel without them
    };
    let full = end.saturating_sub(with_registers);
    let last = kernel.symbol("ftrace_list_end").map_or(0, |link| kernel.live(link).0);
    let mut at = kernel.image_u64(memory, list)?;
    let mut found = Vec::new();
    for _ in 0..TRACERS_LIMIT {
        if at == 0 || at == last {
            return Ok(found);
        }
        let word = |offset: u64| kernel.read_u64(memory, Va(at.wrapping_add(offset)), "a user of ftrace");
        let (start, size) = (word(start)?, word(size)?);
        if start != 0 && size != 0 {
            let from = if size >= full { with_registers } else { plain };
            found.push((start..start.saturating_add(size), kernel.live(from).0));
        }
        at = word(next)?;
    }
    let detail = format!("no end after {TRACERS_LIMIT} entries");
    Err(GuestError::Damaged { what: "list of users of ftrace", detail })
}
