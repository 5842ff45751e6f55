//! All definitions of an image, each layout once.
//!
//! Comes in: an image. Decided: which definitions of the thousands of units are the same; units go to the processors one by
//! one, as each has time. Goes out: [`Index`]: per name the layouts that exist, each with the first unit that has it, and
//! all variables of file scope. Names stay where they lie in the file.

use super::digest::Digest;
use super::name::{Name, Texts};
use super::scan::{self, Entries};
use super::shape::{Known, Names, Shapes};
use super::source::Image;
use super::unit::Unit;
use crate::dwarf_layout::LayoutError;
use crate::dwarf_layout::sections::{Slice, dwarf_of};
use gimli::{Dwarf, Section as _, UnitHeader, constants as dw};
use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::fmt::{self, Display, Formatter};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Why the layouts of an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// DWARF that cannot be parsed.
    #[error("malformed DWARF")]
    Dwarf(#[from] gimli::Error),
    /// A unit that cannot be used.
    #[error("the DWARF of unit {unit} cannot be used")]
    Unit {
        /// Name of the unit.
        unit: String,
        /// What is wrong with it.
        source: LayoutError,
    },
    /// Types in another file.
    #[error(
        "unit {unit} has its types in another file (-gsplit-dwarf): give an image that is built without CONFIG_DEBUG_INFO_SPLIT"
    )]
    Split {
        /// Name of the unit.
        unit: String,
    },
}

/// Where a definition is: index of the unit, offset in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Position {
    pub(super) unit: u32,
    pub(super) offset: u32,
    /// Whether it is in a function.
    pub(super) local: bool,
}

/// A layout that a name has somewhere.
#[derive(Debug, Clone)]
pub(super) struct Definition {
    pub(super) key: Digest,
    pub(super) shape: Digest,
    pub(super) first: Position,
    /// How many units have it.
    pub(super) units: u32,
    pub(super) name: Spelled,
}

/// The name of a type, as it lies in the file.
#[derive(Debug, Clone)]
pub(super) struct Spelled {
    /// What stands before the name: `struct`, or nothing.
    keyword: &'static str,
    /// Name without keyword; of an enum without a name its first enumerator.
    pub(super) bare: String,
    /// Whether it is an enum without a name.
    pub(super) is_enumerator: bool,
    /// Function that it is local to.
    function: String,
}

/// A variable of file scope.
#[derive(Debug, Clone)]
pub(super) struct VariableEntry {
    pub(super) name: String,
    pub(super) unit: u32,
    pub(super) external: bool,
    pub(super) text: Digest,
    pub(super) size: Option<u64>,
    pub(super) contents: Digest,
    /// The struct, union or enum that it is, or is an array of.
    pub(super) of: Option<Spelled>,
    /// Offset in the unit.
    pub(super) offset: u32,
}

/// All definitions of an image.
pub(super) struct Index<'a> {
    pub(super) dwarf: Dwarf<Slice<'a>>,
    pub(super) headers: Vec<UnitHeader<Slice<'a>>>,
    /// Names of the units, as recorded.
    pub(super) names: Vec<&'a [u8]>,
    /// Sorted by key, then by position.
    pub(super) types: Vec<Definition>,
    pub(super) variables: Vec<VariableEntry>,
    /// Units in Rust, which are left alone.
    pub(super) rust_units: usize,
    /// Definitions of types in all units.
    pub(super) definitions: u64,
}

/// Keys of this map are digests already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = self.0.rotate_left(1) ^ value;
    }
}

type Map<V> = HashMap<(Digest, Digest), V, BuildHasherDefault<AsIs>>;

/// What one processor has found.
struct Part<'a> {
    start: Digest,
    /// Places in `types`, by the digests that hold within the image.
    found: Map<usize>,
    types: Vec<Definition>,
    variables: Vec<VariableEntry>,
    /// Text and contents of types of variables, by those that hold within the image.
    variable_types: Map<(Digest, Digest)>,
    units: Vec<(u32, &'a [u8])>,
    rust_units: usize,
    definitions: u64,
    entries: Entries<'a>,
    known: [Vec<Known>; 2],
}

