//! `lucos-build layout` on images made of small C files: types of every kind, in DWARF 4 and 5, linked and not, by gcc and clang.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Types that two units share, and what one of them says differently.
const SHARED: &str = "
enum state { OFF, ON, GONE };
typedef unsigned long word_t;
struct inner { int a; word_t b; };
struct every_kind {
    struct inner in;
    union { struct { char c; short s; }; long raw; };
    unsigned low : 3, high : 7;
    enum state state;
    int (*call)(struct every_kind *, const char *, ...);
    struct { short x, y; } points[3];
    const volatile struct every_kind *next;
    char packed_tail[] ;
};
struct __attribute__((packed)) packed { char a; long b; };
struct only_declared;
struct holder { struct inner in[2]; struct only_declared *somewhere; };
extern struct holder global;
";
const FIRST: &str = "
struct same_name { int of_first; };
struct holder global;
static struct same_name mine;
struct every_kind *each(struct every_kind *e, struct packed *p) { e->in.a = mine.of_first + (int)p->b; return e; }
";
const SECOND: &str = "
struct same_name { long of_second; char more; };
static struct same_name mine;
int local(void) { struct nested { int deep; } n = { 1 }; static int kept; kept += n.deep; return kept + (int)mine.of_second; }
void set(long value) { mine.of_second = value; }
struct only_declared { int now_defined; };
struct only_declared there;
struct holder *whole(void) { return &global; }
";

struct Image {
    path: String,
}

/// Compiles both units and links them into one file without an entry point, or joins them into one object.
fn image(
    folder: &Path,
    name: &str,
    compiler: &str,
    options: &[&str],
    units: [&str; 2],
    link: &[&str],
) -> Outcome<Image> {
    let dir = folder.join(name);
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("first.c"), units[0])?;
    std::fs::write(dir.join("second.c"), units[1])?;
    let run = |program: &str, args: &[&str]| -> Outcome {
        let output = Command::new(program).current_dir(&dir).args(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(format!("{program} {args:?}: {said}").into()) }
    };
    for unit in ["first.c", "second.c"] {
        run(
            compiler,
            &[&["-c", "-O1", "-w", "-ffreestanding", "-fno-pic", "-mcmodel=kernel", unit], options].concat(),
        )?;
    }
    run("ld", &[link, &["-o", "image", "first.o", "second.o"]].concat())?;
    Ok(Image { path: dir.join("image").display().to_string() })
}

fn layout(args: &[&str]) -> Outcome<(i32, String, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_lucos-build")).arg("layout").args(args).output()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr)))
}

fn report(args: &[&str]) -> Outcome<(i32, Value)> {
    let (status, text, errors) = layout(&[args, &["--json"]].concat())?;
    let value: Value = serde_json::from_str(&text).map_err(|error| format!("{error}\n{text}\n{errors}"))?;
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/layout-report.schema.json");
    let schema: Value = serde_json::from_slice(&std::fs::read(schema)?)?;
    conforms(&value, &schema, &schema, "report");
    Ok((status, value))
}

/// Every key is in the schema and every required key is there, through lists, references and alternatives.
fn conforms(value: &Value, schema: &Value, root: &Value, place: &str) {
    if let Some(path) = schema["$ref"].as_str() {
        return conforms(value, &root["$defs"][path.trim_start_matches("#/$defs/")], root, place);
    }
    if let Some(choices) = schema["anyOf"].as_array() {
        if !value.is_null() {
            conforms(value, &choices[0], root, place);
        }
        return;
    }
    for item in value.as_array().into_iter().flatten() {
        conforms(item, &schema["items"], root, &format!("{place}[]"));
    }
    if let Some(choices) = schema["enum"].as_array() {
        assert!(choices.contains(value), "{place}: {value} is not in the schema");
    }
    let Some(object) = value.as_object() else { return };
    for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        assert!(object.contains_key(required), "{place}.{required} is missing");
    }
    for (key, value) in object {
        assert!(schema["properties"].get(key).is_some(), "{place}.{key} is not in the schema");
        conforms(value, &schema["properties"][key], root, &format!("{place}.{key}"));
    }
}

/// Compilers that are here, with options for each form of debug information.
fn forms() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut forms =
        vec![("gcc", vec!["-g", "-gdwarf-5"]), ("gcc", vec!["-g", "-gdwarf-4"]), ("gcc", vec!["-g", "-gz=zlib"])];
    if Command::new("clang").arg("--version").output().is_ok() {
        forms.extend([("clang", vec!["-g", "-gdwarf-5"]), ("clang", vec!["-g", "-gdwarf-4"])]);
    } else {
        eprintln!("SKIPPED: clang is not installed");
    }
    forms
}

