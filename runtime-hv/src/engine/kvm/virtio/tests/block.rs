//! Disks: requests in every shape, and files that cannot be one.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use tempfile::{NamedTempFile, TempDir};

use super::super::block::{Block, BlockError};
use super::super::driver::{Driver, HOLE, INDIRECT, MODERN, NEXT, WRITE};

const FLUSH: u64 = 1 << 9;
const READ_ONLY: u64 = 1 << 5;
const IN: u32 = 0;
const OUT: u32 = 1;
const SYNC: u32 = 4;
const ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;
const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;
const SECTORS: u64 = 256;

/// A file of [`SECTORS`] sectors, each full of its own number.
fn image() -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a file");
    for sector in 0..SECTORS {
        file.write_all(&[sector as u8; 512]).expect("written");
    }
    file
}

fn disk(file: &NamedTempFile, read_only: bool) -> Driver {
    Driver::started(Block::open(file.path(), read_only).expect("a disk"), MODERN | FLUSH)
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

/// A request as Linux makes it; its status and the used length.
fn request(driver: &mut Driver, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> (u8, u32) {
    let head = 0x20_0000;
    driver.poke(head, &header(kind, sector));
    driver.poke(head + 16, &[0xee]);
    let mut chain = vec![(head, 16, 0)];
    chain.extend(data);
    chain.push((head + 16, 1, WRITE));
    let index = driver.add(0, &chain);
    let (id, written) = driver.used(0);
    assert_eq!(id, u32::from(index));
    (driver.peek(head + 16, 1)[0], written)
}

#[test]
fn reads_and_writes() {
    let file = image();
    let mut driver = disk(&file, false);
    let (a, b) = (driver.memory(0x1000), driver.memory(0x1000));
    assert_eq!(request(&mut driver, IN, 3, &[(a, 512, WRITE), (b, 1024, WRITE)]), (OK, 1537));
    assert_eq!(driver.peek(a, 512), [3; 512]);
    assert_eq!([driver.peek(b, 512), driver.peek(b + 512, 512)], [[4; 512], [5; 512]]);
    driver.poke(a, &[0x77; 1024]);
    assert_eq!(request(&mut driver, OUT, SECTORS - 2, &[(a, 512, 0), (a + 512, 512, 0)]), (OK, 1));
    assert_eq!(request(&mut driver, SYNC, 0, &[]), (OK, 1));
    let content = fs::read(file.path()).expect("the file");
    assert_eq!(content.len() as u64, SECTORS * 512);
    assert!(content[(SECTORS as usize - 2) * 512..].iter().all(|byte| *byte == 0x77));
    assert!(content[(SECTORS as usize - 3) * 512..][..512].iter().all(|byte| *byte == 253));
}

#[test]
fn tells_its_size_and_name() {
    let file = image();
    let mut driver = disk(&file, false);
    assert_eq!(driver.config(0, 8), SECTORS.to_le_bytes());
    assert_eq!(driver.config(12, 4), 254u32.to_le_bytes());
    assert_eq!(driver.config(20, 4), 512u32.to_le_bytes());
    let about = fs::metadata(file.path()).expect("the file");
    let expected = format!("{:x}-{:x}", about.dev(), about.ino());
    let buffer = driver.memory(0x1000);
    assert_eq!(request(&mut driver, ID, 0, &[(buffer, 20, WRITE)]), (OK, 21));
    assert_eq!(String::from_utf8_lossy(&driver.peek(buffer, expected.len())), expected);
    assert_eq!(request(&mut driver, ID, 0, &[(buffer, 19, WRITE)]), (FAILED, 1));
}

#[test]
fn refuses_what_is_not_on_the_disk() {
    let file = image();
    let before = fs::read(file.path()).expect("the file");
    let mut driver = disk(&file, false);
    let data = driver.memory(0x1000);
    for (kind, sector, len, status) in [
        (IN, SECTORS, 512, FAILED),
        (IN, SECTORS - 1, 1024, FAILED),
        (OUT, SECTORS, 512, FAILED),
        (OUT, u64::MAX, 512, FAILED),
        (OUT, u64::MAX / 512 + 1, 512, FAILED),
        (IN, 0, 511, FAILED),
        (OUT, 0, 513, FAILED),
        (2, 0, 512, UNSUPPORTED),
        (u32::MAX, 0, 512, UNSUPPORTED),
    ] {
        let flags = if kind == IN { WRITE } else { 0 };
        assert_eq!(request(&mut driver, kind, sector, &[(data, len, flags)]), (status, 1), "{kind} {sector} {len}");
    }
    assert_eq!(request(&mut driver, IN, 0, &[]), (OK, 1), "nothing is no harm");
    assert_eq!(fs::read(file.path()).expect("the file"), before);
}

#[test]
fn a_buffer_outside_of_memory_fails_its_request_only() {
    let file = image();
    let mut driver = disk(&file, false);
    let data = driver.memory(0x1000);
    for address in [HOLE, HOLE - 256, u64::MAX - 255, u64::MAX - 0xfff] {
        assert_eq!(request(&mut driver, IN, 0, &[(address, 512, WRITE)]), (FAILED, 1), "{address:#x}");
        assert_eq!(request(&mut driver, OUT, 0, &[(address, 512, 0)]), (FAILED, 1), "{address:#x}");
    }
    assert_eq!(request(&mut driver, IN, 1, &[(data, 512, WRITE)]), (OK, 513));
}

#[test]
fn buffers_may_be_cut_anywhere() {
    let file = image();
    let mut driver = disk(&file, false);
    let (head, data, table) = (driver.bytes(&header(IN, 9)), driver.memory(0x1000), driver.memory(0x1000));
    // Header in three parts, one of them empty; status in the last data buffer.
    driver.poke(data, &[0; 0x1000]);
    driver.add(0, &[(head, 3, 0), (head, 0, 0), (head + 3, 13, 0), (data, 100, WRITE), (data + 100, 413, WRITE)]);
    assert_eq!(driver.used(0).1, 513);
    assert_eq!(driver.peek(data, 512), [9; 512]);
    assert_eq!(driver.peek(data + 512, 1), [OK]);
    // Header and data in one buffer, in an indirect table, which may be at any address.
    let both = driver.bytes(&[&header(OUT, 7)[..], &[0x55; 512]].concat());
    let status = driver.bytes(&[0xee]);
    driver.descriptor(table + 3, 0, both, 528, NEXT, 1);
    driver.descriptor(table + 3, 1, status, 1, WRITE, 0);
    driver.add(0, &[(table + 3, 32, INDIRECT)]);
    assert_eq!(driver.used(0).1, 1);
    assert_eq!(driver.peek(status, 1), [OK]);
    let mut sector = [0; 512];
    file.as_file().read_exact_at(&mut sector, 7 * 512).expect("read");
    assert_eq!(sector, [0x55; 512]);
}

#[test]
fn requests_without_room_for_an_answer_cost_the_device_until_reset() {
    let file = image();
    let mut driver = disk(&file, false);
    let (head, data) = (driver.bytes(&header(IN, 0)), driver.memory(0x1000));
    for chain in [
        &[(head, 16, 0)][..],                                   // no status
        &[(head, 15, 0), (data, 512, WRITE)],                   // half a header
        &[(head, 16, WRITE)],                                   // no header
        &[(data, 1, WRITE), (head, 16, 0)],                     // the wrong way round
        &[(head, 16, 0), (data, 512, WRITE), (data, 1, 0)],     // to read after to write
        &[(HOLE, 16, 0), (data, 1, WRITE)],                     // header outside of memory
        &[(head, 16, 0), (data, 512, WRITE), (HOLE, 1, WRITE)], // status outside of memory
        &[(head, 16, 0), (data, 0, WRITE)],                     // an empty status
        &[(head, 0, INDIRECT)],                                 // nothing at all
    ] {
        driver.add(0, chain);
        driver.fails();
        driver.start(MODERN | FLUSH);
        assert_eq!(request(&mut driver, IN, 1, &[(data, 512, WRITE)]), (OK, 513));
    }
}

#[test]
fn a_read_only_disk_is_never_written() {
    let file = image();
    let before = fs::read(file.path()).expect("the file");
    let mut driver = disk(&file, true);
    assert_ne!(driver.get(0x10) & READ_ONLY as u32, 0);
    let data = driver.memory(0x1000);
    assert_eq!(request(&mut driver, OUT, 0, &[(data, 512, 0)]), (FAILED, 1));
    let range = driver.bytes(&[0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
    for kind in [DISCARD, ZEROES] {
        assert_eq!(request(&mut driver, kind, 0, &[(range, 16, 0)]), (FAILED, 1));
    }
    assert_eq!(request(&mut driver, SYNC, 0, &[]), (OK, 1));
    assert_eq!(fs::read(file.path()).expect("the file"), before);
}

#[test]
fn discards_and_writes_zeroes() {
    let range = |sector: u64, count: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    // (request, ranges, status, sectors that are zero then)
    for (kind, ranges, status, zero) in [
        (ZEROES, vec![range(8, 16, 0)], OK, 8..24),
        (ZEROES, vec![range(8, 8, 1), range(16, 4, 0)], OK, 8..20),
        (DISCARD, vec![range(16, 32, 0)], OK, 16..48),
        (ZEROES, vec![range(SECTORS - 1, 1, 0)], OK, 255..256),
        (ZEROES, vec![range(8, 0, 0)], OK, 0..0),
        (ZEROES, vec![range(SECTORS - 1, 2, 0)], FAILED, 0..0),
        (ZEROES, vec![range(u64::MAX, 2, 0)], FAILED, 0..0),
        (ZEROES, vec![range(0, u32::MAX, 0)], FAILED, 0..0),
        (DISCARD, vec![range(8, 8, 1)], UNSUPPORTED, 0..0),
        (ZEROES, vec![range(8, 8, 2)], UNSUPPORTED, 0..0),
        (ZEROES, vec![range(8, 8, 0)[..15].to_vec()], FAILED, 0..0),
        (DISCARD, vec![range(0, 0, 0); 17], FAILED, 0..0),
    ] {
        let file = image();
        let mut driver = disk(&file, false);
        let bytes = ranges.concat();
        let at = driver.bytes(&bytes);
        let got = request(&mut driver, kind, 0, &[(at, bytes.len() as u32, 0)]);
        assert_eq!(got, (status, 1), "{kind} {ranges:?}");
        let content = fs::read(file.path()).expect("the file");
        assert_eq!(content.len() as u64, SECTORS * 512);
        for (sector, bytes) in content.chunks(512).enumerate() {
            let expected = if zero.contains(&sector) { 0 } else { sector as u8 };
            assert!(bytes.iter().all(|byte| *byte == expected), "{kind} {ranges:?}: sector {sector}");
        }
    }
}

#[test]
fn a_file_that_shrank_fails_the_request_only() {
    let file = image();
    let mut driver = disk(&file, false);
    let data = driver.memory(0x1000);
    file.as_file().set_len(512 * 4).expect("a shorter file");
    assert_eq!(request(&mut driver, IN, 8, &[(data, 512, WRITE)]), (FAILED, 1));
    assert_eq!(request(&mut driver, IN, 3, &[(data, 512, WRITE)]), (OK, 513));
}

#[test]
fn many_requests_at_once_are_all_answered() {
    let file = image();
    let mut driver = disk(&file, false);
    let data = driver.memory(0x1_0000);
    driver.queues[0] = super::super::driver::place(0x18_0000, 256);
    driver.start(MODERN | FLUSH);
    let head = driver.memory(0x1000);
    for round in 0..85u64 {
        driver.poke(head + round * 32, &header(IN, round));
        driver.add(
            0,
            &[(head + round * 32, 16, 0), (data + round * 512, 512, WRITE), (head + round * 32 + 16, 1, WRITE)],
        );
    }
    for _ in 0..85 {
        assert_eq!(driver.used(0).1, 513);
    }
    for round in 0..85u64 {
        assert_eq!(driver.peek(data + round * 512, 512), [round as u8; 512]);
    }
}

#[test]
fn a_disk_is_locked_while_it_is_used() {
    let file = image();
    let open = |read_only| Block::open(file.path(), read_only);
    let writer = open(false).expect("a disk");
    assert!(matches!(open(false), Err(BlockError::InUse { .. })));
    assert!(matches!(open(true), Err(BlockError::InUse { .. })));
    drop(writer);
    let readers = [open(true).expect("a disk"), open(true).expect("a second reader")];
    assert!(matches!(open(false), Err(BlockError::InUse { .. })));
    drop(readers);
    // The device thread's end gives it back, though the window is still there.
    let driver = disk(&file, false);
    assert!(open(false).is_err());
    drop(driver);
    open(false).expect("free again");
}

#[test]
fn files_that_are_no_disk_are_refused_by_name() {
    let folder = TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let sized = |name: &str, size| File::create(path(name)).and_then(|file| file.set_len(size)).expect("a file");
    sized("odd", 1000);
    sized("empty", 0);
    fs::write(path("qcow2"), [&b"QFI\xfb"[..], &[0; 508]].concat()).expect("a file");
    let open = |path: &Path| Block::open(path, false).expect_err("not a disk");
    assert!(matches!(open(&path("missing")), BlockError::Open { .. }));
    assert!(matches!(open(folder.path()), BlockError::Open { .. }));
    assert!(matches!(Block::open(folder.path(), true), Err(BlockError::Kind { .. })));
    assert!(matches!(open(Path::new("/dev/null")), BlockError::Kind { .. }));
    assert!(matches!(open(&path("odd")), BlockError::Size { size: 1000, .. }));
    assert!(matches!(open(&path("empty")), BlockError::Size { size: 0, .. }));
    assert!(matches!(open(&path("qcow2")), BlockError::Qcow2 { .. }));
    for name in ["missing", "odd", "qcow2"] {
        let text = open(&path(name)).to_string();
        assert!(text.contains(&path(name).display().to_string()), "{text}");
    }
}
