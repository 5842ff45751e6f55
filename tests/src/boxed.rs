//! The box: a machine with a real KVM on any machine.
//!
//! Comes in: a command, files for it. Decided: QEMU emulates an AMD processor with nested paging, a stock kernel of the
//! cache loads its own `kvm-amd`, and an agent of ours runs the command there. Goes out: what the command wrote and its
//! exit status, files, connections to its sockets; or [`LOST`], when it was the box that failed and not the command.
//!
//! The phases: `modules` (what the kernel has to load), `machine` (the box starts), `client` (the command runs),
//! with [`agent`] as the other side of it. They talk in the frames of `wire`, as many streams on one (`mux`).

pub mod agent;
mod client;
mod machine;
pub mod modules;
mod mux;
mod terminal;
mod wire;

pub use client::run;

use crate::commands::{self, CommandError};
use crate::initramfs::{self, InitramfsError};
use crate::kernels::{self, Kernel, KernelError};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Exit status when the box was lost, so that the command has no result (EX_TEMPFAIL of sysexits.h).
pub const LOST: u8 = 75;
/// The target that programs for the box are built for, in a target folder of their own: named, because build scripts
/// could not run if the host's own target were linked statically.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The program in the box that does what the host asks for.
pub const AGENT: &str = "lucos-box-agent";
/// Kernel parameter or variable that names the kernel of the box.
const KERNEL: &str = "LUCOS_BOX_KERNEL";

/// What to run in the box, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// A file of this machine that the command finds in the box, as /files/NAME if no path is given
    #[arg(long = "file", value_name = "HOST[:BOX]")]
    pub files: Vec<Pair>,
    /// A file of the box to fetch when the command has ended
    #[arg(long = "out", value_name = "BOX:HOST")]
    pub out: Vec<Pair>,
    /// A socket to open on this machine that leads to one in the box, as soon as somebody listens there
    #[arg(long = "forward", value_name = "HOST:BOX")]
    pub forward: Vec<Pair>,
    /// Seconds after which the box is ended, whatever it does
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub limit: u64,
    /// Processors; one hypervisor must not run on two of them (`taskset`), or the emulated virtualisation fails
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub cpus: u32,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(256..))]
    pub memory: u32,
    /// Kernel of the box, in the cache [default: the newest there that has kvm-amd]
    #[arg(long, value_name = "VMLINUZ", env = KERNEL)]
    pub kernel: Option<PathBuf>,
    /// Name of the box's console log in target/guest-logs
    #[arg(long, value_name = "NAME", default_value = "box")]
    pub name: String,
    /// The command and its arguments; /files and busybox are in its PATH
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Two paths with a colon between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// What stands before the colon.
    pub from: PathBuf,
    /// What stands behind it, if there is one.
    pub to: Option<PathBuf>,
}

impl std::str::FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (from, to) = text.split_once(':').map_or((text, None), |(from, to)| (from, Some(to)));
        if from.is_empty() || to.is_some_and(str::is_empty) {
            return Err("a path is empty".to_owned());
        }
        Ok(Self { from: from.into(), to: to.map(PathBuf::from) })
    }
}

impl Pair {
    /// Both paths, where both are needed.
    fn both(&self, option: &'static str) -> Result<(&Path, &Path), BoxError> {
        let missing = || BoxError::Pair { option, found: self.from.clone() };
        Ok((&self.from, self.to.as_deref().ok_or_else(missing)?))
    }
}

