//! What can be typed.

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Updates the kernel of a running guest from outside.
#[derive(Debug, Parser)]
#[command(
    name = "lucos-hv",
    version,
    after_help = "Exit status: 0 done, 1 the tool or its environment failed, 2 usage, 3 refused."
)]
pub(crate) struct Args {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a guest, its serial console on this terminal, and serve it until it ends (Ctrl-A x ends it)
    Run(Run),
    /// Take on a QEMU VM that already runs, and serve it until it ends or this command is interrupted
    Attach {
        /// QMP socket of the VM
        #[arg(long, value_name = "SOCKET")]
        qmp: PathBuf,
        /// Control socket to open
        #[arg(long, value_name = "SOCKET", env = "LUCOS_API")]
        api: PathBuf,
    },
    /// Apply a bundle
    Apply {
        /// The bundle, made by lucos-build
        #[arg(value_name = "FILE.lpk")]
        file: PathBuf,
        /// Put the code into memory that the guest does not use, and let the guest prepare nothing: for a guest that is too
        /// broken to; it will not know the code
        #[arg(long)]
        in_arena: bool,
        #[command(flatten)]
        client: Client,
    },
    /// List the bundles of this boot
    List {
        #[command(flatten)]
        client: Client,
    },
    /// Show one bundle
    Show {
        /// Name, or the beginning of the id
        name: String,
        #[command(flatten)]
        client: Client,
    },
    /// Take a bundle back
    Undo {
        /// Name, or the beginning of the id
        name: String,
        #[command(flatten)]
        client: Client,
    },
    /// Show what the service serves
    Status {
        #[command(flatten)]
        client: Client,
    },
    /// The watchdog of a service
    #[command(name = runtime_hv::watchdog::SUBCOMMAND, hide = true)]
    Rescue {
        /// QMP socket of the VM
        #[arg(long)]
        qmp: PathBuf,
        /// Control socket of the service
        #[arg(long)]
        api: PathBuf,
    },
}

impl Command {
    /// Whether answers are wanted as JSON.
    pub(crate) fn json(&self) -> bool {
        match self {
            Command::Run(_) | Command::Attach { .. } | Command::Rescue { .. } => false,
            Command::Apply { client, .. }
            | Command::List { client }
            | Command::Show { client, .. }
            | Command::Undo { client, .. }
            | Command::Status { client } => client.json,
        }
    }
}

/// How to reach a service.
#[derive(Debug, ClapArgs)]
pub(crate) struct Client {
    /// Control socket of the service
    #[arg(long, value_name = "SOCKET", env = "LUCOS_API")]
    pub(crate) api: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A guest to start.
#[derive(Debug, ClapArgs)]
pub(crate) struct Run {
    /// Kernel (bzImage)
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: PathBuf,
    /// Initial file system
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: PathBuf,
    /// Kernel command line
    #[arg(long, value_name = "STR", default_value = "", allow_hyphen_values = true)]
    pub(crate) append: String,
    /// Processors
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(crate) cpus: u32,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u64).range(64..))]
    pub(crate) memory: u64,
    /// Hypervisor
    #[arg(long, value_enum, default_value_t = EngineName::Auto)]
    pub(crate) engine: EngineName,
    /// Control socket to open
    #[arg(long, value_name = "SOCKET", env = "LUCOS_API")]
    pub(crate) api: PathBuf,
}

/// Hypervisors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineName {
    /// The best that works here
    Auto,
    /// The bundled hypervisor
    Kvm,
    /// QEMU, software emulation
    Qemu,
}
