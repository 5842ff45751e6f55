//! The rules that a sound bundle obeys, whether it is about to be written or was just read.
//!
//! Comes in: a [`Bundle`]. Decided: whether every place lies where it must, every list is in order, and the parts
//! agree with one another. Goes out: the bounds of the kernel image, or the first rule that is broken.
//!
//! This file holds the rules of kernel, profile and manifest; `payload` those of new code and data, `tables` those of the
//! tables about it, `functions` those of old code, `data` those of existing data that change, `objects` those of objects on
//! the heap, `hooks` those of the author's functions that run at the switch.

mod data;
mod functions;
mod hooks;
mod modules;
mod objects;
mod payload;
mod problem;
mod tables;

use std::collections::BTreeMap;

pub use problem::Problem;

use crate::{Bundle, ModuleId, ModuleSection, limits};

/// The link addresses that a bundle may name: the kernel image from `_text` to `_end`, and its module if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Image<'a> {
    pub(crate) text: u64,
    pub(crate) end: u64,
    pub(crate) module: Option<&'a ModuleId>,
}

impl<'a> Image<'a> {
    /// Reads the bounds from the profile.
    pub(crate) fn of(symbols: &BTreeMap<String, u64>, module: Option<&'a ModuleId>) -> Result<Self, Problem> {
        let symbol = |name: &'static str| symbols.get(name).copied().ok_or(Problem::NoImageSymbol(name));
        let image = Self { text: symbol("_text")?, end: symbol("_end")?, module };
        match image.end.checked_sub(image.text) {
            Some(1..=limits::KERNEL_IMAGE_SIZE) => Ok(image),
            _ => Err(Problem::Image { text: image.text, end: image.end }),
        }
    }

    fn check(self, what: &'static str, address: u64, size: u64) -> Result<(), Problem> {
        let in_image = address >= self.text && address < self.end && size <= self.end - address;
        // The address of an empty datum of a module may be that of the end of its section.
        let in_section = |section: &ModuleSection| {
            let offset = address.checked_sub(section.address);
            offset.is_some_and(|offset| offset <= section.size && size <= section.size - offset)
        };
        let in_module = |module: &ModuleId| {
            module.sections.iter().any(in_section) || module.imports.iter().any(|import| import.address == address)
        };
        if in_image || self.module.is_some_and(in_module) {
            Ok(())
        } else {
            Err(Problem::OutsideImage { what, address, size, text: self.text, end: self.end })
        }
    }
}

/// Checks a bundle against every rule.
pub(crate) fn check(bundle: &Bundle) -> Result<Image<'_>, Problem> {
    kernel(bundle)?;
    let image = Image::of(&bundle.profile.symbols, bundle.module.as_ref())?;
    if let Some(module) = &bundle.module {
        modules::module(module, image)?;
    }
    size(bundle)?;
    payload::check(&bundle.payload, image)?;
    tables::check(&bundle.payload, &bundle.profile)?;
    if let Some(support) = &bundle.support {
        payload::check(support, image)?;
        if !support.tables.is_empty() {
            return Err(Problem::SupportTables(support.tables.len()));
        }
        if !support.changed.is_empty() {
            return Err(Problem::SupportData(support.changed.len()));
        }
        if !support.objects.is_empty() {
            return Err(Problem::SupportObjects(support.objects.len()));
        }
        if !support.hooks.is_empty() {
            return Err(Problem::SupportHooks(support.hooks.len()));
        }
    }
    functions::check(bundle, image)?;
    manifest(bundle, image)?;
    data::check(bundle, image)?;
    objects::check(bundle, image)?;
    hooks::check(bundle, image)?;
    modules::parts(bundle)?;
    objects::across_parts(bundle, image)?;
    Ok(image)
}

fn limit(what: &'static str, found: usize, max: usize) -> Result<(), Problem> {
    if found <= max { Ok(()) } else { Err(Problem::TooMany { what, found, max }) }
}

/// Checks what is listed by address: each entry lies behind the one before, and is sound by itself.
fn in_order<T>(
    list: &[T],
    place: impl Fn(&T) -> (u64, u64),
    out_of_order: impl Fn(&T) -> Problem,
    one: impl Fn(&T) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let mut follows = 0;
    for entry in list {
        let (address, size) = place(entry);
        if address < follows {
            return Err(out_of_order(entry));
        }
        one(entry)?;
        follows = address + size;
    }
    Ok(())
}

