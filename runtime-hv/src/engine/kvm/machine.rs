//! The machine: memory, processors and devices of one guest, from the first instruction to the last.
//!
//! Comes in: what to start. Decided, in this order: **memory**, the **VM** with its interrupt controllers and timer, **devices**,
//! the **kernel** in memory, **processors**, and then their **threads**. Goes out: a running machine, and how it ended.

use super::acpi::{self, Window};
use super::bus::{Bus, Mmio};
use super::events::Events;
use super::gate::{Gate, GateError, Holder};
use super::kernel::{Boot, KernelError};
use super::memory::Memory;
use super::mptable;
use super::serial::{SerialPort, Writer};
use super::vcpu::{self, End, Left, Processor};
use super::virtio::{self, Device, VirtioMmio, Worker};
use super::{cpuid, kernel, layout, start};
use crate::engine::Vcpu;
use kvm_bindings::{
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip,
    kvm_pit_config,
};
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;

/// Most processors.
pub const CPUS_LIMIT: u8 = 16;
/// Most virtio devices.
pub const DEVICES_LIMIT: usize = layout::VIRTIO_LIMIT;
/// How long a processor may take to stop. It is a matter of microseconds, unless the host does not run its thread.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What to start.
pub struct MachineConfig {
    /// bzImage or ELF.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: Option<PathBuf>,
    /// Kernel command line. `console=ttyS0` is added when it names no console.
    pub append: String,
    /// Processors, 1 to [`CPUS_LIMIT`].
    pub cpus: u8,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Its virtio devices, up to [`DEVICES_LIMIT`].
    pub devices: Vec<Box<dyn Device>>,
    /// What is typed to the guest's console.
    pub input: Option<Box<dyn Read + Send>>,
    /// Where the guest's console goes.
    pub output: Box<dyn Write + Send>,
}

/// Why a machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM cannot be used.
    #[error("/dev/kvm: {what}: {reason}")]
    Kvm {
        /// What was asked of it.
        what: &'static str,
        /// Its reason.
        reason: kvm_ioctls::Error,
    },
    /// The host's KVM lacks something.
    #[error("this host's KVM has no {0}; Linux has it since 4.13")]
    Lacks(&'static str),
    /// More processors than there can be.
    #[error("{asked} processors were asked for; this engine has 1 to {CPUS_LIMIT}")]
    Cpus {
        /// How many were asked for.
        asked: u32,
    },
    /// More devices than there can be.
    #[error("{asked} virtio devices were asked for; this engine has room for {DEVICES_LIMIT}")]
    Devices {
        /// How many were asked for.
        asked: usize,
    },
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A resource of the host.
    #[error("{what}: {reason}")]
    Host {
        /// What was needed.
        what: &'static str,
        /// The system's reason.
        reason: io::Error,
    },
}

pub(super) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |reason| MachineError::Kvm { what, reason }
}

pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |reason| MachineError::Host { what, reason }
}

/// A running machine.
pub(super) struct Machine {
    pub(super) vm: VmFd,
    pub(super) processors: Vec<Processor>,
    pub(super) gate: Gate,
    pub(super) bus: Bus,
    pub(super) events: Events,
    end: Mutex<Option<End>>,
    ended: Condvar,
    /// Last, so that it outlives the VM that it is mapped into.
    pub(super) memory: Memory,
}

/// A machine with its threads.
pub(super) struct Running {
    pub(super) machine: Arc<Machine>,
    threads: Vec<JoinHandle<()>>,
    devices: Option<JoinHandle<()>>,
    /// Ends the devices' thread.
    stop: EventFd,
    /// Dropped after the processors' end: then everything that the guest said is written.
    _writer: Writer,
}

