//! The page of `--report`, seen by a browser; and the log of `--sarif` beside it.
//!
//! Real builds make the pages: a Type 1, a Type 2, and diffs that are refused, one of them with a hostile file name. A page of the test's own
//! shows each in frames of a wide and of a narrow screen, with scripts and without, measures it there, and writes down what it
//! sees.

use lucos_tests::browser::Browser;
use lucos_tests::commands::{self, Outcome};
use lucos_tests::kernels::Kernel;
use lucos_tests::patches::{self, Edit};
use lucos_tests::require;
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A page and what made it.
struct Made {
    name: &'static str,
    page: PathBuf,
    outcome: Outcome,
    sarif: Value,
}

/// What is written down of a frame.
const MEASURE: &str = include_str!("report_page/measure.js");

/// Measures a page in frames of 1280 and 400 pixels: with scripts, or without.
fn measure(browser: &Browser, page: &Path, scripts: bool) -> (Vec<Value>, Vec<String>) {
    let sandbox = if scripts { "" } else { "sandbox=\"allow-same-origin\"" };
    let name = page.file_name().unwrap_or_default().to_string_lossy();
    let frame =
        |width: u32| format!("<iframe id=\"{width}\" {sandbox} src=\"{name}\" width={width} height=900></iframe>");
    let text = format!(
        "<!DOCTYPE html><meta charset=utf-8><style>iframe{{border:0}}</style>{}{}<pre id=seen></pre><script>{MEASURE}</script>",
        frame(1280),
        frame(400)
    );
    let around = page.with_file_name(format!("around-{name}"));
    std::fs::write(&around, text).expect("a page in the work folder");
    let loaded = browser.load(&around, 1400, false).expect("the browser runs");
    let seen = loaded.document.split_once("<pre id=\"seen\">").and_then(|(_, rest)| rest.split_once("</pre>"));
    let (seen, _) = seen.expect("what was written down");
    let seen = seen.replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", "\u{a0}").replace("&amp;", "&");
    let seen: Vec<Value> =
        serde_json::from_str(&seen).unwrap_or_else(|error| panic!("{error}: {seen}\n{:?}", loaded.console));
    (seen, loaded.console)
}

/// A build with a page and a log.
fn make(dir: &Path, kernel: &Kernel, name: &'static str, diff: &str, overrides: Option<&str>) -> Made {
    let file = |ending: &str| dir.join(format!("{name}.{ending}"));
    std::fs::write(file("diff"), diff).expect("a diff in the work folder");
    if let Some(text) = overrides {
        std::fs::write(file("toml"), text).expect("a file beside the diff");
    }
    let args: Vec<OsString> = vec![
        file("diff").into(),
        "--vmlinux".into(),
        kernel.vmlinux().into(),
        "-o".into(),
        file("lpk").into(),
        "--report".into(),
        file("html").into(),
        "--sarif".into(),
        file("sarif").into(),
    ];
    let outcome = commands::lucos_build(&args).expect("lucos-build runs");
    let sarif = std::fs::read(file("sarif")).unwrap_or_else(|error| panic!("{error}\n{}", outcome.describe()));
    let sarif = serde_json::from_slice(&sarif).expect("JSON");
    Made { name, page: file("html"), outcome, sarif }
}

/// The diff of a case of `testdata/build`, and the text beside it.
fn case(kernel: &Kernel, name: &str) -> (String, Option<String>) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/build").join(name).join("edit.json");
    let case: Value = serde_json::from_slice(&std::fs::read(file).expect("the case")).expect("JSON");
    let edits: Vec<Edit> = serde_json::from_value(case["edits"].clone()).expect("edits");
    let diff = patches::diff(&kernel.source(), &edits).expect("the edits fit this kernel");
    (diff, case["overrides"].as_str().map(str::to_owned))
}

