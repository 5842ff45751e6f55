//! What two images lay out differently.
//!
//! Comes in: the indexes of both. Decided: which definition of a name in one image is which in the other, where a name has
//! several; which types changed by themselves and which because of a type inside them. Goes out: [`Difference`].
//!
//! Only layouts of names that both images have can differ. What one of them alone has is listed.

use super::digest::Digest;
use super::full::Full;
use super::index::{Definition, Index, IndexError, Position};
use super::source::Image;
use super::variables::{VariableDifference, VariablePairs};
use super::{ImageFacts, Side, Wanted};
use crate::dwarf_layout::TypeLayout;
use crate::layout_diff::{TypeChange, compare_type, embedded, same_text};
use std::collections::{BTreeMap, BTreeSet};

/// An image that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{side} image")]
pub struct CompareError {
    /// Which of the two.
    pub side: Side,
    /// Why.
    pub source: IndexError,
}

/// A type that both images have and lay out differently.
#[derive(Debug, Clone)]
pub struct TypeDifference {
    /// What differs.
    pub change: TypeChange,
    /// The type in the old image.
    pub old: TypeLayout,
    /// The type in the new image.
    pub new: TypeLayout,
    /// Units that define it so: in the old image, in the new image.
    pub units: [u32; 2],
    /// Whether an image has other types of this name.
    pub shares_name: bool,
}

/// What two images lay out differently.
#[derive(Debug, Clone, Default)]
pub struct Difference {
    /// Both images.
    pub images: [ImageFacts; 2],
    /// Types, by name.
    pub types: Vec<TypeDifference>,
    /// Variables of file scope, by name.
    pub variables: Vec<VariableDifference>,
    /// Types that only the old or only the new image has.
    pub only_types: [Vec<String>; 2],
    /// Variables that only the old or only the new image has.
    pub only_variables: [Vec<String>; 2],
    /// Wanted types that neither image has.
    pub missing: Vec<String>,
}

impl Difference {
    /// Whether everything that both images have is laid out the same.
    pub fn is_empty(&self) -> bool {
        self.types.is_empty() && self.variables.is_empty()
    }
}

/// Compares all types and variables of two images, or some types only.
///
/// # Errors
/// [`CompareError`] when the DWARF of one cannot be used.
pub fn compare(old: &Image, new: &Image, wanted: &Wanted) -> Result<Difference, CompareError> {
    let start = Digest::start();
    let at = |side| move |source| CompareError { side, source };
    let indexes = Index::read_all([old, new], start)
        .map_err(|(image, source)| CompareError { side: if image == 0 { Side::Old } else { Side::New }, source })?;
    let mut pairs = Pairs::find(&indexes, wanted);
    let variables = VariablePairs::find(&indexes, [old, new], wanted, start);
    let read = |side: usize| Full::read(&indexes[side], &pairs.positions(side), &variables.positions(side));
    let (full_old, full_new) = rayon::join(|| read(0), || read(1));
    let full = [full_old.map_err(at(Side::Old))?, full_new.map_err(at(Side::New))?];
    pairs.settle(&full);
    Ok(Difference {
        images: [ImageFacts::of(&indexes[0], old), ImageFacts::of(&indexes[1], new)],
        types: pairs.differences(&full),
        variables: variables.differences(&full),
        only_types: [names(&pairs.removed, &indexes[0]), names(&pairs.added, &indexes[1])],
        only_variables: variables.only,
        missing: wanted.missing(&[&indexes[0], &indexes[1]]),
    })
}

/// Definitions that differ, and which belongs to which.
#[derive(Default)]
struct Pairs {
    certain: Vec<Pair>,
    /// Definitions of one name, several on at least one side.
    several: Vec<(Vec<Definition>, Vec<Definition>)>,
    removed: Vec<Definition>,
    added: Vec<Definition>,
}

struct Pair {
    old: Definition,
    new: Definition,
    shares_name: bool,
}

