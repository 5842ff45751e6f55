//! Where each symbol of new code lives.
//!
//! Comes in: compiled units ([`diff_analyzer`]) and the kernel image ([`vmlinux`], [`symbol_db`], [`units`]). Decided: whether the
//! original code is the code of the image ([`prove`]), what goes into a bundle and where each of its references leads
//! ([`link`]), what boot has changed in the old code ([`sites`]), what the runtime must know of the kernel
//! ([`guest`], [`profile`]); for an update written by hand, what it declares ([`declare`], [`by_hand`], [`copies`], [`fields`]); for objects on
//! the heap, what else holds such objects and which variable points to their cache ([`holders`], [`variables`]). Goes out: the parts of a bundle, or the reasons why there is none ([`refusal`]).

pub mod by_hand;
pub mod copies;
pub mod declare;
pub mod dwarf;
pub mod fields;
pub mod guest;
pub mod holders;
pub mod link;
pub mod module;
pub mod profile;
pub mod prove;
pub mod refusal;
pub mod sites;
pub mod symbol_db;
pub mod units;
pub mod users;
pub mod variables;
pub mod vmlinux;
