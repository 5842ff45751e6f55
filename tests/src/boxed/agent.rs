//! The program in the box that does what the host asks for.
//!
//! Comes in: requests from a virtio serial port. Decided: nothing; it has no opinion. Goes out: the command's output and
//! status, connections to sockets of the box, files.

use super::machine::PORT;
use super::mux::Mux;
use super::wire::{ALIVE_EVERY, Message, STDERR, STDIN, STDOUT};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How often a socket that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Process group of the command while it runs.
type Group = Arc<Mutex<Option<Pid>>>;

/// Serves the host until it goes away.
///
/// # Errors
/// When the port is not there, or what comes from it is not understood.
pub fn serve() -> io::Result<()> {
    let port = File::options().read(true).write(true).open(PORT)?;
    let mux = Mux::new(port.try_clone()?);
    mux.tell(Message::Ready { kvm: File::options().read(true).write(true).open("/dev/kvm").is_ok() })?;
    let alive = mux.clone();
    thread::spawn(move || {
        while alive.tell(Message::Alive).is_ok() {
            thread::sleep(ALIVE_EVERY);
        }
    });
    let (asked, group) = (mux.clone(), Group::default());
    mux.listen(port, move |message| {
        let (mux, group) = (asked.clone(), Arc::clone(&group));
        // A thread each: none of them may keep the port from being read.
        thread::spawn(move || {
            // An error means that the host has gone away; `listen` ends then.
            let _ = answer(&mux, &group, message);
        });
    })
}

fn answer(mux: &Mux, group: &Group, message: Message) -> io::Result<()> {
    match message {
        Message::Run { words, terminal } => match run(mux, group, &words, terminal) {
            Ok(status) => mux.tell(Message::Ended { status }),
            Err(error) => mux.tell(Message::NotStarted { reason: error.to_string() }),
        },
        Message::Signal { number } => {
            let group = *group.lock().unwrap_or_else(PoisonError::into_inner);
            if let (Some(group), Ok(signal)) = (group, Signal::try_from(number)) {
                killpg(group, signal)?;
            }
            Ok(())
        }
        Message::Await { path } => {
            while UnixStream::connect(&path).is_err() {
                thread::sleep(LOOK);
            }
            mux.tell(Message::Listening { path })
        }
        Message::Connect { channel, path } => match UnixStream::connect(&path) {
            Ok(stream) => {
                mux.tell(Message::Opened { channel, error: None })?;
                connect(mux, channel, &stream)
            }
            Err(error) => mux.tell(Message::Opened { channel, error: Some(format!("{path}: {error}")) }),
        },
        Message::Get { channel, path } => match File::open(&path).and_then(|file| Ok((file.metadata()?, file))) {
            Ok((metadata, file)) if metadata.is_file() => {
                mux.tell(Message::Opened { channel, error: None })?;
                mux.send(channel, file)
            }
            Ok(_) => mux.tell(Message::Opened { channel, error: Some(format!("{path} is not a file")) }),
            Err(error) => mux.tell(Message::Opened { channel, error: Some(format!("{path}: {error}")) }),
        },
        // Nothing is asked for by a nudge; the others are for the host.
        Message::Nudge
        | Message::Ready { .. }
        | Message::Alive
        | Message::Ended { .. }
        | Message::NotStarted { .. }
        | Message::Listening { .. }
        | Message::Opened { .. } => Ok(()),
    }
}

/// Joins a channel and a socket until both directions have ended.
pub(super) fn connect(mux: &Mux, channel: u32, stream: &UnixStream) -> io::Result<()> {
    thread::scope(|scope| {
        let incoming = scope.spawn(|| {
            let result = mux.receive(channel, stream);
            // The other direction may have closed it already.
            let _ = stream.shutdown(Shutdown::Write);
            result
        });
        let outgoing = mux.send(channel, stream);
        let incoming = incoming.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the connection ended")));
        outgoing.and(incoming)
    })
}

fn run(mux: &Mux, group: &Group, words: &[String], terminal: bool) -> io::Result<u8> {
    let status = if terminal { on_terminal(mux, group, words)? } else { on_pipes(mux, group, words)? };
    Ok(status_of(status))
}

/// As a shell says it: 128 and the number of the signal that ended the command.
fn status_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

fn on_pipes(mux: &Mux, group: &Group, words: &[String]) -> io::Result<ExitStatus> {
    let (program, args) = words.split_first().ok_or_else(|| io::Error::other("no command"))?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = start(&mut command, group)?;
    if let Some(input) = child.stdin.take() {
        let mux = mux.clone();
        // Not waited for: the command may end before its input does.
        thread::spawn(move || mux.receive(STDIN, input));
    }
    let (out, err) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(|| err.map(|err| mux.send(STDERR, err)));
        out.map(|out| mux.send(STDOUT, out));
    });
    finish(child, group)
}

/// The command gets a pseudo-terminal; `setsid -c` makes it the controlling one.
fn on_terminal(mux: &Mux, group: &Group, words: &[String]) -> io::Result<ExitStatus> {
    let pty = nix::pty::openpty(None, None)?;
    let end = |fd: &OwnedFd| fd.try_clone();
    let mut command = Command::new("setsid");
    command.arg("-c").args(words);
    command.stdin(end(&pty.slave)?).stdout(end(&pty.slave)?).stderr(end(&pty.slave)?);
    // `setsid` starts a session, and so a group, of its own.
    let child = start(&mut command, group)?;
    // The command alone holds the terminal from now on: its end is the end of the output.
    drop((command, pty.slave));
    let input = File::from(end(&pty.master)?);
    let stdin = mux.clone();
    thread::spawn(move || stdin.receive(STDIN, input));
    mux.send(STDOUT, File::from(pty.master))?;
    mux.send(STDERR, io::empty())?;
    finish(child, group)
}

fn start(command: &mut Command, group: &Group) -> io::Result<Child> {
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    *group.lock().unwrap_or_else(PoisonError::into_inner) = Some(Pid::from_raw(pid));
    Ok(child)
}

fn finish(mut child: Child, group: &Group) -> io::Result<ExitStatus> {
    let status = child.wait()?;
    *group.lock().unwrap_or_else(PoisonError::into_inner) = None;
    Ok(status)
}