fn pages(dir: &Path, kernel: &Kernel) -> Vec<Made> {
    let cases = [
        "type1-warned-calls",
        "type2-on-the-authors-word",
        "type2-objects-of-a-cache",
        "type2-widened-counter",
        "refused-type2-member-in-a-header",
    ];
    let mut pages: Vec<Made> = cases
        .into_iter()
        .map(|name| {
            let (diff, overrides) = case(kernel, name);
            make(dir, kernel, name, &diff, overrides.as_deref())
        })
        .collect();
    let bits = Edit {
        file: "fs/fs-writeback.c".to_owned(),
        find: "\tunsigned int for_kupdate:1;\n".to_owned(),
        replace: "\tunsigned int mark:3;\n\tunsigned int for_kupdate:1;\n".to_owned(),
    };
    let diff = patches::diff(&kernel.source(), &[bits]).expect("the edit fits this kernel");
    pages.push(make(dir, kernel, "refused-bit-fields", &diff, None));
    let hostile =
        "--- /dev/null\n+++ b/fs/<b>bold<i>&amp;.c\n@@ -0,0 +1 @@\n+</pre><script>document.title = 'x'</script><img>\n";
    let edit = Edit {
        file: "fs/proc/version.c".to_owned(),
        find: "\tseq_printf(m, linux_proc_banner,".to_owned(),
        replace: "\t</pre><img><b>x</b>(m, linux_proc_banner,".to_owned(),
    };
    let diff = patches::diff(&kernel.source(), &[edit]).expect("the edit fits this kernel") + hostile;
    pages.push(make(dir, kernel, "refused-hostile", &diff, None));
    pages
}

#[test]
fn a_browser_shows_what_the_page_promises() {
    let Some(kernel) = require::older_kernel() else { return };
    let Some(browser) = require::or_skip(Browser::find()) else { return };
    let work = tempfile::tempdir().expect("a folder");
    for made in pages(work.path(), &kernel) {
        let name = made.name;
        looks_right(&browser, &made);
        holds_its_policy(&browser, &made.page);
        for (dark, shade) in [(false, "light"), (true, "dark")] {
            let picture = work.path().join(format!("{name}-{shade}.png"));
            browser.picture(&made.page, (1280, 1600), dark, &picture).expect("a picture");
            let (colours, background) = colours(&picture);
            assert!(colours > 50, "{name}, {shade}: {colours} colours");
            let is_dark = background.iter().all(|&part| part < 64);
            assert_eq!(is_dark, dark, "{name}, {shade}: {background:?}");
        }
        log_agrees(&made);
    }
}

