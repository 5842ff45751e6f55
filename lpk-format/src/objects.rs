//! Objects on the heap that get a value for what is new in them, and their records.
//!
//! Comes in: records to encode, or the bytes of `.lucos.objects`. Decided: whether the bytes are records at all; what they mean
//! is checked in `check/objects`. Goes out: bytes, or records.

use crate::records::{Cursor, RecordError};

/// Bytes of a record of `.lucos.objects`, without what is behind it.
const OBJECTS_SIZE: usize = 32;
/// Bytes of a place in an object, without its contents.
const ADDED_SIZE: usize = 8;

/// A type whose objects are all of one slab cache and get a value for what is new in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectPatch {
    /// The type, as `struct file`.
    pub type_name: String,
    /// Name of the variable that points to their slab cache.
    pub cache: String,
    /// Link address of that variable.
    pub cache_address: u64,
    /// Size of an object in bytes, as old code allocates it.
    pub old_size: u32,
    /// Size of an object in bytes, as new code knows it.
    pub new_size: u32,
    /// What is new, in order of offset, no byte twice. The rest of an object keeps what it holds.
    pub added: Vec<AddedBytes>,
}

/// Bytes of an object that nothing was in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedBytes {
    /// Offset in the object in bytes.
    pub offset: u32,
    /// What they hold at first.
    pub bytes: Vec<u8>,
}

impl AddedBytes {
    /// Offset of the first byte behind them.
    #[must_use]
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + self.bytes.len() as u64
    }
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// Bytes of a record.
pub(crate) fn size(objects: &ObjectPatch) -> usize {
    let added = objects.added.iter().map(|added| ADDED_SIZE + padded(added.bytes.len()));
    OBJECTS_SIZE + padded(objects.type_name.len()) + padded(objects.cache.len()) + added.sum::<usize>()
}

/// Appends one record.
pub(crate) fn encode(objects: &ObjectPatch, out: &mut Vec<u8>) {
    out.extend_from_slice(&objects.cache_address.to_le_bytes());
    let counts = [objects.type_name.len(), objects.cache.len(), objects.added.len()].map(|count| count as u32);
    for field in [objects.old_size, objects.new_size].into_iter().chain(counts).chain([0]) {
        out.extend_from_slice(&field.to_le_bytes());
    }
    pad(objects.type_name.as_bytes(), out);
    pad(objects.cache.as_bytes(), out);
    for added in &objects.added {
        out.extend_from_slice(&added.offset.to_le_bytes());
        out.extend_from_slice(&(added.bytes.len() as u32).to_le_bytes());
        pad(&added.bytes, out);
    }
}

fn pad(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(bytes);
    out.resize(padded(out.len()), 0);
}

/// Reads all of `.lucos.objects`.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<ObjectPatch>, RecordError> {
    let mut cursor = Cursor::new(bytes);
    let mut objects = Vec::new();
    while !cursor.is_empty() {
        objects.push(decode_one(&mut cursor)?);
        cursor.index += 1;
    }
    Ok(objects)
}

fn decode_one(cursor: &mut Cursor<'_>) -> Result<ObjectPatch, RecordError> {
    let index = cursor.index;
    let cache_address = cursor.u64()?;
    let [old_size, new_size, type_name, cache, count, _reserved] =
        [cursor.u32()?, cursor.u32()?, cursor.u32()?, cursor.u32()?, cursor.u32()?, cursor.u32()?];
    let mut text = |len| -> Result<String, RecordError> {
        String::from_utf8(unpad(cursor, len)?.to_vec()).map_err(|_| RecordError::Text { index })
    };
    let (type_name, cache) = (text(type_name)?, text(cache)?);
    let mut added = Vec::new();
    for _ in 0..count {
        let [offset, len] = [cursor.u32()?, cursor.u32()?];
        added.push(AddedBytes { offset, bytes: unpad(cursor, len)?.to_vec() });
    }
    Ok(ObjectPatch { type_name, cache, cache_address, old_size, new_size, added })
}

fn unpad<'data>(cursor: &mut Cursor<'data>, len: u32) -> Result<&'data [u8], RecordError> {
    let bytes = cursor.take(len as usize)?;
    cursor.take((len as usize).wrapping_neg() % 8)?;
    Ok(bytes)
}
