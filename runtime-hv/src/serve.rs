//! `run` and `attach`: a guest, its service and its watchdog, from beginning to end.
//!
//! Comes in: what to serve. Decided: the order: control socket, guest, watchdog, engine, service; and in reverse at the
//! end. Goes out: an exit status that says how it ended.

use crate::args::{EngineName, Run};
use crate::console::Console;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use runtime_hv::engine::kvm::virtio::{Block, Device, Entropy, Net, Vsock};
use runtime_hv::engine::kvm::{self, End, KvmEngine, MachineConfig};
use runtime_hv::engine::qemu::{Acceleration, Earlier, LaunchConfig, QemuEngine, Serial, launch};
use runtime_hv::journal::Journal;
use runtime_hv::protocol::Problem;
use runtime_hv::service::{ControlSocket, Ended, serve};
use runtime_hv::update::{Patience, Updater};
use runtime_hv::watchdog::{Watchdog, bring_back};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Starts a guest and serves it until it ends.
pub(crate) fn run(run: &Run) -> Result<ExitCode, Problem> {
    let engine = match run.engine {
        EngineName::Auto => match kvm::probe() {
            Ok(()) => EngineName::Kvm,
            Err(reason) => {
                eprintln!(
                    "lucos-hv: engine qemu (software emulation), because the engine kvm cannot be used: {reason}"
                );
                EngineName::Qemu
            }
        },
        EngineName::QemuKvm => {
            // QEMU would start, and the guest stand still, on a KVM that no kernel boots on.
            kvm::probe().map_err(crate::no_kvm)?;
            EngineName::QemuKvm
        }
        chosen => chosen,
    };
    if engine != EngineName::Kvm && run.vsock.is_some() {
        return Err(Problem::refused("no-vsock", "--vsock needs the engine kvm").help("leave --vsock out"));
    }
    let stop = stop_signals()?;
    let socket = ControlSocket::open(&run.api)?;
    let journal = Journal::beside(&run.api);
    // A new guest: whatever the journal says is about another one.
    journal.set_aside().map_err(|error| Problem::failed("journal-failed", error))?;
    let ended = match engine {
        EngineName::Kvm => run_kvm(run, &stop, &socket, &journal),
        EngineName::QemuKvm => run_qemu(run, Acceleration::Kvm, &stop, &socket, &journal),
        EngineName::Auto | EngineName::Qemu => run_qemu(run, Acceleration::None, &stop, &socket, &journal),
    };
    // Best effort: the guest is gone and with it the meaning of these files.
    let _ = journal.set_aside();
    ended
}

/// A terminal, if there is one, and whether Ctrl-A x was typed.
fn console() -> Result<(Option<Console>, Arc<AtomicBool>), Problem> {
    let failed = |error| Problem::failed("terminal", error);
    Ok((Console::take().map_err(failed)?, Arc::new(AtomicBool::new(false))))
}

fn hand_over(console: &mut Option<Console>, end: &Arc<AtomicBool>) -> Result<(), Problem> {
    let Some(console) = console else { return Ok(()) };
    let end = Arc::clone(end);
    console.hand_over(move || end.store(true, Ordering::Relaxed)).map_err(|error| Problem::failed("terminal", error))
}

/// In this process: nothing is left behind when it ends, however it ends.
fn run_kvm(run: &Run, stop: &SignalFd, socket: &ControlSocket, journal: &Journal) -> Result<ExitCode, Problem> {
    let cpus = u8::try_from(run.cpus).unwrap_or(u8::MAX);
    let devices = devices(run)?;
    let (mut console, end) = console()?;
    let config = MachineConfig {
        kernel: run.kernel.clone(),
        initrd: run.initrd.clone(),
        append: run.append.clone(),
        cpus,
        memory_mib: run.memory,
        devices,
        input: Some(Box::new(std::io::stdin())),
        output: Box::new(std::io::stdout()),
    };
    let engine = KvmEngine::start(config).map_err(|error| Problem::failed("launch-failed", error))?;
    hand_over(&mut console, &end)?;
    let mut updater = Updater::open(engine, journal.clone(), Patience::default()).map_err(|error| error.problem())?;
    let gone = |engine: &KvmEngine| end.load(Ordering::Relaxed) || engine.how_it_ended().is_some();
    serve(&mut updater, socket, stop, gone).map_err(|error| Problem::failed("service", error))?;
    let engine = updater.into_engine();
    let how = engine.how_it_ended();
    drop(engine);
    drop(console);
    match how {
        // By a signal or a key.
        None | Some(End::PowerOff) => Ok(ExitCode::SUCCESS),
        Some(End::Reset) => {
            eprintln!("lucos-hv: the guest has asked for a restart, and was ended");
            Ok(ExitCode::SUCCESS)
        }
        Some(End::TripleFault { cpu }) => {
            Err(Problem::failed("guest-failed", format!("the guest crashed: a triple fault of processor {cpu}")))
        }
        Some(End::Failed(reason)) => Err(Problem::failed("guest-failed", reason)),
    }
}

