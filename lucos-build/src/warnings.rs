//! Warnings of the report: what old and new code may disagree about although nothing stops the build.
//!
//! Comes in: what the analysis of each unit says. Decided: which warnings are the same one, found in several units. Goes out:
//! [`Warning`]s for the report.

use crate::report::Reason;
use diff_analyzer::semantics;
use serde::Serialize;

/// A warning. It is known by rule and subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// Function or type that it is about.
    pub subject: String,
    /// The rule, what differs, where, and what to do.
    #[serde(flatten)]
    pub reason: Reason,
}

/// Adds the warnings of a unit. A function or type of a header is found in every unit that sees it.
pub fn add<'w>(warnings: &mut Vec<Warning>, unit: &str, found: impl IntoIterator<Item = &'w semantics::Warning>) {
    for warning in found {
        let help = format!(
            "{}: [[silence]] rule = \"{}\", subject = \"{}\", reason = \"…\"",
            warning.help, warning.rule, warning.subject
        );
        let mut reason = Reason::new(warning.rule, warning.message.clone()).help(help).in_diff(warning.diff_line);
        reason = reason.at(warning.file.clone().unwrap_or_else(|| unit.to_owned()), warning.line).of_unit(unit);
        let same = |known: &&mut Warning| {
            let (one, other) = (&known.reason, &reason);
            known.subject == warning.subject
                && (&one.rule, &one.message, &one.file) == (&other.rule, &other.message, &other.file)
        };
        match warnings.iter_mut().find(same) {
            Some(known) => drop(known.reason.units.insert(unit.to_owned())),
            None => warnings.push(Warning { subject: warning.subject.clone(), reason }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn one_warning_for_all_units_that_see_a_header() {
        let found = semantics::Warning {
            rule: "lock-calls",
            subject: "f".to_owned(),
            message: "`f` differs".to_owned(),
            help: "look at it",
            file: Some("include/x.h".to_owned()),
            line: Some(3),
            diff_line: None,
        };
        let mut warnings = Vec::new();
        add(&mut warnings, "a.c", [&found]);
        add(&mut warnings, "b.c", [&found]);
        add(&mut warnings, "b.c", [&semantics::Warning { rule: "rcu-calls", ..found }]);
        let rules: Vec<(&str, usize)> =
            warnings.iter().map(|warning| (warning.reason.rule.as_str(), warning.reason.units.len())).collect();
        assert_eq!(rules, [("lock-calls", 2), ("rcu-calls", 1)]);
        let json = serde_json::to_value(&warnings[0]).expect("JSON");
        assert_eq!((json["rule"].as_str(), json["subject"].as_str()), (Some("lock-calls"), Some("f")));
        let schema: serde_json::Value =
            serde_json::from_str(include_str!("../../docs/build-report.schema.json")).expect("the schema");
        let schema = &schema["properties"]["warnings"]["items"];
        let keys: BTreeSet<&str> = json.as_object().expect("an object").keys().map(String::as_str).collect();
        let known = schema["properties"].as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(keys, known);
        let required =
            schema["required"].as_array().expect("a list").iter().filter_map(serde_json::Value::as_str).collect();
        assert_eq!(keys, required);
    }
}