impl Pairs {
    fn find(indexes: &[Index<'_>; 2], wanted: &Wanted) -> Self {
        let [old, new] = indexes.each_ref().map(|index| {
            let groups = index.types.chunk_by(|a, b| a.key == b.key);
            let wanted = groups.filter(|group| wanted.has(&group[0], index));
            wanted.map(|group| (group[0].key, group)).collect::<BTreeMap<_, _>>()
        });
        let mut pairs = Self::default();
        for (key, before) in &old {
            match new.get(key) {
                Some(after) => pairs.add(before, after),
                None => pairs.removed.extend_from_slice(before),
            }
        }
        for (_, after) in new.iter().filter(|(key, _)| !old.contains_key(key)) {
            pairs.added.extend_from_slice(after);
        }
        pairs
    }

    /// Takes in the definitions that one name has in both images.
    fn add(&mut self, before: &[Definition], after: &[Definition]) {
        let without = |these: &[Definition], those: &[Definition]| -> Vec<Definition> {
            let is_new = |definition: &&Definition| !those.iter().any(|other| other.shape == definition.shape);
            these.iter().filter(is_new).cloned().collect()
        };
        let (old, new) = (without(before, after), without(after, before));
        match (old.as_slice(), new.as_slice()) {
            (old, []) => self.removed.extend_from_slice(old),
            ([], new) => self.added.extend_from_slice(new),
            ([old], [new]) => {
                let shares_name = before.len() > 1 || after.len() > 1;
                self.certain.push(Pair { old: old.clone(), new: new.clone(), shares_name });
            }
            _ => self.several.push((old, new)),
        }
    }

    /// Positions of what has to be read in full, in the old image (0) or in the new one (1).
    fn positions(&self, side: usize) -> Vec<Position> {
        let mut positions: Vec<Position> =
            self.certain.iter().map(|pair| [pair.old.first, pair.new.first][side]).collect();
        for (old, new) in &self.several {
            positions.extend([old, new][side].iter().map(|definition| definition.first));
        }
        let enums = [&self.removed, &self.added][side].iter().filter(|definition| definition.name.is_enumerator);
        positions.extend(enums.map(|definition| definition.first));
        positions
    }

    /// Pairs what was not certain: types of one name by the file that declares them, enums without a name by their
    /// enumerators.
    fn settle(&mut self, full: &[Full; 2]) {
        let file = |side: usize, definition: &Definition| {
            full[side].types.get(&definition.first).and_then(|layout| Some(layout.place.as_ref()?.file.clone()))
        };
        for (old, mut new) in std::mem::take(&mut self.several) {
            let mut left = Vec::new();
            for before in old {
                let place = file(0, &before);
                match new.iter().position(|after| file(1, after) == place) {
                    Some(found) => {
                        self.certain.push(Pair { old: before, new: new.remove(found), shares_name: true });
                    }
                    None => left.push(before),
                }
            }
            let both = left.len().min(new.len());
            self.removed.extend(left.split_off(both));
            self.added.extend(new.split_off(both));
            self.certain.extend(left.into_iter().zip(new).map(|(old, new)| Pair { old, new, shares_name: true }));
        }
        let enumerators = |side: usize, definition: &Definition| -> BTreeSet<&str> {
            let layout = full[side].types.get(&definition.first).filter(|_| definition.name.is_enumerator);
            layout.into_iter().flat_map(|layout| &layout.enumerators).map(|(name, _)| name.as_str()).collect()
        };
        let mut left = Vec::new();
        for before in std::mem::take(&mut self.removed) {
            let names = enumerators(0, &before);
            match self.added.iter().position(|after| !enumerators(1, after).is_disjoint(&names)) {
                Some(found) => {
                    let new = self.added.remove(found);
                    self.certain.push(Pair { old: before, new, shares_name: false });
                }
                None => left.push(before),
            }
        }
        self.removed = left;
    }

    /// What differs in each pair, by name.
    fn differences(&self, full: &[Full; 2]) -> Vec<TypeDifference> {
        let mut differences: Vec<TypeDifference> = self
            .certain
            .iter()
            .filter_map(|pair| {
                let old = full[0].types.get(&pair.old.first)?;
                let new = full[1].types.get(&pair.new.first)?;
                Some(TypeDifference {
                    change: compare_type(old, new)?,
                    old: old.clone(),
                    new: new.clone(),
                    units: [pair.old.units, pair.new.units],
                    shares_name: pair.shares_name,
                })
            })
            .collect();
        let place = |difference: &TypeDifference| (difference.change.name.clone(), difference.change.place.clone());
        differences.sort_by_cached_key(place);
        // A type whose own text is the same has changed because of what is inside it.
        let resized: BTreeSet<String> = differences
            .iter()
            .map(|difference| &difference.change)
            .filter(|change| change.old_size != change.new_size || change.old_align != change.new_align)
            .map(|change| change.name.clone())
            .collect();
        for TypeDifference { change, old, new, .. } in &mut differences {
            if same_text(old, new) {
                let inside = embedded(old).chain(embedded(new));
                let causes = inside.filter(|name| **name != change.name && resized.contains(*name));
                change.consequence_of = causes.cloned().collect::<BTreeSet<_>>().into_iter().collect();
            }
        }
        differences
    }
}

fn names(definitions: &[Definition], index: &Index<'_>) -> Vec<String> {
    let names: BTreeSet<String> = definitions.iter().map(|definition| definition.name.text(index.texts)).collect();
    names.into_iter().collect()
}
