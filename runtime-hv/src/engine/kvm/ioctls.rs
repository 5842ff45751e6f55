//! Requests to the host's kernel that no crate offers as safe functions.
//!
//! Comes in: open files and whole structures. Decided: nothing. Goes out: what the kernel says. Together with `memory` this is
//! all unsafe code of the hypervisor.
#![allow(unsafe_code)]

use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;
use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::os::fd::AsRawFd as _;

mod raw {
    #![allow(missing_docs)]
    use nix::libc;

    nix::ioctl_write_ptr_bad!(tun_set_interface, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_ptr_bad!(tun_set_header_size, libc::TUNSETVNETHDRSZ, libc::c_int);
    nix::ioctl_write_int_bad!(tun_set_offloads, libc::TUNSETOFFLOAD);
}

/// Gives a processor the vector registers that it once had.
///
/// # Errors
/// Of `KVM_SET_XSAVE`.
pub(super) fn set_vectors(processor: &VcpuFd, vectors: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM_SET_XSAVE reads the fixed 4 KiB of `kvm_xsave`; a guest with more state than that would need dynamically
    // enabled features (AMX), which this machine does not offer, since nobody asks for them (arch_prctl,
    // ARCH_REQ_XCOMP_GUEST_PERM).
    unsafe { processor.set_xsave(vectors) }
}

/// Connects an open `/dev/net/tun` with the TAP interface of a name; each frame has a virtio header in front. The name is cut off
/// after 15 bytes.
///
/// # Errors
/// Of `TUNSETIFF` (`drivers/net/tun.c`).
pub(super) fn set_interface(tun: &File, name: &str) -> Result<(), Errno> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        },
    };
    for (to, byte) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = byte as libc::c_char;
    }
    // SAFETY: the descriptor is open; TUNSETIFF reads and writes one `struct ifreq`, and `request` is a whole one that outlives
    // the call.
    unsafe { raw::tun_set_interface(tun.as_raw_fd(), &raw const request) }.map(drop)
}

/// Says how long the header in front of each frame is, in bytes.
///
/// # Errors
/// Of `TUNSETVNETHDRSZ`.
pub(super) fn set_header_size(tun: &File, bytes: usize) -> Result<(), Errno> {
    let size = libc::c_int::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the descriptor is open; TUNSETVNETHDRSZ reads one `int`, and `size` outlives the call.
    unsafe { raw::tun_set_header_size(tun.as_raw_fd(), &raw const size) }.map(drop)
}

/// Says what work on frames may be left to whoever reads them (`TUN_F_*`).
///
/// # Errors
/// Of `TUNSETOFFLOAD`.
pub(super) fn set_offloads(tun: &File, flags: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: the descriptor is open; TUNSETOFFLOAD takes its flags by value.
    unsafe { raw::tun_set_offloads(tun.as_raw_fd(), flags as libc::c_int) }.map(drop)
}
