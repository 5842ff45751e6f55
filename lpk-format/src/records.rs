//! The records of the project's own sections: both directions side by side.
//!
//! Comes in: values to encode, or the bytes of a section. Decided: whether the bytes are records at all; what the
//! values mean is checked later, in `check`. Goes out: bytes, or values. All numbers are little-endian.

use crate::layout::{NOTE_BANNER, NOTE_BUILD_ID, NOTE_OWNER, NOTE_RELEASE};
use crate::{BootSite, BootSiteKind, Fixup, KernelId, Place, RelocKind, Table, TableKind};

/// Bytes of a record of `.lucos.functions`.
pub(crate) const FUNCTION_SIZE: usize = 64;
/// Bytes of a record of `.lucos.fixups`.
pub(crate) const FIXUP_SIZE: usize = 24;
/// Bytes of a record of `.lucos.tables`.
pub(crate) const TABLE_SIZE: usize = 12;
/// Bytes of a record of `.lucos.sites`, without the forms behind it.
pub(crate) const SITE_SIZE: usize = 16;
/// Kind of a boot site that is a relocation.
const RELOCATION: u8 = 12;

/// Bytes that are not the record they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The section ends inside a record.
    #[error("it ends inside record {index}: {missing} more bytes are expected")]
    Truncated {
        /// Index of the record.
        index: usize,
        /// Bytes that are missing.
        missing: usize,
    },
    /// A number that names no kind of record.
    #[error("record {index} has the unknown kind {kind}")]
    Kind {
        /// Index of the record.
        index: usize,
        /// The number.
        kind: u8,
    },
    /// A flag that is neither 0 nor 1.
    #[error("record {index} has the flag {value}, 0 or 1 is expected")]
    Flag {
        /// Index of the record.
        index: usize,
        /// The number.
        value: u8,
    },
    /// A number of records that differs from the number announced.
    #[error("{found} records are there, {announced} were announced")]
    Count {
        /// Records that are there.
        found: usize,
        /// Records that were announced.
        announced: u32,
    },
    /// A note whose owner, type or order is another.
    #[error("note {index} has the owner {owner:?} and type {note_type:#x}; `Lucos` and {expected:#x} are expected")]
    Note {
        /// Index of the note.
        index: usize,
        /// Its owner.
        owner: String,
        /// Its type.
        note_type: u32,
        /// The type that was expected.
        expected: u32,
    },
    /// Text that is not UTF-8.
    #[error("the text of record {index} is not UTF-8")]
    Text {
        /// Index of the record.
        index: usize,
    },
    /// Bytes behind the last record.
    #[error("{0} bytes lie behind the last record")]
    Trailing(usize),
}

/// Reads numbers off the front of a section.
pub(crate) struct Cursor<'data> {
    rest: &'data [u8],
    /// Index of the record being read, for errors.
    pub(crate) index: usize,
}

impl<'data> Cursor<'data> {
    pub(crate) fn new(rest: &'data [u8]) -> Self {
        Self { rest, index: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'data [u8], RecordError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or_else(|| RecordError::Truncated { index: self.index, missing: count - self.rest.len() })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        Ok(self.take(N)?.try_into().expect("take returns the count it was asked for"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, RecordError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, RecordError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, RecordError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, RecordError> {
        self.array().map(u64::from_le_bytes)
    }
}

/// A record of `.lucos.functions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FunctionRecord {
    pub(crate) old_address: u64,
    pub(crate) old_size: u32,
    pub(crate) expected_offset: u32,
    pub(crate) sites_offset: u32,
    pub(crate) sites_size: u32,
    pub(crate) sites_count: u32,
    pub(crate) new_offset: u32,
    pub(crate) new_size: u32,
    pub(crate) manifest_index: u32,
    pub(crate) jump_offset: u8,
    pub(crate) returns_offset: u32,
    pub(crate) returns_count: u32,
}

