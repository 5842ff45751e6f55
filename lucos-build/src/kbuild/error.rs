//! Why the build folder or a command is missing.
//!
//! Comes in: nothing. Decided: nothing. Goes out: [`KbuildError`].

use super::command::CommandError;
use super::given::GivenError;
use std::path::{Path, PathBuf};

/// Why the build folder or a command is missing.
#[derive(Debug, thiserror::Error)]
pub enum KbuildError {
    /// Programs are missing.
    #[error("missing: {}; install {}", programs.join(", "), packages.join(" "))]
    Tools {
        /// Programs.
        programs: Vec<String>,
        /// Debian packages.
        packages: Vec<String>,
    },
    /// No folder to keep the build in.
    #[error("no folder for prepared builds: set LUCOS_CACHE, XDG_CACHE_HOME or HOME")]
    NoCache,
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// make could not be started.
    #[error("cannot start make")]
    Start(#[source] std::io::Error),
    /// make failed.
    #[error("make {what} failed{hint}; the whole output is in {}:\n{tail}", log.display())]
    Make {
        /// What it was asked for.
        what: String,
        /// What to do, if it is known.
        hint: String,
        /// Its output.
        log: PathBuf,
        /// The end of it.
        tail: String,
    },
    /// make would not say how to compile the units.
    #[error("make cannot say how the units are compiled:\n{output}")]
    Ask {
        /// What it said.
        output: String,
    },
    /// A unit's commands are not understood.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A build folder that was given cannot be used.
    #[error(transparent)]
    Given(GivenError),
}

/// Says of which file an error is.
pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> KbuildError + use<> {
    let path = path.to_owned();
    move |source| KbuildError::Io { path, source }
}
