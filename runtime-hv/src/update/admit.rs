//! Is this the kernel that the bundle was made for, and is it in the state that the bundle expects?
//!
//! Comes in: a bundle and a running guest. Decided: build id, slide, every old function's whole live bytes, the caches of objects
//! that get something new, and what is applied already. Goes out: [`Admitted`], with the live bytes as they were compared. Nothing is written.

use super::UpdateError;
use super::code::{NOP5, first_length};
use super::data;
use super::objects::{self, Objects};
use super::sites::{self, SiteError};
use crate::engine::{Engine, Va};
use crate::guest::facts::{self, Facts};
use crate::guest::modules::{self, Found};
use crate::guest::{GuestError, Kernel, identity, probes, tasks};
use crate::journal::{Boot, Document, Record};
use crate::protocol::{BundleState, DataInfo, DataStrategy, ModuleFunction};
use lpk_format::{BootSiteKind, Bundle, Fixup, FunctionPatch, MODULE_SPACE, ModuleId, Place, UpdateType, hex};
use std::ops::Range;

/// Length of the jump, `jmp rel32`.
pub const JUMP: usize = 5;

/// A guest that was found right for a bundle.
#[derive(Debug)]
pub struct Admitted {
    /// The kernel, located.
    pub kernel: Kernel,
    /// Its boot-time choices.
    pub facts: Facts,
    /// Live bytes of each old function, in the order of the bundle.
    pub live: Vec<Vec<u8>>,
    /// Link addresses between which no saved instruction pointer may lie: inside the bytes of the jumps, where these are not a
    /// single instruction.
    pub inside: Vec<std::ops::Range<u64>>,
    /// All code that an update of type 2 leaves: link addresses, names, and the functions that it belongs to.
    pub old_code: Vec<(std::ops::Range<u64>, String, u64)>,
    /// Link addresses of the bytes that the jumps take.
    pub jumps: Vec<std::ops::Range<u64>>,
    /// The functions' link addresses.
    pub starts: Vec<u64>,
    /// Objects on the heap that get a value for what is new in them.
    pub objects: Vec<Objects>,
    /// Resets of the guest before it was looked at.
    pub resets: u64,
    /// Of the module, if the part is about one: how to tell that it is still the same.
    pub module: Option<ModuleId>,
    build_id: Vec<u8>,
}

impl Admitted {
    /// Identity of the boot.
    #[must_use]
    pub fn boot(&self) -> Boot {
        Boot { build_id: self.build_id.clone(), slide: self.kernel.slide(), image_delta: self.kernel.image_delta() }
    }
}

