//! Programs and libraries that the tools, the kernel's build and the guests need.
//!
//! Comes in: dpkg's records. Decided: what is missing. Goes out: the machine with it installed.

use super::SetupError;
use super::apt::{Apt, output};
use std::path::Path;

/// What demo and tests need on a fresh machine.
pub const BASE: &[&str] = &[
    // guests
    "qemu-system-x86",
    "seabios",
    "busybox-static",
    "linux-perf",
    // the kernel's own build: Documentation/process/changes.rst
    "gcc",
    "make",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "dwarves",
    "cpio",
    "kmod",
    "perl",
    "python3",
    // unpacking packages
    "dpkg",
    "tar",
    "xz-utils",
];

/// What only tests need.
pub const TESTS: &[&str] = &[
    // looks at the pages of --report
    "chromium-headless-shell",
];

/// Installs those of `packages` that are missing.
///
/// # Errors
/// [`SetupError`] when dpkg-query is not there, or packages are missing and cannot be installed.
pub fn install_missing(packages: &[&str], apt: &mut Apt, say: &dyn Fn(&str)) -> Result<(), SetupError> {
    if std::env::consts::ARCH != "x86_64" {
        return Err(SetupError::NotDebian(format!("the processor is {}", std::env::consts::ARCH)));
    }
    let records = output(Path::new("/"), &["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n"])
        .map_err(|error| SetupError::NotDebian(error.to_string()))?;
    let missing = missing(packages, &records);
    if missing.is_empty() { Ok(()) } else { apt.install(&missing, say) }
}

fn missing<'a>(packages: &[&'a str], records: &str) -> Vec<&'a str> {
    let installed: std::collections::HashSet<&str> =
        records.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    packages.iter().copied().filter(|package| !installed.contains(package)).collect()
}

#[cfg(test)]
mod tests {
    use super::missing;

    #[test]
    fn removed_packages_count_as_missing() {
        let records = "installed gcc\nconfig-files flex\ninstalled bc\n";
        assert_eq!(missing(&["gcc", "flex", "bison", "bc"], records), ["flex", "bison"]);
    }
}