const LINKED: &[&str] = &["--entry=0", "--unresolved-symbols=ignore-all"];
const JOINED: &[&str] = &["-r"];

fn names(report: &Value, list: &str) -> Vec<String> {
    let rows = report[list].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().filter_map(|row| Some(row["name"].as_str()?.to_owned())).collect()
}

#[test]
fn images_of_the_same_source_are_the_same_whatever_the_order() -> Outcome {
    let folder = tempfile::tempdir()?;
    let (first, second) = (format!("{SHARED}{FIRST}"), format!("{SHARED}{SECOND}"));
    // The second version declares in another order, and makes a definition of a declaration.
    let other_order = format!(
        "struct only_declared {{ int now_defined; }};\nstruct __attribute__((packed)) packed {{ char a; long b; }};\n{}{FIRST}",
        SHARED
            .replace("struct __attribute__((packed)) packed { char a; long b; };", "")
            .replace("struct only_declared;", "")
    );
    for (compiler, options) in forms() {
        for link in [LINKED, JOINED] {
            let old = image(folder.path(), "old", compiler, &options, [&first, &second], link)?;
            let new = image(folder.path(), "new", compiler, &options, [&other_order, &second], link)?;
            let (status, report) = report(&[&old.path, &new.path])?;
            assert_eq!(
                (status, report["verdict"].as_str()),
                (0, Some("same")),
                "{compiler} {options:?} {link:?}: {report:#}"
            );
            assert_eq!(report["only_new"]["types"].as_array().map(Vec::len), Some(0), "{report:#}");
        }
    }
    Ok(())
}

#[test]
fn every_change_is_found_and_nothing_else() -> Outcome {
    let folder = tempfile::tempdir()?;
    let (first, second) = (format!("{SHARED}{FIRST}"), format!("{SHARED}{SECOND}"));
    // What is replaced, by what, and the types that change then.
    let cases: &[(&str, &str, &[&str])] = &[
        ("unsigned low : 3, high : 7;", "unsigned low : 4, high : 6;", &["struct every_kind"]),
        ("points[3]", "points[4]", &["struct every_kind"]),
        ("{ char c; short s; }", "{ char c; char d; short s; }", &["struct every_kind"]),
        ("const char *, ...", "char *, ...", &["struct every_kind"]),
        ("struct { short x, y; }", "struct { int x; }", &["struct every_kind"]),
        ("__attribute__((packed)) packed", "packed", &["struct packed"]),
        (
            "typedef unsigned long word_t",
            "typedef unsigned char word_t",
            &["struct every_kind", "struct holder", "struct inner", "word_t"],
        ),
        ("struct inner { int a; word_t b; }", "struct inner { word_t b; int a; }", &["struct inner"]),
        ("enum state { OFF, ON, GONE }", "enum state { OFF, GONE, ON }", &["enum state"]),
        ("char packed_tail[] ;", "char packed_tail[8];", &["struct every_kind"]),
        ("long of_second; char more;", "long of_second; short more;", &["struct same_name"]),
        ("struct nested { int deep; }", "struct nested { short other, deep; }", &["struct nested in local()"]),
    ];
    for (compiler, options) in forms() {
        for link in [LINKED, JOINED] {
            let old = image(folder.path(), "old", compiler, &options, [&first, &second], link)?;
            for (from, to, expected) in cases {
                let (new_first, new_second) = (first.replace(from, to), second.replace(from, to));
                assert!(new_first != first || new_second != second, "{from} is in no file");
                let new = image(folder.path(), "new", compiler, &options, [&new_first, &new_second], link)?;
                let (status, report) = report(&[&old.path, &new.path])?;
                assert_eq!(status, 4, "{compiler} {options:?} {link:?}: {from} -> {to}: {report:#}");
                assert_eq!(&names(&report, "types"), expected, "{compiler} {options:?} {link:?}: {from} -> {to}");
            }
        }
    }
    Ok(())
}