fn looks_right(browser: &Browser, made: &Made) {
    let Made { name, page, outcome, .. } = made;
    for scripts in [true, false] {
        let (frames, console) = measure(browser, page, scripts);
        if scripts {
            assert_eq!(console, Vec::<String>::new(), "{name}");
        }
        assert_eq!(frames.len(), 2, "{name}");
        for seen in &frames {
            let at = format!("{name}, {} wide, scripts {scripts}: {seen:#}", seen["frame"]);
            let width = seen["width"].as_u64().expect("a number");
            assert_eq!(seen["frame"], width.to_string(), "{at}");
            for scroll in seen["scroll"].as_array().expect("two numbers") {
                assert!(scroll.as_u64().is_some_and(|scroll| scroll <= width), "wider than the screen: {at}");
            }
            for empty in ["outside", "overlaps", "broken", "doubled"] {
                assert_eq!(seen[empty].as_array().map(Vec::len), Some(0), "{empty}: {at}");
            }
            assert_eq!(
                (&seen["scripts"], &seen["images"], &seen["unnamed"]),
                (&1.into(), &0.into(), &0.into()),
                "{at}"
            );
            let parts: BTreeSet<&str> =
                seen["parts"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            for (part, items) in [
                ("reasons", "/reasons"),
                ("warnings", "/warnings"),
                ("vouched", "/vouched"),
                ("types", "/types"),
                ("data", "/data_changes"),
                ("new-data", "/data"),
                ("functions", "/functions"),
            ] {
                // The report has functions of a bundle only, the page those of a refused build as well.
                let there = !outcome.items(items).is_empty();
                let extra = part == "functions" && outcome.status == 3;
                assert!(extra || parts.contains(part) == there, "{part}: {at}");
            }
            assert_eq!(parts.contains("symbols"), outcome.status == 0, "{at}");
            drawn(outcome, seen, &at);
            let has_symbols = parts.contains("symbols");
            assert_eq!(seen["filter"], Value::Bool(scripts && has_symbols), "{at}");
            if scripts && has_symbols {
                assert_eq!(seen["filtered"], 0, "{at}");
                assert!(seen["unfiltered"].as_u64().is_some_and(|rows| rows > 1), "{at}");
            }
            if *name == "refused-hostile" {
                assert_eq!((&seen["text"], &seen["bold"]), (&Value::Bool(true), &0.into()), "{at}");
            }
        }
    }
}

/// Every member that changes is in the picture, and a type that changes has rows.
fn drawn(outcome: &Outcome, seen: &Value, at: &str) {
    let members: BTreeSet<&str> = seen["members"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for member in outcome.items("/types").iter().flat_map(|row| row["members"].as_array().into_iter().flatten()) {
        let name = member["name"].as_str().expect("a name");
        assert!(members.contains(name), "{name} is not drawn: {at}");
    }
    assert_eq!(seen["rows"].as_u64().is_some_and(|rows| rows > 0), !outcome.items("/types").is_empty(), "{at}");
}

/// A script that somebody gets into the page does not run, and the browser says so: that is what silence above means.
fn holds_its_policy(browser: &Browser, page: &Path) {
    let text = std::fs::read_to_string(page).expect("the page");
    let smuggled = "<script>document.body.id = 'taken'</script></body>";
    let tampered = page.with_file_name("tampered.html");
    std::fs::write(&tampered, text.replacen("</body>", smuggled, 1)).expect("written");
    let loaded = browser.load(&tampered, 1280, false).expect("the browser runs");
    assert!(loaded.console.iter().any(|line| line.contains("Content Security Policy")), "{:?}", loaded.console);
    assert!(!loaded.document.contains("id=\"taken\""));
    let untouched = browser.load(page, 1280, true).expect("the browser runs");
    assert_eq!(untouched.console, Vec::<String>::new());
}

/// How many colours a picture has, and the one in its corner.
fn colours(picture: &Path) -> (usize, Vec<u8>) {
    let file = std::io::BufReader::new(std::fs::File::open(picture).expect("the picture"));
    let mut reader = png::Decoder::new(file).read_info().expect("a picture");
    let mut bytes = vec![0; reader.output_buffer_size().expect("a size")];
    let frame = reader.next_frame(&mut bytes).expect("a picture");
    let pixels = bytes[..frame.buffer_size()].chunks_exact(frame.color_type.samples());
    let corner = pixels.clone().next().map(|pixel| pixel[..3].to_vec()).unwrap_or_default();
    (pixels.map(<[u8]>::to_vec).collect::<BTreeSet<_>>().len(), corner)
}

/// The log has the reasons and warnings of the report, at the same places.
fn log_agrees(made: &Made) {
    let Made { name, outcome, sarif, .. } = made;
    assert_eq!(sarif["version"], "2.1.0", "{name}");
    let run = &sarif["runs"][0];
    assert_eq!(run["properties"]["verdict"], outcome.json["verdict"], "{name}");
    let results = run["results"].as_array().expect("results");
    let of_level = |level: &str| -> BTreeSet<(String, Option<u64>)> {
        let are = results.iter().filter(|result| result["level"] == level);
        are.map(|result| {
            let line = &result["locations"][0]["physicalLocation"]["region"]["startLine"];
            (result["ruleId"].as_str().unwrap_or_default().to_owned(), line.as_u64())
        })
        .collect()
    };
    let of_report = |list: &str| -> BTreeSet<(String, Option<u64>)> {
        let rule = |item: &Value| (item["rule"].as_str().unwrap_or_default().to_owned(), item["line"].as_u64());
        outcome.items(list).iter().map(rule).collect()
    };
    assert_eq!(of_level("error"), of_report("/reasons"), "{name}: {run:#}");
    assert_eq!(of_level("warning"), of_report("/warnings"), "{name}: {run:#}");
    let known: BTreeSet<&str> = (run["tool"]["driver"]["rules"].as_array().into_iter().flatten())
        .filter_map(|rule| rule["id"].as_str())
        .collect();
    assert!(results.iter().all(|result| result["ruleId"].as_str().is_some_and(|rule| known.contains(rule))), "{name}");
    let suppressed = results.iter().filter_map(|result| result["suppressions"][0]["justification"].as_str());
    let vouched = outcome.items("/vouched").iter().filter(|item| item["says"] == "silenced");
    let vouched: BTreeSet<&str> = vouched.filter_map(|item| item["reason"].as_str()).collect();
    assert_eq!(suppressed.collect::<BTreeSet<_>>(), vouched, "{name}");
}

#[test]
fn the_same_inputs_give_the_same_page_and_log() {
    let Some(kernel) = require::older_kernel() else { return };
    let (diff, overrides) = case(&kernel, "type2-on-the-authors-word");
    let build = || {
        let work = tempfile::tempdir().expect("a folder");
        let made = make(work.path(), &kernel, "same", &diff, overrides.as_deref());
        (std::fs::read_to_string(made.page).expect("the page"), made.sarif)
    };
    let (one, other) = (build(), build());
    assert!(one.0 == other.0, "the pages differ");
    assert_eq!(one.1, other.1);
}

#[test]
fn an_update_by_hand_has_a_page_without_the_folder_it_lies_in() {
    let Some(kernel) = require::older_kernel() else { return };
    let update = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/by-hand/type1-one-of-several-files/update.c");
    let build = || {
        let work = tempfile::tempdir().expect("a folder");
        let file = |name: &str| work.path().join(name);
        std::fs::copy(&update, file("update.c")).expect("copied");
        let args: Vec<OsString> = vec![
            "--update".into(),
            file("update.c").into(),
            "--vmlinux".into(),
            kernel.vmlinux().into(),
            "-o".into(),
            file("update.lpk").into(),
            "--report".into(),
            file("update.html").into(),
        ];
        let outcome = commands::lucos_build(&args).expect("lucos-build runs");
        assert_eq!(outcome.status, 0, "{}", outcome.describe());
        let page = std::fs::read_to_string(file("update.html")).expect("the page");
        assert!(!page.contains(&work.path().display().to_string()), "the folder is named");
        for row in outcome.items("/functions") {
            let address = row["old_address"].as_str().expect("it replaces one of the kernel");
            assert!(page.contains(address), "{address} of {row}");
        }
        assert!(page.contains("as the update declares") && page.contains("<table class=\"asm\">"));
        page
    };
    assert!(build() == build(), "the pages differ");
}

#[test]
fn a_file_that_cannot_be_written_is_said_before_any_work() {
    let Some(kernel) = require::older_kernel() else { return };
    let work = tempfile::tempdir().expect("a folder");
    let diff = work.path().join("any.diff");
    // It would be refused as soon as it is read, with status 3.
    std::fs::write(&diff, "no diff at all\n").expect("written");
    for option in ["--report", "--sarif"] {
        let to = work.path().join("none/file");
        let args: Vec<OsString> =
            vec![diff.clone().into(), "--vmlinux".into(), kernel.vmlinux().into(), option.into(), to.into()];
        let outcome = commands::lucos_build(&args).expect("lucos-build runs");
        assert_eq!(outcome.status, 1, "{}", outcome.describe());
        assert!(outcome.stderr.contains(&format!("{option}: cannot write")), "{}", outcome.describe());
    }
}
