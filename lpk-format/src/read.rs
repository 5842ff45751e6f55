//! The reader: the bytes of a file become a bundle, or the reason why not.
//!
//! Comes in: any bytes. Decided, in this order: digest and version; the ELF headers; every record; every rule of a
//! sound bundle; and that no byte differs from what the writer would have written. Goes out: a [`ReadBundle`] that
//! needs no further check, or the first thing that is wrong.
//!
//! Nothing is allocated by a count of the file: every count is compared with the bytes that are there first.

mod sections;

use object::LittleEndian as LE;
use object::elf;
use object::pod::slice_from_all_bytes;

use crate::check::{Image, Problem, check};
use crate::digest::{self, BundleId, SealError};
use crate::layout::{Part, SECTION_NAMES, index};
use crate::records::{self, Cursor, FunctionRecord, RecordError};
use crate::write::{WriteError, symbol_info, write};
use crate::{Bundle, FunctionPatch, GuestProfile, Manifest, ModuleId, Payload, Place, Reloc, RelocKind, Symbol};
use crate::{data, hooks, objects, returns};
use sections::Sections;

/// A bundle that was read and checked, and its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadBundle {
    /// Identity of the bundle.
    pub id: BundleId,
    /// Its contents.
    pub bundle: Bundle,
}

/// Why a file is not a bundle that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Digest, id or version are not right.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A field of the file header is not what every bundle has.
    #[error("file header: {field} is {found:#x}, {expected:#x} is expected")]
    FileHeader {
        /// Name of the field in the gABI.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The value of every bundle.
        expected: u64,
    },
    /// A section has another name than its place in the table asks for.
    #[error("section {index} is called `{found}`, `{expected}` is expected")]
    SectionName {
        /// Index in the section header table.
        index: usize,
        /// Its name.
        found: String,
        /// The name of every bundle.
        expected: &'static str,
    },
    /// A field of a section header is not what every bundle has.
    #[error("section `{section}`: {field} is {found:#x}, {expected:#x} is expected")]
    SectionHeader {
        /// Name of the section.
        section: &'static str,
        /// Name of the field in the gABI.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The value of every bundle with these contents.
        expected: u64,
    },
    /// A section's bytes lie outside of the file.
    #[error("section `{section}`: {size:#x} bytes at {offset:#x} are outside of the file of {file:#x} bytes")]
    SectionRange {
        /// Name of the section.
        section: &'static str,
        /// Offset in the file.
        offset: u64,
        /// Size in bytes.
        size: u64,
        /// Size of the file.
        file: usize,
    },
    /// The file does not end behind the section headers.
    #[error("the file has {found:#x} bytes, {expected:#x} are expected")]
    FileSize {
        /// Size of the file.
        found: u64,
        /// Where the section headers end.
        expected: u64,
    },
    /// A table whose size is no multiple of its entries.
    #[error("section `{section}` has {size} bytes, no multiple of its entries of {entry} bytes")]
    TableSize {
        /// Name of the section.
        section: &'static str,
        /// Its size.
        size: usize,
        /// Size of an entry.
        entry: usize,
    },
    /// A section whose bytes are not records.
    #[error("section `{section}`: {cause}")]
    Record {
        /// Name of the section.
        section: &'static str,
        /// What is wrong.
        cause: RecordError,
    },
    /// A section whose bytes are not the JSON they should be.
    #[error("section `{section}` is not the JSON of a bundle: {cause}")]
    Json {
        /// Name of the section.
        section: &'static str,
        /// What the decoder says.
        cause: serde_json::Error,
    },
    /// A symbol table that does not begin with the null symbol.
    #[error("the symbol table does not begin with the null symbol")]
    NoNullSymbol,
    /// A symbol whose name is not in the string table, or not UTF-8.
    #[error("symbol {index}: no name in UTF-8 at {offset:#x} of .strtab")]
    SymbolName {
        /// Index in `.symtab`.
        index: usize,
        /// `st_name`.
        offset: u32,
    },
    /// A symbol of a type, binding or visibility that no bundle has.
    #[error("symbol {index}: type, binding {info:#x} and visibility {other:#x}; a local NOTYPE or FUNC is expected")]
    SymbolInfo {
        /// Index in `.symtab`.
        index: usize,
        /// `st_info`.
        info: u8,
        /// `st_other`.
        other: u8,
    },
    /// A symbol in a section that holds none.
    #[error("symbol {index} is in section {section}, which holds no symbols")]
    SymbolSection {
        /// Index in `.symtab`.
        index: usize,
        /// `st_shndx`.
        section: u16,
    },
    /// A symbol's value does not fit its section.
    #[error("symbol {index} has the value {value:#x}, which no section of a bundle reaches")]
    SymbolValue {
        /// Index in `.symtab`.
        index: usize,
        /// `st_value`.
        value: u64,
    },
    /// A relocation of a type that no bundle has.
    #[error("`{section}`: relocation {index} has type {kind}; 64, 32, 32S, PC32, PLT32 or PC64 is expected")]
    RelocKind {
        /// Name of the section.
        section: &'static str,
        /// Index in it.
        index: usize,
        /// The type (psABI 1.0, table 4.9).
        kind: u32,
    },
    /// A relocation against the null symbol, or against a symbol of the other part.
    #[error("`{section}`: relocation {index} names symbol {symbol}, the symbols it may name begin at {first}")]
    RelocOtherSymbol {
        /// Name of the section.
        section: &'static str,
        /// Index in it.
        index: usize,
        /// Index in `.symtab`.
        symbol: u32,
        /// Index in `.symtab` of the first symbol of the part.
        first: usize,
    },
    /// A relocation whose field lies beyond every section.
    #[error("`{section}`: relocation {index} has the offset {offset:#x}, beyond 4 GiB")]
    RelocOffset {
        /// Name of the section.
        section: &'static str,
        /// Index in it.
        index: usize,
        /// `r_offset`.
        offset: u64,
    },
    /// A function whose part of another section does not begin where the one before ends, or ends outside.
    #[error("function {index}: {size} bytes at {offset} of `{section}`; they must begin at {expected} and end in it")]
    FunctionPart {
        /// Index in `.lucos.functions`.
        index: usize,
        /// Name of the other section.
        section: &'static str,
        /// Offset in it.
        offset: u32,
        /// Size in bytes.
        size: u32,
        /// Where the part of the function before ends.
        expected: u32,
    },
    /// Bytes of a section that belong to no function.
    #[error("`{section}` has {size} bytes, the functions take {used}")]
    Unused {
        /// Name of the section.
        section: &'static str,
        /// Its size.
        size: usize,
        /// Bytes that belong to functions.
        used: u32,
    },
    /// A function that names no entry of the manifest.
    #[error("function {index} names entry {found} of the manifest's functions, there are {count}")]
    ManifestIndex {
        /// Index in `.lucos.functions`.
        index: usize,
        /// The entry named.
        found: u32,
        /// Entries there are.
        count: usize,
    },
    /// A part that is not a sound bundle.
    #[error("part {index}: {cause}")]
    Part {
        /// Index in `.lucos.modules`.
        index: usize,
        /// What is wrong with it.
        cause: Box<ReadError>,
    },
    /// The bundle breaks a rule of the format.
    #[error(transparent)]
    Unsound(#[from] Problem),
    /// A byte that means nothing, or the same thing in other words.
    #[error("byte {offset:#x} is not what the writer of this format version writes there")]
    NotCanonical {
        /// Offset in the file.
        offset: usize,
    },
    /// The bundle could not be written again for comparison.
    #[error("the bundle could not be written again for comparison: {0}")]
    Rewrite(Box<WriteError>),
}

