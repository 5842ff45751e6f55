//! From a kernel diff to a bundle.
//!
//! What was typed ([`args`]) becomes checked inputs ([`request`], [`inputs`], [`identity`]); the touched units are
//! compiled twice ([`kbuild`]); [`pipeline`] names all phases in order; [`report`] shows what came out.

pub mod args;
pub mod by_hand;
pub mod catalog;
pub mod closure;
pub mod compare;
pub mod data;
pub mod details;
pub mod explain;
pub mod faults;
pub mod headers;
pub mod identity;
pub mod inputs;
pub mod inspect;
pub mod judge;
pub mod kbuild;
pub mod layout;
pub mod modules;
pub mod objects;
pub mod outputs;
pub mod overrides;
pub mod page;
pub mod pipeline;
pub mod plan;
pub mod progress;
pub mod report;
pub mod request;
pub mod rules;
pub mod sarif;
pub mod scope;
pub mod slack;
pub mod warnings;
