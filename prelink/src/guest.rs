//! The guest profile: what the runtime must know of a kernel, and nothing else.
//!
//! Comes in: the kernel image, its DWARF, and the constants that only the source has. Decided: which symbols a runtime uses. Goes
//! out: a complete [`GuestProfile`]. What a kernel does not have is left out; the runtime refuses by name what it misses.

use crate::dwarf::DwarfError;
use crate::profile::layout_facts;
use crate::units::UnitIndex;
use crate::vmlinux::KernelImage;
use lpk_format::GuestProfile;

/// Symbols that the runtime uses.
const SYMBOLS: [&str; 78] = [
    // the image and its page tables: arch/x86/kernel/vmlinux.lds.S, arch/x86/kernel/head_64.S
    "_text",
    "_stext",
    "_etext",
    "__start_rodata",
    "__end_rodata",
    "_end",
    "init_top_pgt",
    "level3_kernel_pgt",
    "level2_kernel_pgt",
    "phys_base",
    "page_offset_base",
    "vmemmap_base",
    "__start_notes",
    "__stop_notes",
    "linux_banner",
    // interrupt table and entry code
    "asm_exc_divide_error",
    "asm_sysvec_irq_work",
    "entry_SYSCALL_64",
    // choices made at boot: arch/x86/kernel/alternative.c, arch/x86/lib/retpoline.S
    "boot_cpu_data",
    "x86_return_thunk",
    "__x86_return_thunk",
    "its_return_thunk",
    "pv_ops",
    "_paravirt_nop",
    "paravirt_BUG",
    "nop_func",
    "BUG_func",
    "__static_call_return0",
    "__x86_indirect_thunk_array",
    "__x86_indirect_call_thunk_array",
    "__x86_indirect_jump_thunk_array",
    "__fentry__",
    // tasks and stacks
    "init_task",
    "idle_threads",
    "runqueues",
    "current_task",
    "pcpu_hot",
    "hardirq_stack_ptr",
    "cea_exception_stacks",
    "__per_cpu_offset",
    // tables for walking stacks, and code that they say too little of: arch/x86/kernel/unwind_orc.c, ftrace_64.S
    "_sinittext",
    "_einittext",
    "__start_orc_header",
    "__stop_orc_header",
    "__start_orc_unwind_ip",
    "__stop_orc_unwind_ip",
    "__start_orc_unwind",
    "__stop_orc_unwind",
    "__switch_to_asm",
    "ret_from_fork",
    "ret_from_fork_asm",
    "return_to_handler",
    "arch_rethook_trampoline",
    "__kretprobe_trampoline",
    "kretprobe_trampoline",
    "ftrace_ops_list",
    "ftrace_list_end",
    "ftrace_caller",
    "ftrace_caller_end",
    "ftrace_regs_caller",
    "ftrace_regs_caller_end",
    // work that an interrupt brings: kernel/irq_work.c
    "raised_list",
    "x86_cpu_to_apicid",
    "nr_cpu_ids",
    "__cpu_online_mask",
    "__cpu_possible_mask",
    // locks that say that the kernel is changing its own code
    "text_mutex",
    "kprobe_mutex",
    "module_mutex",
    // registered probes: kernel/kprobes.c
    "kprobe_table",
    // low memory: arch/x86/realmode/init.c
    "real_mode_header",
    "real_mode_blob",
    "real_mode_blob_end",
    "boot_params",
    "modules",
    // slab caches: how much memory and how many nodes there are, and who else hands out objects
    // (mm/memblock.c, mm/page_alloc.c, mm/kfence/core.c)
    "max_pfn",
    "nr_node_ids",
    "__kfence_pool",
];

/// Processor features that the runtime looks at (`arch/x86/include/asm/cpufeatures.h`).
const FEATURES: [&str; 4] =
    ["X86_FEATURE_RETHUNK", "X86_FEATURE_RETPOLINE", "X86_FEATURE_RETPOLINE_LFENCE", "X86_FEATURE_INDIRECT_THUNK_ITS"];

/// The profile of a kernel. `cpu_features` is the text of its `cpufeatures.h`.
///
/// # Errors
/// [`DwarfError`] when the DWARF is malformed.
pub fn profile(image: &KernelImage, units: &UnitIndex<'_>, cpu_features: &str) -> Result<GuestProfile, DwarfError> {
    let mut profile = layout_facts(units)?;
    for name in SYMBOLS {
        if let Some(address) = image.symbols().address_of(name) {
            profile.symbols.insert(name.to_owned(), address);
        }
    }
    if let Some(table) = image.symbols().lookup("kprobe_table").next() {
        profile.constants.insert("KPROBE_TABLE_SIZE".to_owned(), table.size / 8);
    }
    place_page_array(image, &mut profile);
    for name in FEATURES {
        if let Some(number) = feature(cpu_features, name) {
            profile.constants.insert(name.to_owned(), number);
        }
    }
    // The linker script gives the first task's stack THREAD_SIZE bytes (include/asm-generic/vmlinux.lds.h, INIT_TASK_DATA
    // before Linux 6.10, INIT_STACK since).
    let pairs = [("__start_init_task", "__end_init_task"), ("__start_init_stack", "__end_init_stack")];
    let size = pairs.iter().find_map(|(start, end)| {
        let symbols = image.symbols();
        symbols.address_of(end)?.checked_sub(symbols.address_of(start)?)
    });
    if let Some(size) = size {
        profile.constants.insert("THREAD_SIZE".to_owned(), size);
    }
    Ok(profile)
}

/// Where the array of all `struct page` is, if the kernel has one (CONFIG_SPARSEMEM_VMEMMAP: mm/sparse-vmemmap.c and
/// `vmemmap_populate` of arch/x86/mm/init_64.c): a variable tells, or without CONFIG_DYNAMIC_MEMORY_LAYOUT
/// `__VMEMMAP_BASE_L4` of arch/x86/include/asm/pgtable_64_types.h.
fn place_page_array(image: &KernelImage, profile: &mut GuestProfile) {
    const VMEMMAP_BASE_L4: u64 = 0xffff_ea00_0000_0000;
    if image.symbols().lookup("vmemmap_populate").next().is_none() {
        profile.symbols.remove("vmemmap_base");
    } else if !profile.symbols.contains_key("vmemmap_base") {
        profile.constants.insert("VMEMMAP_START".to_owned(), VMEMMAP_BASE_L4);
    }
}

/// Number of a feature: `#define NAME (word*32+ bit)`.
fn feature(text: &str, name: &str) -> Option<u64> {
    let mut lines =
        text.lines().filter_map(|line| line.trim_start().strip_prefix("#define")?.trim_start().strip_prefix(name));
    let rest = lines.find(|rest| rest.starts_with([' ', '\t', '(']))?;
    let inner = rest.split_once('(')?.1.split_once(')')?.0;
    let (word, bit) = inner.split_once('+')?;
    let word = word.split_once('*').filter(|(_, size)| size.trim() == "32")?.0;
    Some(word.trim().parse::<u64>().ok()? * 32 + bit.trim().parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_word_and_bit() {
        let text = "#define X86_FEATURE_RETHUNKS (1*32+ 1)\n#define X86_FEATURE_RETHUNK\t\t(11*32+14) /* \"\" */\n#define A (1)\n";
        assert_eq!(feature(text, "X86_FEATURE_RETHUNK"), Some(11 * 32 + 14));
        assert_eq!(feature(text, "A"), None);
        assert_eq!(feature(text, "B"), None);
    }
}
