//! A view of the Linux guest through its physical memory.
//!
//! Comes in: guest memory, registers of its processors and the profile that travels in a bundle. Decided: where the kernel
//! image is, and what each address means. Goes out: [`Kernel`], which reads by link address, by virtual address or by
//! name. Nothing here writes, and nothing here trusts what the guest holds: every walk is bounded.

pub mod arena;
pub mod facts;
pub mod frames;
pub mod identity;
pub mod irq_work;
pub mod modules;
pub mod paging;
pub mod probes;
pub mod returns;
pub mod slab;
pub mod snapshot;
pub mod stacks;
pub mod support;
pub mod tasks;

#[cfg(test)]
pub(crate) mod fake;

use crate::engine::{EngineError, Pa, ReadMemory, Va};
use lpk_format::GuestProfile;
use modules::Loaded;
use paging::{Root, WalkError};
use std::sync::Arc;

/// Why the guest could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// No processor has a kernel interrupt table yet, or it does not lead into the kernel.
    #[error("the guest has not booted far enough: {0}")]
    NotBooted(String),
    /// The distance between link and live addresses is not one that KASLR produces.
    #[error(
        "the interrupt table says the kernel is {slide:#x} away from its link address; expected a multiple of 2 MiB below 1 GiB (another kernel, or one that is only beginning to boot)"
    )]
    Slide {
        /// What was found.
        slide: u64,
    },
    /// The running kernel is another build.
    #[error("the running kernel has build id {found}; the bundle was made for {expected}")]
    BuildId {
        /// The bundle's.
        expected: String,
        /// The guest's.
        found: String,
    },
    /// The bundle's profile lacks a fact.
    #[error("the bundle's guest profile has no {kind} `{name}`; rebuild the bundle")]
    Missing {
        /// `symbol`, `offset`, `size` or `constant`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A virtual address that the guest's page tables do not map.
    #[error("the guest does not map {va:#x} ({what})")]
    NotMapped {
        /// The address.
        va: u64,
        /// What was read there.
        what: &'static str,
    },
    /// A structure of the guest is not what a Linux kernel holds.
    #[error("the guest's {what} is damaged: {detail}")]
    Damaged {
        /// Which structure.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// The hypervisor failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A located kernel: link addresses, live addresses and physical addresses of one boot.
#[derive(Debug, Clone)]
pub struct Kernel {
    profile: GuestProfile,
    slide: u64,
    /// Live virtual address minus physical address, the same for the whole image.
    image_delta: u64,
    root: Root,
    /// The module whose link addresses are meant, too.
    module: Option<Arc<Loaded>>,
}

impl Kernel {
    /// Distance of the live kernel from its link address.
    #[must_use]
    pub fn slide(&self) -> u64 {
        self.slide
    }

    /// The facts that the bundle brought along.
    #[must_use]
    pub fn profile(&self) -> &GuestProfile {
        &self.profile
    }

    /// Physical address of the kernel's link address `_text`-relative zero; with the slide it identifies a boot.
    #[must_use]
    pub fn image_delta(&self) -> u64 {
        self.image_delta
    }

    /// The kernel's own page table.
    #[must_use]
    pub fn root(&self) -> Root {
        self.root
    }

    /// Link address of a symbol (per-CPU symbols: offset in the per-CPU area).
    ///
    /// # Errors
    /// [`GuestError::Missing`].
    pub fn symbol(&self, name: &str) -> Result<u64, GuestError> {
        find(&self.profile.symbols, "symbol", name)
    }

    /// Byte offset of a member, `type.member`.
    ///
    /// # Errors
    /// [`GuestError::Missing`].
    pub fn offset(&self, name: &str) -> Result<u64, GuestError> {
        find(&self.profile.offsets, "offset", name)
    }

    /// Size of a type.
    ///
    /// # Errors
    /// [`GuestError::Missing`].
    pub fn size(&self, name: &str) -> Result<u64, GuestError> {
        find(&self.profile.sizes, "size", name)
    }

    /// Value of a constant.
    ///
    /// # Errors
    /// [`GuestError::Missing`].
    pub fn constant(&self, name: &str) -> Result<u64, GuestError> {
        find(&self.profile.constants, "constant", name)
    }

    /// The same kernel, seen by the part of a bundle that is about a module.
    #[must_use]
    pub fn with_module(self, module: Loaded) -> Kernel {
        Kernel { module: Some(Arc::new(module)), ..self }
    }

    /// The module whose link addresses are meant, too.
    #[must_use]
    pub fn module(&self) -> Option<&Arc<Loaded>> {
        self.module.as_ref()
    }

    /// Live address of a link address.
    #[must_use]
    pub fn live(&self, link: u64) -> Va {
        let in_module = self.module.as_ref().and_then(|module| module.live(link));
        Va(in_module.unwrap_or_else(|| link.wrapping_add(self.slide)))
    }

    /// Whether a link address is one of the module.
    #[must_use]
    pub fn is_of_module(&self, link: u64) -> bool {
        self.module.as_ref().is_some_and(|module| module.live(link).is_some())
    }

    /// Where `length` bytes at a link address are in physical memory: the image as a whole, a module page by page.
    ///
    /// # Errors
    /// [`GuestError::NotMapped`] or [`GuestError::Engine`].
    pub fn places(&self, memory: &dyn ReadMemory, link: u64, length: usize) -> Result<Vec<(Pa, usize)>, GuestError> {
        if !self.is_of_module(link) {
            return Ok(vec![(self.image_pa(link), length)]);
        }
        let (mut at, mut rest, mut places) = (self.live(link).0, length, Vec::new());
        while rest != 0 {
            let here = rest.min(paging::PAGE - (at as usize & (paging::PAGE - 1)));
            places.push((self.translate(memory, Va(at), "a module")?, here));
            (at, rest) = (at.wrapping_add(here as u64), rest - here);
        }
        Ok(places)
    }

    /// Physical address of a link address of the image, which is physically contiguous
    /// (`arch/x86/kernel/head_64.S`: one `phys_base` for all of it).
    #[must_use]
    pub fn image_pa(&self, link: u64) -> Pa {
        Pa(self.live(link).0.wrapping_sub(self.image_delta))
    }

    /// Reads the image, or the module, at a link address.
    ///
    /// # Errors
    /// [`GuestError::Engine`]; of a module also [`GuestError::NotMapped`].
    pub fn read_image(&self, memory: &dyn ReadMemory, link: u64, into: &mut [u8]) -> Result<(), GuestError> {
        if self.is_of_module(link) {
            return self.read(memory, self.live(link), into, "a module");
        }
        Ok(memory.read(self.image_pa(link), into)?)
    }

    /// Reads a 64-bit word of the image at a link address.
    ///
    /// # Errors
    /// [`GuestError::Engine`].
    pub fn image_u64(&self, memory: &dyn ReadMemory, link: u64) -> Result<u64, GuestError> {
        let mut word = [0; 8];
        self.read_image(memory, link, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// Where the kernel has all physical memory ("direct mapping of all physical memory", `Documentation/x86/x86_64/mm.rst`): a
    /// variable where that can move (`arch/x86/mm/kaslr.c`), else a constant.
    ///
    /// # Errors
    /// [`GuestError::Engine`].
    pub fn direct_map(&self, memory: &dyn ReadMemory) -> Result<u64, GuestError> {
        const FOUR_LEVELS: u64 = 0xffff_8880_0000_0000;
        const FIVE_LEVELS: u64 = 0xff11_0000_0000_0000;
        match self.symbol("page_offset_base") {
            Ok(link) => self.image_u64(memory, link),
            Err(_) if self.root.five_levels => Ok(FIVE_LEVELS),
            Err(_) => Ok(FOUR_LEVELS),
        }
    }

    /// Physical address behind a virtual one, through the kernel's own tables.
    ///
    /// # Errors
    /// [`GuestError::NotMapped`] or [`GuestError::Engine`].
    pub fn translate(&self, memory: &dyn ReadMemory, va: Va, what: &'static str) -> Result<Pa, GuestError> {
        paging::translate(memory, self.root, va).map_err(|error| match error {
            WalkError::Engine(error) => GuestError::Engine(error),
            WalkError::NotMapped => GuestError::NotMapped { va: va.0, what },
        })
    }

    /// Reads at a virtual address, page by page.
    ///
    /// # Errors
    /// [`GuestError::NotMapped`] or [`GuestError::Engine`].
    pub fn read(&self, memory: &dyn ReadMemory, va: Va, into: &mut [u8], what: &'static str) -> Result<(), GuestError> {
        let mut at = va.0;
        let mut rest = into;
        while !rest.is_empty() {
            let here = rest.len().min(paging::PAGE - (at as usize & (paging::PAGE - 1)));
            let (now, later) = rest.split_at_mut(here);
            memory.read(self.translate(memory, Va(at), what)?, now)?;
            rest = later;
            at = at.wrapping_add(here as u64);
        }
        Ok(())
    }

    /// Reads a 64-bit word at a virtual address.
    ///
    /// # Errors
    /// [`GuestError::NotMapped`] or [`GuestError::Engine`].
    pub fn read_u64(&self, memory: &dyn ReadMemory, va: Va, what: &'static str) -> Result<u64, GuestError> {
        let mut word = [0; 8];
        self.read(memory, va, &mut word, what)?;
        Ok(u64::from_le_bytes(word))
    }
}

fn find(map: &std::collections::BTreeMap<String, u64>, kind: &'static str, name: &str) -> Result<u64, GuestError> {
    map.get(name).copied().ok_or_else(|| GuestError::Missing { kind, name: name.to_owned() })
}
