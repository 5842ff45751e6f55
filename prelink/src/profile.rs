//! Layout facts of a kernel for its guest profile.
//!
//! Comes in: the index of units. Decided: in which unit to look first for a type; any other unit that defines it does
//! as well. Goes out: offsets, sizes and constants of a [`GuestProfile`]. What a kernel does not have is left out; the
//! runtime refuses by name what it misses.
//!
//! `THREAD_SIZE` and `X86_FEATURE_*` are macros and not in DWARF.

use crate::dwarf::DwarfError;
use crate::units::{UnitId, UnitIndex};
use diff_analyzer::dwarf_layout::TypeLayout;
use gimli::constants as dw;
use lpk_format::GuestProfile;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// What is wanted of a type.
struct Fact {
    /// Its key.
    key: &'static str,
    /// A unit that uses it in every kernel that has it.
    unit: &'static str,
    /// Members whose offsets are wanted.
    members: Members,
    /// Whether its size is wanted.
    size: bool,
    /// Whether other units are searched when this one does not define it.
    search: bool,
}

enum Members {
    These(&'static [&'static str]),
    All,
}

const fn some(key: &'static str, unit: &'static str, size: bool, members: &'static [&'static str]) -> Fact {
    Fact { key, unit, members: Members::These(members), size, search: true }
}

/// A type that only some versions have; its unit knows.
const fn maybe(key: &'static str, unit: &'static str, members: &'static [&'static str]) -> Fact {
    Fact { key, unit, members: Members::These(members), size: true, search: false }
}

const fn all(key: &'static str, unit: &'static str) -> Fact {
    Fact { key, unit, members: Members::All, size: true, search: true }
}

const FACTS: [Fact; 39] = [
    some(
        "struct task_struct",
        "kernel/fork.c",
        true,
        &[
            "tasks",
            "thread_node",
            "signal",
            "stack",
            "thread",
            "pid",
            "tgid",
            "comm",
            "flags",
            "__state",
            "state",
            "ret_stack",
            "curr_ret_stack",
            "rethooks",
            "kretprobe_instances",
        ],
    ),
    // What a processor works on, since Linux 6.2 (arch/x86/include/asm/current.h).
    maybe("struct pcpu_hot", "kernel/fork.c", &["current_task", "hardirq_stack_ptr"]),
    // Where tracers keep return addresses that they have taken off a stack.
    maybe("struct ftrace_ret_stack", "kernel/trace/fgraph.c", &["ret", "retp"]),
    maybe("struct fgraph_ops", "kernel/trace/fgraph.c", &["idx"]),
    maybe("struct rethook_node", "kernel/trace/rethook.c", &["llist", "ret_addr", "frame"]),
    maybe("struct kretprobe_instance", "kernel/kprobes.c", &["llist", "ret_addr", "fp"]),
    maybe("struct kprobe", "kernel/kprobes.c", &["hlist", "addr", "flags"]),
    some("struct signal_struct", "kernel/fork.c", false, &["thread_head"]),
    some("struct thread_struct", "kernel/fork.c", true, &["sp"]),
    // Stacks, for who walks them.
    some("struct inactive_task_frame", "arch/x86/kernel/process.c", true, &["bp", "ret_addr"]),
    maybe("struct cpu_entry_area", "arch/x86/mm/cpu_entry_area.c", &["entry_stack_page", "estacks"]),
    Fact { members: Members::All, ..maybe("struct cea_exception_stacks", "arch/x86/mm/cpu_entry_area.c", &[]) },
    maybe("struct mod_arch_specific", "kernel/module/main.c", &["num_orcs", "orc_unwind_ip", "orc_unwind"]),
    maybe("struct ftrace_ops", "kernel/trace/ftrace.c", &["next", "trampoline", "trampoline_size"]),
    some("struct list_head", "kernel/fork.c", true, &["next", "prev"]),
    some("struct mutex", "kernel/fork.c", true, &["owner"]),
    some("struct cpuinfo_x86", "arch/x86/kernel/alternative.c", true, &["x86_capability"]),
    some("struct page", "mm/page_alloc.c", true, &["flags", "_refcount", "page_type"]),
    some("struct static_call_key", "kernel/static_call_inline.c", true, &["func", "mods", "type"]),
    some(
        "struct module",
        "kernel/module/main.c",
        true,
        &[
            "list",
            "name",
            "state",
            "core_layout",
            "init_layout",
            "mem",
            "arch",
            "num_symtab",
            "kallsyms",
            "sect_attrs",
            "percpu",
            "syms",
            "num_syms",
            "gpl_syms",
            "num_gpl_syms",
        ],
    ),
    // Where the sections of a loaded module are, and what it exports (include/linux/export.h).
    maybe("struct module_sect_attrs", "kernel/module/sysfs.c", &["nsections", "attrs"]),
    maybe("struct module_sect_attr", "kernel/module/sysfs.c", &["address", "battr"]),
    maybe("struct bin_attribute", "kernel/module/sysfs.c", &["attr"]),
    maybe("struct attribute", "kernel/module/sysfs.c", &["name"]),
    maybe("struct kernel_symbol", "kernel/module/main.c", &["value_offset", "name_offset"]),
    // Until Linux 6.3 and from 6.4 on (include/linux/module.h).
    maybe("struct module_layout", "kernel/module/main.c", &["base", "size", "text_size", "ro_size"]),
    maybe("struct module_memory", "kernel/module/main.c", &["base", "size"]),
    // Entries of the sections that go with code.
    all("struct alt_instr", "arch/x86/kernel/alternative.c"),
    all("struct paravirt_patch_site", "arch/x86/kernel/alternative.c"),
    all("struct bug_entry", "lib/bug.c"),
    all("struct exception_table_entry", "lib/extable.c"),
    all("struct jump_entry", "kernel/jump_label.c"),
    all("struct static_call_site", "kernel/static_call_inline.c"),
    all("struct orc_entry", "arch/x86/kernel/unwind_orc.c"),
    maybe("struct _ddebug", "lib/dynamic_debug.c", &[]),
    // Slab caches of SLUB (mm/slub.c, mm/slab.h, until Linux 6.7 include/linux/slub_def.h). Without `cpu_slab` it is another
    // allocator; with `cpu_sheaves` (Linux 6.18) free objects are kept elsewhere, too.
    maybe(
        "struct kmem_cache",
        "mm/slub.c",
        &[
            "cpu_slab",
            "cpu_sheaves",
            "flags",
            "size",
            "object_size",
            "offset",
            "oo",
            "min",
            "refcount",
            "ctor",
            "red_left_pad",
            "name",
            "random",
            "node",
        ],
    ),
    maybe("struct kmem_cache_cpu", "mm/slub.c", &["freelist", "slab", "partial"]),
    maybe("struct kmem_cache_node", "mm/slub.c", &["partial", "nr_slabs", "total_objects"]),
    maybe("struct slab", "mm/slub.c", &["slab_cache", "freelist", "inuse", "objects", "frozen", "slab_list", "next"]),
];

