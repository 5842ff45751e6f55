//! Existing data that an update changes, and their records.
//!
//! Comes in: changes to encode, or the bytes of `.lucos.data`. Decided: whether the bytes are records at all; what they mean is
//! checked in `check/data`. Goes out: bytes, or changes.

use crate::SectionKind;
use crate::records::{Cursor, RecordError};
use std::ops::Range;

/// Bytes of a record of `.lucos.data`, without what is behind it.
const DATUM_SIZE: usize = 48;
/// Bytes of a step of a transfer.
const STEP_SIZE: usize = 32;
/// Sections by their number in a record, from 1.
const SECTIONS: [SectionKind; 4] = [SectionKind::Text, SectionKind::Rodata, SectionKind::Data, SectionKind::Bss];

/// An existing datum that the update changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataPatch {
    /// Name.
    pub name: String,
    /// Translation unit.
    pub unit: String,
    /// Link address of the old datum.
    pub old_address: u64,
    /// Its size in bytes.
    pub old_size: u32,
    /// Section of the new contents in the payload.
    pub section: SectionKind,
    /// Byte offset of the new contents in it.
    pub new_offset: u32,
    /// Size of the new contents in bytes.
    pub new_size: u32,
    /// What becomes of the old datum.
    pub change: DataChange,
}

/// What becomes of an old datum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataChange {
    /// It stays where it is, and bytes of the new contents are written over it.
    InPlace {
        /// Its initial contents as linked; as long as the old datum, or empty when all of it is zero.
        initial: Vec<u8>,
        /// Offsets of the fields of 8 bytes in it that hold an address of the kernel, which KASLR moves; sorted.
        slides: Vec<u32>,
        /// Bytes in which nothing was; sorted. They may lie behind the old datum, up to the new size.
        added: Vec<Range<u32>>,
        /// Bytes whose initial contents change; sorted.
        edited: Vec<Range<u32>>,
        /// Whether they are written although the guest has changed them since it booted.
        overwrite: bool,
    },
    /// The new contents are the datum from now on; while old code still runs, each is made from the other.
    Moved {
        /// How the new one is made from the old one; sorted by the bits of the new one.
        to_new: Vec<Step>,
        /// How the old one is made from the new one; sorted by the bits of the old one.
        to_old: Vec<Step>,
    },
}

/// A step of a transfer. Places and sizes are in bits; bit 0 is the lowest of byte 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// First bit in the source.
    pub from: u32,
    /// Bits in the source.
    pub from_size: u32,
    /// First bit in the target.
    pub to: u32,
    /// Bits in the target.
    pub to_size: u32,
    /// How.
    pub how: StepKind,
}

/// How bits are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepKind {
    /// As they are, in equal number.
    Copy,
    /// A number of at most 64 bits that becomes wider, without a sign.
    ZeroExtend,
    /// A number of at most 64 bits that becomes wider, with a sign.
    SignExtend,
    /// A number of at most 64 bits that becomes narrower, without a sign; the transfer fails when it does not fit.
    NarrowUnsigned,
    /// A number of at most 64 bits that becomes narrower, with a sign; the transfer fails when it does not fit.
    NarrowSigned,
    /// A value for at most 64 bits, whatever the source holds.
    Constant(u64),
}

impl StepKind {
    fn number(self) -> u8 {
        match self {
            Self::Copy => 1,
            Self::ZeroExtend => 2,
            Self::SignExtend => 3,
            Self::NarrowUnsigned => 4,
            Self::NarrowSigned => 5,
            Self::Constant(_) => 6,
        }
    }
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// Bytes of a datum's record.
pub(crate) fn size(datum: &DataPatch) -> usize {
    let behind = match &datum.change {
        DataChange::InPlace { initial, slides, added, edited, .. } => {
            padded(initial.len()) + padded(4 * slides.len()) + 8 * (added.len() + edited.len())
        }
        DataChange::Moved { to_new, to_old } => STEP_SIZE * (to_new.len() + to_old.len()),
    };
    DATUM_SIZE + padded(datum.name.len()) + padded(datum.unit.len()) + behind
}

/// Appends one datum.
pub(crate) fn encode(datum: &DataPatch, out: &mut Vec<u8>) {
    let section = SECTIONS.iter().position(|known| *known == datum.section).map_or(0, |at| at as u8 + 1);
    let (kind, overwrite, counts) = match &datum.change {
        DataChange::InPlace { initial, slides, added, edited, overwrite } => {
            (1, u8::from(*overwrite), [initial.len(), slides.len(), added.len(), edited.len()])
        }
        DataChange::Moved { to_new, to_old } => (2, 0, [0, 0, to_new.len(), to_old.len()]),
    };
    out.extend_from_slice(&[kind, section, overwrite, 0]);
    out.extend_from_slice(&datum.old_size.to_le_bytes());
    out.extend_from_slice(&datum.old_address.to_le_bytes());
    let lens = [datum.name.len() as u32, datum.unit.len() as u32];
    for field in [datum.new_offset, datum.new_size].into_iter().chain(lens).chain(counts.map(|count| count as u32)) {
        out.extend_from_slice(&field.to_le_bytes());
    }
    for text in [&datum.name, &datum.unit] {
        pad(text.as_bytes(), out);
    }
    match &datum.change {
        DataChange::InPlace { initial, slides, added, edited, .. } => {
            pad(initial, out);
            pad(&slides.iter().flat_map(|slide| slide.to_le_bytes()).collect::<Vec<u8>>(), out);
            for range in added.iter().chain(edited) {
                out.extend_from_slice(&range.start.to_le_bytes());
                out.extend_from_slice(&range.end.to_le_bytes());
            }
        }
        DataChange::Moved { to_new, to_old } => to_new.iter().chain(to_old).for_each(|step| encode_step(step, out)),
    }
}

fn pad(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(bytes);
    out.resize(padded(out.len()), 0);
}

fn encode_step(step: &Step, out: &mut Vec<u8>) {
    for field in [step.from, step.from_size, step.to, step.to_size] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(&[step.how.number(), 0, 0, 0, 0, 0, 0, 0]);
    let value = if let StepKind::Constant(value) = step.how { value } else { 0 };
    out.extend_from_slice(&value.to_le_bytes());
}

/// Reads all of `.lucos.data`.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<DataPatch>, RecordError> {
    let mut cursor = Cursor::new(bytes);
    let mut data = Vec::new();
    while !cursor.is_empty() {
        data.push(decode_one(&mut cursor)?);
        cursor.index += 1;
    }
    Ok(data)
}