impl FunctionRecord {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let end = out.len() + FUNCTION_SIZE;
        out.extend_from_slice(&self.old_address.to_le_bytes());
        for field in [
            self.old_size,
            self.expected_offset,
            self.sites_offset,
            self.sites_size,
            self.sites_count,
            self.new_offset,
            self.new_size,
            self.manifest_index,
        ] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&[self.jump_offset, 0, 0, 0]);
        out.extend_from_slice(&self.returns_offset.to_le_bytes());
        out.extend_from_slice(&self.returns_count.to_le_bytes());
        out.resize(end, 0);
    }

    pub(crate) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, RecordError> {
        let mut record = Cursor { rest: cursor.take(FUNCTION_SIZE)?, index: cursor.index };
        cursor.index += 1;
        Ok(Self {
            old_address: record.u64()?,
            old_size: record.u32()?,
            expected_offset: record.u32()?,
            sites_offset: record.u32()?,
            sites_size: record.u32()?,
            sites_count: record.u32()?,
            new_offset: record.u32()?,
            new_size: record.u32()?,
            manifest_index: record.u32()?,
            jump_offset: record.array::<4>()?[0],
            returns_offset: record.u32()?,
            returns_count: record.u32()?,
        })
    }
}

/// Bytes of a boot site with its forms.
pub(crate) fn site_size(site: &BootSite) -> usize {
    let forms = if let BootSiteKind::Alternative { forms } = &site.kind { forms.as_slice() } else { &[] };
    let addend = if matches!(site.kind, BootSiteKind::Relocation { .. }) { 8 } else { 0 };
    SITE_SIZE + addend + forms.iter().map(Vec::len).sum::<usize>()
}

/// Appends one boot site. The caller has checked that an alternative has at most 255 forms of `len` bytes.
pub(crate) fn encode_site(site: &BootSite, out: &mut Vec<u8>) {
    let (kind, operand, forms): (u8, u64, &[Vec<u8>]) = match &site.kind {
        BootSiteKind::Slide32 => (1, 0, &[]),
        BootSiteKind::Slide64 => (2, 0, &[]),
        BootSiteKind::SlideNegative32 => (3, 0, &[]),
        BootSiteKind::Ftrace => (4, 0, &[]),
        BootSiteKind::Alternative { forms } => (5, 0, forms),
        BootSiteKind::Paravirt { slot } => (6, *slot, &[]),
        BootSiteKind::Retpoline => (7, 0, &[]),
        BootSiteKind::Return => (8, 0, &[]),
        BootSiteKind::StaticCall { key } => (9, *key, &[]),
        BootSiteKind::JumpLabel { target } => (10, *target, &[]),
        BootSiteKind::SmpLock => (11, 0, &[]),
        BootSiteKind::Constant { variable } => (13, *variable, &[]),
        BootSiteKind::Relocation { .. } => return encode_relocation(site, out),
    };
    out.extend_from_slice(&site.offset.to_le_bytes());
    out.extend_from_slice(&[site.len, kind, forms.len() as u8, 0]);
    out.extend_from_slice(&operand.to_le_bytes());
    forms.iter().for_each(|form| out.extend_from_slice(form));
}

/// A relocation: its type and whether it moves in place of the forms' number, its symbol as operand, the addend behind it.
fn encode_relocation(site: &BootSite, out: &mut Vec<u8>) {
    let BootSiteKind::Relocation { kind, place, addend } = site.kind else { return };
    // A place in the payload is refused before anything is written.
    let (moves, value) = match place {
        Place::Kernel(address) => (1, address),
        Place::Absolute(value) => (0, value),
        Place::Payload { .. } => (2, 0),
    };
    out.extend_from_slice(&site.offset.to_le_bytes());
    out.extend_from_slice(&[site.len, RELOCATION, kind.elf_type() as u8, moves]);
    out.extend_from_slice(&value.to_le_bytes());
    out.extend_from_slice(&addend.to_le_bytes());
}

/// Appends the file of a part: its size, then its bytes, up to a multiple of 8.
pub(crate) fn encode_part(file: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(file.len() as u64).to_le_bytes());
    out.extend_from_slice(file);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// The files of the parts.
