//! Registers, rings, resets: what is the same for all devices, tried on the simplest.

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::super::driver::{Driver, HOLE, INDIRECT, MODERN, NEXT, NOTIFY, Place, STATUS, WRITE, place, wait};
use super::super::{Block, Entropy};

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// The device still serves: from a reset on if `reset`.
fn works(driver: &mut Driver, reset: bool) {
    if reset {
        driver.start(MODERN);
    }
    let buffer = 0x30_0000;
    driver.poke(buffer, &[0; 32]);
    driver.add(0, &[(buffer, 32, WRITE)]);
    assert_eq!(driver.used(0).1, 32);
    assert_ne!(driver.peek(buffer, 32), [0; 32]);
}

#[test]
fn says_what_it_is() {
    let mut driver = Driver::new(Entropy::new());
    assert_eq!([0, 4, 8].map(|offset| driver.get(offset)), [0x7472_6976, 2, 4]);
    driver.set(0x14, 1);
    assert_eq!(driver.get(0x10), 1, "VERSION_1 and nothing else above bit 31");
    driver.set(0x14, 2);
    assert_eq!(driver.get(0x10), 0);
    assert_eq!(driver.get(0x34), 64);
    driver.set(0x30, 1);
    assert_eq!(driver.get(0x34), 0, "no second queue");
    driver.set(0x30, u32::MAX);
    assert_eq!((driver.get(0x34), driver.get(0x44)), (0, 0));
    assert_eq!([0xb0, 0xb4].map(|offset| driver.get(offset)), [u32::MAX; 2], "no shared memory");
}

#[test]
fn registers_are_read_and_written_whole() {
    let mut driver = Driver::new(Entropy::new());
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (0x71, 1), (0xfc, 8)] {
        let mut bytes = vec![0xaa; len];
        driver.window.read(offset, &mut bytes);
        assert_eq!(bytes, vec![0; len], "{len} bytes at {offset:#x}");
    }
    for bytes in [&[1u8][..], &[1, 0], &[1, 0, 0, 0, 0, 0, 0, 0], &[]] {
        driver.window.write(STATUS, bytes);
        assert_eq!(driver.get(STATUS), 0);
    }
}

#[test]
fn the_configuration_has_an_end_and_cannot_be_written() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(1 << 20).expect("a size");
    let mut driver = Driver::new(Block::open(file.path(), false).expect("a disk"));
    assert_eq!(driver.config(0, 8), 2048u64.to_le_bytes());
    driver.window.write(0x100, &[0xff; 8]);
    driver.window.write(0x100, &[0xff; 64]);
    assert_eq!(driver.config(0, 8), 2048u64.to_le_bytes());
    assert_eq!(driver.config(58, 8), [0; 8], "partly behind the end");
    for offset in [60, 0xe00, u64::MAX - 0x100] {
        assert_eq!(driver.config(offset, 4), [0; 4]);
    }
}

#[test]
fn status_bits_come_one_after_the_other() {
    // (bits written one after the other, status then)
    for (writes, expected) in [
        (&[0x01][..], 0x01),
        (&[0x02], 0),
        (&[0x08], 0),
        (&[0x04], 0),
        (&[0x01, 0x03], 0x03),
        (&[0x01, 0x05], 0x01),
        (&[0x01, 0x03, 0x07], 0x03),
        (&[0x01, 0x03, 0x0b], 0x03), // features were not taken
        (&[0x01, 0x03, 0x01], 0x03), // a bit cannot be taken back
        (&[0x80], 0x80),
        (&[0x40], 0),
        (&[0x01, 0x03, 0], 0),
        (&[0xffff_ff01], 0x01),
    ] {
        let mut driver = Driver::new(Entropy::new());
        for value in writes {
            driver.set(STATUS, *value);
        }
        assert_eq!(driver.get(STATUS), expected, "{writes:x?}");
    }
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let mut driver = Driver::new(Entropy::new());
    for (features, taken) in
        [(MODERN, true), (0, false), (MODERN | 1, false), (MODERN | 1 << 63, false), (MODERN | EVENT_IDX, true)]
    {
        assert_eq!(driver.negotiate(features), taken, "{features:#x}");
    }
    // Too late: they have been agreed upon.
    driver.set(0x24, 0);
    driver.set(0x20, 1);
    driver.start(MODERN);
    works(&mut driver, false);
}

