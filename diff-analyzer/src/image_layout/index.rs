//! All definitions of an image, each layout once.
//!
//! Comes in: an image. Decided: which definitions of the thousands of units are the same; units go to the processors one by
//! one, as each has time. Goes out: [`Index`]: per name the layouts that exist, each with the first unit that has it, and
//! all variables of file scope. Names stay where they lie in the file.

use super::digest::{Digest, OfNumber};
use super::name::{Name, Texts};
use super::scan::{Entries, Memory};
use super::shape::{ByPlace, ByText, Known, NameDigests, Names as _, Shapes};
use super::source::Image;
use super::spelled::Spelled;
use crate::dwarf_layout::LayoutError;
use crate::dwarf_layout::sections::{Slice, dwarf_of};
use gimli::{Dwarf, UnitHeader, constants as dw};
use rayon::prelude::*;
use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::hash::BuildHasherDefault;
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

/// A variable of file scope.
#[derive(Debug, Clone)]
pub(super) struct VariableEntry {
    pub(super) name: Name,
    /// Stands for the name in all images.
    pub(super) name_digest: u64,
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
    /// Where the names of types and variables are.
    pub(super) texts: Texts<'a>,
    /// Names of the units, as recorded.
    pub(super) names: Vec<&'a [u8]>,
    /// Sorted by key, then by position.
    pub(super) types: Vec<Definition>,
    /// In no order.
    pub(super) variables: Vec<VariableEntry>,
    /// Units in Rust, which are left alone.
    pub(super) rust_units: usize,
    /// Definitions of types in all units.
    pub(super) definitions: u64,
}

/// A map by digests.
pub(super) type Map<K, V> = HashMap<K, V, BuildHasherDefault<OfNumber>>;

/// What one processor has found.
struct Part<'a> {
    start: Digest,
    /// Places in `types` and how many units have them, by key and shape as they hold within the image, in one digest.
    found: Map<Digest, (u32, u32)>,
    types: Vec<Definition>,
    variables: Vec<VariableEntry>,
    /// Text and contents of types of variables, by those that hold within the image.
    variable_types: Map<(Digest, Digest), (Digest, Digest)>,
    names: NameDigests,
    units: Vec<(u32, &'a [u8])>,
    rust_units: usize,
    definitions: u64,
}

impl<'a> Index<'a> {
    /// Reads all units of one image.
    ///
    /// # Errors
    /// [`IndexError`] for the first unit that cannot be used.
    pub(super) fn read(image: &'a Image, start: Digest) -> Result<Self, IndexError> {
        let [index] = Self::read_all([image], start).map_err(|(_, error)| error)?;
        Ok(index)
    }

