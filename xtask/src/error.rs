//! Why a job was not done.
//!
//! Comes in: the failures of all that jobs use. Decided: the exit status. Goes out: [`JobError`], for one line on standard error.

use lucos_build::kbuild::KbuildError;
use lucos_build::kbuild::overlay::OverlayError;
use lucos_tests::boxed::BoxError;
use lucos_tests::commands::CommandError;
use lucos_tests::guest::GuestError;
use lucos_tests::initramfs::InitramfsError;
use lucos_tests::kernels::KernelError;
use lucos_tests::official::OfficialError;
use lucos_tests::patches::PatchError;
use lucos_tests::setup::SetupError;
use lucos_tests::soak::SoakError;
use prelink::dwarf::DwarfError;
use std::path::PathBuf;

/// Why a job was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    // What the other crates say.
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Patch(#[from] PatchError),
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    #[error(transparent)]
    Official(#[from] OfficialError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Box(#[from] BoxError),
    #[error(transparent)]
    Soak(#[from] SoakError),
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    #[error(transparent)]
    Kbuild(#[from] KbuildError),
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    #[error("{}: {source}", image.display())]
    Dwarf { image: PathBuf, source: DwarfError },
    #[error("{0}")]
    Io(#[from] std::io::Error),

    // What was called and failed, or answered otherwise than it should.
    #[error("`{command}` failed with {status}")]
    Cargo { command: String, status: String },
    #[error("{program}: {source}")]
    Start { program: String, source: std::io::Error },
    #[error("{what}:\n{outcome}")]
    Tool { what: String, status: i32, outcome: String },
    #[error("{what}: expected {expected}, seen {seen}")]
    NotSeen { what: String, expected: String, seen: String },
    #[error("{jobs} threads: {source}")]
    Threads { jobs: usize, source: rayon::ThreadPoolBuildError },

    // What is missing.
    #[error("the kernel cannot be used: {0}")]
    KernelUnusable(String),
    #[error("{unit}: no {what}")]
    NoCommand { unit: String, what: &'static str },
    #[error("the module of known state was not compiled")]
    NoKnownState,
    #[error("cargo-fuzz is not installed; `cargo install cargo-fuzz` and `rustup toolchain install nightly` bring it")]
    NoFuzz,

    /// A file of the corpus that could not be judged.
    #[error("{0}")]
    Corpus(String),
}

impl JobError {
    /// Refused is 3, a lost box 75, everything else 1.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Tool { status: 3, .. } => 3,
            Self::Box(error) => error.status(),
            _ => 1,
        }
    }
}
