//! Many byte streams on one: the command's input and output, connections, files.
//!
//! Comes in: the two directions of one stream, sources and sinks. Decided: how much may be under way on a channel, so
//! that one whose reader is slow holds up no other. Goes out: every byte, once and in order, or the news that the other side is gone.

use super::wire::{Frame, MOST, Message};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of one channel that may be under way in one direction.
const WINDOW: usize = 8 * MOST;

/// One end of the conversation; clones share it.
#[derive(Clone)]
pub(super) struct Mux {
    shared: Arc<Shared>,
}

struct Shared {
    out: Mutex<Box<dyn Write + Send>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Bytes that may still be sent, for every channel that sends.
    credit: HashMap<u32, usize>,
    /// What has come and was not used yet.
    inbox: HashMap<u32, Inbox>,
    /// The other side is gone.
    lost: bool,
}

#[derive(Default)]
struct Inbox {
    bytes: Vec<u8>,
    ended: bool,
}

impl Mux {
    /// Writes to `out`; [`Mux::listen`] has to run for anything to come in.
    pub(super) fn new(out: impl Write + Send + 'static) -> Self {
        let out: Box<dyn Write + Send> = Box::new(out);
        let shared = Shared { out: Mutex::new(out), state: Mutex::default(), changed: Condvar::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Reads frames until the other side is gone. Messages go to `each`, which must not wait for the other side.
    pub(super) fn listen(&self, mut input: impl Read, mut each: impl FnMut(Message)) -> io::Result<()> {
        let result = loop {
            match Frame::read(&mut input) {
                Ok(Some(Frame::Message(message))) => each(message),
                Ok(Some(frame)) => {
                    if let Err(error) = self.take(frame) {
                        break Err(error);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.state().lost = true;
        self.shared.changed.notify_all();
        result
    }

    fn take(&self, frame: Frame) -> io::Result<()> {
        let mut state = self.state();
        match frame {
            Frame::Data(channel, bytes) => {
                let inbox = state.inbox.entry(channel).or_default();
                if inbox.bytes.len() + bytes.len() > WINDOW {
                    return Err(io::Error::other(format!("more than {WINDOW} bytes under way on channel {channel}")));
                }
                inbox.bytes.extend_from_slice(&bytes);
            }
            Frame::End(channel) => state.inbox.entry(channel).or_default().ended = true,
            // Credit for a channel that has sent everything is of no use any more.
            Frame::Credit(channel, count) => {
                if let Some(credit) = state.credit.get_mut(&channel) {
                    *credit = (*credit + count as usize).min(WINDOW);
                }
            }
            Frame::Message(_) => {}
        }
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Sends a message.
    pub(super) fn tell(&self, message: Message) -> io::Result<()> {
        self.write(&Frame::Message(message))
    }

    /// Sends everything that `source` has, then the end of the channel.
    pub(super) fn send(&self, channel: u32, mut source: impl Read) -> io::Result<()> {
        self.state().credit.insert(channel, WINDOW);
        let mut buffer = vec![0; MOST];
        loop {
            let most = self.wait(|state| state.credit.get(&channel).copied().filter(|&credit| credit > 0))?.min(MOST);
            match source.read(&mut buffer[..most]) {
                Ok(count @ 1..) => {
                    if let Some(credit) = self.state().credit.get_mut(&channel) {
                        *credit -= count;
                    }
                    self.write(&Frame::Data(channel, buffer[..count].to_vec()))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal whose last user has gone away says EIO (drivers/tty/n_tty.c): an end like any other.
                Ok(0) | Err(_) => break,
            }
        }
        self.state().credit.remove(&channel);
        self.write(&Frame::End(channel))
    }

    /// Writes everything that comes on a channel to `sink`, until its end. A sink that takes no more holds nothing up:
    /// its bytes are dropped, and its error is returned at the end.
    pub(super) fn receive(&self, channel: u32, mut sink: impl Write) -> io::Result<()> {
        let mut result = Ok(());
        loop {
            let bytes = self.wait(|state| {
                let inbox = state.inbox.get_mut(&channel)?;
                (inbox.ended || !inbox.bytes.is_empty()).then(|| std::mem::take(&mut inbox.bytes))
            })?;
            if bytes.is_empty() {
                self.state().inbox.remove(&channel);
                return result;
            }
            if result.is_ok() {
                result = sink.write_all(&bytes).and_then(|()| sink.flush());
            }
            self.write(&Frame::Credit(channel, bytes.len() as u32))?;
        }
    }

    fn write(&self, frame: &Frame) -> io::Result<()> {
        let mut out = self.shared.out.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write(&mut *out)
    }

    fn wait<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> io::Result<T> {
        let mut state = self.state();
        loop {
            if let Some(value) = ready(&mut state) {
                return Ok(value);
            }
            if state.lost {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::thread;

    fn pair() -> (Mux, Mux) {
        let (one, two) = UnixStream::pair().expect("sockets");
        let start = |stream: UnixStream| {
            let mux = Mux::new(stream.try_clone().expect("a second handle"));
            let listener = mux.clone();
            thread::spawn(move || listener.listen(stream, |_| {}));
            mux
        };
        (start(one), start(two))
    }

    #[test]
    fn channels_do_not_hold_each_other_up() {
        let (near, far) = pair();
        let bytes: Vec<u8> = (0..5 * WINDOW).map(|index| ((index * 31) >> 3) as u8).collect();
        let (sender, sent) = (near.clone(), bytes.clone());
        let blocked = thread::spawn(move || sender.send(9, sent.as_slice()));
        // Channel 9 has nobody who reads yet; 10 goes through all the same, in both directions.
        for (from, to) in [(&near, &far), (&far, &near)] {
            let (from, sent) = (from.clone(), bytes.clone());
            let sending = thread::spawn(move || from.send(10, sent.as_slice()));
            let mut received = Vec::new();
            to.receive(10, &mut received).expect("arrives");
            assert!(received == bytes);
            sending.join().expect("no panic").expect("was sent");
        }
        assert!(!blocked.is_finished(), "no more than the window is under way");
        let mut received = Vec::new();
        far.receive(9, &mut received).expect("arrives");
        assert!(received == bytes);
        blocked.join().expect("no panic").expect("was sent");
    }

    #[test]
    fn a_sink_that_fails_holds_nothing_up() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (near, far) = pair();
        let sending = thread::spawn(move || near.send(5, vec![7; 3 * WINDOW].as_slice()));
        let error = far.receive(5, Full).expect_err("nothing was taken");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        sending.join().expect("no panic").expect("was sent");
    }

    #[test]
    fn the_end_of_the_other_side_is_noticed() {
        let (one, two) = UnixStream::pair().expect("sockets");
        let mux = Mux::new(one.try_clone().expect("a second handle"));
        let listener = mux.clone();
        let waiting = thread::spawn(move || mux.receive(4, io::sink()));
        drop(two);
        listener.listen(one, |_| {}).expect("a clean end");
        let error = waiting.join().expect("no panic").expect_err("never ended");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
