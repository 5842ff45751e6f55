//! Frames through a real TAP interface, in a network namespace of its own thread.
//!
//! Skipped, with the reason, where the host does not let a test make one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::super::driver::{Driver, HOLE, MODERN, WRITE, wait};
use super::super::net::{Net, TapError};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
/// Frames with this type are nobody else's (IEEE 802: for experiments).
const TYPE: [u8; 2] = [0x88, 0xb5];

fn ip(arguments: &str) -> Result<(), String> {
    let done = Command::new("ip").args(arguments.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&done.stderr).trim())),
    }
}

/// Runs `test` where TAP interface `lucos0` is there and up.
fn with_tap(test: fn()) {
    let outcome = thread::spawn(move || {
        let made = unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|error| format!("no network namespace: {error}"))
            .and_then(|()| ip("tuntap add dev lucos0 mode tap"))
            .and_then(|()| ip("link set lucos0 address 02:00:00:00:00:01 up"));
        made.map(|()| test())
    });
    match outcome.join() {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => {
            assert!(std::env::var_os("LUCOS_REQUIRE_ALL").is_none(), "a TAP interface is required: {reason}");
            eprintln!("skipped: {reason}");
        }
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A socket of the host on the interface: whole frames, as the host sees them.
fn host() -> File {
    use nix::libc;
    use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockType, SockaddrLike, bind, socket};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(AddressFamily::Packet, SockType::Raw, flags, nix::sys::socket::SockProtocol::EthAll)
        .expect("a packet socket");
    let index = nix::net::if_::if_nametoindex("lucos0").expect("the interface");
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: a whole sockaddr_ll, and its length.
    #[allow(unsafe_code)]
    let address = unsafe {
        LinkAddr::from_raw((&raw const address).cast(), Some(size_of::<libc::sockaddr_ll>() as u32))
            .expect("an address")
    };
    bind(fd.as_raw_fd(), &address).expect("bound");
    File::from(fd)
}

/// The next frame of [`TYPE`] that the host sees.
fn next_frame(host: &mut File) -> Vec<u8> {
    let mut bytes = [0; 0x1_1000];
    wait("a frame", || match host.read(&mut bytes) {
        Ok(len) if bytes.get(12..14) == Some(&TYPE) => Some(bytes[..len].to_vec()),
        _ => None,
    })
}

fn frame(to: [u8; 6], from: [u8; 6], text: &[u8]) -> Vec<u8> {
    [&to[..], &from, &TYPE, text].concat()
}

/// A driver with `count` buffers for frames of `len` bytes, one in each page from the address returned.
fn receiver(driver: &mut Driver, count: u64, len: u32) -> u64 {
    let buffers = driver.memory(count * 0x1000);
    for index in 0..count {
        driver.add(0, &[(buffers + index * 0x1000, len, WRITE)]);
    }
    buffers
}

/// Starts a driver, and waits until frames of the host reach it: a moment after an interface is taken its queue still drops
/// them without a word. Then starts it afresh.
fn connected(features: u64, host: &mut File) -> Driver {
    let mut driver = Driver::started(Net::open("lucos0", Some(MAC)).expect("the interface"), features);
    let buffers = receiver(&mut driver, 14, 1526);
    wait("a first frame", || {
        host.write_all(&frame(MAC, [2, 0, 0, 0, 0, 1], &[0; 64])).expect("sent");
        let (index, _) = driver.poll_used(0)?;
        (driver.peek(buffers + u64::from(index) * 0x1000 + 24, 2) == TYPE).then_some(())
    });
    driver.start(features);
    settled(&mut driver);
    driver
}

/// Waits until the device has thrown away what came before it was started: it serves the queues after that.
fn settled(driver: &mut Driver) {
    driver.add(1, &[(0, 0, 0)]);
    driver.used(1);
}

/// The next frame of [`TYPE`] that the guest gets: the host's own (neighbour discovery) come, too.
fn received(driver: &mut Driver, buffers: u64) -> (Vec<u8>, Vec<u8>) {
    for _ in 0..14 {
        let (index, len) = driver.used(0);
        let bytes = driver.peek(buffers + u64::from(index) * 0x1000, len as usize);
        if bytes.get(24..26) == Some(&TYPE) {
            return (bytes[..12].to_vec(), bytes[12..].to_vec());
        }
    }
    panic!("no frame of ours");
}

