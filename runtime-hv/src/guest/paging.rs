//! Page walks, 4 and 5 levels (Intel SDM vol. 3, 4.5).
//!
//! Comes in: a root table and a virtual address. Decided: nothing but what the tables say; permissions are not looked at.
//! Goes out: the physical address, or that there is none.

use crate::engine::{EngineError, Pa, ReadMemory, Va};

/// Bytes in a small page.
pub const PAGE: usize = 4096;
/// Bytes that one entry of a page directory covers.
pub const LARGE: u64 = 2 << 20;
/// Entry is present.
pub const PRESENT: u64 = 1;
/// Entry allows writes.
pub const WRITE: u64 = 1 << 1;
/// Entry has been used.
pub const ACCESSED: u64 = 1 << 5;
/// Page has been written.
pub const DIRTY: u64 = 1 << 6;
/// Page is not executable.
pub const NO_EXECUTE: u64 = 1 << 63;

const LARGE_BIT: u64 = 1 << 7;
/// Bits of an entry that are a physical address.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A root table and its depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// Physical address of the top table.
    pub table: Pa,
    /// 5 levels instead of 4.
    pub five_levels: bool,
}

impl Root {
    /// The root that a processor uses now: CR3, and bit 12 of CR4 (LA57).
    #[must_use]
    pub fn of_registers(cr3: u64, cr4: u64) -> Root {
        Root { table: Pa(cr3 & ADDRESS), five_levels: cr4 & (1 << 12) != 0 }
    }
}

/// Why a walk ended early.
#[derive(Debug)]
pub enum WalkError {
    /// An entry on the way is not present.
    NotMapped,
    /// A table could not be read.
    Engine(EngineError),
}

/// Physical address behind `va`.
///
/// # Errors
/// [`WalkError`].
pub fn translate(memory: &dyn ReadMemory, root: Root, va: Va) -> Result<Pa, WalkError> {
    match walk(memory, root, va).map_err(WalkError::Engine)? {
        Step { pa: Some(pa), .. } => Ok(pa),
        Step { pa: None, .. } => Err(WalkError::NotMapped),
    }
}

/// What the tables say of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Where it leads, if it is mapped.
    pub pa: Option<Pa>,
    /// Bytes from the address on, itself included, of which the same entry tells; 0 for an address that is none.
    pub rest: u64,
}

/// Walks the tables for `va`, and tells how far the answer holds.
///
/// # Errors
/// When a table cannot be read.
pub fn walk(memory: &dyn ReadMemory, root: Root, va: Va) -> Result<Step, EngineError> {
    let top = if root.five_levels { 4 } else { 3 };
    // Canonical: all bits above the translated ones repeat the highest of them.
    let unused = 64 - (12 + 9 * (top + 1));
    if ((va.0 << unused) as i64 >> unused) as u64 != va.0 {
        return Ok(Step { pa: None, rest: 0 });
    }
    let mut table = root.table.0;
    for level in (0..=top).rev() {
        let shift = 12 + 9 * level;
        let within = (1 << shift) - 1;
        let rest = (1 << shift) - (va.0 & within);
        let mut entry = [0; 8];
        memory.read(Pa(table + ((va.0 >> shift) & 511) * 8), &mut entry)?;
        let entry = u64::from_le_bytes(entry);
        if entry & PRESENT == 0 {
            return Ok(Step { pa: None, rest });
        }
        // 1 GiB and 2 MiB pages end the walk above the last level.
        if level == 0 || (level <= 2 && entry & LARGE_BIT != 0) {
            return Ok(Step { pa: Some(Pa((entry & ADDRESS & !within) | (va.0 & within))), rest });
        }
        table = entry & ADDRESS;
    }
    Ok(Step { pa: None, rest: 0 })
}
