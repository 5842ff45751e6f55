//! Existing data that an update changes: what is to be written, from the contents of this very moment.
//!
//! Comes in: the data of a bundle, and a guest. Decided, before the guest stops: where each old datum and each new copy lies, and
//! what the new copy is linked to. Decided, while it stands: whether a datum that is edited in place still holds its initial
//! value, and the contents of a copy that is made from the other one. Goes out: writes; those of an edit in place are kept
//! in the record, so that undo can give the old bytes back.

use super::admit::Admitted;
use super::link::Addresses;
use super::transfer::transfer;
use super::{UpdateError, link};
use crate::engine::{EngineError, Pa, ReadMemory, Stopped, Trapped, Va, Written};
use crate::guest::Kernel;
use crate::guest::arena::Write;
use crate::guest::paging::PAGE;
use lpk_format::{Bundle, DataChange, DataPatch, SectionKind, hex};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a datum edited in place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// Name of the datum.
    pub name: String,
    /// Old and new bytes.
    pub write: Write,
    /// Taken back only while the guest still holds the new bytes; else the guest has made the value its own.
    pub guarded: bool,
    /// Virtual address of the bytes, in a module: they are there only as long as it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub va: Option<u64>,
}

/// A datum that changes, located.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datum {
    patch: DataPatch,
    /// Where the old datum is: in the image as a whole, in a module page by page.
    old: Vec<(Pa, usize)>,
    /// Its virtual address.
    old_va: u64,
    /// The same, if it is in a module.
    va: Option<u64>,
    /// Where the new copy is, page by page; of a datum that moves.
    new: Vec<(Pa, usize)>,
    /// Live address of the new copy.
    new_va: u64,
    /// The new contents as linked.
    contents: Vec<u8>,
    /// The old initial contents in this boot; of a datum edited in place.
    initial: Vec<u8>,
}

/// From which version of a datum to which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The new copy is made from the old one.
    ToNew,
    /// The old copy is made from the new one.
    ToOld,
}

/// What changes in data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Edits in place.
    pub edits: Vec<Edit>,
    /// Contents of copies.
    pub copies: Vec<Write>,
    /// Return addresses of threads inside.
    pub returns: Vec<Write>,
    /// Virtual and physical addresses of those that are in modules.
    pub mapped: Vec<(u64, u64)>,
}

impl Changes {
    /// All of them.
    pub fn writes(&self) -> impl Iterator<Item = &Write> {
        self.copies.iter().chain(self.edits.iter().map(|edit| &edit.write)).chain(&self.returns)
    }

    /// Together with those of another part.
    #[must_use]
    pub fn with(mut self, other: Changes) -> Changes {
        self.edits.extend(other.edits);
        self.copies.extend(other.copies);
        self.returns.extend(other.returns);
        self.mapped.extend(other.mapped);
        self
    }

    fn edit(&mut self, edit: Option<Edit>) {
        self.mapped.extend(edit.iter().filter_map(|edit| Some((edit.va?, edit.write.pa))));
        self.edits.extend(edit);
    }
}

/// Locates the data of a bundle whose new code and data are at `addresses`: all that the way back needs.
///
/// # Errors
/// [`UpdateError::Guest`].
pub fn locate(
    memory: &dyn ReadMemory,
    kernel: &Kernel,
    bundle: &Bundle,
    addresses: &Addresses,
) -> Result<Vec<Datum>, UpdateError> {
    let mut data = Vec::new();
    for patch in &bundle.payload.changed {
        let offset = link::data_offset(&bundle.payload, patch.section, patch.new_offset);
        let section = if patch.section == SectionKind::Rodata { addresses.rodata } else { addresses.data };
        let new = match patch.change {
            DataChange::Moved { .. } => places(memory, kernel, section.wrapping_add(offset), patch.new_size as usize)?,
            DataChange::InPlace { .. } => Vec::new(),
        };
        data.push(Datum {
            old: kernel.places(memory, patch.old_address, patch.old_size as usize)?,
            va: kernel.is_of_module(patch.old_address).then(|| kernel.live(patch.old_address).0),
            old_va: kernel.live(patch.old_address).0,
            new,
            new_va: section.wrapping_add(offset),
            contents: Vec::new(),
            initial: initial(patch, kernel),
            patch: patch.clone(),
        });
    }
    Ok(data)
}

