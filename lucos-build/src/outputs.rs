//! Files that a report is written to, besides what is printed.
//!
//! Comes in: `--report` and `--sarif`. Decided: before any work, whether they can be written. Goes out: the files, whole or
//! not at all.

use crate::args::{BuildArgs, is_stdout};
use crate::page;
use crate::report::Report;
use crate::sarif;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{option}: cannot write {}", path.display())]
pub struct OutputError {
    option: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

/// A file that will be there once it is complete.
struct Output {
    option: &'static str,
    path: PathBuf,
    file: NamedTempFile,
}

impl Output {
    fn open(option: &'static str, path: &Path) -> Result<Self, OutputError> {
        let failed = |source| OutputError { option, path: path.to_owned(), source };
        if path.is_dir() {
            return Err(failed(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new().prefix(".lucos-build-").tempfile_in(folder).map_err(failed)?;
        Ok(Self { option, path: path.to_owned(), file })
    }

    fn write(self, text: &str) -> Result<(), OutputError> {
        let Self { option, path, mut file } = self;
        let failed = |source| OutputError { option, path: path.clone(), source };
        file.write_all(text.as_bytes()).map_err(failed)?;
        // Temporary files are private; a report is as readable as any other output.
        file.as_file().set_permissions(PermissionsExt::from_mode(0o644)).map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        Ok(())
    }
}

/// What is to be written in the end.
pub struct Outputs {
    page: Option<Output>,
    sarif: Option<Output>,
}

impl Outputs {
    /// Makes sure that the files can be written.
    ///
    /// # Errors
    /// [`OutputError`] with the option whose file cannot.
    pub fn open(args: &BuildArgs) -> Result<Self, OutputError> {
        let page = args.report.as_deref().map(|path| Output::open("--report", path)).transpose()?;
        let sarif = args.sarif.as_deref().filter(|path| !is_stdout(path));
        Ok(Self { page, sarif: sarif.map(|path| Output::open("--sarif", path)).transpose()? })
    }

    /// Writes them.
    ///
    /// # Errors
    /// An [`OutputError`].
    pub fn write(self, report: Report) -> Result<Report, Box<dyn std::error::Error + Send + Sync>> {
        if let Some(output) = self.page {
            output.write(&page::render(&report))?;
        }
        if let Some(output) = self.sarif {
            output.write(&sarif::render(&report))?;
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(report: &Path) -> BuildArgs {
        BuildArgs { report: Some(report.to_owned()), ..BuildArgs::default() }
    }

    #[test]
    fn what_cannot_be_written_is_said_before_any_work() {
        let folder = tempfile::tempdir().expect("a folder");
        for path in [folder.path().to_owned(), folder.path().join("none/x.html")] {
            let error = Outputs::open(&args(&path)).err().expect("cannot be written");
            assert!(error.to_string().starts_with("--report: cannot write "), "{error}");
        }
    }

    #[test]
    fn a_build_that_fails_leaves_no_file() {
        let folder = tempfile::tempdir().expect("a folder");
        drop(Outputs::open(&args(&folder.path().join("x.html"))).expect("can be written"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
        let outputs = Outputs::open(&args(&folder.path().join("x.html"))).expect("can be written");
        outputs.write(Report::new()).expect("written");
        let names: Vec<_> = (std::fs::read_dir(folder.path()).expect("the folder"))
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(names, ["x.html"]);
    }
}
