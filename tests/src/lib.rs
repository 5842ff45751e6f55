//! What guest tests and the jobs of `cargo xtask` share: set-up, kernels, guests, patches, commands.
//!
//! Comes in: a Debian machine. Decided: what is missing, which kernels are used, how a guest is started and asked.
//! Goes out: prepared kernels ([`kernels`], [`setup`]), running guests ([`guest`]), diffs made from scripted edits
//! ([`patches`]), the two commands of the project as functions ([`commands`]), digests of guest memory ([`digest`]).

pub mod boxed;
pub mod browser;
pub mod commands;
pub mod digest;
pub mod guest;
pub mod initramfs;
pub mod kernels;
pub mod known_state;
pub mod official;
pub mod pahole;
pub mod patches;
pub mod programs;
pub mod require;
pub mod selfbuilt;
pub mod setup;
pub mod soak;
