//! The machine that is the box: QEMU, software emulation, a stock kernel, an initramfs with all that the command needs.
//!
//! Comes in: [`Options`]. Decided: QEMU's command line; everything goes in by the initramfs, everything else passes
//! through one virtio serial port. Goes out: [`Machine`], which ends with this process, however that ends.

use super::{AGENT, BoxError, Options, modules, static_program};
use crate::commands;
use crate::initramfs::{Archive, InitramfsError, busybox};
use std::fs::File;
use std::io::{self, BufWriter};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const INIT: &str = include_str!("../../../testdata/guest/box-init");
/// The port in the box: number 1 of the only virtio serial device (drivers/char/virtio_console.c).
pub(super) const PORT: &str = "/dev/vport0p1";
/// A quiet console and a panic that ends the machine; the rest saves time at boot: no mitigations, no check of the
/// timer, no calibration, no self-tests of ciphers (Documentation/admin-guide/kernel-parameters.txt).
const APPEND: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable cryptomgr.notests";
/// Emulates AMD's virtualisation with nested paging; four levels of page tables, as most processors have. Without XSAVE and
/// what needs it: the emulator lets a nested guest set XCR0 behind its hypervisor's back (it knows no intercept of XSETBV), so
/// that the guest's kernel finds sizes that do not agree.
const PROCESSOR: &str = "max,la57=off,xsave=off,avx=off,avx2=off,fma=off,f16c=off,vaes=off,pku=off";
/// Time for QEMU to open its end of the serial port.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Lines of the console in a message.
const TAIL: usize = 60;

/// A running box; it ends when this value is dropped.
pub(super) struct Machine {
    qemu: Child,
    pub(super) log: PathBuf,
    stderr: PathBuf,
    _dir: tempfile::TempDir,
}

impl Machine {
    /// Starts it; the stream is the host's end of the port.
    ///
    /// To be called from a thread that lives as long as the process: QEMU ends with that thread (prctl(2),
    /// PR_SET_PDEATHSIG).
    pub(super) fn start(options: &Options) -> Result<(Self, UnixStream), BoxError> {
        let kernel = options.kernel()?;
        let dir = tempfile::Builder::new().prefix("lucos-box-").tempdir().map_err(BoxError::io(Path::new("/tmp")))?;
        let initrd = dir.path().join("initrd");
        write_initramfs(&initrd, options, &modules::in_order(&kernel, modules::OF_THE_BOX)?)?;
        let logs = commands::target_dir()?.join("guest-logs");
        std::fs::create_dir_all(&logs).map_err(BoxError::io(&logs))?;
        let log = logs.join(format!("{}.box", options.name));
        File::create(&log).map_err(BoxError::io(&log))?;
        let stderr = log.with_extension("box-stderr");
        let socket = dir.path().join("port");
        let listener = UnixListener::bind(&socket).map_err(BoxError::io(&socket))?;

        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
            .args(["-accel", "tcg", "-machine", "pc", "-cpu", PROCESSOR, "-display", "none"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-smp", &options.cpus.to_string(), "-m", &options.memory.to_string()])
            .args(["-serial", &format!("file:{}", log.display())])
            .args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port,nr=1"])
            .args(["-chardev", &format!("socket,id=port,path={}", socket.display())])
            .args(["-append", APPEND, "-kernel"])
            .arg(kernel.vmlinuz())
            .arg("-initrd")
            .arg(&initrd)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&stderr).map_err(BoxError::io(&stderr))?)
            // Ctrl-C is for the command in the box first.
            .process_group(0);
        let help = "install util-linux and qemu-system-x86";
        let qemu = command.spawn().map_err(|source| BoxError::Start { program: "setpriv", source, help })?;
        let mut machine = Self { qemu, log, stderr, _dir: dir };
        let stream = machine.accept(&listener).map_err(BoxError::io(&socket))?;
        stream.map(|stream| (machine, stream))
    }

    fn accept(&mut self, listener: &UnixListener) -> io::Result<Result<UnixStream, BoxError>> {
        listener.set_nonblocking(true)?;
        let start = Instant::now();
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(Ok(stream));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.qemu.try_wait()?.is_some() || start.elapsed() > START_TIMEOUT {
                return Ok(Err(self.lost("QEMU did not open the serial port")));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it, and tells what its console said last.
    pub(super) fn lost(&mut self, what: &str) -> BoxError {
        let ended = self.qemu.try_wait().ok().flatten();
        self.end();
        let mut what = what.to_owned();
        if let Some(status) = ended {
            what += &format!(" (QEMU ended with {status})");
        }
        let read = |path: &Path| std::fs::read(path).unwrap_or_default();
        let bytes = [read(&self.log), read(&self.stderr)].concat();
        let text = String::from_utf8_lossy(&bytes).replace('\r', "");
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        BoxError::Lost { what, log: self.log.clone(), tail }
    }

    /// Ends it at once: it has nothing that would have to be kept.
    fn end(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

fn write_initramfs(path: &Path, options: &Options, modules: &[PathBuf]) -> Result<(), BoxError> {
    let io = |error: io::Error| BoxError::from(InitramfsError::from(error));
    let program = busybox()?;
    let mut archive = Archive::new(BufWriter::new(File::create(path).map_err(io)?));
    archive.standard(&std::fs::read(&program).map_err(io)?).map_err(io)?;
    archive.file("init", INIT.as_bytes()).map_err(io)?;
    // Links made here cost nothing at boot.
    for name in applets(&program)? {
        archive.link(&format!("bin/{name}"), "busybox").map_err(io)?;
    }
    archive.modules(modules).map_err(io)?;
    let agent = static_program(AGENT)?;
    archive.copy(&format!("bin/{AGENT}"), &agent).map_err(BoxError::io(&agent))?;
    archive.folder("files").map_err(io)?;
    for file in &options.files {
        let inside =
            file.to.clone().unwrap_or_else(|| Path::new("files").join(file.from.file_name().unwrap_or_default()));
        let inside = inside.to_string_lossy();
        archive.copy(inside.trim_start_matches('/'), &file.from).map_err(BoxError::io(&file.from))?;
    }
    archive.finish().map_err(io)?;
    Ok(())
}

/// Names of the programs that busybox is.
fn applets(busybox: &Path) -> Result<Vec<String>, BoxError> {
    let output = Command::new(busybox).arg("--list").output().map_err(BoxError::io(busybox))?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(names.lines().filter(|name| !["busybox", "sh"].contains(name)).map(str::to_owned).collect())
}