/// Text of one line: not empty, not too long, without control characters.
fn line(what: &'static str, text: &str, max: usize) -> Result<(), Problem> {
    if !text.is_empty() && text.len() <= max && !text.contains(char::is_control) {
        Ok(())
    } else {
        Err(Problem::Text { what, text: text.to_owned(), max })
    }
}

fn kernel(bundle: &Bundle) -> Result<(), Problem> {
    let kernel = &bundle.kernel;
    if !(limits::BUILD_ID_MIN..=limits::BUILD_ID_MAX).contains(&kernel.build_id.len()) {
        return Err(Problem::BuildId(kernel.build_id.len()));
    }
    line("the release of the kernel", &kernel.release, limits::RELEASE_LEN)?;
    line("the banner of the kernel", &kernel.banner, limits::BANNER_LEN)
}

/// Keeps every offset of the file within 32 bits: what is large by itself is bounded before it is laid out.
fn size(bundle: &Bundle) -> Result<(), Problem> {
    limit("functions", bundle.functions.len(), limits::FUNCTIONS)?;
    let mut total = 0;
    for payload in std::iter::once(&bundle.payload).chain(&bundle.support) {
        limit("symbols", payload.symbols.len(), limits::SYMBOLS)?;
        limit("relocations", payload.relocs.len(), limits::RELOCS)?;
        limit("fixups", payload.fixups.len(), limits::FIXUPS)?;
        limit("bytes of .bss", payload.bss_size as usize, limits::BSS_SIZE as usize)?;
        let sections = [&payload.text, &payload.rodata, &payload.data].map(|section| section.len() as u64);
        let names = payload.symbols.iter().map(|symbol| symbol.name.len() as u64 + 1);
        total += sections.into_iter().chain(names).sum::<u64>();
    }
    let old = bundle.functions.iter().map(|function| {
        let sites = function.sites.iter().map(|site| crate::records::site_size(site) as u64);
        let returns = function.returns.len() * crate::returns::RETURN_SIZE;
        (function.expected.len() + returns) as u64 + sites.sum::<u64>()
    });
    total += old.sum::<u64>();
    total += bundle.payload.hooks.iter().map(|hook| crate::hooks::size(hook) as u64).sum::<u64>();
    total += bundle.payload.changed.iter().map(|datum| crate::data::size(datum) as u64).sum::<u64>();
    total += bundle.payload.objects.iter().map(|objects| crate::objects::size(objects) as u64).sum::<u64>();
    if total <= limits::FILE_SIZE { Ok(()) } else { Err(Problem::TooLarge(total)) }
}

/// The manifest names exactly the functions that are redirected.
fn manifest(bundle: &Bundle, image: Image<'_>) -> Result<(), Problem> {
    let manifest = &bundle.manifest;
    line("the name of the bundle", &manifest.name, limits::NAME_LEN)?;
    if manifest.name.contains('/') {
        return Err(Problem::Text {
            what: "the name of the bundle",
            text: manifest.name.clone(),
            max: limits::NAME_LEN,
        });
    }
    let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if manifest.diff_sha256.len() != 64 || !manifest.diff_sha256.bytes().all(digits) {
        return Err(Problem::DiffDigest(manifest.diff_sha256.clone()));
    }
    if let Some(pair) = manifest.files.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(Problem::FileOrder(pair[1].clone()));
    }
    for code in &manifest.left {
        line("the name of old code", &code.name, limits::SYMBOL_NAME_LEN)?;
        image.check("old code", code.address, code.size)?;
    }
    if let Some(pair) = manifest.left.windows(2).find(|pair| pair[0].address + pair[0].size > pair[1].address) {
        return Err(Problem::OldCodeOrder(pair[1].name.clone()));
    }
    let mut listed = BTreeMap::new();
    for function in &manifest.functions {
        let Some(address) = function.old_address else {
            if function.old_size != 0 {
                return Err(Problem::NewWithOldSize(function.name.clone()));
            }
            continue;
        };
        if listed.insert(address, function).is_some() {
            return Err(Problem::ListedTwice(function.name.clone()));
        }
    }
    for function in &bundle.functions {
        let entry = listed.remove(&function.old_address).ok_or_else(|| Problem::NotListed(function.name.clone()))?;
        let same = entry.name == function.name
            && entry.unit == function.unit
            && entry.old_size == function.expected.len() as u64
            && entry.new_size == u64::from(function.new_size);
        if !same {
            return Err(Problem::ListedOtherwise(function.name.clone()));
        }
    }
    match listed.into_values().next() {
        Some(entry) => Err(Problem::ListedOnly(entry.name.clone())),
        None => Ok(()),
    }
}