#[test]
fn a_queue_of_a_wrong_size_costs_the_device_until_reset() {
    let mut driver = Driver::new(Entropy::new());
    for size in [0, 3, 65, 128, 0x8000, 0x1_0000, 0x1_0010, u32::MAX] {
        assert!(driver.negotiate(MODERN));
        driver.set_queue(0, size, driver.queues[0]);
        driver.driver_ok();
        driver.fails();
        assert_eq!(driver.interrupt(), 2, "a change of the configuration is announced");
        works(&mut driver, true);
    }
}

#[test]
fn a_queue_outside_of_memory_costs_the_device_until_reset() {
    let good = place(0x10_0000, 16);
    let mut driver = Driver::new(Entropy::new());
    for bad in [HOLE, HOLE - 16, !0xfff, 1 << 52, good.descriptors + 1] {
        for broken in
            [Place { descriptors: bad, ..good }, Place { available: bad, ..good }, Place { used: bad, ..good }]
        {
            assert!(driver.negotiate(MODERN));
            driver.set_queue(0, 16, broken);
            driver.driver_ok();
            driver.fails();
        }
    }
    works(&mut driver, true);
}

#[test]
fn notifications_before_anything_is_set_up_do_nothing() {
    let mut driver = Driver::new(Entropy::new());
    for queue in [0, 1, 64, u32::MAX] {
        driver.set(NOTIFY, queue);
    }
    assert!(driver.negotiate(MODERN));
    driver.set(NOTIFY, 0);
    assert!(!driver.interrupted());
    works(&mut driver, true);
    driver.set(NOTIFY, 7);
    works(&mut driver, false);
}

#[test]
fn a_queue_that_was_not_set_up_stays_empty() {
    let mut driver = Driver::new(Entropy::new());
    assert!(driver.negotiate(MODERN));
    driver.driver_ok();
    driver.kick(0);
    // Setting it up now is too late.
    driver.set_queue(0, 16, driver.queues[0]);
    assert_eq!(driver.get(0x44), 0);
    assert!(!driver.has_failed());
    works(&mut driver, true);
}

#[test]
fn a_queue_can_be_taken_out_of_use() {
    let mut driver = Driver::started(Entropy::new(), MODERN);
    works(&mut driver, false);
    driver.set(0x30, 0);
    assert_eq!(driver.get(0x44), 1);
    driver.set(0x44, 0);
    assert_eq!(driver.get(0x44), 0);
    let place = driver.queues[0];
    let before = driver.peek(place.used, 0x1000);
    driver.add(0, &[(0x30_0000, 8, WRITE)]);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(driver.peek(place.used, 0x1000), before);
    works(&mut driver, true);
}

#[test]
fn after_a_reset_the_device_touches_nothing() {
    let mut driver = Driver::started(Entropy::new(), MODERN);
    for round in 0..200u32 {
        let place = driver.queues[0];
        for _ in 0..8 {
            driver.add(0, &[(0x30_0000, 4096, WRITE)]);
        }
        driver.set(STATUS, 0);
        assert_eq!((driver.get(STATUS), driver.get(0x60)), (0, 0));
        let pattern = [round as u8 | 1; 0x1000];
        driver.poke(0x30_0000, &pattern);
        driver.poke(place.used, &pattern);
        driver.kick(0);
        std::thread::yield_now();
        assert_eq!(driver.peek(0x30_0000, 0x1000), pattern);
        assert_eq!(driver.peek(place.used, 0x1000), pattern);
        driver.start(MODERN);
    }
    works(&mut driver, false);
}

