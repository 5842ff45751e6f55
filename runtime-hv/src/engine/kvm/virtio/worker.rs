//! The device thread.
//!
//! Comes in: devices with their transports' event descriptors, and a descriptor that ends it. Decided: which device has
//! something to do, and whether its driver is the one it knows. Goes out: calls of [`Device`]; a device that fails is
//! stopped, says so once on standard error and in its status, and the others go on.

use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_INT_CONFIG;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::ring::{Line, Ring};
use super::{Device, DeviceError};

/// Events of the transport: the driver came or went.
const CONTROL: u32 = 0;
/// Events of queue 0; the other queues follow.
const FIRST_QUEUE: u32 = 1;
/// Events of the device's own descriptors: its tokens, counted from here.
const FIRST_TOKEN: u32 = 16;

/// The device thread could not wait for events.
#[derive(Debug, thiserror::Error)]
#[error("the device thread cannot wait for events: {0}")]
pub struct RunError(#[from] event_manager::Error);

/// What a transport shares with the device thread.
pub(super) struct Shared {
    pub(super) line: Arc<Line>,
    /// DEVICE_NEEDS_RESET: set and cleared with [`Self::core`] locked, read at any time.
    pub(super) needs_reset: AtomicBool,
    /// Signalled when the driver came or went.
    pub(super) control: EventFd,
    /// Signalled when a queue has something, by KVM, by the transport or by the ring itself.
    pub(super) kicks: Vec<Arc<EventFd>>,
    core: Mutex<Core>,
    told: AtomicBool,
}

/// The device and its rings. Whoever holds it may touch the rings; a driver's reset waits for it.
pub(super) struct Core {
    /// None once the device thread has ended.
    device: Option<Box<dyn Device>>,
    /// What the driver set up; None before, and after a reset.
    pub(super) active: Option<Active>,
    /// Counts drivers that came and went.
    pub(super) epoch: u64,
}

/// A driver at work.
pub(super) struct Active {
    pub(super) features: u64,
    pub(super) rings: Vec<Ring>,
}

impl Shared {
    pub(super) fn new(device: Box<dyn Device>, line: Arc<Line>, control: EventFd, kicks: Vec<Arc<EventFd>>) -> Self {
        let core = Mutex::new(Core { device: Some(device), active: None, epoch: 0 });
        Self { line, needs_reset: AtomicBool::new(false), control, kicks, core, told: AtomicBool::new(false) }
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        // A panic elsewhere is no reason to take the processors with it.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops using the rings, and tells the driver and the operator. The device itself stops when its thread looks next.
    pub(super) fn fail(&self, core: &mut Core, error: &DeviceError) {
        core.active = None;
        core.epoch += 1;
        self.needs_reset.store(true, Ordering::SeqCst);
        self.line.raise(VIRTIO_MMIO_INT_CONFIG);
        if !self.told.swap(true, Ordering::Relaxed) {
            let name = core.device.as_ref().map_or_else(String::new, |device| device.name());
            eprintln!("lucos-hv: {name} has stopped until its driver resets it: {error}");
        }
    }
}

/// The device thread's end of a transport.
pub struct Worker {
    shared: Arc<Shared>,
    /// Which driver the device was started for, as counted by [`Core::epoch`].
    epoch: u64,
    running: bool,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, epoch: 0, running: false }
    }

    /// Brings the device up to what the driver has done since, then does what the event asks for.
    fn handle(&mut self, core: &mut Core, event: Event, watch: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        let Some(device) = core.device.as_mut() else { return Ok(()) };
        if core.epoch != self.epoch {
            self.epoch = core.epoch;
            if std::mem::take(&mut self.running) {
                device.stop(watch);
            }
            if let Some(active) = &mut core.active {
                self.running = true;
                device.start(active.features, watch)?;
                // The driver may have used its queues before the device was ready.
                for index in 0..active.rings.len() {
                    device.queue(index, &mut active.rings, watch)?;
                }
            }
        }
        let Some(active) = &mut core.active else { return Ok(()) };
        match event {
            Event::Control => Ok(()),
            Event::Queue(index) if index < active.rings.len() => device.queue(index, &mut active.rings, watch),
            Event::Queue(_) => Ok(()),
            Event::Device(token, events) => device.event(token, events, &mut active.rings, watch),
        }
    }
}

