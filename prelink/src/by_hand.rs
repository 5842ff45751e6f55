//! An update written by hand, seen from the kernel: what it replaces.
//!
//! Comes in: the declarations of an object, the kernel image and its DWARF. Decided: which function, datum or symbol of the image each
//! one means; a name that means several is refused with all of them. Goes out: [`Declared`], which the linker works from. There is
//! no original to compile and prove: the bytes that the guest must have are those of the image.

use crate::declare::{Declaration, Declares};
use crate::fields;
use crate::refusal::Refusal;
use crate::symbol_db::{AddressKind, KernelSymbol, SymbolKind};
use crate::units::UnitIndex;
use crate::vmlinux::{ImageReloc, KernelImage};
use diff_analyzer::pieces::PieceIndex;
use lpk_format::HookKind;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Code that the kernel tells from the rest by where it lies: bounds from the linker script (`include/asm-generic/vmlinux.lds.h`),
/// and what is special about it.
const SPECIAL: [(&str, &str, &str); 4] = [
    ("__noinstr_text_start", "__noinstr_text_end", "code that must not be probed or traced"),
    ("__entry_text_start", "__entry_text_end", "entry code, which must be mapped while user page tables are in use"),
    ("__static_call_text_start", "__static_call_text_end", "a trampoline that the kernel itself rewrites"),
    ("_text", "_stext", "code that runs before the kernel is mapped"),
];

/// A function of the image that gives way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldFunction {
    /// Its symbol.
    pub symbol: KernelSymbol,
    /// The unit that defines it.
    pub unit: String,
    /// Relocated fields of its code.
    pub fields: Vec<ImageReloc>,
    /// All code that may jump into it: itself, and its unlikely part.
    pub parts: Vec<Range<u64>>,
}

/// A datum of which the update has a new copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedDatum {
    /// The unit of the new copy, by its index.
    pub unit: usize,
    /// The new copy.
    pub piece: PieceIndex,
    /// The old one.
    pub symbol: KernelSymbol,
    /// The file that defines that.
    pub file: String,
}

/// What a unit declares, found in the image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Declared {
    /// Index of the unit.
    pub unit: usize,
    /// New functions and what they replace.
    pub functions: BTreeMap<PieceIndex, OldFunction>,
    /// Data with a new copy.
    pub data: Vec<MovedDatum>,
    /// Symbols of the kernel that the unit refers to and that several files have, by name.
    pub symbols: BTreeMap<String, KernelSymbol>,
    /// Hooks.
    pub hooks: Vec<DeclaredHook>,
}

/// A hook, before it has its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredHook {
    /// When it is called.
    pub kind: HookKind,
    /// The function.
    pub piece: PieceIndex,
    /// Name of the function or datum of the kernel that it is about; empty for the whole update.
    pub subject: String,
    /// The file that defines that, if it was said.
    pub file: Option<String>,
}

