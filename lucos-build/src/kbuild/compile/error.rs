//! Why a unit was not compiled.
//!
//! Comes in: nothing. Decided: whose fault it is: the environment's when the original does not compile, else the diff's. Goes out:
//! [`CompileError`].

use crate::kbuild::overlay::OverlayError;
use std::path::PathBuf;

/// Why a unit was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The overlay could not be made.
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    /// A file or folder for the objects could not be made.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A list of files that the compiler wrote cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// The original source does not compile: the environment is at fault.
    #[error("{}: the original source does not compile with the kernel's own command:\n{output}", unit.display())]
    Original {
        /// The unit.
        unit: PathBuf,
        /// What the compiler said.
        output: String,
    },
    /// The patched source does not compile: the diff is at fault.
    #[error("{}: the patched source does not compile:\n{output}", unit.display())]
    Patched {
        /// The unit.
        unit: PathBuf,
        /// What the compiler said.
        output: String,
    },
    /// No threads.
    #[error("cannot start {jobs} threads: {message}")]
    Threads {
        /// How many.
        jobs: usize,
        /// Why.
        message: String,
    },
}