/// Reads a bundle and checks everything about it.
pub fn read(bytes: &[u8]) -> Result<ReadBundle, ReadError> {
    read_file(bytes, false)
}

/// Reads a bundle, or a part of one; a part has no parts, so this goes one step down and no further.
fn read_file(bytes: &[u8], is_part: bool) -> Result<ReadBundle, ReadError> {
    let id = digest::verify(bytes)?;
    let sections = Sections::of(bytes)?;
    let record = |at: usize| move |cause| ReadError::Record { section: SECTION_NAMES[at], cause };
    let kernel = records::decode_kernel_notes(sections.get(index::NOTE_KERNEL)).map_err(record(index::NOTE_KERNEL))?;
    let profile: GuestProfile = json(&sections, index::PROFILE)?;
    let manifest: Manifest = json(&sections, index::MANIFEST)?;
    let module: Option<ModuleId> = match sections.get(index::MODULE) {
        [] => None,
        _ => Some(json(&sections, index::MODULE)?),
    };
    let files = records::decode_parts(sections.get(index::MODULES)).map_err(record(index::MODULES))?;
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
    payload.tables = records::decode_tables(sections.get(index::TABLES)).map_err(record(index::TABLES))?;
    payload.changed = data::decode(sections.get(index::CHANGED)).map_err(record(index::CHANGED))?;
    payload.objects = objects::decode(sections.get(index::OBJECTS)).map_err(record(index::OBJECTS))?;
    payload.hooks = hooks::decode(sections.get(index::HOOKS)).map_err(record(index::HOOKS))?;
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

/// The entries of an ELF table.
fn table<'data, T: object::pod::Pod>(sections: &Sections<'data>, at: usize) -> Result<&'data [T], ReadError> {
    let bytes = sections.get(at);
    slice_from_all_bytes(bytes).map_err(|()| ReadError::TableSize {
        section: SECTION_NAMES[at],
        size: bytes.len(),
        entry: size_of::<T>(),
    })
}

