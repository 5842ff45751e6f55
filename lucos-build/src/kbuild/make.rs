//! Calls of make.
//!
//! Comes in: a [`Request`], and what make is to do. Decided: which variables and flags it is called with, and whether the programs it
//! needs are there. Goes out: what make did; or the end of what it said, with advice where that is known.

use super::error::{KbuildError, io};
use crate::identity::Config;
use crate::request::Request;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

/// Sections per function and datum, so that each can be compared and moved alone.
pub(super) const KCFLAGS: &str = "KCFLAGS=-ffunction-sections -fdata-sections";
/// The same as words of a command.
pub(super) const SECTION_FLAGS: [&str; 2] = ["-ffunction-sections", "-fdata-sections"];

/// Programs that the preparation calls, and the Debian packages that have them.
const PROGRAMS: &[(&str, &str)] = &[
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("ld", "binutils"),
    ("perl", "perl"),
    ("cc", "gcc"),
];

pub(super) fn make(request: &Request, folder: &Path) -> Command {
    let mut command = Command::new("make");
    let text = |name: &str, value: &Path| {
        let mut word = std::ffi::OsString::from(name);
        word.push(value);
        word
    };
    command.arg("-C").arg(&request.source).arg(text("O=", folder)).arg(text("CC=", &request.compiler.program));
    // A distribution's release is not the Makefile's version (its number is an ABI's).
    command
        .arg(format!("KERNELRELEASE={}", request.release))
        .arg("--no-print-directory")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    for name in [
        "MAKEFLAGS",
        "MFLAGS",
        "MAKELEVEL",
        "ARCH",
        "CROSS_COMPILE",
        "KBUILD_OUTPUT",
        "KCFLAGS",
        "KCPPFLAGS",
        "KAFLAGS",
        "LLVM",
        "CC",
        "V",
    ] {
        command.env_remove(name);
    }
    command
}

pub(super) fn make_logged(request: &Request, folder: &Path, log: &Path, goals: &[&str]) -> Result<(), KbuildError> {
    let output = File::create(log).map_err(io(log))?;
    let errors = output.try_clone().map_err(io(log))?;
    let status = make(request, folder)
        .arg(format!("-j{}", request.jobs))
        .args(goals)
        .stdout(output)
        .stderr(errors)
        .status()
        .map_err(KbuildError::Start)?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read(log).map_err(io(log))?;
    let text = String::from_utf8_lossy(&text);
    let hints = [
        ("gelf.h", "; install libelf-dev"),
        ("libelf.h", "; install libelf-dev"),
        ("openssl/", "; install libssl-dev"),
        (
            "is not clean",
            "; the source tree was built in: give a clean one with --source, or run `make mrproper` in it",
        ),
    ];
    let hint =
        hints.iter().find(|(word, _)| text.contains(word)).map(|(_, hint)| (*hint).to_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(12)..].join("\n");
    Err(KbuildError::Make { what: goals.join(" "), hint, log: log.to_owned(), tail })
}

pub(super) fn check_tools(config: &Config<'_>) -> Result<(), KbuildError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    let mut wanted = PROGRAMS.to_vec();
    // Without it the configuration would lose its type information (init/Kconfig, lib/Kconfig.debug).
    if config.get("CONFIG_DEBUG_INFO_BTF") == Some("y") {
        wanted.push(("pahole", "dwarves"));
    }
    let missing: Vec<_> = wanted.into_iter().filter(|(program, _)| !there(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let (programs, packages) =
        missing.iter().map(|(program, package)| ((*program).to_owned(), (*package).to_owned())).unzip();
    Err(KbuildError::Tools { programs, packages })
}
