//! The parts of a bundle: what it changes in the kernel image, and in each loadable module.
//!
//! Comes in: a bundle and what is known of it. Decided: which parts an action is about, and what the record says of each. Goes
//! out: [`Target`]s, which are bundles by themselves: `ID` of the image, `ID:MODULE` of a module; and descriptions.

use super::admit::Admitted;
use super::area::Area;
use super::errors::UpdateError;
use super::link;
use super::objects::Objects;
use super::plan::Plan;
use crate::journal::{Jump, PART_SEPARATOR, PartRecord, Record};
use crate::protocol::{DataInfo, DataStrategy, HookInfo, ModuleFunction, ModuleInfo, ModuleState, ObjectsInfo};
use lpk_format::{Bundle, DataChange, DataPatch, Hook, Place};

/// What is to come into effect.
pub(super) struct Goal<'a> {
    /// The bundle.
    pub(super) bundle: &'a Bundle,
    /// Its id.
    pub(super) id: &'a str,
    /// Its file, to be kept; none if it is kept already.
    pub(super) file: Option<&'a [u8]>,
    /// Only the part with this index, of a bundle that is in effect otherwise.
    pub(super) only: Option<usize>,
    /// New code is prepared in the guest's module area.
    pub(super) in_area: bool,
    /// Threads of the kernel's own that wait in old code stay there.
    pub(super) stay: bool,
}

/// A part of a bundle, as a bundle of its own.
pub(super) struct Target {
    /// Index of the part; `None` is the kernel image.
    pub(super) index: Option<usize>,
    /// Its id in the document.
    pub(super) id: String,
    /// The part, with the support object of the whole.
    pub(super) bundle: Bundle,
}

/// A part that can come into effect now.
pub(super) struct Active<'a> {
    pub(super) target: &'a Target,
    pub(super) admitted: Admitted,
    pub(super) area: Option<Area>,
    pub(super) plan: Plan,
}

impl Goal<'_> {
    /// The parts that it is about, the image first.
    pub(super) fn targets(&self) -> Vec<Target> {
        let image = Target {
            index: None,
            id: self.id.to_owned(),
            bundle: Bundle { modules: Vec::new(), ..self.bundle.clone() },
        };
        let parts = (0..self.bundle.modules.len()).filter_map(|index| {
            let bundle = part(self.bundle, index)?;
            let name = &bundle.module.as_ref()?.name;
            Some(Target { index: Some(index), id: part_id(self.id, name), bundle })
        });
        match self.only {
            Some(only) => parts.filter(|target| target.index == Some(only)).collect(),
            None => std::iter::once(image).chain(parts).collect(),
        }
    }
}

/// Id of the part for a module.
pub(super) fn part_id(bundle: &str, module: &str) -> String {
    format!("{bundle}{PART_SEPARATOR}{module}")
}

/// Id of the bundle that a part is of; of a bundle its own.
pub(super) fn bundle_of(id: &str) -> &str {
    id.split_once(PART_SEPARATOR).map_or(id, |(bundle, _)| bundle)
}

/// A part as a bundle of its own.
pub(super) fn part(bundle: &Bundle, index: usize) -> Option<Bundle> {
    let part = bundle.modules.get(index)?;
    Some(Bundle { support: bundle.support.clone(), ..part.clone() })
}

/// The part with this id, or the whole bundle if it is one of a bundle.
pub(super) fn find(bundle: Bundle, id: &str) -> Option<Bundle> {
    let Some((_, module)) = id.split_once(PART_SEPARATOR) else { return Some(bundle) };
    let is_it = |part: &Bundle| part.module.as_ref().is_some_and(|known| known.name == module);
    let index = bundle.modules.iter().position(is_it)?;
    part(&bundle, index)
}

/// Whether an error says of a module only that the part cannot come into effect now: the state it is in then, and why.
pub(super) fn state_after(error: &UpdateError) -> Option<(ModuleState, Option<String>)> {
    match error {
        UpdateError::ModuleAbsent { .. } => Some((ModuleState::Waiting, None)),
        UpdateError::ModuleBuild { .. } => Some((ModuleState::Refused, Some(error.problem().reason))),
        _ => None,
    }
}