fn decode_one(cursor: &mut Cursor<'_>) -> Result<DataPatch, RecordError> {
    let index = cursor.index;
    let [kind, section, flag, _reserved] = [cursor.u8()?, cursor.u8()?, cursor.u8()?, cursor.u8()?];
    let (old_size, old_address) = (cursor.u32()?, cursor.u64()?);
    let (new_offset, new_size) = (cursor.u32()?, cursor.u32()?);
    let [name, unit, initial, slides, first, second] =
        [cursor.u32()?, cursor.u32()?, cursor.u32()?, cursor.u32()?, cursor.u32()?, cursor.u32()?];
    let known = usize::from(section).checked_sub(1).and_then(|at| SECTIONS.get(at));
    let section = *known.ok_or(RecordError::Kind { index, kind: section })?;
    let mut text = |len| -> Result<String, RecordError> {
        String::from_utf8(unpad(cursor, len)?.to_vec()).map_err(|_| RecordError::Text { index })
    };
    let (name, unit) = (text(name)?, text(unit)?);
    let change = match (kind, flag) {
        (1, 0 | 1) => DataChange::InPlace {
            initial: unpad(cursor, initial)?.to_vec(),
            slides: unpad(cursor, slides.saturating_mul(4))?
                .chunks_exact(4)
                .map(|slide| u32::from_le_bytes([slide[0], slide[1], slide[2], slide[3]]))
                .collect(),
            added: decode_ranges(cursor, first)?,
            edited: decode_ranges(cursor, second)?,
            overwrite: flag == 1,
        },
        (2, 0) => DataChange::Moved { to_new: decode_steps(cursor, first)?, to_old: decode_steps(cursor, second)? },
        (1 | 2, value) => return Err(RecordError::Flag { index, value }),
        (kind, _) => return Err(RecordError::Kind { index, kind }),
    };
    Ok(DataPatch { name, unit, old_address, old_size, section, new_offset, new_size, change })
}

fn unpad<'data>(cursor: &mut Cursor<'data>, len: u32) -> Result<&'data [u8], RecordError> {
    let bytes = cursor.take(len as usize)?;
    cursor.take((len as usize).wrapping_neg() % 8)?;
    Ok(bytes)
}

fn decode_ranges(cursor: &mut Cursor<'_>, count: u32) -> Result<Vec<Range<u32>>, RecordError> {
    let mut ranges = Vec::new();
    for _ in 0..count {
        ranges.push(cursor.u32()?..cursor.u32()?);
    }
    Ok(ranges)
}

fn decode_steps(cursor: &mut Cursor<'_>, count: u32) -> Result<Vec<Step>, RecordError> {
    let mut steps = Vec::new();
    for _ in 0..count {
        let [from, from_size, to, to_size] = [cursor.u32()?, cursor.u32()?, cursor.u32()?, cursor.u32()?];
        let kind = cursor.u8()?;
        cursor.take(7)?;
        let value = cursor.u64()?;
        let how = match kind {
            1 => StepKind::Copy,
            2 => StepKind::ZeroExtend,
            3 => StepKind::SignExtend,
            4 => StepKind::NarrowUnsigned,
            5 => StepKind::NarrowSigned,
            6 => StepKind::Constant(value),
            kind => return Err(RecordError::Kind { index: cursor.index, kind }),
        };
        steps.push(Step { from, from_size, to, to_size, how });
    }
    Ok(steps)
}