/// What the guest shall have beside processors, memory and console. Whatever the host lacks shows here.
fn devices(run: &Run) -> Result<Vec<Box<dyn Device>>, Problem> {
    let failed = |error: &dyn std::fmt::Display| Problem::failed("device-failed", error.to_string());
    let mut devices: Vec<Box<dyn Device>> = vec![Box::new(Entropy::new())];
    for disk in &run.disks {
        devices.push(Box::new(Block::open(&disk.path, disk.read_only).map_err(|error| failed(&error))?));
    }
    for net in &run.nets {
        devices.push(Box::new(Net::open(&net.tap, net.mac).map_err(|error| failed(&error))?));
    }
    if let Some(cid) = run.vsock {
        let mut path = run.api.clone().into_os_string();
        path.push(".vsock");
        devices.push(Box::new(Vsock::open(cid, Path::new(&path)).map_err(|error| failed(&error))?));
    }
    Ok(devices)
}

/// The same for QEMU, which opens them itself and says what it lacks.
fn qemu_devices(run: &Run) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["-device".into(), "virtio-rng-pci".into()];
    for disk in &run.disks {
        let read_only = if disk.read_only { "on" } else { "off" };
        let path = disk.path.to_string_lossy().replace(',', ",,");
        arguments.extend(["-drive".into(), format!("if=virtio,format=raw,readonly={read_only},file={path}").into()]);
    }
    for (number, net) in run.nets.iter().enumerate() {
        let tap = &net.tap;
        arguments.extend(["-netdev".into(), format!("tap,id=net{number},ifname={tap},script=no,downscript=no").into()]);
        let mac = net.mac.map(|mac| format!(",mac={}", mac.map(|byte| format!("{byte:02x}")).join(":")));
        let mac = mac.unwrap_or_default();
        arguments.extend(["-device".into(), format!("virtio-net-pci,netdev=net{number}{mac}").into()]);
    }
    arguments
}

/// In a QEMU of our own.
fn run_qemu(
    run: &Run,
    acceleration: Acceleration,
    stop: &SignalFd,
    socket: &ControlSocket,
    journal: &Journal,
) -> Result<ExitCode, Problem> {
    let mut qmp = run.api.clone().into_os_string();
    qmp.push(".qmp");
    let qmp = PathBuf::from(qmp);
    let config = LaunchConfig {
        acceleration,
        kernel: run.kernel.clone(),
        initrd: run.initrd.clone(),
        append: run.append.clone(),
        cpus: run.cpus,
        memory_mib: run.memory,
        qmp_path: qmp.clone(),
        serial: Serial::Stdio,
        extra_args: qemu_devices(run),
    };
    let (mut console, end) = console()?;
    let mut guest = Guest(launch(&config).map_err(|error| Problem::failed("launch-failed", error))?);
    hand_over(&mut console, &end)?;
    let watchdog = Watchdog::start(&qmp, &run.api)?;
    let engine = QemuEngine::attach(&qmp, Earlier::Unknown).map_err(|error| Problem::failed("engine-failed", error))?;
    let mut updater = Updater::open(engine, journal.clone(), Patience::default()).map_err(|error| error.problem())?;
    let gone = |_: &QemuEngine| end.load(Ordering::Relaxed) || !matches!(guest.0.try_wait(), Ok(None));
    let ended = serve(&mut updater, socket, stop, gone).map_err(|error| Problem::failed("service", error))?;
    drop(watchdog);
    drop(updater);
    let by_us = ended == Ended::Asked || end.load(Ordering::Relaxed);
    let status = if by_us { guest.end() } else { guest.0.wait() };
    drop(console);
    let _ = std::fs::remove_file(&qmp);
    match status {
        Ok(_) if by_us => Ok(ExitCode::SUCCESS),
        Ok(status) if status.success() => Ok(ExitCode::SUCCESS),
        Ok(status) => Err(Problem::failed("guest-failed", format!("QEMU ended with {status}"))),
        Err(error) => Err(Problem::failed("guest-failed", format!("QEMU could not be waited for: {error}"))),
    }
}

