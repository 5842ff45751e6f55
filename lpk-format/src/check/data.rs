//! Rules of changed data.
//!
//! Comes in: a [`Bundle`]. Decided: whether each changed datum lies in the kernel and has its new contents in the payload, and
//! whether everything written or carried lies inside. Goes out: the first [`Problem`].

use super::{Image, Problem, in_order, limit, line};
use crate::{Bundle, DataChange, DataPatch, SectionKind, Step, StepKind, UpdateType, limits};
use std::ops::Range;

pub(super) fn check(bundle: &Bundle, image: Image<'_>) -> Result<(), Problem> {
    let data = &bundle.payload.changed;
    limit("changed data", data.len(), limits::CHANGED_DATA)?;
    if !data.is_empty() && bundle.manifest.update_type != UpdateType::Type2 {
        return Err(Problem::DataOfType1(data.len()));
    }
    in_order(
        data,
        |datum| (datum.old_address, datum.old_size.into()),
        |datum| Problem::DataOrder { name: datum.name.clone(), address: datum.old_address },
        |datum| one(bundle, image, datum),
    )
}

fn one(bundle: &Bundle, image: Image<'_>, datum: &DataPatch) -> Result<(), Problem> {
    line("the name of a changed datum", &datum.name, limits::SYMBOL_NAME_LEN)?;
    line("the unit of a changed datum", &datum.unit, limits::PATH_LEN)?;
    image.check("changed datum", datum.old_address, u64::from(datum.old_size))?;
    let problem = |what| Err(Problem::Datum { name: datum.name.clone(), what });
    let (old, new) = (datum.old_size, datum.new_size);
    let inside = datum.new_offset.checked_add(new).is_some_and(|end| end <= bundle.payload.size_of(datum.section));
    if datum.section == SectionKind::Text || !inside || old == 0 || new == 0 {
        return problem("its new contents are no data of the payload, or one of its versions is empty");
    }
    match &datum.change {
        DataChange::InPlace { initial, slides, added, edited, .. } => {
            if !initial.is_empty() && initial.len() != old as usize {
                return problem("its initial contents have another size than it");
            }
            if slides.windows(2).any(|pair| pair[1].saturating_sub(pair[0]) < 8)
                || slides.iter().any(|&slide| slide.checked_add(8).is_none_or(|end| end as usize > initial.len()))
            {
                return problem("a field that KASLR moves lies outside its initial contents, or in another one");
            }
            if added.is_empty() && edited.is_empty() {
                return problem("nothing is written to it");
            }
            if !are_sorted(added, new) || !are_sorted(edited, old.min(new)) {
                return problem("a range that is written is empty, out of order, or outside");
            }
            let overlaps =
                |range: &Range<u32>| edited.iter().any(|other| range.start < other.end && other.start < range.end);
            if added.iter().any(overlaps) {
                return problem("bytes are both new and changed");
            }
        }
        DataChange::Moved { to_new, to_old } => {
            if !are_steps(to_new, old, new) || !are_steps(to_old, new, old) {
                return problem("a step of its transfer is out of order, outside, or of a size that its kind has not");
            }
        }
    }
    Ok(())
}

fn are_sorted(ranges: &[Range<u32>], end: u32) -> bool {
    ranges.iter().all(|range| range.start < range.end && range.end <= end)
        && ranges.windows(2).all(|pair| pair[0].end <= pair[1].start)
}

/// Whether steps lead from a datum of `from` bytes to one of `to` bytes, each bit of which is written once at most.
fn are_steps(steps: &[Step], from: u32, to: u32) -> bool {
    let inside =
        |start: u32, size: u32, bytes: u32| size > 0 && u64::from(start) + u64::from(size) <= u64::from(bytes) * 8;
    steps.iter().all(|step| {
        let (a, b) = (step.from_size, step.to_size);
        let fits = match step.how {
            StepKind::Copy => a == b,
            StepKind::ZeroExtend | StepKind::SignExtend => a < b && b <= 64,
            StepKind::NarrowUnsigned | StepKind::NarrowSigned => a > b && a <= 64,
            StepKind::Constant(value) => b <= 64 && (b == 64 || value >> b == 0),
        };
        fits && inside(step.from, a, from) && inside(step.to, b, to)
    }) && steps.windows(2).all(|pair| u64::from(pair[0].to) + u64::from(pair[0].to_size) <= u64::from(pair[1].to))
}