impl Running {
    /// Starts a machine.
    ///
    /// # Errors
    /// [`MachineError`]; nothing is left behind.
    pub(super) fn start(config: MachineConfig) -> Result<Running, MachineError> {
        let cpus = config.cpus;
        if !(1..=CPUS_LIMIT).contains(&cpus) {
            return Err(MachineError::Cpus { asked: cpus.into() });
        }
        let memory = Memory::new(config.memory_mib << 20).map_err(host("memory for the guest"))?;
        let system = Kvm::new().map_err(kvm("open"))?;
        let vm = virtual_machine(&system, &memory)?;

        let irq = interrupt(&vm, layout::COM1_GSI)?;
        let (serial, writer) = SerialPort::new(irq, config.output).map_err(host("a thread for the console"))?;
        let (devices, workers, windows) = devices(&vm, &memory, config.devices)?;

        let placed = |error: vm_memory::GuestMemoryError| KernelError::Memory(error.to_string());
        let acpi = acpi::write(memory.ram(), cpus, &windows).map_err(placed)?;
        mptable::write(memory.ram(), cpus).map_err(placed)?;
        let command_line = command_line(&config.append);
        let boot = Boot { kernel: &config.kernel, initrd: config.initrd.as_deref(), command_line: &command_line, acpi };
        let entry = kernel::load(memory.ram(), &memory.ranges(), &boot)?;
        start::write_tables(memory.ram(), entry).map_err(placed)?;

        let supported = system.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm("processor features"))?;
        let mut processors = Vec::new();
        for cpu in 0..cpus {
            let fd = vm.create_vcpu(cpu.into()).map_err(kvm("a processor"))?;
            fd.set_cpuid2(&cpuid::of(&supported, cpu, cpus)).map_err(kvm("features of a processor"))?;
            start::every(&fd).map_err(kvm("registers of a processor"))?;
            if cpu == 0 {
                start::first(&fd, entry).map_err(kvm("registers of the first processor"))?;
            }
            processors.push(Processor::new(fd));
        }

        let machine = Arc::new(Machine {
            vm,
            gate: Gate::new(processors.len()),
            processors,
            bus: Bus { serial, windows: devices },
            events: Events::default(),
            end: Mutex::new(None),
            ended: Condvar::new(),
            memory,
        });
        let stop = EventFd::new(nix::libc::EFD_NONBLOCK).map_err(host("an event file descriptor"))?;
        let mut running = Running { machine, threads: Vec::new(), devices: None, stop, _writer: writer };
        running.start_threads(config.input, workers).map_err(host("a thread"))?;
        Ok(running)
    }

    fn start_threads(&mut self, input: Option<Box<dyn Read + Send>>, workers: Vec<Worker>) -> io::Result<()> {
        vcpu::prepare_kicks()?;
        let stop = self.stop.try_clone()?;
        let devices = move || {
            if let Err(error) = virtio::run(workers, stop) {
                eprintln!("lucos-hv: the guest's devices have stopped: {error}");
            }
        };
        self.devices = Some(std::thread::Builder::new().name("devices".into()).spawn(devices)?);
        for cpu in 0..self.machine.processors.len() {
            let machine = Arc::clone(&self.machine);
            let thread = std::thread::Builder::new().name(format!("vcpu {cpu}"));
            self.threads.push(thread.spawn(move || machine.run(cpu))?);
        }
        if let Some(input) = input {
            let serial = Arc::clone(&self.machine.bus.serial);
            // It ends with its input, or with the process: it may be waiting for a key that never comes.
            std::thread::Builder::new().name("keys".into()).spawn(move || serial.type_from(input))?;
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let machine = &self.machine;
        machine.gate.close(|cpu| machine.processors[cpu].kick());
        for (cpu, thread) in self.threads.drain(..).enumerate() {
            // A kick can come a moment too early.
            while machine.gate.runs(cpu) && !thread.is_finished() {
                machine.processors[cpu].kick();
                std::thread::sleep(Duration::from_millis(1));
            }
            // A processor's thread that panicked has ended as well.
            let _ = thread.join();
        }
        // After the processors: a reset of a device waits for that thread.
        if let (Some(thread), Ok(())) = (self.devices.take(), self.stop.write(1)) {
            let _ = thread.join();
        }
    }
}

impl Machine {
    /// Runs a processor until the machine ends.
    fn run(&self, cpu: usize) {
        vcpu::live(cpu, &self.processors[cpu], &self.gate, &self.bus, |left| match left {
            Left::Denied | Left::Reported(_) => self.look_after(Vcpu(cpu), &left),
            Left::Ended(end) => self.end(end),
            Left::Asked | Left::Stepped => {}
        });
    }

    /// Gets all processors out of guest mode.
    pub(super) fn hold(&self, holder: Holder) -> Result<(), GateError> {
        self.gate.hold(holder, STOP_LIMIT, |cpu| self.processors[cpu].kick())
    }

