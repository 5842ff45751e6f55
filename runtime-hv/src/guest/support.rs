//! The support object, seen from the host: what it can be asked, and what comes back.
//!
//! Comes in: the object as linked payload. Decided: whether it is of the version known here. Goes out: the bytes of a request
//! and the meaning of an answer. `support/request.h` is the other side. Everything that the guest writes is data from a
//! stranger: the caller checks addresses before it uses them.

use super::GuestError;
use lpk_format::{Payload, Place, SectionKind, TableKind};
use serde::{Deserialize, Serialize};

/// `LUCOS_ABI`.
const ABI: u32 = 2;
/// `sizeof(struct lucos_request)`.
pub const REQUEST_SIZE: usize = 256;
/// Bytes of a module's name with its final zero (`MODULE_NAME_LEN`, `include/linux/module.h`).
pub const NAME_SIZE: usize = 56;

/// Why the guest cannot be asked to prepare anything.
#[derive(Debug, thiserror::Error)]
pub enum SupportError {
    /// The object in the bundle is not one that this version can use.
    #[error("the bundle's support object is not usable: {0}")]
    Object(String),
    /// The kernel's interrupt table has no such gate.
    #[error("no gate of the guest's interrupt table leads to `asm_sysvec_irq_work`")]
    NoVector,
    /// No processor can be interrupted.
    #[error("no online processor of the guest has an APIC id below 255")]
    NoProcessor,
    /// The guest could not be read.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// What the guest is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Memory for new code.
    Allocate,
    /// Make the memory known as a module.
    Register,
    /// Forget the module, if there is one, and free the memory.
    Release,
}

/// A range of the guest's memory; size 0: there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First address.
    pub address: u64,
    /// Size in bytes.
    pub size: u64,
}

/// Symbols of a module, as the kernel keeps them (`struct mod_kallsyms`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SymbolTable {
    /// Address of the symbols.
    pub symbols: u64,
    /// How many there are.
    pub count: u64,
    /// Address of their names.
    pub names: u64,
    /// Address of their types.
    pub types: u64,
}

/// `struct lucos_request` as it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// Address of the area.
    pub base: u64,
    /// Size of the area in bytes.
    pub size: u64,
    /// Its code ends here.
    pub text_size: u64,
    /// Its read-only data ends here.
    pub ro_size: u64,
    /// Address of the `struct module`; 0: none.
    pub module: u64,
    /// Tables in the order of [`TableKind::ALL`].
    pub tables: [Extent; TableKind::ALL.len()],
    /// Symbols.
    pub symbols: SymbolTable,
    /// Name of the module.
    pub name: String,
}

impl Request {
    /// A request with nothing but its operation and size.
    #[must_use]
    pub fn new(operation: Operation, size: u64) -> Request {
        Request {
            operation,
            base: 0,
            size,
            text_size: 0,
            ro_size: 0,
            module: 0,
            tables: [Extent::default(); TableKind::ALL.len()],
            symbols: SymbolTable::default(),
            name: String::new(),
        }
    }

    /// As the guest reads it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let operation: u32 = match self.operation {
            Operation::Allocate => 1,
            Operation::Register => 2,
            Operation::Release => 3,
        };
        let mut bytes = Vec::with_capacity(REQUEST_SIZE);
        bytes.extend(operation.to_le_bytes());
        bytes.extend([0; 4 + 8]); // state and result
        let words = [self.base, self.size, self.text_size, self.ro_size, self.module];
        let tables = self.tables.iter().flat_map(|table| [table.address, table.size]);
        let symbols = [self.symbols.symbols, self.symbols.count, self.symbols.names, self.symbols.types];
        bytes.extend(words.into_iter().chain(tables).chain(symbols).flat_map(u64::to_le_bytes));
        bytes.extend(self.name.bytes().take(NAME_SIZE - 1));
        bytes.resize(REQUEST_SIZE, 0);
        bytes
    }
}

/// How far the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It has not begun.
    Asked,
    /// It is at work.
    Running,
    /// It is done.
    Done,
}

/// `struct lucos_request` as it comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// How far the guest is; the rest counts only when it is done.
    pub state: State,
    /// 0 or a negative error number.
    pub result: i64,
    /// Address of the area.
    pub base: u64,
    /// Address of the `struct module`.
    pub module: u64,
}

