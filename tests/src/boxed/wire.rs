//! What host and box say to each other: frames on one byte stream.
//!
//! Comes in: a byte stream. Decided: where a frame begins and ends; one that cannot be is an error, never a guess. Goes
//! out: [`Frame`]s; requests and answers among them are [`Message`]s.
//!
//! A frame is its kind (1 byte), its channel (4 bytes), the length of its contents (4 bytes), both little-endian, and
//! the contents. Messages are JSON on channel 0. Every other channel is a byte stream in each direction.

use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::time::Duration;

/// Most bytes that a frame contains.
pub(super) const MOST: usize = 32 << 10;
/// How often the box says that it is alive.
pub(super) const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// How often the host nudges the box ([`Message::Nudge`]).
pub(super) const NUDGE_EVERY: Duration = Duration::from_millis(500);
/// Length of what stands before the contents.
const HEADER: usize = 9;

/// Channel of the command's standard input.
pub(super) const STDIN: u32 = 1;
/// Channel of its standard output.
pub(super) const STDOUT: u32 = 2;
/// Channel of its standard error.
pub(super) const STDERR: u32 = 3;
/// The first channel for connections and files.
pub(super) const FIRST_FREE: u32 = 4;

/// One piece of the conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// A request or an answer.
    Message(Message),
    /// Bytes of a channel.
    Data(u32, Vec<u8>),
    /// Nothing more comes on this channel, in this direction.
    End(u32),
    /// So many bytes of a channel were used up; as many more may be sent.
    Credit(u32, u32),
}

/// Requests of the host and answers of the box.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Message {
    /// The box is up.
    Ready {
        /// Whether `/dev/kvm` can be opened.
        kvm: bool,
    },
    /// The box is alive: said again and again ([`ALIVE_EVERY`]).
    Alive,
    /// Nothing, but it interrupts a processor of the box: said again and again ([`NUDGE_EVERY`]). The emulated virtualisation
    /// sometimes loses the one timer that an idle processor of the box waits for, and any interrupt makes up for it.
    Nudge,
    /// Run a command on the channels 1 to 3.
    Run {
        /// The program and its arguments.
        words: Vec<String>,
        /// Give it a terminal.
        terminal: bool,
    },
    /// Send the command a signal.
    Signal {
        /// Its number.
        number: i32,
    },
    /// The command has ended, and everything it wrote was sent.
    Ended {
        /// Its exit status, or 128 and the number of the signal that ended it.
        status: u8,
    },
    /// The command could not be started.
    NotStarted {
        /// What the system said.
        reason: String,
    },
    /// Say when somebody listens at a socket.
    Await {
        /// The socket.
        path: String,
    },
    /// Somebody does.
    Listening {
        /// The socket.
        path: String,
    },
    /// Connect a channel to a socket.
    Connect {
        /// The channel.
        channel: u32,
        /// The socket.
        path: String,
    },
    /// Send a file.
    Get {
        /// The channel.
        channel: u32,
        /// The file.
        path: String,
    },
    /// How the sending of a file, or a connection, began.
    Opened {
        /// The channel.
        channel: u32,
        /// Why there is nothing to send.
        error: Option<String>,
    },
}

impl Frame {
    /// Writes it in one piece.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let json;
        let number;
        let (kind, channel, contents): (u8, u32, &[u8]) = match self {
            Self::Message(message) => {
                json = serde_json::to_vec(message)?;
                (b'm', 0, &json)
            }
            Self::Data(channel, bytes) => (b'd', *channel, bytes),
            Self::End(channel) => (b'e', *channel, &[]),
            Self::Credit(channel, count) => {
                number = count.to_le_bytes();
                (b'c', *channel, &number)
            }
        };
        if contents.len() > MOST {
            return Err(io::Error::other(format!("a frame of {} bytes, at most {MOST} are possible", contents.len())));
        }
        let mut bytes = Vec::with_capacity(HEADER + contents.len());
        bytes.push(kind);
        bytes.extend_from_slice(&channel.to_le_bytes());
        bytes.extend_from_slice(&(contents.len() as u32).to_le_bytes());
        bytes.extend_from_slice(contents);
        out.write_all(&bytes)?;
        out.flush()
    }

    /// Reads the next one; nothing at the end of the stream.
    pub(super) fn read(input: &mut impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER];
        match input.read(&mut header[..1]) {
            Ok(0) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Self::read(input),
            other => other?,
        };
        input.read_exact(&mut header[1..])?;
        let [kind, c0, c1, c2, c3, l0, l1, l2, l3] = header;
        let (channel, len) = (u32::from_le_bytes([c0, c1, c2, c3]), u32::from_le_bytes([l0, l1, l2, l3]) as usize);
        if len > MOST {
            return Err(bad(format!("a frame of {len} bytes, at most {MOST} are possible")));
        }
        let mut contents = vec![0; len];
        input.read_exact(&mut contents)?;
        match kind {
            b'm' => Ok(Some(Self::Message(serde_json::from_slice(&contents)?))),
            b'd' => Ok(Some(Self::Data(channel, contents))),
            b'e' => Ok(Some(Self::End(channel))),
            b'c' => match contents.try_into() {
                Ok(count) => Ok(Some(Self::Credit(channel, u32::from_le_bytes(count)))),
                Err(contents) => Err(bad(format!("a credit of {} bytes, 4 are expected", contents.len()))),
            },
            _ => Err(bad(format!("a frame of the unknown kind {kind:#x}"))),
        }
    }
}

fn bad(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_both_ways() {
        let frames = [
            Frame::Message(Message::Run { words: vec!["sh".to_owned(), "-c".to_owned()], terminal: false }),
            Frame::Data(3, (0..=255).collect()),
            Frame::Data(u32::MAX, vec![]),
            Frame::Credit(7, 0x0102_0304),
            Frame::End(3),
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut bytes).expect("memory"));
        let mut input = bytes.as_slice();
        for frame in &frames {
            assert_eq!(Frame::read(&mut input).expect("reads").as_ref(), Some(frame));
        }
        assert_eq!(Frame::read(&mut input).expect("reads"), None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let read = |bytes: &[u8]| Frame::read(&mut &*bytes).map_err(|error| error.kind());
        assert_eq!(read(b"x\0\0\0\0\0\0\0\0"), Err(io::ErrorKind::InvalidData), "kind");
        assert_eq!(read(b"d\0\0\0\0\0\0\0\xff"), Err(io::ErrorKind::InvalidData), "length");
        assert_eq!(read(b"c\x01\0\0\0\x02\0\0\0ab"), Err(io::ErrorKind::InvalidData), "credit");
        assert_eq!(read(b"d\x01\0\0\0\x05\0\0\0ab"), Err(io::ErrorKind::UnexpectedEof), "cut");
        assert!(read(b"m\0\0\0\0\x02\0\0\0{}").is_err(), "message");
        assert!(Frame::Data(1, vec![0; MOST + 1]).write(&mut Vec::new()).is_err(), "too long");
    }
}
