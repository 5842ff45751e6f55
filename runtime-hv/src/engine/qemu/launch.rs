//! Starts a QEMU of our own.
//!
//! Comes in: kernel, initrd, command line, size. Decided: the rest of QEMU's command line. Goes out: a running process whose
//! QMP socket answers. Nothing but that socket sets it apart from a VM that anybody else started.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// QEMU's program.
const PROGRAM: &str = "qemu-system-x86_64";

/// How long QEMU may take to open its QMP socket.
const START: Duration = Duration::from_secs(15);

/// Where the guest's serial console goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serial {
    /// Our own standard input and output.
    Stdio,
    /// A file, for tests and logs.
    File(PathBuf),
}

/// Who runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// QEMU itself, which emulates them; it can watch what the guest does.
    None,
    /// The host's KVM, with the features of the host's processor.
    Kvm,
}

impl Acceleration {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::None => &["-accel", "tcg,thread=multi"],
            Self::Kvm => &["-accel", "kvm", "-cpu", "host"],
        }
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub struct LaunchConfig {
    /// Who runs its instructions.
    pub acceleration: Acceleration,
    /// The kernel, as the distribution ships it (bzImage).
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: Option<PathBuf>,
    /// Kernel command line. `console=ttyS0` is added when it names no console.
    pub append: String,
    /// Number of virtual processors.
    pub cpus: u32,
    /// Memory of the guest.
    pub memory_mib: u64,
    /// Where QEMU shall listen for QMP.
    pub qmp_path: PathBuf,
    /// The serial console.
    pub serial: Serial,
    /// More arguments for QEMU, behind all others.
    pub extra_args: Vec<OsString>,
}

/// Why a guest could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// QEMU is not installed.
    #[error("{PROGRAM} is not installed; on Debian: apt-get install qemu-system-x86")]
    Missing,
    /// A file cannot be used.
    #[error("{what} {path}: {source}")]
    File {
        /// Its role.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The QMP socket belongs to a VM that runs, or to something else.
    #[error("{path} is already {by}; choose another path for the QMP socket")]
    Taken {
        /// Which path.
        path: PathBuf,
        /// What is there.
        by: &'static str,
    },
    /// The program could not be started.
    #[error("{PROGRAM} could not be started: {0}")]
    Start(std::io::Error),
    /// QEMU ended at once; it has said why on standard error.
    #[error("{PROGRAM} ended at once ({0}); its message is above")]
    Ended(ExitStatus),
    /// QEMU runs but does not open the socket.
    #[error("{PROGRAM} did not open its QMP socket {path} within {} s and was ended", START.as_secs())]
    NoSocket {
        /// Which path.
        path: PathBuf,
    },
}

