use super::*;
use crate::report::DataChangeRow;
use crate::warnings::Warning;
use serde_json::Value;

fn report() -> Report {
    let mut report = Report::new();
    report.verdict = Verdict::Type2;
    report.diff = b"--- a/x.c\n+++ b/x.c\n@@ -7,2 +7,2 @@\n keep;\n-int a;\n+int b;\n".to_vec();
    report.reasons.push(
        Reason::new("type-layout", "`struct t` has 8 bytes before").at("x.c", Some(8)).in_diff(Some(6)).help("`do`"),
    );
    let warned = Reason::new("lock-calls", "`f` calls").at("a b.c", Some(7)).in_diff(Some(5));
    report.warnings.push(Warning { subject: "f".to_owned(), reason: warned.clone() });
    report.silenced.push(Warning { subject: "g".to_owned(), reason: warned });
    let vouched = |about: &str, subject: &str| Vouched {
        about: about.to_owned(),
        subject: subject.to_owned(),
        says: "no obstacle".to_owned(),
        reason: format!("why {subject}"),
    };
    report.vouched.extend([vouched("lock-calls", "g"), vouched("data-anchored", "d"), vouched("data", "d")]);
    report.data_changes.push(DataChangeRow {
        name: "d".to_owned(),
        unit: "x.c".to_owned(),
        rule: "data-value".to_owned(),
        message: "`d` changes".to_owned(),
        strategy: "moved".to_owned(),
        old_address: None,
        old_size: 4,
        new_size: 4,
        written: Vec::new(),
        to_new: Vec::new(),
        to_old: Vec::new(),
        users: Default::default(),
        reason: None,
        place: Some(Place { file: "/abs/y.h".to_owned(), line: 3 }),
    });
    report
}

fn parse(report: &Report) -> Value {
    serde_json::from_str(&render(report)).expect("JSON")
}

#[test]
fn a_log_has_what_the_standard_requires() {
    let log = parse(&report());
    assert_eq!(log["version"], "2.1.0");
    let run = &log["runs"][0];
    assert!(run["tool"]["driver"]["name"].is_string());
    let rules = run["tool"]["driver"]["rules"].as_array().expect("rules");
    let results = run["results"].as_array().expect("results");
    assert_eq!(results.len(), 5);
    for result in results {
        assert!(result["message"]["text"].as_str().is_some_and(|text| !text.is_empty() && !text.contains('`')));
        let index = result["ruleIndex"].as_u64().expect("a number") as usize;
        assert_eq!(rules[index]["id"], result["ruleId"]);
        for location in result["locations"].as_array().into_iter().flatten() {
            let region = &location["physicalLocation"]["region"];
            assert!(region.is_null() || region["startLine"].as_u64().is_some_and(|line| line > 0));
        }
        assert_eq!(result["partialFingerprints"]["lucosRuleSubjectFile/v1"].as_str().map(str::len), Some(64));
    }
    assert!(rules.iter().all(|rule| rule["shortDescription"]["text"].is_string() && rule["help"]["text"].is_string()));
}

#[test]
fn places_are_those_of_the_text_after_the_diff() {
    let log = parse(&report());
    let place = |index: usize| &log["runs"][0]["results"][index]["locations"][0];
    let first = &place(0)["physicalLocation"];
    assert_eq!(
        (&first["artifactLocation"]["uri"], &first["artifactLocation"]["uriBaseId"]),
        (&"x.c".into(), &"SRCROOT".into())
    );
    assert_eq!((&first["region"]["startLine"], &first["region"]["snippet"]["text"]), (&8.into(), &"int b;".into()));
    assert_eq!(place(1)["properties"]["deletedLine"], 8);
    assert_eq!(place(1)["physicalLocation"]["artifactLocation"]["uri"], "a%20b.c");
    assert_eq!(place(2)["physicalLocation"]["artifactLocation"]["uri"], "file:///abs/y.h");
    assert_eq!(place(0)["logicalLocations"][0]["kind"], "type");
    assert_eq!(place(1)["logicalLocations"][0]["kind"], "function");
}

#[test]
fn what_is_silenced_says_why() {
    let log = parse(&report());
    let results = log["runs"][0]["results"].as_array().expect("results");
    let levels: Vec<&str> = results.iter().filter_map(|result| result["level"].as_str()).collect();
    assert_eq!(levels, ["error", "warning", "note", "warning", "note"]);
    let why = |index: usize| results[index]["suppressions"][0]["justification"].as_str();
    assert_eq!([why(1), why(3), why(4)], [None, Some("why g"), Some("why d")]);
    assert_eq!(results[3]["suppressions"][0]["kind"], "external");
}

#[test]
fn a_result_is_known_again_when_lines_move() {
    let (before, mut later) = (report(), report());
    later.reasons[0].line = Some(99);
    later.reasons[0].message = "`struct t` has 16 bytes before".to_owned();
    let known = |report: &Report| parse(report)["runs"][0]["results"][0]["partialFingerprints"].clone();
    assert_eq!(known(&before), known(&later));
    later.reasons[0].rule = "type-additive".to_owned();
    assert_ne!(known(&before), known(&later));
}
