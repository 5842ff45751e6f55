//! Units become the parts of a bundle: one of the kernel's image, one of each module.
//!
//! Comes in: units with what was decided about them. Decided: which part each belongs to; the linking itself is
//! `prelink/src/link.rs`. Goes out: linked parts, or the reasons.

use super::Judge;
use super::units::Read;
use crate::by_hand::{HandPieces, Replacement};
use crate::kbuild::support;
use crate::pipeline::Stop;
use crate::report::{Reason, Report};
use diff_analyzer::object::Object;
use diff_analyzer::object_diff::compare;
use diff_analyzer::pieces::Pieces;
use lpk_format::{ModuleId, Payload};
use prelink::link::{self, Linked};
use prelink::prove::Proof;
use prelink::refusal::Refusal;
use prelink::sites::{BootTables, SitesError};
use prelink::vmlinux::KernelImage;
use std::collections::{BTreeMap, BTreeSet};

impl Judge<'_, '_> {
    /// Links the changed units of the kernel image, and those of each module; which module it is stands beside each.
    pub(super) fn link<'p>(
        &self,
        units: Vec<(&Read, link::Unit<'p, 'p>)>,
        hooks: Option<&'p HandPieces<'p>>,
        sizes: &BTreeMap<String, u64>,
        report: &mut Report,
    ) -> Result<Vec<(Option<ModuleId>, Linked)>, Stop> {
        let mut groups: BTreeMap<Option<&str>, (&KernelImage, Vec<link::Unit<'p, 'p>>)> = BTreeMap::new();
        for (read, unit) in units {
            let image = self.image_of(read);
            let module = image.module().map(|module| module.name.as_str());
            groups.entry(module).or_insert_with(|| (image, Vec::new())).1.push(unit);
        }
        let (mut parts, mut refusals) = (Vec::new(), Vec::new());
        // Hooks beside the change of one module, and nothing else, belong to that module.
        let home = groups.keys().next().copied().filter(|_| groups.len() == 1).flatten();
        let mut declared = None;
        if let Some(hooks) = hooks {
            let (image, units) = groups.entry(home).or_insert_with(|| (self.image, Vec::new()));
            units.push(hooks.unit());
            match hooks.declared(image, self.units, units.len() - 1, &[]) {
                Ok(found) => declared = Some(found),
                Err(more) => refusals.extend(more),
            }
        }
        for (&part, (image, units)) in &groups {
            let others = groups.iter().filter(|&(&other, _)| other != part).flat_map(|(_, (_, units))| units);
            let elsewhere: BTreeSet<String> = others.flat_map(global_names).collect();
            let tables = BootTables::read(image, sizes).map_err(of_sites)?;
            let declared = declared.as_ref().filter(|_| part == home);
            match link::link_declared(image, &tables, units, &elsewhere, declared) {
                Ok(linked) => parts.push((image.module().cloned(), linked)),
                Err(more) => refusals.extend(more),
            }
        }
        if !refusals.is_empty() {
            return Err(self.of_refusals(refusals));
        }
        for (module, linked) in parts.extract_if(.., |(_, linked)| is_idle(linked)) {
            let place = module.map_or_else(String::new, |module| format!(" in module {}", module.name));
            let new: Vec<String> =
                linked.manifest_functions.iter().map(|function| format!("`{}`", function.name)).collect();
            report.notes.push(format!("no existing function leads to the new code{place}: {}", new.join(", ")));
        }
        Ok(parts)
    }

    /// Links a unit that is written by hand, and nothing else.
    ///
    /// # Errors
    /// [`Stop::Refused`] with all reasons.
    pub fn link_by_hand(
        &self,
        pieces: &HandPieces<'_>,
        replace: &[Replacement],
        sizes: &BTreeMap<String, u64>,
        report: &mut Report,
    ) -> Result<Linked, Stop> {
        let refuse = |refusals| self.of_refusals(refusals);
        let declared = pieces.declared(self.image, self.units, 0, replace).map_err(refuse)?;
        if let Some(details) = &mut report.details {
            details.set_by_hand(pieces, &declared, self.image);
        }
        let tables = BootTables::read(self.image, sizes).map_err(of_sites)?;
        let (units, elsewhere) = ([pieces.unit()], BTreeSet::new());
        let linked = link::link_declared(self.image, &tables, &units, &elsewhere, Some(&declared)).map_err(refuse)?;
        if linked.functions.is_empty() {
            let message = "it replaces no function of the kernel, so nothing would ever run it";
            let help = "say what replaces what: LUCOS_REPLACE(old, new) in the file, or --replace OLD=NEW";
            return Err(Stop::refused(Reason::new("nothing-replaced", message).help(help)));
        }
        Ok(linked)
    }

    /// The support object, or why this kernel cannot have one.
    pub(super) fn support(&self, sizes: &BTreeMap<String, u64>) -> Result<Payload, String> {
        let object = support::object(self.folder, self.request).map_err(|error| error.to_string())?;
        let bytes = std::fs::read(&object).map_err(|error| format!("{}: {error}", object.display()))?;
        let patched = Object::parse(&bytes).map_err(|error| error.to_string())?;
        let original = Object::default();
        let cut = |object| Pieces::cut(object, sizes).map_err(|error| error.to_string());
        let (original, patched) = (cut(&original)?, cut(&patched)?);
        let (diff, proof) = (compare(&original, &patched), Proof::default());
        let unit = link::Unit {
            name: "support/support.c",
            original: &original,
            patched: &patched,
            diff: &diff,
            proof: &proof,
            data: &[],
        };
        link::link_support(self.image, &unit).map_err(|refusals| {
            let list: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            list.join("; ")
        })
    }

    pub(super) fn of_refusals(&self, refusals: Vec<Refusal>) -> Stop {
        Stop::Refused(refusals.into_iter().map(Reason::from).collect())
    }
}

/// Whether nothing would ever run or use what is linked.
pub(super) fn is_idle(linked: &Linked) -> bool {
    linked.functions.is_empty() && linked.payload.changed.is_empty() && linked.payload.hooks.is_empty()
}

/// Functions and data of a patched unit that other units can see.
pub(super) fn global_names<'p>(unit: &link::Unit<'p, 'p>) -> impl Iterator<Item = String> + use<'p> {
    let patched = unit.patched;
    let global = patched.iter().filter(|(_, piece)| piece.global);
    global
        .flat_map(move |(_, piece)| piece.symbols.iter().map(move |&symbol| patched.object.symbol(symbol).name.clone()))
}

pub(super) fn of_sites(error: SitesError) -> Stop {
    Stop::refused(Reason::new("unknown-kernel", error.to_string()))
}
