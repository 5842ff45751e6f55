//! What is behind a port or a device address.
//!
//! Comes in: accesses of the guest that KVM does not answer itself. Decided: which device is meant. Goes out: the device's
//! answer, all ones where nothing is, or the end of the machine.

use super::layout;
use super::serial::SerialPort;
use super::virtio::VirtioMmio;
use std::sync::{Arc, Mutex, PoisonError};

/// A device behind a window of addresses.
pub(super) trait Mmio: Send {
    /// The guest reads at an offset of the window.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes at an offset of the window.
    fn write(&mut self, offset: u64, data: &[u8]);
}

impl Mmio for VirtioMmio {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        VirtioMmio::read(self, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        VirtioMmio::write(self, offset, data);
    }
}

/// What the guest wants of the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// To be switched off.
    PowerOff,
    /// To be started again.
    Reset,
}

/// All devices.
pub(super) struct Bus {
    pub(super) serial: Arc<SerialPort>,
    /// By window: the first is at [`layout::DEVICES`].
    pub(super) windows: Vec<Arc<Mutex<dyn Mmio>>>,
}

/// The sleep control register: type 5 (off) in bits 2 to 4, and "go" (ACPI 6.5, table 4.22).
const OFF: u8 = 5 << 2 | 1 << 5;
/// The keyboard controller's command that pulses the reset line.
const I8042_RESET: u8 = 0xfe;

impl Bus {
    /// The guest reads a port.
    pub(super) fn port_in(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let [byte] = data {
            if layout::COM1.contains(&port) {
                *byte = self.serial.read((port - layout::COM1.start) as u8);
            } else if [layout::I8042_COMMAND, layout::SLEEP_STATUS].contains(&port) {
                // The controller takes commands at any time; no wake-up is pending.
                *byte = 0;
            }
        }
    }

    /// The guest writes a port.
    pub(super) fn port_out(&self, port: u16, data: &[u8]) -> Option<Wish> {
        // String output comes as several bytes for one port.
        data.iter().find_map(|&byte| match port {
            layout::SLEEP_CONTROL if byte & OFF == OFF => Some(Wish::PowerOff),
            layout::RESET if byte == layout::RESET_VALUE => Some(Wish::Reset),
            layout::I8042_COMMAND if byte == I8042_RESET => Some(Wish::Reset),
            port if layout::COM1.contains(&port) => {
                self.serial.write((port - layout::COM1.start) as u8, byte);
                None
            }
            _ => None,
        })
    }

    /// The guest reads where no memory is.
    pub(super) fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.window(address) {
            device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        }
    }

    /// The guest writes where no memory is.
    pub(super) fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.window(address) {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
    }

    fn window(&self, address: u64) -> Option<(&Mutex<dyn Mmio>, u64)> {
        let offset = address.checked_sub(layout::DEVICES)?;
        let device = self.windows.get(usize::try_from(offset / layout::VIRTIO_WINDOW).ok()?)?;
        Some((device, offset % layout::VIRTIO_WINDOW))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EventFd;

    struct Echo(u64);

    impl Mmio for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, _: &[u8]) {
            self.0 = offset;
        }
    }

    #[test]
    fn every_access_has_an_answer() {
        let (serial, _writer) =
            SerialPort::new(EventFd::new(0).expect("an event"), Box::new(std::io::sink())).expect("a port");
        let device = Arc::new(Mutex::new(Echo(0)));
        let bus = Bus { serial, windows: vec![Arc::clone(&device) as _] };
        let read = |address| {
            let mut data = [0; 4];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(layout::DEVICES + 8), [8; 4]);
        assert_eq!((read(layout::DEVICES + 0x1000), read(0), read(u64::MAX)), ([0xff; 4], [0xff; 4], [0xff; 4]));
        bus.write(layout::DEVICES + 0xffc, &[1]);
        assert_eq!(device.lock().expect("no panic").0, 0xffc);
        assert_eq!(bus.port_out(layout::SLEEP_CONTROL, &[0x34]), Some(Wish::PowerOff));
        assert_eq!(bus.port_out(layout::SLEEP_CONTROL, &[0x14]), None);
        assert_eq!(bus.port_out(layout::RESET, &[1]), Some(Wish::Reset));
        assert_eq!(bus.port_out(layout::I8042_COMMAND, &[0xfe]), Some(Wish::Reset));
        let mut wide = [0; 4];
        bus.port_in(0xcfc, &mut wide);
        assert_eq!(wide, [0xff; 4]);
    }
}
