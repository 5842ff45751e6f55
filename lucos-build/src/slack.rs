//! Room behind objects of the heap.
//!
//! Comes in: a type to which members are added and whose objects are, by the author's word, allocations of their own. Decided: whether
//! what is new lies in bytes that each of them has already. Goes out: what is said of it, or why not.
//!
//! The kernel's allocator rounds up: an object of `kmalloc` has as many bytes as the smallest size of its list that holds it
//! (`mm/slab_common.c`, `kmalloc_info`; `include/linux/slab.h`, `__kmalloc_index`).

use crate::overrides::TypeOverride;
use crate::report::Reason;
use diff_analyzer::classify::TypeFinding;

/// Sizes between the powers of two, where the smallest one is as small as on x86.
const BETWEEN: [u64; 2] = [96, 192];
/// The smallest allocation, in bytes (`KMALLOC_MIN_SIZE`).
const LEAST: u64 = 8;
/// What is larger is made of whole pages (`KMALLOC_MAX_CACHE_SIZE`).
const MOST: u64 = 8192;

/// Bytes that an allocation of `size` bytes has; none when it is no object of a slab.
pub fn of_kmalloc(size: u64) -> Option<u64> {
    if size > MOST {
        return None;
    }
    let power = size.max(LEAST).next_power_of_two();
    BETWEEN.into_iter().chain([power]).filter(|have| *have >= size).min()
}

/// What becomes of the objects of a type that are allocated one by one.
///
/// # Errors
/// `override-refused`: the strategy cannot be followed.
pub fn in_slack(finding: &TypeFinding, said: &TypeOverride) -> Result<String, Box<Reason>> {
    let (old, new) = (finding.change.old_size, finding.change.new_size);
    let refused = |message: String, help: &str| Err(Box::new(Reason::new("override-refused", message).help(help)));
    if said.cache.is_some() || !said.values.is_empty() {
        let message = format!(
            "{}: `cache` and `values` mean nothing for objects of kmalloc, which are not looked for",
            finding.message
        );
        return refused(message, "leave them out, or say objects = \"cache\" if the objects are of a slab cache");
    }
    if finding.rule != "type-additive" {
        let message =
            format!("{}: its objects cannot stay in place: what they had does not keep its place", finding.message);
        return refused(message, "put what is new behind the members that the type has");
    }
    match of_kmalloc(old) {
        None => refused(
            format!("{}: objects of {old} bytes have pages of their own", finding.message),
            "keep what is new elsewhere",
        ),
        Some(have) if new > have => {
            let message = format!("{}: each of its objects has {have} bytes, and {new} are needed", finding.message);
            refused(message, "keep what is new elsewhere, or make it smaller")
        }
        Some(have) => Ok(format!("in place: {new} of the {have} bytes that each object has")),
    }
}

#[cfg(test)]
mod tests {
    use super::of_kmalloc;

    #[test]
    fn allocations_have_the_sizes_of_the_kernels_list() {
        for (size, have) in
            [(1, 8), (8, 8), (9, 16), (65, 96), (96, 96), (97, 128), (129, 192), (193, 256), (216, 256), (8192, 8192)]
        {
            assert_eq!(of_kmalloc(size), Some(have), "{size}");
        }
        assert_eq!(of_kmalloc(8193), None);
    }
}