/// Starts QEMU and waits until its QMP socket takes a connection.
///
/// # Errors
/// See [`LaunchError`]. No process is left behind.
pub fn launch(config: &LaunchConfig) -> Result<Child, LaunchError> {
    readable("kernel", &config.kernel)?;
    if let Some(initrd) = &config.initrd {
        readable("initrd", initrd)?;
    }
    free_path(&config.qmp_path)?;
    let mut command = Command::new(PROGRAM);
    command.args(arguments(config));
    if config.serial != Serial::Stdio {
        command.stdin(Stdio::null());
    }
    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => LaunchError::Missing,
        _ => LaunchError::Start(error),
    })?;
    let deadline = Instant::now() + START;
    loop {
        if let Some(status) = child.try_wait().map_err(LaunchError::Start)? {
            return Err(LaunchError::Ended(status));
        }
        if UnixStream::connect(&config.qmp_path).is_ok() {
            return Ok(child);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(LaunchError::NoSocket { path: config.qmp_path.clone() });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn readable(what: &'static str, path: &Path) -> Result<(), LaunchError> {
    std::fs::File::open(path).map(drop).map_err(|source| LaunchError::File { what, path: path.to_owned(), source })
}

/// Removes a socket that nobody listens at any more; refuses everything else that is there.
fn free_path(path: &Path) -> Result<(), LaunchError> {
    let taken = |by| Err(LaunchError::Taken { path: path.to_owned(), by });
    match std::fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(metadata) if !metadata.file_type().is_socket() => taken("a file of another kind"),
        Ok(_) if UnixStream::connect(path).is_ok() => taken("the socket of a running program"),
        Ok(_) => std::fs::remove_file(path).map_err(|source| LaunchError::File {
            what: "stale QMP socket",
            path: path.to_owned(),
            source,
        }),
    }
}

fn arguments(config: &LaunchConfig) -> Vec<OsString> {
    let fixed = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial"];
    let mut arguments: Vec<OsString> =
        config.acceleration.arguments().iter().chain(&fixed).map(|&argument| argument.into()).collect();
    match &config.serial {
        Serial::Stdio => arguments.push("stdio".into()),
        Serial::File(path) => arguments.push(option("file:", path, "")),
    }
    arguments.extend(["-kernel".into(), config.kernel.clone().into_os_string()]);
    if let Some(initrd) = &config.initrd {
        arguments.extend(["-initrd".into(), initrd.clone().into_os_string()]);
    }
    arguments.extend(["-append".into(), command_line(&config.append).into()]);
    arguments.extend(["-smp".into(), config.cpus.to_string().into()]);
    arguments.extend(["-m".into(), format!("{}M", config.memory_mib).into()]);
    arguments.extend(["-qmp".into(), option("unix:", &config.qmp_path, ",server=on,wait=off")]);
    arguments.extend(config.extra_args.iter().cloned());
    arguments
}

/// A path inside a QEMU option: a comma is written twice.
fn option(before: &str, path: &Path, after: &str) -> OsString {
    let mut bytes = before.as_bytes().to_vec();
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(byte);
        }
    }
    bytes.extend(after.as_bytes());
    std::os::unix::ffi::OsStringExt::from_vec(bytes)
}

fn command_line(append: &str) -> String {
    if append.split_whitespace().any(|word| word.starts_with("console=")) {
        append.to_owned()
    } else {
        format!("{append} console=ttyS0").trim_start().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &Path) -> LaunchConfig {
        LaunchConfig {
            acceleration: Acceleration::None,
            kernel: folder.join("vmlinuz"),
            initrd: None,
            append: String::new(),
            cpus: 2,
            memory_mib: 256,
            qmp_path: folder.join("a,b.sock"),
            serial: Serial::Stdio,
            extra_args: vec!["-snapshot".into()],
        }
    }

    #[test]
    fn a_console_is_added_only_when_none_is_named() {
        assert_eq!(command_line(""), "console=ttyS0");
        assert_eq!(command_line("quiet"), "quiet console=ttyS0");
        assert_eq!(command_line("console=hvc0 quiet"), "console=hvc0 quiet");
    }

    #[test]
    fn the_command_line_is_as_described() {
        let line = arguments(&config(Path::new("/d"))).join(std::ffi::OsStr::new(" "));
        let line = line.to_string_lossy();
        assert!(line.contains("-qmp unix:/d/a,,b.sock,server=on,wait=off"), "{line}");
        assert!(line.contains("-serial stdio -kernel /d/vmlinuz -append console=ttyS0 -smp 2 -m 256M"), "{line}");
        assert!(line.ends_with("-snapshot"), "{line}");
        assert!(!line.contains("-initrd"), "{line}");
        assert!(line.starts_with("-accel tcg,thread=multi -nodefaults"), "{line}");
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = config(folder.path());
        assert!(launch(&config).expect_err("no kernel").to_string().starts_with("kernel "));
        std::fs::write(&config.qmp_path, "").expect("a file");
        assert!(matches!(free_path(&config.qmp_path), Err(LaunchError::Taken { by: "a file of another kind", .. })));
        std::fs::remove_file(&config.qmp_path).expect("removed");
        let listener = std::os::unix::net::UnixListener::bind(&config.qmp_path).expect("a listener");
        assert!(matches!(free_path(&config.qmp_path), Err(LaunchError::Taken { .. })));
        drop(listener);
        free_path(&config.qmp_path).expect("a stale socket is removed");
        assert!(!config.qmp_path.exists());
    }
}
