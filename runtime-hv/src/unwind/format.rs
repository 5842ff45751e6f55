//! The formats of an ORC entry.
//!
//! Comes in: where the fields of `struct orc_entry` are, and the hash that newer kernels keep of its definition. Decided: which
//! of the known formats it is; the version of the kernel does not count. Goes out: a [`Format`] that turns six bytes into an
//! [`Entry`].
//!
//! | since | fields | types | registers |
//! | --- | --- | --- | --- |
//! | Linux 4.14 | `type` of 2 bits, later `end` | CALL 0, REGS 1, REGS_PARTIAL 2 | first numbering |
//! | 6.3 | `signal` as well | the same | the same |
//! | 6.4 | `type` of 3 bits, no `end`; `.orc_header` soon after | UNDEFINED 0, END_OF_STACK 1, CALL 2, REGS 3, REGS_PARTIAL 4 | the same |
//! | 7.1 | the same | the same | second numbering, with AX |
//!
//! Sources: `arch/x86/include/asm/orc_types.h` of each; the hash is made by `scripts/orc_hash.sh` from that file.

/// Length of `.orc_header`: a SHA-1 (`scripts/orc_hash.sh`).
pub const HEADER: usize = 20;

/// A register that an entry counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// Of the stack pointer: there is no caller that could be told. Of the frame pointer: it is unchanged.
    Undefined,
    /// The caller's stack pointer.
    PrevSp,
    /// RAX.
    Ax,
    /// RDX.
    Dx,
    /// RDI.
    Di,
    /// RBP.
    Bp,
    /// RSP.
    Sp,
    /// R10.
    R10,
    /// R13.
    R13,
    /// The word that RBP and the offset lead to.
    BpIndirect,
    /// The word that RSP leads to, plus the offset.
    SpIndirect,
}

/// What lies behind the caller's stack pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing is known of this code.
    Undefined,
    /// Nobody has called this code.
    EndOfStack,
    /// A return address lies right below it.
    Call,
    /// It leads to saved registers (`struct pt_regs`).
    Regs,
    /// It leads to the part of them that the processor saves (the frame of `iret`).
    RegsPartial,
}

/// How to get from the stack of an instruction to that of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The caller's stack pointer: what it counts from.
    pub sp: Register,
    /// And how far.
    pub sp_offset: i16,
    /// Where the caller's frame pointer is kept: what that counts from.
    pub bp: Register,
    /// And how far.
    pub bp_offset: i16,
    /// What lies there.
    pub kind: Kind,
    /// The caller was interrupted: its address is that of the next instruction, not of one behind a call.
    pub signal: bool,
}

/// A field, counted in bits from the start of the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bits {
    /// First bit.
    pub first: u64,
    /// Number of bits.
    pub count: u64,
}

/// Where the fields of `struct orc_entry` are, as the kernel's debug information tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fields {
    /// Size of the structure in bytes.
    pub size: u64,
    /// Byte offset of `sp_offset`.
    pub sp_offset: u64,
    /// Byte offset of `bp_offset`.
    pub bp_offset: u64,
    /// `sp_reg`.
    pub sp_reg: Bits,
    /// `bp_reg`.
    pub bp_reg: Bits,
    /// `type`.
    pub kind: Bits,
    /// `signal`, if there is one.
    pub signal: Option<Bits>,
    /// `end`, if there is one.
    pub end: Option<Bits>,
}

/// Why the tables of a kernel cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The structure is not one of the known ones.
    #[error("`struct orc_entry` is of an unknown form: {0:?}; known are those of Linux 4.14, 6.3, 6.4 and 7.1")]
    Fields(Fields),
    /// The hash in the image is not one of the known ones.
    #[error("the kernel's `.orc_header` is {0}, an unknown definition of ORC; known are those of Linux 6.4 and 7.1")]
    Header(String),
}