/// One of the two parts that are linked: the new code, or the support object.
fn part(sections: &Sections<'_>, part: Part, symbols: Vec<Symbol>, first_symbol: usize) -> Result<Payload, ReadError> {
    let of = part.sections();
    let cause = |cause| ReadError::Record { section: SECTION_NAMES[of.fixups], cause };
    Ok(Payload {
        text: sections.get(of.text).to_vec(),
        rodata: sections.get(of.rodata).to_vec(),
        data: sections.get(of.data).to_vec(),
        bss_size: sections.bss_size(of.bss)?,
        symbols,
        relocs: relocs(sections, part, first_symbol)?,
        fixups: records::decode_fixups(sections.get(of.fixups)).map_err(cause)?,
        tables: Vec::new(),
        hooks: Vec::new(),
        changed: Vec::new(),
        objects: Vec::new(),
    })
}

/// The entries of `.symtab` behind the null symbol.
fn symbol_entries<'data>(sections: &Sections<'data>) -> Result<&'data [elf::Sym64<LE>], ReadError> {
    let entries: &[elf::Sym64<LE>] = table(sections, index::SYMTAB)?;
    let (null, entries) = entries.split_first().ok_or(ReadError::NoNullSymbol)?;
    if object::pod::bytes_of(null).iter().any(|byte| *byte != 0) {
        return Err(ReadError::NoNullSymbol);
    }
    sections.check_symbol_count(entries.len() + 1)?;
    Ok(entries)
}

/// The symbols of a part; the first has the index `first` in the file.
fn symbols(
    sections: &Sections<'_>,
    part: Part,
    entries: &[elf::Sym64<LE>],
    first: usize,
    image: Image<'_>,
) -> Result<Vec<Symbol>, ReadError> {
    let names = sections.get(index::STRTAB);
    let symbol = |(at, entry): (usize, &elf::Sym64<LE>)| {
        let index = first + at;
        let offset = entry.st_name.get(LE);
        let name = names
            .get(offset as usize..)
            .and_then(|rest| rest.split(|byte| *byte == 0).next().filter(|name| name.len() < rest.len()))
            .and_then(|name| std::str::from_utf8(name).ok())
            .ok_or(ReadError::SymbolName { index, offset })?;
        let function = entry.st_info == symbol_info(elf::STT_FUNC);
        if !function && entry.st_info != symbol_info(elf::STT_NOTYPE) || entry.st_other.0 != 0 {
            return Err(ReadError::SymbolInfo { index, info: entry.st_info.0, other: entry.st_other.0 });
        }
        let value = entry.st_value.get(LE);
        let bad_value = ReadError::SymbolValue { index, value };
        let place = match entry.st_shndx.get(LE) {
            elf::SHN_ABS => Place::Absolute(value),
            elf::SymbolSection(section) => match (usize::from(section), part.section_at(section.into())) {
                (index::KERNEL, _) => Place::Kernel(image.text.checked_add(value).ok_or(bad_value)?),
                (_, Some(section)) => Place::Payload { section, offset: u32::try_from(value).map_err(|_| bad_value)? },
                _ => return Err(ReadError::SymbolSection { index, section }),
            },
        };
        Ok(Symbol { name: name.to_owned(), place, size: entry.st_size.get(LE), function })
    };
    entries.iter().enumerate().map(symbol).collect()
}

