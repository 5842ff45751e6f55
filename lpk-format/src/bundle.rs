//! The contents of a bundle as plain values: what the producer fills and the consumer reads.
//!
//! Comes in: nothing; these are the shared words of both sides. Decided: nothing. Goes out: [`Bundle`], which
//! [`crate::write`] turns into a relocatable ELF file and [`crate::read`] turns back after checking everything.
//!
//! All addresses are *link addresses*: those of `vmlinux` and `System.map`, before the guest's KASLR slide is added.

mod manifest;
mod old;
mod payload;
mod reference;
mod table;

pub use manifest::{LeftOut, Manifest, ManifestDatum, ManifestFunction, OldCode, Omitted, UpdateType, Vouched};
pub use old::{BootSite, BootSiteKind, FunctionPatch};
pub use payload::{Fixup, Payload, SectionKind};
pub use reference::{Place, Reloc, RelocKind, Symbol};
pub use table::{Table, TableKind};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything a runtime needs to update one kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Which kernel the bundle was made for.
    pub kernel: KernelId,
    /// What the runtime must know of that kernel.
    pub profile: GuestProfile,
    /// What the bundle is, for people and pipelines.
    pub manifest: Manifest,
    /// New code and data.
    pub payload: Payload,
    /// Old functions to redirect, in order of `old_address`.
    pub functions: Vec<FunctionPatch>,
    /// The support object, which prepares the guest for new code from inside; linked as the payload is, without tables.
    pub support: Option<Payload>,
    /// The module whose functions these are; `None` when they are the kernel image's own.
    pub module: Option<ModuleId>,
    /// The parts of the bundle that change loadable modules: bundles of the same kernel and update, each with a
    /// [`Bundle::module`], sorted by its name. A part has no parts and no support object of its own.
    pub modules: Vec<Bundle>,
}

impl Bundle {
    /// The bundle itself, then its parts: everything that redirects functions.
    pub fn parts(&self) -> impl Iterator<Item = &Bundle> {
        std::iter::once(self).chain(&self.modules)
    }
}

/// Identity of a loadable module, and the link addresses that its part of a bundle uses.
///
/// A module is linked when it is loaded, each time elsewhere. So that its functions can be named like those of the kernel
/// image, each of its sections has a *link address* of the bundle's own, in [`MODULE_SPACE`]; the runtime finds out
/// where the section is in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleId {
    /// Name, as `/proc/modules` prints it.
    pub name: String,
    /// GNU build id of the `.ko`, 4 to 64 bytes, written as lower-case hexadecimal in JSON.
    #[serde(with = "crate::hex")]
    pub build_id: Vec<u8>,
    /// Its sections in memory, sorted by address.
    pub sections: Vec<ModuleSection>,
    /// Symbols that it takes from other modules, sorted by address, behind the sections.
    pub imports: Vec<ModuleImport>,
}

/// A section of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleSection {
    /// Name in the `.ko`.
    pub name: String,
    /// Link address.
    pub address: u64,
    /// Size in bytes. An empty section has no known place in a guest, and only the addresses of empty data lie in it.
    pub size: u64,
}

/// A symbol that a module takes from another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleImport {
    /// Name, as exported.
    pub name: String,
    /// Link address that stands for it.
    pub address: u64,
}

/// Link addresses of the sections and imports of a module: where the kernel maps modules
/// (`arch/x86/include/asm/pgtable_64_types.h`), so that displacements from there to the kernel image can be written down.
pub const MODULE_SPACE: std::ops::Range<u64> = 0xffff_ffff_c000_0000..0xffff_ffff_ff00_0000;

/// Identity of a kernel build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelId {
    /// GNU build id of `vmlinux`, 4 to 64 bytes, written as lower-case hexadecimal in JSON.
    #[serde(with = "crate::hex")]
    pub build_id: Vec<u8>,
    /// Release, as `uname -r` prints it.
    pub release: String,
    /// `linux_banner`, without the newline.
    pub banner: String,
}

/// Facts of a kernel that the runtime uses; nothing else about a kernel is built into the runtime.
///
/// A runtime asks for what it needs by name and refuses the bundle when a name is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestProfile {
    /// Link addresses of kernel symbols (per-CPU symbols: offsets in the per-CPU area).
    pub symbols: BTreeMap<String, u64>,
    /// Byte offsets of members, keyed `type.member` (`task_struct.tasks`).
    pub offsets: BTreeMap<String, u64>,
    /// Sizes of types in bytes.
    pub sizes: BTreeMap<String, u64>,
    /// Enumerators and other constants (`PG_reserved`, `THREAD_SIZE`).
    pub constants: BTreeMap<String, u64>,
}
