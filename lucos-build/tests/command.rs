//! The command as a person or a pipeline meets it, as far as no kernel is needed: exit statuses, JSON, standard streams.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lucos-build")).args(arguments).current_dir(folder).output().expect("started")
}

fn status(output: &Output) -> i32 {
    output.status.code().expect("not killed")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn usage_errors_have_status_2() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for arguments in [&[][..], &["x.diff"], &["inspect"], &["--nonsense"], &["x.diff", "--vmlinux", "v", "-j", "0"]] {
        let output = run(folder.path(), arguments);
        assert_eq!(status(&output), 2, "{arguments:?}");
        assert!(errors(&output).starts_with("error:") || arguments.is_empty(), "{arguments:?}: {}", errors(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn help_names_the_statuses_and_the_schema() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = run(folder.path(), &["--help"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(status(&output), 0);
    for word in ["3 refused", "docs/build-report.schema.json", "inspect", "--keep-dir"] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
}

#[test]
fn missing_files_have_status_1() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("x.diff"), "").expect("written");
    for arguments in
        [&["none.diff", "--vmlinux", "v", "--json"][..], &["x.diff", "--vmlinux", "none"], &["inspect", "none.lpk"]]
    {
        let output = run(folder.path(), arguments);
        assert_eq!(status(&output), 1, "{arguments:?}");
        assert!(errors(&output).contains("none"), "{arguments:?}: {}", errors(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn what_is_no_kernel_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("x.diff"), "").expect("written");
    std::fs::write(folder.path().join("text"), "no kernel").expect("written");
    let this = env!("CARGO_BIN_EXE_lucos-build");
    for image in ["text", this] {
        let output = run(folder.path(), &["x.diff", "--vmlinux", image, "--json"]);
        assert_eq!(status(&output), 3, "{image}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(report["verdict"], "refused");
        assert_eq!(report["reasons"][0]["rule"], "not-a-kernel-image");
        assert_eq!(report["bundle"], Value::Null);
        keys_are_those_of_the_schema(&report);
        let quiet = run(folder.path(), &["x.diff", "--vmlinux", image, "--quiet"]);
        assert_eq!(status(&quiet), 3);
        assert!(quiet.stdout.is_empty() && errors(&quiet).contains("not-a-kernel-image"));
    }
    assert!(!folder.path().join("x.lpk").exists());
}

#[test]
fn what_is_no_bundle_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("x.lpk"), "no bundle").expect("written");
    let output = run(folder.path(), &["inspect", "x.lpk", "--json"]);
    assert_eq!(status(&output), 3);
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["verdict"], "refused");
    assert!(errors(&output).contains("x.lpk is refused"), "{}", errors(&output));
}

/// Every key of the report is in the schema, and every required key of the schema is in the report.
fn keys_are_those_of_the_schema(report: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/build-report.schema.json");
    let schema: Value = serde_json::from_slice(&std::fs::read(path).expect("the schema")).expect("JSON");
    check(report, &schema, "report");
    let known = schema["properties"].as_object().expect("properties");
    for part in ["inputs", "reasons"] {
        let (value, schema) = match part {
            "reasons" => (&report[part][0], &known[part]["items"]),
            _ => (&report[part], &known[part]),
        };
        check(value, schema, part);
    }
    let timings = report["timings_ms"].as_object().expect("an object");
    assert!(timings.values().all(Value::is_u64));
    check_required(&report["timings_ms"], &known["timings_ms"], "timings_ms");
}

fn check(value: &Value, schema: &Value, name: &str) {
    for key in value.as_object().expect("an object").keys() {
        assert!(schema["properties"].get(key).is_some(), "{name}.{key} is not in the schema");
    }
    check_required(value, schema, name);
}

fn check_required(value: &Value, schema: &Value, name: &str) {
    for key in schema["required"].as_array().expect("a list").iter().filter_map(Value::as_str) {
        assert!(value.get(key).is_some(), "{name}.{key} is missing");
    }
}
