//! Memory of a running guest that the guest itself does not change: kernel text, read-only data, the kernel's own page
//! table, low memory.
//!
//! Comes in: the test's own QMP socket, the guest's symbol table. Decided: where the kernel lies in physical memory, by a way of our
//! own (interrupt gate 0 of a processor). Goes out: [`Snapshot`], compared byte by byte and by SHA-256.

use crate::guest::{Guest, GuestError};
use qapi::{Qmp, Stream, qmp};
use sha2::{Digest as _, Sha256};
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why guest memory could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DigestError {
    /// The monitor does not answer.
    #[error("monitor {path}: {reason}")]
    Monitor {
        /// Its socket.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The monitor's answer has another form.
    #[error("monitor answered `{answer}` to `{command}`; expected {expected}")]
    Answer {
        /// What was asked.
        command: String,
        /// What came.
        answer: String,
        /// What was expected.
        expected: &'static str,
    },
    /// Two ways to find the kernel disagree.
    #[error("interrupt gate 0 leads to {live:#x}, the guest's symbol table says {symbol:#x}")]
    Gate {
        /// What the processor would do.
        live: u64,
        /// What the guest says.
        symbol: u64,
    },
    /// The guest.
    #[error(transparent)]
    Guest(#[from] Box<GuestError>),
    /// This guest has no monitor for the test.
    #[error("the guest was not started with a monitor for the test")]
    NoMonitor,
    /// Files.
    #[error("memory of the guest: {0}")]
    Io(#[from] std::io::Error),
}

/// A connection to the test's own monitor.
pub struct Monitor {
    qmp: Qmp<Stream<BufReader<UnixStream>, UnixStream>>,
    path: PathBuf,
}

impl Monitor {
    /// Connects to a QMP socket.
    ///
    /// # Errors
    /// [`DigestError::Monitor`] when nobody answers.
    pub fn connect(path: &Path) -> Result<Self, DigestError> {
        let failed = |error: std::io::Error| DigestError::Monitor { path: path.to_owned(), reason: error.to_string() };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).map_err(failed)?;
        let reader = BufReader::new(stream.try_clone().map_err(failed)?);
        let mut qmp = Qmp::new(Stream::new(reader, stream));
        qmp.handshake().map_err(|error| failed(error.into()))?;
        Ok(Self { qmp, path: path.to_owned() })
    }

    /// Runs a command of the human monitor.
    ///
    /// # Errors
    /// [`DigestError::Monitor`] when it fails.
    pub fn human(&mut self, command: &str) -> Result<String, DigestError> {
        self.qmp
            .execute(&qmp::human_monitor_command { command_line: command.to_owned(), cpu_index: None })
            .map_err(|error| DigestError::Monitor { path: self.path.clone(), reason: error.to_string() })
    }

    /// State of the machine as QMP names it (`running`, `paused`).
    ///
    /// # Errors
    /// [`DigestError::Monitor`] when it fails.
    pub fn is_running(&mut self) -> Result<bool, DigestError> {
        self.qmp
            .execute(&qmp::query_status {})
            .map(|info| info.running)
            .map_err(|error| DigestError::Monitor { path: self.path.clone(), reason: error.to_string() })
    }

    /// Guest-physical memory.
    ///
    /// # Errors
    /// [`DigestError`] when the monitor or the file between fails.
    pub fn physical(&mut self, from: u64, len: u64) -> Result<Vec<u8>, DigestError> {
        let file = tempfile::NamedTempFile::new()?;
        let filename = file.path().display().to_string();
        self.qmp
            .execute(&qmp::pmemsave { val: from, size: len, filename })
            .map_err(|error| DigestError::Monitor { path: self.path.clone(), reason: error.to_string() })?;
        Ok(std::fs::read(file.path())?)
    }
}

/// One piece of guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    name: &'static str,
    from: u64,
    bytes: Vec<u8>,
}

/// Guest memory at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pieces: Vec<Piece>,
}

/// Low memory that a booted kernel leaves alone, without the page of interrupt vectors at its start.
const LOW_MEMORY: (u64, u64) = (0x1000, 0x9_e000);
/// The handler of interrupt 0, and the bounds of what is compared (arch/x86/kernel/vmlinux.lds.S).
const SYMBOLS: &[&str] =
    &["asm_exc_divide_error", "_text", "_etext", "__start_rodata", "__end_rodata", "level2_kernel_pgt"];

