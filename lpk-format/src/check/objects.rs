//! Rules of objects on the heap.
//!
//! Comes in: a [`Bundle`]. Decided: whether the variable that points to their cache lies in the kernel, whether what is new lies
//! inside an object, and whether no cache is named twice. Goes out: the first [`Problem`].

use super::{Image, Problem, in_order, limit, line};
use crate::{Bundle, ObjectPatch, UpdateType, limits};
use std::collections::BTreeSet;

/// Bytes of a pointer to a cache.
const POINTER: u64 = 8;

pub(super) fn check(bundle: &Bundle, image: Image<'_>) -> Result<(), Problem> {
    let objects = &bundle.payload.objects;
    limit("types of objects", objects.len(), limits::OBJECTS)?;
    if !objects.is_empty() && bundle.manifest.update_type != UpdateType::Type2 {
        return Err(Problem::ObjectsOfType1(objects.len()));
    }
    in_order(
        objects,
        |one| (one.cache_address, POINTER),
        |one| Problem::ObjectsOrder { cache: one.cache.clone(), address: one.cache_address },
        |one| check_one(image, one),
    )
}

/// No two parts name the same cache of the kernel image; a module's own have addresses that mean nothing elsewhere.
pub(super) fn across_parts(bundle: &Bundle, image: Image<'_>) -> Result<(), Problem> {
    let mut seen = BTreeSet::new();
    let objects = bundle.parts().flat_map(|part| &part.payload.objects);
    let in_image = objects.filter(|one| (image.text..image.end).contains(&one.cache_address));
    for one in in_image {
        if !seen.insert(one.cache_address) {
            return Err(Problem::ObjectsTwice(one.cache.clone()));
        }
    }
    Ok(())
}

fn check_one(image: Image<'_>, one: &ObjectPatch) -> Result<(), Problem> {
    line("the type of objects", &one.type_name, limits::SYMBOL_NAME_LEN)?;
    line("the cache of objects", &one.cache, limits::SYMBOL_NAME_LEN)?;
    image.check("pointer to a cache", one.cache_address, POINTER)?;
    let problem = |what| Err(Problem::Objects { type_name: one.type_name.clone(), what });
    if one.old_size == 0 || one.new_size < one.old_size || one.new_size > limits::OBJECT_SIZE {
        return problem("its objects become smaller, are empty, or are larger than 8192 bytes");
    }
    if one.added.is_empty() {
        return problem("nothing is new in its objects");
    }
    let mut follows = 0;
    for added in &one.added {
        let in_order = !added.bytes.is_empty() && u64::from(added.offset) >= follows;
        if !in_order || added.end() > u64::from(one.new_size) {
            return problem("what is new in its objects is empty, out of order, or outside");
        }
        follows = added.end();
    }
    Ok(())
}
