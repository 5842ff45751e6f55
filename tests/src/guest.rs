//! A test guest: a stock kernel under QEMU whose shell obeys over the serial console.
//!
//! Comes in: a kernel of the cache. Decided: how it is started (by `lucos-hv run`, or as a QEMU of our own with a QMP
//! socket), how long anything may take. Goes out: [`Guest`], which answers commands, runs a background load, and tells
//! a lost machine apart from a wrong answer. Its serial log stays on disk.

mod console;
mod database;
mod engine;
mod load;
mod memory;
mod service;
mod start;

pub use console::Answer;
pub use database::{Database, Work};
pub use engine::{Engine, EngineError};
pub use load::{Load, Progress};
pub use service::Service;

use console::Console;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Time for a kernel to reach its shell; software emulation needs about three seconds on an idle machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// Time for a whole distribution, in the box too.
const DISTRIBUTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Time for one command in the guest.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a guest could not be started or asked. [`GuestError::is_lost`] tells a lost machine from other causes.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The machine ended or does not answer: not a verdict on what was tested.
    #[error("LOST VM: {what}; serial log {log}, its end:\n{tail}")]
    Lost {
        /// What was waited for.
        what: String,
        /// The serial log.
        log: PathBuf,
        /// Last lines of it.
        tail: String,
    },
    /// A command in the guest failed.
    #[error("in the guest, `{command}` ended with status {status}:\n{output}")]
    Command {
        /// The command.
        command: String,
        /// Its status.
        status: i32,
        /// What it printed.
        output: String,
    },
    /// A program of this machine did not start.
    #[error("{program} did not start: {source}; {help}")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: std::io::Error,
        /// What to do.
        help: &'static str,
    },
    /// The service did not open its control socket.
    #[error("lucos-hv did not serve {api} within {seconds} s; it said:\n{stderr}")]
    Service {
        /// The control socket.
        api: PathBuf,
        /// How long was waited.
        seconds: u64,
        /// What it printed.
        stderr: String,
    },
    /// The initramfs.
    #[error(transparent)]
    Initramfs(#[from] crate::initramfs::InitramfsError),
    /// The commands of the project.
    #[error(transparent)]
    Commands(#[from] crate::commands::CommandError),
    /// The hypervisor that the tests are to use.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The box.
    #[error(transparent)]
    Box(#[from] crate::boxed::BoxError),
    /// Work folder, log or lock.
    #[error("work folder of the guest: {0}")]
    Io(#[from] std::io::Error),
}

impl GuestError {
    /// Whether the machine was lost, so that the test has no result.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// How a guest is to be started.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the serial log.
    pub name: String,
    /// The bootable image.
    pub kernel: PathBuf,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processor model, under plain QEMU; its default when there is none.
    pub model: Option<String>,
    /// More words for the kernel's command line.
    pub append: String,
    /// Files of this machine that the guest finds in `/files`; not of one with a disk.
    pub files: Vec<PathBuf>,
    /// The image of a disk with a root file system, which the guest goes on with and writes to; only under `lucos-hv`.
    pub disk: Option<Disk>,
}

/// A disk with a root file system.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The image.
    pub image: PathBuf,
    /// Modules that the guest needs for it, in the order in which they are loaded.
    pub modules: Vec<PathBuf>,
}

impl Config {
    /// Two processors and 512 MiB, as all tests use.
    pub fn new(name: &str, kernel: &Path) -> Self {
        Self {
            name: name.to_owned(),
            kernel: kernel.to_owned(),
            cpus: 2,
            memory_mib: 512,
            model: None,
            append: String::new(),
            files: Vec::new(),
            disk: None,
        }
    }
}

/// A running guest; it ends when this value is dropped.
#[derive(Debug)]
pub struct Guest {
    process: Child,
    console: Console,
    log: PathBuf,
    api: PathBuf,
    qmp: Option<PathBuf>,
    monitor: Option<PathBuf>,
    boot_ms: u128,
    dir: TempDir,
    /// Only one guest at a time per machine: two processors are few. Held to the end.
    _slot: nix::fcntl::Flock<File>,
}

impl Guest {
    /// Runs a shell command in the guest.
    ///
    /// # Errors
    /// [`GuestError::Lost`] when no answer comes in time.
    pub fn run(&mut self, command: &str) -> Result<Answer, GuestError> {
        self.run_within(command, COMMAND_TIMEOUT)
    }

    /// Runs a shell command in the guest within a time of the caller's choice.
    ///
    /// # Errors
    /// [`GuestError::Lost`] when no answer comes in time.
    pub fn run_within(&mut self, command: &str, limit: Duration) -> Result<Answer, GuestError> {
        match self.console.ask(command, limit) {
            Ok(answer) => Ok(answer),
            Err(reason) => Err(self.lost(&format!("`{command}`: {reason}"))),
        }
    }

    /// Runs a command that has to succeed; gives what it printed.
    ///
    /// # Errors
    /// [`GuestError::Command`] when its status is not 0, [`GuestError::Lost`] when no answer comes.
    pub fn run_ok(&mut self, command: &str) -> Result<String, GuestError> {
        let Answer { status, output } = self.run(command)?;
        if status == 0 { Ok(output) } else { Err(GuestError::Command { command: command.to_owned(), status, output }) }
    }

    /// Control socket of the service.
    pub fn api(&self) -> &Path {
        &self.api
    }

    /// QMP socket for the service; only of a guest that the test started by itself.
    pub fn qmp(&self) -> Option<&Path> {
        self.qmp.as_deref()
    }

    /// The test's own QMP socket; only of a guest that the test started by itself.
    pub fn monitor(&self) -> Option<&Path> {
        self.monitor.as_deref()
    }

    /// A private folder that goes away with the guest.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The serial log, which stays.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Milliseconds from start to shell.
    pub fn boot_ms(&self) -> u128 {
        self.boot_ms
    }

    /// Whether QEMU (or `lucos-hv run`) is still there.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Lines of the serial log and the kernel's ring buffer that a healthy kernel does not print.
    ///
    /// # Errors
    /// [`GuestError`] when the guest does not answer.
    pub fn kernel_warnings(&mut self) -> Result<Vec<String>, GuestError> {
        let ring = self.run_ok("dmesg")?;
        let serial = self.console.text();
        let mut found = warnings(&serial);
        found.extend(warnings(&ring));
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Asks the guest to power off and waits for the process; gives its exit status.
    ///
    /// # Errors
    /// [`GuestError::Lost`] when it does not end within half a minute.
    pub fn power_off(mut self) -> Result<Option<i32>, GuestError> {
        self.console.send("poweroff -f")?;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status.code());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(self.lost("power off"))
    }

    fn lost(&mut self, what: &str) -> GuestError {
        let state = match self.process.try_wait() {
            Ok(Some(status)) => format!("the machine ended with {status} while waiting for {what}"),
            _ => format!("the machine runs, but no answer to {what}"),
        };
        let text = self.console.text();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        GuestError::Lost { what: state, log: self.log.clone(), tail }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // `lucos-hv run` ends its machine when it is asked to end; a QEMU of our own does the same.
        start::end(&mut self.process);
    }
}

/// Signs of trouble in a kernel log (lib/bug.c, kernel/panic.c, kernel/watchdog.c, kernel/rcu/tree_stall.h,
/// kernel/hung_task.c, arch/x86/kernel/traps.c, arch/x86/mm/fault.c).
const TROUBLE: &[&str] = &[
    "WARNING:",
    "BUG:",
    "kernel BUG at",
    "Oops",
    "Call Trace",
    "general protection",
    "invalid opcode",
    "rcu_sched self-detected",
    "detected stalls",
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "Kernel panic",
    "unable to handle",
    "scheduling while atomic",
    "bad page",
    "Bad page",
    "segfault at",
    "stack-protector",
    "double fault",
];

/// Lines of a kernel log that a healthy kernel does not print.
pub fn warnings(log: &str) -> Vec<String> {
    log.lines().filter(|line| TROUBLE.iter().any(|sign| line.contains(sign))).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::warnings;

    #[test]
    fn trouble_is_found_and_normal_lines_are_not() {
        let log =
            "[    0.000000] Linux version 6.1.0\n[    9.1] WARNING: CPU: 0 PID: 1 at mm/x.c:1\n[ 9.2] Call Trace:\n";
        assert_eq!(warnings(log).len(), 2);
        assert!(warnings("[    0.000000] x86/fpu: Supporting XSAVE\n[    0.1] Freeing unused kernel image").is_empty());
    }
}
