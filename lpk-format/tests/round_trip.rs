//! What is written is read back, and the same bundle gives the same bytes.

mod common;

use common::{file, sample};
use lpk_format::*;

#[test]
fn a_rich_bundle_comes_back_as_it_was() {
    let bytes = file();
    let read = read(&bytes).expect("the file was just written");
    assert_eq!(read.bundle, sample());
    assert_eq!(read.id.to_string().len(), 40);
    assert_eq!(read.id.to_string().parse(), Ok(read.id));
}

#[test]
fn the_smallest_bundle_comes_back_as_it_was() {
    let mut bundle = sample();
    bundle.functions.clear();
    bundle.payload = Payload::default();
    bundle.support = None;
    bundle.modules.clear();
    bundle.manifest.functions.clear();
    bundle.manifest.files.clear();
    let bytes = write(&bundle).expect("an empty bundle is sound");
    assert_eq!(read(&bytes).expect("the file was just written").bundle, bundle);
}

#[test]
fn no_support_object_is_not_an_empty_one() {
    let mut bundle = sample();
    for support in [None, Some(Payload::default())] {
        bundle.support = support;
        let bytes = write(&bundle).expect("as sound as the sample");
        assert_eq!(read(&bytes).expect("the file was just written").bundle, bundle);
    }
}

#[test]
fn a_bundle_may_change_modules_only() {
    let mut bundle = sample();
    bundle.functions.clear();
    bundle.manifest.functions.clear();
    bundle.payload = Payload::default();
    bundle.modules.push(common::module_part(&bundle, "zfoo"));
    let bytes = write(&bundle).expect("as sound as the sample");
    let read = read(&bytes).expect("the file was just written").bundle;
    assert_eq!(read, bundle);
    assert_eq!(
        read.parts().filter_map(|part| part.module.as_ref()).map(|m| m.name.as_str()).collect::<Vec<_>>(),
        ["brfs", "zfoo"]
    );
}

#[test]
fn the_same_bundle_gives_the_same_bytes() {
    assert_eq!(file(), file());
}

#[test]
fn reading_does_not_depend_on_the_alignment_of_the_buffer() {
    let bytes = file();
    for shift in 1..8 {
        let mut buffer = vec![0; shift];
        buffer.extend_from_slice(&bytes);
        assert_eq!(read(&buffer[shift..]).expect("the same file").bundle, sample());
    }
}

#[test]
fn another_bundle_has_another_id() {
    let mut other = sample();
    other.payload.rodata[0] ^= 1;
    let other = write(&other).expect("as sound as the sample");
    assert_ne!(read(&other).expect("just written").id, read(&file()).expect("just written").id);
}

#[test]
fn sealing_an_untouched_file_changes_nothing() {
    let mut bytes = file();
    let id = seal(&mut bytes).expect("the file has a digest");
    assert_eq!(bytes, file());
    assert_eq!(read(&bytes).expect("unchanged").id, id);
}

#[test]
fn ids_are_forty_hexadecimal_digits() {
    for text in ["", "0123", "zz23456789012345678901234567890123456789", "+123456789012345678901234567890123456789"] {
        assert_eq!(text.parse::<BundleId>(), Err(NotAnId(text.to_owned())));
    }
}
