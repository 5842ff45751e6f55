//! Programs of our own that run inside of guests, compiled when a test needs them.
//!
//! Comes in: a source of `testdata/guest`. Decided: it is linked statically, because a guest has no libraries. Goes out: the
//! program, or what the compiler says.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles `NAME.c` into a folder.
///
/// # Errors
/// What is missing, or what the compiler says.
pub fn compile(name: &str, dir: &Path) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/guest").join(format!("{name}.c"));
    let program = dir.join(name);
    let mut command = Command::new("gcc");
    command.args(["-Wall", "-Wextra", "-Werror", "-O2", "-static", "-o"]).arg(&program).arg(&source);
    let output = command.output().map_err(|error| format!("gcc: {error}; install gcc and libc6-dev"))?;
    if output.status.success() {
        Ok(program)
    } else {
        Err(format!("{}: {}", source.display(), String::from_utf8_lossy(&output.stderr)))
    }
}
