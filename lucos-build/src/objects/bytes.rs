//! What is new in an object, byte by byte.
//!
//! Comes in: both layouts of a type, the members that differ, the values that the author gives. Decided: which bytes belong to
//! new members, and what they hold at first: zero, or the value. Goes out: ranges of bytes, or why there are none.

use crate::report::Reason;
use diff_analyzer::dwarf_layout::{Shape, TypeLayout};
use diff_analyzer::layout_diff::MemberChange;
use lpk_format::{AddedBytes, limits};
use std::collections::{BTreeMap, BTreeSet};

/// Nesting of types beyond this is taken for a circle.
const MAX_DEPTH: usize = 64;

/// Types that are not ready for use when all of their bytes are zero (`include/linux/`: list.h, rbtree.h, plist.h, list_nulls.h,
/// wait.h, swait.h, completion.h, mutex.h, rwsem.h, semaphore.h, timer.h, hrtimer.h, workqueue.h, kobject.h, idr.h, percpu_counter.h).
const NOT_ZERO: [&str; 18] = [
    "struct list_head",
    "struct rb_node",
    "struct plist_head",
    "struct hlist_nulls_head",
    "wait_queue_head_t",
    "struct wait_queue_head",
    "struct swait_queue_head",
    "struct completion",
    "struct mutex",
    "struct rw_semaphore",
    "struct semaphore",
    "struct timer_list",
    "struct hrtimer",
    "struct work_struct",
    "struct kobject",
    "struct idr",
    "struct ida",
    "struct percpu_counter",
];

/// A part of a type: first bit, and what it is.
struct Part<'t> {
    bit: u64,
    shape: &'t Shape,
}

fn refused(message: String, help: &str) -> Box<Reason> {
    Box::new(Reason::new("override-refused", message).help(help))
}

/// Bytes of new members, in order. `inside` has the types that they are made of.
///
/// # Errors
/// `override-refused`, `override-unused`.
pub(super) fn added(
    [old, new]: &[TypeLayout; 2],
    members: &[MemberChange],
    inside: &BTreeMap<String, TypeLayout>,
    values: &BTreeMap<String, i64>,
) -> Result<Vec<AddedBytes>, Box<Reason>> {
    let taken = taken(old)?;
    let names: BTreeSet<&str> =
        members.iter().filter(|member| member.old.is_none()).map(|member| member.name.as_str()).collect();
    let mut bytes: BTreeMap<u64, u8> = BTreeMap::new();
    let leaves = new.leaves();
    let fresh: Vec<_> = leaves.iter().filter(|leaf| names.contains(leaf.path.as_str())).collect();
    for leaf in &fresh {
        let name = &leaf.path;
        let (start, size) = (leaf.member.bit_offset, leaf.member.bit_size);
        if leaf.member.bit_field || !start.is_multiple_of(8) || !size.is_multiple_of(8) {
            let message =
                format!("`{name}` is a bit-field, whose bits cannot be written without the others of their byte");
            return Err(refused(message, "make it a member of whole bytes"));
        }
        let range = start / 8..start.saturating_add(size) / 8;
        if range.end > u64::from(limits::OBJECT_SIZE) {
            let message = format!("`{name}` ends at byte {}, beyond any object of a slab cache", range.end);
            return Err(refused(message, "keep what is new elsewhere"));
        }
        if let Some(byte) = range.clone().find(|byte| taken.contains(byte)) {
            let message = format!("`{name}` shares byte {byte} with a member that the type had");
            return Err(refused(message, "give it bytes of its own"));
        }
        bytes.extend(range.map(|byte| (byte, 0)));
        let mut unready = None;
        not_ready(&leaf.member.shape, name, inside, values, 0, &mut unready);
        // What an array of structs without a name has is known by the names of the types in it.
        let embedded = || leaf.member.embeds.iter().find_map(|key| Some((name.clone(), unready_in(key, inside, 0)?)));
        let unready =
            unready.or_else(|| embedded().filter(|_| !values.keys().any(|path| rest_of(path, name).is_some())));
        if let Some((path, key)) = unready {
            let message = format!("`{path}` is a `{key}`, which is not ready for use when its bytes are zero");
            let help = format!(
                "initialise it in new code before it is used; if that is done, say so in the file beside the diff: values = {{ \"{path}\" = 0 }}"
            );
            return Err(refused(message, &help));
        }
    }
    let mut written = BTreeSet::new();
    for (path, &value) in values {
        let leaf = fresh.iter().find(|leaf| rest_of(path, &leaf.path).is_some());
        let found = leaf.and_then(|leaf| {
            let part = Part { bit: leaf.member.bit_offset, shape: &leaf.member.shape };
            part_at(part, rest_of(path, &leaf.path)?, inside, 0)
        });
        let Some(part) = found else {
            let message = format!("`values` names `{path}`, which is no new member of the type");
            return Err(Box::new(Reason::new("override-unused", message).help("correct the name, or take it out")));
        };
        let Some(encoded) = encoded(part.shape, value) else {
            let message = format!("{value} is no value of `{path}`, {}", described(part.shape));
            return Err(refused(message, "give a number that fits; only zero for pointers and structs"));
        };
        for (at, byte) in (part.bit / 8..).zip(encoded) {
            if !written.insert(at) {
                let message = format!("`values` gives byte {at} two values, one of them for `{path}`");
                return Err(refused(message, "give one of them"));
            }
            bytes.insert(at, byte);
        }
    }
    if bytes.is_empty() {
        return Err(refused("no byte of it is new".to_owned(), "take it out of the file beside the diff"));
    }
    Ok(ranges(bytes))
}

