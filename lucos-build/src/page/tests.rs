use super::*;
use crate::compare::rows::{Row as Compared, What};
use crate::details::{Details, FileRow, FunctionDetail};
use crate::explain::{Explanation, Instruction, Pair, Row};
use crate::inputs::Found;
use crate::report::Reason;

const HOSTILE: &str = "<script>document.title='x'</script>\"'&\u{202e}`";

fn hostile() -> Report {
    let instruction = |text: &str| Some(Instruction { offset: 0, text: text.to_owned(), source: Vec::new() });
    let code = Explanation {
        function: HOSTILE.to_owned(),
        unit: HOSTILE.to_owned(),
        sides: [HOSTILE.to_owned(), HOSTILE.to_owned()],
        difference: HOSTILE.to_owned(),
        first: None,
        hunks: vec![vec![Row { differs: true, pair: Pair { old: instruction(HOSTILE), new: instruction("ret") } }]],
    };
    let row = Compared {
        name: HOSTILE.to_owned(),
        change: What::Changed,
        kind: None,
        reason: Some(HOSTILE.to_owned()),
        section: ".text".to_owned(),
        old_size: Some(1),
        new_size: Some(2),
        along: None,
    };
    let function = FunctionDetail {
        unit: HOSTILE.to_owned(),
        module: None,
        listed_as: [String::new(), String::new()],
        row,
        code,
        unproved: None,
    };
    let mut report = Report::new();
    report.verdict = Verdict::Refused;
    report.inputs.diff = Some(Found { path: HOSTILE.into(), how: "given".to_owned() });
    report.diff = format!("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-{HOSTILE}\n+{HOSTILE}\n").into_bytes();
    report.reasons.push(Reason::new("compile-error", HOSTILE).at(HOSTILE, Some(1)).in_diff(Some(5)).help(HOSTILE));
    report.vouched.push(lpk_format::Vouched {
        about: HOSTILE.to_owned(),
        subject: HOSTILE.to_owned(),
        says: HOSTILE.to_owned(),
        reason: HOSTILE.to_owned(),
    });
    report.notes.push(HOSTILE.to_owned());
    let files = vec![FileRow { path: HOSTILE.to_owned(), what: Some(HOSTILE.to_owned()), added: 1, removed: 1 }];
    report.details = Some(Details { files, functions: vec![function], ..Details::default() });
    report
}

#[test]
fn what_comes_from_outside_is_text() {
    let page = render(&hostile());
    assert_eq!(page.matches("<script>").count(), 1, "the page's own");
    assert!(page.contains("&lt;script&gt;document.title='x'&lt;/script&gt;"), "{page}");
    assert!(!page.contains('\u{202e}') && page.contains("\\u{202e}"));
    // In attributes too: a quotation mark would end them.
    assert!(!page.contains("</script>\"'&"), "{page}");
}

#[test]
fn the_page_needs_nothing_else() {
    let page = render(&hostile());
    for outside in ["http:", "https:", "//", "url(", "@import", "src=", "<link", "<img", "<iframe"] {
        let found = page.replace(SCRIPT, "").find(outside).map(|at| page[at..].chars().take(80).collect::<String>());
        assert_eq!(found, None, "{outside}");
    }
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("Content-Security-Policy"));
}

#[test]
fn the_same_report_gives_the_same_page() {
    let mut report = hostile();
    let page = render(&report);
    report.timings_ms.total = 7;
    report.inputs.build_folder = Some("/somewhere/else".into());
    report.inputs.diff = Some(Found { path: HOSTILE.into(), how: "found".to_owned() });
    assert_eq!(page, render(&report));
}

#[test]
fn the_parts_stand_in_order_and_empty_ones_are_left_out() {
    let page = render(&hostile());
    let place = |id: &str| page.find(&format!("<section id=\"{id}\"")).unwrap_or_else(|| panic!("no part {id}"));
    let places = ["reasons", "vouched", "functions", "notes", "rules"].map(place);
    assert!(places.is_sorted(), "{places:?}");
    assert!(!page.contains("<section id=\"types\"") && page.contains("id=\"rule-compile-error\""));
    assert!(render(&Report::new()).contains("No effect"));
}
