//! Applies, shows and undoes bundles on a running guest.
//!
//! Comes in: a bundle and a guest behind an [`engine`]. Decided: whether the guest is the kernel that the bundle was made
//! for, where new code goes and when it is safe to switch ([`update`], which reads the guest through [`guest`]). Goes
//! out: a changed guest, a [`journal`] on the host to finish or take back from, and answers on a control socket
//! ([`service`], [`client`], [`protocol`]).

pub mod client;
pub mod engine;
pub mod guest;
pub mod journal;
pub mod protocol;
pub mod service;
pub mod unwind;
pub mod update;
pub mod watchdog;

mod timed;
