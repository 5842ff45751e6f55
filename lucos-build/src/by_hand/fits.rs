//! Does an object that was written by hand fit the kernel?
//!
//! Comes in: the object, the kernel image and its DWARF. Decided: whether the compiler and the options that shape code are those of the
//! kernel; whether each new function has the types of what it replaces, laid out alike; whether the old function's code is in other
//! functions as well, where no jump reaches it. Goes out: refusals.

use super::HandObject;
use crate::identity::same_producer;
use diff_analyzer::dwarf_layout::{Function, Layouts, TypeKind};
use diff_analyzer::layout_diff::{self, Effect};
use diff_analyzer::object::Object;
use diff_analyzer::pieces::{PieceIndex, Pieces};
use prelink::by_hand::{Declared, OldFunction};
use prelink::copies;
use prelink::refusal::Refusal;
use prelink::symbol_db::SymbolKind;
use prelink::units::UnitIndex;
use prelink::vmlinux::KernelImage;
use std::collections::BTreeSet;

/// A unit of every kernel (`init/Makefile`), compiled with the options of all.
const ORDINARY: &str = "init/main.c";
/// Options besides `-m…` that shape code or types.
const SHAPING: [&str; 9] = [
    "-fcf-protection",
    "-fpic",
    "-fPIC",
    "-fpie",
    "-fPIE",
    "-fshort-wchar",
    "-fshort-enums",
    "-funsigned-char",
    "-fpack-struct",
];
/// Options of `-m…` by their beginnings that change how fast code is or what records there are, and that units of a kernel differ in.
const HARMLESS: [&str; 6] =
    ["-mtune=", "-mfentry", "-mrecord-mcount", "-mstack-protector", "-mpreferred-stack-boundary", "-march="];

/// What a module's object says that it was made for (`scripts/mod/modpost.c`, `add_header`).
pub(super) fn vermagic(object: &Object) -> Option<String> {
    let section = object.sections.iter().find(|section| section.name == ".modinfo")?;
    let found = section.data.split(|&byte| byte == 0).find_map(|text| text.strip_prefix(b"vermagic="))?;
    Some(String::from_utf8_lossy(found).into_owned())
}

/// Options of a producer that shape code.
fn shaping(producer: &str) -> BTreeSet<&str> {
    let counts = |word: &&str| {
        let machine = word.starts_with("-m") && !HARMLESS.iter().any(|harmless| word.starts_with(harmless));
        machine || SHAPING.iter().any(|option| word.starts_with(option))
    };
    producer.split(' ').filter(counts).collect()
}

/// Whether the object was compiled as the kernel was, as far as it tells.
pub(super) fn options(object: &HandObject, image: &KernelImage, units: &UnitIndex<'_>) -> Vec<Refusal> {
    let refuse = |rule, message: String, help: &str| Refusal {
        rule,
        unit: object.name.clone(),
        subject: String::new(),
        message,
        help: help.to_owned(),
    };
    let mut refusals = Vec::new();
    let release = image.release();
    if let Some(vermagic) = object.vermagic.as_ref().filter(|magic| magic.split(' ').next() != Some(release)) {
        let message = format!("it was made for kernel `{vermagic}`; the image is {release}");
        refusals.push(refuse("wrong-module", message, "compile it in the build folder of this kernel"));
    }
    let Some(theirs) = units.find(ORDINARY).map(|unit| unit.producer.as_str()) else { return refusals };
    let Some(ours) = object.producer.as_deref() else {
        let help = "compile it with debug information (-g)";
        refusals.push(refuse("no-debug-information", "it does not say what compiled it".to_owned(), help));
        return refusals;
    };
    if !same_producer(ours, theirs) {
        let message = format!("the kernel was compiled by `{}`, the object by `{}`", short(theirs), short(ours));
        refusals.push(refuse("wrong-compiler", message, "compile it with the compiler of the kernel"));
        return refusals;
    }
    let (theirs, ours) = (shaping(theirs), shaping(ours));
    if theirs != ours {
        let list = |a: &BTreeSet<&str>, b: &BTreeSet<&str>| {
            let list: Vec<&str> = a.difference(b).copied().collect();
            if list.is_empty() { "none".to_owned() } else { list.join(" ") }
        };
        let message = format!(
            "it was compiled with other options than the kernel: missing {}, in excess {}",
            list(&theirs, &ours),
            list(&ours, &theirs)
        );
        refusals.push(refuse(
            "wrong-options",
            message,
            "compile it as the kernel's build compiles a unit of the image",
        ));
    }
    refusals
}

fn short(producer: &str) -> &str {
    producer.find(" -").map_or(producer, |end| &producer[..end])
}

