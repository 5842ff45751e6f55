//! Layouts of whole images: a `vmlinux`, a module, an object.
//!
//! Comes in: one or two files with DWARF. Decided: which types and variables of file scope differ between them. Goes out:
//! [`Difference`], or all types of one image. A type is defined in up to thousands of units of an image: each unit is read
//! once, all its types are reduced to digests, and only types that differ are read in full by [`crate::dwarf_layout`].
//!
//! The phases: `source` (the file), then unit by unit `plan` and `unit`, `scan` (entries) with `reader`, `entry` and `name`,
//! `shape` (digests), `index` (all units), then `compare` and `variables` with `full`.

mod bytes;
mod compare;
mod digest;
mod entry;
mod full;
mod index;
mod name;
mod needed;
mod plan;
mod reader;
mod scan;
mod shape;
mod source;
mod spelled;
mod starts;
mod unit;
mod variables;

pub use compare::{CompareError, Difference, TypeDifference, compare};
pub use index::IndexError;
pub use source::{Image, SourceError};
pub use variables::VariableDifference;

use crate::dwarf_layout::TypeLayout;
use digest::Digest;
use full::Full;
use index::{Definition, Index};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;

/// One of two images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first.
    Old,
    /// The second.
    New,
}

impl Display for Side {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Old => "old",
            Self::New => "new",
        })
    }
}

/// Which types are wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted(BTreeSet<String>);

impl Wanted {
    /// All types, when there are no names; else the types of these names, with or without keyword.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().collect())
    }

    /// Whether all types are wanted.
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Wanted names that no definition of some images has.
    fn missing(&self, indexes: &[&Index<'_>]) -> Vec<String> {
        let mut missing = self.0.clone();
        for index in indexes {
            for Definition { name, .. } in &index.types {
                if missing.is_empty() {
                    return Vec::new();
                }
                missing.remove(&name.bare(index.texts));
                missing.remove(&name.text(index.texts));
            }
        }
        missing.into_iter().collect()
    }

    fn has(&self, Definition { name, .. }: &Definition, index: &Index<'_>) -> bool {
        self.is_all() || self.0.contains(&name.bare(index.texts)) || self.0.contains(&name.text(index.texts))
    }
}

/// What was read of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImageFacts {
    /// The file.
    pub path: PathBuf,
    /// Units in it.
    pub units: usize,
    /// Units in Rust among them, which are left alone.
    pub rust_units: usize,
    /// Definitions of types in all units.
    pub definitions: u64,
    /// Different types among them.
    pub types: usize,
    /// Variables of file scope.
    pub variables: usize,
}

impl ImageFacts {
    fn of(index: &Index<'_>, image: &Image) -> Self {
        Self {
            path: image.path().to_owned(),
            units: index.headers.len(),
            rust_units: index.rust_units,
            definitions: index.definitions,
            types: index.types.len(),
            variables: index.variables.len(),
        }
    }
}

/// A type of an image.
#[derive(Debug, Clone, Serialize)]
pub struct ImageType {
    /// How it is laid out.
    #[serde(flatten)]
    pub layout: TypeLayout,
    /// Units that define it so.
    pub units: u32,
}

/// Types of one image.
#[derive(Debug, Clone, Default)]
pub struct ImageTypes {
    /// The image.
    pub image: ImageFacts,
    /// Types by name; one that is laid out in several ways has several entries.
    pub types: Vec<ImageType>,
    /// Wanted types that are not there.
    pub missing: Vec<String>,
}

/// All types of an image, or those that are wanted.
///
/// # Errors
/// [`IndexError`] when the DWARF cannot be used.
pub fn types(image: &Image, wanted: &Wanted) -> Result<ImageTypes, IndexError> {
    let index = Index::read(image, Digest::start())?;
    let definitions: Vec<&Definition> =
        index.types.iter().filter(|definition| wanted.has(definition, &index)).collect();
    let positions: Vec<_> = definitions.iter().map(|definition| definition.first).collect();
    let mut full = Full::read(&index, &positions, &[])?;
    let mut types: Vec<ImageType> = definitions
        .into_iter()
        .filter_map(|definition| {
            Some(ImageType { layout: full.types.remove(&definition.first)?, units: definition.units })
        })
        .collect();
    types.sort_by(|a, b| (&a.layout.name, &a.layout.place).cmp(&(&b.layout.name, &b.layout.place)));
    Ok(ImageTypes { image: ImageFacts::of(&index, image), types, missing: wanted.missing(&[&index]) })
}
