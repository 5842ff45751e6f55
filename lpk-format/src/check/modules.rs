//! Rules of the parts of a bundle that change modules.
//!
//! Comes in: a [`Bundle`]. Decided: whether a module's link addresses lie where they must and apart, and whether the parts
//! belong to the bundle. Goes out: the first [`Problem`].

use super::{Image, Problem, limit, line};
use crate::{Bundle, MODULE_SPACE, ModuleId, limits};

/// The module of a part: its name, its build id, and link addresses that mean one thing each.
pub(super) fn module(module: &ModuleId, image: Image<'_>) -> Result<(), Problem> {
    line("the name of a module", &module.name, limits::MODULE_NAME_LEN)?;
    if !(limits::BUILD_ID_MIN..=limits::BUILD_ID_MAX).contains(&module.build_id.len()) {
        return Err(Problem::BuildId(module.build_id.len()));
    }
    limit("sections of a module", module.sections.len(), limits::MODULE_SECTIONS)?;
    limit("imports of a module", module.imports.len(), limits::MODULE_SECTIONS)?;
    if image.end > MODULE_SPACE.start {
        return Err(Problem::ModuleSpace { end: image.end });
    }
    let mut follows = MODULE_SPACE.start;
    let sections = module.sections.iter().map(|section| (&section.name, section.address, section.size));
    let imports = module.imports.iter().map(|import| (&import.name, import.address, 1));
    for (name, address, size) in sections.chain(imports) {
        line("the name of a module's section or import", name, limits::BANNER_LEN)?;
        let end = address.checked_add(size).filter(|end| *end <= MODULE_SPACE.end);
        let (Some(end), true) = (end, address >= follows) else {
            return Err(Problem::ModuleRange { name: name.clone(), address, size });
        };
        // An empty section takes an address all the same.
        follows = end.max(address + 1);
    }
    let mut names: Vec<&str> = module.sections.iter().map(|section| section.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Problem::ModuleSectionTwice(pair[0].to_owned())),
        None => Ok(()),
    }
}

/// The parts: one for each module, of the same kernel and update, and flat.
pub(super) fn parts(bundle: &Bundle) -> Result<(), Problem> {
    limit("modules", bundle.modules.len(), limits::MODULES)?;
    if bundle.module.is_some() && (!bundle.modules.is_empty() || bundle.support.is_some()) {
        return Err(Problem::PartOfPart);
    }
    let mut before = None;
    for part in &bundle.modules {
        let Some(module) = &part.module else { return Err(Problem::PartWithoutModule) };
        if before.is_some_and(|before| before >= &module.name) {
            return Err(Problem::PartOrder(module.name.clone()));
        }
        before = Some(&module.name);
        let (ours, theirs) = (&bundle.manifest, &part.manifest);
        let same = part.kernel == bundle.kernel
            && part.profile == bundle.profile
            && (&theirs.name, theirs.update_type, &theirs.built_by) == (&ours.name, ours.update_type, &ours.built_by)
            && (&theirs.diff_sha256, &theirs.files) == (&ours.diff_sha256, &ours.files);
        if !same {
            return Err(Problem::PartOfAnother(module.name.clone()));
        }
        super::check(part)?;
    }
    Ok(())
}