/// The same with the new contents as linked, for the way there.
///
/// # Errors
/// [`UpdateError::Guest`], [`UpdateError::Link`].
pub fn prepare(
    memory: &dyn ReadMemory,
    admitted: &Admitted,
    bundle: &Bundle,
    addresses: &Addresses,
) -> Result<Vec<Datum>, UpdateError> {
    let mut data = locate(memory, &admitted.kernel, bundle, addresses)?;
    if !data.is_empty() {
        let linked = link::link(&bundle.payload, addresses, &admitted.facts)?;
        for Datum { patch, contents, .. } in &mut data {
            let bytes = if patch.section == SectionKind::Rodata { &linked.rodata } else { &linked.data };
            let start = link::data_offset(&bundle.payload, patch.section, patch.new_offset) as usize;
            *contents = bytes.get(start..start + patch.new_size as usize).unwrap_or_default().to_vec();
        }
    }
    Ok(data)
}

/// Where bytes of the new copy are in physical memory.
fn places(memory: &dyn ReadMemory, kernel: &Kernel, va: u64, length: usize) -> Result<Vec<(Pa, usize)>, UpdateError> {
    let (mut at, mut rest, mut places) = (va, length, Vec::new());
    while rest != 0 {
        let here = rest.min(PAGE - (at as usize & (PAGE - 1)));
        places.push((kernel.translate(memory, Va(at), "the data of a bundle")?, here));
        (at, rest) = (at.wrapping_add(here as u64), rest - here);
    }
    Ok(places)
}

/// What the old datum held when this kernel began to run, or its module was loaded: its addresses have moved.
fn initial(patch: &DataPatch, kernel: &Kernel) -> Vec<u8> {
    let DataChange::InPlace { initial, slides, .. } = &patch.change else { return Vec::new() };
    let mut bytes = initial.clone();
    bytes.resize(patch.old_size as usize, 0);
    for &at in slides {
        if let Some(field) = bytes.get_mut(at as usize..).and_then(<[u8]>::first_chunk_mut::<8>) {
            *field = kernel.live(u64::from_le_bytes(*field)).0.to_le_bytes();
        }
    }
    bytes
}

/// Refuses data to be edited in place that do not hold their initial values any more. Needs no address of new code, so that nothing
/// has to be prepared in vain.
///
/// # Errors
/// [`UpdateError::DataChanged`], and of the engine.
pub fn are_unchanged(memory: &dyn ReadMemory, kernel: &Kernel, bundle: &Bundle) -> Result<(), UpdateError> {
    for patch in &bundle.payload.changed {
        if let DataChange::InPlace { edited, overwrite: false, .. } = &patch.change {
            let initial = initial(patch, kernel);
            let places = kernel.places(memory, patch.old_address, patch.old_size as usize)?;
            for range in edited {
                for (at, part) in pieces(&places, range) {
                    holds(memory, &patch.name, at, initial.get(part))?;
                }
            }
        }
    }
    Ok(())
}

/// Where a range of a datum is, piece by piece: physical address, and part of the datum.
fn pieces(places: &[(Pa, usize)], range: &Range<u32>) -> Vec<(Pa, Range<usize>)> {
    let (mut start, mut found) = (0, Vec::new());
    for &(pa, length) in places {
        let part = start.max(range.start as usize)..(start + length).min(range.end as usize);
        if part.start < part.end {
            found.push((Pa(pa.0 + (part.start - start) as u64), part));
        }
        start += length;
    }
    found
}

