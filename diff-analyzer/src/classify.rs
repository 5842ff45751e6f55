//! Type 1 or Type 2, by rules.
//!
//! Comes in: what changed in a unit's code and data, and the layouts of its types before and after. Decided: whether
//! existing data changes, each decision by a rule with an identifier. Goes out: [`Finding`]s; a unit without any is Type 1.
//!
//! | rule | finding |
//! | --- | --- |
//! | `type-layout` | a type that existed is laid out differently |
//! | `data-changed` | an existing datum has another size, section, initial value or target of a pointer in it |
//! | `data-retyped` | an existing datum has a type of another layout |

use crate::dwarf_layout::{Layouts, Place};
use crate::layout_diff::{self, Effect, TypeChange};
use crate::object_diff::ObjectDiff;
use crate::pieces::Pieces;

/// A reason for Type 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Identifier of the rule.
    pub rule: &'static str,
    /// Type or datum.
    pub subject: String,
    /// What changes, with old and new values.
    pub message: String,
    /// Where it is declared, in the patched source.
    pub place: Option<Place>,
}

/// Finds what a unit's change does to existing data. A unit whose code does not change has no findings of types: a
/// type that only one side of a diff sees is used by nothing that runs.
pub fn classify(diff: &ObjectDiff, patched: &Pieces<'_>, old: &Layouts, new: &Layouts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if diff.is_empty() {
        return findings;
    }
    for change in layout_diff::compare(old, new).iter().filter(|change| change.effect == Effect::Layout) {
        findings.push(Finding {
            rule: "type-layout",
            subject: change.name.clone(),
            message: describe(change),
            place: change.place.clone(),
        });
    }
    for (datum, difference) in diff.changed_data() {
        let name = &patched.piece(datum.patched).name;
        let variable = new.variables.iter().find(|variable| variable.name == *name);
        findings.push(Finding {
            rule: "data-changed",
            subject: name.clone(),
            message: format!("existing datum `{name}`: {difference}"),
            place: variable.and_then(|variable| variable.place.clone()),
        });
    }
    for change in layout_diff::compare_variables(old, new).iter().filter(|change| change.effect == Effect::Layout) {
        let known = findings.iter().any(|finding| finding.subject == change.name);
        if !known && change.consequence_of.is_empty() {
            findings.push(Finding {
                rule: "data-retyped",
                subject: change.name.clone(),
                message: format!(
                    "existing datum `{}` changes from `{}` to `{}`",
                    change.name, change.old_type, change.new_type
                ),
                place: change.place.clone(),
            });
        }
    }
    findings
}

fn describe(change: &TypeChange) -> String {
    let mut text = format!("`{}` has {} bytes before and {} after", change.name, change.old_size, change.new_size);
    if !change.consequence_of.is_empty() {
        text.push_str(&format!(", because of {}", change.consequence_of.join(", ")));
        return text;
    }
    let offset =
        |bits: u64| if bits.is_multiple_of(8) { format!("{}", bits / 8) } else { format!("{}:{}", bits / 8, bits % 8) };
    for member in change.members.iter().filter(|member| member.effect == Effect::Layout).take(4) {
        let name = &member.name;
        text.push_str(&match (&member.old, &member.new) {
            (Some(old), Some(new)) if old.bit_offset != new.bit_offset => {
                format!("; `{name}` moves from offset {} to {}", offset(old.bit_offset), offset(new.bit_offset))
            }
            (Some(old), Some(new)) => format!("; `{name}` changes from `{}` to `{}`", old.type_text, new.type_text),
            (None, Some(new)) => format!("; `{name}` is new at offset {}", offset(new.bit_offset)),
            (Some(old), None) => format!("; `{name}` at offset {} is gone", offset(old.bit_offset)),
            (None, None) => continue,
        });
    }
    for enumerator in change.enumerators.iter().take(4) {
        let value = |value: Option<i128>| value.map_or_else(|| "nothing".to_owned(), |value| value.to_string());
        text.push_str(&format!(
            "; `{}` changes from {} to {}",
            enumerator.name,
            value(enumerator.old),
            value(enumerator.new)
        ));
    }
    text
}