#[test]
fn frames_go_both_ways() {
    with_tap(|| {
        let mut host = host();
        let mut driver = connected(MODERN | 1 << 5, &mut host);
        assert_eq!(driver.config(0, 6), MAC);
        // From the guest, header and frame in two buffers.
        let sent = frame([2, 0, 0, 0, 0, 1], MAC, &[0x42; 100]);
        let (header, body) = (driver.bytes(&[0; 12]), driver.bytes(&sent));
        let head = driver.add(1, &[(header, 12, 0), (body, sent.len() as u32, 0)]);
        assert_eq!(driver.used(1), (head.into(), 0));
        assert_eq!(next_frame(&mut host), sent);
        // To the guest: waits until there is a buffer.
        let text = frame(MAC, [2, 0, 0, 0, 0, 1], b"hello, guest: a frame of more than sixty bytes for the guest");
        host.write_all(&text).expect("sent");
        let buffers = receiver(&mut driver, 14, 1526);
        let (header, got) = received(&mut driver, buffers);
        assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "no offloads, one buffer");
        assert_eq!(got, text);
        assert_eq!(driver.interrupt(), 1);
    });
}

#[test]
fn a_frame_with_no_room_is_dropped_and_the_buffer_kept() {
    with_tap(|| {
        let mut host = host();
        let mut driver = connected(MODERN, &mut host);
        let buffers = receiver(&mut driver, 14, 200);
        host.write_all(&frame(MAC, [2, 0, 0, 0, 0, 1], &[1; 1000])).expect("sent");
        let small = frame(MAC, [2, 0, 0, 0, 0, 1], &[2; 100]);
        host.write_all(&small).expect("sent");
        assert_eq!(received(&mut driver, buffers).1, small);
    });
}

#[test]
fn bad_frames_of_the_guest_are_dropped() {
    with_tap(|| {
        let mut host = host();
        let mut driver = connected(MODERN, &mut host);
        let bytes = driver.bytes(&[0xff; 64]);
        // Nothing, half a header, a header alone, a header full of nonsense, far too much, a buffer to write.
        for chain in [
            &[(bytes, 0, 0)][..],
            &[(bytes, 11, 0)],
            &[(bytes, 12, 0)],
            &[(bytes, 64, 0)],
            &[(0, HOLE as u32, 0)],
            &[(0, 0x8000, 0), (0, 0x8000, 0), (0, 0x8000, 0)],
            &[(bytes, 64, WRITE)],
        ] {
            driver.add(1, chain);
            assert_eq!(driver.used(1).1, 0);
        }
        let sent = frame([2, 0, 0, 0, 0, 1], MAC, &[7; 64]);
        let good = driver.bytes(&[&[0; 12][..], &sent].concat());
        driver.add(1, &[(good, 12 + sent.len() as u32, 0)]);
        assert_eq!(next_frame(&mut host), sent);
        driver.add(1, &[(HOLE, 100, 0)]);
        driver.fails();
    });
}

#[test]
fn a_new_driver_gets_no_old_frames() {
    with_tap(|| {
        let mut host = host();
        let mut driver = connected(MODERN, &mut host);
        for round in 0..5u8 {
            host.write_all(&frame(MAC, [2, 0, 0, 0, 0, 1], &[0xee; 64])).expect("sent");
            driver.start(MODERN | u64::from(round & 1) << 1);
            settled(&mut driver);
            let buffers = receiver(&mut driver, 14, 1526);
            let new = frame(MAC, [2, 0, 0, 0, 0, 1], &[round; 64]);
            host.write_all(&new).expect("sent");
            assert_eq!(received(&mut driver, buffers).1, new);
        }
    });
}

#[test]
fn an_interface_that_goes_away_stops_the_device() {
    with_tap(|| {
        let mut driver = Driver::started(Net::open("lucos0", None).expect("the interface"), MODERN);
        receiver(&mut driver, 4, 1526);
        ip("link delete lucos0").expect("deleted");
        driver.fails();
        // It stays so, and nothing hangs.
        driver.start(MODERN);
        driver.fails();
    });
}

#[test]
fn interfaces_that_cannot_be_used_are_refused_by_name() {
    with_tap(|| {
        let open = |name: &str| Net::open(name, None).expect_err("not an interface of ours");
        assert!(matches!(open("lucos1"), TapError::Missing(name) if name == "lucos1"));
        assert!(matches!(open("lo"), TapError::Kind(name) if name == "lo"));
        let first = Net::open("lucos0", None).expect("the interface");
        assert!(matches!(open("lucos0"), TapError::Busy(name) if name == "lucos0"));
        let mac = first.mac();
        drop(first);
        assert_eq!(Net::open("lucos0", None).expect("free again").mac(), mac, "the same address each time");
        assert_eq!(mac[0] & 3, 2, "locally administered, one receiver");
    });
    for name in ["", "a-name-of-16-byte", "a/b", "tap%d", "a\0b"] {
        assert!(matches!(Net::open(name, None), Err(TapError::Name(_))), "{name:?}");
    }
    for mac in [[0; 6], [0xff; 6], [1, 0, 0, 0, 0, 1]] {
        assert!(matches!(Net::open("lucos0", Some(mac)), Err(TapError::Mac(_))));
    }
}
