//! Every rule that the documents promise is kept to by some case: an expectation in `testdata` or a test names it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where the rules are listed, in tables whose first column has their names.
const DOCUMENTS: [&str; 2] = ["docs/rules.md", "docs/classification.md"];
/// Words in such columns that are no rules.
const VERDICTS: [&str; 4] = ["type1", "type2", "no-effect", "refused"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Names in backticks in the first column of the tables of a document.
fn listed(text: &str) -> BTreeSet<String> {
    let cells = text.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let names = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let is_rule = |name: &&str| {
        name.contains(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !name.starts_with('-')
            && !VERDICTS.contains(name)
    };
    names.filter(is_rule).map(str::to_owned).collect()
}

/// All that is expected: files of cases, and tests.
fn expectations(folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                expectations(&path, found);
            }
        } else if name.starts_with("expect") || (name.ends_with(".rs") && name != "rules.rs") {
            found.insert(path.clone(), std::fs::read_to_string(&path).expect("text"));
        }
    }
}

/// The part of a source file that tests: all of it below `tests`, or its own module of tests.
fn of_tests<'t>(path: &Path, text: &'t str) -> &'t str {
    let is_source = path.extension().is_some_and(|extension| extension == "rs");
    let below_tests = path.components().any(|part| part.as_os_str() == "tests");
    if is_source && !below_tests { text.split_once("mod tests {").map_or("", |(_, tests)| tests) } else { text }
}

#[test]
fn every_rule_has_a_case() {
    let mut all = BTreeMap::new();
    expectations(&root(), &mut all);
    let mut rules = BTreeSet::new();
    for document in DOCUMENTS {
        rules.extend(listed(&std::fs::read_to_string(root().join(document)).expect("a document")));
    }
    assert!(rules.len() > 50 && rules.contains("data-anchored"), "{rules:?}");
    let has_case = |rule: &String| {
        let quoted = [format!("\"{rule}\""), format!("[{rule}]"), format!(" {rule} "), format!("({rule})")];
        all.iter().any(|(path, text)| quoted.iter().any(|quoted| of_tests(path, text).contains(quoted.as_str())))
    };
    let missing: Vec<&String> = rules.iter().filter(|rule| !has_case(rule)).collect();
    assert!(missing.is_empty(), "{} of {} rules without a case: {missing:?}", missing.len(), rules.len());
}
