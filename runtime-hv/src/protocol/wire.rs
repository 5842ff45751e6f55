//! Lines of JSON, and bundles, on the control socket.
//!
//! Comes in: bytes that may be anything. Decided: how long a line and a bundle may be; nothing is allocated for more. Goes out:
//! values, or `InvalidData`.

use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Read};

/// A request line is never longer than this.
pub const LINE_LIMIT: u64 = 64 << 10;

/// An answer line is never longer than this.
pub const ANSWER_LIMIT: u64 = 16 << 20;

/// A bundle is never larger than this.
pub const BUNDLE_LIMIT: u64 = 64 << 20;

/// Reads one bounded line of JSON.
///
/// # Errors
/// `InvalidData` when the line is too long, unfinished or not what it should be.
pub fn read_line<T: for<'de> Deserialize<'de>>(from: &mut impl BufRead, limit: u64) -> io::Result<T> {
    let mut line = Vec::new();
    from.take(limit).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        let reason =
            format!("expected one line of JSON, at most {limit} bytes; got {} bytes without its end", line.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    serde_json::from_slice(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// One line of JSON.
///
/// # Errors
/// As `write_all`.
pub fn write_line(to: &mut impl io::Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads the bundle that follows an `apply` line.
///
/// # Errors
/// `InvalidData` when it is too large or cut off.
pub fn read_bundle(from: &mut impl Read, size: u64) -> io::Result<Vec<u8>> {
    if size > BUNDLE_LIMIT {
        let reason = format!("a bundle of {size} bytes; at most {BUNDLE_LIMIT} are taken");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    let mut bytes = Vec::new();
    from.take(size).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != size {
        let reason = format!("{size} bytes of bundle were announced, {} came", bytes.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(bytes)
}
