//! Starting a guest in two ways: under `lucos-hv run`, on either engine, or as a QEMU that knows nothing of the project.
//!
//! Comes in: [`Config`]. Decided: the command lines; address randomisation stays on. Goes out: a [`Guest`] whose shell
//! has answered.

use super::{BOOT_TIMEOUT, Config, Console, DISTRIBUTION_TIMEOUT, Engine, Guest, GuestError, Service};
use crate::{boxed, commands, initramfs, programs};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Kernel parameters: the console, an end of the machine instead of a silent stop when the kernel panics, and requests
/// instead of a shell for a person (testdata/guest/init).
const APPEND: &str = "console=ttyS0 panic=-1 LUCOS_REQUESTS=1";

/// A box whose test hangs ends at last; one whose test has ended, ends with it.
const BOX_LIMIT: Duration = Duration::from_secs(3600);
/// QEMU's program.
const QEMU: &str = "qemu-system-x86_64";
/// Memory of the box beside that of its guest, in MiB.
const BOX_MEMORY_MIB: u32 = 1024;

impl Guest {
    /// Starts a guest through `lucos-hv run`; its standard input and output are the serial console.
    ///
    /// # Errors
    /// [`GuestError`] when it does not reach its shell.
    pub fn under_lucos_hv(config: &Config) -> Result<Self, GuestError> {
        let prepared = Prepared::new(config)?;
        let api = prepared.dir.path().join("api");
        let engine = Engine::wanted()?;
        let command = if engine.is_in_box() {
            in_box(engine, config, &prepared, &api)?
        } else {
            on_this_machine(engine, config, &prepared.initrd, &api)?
        };
        let guest = prepared.start(command, "lucos-hv", "build it first: `cargo build --release`", config)?;
        super::service::wait_for_socket(guest.api(), &guest.log.with_extension("stderr"), || true)?;
        Ok(guest)
    }

    /// Starts a guest that is served, on the engine that the tests are to use: a QEMU that the service attaches to, for
    /// the sake of [`Config::model`]; or through `lucos-hv run`, which serves by itself.
    ///
    /// # Errors
    /// [`GuestError`] when it does not reach its shell, or is not served.
    pub fn served(config: &Config) -> Result<(Self, Option<Service>), GuestError> {
        if Engine::wanted()? == Engine::Qemu {
            let guest = Self::under_plain_qemu(config)?;
            let service = guest.attach()?;
            Ok((guest, Some(service)))
        } else {
            Ok((Self::under_lucos_hv(config)?, None))
        }
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
        let mut command = Command::new(QEMU);
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
        let mut guest = prepared.start(command, QEMU, "install qemu-system-x86", config)?;
        (guest.qmp, guest.monitor) = (Some(qmp), Some(monitor));
        Ok(guest)
    }
}

/// `lucos-hv run` as it is called on the machine where it runs.
fn words(engine: Engine, config: &Config, kernel: &str, initrd: &str, api: &str, disk: Option<String>) -> Vec<String> {
    let root = if disk.is_some() { "root=/dev/vda " } else { "" };
    let append = format!("{APPEND} {root}{}", config.append);
    let (cpus, memory) = (config.cpus.to_string(), config.memory_mib.to_string());
    let mut words = [
        "lucos-hv",
        "run",
        "--engine",
        engine.name(),
        "--kernel",
        kernel,
        "--initrd",
        initrd,
        "--append",
        append.trim(),
        "--cpus",
        &cpus,
        "--memory",
        &memory,
        "--api",
        api,
    ]
    .map(str::to_owned)
    .to_vec();
    if let Some(disk) = disk {
        words.extend(["--disk".to_owned(), disk]);
    }
    words
}

fn on_this_machine(engine: Engine, config: &Config, initrd: &Path, api: &Path) -> Result<Command, GuestError> {
    let text = |path: &Path| path.display().to_string();
    let mut command = Command::new(commands::program("lucos-hv")?);
    let disk = config.disk.as_ref().map(|disk| text(&disk.image));
    command.args(&words(engine, config, &text(&config.kernel), &text(initrd), &text(api), disk)[1..]);
    Ok(command)
}

