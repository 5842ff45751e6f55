//! The serial console: a line goes in, an answer between two markers comes out.
//!
//! Comes in: the two pipes of the machine's serial port. Decided: where an answer begins and ends; kernel messages may
//! stand between its lines. Goes out: [`Answer`]; everything read is kept and copied to the log.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use flate2::read::GzDecoder;
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
        let line = format!("RUN {id} {}\n", BASE64_STANDARD.encode(command));
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
        self.wait(from, limit, |text| parse_answer(text, id))?
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

/// An answer once it is there; it may have been interrupted by a message of the kernel in the middle of a line.
fn parse_answer(text: &str, id: u64) -> Option<Result<Answer, String>> {
    let end_mark = format!("@@lucos-end {id} ");
    let status = find_line(text, &end_mark)?.parse().ok()?;
    let begin_mark = format!("@@lucos-begin {id}\n");
    let begin = text.find(&begin_mark)? + begin_mark.len();
    let body = text.get(begin..text.find(&end_mark)?)?;
    // A kernel message between the lines of an answer has characters that base64 does not have.
    let is_coded = |line: &&str| line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
    let coded: String = body.lines().filter(is_coded).collect();
    let output = BASE64_STANDARD.decode(coded).map_err(|error| error.to_string()).and_then(|packed| {
        let mut output = Vec::new();
        GzDecoder::new(packed.as_slice()).read_to_end(&mut output).map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    });
    Some(match output {
        Ok(output) => Ok(Answer { status, output }),
        Err(error) => Err(format!("the answer cannot be read ({error}):\n{body}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_around_kernel_messages() {
        let text = "@@lucos-begin 7\nH4sIAAAAAAAAA8tI\n[   12.5] random: crng init done\nzcnJ5wIAIDA6NgYAAAA=\n@@lucos-end 7 3\n";
        assert_eq!(parse_answer(text, 7), Some(Ok(Answer { status: 3, output: "hello\n".to_owned() })));
        let broken = text.replace("cnJ5w", "c[   13.0] BUG: bad\nnJ5w");
        let error = parse_answer(&broken, 7).expect("complete").expect_err("not to be read");
        assert!(error.contains("BUG: bad"), "{error}");
        assert_eq!(parse_answer(text, 8), None);
        assert_eq!(parse_answer(text.trim_end(), 7), None, "the last line is not complete yet");
    }
}
