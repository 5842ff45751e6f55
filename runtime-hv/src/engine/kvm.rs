//! The bundled hypervisor.
//!
//! Comes in: what the operator asked for. Decided: nothing here. Goes out: its devices.

pub mod virtio;
