//! The two commands of the project, called as a user calls them.
//!
//! Comes in: arguments. Decided: where the programs are (`LUCOS_BIN_DIR`, or beside the running test), how long they
//! may take. Goes out: [`Outcome`]: exit status, the JSON of standard output, what was said to people, time taken.

use serde_json::Value;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Why a command could not be run at all.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program was not built.
    #[error("{0} does not exist; `cargo build --release` makes it (`cargo xtask test` does so by itself)")]
    Missing(PathBuf),
    /// It took too long and was ended.
    #[error("`{command}` did not end within {seconds} s; it said:\n{stderr}")]
    Timeout {
        /// The command line.
        command: String,
        /// The limit.
        seconds: u64,
        /// What it had said.
        stderr: String,
    },
    /// The system refused.
    #[error("running a command: {0}")]
    Io(#[from] std::io::Error),
}

/// What a command gave.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// Exit status; -1 when a signal ended it.
    pub status: i32,
    /// Standard output as JSON, or null.
    pub json: Value,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Wall time in milliseconds.
    pub wall_ms: u128,
}

impl Outcome {
    /// A string in the JSON, by pointer (`/error/reason`); empty when there is none.
    pub fn text(&self, pointer: &str) -> &str {
        self.json.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number in the JSON, by pointer; 0 when there is none.
    pub fn number(&self, pointer: &str) -> f64 {
        self.json.pointer(pointer).and_then(Value::as_f64).unwrap_or_default()
    }

    /// The elements of an array in the JSON, by pointer.
    pub fn items(&self, pointer: &str) -> &[Value] {
        self.json.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    /// Everything a person needs to see when the outcome is not the expected one.
    pub fn describe(&self) -> String {
        format!("`{}` ended with {}\n{}\n{}", self.command, self.status, self.stdout.trim(), self.stderr.trim())
    }
}

/// The folder cargo builds in: that of the running program.
///
/// # Errors
/// [`CommandError::Io`] when the running program's path is not known.
pub fn target_dir() -> Result<PathBuf, CommandError> {
    let own = std::env::current_exe()?;
    let profile_dir = own
        .ancestors()
        .skip(1)
        .find(|dir| !dir.ends_with("deps") && !dir.ends_with("examples"))
        .unwrap_or(Path::new("."));
    Ok(profile_dir.parent().unwrap_or(profile_dir).to_owned())
}

static BIN_DIR: OnceLock<PathBuf> = OnceLock::new();

/// Says where the programs are, for a caller that has just built them. The first call counts.
pub fn set_bin_dir(dir: &Path) {
    let _ = BIN_DIR.set(dir.to_owned());
}

/// The folder that has the project's programs.
///
/// # Errors
/// [`CommandError::Io`] when the running program's path is not known.
pub fn bin_dir() -> Result<PathBuf, CommandError> {
    if let Some(dir) = BIN_DIR.get().cloned().or_else(|| std::env::var_os("LUCOS_BIN_DIR").map(PathBuf::from)) {
        return Ok(dir);
    }
    let own = std::env::current_exe()?;
    let dir = own.parent().unwrap_or(Path::new("."));
    Ok(if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_owned() } else { dir.to_owned() })
}

/// Path of one of the project's programs.
///
/// # Errors
/// [`CommandError::Missing`] when it has not been built.
pub fn program(name: &str) -> Result<PathBuf, CommandError> {
    let path = bin_dir()?.join(name);
    if path.exists() { Ok(path) } else { Err(CommandError::Missing(path)) }
}

/// Runs a program to its end.
///
/// # Errors
/// [`CommandError`] when it cannot be started or does not end in time.
pub fn run<S: AsRef<OsStr>>(program: &Path, args: &[S], limit: Duration) -> Result<Outcome, CommandError> {
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
    let line = format!("{command:?}").replace('"', "");
    let start = Instant::now();
    let mut child = command.spawn()?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Err(CommandError::Timeout { command: line, seconds: limit.as_secs(), stderr: contents(&mut err)? });
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let wall_ms = start.elapsed().as_millis();
    let stdout = contents(&mut out)?;
    Ok(Outcome {
        command: line,
        status: status.code().unwrap_or(-1),
        json: serde_json::from_str(&stdout).unwrap_or(Value::Null),
        stderr: contents(&mut err)?,
        stdout,
        wall_ms,
    })
}

fn contents(file: &mut File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs `lucos-build … --json`.
///
/// # Errors
/// [`CommandError`] when it cannot be started or takes more than ten minutes (the first build of a kernel prepares its
/// build folder).
pub fn lucos_build<S: AsRef<OsStr>>(args: &[S]) -> Result<Outcome, CommandError> {
    let mut all: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
    all.push(OsStr::new("--json"));
    run(&program("lucos-build")?, &all, Duration::from_secs(600))
}

/// Builds a bundle from a diff against a kernel's `vmlinux`, everything else found by convention.
///
/// # Errors
/// [`CommandError`], see [`lucos_build`].
pub fn build_bundle(diff: &Path, vmlinux: &Path, out: &Path) -> Result<Outcome, CommandError> {
    lucos_build(&[diff.as_os_str(), OsStr::new("--vmlinux"), vmlinux.as_os_str(), OsStr::new("-o"), out.as_os_str()])
}

/// The client side of `lucos-hv` for one control socket.
#[derive(Debug, Clone)]
pub struct Hv {
    api: PathBuf,
}

impl Hv {
    /// Talks to the service at `api`.
    pub fn new(api: &Path) -> Self {
        Self { api: api.to_owned() }
    }

    /// Runs `lucos-hv WORD [ARG] --api … --json`.
    ///
    /// # Errors
    /// [`CommandError`] when it cannot be started or takes more than two minutes.
    pub fn call(&self, word: &str, arg: Option<&OsStr>) -> Result<Outcome, CommandError> {
        let mut args = vec![OsStr::new(word)];
        args.extend(arg);
        args.extend([OsStr::new("--api"), self.api.as_os_str(), OsStr::new("--json")]);
        run(&program("lucos-hv")?, &args, Duration::from_secs(120))
    }

    /// Applies a bundle.
    ///
    /// # Errors
    /// See [`Hv::call`].
    pub fn apply(&self, bundle: &Path) -> Result<Outcome, CommandError> {
        self.call("apply", Some(bundle.as_os_str()))
    }

    /// Applies a bundle in memory that the guest does not use.
    ///
    /// # Errors
    /// See [`Hv::call`].
    pub fn apply_in_arena(&self, bundle: &Path) -> Result<Outcome, CommandError> {
        self.apply_with(bundle, "--in-arena")
    }

    /// Applies a bundle and leaves kernel threads that sleep in old code there.
    ///
    /// # Errors
    /// See [`Hv::call`].
    pub fn apply_stay(&self, bundle: &Path) -> Result<Outcome, CommandError> {
        self.apply_with(bundle, "--stay")
    }

    fn apply_with(&self, bundle: &Path, option: &str) -> Result<Outcome, CommandError> {
        let api = self.api.as_os_str();
        let words = ["apply", option, "--json", "--api"].map(OsStr::new);
        let args: Vec<&OsStr> = words.into_iter().chain([api, bundle.as_os_str()]).collect();
        run(&program("lucos-hv")?, &args, Duration::from_secs(120))
    }

    /// Sends bytes to the service as if they were a bundle, past the client's own check; its answer.
    ///
    /// # Errors
    /// [`CommandError::Io`] when the service does not answer.
    pub fn apply_unchecked(&self, bytes: &[u8]) -> Result<Value, CommandError> {
        let mut stream = UnixStream::connect(&self.api)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        writeln!(stream, "{{\"op\":\"apply\",\"size\":{}}}", bytes.len())?;
        // A service that refuses early closes before it has taken everything: its answer still counts.
        let _ = stream.write_all(bytes);
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line).unwrap_or(Value::String(line)))
    }

    /// Takes a bundle back.
    ///
    /// # Errors
    /// See [`Hv::call`].
    pub fn undo(&self, name: &str) -> Result<Outcome, CommandError> {
        self.call("undo", Some(OsStr::new(name)))
    }

    /// Lists bundles.
    ///
    /// # Errors
    /// See [`Hv::call`].
    pub fn list(&self) -> Result<Outcome, CommandError> {
        self.call("list", None)
    }

    /// Shows one bundle.
    ///
    /// # Errors
    /// See [`Hv::call`].
    pub fn show(&self, name: &str) -> Result<Outcome, CommandError> {
        self.call("show", Some(OsStr::new(name)))
    }
}