#[test]
fn interrupts_come_when_the_driver_wants_them() {
    let mut driver = Driver::started(Entropy::new(), MODERN | EVENT_IDX);
    let place = driver.queues[0];
    let used_event = place.available + 4 + 16 * 2;
    works(&mut driver, false);
    assert_eq!(driver.interrupt(), 1);
    // Not before the fourth buffer from the beginning.
    driver.poke(used_event, &3u16.to_le_bytes());
    works(&mut driver, false);
    works(&mut driver, false);
    assert!(!driver.interrupted());
    works(&mut driver, false);
    assert_eq!(driver.interrupt(), 1);
    // The device asks to hear of the next buffer, and not of others.
    wait("avail_event", || (driver.peek(place.used + 4 + 16 * 8, 2) == 4u16.to_le_bytes()).then_some(()));
}

#[test]
fn indexes_wrap_around() {
    for features in [MODERN, MODERN | EVENT_IDX] {
        let mut driver = Driver::started(Entropy::new(), features);
        for _ in 0..0x1_0000 + 100 {
            driver.add(0, &[(0x30_0000, 1, WRITE)]);
            assert_eq!(driver.used(0).1, 1);
        }
    }
}

#[test]
fn damaged_rings_cost_the_device_until_reset() {
    let mut driver = Driver::started(Entropy::new(), MODERN);
    // More chains than entries.
    driver.poke(driver.queues[0].available + 2, &17u16.to_le_bytes());
    driver.kick(0);
    driver.fails();
    works(&mut driver, true);
    // A chain that begins outside of the table.
    for head in [16, 17, 0x8000, 0xffff] {
        driver.offer(0, head);
        driver.kick(0);
        driver.fails();
        works(&mut driver, true);
    }
}

#[test]
fn malformed_chains_end() {
    let table = 0x50_0000;
    // (flags, next) of descriptor 0 of the table, whether it is indirect: none may hang, or reach outside.
    for (flags, next) in [(NEXT, 0), (NEXT, 15), (NEXT, 16), (NEXT, 0xffff), (NEXT | WRITE, 0)] {
        let mut driver = Driver::started(Entropy::new(), MODERN);
        driver.descriptor(driver.queues[0].descriptors, 0, 0x30_0000, 1, flags, next);
        driver.offer(0, 0);
        driver.kick(0);
        // Loops are cut at the size of the queue.
        assert!(driver.used(0).1 <= 16, "flags {flags:#x} next {next}");
        works(&mut driver, false);
    }
    // Indirect tables: in themselves, too long, of odd length, empty, outside of memory, with a loop.
    for (address, len) in [(table, 16), (table, 0xffff_fff0), (table, 17), (table, 0), (HOLE, 16), (u64::MAX, 16)] {
        let mut driver = Driver::started(Entropy::new(), MODERN);
        driver.descriptor(table, 0, table, 16, INDIRECT, 0);
        driver.add(0, &[(address, len, INDIRECT)]);
        assert_eq!(driver.used(0).1, 0, "{len} bytes at {address:#x}");
        works(&mut driver, false);
    }
    let mut driver = Driver::started(Entropy::new(), MODERN);
    driver.descriptor(table, 0, 0x30_0000, 1, NEXT | WRITE, 1);
    driver.descriptor(table, 1, 0x30_0000, 1, NEXT | WRITE, 0);
    driver.add(0, &[(table, 32, INDIRECT)]);
    assert_eq!(driver.used(0).1, 2);
}

/// Anything at all, into registers and rings: the device thread survives, and works after a reset.
#[test]
fn nonsense_is_survived() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut driver = Driver::new(Entropy::new());
    for round in 0..300 {
        if random.bool() {
            driver.start(MODERN | (EVENT_IDX * u64::from(random.bool())));
        }
        for _ in 0..random.usize(..60) {
            match random.u8(..4) {
                0 => {
                    let value = [random.u32(..), random.u32(..16), 1 << random.u32(..32), 0x10_0000][random.usize(..4)];
                    driver.set(random.u64(..0x60) * 4, value);
                }
                1 => driver.poke(0x10_0000 + random.u64(..0x3000), &random.u64(..).to_le_bytes()),
                2 => driver.poke(0x10_1000 + random.u64(..20), &random.u16(..20).to_le_bytes()),
                _ => driver.kick(0),
            }
        }
        if round % 10 == 0 {
            works(&mut driver, true);
        }
    }
    works(&mut driver, true);
}