    /// The machine is at its end; the first reason counts.
    pub(super) fn end(&self, why: End) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
        self.ended.notify_all();
        self.gate.close(|cpu| self.processors[cpu].kick());
    }

    /// How it ended, if it has.
    pub(super) fn how_it_ended(&self) -> Option<End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the end.
    pub(super) fn wait(&self, limit: Duration) -> Option<End> {
        let deadline = Instant::now() + limit;
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        while end.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            end = self.ended.wait_timeout(end, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        end.clone()
    }
}

/// A VM with its interrupt controllers and the legacy timer (for kernels that know no other).
pub(super) fn virtual_machine(system: &Kvm, memory: &Memory) -> Result<VmFd, MachineError> {
    use kvm_ioctls::Cap;
    for (cap, name) in [
        (Cap::Irqchip, "interrupt controllers in the kernel"),
        (Cap::Irqfd, "interrupts by event file descriptors"),
        (Cap::ImmediateExit, "immediate exits"),
        (Cap::SignalMsi, "message-signalled interrupts"),
    ] {
        if !system.check_extension(cap) {
            return Err(MachineError::Lacks(name));
        }
    }
    let vm = system.create_vm().map_err(kvm("a virtual machine"))?;
    memory.give_to(&vm).map_err(kvm("memory of the guest"))?;
    vm.set_tss_address(layout::KVM_TSS).map_err(kvm("room for real mode"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(kvm("room for real mode"))?;
    vm.create_irq_chip().map_err(kvm("interrupt controllers"))?;
    silence_legacy_controllers(&vm).map_err(kvm("the legacy interrupt controllers"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
    vm.create_pit2(pit).map_err(kvm("the legacy timer"))?;
    Ok(vm)
}

/// An event that raises an interrupt of the guest.
fn interrupt(vm: &VmFd, gsi: u32) -> Result<EventFd, MachineError> {
    let event = EventFd::new(nix::libc::EFD_NONBLOCK).map_err(host("an event file descriptor"))?;
    vm.register_irqfd(&event, gsi).map_err(kvm("an interrupt"))?;
    Ok(event)
}

/// The devices' windows, the ends of their thread, and what to tell the guest of them.
type Devices = (Vec<Arc<Mutex<dyn Mmio>>>, Vec<Worker>, Vec<Window>);

/// Gives each device a window, an interrupt, and an event for each of its queues, which KVM signals without an exit to us.
fn devices(vm: &VmFd, memory: &Memory, devices: Vec<Box<dyn Device>>) -> Result<Devices, MachineError> {
    if devices.len() > layout::VIRTIO_LIMIT {
        return Err(MachineError::Devices { asked: devices.len() });
    }
    let (mut on_bus, mut workers, mut windows): Devices = Default::default();
    for (number, device) in devices.into_iter().enumerate() {
        let window = window(number);
        let irq = interrupt(vm, window.gsi)?;
        let made = VirtioMmio::new(device, Arc::clone(memory.ram()), irq);
        let (transport, worker) = made.map_err(host("event file descriptors for a device"))?;
        let notify = IoEventAddress::Mmio(u64::from(window.base) + virtio::NOTIFY_OFFSET);
        for (queue, event) in transport.notify_fds() {
            vm.register_ioevent(event, &notify, queue).map_err(kvm("an event for a queue"))?;
        }
        on_bus.push(Arc::new(Mutex::new(transport)));
        workers.push(worker);
        windows.push(window);
    }
    Ok((on_bus, workers, windows))
}

fn window(number: usize) -> Window {
    Window {
        base: (layout::DEVICES + number as u64 * layout::VIRTIO_WINDOW) as u32,
        gsi: layout::VIRTIO_FIRST_GSI + number as u32,
    }
}

fn command_line(append: &str) -> String {
    if append.split_whitespace().any(|word| word.starts_with("console=")) {
        append.to_owned()
    } else {
        format!("{append} console=ttyS0").trim_start().to_owned()
    }
}

/// Masks all interrupts of the two 8259s. A kernel that uses them initialises them; one that was told of ACPI without legacy hardware
/// never looks at them, and would get their interrupts at LINT0.
fn silence_legacy_controllers(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
        vm.get_irqchip(&mut chip)?;
        chip.chip.pic.imr = 0xff;
        vm.set_irqchip(&chip)?;
    }
    Ok(())
}