/// Gives the bytes, which must be the expected ones.
fn holds(memory: &dyn ReadMemory, name: &str, at: Pa, expected: Option<&[u8]>) -> Result<Vec<u8>, UpdateError> {
    let expected = expected.unwrap_or_default();
    let live = read(memory, at, expected.len())?;
    if live == expected {
        return Ok(live);
    }
    let (expected, found) = (hex::encode(expected), hex::encode(&live));
    Err(UpdateError::DataChanged { name: name.to_owned(), pa: at.0, expected, found })
}

/// What the switch to the new version writes.
///
/// # Errors
/// [`UpdateError::DataChanged`], [`UpdateError::DoesNotFit`], and of the engine.
pub fn to_new(memory: &dyn ReadMemory, data: &[Datum]) -> Result<Changes, UpdateError> {
    let mut changes = Changes::default();
    for datum in data {
        match &datum.patch.change {
            DataChange::InPlace { added, edited, overwrite, .. } => {
                let ranges = added.iter().map(|range| (range, false)).chain(edited.iter().map(|range| (range, true)));
                for (range, is_edit) in ranges {
                    for (at, part) in pieces(&datum.old, range) {
                        changes.edit(datum.edit(memory, at, part, is_edit && !overwrite)?);
                    }
                }
            }
            DataChange::Moved { to_new, .. } => {
                let old = datum.read_old(memory)?;
                let mut new = datum.contents.clone();
                datum.carried(transfer(to_new, &old, &mut new))?;
                changes.copies.extend(writes(memory, &datum.new, &new)?);
            }
        }
    }
    Ok(changes)
}

/// What the switch back to the old version writes; `edits` is what the switch to the new one has written.
///
/// # Errors
/// As [`to_new`].
pub fn to_old(memory: &dyn ReadMemory, data: &[Datum], edits: &[Edit]) -> Result<Changes, UpdateError> {
    let mut changes = Changes::default();
    for datum in data {
        let DataChange::Moved { to_old, .. } = &datum.patch.change else { continue };
        let mut new = Vec::new();
        for &(pa, length) in &datum.new {
            new.extend(read(memory, pa, length)?);
        }
        let mut old = datum.read_old(memory)?;
        datum.carried(transfer(to_old, &new, &mut old))?;
        // Also where nothing changes: a hook may write there next.
        changes.copies.extend(writes(memory, &datum.old, &old)?);
        changes.mapped.extend(datum.mapped());
    }
    for edit in edits.iter().rev() {
        let at = Pa(edit.write.pa);
        let live = read(memory, at, edit.write.new.len())?;
        if live == edit.write.old {
            continue;
        }
        if edit.guarded {
            holds(memory, &edit.name, at, Some(&edit.write.new))?;
        }
        let write = Write { pa: edit.write.pa, old: live, new: edit.write.old.clone() };
        changes.edit(Some(Edit { write, ..edit.clone() }));
    }
    Ok(changes)
}

/// What has become of the copies of a datum while nobody carried anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaughtUp {
    /// Writes that bring them in line.
    pub writes: Vec<Write>,
    /// Names of data of which both copies were written, so that what one was given is lost, or did not fit into the other.
    pub lost: Vec<String>,
}

/// Brings copies in line that held `held` when they were last in line. Where that is not known, or both have been written, the copy
/// of the version that new calls run counts: the new one, or at `undo` the old one.
///
/// # Errors
/// [`UpdateError::DoesNotFit`], and of the engine.
pub fn catch_up(
    memory: &dyn ReadMemory,
    data: &[Datum],
    held: &BTreeMap<Pa, Vec<u8>>,
    undo: bool,
) -> Result<CaughtUp, UpdateError> {
    let mut caught_up = CaughtUp::default();
    for datum in data {
        let DataChange::Moved { to_new, .. } = &datum.patch.change else { continue };
        let mut new = Vec::new();
        for &(pa, length) in &datum.new {
            new.extend(read(memory, pa, length)?);
        }
        let mut made = new.clone();
        let carried = transfer(to_new, &datum.read_old(memory)?, &mut made);
        if carried.is_ok() && made == new {
            continue;
        }
        let [old_written, new_written] = [true, false].map(|old| datum.is_written(memory, old, held));
        let lost = match (old_written?, new_written?) {
            (true, new_written) if undo || !new_written => {
                if carried.is_ok() {
                    caught_up.writes.extend(writes(memory, &datum.new, &made)?);
                }
                new_written || carried.is_err()
            }
            (is_lost, _) => match to_old(memory, std::slice::from_ref(datum), &[]) {
                Ok(changes) => {
                    caught_up.writes.extend(changes.copies);
                    is_lost
                }
                Err(UpdateError::DoesNotFit { .. }) => true,
                Err(error) => return Err(error),
            },
        };
        caught_up.lost.extend(lost.then(|| datum.patch.name.clone()));
    }
    Ok(caught_up)
}