pub(crate) fn decode_parts(bytes: &[u8]) -> Result<Vec<&[u8]>, RecordError> {
    let mut cursor = Cursor::new(bytes);
    let mut parts = Vec::new();
    while !cursor.is_empty() {
        let size = usize::try_from(cursor.u64()?).unwrap_or(usize::MAX);
        parts.push(cursor.take(size)?);
        cursor.take(size.wrapping_neg() % 8)?;
        cursor.index += 1;
    }
    Ok(parts)
}

/// Reads the boot sites of one function: all of `bytes`.
pub(crate) fn decode_sites(bytes: &[u8], announced: u32) -> Result<Vec<BootSite>, RecordError> {
    let mut cursor = Cursor::new(bytes);
    let mut sites = Vec::new();
    while !cursor.is_empty() {
        let offset = cursor.u32()?;
        let [len, kind, form_count, moves] = cursor.array()?;
        let operand = cursor.u64()?;
        if kind == RELOCATION {
            let index = cursor.index;
            let kind = RelocKind::of_elf(form_count.into()).ok_or(RecordError::Kind { index, kind: form_count })?;
            let place = if moves == 1 { Place::Kernel(operand) } else { Place::Absolute(operand) };
            let addend = cursor.u64()? as i64;
            sites.push(BootSite { offset, len, kind: BootSiteKind::Relocation { kind, place, addend } });
            cursor.index += 1;
            continue;
        }
        let forms = cursor.take(usize::from(form_count) * usize::from(len))?;
        let kind = match kind {
            1 => BootSiteKind::Slide32,
            2 => BootSiteKind::Slide64,
            3 => BootSiteKind::SlideNegative32,
            4 => BootSiteKind::Ftrace,
            5 => BootSiteKind::Alternative {
                forms: forms.chunks_exact(usize::from(len).max(1)).map(<[u8]>::to_vec).collect(),
            },
            6 => BootSiteKind::Paravirt { slot: operand },
            7 => BootSiteKind::Retpoline,
            8 => BootSiteKind::Return,
            9 => BootSiteKind::StaticCall { key: operand },
            10 => BootSiteKind::JumpLabel { target: operand },
            11 => BootSiteKind::SmpLock,
            13 => BootSiteKind::Constant { variable: operand },
            kind => return Err(RecordError::Kind { index: cursor.index, kind }),
        };
        sites.push(BootSite { offset, len, kind });
        cursor.index += 1;
    }
    if sites.len() as u64 == u64::from(announced) {
        Ok(sites)
    } else {
        Err(RecordError::Count { found: sites.len(), announced })
    }
}

/// Appends one fixup.
pub(crate) fn encode_fixup(fixup: &Fixup, out: &mut Vec<u8>) {
    let (offset, [kind, len, replacement_len, inverted], replacement, feature, slot) = match *fixup {
        Fixup::Paravirt { offset, len, slot } => (offset, [1, len, 0, 0], 0, 0, slot),
        Fixup::Retpoline { offset } => (offset, [2, 0, 0, 0], 0, 0, 0),
        Fixup::Return { offset } => (offset, [3, 0, 0, 0], 0, 0, 0),
        Fixup::Alternative { offset, len, replacement, replacement_len, feature, inverted } => {
            (offset, [4, len, replacement_len, u8::from(inverted)], replacement, feature, 0)
        }
        Fixup::Constant { offset, len, variable } => (offset, [5, len, 0, 0], 0, 0, variable),
    };
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&[kind, len, replacement_len, inverted]);
    out.extend_from_slice(&replacement.to_le_bytes());
    out.extend_from_slice(&feature.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&slot.to_le_bytes());
}

/// Reads all of `.lucos.fixups`.
pub(crate) fn decode_fixups(bytes: &[u8]) -> Result<Vec<Fixup>, RecordError> {
    let mut cursor = Cursor::new(bytes);
    let mut fixups = Vec::new();
    while !cursor.is_empty() {
        let index = cursor.index;
        let offset = cursor.u32()?;
        let [kind, len, replacement_len, flag] = cursor.array()?;
        let (replacement, feature, _reserved, slot) = (cursor.u32()?, cursor.u16()?, cursor.u16()?, cursor.u64()?);
        let inverted = match flag {
            0 => false,
            1 => true,
            value => return Err(RecordError::Flag { index, value }),
        };
        fixups.push(match kind {
            1 => Fixup::Paravirt { offset, len, slot },
            2 => Fixup::Retpoline { offset },
            3 => Fixup::Return { offset },
            4 => Fixup::Alternative { offset, len, replacement, replacement_len, feature, inverted },
            5 => Fixup::Constant { offset, len, variable: slot },
            kind => return Err(RecordError::Kind { index, kind }),
        });
        cursor.index += 1;
    }
    Ok(fixups)
}

