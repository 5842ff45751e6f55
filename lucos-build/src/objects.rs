//! Objects of a slab cache.
//!
//! Comes in: a type to which members are added and whose objects are, by the author's word, those of one slab cache. Decided: which
//! bytes of an object are new and what they hold at first (`objects/bytes.rs`), which cache it is (`objects/cache.rs`), and, over the debug
//! information of the whole kernel, whether objects lie elsewhere as well. Goes out: what the runtime gives to the objects that
//! exist ([`Placed`]), or why not.
//!
//! An object has as many bytes as its cache gives it (`struct kmem_cache`, `size`), which is known in the running kernel only: whether
//! an object can grow is asked there.

mod bytes;
mod cache;

use crate::overrides::TypeOverride;
use crate::report::{ObjectBytesRow, ObjectsRow, Reason, TypeRow};
use cache::Cache;
use diff_analyzer::classify::TypeFinding;
use diff_analyzer::dwarf_layout::TypeLayout;
use lpk_format::{AddedBytes, ObjectPatch, hex, limits};
use prelink::dwarf::DwarfError;
use prelink::holders;
use prelink::units::UnitIndex;
use prelink::vmlinux::KernelImage;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::PathBuf;

/// What holds objects, that a reason lists at most.
const LISTED: usize = 4;

/// Where objects and caches are looked for.
pub struct Heap<'a, 'i> {
    /// The kernel image.
    pub image: &'a KernelImage,
    /// Its units.
    pub units: &'a UnitIndex<'i>,
    /// Compiled units of the diff that belong to modules, and the modules.
    pub of_modules: Vec<ModuleUnit<'a>>,
}

/// A unit of a module. A module's file has no debug information: that of its unit, compiled from the original source, stands in.
pub struct ModuleUnit<'a> {
    /// Path relative to the source tree.
    pub name: &'a str,
    /// Its module.
    pub image: &'a KernelImage,
    /// The object; none of a unit that the diff makes.
    pub original: Option<PathBuf>,
}

impl ModuleUnit<'_> {
    /// The bytes of the object, and what is said when they cannot be used.
    fn read(&self) -> Result<Option<Vec<u8>>, Box<Reason>> {
        let Some(path) = &self.original else { return Ok(None) };
        std::fs::read(path).map(Some).map_err(|error| self.unusable(&error))
    }

    fn unusable(&self, error: &dyn Display) -> Box<Reason> {
        Box::new(Reason::new("override-refused", format!("the original object of {}: {error}", self.name)))
    }

    /// What holds objects of a type in it.
    fn holders(&self, row: &TypeRow) -> Result<Vec<String>, Box<Reason>> {
        let Some(bytes) = self.read()? else { return Ok(Vec::new()) };
        let found = holders::of_object(&bytes, &row.name, row.old_size).map_err(|error| self.unusable(&error))?;
        Ok(found.into_iter().map(|holder| format!("{holder} ({})", self.name)).collect())
    }
}

/// What the units of a diff say of a type, taken together.
#[derive(Debug, Default)]
pub struct Seen {
    /// Modules of the units that see it; `None` is the kernel image.
    pub parts: BTreeSet<Option<String>>,
    /// Types of these units that contain it.
    pub holders: BTreeSet<String>,
    /// Types that its new members are made of.
    pub inside: BTreeMap<String, TypeLayout>,
}

impl Seen {
    /// Takes in what one unit says.
    pub fn add(&mut self, image: &KernelImage, finding: &TypeFinding) {
        self.parts.insert(image.module().map(|module| module.name.clone()));
        self.holders.extend(finding.holders.iter().cloned());
        self.inside.extend(finding.inside.iter().map(|(key, layout)| (key.clone(), layout.clone())));
    }
}

/// A record for the bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The module whose part of the bundle has it; `None` is the kernel image.
    pub part: Option<String>,
    /// The record.
    pub patch: ObjectPatch,
}

/// Why it cannot be done.
pub enum Stuck {
    /// By the rules.
    Reason(Box<Reason>),
    /// The debug information cannot be used.
    Dwarf(DwarfError),
}

impl From<Box<Reason>> for Stuck {
    fn from(reason: Box<Reason>) -> Self {
        Self::Reason(reason)
    }
}

impl From<Reason> for Stuck {
    fn from(reason: Reason) -> Self {
        Self::Reason(Box::new(reason))
    }
}

impl From<DwarfError> for Stuck {
    fn from(error: DwarfError) -> Self {
        Self::Dwarf(error)
    }
}

