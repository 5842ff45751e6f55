//! Random bytes.

use super::super::Entropy;
use super::super::driver::{Driver, HOLE, MODERN, WRITE};

#[test]
fn fills_what_it_is_given() {
    let mut driver = Driver::started(Entropy::new(), MODERN);
    let (a, b) = (driver.memory(0x1000), driver.memory(0x1000));
    driver.add(0, &[(a, 100, WRITE), (b, 28, WRITE)]);
    assert_eq!(driver.used(0), (0, 128));
    let (first, second) = (driver.peek(a, 128), driver.peek(b, 64));
    assert!(first[..100].iter().any(|byte| *byte != 0) && second[..28].iter().any(|byte| *byte != 0));
    assert!(first[100..].iter().chain(&second[28..]).all(|byte| *byte == 0), "written past a buffer");
}

#[test]
fn gives_less_than_was_asked_for_rather_than_keep_others_waiting() {
    let mut driver = Driver::started(Entropy::new(), MODERN);
    driver.add(0, &[(0x40_0000, 0x10_0000, WRITE)]);
    assert_eq!(driver.used(0).1, 4096);
}

#[test]
fn a_buffer_to_read_is_given_back_untouched() {
    let mut driver = Driver::started(Entropy::new(), MODERN);
    let buffer = driver.memory(0x1000);
    driver.add(0, &[(buffer, 64, 0)]);
    assert_eq!(driver.used(0).1, 0);
    assert_eq!(driver.peek(buffer, 64), [0; 64]);
}

#[test]
fn a_buffer_outside_of_memory_costs_the_device_until_reset() {
    let mut driver = Driver::started(Entropy::new(), MODERN);
    for address in [HOLE - 8, HOLE, u64::MAX - 4, 0x1_0000_0000_0000] {
        driver.add(0, &[(address, 64, WRITE)]);
        driver.fails();
        driver.start(MODERN);
        let buffer = driver.memory(0x1000);
        driver.add(0, &[(buffer, 64, WRITE)]);
        assert_eq!(driver.used(0).1, 64);
    }
}
