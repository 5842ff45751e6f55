//! The variable that points to a slab cache.
//!
//! Comes in: its name, perhaps with the unit that defines it (`pwq_cache@fs/eventpoll.c`). Decided: which variable of the kernel
//! image or of the diff's module it is, and that it is a pointer to a `struct kmem_cache`. Goes out: [`Cache`], or why there is none.

use super::{Heap, ModuleUnit, Stuck};
use crate::report::Reason;
use diff_analyzer::dwarf_layout::{self, Shape};
use prelink::symbol_db::{AddressKind, KernelSymbol, SymbolKind};
use prelink::variables;
use prelink::vmlinux::KernelImage;
use std::collections::BTreeSet;

/// The type of a cache, by its bare name (`include/linux/slub_def.h`, `mm/slab.h`).
const CACHE: &str = "kmem_cache";

/// A variable that points to a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cache {
    /// Name.
    pub(super) name: String,
    /// Unit that defines it.
    pub(super) unit: String,
    /// Module that it belongs to.
    pub(super) module: Option<String>,
    /// Link address.
    pub(super) address: u64,
}

/// A variable of the name, and whether it points to a cache.
struct Candidate {
    cache: Cache,
    is_pointer: bool,
}

/// Finds the variable. Those of modules count for the part of that module alone.
///
/// # Errors
/// [`Stuck`]; `override-refused` when there is none, or more than one.
pub(super) fn find(said: &str, part: Option<&str>, heap: &Heap<'_, '_>) -> Result<Cache, Stuck> {
    let (name, unit) = said.split_once('@').map_or((said, None), |(name, unit)| (name, Some(unit)));
    let mut found = in_image(name, heap)?;
    for of in &heap.of_modules {
        let module = of.image.module().map(|module| module.name.as_str());
        if module == part {
            found.extend(in_module(name, of)?);
        }
    }
    found.retain(|candidate| unit.is_none_or(|unit| candidate.cache.unit == unit));
    let refused = |message: String, help: &str| Err(Reason::new("override-refused", message).help(help).into());
    let list = |found: &[Candidate]| {
        let names = found.iter().map(|candidate| format!("`{name}@{}`", candidate.cache.unit));
        names.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
    };
    if found.is_empty() {
        let module = part.map_or_else(String::new, |module| format!(" and the diff's units of module {module}"));
        let message =
            format!("cache `{said}`: the kernel image{module} have no variable of that name outside of functions");
        return refused(message, "name the variable that `kmem_cache_create` is assigned to");
    }
    if !found.iter().any(|candidate| candidate.is_pointer) {
        let message = format!("cache `{said}`: it is no `struct kmem_cache *`: {}", list(&found));
        return refused(message, "name the variable that `kmem_cache_create` is assigned to");
    }
    found.retain(|candidate| candidate.is_pointer);
    if found.len() > 1 {
        let message = format!("cache `{said}`: several variables have that name: {}", list(&found));
        return refused(message, "give the file with the name, as they are listed");
    }
    let only = found.pop().map(|candidate| candidate.cache);
    only.ok_or_else(|| Reason::new("override-refused", format!("cache `{said}`: it is not there")).into())
}

/// Variables of the kernel image, which stay there after boot.
fn in_image(name: &str, heap: &Heap<'_, '_>) -> Result<Vec<Candidate>, Stuck> {
    let mut found: Vec<Candidate> = Vec::new();
    for variable in variables::named(heap.units, name)? {
        let address = variable.address;
        let known = found.iter().any(|candidate| candidate.cache.address == address);
        if known || !heap.image.symbols().at(address).any(|symbol| is_variable(symbol, name, heap.image)) {
            continue;
        }
        found.push(Candidate {
            cache: Cache { name: name.to_owned(), unit: variable.unit, module: None, address },
            is_pointer: variable.points_to.as_deref() == Some(CACHE),
        });
    }
    Ok(found)
}

/// Whether a symbol is a variable of that name that the image keeps.
fn is_variable(symbol: &KernelSymbol, name: &str, image: &KernelImage) -> bool {
    symbol.name == name
        && symbol.kind == SymbolKind::Object
        && symbol.address_kind == AddressKind::Image
        && !image.section_at(symbol.address).is_some_and(|section| section.name.starts_with(".init"))
}

/// The variable of a module's unit, if it has one.
fn in_module(name: &str, of: &ModuleUnit<'_>) -> Result<Option<Candidate>, Stuck> {
    let Some(bytes) = of.read()? else { return Ok(None) };
    let layouts = dwarf_layout::of_object(&bytes).map_err(|error| of.unusable(&error))?;
    let mut variables = layouts.variables.iter();
    let Some(variable) = variables.find(|known| known.name == name && known.defined && known.function.is_none()) else {
        return Ok(None);
    };
    let base = of.name.rsplit('/').next().unwrap_or(of.name);
    let symbols = of.image.symbols().lookup(name).filter(|symbol| is_variable(symbol, name, of.image));
    let here = symbols.filter(|symbol| symbol.file.as_deref().is_none_or(|file| file == base));
    let addresses: BTreeSet<u64> = here.map(|symbol| symbol.address).collect();
    let mut addresses = addresses.into_iter();
    let (Some(address), None) = (addresses.next(), addresses.next()) else { return Ok(None) };
    let text = variable.type_text.replace("const ", "").replace("volatile ", "");
    Ok(Some(Candidate {
        cache: Cache {
            name: name.to_owned(),
            unit: of.name.to_owned(),
            module: of.image.module().map(|module| module.name.clone()),
            address,
        },
        is_pointer: variable.shape == Shape::Pointer && text == format!("struct {CACHE} *"),
    }))
}
