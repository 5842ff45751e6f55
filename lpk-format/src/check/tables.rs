//! Rules of the tables about new code.
//!
//! Comes in: a [`Payload`] and the profile, which knows the sizes of entries. Decided: whether each table is a row of
//! whole entries inside `.data` that shares no bytes with another. Goes out: the first [`Problem`].

use super::Problem;
use crate::{GuestProfile, Payload, SectionKind, TableKind};

pub(super) fn check(payload: &Payload, profile: &GuestProfile) -> Result<(), Problem> {
    let data = payload.size_of(SectionKind::Data);
    if let Some(pair) = payload.tables.windows(2).find(|pair| pair[0].kind >= pair[1].kind) {
        return Err(Problem::TableOrder { kind: pair[1].kind });
    }
    let mut entries = Vec::new();
    for table in &payload.tables {
        let (kind, offset, size) = (table.kind, table.offset, table.size);
        let inside = offset.checked_add(size).is_some_and(|end| end <= data);
        if !inside || size == 0 || !offset.is_multiple_of(kind.align()) {
            return Err(Problem::TableRange { kind, offset, size, align: kind.align(), len: data });
        }
        let entry = match kind.entry_type() {
            None => u64::from(kind.align()),
            Some(name) => *profile.sizes.get(name).ok_or(Problem::NoEntrySize { kind, name })?,
        };
        if entry == 0 || !u64::from(size).is_multiple_of(entry) {
            return Err(Problem::TableEntries { kind, size, entry });
        }
        entries.push((kind, u64::from(size) / entry));
    }
    // unwind_module_init, arch/x86/kernel/unwind_orc.c: one entry for each instruction pointer.
    let count = |of| entries.iter().find(|(kind, _)| *kind == of).map_or(0, |(_, count)| *count);
    let (ips, orcs) = (count(TableKind::OrcIp), count(TableKind::Orc));
    if ips != orcs {
        return Err(Problem::OrcCount { ips, orcs });
    }
    let mut places: Vec<_> = payload.tables.iter().map(|table| (table.offset, table.size, table.kind)).collect();
    places.sort_unstable();
    match places.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        Some(pair) => Err(Problem::TableOverlap { kind: pair[1].2, offset: pair[1].0 }),
        None => Ok(()),
    }
}
