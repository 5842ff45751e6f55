//! Programs that run inside of guests: of our own, compiled when a test needs them, and of this machine, with their libraries.
//!
//! Comes in: a source of `testdata/guest`, or a program's name. Decided: ours are linked statically, because a guest has no
//! libraries; the others bring theirs. Goes out: the files, or what the compiler says, or what is missing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What QEMU loads into a guest that starts with a kernel of the host: firmware, the kernel's starter, and help for its local APIC.
pub const QEMU_LOADS: [&str; 3] =
    ["/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/kvmvapic.bin"];

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

/// A program of this machine, and the libraries that it loads; [`start_of`] is how it is called in a guest that has all of them.
///
/// # Errors
/// What is missing, and the package that has it.
pub fn with_libraries(name: &str, package: &str) -> Result<Vec<PathBuf>, String> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let program = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file());
    let program = program.ok_or_else(|| format!("{name} is not installed; package {package} has it"))?;
    let output = Command::new("ldd").arg(&program).output().map_err(|error| format!("ldd: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        return Err(format!("{}: {}", program.display(), line.trim()));
    }
    // `NAME => PATH (ADDRESS)`; the loader has its path alone.
    let libraries = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(std::iter::once(program.clone()).chain(libraries.map(PathBuf::from)).collect())
}

/// How a program that came with its libraries is called in the guest.
pub fn start_of(name: &str) -> String {
    format!("LD_LIBRARY_PATH=/files /files/ld-linux-x86-64.so.2 /files/{name}")
}