impl<'a> Index<'a> {
    /// Reads all units.
    ///
    /// # Errors
    /// [`IndexError`] for the first unit that cannot be used.
    pub(super) fn read(image: &'a Image, start: Digest) -> Result<Self, IndexError> {
        let dwarf = dwarf_of(image);
        let mut headers = Vec::new();
        let mut units = dwarf.units();
        while let Some(header) = units.next()? {
            headers.push(header);
        }
        let next = AtomicUsize::new(0);
        let parts = rayon::broadcast(|_| {
            let mut part = Part::new(dwarf.debug_str.reader().slice(), start);
            loop {
                let unit = next.fetch_add(1, Ordering::Relaxed);
                let Some(header) = headers.get(unit) else { break Ok(part) };
                if let Err(error) = part.unit(&dwarf, *header, unit as u32) {
                    next.store(headers.len(), Ordering::Relaxed);
                    break Err((unit, error));
                }
            }
        });
        let mut index = Self {
            names: vec![&[]; headers.len()],
            dwarf,
            headers,
            types: Vec::new(),
            variables: Vec::new(),
            rust_units: 0,
            definitions: 0,
        };
        let mut found = Map::<Definition>::default();
        let mut failures = Vec::new();
        for part in parts {
            let part = match part {
                Ok(part) => part,
                Err(failure) => {
                    failures.push(failure);
                    continue;
                }
            };
            index.variables.extend(part.variables);
            index.rust_units += part.rust_units;
            index.definitions += part.definitions;
            for (unit, name) in part.units {
                index.names[unit as usize] = name;
            }
            for definition in part.types {
                let key = (definition.key, definition.shape);
                found.entry(key).and_modify(|known| known.merge(&definition)).or_insert(definition);
            }
        }
        if let Some((_, error)) = failures.into_iter().min_by_key(|(unit, _)| *unit) {
            return Err(error);
        }
        index.types = found.into_values().collect();
        index.types.sort_unstable_by_key(|definition| (definition.key, definition.first));
        index.variables.sort_unstable_by_key(|variable| (variable.unit, variable.offset));
        Ok(index)
    }
}

impl Definition {
    fn merge(&mut self, other: &Self) {
        self.units += other.units;
        self.first = self.first.min(other.first);
    }
}

impl<'a> Part<'a> {
    fn new(strings: &'a [u8], start: Digest) -> Self {
        Self {
            start,
            found: Map::default(),
            types: Vec::new(),
            variables: Vec::new(),
            variable_types: Map::default(),
            units: Vec::new(),
            rust_units: 0,
            definitions: 0,
            entries: Entries::new(Texts::new(strings, start)),
            known: Default::default(),
        }
    }

    fn unit(&mut self, dwarf: &Dwarf<Slice<'a>>, header: UnitHeader<Slice<'a>>, number: u32) -> Result<(), IndexError> {
        let unit = Unit::read(dwarf, header)?;
        self.units.push((number, unit.name));
        let name = || String::from_utf8_lossy(unit.name).into_owned();
        match unit.language {
            Some(dw::DW_LANG_Rust) => {
                self.rust_units += 1;
                return Ok(());
            }
            Some(dw::DW_LANG_Mips_Assembler) => return Ok(()),
            _ if unit.is_split => return Err(IndexError::Split { unit: name() }),
            _ => {}
        }
        self.contents(dwarf, &unit, number).map_err(|source| IndexError::Unit { unit: name(), source })
    }

