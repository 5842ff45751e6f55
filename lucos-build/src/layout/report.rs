//! What `lucos-build layout` says, as data.
//!
//! Comes in: a difference, or the types of one image. Decided: the verdict. Goes out: [`LayoutReport`], as the JSON of
//! `docs/layout-report.schema.json`; [`super::text`] makes text of it.

use crate::report::Reason;
use diff_analyzer::dwarf_layout::TypeLayout;
use diff_analyzer::image_layout::{Difference, ImageFacts, ImageType, ImageTypes, TypeDifference, VariableDifference};
use diff_analyzer::layout_diff::TypeChange;
use serde::Serialize;

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All that both images have is laid out the same.
    Same,
    /// Something is not.
    Differ,
    /// The layouts of one image were printed.
    Printed,
    /// An image cannot be used, or a type is not known: the reasons say why.
    Refused,
}

/// A type that differs.
#[derive(Debug, Clone, Serialize)]
pub struct TypeRow {
    /// What differs.
    #[serde(flatten)]
    pub change: TypeChange,
    /// Units of the old image that define it so.
    pub old_units: u32,
    /// Units of the new image that define it so.
    pub new_units: u32,
    /// Whether an image has other types of this name.
    pub shares_name: bool,
    /// The type in both images.
    #[serde(skip)]
    pub layouts: Box<[TypeLayout; 2]>,
}

/// What only one image has.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Only {
    /// Types.
    pub types: Vec<String>,
    /// Variables of file scope.
    pub variables: Vec<String>,
}

/// What `lucos-build layout` says.
#[derive(Debug, Clone, Serialize)]
pub struct LayoutReport {
    /// The answer.
    pub verdict: Verdict,
    /// The image, or the old one.
    pub old: Option<ImageFacts>,
    /// The new image.
    pub new: Option<ImageFacts>,
    /// Types that differ.
    pub types: Vec<TypeRow>,
    /// Variables that differ.
    pub variables: Vec<VariableDifference>,
    /// What only the old image has.
    pub only_old: Only,
    /// What only the new image has.
    pub only_new: Only,
    /// Types of the image, when there is only one.
    pub layouts: Vec<ImageType>,
    /// Why nothing could be compared.
    pub reasons: Vec<Reason>,
}

impl LayoutReport {
    fn new(verdict: Verdict) -> Self {
        Self {
            verdict,
            old: None,
            new: None,
            types: Vec::new(),
            variables: Vec::new(),
            only_old: Only::default(),
            only_new: Only::default(),
            layouts: Vec::new(),
            reasons: Vec::new(),
        }
    }

    pub(super) fn refused(reasons: Vec<Reason>) -> Self {
        Self { reasons, ..Self::new(Verdict::Refused) }
    }

    pub(super) fn of_image(types: ImageTypes) -> Self {
        Self { old: Some(types.image), layouts: types.types, ..Self::new(Verdict::Printed) }
    }

    pub(super) fn of_images(difference: Difference) -> Self {
        let verdict = if difference.is_empty() { Verdict::Same } else { Verdict::Differ };
        let [old, new] = difference.images;
        let [old_types, new_types] = difference.only_types;
        let [old_variables, new_variables] = difference.only_variables;
        let row = |TypeDifference { change, old, new, units, shares_name }| TypeRow {
            change,
            old_units: units[0],
            new_units: units[1],
            shares_name,
            layouts: Box::new([old, new]),
        };
        Self {
            old: Some(old),
            new: Some(new),
            types: difference.types.into_iter().map(row).collect(),
            variables: difference.variables,
            only_old: Only { types: old_types, variables: old_variables },
            only_new: Only { types: new_types, variables: new_variables },
            ..Self::new(verdict)
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report has only strings, numbers and lists")
    }
}