impl Snapshot {
    /// Reads the memory of a running guest. Symbols are the guest's own, so that any kernel will do.
    ///
    /// # Errors
    /// [`DigestError`] when the guest or its monitor does not answer as expected.
    pub fn take(guest: &mut Guest) -> Result<Self, DigestError> {
        let symbols = guest.symbols(SYMBOLS).map_err(Box::new)?;
        let [gate, text, text_end, rodata, rodata_end, table] = symbols[..] else {
            return Err(DigestError::Answer {
                command: "/proc/kallsyms".to_owned(),
                answer: format!("{symbols:x?}"),
                expected: "one address per symbol",
            });
        };
        let mut monitor = Monitor::connect(guest.monitor().ok_or(DigestError::NoMonitor)?)?;
        let live_gate = divide_error_gate(&mut monitor)?;
        if live_gate != gate {
            return Err(DigestError::Gate { live: live_gate, symbol: gate });
        }
        // Entry code is mapped in every address space, also with page-table isolation.
        let command = format!("gva2gpa {gate:#x}");
        let answer = monitor.human(&command)?;
        let physical = answer
            .split("0x")
            .nth(1)
            .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
            .ok_or(DigestError::Answer { command, answer: answer.clone(), expected: "gpa: 0x…" })?;
        // The image lies in one piece in physical memory (arch/x86/boot/compressed/kaslr.c, choose_random_location).
        let locate = |address: u64| physical.wrapping_sub(gate).wrapping_add(address);
        let ranges = [
            ("text", locate(text), text_end.saturating_sub(text)),
            ("read-only data", locate(rodata), rodata_end.saturating_sub(rodata)),
            ("level2_kernel_pgt", locate(table), 4096),
            ("low memory", LOW_MEMORY.0, LOW_MEMORY.1 - LOW_MEMORY.0),
        ];
        let mut pieces = Vec::new();
        for (name, from, len) in ranges {
            pieces.push(Piece { name, from, bytes: monitor.physical(from, len)? });
        }
        Ok(Self { pieces })
    }

    /// SHA-256 of everything, lower-case hexadecimal.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for piece in &self.pieces {
            hash.update(piece.name);
            hash.update(piece.from.to_le_bytes());
            hash.update(&piece.bytes);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The first difference, in words; nothing when both are equal.
    pub fn difference(&self, other: &Self) -> Option<String> {
        if self.sha256() == other.sha256() {
            return None;
        }
        for (one, two) in self.pieces.iter().zip(&other.pieces) {
            if (one.from, one.bytes.len()) != (two.from, two.bytes.len()) {
                return Some(format!("{}: at {:#x} before, at {:#x} after", one.name, one.from, two.from));
            }
            let different = one.bytes.iter().zip(&two.bytes).enumerate().filter(|(_, (a, b))| a != b);
            let places: Vec<u64> = different.map(|(at, _)| one.from + at as u64).collect();
            if let (Some(first), Some(last)) = (places.first(), places.last()) {
                return Some(format!(
                    "{}: {} bytes differ between {first:#x} and {last:#x} ({:#x} from its start)",
                    one.name,
                    places.len(),
                    first - one.from
                ));
            }
        }
        None
    }
}

/// Address of the handler behind interrupt gate 0 (Intel SDM vol. 3, 6.14.1).
fn divide_error_gate(monitor: &mut Monitor) -> Result<u64, DigestError> {
    let registers = monitor.human("info registers")?;
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let idt = registers.split("IDT=").nth(1).and_then(|rest| rest.split_whitespace().next()).and_then(hex).ok_or(
        DigestError::Answer {
            command: "info registers".to_owned(),
            answer: registers.clone(),
            expected: "IDT= and an address",
        },
    )?;
    let command = format!("x/2gx {idt:#x}");
    let answer = monitor.human(&command)?;
    let words: Vec<u64> = answer.split_whitespace().skip(1).filter_map(hex).collect();
    let [low, high] = words[..] else {
        return Err(DigestError::Answer { command, answer, expected: "two words of the gate" });
    };
    Ok(high << 32 | (low >> 48) << 16 | low & 0xffff)
}