    /// Reads all units of several images.
    ///
    /// # Errors
    /// The number of the first image with a unit that cannot be used, and [`IndexError`] for that.
    pub(super) fn read_all<const N: usize>(
        images: [&'a Image; N],
        start: Digest,
    ) -> Result<[Self; N], (usize, IndexError)> {
        let mut indexes = images.map(|image| {
            let dwarf = dwarf_of(image);
            Self {
                headers: Vec::new(),
                texts: Texts::new(&dwarf, start),
                dwarf,
                names: Vec::new(),
                types: Vec::new(),
                variables: Vec::new(),
                rust_units: 0,
                definitions: 0,
            }
        });
        let headers: Vec<_> = indexes.par_iter_mut().map(Self::read_headers).collect();
        for (number, result) in headers.into_iter().enumerate() {
            result.map_err(|error| (number, error))?;
        }
        // What cannot be read this way, perhaps can with more time.
        let of_images = read_units(&indexes, start, true).or_else(|_| read_units(&indexes, start, false))?;
        indexes.par_iter_mut().zip(of_images).for_each(|(index, parts)| index.merge(parts));
        Ok(indexes)
    }

    fn read_headers(&mut self) -> Result<(), IndexError> {
        let mut units = self.dwarf.units();
        while let Some(header) = units.next()? {
            self.headers.push(header);
        }
        self.names = vec![&[]; self.headers.len()];
        Ok(())
    }

    /// Takes in what the processors have found.
    fn merge(&mut self, parts: Vec<Part<'a>>) {
        let mut found = Map::<(Digest, Digest), Definition>::default();
        for mut part in parts {
            self.variables.extend(part.variables);
            self.rust_units += part.rust_units;
            self.definitions += part.definitions;
            for (unit, name) in part.units {
                self.names[unit as usize] = name;
            }
            for &(place, units) in part.found.values() {
                part.types[place as usize].units = units;
            }
            for definition in part.types {
                let key = (definition.key, definition.shape);
                found.entry(key).and_modify(|known| known.merge(&definition)).or_insert(definition);
            }
        }
        self.types = found.into_values().collect();
        self.types.sort_unstable_by_key(|definition| (definition.key, definition.first));
    }
}

/// What the processors find in the units of several images.
fn read_units<'a, const N: usize>(
    indexes: &[Index<'a>; N],
    start: Digest,
    jumps: bool,
) -> Result<[Vec<Part<'a>>; N], (usize, IndexError)> {
    let next = [(); N].map(|()| AtomicUsize::new(0));
    let found = rayon::broadcast(|processor| {
        let mut parts = [(); N].map(|()| Part::new(start));
        let mut memory = Memory::new(jumps);
        let mut known = Default::default();
        let mut failures = Vec::new();
        // Each starts with an image of its own, as far as there are as many: it then finds each type first just once.
        for number in (0..N).map(|turn| (processor.index() + turn) % N) {
            let Index { headers, dwarf, .. } = &indexes[number];
            loop {
                let unit = next[number].fetch_add(1, Ordering::Relaxed);
                let Some(&header) = headers.get(unit) else { break };
                if let Err(error) = parts[number].unit(dwarf, header, unit as u32, &mut memory, &mut known) {
                    next[number].store(headers.len(), Ordering::Relaxed);
                    failures.push((number, unit, error));
                }
            }
        }
        (parts, failures)
    });
    let mut of_images: [Vec<Part<'a>>; N] = [(); N].map(|()| Vec::new());
    let mut failures = Vec::new();
    for (parts, failed) in found {
        of_images.iter_mut().zip(parts).for_each(|(of_image, part)| of_image.push(part));
        failures.extend(failed);
    }
    if let Some((number, _, error)) = failures.into_iter().min_by_key(|(number, unit, _)| (*number, *unit)) {
        return Err((number, error));
    }
    Ok(of_images)
}

impl Definition {
    fn merge(&mut self, other: &Self) {
        self.units += other.units;
        self.first = self.first.min(other.first);
    }
}

impl<'a> Part<'a> {
    fn new(start: Digest) -> Self {
        Self {
            start,
            found: Map::default(),
            types: Vec::new(),
            variables: Vec::new(),
            variable_types: Map::default(),
            names: NameDigests::default(),
            units: Vec::new(),
            rust_units: 0,
            definitions: 0,
        }
    }

    fn unit(
        &mut self,
        dwarf: &Dwarf<Slice<'a>>,
        header: UnitHeader<Slice<'a>>,
        number: u32,
        memory: &mut Memory,
        known: &mut [Known; 2],
    ) -> Result<(), IndexError> {
        let unit = memory.unit(dwarf, header)?;
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
        let entries = memory.entries(dwarf, &unit, self.start);
        let result = entries.and_then(|entries| self.contents(entries, number, known));
        result.map_err(|source| IndexError::Unit { unit: name(), source })
    }

    fn contents(&mut self, entries: Entries<'_, 'a>, number: u32, known: &mut [Known; 2]) -> Result<(), LayoutError> {
        let [places, texts] = known;
        let mut local = Shapes::new(entries, self.start, ByPlace, places);
        // Only for what has not been seen before: in most units nothing.
        let names = ByText { texts: entries.texts, known: &mut self.names };
        let mut global = Shapes::new(entries, self.start, names, texts);
        for index in 1..entries.len() as u32 {
            let entry = entries.get(index);
            match entry.tag {
                dw::DW_TAG_structure_type
                | dw::DW_TAG_union_type
                | dw::DW_TAG_enumeration_type
                | dw::DW_TAG_typedef
                    if !entry.declaration =>
                {
                    let Some(key) = local.key(index)? else {
                        entries.check_parts(index)?;
                        continue;
                    };
                    self.definitions += 1;
                    match self.found.entry(local.shape(index)?.with(key.0)) {
                        // Units come in order, and their entries too.
                        MapEntry::Occupied(mut known) => known.get_mut().1 += 1,
                        MapEntry::Vacant(place) => {
                            let Some(key) = global.key(index)? else { continue };
                            let shape = global.shape(index)?;
                            let first = Position { unit: number, offset: entry.offset, local: entry.owner != 0 };
                            place.insert((self.types.len() as u32, 1));
                            let name = Spelled::of(&entries, index)?;
                            self.types.push(Definition { key, shape, first, units: 1, name });
                        }
                    }
                }
                dw::DW_TAG_variable => {
                    if !entry.has_address {
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
                        name: origin.name,
                        name_digest: global.names.number(origin.name),
                        unit: number,
                        external: entry.external || origin.external,
                        text,
                        size,
                        contents,
                        of: local.element(ty).map(|element| Spelled::of(&entries, element)).transpose()?,
                        offset: entry.offset,
                    });
                }
                _ if entry.sibling != 0 => entries.check_parts(index)?,
                _ => {}
            }
        }
        Ok(())
    }
}
