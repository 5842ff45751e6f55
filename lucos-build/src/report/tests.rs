use super::{Reason, Report, Verdict};
use crate::warnings::Warning;

#[test]
fn a_reason_points_into_the_diff() {
    let mut report = Report::new();
    report.verdict = Verdict::Refused;
    report.diff = b"--- a/x.c\n+++ b/x.c\n@@ -1 +1 @@\n-int a;\n+int b;\n".to_vec();
    report.reasons.push(
        Reason::new("compile-error", "unknown type").at("x.c", Some(1)).in_diff(Some(5)).help("correct the diff"),
    );
    let text = report.to_text();
    for expected in [
        "compile-error",
        "x.c:1: unknown type",
        "+int b;",
        "correct the diff",
        "refused: no bundle was written, for the reason above",
    ] {
        assert!(text.contains(expected), "{expected} is missing in\n{text}");
    }
    let warned = Reason::new("lock-calls", "`f` calls `mutex_unlock` once before and twice after").at("x.c", Some(1));
    report.warnings.push(Warning { subject: "f".to_owned(), reason: warned.in_diff(Some(4)) });
    let text = report.to_text();
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} is missing in\n{text}"));
    assert!(place("x.c:1: `f` calls") < place("compile-error"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).expect("JSON");
    assert_eq!(json["warnings"][0]["subject"], "f");
    assert_eq!(json["verdict"], "refused");
    assert_eq!(json["reasons"][0]["line"], 1);
}
