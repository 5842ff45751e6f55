//! The host's side of a command in the box.
//!
//! Comes in: [`Options`], standard input, signals. Decided: when the box counts as lost. Goes out: the command's
//! standard output and error as they come, its exit status, files, sockets that lead into the box.

use super::machine::Machine;
use super::mux::Mux;
use super::terminal::Raw;
use super::wire::{FIRST_FREE, Message, NUDGE_EVERY, STDERR, STDIN, STDOUT};
use super::{BoxError, Options, agent};
use nix::sys::signal::{SigSet, Signal};
use std::collections::HashMap;
use std::io::{self, stderr, stdin, stdout};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Time for the box to be up; it takes about three seconds on an idle machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(90);
/// A box that does not even say that it is alive for so long stands still: the emulated virtualisation has lost a timer. Less than
/// a test waits for an answer, so that it is known whose fault it is.
const SILENCE: Duration = Duration::from_secs(45);
/// Time for the command to end when it is asked to; less than what those who ask usually wait themselves.
const GRACE: Duration = Duration::from_secs(8);

/// What can happen while a command runs.
enum Event {
    Said(Message),
    Signal(Signal),
    /// The box is gone.
    Closed(io::Result<()>),
}

/// Runs a command in a new box; gives its exit status. To be called from the main thread, once in a process: it takes over
/// SIGINT and SIGTERM, standard input and output.
///
/// # Errors
/// [`BoxError`]; [`BoxError::status`] is the exit status that says so.
pub fn run(options: &Options) -> Result<u8, BoxError> {
    for pair in &options.out {
        pair.both("out")?;
    }
    for pair in &options.forward {
        pair.both("forward")?;
    }
    let deadline = Instant::now() + options.limit();
    let (mut machine, stream) = Machine::start(options)?;
    // After QEMU was started, which would inherit it.
    let (events, happened) = channel();
    catch_signals(events.clone()).map_err(BoxError::io(Path::new("signals")))?;
    let opened = Opened::default();
    let mux = listen(stream, &opened, events).map_err(BoxError::io(Path::new("the port of the box")))?;
    let mut session = Session { machine: &mut machine, happened, heard: Instant::now(), deadline, mux, opened };
    let result = session.run(options);
    match result {
        Ok(status) => Ok(status),
        Err(End::Lost(what)) => Err(machine.lost(&what)),
        Err(End::Other(error)) => Err(error),
    }
}

/// Who waits to hear how a channel began.
type Opened = Arc<Mutex<HashMap<u32, Sender<Option<String>>>>>;

/// Signals arrive as events from now on, in all threads that are started from this one.
fn catch_signals(events: Sender<Event>) -> io::Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block()?;
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn listen(stream: UnixStream, opened: &Opened, events: Sender<Event>) -> io::Result<Mux> {
    let mux = Mux::new(stream.try_clone()?);
    let (listener, opened) = (mux.clone(), Arc::clone(opened));
    thread::spawn(move || {
        let result = listener.listen(stream, |message| match message {
            Message::Opened { channel, error } => {
                let waiting = opened.lock().unwrap_or_else(PoisonError::into_inner).remove(&channel);
                // Who has stopped waiting does not want to know.
                let _ = waiting.map(|waiting| waiting.send(error));
            }
            message => {
                let _ = events.send(Event::Said(message));
            }
        });
        let _ = events.send(Event::Closed(result));
    });
    Ok(mux)
}

/// Why a session ended without a status.
enum End {
    Lost(String),
    Other(BoxError),
}

impl From<BoxError> for End {
    fn from(error: BoxError) -> Self {
        Self::Other(error)
    }
}

struct Session<'a> {
    machine: &'a mut Machine,
    happened: Receiver<Event>,
    /// When the box last said something.
    heard: Instant,
    deadline: Instant,
    mux: Mux,
    opened: Opened,
}

