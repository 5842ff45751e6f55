//! All writes of an action, before the guest is stopped.
//!
//! Comes in: an admitted guest and what is taken so far. Decided: pages, addresses, linked bytes, jumps. Goes out: a
//! [`Plan`]: writes with the bytes they replace, and the state that will hold afterwards.

use super::UpdateError;
use super::admit::{Admitted, JUMP};
use super::code::{JMP, branch};
use super::link::{self, Addresses, LinkError};
use crate::engine::{Engine, EngineError, Pa};
use crate::guest::arena::{self, Placed, Protection, State, Write};
use crate::journal::Document;
use lpk_format::{Bundle, Place, RelocKind, SectionKind};
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
    let plan = match reuse(engine, admitted, document, bundle, id)? {
        Some(plan) => plan,
        None => fresh(engine, admitted, document, bundle, id)?,
    };
    let jumps = jumps(admitted, bundle, &plan.addresses)?;
    Ok(Plan { jumps, ..plan })
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
    Ok(Plan { addresses, writes, jumps: Vec::new(), arena: state, untouched: Vec::new() })
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
    Ok(Some(Plan { addresses, writes, jumps: Vec::new(), arena: state, untouched }))
}

/// `jmp new` behind `endbr64` of every old function.
fn jumps(admitted: &Admitted, bundle: &Bundle, addresses: &Addresses) -> Result<Vec<Write>, UpdateError> {
    let mut writes = Vec::new();
    for (function, live) in bundle.functions.iter().zip(&admitted.live) {
        let offset = usize::from(function.jump_offset);
        let link = function.old_address.wrapping_add(offset as u64);
        let target = addresses.text.wrapping_add(u64::from(function.new_offset));
        let new = branch(JMP, admitted.kernel.live(link).0, target).ok_or_else(|| LinkError::Overflow {
            section: SectionKind::Text,
            offset: function.new_offset,
            symbol: function.name.clone(),
            value: target,
        })?;
        let old = live.get(offset..offset + JUMP).map(<[u8]>::to_vec).unwrap_or_default();
        writes.push(Write { pa: admitted.kernel.image_pa(link).0, old, new: new.to_vec() });
    }
    Ok(writes)
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
    Ok(Plan { addresses: Addresses::default(), writes, jumps: Vec::new(), arena: state, untouched })
}

/// Whether stacks are the only place from which a bundle's memory can be reached once its jumps are gone.
///
/// A pointer to new code, to new data, or a table of pointers may have been stored anywhere in the guest.
#[must_use]
pub fn only_stacks_can_refer(bundle: &Bundle) -> bool {
    let payload = &bundle.payload;
    let into_text = |symbol: u32| {
        payload
            .symbols
            .get(symbol as usize)
            .is_none_or(|symbol| matches!(symbol.place, Place::Payload { section: SectionKind::Text, .. }))
    };
    link::data_size(payload) == 0
        && payload.relocs.iter().all(|reloc| {
            reloc.section == SectionKind::Text && (reloc.kind == RelocKind::Plt32 || !into_text(reloc.symbol))
        })
}
