//! Records of `.lucos.declare`, right ones and damaged ones: each is read as what it says, or refused by what is wrong with it.

use diff_analyzer::object::Object;
use diff_analyzer::pieces::Pieces;
use prelink::declare::{self, Declares};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// What each case begins with: records as `support/lucos.h` lays them out, without its checks.
const HEAD: &str = r#"
struct record { unsigned kind, version; const char *subject, *file; const void *what; };
#define RECORD static const struct record one __attribute__((used, section(".lucos.declare"), aligned(8)))
int function(void) { return 1; }
int other(void) { return function() + 1; }
long variable = 1;
extern int elsewhere(void);
"#;

fn compile(folder: &Path, text: &str) -> Object {
    let (source, object) = (folder.join("case.c"), folder.join("case.o"));
    std::fs::write(&source, format!("{HEAD}{text}\n")).expect("written");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-c", "-fno-pic", "-mcmodel=kernel", "-ffunction-sections", "-fdata-sections", "-o"]);
    let output = gcc.arg(&object).arg(&source).output().expect("gcc runs");
    assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
    Object::parse(&std::fs::read(&object).expect("the object")).expect("an object")
}

#[test]
fn a_record_is_what_it_says() {
    let folder = tempfile::tempdir().expect("a folder");
    for (text, declares, subject, file, target) in [
        (r#"RECORD = { 1, 1, "old", 0, function };"#, "Replacement", "old", None, "function"),
        (r#"RECORD = { 1, 1, "old", "mm/shmem.c", other };"#, "Replacement", "old", Some("mm/shmem.c"), "other"),
        (r#"RECORD = { 2, 1, "datum", 0, &variable };"#, "Datum", "datum", None, "variable"),
        (r#"RECORD = { 3, 1, "name", "a/b.c", 0 };"#, "Symbol", "name", Some("a/b.c"), ""),
        (r#"RECORD = { 16, 1, "", 0, function };"#, "Hook(Pre", "", None, "function"),
        (r#"RECORD = { 19, 1, "datum", 0, function };"#, "Hook(SyncToOld", "datum", None, "function"),
        (r#"RECORD = { 23, 1, "old", 0, other };"#, "Hook(UndoTransition", "old", None, "other"),
    ] {
        let object = compile(folder.path(), text);
        let pieces = Pieces::cut(&object, &BTreeMap::new()).expect("no tables");
        assert!(declare::declares(&pieces), "{text}");
        let found = declare::read("case.c", &pieces).unwrap_or_else(|refusals| panic!("{text}: {refusals:?}"));
        let [declaration] = found.as_slice() else { panic!("{text}: {found:?}") };
        assert!(format!("{:?}", declaration.declares).starts_with(declares), "{text}: {declaration:?}");
        assert_eq!((declaration.subject.as_str(), declaration.file.as_deref()), (subject, file), "{text}");
        let piece = match declaration.declares {
            Declares::Replacement(piece) | Declares::Datum(piece) | Declares::Hook(_, piece) => Some(piece),
            Declares::Symbol => None,
        };
        assert_eq!(piece.map_or("", |piece| pieces.piece(piece).name.as_str()), target, "{text}");
    }
}

#[test]
fn a_damaged_record_is_refused_by_what_is_wrong() {
    let folder = tempfile::tempdir().expect("a folder");
    for (text, expected) in [
        (r#"RECORD = { 4, 1, "old", 0, function };"#, "its kind 4 is not known"),
        (r#"RECORD = { 0, 1, "old", 0, function };"#, "its kind 0 is not known"),
        (r#"RECORD = { 24, 1, "old", 0, function };"#, "its kind 24 is not known"),
        (r#"RECORD = { 0xffffffff, 1, "old", 0, function };"#, "is not known"),
        (r#"RECORD = { 1, 2, "old", 0, function };"#, "it has version 2, this lucos-build reads version 1"),
        (r#"RECORD = { 1, 1, 0, 0, function };"#, "its name is missing"),
        (r#"RECORD = { 16, 1, "old", 0, function };"#, "one too many"),
        (r#"RECORD = { 1, 1, (const char *)0x100, 0, function };"#, "its name is missing"),
        (r#"RECORD = { 1, 1, (const char *)&variable + 100, 0, function };"#, "it names nothing"),
        (r#"RECORD = { 1, 1, "\xff", 0, function };"#, "it names nothing"),
        (r#"RECORD = { 1, 1, "old", (const char *)&variable - 8, function };"#, "its file is no text"),
        (r#"RECORD = { 3, 1, "name", 0, 0 };"#, "it names no file"),
        (r#"RECORD = { 1, 1, "old", 0, 0 };"#, "it leads to no function of this object"),
        (r#"RECORD = { 1, 1, "old", 0, &variable };"#, "it leads to no function of this object"),
        (r#"RECORD = { 1, 1, "old", 0, (char *)function + 1 };"#, "it leads to no function of this object"),
        (r#"RECORD = { 2, 1, "datum", 0, function };"#, "it leads to no variable of this object"),
        (r#"RECORD = { 1, 1, "old", 0, elsewhere };"#, "`elsewhere` is not defined in this object"),
        (r#"static const char one[31] __attribute__((used, section(".lucos.declare"))) = { 1 };"#, "no multiple of 32"),
        (
            r#"static char one[32] __attribute__((used, section(".lucos.declare,\"aw\",@nobits#")));"#,
            "no multiple of 32",
        ),
    ] {
        let object = compile(folder.path(), text);
        let pieces = Pieces::cut(&object, &BTreeMap::new()).expect("no tables");
        let refusals =
            declare::read("case.c", &pieces).map_or_else(|refusals| refusals, |found| panic!("{text}: {found:?}"));
        let [refusal] = refusals.as_slice() else { panic!("{text}: {refusals:?}") };
        assert_eq!(refusal.rule, "declaration", "{text}");
        assert!(refusal.message.contains(expected), "{text}: {}", refusal.message);
    }
}
