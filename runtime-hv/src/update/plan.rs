//! All writes of an action, before the guest is stopped.
//!
//! Comes in: an admitted guest and what is taken so far. Decided: pages, addresses, linked bytes, jumps. Goes out: a
//! [`Plan`]: writes with the bytes they replace, and the state that will hold afterwards.

use super::UpdateError;
use super::admit::{Admitted, JUMP};
use super::area::{Area, REPORT_ROOM};
use super::code::{CALL, JMP, branch};
use super::data::{self, Datum};
use super::hooks::{self, Hooks};
use super::link::{self, Addresses, LinkError};
use crate::engine::{Engine, EngineError, Pa, Va};
use crate::guest::arena::{self, Placed, Protection, State, Write};
use crate::guest::paging::PAGE;
use crate::journal::Document;
use lpk_format::{Bundle, DataChange, DataPatch, Payload, Place, SectionKind, UpdateType};
use std::ops::Range;

/// What will be written, and what holds afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Addresses of the sections.
    pub addresses: Addresses,
    /// Writes that nothing in the guest notices: memory and its mapping.
    pub writes: Vec<Write>,
    /// Writes that switch.
    pub jumps: Vec<Write>,
    /// Memory taken afterwards.
    pub arena: State,
    /// Live ranges that no stack may refer to.
    pub untouched: Vec<Range<u64>>,
    /// Physical addresses of those writes that new code changes again: its data.
    pub moving: Vec<u64>,
    /// Virtual and physical addresses of the jumps in modules.
    pub mapped: Vec<(u64, u64)>,
    /// A 32-bit word of the guest, and bits that must be clear in it.
    pub idle: Option<(Pa, u32)>,
    /// Existing data that change; what is written is known when the guest stands.
    pub data: Vec<Datum>,
    /// The author's hooks.
    pub hooks: Option<Hooks>,
    /// Where threads return to that are inside old code.
    pub trampoline: u64,
}

impl Plan {
    /// Nothing to write.
    #[must_use]
    pub fn nothing(document: &Document) -> Plan {
        Plan {
            addresses: Addresses::default(),
            writes: Vec::new(),
            jumps: Vec::new(),
            arena: document.arena.clone(),
            untouched: Vec::new(),
            moving: Vec::new(),
            mapped: Vec::new(),
            idle: None,
            data: Vec::new(),
            hooks: None,
            trampoline: 0,
        }
    }

    /// With the writes of another plan for the same moment. The arena is that of this one: only code of the kernel image goes
    /// there. Data, hooks and the trampoline remain each part's own.
    #[must_use]
    pub fn with(mut self, other: &Plan) -> Plan {
        self.writes.extend_from_slice(&other.writes);
        self.jumps.extend_from_slice(&other.jumps);
        self.untouched.extend_from_slice(&other.untouched);
        self.moving.extend_from_slice(&other.moving);
        self.mapped.extend_from_slice(&other.mapped);
        self
    }
}

/// Plans to apply a bundle.
///
/// # Errors
/// [`UpdateError`].
pub fn apply<E: Engine>(
    engine: &E,
    admitted: &Admitted,
    document: &Document,
    bundle: &Bundle,
    id: &str,
) -> Result<Plan, UpdateError> {
    let stays = |datum: &DataPatch| matches!(datum.change, DataChange::InPlace { .. });
    if !bundle.payload.changed.iter().all(stays) || !bundle.payload.hooks.is_empty() {
        let what = "hooks and data that move need memory that the guest gives: apply the bundle without --in-arena";
        return Err(UpdateError::Unsupported(what.to_owned()));
    }
    let plan = match reuse(engine, admitted, document, bundle, id)? {
        Some(plan) => plan,
        None => fresh(engine, admitted, document, bundle, id)?,
    };
    let Jumps { writes: jumps, mapped } = jumps(engine, admitted, bundle, &plan.addresses)?;
    let data = data::prepare(engine, admitted, bundle, &plan.addresses)?;
    Ok(Plan { jumps, mapped, data, ..plan })
}

/// New pages.
fn fresh<E: Engine>(
    engine: &E,
    admitted: &Admitted,
    document: &Document,
    bundle: &Bundle,
    id: &str,
) -> Result<Plan, UpdateError> {
    let kernel = &admitted.kernel;
    let pool = arena::pool(engine, kernel, engine.arena())?;
    let mut state = document.arena.clone();
    let sizes = [
        (Protection::Text, link::text_size(&bundle.payload, &admitted.facts)),
        (Protection::Rodata, bundle.payload.rodata.len() as u64),
        (Protection::Data, link::data_size(&bundle.payload)),
    ];
    let placed = arena::take(engine, kernel, &pool, &mut state, id, sizes)?;
    let va = |index: usize| placed.get(index).copied().flatten().map_or(0, |run: Placed| run.va.0);
    let addresses = Addresses { text: va(0), rodata: va(1), data: va(2) };
    let linked = link::link(&bundle.payload, &addresses, &admitted.facts)?;
    let contents: Vec<(Pa, Vec<u8>)> = placed
        .iter()
        .zip([linked.text, linked.rodata, linked.data])
        .filter_map(|(run, bytes)| run.map(|run| (run.pa, bytes)))
        .collect();
    let writes = arena::transition(&document.arena, &state, &contents);
    let moving = placed.get(2).copied().flatten().map(|run| run.pa.0).into_iter().collect();
    Ok(Plan {
        addresses,
        writes,
        jumps: Vec::new(),
        arena: state,
        untouched: Vec::new(),
        moving,
        mapped: Vec::new(),
        idle: None,
        data: Vec::new(),
        hooks: None,
        trampoline: 0,
    })
}

