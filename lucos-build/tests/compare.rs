//! `lucos-build compare` on the object pairs of `testdata/objects`, compiled with and without function sections.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The options of a kernel build that decide what an object looks like.
const OPTIONS: &str = "-std=gnu11 -O2 -g -mcmodel=kernel -fno-pic -fno-pie -fno-common -fno-asynchronous-unwind-tables \
    -fcf-protection=none -mno-sse -mno-mmx -mno-80387 -mno-red-zone -fno-stack-protector -fno-strict-aliasing \
    -fno-delete-null-pointer-checks -fno-jump-tables -fshort-wchar -w";
const SECTIONS: &[&str] = &["-ffunction-sections", "-fdata-sections"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/objects")
}

/// Compiles a copy that is called `unit.c` whatever the case, for the sake of `__FILE__`.
fn compile(source: &Path, folder: &Path, object: &str, options: &[&str]) -> Outcome<PathBuf> {
    std::fs::copy(source, folder.join("unit.c"))?;
    let output = Command::new("gcc")
        .current_dir(folder)
        .args(OPTIONS.split_whitespace())
        .args(options)
        .args(["-c", "unit.c", "-o", object])
        .output()?;
    if !output.status.success() {
        return Err(format!("gcc {}: {}", source.display(), String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(folder.join(object))
}

fn compare(arguments: &[&str]) -> Outcome<(i32, String, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_lucos-build")).arg("compare").args(arguments).output()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr)))
}

fn pair(case: &str, folder: &Path, options: &[&str]) -> Outcome<[String; 2]> {
    let old = compile(&root().join(case).join("old.c"), folder, "old.o", options)?;
    let new = compile(&root().join(case).join("new.c"), folder, "new.o", options)?;
    Ok([old.display().to_string(), new.display().to_string()])
}

fn report(case: &str, folder: &Path, options: &[&str]) -> Outcome<(i32, Value)> {
    let [old, new] = pair(case, folder, options)?;
    let (status, text, errors) = compare(&[&old, &new, "--json"])?;
    let value = serde_json::from_str(&text).map_err(|error| format!("{case}: {error}\n{text}\n{errors}"))?;
    Ok((status, value))
}

fn names(report: &Value, list: &str) -> BTreeSet<(String, String)> {
    let rows = report[list].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    rows.iter().map(|row| (text(row, "name"), text(row, "change"))).collect()
}

fn cases() -> Outcome<Vec<String>> {
    let mut cases: Vec<String> = std::fs::read_dir(root())?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Outcome<_>>()?;
    cases.sort();
    assert!(cases.len() > 40, "{} has only {} cases", root().display(), cases.len());
    Ok(cases)
}

#[test]
fn every_pair_has_the_verdict_and_status_of_its_folder() -> Outcome {
    let folder = tempfile::tempdir()?;
    let mut wrong = Vec::new();
    for case in cases()? {
        let (status, report) = report(&case, folder.path(), SECTIONS)?;
        let verdict = report["verdict"].as_str().unwrap_or_default();
        let agree = matches!((verdict, status), ("equal", 0) | ("differ", 4) | ("refused", 3));
        let rules = names_of_rules(&report);
        let type2 = ["type-layout", "type-additive", "enum-value", "data-value", "data-layout", "data-section"]
            .iter()
            .any(|rule| rules.contains(*rule));
        let expected = match case.split('-').next().unwrap_or_default() {
            // Data that only comes or goes changes nothing that runs, but the objects differ in it.
            "same" => {
                let changed = names(&report, "data").into_iter().any(|(_, change)| change == "changed");
                verdict == "equal" || (names(&report, "functions").is_empty() && !changed)
            }
            "type1" => verdict == "differ" || (verdict == "refused" && !type2),
            "type2" => verdict == "refused" && type2,
            _ => verdict == "refused",
        };
        if !agree || !expected {
            wrong.push(format!("{case}: {verdict}, status {status}, rules {rules:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn names_of_rules(report: &Value) -> BTreeSet<String> {
    let reasons = report["reasons"].as_array().map(Vec::as_slice).unwrap_or_default();
    reasons.iter().filter_map(|reason| Some(reason["rule"].as_str()?.to_owned())).collect()
}

#[test]
fn without_function_sections_the_same_functions_change() -> Outcome {
    let folder = tempfile::tempdir()?;
    let mut wrong = Vec::new();
    // The jump to a function that comes into the same section becomes a short one, which is said in a note.
    for case in cases()?.into_iter().filter(|case| case != "type1-init-function-becomes-ordinary") {
        let (_, with) = report(&case, folder.path(), SECTIONS)?;
        let (_, without) = report(&case, folder.path(), &[])?;
        let (expected, found) = (names(&with, "functions"), names(&without, "functions"));
        if expected != found {
            wrong.push(format!("{case}: with sections {expected:?}, without {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn a_function_is_explained_with_its_line() -> Outcome {
    let folder = tempfile::tempdir()?;
    let source = |value: u32| {
        format!(
            "int g(int, int);\nstatic int h(int a)\n{{\n\treturn g(a, {value});\n}}\nint f(int a)\n{{\n\treturn h(a) * 3;\n}}\n"
        )
    };
    let mut paths = Vec::new();
    for (name, value) in [("old", 5), ("new", 9)] {
        let path = folder.path().join(format!("{name}.c"));
        std::fs::write(&path, source(value))?;
        let sections: Vec<&str> = SECTIONS.to_vec();
        paths.push(compile(&path, folder.path(), &format!("{name}.o"), &sections)?.display().to_string());
    }
    let (status, text, _) = compare(&[&paths[0], &paths[1], "--explain", "f", "--explain", "none"])?;
    assert_eq!(status, 4, "{text}");
    for expected in
        ["the first instruction that differs", "unit.c:4 in h", "inlined at unit.c:8 in f", "--explain none"]
    {
        assert!(text.contains(expected), "{expected} is missing in\n{text}");
    }
    let (_, text, _) = compare(&[&paths[0], &paths[1], "--explain", "f", "--json"])?;
    let report: Value = serde_json::from_str(&text)?;
    let first = &report["explanations"][0]["first"];
    assert_eq!(first["new"]["source"][0]["line"], 4, "{text}");
    assert_ne!(first["old"]["text"], first["new"]["text"]);
    Ok(())
}

#[test]
fn what_goes_along_is_listed() -> Outcome {
    let folder = tempfile::tempdir()?;
    let (_, report) = report("type1-string-changed", folder.path(), SECTIONS)?;
    let rows = report["functions"].as_array().ok_or("a list")?;
    let strings = rows.iter().flat_map(|row| row["along"]["strings"].as_array().cloned().unwrap_or_default());
    assert!(strings.count() > 0, "{report}");
    Ok(())
}

#[test]
fn what_cannot_be_compared_is_refused_with_status_3() -> Outcome {
    let folder = tempfile::tempdir()?;
    let [old, _] = pair("same-no-change", folder.path(), SECTIONS)?;
    let write = |name: &str, bytes: &[u8]| -> Outcome<String> {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes)?;
        Ok(path.display().to_string())
    };
    let text = write("text.o", b"no object")?;
    let bitcode = write("lto.o", b"BC\xc0\xde    ")?;
    for (path, word) in [(&text, "not-an-object"), (&bitcode, "link-time optimisation")] {
        let (status, out, _) = compare(&[&old, path, "--json"])?;
        assert_eq!(status, 3, "{out}");
        assert!(out.contains(word), "{out}");
    }
    let program = env!("CARGO_BIN_EXE_lucos-build");
    assert_eq!(compare(&[&old, program])?.0, 3, "a linked program is no object");
    assert_eq!(compare(&[&old, "none.o"])?.0, 1, "a missing file is a failure");
    assert_eq!(compare(&[&old])?.0, 2, "one object is wrong usage");
    // A table whose entries have no size anywhere.
    let source = "void f(void){}\nasm(\".section __ex_table,\\\"a\\\"\\n.long f - .\\n.long 0,0,0,0\\n.long f - .\\n.long 0\\n.previous\");\n";
    let path = folder.path().join("odd.c");
    std::fs::write(&path, source)?;
    let odd = compile(&path, folder.path(), "odd.o", SECTIONS)?.display().to_string();
    let (status, out, _) = compare(&[&odd, &odd, "--json"])?;
    assert!(status == 3 && out.contains("unknown-entry-size") && out.contains("--vmlinux"), "{out}");
    Ok(())
}

#[test]
fn the_report_has_the_keys_of_the_schema() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compare-report.schema.json");
    let schema: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    for case in ["type1-clones", "type2-initial-value", "type1-alternative-feature", "type1-new-function"] {
        let [old, new] = pair(case, folder.path(), SECTIONS)?;
        let (_, text, _) = compare(&[&old, &new, "--json"])?;
        let report: Value = serde_json::from_str(&text)?;
        let functions = report["functions"].as_array().cloned().unwrap_or_default();
        let mut arguments = vec![old, new, "--json".to_owned()];
        for row in functions {
            arguments.extend(["--explain".to_owned(), row["name"].as_str().unwrap_or_default().to_owned()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let report: Value = serde_json::from_str(&compare(&arguments)?.1)?;
        check(&report, &schema, &schema, case);
    }
    Ok(())
}

/// As much of JSON Schema as the schema uses.
fn check(value: &Value, schema: &Value, root: &Value, at: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        return check(value, &root["$defs"][name.trim_start_matches("#/$defs/")], root, at);
    }
    if let Some(options) = schema["oneOf"].as_array() {
        let option = if value.is_null() { &options[0] } else { &options[1] };
        return check(value, option, root, at);
    }
    if let Some(allowed) = schema["enum"].as_array() {
        assert!(allowed.contains(value), "{at}: {value} is none of {allowed:?}");
    }
    match value {
        Value::Object(map) => {
            for key in schema["required"].as_array().map(Vec::as_slice).unwrap_or_default() {
                let key = key.as_str().unwrap_or_default();
                assert!(map.contains_key(key), "{at}.{key} is missing");
            }
            for (key, value) in map {
                let property = schema["properties"].get(key);
                let other = schema["additionalProperties"].is_object();
                assert!(property.is_some() || other, "{at}.{key} is not in the schema");
                if let Some(property) = property {
                    check(value, property, root, &format!("{at}.{key}"));
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| check(item, &schema["items"], root, &format!("{at}[]"))),
        _ => {}
    }
}

/// Objects come from anywhere: whatever is wrong with one, the answer is a report or a refusal.
#[test]
fn damaged_objects_are_compared_or_refused_but_never_panic() -> Outcome {
    use lucos_build::args::CompareArgs;
    use lucos_build::compare::{Verdict, run};
    let folder = tempfile::tempdir()?;
    let [old, new] = pair("type1-alternative-feature", folder.path(), &[])?;
    let good = std::fs::read(&new)?;
    let damaged = folder.path().join("damaged.o");
    let (mut refused, mut compared) = (0, 0);
    for at in (0..good.len()).step_by(3) {
        let mut bad = good.clone();
        bad[at] ^= 0xa5;
        std::fs::write(&damaged, &bad)?;
        let args = CompareArgs {
            original: (&old).into(),
            patched: damaged.clone(),
            vmlinux: None,
            explain: vec!["one".to_owned(), "two".to_owned()],
            json: true,
        };
        match run(&args).map_err(|error| format!("byte {at}: {error}"))?.verdict {
            Verdict::Refused => refused += 1,
            Verdict::Equal | Verdict::Differ => compared += 1,
        }
    }
    assert!(refused > 0 && compared > 0, "{refused} refused, {compared} compared");
    Ok(())
}
