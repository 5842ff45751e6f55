//! The reader: the bytes of a file become a bundle, or the reason why not.
//!
//! Comes in: any bytes. Decided, in this order: digest and version; the ELF headers; every record; every rule of a
//! sound bundle; and that no byte differs from what the writer would have written. Goes out: a [`ReadBundle`] that
//! needs no further check, or the first thing that is wrong.
//!
//! Nothing is allocated by a count of the file: every count is compared with the bytes that are there first.

mod error;
mod functions;
mod linked;
mod sections;

pub use error::ReadError;

use crate::check::{Image, Problem, check};
use crate::digest::{self, BundleId};
use crate::layout::{Part, SECTION_NAMES, index};
use crate::records::{self, RecordError};
use crate::write::{symbol_info, write};
use crate::{Bundle, GuestProfile, Manifest, ModuleId};
use crate::{data, hooks, objects};
use functions::functions;
use linked::{part, symbol_entries, symbols};
use object::elf;
use sections::Sections;

/// A bundle that was read and checked, and its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadBundle {
    /// Identity of the bundle.
    pub id: BundleId,
    /// Its contents.
    pub bundle: Bundle,
}

/// Reads a bundle and checks everything about it.
pub fn read(bytes: &[u8]) -> Result<ReadBundle, ReadError> {
    read_file(bytes, false)
}

/// Reads a bundle, or a part of one; a part has no parts, so this goes one step down and no further.
fn read_file(bytes: &[u8], is_part: bool) -> Result<ReadBundle, ReadError> {
    let id = digest::verify(bytes)?;
    let sections = Sections::of(bytes)?;
    let kernel = sections.decode(index::NOTE_KERNEL, records::decode_kernel_notes)?;
    let profile: GuestProfile = json(&sections, index::PROFILE)?;
    let manifest: Manifest = json(&sections, index::MANIFEST)?;
    let module: Option<ModuleId> = match sections.get(index::MODULE) {
        [] => None,
        _ => Some(json(&sections, index::MODULE)?),
    };
    let files = sections.decode(index::MODULES, records::decode_parts)?;
    if is_part && !files.is_empty() {
        return Err(Problem::PartOfPart.into());
    }
    let part_of = |(at, file): (usize, &&[u8])| match read_file(file, true) {
        Ok(read) => Ok(read.bundle),
        Err(cause) => Err(ReadError::Part { index: at, cause: Box::new(cause) }),
    };
    let modules = files.iter().enumerate().map(part_of).collect::<Result<Vec<_>, _>>()?;
    let image = Image::of(&profile.symbols, module.as_ref())?;
    sections.check_kernel(image)?;
    let entries = symbol_entries(&sections)?;
    let file_symbol = entries.iter().position(|entry| entry.st_info == symbol_info(elf::STT_FILE));
    let (of_payload, of_support) = entries.split_at(file_symbol.unwrap_or(entries.len()));
    let mut payload = part(&sections, Part::Payload, symbols(&sections, Part::Payload, of_payload, 1, image)?, 1)?;
    payload.tables = sections.decode(index::TABLES, records::decode_tables)?;
    payload.changed = sections.decode(index::CHANGED, data::decode)?;
    payload.objects = sections.decode(index::OBJECTS, objects::decode)?;
    payload.hooks = sections.decode(index::HOOKS, hooks::decode)?;
    let support = match of_support {
        [] => None,
        [_file, of_support @ ..] => {
            let first = of_payload.len() + 2;
            let symbols = symbols(&sections, Part::Support, of_support, first, image)?;
            Some(part(&sections, Part::Support, symbols, first)?)
        }
    };
    let functions = functions(&sections, &manifest)?;
    let bundle = Bundle { kernel, profile, manifest, payload, functions, support, module, modules };
    check(&bundle)?;
    canonical(&bundle, &sections, bytes)?;
    Ok(ReadBundle { id, bundle })
}

/// Says of a record which section it is in.
fn in_section(at: usize) -> impl Fn(RecordError) -> ReadError {
    move |cause| ReadError::Record { section: SECTION_NAMES[at], cause }
}

/// Compares the file with the only encoding of its contents, and points at the first byte that is otherwise.
fn canonical(bundle: &Bundle, sections: &Sections<'_>, bytes: &[u8]) -> Result<(), ReadError> {
    let written = write(bundle).map_err(|error| ReadError::Rewrite(Box::new(error)))?;
    if written == bytes {
        return Ok(());
    }
    // A section of another size moves all behind it, so contents are compared first. Digest and id differ as soon as
    // anything does; they are never the cause.
    let ours = Sections::of(&written)?;
    let contents = (1..index::COUNT).filter(|at| ![index::NOTE_ID, index::DIGEST].contains(at));
    let in_section = contents
        .map(|at| (at, first_difference(sections.get(at), ours.get(at), |_| false)))
        .find_map(|(at, difference)| Some(sections.start(at) + difference?));
    let seal = digest::ranges(bytes);
    let is_seal = |at: usize| seal.iter().flatten().any(|range| range.contains(&at));
    let offset = in_section.or_else(|| first_difference(bytes, &written, is_seal)).unwrap_or_default();
    Err(ReadError::NotCanonical { offset })
}

fn first_difference(found: &[u8], expected: &[u8], skip: impl Fn(usize) -> bool) -> Option<usize> {
    let differs = found.iter().zip(expected).enumerate().filter(|(_, (a, b))| a != b);
    let shorter = (found.len() != expected.len()).then_some(found.len().min(expected.len()));
    differs.map(|(at, _)| at).find(|at| !skip(*at)).or(shorter)
}

fn json<T: serde::de::DeserializeOwned>(sections: &Sections<'_>, at: usize) -> Result<T, ReadError> {
    serde_json::from_slice(sections.get(at)).map_err(|cause| ReadError::Json { section: SECTION_NAMES[at], cause })
}