/// Finds the guest right, or says why not.
///
/// # Errors
/// [`UpdateError`].
pub fn admit<E: Engine>(
    engine: &mut E,
    document: &Document,
    bundle: &Bundle,
    id: &str,
) -> Result<Admitted, UpdateError> {
    let kernel = identity::find(engine, &bundle.kernel, &bundle.profile)?;
    let resets = engine.resets();
    tasks::has_started(engine, &kernel)?;
    let kernel = match &bundle.module {
        Some(module) => with_module(engine, kernel, module)?,
        None => kernel,
    };
    let facts = facts::read(engine, &kernel, wanted(bundle))?;
    let mut admitted = Admitted {
        build_id: bundle.kernel.build_id.clone(),
        module: bundle.module.clone(),
        facts,
        live: Vec::new(),
        inside: Vec::new(),
        old_code: Vec::new(),
        jumps: Vec::new(),
        starts: Vec::new(),
        objects: Vec::new(),
        resets,
        kernel,
    };
    let boot = admitted.boot();
    let window = document.arena.window.as_ref().map(|window| window.is_there(engine)).transpose()?;
    if (document.boot.as_ref().is_some_and(|known| *known != boot) && !document.is_empty()) || window == Some(false) {
        return Err(UpdateError::OtherBoot);
    }
    applied_before(document, bundle, id)?;
    let probes = match probes::registered(engine, &admitted.kernel) {
        // The guest runs and may be at it; the check that follows stops it.
        Err(GuestError::Damaged { .. } | GuestError::NotMapped { .. }) => Vec::new(),
        other => other?,
    };
    for function in &bundle.functions {
        let mut live = vec![0; function.expected.len()];
        admitted.kernel.read_image(engine, function.old_address, &mut live)?;
        let thunk_at = |address: u64| {
            let mut bytes = [0; 4];
            admitted.kernel.read(engine, Va(address), &mut bytes, "a thunk").ok().map(|()| bytes)
        };
        let first = admitted.kernel.live(function.old_address).0;
        let code = first..first + live.len() as u64;
        let probed = |range: &Range<u64>| -> Result<(), UpdateError> {
            let Some(at) = probes::first_in(&probes, std::slice::from_ref(range)) else { return Ok(()) };
            Err(SiteError::Registered { function: function.name.clone(), offset: (at - first) as usize }.into())
        };
        if let Err(error) = sites::compare(function, &live, &admitted.facts, &thunk_at) {
            if matches!(error, SiteError::Differs { .. }) {
                // A probe that the kernel has made a jump of looks like somebody's code (arch/x86/kernel/kprobes/opt.c).
                probed(&code)?;
            }
            return Err(error.into());
        }
        let jump = usize::from(function.jump_offset);
        entry_is_free(function, jump)?;
        let entry = live.get(jump..jump + JUMP).ok_or_else(|| {
            UpdateError::Bundle(format!("`{}` has {} bytes, too few for the jump", function.name, live.len()))
        })?;
        let start = function.old_address + jump as u64;
        probed(&(first + jump as u64..first + (jump + JUMP) as u64))?;
        // One instruction of exactly this length has no inside; ftrace's no-op is one.
        if entry != NOP5 && first_length(entry) != Some(JUMP) {
            admitted.inside.push(start + 1..start + JUMP as u64);
        }
        admitted.jumps.push(start..start + JUMP as u64);
        admitted.starts.push(function.old_address);
        admitted.live.push(live);
    }
    if bundle.manifest.update_type == UpdateType::Type2 {
        admitted.old_code = old_code(bundle);
        data::are_unchanged(engine, &admitted.kernel, bundle)?;
        admitted.objects = objects::locate(engine, &admitted.kernel, document, bundle, id)?;
    }
    Ok(admitted)
}

/// All code that an update of type 2 leaves. The first instruction of a function is not inside yet.
pub(super) fn old_code(bundle: &Bundle) -> Vec<(Range<u64>, String, u64)> {
    let functions = bundle.functions.iter().map(|function| {
        let start = function.old_address;
        (start + 1..start.saturating_add(function.expected.len() as u64), function.name.clone(), start)
    });
    let left = bundle.manifest.left.iter().map(|code| {
        // `f.cold` and `f.constprop.0` are parts of `f`, if that is replaced.
        let whole = code.name.split('.').next().unwrap_or_default();
        let of = bundle.functions.iter().find(|function| function.name == whole && function.unit == code.unit);
        let range = code.address..code.address.saturating_add(code.size);
        (range, code.name.clone(), of.map_or(0, |function| function.old_address))
    });
    functions.chain(left).collect()
}

/// Refuses what is applied, and what another bundle has redirected or changed.
fn applied_before(document: &Document, bundle: &Bundle, id: &str) -> Result<(), UpdateError> {
    for record in document.bundles.iter().filter(|record| record.info.state.is_in_use()) {
        let (name, other) = (record.info.name.clone(), record.info.id.clone());
        if other == id && record.info.state == BundleState::Undoing {
            let who = "threads are still inside of its new code, which is being left".to_owned();
            return Err(UpdateError::Busy { who, attempts: 1 });
        }
        if other == id {
            return Err(UpdateError::AlreadyApplied { name, id: other });
        }
        let slide = document.boot.as_ref().map_or(0, |boot| boot.slide);
        if let Some(datum) = taken(record, bundle, slide).filter(|_| other != super::parts::bundle_of(id)) {
            return Err(UpdateError::DatumTaken { datum, by: name, id: other });
        }
        if let Some(module) = &bundle.module {
            if other == super::parts::bundle_of(id) {
                continue;
            }
            if let Some(datum) = taken_of_module(record, module, bundle) {
                return Err(UpdateError::DatumTaken { datum, by: name, id: other });
            }
            if let Some(function) = known_of_module(record, module, bundle) {
                return Err(UpdateError::Redirected { function, by: name, id: other });
            }
            continue;
        }
        for function in &bundle.functions {
            let live = format!("{:#x}", function.old_address.wrapping_add(slide));
            if record.info.functions.iter().any(|known| known.old_address == live) {
                return Err(UpdateError::Redirected { function: function.name.clone(), by: name, id: other });
            }
        }
    }
    Ok(())
}

