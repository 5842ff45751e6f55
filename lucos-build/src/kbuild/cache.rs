//! Where prepared build folders are kept.
//!
//! Comes in: a [`Request`], the environment. Decided: everything that a prepared folder depends on. Goes out: the root of the
//! cache, and a key per kernel.

use super::error::{KbuildError, io};
use crate::request::Request;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::PathBuf;

/// Changes when the same inputs are to be prepared otherwise.
const RECIPE: &str = "2";

/// `$LUCOS_CACHE`, `$XDG_CACHE_HOME/lucos` or `~/.cache/lucos`.
pub(super) fn cache_root() -> Result<PathBuf, KbuildError> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = set("LUCOS_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("lucos")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/lucos")))
        .ok_or(KbuildError::NoCache)?;
    std::path::absolute(&root).map_err(io(&root))
}

/// Everything that the prepared folder depends on.
pub(super) fn key(request: &Request) -> Result<String, KbuildError> {
    let makefile = request.source.join("Makefile");
    let text = fs::read(&makefile).map_err(io(&makefile))?;
    let mut hash = Sha256::new();
    let parts: [&[u8]; 8] = [
        RECIPE.as_bytes(),
        &request.build_id,
        request.release.as_bytes(),
        request.config.as_bytes(),
        request.source.as_os_str().as_encoded_bytes(),
        &text,
        request.compiler.version.as_bytes(),
        request.compiler.program.as_os_str().as_encoded_bytes(),
    ];
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}