/// Appends one table.
pub(crate) fn encode_table(table: &Table, out: &mut Vec<u8>) {
    let kind = TableKind::ALL.iter().position(|kind| *kind == table.kind).map_or(0, |at| at as u8 + 1);
    out.extend_from_slice(&[kind, 0, 0, 0]);
    out.extend_from_slice(&table.offset.to_le_bytes());
    out.extend_from_slice(&table.size.to_le_bytes());
}

/// Reads all of `.lucos.tables`.
pub(crate) fn decode_tables(bytes: &[u8]) -> Result<Vec<Table>, RecordError> {
    let mut cursor = Cursor::new(bytes);
    let mut tables = Vec::new();
    while !cursor.is_empty() {
        let [kind, _reserved @ ..]: [u8; 4] = cursor.array()?;
        let known = usize::from(kind).checked_sub(1).and_then(|at| TableKind::ALL.get(at));
        let kind = *known.ok_or(RecordError::Kind { index: cursor.index, kind })?;
        tables.push(Table { kind, offset: cursor.u32()?, size: cursor.u32()? });
        cursor.index += 1;
    }
    Ok(tables)
}

/// Appends one note (gABI "Note Section": fields padded to 4 bytes).
pub(crate) fn encode_note(owner: &[u8], note_type: u32, content: &[u8], out: &mut Vec<u8>) {
    for field in [owner.len() as u32, content.len() as u32, note_type] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    for part in [owner, content] {
        out.extend_from_slice(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// Contents of `.note.lucos.kernel`.
pub(crate) fn encode_kernel_notes(kernel: &KernelId) -> Vec<u8> {
    let mut out = Vec::new();
    encode_note(NOTE_OWNER, NOTE_BUILD_ID, &kernel.build_id, &mut out);
    encode_note(NOTE_OWNER, NOTE_RELEASE, kernel.release.as_bytes(), &mut out);
    encode_note(NOTE_OWNER, NOTE_BANNER, kernel.banner.as_bytes(), &mut out);
    out
}

/// Reads `.note.lucos.kernel`.
pub(crate) fn decode_kernel_notes(bytes: &[u8]) -> Result<KernelId, RecordError> {
    let mut cursor = Cursor::new(bytes);
    let build_id = note(&mut cursor, NOTE_BUILD_ID)?.to_vec();
    let mut text = |expected| {
        let content = note(&mut cursor, expected)?;
        String::from_utf8(content.to_vec()).map_err(|_| RecordError::Text { index: cursor.index - 1 })
    };
    let (release, banner) = (text(NOTE_RELEASE)?, text(NOTE_BANNER)?);
    if cursor.is_empty() {
        Ok(KernelId { build_id, release, banner })
    } else {
        Err(RecordError::Trailing(cursor.rest.len()))
    }
}

/// Reads one note of the project and returns its content.
fn note<'data>(cursor: &mut Cursor<'data>, expected: u32) -> Result<&'data [u8], RecordError> {
    let (owner_len, len, note_type) = (cursor.u32()? as usize, cursor.u32()? as usize, cursor.u32()?);
    let mut padded = |len: usize| {
        let padding = len.wrapping_neg() % 4;
        let content = cursor.take(len)?;
        cursor.take(padding).map(|_| content)
    };
    let (owner, content) = (padded(owner_len)?, padded(len)?);
    if owner != NOTE_OWNER || note_type != expected {
        let owner = String::from_utf8_lossy(owner).into_owned();
        return Err(RecordError::Note { index: cursor.index, owner, note_type, expected });
    }
    cursor.index += 1;
    Ok(content)
}