/// A datum that another bundle has changed, and that this one changes as well, or whose old copy it would use.
fn taken(record: &Record, bundle: &Bundle, slide: u64) -> Option<String> {
    let live = |link: u64| link.wrapping_add(slide);
    let touches = |datum: &&DataInfo| {
        let Some(theirs) = datum.old_range() else { return false };
        let changes = bundle.payload.changed.iter().any(|patch| {
            let ours = live(patch.old_address);
            ours < theirs.end && theirs.start < ours.saturating_add(u64::from(patch.old_size.max(patch.new_size)))
        });
        let uses = bundle.payload.symbols.iter().any(
            |symbol| matches!(symbol.place, Place::Kernel(link) if !symbol.function && theirs.contains(&live(link))),
        );
        changes || uses && datum.strategy == DataStrategy::Moved
    };
    record.info.data.iter().find(touches).map(|datum| datum.name.clone())
}

/// As [`taken`], of a module: also where the other bundle waits for it.
fn taken_of_module(record: &Record, module: &ModuleId, bundle: &Bundle) -> Option<String> {
    let theirs = record.info.modules.iter().filter(|known| known.name == module.name);
    let touches = |datum: &&DataInfo| {
        let changed = &bundle.payload.changed;
        let changes = changed.iter().any(|patch| patch.name == datum.name && patch.unit == datum.unit);
        let uses = bundle.payload.symbols.iter().any(|symbol| {
            let is_of_module = matches!(symbol.place, Place::Kernel(link) if MODULE_SPACE.contains(&link));
            is_of_module && !symbol.function && symbol.name == datum.name
        });
        changes || uses && datum.strategy == DataStrategy::Moved
    };
    theirs.flat_map(|known| &known.data).find(touches).map(|datum| datum.name.clone())
}

/// The function of a module's part that another bundle redirects, or will when the module is loaded.
fn known_of_module(record: &Record, module: &ModuleId, bundle: &Bundle) -> Option<String> {
    let theirs = record.info.modules.iter().filter(|known| known.name == module.name);
    let mut theirs = theirs.flat_map(|known| &known.functions);
    let ours = |known: &&ModuleFunction| {
        bundle.functions.iter().any(|function| function.name == known.name && function.unit == known.unit)
    };
    theirs.find(ours).map(|known| known.name.clone())
}

/// The kernel with the module that a part of a bundle is about.
pub(super) fn with_module<E: Engine>(engine: &E, kernel: Kernel, module: &ModuleId) -> Result<Kernel, UpdateError> {
    let name = module.name.clone();
    match modules::find(engine, &kernel, module)? {
        Found::Loaded(loaded) => Ok(kernel.with_module(loaded)),
        Found::Absent | Found::Changing => Err(UpdateError::ModuleAbsent { name }),
        Found::Other(found) => Err(UpdateError::ModuleBuild { name, expected: hex::encode(&module.build_id), found }),
    }
}

/// The guest patches jump labels and static calls whenever it likes, and stops with a bug when it finds something else.
fn entry_is_free(function: &FunctionPatch, jump: usize) -> Result<(), UpdateError> {
    for site in &function.sites {
        let place = match site.kind {
            BootSiteKind::JumpLabel { .. } => "a jump label",
            BootSiteKind::StaticCall { .. } => "a static call",
            _ => continue,
        };
        let (start, end) = (site.offset as usize, site.offset as usize + usize::from(site.len));
        if start < jump + JUMP && end > jump {
            return Err(UpdateError::EntryInUse { function: function.name.clone(), length: jump + JUMP, place });
        }
    }
    Ok(())
}

/// Link addresses of the guest's words that this bundle is compared or linked with.
pub(super) fn wanted(bundle: &Bundle) -> Vec<u64> {
    let sites = bundle.functions.iter().flat_map(|function| &function.sites).filter_map(|site| match site.kind {
        BootSiteKind::Paravirt { slot } => Some(slot),
        // `struct static_call_key` begins with the function (`include/linux/static_call_types.h`).
        BootSiteKind::StaticCall { key } => Some(key),
        BootSiteKind::Constant { variable } => Some(variable),
        _ => None,
    });
    let support = bundle.support.iter().flat_map(|support| &support.fixups);
    let fixups = bundle.payload.fixups.iter().chain(support).filter_map(|fixup| match fixup {
        Fixup::Paravirt { slot, .. } => Some(*slot),
        Fixup::Constant { variable, .. } => Some(*variable),
        _ => None,
    });
    sites.chain(fixups).collect()
}
