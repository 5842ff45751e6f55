//! The way back to the old version.
//!
//! Comes in: the record of a bundle in effect, and the guest while it runs. Decided: which jumps are still ours, which modules are still
//! the same, and what each part has done to data. Goes out: a [`WayBack`]: writes, and all that the moment of the switch needs to know.

use super::Undoing;
use crate::engine::{Engine, Pa, ReadMemory, Va};
use crate::guest::arena::{self, Write};
use crate::guest::modules::{self, Entry};
use crate::guest::{GuestError, Kernel, probes};
use crate::journal::Record;
use crate::update::area::{Area, REPORT_ROOM};
use crate::update::data::{self, Changes, Datum, Edit};
use crate::update::hooks::Hooks;
use crate::update::link::Addresses;
use crate::update::open::{Code, Counterparts, Frames, Inside, OpenPart, Way};
use crate::update::{UpdateError, Updater, admit, parts, quiet};
use lpk_format::{Bundle, FunctionPatch, hex};
use std::ops::Range;

/// The way back to the old version; the empty one leads nowhere, and only memory is given back.
#[derive(Default)]
pub(super) struct WayBack {
    /// Whether it is one.
    pub(super) leads_back: bool,
    /// Writes that take the jumps back.
    pub(super) writes: Vec<Write>,
    /// Those of them that are in modules.
    pub(super) mapped: Vec<(u64, u64)>,
    /// The modules that these are in.
    pub(super) modules: Vec<Entry>,
    /// What it has done to data, part by part.
    pub(super) changed: Vec<Changed>,
}

/// What a part of a bundle has done to data.
pub(in crate::update) struct Changed {
    /// Id of the part.
    id: String,
    /// The kernel, with the module that it is about.
    kernel: Kernel,
    /// Where its code is, if it is in module memory.
    area: Option<Area>,
    /// New functions: live addresses, name, link address of the old one, and where frames can go on in that.
    functions: Vec<(Range<u64>, String, u64, Counterparts)>,
    /// Existing data that it has changed.
    data: Vec<Datum>,
    /// What was written over those that stay where they are.
    edits: Vec<Edit>,
    /// The author's hooks.
    hooks: Option<Hooks>,
    /// It has given objects on the heap something that old code does not.
    has_objects: bool,
}

impl Changed {
    /// Its new code: the functions that replace others, and the rest.
    fn code(&self, part: usize) -> Vec<Code> {
        let function = |(range, function, old_address, counterparts): &(Range<u64>, String, u64, Counterparts)| Code {
            range: range.clone(),
            function: function.clone(),
            old_address: *old_address,
            part,
            start: range.start,
            counterparts: counterparts.clone(),
        };
        let rest = self.area.iter().map(|area| Code::unnamed(area.base..area.base + area.parts.text, part));
        self.functions.iter().map(function).chain(rest).collect()
    }

    /// What is attended to while threads are inside of its new code.
    pub(in crate::update) fn open_part(&self, part: usize, direct_map: u64) -> OpenPart {
        OpenPart {
            id: self.id.clone(),
            kernel: self.kernel.clone(),
            data: self.data.iter().filter(|datum| datum.moves()).cloned().collect(),
            hooks: self.hooks.clone(),
            code: self.code(part),
            trampoline: Va(self.trampoline()),
            direct_map,
        }
    }

    /// Where threads return to that are inside of its new code; 0 when it is not in module memory.
    pub(super) fn trampoline(&self) -> u64 {
        self.area.as_ref().map_or(0, |area| area.parts.addresses(area.base).rodata.wrapping_sub(REPORT_ROOM))
    }
}

impl WayBack {
    /// What brings the old data back, from the contents of this moment.
    pub(super) fn changes(&self, memory: &dyn ReadMemory) -> Result<Changes, UpdateError> {
        let mut changes = Changes::default();
        for part in &self.changed {
            changes = changes.with(data::to_old(memory, &part.data, &part.edits)?);
        }
        Ok(changes)
    }

    /// The new code of each part in module memory: the functions that replace others, and the rest.
    pub(super) fn code(&self) -> Vec<Code> {
        self.changed.iter().enumerate().flat_map(|(part, changed)| changed.code(part)).collect()
    }