/// Pages that were kept when this very bundle was undone: the code is there already; data begins afresh. `None` when
/// there are none, or when the code would be another now.
fn reuse<E: Engine>(
    engine: &E,
    admitted: &Admitted,
    document: &Document,
    bundle: &Bundle,
    id: &str,
) -> Result<Option<Plan>, UpdateError> {
    let mut state = document.arena.clone();
    let Some(window) = state.window.clone() else { return Ok(None) };
    let Some(kept) = state.allocations.iter_mut().find(|allocation| allocation.kept && allocation.bundle == id) else {
        return Ok(None);
    };
    kept.kept = false;
    let kept = kept.clone();
    let at = |wanted: Protection| kept.runs.iter().find(|run| run.protection == wanted).map(|run| window.place(run));
    let places = [at(Protection::Text), at(Protection::Rodata), at(Protection::Data)];
    let va = |place: Option<Placed>| place.map_or(0, |place| place.va.0);
    let addresses = Addresses { text: va(places[0]), rodata: va(places[1]), data: va(places[2]) };
    let linked = link::link(&bundle.payload, &addresses, &admitted.facts)?;
    let mut writes = Vec::new();
    for (place, new) in places.iter().zip([&linked.text, &linked.rodata, &linked.data]) {
        let Some(place) = place else { continue };
        let mut old = vec![0; new.len()];
        engine.read(place.pa, &mut old)?;
        writes.push(Write { pa: place.pa.0, old, new: new.clone() });
    }
    if writes.first().is_some_and(|text| text.old != text.new) {
        return Ok(None);
    }
    writes.retain(|write| write.old != write.new);
    let untouched = arena::ranges(&state, &kept);
    let moving = places[2].map(|run| run.pa.0).into_iter().collect();
    Ok(Some(Plan {
        addresses,
        writes,
        jumps: Vec::new(),
        arena: state,
        untouched,
        moving,
        mapped: Vec::new(),
        idle: None,
        data: Vec::new(),
        hooks: None,
        trampoline: 0,
    }))
}

/// Code that is in the guest's module area already, and known there: only the jumps are left. In an area that was kept when
/// this very bundle was undone (`again`) data begins afresh, but for the tables, which are the kernel's.
///
/// # Errors
/// [`UpdateError`].
pub fn in_area<E: Engine>(
    engine: &E,
    admitted: &Admitted,
    document: &Document,
    bundle: &Bundle,
    area: &Area,
    again: bool,
) -> Result<Plan, UpdateError> {
    let addresses = area.parts.addresses(area.base);
    let mut writes = Vec::new();
    if again {
        let linked = link::link(&bundle.payload, &addresses, &admitted.facts)?;
        for part in between_tables(&bundle.payload, linked.data.len() as u64) {
            let mut at = part.start;
            while at < part.end {
                let end = part.end.min((at + 1).next_multiple_of(PAGE as u64));
                let va = Va(addresses.data.wrapping_add(at));
                let pa = admitted.kernel.translate(engine, va, "the data of a bundle")?;
                let new = linked.data.get(at as usize..end as usize).unwrap_or_default().to_vec();
                let mut old = vec![0; new.len()];
                engine.read(pa, &mut old)?;
                if old != new {
                    writes.push(Write { pa: pa.0, old, new });
                }
                at = end;
            }
        }
    }
    let hooks = Hooks::prepare(engine, &admitted.kernel, bundle, area)?;
    if bundle.manifest.update_type == UpdateType::Type2 {
        writes.extend(hooks::report_code(engine, &admitted.kernel, &addresses)?);
    }
    if let Some(hooks) = &hooks {
        writes.extend(hooks.writes(engine)?);
    }
    let Jumps { writes: jumps, mapped } = jumps(engine, admitted, bundle, &addresses)?;
    // What is in a module may go away with it as soon as the guest runs.
    let moving = writes.iter().map(|write| write.pa).chain(mapped.iter().map(|&(_, pa)| pa));
    Ok(Plan {
        addresses,
        jumps,
        moving: moving.collect(),
        mapped,
        writes,
        arena: document.arena.clone(),
        untouched: if again { vec![area.range()] } else { Vec::new() },
        idle: None,
        data: data::prepare(engine, admitted, bundle, &addresses)?,
        hooks,
        trampoline: addresses.rodata.wrapping_sub(REPORT_ROOM),
    })
}

