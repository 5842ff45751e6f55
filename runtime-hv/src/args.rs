//! What can be typed.
//!
//! Comes in: the command line. Decided: only its form; clap prints help and usage errors (status 2). Goes out: [`Args`].

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
        /// Leave kernel threads that sleep in old code there: they go on in it until they return
        #[arg(long)]
        stay: bool,
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
    /// Tell whether this host can run the engine `kvm`, and why not
    Probe {
        /// Measure, too, what its operations cost here
        #[arg(long)]
        measure: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
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
            Command::Probe { json, .. } => *json,
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
    /// Kernel: a bzImage, or an ELF vmlinux
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: PathBuf,
    /// Initial file system
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "STR", default_value = "", allow_hyphen_values = true)]
    pub(crate) append: String,
    /// Processors
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(crate) cpus: u32,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u64).range(64..))]
    pub(crate) memory: u64,
    /// Disk: a raw image or a block device, `/dev/vda` of the guest; may be repeated. With `,ro` the guest cannot write to it
    #[arg(long = "disk", value_name = "FILE[,ro]", value_parser = disk)]
    pub(crate) disks: Vec<Disk>,
    /// Network: a TAP interface of this host (`ip tuntap add NAME mode tap`); may be repeated
    #[arg(long = "net", value_name = "TAP[,MAC]", value_parser = net)]
    pub(crate) nets: Vec<Net>,
    /// Address of the guest for vsock, 3 or more. Programs of this host reach port P of the guest through the socket
    /// API.vsock by sending `CONNECT P`; the guest reaches those that listen on API.vsock_P
    #[arg(long, value_name = "CID")]
    pub(crate) vsock: Option<u32>,
    /// Hypervisor
    #[arg(long, value_enum, default_value_t = EngineName::Auto)]
    pub(crate) engine: EngineName,
    /// Control socket to open
    #[arg(long, value_name = "SOCKET", env = "LUCOS_API")]
    pub(crate) api: PathBuf,
}

/// A disk to give to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
}

fn disk(typed: &str) -> Result<Disk, String> {
    let (path, read_only) = typed.strip_suffix(",ro").map_or((typed, false), |path| (path, true));
    if path.is_empty() { Err("no file is named".to_owned()) } else { Ok(Disk { path: path.into(), read_only }) }
}

/// A network interface to give to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Net {
    pub(crate) tap: String,
    pub(crate) mac: Option<[u8; 6]>,
}

fn net(typed: &str) -> Result<Net, String> {
    let (tap, mac) = typed.split_once(',').map_or((typed, None), |(tap, mac)| (tap, Some(mac)));
    let mac = mac.map(|mac| {
        let bytes: Option<Vec<u8>> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        bytes.ok_or_else(|| format!("`{mac}` is no MAC address; expected six bytes such as 02:00:00:00:00:01"))
    });
    if tap.is_empty() {
        Err("no interface is named".to_owned())
    } else {
        Ok(Net { tap: tap.to_owned(), mac: mac.transpose()? })
    }
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
    /// QEMU with this host's KVM: faster, but a Type 2 update waits until nobody is inside of old code
    QemuKvm,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_typed_in_one_word() {
        assert_eq!(disk("a,ro"), Ok(Disk { path: "a".into(), read_only: true }));
        assert_eq!(disk("a,b"), Ok(Disk { path: "a,b".into(), read_only: false }));
        assert!(disk(",ro").is_err() && net("").is_err() && net("t,02:00").is_err() && net("t,x").is_err());
        assert_eq!(net("t0"), Ok(Net { tap: "t0".into(), mac: None }));
        assert_eq!(net("t0,02:0:0:0:0:ff"), Ok(Net { tap: "t0".into(), mac: Some([2, 0, 0, 0, 0, 255]) }));
    }
}
