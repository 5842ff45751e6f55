//! Which kernel runs, and where.
//!
//! Comes in: memory, registers, the bundle's kernel id and profile. Decided: the KASLR slide, the place of the image in
//! physical memory, and whether it is the very build that the bundle was made for. Goes out: a [`Kernel`].

use super::paging::{LARGE, Root, WalkError, translate};
use super::{GuestError, Kernel};
use crate::engine::{Engine, EngineError, ReadMemory, Registers, Va};
use lpk_format::{GuestProfile, KernelId, hex};
use std::time::Duration;

/// First address of the kernel's half, for 4 and for 5 levels.
pub const KERNEL_HALF: u64 = 0xff00_0000_0000_0000;
/// `KERNEL_IMAGE_SIZE` with KASLR (`arch/x86/include/asm/page_64_types.h`).
const IMAGE_SIZE: u64 = 1 << 30;
/// More notes than any kernel has.
const NOTES_LIMIT: u64 = 64 << 10;

/// How often a running guest is looked at before it counts as another one, and how long it runs in between.
const ATTEMPTS: usize = 8;
const WAIT: Duration = Duration::from_millis(2);

/// [`locate`] on a guest that runs. The page table that a processor used a moment ago may be that of a process which has
/// ended since, and hold anything: only what stays is true.
///
/// # Errors
/// [`GuestError`].
pub fn find<E: Engine>(engine: &mut E, id: &KernelId, profile: &GuestProfile) -> Result<Kernel, GuestError> {
    let mut attempt = 1;
    loop {
        let registers = engine.registers()?;
        match locate(engine, &registers, id, profile) {
            Err(
                GuestError::NotBooted(_)
                | GuestError::Slide { .. }
                | GuestError::BuildId { .. }
                | GuestError::Engine(EngineError::Memory { .. }),
            ) if attempt < ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(WAIT);
            }
            result => return result,
        }
    }
}

/// Finds the kernel behind the interrupt tables of the processors and compares its build id.
///
/// Gate 0 of a booted kernel's table leads to `asm_exc_divide_error` (`arch/x86/kernel/idt.c`, `def_idts`). Page-table
/// isolation keeps both the table and the entry code mapped in user mode, so any processor will do.
///
/// # Errors
/// [`GuestError`].
pub fn locate(
    memory: &dyn ReadMemory,
    processors: &[Registers],
    id: &KernelId,
    profile: &GuestProfile,
) -> Result<Kernel, GuestError> {
    let entry_link = super::find(&profile.symbols, "symbol", "asm_exc_divide_error")?;
    let top = super::find(&profile.symbols, "symbol", "init_top_pgt")?;
    let processor = processors
        .iter()
        .find(|registers| registers.idt_base >= KERNEL_HALF)
        .ok_or_else(|| GuestError::NotBooted("no processor has the kernel's interrupt table".into()))?;
    let root = Root::of_registers(processor.cr3, processor.cr4);
    let at = |va: u64| {
        translate(memory, root, Va(va)).map_err(|error| match error {
            WalkError::Engine(error) => GuestError::Engine(error),
            WalkError::NotMapped => GuestError::NotBooted(format!("{va:#x}, from the interrupt table, is not mapped")),
        })
    };

    // A gate: offset in bytes 0-1, 6-7 and 8-11 (Intel SDM vol. 3, figure 6-8).
    let mut gate = [0; 16];
    memory.read(at(processor.idt_base)?, &mut gate)?;
    let entry = u64::from_le_bytes([gate[0], gate[1], gate[6], gate[7], gate[8], gate[9], gate[10], gate[11]]);
    if entry < KERNEL_HALF {
        return Err(GuestError::NotBooted(format!("gate 0 of the interrupt table leads to {entry:#x}")));
    }
    let entry_pa = at(entry)?;
    let slide = entry.wrapping_sub(entry_link);
    if slide >= IMAGE_SIZE || !slide.is_multiple_of(LARGE) {
        return Err(GuestError::Slide { slide });
    }
    let mut kernel =
        Kernel { profile: profile.clone(), slide, image_delta: entry.wrapping_sub(entry_pa.0), root, module: None };
    kernel.root.table = kernel.image_pa(top);

    let found = build_id(memory, &kernel)?;
    if found.as_deref() != Some(id.build_id.as_slice()) {
        let found = found.map_or_else(|| "none".to_owned(), |found| hex::encode(&found));
        return Err(GuestError::BuildId { expected: hex::encode(&id.build_id), found });
    }
    Ok(kernel)
}

/// Build id from the ELF notes of the image: owner `GNU`, type 3 (`include/asm-generic/vmlinux.lds.h`, `NOTES`).
fn build_id(memory: &dyn ReadMemory, kernel: &Kernel) -> Result<Option<Vec<u8>>, GuestError> {
    let start = kernel.symbol("__start_notes")?;
    let length = kernel.symbol("__stop_notes")?.saturating_sub(start).min(NOTES_LIMIT);
    let mut notes = vec![0; length as usize];
    kernel.read_image(memory, start, &mut notes)?;
    let mut rest = notes.as_slice();
    while let Some((head, body)) = rest.split_first_chunk::<12>() {
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (name_len, desc_len, kind) = (word(0) as usize, word(4) as usize, word(8));
        let desc_at = name_len.next_multiple_of(4);
        let Some(desc_end) = desc_at.checked_add(desc_len) else { break };
        if desc_end > body.len() {
            break;
        }
        if kind == 3 && body.get(..name_len) == Some(b"GNU\0") {
            return Ok(Some(body[desc_at..desc_end].to_vec()));
        }
        rest = body.get(desc_end.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(None)
}
