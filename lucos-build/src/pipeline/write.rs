//! The last phase: the bundle becomes a file.
//!
//! Comes in: a bundle. Decided: that the file reads back as it. Goes out: the file, which has its name only when it is whole.

use super::Stop;
use crate::args::BuildArgs;
use crate::progress::Progress;
use crate::report::{Report, millis};
use lpk_format::Bundle;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A bundle that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The plan is not a sound bundle: a fault of this program.
    #[error("internal error: the bundle is not sound")]
    Write(#[source] lpk_format::WriteError),
    /// The file does not read back: a fault of this program.
    #[error("internal error: the bundle does not read back")]
    ReadBack(#[source] lpk_format::ReadError),
    /// The file reads back as something else: a fault of this program.
    #[error("internal error: the bundle reads back as something else than was meant")]
    Different,
    /// The file system.
    #[error("cannot write {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// 10. Writes a bundle, and reads it back.
pub(super) fn write(args: &BuildArgs, bundle: &Bundle, report: &mut Report, progress: &Progress) -> Result<(), Stop> {
    let clock = Instant::now();
    progress.phase("writing the bundle");
    let path = args.bundle_path();
    write_bundle(bundle, &path).map_err(Stop::failed)?;
    report.bundle = Some(path);
    report.timings_ms.write = millis(clock.elapsed());
    Ok(())
}

/// Writes a bundle beside its place, reads it back, and moves it there only when it is what was meant.
fn write_bundle(bundle: &Bundle, path: &Path) -> Result<(), BundleError> {
    let io = |source| BundleError::Io { path: path.to_owned(), source };
    let bytes = lpk_format::write(bundle).map_err(BundleError::Write)?;
    let read = lpk_format::read(&bytes).map_err(BundleError::ReadBack)?;
    if read.bundle != *bundle {
        return Err(BundleError::Different);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".lucos-build-").tempfile_in(folder).map_err(io)?;
    std::io::Write::write_all(&mut file, &bytes).map_err(io)?;
    // Temporary files are private; a bundle is as readable as any other output.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(open).map_err(io)?;
    file.persist(path).map_err(|error| io(error.error))?;
    Ok(())
}
