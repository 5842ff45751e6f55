//! Explanations of the functions of compiled units that somebody asked for.
//!
//! Comes in: names of functions, units with both objects, their comparison and, where there is an image, the proof of the
//! original. Decided: which comparisons of a function there are to explain: patched against original, and original against
//! image when it is not proved. Goes out: [`Explanation`]s, and a note for each name that no unit has.

use super::lines::SourceLines;
use super::{Compiled, Explanation, InImage, alone, explain, whole};
use diff_analyzer::object_diff::{Change, Compared, ObjectDiff};
use diff_analyzer::pieces::{PieceIndex, PieceKind, Pieces};
use prelink::prove::Proof;
use prelink::vmlinux::KernelImage;
use std::ops::Range;

/// A unit whose functions can be explained.
pub struct Explained<'a, 'o> {
    /// Its source file, or what else it is called.
    pub unit: &'a str,
    /// The original object.
    pub original: &'a Pieces<'o>,
    /// The patched object.
    pub patched: &'a Pieces<'o>,
    /// Their comparison.
    pub diff: &'a ObjectDiff,
    /// The files of both objects.
    pub bytes: [&'a [u8]; 2],
    /// What was proved about the original.
    pub proof: Option<(&'a Proof, &'a KernelImage)>,
    /// Code of the unit in the image; empty if that is not known.
    pub ranges: Vec<Range<u64>>,
}

/// Explains functions; also gives notes for names that are nowhere, and for objects that tell no source lines.
pub fn functions(names: &[String], units: &[Explained<'_, '_>]) -> (Vec<Explanation>, Vec<String>) {
    let (mut explanations, mut notes) = (Vec::new(), Vec::new());
    let mut found = vec![false; names.len()];
    for unit in units {
        let has = |pieces: &Pieces<'_>, name: &str| function(pieces, name).is_some();
        let mine: Vec<usize> = (0..names.len())
            .filter(|&index| has(unit.original, &names[index]) || has(unit.patched, &names[index]))
            .collect();
        if mine.is_empty() {
            continue;
        }
        let lines = unit.bytes.map(|bytes| SourceLines::of_object(bytes, Some(unit.unit)));
        for error in lines.iter().filter_map(|lines| lines.as_ref().err()).take(1) {
            notes.push(format!("{}: no source lines: {error}", unit.unit));
        }
        let lines = lines.map(Result::ok);
        for index in mine {
            found[index] = true;
            let sides = [lines[0].as_ref(), lines[1].as_ref()];
            explanations.extend(unit.unproved(&names[index], sides[0]));
            explanations.push(unit.changed(&names[index], sides));
        }
    }
    for name in names.iter().zip(&found).filter(|(_, found)| !**found).map(|(name, _)| name) {
        notes.push(format!("--explain {name}: no compiled unit has a function of this name"));
    }
    (explanations, notes)
}

/// A changed function with all of its instructions.
pub struct Listing<'a> {
    /// The function.
    pub compared: &'a Compared,
    /// Patched beside original.
    pub code: Explanation,
    /// Original beside image, when they are not equal.
    pub unproved: Option<Explanation>,
}

impl Explained<'_, '_> {
    /// All changed functions of the unit.
    pub fn listings<'s>(&'s self) -> Vec<Listing<'s>> {
        let lines = self.bytes.map(|bytes| SourceLines::of_object(bytes, Some(self.unit)).ok());
        let listing = |compared: &'s Compared| {
            let Compared { patched, original, change } = compared;
            let name = &self.patched.piece(*patched).name;
            let difference = match change {
                Change::Changed(difference) => difference.to_string(),
                Change::New | Change::Same => "it is new".to_owned(),
            };
            let side = |title, pieces, function, index: usize| Compiled {
                title,
                pieces,
                function,
                lines: lines[index].as_ref(),
                against_image: false,
            };
            let new = side("patched", self.patched, *patched, 1);
            let code = match original {
                Some(original) => {
                    whole(name, self.unit, difference, &side("original", self.original, *original, 0), &new)
                }
                None => alone(name, self.unit, difference, &new),
            };
            Listing { compared, code, unproved: self.unproved(name, lines[0].as_ref()) }
        };
        self.diff.changed_functions().map(listing).collect()
    }
}

fn function(pieces: &Pieces<'_>, name: &str) -> Option<PieceIndex> {
    let mut functions = pieces.iter().filter(|(_, piece)| piece.kind == PieceKind::Function);
    functions.find(|(_, piece)| piece.name == name).map(|(index, _)| index)
}

impl Explained<'_, '_> {
    /// The original beside the image, if they are not equal.
    fn unproved(&self, name: &str, lines: Option<&SourceLines>) -> Option<Explanation> {
        let (proof, image) = self.proof?;
        let original = function(self.original, name)?;
        let mismatch = proof.mismatches.get(&original)?;
        let in_unit = |address: u64| self.ranges.is_empty() || self.ranges.iter().any(|range| range.contains(&address));
        let symbol = image.symbols().lookup(name).find(|symbol| symbol.size > 0 && in_unit(symbol.address))?;
        let compiled = Compiled {
            title: "compiled original",
            pieces: self.original,
            function: original,
            lines,
            against_image: true,
        };
        let live = InImage { image, address: symbol.address, size: symbol.size };
        Some(explain(name, self.unit, format!("not proved: {mismatch}"), &live, &compiled))
    }

    /// The patched function beside the original.
    fn changed(&self, name: &str, [old_lines, new_lines]: [Option<&SourceLines>; 2]) -> Explanation {
        let patched = function(self.patched, name);
        let original = match patched {
            Some(patched) => self.diff.correlation.original(patched),
            None => function(self.original, name),
        };
        let compared = patched.and_then(|patched| {
            self.diff.functions.iter().chain(&self.diff.boot_functions).find(|f| f.patched == patched)
        });
        let difference = match (compared.map(|compared| &compared.change), original) {
            (Some(Change::Same), _) => "it does not change".to_owned(),
            (Some(Change::Changed(difference)), _) => difference.to_string(),
            (Some(Change::New), _) => "it is new".to_owned(),
            (None, _) => "the patched object no longer has it".to_owned(),
        };
        let side = |title, pieces, function: Option<PieceIndex>, lines| {
            function.map(|function| Compiled { title, pieces, function, lines, against_image: false })
        };
        let (old, new) =
            (side("original", self.original, original, old_lines), side("patched", self.patched, patched, new_lines));
        match (old, new) {
            (Some(old), Some(new)) => explain(name, self.unit, difference, &old, &new),
            // What is on one side only needs no listing: all of it differs.
            _ => Explanation {
                function: name.to_owned(),
                unit: self.unit.to_owned(),
                sides: ["original".to_owned(), "patched".to_owned()],
                difference,
                first: None,
                hunks: Vec::new(),
            },
        }
    }
}
