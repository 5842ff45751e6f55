//! The guest's serial console: a 16550 at the first serial port.
//!
//! Comes in: bytes that the guest writes, and bytes to type to it. Decided: that neither side waits for the other. What the
//! guest writes goes through a thread and a limited buffer, so that a terminal that stands still never stops a processor;
//! what does not fit is lost, and that is said. Goes out: bytes on a file, interrupts to the guest.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Bytes that the guest may be ahead of whoever reads.
const AHEAD_LIMIT: usize = 1 << 20;
/// How long typed bytes wait for room before looking again, should the guest's driver be reset meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Raises the port's interrupt.
pub(super) struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells whoever types that the guest has read.
#[derive(Default)]
struct Space {
    empty: Mutex<bool>,
    changed: Condvar,
}

/// Events of the port, of which only this one matters.
struct WhenEmpty(Arc<Space>);

impl SerialEvents for WhenEmpty {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        *self.0.empty.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }
}

/// What the guest has said and nobody has written yet.
#[derive(Default)]
struct Said {
    bytes: VecDeque<u8>,
    /// Some bytes were lost since the last that were kept.
    lost: bool,
    /// Nothing more is coming.
    closed: bool,
}

/// Where the guest's bytes go: to a thread.
#[derive(Clone, Default)]
struct Outlet(Arc<(Mutex<Said>, Condvar)>);

impl Outlet {
    fn change(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.1.notify_all();
    }

    /// Everything that has gathered; nothing when no more is coming.
    fn next(&self) -> Vec<u8> {
        let said = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |said: &mut Said| said.bytes.is_empty() && !said.closed;
        let mut said = self.0.1.wait_while(said, waiting).unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut said.bytes).into()
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.change(|said| {
            if said.bytes.len() + bytes.len() <= AHEAD_LIMIT {
                said.bytes.extend(bytes);
                said.lost = false;
            } else if !std::mem::replace(&mut said.lost, true) {
                eprintln!("lucos-hv: nobody reads the guest's console; some of its output is lost");
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port.
pub(super) struct SerialPort {
    uart: Mutex<Serial<Interrupt, WhenEmpty, Outlet>>,
    space: Arc<Space>,
}

/// The thread that writes what the guest says. When this is dropped, everything said so far has been written.
pub(super) struct Writer {
    outlet: Outlet,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.outlet.change(|said| said.closed = true);
        if let Some(thread) = self.thread.take() {
            // Nothing in it panics, and if it did, there would be nothing more to write.
            let _ = thread.join();
        }
    }
}

impl SerialPort {
    /// A port whose output goes to `output`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn new(irq: EventFd, output: Box<dyn Write + Send>) -> io::Result<(Arc<SerialPort>, Writer)> {
        let (outlet, space) = (Outlet::default(), Arc::new(Space::default()));
        let said = outlet.clone();
        let thread = std::thread::Builder::new().name("console".into()).spawn(move || write_out(&said, output))?;
        let uart = Serial::with_events(Interrupt(irq), WhenEmpty(Arc::clone(&space)), outlet.clone());
        let writer = Writer { outlet, thread: Some(thread) };
        Ok((Arc::new(SerialPort { uart: Mutex::new(uart), space }), writer))
    }

    fn uart(&self) -> MutexGuard<'_, Serial<Interrupt, WhenEmpty, Outlet>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest reads a register.
    pub(super) fn read(&self, register: u8) -> u8 {
        self.uart().read(register)
    }

    /// The guest writes a register.
    pub(super) fn write(&self, register: u8, value: u8) {
        // What can fail is the interrupt: the event counter is full, so that one is on its way already.
        let _ = self.uart().write(register, value);
    }

    /// Types to the guest, as fast as it reads, until the input ends.
    pub(super) fn type_from(&self, mut input: impl Read) {
        let mut buffer = [0; 256];
        loop {
            let mut typed = match input.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => &buffer[..count],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            while !typed.is_empty() {
                *self.space.empty.lock().unwrap_or_else(PoisonError::into_inner) = false;
                // An error is a full buffer; a port in loop-back mode takes nothing.
                let taken = self.uart().enqueue_raw_bytes(typed).unwrap_or(0);
                typed = &typed[taken..];
                if taken == 0 {
                    let empty = self.space.empty.lock().unwrap_or_else(PoisonError::into_inner);
                    let wait = self.space.changed.wait_timeout_while(empty, LOOK_AGAIN, |empty| !*empty);
                    drop(wait);
                }
            }
        }
    }
}

/// Writes what comes, in pieces as large as they have gathered.
fn write_out(said: &Outlet, mut output: Box<dyn Write + Send>) {
    loop {
        let piece = said.next();
        // When nobody is there any more the guest goes on.
        if piece.is_empty() || output.write_all(&piece).and_then(|()| output.flush()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_go_both_ways_and_more_than_the_buffer_holds_is_typed_in_full() {
        let sink = Sink::default();
        let irq = EventFd::new(0).expect("an event");
        let (port, writer) = SerialPort::new(irq, Box::new(sink.clone())).expect("a port");
        b"hello".iter().for_each(|&byte| port.write(0, byte));
        let typed: Vec<u8> = (0..1000_u32).map(|n| n as u8).collect();
        let read = std::thread::scope(|scope| {
            let (typist, port) = (scope.spawn(|| port.type_from(&typed[..])), &port);
            let mut read = Vec::new();
            while read.len() < typed.len() {
                // Line status register: a byte is there.
                if port.read(5) & 1 != 0 {
                    read.push(port.read(0));
                } else {
                    std::thread::yield_now();
                }
            }
            typist.join().expect("no panic");
            read
        });
        assert_eq!(read, typed);
        drop(writer);
        assert_eq!(*sink.0.lock().expect("no panic"), b"hello");
    }
}