    fn contents(&mut self, dwarf: &Dwarf<Slice<'a>>, unit: &Unit<'a>, number: u32) -> Result<(), LayoutError> {
        self.entries.read(dwarf, unit)?;
        let entries = &self.entries;
        let [places, texts] = &mut self.known;
        let mut local = Shapes::new(entries, self.start, Names::Places, places);
        // Only for what has not been seen before: in most units nothing.
        let mut global = Shapes::new(entries, self.start, Names::Texts, texts);
        for index in 1..entries.len() as u32 {
            let entry = entries.get(index);
            match entry.tag {
                dw::DW_TAG_structure_type
                | dw::DW_TAG_union_type
                | dw::DW_TAG_enumeration_type
                | dw::DW_TAG_typedef
                    if !entry.declaration =>
                {
                    let Some(key) = local.key(index)? else { continue };
                    self.definitions += 1;
                    match self.found.entry((key, local.shape(index)?)) {
                        // Units come in order, and their entries too.
                        MapEntry::Occupied(known) => self.types[*known.get()].units += 1,
                        MapEntry::Vacant(place) => {
                            let Some(key) = global.key(index)? else { continue };
                            let shape = global.shape(index)?;
                            let first = Position { unit: number, offset: entry.offset, local: entry.owner != 0 };
                            place.insert(self.types.len());
                            let name = Spelled::of(entries, index)?;
                            self.types.push(Definition { key, shape, first, units: 1, name });
                        }
                    }
                }
                dw::DW_TAG_variable => {
                    if entry.location.get().is_none() {
                        continue;
                    }
                    let origin = entries.get(entries.origin(index)?);
                    let ty = if entry.ty == 0 { origin.ty } else { entry.ty };
                    if origin.name.is_none() {
                        continue;
                    }
                    let (text, size, contents) = local.variable(ty)?;
                    let (text, contents) = match self.variable_types.entry((text, contents)) {
                        MapEntry::Occupied(known) => *known.get(),
                        MapEntry::Vacant(place) => {
                            let (text, _, contents) = global.variable(ty)?;
                            *place.insert((text, contents))
                        }
                    };
                    self.variables.push(VariableEntry {
                        name: spelled(entries, origin.name),
                        unit: number,
                        external: entry.external || origin.external,
                        text,
                        size,
                        contents,
                        of: local.element(ty).map(|element| Spelled::of(entries, element)).transpose()?,
                        offset: entry.offset,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Spelled {
    /// The name of a struct, union, enum or typedef.
    fn of(entries: &Entries<'_>, index: scan::Index) -> Result<Self, LayoutError> {
        let entry = entries.get(index);
        let (keyword, named) = match entry.tag {
            _ if entry.name.is_none() && entry.named_by != 0 => ("", Some(entries.get(entry.named_by))),
            _ if entry.name.is_none() => ("enum", entries.parts(index).find(|part| !part.name.is_none())),
            dw::DW_TAG_structure_type => ("struct", Some(entry)),
            dw::DW_TAG_union_type => ("union", Some(entry)),
            dw::DW_TAG_enumeration_type => ("enum", Some(entry)),
            _ => ("", Some(entry)),
        };
        Ok(Self {
            keyword,
            bare: named.map(|named| spelled(entries, named.name)).unwrap_or_default(),
            is_enumerator: entry.name.is_none() && entry.named_by == 0,
            function: match entry.owner {
                0 => String::new(),
                function => spelled(entries, entries.get(entries.origin(function)?).name),
            },
        })
    }
}

fn spelled(entries: &Entries<'_>, name: Name) -> String {
    String::from_utf8_lossy(&entries.texts.text(name)).into_owned()
}

/// As [`crate::dwarf_layout::Layouts::types`] has it.
impl Display for Spelled {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let bare = &self.bare;
        match self.keyword {
            _ if self.is_enumerator => write!(f, "enum {{ {bare} }}")?,
            "" => write!(f, "{bare}")?,
            keyword => write!(f, "{keyword} {bare}")?,
        }
        if self.function.is_empty() {
            return Ok(());
        }
        write!(f, " in {}()", self.function)
    }
}
