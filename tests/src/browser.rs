//! A browser without a window, to look at pages with.
//!
//! Comes in: a page as a file. Decided: which browser there is (headless Chromium), what it may do: nothing outside of the folder.
//! Goes out: what stands in the document after it was loaded, what the browser complained about, a picture.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Programs, the small one first.
const PROGRAMS: &[&str] = &["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];
/// A page has to be there after this time.
const LIMIT: Duration = Duration::from_secs(120);

/// A browser.
#[derive(Debug, Clone)]
pub struct Browser {
    program: PathBuf,
}

/// A page, loaded.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The document, as HTML.
    pub document: String,
    /// Messages of its console: errors of scripts, breaches of its policy.
    pub console: Vec<String>,
}

impl Browser {
    /// The one of this machine.
    ///
    /// # Errors
    /// What is missing, and the package that has it.
    pub fn find() -> Result<Self, String> {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let mut places = std::env::split_paths(&folders)
            .flat_map(|folder| PROGRAMS.iter().map(move |program| (program, folder.join(program))))
            .filter(|(_, path)| path.is_file())
            .collect::<Vec<_>>();
        places.sort_by_key(|(program, _)| PROGRAMS.iter().position(|known| known == *program));
        let found = places.into_iter().next().map(|(_, program)| Self { program });
        found.ok_or_else(|| "no Chromium is installed; package chromium-headless-shell has one".to_owned())
    }

    /// Loads a page in a window of a width; `dark` is how the person likes it.
    ///
    /// # Errors
    /// What the browser says when it cannot.
    pub fn load(&self, page: &Path, width: u32, dark: bool) -> Result<Loaded, String> {
        let (document, log) = self.run(page, (width, 1000), dark, "--dump-dom".into())?;
        let console = log.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
        Ok(Loaded { document, console })
    }

    /// Takes a picture of the upper part of a page.
    ///
    /// # Errors
    /// What the browser says when it cannot.
    pub fn picture(&self, page: &Path, size: (u32, u32), dark: bool, to: &Path) -> Result<(), String> {
        let mut option = OsString::from("--screenshot=");
        option.push(to);
        let (_, log) = self.run(page, size, dark, option)?;
        if to.is_file() { Ok(()) } else { Err(format!("{} took no picture:\n{log}", self.program.display())) }
    }

    fn run(
        &self,
        page: &Path,
        (width, height): (u32, u32),
        dark: bool,
        option: OsString,
    ) -> Result<(String, String), String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.program.display());
        let folder = tempfile::tempdir().map_err(failed)?;
        let path = |name: &str| folder.path().join(name);
        let mut profile = OsString::from("--user-data-dir=");
        profile.push(path("profile"));
        let mut command = Command::new(&self.program);
        command.args(["--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions"]);
        command.args(["--enable-logging=stderr", "--allow-file-access-from-files", "--virtual-time-budget=5000"]);
        command.arg(profile).arg(format!("--window-size={width},{height}"));
        if dark {
            command.arg("--blink-settings=preferredColorScheme=0");
        }
        if nix::unistd::geteuid().is_root() {
            // Chromium's sandbox does not run as root; the pages are our own.
            command.arg("--no-sandbox");
        }
        let mut address = OsString::from("file://");
        address.push(page);
        command.arg(option).arg(address).stdin(Stdio::null()).env("HOME", folder.path());
        let output = File::create(path("out")).map_err(failed)?;
        let log = File::create(path("log")).map_err(failed)?;
        let mut child = command.stdout(output).stderr(log).spawn().map_err(failed)?;
        let read = |name: &str| {
            std::fs::read(path(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(failed)
        };
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
            if start.elapsed() > LIMIT {
                child.kill().and_then(|()| child.wait()).map_err(failed)?;
                return Err(format!(
                    "{} did not end within {} s:\n{}",
                    self.program.display(),
                    LIMIT.as_secs(),
                    read("log")?
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        if !status.success() {
            return Err(format!("{} ended with {status}:\n{}", self.program.display(), read("log")?));
        }
        Ok((read("out")?, read("log")?))
    }
}