/// The QEMU process; ended when this is dropped early.
struct Guest(Child);

impl Guest {
    fn end(&mut self) -> std::io::Result<std::process::ExitStatus> {
        self.0.kill()?;
        self.0.wait()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.end();
        }
    }
}

/// Takes on a VM that runs, and lets go of it at the end; what is applied stays applied.
pub(crate) fn attach(qmp: &Path, api: &Path) -> Result<ExitCode, Problem> {
    let stop = stop_signals()?;
    let socket = ControlSocket::open(api)?;
    let journal = Journal::beside(api);
    let engine = match QemuEngine::attach(qmp, Earlier::Unknown) {
        Ok(engine) => engine,
        Err(first) => {
            let failed = |error| Problem::failed("engine-failed", error);
            let known = journal.half_done().ok().flatten().or_else(|| journal.planned().ok().flatten());
            let is_open = journal.load().is_ok_and(|document| !document.opens.is_empty());
            if known.is_none() && !is_open {
                return Err(failed(first));
            }
            // A tool died while it held the guest, and so did its watchdog: finish what it left first.
            bring_back(qmp, &journal)?;
            QemuEngine::attach(qmp, Earlier::Unknown).map_err(failed)?
        }
    };
    let watchdog = Watchdog::start(qmp, api)?;
    let mut updater = Updater::open(engine, journal, Patience::default()).map_err(|error| error.problem())?;
    eprintln!("lucos-hv: serving the VM at {} on {}", qmp.display(), api.display());
    let ended = serve_until_left(&mut updater, &socket, &stop);
    let ended = ended.map_err(|error| Problem::failed("service", error))?;
    let detached = updater.into_engine().detach();
    drop(watchdog);
    match ended {
        Ended::GuestGone => eprintln!("lucos-hv: the VM is gone"),
        Ended::Asked => detached.map_err(|error| Problem::failed("engine-failed", error))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// How long a service that cannot serve any more waits before it tries again to let threads go.
const LET_GO_AGAIN: Duration = Duration::from_secs(1);

/// Serves a VM that goes on without us. While data have two copies that have to be kept in line, the first signal to end only says so.
fn serve_until_left(
    updater: &mut Updater<QemuEngine>,
    socket: &ControlSocket,
    stop: &SignalFd,
) -> std::io::Result<Ended> {
    let mut told = false;
    loop {
        let ended = serve(updater, socket, stop, QemuEngine::is_gone);
        if !updater.has_open() || matches!(ended, Ok(Ended::GuestGone)) {
            return ended;
        }
        if ended.is_ok() && updater.has_copies() && !told {
            told = true;
            stop.read_signal()?;
            eprintln!(
                "lucos-hv: threads are still inside old code, and what they write is carried to the new code's data and back; without a \
                 service both go apart. Undo the update or wait until it is applied (`lucos-hv list`); a second signal ends the service \
                 all the same"
            );
            continue;
        }
        match updater.leave_open() {
            Ok(()) => eprintln!("lucos-hv: threads are still inside old code; the next `attach` takes the update over"),
            Err(error) => {
                let left = error.problem().message;
                // Without us they would never get out of the code that they return to.
                if ended.is_ok() {
                    eprintln!("lucos-hv: threads inside old code could not be let go: {left}; send the signal again");
                    stop.read_signal()?;
                } else if updater.engine.is_gone() {
                    return ended;
                } else {
                    eprintln!("lucos-hv: threads inside old code could not be let go: {left}; it is tried again");
                    std::thread::sleep(LET_GO_AGAIN);
                }
                continue;
            }
        }
        return ended;
    }
}

/// SIGINT, SIGTERM and SIGHUP as a file descriptor. Programs that we start get the default mask back.
fn stop_signals() -> Result<SignalFd, Problem> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()
        .and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK))
        .map_err(|error| Problem::failed("signals", error))
}