    /// Whether these threads, which are inside of the new code, can be seen leaving. Where new code knows more of objects than old code
    /// gives them, nobody may be inside.
    pub(super) fn can_begin<E: Engine>(&self, engine: &mut E, frames: &Frames) -> bool {
        if self.changed.iter().any(|part| part.has_objects) {
            return frames.are_none();
        }
        let threads = &frames.inside;
        let can_leave = |thread: &Inside| self.changed.get(thread.part).is_some_and(|part| part.trampoline() != 0);
        threads.is_empty() || engine.watch().is_some() && threads.iter().all(can_leave)
    }

    /// Has a thread report when it leaves the new code.
    pub(super) fn divert(&self, thread: &Inside) -> Option<Write> {
        self.changed.get(thread.part).map(|part| thread.divert(part.trampoline()))
    }

    /// What is attended to while threads are inside of the new code.
    pub(super) fn parts(&self, direct_map: u64) -> Vec<OpenPart> {
        self.changed.iter().enumerate().map(|(part, changed)| changed.open_part(part, direct_map)).collect()
    }

    /// Runs the hooks of each part.
    pub(super) fn hooks(
        &self,
        mut run: impl FnMut(&Hooks, &Kernel) -> Result<(), UpdateError>,
    ) -> Result<(), UpdateError> {
        self.changed.iter().try_for_each(|part| part.hooks.as_ref().map_or(Ok(()), |hooks| run(hooks, &part.kernel)))
    }
}

impl<E: Engine> Updater<E> {
    /// The writes that take jumps back. An entry that somebody has put back already needs none; one that holds anything
    /// else is somebody else's.
    ///
    /// A module that is gone has taken its jumps with it; one that is going still runs code that leads through them.
    pub(super) fn way_back(
        &self,
        action: &Undoing,
        name: &str,
        bundle: &Bundle,
        record: &Record,
    ) -> Result<Result<WayBack, String>, UpdateError> {
        let kernel = &action.kernel;
        let mut back = WayBack { leads_back: true, ..WayBack::default() };
        let image = action.areas.iter().find(|area| area.bundle == action.id);
        let stay = record.info.stay;
        back.changed.push(self.changed(&action.id, kernel, bundle, image, &record.data, stay)?);
        if record.parts.iter().any(|part| part.at != 0) {
            let listed = match modules::all(&self.engine, kernel) {
                // The list may change while it is read.
                Err(error @ (GuestError::Damaged { .. } | GuestError::NotMapped { .. })) => {
                    return Ok(Err(error.to_string()));
                }
                other => other?,
            };
            for ((part, info), changes) in record.parts.iter().zip(&record.info.modules).zip(&bundle.modules) {
                // One that was refused has neither.
                if part.at == 0 || part.area == 0 {
                    continue;
                }
                let found = listed.iter().find(|entry| entry.at.0 == part.at && entry.name == info.name);
                let Some(entry) = found else { continue };
                if !entry.live {
                    return Ok(Err(format!("the module {} is being loaded or removed", info.name)));
                }
                let before = back.writes.len();
                for jump in part.jumps.iter().rev() {
                    let place = (jump.va, jump.write.pa);
                    // Another life of the module has other pages.
                    if quiet::are_mapped(&self.engine, kernel, &[place])?
                        && let Some(write) = self.one_back(name, &jump.write)?
                    {
                        back.writes.push(write);
                        back.mapped.push(place);
                    }
                }
                // Without a jump of ours it is another life of the module, with data of its own.
                let edits = part.data.iter().filter_map(|edit| Some((edit.va?, edit.write.pa))).collect::<Vec<_>>();
                if back.writes.len() == before && !part.jumps.is_empty()
                    || !quiet::are_mapped(&self.engine, kernel, &edits)?
                {
                    continue;
                }
                back.modules.push(entry.clone());
                let Some(id) = changes.module.as_ref() else { continue };
                let kernel = match admit::with_module(&self.engine, kernel.clone(), id) {
                    Ok(kernel) => kernel,
                    Err(UpdateError::ModuleAbsent { .. }) => {
                        return Ok(Err(format!("the module {} is being loaded or removed", info.name)));
                    }
                    Err(error) => return Err(error),
                };
                let area = action.areas.iter().find(|area| area.base == part.area);
                let id = parts::part_id(&action.id, &info.name);
                back.changed.push(self.changed(&id, &kernel, changes, area, &part.data, stay)?);
            }
        }
        for jump in record.jumps.iter().rev() {
            back.writes.extend(self.one_back(name, jump)?);
        }
        let places = places(kernel, &back.writes, &back.mapped);
        match probes::registered(&self.engine, kernel) {
            Err(error @ (GuestError::Damaged { .. } | GuestError::NotMapped { .. })) => Ok(Err(error.to_string())),
            probes => match probes::first_in(&probes?, &places) {
                Some(at) => Err(UpdateError::ProbedSince { name: name.to_owned(), at }),
                None => Ok(Ok(back)),
            },
        }
    }

