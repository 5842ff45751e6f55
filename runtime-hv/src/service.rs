//! The service behind the control socket.
//!
//! Comes in: connections on a socket that only its owner can use. Decided: which request is whose turn (one at a time), and
//! when to end: the guest is gone, or somebody asks us to let go. Goes out: answers, and how it ended.

use crate::engine::Engine;
use crate::protocol::{Answer, LINE_LIMIT, Problem, Reply, Request, Status, read_bundle, read_line, write_line};
use crate::timed::Timed;
use crate::update::{LOOK_EVERY, UpdateError, Updater, Wishes};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a client may take over its request or our answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);
/// How often to look whether the guest still is.
const LOOK_MS: u16 = 500;
/// How often to look at its modules, where a bundle has to do with some.
const MODULES_MS: u16 = 100;
/// So long without an answer means that it is gone, though its process may be there.
const SILENT_LIMIT_MS: u32 = 5000;

/// The control socket; the file goes when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Opens it, mode 0600. A socket that nobody answers on any more is replaced.
    ///
    /// # Errors
    /// [`Problem`] when a service answers there already, or the file is something else.
    pub fn open(path: &Path) -> Result<ControlSocket, Problem> {
        let failed = |what: &str, error: io::Error| {
            Problem::failed("control-socket", format!("{what} {}: {error}", path.display()))
        };
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("cannot look at", error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(Problem::failed("control-socket", format!("{} exists and is no socket", path.display())));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(Problem::failed(
                    "already-served",
                    format!("a service already answers on {}", path.display()),
                )
                .help("use that service, or choose another --api path"));
            }
            Ok(_) => fs::remove_file(path).map_err(|error| failed("cannot remove the stale", error))?,
        }
        // Nobody else may connect in the moment between creation and the change of mode.
        let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(path);
        nix::sys::stat::umask(before);
        let listener = listener.map_err(|error| failed("cannot listen on", error))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .map_err(|error| failed("cannot protect", error))?;
        listener.set_nonblocking(true).map_err(|error| failed("cannot use", error))?;
        Ok(ControlSocket { listener, path: path.to_owned() })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Nothing to be done if it is gone already.
        let _ = fs::remove_file(&self.path);
    }
}

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The guest is gone.
    GuestGone,
    /// A signal asked us to let go.
    Asked,
}

/// Serves until the guest is gone or `stop` (a signal file descriptor) becomes readable. `gone` says whether the guest's
/// process has ended, where that is known better than by asking the engine.
///
/// # Errors
/// Of `poll` and `accept`.
pub fn serve<E: Engine>(
    updater: &mut Updater<E>,
    socket: &ControlSocket,
    stop: &impl AsFd,
    mut gone: impl FnMut(&E) -> bool,
) -> io::Result<Ended> {
    let mut silent = 0;
    let (mut settled, mut watched, mut looked) = (Instant::now(), Instant::now(), Instant::now());
    loop {
        let mut files =
            [PollFd::new(socket.listener.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        let look = if updater.has_modules() || updater.has_open() { MODULES_MS } else { LOOK_MS };
        match poll(&mut files, PollTimeout::from(look)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if files[1].any().unwrap_or(false) {
            return Ok(Ended::Asked);
        }
        if gone(&updater.engine) {
            return Ok(Ended::GuestGone);
        }
        if files[0].any().unwrap_or(false) {
            match socket.listener.accept() {
                // What goes wrong with one client is that client's problem.
                Ok((client, _)) => drop(answer_client(updater, client)),
                // A client that gave up, or too many open files for a while: no reason to leave the guest alone.
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        } else {
            // A lost answer, or a hypervisor that is stopped for a while, is no dead guest.
            silent = if updater.engine.is_paused().is_ok() { 0 } else { silent + u32::from(look) };
            if silent >= SILENT_LIMIT_MS {
                return Ok(Ended::GuestGone);
            }
        }
        // Clients that ask all the time must not keep us from these.
        if settled.elapsed() >= Duration::from_millis(look.into()) {
            updater.settle();
            let since = looked.elapsed();
            updater.close_open(since >= LOOK_EVERY);
            if since >= LOOK_EVERY {
                looked = Instant::now();
            }
            settled = Instant::now();
        }
        if watched.elapsed() >= Duration::from_millis(MODULES_MS.into()) {
            updater.watch();
            watched = Instant::now();
        }
    }
}

fn answer_client<E: Engine>(updater: &mut Updater<E>, client: UnixStream) -> io::Result<()> {
    client.set_nonblocking(false)?;
    // One deadline for the whole request, however slowly it drips in; another for the answer.
    let mut client = Timed::new(client);
    client.begin(CLIENT_PATIENCE);
    let answer = match read_line::<Request>(&mut client, LINE_LIMIT) {
        Err(error) => Answer::Error(Problem::failed("bad-request", error)),
        Ok(request) => match answer(updater, request, &mut client) {
            Ok(reply) => Answer::Ok(reply),
            Err(problem) => Answer::Error(problem),
        },
    };
    client.begin(CLIENT_PATIENCE);
    write_line(&mut client, &answer)
}

fn answer<E: Engine>(updater: &mut Updater<E>, request: Request, from: &mut Timed) -> Result<Reply, Problem> {
    let problem = |error: UpdateError| error.problem();
    let one = |info| Reply::Bundle(Box::new(info));
    match request {
        Request::Apply { size, in_arena, stay } => {
            let bytes = read_bundle(from, size).map_err(|error| Problem::refused("corrupted-bundle", error))?;
            updater.apply(&bytes, Wishes { in_arena, stay }).map(one).map_err(problem)
        }
        Request::List => {
            updater.look().map_err(problem)?;
            Ok(Reply::Bundles(updater.list()))
        }
        Request::Show { name } => {
            updater.look().map_err(problem)?;
            updater.show(&name).map(one).map_err(problem)
        }
        Request::Undo { name } => updater.undo(&name).map(one).map_err(problem),
        Request::Status => {
            updater.look().map_err(problem)?;
            Ok(Reply::Status(Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                engine: updater.engine.name().to_owned(),
                paused: updater.engine.is_paused().map_err(|error| Problem::failed("engine-failed", error))?,
                waiting: updater.is_waiting(),
                lost_pages: updater.lost_pages(),
                applied: updater.list().iter().filter(|info| info.state.is_in_effect()).count(),
            }))
        }
    }
}