impl Session<'_> {
    fn run(&mut self, options: &Options) -> Result<u8, End> {
        let up = self.deadline.min(Instant::now() + BOOT_TIMEOUT);
        match self.next(up)? {
            Some(Event::Said(Message::Ready { kvm: true })) => {}
            Some(Event::Said(Message::Ready { kvm: false })) => {
                return Err(BoxError::NoKvm(self.machine.log.clone()).into());
            }
            Some(Event::Signal(signal)) => return Ok(signal_status(signal)),
            Some(Event::Said(message)) => return Err(unexpected(&message)),
            // `next` has made an error of it.
            Some(Event::Closed(_)) | None if up < self.deadline => {
                return Err(End::Lost(format!("it was not up within {} s", BOOT_TIMEOUT.as_secs())));
            }
            Some(Event::Closed(_)) | None => return Err(limit_reached(options)),
        }
        let mux = self.mux.clone();
        thread::spawn(move || {
            while mux.tell(Message::Nudge).is_ok() {
                thread::sleep(NUDGE_EVERY);
            }
        });
        let terminal = Raw::take().map_err(BoxError::io(Path::new("terminal")))?;
        self.tell(Message::Run { words: options.command.clone(), terminal: terminal.is_some() })?;
        for pair in &options.forward {
            let (_, inside) = pair.both("forward")?;
            self.tell(Message::Await { path: inside.display().to_string() })?;
        }
        let mux = self.mux.clone();
        thread::spawn(move || mux.send(STDIN, stdin()));
        let outputs = [self.pump(|mux| mux.receive(STDOUT, stdout())), self.pump(|mux| mux.receive(STDERR, stderr()))];
        let status = self.wait_for_end(options)?;
        // All of the output was sent before the status.
        for output in outputs {
            // Nobody reads our own output any more: the status says all that is left to say.
            let _ = output.join();
        }
        drop(terminal);
        self.fetch(options, status)?;
        Ok(status)
    }

    /// Waits for the command's status; opens sockets and passes signals on meanwhile.
    fn wait_for_end(&mut self, options: &Options) -> Result<u8, End> {
        let mut asked: Option<Signal> = None;
        let mut until = self.deadline;
        loop {
            match (self.next(until)?, asked) {
                (Some(Event::Said(Message::Ended { status })), _) => return Ok(status),
                (Some(Event::Said(Message::NotStarted { reason })), _) => {
                    let command = options.command.first().cloned().unwrap_or_default();
                    return Err(BoxError::NotStarted { command, reason }.into());
                }
                (Some(Event::Said(Message::Listening { path })), _) => self.open(options, &path)?,
                (Some(Event::Said(message)), _) => return Err(unexpected(&message)),
                (Some(Event::Signal(signal)), _) => {
                    self.tell(Message::Signal { number: Signal::SIGTERM as i32 })?;
                    if asked.is_none() {
                        asked = Some(signal);
                        until = self.deadline.min(Instant::now() + GRACE);
                    }
                }
                (Some(Event::Closed(_)) | None, Some(signal)) => {
                    eprintln!("the command in the box did not end within {} s of {signal}", GRACE.as_secs());
                    return Ok(signal_status(signal));
                }
                // `next` has made an error of the end of the box.
                (Some(Event::Closed(_)) | None, None) => {
                    return Err(End::Lost(format!("the limit of {} s was reached", options.limit)));
                }
            }
        }
    }

    /// Opens the sockets of this machine that lead to a socket of the box.
    fn open(&self, options: &Options, inside: &str) -> Result<(), End> {
        // Files and connections share the numbers; there is one list of them in a process.
        for pair in &options.forward {
            let (outside, path) = pair.both("forward")?;
            if path.display().to_string() != inside {
                continue;
            }
            let listener = UnixListener::bind(outside).map_err(BoxError::io(outside))?;
            let (mux, opened, path) = (self.mux.clone(), Arc::clone(&self.opened), inside.to_owned());
            thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let (mux, opened, path) = (mux.clone(), Arc::clone(&opened), path.clone());
                    thread::spawn(move || {
                        let channel = next_channel();
                        // Where the box refuses, the connection is closed, as it would be there.
                        if let Ok(None) = ask(&mux, &opened, channel, Message::Connect { channel, path }) {
                            let _ = agent::connect(&mux, channel, &stream);
                        }
                    });
                }
            });
        }
        Ok(())
    }

    /// Fetches files when the command has ended. Those of a command that failed may be missing.
    fn fetch(&mut self, options: &Options, status: u8) -> Result<(), End> {
        for pair in &options.out {
            let (inside, outside) = pair.both("out")?;
            let channel = next_channel();
            let path = inside.display().to_string();
            let lost = |error: io::Error| End::Lost(format!("{} while it sent {}", error, inside.display()));
            match ask(&self.mux, &self.opened, channel, Message::Get { channel, path }).map_err(lost)? {
                None => receive_file(&self.mux, channel, outside).map_err(BoxError::io(outside))?,
                Some(error) if status == 0 => return Err(BoxError::Fetch(error).into()),
                Some(error) => eprintln!("from the box: {error}"),
            }
        }
        Ok(())
    }

    fn pump(&self, work: impl FnOnce(&Mux) -> io::Result<()> + Send + 'static) -> thread::JoinHandle<io::Result<()>> {
        let mux = self.mux.clone();
        thread::spawn(move || work(&mux))
    }

    fn tell(&self, message: Message) -> Result<(), End> {
        self.mux.tell(message).map_err(|error| End::Lost(format!("its port does not take anything: {error}")))
    }

    /// The next event, or nothing when the time is over.
    fn next(&mut self, until: Instant) -> Result<Option<Event>, End> {
        loop {
            let silent = self.heard + SILENCE;
            match self.happened.recv_timeout(until.min(silent).saturating_duration_since(Instant::now())) {
                Ok(Event::Closed(Ok(()))) => return Err(End::Lost("it ended before the command had".to_owned())),
                Ok(Event::Closed(Err(error))) => return Err(End::Lost(format!("its port failed: {error}"))),
                Ok(Event::Said(Message::Alive)) => self.heard = Instant::now(),
                Ok(event) => return Ok(Some(event)),
                Err(RecvTimeoutError::Timeout) if silent < until => {
                    return Err(End::Lost(format!("it has not said that it is alive for {} s", SILENCE.as_secs())));
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }
}

fn signal_status(signal: Signal) -> u8 {
    128 + signal as i32 as u8
}

fn limit_reached(options: &Options) -> End {
    End::Lost(format!("the limit of {} s was reached", options.limit))
}

fn unexpected(message: &Message) -> End {
    End::Lost(format!("its agent said {message:?}, which was not expected"))
}

fn next_channel() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(FIRST_FREE);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Asks for a channel; gives the reason when the box does not open it.
fn ask(mux: &Mux, opened: &Opened, channel: u32, request: Message) -> io::Result<Option<String>> {
    let (tell, told) = std::sync::mpsc::channel();
    opened.lock().unwrap_or_else(PoisonError::into_inner).insert(channel, tell);
    mux.tell(request)?;
    told.recv_timeout(GRACE).map_err(|_| io::ErrorKind::TimedOut.into())
}

/// The file gets its name when it is complete.
fn receive_file(mux: &Mux, channel: u32, path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    mux.receive(channel, &mut file)?;
    file.persist(path)?;
    Ok(())
}