/// Enumerators: the enum, a unit that uses it, whether other units are searched as well, the names.
const CONSTANTS: [(&str, &str, bool, &[&str]); 5] = [
    ("enum pageflags", "mm/page_alloc.c", true, &["PG_reserved", "PG_slab"]),
    // Since Linux 6.12 (include/linux/page-flags.h) and 6.9 (include/linux/slab.h).
    ("enum pagetype", "mm/slub.c", false, &["PGTY_slab"]),
    (
        "enum _slab_flag_bits",
        "mm/slub.c",
        false,
        &[
            "_SLAB_CONSISTENCY_CHECKS",
            "_SLAB_RED_ZONE",
            "_SLAB_POISON",
            "_SLAB_STORE_USER",
            "_SLAB_TYPESAFE_BY_RCU",
            "_SLAB_TRACE",
            "_SLAB_KASAN",
        ],
    ),
    ("enum module_state", "kernel/module/main.c", true, &["MODULE_STATE_LIVE"]),
    ("enum mod_mem_type", "kernel/module/main.c", false, &["MOD_TEXT", "MOD_INIT_TEXT"]),
];

/// Offsets, sizes and constants of the kernel's types; the profile's symbols stay empty.
///
/// Bit-fields have no byte offset: theirs are the constants `type.member.bit` (from the start of the type) and
/// `type.member.bits` (width).
///
/// # Errors
/// [`DwarfError`] when the DWARF is malformed.
pub fn layout_facts(index: &UnitIndex<'_>) -> Result<GuestProfile, DwarfError> {
    let mut types = expected_places(index)?;
    let missing =
        wanted().filter(|&(key, unit, search)| !types.contains_key(key) && (search || index.find(unit).is_none()));
    let missing: BTreeSet<&str> = missing.map(|(key, ..)| key).collect();
    if !missing.is_empty() {
        for (key, id) in defining_units(index, &missing)? {
            let bare = bare(key);
            let found = index.unit(id).types(index, |name| name == bare)?;
            types.extend(found.into_iter().filter(|(name, _)| name == key));
        }
    }
    let mut profile = GuestProfile::default();
    for fact in &FACTS {
        if let Some(layout) = types.get(fact.key) {
            record(&mut profile, fact, layout);
        }
    }
    for (key, _, _, names) in CONSTANTS {
        let enumerators = types.get(key).map_or(&[][..], |layout| &layout.enumerators);
        for (name, value) in enumerators.iter().filter(|(name, _)| names.contains(&name.as_str())) {
            if let Ok(value) = u64::try_from(*value) {
                profile.constants.insert(name.clone(), value);
            }
        }
    }
    Ok(profile)
}

