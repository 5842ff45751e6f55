//! apt and dpkg as functions.
//!
//! Comes in: command lines. Decided: the lists are refreshed once, and not again for half a day. Goes out: what they
//! print, or an error with it.

use super::SetupError;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How old package lists may be.
const FRESH: Duration = Duration::from_secs(12 * 3600);
/// A dead network must not hold up a machine whose cache is complete.
const LIMITS: &[&str] =
    &["-o", "Acquire::http::Timeout=30", "-o", "Acquire::https::Timeout=30", "-o", "Acquire::Retries=2"];

/// Access to the package system.
#[derive(Debug)]
pub struct Apt {
    stamp: PathBuf,
    root: Root,
}

/// How root rights are had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Root {
    Already,
    Sudo,
    None,
}

impl Apt {
    /// Looks how root rights can be had; the time of the last refresh is kept in `cache`.
    pub fn new(cache: &Path) -> Self {
        let root = if nix::unistd::geteuid().is_root() {
            Root::Already
        } else if Command::new("sudo").args(["-n", "true"]).output().is_ok_and(|output| output.status.success()) {
            Root::Sudo
        } else {
            Root::None
        };
        Self { stamp: cache.join("apt-lists-refreshed"), root }
    }

    /// Whether packages can be installed.
    pub fn is_root(&self) -> bool {
        self.root != Root::None
    }

    /// Refreshes the package lists if they are old. A failure is told, not fatal: the lists there may do.
    pub fn refresh(&mut self, say: &dyn Fn(&str)) {
        let fresh = std::fs::metadata(&self.stamp)
            .and_then(|meta| meta.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age < FRESH));
        if fresh {
            return;
        }
        if !self.is_root() {
            say("package lists: not refreshed, that needs root");
            return;
        }
        say("package lists: apt-get update");
        match self.privileged(&["apt-get", "update", "-q"]) {
            Ok(_) => {
                if let Err(error) = std::fs::write(&self.stamp, "") {
                    say(&format!("{}: {error}", self.stamp.display()));
                }
            }
            Err(error) => say(&format!("package lists: {error}; going on with those of this machine")),
        }
    }

    /// Installs packages.
    ///
    /// # Errors
    /// [`SetupError::NeedRoot`] without root rights, [`SetupError::Command`] when apt-get fails.
    pub fn install(&mut self, packages: &[&str], say: &dyn Fn(&str)) -> Result<(), SetupError> {
        let line = format!("apt-get install --no-install-recommends -y {}", packages.join(" "));
        if !self.is_root() {
            return Err(SetupError::NeedRoot { line: format!("sudo sh -c 'apt-get update && {line}'") });
        }
        self.refresh(say);
        say(&format!("installing: {}", packages.join(" ")));
        let mut args =
            vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y", "--no-install-recommends"];
        args.extend(packages);
        self.privileged(&args).map(|_| ())
    }

    /// Runs `apt-get`, with the limits for a dead network, as root.
    pub(super) fn privileged(&self, args: &[&str]) -> Result<String, SetupError> {
        let mut all = if self.root == Root::Sudo { vec!["sudo", "-n"] } else { Vec::new() };
        all.extend(args);
        if let Some(at) = all.iter().position(|word| *word == "apt-get") {
            all.splice(at + 1..at + 1, LIMITS.iter().copied());
        }
        output(Path::new("/"), &all)
    }

    /// Downloads one package of one version into `into`.
    ///
    /// # Errors
    /// [`SetupError::Command`] when apt-get fails.
    pub fn download(package: &str, version: &str, into: &Path) -> Result<(), SetupError> {
        let wanted = format!("{package}={version}");
        let mut args = vec!["apt-get"];
        args.extend(LIMITS);
        args.extend(["-q", "-o", "APT::Sandbox::User=root", "download", &wanted]);
        output(into, &args).map(|_| ())
    }
}

/// Runs a program in a folder; gives its standard output.
///
/// # Errors
/// [`SetupError::Command`] when it cannot be started or fails.
pub fn output(dir: &Path, args: &[&str]) -> Result<String, SetupError> {
    let failed = |status: String, output: String| SetupError::Command { command: args.join(" "), status, output };
    let [program, rest @ ..] = args else { return Err(failed("no program".to_owned(), String::new())) };
    let result = Command::new(program)
        .args(rest)
        .current_dir(dir)
        .env("LC_ALL", "C.UTF-8")
        .output()
        .map_err(|error| failed(error.to_string(), String::new()))?;
    let stdout = String::from_utf8_lossy(&result.stdout).into_owned();
    if result.status.success() {
        Ok(stdout)
    } else {
        Err(failed(result.status.to_string(), stdout + &String::from_utf8_lossy(&result.stderr)))
    }
}