/// A number in an entry that the format does not define.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the entry {0:#x} has a number that its format does not define")]
pub struct Undefined(pub u64);

/// How types are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Types {
    /// CALL 0, REGS 1, REGS_PARTIAL 2; the end is a stack pointer that counts from nothing.
    First,
    /// UNDEFINED 0, END_OF_STACK 1, CALL 2, REGS 3, REGS_PARTIAL 4.
    Second,
}

/// A format of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    fields: Fields,
    types: Types,
    registers: &'static [Register],
}

/// Since Linux 4.14, and with the eleventh in kernels between 7.0 and 7.1.
const FIRST: [Register; 11] = {
    use Register::{Ax, Bp, BpIndirect, Di, Dx, PrevSp, R10, R13, Sp, SpIndirect, Undefined};
    [Undefined, PrevSp, Dx, Di, Bp, Sp, R10, R13, BpIndirect, SpIndirect, Ax]
};
/// Since Linux 7.1.
const SECOND: [Register; 11] = {
    use Register::{Ax, Bp, BpIndirect, Di, Dx, PrevSp, R10, R13, Sp, SpIndirect, Undefined};
    [Undefined, Ax, Dx, Sp, Bp, Di, R10, R13, PrevSp, SpIndirect, BpIndirect]
};
/// Registers before RAX was among them.
const WITHOUT_AX: &[Register] = FIRST.split_at(10).0;

/// Known hashes of `.orc_header`, and the registers that each means.
const HEADERS: [(&str, &[Register]); 3] = [
    ("fe5d32bf581bd63b2ca9a5c65ba5a625eab3fe24", WITHOUT_AX),
    ("edfa4d15552fdd2e1d56679728416379f2fe4534", &FIRST),
    ("137c36ad7627c4dd55932176bb0ecdbd5041fc82", &SECOND),
];

impl Format {
    /// The format of a kernel. `header` is the contents of its `.orc_header`, if it has one.
    ///
    /// # Errors
    /// [`FormatError`] when it is none of the known ones.
    pub fn of(fields: Fields, header: Option<&[u8]>) -> Result<Format, FormatError> {
        let unknown = || FormatError::Fields(fields);
        let bits = [Some(fields.sp_reg), Some(fields.bp_reg), Some(fields.kind), fields.signal, fields.end];
        let end = fields.size.checked_mul(8).filter(|&end| end <= 64).ok_or_else(unknown)?;
        let fits = |bits: Bits| bits.count != 0 && bits.first.checked_add(bits.count).is_some_and(|last| last <= end);
        let has_word = |offset: u64| offset.checked_add(2).is_some_and(|last| last <= fields.size);
        if !bits.into_iter().flatten().all(fits) || !has_word(fields.sp_offset) || !has_word(fields.bp_offset) {
            return Err(unknown());
        }
        let types = match (fields.kind.count, fields.end, fields.signal) {
            (2, None, None) | (2, Some(_), _) => Types::First,
            (3, None, Some(_)) => Types::Second,
            _ => return Err(unknown()),
        };
        let registers = match header {
            None => WITHOUT_AX,
            Some(header) => {
                let found = lpk_format::hex::encode(header);
                let known = HEADERS.iter().find(|(hash, _)| *hash == found && types == Types::Second);
                known.ok_or(FormatError::Header(found))?.1
            }
        };
        Ok(Format { fields, types, registers })
    }

    /// Size of an entry in bytes, at most 8.
    #[must_use]
    pub fn size(&self) -> usize {
        self.fields.size as usize
    }

