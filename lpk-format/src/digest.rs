//! The digest of a bundle file and the identity made from it.
//!
//! Comes in: the bytes of a file. Decided: where its digest and its id lie, by the names of their sections alone, and
//! whether they are right; the rest of the file is not looked at. Goes out: the [`BundleId`], or why there is none.

use std::{fmt, ops::Range, str::FromStr};

use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader, SectionHeader};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest, Sha256};

use crate::layout::{self, ALGORITHM_SHA256, DIGEST_AT, DIGEST_SIZE, FORMAT_VERSION, ID_AT, ID_NOTE_SIZE, index};
use crate::limits;

/// Identity of a bundle: the first 20 bytes of its digest, stored as the GNU build id of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleId(pub [u8; 20]);

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::hex::encode(&self.0))
    }
}

/// The text is not a bundle id: 40 hexadecimal digits were expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a bundle id: 40 hexadecimal digits are expected")]
pub struct NotAnId(pub String);

impl FromStr for BundleId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let bytes = crate::hex::decode(text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| NotAnId(text.to_owned()))
    }
}

impl Serialize for BundleId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BundleId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Why a file has no valid digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Larger than any bundle.
    #[error("the file has {0} bytes, a bundle has at most {max}", max = limits::FILE_SIZE)]
    TooLarge(usize),
    /// The ELF headers do not hold together.
    #[error("not a bundle, or cut short: {0}; a 64-bit little-endian ELF file is expected")]
    NotElf(String),
    /// The section that is always there is not.
    #[error("no section `{0}`: this ELF file is not a bundle")]
    NoSection(&'static str),
    /// A section has the wrong type or size.
    #[error("section `{section}` has {found} bytes in the file, {expected} are expected")]
    SectionSize {
        /// Its name.
        section: &'static str,
        /// Bytes that the file has for it.
        found: u64,
        /// Bytes there should be.
        expected: usize,
    },
    /// Another version of the format.
    #[error(
        "the bundle has format version {0}, this tool reads version {FORMAT_VERSION}; \
         build it again with the lucos-build of this release"
    )]
    Version(u32),
    /// A digest this tool does not know.
    #[error("the bundle has digest algorithm {0}, {ALGORITHM_SHA256} (SHA-256) is expected")]
    Algorithm(u32),
    /// Digest and id share bytes.
    #[error("the digest at {digest:#x} and the bundle id at {id:#x} overlap")]
    Overlap {
        /// File offset of the digest.
        digest: usize,
        /// File offset of the id.
        id: usize,
    },
    /// The content is not what the digest says.
    #[error("the file is damaged: its SHA-256 is {found}, its digest says {stored}; copy or build it again")]
    Digest {
        /// The digest in the file.
        stored: String,
        /// The digest of the file.
        found: String,
    },
    /// The id is not made from the digest.
    #[error("the file is damaged: its bundle id is {stored}, {found} is expected; copy or build it again")]
    Id {
        /// The id in the file.
        stored: BundleId,
        /// The id its digest gives.
        found: BundleId,
    },
}

/// Where digest and id lie in a file.
struct Located {
    digest: Range<usize>,
    id: Range<usize>,
}

/// Finds digest and id, and checks the version. What it relies on holds for every version of the format.
fn locate(bytes: &[u8]) -> Result<Located, SealError> {
    if bytes.len() as u64 > limits::FILE_SIZE {
        return Err(SealError::TooLarge(bytes.len()));
    }
    let not_elf = |error: object::read::Error| SealError::NotElf(error.to_string());
    let header = elf::FileHeader64::<LittleEndian>::parse(bytes).map_err(not_elf)?;
    if header.e_ident.data != elf::ELFDATA2LSB {
        return Err(SealError::NotElf("not little-endian".to_owned()));
    }
    let sections = header.sections(LittleEndian, bytes).map_err(not_elf)?;
    let range = |at: usize, expected: usize| {
        let section = layout::SECTION_NAMES[at];
        let (_, found) =
            sections.section_by_name(LittleEndian, section.as_bytes()).ok_or(SealError::NoSection(section))?;
        let (start, size) = found.file_range(LittleEndian).unwrap_or((0, 0));
        if size != expected as u64 {
            return Err(SealError::SectionSize { section, found: size, expected });
        }
        found.data(LittleEndian, bytes).map_err(not_elf)?; // the range lies in the file, so it fits `usize`
        Ok(start as usize..start as usize + expected)
    };
    let digest = range(index::DIGEST, DIGEST_SIZE)?;
    let word = |at: usize| {
        let at = digest.start + at;
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were sliced"))
    };
    if word(0) != FORMAT_VERSION {
        return Err(SealError::Version(word(0)));
    }
    if word(4) != ALGORITHM_SHA256 {
        return Err(SealError::Algorithm(word(4)));
    }
    let id = range(index::NOTE_ID, ID_NOTE_SIZE)?;
    let located = Located { digest: digest.start + DIGEST_AT..digest.end, id: id.start + ID_AT..id.end };
    if located.digest.start < located.id.end && located.id.start < located.digest.end {
        return Err(SealError::Overlap { digest: located.digest.start, id: located.id.start });
    }
    Ok(located)
}

/// SHA-256 of the file with zeros in place of digest and id.
fn hash(bytes: &[u8], located: &Located) -> [u8; 32] {
    let (first, second) = if located.digest.start < located.id.start {
        (&located.digest, &located.id)
    } else {
        (&located.id, &located.digest)
    };
    let mut hasher = Sha256::new();
    hasher.update(&bytes[..first.start]);
    hasher.update(&[0; 32][..first.len()]);
    hasher.update(&bytes[first.end..second.start]);
    hasher.update(&[0; 32][..second.len()]);
    hasher.update(&bytes[second.end..]);
    hasher.finalize().into()
}

fn id_of(digest: &[u8; 32]) -> BundleId {
    BundleId(*digest.first_chunk().expect("a digest of 32 bytes has 20"))
}

/// Checks digest and id of a file.
pub(crate) fn verify(bytes: &[u8]) -> Result<BundleId, SealError> {
    let located = locate(bytes)?;
    let digest = hash(bytes, &located);
    let stored = &bytes[located.digest];
    if stored != digest {
        return Err(SealError::Digest { stored: crate::hex::encode(stored), found: crate::hex::encode(&digest) });
    }
    let stored = BundleId(bytes[located.id].try_into().expect("the range of an id has 20 bytes"));
    let found = id_of(&digest);
    if stored != found { Err(SealError::Id { stored, found }) } else { Ok(found) }
}

/// Computes digest and id of a file anew and stores them in it.
///
/// For the writer, and for tools and tests that change a file in place. The digest protects against damage, not
/// against a person: whoever changes a file can seal it again.
pub fn seal(bytes: &mut [u8]) -> Result<BundleId, SealError> {
    let located = locate(bytes)?;
    let digest = hash(bytes, &located);
    let id = id_of(&digest);
    bytes[located.digest].copy_from_slice(&digest);
    bytes[located.id].copy_from_slice(&id.0);
    Ok(id)
}

/// File offsets of digest and id, for a file that has them.
pub(crate) fn ranges(bytes: &[u8]) -> Option<[Range<usize>; 2]> {
    locate(bytes).ok().map(|located| [located.digest, located.id])
}
