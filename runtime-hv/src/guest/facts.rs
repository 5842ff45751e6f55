//! What this guest chose at boot: processor features, thunks, paravirtual operations.
//!
//! Comes in: a located kernel. Decided: nothing. Goes out: [`Facts`], plain values, so that what is made of them can be
//! tested without a guest.

use super::modules::Loaded;
use super::{GuestError, Kernel};
use crate::engine::ReadMemory;
use std::collections::BTreeMap;
use std::sync::Arc;

/// `NCAPINTS + NBUGINTS` of any kernel so far is below this (`arch/x86/include/asm/cpufeatures.h`).
const CAPABILITY_WORDS_LIMIT: u64 = 64;

/// Choices of a booted guest. Addresses are live.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Distance between link and live addresses.
    pub slide: u64,
    /// The module whose link addresses are meant, too.
    pub module: Option<Arc<Loaded>>,
    /// `boot_cpu_data.x86_capability`.
    pub capabilities: Vec<u32>,
    /// Where returns go when [`Facts::rethunk`] is set: the value of `x86_return_thunk`.
    pub return_thunk: Option<u64>,
    /// Returns go through the thunk (`X86_FEATURE_RETHUNK`).
    pub rethunk: bool,
    /// Indirect branches go through ITS thunks (`X86_FEATURE_INDIRECT_THUNK_ITS`): a branch in the lower half of a cache
    /// line is unsafe on this processor (`arch/x86/kernel/alternative.c`, `its_allocate_thunk`).
    pub its: bool,
    /// Live values behind the link addresses that fixups and boot sites name.
    pub words: BTreeMap<u64, u64>,
    /// Live address of `_paravirt_nop` (since Linux 6.8 `nop_func`), if the profile names it.
    pub paravirt_nop: Option<u64>,
    /// Live address of `paravirt_BUG` (since Linux 6.8 `BUG_func`), if the profile names it.
    pub paravirt_bug: Option<u64>,
    /// Live address of `__static_call_return0`, if the profile names it.
    pub static_call_return0: Option<u64>,
    /// Live address of `__x86_indirect_thunk_array`, if the profile names it.
    pub thunk_array: Option<u64>,
}

impl Facts {
    /// Live address of a link address.
    #[must_use]
    pub fn live(&self, link: u64) -> u64 {
        let in_module = self.module.as_ref().and_then(|module| module.live(link));
        in_module.unwrap_or_else(|| link.wrapping_add(self.slide))
    }

    /// Whether the processor has a feature: word * 32 + bit. Unknown numbers are absent.
    #[must_use]
    pub fn has(&self, feature: u16) -> bool {
        let word = self.capabilities.get(usize::from(feature / 32)).copied().unwrap_or(0);
        word >> (feature % 32) & 1 == 1
    }
}

/// Reads the facts, and the words at `wanted` link addresses (members of `pv_ops`, keys of static calls).
///
/// # Errors
/// [`GuestError`].
pub fn read(
    memory: &dyn ReadMemory,
    kernel: &Kernel,
    wanted: impl IntoIterator<Item = u64>,
) -> Result<Facts, GuestError> {
    let at = kernel.offset("cpuinfo_x86.x86_capability")?;
    // The array is followed by the vendor string; where its size is not in the profile read as much as any kernel has.
    let words = kernel.size("cpuinfo_x86.x86_capability").map_or(CAPABILITY_WORDS_LIMIT, |bytes| bytes / 4);
    let mut bytes = vec![0; words.min(CAPABILITY_WORDS_LIMIT) as usize * 4];
    kernel.read_image(memory, kernel.symbol("boot_cpu_data")?.wrapping_add(at), &mut bytes)?;
    let capabilities = bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));

    let live = |name: &str| kernel.profile().symbols.get(name).map(|&link| kernel.live(link).0);
    let mut facts = Facts {
        slide: kernel.slide(),
        module: kernel.module().cloned(),
        capabilities: capabilities.collect(),
        paravirt_nop: live("_paravirt_nop").or_else(|| live("nop_func")),
        paravirt_bug: live("paravirt_BUG").or_else(|| live("BUG_func")),
        static_call_return0: live("__static_call_return0"),
        thunk_array: live("__x86_indirect_thunk_array"),
        ..Facts::default()
    };
    // Kernels before 5.19, and those without CONFIG_RETHUNK, have no such variable.
    if let Ok(variable) = kernel.symbol("x86_return_thunk") {
        let thunk = kernel.image_u64(memory, variable)?;
        facts.return_thunk = Some(thunk);
        facts.rethunk = facts.has(kernel.constant("X86_FEATURE_RETHUNK")? as u16);
        // ITS guards returns together with indirect branches, but leaves full retpolines as they are
        // (`arch/x86/kernel/cpu/bugs.c`, `its_select_mitigation`): only the feature tells.
        if live("its_return_thunk") == Some(thunk) {
            facts.its = facts.has(kernel.constant("X86_FEATURE_INDIRECT_THUNK_ITS")? as u16);
        }
    }
    for link in wanted {
        facts.words.insert(link, kernel.image_u64(memory, link)?);
    }
    Ok(facts)
}
