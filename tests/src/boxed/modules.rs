//! Which modules a kernel loads, and in which order.
//!
//! Comes in: a kernel of the cache, names of modules. Decided: what a module needs comes before it, as each says itself
//! (`depends=` in its `.modinfo`, include/linux/module.h). Goes out: files, in the order in which they can be loaded.

use super::BoxError;
use crate::kernels::Kernel;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Those of the box: the serial port to the host, KVM, network interfaces for a guest. What they need comes by itself.
pub(super) const OF_THE_BOX: &[&str] = &["virtio_pci", "virtio_console", "kvm_amd", "tun"];
/// Those of a guest of the bundled hypervisor: all of its devices.
pub const OF_A_GUEST: &[&str] =
    &["virtio_mmio", "virtio_rng", "virtio_blk", "virtio_net", "vmw_vsock_virtio_transport"];
/// Those of a guest with a disk, whatever its hypervisor finds its devices by.
pub const OF_A_DISK: &[&str] = &["virtio_pci", "virtio_mmio", "virtio_rng", "virtio_blk"];
/// Folders of a kernel's modules that are looked at.
const FOLDERS: &[&str] = &[
    "arch/x86",
    "drivers/block",
    "drivers/char",
    "drivers/crypto/ccp",
    "drivers/net",
    "drivers/virtio",
    "net/core",
    "net/vmw_vsock",
    "virt",
];

/// The files of the `wanted` modules and of those that they need, in the order in which they can be loaded.
///
/// # Errors
/// [`BoxError::NoModule`] when the kernel lacks one, [`BoxError::Module`] when one cannot be read.
pub fn in_order(kernel: &Kernel, wanted: &[&str]) -> Result<Vec<PathBuf>, BoxError> {
    let mut files = BTreeMap::new();
    for folder in FOLDERS {
        collect(&kernel.module("kernel").join(folder), &mut files);
    }
    let mut order = Vec::new();
    for module in wanted {
        add(module, kernel, &files, &mut Vec::new(), &mut order)?;
    }
    Ok(order)
}

/// Modules by name; a file may have a dash where its module's name has an underscore.
fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|end| end == "ko")
            && let Some(stem) = path.file_stem()
        {
            files.insert(stem.to_string_lossy().replace('-', "_"), path);
        }
    }
}

fn add(
    module: &str,
    kernel: &Kernel,
    files: &BTreeMap<String, PathBuf>,
    needing: &mut Vec<String>,
    order: &mut Vec<PathBuf>,
) -> Result<(), BoxError> {
    let missing = || BoxError::NoModule { kernel: kernel.dir.clone(), module: module.to_owned() };
    let path = files.get(module).ok_or_else(missing)?;
    // A circle cannot be loaded by anybody; a kernel's build would have refused it.
    if order.contains(path) || needing.iter().any(|name| name == module) {
        return Ok(());
    }
    needing.push(module.to_owned());
    let bytes = std::fs::read(path).map_err(BoxError::io(path))?;
    for needed in depends(&bytes).ok_or_else(|| BoxError::Module(path.clone()))? {
        add(&needed, kernel, files, needing, order)?;
    }
    needing.pop();
    order.push(path.clone());
    Ok(())
}

/// Names of the modules that a module needs.
fn depends(elf: &[u8]) -> Option<Vec<String>> {
    use object::{Object as _, ObjectSection as _};
    let file = object::File::parse(elf).ok()?;
    let info = file.section_by_name(".modinfo")?.data().ok()?;
    let mut fields = info.split(|&byte| byte == 0);
    let list = fields.find_map(|field| field.strip_prefix(b"depends="))?;
    let names = std::str::from_utf8(list).ok()?.split(',').filter(|name| !name.is_empty());
    Some(names.map(|name| name.replace('-', "_")).collect())
}
