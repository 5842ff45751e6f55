//! Whether a test can run here: a missing kernel or program skips it with the reason, or fails it where all are required.
//!
//! Comes in: `LUCOS_TEST_KERNEL` (the older kernel's `vmlinuz` in the cache), `LUCOS_TEST_NEWER` (the newer one's),
//! `LUCOS_TEST_SERIES` (that of another series), `LUCOS_REQUIRE_ALL`. Decided: run, skip or fail. Goes out: the kernel, or nothing after the reason was printed.

use crate::guest::Engine;
use crate::kernels::{self, Kernel};
use crate::known_state::{self, KnownState};
use crate::selfbuilt::{RECIPES, SelfBuilt};
use std::path::{Path, PathBuf};

/// The kernel behind a variable that names its image, or the reason why there is none.
fn kernel_from(variable: &str) -> Result<Kernel, String> {
    let image = std::env::var_os(variable).map(PathBuf::from).ok_or_else(|| {
        format!("{variable} is not set; `cargo xtask test` sets it, `cargo xtask series` that of another series")
    })?;
    let dir = image.parent().unwrap_or(Path::new("."));
    Kernel::open(dir).map_err(|error| format!("{variable}: {error}"))
}

/// Passes `found` on; when it is a reason instead, prints it and skips, or fails if everything is required.
///
/// # Panics
/// When `LUCOS_REQUIRE_ALL=1` and something is missing: the test fails with that reason.
pub fn or_skip<T>(found: Result<T, String>) -> Option<T> {
    match found {
        Ok(value) => Some(value),
        Err(reason) => {
            let required = std::env::var_os("LUCOS_REQUIRE_ALL").is_some_and(|value| value == "1");
            assert!(!required, "LUCOS_REQUIRE_ALL=1, but: {reason}");
            eprintln!("SKIPPED: {reason}");
            None
        }
    }
}

/// The kernel that tests boot and update.
pub fn older_kernel() -> Option<Kernel> {
    or_skip(kernel_from("LUCOS_TEST_KERNEL"))
}

/// A kernel of another series than that of [`older_kernel`].
pub fn series_kernel() -> Option<Kernel> {
    or_skip(kernel_from("LUCOS_TEST_SERIES"))
}

/// A kernel that was built here, by the name of its recipe.
pub fn selfbuilt(name: &str) -> Option<SelfBuilt> {
    let kernel = older_kernel()?;
    let found = || {
        let cache = kernels::cache_dir().map_err(|error| error.to_string())?;
        let recipe = RECIPES.iter().find(|recipe| recipe.name == name).ok_or(format!("no recipe {name}"))?;
        let missing = || format!("kernel {name} is not built; `cargo xtask setup` builds it");
        recipe.built(&cache, &kernel).ok_or_else(missing)
    };
    or_skip(found())
}

/// The module of known state, compiled for the kernel that tests boot.
pub fn known_state() -> Option<(Kernel, KnownState)> {
    let kernel = older_kernel()?;
    let found = || {
        let cache = kernels::cache_dir().map_err(|error| error.to_string())?;
        let known = known_state::find(&cache, &kernel).map_err(|error| error.to_string())?;
        known.ok_or_else(|| "the module of known state is not compiled; `cargo xtask setup` does it".to_owned())
    };
    let known = or_skip(found())?;
    Some((kernel, known))
}

/// The next release, for tests that need a wrong kernel.
pub fn newer_kernel() -> Option<Kernel> {
    or_skip(kernel_from("LUCOS_TEST_NEWER"))
}

/// Whether the tests run on QEMU's emulation; a test that is about it is skipped on the other engine, with the reason. That is no
/// missing piece, so it is never a failure.
///
/// # Panics
/// When `LUCOS_TEST_ENGINE` names no engine.
pub fn qemu(because: &str) -> bool {
    let engine = Engine::wanted().unwrap_or_else(|error| panic!("{error}"));
    if engine != Engine::Qemu {
        eprintln!("SKIPPED on this engine: {because}");
    }
    engine == Engine::Qemu
}

/// Whether tests run with the bundled hypervisor; a test that has no meaning otherwise says why.
///
/// # Panics
/// When the variables that choose an engine are wrong.
pub fn kvm(because: &str) -> bool {
    let engine = Engine::wanted().unwrap_or_else(|error| panic!("{error}"));
    let is_kvm = matches!(engine, Engine::Kvm | Engine::KvmInBox);
    if !is_kvm {
        eprintln!("SKIPPED on this engine: {because}");
    }
    is_kvm
}

/// Whether the engine tells of writes and reports of the guest; a test that needs it is skipped on one that cannot, with the
/// reason. That is no missing piece, so it is never a failure.
///
/// # Panics
/// When the variables that choose an engine are wrong.
pub fn watches(because: &str) -> bool {
    let engine = Engine::wanted().unwrap_or_else(|error| panic!("{error}"));
    if !engine.watches() {
        eprintln!("SKIPPED on this engine: {because}");
    }
    engine.watches()
}

/// Whether the tests run on the bundled hypervisor in the box; a test that is about it there is skipped elsewhere, with the reason.
/// That is no missing piece, so it is never a failure.
///
/// # Panics
/// When `LUCOS_TEST_ENGINE` names no engine.
pub fn kvm_in_box(because: &str) -> bool {
    let engine = Engine::wanted().unwrap_or_else(|error| panic!("{error}"));
    if engine != Engine::KvmInBox {
        eprintln!("SKIPPED unless LUCOS_TEST_ENGINE=kvm: {because}");
    }
    engine == Engine::KvmInBox
}