impl Datum {
    /// Whether there are two copies of it.
    #[must_use]
    pub fn moves(&self) -> bool {
        !self.new.is_empty()
    }

    /// Link address of the old one.
    #[must_use]
    pub fn old_address(&self) -> u64 {
        self.patch.old_address
    }

    /// Virtual and physical addresses of the old one, in a module.
    fn mapped(&self) -> Vec<(u64, u64)> {
        let Some(mut va) = self.va else { return Vec::new() };
        let place = |&(pa, length): &(Pa, usize)| {
            let place = (va, pa.0);
            va = va.wrapping_add(length as u64);
            place
        };
        self.old.iter().map(place).collect()
    }

    /// Where a copy is, page by page.
    fn places(&self, old: bool) -> Vec<(Pa, usize)> {
        let mut places = Vec::new();
        for &(pa, length) in if old { &self.old } else { &self.new } {
            let (mut at, mut rest) = (pa.0, length);
            while rest != 0 {
                let here = rest.min(PAGE - (at as usize & (PAGE - 1)));
                places.push((Pa(at), here));
                (at, rest) = (at.wrapping_add(here as u64), rest - here);
            }
        }
        places
    }

    /// Both copies, as an engine traps them; `direct_map` is where the kernel has all memory ("direct mapping of all physical
    /// memory", `Documentation/x86/x86_64/mm.rst`).
    pub fn traps(&self, direct_map: u64) -> impl Iterator<Item = Trapped> {
        let copies = [(self.old_va, self.places(true)), (self.new_va, self.places(false))];
        copies.into_iter().flat_map(move |(mut va, places)| {
            let one = move |(at, length): (Pa, usize)| {
                let aliases = vec![Va(va), Va(direct_map.wrapping_add(at.0))];
                va = va.wrapping_add(length as u64);
                Trapped { at, length, aliases }
            };
            places.into_iter().map(one)
        })
    }

    /// Whether what is told to have changed is part of the copy that `direction` starts from.
    #[must_use]
    pub fn is_source_written(&self, direction: Direction, write: &Written) -> bool {
        self.places(direction == Direction::ToNew).into_iter().any(|(pa, length)| {
            let start = pa.0.max(write.at.0);
            let end = pa.0.saturating_add(length as u64).min(write.at.0.saturating_add(write.after.len() as u64));
            // Of another page, or another part of it.
            let part = (start.saturating_sub(write.at.0)) as usize..(end.saturating_sub(write.at.0)) as usize;
            start < end && write.before.get(part.clone()) != write.after.get(part)
        })
    }

