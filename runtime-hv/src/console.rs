//! The terminal while a guest's serial console is on it.
//!
//! Comes in: whether standard input is a terminal. Decided: who reads it. Goes out: a terminal in raw mode whose keys go to
//! the guest, except for Ctrl-A x, which ends the guest; or, without a terminal, plain standard input and output. The
//! terminal is put back at the end.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::dup2_stdin;
use std::fs::File;
use std::io::{self, IsTerminal, PipeWriter, Read, Write, stdin, stdout};

/// Ctrl-A.
const ESCAPE: u8 = 1;

/// A terminal in raw mode; put back when this is dropped.
pub(crate) struct Console {
    /// Opened anew: QEMU makes the terminal that it inherits non-blocking, for everybody who shares that opening.
    terminal: File,
    before: Termios,
    flags: OFlag,
    to_guest: Option<PipeWriter>,
}

impl Console {
    /// If standard input is a terminal: takes it, and puts a pipe in its place for the guest to inherit.
    ///
    /// # Errors
    /// Of the terminal or the pipe.
    pub(crate) fn take() -> io::Result<Option<Console>> {
        if !stdin().is_terminal() {
            return Ok(None);
        }
        let terminal = File::options().read(true).write(true).open("/proc/self/fd/0")?;
        let before = tcgetattr(&terminal)?;
        let flags = OFlag::from_bits_retain(fcntl(stdout(), FcntlArg::F_GETFL)?);
        let (from_us, to_guest) = io::pipe()?;
        dup2_stdin(&from_us)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&terminal, SetArg::TCSANOW, &raw)?;
        Ok(Some(Console { terminal, before, flags, to_guest: Some(to_guest) }))
    }

    /// Hands keys to the guest in a thread of its own, until Ctrl-A x: then `end` is called.
    ///
    /// # Errors
    /// When the terminal cannot be read a second time.
    pub(crate) fn hand_over(&mut self, end: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let Some(guest) = self.to_guest.take() else { return Ok(()) };
        let keys = self.terminal.try_clone()?;
        std::thread::spawn(move || hand_over(keys, guest, end));
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
        let _ = fcntl(stdout(), FcntlArg::F_SETFL(self.flags));
    }
}

/// Ctrl-A Ctrl-A is one Ctrl-A for the guest.
fn hand_over(mut from: impl Read, mut guest: impl Write, end: impl FnOnce()) {
    let mut escaped = false;
    let mut keys = [0; 256];
    loop {
        let count = match from.read(&mut keys) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let mut through = Vec::with_capacity(count);
        for &key in &keys[..count] {
            match (escaped, key) {
                (true, b'x' | b'X') => return end(),
                (false, ESCAPE) => escaped = true,
                (_, key) => {
                    escaped = false;
                    through.push(key);
                }
            }
        }
        if guest.write_all(&through).and_then(|()| guest.flush()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key_ends_and_everything_else_goes_through() {
        for (typed, expected, ends) in [
            (&b"ls\r"[..], &b"ls\r"[..], false),
            (b"a\x01xb", b"", true),
            (b"\x01\x01x", b"\x01x", false),
            (b"\x01c\x03", b"c\x03", false),
        ] {
            let (mut seen, mut ended) = (Vec::new(), false);
            hand_over(typed, &mut seen, || ended = true);
            assert_eq!((&seen[..], ended), (expected, ends), "{typed:?}");
        }
    }
}
