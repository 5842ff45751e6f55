//! Shows a bundle.
//!
//! Comes in: the path of a bundle. Decided: nothing; the reader has checked all of it. Goes out: text or JSON.

use comfy_table::{Table, presets};
use lpk_format::{
    Bundle, DataChange, DataPatch, Hook, HookSubject, ObjectPatch, OldCode, Place, ReadBundle, ReadError, SectionKind,
    Vouched, hex,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why a bundle cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no sound bundle.
    #[error("{} is refused", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ReadError,
    },
}

/// Reads and checks a bundle.
///
/// # Errors
/// [`InspectError`].
pub fn open(path: &Path) -> Result<ReadBundle, InspectError> {
    let bytes = std::fs::read(path).map_err(|source| InspectError::Io { path: path.to_owned(), source })?;
    lpk_format::read(&bytes).map_err(|source| InspectError::Refused { path: path.to_owned(), source })
}

/// Numbers of what is in a bundle.
struct Counts {
    sections: [(&'static str, u64); 4],
    relocs: BTreeMap<String, usize>,
    symbols: BTreeMap<&'static str, usize>,
    fixups: BTreeMap<String, usize>,
    sites: BTreeMap<String, usize>,
}

impl Counts {
    fn of(bundle: &Bundle) -> Self {
        let payload = &bundle.payload;
        let mut counts = Self {
            sections: [
                ("text", payload.text.len() as u64),
                ("rodata", payload.rodata.len() as u64),
                ("data", payload.data.len() as u64),
                ("bss", u64::from(payload.bss_size)),
            ],
            relocs: BTreeMap::new(),
            symbols: BTreeMap::new(),
            fixups: BTreeMap::new(),
            sites: BTreeMap::new(),
        };
        for reloc in &payload.relocs {
            *counts.relocs.entry(word(&reloc.kind)).or_default() += 1;
        }
        for symbol in &payload.symbols {
            let place = match symbol.place {
                Place::Payload { section: SectionKind::Text, .. } => "text",
                Place::Payload { section: SectionKind::Rodata, .. } => "rodata",
                Place::Payload { section: SectionKind::Data, .. } => "data",
                Place::Payload { section: SectionKind::Bss, .. } => "bss",
                Place::Kernel(_) => "kernel",
                Place::Absolute(_) => "absolute",
            };
            *counts.symbols.entry(place).or_default() += 1;
        }
        for fixup in &payload.fixups {
            *counts.fixups.entry(word(fixup)).or_default() += 1;
        }
        for site in bundle.functions.iter().flat_map(|function| &function.sites) {
            *counts.sites.entry(word(&site.kind)).or_default() += 1;
        }
        counts
    }
}

/// The name of a variant, in lower case.
fn word(value: &impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.chars().take_while(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase()
}

/// The bundle as JSON.
pub fn to_json(read: &ReadBundle) -> String {
    let bundle = &read.bundle;
    let mut value = part(bundle);
    let profile = json!({
        "symbols": bundle.profile.symbols.len(),
        "offsets": bundle.profile.offsets.len(),
        "sizes": bundle.profile.sizes.len(),
        "constants": bundle.profile.constants.len(),
    });
    let support = bundle.support.as_ref().map(|support| {
        json!({ "text": support.text.len(), "rodata": support.rodata.len(), "data": support.data.len(), "bss": support.bss_size })
    });
    let modules = bundle.modules.iter().map(|of| {
        let mut value = part(of);
        value["name"] = json!(of.module.as_ref().map(|module| &module.name));
        value["build_id"] = json!(of.module.as_ref().map(|module| lpk_format::hex::encode(&module.build_id)));
        value
    });
    value["modules"] = modules.collect();
    for (key, more) in [
        ("id", json!(read.id)),
        ("kernel", json!(bundle.kernel)),
        ("manifest", json!(bundle.manifest)),
        ("support", json!(support)),
        ("profile", profile),
    ] {
        value[key] = more;
    }
    serde_json::to_string_pretty(&value).expect("strings and numbers only")
}

/// What the bundle says about the kernel image, or a part of it about a module.
fn part(bundle: &Bundle) -> serde_json::Value {
    let counts = Counts::of(bundle);
    let functions: Vec<_> = bundle
        .functions
        .iter()
        .map(|function| {
            json!({
                "name": function.name,
                "unit": function.unit,
                "old_address": format!("{:#x}", function.old_address),
                "old_size": function.expected.len(),
                "jump_offset": function.jump_offset,
                "new_offset": function.new_offset,
                "new_size": function.new_size,
                "sites": function.sites.len(),
                "returns": function.returns.len(),
            })
        })
        .collect();
    let hooks: Vec<_> = bundle.payload.hooks.iter().map(|hook| hook_json(bundle, hook)).collect();
    let tables: BTreeMap<_, _> = bundle.payload.tables.iter().map(|table| (table.kind.section(), table.size)).collect();
    json!({
        "functions": functions,
        "hooks": hooks,
        "objects": bundle.payload.objects.iter().map(objects_json).collect::<Vec<_>>(),
        "changed_data": bundle.payload.changed.iter().map(changed_json).collect::<Vec<_>>(),
        "sections": counts.sections.into_iter().collect::<BTreeMap<_, _>>(),
        "relocations": counts.relocs,
        "symbols": counts.symbols,
        "fixups": counts.fixups,
        "tables": tables,
        "sites": counts.sites,
    })
}

/// Name of the function that a hook is.
fn hook_function<'b>(bundle: &'b Bundle, hook: &Hook) -> &'b str {
    let mut functions = bundle.payload.functions();
    functions.find(|(offset, _)| *offset == hook.offset).map_or("", |(_, symbol)| symbol.name.as_str())
}

fn changed_json(datum: &DataPatch) -> serde_json::Value {
    let ranges = |ranges: &[Range<u32>]| ranges.iter().map(|range| json!([range.start, range.end])).collect::<Vec<_>>();
    let mut value = json!({
        "name": datum.name,
        "unit": datum.unit,
        "old_address": format!("{:#x}", datum.old_address),
        "old_size": datum.old_size,
        "new_size": datum.new_size,
        "new_section": datum.section,
        "new_offset": datum.new_offset,
    });
    match &datum.change {
        DataChange::InPlace { added, edited, overwrite, .. } => {
            value["strategy"] = json!("in-place");
            (value["new"], value["changed"]) = (json!(ranges(added)), json!(ranges(edited)));
            value["overwrite"] = json!(overwrite);
        }
        DataChange::Moved { to_new, to_old } => {
            value["strategy"] = json!("moved");
            (value["steps_to_new"], value["steps_to_old"]) = (json!(to_new.len()), json!(to_old.len()));
        }
    }
    value
}

/// A changed datum, in a line.
fn changed_text(datum: &DataPatch) -> String {
    let ranges = |name: &str, ranges: &[Range<u32>]| {
        ranges.iter().map(|range| format!(", {name} {}..{}", range.start, range.end)).collect::<String>()
    };
    let what = match &datum.change {
        DataChange::InPlace { added, edited, overwrite, .. } => {
            let always = if *overwrite { ", whatever the guest has there" } else { "" };
            format!("in place{}{}{always}", ranges("new", added), ranges("changed", edited))
        }
        DataChange::Moved { to_new, to_old } => {
            format!("moved, {} steps to the new one and {} back", to_new.len(), to_old.len())
        }
    };
    let DataPatch { name, old_address, old_size, new_size, .. } = datum;
    format!("datum {name} at {old_address:#x}, {old_size} bytes, then {new_size}: {what}")
}

fn objects_json(objects: &ObjectPatch) -> serde_json::Value {
    let added = objects.added.iter().map(|added| json!({ "offset": added.offset, "bytes": hex::encode(&added.bytes) }));
    json!({
        "type": objects.type_name,
        "cache": objects.cache,
        "cache_address": format!("{:#x}", objects.cache_address),
        "old_size": objects.old_size,
        "new_size": objects.new_size,
        "added": added.collect::<Vec<_>>(),
    })
}

/// Objects of a cache, in a line.
fn objects_text(objects: &ObjectPatch) -> String {
    let added = objects.added.iter().map(|added| format!(", at {} {}", added.offset, hex::encode(&added.bytes)));
    let ObjectPatch { type_name, cache, cache_address, old_size, new_size, .. } = objects;
    format!(
        "objects of {type_name} in cache {cache} (pointer at {cache_address:#x}), {old_size} bytes, then {new_size}: each gets{}",
        added.collect::<String>().trim_start_matches(',')
    )
}

fn hook_json(bundle: &Bundle, hook: &Hook) -> serde_json::Value {
    let mut value = json!({ "kind": hook.kind, "function": hook_function(bundle, hook), "offset": hook.offset });
    match &hook.subject {
        HookSubject::Update => {}
        HookSubject::Function { name, old_address } => {
            (value["subject"], value["old_address"]) = (json!(name), json!(format!("{old_address:#x}")));
        }
        HookSubject::Datum { name, old_address, old_size, section, new_offset, new_size } => {
            (value["subject"], value["old_address"]) = (json!(name), json!(format!("{old_address:#x}")));
            (value["old_size"], value["new_size"]) = (json!(old_size), json!(new_size));
            (value["new_section"], value["new_offset"]) = (json!(section), json!(new_offset));
        }
    }
    value
}

/// The bundle for people.
pub fn to_text(read: &ReadBundle) -> String {
    let (bundle, counts) = (&read.bundle, Counts::of(&read.bundle));
    let manifest = &bundle.manifest;
    let mut text = String::new();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.add_row(["name", &manifest.name]);
    table.add_row(["id", &read.id.to_string()]);
    table.add_row(["type", &word(&manifest.update_type)]);
    table.add_row(["kernel", &bundle.kernel.release]);
    table.add_row(["kernel build id", &lpk_format::hex::encode(&bundle.kernel.build_id)]);
    table.add_row(["built by", &manifest.built_by]);
    table.add_row(["diff sha256", &manifest.diff_sha256]);
    table.add_row(["files", &manifest.files.join(" ")]);
    let sections: Vec<String> = counts.sections.iter().map(|(name, size)| format!("{name} {size}")).collect();
    table.add_row(["bytes", &sections.join(", ")]);
    let list = |counts: Vec<(&str, usize)>| {
        let parts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
    };
    let owned =
        |counts: &BTreeMap<String, usize>| list(counts.iter().map(|(name, count)| (name.as_str(), *count)).collect());
    table.add_row(["relocations", &owned(&counts.relocs)]);
    table.add_row(["symbols", &list(counts.symbols.iter().map(|(name, count)| (*name, *count)).collect())]);
    table.add_row(["fix-ups", &owned(&counts.fixups)]);
    let tables = bundle.payload.tables.iter().map(|table| format!("{} {}", table.kind.section(), table.size));
    let tables: Vec<String> = tables.collect();
    table.add_row(["tables", &if tables.is_empty() { "none".to_owned() } else { tables.join(", ") }]);
    let support = bundle.support.as_ref().map_or("none".to_owned(), |support| {
        format!(
            "text {}, rodata {}, data {}, bss {}",
            support.text.len(),
            support.rodata.len(),
            support.data.len(),
            support.bss_size
        )
    });
    table.add_row(["support object", &support]);
    table.add_row(["boot sites", &owned(&counts.sites)]);
    let _ = writeln!(text, "{table}\n");
    let has_something =
        |part: &&Bundle| part.module.is_some() || !part.functions.is_empty() || !part.payload.changed.is_empty();
    for part in bundle.parts().filter(has_something) {
        part_text(part, &mut text);
    }
    for Vouched { about, subject, says, reason } in &manifest.vouched {
        let _ = writeln!(text, "on the author's word: {about} `{subject}`: {says} ({reason})");
    }
    text
}

/// The functions of a part, what it brings and what it leaves out.
fn part_text(bundle: &Bundle, text: &mut String) {
    if let Some(module) = &bundle.module {
        let _ = writeln!(text, "module {} (build id {}):", module.name, lpk_format::hex::encode(&module.build_id));
    }
    let mut functions = Table::new();
    functions.load_style(presets::NOTHING);
    functions.set_header(["function", "unit", "old address", "old", "new", "jump at", "sites", "returns"]);
    for function in &bundle.functions {
        functions.add_row([
            function.name.clone(),
            function.unit.clone(),
            format!("{:#x}", function.old_address),
            function.expected.len().to_string(),
            function.new_size.to_string(),
            format!("+{}", function.jump_offset),
            function.sites.len().to_string(),
            function.returns.len().to_string(),
        ]);
    }
    let _ = writeln!(text, "{functions}");
    for OldCode { name, address, size, .. } in &bundle.manifest.left {
        let _ = writeln!(text, "old code {name} at {address:#x}, {size} bytes: left by itself");
    }
    for datum in &bundle.payload.changed {
        let _ = writeln!(text, "{}", changed_text(datum));
    }
    for objects in &bundle.payload.objects {
        let _ = writeln!(text, "{}", objects_text(objects));
    }
    for hook in &bundle.payload.hooks {
        let function = hook_function(bundle, hook);
        let _ = match &hook.subject {
            HookSubject::Update => writeln!(text, "hook {}: {function}", hook.kind.name()),
            HookSubject::Function { name, old_address } => {
                writeln!(text, "hook {}: {function}, about {name} at {old_address:#x}", hook.kind.name())
            }
            HookSubject::Datum { name, old_address, old_size, new_size, .. } => writeln!(
                text,
                "hook {}: {function}, about {name} at {old_address:#x}, {old_size} bytes, {new_size} in the new copy",
                hook.kind.name()
            ),
        };
    }
    for datum in &bundle.manifest.data {
        let _ = writeln!(text, "data: {} ({}), {} bytes", datum.name, datum.unit, datum.size);
    }
    for left in &bundle.manifest.left_out {
        let _ = writeln!(text, "left out: {} of {}: {}", left.section, left.unit, left.consequence);
    }
}