impl Answer {
    /// Reads it. What is no known state counts as being at work.
    #[must_use]
    pub fn of(bytes: &[u8; REQUEST_SIZE]) -> Answer {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let state = match u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) {
            0 => State::Asked,
            2 => State::Done,
            _ => State::Running,
        };
        Answer { state, result: word(8) as i64, base: word(16), module: word(48) }
    }
}

/// Where things are in the support object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Object {
    /// Offset of the request in `.data`.
    pub request: u32,
    /// Offset of the `struct irq_work` in `.data`.
    pub work: u32,
    /// Offset of its pointer to the next one.
    pub next: u32,
    /// Offset of its flags.
    pub flags: u32,
    /// Flags while it is on a list or runs.
    pub claimed: u32,
    /// Offset of a module's name in `struct module`.
    pub module_name: u32,
}

impl Object {
    /// Looks into a support object.
    ///
    /// # Errors
    /// [`SupportError::Object`].
    pub fn of(payload: &Payload) -> Result<Object, SupportError> {
        let wrong = |reason: String| SupportError::Object(reason);
        let find = |name: &str, wanted: SectionKind, size: usize| {
            let symbol = payload.symbols.iter().find(|symbol| symbol.name == name);
            let offset = symbol.and_then(|symbol| match symbol.place {
                Place::Payload { section, offset } if section == wanted => Some(offset),
                _ => None,
            });
            let inside = |offset: &u32| *offset as usize + size <= payload.bytes_of(wanted).len();
            offset.filter(inside).ok_or_else(|| wrong(format!("no `{name}` in {wanted:?}")))
        };
        let at = find("lucos_support_abi", SectionKind::Rodata, 6 * 4)? as usize;
        let facts = payload.rodata[at..at + 6 * 4].as_chunks::<4>().0;
        let fact = |index: usize| facts.get(index).map_or(0, |word| u32::from_le_bytes(*word));
        if (fact(0), fact(1) as usize) != (ABI, REQUEST_SIZE) {
            let found = format!("interface {} with requests of {} bytes", fact(0), fact(1));
            return Err(wrong(format!("it has {found}; expected {ABI} with {REQUEST_SIZE}; build the bundle again")));
        }
        let (next, flags) = (fact(2), fact(3));
        let work_size = next.max(flags).saturating_add(8) as usize;
        let object = Object {
            request: find("lucos_support_request", SectionKind::Data, REQUEST_SIZE)?,
            work: find("lucos_support_work", SectionKind::Data, work_size)?,
            next,
            flags,
            claimed: fact(4),
            module_name: fact(5),
        };
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_its_fields_where_the_guest_looks() {
        let mut request = Request::new(Operation::Register, 0x3000);
        (request.base, request.text_size, request.ro_size, request.module) = (0x11, 0x22, 0x33, 0x44);
        request.tables[6] = Extent { address: 0x55, size: 0x66 };
        request.symbols = SymbolTable { symbols: 0x77, count: 0x88, names: 0x99, types: 0xaa };
        request.name = "n".repeat(80);
        let bytes = request.to_bytes();
        assert_eq!(bytes.len(), REQUEST_SIZE);
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte));
        assert_eq!([0, 8, 16, 24, 32, 40, 48].map(word), [2, 0, 0x11, 0x3000, 0x22, 0x33, 0x44]);
        assert_eq!([152, 160, 168, 176, 184, 192].map(word), [0x55, 0x66, 0x77, 0x88, 0x99, 0xaa]);
        assert_eq!((bytes[200], bytes[254], bytes[255]), (b'n', b'n', 0));
    }

    #[test]
    fn an_answer_is_read_back() {
        let mut bytes = [0; REQUEST_SIZE];
        assert_eq!(Answer::of(&bytes).state, State::Asked);
        bytes[4] = 1;
        assert_eq!(Answer::of(&bytes).state, State::Running);
        bytes[4] = 2;
        bytes[8..16].copy_from_slice(&(-12_i64).to_le_bytes());
        bytes[16] = 7;
        bytes[48] = 9;
        assert_eq!(Answer::of(&bytes), Answer { state: State::Done, result: -12, base: 7, module: 9 });
        bytes[7] = 1;
        assert_eq!(Answer::of(&bytes).state, State::Running);
    }
}
