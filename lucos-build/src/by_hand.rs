//! Updates and hooks written by hand, from their object on.
//!
//! Comes in: an object that was compiled here (`--update`, `--hooks`) or by the author (`prelink`). Decided: what it declares; whether it
//! was compiled as the kernel was; whether new functions take and return what those of the kernel do, on types of the same
//! layout; whether a jump at an old function's entry reaches all of its code. Goes out: a unit for the linker, and what it declares.

mod fits;

use crate::pipeline::Stop;
use crate::report::Reason;
use diff_analyzer::dwarf_layout::{self, LayoutError, Layouts};
use diff_analyzer::object::{Object, ObjectError};
use diff_analyzer::object_diff::{ObjectDiff, compare};
use diff_analyzer::pieces::{Pieces, PiecesError};
use prelink::by_hand::{self, Declared};
use prelink::declare::{self, Declaration, Declares};
use prelink::link;
use prelink::prove::Proof;
use prelink::refusal::Refusal;
use prelink::units::UnitIndex;
use prelink::vmlinux::KernelImage;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An object that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ByHandError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What `prelink --replace` declares: `[FILE:]OLD=NEW`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    /// File of the old function.
    pub file: Option<String>,
    /// The kernel's function.
    pub old: String,
    /// The object's function.
    pub new: String,
}

impl std::str::FromStr for Replacement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not of the form OLD=NEW or FILE:OLD=NEW");
        let (old, new) = text.split_once('=').ok_or_else(wrong)?;
        let (file, old) = match old.rsplit_once(':') {
            Some((file, old)) => (Some(file.to_owned()), old),
            None => (None, old),
        };
        let empty = old.is_empty() || new.is_empty() || file.as_ref().is_some_and(String::is_empty);
        if empty { Err(wrong()) } else { Ok(Self { file, old: old.to_owned(), new: new.to_owned() }) }
    }
}

/// An object with its types.
pub struct HandObject {
    /// The name of its unit: the file's.
    pub name: String,
    bytes: Vec<u8>,
    object: Object,
    empty: Object,
    layouts: Layouts,
    producer: Option<String>,
    vermagic: Option<String>,
}

impl HandObject {
    /// Reads an object; `name` is that of the file that the author wrote.
    ///
    /// # Errors
    /// Refused when it is no object with debug information; failed when it cannot be read.
    pub fn read(path: &Path, name: &str) -> Result<Self, Stop> {
        let bytes =
            std::fs::read(path).map_err(|source| Stop::failed(ByHandError::Read { path: path.to_owned(), source }))?;
        let refuse =
            |rule, message: String, help: &str| Stop::refused(Reason::new(rule, message).at(name, None).help(help));
        let of_object =
            |error: ObjectError| refuse("not-an-object", error.to_string(), "give a relocatable x86-64 object");
        let object = Object::parse(&bytes).map_err(of_object)?;
        let of_layouts = |error: LayoutError| {
            let help = "compile it with debug information (-g): types are compared with the kernel's";
            refuse("no-debug-information", format!("its debug information cannot be used: {error}"), help)
        };
        let layouts = dwarf_layout::of_object(&bytes).map_err(of_layouts)?;
        let producer = dwarf_layout::producer(&bytes);
        let vermagic = fits::vermagic(&object);
        Ok(Self { name: name.to_owned(), bytes, object, empty: Object::default(), layouts, producer, vermagic })
    }

    /// Cuts it into pieces, and compares it with nothing: all of it is new.
    ///
    /// # Errors
    /// Refused when a table of it cannot be read.
    pub fn cut(&self, sizes: &BTreeMap<String, u64>) -> Result<HandPieces<'_>, Stop> {
        let refuse = |error: PiecesError| {
            Stop::refused(Reason::new("unknown-entry-size", error.to_string()).at(self.name.clone(), None))
        };
        let cut = |object| Pieces::cut(object, sizes).map_err(refuse);
        let (original, pieces) = (cut(&self.empty)?, cut(&self.object)?);
        let diff = compare(&original, &pieces);
        Ok(HandPieces { object: self, original, pieces, diff, proof: Proof::default() })
    }
}

/// A unit written by hand, in pieces.
pub struct HandPieces<'o> {
    object: &'o HandObject,
    original: Pieces<'o>,
    pieces: Pieces<'o>,
    diff: ObjectDiff,
    proof: Proof,
}

impl<'o> HandPieces<'o> {
    /// The file of the object.
    pub fn bytes(&self) -> &[u8] {
        &self.object.bytes
    }

    /// The unit for the linker.
    pub fn unit(&self) -> link::Unit<'_, 'o> {
        link::Unit {
            name: &self.object.name,
            original: &self.original,
            patched: &self.pieces,
            diff: &self.diff,
            proof: &self.proof,
            data: &[],
        }
    }

    /// What it declares, and `more` that was typed, as unit number `number` of the link; all checks are made.
    ///
    /// # Errors
    /// All [`Refusal`]s of the first step that has some.
    pub fn declared(
        &self,
        image: &KernelImage,
        units: &UnitIndex<'_>,
        number: usize,
        more: &[Replacement],
    ) -> Result<Declared, Vec<Refusal>> {
        let name = self.object.name.as_str();
        let mut declarations = declare::read(name, &self.pieces)?;
        let typed: Vec<Result<Declaration, Refusal>> = more.iter().map(|more| self.typed(more)).collect();
        let (typed, unknown): (Vec<_>, Vec<_>) = typed.into_iter().partition(Result::is_ok);
        let unknown: Vec<Refusal> = unknown.into_iter().filter_map(Result::err).collect();
        if !unknown.is_empty() {
            return Err(unknown);
        }
        declarations.extend(typed.into_iter().flatten());
        let declared = by_hand::resolve(image, units, (number, name), declarations)?;
        let mut refusals = fits::options(self.object, image, units);
        refusals.extend(fits::functions(self.object, &self.pieces, image, units, &declared));
        if refusals.is_empty() { Ok(declared) } else { Err(refusals) }
    }

    fn typed(&self, replacement: &Replacement) -> Result<Declaration, Refusal> {
        let named = self.pieces.iter().find(|(_, piece)| {
            let mut names = piece.symbols.iter().map(|&symbol| self.pieces.object.symbol(symbol).name.as_str());
            piece.kind == diff_analyzer::pieces::PieceKind::Function && names.any(|name| name == replacement.new)
        });
        let Some((piece, _)) = named else {
            return Err(Refusal {
                rule: "unknown-function",
                unit: self.object.name.clone(),
                subject: replacement.new.clone(),
                message: format!("the object has no function `{}`", replacement.new),
                help: "--replace OLD=NEW: OLD is of the kernel, NEW of the object".to_owned(),
            });
        };
        let (subject, file) = (replacement.old.clone(), replacement.file.clone());
        Ok(Declaration { declares: Declares::Replacement(piece), subject, file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_is_old_and_new() {
        let parse = |text: &str| text.parse::<Replacement>();
        let replacement = |file: Option<&str>| Replacement {
            file: file.map(str::to_owned),
            old: "show".to_owned(),
            new: "new_show".to_owned(),
        };
        assert_eq!(parse("show=new_show"), Ok(replacement(None)));
        assert_eq!(parse("fs/proc/a.c:show=new_show"), Ok(replacement(Some("fs/proc/a.c"))));
        for text in ["show", "=x", "show=", ":show=x", ""] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
