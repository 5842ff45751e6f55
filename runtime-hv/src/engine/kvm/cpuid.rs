//! What a virtual processor says of itself.
//!
//! Comes in: what KVM and the host support. Decided: a package of single-threaded cores, a timer that can do without legacy
//! hardware, no virtualisation inside. Goes out: one table for each processor.

use kvm_bindings::CpuId;

/// Bits of leaf 1, ECX (Intel SDM vol. 2, table 3-10).
const VMX: u32 = 1 << 5;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the count of logical processors in EBX is valid.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX (AMD APM vol. 3, E.4.2).
const CMP_LEGACY: u32 = 1 << 1;
const SVM: u32 = 1 << 2;
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;

/// The table for processor `cpu` of `cpus`.
pub(super) fn of(supported: &CpuId, cpu: u8, cpus: u8) -> CpuId {
    let mut table = supported.clone();
    let (id, count) = (u32::from(cpu), u32::from(cpus));
    // Bits of an APIC id that number the cores of a package.
    let width = count.next_power_of_two().trailing_zeros();
    for entry in table.as_mut_slice() {
        match entry.function {
            0x1 => {
                entry.ebx = entry.ebx & 0xffff | id << 24 | count << 16;
                entry.ecx = entry.ecx & !VMX | TSC_DEADLINE | HYPERVISOR;
                entry.edx = if cpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            // Caches: no two processors share one (bits 14 to 25), and the package has this many cores (26 to 31).
            0x4 if entry.eax & 0x1f != 0 => entry.eax = entry.eax & 0x3fff | (count - 1).min(63) << 26,
            // Level 0: threads of a core; level 1: cores of the package; EDX: the APIC id (Intel SDM vol. 2, leaf 0BH).
            0xb | 0x1f => {
                (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                    0 => (0, 1, 1 << 8),
                    1 => (width, count, 2 << 8 | 1),
                    level => (0, 0, level),
                };
                entry.edx = id;
            }
            0x8000_0001 => {
                entry.ecx &= !(SVM | TOPOLOGY_EXTENSIONS | CMP_LEGACY);
                if cpus > 1 {
                    entry.ecx |= CMP_LEGACY;
                }
            }
            // Cores of the package less one, and the width of their number (AMD APM vol. 3, E.4.7).
            0x8000_0008 => entry.ecx = width << 12 | (count - 1),
            _ => {}
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    #[test]
    fn every_processor_has_its_own_number_and_none_can_virtualise() {
        let entry = |function, index, ecx| kvm_cpuid_entry2 { function, index, ecx, ..kvm_cpuid_entry2::default() };
        let supported = [entry(1, 0, VMX), entry(0xb, 0, 0), entry(0xb, 1, 0), entry(0x8000_0001, 0, SVM)];
        let supported = CpuId::from_entries(&supported).expect("a short table");
        let table = of(&supported, 2, 3);
        let [one, threads, cores, amd] = table.as_slice() else { panic!("four entries") };
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff, one.ecx & VMX), (2, 3, 0));
        assert_eq!((threads.eax, threads.ebx, threads.edx), (0, 1, 2));
        assert_eq!((cores.eax, cores.ebx, cores.edx), (2, 3, 2));
        assert_eq!(amd.ecx, CMP_LEGACY);
        assert_eq!(of(&supported, 0, 1).as_slice()[0].edx & HTT, 0);
    }
}