#[test]
fn types_of_one_name_are_told_apart_and_consequences_are_named() -> Outcome {
    let folder = tempfile::tempdir()?;
    let (first, second) = (format!("{SHARED}{FIRST}"), format!("{SHARED}{SECOND}"));
    let old = image(folder.path(), "old", "gcc", &["-g"], [&first, &second], LINKED)?;
    let new =
        image(folder.path(), "new", "gcc", &["-g"], [&first, &second.replace("char more;", "long more[2];")], LINKED)?;
    let (_, value) = report(&[&old.path, &new.path])?;
    let row = &value["types"][0];
    assert_eq!((row["name"].as_str(), row["shares_name"].as_bool()), (Some("struct same_name"), Some(true)));
    assert_eq!((row["old_size"].as_u64(), row["new_size"].as_u64()), (Some(16), Some(24)));
    assert_eq!(row["place"]["file"].as_str().map(|file| file.ends_with("second.c")), Some(true));
    let variable = &value["variables"][0];
    assert_eq!((variable["name"].as_str(), variable["because_of"].as_str()), (Some("mine"), Some("struct same_name")));
    assert_eq!(variable["unit"], "second.c");

    let larger = [&first, &second].map(|text| text.replace("int a; word_t b;", "int a; word_t b, c;"));
    let new = image(folder.path(), "new", "gcc", &["-g"], [&larger[0], &larger[1]], LINKED)?;
    let (status, text, _) = layout(&[&old.path, &new.path, "--all"])?;
    assert_eq!(status, 4);
    assert!(text.contains("struct inner: 16 -> 24 bytes"), "{text}");
    assert!(text.contains("+ c: word_t, 8 bytes, at 16"), "{text}");
    assert!(text.contains("changes with it: ") && text.contains("struct holder (40 -> 56 bytes)"), "{text}");
    assert!(text.contains("global: struct holder, 40 -> 56 bytes"), "{text}");
    let (_, flat, _) = layout(&[&old.path, &new.path, "--flat", "--type", "inner"])?;
    assert!(flat.contains("+/*    16        8 */ \tword_t c;"), "{flat}");
    Ok(())
}

#[test]
fn per_cpu_variables_are_named_as_such() -> Outcome {
    let folder = tempfile::tempdir()?;
    let unit = |ty: &str| {
        format!(
            "__attribute__((section(\".data..percpu\"))) {ty} each_cpu; int *of(void) {{ return (int *)&each_cpu; }}"
        )
    };
    // As the kernel's linker script has it (include/asm-generic/vmlinux.lds.h, PERCPU_VADDR).
    let script = folder.path().join("script");
    std::fs::write(&script, "SECTIONS { .data..percpu 0 : { *(.data..percpu) } .text 0x100000 : { *(.text) } }")?;
    let script = format!("--script={}", script.display());
    for link in [&[script.as_str()][..], JOINED] {
        let old = image(folder.path(), "old", "gcc", &["-g"], [&unit("int"), "int x;"], link)?;
        let new = image(folder.path(), "new", "gcc", &["-g"], [&unit("long"), "int x;"], link)?;
        let (_, text, _) = layout(&[&old.path, &new.path])?;
        assert!(text.contains("per-CPU variable each_cpu: int -> long int, 4 -> 8 bytes"), "{text}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_used_is_refused_with_what_to_give() -> Outcome {
    let folder = tempfile::tempdir()?;
    let text = folder.path().join("text");
    std::fs::write(&text, "no image")?;
    let bare = image(folder.path(), "bare", "gcc", &[], ["int x;", "int y;"], LINKED)?;
    let good = image(folder.path(), "good", "gcc", &["-g"], ["int x;", "struct a { int b; } y;"], LINKED)?;
    let split =
        image(folder.path(), "split", "gcc", &["-g", "-gsplit-dwarf"], ["struct s { int a; } x;", "int y;"], LINKED)?;
    let text = text.display().to_string();
    for (args, rule) in [
        (vec![good.path.as_str(), text.as_str()], "not-an-image"),
        (vec![bare.path.as_str(), good.path.as_str()], "no-debug-information"),
        (vec![split.path.as_str()], "debug-information-unusable"),
        (vec![good.path.as_str(), good.path.as_str(), "--type", "nowhere"], "unknown-type"),
    ] {
        let (status, report) = report(&args)?;
        assert_eq!((status, report["reasons"][0]["rule"].as_str()), (3, Some(rule)), "{report:#}");
        assert!(report["reasons"][0]["help"].is_string());
    }
    assert_eq!(layout(&[&good.path, "/nowhere"])?.0, 1);
    Ok(())
}

#[test]
fn damaged_images_are_refused_or_read_but_never_end_it() -> Outcome {
    let folder = tempfile::tempdir()?;
    let (first, second) = (format!("{SHARED}{FIRST}"), format!("{SHARED}{SECOND}"));
    let good = image(folder.path(), "good", "gcc", &["-g"], [&first, &second], LINKED)?;
    let bytes = std::fs::read(&good.path)?;
    let bad: PathBuf = folder.path().join("bad");
    let mut statuses = std::collections::BTreeSet::new();
    for at in (0..bytes.len()).step_by(bytes.len() / 300) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0xa5;
        std::fs::write(&bad, &damaged)?;
        let (status, _, errors) = layout(&[&good.path, &bad.display().to_string()])?;
        assert!(matches!(status, 0 | 3 | 4), "byte {at}: {status} {errors}");
        statuses.insert(status);
    }
    assert!(statuses.contains(&3) && statuses.contains(&4), "{statuses:?}");
    Ok(())
}