/// Keys of all wanted types, the unit to look in first, and whether to search the others.
fn wanted() -> impl Iterator<Item = (&'static str, &'static str, bool)> {
    let enums = CONSTANTS.iter().map(|(key, unit, search, _)| (*key, *unit, *search));
    FACTS.iter().map(|fact| (fact.key, fact.unit, fact.search)).chain(enums)
}

fn bare(key: &str) -> &str {
    key.split_once(' ').map_or(key, |(_, name)| name)
}

/// Wanted types that are defined where they are expected.
fn expected_places(index: &UnitIndex<'_>) -> Result<BTreeMap<String, TypeLayout>, DwarfError> {
    let mut by_unit: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (key, unit, _) in wanted() {
        by_unit.entry(unit).or_default().push(key);
    }
    let found = by_unit
        .into_par_iter()
        .map(|(unit, keys)| match index.find(unit) {
            Some(unit) => {
                let mut types = unit.types(index, |name| keys.iter().any(|key| bare(key) == name))?;
                types.retain(|key, _| keys.contains(&key.as_str()));
                Ok(types)
            }
            None => Ok(BTreeMap::new()),
        })
        .collect::<Result<Vec<_>, DwarfError>>()?;
    Ok(found.into_iter().flatten().collect())
}

/// The first unit that defines each of the types, if any does.
fn defining_units<'k>(
    index: &UnitIndex<'_>,
    keys: &BTreeSet<&'k str>,
) -> Result<BTreeMap<&'k str, UnitId>, DwarfError> {
    let units: Vec<UnitId> = index.iter().map(|unit| unit.id).collect();
    let found =
        units.into_par_iter().map(|id| defined_in(index, id, keys)).collect::<Result<Vec<_>, gimli::Error>>()?;
    let mut first = BTreeMap::new();
    for (key, id) in found.into_iter().flatten() {
        first.entry(key).or_insert(id);
    }
    Ok(first)
}

/// Which of some types one unit defines.
pub(crate) fn defined_in<'k>(
    index: &UnitIndex<'_>,
    id: UnitId,
    keys: &BTreeSet<&'k str>,
) -> Result<Vec<(&'k str, UnitId)>, gimli::Error> {
    let dwarf = index.sections().dwarf();
    let header = index.unit(id).header();
    let abbreviations = dwarf.abbreviations(header)?;
    let mut entries = header.entries_raw(&abbreviations, None)?;
    let mut found = Vec::new();
    while !entries.is_empty() {
        let top_level = entries.next_depth() == 1;
        let Some(abbreviation) = entries.read_abbreviation()? else { continue };
        let keyword = match abbreviation.tag() {
            dw::DW_TAG_structure_type if top_level => "struct",
            dw::DW_TAG_enumeration_type if top_level => "enum",
            _ => {
                entries.skip_attributes(abbreviation.attributes())?;
                continue;
            }
        };
        let (mut name, mut declaration) = (None, false);
        for &spec in abbreviation.attributes() {
            match spec.name() {
                dw::DW_AT_declaration => {
                    declaration = entries.read_attribute(spec)?.value() == gimli::AttributeValue::Flag(true);
                }
                dw::DW_AT_name => name = Some(entries.read_attribute(spec)?.value()),
                _ => entries.skip_attributes(&[spec])?,
            }
        }
        if declaration {
            continue;
        }
        // Names of types are `DW_FORM_string` or `DW_FORM_strp`: no other base than the section's is needed.
        let Some(name) = name.and_then(|value| value.string_value(&dwarf.debug_str)) else { continue };
        let same = |key: &&&str| {
            key.strip_prefix(keyword).and_then(|rest| rest.strip_prefix(' ')).map(str::as_bytes) == Some(name.slice())
        };
        found.extend(keys.iter().find(same).map(|key| (*key, id)));
    }
    Ok(found)
}

fn record(profile: &mut GuestProfile, fact: &Fact, layout: &TypeLayout) {
    let ty = bare(fact.key);
    if fact.size {
        profile.sizes.insert(ty.to_owned(), layout.size);
    }
    for leaf in layout.leaves() {
        let wanted = match fact.members {
            Members::All => true,
            Members::These(names) => names.contains(&leaf.path.as_str()),
        };
        if !wanted || leaf.path.is_empty() {
            continue;
        }
        let key = format!("{ty}.{}", leaf.path);
        if leaf.member.bit_field {
            profile.constants.insert(format!("{key}.bit"), leaf.member.bit_offset);
            profile.constants.insert(format!("{key}.bits"), leaf.member.bit_size);
        } else {
            profile.offsets.insert(key, leaf.member.bit_offset / 8);
        }
    }
}
