//! Starting a guest in two ways: under `lucos-hv run`, or as a QEMU that knows nothing of the project.
//!
//! Comes in: [`Config`]. Decided: the command lines; address randomisation stays on. Goes out: a [`Guest`] whose shell
//! has answered.

use super::{BOOT_TIMEOUT, Config, Console, Guest, GuestError};
use crate::{commands, initramfs};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Kernel parameters: the console, an end of the machine instead of a silent stop when the kernel panics, and requests
/// instead of a shell for a person (testdata/guest/init).
const APPEND: &str = "console=ttyS0 panic=-1 LUCOS_REQUESTS=1";

impl Guest {
    /// Starts a guest through `lucos-hv run`; its standard input and output are the serial console.
    ///
    /// # Errors
    /// [`GuestError`] when it does not reach its shell.
    pub fn under_lucos_hv(config: &Config) -> Result<Self, GuestError> {
        let prepared = Prepared::new(config)?;
        let mut command = Command::new(commands::program("lucos-hv")?);
        command
            .arg("run")
            .arg("--kernel")
            .arg(&config.kernel)
            .arg("--initrd")
            .arg(&prepared.initrd)
            .args(["--append", APPEND, "--engine", "qemu"])
            .args(["--cpus", &config.cpus.to_string(), "--memory", &config.memory_mib.to_string()])
            .arg("--api")
            .arg(prepared.dir.path().join("api"));
        let guest = prepared.start(command, "lucos-hv", "build it first: `cargo build --release`", config)?;
        super::service::wait_for_socket(guest.api(), &guest.log.with_extension("stderr"), || true)?;
        Ok(guest)
    }

    /// Starts a QEMU with a QMP socket and nothing else that could help; a second QMP socket is the test's own.
    ///
    /// # Errors
    /// [`GuestError`] when it does not reach its shell.
    pub fn under_plain_qemu(config: &Config) -> Result<Self, GuestError> {
        let prepared = Prepared::new(config)?;
        let dir = prepared.dir.path().to_owned();
        let (qmp, monitor) = (dir.join("qmp"), dir.join("monitor"));
        let socket = |path: &Path| format!("unix:{},server=on,wait=off", path.display());
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg", "-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio"])
            .args(["-smp", &format!("{0},sockets={0}", config.cpus), "-m", &config.memory_mib.to_string()])
            .args(["-qmp", &socket(&qmp), "-qmp", &socket(&monitor)])
            .args(["-append", &format!("{APPEND} {}", config.append)])
            .arg("-kernel")
            .arg(&config.kernel)
            .arg("-initrd")
            .arg(&prepared.initrd);
        if let Some(model) = &config.model {
            command.args(["-cpu", model]);
        }
        let mut guest = prepared.start(command, "qemu-system-x86_64", "install qemu-system-x86", config)?;
        (guest.qmp, guest.monitor) = (Some(qmp), Some(monitor));
        Ok(guest)
    }
}

/// What both ways need before the machine starts.
struct Prepared {
    slot: Flock<File>,
    dir: tempfile::TempDir,
    initrd: PathBuf,
    log: PathBuf,
}

impl Prepared {
    fn new(config: &Config) -> Result<Self, GuestError> {
        let slot = take_slot()?;
        let dir = tempfile::Builder::new().prefix("lucos-guest-").tempdir()?;
        let initrd = dir.path().join("initrd");
        initramfs::write_with(&initrd, &config.files)?;
        let logs = commands::target_dir()?.join("guest-logs");
        std::fs::create_dir_all(&logs)?;
        let log = logs.join(format!("{}.serial", config.name));
        Ok(Self { slot, dir, initrd, log })
    }

    fn start(
        self,
        mut command: Command,
        program: &str,
        help: &'static str,
        config: &Config,
    ) -> Result<Guest, GuestError> {
        let Self { slot, dir, initrd: _, log } = self;
        let stderr = File::create(log.with_extension("stderr"))?;
        let start = Instant::now();
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(|source| GuestError::Start { program: program.to_owned(), source, help })?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            end(&mut process);
            return Err(std::io::Error::other("a started process without its pipes").into());
        };
        let console = Console::new(input, output, File::create(&log)?);
        let api = dir.path().join("api");
        let mut guest = Guest { process, console, log, api, qmp: None, monitor: None, boot_ms: 0, dir, _slot: slot };
        if let Err(reason) = guest.console.wait_for("@@lucos-ready ", BOOT_TIMEOUT) {
            let said = std::fs::read_to_string(guest.log.with_extension("stderr")).unwrap_or_default();
            return Err(guest.lost(&format!("the boot of {}: {reason}\n{said}", config.kernel.display())));
        }
        guest.boot_ms = start.elapsed().as_millis();
        Ok(guest)
    }
}

/// Waits for the machine-wide place of the one guest that runs at a time.
fn take_slot() -> Result<Flock<File>, GuestError> {
    let path = std::env::temp_dir().join(format!("lucos-guest-{}.lock", nix::unistd::getuid()));
    let open = || File::options().create(true).truncate(false).write(true).open(&path);
    if let Ok(lock) = Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
        return Ok(lock);
    }
    eprintln!("waiting for the guest that runs already ({})", path.display());
    Flock::lock(open()?, FlockArg::LockExclusive).map_err(|(_, errno)| GuestError::Io(errno.into()))
}

/// Ends a process: asks, waits, then insists.
pub(super) fn end(process: &mut Child) {
    let Ok(pid) = i32::try_from(process.id()) else { return };
    if matches!(process.try_wait(), Ok(Some(_))) {
        return;
    }
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if matches!(process.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = process.kill();
    let _ = process.wait();
}