/// Whether the new functions can stand in for the old ones.
pub(super) fn functions(
    object: &HandObject,
    pieces: &Pieces<'_>,
    image: &KernelImage,
    units: &UnitIndex<'_>,
    declared: &Declared,
) -> Vec<Refusal> {
    let mut refusals = BTreeSet::new();
    for (&piece, old) in &declared.functions {
        let mut refuse = |rule, message: String, help: &str| {
            let (unit, subject) = (object.name.clone(), old.symbol.name.clone());
            refusals.insert(Refusal { rule, unit, subject, message, help: help.to_owned() });
        };
        let layouts = units.at(old.symbol.address).map(|unit| unit.layouts(units));
        let layouts = match layouts {
            Some(Ok(layouts)) => layouts,
            Some(Err(error)) => {
                refuse("no-debug-information", error.to_string(), "give an undamaged vmlinux");
                continue;
            }
            None => continue,
        };
        if let Err((rule, message)) = same_types(object, pieces, piece, old, &layouts) {
            let help = match rule {
                "type-layout" => "include the kernel's own headers, in the order in which the kernel's file does",
                _ => "give the new function the types of the old one; other types need a new function and new callers",
            };
            refuse(rule, message, help);
        }
        match copies::of_function(units, &old.symbol.name, old.symbol.address) {
            Ok(holders) => {
                let replaced: BTreeSet<u64> = declared.functions.values().map(|old| old.symbol.address).collect();
                let lives = |address: u64| {
                    let section = image.section_at(address).map_or("", |section| section.name.as_str());
                    !section.starts_with(".init.") && !section.starts_with(".exit.")
                };
                // Parts that the compiler made for some callers have the function's name in the debug information.
                let name = |address: u64, known: &str| {
                    let mut symbols = image.symbols().at(address).filter(|symbol| symbol.kind == SymbolKind::Function);
                    symbols.next().map_or_else(|| known.to_owned(), |symbol| symbol.name.clone())
                };
                let left: Vec<String> = holders
                    .iter()
                    .filter(|holder| !replaced.contains(&holder.address) && lives(holder.address))
                    .map(|holder| format!("`{}` ({:#x})", name(holder.address, &holder.name), holder.address))
                    .collect();
                if !left.is_empty() {
                    let message = format!(
                        "the compiler has put code of `{}` into {}, where a jump at its entry does not reach it",
                        old.symbol.name,
                        left.join(", ")
                    );
                    refuse(
                        "inlined-copies",
                        message,
                        "replace these functions as well, or make the update from a diff",
                    );
                }
            }
            Err(error) => refuse("no-debug-information", error.to_string(), "give an undamaged vmlinux"),
        }
    }
    refusals.into_iter().collect()
}

/// Whether two functions take and return the same types, and these are laid out alike on both sides.
fn same_types(
    object: &HandObject,
    pieces: &Pieces<'_>,
    piece: PieceIndex,
    old: &OldFunction,
    layouts: &Layouts,
) -> Result<(), (&'static str, String)> {
    let (old_name, new_name) = (old.symbol.name.as_str(), pieces.piece(piece).name.as_str());
    let find = |layouts: &'_ Layouts, name: &str| -> Option<Function> {
        layouts.functions.iter().find(|function| function.name == name).cloned()
    };
    let Some(before) = find(layouts, old_name) else {
        let message = format!("the debug information of {} does not say what types `{old_name}` takes", old.unit);
        return Err(("signature-changed", message));
    };
    let Some(after) = find(&object.layouts, new_name) else {
        return Err((
            "no-debug-information",
            format!("the debug information does not say what types `{new_name}` takes"),
        ));
    };
    if (&before.returns, &before.parameters) != (&after.returns, &after.parameters) {
        let message = format!(
            "`{new_name}` takes or returns other types than `{old_name}`: `{}` instead of `{}`",
            after.declaration, before.declaration
        );
        return Err(("signature-changed", message));
    }
    let differs = layout_diff::compare(layouts, &object.layouts).into_iter().find(|change| {
        change.effect == Effect::Layout && change.kind != TypeKind::Typedef && change.consequence_of.is_empty()
    });
    match differs {
        Some(change) => {
            let place = change.place.as_ref().map_or_else(String::new, |place| format!(" ({place})"));
            let message = format!(
                "{} is laid out otherwise than in {}: {} bytes instead of {}{place}",
                change.name, old.unit, change.new_size, change.old_size
            );
            Err(("type-layout", message))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_shape_code_count() {
        let kernel =
            "GNU C11 12.2.0 -mno-sse -mcmodel=kernel -mtune=generic -mfentry -O2 -fcf-protection=none -fno-common";
        let same = "GNU C11 12.2.0 -mcmodel=kernel -mno-sse -g -O2 -fcf-protection=none";
        assert_eq!(shaping(kernel), shaping(same));
        for other in ["-fcf-protection=branch", "-mcmodel=small", "-fPIC", "-mindirect-branch=keep"] {
            assert_ne!(shaping(kernel), shaping(&format!("{same} {other}")), "{other}");
        }
    }
}
