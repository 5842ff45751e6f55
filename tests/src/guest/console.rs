//! The serial console: a line goes in, an answer between two markers comes out.
//!
//! Comes in: the two pipes of the machine's serial port. Decided: where an answer begins and ends; kernel messages may
//! stand between its lines. Goes out: [`Answer`]; everything read is kept and copied to the log.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What a command in the guest gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its exit status.
    pub status: i32,
    /// Standard output and standard error.
    pub output: String,
}

#[derive(Debug, Default)]
struct Heard {
    bytes: Vec<u8>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    heard: Mutex<Heard>,
    more: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The host's end of the serial port.
pub(super) struct Console {
    input: Box<dyn Write + Send>,
    shared: Arc<Shared>,
    next_id: u64,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("requests", &self.next_id).finish_non_exhaustive()
    }
}

impl Console {
    /// Starts to listen; everything heard is copied to `log`.
    pub(super) fn new(
        input: impl Write + Send + 'static,
        mut output: impl Read + Send + 'static,
        mut log: File,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let heard = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = match output.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => break,
                };
                // A full disk must not make the guest look dead; the log is for people.
                let _ = log.write_all(&buffer[..count]);
                heard.lock().bytes.extend_from_slice(&buffer[..count]);
                heard.more.notify_all();
            }
            heard.lock().ended = true;
            heard.more.notify_all();
        });
        Self { input: Box::new(input), shared, next_id: 1 }
    }

    /// Everything heard so far.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().bytes).replace('\r', "")
    }

    /// Waits until a line that contains `mark` has come.
    pub(super) fn wait_for(&self, mark: &str, limit: Duration) -> Result<(), String> {
        self.wait(0, limit, |text| find_line(text, mark).map(|_| ()))
    }

    /// Sends a command without waiting.
    pub(super) fn send(&mut self, command: &str) -> io::Result<u64> {
        let id = self.next_id;
        self.next_id += 1;
        let line = format!("RUN {id} {}\n", base64(command.as_bytes()));
        self.input.write_all(line.as_bytes())?;
        self.input.flush()?;
        Ok(id)
    }

    /// Sends a command and waits for its answer.
    pub(super) fn ask(&mut self, command: &str, limit: Duration) -> Result<Answer, String> {
        // The line discipline drops what does not fit its buffer of 4096 bytes (drivers/tty/n_tty.c, N_TTY_BUF_SIZE).
        if command.len() > 2900 {
            return Err(format!("the command has {} bytes, the console takes 2900; split it", command.len()));
        }
        let from = self.shared.lock().bytes.len();
        let id = self.send(command).map_err(|error| format!("console: {error}"))?;
        self.wait(from, limit, |text| parse_answer(text, id))
    }

    fn wait<T>(&self, from: usize, limit: Duration, done: impl Fn(&str) -> Option<T>) -> Result<T, String> {
        let start = Instant::now();
        let mut heard = self.shared.lock();
        loop {
            let text = String::from_utf8_lossy(heard.bytes.get(from..).unwrap_or_default()).replace('\r', "");
            if let Some(value) = done(&text) {
                return Ok(value);
            }
            if heard.ended {
                return Err("the console was closed".to_owned());
            }
            let Some(left) = limit.checked_sub(start.elapsed()) else {
                return Err(format!("nothing within {} s", limit.as_secs()));
            };
            heard = match self.shared.more.wait_timeout(heard, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

/// The complete line that starts with `mark`, as the rest behind it.
fn find_line<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    let at = text.find(mark)? + mark.len();
    let end = text[at..].find('\n')?;
    Some(text[at..at + end].trim())
}

fn parse_answer(text: &str, id: u64) -> Option<Answer> {
    let end_mark = format!("@@lucos-end {id} ");
    let status = find_line(text, &end_mark)?.parse().ok()?;
    let begin_mark = format!("@@lucos-begin {id}\n");
    let begin = text.find(&begin_mark)? + begin_mark.len();
    let body = text.get(begin..text.find(&end_mark)?)?;
    // A kernel message between the lines of an answer has characters that base64 does not have.
    let coded: String = body.lines().filter(|line| line.bytes().all(is_base64)).collect();
    let output = String::from_utf8_lossy(&unbase64(&coded)).into_owned();
    Some(Answer { status, output })
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn is_base64(byte: u8) -> bool {
    byte == b'=' || ALPHABET.contains(&byte)
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let digit = (word >> (18 - 6 * index)) & 63;
            out.push(if index <= chunk.len() { char::from(ALPHABET[digit as usize]) } else { '=' });
        }
    }
    out
}

/// RFC 4648, section 4; other characters are passed over.
fn unbase64(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut word, mut bits) = (0_u32, 0);
    for byte in text.bytes() {
        let Some(digit) = ALPHABET.iter().position(|&letter| letter == byte) else { continue };
        word = word << 6 | digit as u32;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((word >> bits) as u8);
            word &= (1 << bits) - 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_goes_both_ways() {
        assert_eq!(base64(b"cat /proc/version"), "Y2F0IC9wcm9jL3ZlcnNpb24=");
        for len in 0..70 {
            let bytes: Vec<u8> = (0..len).map(|byte: u8| byte.wrapping_mul(37)).collect();
            assert_eq!(unbase64(&base64(&bytes)), bytes);
        }
    }

    #[test]
    fn an_answer_is_read_around_kernel_messages() {
        let text = "@@lucos-begin 7\naGVs\n[   12.5] random: crng init done\nbG8K\n@@lucos-end 7 3\n";
        assert_eq!(parse_answer(text, 7), Some(Answer { status: 3, output: "hello\n".to_owned() }));
        assert_eq!(parse_answer(text, 8), None);
        assert_eq!(parse_answer(text.trim_end(), 7), None, "the last line is not complete yet");
    }
}