/// The relocations of a part, whose first symbol has the index `first_symbol` in the file.
fn relocs(sections: &Sections<'_>, part: Part, first_symbol: usize) -> Result<Vec<Reloc>, ReadError> {
    let mut relocs = Vec::new();
    for (at, target) in part.sections().rela {
        let section = SECTION_NAMES[at];
        for (index, entry) in table::<elf::Rela64<LE>>(sections, at)?.iter().enumerate() {
            let offset = entry.r_offset.get(LE);
            let number = entry.r_type(LE, false).0;
            let kind = RelocKind::of_elf(number).ok_or(ReadError::RelocKind { section, index, kind: number })?;
            let symbol = entry.r_sym(LE, false);
            relocs.push(Reloc {
                section: target,
                offset: u32::try_from(offset).map_err(|_| ReadError::RelocOffset { section, index, offset })?,
                kind,
                // Which symbols there are behind the first is checked with the other rules.
                symbol: symbol.checked_sub(first_symbol as u32).ok_or(ReadError::RelocOtherSymbol {
                    section,
                    index,
                    symbol,
                    first: first_symbol,
                })?,
                addend: entry.r_addend.get(LE),
            });
        }
    }
    Ok(relocs)
}

/// Hands out the parts of a section one behind the other.
struct Parts<'data> {
    section: &'static str,
    bytes: &'data [u8],
    used: u32,
}

impl<'data> Parts<'data> {
    fn of(sections: &Sections<'data>, at: usize) -> Self {
        Self { section: SECTION_NAMES[at], bytes: sections.get(at), used: 0 }
    }

    fn next(&mut self, index: usize, offset: u32, size: u32) -> Result<&'data [u8], ReadError> {
        let part = offset.checked_add(size).and_then(|end| Some((end, self.bytes.get(offset as usize..end as usize)?)));
        match part {
            Some((end, part)) if offset == self.used => {
                self.used = end;
                Ok(part)
            }
            _ => Err(ReadError::FunctionPart { index, section: self.section, offset, size, expected: self.used }),
        }
    }

    fn finish(self) -> Result<(), ReadError> {
        let (section, size, used) = (self.section, self.bytes.len(), self.used);
        if size == used as usize { Ok(()) } else { Err(ReadError::Unused { section, size, used }) }
    }
}

fn functions(sections: &Sections<'_>, manifest: &Manifest) -> Result<Vec<FunctionPatch>, ReadError> {
    let record = |at: usize| move |cause| ReadError::Record { section: SECTION_NAMES[at], cause };
    let mut cursor = Cursor::new(sections.get(index::FUNCTIONS));
    let mut expected = Parts::of(sections, index::EXPECTED);
    let mut sites = Parts::of(sections, index::SITES);
    let mut pairs = Parts::of(sections, index::RETURNS);
    let mut functions = Vec::new();
    while !cursor.is_empty() {
        let index = cursor.index;
        let entry = FunctionRecord::decode(&mut cursor).map_err(record(index::FUNCTIONS))?;
        let listed = manifest.functions.get(entry.manifest_index as usize).ok_or(ReadError::ManifestIndex {
            index,
            found: entry.manifest_index,
            count: manifest.functions.len(),
        })?;
        let site_bytes = sites.next(index, entry.sites_offset, entry.sites_size)?;
        let returns_size = entry.returns_count.saturating_mul(returns::RETURN_SIZE as u32);
        let return_bytes = pairs.next(index, entry.returns_offset, returns_size)?;
        functions.push(FunctionPatch {
            name: listed.name.clone(),
            unit: listed.unit.clone(),
            old_address: entry.old_address,
            jump_offset: entry.jump_offset,
            expected: expected.next(index, entry.expected_offset, entry.old_size)?.to_vec(),
            sites: records::decode_sites(site_bytes, entry.sites_count).map_err(record(index::SITES))?,
            new_offset: entry.new_offset,
            new_size: entry.new_size,
            returns: returns::decode(return_bytes).map_err(record(index::RETURNS))?,
        });
    }
    expected.finish()?;
    sites.finish()?;
    pairs.finish()?;
    Ok(functions)
}
