//! Where overlays and objects of a build go.
//!
//! Comes in: the folder of `--keep-dir`, if one was typed. Decided: that it is empty or new. Goes out: that folder, or a temporary
//! one.

use std::path::{Path, PathBuf};

/// A folder for the work cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// It has something in it.
    #[error("{} is not empty; --keep-dir needs an empty or new folder", .0.display())]
    NotEmpty(PathBuf),
    /// It cannot be made.
    #[error("cannot make the work folder {}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Where overlays and objects go.
pub(super) enum Work {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Work {
    pub(super) fn new(kept: Option<&Path>) -> Result<Self, WorkError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| WorkError::Io { path, source }
        };
        let Some(path) = kept else {
            let folder = tempfile::Builder::new().prefix("lucos-build-").tempdir();
            return folder.map(Self::Temporary).map_err(at(&std::env::temp_dir()));
        };
        std::fs::create_dir_all(path).map_err(at(path))?;
        if std::fs::read_dir(path).map_err(at(path))?.next().is_some() {
            return Err(WorkError::NotEmpty(path.to_owned()));
        }
        path.canonicalize().map(Self::Kept).map_err(at(path))
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }
}
