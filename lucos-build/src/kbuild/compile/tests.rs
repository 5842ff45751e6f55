use super::*;

/// A tree of two files and the commands for one unit, with the system's compiler.
fn compile(new: &str) -> Result<Done, CompileError> {
    compile_with("d/u.c", new)
}

#[derive(Debug)]
struct Done {
    original: String,
    patched: String,
    unused: bool,
}

fn compile_with(touched: &str, new: &str) -> Result<Done, CompileError> {
    compile_at(touched, new, None)
}

/// `below`: the build folder, in the source tree, and what its commands call that.
fn compile_at(touched: &str, new: &str, below: Option<(&str, &str)>) -> Result<Done, CompileError> {
    let root = tempfile::tempdir().expect("a temporary folder");
    let root = root.path().canonicalize().expect("there");
    let (source, work) = (root.join("src"), root.join("work"));
    let build = below.map_or_else(|| root.join("build"), |(below, _)| source.join(below));
    for folder in [source.join("d"), source.join("e"), build.clone(), work.clone()] {
        fs::create_dir_all(folder).expect("made");
    }
    let old = "#include \"h.h\"\nint a = 1;\n\nint b = __LINE__ + H;\nconst char *f = __FILE__;\n";
    fs::write(source.join("d/u.c"), old).expect("written");
    fs::write(source.join("d/h.h"), "#define H 0\n#include \"../e/part.c\"\n").expect("written");
    fs::write(source.join("e/part.c"), "int part = 1;\n").expect("written");
    fs::write(source.join("e/other.c"), "int other = 1;\n").expect("written");
    if below.is_some() {
        fs::write(build.join("Makefile"), "").expect("written");
    }
    let listing = |folder: &Path| fs::read_dir(folder).expect("there").count();
    let before = listing(&build);
    let named = below.map_or_else(|| format!("{}/", source.display()), |(_, named)| named.to_owned());
    let old = fs::read_to_string(source.join(touched)).expect("there");
    let diff = similar::TextDiff::from_lines(old.as_str(), new)
        .unified_diff()
        .header(&format!("a/{touched}"), &format!("b/{touched}"))
        .to_string();
    let changes = diff_analyzer::source_diff::read(diff.as_bytes(), &source).expect("applies");
    let line =
        format!("cc -Wp,-MMD,d/.u.o.d -fmacro-prefix-map={named}= -I{named}d -S -c -o d/u.o {named}d/u.c ; true");
    let commands = UnitCommands::parse(&line, "d/u.o").expect("a command");
    let compile = Compile {
        source: &source,
        build: &build,
        below: below.map(|(below, _)| Path::new(below)),
        work: &work,
        jobs: 2,
        changes: &changes,
        kept: None,
    };
    let name = PathBuf::from("d/u.c");
    let unit = Unit { name: name.clone(), source: name, new: false, commands };
    compile.prepare(std::slice::from_ref(&unit))?;
    let mut done = compile.run(&[unit], &|| {})?;
    let done = done.pop().expect("one unit")?;
    assert_eq!(listing(&build), before, "nothing is written to the build folder");
    let touched = BTreeSet::from([PathBuf::from(touched)]);
    let unused = !compile.unused(std::slice::from_ref(&done), &touched)?.is_empty();
    let read = |path: &Path| fs::read_to_string(path).expect("compiled");
    Ok(Done { original: read(&done.original.expect("not new")), patched: read(&done.patched), unused })
}

#[test]
fn lines_and_file_names_are_those_of_the_tree() {
    let new = "#include \"h.h\"\nint a = 7;\nint added;\n\nint b = __LINE__ + H;\nconst char *f = __FILE__;\n";
    let Done { original, patched, .. } = compile(new).expect("both compile");
    for text in [&original, &patched] {
        assert!(text.contains(".long\t4\n"), "b is at line 4 in both\n{text}");
        assert!(text.contains("\"d/u.c\""), "{text}");
    }
    assert!(patched.contains(".long\t7\n") && !original.contains(".long\t7\n"));
}

#[test]
fn builds_in_the_tree_are_compiled_in_the_overlay() {
    for below in [("", ""), ("out", "../")] {
        let new = "#include \"h.h\"\nint a = 7;\nint added;\n\nint b = __LINE__ + H;\nconst char *f = __FILE__;\n";
        let Done { original, patched, unused } = compile_at("d/u.c", new, Some(below)).expect("both compile");
        assert!(patched.contains(".long\t7\n") && !original.contains(".long\t7\n") && !unused, "{below:?}");
        assert!(patched.contains("\"d/u.c\"") && original.contains("\"d/u.c\""), "{below:?}\n{patched}");
        let done = compile_at("e/part.c", "int part = 77;\n", Some(below)).expect("both compile");
        assert!(done.patched.contains(".long\t77\n") && !done.original.contains(".long\t77\n"), "{below:?}");
        assert!(!done.unused, "{below:?}");
    }
}

#[test]
fn a_file_of_another_folder_is_taken_from_the_overlay() {
    let Done { original, patched, .. } = compile_with("e/part.c", "int part = 77;\n").expect("both compile");
    assert!(patched.contains(".long\t77\n") && !original.contains(".long\t77\n"), "{patched}");
}

#[test]
fn a_change_that_no_unit_takes_in_is_found() {
    assert!(compile_with("e/other.c", "int other = 77;\n").expect("both compile").unused);
    assert!(!compile_with("e/part.c", "int part = 77;\n").expect("both compile").unused);
}

#[test]
fn an_error_names_the_line_that_is_there() {
    let new = "#include \"h.h\"\nint a = 7;\n\n\nint b = __LINE__ + NOTHING;\nconst char *f = __FILE__;\n";
    match compile(new) {
        Err(CompileError::Patched { output, .. }) => assert!(output.contains("d/u.c:5:"), "{output}"),
        other => panic!("expected an error of the patched source, found {other:?}"),
    }
}