/// The existing data that a part changes; `at` tells where they are, if that is known.
pub(super) fn data_of(bundle: &Bundle, at: Option<(&Admitted, &Plan)>) -> Vec<DataInfo> {
    let one = |patch: &DataPatch| {
        let moved = matches!(patch.change, DataChange::Moved { .. });
        let place = Place::Payload { section: patch.section, offset: patch.new_offset };
        let new = at.map(|(admitted, plan)| link::address(&bundle.payload, &plan.addresses, &admitted.facts, place));
        let old = at.map(|(admitted, _)| admitted.kernel.live(patch.old_address).0);
        DataInfo {
            name: patch.name.clone(),
            unit: patch.unit.clone(),
            strategy: if moved { DataStrategy::Moved } else { DataStrategy::InPlace },
            old_address: old.map(|old| format!("{old:#x}")),
            old_size: patch.old_size.into(),
            new_address: new.filter(|_| moved).map(|new| format!("{new:#x}")),
            new_size: patch.new_size.into(),
        }
    };
    bundle.payload.changed.iter().map(one).collect()
}

/// The objects on the heap that a part gives a value; located, if the guest has what the part is about.
pub(super) fn objects_of(bundle: &Bundle, at: Option<&Admitted>) -> Vec<ObjectsInfo> {
    let patches = bundle.payload.objects.iter().enumerate();
    let located = |index: usize| at.and_then(|admitted| admitted.objects.get(index));
    patches.map(|(index, patch)| Objects::info(patch, located(index))).collect()
}

/// The author's functions of a part.
pub(super) fn hooks_of(bundle: &Bundle) -> Vec<HookInfo> {
    let one = |hook: &Hook| HookInfo {
        kind: hook.kind,
        subject: Some(hook.subject.name().to_owned()).filter(|name| !name.is_empty()),
    };
    bundle.payload.hooks.iter().map(one).collect()
}

/// A part that nothing was done for yet.
pub(super) fn idle(target: &Target, (state, reason): (ModuleState, Option<String>)) -> ModuleInfo {
    let functions = target.bundle.functions.iter().map(|function| ModuleFunction {
        name: function.name.clone(),
        unit: function.unit.clone(),
        old_address: None,
        new_address: None,
        size: u64::from(function.new_size),
    });
    let name = target.bundle.module.as_ref().map(|module| module.name.clone()).unwrap_or_default();
    ModuleInfo {
        name,
        state,
        reason,
        module: None,
        functions: functions.collect(),
        data: data_of(&target.bundle, None),
        objects: objects_of(&target.bundle, None),
        hooks: hooks_of(&target.bundle),
    }
}

/// Writes into a record that a part is in effect.
pub(super) fn in_effect(record: &mut Record, active: &Active<'_>) {
    let Active { target, admitted, area, plan } = active;
    let Some(index) = target.index else { return };
    let mut info = idle(target, (ModuleState::Applied, None));
    for (shown, function) in info.functions.iter_mut().zip(&target.bundle.functions) {
        let new = plan.addresses.text.wrapping_add(u64::from(function.new_offset));
        shown.old_address = Some(format!("{:#x}", admitted.kernel.live(function.old_address).0));
        shown.new_address = Some(format!("{new:#x}"));
    }
    info.data = data_of(&target.bundle, Some((admitted, plan)));
    info.objects = objects_of(&target.bundle, Some(admitted));
    info.module = area.as_ref().map(|area| area.name.clone());
    let jumps = plan.jumps.iter().zip(&plan.mapped);
    let part = PartRecord {
        at: admitted.kernel.module().map_or(0, |module| module.at.0),
        area: area.as_ref().map_or(0, |area| area.base),
        jumps: jumps.map(|(write, &(va, _))| Jump { va, write: write.clone() }).collect(),
        data: Vec::new(),
        left: Vec::new(),
    };
    set(record, index, info, part);
}

/// Writes into a record what a part is now; what it has left behind stays.
pub(super) fn set(record: &mut Record, index: usize, info: ModuleInfo, part: PartRecord) {
    if let Some(known) = record.info.modules.get_mut(index) {
        *known = info;
    }
    if let Some(known) = record.parts.get_mut(index) {
        let left = std::mem::take(&mut known.left);
        *known = PartRecord { left: left.into_iter().chain(part.left).collect(), ..part };
    }
}
