//! Why a file is not a bundle that can be used.
//!
//! Comes in: nothing. Decided: nothing. Goes out: [`ReadError`], which points at the section, the entry and the field.

use crate::check::Problem;
use crate::digest::SealError;
use crate::records::RecordError;
use crate::write::WriteError;

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