/// What woke the thread.
enum Event {
    Control,
    Queue(usize),
    Device(u32, EventSet),
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let shared = Arc::clone(&self.shared);
        let event = match events.data() {
            CONTROL => {
                let _ = shared.control.read();
                Event::Control
            }
            token @ FIRST_TOKEN.. => Event::Device(token - FIRST_TOKEN, events.event_set()),
            queue => {
                let index = (queue - FIRST_QUEUE) as usize;
                if let Some(kick) = shared.kicks.get(index) {
                    // Not a signal after all: nothing is lost, the ring is looked at anyway.
                    let _ = kick.read();
                }
                Event::Queue(index)
            }
        };
        let mut watch = Watch { ops };
        let mut core = shared.core();
        if let Err(error) = self.handle(&mut core, event, &mut watch) {
            shared.fail(&mut core, &error);
            self.epoch = core.epoch;
            self.running = false;
            if let Some(device) = core.device.as_mut() {
                device.stop(&mut watch);
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let mut add = |fd: &EventFd, data| {
            if let Err(error) = ops.add(Events::with_data(fd, data, EventSet::IN)) {
                eprintln!("lucos-hv: a device cannot be watched and will not work: {error}");
            }
        };
        add(&self.shared.control, CONTROL);
        for (data, kick) in (FIRST_QUEUE..FIRST_TOKEN).zip(&self.shared.kicks) {
            add(kick, data);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The thread ends: files are closed and sockets removed now, whoever keeps the transport.
        let mut core = self.shared.core();
        core.active = None;
        core.device = None;
    }
}

/// Descriptors of the host that a device waits for. Whatever is watched has to be taken off before it is closed.
pub struct Watch<'a, 'b> {
    ops: &'a mut EventOps<'b>,
}

impl Watch<'_, '_> {
    /// Watches `fd` for `events`; they are told with `token`, which is below 2^32 - 16. What the kernel reports
    /// unasked (hang-up and error) is told, too, with an empty set as well.
    ///
    /// # Errors
    /// [`DeviceError::Host`] when the host has no room for it.
    pub fn add(&mut self, fd: &impl AsRawFd, token: u32, events: EventSet) -> Result<(), DeviceError> {
        self.ops.add(Events::with_data(fd, token.saturating_add(FIRST_TOKEN), events)).map_err(failed)
    }

    /// Watches `fd` for other events.
    ///
    /// # Errors
    /// [`DeviceError::Host`] when it is not watched.
    pub fn change(&mut self, fd: &impl AsRawFd, token: u32, events: EventSet) -> Result<(), DeviceError> {
        self.ops.modify(Events::with_data(fd, token.saturating_add(FIRST_TOKEN), events)).map_err(failed)
    }

    /// Watches `fd` no more. One that was not watched is no error.
    pub fn remove(&mut self, fd: &impl AsRawFd) {
        let _ = self.ops.remove(Events::empty(fd));
    }
}

fn failed(error: event_manager::Error) -> DeviceError {
    DeviceError::Host { what: "waiting for the host", source: std::io::Error::other(error) }
}

/// Ends the loop.
struct Stop {
    fd: EventFd,
    stopped: Rc<Cell<bool>>,
}

impl MutEventSubscriber for Stop {
    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        self.stopped.set(true);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if ops.add(Events::new(&self.fd, EventSet::IN)).is_err() {
            // A thread that nobody could end must not begin.
            self.stopped.set(true);
        }
    }
}

/// Does the work of all devices until `stop` is signalled. When it returns, the devices are gone: their files are closed and
/// their sockets removed.
///
/// # Errors
/// [`RunError`] when the host does not let it wait.
pub fn run(workers: Vec<Worker>, stop: EventFd) -> Result<(), RunError> {
    let mut manager = EventManager::<Box<dyn MutEventSubscriber>>::new()?;
    let stopped = Rc::new(Cell::new(false));
    manager.add_subscriber(Box::new(Stop { fd: stop, stopped: Rc::clone(&stopped) }));
    for worker in workers {
        manager.add_subscriber(Box::new(worker));
    }
    while !stopped.get() {
        manager.run()?;
    }
    Ok(())
}
