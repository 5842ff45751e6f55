//! Guests that are looked into from outside while nothing of them is changed.

use super::visible_bundle;
use lpk_format::ReadBundle;
use lucos_tests::guest::{Config, Guest};
use lucos_tests::kernels::Kernel;
use lucos_tests::require;
use runtime_hv::engine::qemu::{Earlier, QemuEngine};
use runtime_hv::guest::{self, identity};

/// Ends the load; its own command line does not match.
pub(crate) const END_LOAD: &str =
    "for p in /proc/[0-9]*; do grep -q '/tmp/load[.]sh' $p/cmdline && kill ${p#/proc/}; done";

/// Runs a test on the kernel that tests boot, where it and a QEMU to attach to are there.
pub(crate) fn on_older_kernel(test: impl FnOnce(&Kernel)) {
    if require::qemu("it attaches to a QEMU")
        && let Some(kernel) = require::older_kernel()
    {
        test(&kernel);
    }
}

/// Runs a test on a kernel of another series.
pub(crate) fn on_another_series(test: impl FnOnce(&Kernel)) {
    if require::qemu("it attaches to a QEMU")
        && let Some(kernel) = require::series_kernel()
    {
        test(&kernel);
    }
}

/// Boots a guest of a kernel, and reads a bundle for it, which says what has to be known of it.
pub(crate) fn boot(config: &Config, kernel: &Kernel) -> (Guest, ReadBundle) {
    let work = tempfile::tempdir().expect("a folder");
    let bundle = std::fs::read(visible_bundle(work.path(), kernel)).expect("a bundle");
    let bundle = lpk_format::read(&bundle).expect("a good bundle");
    (Guest::under_plain_qemu(config).expect("boots"), bundle)
}

/// Attaches to a guest and finds its kernel.
pub(crate) fn attach(guest: &Guest, bundle: &ReadBundle) -> (QemuEngine, guest::Kernel) {
    let mut engine = QemuEngine::attach(guest.qmp().expect("a QMP socket"), Earlier::Unknown).expect("attaches");
    let kernel = identity::find(&mut engine, &bundle.bundle.kernel, &bundle.bundle.profile).expect("the kernel");
    (engine, kernel)
}