/// The parts of `.data` and `.bss` (`size` bytes) that are no tables.
fn between_tables(payload: &Payload, size: u64) -> Vec<Range<u64>> {
    let mut tables: Vec<Range<u64>> = payload
        .tables
        .iter()
        .map(|table| u64::from(table.offset)..u64::from(table.offset) + u64::from(table.size))
        .collect();
    tables.sort_by_key(|range| range.start);
    let mut parts = Vec::new();
    let mut at = 0;
    for table in tables {
        parts.push(at..table.start);
        at = table.end;
    }
    parts.push(at..size);
    parts.retain(|part| part.start < part.end);
    parts
}

/// Whether a relocated field of code is the distance of a branch, and not an address to be used: `call`, `jmp` or `jcc` come
/// right before it. Instructions that use an address relative to their own have a ModRM byte there, 0x05 to 0x3d (Intel SDM
/// vol. 2, table 2-7).
fn is_branch(text: &[u8], field: usize) -> bool {
    let before = |distance: usize| field.checked_sub(distance).and_then(|at| text.get(at)).copied();
    match before(1) {
        Some(CALL | JMP) => true,
        Some(0x80..=0x8f) => before(2) == Some(0x0f),
        _ => false,
    }
}

/// The writes that switch, and where they are if they are in a module.
struct Jumps {
    writes: Vec<Write>,
    mapped: Vec<(u64, u64)>,
}

/// `jmp new` behind `endbr64` of every old function.
fn jumps<E: Engine>(
    engine: &E,
    admitted: &Admitted,
    bundle: &Bundle,
    addresses: &Addresses,
) -> Result<Jumps, UpdateError> {
    let mut jumps = Jumps { writes: Vec::new(), mapped: Vec::new() };
    for (function, live) in bundle.functions.iter().zip(&admitted.live) {
        let offset = usize::from(function.jump_offset);
        let link = function.old_address.wrapping_add(offset as u64);
        let target = addresses.text.wrapping_add(u64::from(function.new_offset));
        let at = admitted.kernel.live(link).0;
        let new = branch(JMP, at, target).ok_or_else(|| LinkError::Overflow {
            section: SectionKind::Text,
            offset: function.new_offset,
            symbol: function.name.clone(),
            value: target,
        })?;
        let old = live.get(offset..offset + JUMP).unwrap_or_default();
        let mut done = 0;
        for (pa, length) in admitted.kernel.places(engine, link, JUMP)? {
            let part = done..done + length;
            let bytes = |of: &[u8]| of.get(part.clone()).unwrap_or_default().to_vec();
            jumps.writes.push(Write { pa: pa.0, old: bytes(old), new: bytes(&new) });
            if bundle.module.is_some() {
                jumps.mapped.push((at + done as u64, pa.0));
            }
            done += length;
        }
    }
    Ok(jumps)
}

/// Plans to give back the memory of an undone bundle.
///
/// # Errors
/// Of the engine.
pub fn reclaim<E: Engine>(engine: &E, before: &State, id: &str) -> Result<Plan, EngineError> {
    let mut state = before.clone();
    arena::give_back(&mut state, id);
    let mut writes = arena::transition(before, &state, &[]);
    for write in writes.iter_mut().filter(|write| write.old.is_empty()) {
        write.old = vec![0; write.new.len()];
        engine.read(Pa(write.pa), &mut write.old)?;
    }
    let untouched =
        before.allocations.iter().filter(|a| a.bundle == id).flat_map(|a| arena::ranges(before, a)).collect();
    let addresses = Addresses::default();
    Ok(Plan {
        addresses,
        writes,
        jumps: Vec::new(),
        arena: state,
        untouched,
        moving: Vec::new(),
        mapped: Vec::new(),
        idle: None,
        data: Vec::new(),
        hooks: None,
        trampoline: 0,
    })
}

/// Whether stacks are the only place from which a bundle's memory can be reached once its jumps are gone.
///
/// A pointer to new code, to new data, or a table of pointers may have been stored anywhere in the guest. Tables are the
/// kernel's own business: it forgets them with the module.
#[must_use]
pub fn only_stacks_can_refer(bundle: &Bundle) -> bool {
    let payload = &bundle.payload;
    let into_text = |symbol: u32| {
        payload
            .symbols
            .get(symbol as usize)
            .is_none_or(|symbol| matches!(symbol.place, Place::Payload { section: SectionKind::Text, .. }))
    };
    // Padding between tables is no data.
    let data = payload.data.as_slice();
    let zero = |part: &Range<u64>| {
        data.get(part.start as usize..part.end as usize).is_some_and(|bytes| bytes.iter().all(|&byte| byte == 0))
    };
    let in_table = |offset: u32| {
        payload.tables.iter().any(|table| (table.offset..table.offset.saturating_add(table.size)).contains(&offset))
    };
    let padding = |part: &Range<u64>| part.end - part.start < 16 && zero(part);
    payload.bss_size == 0
        && between_tables(payload, data.len() as u64).iter().all(padding)
        && payload.relocs.iter().all(|reloc| match reloc.section {
            SectionKind::Text => !into_text(reloc.symbol) || is_branch(&payload.text, reloc.offset as usize),
            SectionKind::Data => in_table(reloc.offset),
            SectionKind::Rodata | SectionKind::Bss => false,
        })
}