    /// Name, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.patch.name
    }

    /// Makes one copy from the other, in the stopped guest.
    ///
    /// # Errors
    /// [`UpdateError::DoesNotFit`], and of the engine.
    pub fn carry(&self, guest: &mut dyn Stopped, direction: Direction) -> Result<(), UpdateError> {
        let DataChange::Moved { to_new, to_old } = &self.patch.change else { return Ok(()) };
        let copy = |old: bool| {
            let mut bytes = Vec::new();
            for (pa, length) in self.places(old) {
                let start = bytes.len();
                bytes.resize(start + length, 0);
                guest.read(pa, &mut bytes[start..])?;
            }
            Ok::<_, EngineError>(bytes)
        };
        let (mut old, mut new) = (copy(true)?, copy(false)?);
        let (made, places) = match direction {
            Direction::ToNew => {
                self.carried(transfer(to_new, &old, &mut new))?;
                (new, self.places(false))
            }
            Direction::ToOld => {
                self.carried(transfer(to_old, &new, &mut old))?;
                (old, self.places(true))
            }
        };
        let mut rest = made.as_slice();
        for (pa, length) in places {
            let (here, behind) = rest.split_at(length.min(rest.len()));
            guest.write(pa, here)?;
            rest = behind;
        }
        Ok(())
    }

    /// Whether a copy holds something else than it held. Where that is not known, it counts as written.
    fn is_written(
        &self,
        memory: &dyn ReadMemory,
        old: bool,
        held: &BTreeMap<Pa, Vec<u8>>,
    ) -> Result<bool, UpdateError> {
        for (pa, length) in self.places(old) {
            if held.get(&pa) != Some(&read(memory, pa, length)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A part of the new contents that is written over the old ones.
    fn edit(
        &self,
        memory: &dyn ReadMemory,
        at: Pa,
        part: Range<usize>,
        guarded: bool,
    ) -> Result<Option<Edit>, UpdateError> {
        let va = self.va.map(|va| va.wrapping_add(part.start as u64));
        let old = if guarded {
            holds(memory, &self.patch.name, at, self.initial.get(part.clone()))?
        } else {
            read(memory, at, part.len())?
        };
        let new = self.contents.get(part).unwrap_or_default().to_vec();
        let name = self.patch.name.clone();
        Ok((old != new).then_some(Edit { name, write: Write { pa: at.0, old, new }, guarded, va }))
    }

    fn read_old(&self, memory: &dyn ReadMemory) -> Result<Vec<u8>, UpdateError> {
        let pieces = self.old.iter().map(|&(pa, length)| read(memory, pa, length));
        Ok(pieces.collect::<Result<Vec<_>, _>>()?.concat())
    }

    fn carried(&self, result: Result<(), super::transfer::Overflow>) -> Result<(), UpdateError> {
        result.map_err(|source| UpdateError::DoesNotFit { name: self.patch.name.clone(), source })
    }
}

/// Writes of a whole copy: what else is written there comes before.
fn writes(memory: &dyn ReadMemory, places: &[(Pa, usize)], contents: &[u8]) -> Result<Vec<Write>, UpdateError> {
    let (mut writes, mut rest) = (Vec::new(), contents);
    for &(pa, length) in places {
        let (here, behind) = rest.split_at(length.min(rest.len()));
        writes.push(Write { pa: pa.0, old: read(memory, pa, here.len())?, new: here.to_vec() });
        rest = behind;
    }
    Ok(writes)
}

fn read(memory: &dyn ReadMemory, at: Pa, length: usize) -> Result<Vec<u8>, UpdateError> {
    let mut bytes = vec![0; length];
    memory.read(at, &mut bytes)?;
    Ok(bytes)
}

/// A signed number that becomes wider when it moves, at physical addresses of a test's choice.
#[cfg(test)]
pub(super) fn test_datum(old: u64, old_size: u32, new: u64, new_size: u32) -> Datum {
    use lpk_format::{Step, StepKind};
    let step = |from: u32, to: u32, how| vec![Step { from: 0, from_size: from * 8, to: 0, to_size: to * 8, how }];
    let change = DataChange::Moved {
        to_new: step(old_size, new_size, StepKind::SignExtend),
        to_old: step(new_size, old_size, StepKind::NarrowSigned),
    };
    let patch = DataPatch {
        name: "number".into(),
        unit: "a.c".into(),
        old_address: 0,
        old_size,
        section: SectionKind::Data,
        new_offset: 0,
        new_size,
        change,
    };
    Datum {
        patch,
        old: vec![(Pa(old), old_size as usize)],
        va: None,
        old_va: old,
        new: vec![(Pa(new), new_size as usize)],
        new_va: new,
        contents: Vec::new(),
        initial: Vec::new(),
    }
}
