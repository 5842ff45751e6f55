//! The rules of a sound bundle, as the errors of breaking them.
//!
//! Comes in: nothing. Decided: nothing; the modules beside this one do. Goes out: [`Problem`], with what was found and what is allowed.

use crate::{HookKind, RelocKind, SectionKind, TableKind, limits};

/// A rule of the format that a bundle breaks. Such a bundle comes from a faulty tool: it has to be built again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say what the fields are")]
pub enum Problem {
    /// More of something than a bundle may hold.
    #[error("{found} {what}, at most {max} are allowed; split the change")]
    TooMany { what: &'static str, found: usize, max: usize },
    /// More bytes than a bundle may hold.
    #[error("{0} bytes of contents, at most {max} are allowed; split the change", max = limits::FILE_SIZE)]
    TooLarge(u64),
    /// Text that is empty, too long or not one line.
    #[error(
        "{what} is {text:?}; one line of 1 to {max} bytes without control characters is expected, no `/` in a name"
    )]
    Text { what: &'static str, text: String, max: usize },
    /// A build id of a length no linker makes.
    #[error("the build id of the kernel has {0} bytes, {min} to {max} are expected", min = limits::BUILD_ID_MIN, max = limits::BUILD_ID_MAX)]
    BuildId(usize),
    /// The profile does not bound the kernel image.
    #[error("the profile has no symbol `{0}`; it bounds the kernel image and must be there")]
    NoImageSymbol(&'static str),
    /// The bounds of the kernel image are not sensible.
    #[error("the kernel image reaches from {text:#x} to {end:#x}; 1 byte to 1 GiB is expected")]
    Image { text: u64, end: u64 },
    /// An address that must lie in the kernel image does not.
    #[error("{what}: {address:#x} with {size} bytes is outside of the kernel image {text:#x} to {end:#x}")]
    OutsideImage { what: &'static str, address: u64, size: u64, text: u64, end: u64 },

    /// A symbol's name has a zero byte.
    #[error("symbol {index} has the name {name:?} with a zero byte in it")]
    SymbolName { index: usize, name: String },
    /// A symbol lies outside of its section.
    #[error("symbol `{name}`: {offset:#x} with {size} bytes is outside of {section:?} with {len} bytes")]
    SymbolRange { name: String, section: SectionKind, offset: u32, size: u64, len: u32 },
    /// A function that is not code.
    #[error("symbol `{name}` is a function in {section:?}, only Text holds functions")]
    FunctionNotInText { name: String, section: SectionKind },

    /// A relocation of `.bss`.
    #[error("relocation {index} is in .bss at {offset:#x}, which has no contents")]
    RelocInBss { index: usize, offset: u32 },
    /// A relocation's field lies outside of its section.
    #[error("relocation {index} ({kind:?}) at {offset:#x} is outside of {section:?} with {len} bytes")]
    RelocRange { index: usize, section: SectionKind, offset: u32, kind: RelocKind, len: u32 },
    /// A relocation names a symbol that does not exist.
    #[error("relocation {index} names symbol {symbol}, there are {count}")]
    RelocSymbol { index: usize, symbol: u32, count: usize },
    /// Relocations are not sorted, or share bytes.
    #[error("relocation {index} in {section:?} at {offset:#x} does not follow the one before it")]
    RelocOrder { index: usize, section: SectionKind, offset: u32 },

    /// Tables are not sorted by kind, or one is there twice.
    #[error("table {kind:?} does not follow the one before it (by kind, each once)")]
    TableOrder { kind: TableKind },
    /// A table is empty, not aligned, or outside of `.data`.
    #[error(
        "table {kind:?}: {size} bytes at {offset:#x}; at least one entry at a multiple of {align} within .data of {len} bytes is expected"
    )]
    TableRange { kind: TableKind, offset: u32, size: u32, align: u32, len: u32 },
    /// The profile does not know how large an entry is.
    #[error("table {kind:?}: the profile has no size of `{name}`")]
    NoEntrySize { kind: TableKind, name: &'static str },
    /// A table that ends inside an entry.
    #[error("table {kind:?} has {size} bytes, a multiple of {entry} is expected")]
    TableEntries { kind: TableKind, size: u32, entry: u64 },
    /// Instruction pointers without unwind entries, or the other way round.
    #[error("{ips} instruction pointers and {orcs} ORC entries; as many of one as of the other are expected")]
    OrcCount { ips: u64, orcs: u64 },
    /// Two tables share bytes.
    #[error("table {kind:?} at {offset:#x} begins inside of another")]
    TableOverlap { kind: TableKind, offset: u32 },
    /// The support object has tables.
    #[error("the support object has {0} tables, none is expected")]
    SupportTables(usize),

    /// A fixup or its replacement lies outside of `.text`.
    #[error("fixup {index}: {offset:#x} with {size} bytes is outside of .text with {len} bytes")]
    FixupRange { index: usize, offset: u32, size: u32, len: u32 },
    /// A fixup that is too short for what is written there.
    #[error("fixup {index} at {offset:#x} has {len} bytes, at least {min} are expected")]
    FixupLength { index: usize, offset: u32, len: u8, min: u8 },
    /// A fixup or boot site of a constant whose length no constant has.
    #[error("the constant of fixup or boot site {index} has {len} bytes, 1 or 8 are expected")]
    ConstantSize { index: usize, len: u8 },
    /// Fixups are not in order, or share bytes.
    #[error("fixup {index} at {offset:#x} does not follow the one before it (by offset, alternatives last)")]
    FixupOrder { index: usize, offset: u32 },
    /// A replacement that is longer than its place.
    #[error("fixup {index} at {offset:#x} puts {replacement_len} bytes into a place of {len}")]
    ReplacementLength { index: usize, offset: u32, len: u8, replacement_len: u8 },
    /// A replacement inside the place it replaces.
    #[error("fixup {index} at {offset:#x} takes its replacement from {replacement:#x}, inside of itself")]
    ReplacementOverlap { index: usize, offset: u32, replacement: u32 },
    /// A feature number with the flag `ALT_NOT` still in it.
    #[error("fixup {index} at {offset:#x} depends on feature {feature:#x}, below 0x8000 is expected")]
    Feature { index: usize, offset: u32, feature: u16 },

    /// Old functions are not sorted, or share bytes.
    #[error("old function `{name}` at {address:#x} does not follow the one before it")]
    FunctionOrder { name: String, address: u64 },
    /// The jump is at another place than allowed.
    #[error("old function `{name}`: jump at offset {found}, {expected} is expected (4 behind endbr64, else 0)")]
    JumpOffset { name: String, found: u8, expected: u8 },
    /// The old function is too short for the jump.
    #[error("old function `{name}` has {len} bytes, the jump needs {needed}")]
    TooShort { name: String, len: usize, needed: usize },
    /// The new function lies outside of `.text`.
    #[error("new function `{name}`: {offset:#x} with {size} bytes is outside of .text with {len} bytes, or empty")]
    NewRange { name: String, offset: u32, size: u32, len: u32 },
    /// The new function is not aligned.
    #[error("new function `{name}` starts at {offset:#x}, a multiple of 16 is expected")]
    NewAlignment { name: String, offset: u32 },
    /// No symbol stands where the new function starts.
    #[error("new function `{name}`: no function symbol of {size} bytes at {offset:#x}")]
    NoSymbol { name: String, offset: u32, size: u32 },

    /// A boot site lies outside of its function.
    #[error("old function `{name}`: boot site {site} at {offset:#x} with {len} bytes is outside of it")]
    SiteRange { name: String, site: usize, offset: u32, len: u8 },
    /// A boot site of a length its kind never has.
    #[error("old function `{name}`: boot site {site} has {len} bytes, {min} to {max} are expected")]
    SiteLength { name: String, site: usize, len: u8, min: u8, max: u8 },
    /// Boot sites are not sorted by offset.
    #[error("old function `{name}`: boot site {site} at {offset:#x} does not follow the one before it")]
    SiteOrder { name: String, site: usize, offset: u32 },
    /// Two boot sites share bytes, and neither holds the other.
    #[error(
        "old function `{name}`: boot site at {offset:#x} with {len} bytes ends outside of the one around its start"
    )]
    SiteOverlap { name: String, offset: u32, len: u8 },
    /// A form of an alternative that is not as long as its place.
    #[error("old function `{name}`: boot site {site} has a form of {found} bytes, {len} are expected")]
    FormLength { name: String, site: usize, found: usize, len: u8 },
    /// An alternative without forms.
    #[error("old function `{name}`: boot site {site} is an alternative without forms")]
    NoForms { name: String, site: usize },

    /// A return point lies outside of its function.
    #[error(
        "function `{name}`: return points {old:#x} and {new:#x}; 1 to {old_size:#x} of the old and 1 to {new_size:#x} of the new function are expected"
    )]
    ReturnRange { name: String, old: u32, new: u32, old_size: u64, new_size: u32 },
    /// Return points are not sorted, or one is there twice.
    #[error("old function `{name}`: return point {old:#x} does not follow the one before it")]
    ReturnOrder { name: String, old: u32 },
    /// Two return points of the old function go on at one of the new function.
    #[error("new function `{name}`: two return points of the old function go on at {new:#x}")]
    ReturnTwice { name: String, new: u32 },

    /// A boot site that this part of a bundle cannot have.
    #[error(
        "old function `{name}`: boot site {site} is an address that KASLR moves in a module, a relocation outside of one, or names the payload"
    )]
    SiteOfOther { name: String, site: usize },
    /// An old function of the kernel image in the part of a module, or the other way round.
    #[error("old function `{name}` at {address:#x} is not of the module or image that its part of the bundle changes")]
    OutsidePart { name: String, address: u64 },
    /// A kernel image where modules have their link addresses.
    #[error("the kernel image reaches to {end:#x}, where the link addresses of modules are")]
    ModuleSpace { end: u64 },
    /// A section or import of a module at no address of its own.
    #[error(
        "`{name}` of a module at {address:#x} with {size} bytes: not behind the one before, or outside of the space for modules"
    )]
    ModuleRange { name: String, address: u64, size: u64 },
    /// Two sections of a module have the same name.
    #[error("the module has two sections called `{0}`")]
    ModuleSectionTwice(String),
    /// A part with parts or with a support object.
    #[error("the part of a module has parts or a support object of its own")]
    PartOfPart,
    /// A part that is not about a module.
    #[error("a part of the bundle names no module")]
    PartWithoutModule,
    /// Parts are not sorted.
    #[error("the part of module `{0}` does not follow the one before it (sorted by name, one for each)")]
    PartOrder(String),
    /// A part of another kernel or update.
    #[error("the part of module `{0}` is of another kernel or update than the bundle")]
    PartOfAnother(String),

    /// Changed data of the support object.
    #[error("the support object changes {0} data, none are expected")]
    SupportData(usize),
    /// Changed data in a bundle that says that it changes functions only.
    #[error("the bundle changes {0} data and is of Type 1")]
    DataOfType1(usize),
    /// Changed data are not sorted, or overlap.
    #[error("changed datum `{name}` at {address:#x} does not follow the one before it")]
    DataOrder { name: String, address: u64 },
    /// A changed datum that cannot be.
    #[error("changed datum `{name}`: {what}")]
    Datum { name: String, what: &'static str },

    /// Objects of the support object.
    #[error("the support object changes objects of {0} caches, none are expected")]
    SupportObjects(usize),
    /// Objects in a bundle that says that it changes functions only.
    #[error("the bundle changes objects of {0} caches and is of Type 1")]
    ObjectsOfType1(usize),
    /// Objects are not sorted.
    #[error(
        "the objects of cache `{cache}` at {address:#x} do not follow those before them (by address, each cache once)"
    )]
    ObjectsOrder { cache: String, address: u64 },
    /// Two parts change the objects of one cache.
    #[error("two parts of the bundle change the objects of cache `{0}`")]
    ObjectsTwice(String),
    /// Objects that cannot be.
    #[error("objects of `{type_name}`: {what}")]
    Objects { type_name: String, what: &'static str },

    /// Hooks of the support object.
    #[error("the support object has {0} hooks, none are expected")]
    SupportHooks(usize),
    /// Hooks in a bundle that says that it changes functions only.
    #[error("the bundle has {0} hooks and is of Type 1; only updates of Type 2 have hooks")]
    HooksOfType1(usize),
    /// Hooks are not sorted, or one is there twice.
    #[error("hook {name} of `{subject}` does not follow the one before it (by kind, name and address, each once)", name = kind.name())]
    HookOrder { kind: HookKind, subject: String },
    /// A hook that is no function of the new code.
    #[error("hook {name} of `{subject}`: no function of the new code starts at {offset:#x}", name = kind.name())]
    HookFunction { kind: HookKind, subject: String, offset: u32 },
    /// A hook about something that it cannot be about.
    #[error("hook {name} of `{subject}`: this is no function that the bundle replaces, or no datum with a new copy in it", name = kind.name())]
    HookSubject { kind: HookKind, subject: String },

    /// The digest of the diff is not one.
    #[error("the manifest's digest of the diff is {0:?}, 64 lower-case hexadecimal digits are expected")]
    DiffDigest(String),
    /// The files are not sorted.
    #[error("the manifest's file {0:?} does not follow the one before it (sorted, each once)")]
    FileOrder(String),
    /// Old code is not sorted, or overlaps.
    #[error("the manifest's old code `{0}` does not follow the one before it (sorted by address, no byte twice)")]
    OldCodeOrder(String),
    /// Two functions of the manifest have the same old address.
    #[error("the manifest lists the old address of `{0}` twice")]
    ListedTwice(String),
    /// A new function with an old size.
    #[error("the manifest gives the new function `{0}` an old size")]
    NewWithOldSize(String),
    /// A redirected function that the manifest does not list.
    #[error("the manifest does not list the function `{0}`, which is redirected")]
    NotListed(String),
    /// A function that the manifest describes otherwise.
    #[error("the manifest lists the function `{0}` with another name, unit or size")]
    ListedOtherwise(String),
    /// A function of the manifest that is not redirected.
    #[error("the manifest lists the old function `{0}`, which is not redirected")]
    ListedOnly(String),
}
