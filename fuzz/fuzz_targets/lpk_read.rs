//! The reader of bundles: any bytes, and the same bytes with their digest made right, so that damage gets past it.
//!
//! Seeds: the bundles that the tests of `lpk-format` leave in `target/tmp`:
//! `cargo +nightly fuzz run lpk_read fuzz/corpus/lpk_read target/tmp`.
//!
//! Found wrong: a panic, or an accepted file that is not the one the writer would write.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut sealed = bytes.to_vec();
    let _ = lpk_format::seal(&mut sealed); // without a digest to make right, the file is tried as it is
    for file in [bytes, &sealed] {
        if let Ok(read) = lpk_format::read(file) {
            assert_eq!(lpk_format::write(&read.bundle).expect("what was read is sound"), file);
        }
    }
});
