//! `lucos-hv attach` on a QEMU that already runs.
//!
//! Comes in: the QMP socket of the guest. Decided: whether the service has opened its control socket. Goes out:
//! [`Service`], which ends the command when it is dropped.

use super::{Guest, GuestError, start};
use crate::commands;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A `lucos-hv attach` that serves.
#[derive(Debug)]
pub struct Service {
    process: Child,
    stderr: PathBuf,
}

impl Guest {
    /// Attaches `lucos-hv` to a guest that was started as a plain QEMU.
    ///
    /// # Errors
    /// [`GuestError::Service`] when it ends or does not serve in time.
    pub fn attach(&self) -> Result<Service, GuestError> {
        let missing = || std::io::Error::other("this guest has no QMP socket: start it under plain QEMU");
        let qmp = self.qmp().ok_or_else(missing)?;
        let stderr = self.log().with_extension("attach-stderr");
        let mut process = Command::new(commands::program("lucos-hv")?)
            .arg("attach")
            .arg("--qmp")
            .arg(qmp)
            .arg("--api")
            .arg(self.api())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&stderr)?)
            .spawn()
            .map_err(|source| GuestError::Start {
                program: "lucos-hv".to_owned(),
                source,
                help: "build it first: `cargo build --release`",
            })?;
        let served = wait_for_socket(self.api(), &stderr, || matches!(process.try_wait(), Ok(None)));
        if served.is_err() {
            start::end(&mut process);
        }
        served.map(|()| Service { process, stderr })
    }
}

/// Waits until somebody listens at `api`.
pub(super) fn wait_for_socket(api: &Path, stderr: &Path, mut alive: impl FnMut() -> bool) -> Result<(), GuestError> {
    let start = Instant::now();
    while start.elapsed() < START_TIMEOUT {
        if UnixStream::connect(api).is_ok() {
            return Ok(());
        }
        if !alive() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let said = std::fs::read_to_string(stderr).unwrap_or_default();
    Err(GuestError::Service { api: api.to_owned(), seconds: START_TIMEOUT.as_secs(), stderr: said })
}

impl Service {
    /// Asks the command to end (as Ctrl-C does) and waits for it.
    ///
    /// # Errors
    /// [`GuestError::Io`] when its status cannot be read.
    pub fn detach(mut self) -> Result<ExitStatus, GuestError> {
        start::end(&mut self.process);
        Ok(self.process.wait()?)
    }

    /// Asks the command to end, once.
    ///
    /// # Errors
    /// [`GuestError::Io`] when it cannot be asked.
    pub fn ask_to_end(&mut self) -> Result<(), GuestError> {
        start::ask_to_end(&self.process).map_err(|error| GuestError::Io(error.into()))
    }

    /// Kills the command at once, as a crash would.
    ///
    /// # Errors
    /// [`GuestError::Io`] when it cannot be killed.
    pub fn crash(mut self) -> Result<(), GuestError> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// What the command printed for people.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        start::end(&mut self.process);
    }
}
