//! What an update written by hand says about itself.
//!
//! Comes in: a compiled object in pieces. Decided: whether its section `.lucos.declare` holds records as `support/lucos.h` makes them.
//! Goes out: [`Declaration`]s, or the refusals. What they name is looked up later, in `by_hand`.

use crate::refusal::Refusal;
use diff_analyzer::object::{Reloc, Section};
use diff_analyzer::pieces::{PieceIndex, PieceKind, Pieces, Target};
use diff_analyzer::special::DECLARATIONS;
use lpk_format::HookKind;
use object::elf;

/// Bytes of a record: kind, version, three pointers (`struct lucos_declaration`).
const RECORD: u64 = 32;
/// `LUCOS_DECLARATION_VERSION`.
const VERSION: u32 = 1;
/// Number of `LUCOS_REPLACE`.
const REPLACEMENT: u32 = 1;
/// Number of `LUCOS_DATUM`.
const DATUM: u32 = 2;
/// Number of `LUCOS_SYMBOL_IN`.
const SYMBOL: u32 = 3;
/// Number of the first kind of hook.
const FIRST_HOOK: u32 = 16;

/// What a record declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Declares {
    /// `LUCOS_REPLACE`: a function of the kernel gives way to this one.
    Replacement(PieceIndex),
    /// `LUCOS_DATUM`: a variable of the kernel has this new copy.
    Datum(PieceIndex),
    /// `LUCOS_SYMBOL_IN`: which file's symbol of a name this object refers to.
    Symbol,
    /// A hook, and the function.
    Hook(HookKind, PieceIndex),
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// What it is.
    pub declares: Declares,
    /// Name of a function or datum of the kernel; empty for a hook about the whole update.
    pub subject: String,
    /// The file that defines it, relative to the source tree.
    pub file: Option<String>,
}

/// Whether an object declares anything.
pub fn declares(pieces: &Pieces<'_>) -> bool {
    pieces.object.sections.iter().any(|section| section.name == DECLARATIONS && section.size > 0)
}

/// Reads the records of an object; `unit` is its name in messages.
///
/// # Errors
/// A [`Refusal`] for each record that is none.
pub fn read(unit: &str, pieces: &Pieces<'_>) -> Result<Vec<Declaration>, Vec<Refusal>> {
    let (mut found, mut refusals) = (Vec::new(), Vec::new());
    let sections = pieces.object.sections.iter().filter(|section| section.name == DECLARATIONS);
    for section in sections {
        let mut refuse = |message: String| {
            let help = "use the macros of the lucos.h that this lucos-build prints (`lucos-build header`)";
            let (unit, subject) = (unit.to_owned(), DECLARATIONS.to_owned());
            refusals.push(Refusal { rule: "declaration", unit, subject, message, help: help.to_owned() });
        };
        if !section.size.is_multiple_of(RECORD) || section.data.len() as u64 != section.size {
            refuse(format!("section {DECLARATIONS} has {} bytes, no multiple of {RECORD}", section.size));
            continue;
        }
        for at in (0..section.size).step_by(RECORD as usize) {
            match record(pieces, section, at) {
                Ok(declaration) => found.push(declaration),
                Err(why) => refuse(format!("the record at {at:#x} of {DECLARATIONS}: {why}")),
            }
        }
    }
    if refusals.is_empty() { Ok(found) } else { Err(refusals) }
}

fn record(pieces: &Pieces<'_>, section: &Section, at: u64) -> Result<Declaration, String> {
    let word = |offset: u64| {
        let start = (at + offset) as usize;
        let bytes = section.data.get(start..start + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    };
    let (kind, version) = (word(0), word(4));
    if version != VERSION {
        return Err(format!("it has version {version}, this lucos-build reads version {VERSION}"));
    }
    let hook = kind.checked_sub(FIRST_HOOK).and_then(|at| HookKind::ALL.get(at as usize)).copied();
    if hook.is_none() && !(REPLACEMENT..=SYMBOL).contains(&kind) {
        return Err(format!("its kind {kind} is not known"));
    }
    let pointer = |offset: u64| section.relocs.iter().find(|reloc| reloc.offset == at + offset);
    let subject = match pointer(8) {
        Some(reloc) => text(pieces, reloc).ok_or("it names nothing")?,
        None => String::new(),
    };
    let file = pointer(16).map(|reloc| text(pieces, reloc).ok_or("its file is no text")).transpose()?;
    if subject.is_empty() != hook.is_some_and(|hook| !hook.is_of_function() && !hook.is_of_datum()) {
        return Err("its name is missing, or one too many".to_owned());
    }
    let declares = match (hook, kind) {
        (Some(hook), _) => Declares::Hook(hook, target(pieces, pointer(24), PieceKind::Function)?),
        (None, REPLACEMENT) => Declares::Replacement(target(pieces, pointer(24), PieceKind::Function)?),
        (None, DATUM) => Declares::Datum(target(pieces, pointer(24), PieceKind::Datum)?),
        _ if file.is_none() => return Err("it names no file".to_owned()),
        _ => Declares::Symbol,
    };
    Ok(Declaration { declares, subject, file })
}

/// The function or variable of the object that a pointer leads to.
fn target(pieces: &Pieces<'_>, pointer: Option<&Reloc>, wanted: PieceKind) -> Result<PieceIndex, String> {
    let found = pointer.filter(|reloc| reloc.kind == elf::R_X86_64_64.0).map(|reloc| pieces.target(reloc));
    match found {
        Some(Target::Piece(piece, 0)) if pieces.piece(piece).kind == wanted => Ok(piece),
        Some(Target::External(symbol)) => {
            Err(format!("`{}` is not defined in this object", pieces.object.symbol(symbol).name))
        }
        _ => {
            let what = if wanted == PieceKind::Datum { "variable" } else { "function" };
            Err(format!("it leads to no {what} of this object"))
        }
    }
}

/// The string that a pointer leads to.
fn text(pieces: &Pieces<'_>, reloc: &Reloc) -> Option<String> {
    let Target::Piece(piece, at) = pieces.target(reloc) else { return None };
    let bytes = pieces.bytes(piece).get(usize::try_from(at).ok()?..)?;
    let end = bytes.iter().position(|&byte| byte == 0)?;
    String::from_utf8(bytes[..end].to_vec()).ok()
}
