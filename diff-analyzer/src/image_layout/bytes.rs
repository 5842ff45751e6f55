//! Numbers in bytes that may end too early.
//!
//! Comes in: bytes, and a place. Decided: nothing. Goes out: the number or text there, or that the bytes end before it does.

use gimli::{EndianSlice, LittleEndian, Reader as _};

/// The eight bytes at a place, as a number; behind the end are zeroes.
#[inline]
pub(super) fn load(bytes: &[u8], at: usize) -> u64 {
    match bytes.get(at..).and_then(|rest| rest.first_chunk()) {
        Some(eight) => u64::from_le_bytes(*eight),
        None => load_rest(bytes, at),
    }
}

#[cold]
fn load_rest(bytes: &[u8], at: usize) -> u64 {
    let rest = bytes.get(at..).unwrap_or_default();
    rest.iter().take(8).rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// A number in LEB128, and `at` behind it; none when it does not end or is too large.
#[inline]
pub(super) fn uleb(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let &first = bytes.get(*at)?;
    if first < 0x80 {
        *at += 1;
        return Some(u64::from(first));
    }
    long_uleb(bytes, at)
}

fn long_uleb(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut rest = EndianSlice::new(bytes.get(*at..)?, LittleEndian);
    let value = rest.read_uleb128().ok()?;
    *at = bytes.len() - rest.len();
    Some(value)
}

/// How many bytes are in front of the first zero byte.
#[inline]
pub(super) fn text_length(bytes: &[u8], at: usize) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let eight = load(bytes, at);
    // The lowest set bit is that of the first zero byte.
    let zero = eight.wrapping_sub(ONES) & !eight & ONES << 7;
    let length = match zero {
        0 => bytes.get(at..)?.iter().position(|&byte| byte == 0)?,
        zero => zero.trailing_zeros() as usize / 8,
    };
    (at + length < bytes.len()).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::{load, text_length, uleb};

    #[test]
    fn behind_the_end_is_nothing() {
        let bytes = [1, 2, 3, 0x84];
        assert_eq!(load(&bytes, 1), 0x84_03_02);
        assert_eq!(load(&bytes, 9), 0);
        let mut at = 3;
        assert_eq!(uleb(&bytes, &mut at), None);
        assert_eq!(uleb(&[0x84, 1], &mut 0), Some(132));
        assert_eq!(text_length(b"abc", 0), None);
        assert_eq!(text_length(b"abc\0", 0), Some(3));
        assert_eq!(text_length(b"abc\0", 4), None);
        assert_eq!(text_length(b"a name of some length\0", 2), Some(19));
    }
}