/// Why a command could not be run in the box. [`BoxError::status`] tells a lost box from other causes.
#[derive(Debug, thiserror::Error)]
pub enum BoxError {
    /// The box ended, does not answer, or took too long: not a verdict on the command.
    #[error("LOST BOX: {what}; its console is in {log}, the end of it:\n{tail}")]
    Lost {
        /// What happened.
        what: String,
        /// The log.
        log: PathBuf,
        /// Last lines of it.
        tail: String,
    },
    /// No kernel to run in it.
    #[error("no kernel in {0} has kvm-amd.ko; `cargo xtask setup` fetches one that has")]
    NoKernel(PathBuf),
    /// A module that the kernel does not have.
    #[error("{kernel} has no module {module}; name another kernel (that of the box by --kernel or LUCOS_BOX_KERNEL)")]
    NoModule {
        /// The kernel's folder.
        kernel: PathBuf,
        /// The module.
        module: String,
    },
    /// A module that cannot be read as one.
    #[error("{0} is not a kernel module that this can read (an ELF file with .modinfo)")]
    Module(PathBuf),
    /// A program for the box that was not built, or not statically.
    #[error("{path}: {problem}; `cargo xtask box -- true` builds it")]
    Program {
        /// Where it should be.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// One path where two are needed.
    #[error("--{option} {found}: expected two paths with a colon between them")]
    Pair {
        /// The option.
        option: &'static str,
        /// What was given.
        found: PathBuf,
    },
    /// The command itself could not be started.
    #[error("in the box, {command} did not start: {reason}")]
    NotStarted {
        /// The command.
        command: String,
        /// What the system said there.
        reason: String,
    },
    /// Files that did not come out.
    #[error("from the box: {0}")]
    Fetch(String),
    /// A program of this machine did not start.
    #[error("{program} did not start: {source}; {help}")]
    Start {
        /// The program.
        program: &'static str,
        /// What the system said.
        source: std::io::Error,
        /// What to do.
        help: &'static str,
    },
    /// The box has no KVM.
    #[error("the box has no /dev/kvm: its kernel's kvm-amd found no virtualisation; its console is in {0}")]
    NoKvm(PathBuf),
    /// The initramfs.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// The cache.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Where the programs are.
    #[error(transparent)]
    Commands(#[from] CommandError),
    /// A file or socket of this machine.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl BoxError {
    /// The exit status that tells it.
    pub fn status(&self) -> u8 {
        match self {
            Self::Lost { .. } => LOST,
            Self::Pair { .. } => 2,
            // As a shell says that there is no such command.
            Self::NotStarted { .. } => 127,
            _ => 1,
        }
    }

    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

impl Options {
    /// A command with nothing but the defaults.
    pub fn new(name: &str, command: &[&str]) -> Self {
        Self {
            files: Vec::new(),
            out: Vec::new(),
            forward: Vec::new(),
            limit: 600,
            cpus: 1,
            memory: 2048,
            kernel: std::env::var_os(KERNEL).map(PathBuf::from),
            name: name.to_owned(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
        }
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(self.limit)
    }

    /// The kernel that runs in the box.
    fn kernel(&self) -> Result<Kernel, BoxError> {
        match &self.kernel {
            Some(image) => Ok(Kernel::open(image.parent().unwrap_or(Path::new(".")))?),
            None => {
                let cache = kernels::cache_dir()?.join("kernels");
                newest_with_kvm(&cache).ok_or(BoxError::NoKernel(cache))
            }
        }
    }
}

/// The newest kernel of the cache that can be a box.
fn newest_with_kvm(cache: &Path) -> Option<Kernel> {
    let kernels = std::fs::read_dir(cache).ok()?.filter_map(|entry| Kernel::open(&entry.ok()?.path()).ok());
    kernels
        .filter(|kernel| kernel.is_complete() && kernel.module("kernel/arch/x86/kvm/kvm-amd.ko").exists())
        .max_by(|one, two| crate::setup::discover::compare_versions(&one.version, &two.version))
}

/// Where a program for the box is; it has to be linked statically, because the box has no libraries.
///
/// # Errors
/// [`BoxError::Program`] when it was not built, or not that way.
pub fn static_program(name: &str) -> Result<PathBuf, BoxError> {
    let bin = commands::bin_dir()?;
    let path = bin.parent().unwrap_or(&bin).join("box").join(TARGET).join("release").join(name);
    let bytes = std::fs::read(&path)
        .map_err(|_| BoxError::Program { path: path.clone(), problem: "there is no such program" })?;
    if initramfs::has_interpreter(&bytes) {
        return Err(BoxError::Program { path, problem: "it is not linked statically" });
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::Pair;

    #[test]
    fn pairs_of_paths() {
        let pair = |from: &str, to: Option<&str>| Ok(Pair { from: from.into(), to: to.map(Into::into) });
        for (text, expected) in [
            ("a", pair("a", None)),
            ("a:/b", pair("a", Some("/b"))),
            ("a:b:c", pair("a", Some("b:c"))),
            ("a:", Err("a path is empty".to_owned())),
            (":b", Err("a path is empty".to_owned())),
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
    }
}
