//! Damaged files are refused, never half read, and never a panic.

mod common;

use common::{Random, file, patched, sample, section};
use lpk_format::*;

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let bytes = file();
    for len in 0..bytes.len() {
        assert!(read(&bytes[..len]).is_err(), "{len} of {} bytes were accepted", bytes.len());
    }
}

#[test]
fn bytes_behind_the_file_are_refused() {
    let mut bytes = file();
    bytes.push(0);
    assert!(matches!(read(&bytes), Err(ReadError::Seal(SealError::Digest { .. }))));
    seal(&mut bytes).expect("digest and id are untouched");
    assert!(matches!(read(&bytes), Err(ReadError::FileSize { .. })));
}

#[test]
fn a_file_beyond_the_limit_is_refused() {
    let mut bytes = file();
    bytes.resize(limits::FILE_SIZE as usize + 1, 0);
    assert!(matches!(read(&bytes), Err(ReadError::Seal(SealError::TooLarge(_)))));
}

#[test]
fn every_flipped_bit_is_refused() {
    let mut bytes = file();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            let result = read(&bytes);
            assert!(matches!(result, Err(ReadError::Seal(_))), "bit {bit} of byte {at:#x}: {result:?}");
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn every_changed_byte_is_refused() {
    let mut bytes = file();
    let mut random = Random(0x5eed);
    for at in 0..bytes.len() {
        let was = bytes[at];
        bytes[at] = was.wrapping_add(1 + random.below(255) as u8);
        assert!(matches!(read(&bytes), Err(ReadError::Seal(_))), "byte {at:#x}");
        bytes[at] = was;
    }
}

#[test]
fn a_wrong_id_is_told_apart_from_a_wrong_digest() {
    let good = file();
    let mut id = good.clone();
    id[section(&good, ".note.gnu.build-id").end - 1] ^= 1;
    assert!(matches!(read(&id), Err(ReadError::Seal(SealError::Id { .. }))));
    let mut digest = good.clone();
    digest[section(&good, ".lucos.digest").end - 1] ^= 1;
    assert!(matches!(read(&digest), Err(ReadError::Seal(SealError::Digest { .. }))));
}

/// Accepted bytes are the only encoding of what they mean.
fn accepted_is_canonical(bytes: &[u8]) -> bool {
    let Ok(found) = read(bytes) else { return false };
    assert_eq!(write(&found.bundle).expect("what was read is sound"), bytes);
    true
}

/// With the digest made right again, only contents that a bundle may have are accepted.
#[test]
fn every_sealed_flip_is_refused_or_another_bundle() {
    let good = file();
    let mut accepted = 0;
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            if seal(&mut bytes).is_err() {
                assert!(read(&bytes).is_err());
                continue;
            }
            if bytes != good && accepted_is_canonical(&bytes) {
                assert_ne!(read(&bytes).expect("just accepted").bundle, sample());
                accepted += 1;
            }
        }
    }
    assert!(accepted > 1000, "contents such as .data may change: {accepted}");
}

#[test]
fn random_sealed_damage_never_panics() {
    let good = file();
    let mut random = Random(0x1ce_cafe_f00d);
    let mut sealed = 0;
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            match random.below(6) {
                0 => bytes[at] = random.next() as u8,
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
                2 => {
                    let width = (1 << random.below(4)).min(bytes.len() - at);
                    bytes[at..at + width].fill([0, 0xff][random.below(2)]);
                }
                3 => {
                    let from = random.below(bytes.len());
                    let len = random.below(64).min(bytes.len() - at.max(from));
                    bytes.copy_within(from..from + len, at);
                }
                4 => bytes.truncate(at.max(64)),
                _ => {
                    let name = SECTION_NAMES[1 + random.below(SECTION_NAMES.len() - 1)];
                    let field = common::header(&good, name) + random.below(64);
                    if let Some(byte) = bytes.get_mut(field) {
                        *byte = random.next() as u8;
                    }
                }
            }
        }
        sealed += usize::from(seal(&mut bytes).is_ok());
        accepted_is_canonical(&bytes);
    }
    assert!(sealed > 5_000, "too few reached the reader behind the digest: {sealed}");
}

#[test]
fn patching_helper_really_patches() {
    let good = file();
    let at = section(&good, ".data").start;
    let bytes = patched(good, at, &[9]);
    assert_eq!(read(&bytes).expect("data may have any contents").bundle.payload.data[0], 9);
}
