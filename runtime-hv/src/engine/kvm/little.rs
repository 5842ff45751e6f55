//! A guest of a few instructions, to measure and to test what the engine does to any guest.
//!
//! Comes in: nothing. Decided: a program that waits to be let go, leaves guest mode many times, writes a page many times, reports
//! in between, and then counts for ever. Goes out: a running machine, and where things are in it.

use super::{KvmEngine, MachineConfig, MachineError, layout};
use crate::engine::{Call, EngineError, Pa, Pause as _, Va, Wake, WriteMemory as _};
use std::time::Duration;

/// The program begins here, where kernels do.
const PROGRAM: u64 = layout::HIGH_MEMORY;
/// A word: 0 until the guest is let go.
const FLAG: Pa = Pa(0x1f_f000);
/// A word that is counted up for ever at the end.
#[cfg(test)]
pub(super) const COUNT: Pa = Pa(0x1f_e000);
/// A word that is counted up [`WRITES`] times; alone on its page.
pub(super) const WRITTEN: Pa = Pa(0x20_0000);
/// End of a stack for calls.
const STACK: Va = Va(0x1f_0000);
/// Exits before the first report.
pub(super) const EXITS: u32 = 2000;
/// Writes between the first report and the second.
pub(super) const WRITES: u32 = 1000;
/// What it reports after the exits, after the writes, and at once after that.
pub(super) const AFTER_EXITS: u32 = 1;
pub(super) const AFTER_WRITES: u32 = 2;
pub(super) const AT_ONCE: u32 = 3;

/// The sum of two arguments.
pub(super) const SUM: Va = Va(PROGRAM + 0x43);
/// A function that does not return.
#[cfg(test)]
pub(super) const ENDLESS: Va = Va(PROGRAM + 0x48);
/// Where calls return to.
pub(super) const BACK: Va = Va(PROGRAM + 0x4a);

/// The program (Intel SDM vol. 2).
fn program() -> Vec<u8> {
    let [port_low, port_high] = layout::REPORT.to_le_bytes();
    let [exits, writes] = [EXITS, WRITES].map(u32::to_le_bytes);
    let mut code = vec![
        0x83, 0x3c, 0x25, 0x00, 0xf0, 0x1f, 0x00, 0x00, // wait: cmp dword [FLAG], 0
        0x74, 0xf6, // je wait
        0xb9, exits[0], exits[1], exits[2], exits[3], // mov ecx, EXITS
        0xe6, 0x80, // exit: out 0x80, al; nothing is there
        0xe2, 0xfc, // loop exit
        0xba, port_low, port_high, 0x00, 0x00, // mov edx, REPORT
    ];
    code.extend([0xb8, AFTER_EXITS as u8, 0, 0, 0, 0xef]); // mov eax, 1; out dx, eax
    code.extend([0xb9, writes[0], writes[1], writes[2], writes[3]]); // mov ecx, WRITES
    code.extend([0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00]); // write: inc qword [WRITTEN]
    code.extend([0xe2, 0xf6]); // loop write
    code.extend([0xb8, AFTER_WRITES as u8, 0, 0, 0, 0xef]); // mov eax, 2; out dx, eax
    code.extend([0xb8, AT_ONCE as u8, 0, 0, 0, 0xef]); // mov eax, 3; out dx, eax
    code.extend([0x48, 0xff, 0x04, 0x25, 0x00, 0xe0, 0x1f, 0x00, 0xeb, 0xf6]); // count: inc qword [COUNT]; jmp count
    code.extend([0x48, 0x8d, 0x04, 0x37, 0xc3]); // SUM: lea rax, [rdi + rsi]; ret
    code.extend([0xeb, 0xfe]); // ENDLESS: jmp ENDLESS
    code.extend(layout::REPORT_CODE); // BACK
    code
}

/// The program as a kernel: an ELF file with one segment (gABI, "ELF Header", "Program Header").
fn image() -> Vec<u8> {
    let code = program();
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    for half in [2_u16, 62] {
        elf.extend(half.to_le_bytes()); // an executable, x86-64
    }
    elf.extend(1_u32.to_le_bytes());
    for word in [PROGRAM, 64, 0] {
        elf.extend(word.to_le_bytes()); // entry, program headers, no section headers
    }
    elf.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes()); // one program header
    }
    elf.extend(1_u32.to_le_bytes()); // to be loaded
    elf.extend(7_u32.to_le_bytes());
    let size = code.len() as u64;
    for word in [120, PROGRAM, PROGRAM, size, size, 4096] {
        elf.extend(word.to_le_bytes()); // file offset, addresses, sizes, alignment
    }
    elf.extend(code);
    elf
}

/// Starts it; it waits.
///
/// # Errors
/// [`MachineError`].
pub(super) fn start() -> Result<KvmEngine, MachineError> {
    let host = |reason| MachineError::Host { what: "a file for a guest of a few instructions", reason };
    let file = tempfile::NamedTempFile::new().map_err(host)?;
    std::fs::write(file.path(), image()).map_err(host)?;
    KvmEngine::start(MachineConfig {
        kernel: file.path().to_owned(),
        initrd: None,
        append: String::new(),
        cpus: 1,
        memory_mib: 8,
        devices: Vec::new(),
        input: None,
        output: Box::new(std::io::sink()),
    })
}

/// Lets it go; the guest runs afterwards.
///
/// # Errors
/// [`EngineError`].
pub(super) fn let_go(engine: &mut KvmEngine) -> Result<(), EngineError> {
    engine.pause()?;
    engine.write(FLAG, &1_u32.to_le_bytes())?;
    engine.resume()
}

/// A call of one of its functions.
pub(super) fn call(function: Va, arguments: [u64; 2]) -> Call {
    let [first, second] = arguments;
    Call {
        function,
        arguments: [first, second, 0, 0, 0, 0],
        stack: STACK,
        back: BACK,
        gs_base: 0,
        cr3: layout::PAGE_TABLES,
        limit: Duration::from_millis(200),
        wake: Some(Wake { apic_id: 0, vector: 0xfd }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_where_they_are_said_to_be() {
        let code = program();
        let at = |label: Va| &code[(label.0 - PROGRAM) as usize..];
        assert_eq!(
            (at(SUM)[..2] == [0x48, 0x8d], at(ENDLESS)[..2] == [0xeb, 0xfe], at(BACK)),
            (true, true, &layout::REPORT_CODE[..])
        );
        assert_eq!(image().len(), 120 + code.len());
    }
}