/// The same in the box, which has one processor: a hypervisor bound to it is what the emulated virtualisation bears.
fn in_box(engine: Engine, config: &Config, prepared: &Prepared, api: &Path) -> Result<Command, GuestError> {
    let (kernel_inside, initrd_inside, api_inside) = ("/files/guest-kernel", "/files/guest-initrd", "/api");
    let disk_inside = "/files/guest-disk";
    let pair = |from: &Path, to: &str| format!("{}:{to}", from.display());
    let mut command = Command::new(commands::program("lucos-box")?);
    command
        .args(["--name", &config.name, "--limit", &BOX_LIMIT.as_secs().to_string()])
        .args(["--memory", &(config.memory_mib + BOX_MEMORY_MIB + disk_memory_mib(config)?).to_string()])
        .args(["--file", &pair(&boxed::static_program("lucos-hv")?, "/files/lucos-hv")])
        .args(["--file", &pair(&config.kernel, kernel_inside), "--file", &pair(&prepared.initrd, initrd_inside)])
        .args(["--forward", &pair(api, api_inside)]);
    if let Some(disk) = &config.disk {
        command.args(["--file", &pair(&disk.image, disk_inside)]);
    }
    let disk = config.disk.as_ref().map(|_| disk_inside.to_owned());
    if engine == Engine::QemuKvmInBox {
        for (from, to) in qemu_in_box(prepared.dir.path())? {
            command.args(["--file", &pair(&from, &to)]);
        }
    }
    command.arg("--").args(words(engine, config, kernel_inside, initrd_inside, api_inside, disk));
    Ok(command)
}

/// QEMU's files, and where they are in the box: its program and libraries, what it loads into a guest, and a program of its name that starts it.
fn qemu_in_box(dir: &Path) -> Result<Vec<(PathBuf, String)>, GuestError> {
    let program = programs::with_libraries(QEMU, "qemu-system-x86").map_err(std::io::Error::other)?;
    let starter = dir.join(QEMU);
    let at = "/files/qemu";
    let start = format!("#!/bin/sh\nLD_LIBRARY_PATH={at} exec {at}/ld-linux-x86-64.so.2 {at}/{QEMU} -L {at} \"$@\"\n");
    std::fs::write(&starter, start)?;
    std::fs::set_permissions(&starter, std::fs::Permissions::from_mode(0o755))?;
    let loaded = programs::QEMU_LOADS.iter().map(PathBuf::from);
    let inside = |path: PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (path, format!("{at}/{name}"))
    };
    let mut files: Vec<(PathBuf, String)> = program.into_iter().chain(loaded).map(inside).collect();
    files.push((starter, format!("/files/{QEMU}")));
    Ok(files)
}

/// Memory for a disk that travels in the box' initramfs: the archive, and what is unpacked of it.
fn disk_memory_mib(config: &Config) -> Result<u32, GuestError> {
    let Some(disk) = &config.disk else { return Ok(0) };
    Ok(u32::try_from(2 * (disk.image.metadata()?.len() >> 20) + 64).unwrap_or(u32::MAX / 2))
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
        match &config.disk {
            Some(disk) => initramfs::write_for_root(&initrd, &disk.modules)?,
            None => initramfs::write_with(&initrd, &config.files)?,
        }
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
        let limit = if config.disk.is_some() { DISTRIBUTION_TIMEOUT } else { BOOT_TIMEOUT };
        if let Err(reason) = guest.console.wait_for("@@lucos-ready ", limit) {
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

/// Asks a process to end.
pub(super) fn ask_to_end(process: &Child) -> nix::Result<()> {
    let pid = i32::try_from(process.id()).map_err(|_| nix::errno::Errno::ESRCH)?;
    kill(Pid::from_raw(pid), Signal::SIGTERM)
}

/// Ends a process: asks, waits, then insists.
pub(super) fn end(process: &mut Child) {
    if matches!(process.try_wait(), Ok(Some(_))) {
        return;
    }
    let _ = ask_to_end(process);
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
