//! Return points of old functions with a counterpart in the new ones, and their records.
//!
//! Comes in: pairs to encode, or a part of `.lucos.returns`. Decided: whether the bytes are records at all; what they mean is
//! checked in `check/functions`. Goes out: bytes, or pairs.

use crate::records::{Cursor, RecordError};

/// Bytes of a record of `.lucos.returns`.
pub(crate) const RETURN_SIZE: usize = 8;

/// A return point of an old function, and where a frame that waits there can go on in the new one: same callee, same frame,
/// and all that is live there was made by the same instructions.
///
/// Both are offsets, in bytes, of the instruction behind a call, from the start of the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReturnPair {
    /// Offset in the old function.
    pub old: u32,
    /// Offset in the new function.
    pub new: u32,
}

/// Appends one record.
pub(crate) fn encode(pair: ReturnPair, out: &mut Vec<u8>) {
    out.extend_from_slice(&pair.old.to_le_bytes());
    out.extend_from_slice(&pair.new.to_le_bytes());
}

/// Reads the records of one function: all of `bytes`.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<ReturnPair>, RecordError> {
    let mut cursor = Cursor::new(bytes);
    let mut pairs = Vec::new();
    while !cursor.is_empty() {
        pairs.push(ReturnPair { old: cursor.u32()?, new: cursor.u32()? });
        cursor.index += 1;
    }
    Ok(pairs)
}
