//! Digests of 64 bits that stand for names, types and layouts within one run.
//!
//! Comes in: numbers and bytes. Decided: nothing. Goes out: [`Digest`], and a hasher for maps of digests and of places. Each run starts from a random number, so that nobody
//! can make two layouts ahead that look the same to it; among the 20,000 types of two images an accident has a chance of
//! one in 10^11.

use std::hash::{BuildHasher as _, Hasher, RandomState};

/// Odd numbers with no pattern (digits of the golden ratio and of pi).
const FIRST: u64 = 0x9e37_79b9_7f4a_7c15;
const SECOND: u64 = 0x2436_3f45_1f5a_3f31;

/// A digest in the making, or done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Digest(pub(super) u64);

impl Digest {
    /// Where all digests of a run start.
    pub(super) fn start() -> Self {
        Self(RandomState::new().hash_one(FIRST))
    }

    /// Takes in a number.
    #[inline]
    pub(super) fn with(self, value: u64) -> Self {
        let product = u128::from(self.0 ^ FIRST) * u128::from(value ^ SECOND);
        Self((product as u64) ^ ((product >> 64) as u64) ^ self.0.rotate_left(23))
    }

    /// Takes in two numbers.
    #[inline]
    pub(super) fn with_two(self, first: u64, second: u64) -> Self {
        let product = u128::from(self.0 ^ first) * u128::from(self.0.rotate_left(32) ^ second ^ SECOND);
        Self((product as u64) ^ ((product >> 64) as u64) ^ self.0.rotate_left(23))
    }

    /// Takes in bytes and how many there are.
    #[inline]
    pub(super) fn with_bytes(self, bytes: &[u8]) -> Self {
        let mut digest = self.with(bytes.len() as u64);
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let chunk: [u8; 8] = chunk.try_into().expect("chunks of eight bytes");
            digest = digest.with(u64::from_le_bytes(chunk));
        }
        let mut rest = 0;
        for &byte in chunks.remainder() {
            rest = rest << 8 | u64::from(byte);
        }
        digest.with(rest)
    }
}

/// Hashes one number, for maps whose keys nobody can choose freely: digests, and places in a file that is limited in size.
#[derive(Debug, Default)]
pub(super) struct OfNumber(u64);

impl Hasher for OfNumber {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value) * u128::from(FIRST);
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}