/// What becomes of the objects of a type; the row gets the strategy.
///
/// # Errors
/// [`Stuck`]; `override-refused`, `override-unused`, `objects-elsewhere`.
pub fn decide(row: &mut TypeRow, seen: &Seen, said: &TypeOverride, heap: &Heap<'_, '_>) -> Result<Placed, Stuck> {
    let part = part_of(row, seen)?;
    let added = bytes::added(&row.layouts, &row.members, &seen.inside, &said.values).map_err(|reason| {
        let message = format!("{}: {}", row.message, reason.message);
        Reason { message, ..*reason }
    })?;
    let Some(name) = &said.cache else {
        let message = format!("{}: which cache its objects are of is not said", row.message);
        let help = "name the variable that points to it: cache = \"…\"";
        return Err(Reason::new("override-refused", message).help(help).into());
    };
    let cache = cache::find(name, part.as_deref(), heap)?;
    let checked = are_alone(row, seen, heap)?;
    let patch = ObjectPatch {
        type_name: row.name.clone(),
        cache: cache.name.clone(),
        cache_address: cache.address,
        old_size: size(row, row.old_size)?,
        new_size: size(row, row.new_size)?,
        added,
    };
    row.strategy = Some(format!("in place: {}", says(&patch, &cache)));
    row.objects = Some(ObjectsRow {
        cache: cache.name,
        unit: cache.unit,
        module: cache.module,
        cache_address: format!("{:#x}", cache.address),
        added: patch.added.iter().map(shown).collect(),
        checked,
    });
    Ok(Placed { part, patch })
}

/// Whether the type is one whose objects can stay, and the one part of the bundle that is about it.
fn part_of(row: &TypeRow, seen: &Seen) -> Result<Option<String>, Box<Reason>> {
    let refused = |message: &str, help: &str| {
        Err(Box::new(Reason::new("override-refused", format!("{}: {message}", row.message)).help(help)))
    };
    if row.rule != "type-additive" {
        return refused(
            "its objects cannot stay in place: what they had does not keep its place",
            "put what is new into the room that the type has between and behind its members",
        );
    }
    if !row.name.starts_with("struct ") || row.name.contains(" in ") {
        return refused(
            "its objects cannot be told from others: it has no name of its own outside of functions",
            "give the struct a name",
        );
    }
    let mut parts = seen.parts.iter();
    match (parts.next(), parts.next()) {
        (Some(part), None) => Ok(part.clone()),
        _ => refused(
            "units of several modules, or of the kernel and a module, change with it, and these need not be there at the same time",
            "make a diff for each of them, or keep what is new elsewhere",
        ),
    }
}

fn size(row: &TypeRow, bytes: u64) -> Result<u32, Box<Reason>> {
    match u32::try_from(bytes) {
        Ok(bytes) if bytes > 0 && bytes <= limits::OBJECT_SIZE => Ok(bytes),
        _ => {
            let most = limits::OBJECT_SIZE;
            let message = format!("{}: an object of a slab cache has 1 to {most} bytes", row.message);
            Err(Box::new(Reason::new("override-refused", message).help("keep what is new elsewhere")))
        }
    }
}

/// Looks whether the type is in nothing but objects of the heap, and says what was looked at.
fn are_alone(row: &TypeRow, seen: &Seen, heap: &Heap<'_, '_>) -> Result<String, Stuck> {
    let found = holders::of(heap.units, &row.name, row.old_size)?;
    let mut elsewhere: Vec<String> = found.holders.iter().map(|(holder, unit)| format!("{holder} ({unit})")).collect();
    // Units of modules are in no debug information but their own.
    let of_module = seen.parts.iter().any(Option::is_some);
    if of_module {
        elsewhere.extend(row.data.iter().map(|name| format!("variable `{name}`")));
        elsewhere.extend(seen.holders.iter().map(|name| format!("a member of `{name}`")));
        for unit in heap
            .of_modules
            .iter()
            .filter(|unit| seen.parts.contains(&unit.image.module().map(|module| module.name.clone())))
        {
            elsewhere.extend(unit.holders(row)?);
        }
        elsewhere.sort();
        elsewhere.dedup();
    }
    if !elsewhere.is_empty() {
        let more = elsewhere.len().saturating_sub(LISTED);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let list = elsewhere.into_iter().take(LISTED).collect::<Vec<_>>().join(", ");
        let message = format!("{}: objects of it lie elsewhere, too: {list}{more}", row.message);
        let help =
            "keep what is new elsewhere; if new code copes with whatever is there, silence type-additive instead";
        return Err(Reason::new("objects-elsewhere", message).help(help).into());
    }
    let besides = if of_module { "the diff's units of the module and " } else { "" };
    Ok(format!(
        "no variable, parameter or result is of it and no type contains it, in {besides}the {} units of the kernel image, {} of which \
         define it; modules that are not in the diff have no debug information and were not looked at",
        found.units, found.defining
    ))
}

/// What is done with the objects, in a clause.
fn says(patch: &ObjectPatch, cache: &Cache) -> String {
    let count: usize = patch.added.iter().map(|added| added.bytes.len()).sum();
    let place = |added: &AddedBytes| format!("{}..{}", added.offset, added.end());
    let places = patch.added.iter().map(place).collect::<Vec<_>>().join(", ");
    let grows = if patch.new_size > patch.old_size {
        format!(
            "; they grow from {} to {} bytes, which the cache must have room for (looked at when the update is applied), and new code must \
             initialise what lies behind the old size when it allocates one",
            patch.old_size, patch.new_size
        )
    } else {
        String::new()
    };
    let module = cache.module.as_ref().map_or_else(String::new, |module| format!(" of module {module}"));
    format!("all objects of cache `{}`{module} get {count} bytes, at {places}{grows}", patch.cache)
}

fn shown(added: &AddedBytes) -> ObjectBytesRow {
    ObjectBytesRow { offset: added.offset, bytes: hex::encode(&added.bytes) }
}
