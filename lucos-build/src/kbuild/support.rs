//! The support object: the part of the project that runs inside the guest, compiled with the kernel's own headers.
//!
//! Comes in: the prepared build folder and the sources that this program carries. Decided: how it is compiled: as a unit
//! that every x86-64 kernel has, with another source. Goes out: the object, kept in the build folder under the digest of
//! all that it depends on; or what the compiler says.

use super::by_hand::LIKE;
use super::command::{self, UnitCommands};
use super::{BuildFolder, KbuildError, io};
use crate::identity::Config;
use crate::request::Request;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// The sources, by name.
const SOURCES: [(&str, &str); 2] = [
    ("support.c", include_str!("../../../support/support.c")),
    ("request.h", include_str!("../../../support/request.h")),
];
/// Changes when the same sources are to be compiled otherwise.
const RECIPE: &str = "1";

/// Why there is no support object.
#[derive(Debug, thiserror::Error)]
pub enum SupportError {
    /// The command is not known, or a file cannot be used.
    #[error(transparent)]
    Kbuild(#[from] KbuildError),
    /// A program could not be started.
    #[error("cannot start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody in the guest could give memory for code.
    #[error("this kernel has no loadable modules (CONFIG_MODULES), as one of which new code would be prepared")]
    NoModules,
    /// It does not compile with this kernel's headers.
    #[error("the support object does not compile with this kernel's headers:\n{0}")]
    Compile(String),
}

/// The support object of a kernel: compiled now, or before.
///
/// # Errors
/// [`SupportError`].
pub fn object(folder: &BuildFolder, request: &Request) -> Result<PathBuf, SupportError> {
    if Config::parse(&request.config).get("CONFIG_MODULES") != Some("y") {
        return Err(SupportError::NoModules);
    }
    let unit = PathBuf::from(LIKE);
    let commands = folder.commands(request, std::slice::from_ref(&unit))?;
    let (_, commands) = commands.into_iter().next().ok_or_else(|| SupportError::Compile(format!("no {LIKE}")))?;
    let kept = folder.kept.join(format!(".lucos-support-{}", key(&commands)));
    let object = kept.join("support.o");
    if object.is_file() {
        return Ok(object);
    }
    // Made aside and moved, so that another build never sees half of it.
    let aside = tempfile::Builder::new().prefix(".lucos-support-").tempdir_in(&folder.kept);
    let aside = aside.map_err(io(&folder.kept))?;
    for (name, text) in SOURCES {
        let path = aside.path().join(name);
        fs::write(&path, text).map_err(io(&path))?;
    }
    compile(&folder.path, aside.path(), &commands)?;
    match fs::rename(aside.path(), &kept) {
        Ok(()) => {
            let _ = aside.keep(); // moved: nothing is left to be removed
        }
        Err(_) if object.is_file() => {} // another build was faster
        Err(error) => return Err(io(&kept)(error).into()),
    }
    Ok(object)
}

/// Digest of what the object depends on besides the build folder.
fn key(commands: &UnitCommands) -> String {
    let mut hash = Sha256::new();
    let words = commands.in_order().flatten().map(String::as_str);
    let sources = SOURCES.iter().flat_map(|(name, text)| [*name, *text]);
    for part in std::iter::once(RECIPE).chain(sources).chain(words) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn compile(build: &Path, folder: &Path, commands: &UnitCommands) -> Result<(), SupportError> {
    let mut commands = commands.with_source(Path::new(LIKE), &folder.join("support.c"), &folder.join("support.o"));
    // The folder must not show in the object, nor is its debug information needed.
    commands.compile.push(format!("-fmacro-prefix-map={}/=support/", folder.display()));
    commands.compile.push("-g0".to_owned());
    for words in commands.in_order() {
        let output =
            command::call(words, build).map_err(|source| SupportError::Start { program: words[0].clone(), source })?;
        if !output.status.success() {
            let said = [output.stderr, output.stdout].concat();
            let said = String::from_utf8_lossy(&said).replace(&format!("{}/", folder.display()), "support/");
            return Err(SupportError::Compile(said.trim_end().to_owned()));
        }
    }
    Ok(())
}