/// Bytes that members of a type have.
fn taken(old: &TypeLayout) -> Result<BTreeSet<u64>, Box<Reason>> {
    let mut taken = BTreeSet::new();
    for leaf in old.leaves() {
        if matches!(leaf.member.shape, Shape::Array(None | Some(0), _)) {
            let message = format!("`{}` has no end that is known: what lies behind it belongs to it", leaf.path);
            return Err(refused(message, "keep what is new elsewhere"));
        }
        let end = leaf.member.bit_offset.saturating_add(leaf.member.bit_size).div_ceil(8);
        taken.extend(leaf.member.bit_offset / 8..end.min(u64::from(limits::OBJECT_SIZE)));
    }
    Ok(taken)
}

/// Bytes that follow one another, together.
fn ranges(bytes: BTreeMap<u64, u8>) -> Vec<AddedBytes> {
    let mut ranges: Vec<AddedBytes> = Vec::new();
    for (at, byte) in bytes {
        match ranges.last_mut() {
            Some(last) if last.end() == at => last.bytes.push(byte),
            // An object has at most 8192 bytes.
            _ => ranges.push(AddedBytes { offset: at as u32, bytes: vec![byte] }),
        }
    }
    ranges
}

/// What is left of a path behind a member: nothing, `.inner` or `[0]`.
fn rest_of<'p>(path: &'p str, member: &str) -> Option<&'p str> {
    path.strip_prefix(member).filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The part at the end of a path: `.inner[1].x`, or nothing.
fn part_at<'t>(part: Part<'t>, path: &str, inside: &'t BTreeMap<String, TypeLayout>, depth: usize) -> Option<Part<'t>> {
    if path.is_empty() {
        return Some(part);
    }
    match part.shape {
        _ if depth > MAX_DEPTH => None,
        Shape::Named(key) => {
            let path = path.strip_prefix('.')?;
            let leaves = inside.get(key)?.leaves().into_iter();
            let (member, rest) = leaves.filter_map(|leaf| Some((leaf.member, rest_of(path, &leaf.path)?))).next()?;
            let bit = part.bit.checked_add(member.bit_offset)?;
            if member.bit_field {
                return None;
            }
            part_at(Part { bit, shape: &member.shape }, rest, inside, depth + 1)
        }
        Shape::Array(count, element) => {
            let (number, rest) = path.strip_prefix('[')?.split_once(']')?;
            let number: u64 = number.parse().ok().filter(|number| count.is_some_and(|count| *number < count))?;
            let bits = size_of(element, inside, 0)?.checked_mul(8)?;
            let bit = part.bit.checked_add(number.checked_mul(bits)?)?;
            part_at(Part { bit, shape: element }, rest, inside, depth + 1)
        }
        _ => None,
    }
}

