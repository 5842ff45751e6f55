//! What each rule means, in a sentence or two.
//!
//! Comes in: the tables of `docs/classification.md` and `docs/rules.md`, which are the one place where rules are described.
//! Decided: which rows are about rules. Goes out: [`meanings`] of a rule; a rule may stand in several tables.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// What a rule means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meaning {
    /// Heading that the table stands under.
    pub heading: String,
    /// The sentence, in Markdown.
    pub text: String,
}

static RULES: LazyLock<BTreeMap<String, Vec<Meaning>>> = LazyLock::new(|| {
    let mut rules = BTreeMap::new();
    for document in [include_str!("../../docs/classification.md"), include_str!("../../docs/rules.md")] {
        read(document, &mut rules);
    }
    rules
});

/// What a rule means; empty for a name that is none.
pub fn meanings(rule: &str) -> &'static [Meaning] {
    RULES.get(rule).map(Vec::as_slice).unwrap_or_default()
}

/// Markdown as plain text.
pub fn plain(text: &str) -> String {
    text.replace('`', "")
}

fn read(document: &str, rules: &mut BTreeMap<String, Vec<Meaning>>) {
    let mut heading = "";
    let mut columns: Vec<&str> = Vec::new();
    for line in document.lines() {
        let Some(row) = line.strip_prefix("| ").and_then(|row| row.strip_suffix(" |")) else {
            columns.clear();
            heading = line.strip_prefix('#').map_or(heading, |rest| rest.trim_start_matches(['#', ' ']));
            continue;
        };
        let cells: Vec<&str> = row.split(" | ").collect();
        if columns.is_empty() {
            columns = cells;
            continue;
        }
        if columns.first() != Some(&"rule") {
            continue;
        }
        let told = cells.iter().zip(&columns).skip(1).filter(|(_, column)| **column != "subject");
        let text = told.map(|(cell, _)| *cell).collect::<Vec<_>>().join("; ");
        // One part of the first cell for each rule: `a`, `b`
        for rule in cells.first().into_iter().flat_map(|cell| cell.split(", ")) {
            let Some(rule) = rule.strip_prefix('`').and_then(|rule| rule.strip_suffix('`')) else { continue };
            let meaning = Meaning { heading: heading.to_owned(), text: links(&text) };
            rules.entry(rule.to_owned()).or_default().push(meaning);
        }
    }
}

/// Links to other documents as their text alone: what is shown stands by itself.
fn links(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('[') {
        let Some((words, target)) = after.split_once("](") else { break };
        let Some((_, behind)) = target.split_once(')') else { break };
        shown.push_str(before);
        shown.push_str(words);
        rest = behind;
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    #[test]
    fn rules_stand_in_tables() {
        let mut rules = BTreeMap::new();
        read(
            "# A\n\n| rule | expected |\n| --- | --- |\n| `a`, `b-c` | see [d](d.md#e) `f` |\n\n## B\n\n| verdict | meaning |\n| --- | --- |\n\
             | `g` | no rule |\n\n| rule | subject | warning |\n| --- | --- | --- |\n| `a` | function | more |\n",
            &mut rules,
        );
        let of = |heading: &str, text: &str| Meaning { heading: heading.to_owned(), text: text.to_owned() };
        assert_eq!(rules["a"], [of("A", "see d `f`"), of("B", "more")]);
        assert_eq!(rules["b-c"], [of("A", "see d `f`")]);
        assert!(!rules.contains_key("g"));
    }

    /// Files below a folder.
    fn files(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() { files(&entry, found) } else { found.push(entry) }
        }
    }

    #[test]
    fn every_rule_of_every_case_is_described() {
        let mut found = Vec::new();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata");
        for folder in ["build", "by-hand"] {
            files(&root.join(folder), &mut found);
        }
        let mut seen = 0;
        for file in found.iter().filter(|file| file.ends_with("expect.json")) {
            let text = std::fs::read_to_string(file).expect("a case");
            let case: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            for rule in case["rules"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str) {
                assert!(!meanings(rule).is_empty(), "{rule} of {} is in no table of docs/", file.display());
                seen += 1;
            }
        }
        assert!(seen > 20, "only {seen} rules were looked up");
    }
}