/// Finds what the declarations of unit number `unit` mean.
///
/// # Errors
/// A [`Refusal`] for each that means nothing or several things.
pub fn resolve(
    image: &KernelImage,
    units: &UnitIndex<'_>,
    (unit, name): (usize, &str),
    declarations: Vec<Declaration>,
) -> Result<Declared, Vec<Refusal>> {
    let search = Search { image, units, unit: name };
    let mut declared = Declared { unit, ..Declared::default() };
    let (mut refusals, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for Declaration { declares, subject, file } in declarations {
        let place = (subject.as_str(), file.as_deref());
        let found = match declares {
            Declares::Hook(kind, piece) => {
                declared.hooks.push(DeclaredHook { kind, piece, subject, file });
                continue;
            }
            Declares::Symbol => match search.symbol(place) {
                Ok(symbol) => {
                    declared.symbols.insert(subject, symbol);
                    continue;
                }
                Err(refusal) => Err(refusal),
            },
            Declares::Replacement(piece) => search.function(place).and_then(|old| {
                let address = old.symbol.address;
                match declared.functions.insert(piece, old) {
                    Some(_) => {
                        let message = format!("the function that replaces `{subject}` replaces another one as well");
                        Err(search.refuse("declaration", &subject, &message, "write a function for each"))
                    }
                    None => Ok(address),
                }
            }),
            Declares::Datum(piece) => search.datum(place).map(|symbol| {
                let address = symbol.address;
                let file = search.file_of(&symbol);
                declared.data.push(MovedDatum { unit, piece, symbol, file });
                address
            }),
        };
        match found {
            Ok(address) if !taken.insert(address) => {
                let message = format!("`{subject}`, at {address:#x}, is declared to be replaced twice");
                refusals.insert(search.refuse("declaration", &subject, &message, "replace it once"));
            }
            Ok(_) => {}
            Err(refusal) => {
                refusals.insert(refusal);
            }
        }
    }
    if refusals.is_empty() { Ok(declared) } else { Err(refusals.into_iter().collect()) }
}

struct Search<'a, 'u> {
    image: &'a KernelImage,
    units: &'a UnitIndex<'u>,
    unit: &'a str,
}

impl<'u> Search<'_, 'u> {
    fn refuse(&self, rule: &'static str, subject: &str, message: &str, help: &str) -> Refusal {
        let (unit, subject) = (self.unit.to_owned(), subject.to_owned());
        Refusal { rule, unit, subject, message: message.to_owned(), help: help.to_owned() }
    }

    /// The file that a symbol is in, as far as it is known.
    fn file_of(&self, symbol: &KernelSymbol) -> String {
        let of_code = || self.units.at(symbol.address).map(|unit| unit.name.clone());
        let of_datum = || {
            let file = symbol.file.as_deref()?;
            let holds = |unit: &&crate::units::Unit<'u>| {
                unit.name.rsplit('/').next() == Some(file)
                    && unit
                        .variables(self.units)
                        .is_ok_and(|variables| variables.iter().any(|variable| variable.address == symbol.address))
            };
            self.units.iter().find(holds).map(|unit| unit.name.clone())
        };
        let known = if symbol.kind == SymbolKind::Function { of_code() } else { of_datum() };
        known.or_else(|| symbol.file.clone()).unwrap_or_else(|| "no file known".to_owned())
    }

    /// The one symbol of a name, in a file if one is given, of some kinds.
    fn one(
        &self,
        what: &str,
        rule: &'static str,
        (name, file): (&str, Option<&str>),
        wanted: impl Fn(&KernelSymbol) -> bool,
    ) -> Result<KernelSymbol, Refusal> {
        let all: Vec<&KernelSymbol> = self.image.symbols().lookup(name).collect();
        let mut found: Vec<(&KernelSymbol, Option<String>)> =
            all.iter().copied().filter(|symbol| wanted(symbol)).map(|symbol| (symbol, None)).collect();
        found.sort_by_key(|(symbol, _)| symbol.address);
        found.dedup_by_key(|(symbol, _)| symbol.address);
        if found.len() > 1 || file.is_some() {
            found.iter_mut().for_each(|(symbol, file)| *file = Some(self.file_of(symbol)));
        }
        let list = |found: &[(&KernelSymbol, Option<String>)]| -> String {
            let one = |(symbol, file): &(&KernelSymbol, Option<String>)| {
                format!("{:#x} ({})", symbol.address, file.as_deref().unwrap_or("no file known"))
            };
            found.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        let everywhere = found.clone();
        if let Some(file) = file {
            found.retain(|(_, of)| of.as_deref() == Some(file));
        }
        match found.as_slice() {
            [(symbol, _)] => Ok((*symbol).clone()),
            [] => {
                let message = match (file, everywhere.as_slice(), all.first()) {
                    (Some(file), [_, ..], _) => {
                        format!("{file} has no {what} `{name}` in the kernel image; others have: {}", list(&everywhere))
                    }
                    (_, _, Some(other)) => format!(
                        "`{name}`, at {:#x}, is no {what} of the kernel image that has code or contents of its own",
                        other.address
                    ),
                    _ => format!("the kernel image has no {what} `{name}`{}", self.copies(name)),
                };
                let help = "give the name that System.map has; what the compiler has inlined everywhere is not there";
                Err(self.refuse(rule, name, &message, help))
            }
            several => {
                let message = format!("`{name}` names {} places of the kernel: {}", several.len(), list(several));
                let help = "say which file is meant: LUCOS_REPLACE_IN, LUCOS_DATUM_IN, LUCOS_SYMBOL_IN, or FILE:NAME with --replace";
                Err(self.refuse("ambiguous-symbol", name, &message, help))
            }
        }
    }

    /// Copies that the compiler made of a function, for a message.
    fn copies(&self, name: &str) -> String {
        let copy = |other: &&KernelSymbol| {
            other.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
                && other.kind == SymbolKind::Function
        };
        let mut names: Vec<&str> = self.image.symbols().iter().filter(copy).map(|other| other.name.as_str()).collect();
        names.truncate(4);
        if names.is_empty() {
            String::new()
        } else {
            format!(", only copies that the compiler made: {}", names.join(", "))
        }
    }

    fn function(&self, (name, file): (&str, Option<&str>)) -> Result<OldFunction, Refusal> {
        let is_function = |symbol: &KernelSymbol| {
            symbol.kind == SymbolKind::Function && symbol.size > 0 && symbol.address_kind == AddressKind::Image
        };
        let symbol = self.one("function", "unknown-function", (name, file), is_function)?;
        let section = self.image.section_at(symbol.address).map_or("", |section| section.name.as_str());
        let gone = section.starts_with(".init.") || section.starts_with(".exit.");
        let inside = |(start, end, _): &&(&str, &str, &str)| {
            let bound = |name: &str| self.image.symbols().address_of(name);
            bound(start).zip(bound(end)).is_some_and(|(start, end)| (start..end).contains(&symbol.address))
        };
        let special = SPECIAL.iter().find(inside).map(|(_, _, why)| *why);
        if let Some(why) = special.or(gone.then_some("code that has run at boot and is gone")) {
            let message = format!("`{name}` is {why}");
            return Err(self.refuse(
                "special-code",
                name,
                &message,
                "replace the functions that it calls, or that call it",
            ));
        }
        let Some(unit) = self.units.at(symbol.address) else {
            let message = format!("the debug information of the kernel image does not say what file `{name}` is of");
            let help = "give the vmlinux with debug information of all of it";
            return Err(self.refuse("no-debug-information", name, &message, help));
        };
        let Some(code) = self.image.bytes(symbol.address, symbol.size as usize) else {
            let message = format!("`{name}` is not inside its section");
            return Err(self.refuse("unknown-function", name, &message, "give an undamaged vmlinux"));
        };
        let fields = if self.image.has_relocs() {
            self.image.relocs(symbol.address, symbol.size).to_vec()
        } else {
            fields::of_code(self.image, symbol.address, code)
        };
        let end = symbol.address + symbol.size;
        let unlikely = |other: &&KernelSymbol| {
            let rest = other.name.strip_prefix(name);
            let number = rest.and_then(|rest| rest.strip_prefix(".cold"));
            number.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) && other.kind == SymbolKind::Function
        };
        let cold = self.image.symbols().iter().filter(unlikely).map(|other| other.address..other.address + other.size);
        let parts = std::iter::once(symbol.address..end).chain(cold).collect();
        Ok(OldFunction { unit: unit.name.clone(), fields, parts, symbol })
    }

    fn datum(&self, (name, file): (&str, Option<&str>)) -> Result<KernelSymbol, Refusal> {
        let is_datum = |symbol: &KernelSymbol| symbol.kind == SymbolKind::Object && symbol.size > 0;
        let symbol = self.one("variable", "unknown-datum", (name, file), is_datum)?;
        if symbol.address_kind != AddressKind::Image {
            let message = format!("`{name}` is per-CPU data, which cannot have a new copy yet");
            return Err(self.refuse("per-cpu-data", name, &message, "use an array indexed by processor"));
        }
        let section = self.image.section_at(symbol.address).map_or("", |section| section.name.as_str());
        if section.starts_with(".init.") || section.starts_with(".exit.") {
            let message = format!("`{name}` is in {section}, which the kernel has freed after boot");
            return Err(self.refuse("init-reference", name, &message, "an update cannot use what exists at boot only"));
        }
        Ok(symbol)
    }

    fn symbol(&self, (name, file): (&str, Option<&str>)) -> Result<KernelSymbol, Refusal> {
        self.one("symbol", "unresolved-symbol", (name, file), |symbol| symbol.kind != SymbolKind::Label)
    }
}