/// Size in bytes.
fn size_of(shape: &Shape, inside: &BTreeMap<String, TypeLayout>, depth: usize) -> Option<u64> {
    match shape {
        _ if depth > MAX_DEPTH => None,
        Shape::Signed(size) | Shape::Unsigned(size) => Some(*size),
        Shape::Pointer => Some(8),
        Shape::Array(count, element) => size_of(element, inside, depth + 1)?.checked_mul((*count)?),
        Shape::Named(key) => Some(inside.get(key)?.size),
        Shape::Other(_) => None,
    }
}

/// A value as bytes; none when it does not fit. What is no number can be zero, which its bytes are already.
fn encoded(shape: &Shape, value: i64) -> Option<Vec<u8>> {
    let bits = |size: u64| u32::try_from(size.checked_mul(8)?).ok().filter(|bits| (8..=64).contains(bits));
    let (size, fits) = match shape {
        Shape::Signed(size) => {
            let above = bits(*size)? - 1;
            (*size, above == 63 || (-(1 << above)..1 << above).contains(&value))
        }
        Shape::Unsigned(size) => (*size, value >= 0 && (bits(*size)? == 64 || value >> bits(*size)? == 0)),
        _ => return (value == 0).then(Vec::new),
    };
    let size = usize::try_from(size).ok().filter(|_| fits)?;
    value.to_le_bytes().get(..size).map(<[u8]>::to_vec)
}

fn described(shape: &Shape) -> String {
    match shape {
        Shape::Signed(size) => format!("a number with a sign of {size} bytes"),
        Shape::Unsigned(size) => format!("a number without a sign of {size} bytes"),
        Shape::Pointer => "a pointer".to_owned(),
        Shape::Array(..) => "an array".to_owned(),
        Shape::Named(key) => format!("a `{key}`"),
        Shape::Other(text) => format!("a `{text}`"),
    }
}

/// The first part of a new member that zero does not make ready and of which the author does not say otherwise.
fn not_ready<'t>(
    shape: &'t Shape,
    path: &str,
    inside: &'t BTreeMap<String, TypeLayout>,
    values: &BTreeMap<String, i64>,
    depth: usize,
    found: &mut Option<(String, &'t str)>,
) {
    // An element of an array is spoken of with the whole array.
    if found.is_some() || values.contains_key(path) || depth > MAX_DEPTH {
        return;
    }
    match shape {
        Shape::Array(_, element) => not_ready(element, path, inside, values, depth + 1, found),
        Shape::Named(key) if NOT_ZERO.contains(&key.as_str()) => *found = Some((path.to_owned(), key)),
        Shape::Named(key) => {
            let leaves = inside.get(key).map(TypeLayout::leaves).unwrap_or_default();
            for leaf in leaves {
                not_ready(&leaf.member.shape, &format!("{path}.{}", leaf.path), inside, values, depth + 1, found);
            }
        }
        _ => {}
    }
}

/// A type in a type that zero does not make ready.
fn unready_in<'t>(key: &'t str, inside: &'t BTreeMap<String, TypeLayout>, depth: usize) -> Option<&'t str> {
    if NOT_ZERO.contains(&key) {
        return Some(key);
    }
    let members = inside.get(key).filter(|_| depth < MAX_DEPTH)?.leaves();
    members.into_iter().flat_map(|leaf| &leaf.member.embeds).find_map(|key| unready_in(key, inside, depth + 1))
}

#[cfg(test)]
mod tests;