    /// What a part has done to data.
    pub(in crate::update) fn changed(
        &self,
        id: &str,
        kernel: &Kernel,
        bundle: &Bundle,
        area: Option<&Area>,
        edits: &[Edit],
        stay: bool,
    ) -> Result<Changed, UpdateError> {
        let addresses = area.map_or_else(Addresses::default, |area| area.parts.addresses(area.base));
        let data = data::locate(&self.engine, kernel, bundle, &addresses)?;
        let hooks = area.map(|area| Hooks::prepare(&self.engine, kernel, bundle, area)).transpose()?.flatten();
        // In the arena nobody can be seen leaving, but a thread may have gone on there and can come back.
        let arena = &self.document.arena;
        let pages = arena.allocations.iter().find(|known| known.bundle == id && !known.kept && bundle.module.is_none());
        let in_arena = || arena::code(arena, pages?).first().map(|code| code.start);
        let text = area.map(|_| addresses.text).or_else(in_arena);
        let function = |(text, function): (u64, &FunctionPatch)| {
            let start = text.wrapping_add(function.new_offset.into());
            let counterparts = Way { bundle, kernel, text, undo: true, stay }.of(function);
            let range = start..start.wrapping_add(function.new_size.into());
            (range, function.name.clone(), function.old_address, counterparts)
        };
        let functions = bundle.functions.iter().filter_map(|known| Some((text?, known))).map(function).collect();
        let (kernel, area, edits) = (kernel.clone(), area.cloned(), edits.to_vec());
        let has_objects = !bundle.payload.objects.is_empty();
        Ok(Changed { id: id.to_owned(), kernel, area, functions, data, edits, hooks, has_objects })
    }

    fn one_back(&self, name: &str, jump: &Write) -> Result<Option<Write>, UpdateError> {
        let mut live = vec![0; jump.new.len()];
        self.engine.read(Pa(jump.pa), &mut live)?;
        if live == jump.new {
            return Ok(Some(Write { pa: jump.pa, old: jump.new.clone(), new: jump.old.clone() }));
        }
        if live == jump.old {
            return Ok(None);
        }
        Err(UpdateError::ChangedSince {
            name: name.to_owned(),
            pa: jump.pa,
            expected: hex::encode(&jump.new),
            found: hex::encode(&live),
        })
    }
}

/// Virtual addresses that writes of jumps take: in the image, or where `mapped` says.
pub(super) fn places(kernel: &Kernel, jumps: &[Write], mapped: &[(u64, u64)]) -> Vec<std::ops::Range<u64>> {
    let start = |write: &Write| {
        let in_module = mapped.iter().find(|(_, pa)| *pa == write.pa).map(|&(va, _)| va);
        in_module.unwrap_or_else(|| write.pa.wrapping_add(kernel.image_delta()))
    };
    jumps.iter().map(|write| start(write)..start(write).wrapping_add(write.old.len() as u64)).collect()
}

/// Whether the modules that hold jumps are on the guest's list as they were.
pub(super) fn are_listed<E: Engine>(engine: &E, action: &Undoing, back: &WayBack) -> Result<bool, UpdateError> {
    if back.modules.is_empty() {
        return Ok(true);
    }
    let listed = modules::all(engine, &action.kernel)?;
    Ok(back.modules.iter().all(|module| listed.contains(module)))
}