    /// Reads an entry. Bytes that are missing count as zeros.
    ///
    /// # Errors
    /// [`Undefined`].
    pub fn decode(&self, raw: &[u8]) -> Result<Entry, Undefined> {
        let mut bytes = [0; 8];
        for (byte, &value) in bytes.iter_mut().zip(raw.iter().take(self.size())) {
            *byte = value;
        }
        let whole = u64::from_le_bytes(bytes);
        let field = |bits: Bits| whole >> bits.first & (u64::MAX >> (64 - bits.count));
        let flag = |bits: Option<Bits>| bits.map(|bits| field(bits) != 0);
        let register = |bits: Bits| self.registers.get(field(bits) as usize).copied().ok_or(Undefined(whole));
        let sp = register(self.fields.sp_reg)?;
        let kind = match (self.types, field(self.fields.kind)) {
            (Types::First, _) if sp == Register::Undefined => {
                // Before Linux 4.18 there is no `end`, and no telling the end from code that nothing is known of.
                if flag(self.fields.end) == Some(true) { Kind::EndOfStack } else { Kind::Undefined }
            }
            (Types::Second, 0) => Kind::Undefined,
            (Types::Second, 1) => Kind::EndOfStack,
            (Types::First, 0) | (Types::Second, 2) => Kind::Call,
            (Types::First, 1) | (Types::Second, 3) => Kind::Regs,
            (Types::First, 2) | (Types::Second, 4) => Kind::RegsPartial,
            _ => return Err(Undefined(whole)),
        };
        let offset = |at: u64| field(Bits { first: at * 8, count: 16 }) as u16 as i16;
        Ok(Entry {
            sp,
            sp_offset: offset(self.fields.sp_offset),
            bp: register(self.fields.bp_reg)?,
            bp_offset: offset(self.fields.bp_offset),
            kind,
            signal: flag(self.fields.signal).unwrap_or(matches!(kind, Kind::Regs | Kind::RegsPartial)),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Fields with the given bits behind both registers.
    fn fields(kind: u64, signal: Option<u64>, end: Option<u64>) -> Fields {
        let bit = |first| Bits { first, count: 1 };
        Fields {
            size: 6,
            sp_offset: 0,
            bp_offset: 2,
            sp_reg: Bits { first: 32, count: 4 },
            bp_reg: Bits { first: 36, count: 4 },
            kind: Bits { first: 40, count: kind },
            signal: signal.map(bit),
            end: end.map(bit),
        }
    }

    /// The four formats, and the first one before it had `end`.
    pub(crate) fn all() -> [(&'static str, Format); 5] {
        let header = |index: usize| lpk_format::hex::decode(HEADERS[index].0).expect("hexadecimal");
        let format = |fields, header: Option<Vec<u8>>| Format::of(fields, header.as_deref()).expect("a known format");
        [
            ("4.14", format(fields(2, None, None), None)),
            ("4.18", format(fields(2, None, Some(42)), None)),
            ("6.3", format(fields(2, Some(42), Some(43)), None)),
            ("6.4", format(fields(3, Some(43), None), Some(header(0)))),
            ("7.1", format(fields(3, Some(43), None), Some(header(2)))),
        ]
    }

    #[test]
    fn each_format_reads_its_own_numbers() {
        use Kind::{Call, EndOfStack, Regs, RegsPartial};
        use Register::{Bp, PrevSp, R10, Sp, SpIndirect};
        // Offsets 16 and -8; then both registers in one byte, then the flags.
        let cases: [(&str, u8, u8, Register, Register, Kind, bool); 19] = [
            ("4.14", 0x15, 0b00, Sp, PrevSp, Call, false),
            ("4.14", 0x05, 0b01, Sp, Register::Undefined, Regs, true),
            ("4.14", 0x05, 0b10, Sp, Register::Undefined, RegsPartial, true),
            ("4.14", 0x00, 0b00, Register::Undefined, Register::Undefined, Kind::Undefined, false),
            ("4.18", 0x14, 0b000, Bp, PrevSp, Call, false),
            ("4.18", 0x00, 0b100, Register::Undefined, Register::Undefined, EndOfStack, false),
            ("4.18", 0x00, 0b000, Register::Undefined, Register::Undefined, Kind::Undefined, false),
            ("6.3", 0x09, 0b0000, SpIndirect, Register::Undefined, Call, false),
            ("6.3", 0x05, 0b0101, Sp, Register::Undefined, Regs, true),
            ("6.3", 0x05, 0b0001, Sp, Register::Undefined, Regs, false),
            ("6.3", 0x00, 0b1000, Register::Undefined, Register::Undefined, EndOfStack, false),
            ("6.4", 0x15, 0b0010, Sp, PrevSp, Call, false),
            ("6.4", 0x05, 0b1011, Sp, Register::Undefined, Regs, true),
            ("6.4", 0x06, 0b0010, R10, Register::Undefined, Call, false),
            ("6.4", 0x00, 0b0001, Register::Undefined, Register::Undefined, EndOfStack, false),
            ("7.1", 0x83, 0b0010, Sp, PrevSp, Call, false),
            ("7.1", 0x04, 0b1100, Bp, Register::Undefined, RegsPartial, true),
            ("7.1", 0x01, 0b0010, Register::Ax, Register::Undefined, Call, false),
            ("7.1", 0x09, 0b0000, SpIndirect, Register::Undefined, Kind::Undefined, false),
        ];
        let formats = all();
        for (name, registers, flags, sp, bp, kind, signal) in cases {
            let format = formats.iter().find(|(known, _)| *known == name).expect("a format").1;
            let expected = Entry { sp, sp_offset: 16, bp, bp_offset: -8, kind, signal };
            let found = format.decode(&[16, 0, 0xf8, 0xff, registers, flags]);
            assert_eq!(found, Ok(expected), "{name}: {registers:#x} {flags:#b}");
        }
    }

    #[test]
    fn numbers_without_a_meaning_are_refused() {
        for (name, registers, flags) in [
            ("4.14", 0x05, 0b11),
            ("4.18", 0x0a, 0),
            ("6.3", 0xf5, 0),
            ("6.4", 0x05, 0b101),
            ("6.4", 0x0a, 0b010),
            ("7.1", 0x0b, 0b010),
            ("7.1", 0x03, 0b111),
        ] {
            let (_, format) = *all().iter().find(|(known, _)| *known == name).expect("a format");
            let raw = [0, 0, 0, 0, registers, flags];
            assert!(format.decode(&raw).is_err(), "{name}: {registers:#x} {flags:#b}");
        }
        for (_, format) in all() {
            for raw in 0..=u16::MAX {
                let _ = format.decode(&[1, 2, 3, 4, raw as u8, (raw >> 8) as u8]);
            }
            let _ = format.decode(&[]);
        }
    }

    #[test]
    fn unknown_forms_are_said() {
        let good = fields(3, Some(43), None);
        for bad in [
            Fields { kind: Bits { first: 40, count: 4 }, ..good },
            Fields { signal: None, ..good },
            Fields { end: good.signal, ..good },
            Fields { size: 5, ..good },
            Fields { size: 9, ..good },
            Fields { size: u64::MAX, ..good },
            Fields { sp_offset: 5, ..good },
            Fields { bp_reg: Bits { first: u64::MAX, count: 4 }, ..good },
            Fields { sp_reg: Bits { first: 32, count: 0 }, ..good },
        ] {
            assert_eq!(Format::of(bad, None), Err(FormatError::Fields(bad)));
        }
        assert!(Format::of(good, None).is_ok(), "some kernels of that form have no header");
        let error = Format::of(good, Some(&[7; HEADER])).expect_err("an unknown hash").to_string();
        assert!(error.contains(&"07".repeat(HEADER)), "{error}");
        assert!(matches!(Format::of(good, Some(&[])), Err(FormatError::Header(_))));
        let first = fields(2, None, Some(42));
        let header = lpk_format::hex::decode(HEADERS[0].0).expect("hexadecimal");
        assert!(matches!(Format::of(first, Some(&header)), Err(FormatError::Header(_))), "no such kernel");
    }
}
