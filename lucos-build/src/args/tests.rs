use super::*;
use std::path::PathBuf;

fn parse(line: &str) -> Result<Args, clap::Error> {
    Args::try_parse_from(std::iter::once("lucos-build").chain(line.split_whitespace()))
}

#[test]
fn a_build_needs_no_word_for_it() {
    let args = parse("fix.diff --vmlinux vmlinux -j 3 --json").expect("a complete command line");
    let build = args.build.expect("a build");
    assert!(args.command.is_none());
    assert_eq!((build.jobs, build.json, build.name().as_str()), (Some(3), true, "fix"));
    assert_eq!(build.bundle_path(), PathBuf::from("fix.lpk"));
    assert_eq!(parse("- --vmlinux v").expect("complete").build.expect("a build").name(), "stdin");
}

#[test]
fn one_thing_is_printed_on_standard_output() {
    for (line, clash) in [
        ("fix.diff --vmlinux v --sarif - --json", true),
        ("fix.diff --vmlinux v --sarif x --json --report y", false),
        ("fix.diff --vmlinux v --sarif -", false),
        ("prelink fix.o --vmlinux v --sarif - --json", true),
    ] {
        assert_eq!(parse(line).expect("complete").check().is_err(), clash, "{line}");
    }
}

#[test]
fn inspect_needs_no_kernel() {
    let args = parse("inspect a.lpk --json").expect("a complete command line");
    assert!(matches!(args.command, Some(Command::Inspect(InspectArgs { json: true, .. }))));
}

#[test]
fn an_update_by_hand_stands_in_place_of_a_diff() {
    let build = |line: &str| parse(line).expect("a complete command line").build.expect("a build");
    let update = build("--update dir/fix.c --vmlinux v --like fs/proc/version.c");
    assert_eq!((update.name().as_str(), update.bundle_path()), ("fix", PathBuf::from("fix.lpk")));
    let hooks = build("fix.diff --hooks hooks.c --vmlinux v");
    assert_eq!((hooks.name().as_str(), hooks.hooks), ("fix", Some(PathBuf::from("hooks.c"))));
    let line = "prelink fix.o --vmlinux v --replace a=b --replace mm/shmem.c:c=d -o x.lpk";
    let Some(Command::Prelink(prelink)) = parse(line).expect("a complete command line").command else {
        panic!("not prelink");
    };
    assert_eq!(prelink.replace.len(), 2);
    assert_eq!((prelink.build().name().as_str(), prelink.build().bundle_path()), ("fix", PathBuf::from("x.lpk")));
    assert!(matches!(parse("header").expect("complete").command, Some(Command::Header)));
}

#[test]
fn incomplete_lines_are_usage_errors() {
    let by_hand = [
        "--update fix.c",
        "fix.diff --update fix.c --vmlinux v",
        "--update fix.c --hooks h.c --vmlinux v",
        "prelink fix.o",
        "prelink fix.o --vmlinux v --replace a",
    ];
    let of_diffs = ["", "fix.diff", "--vmlinux v", "inspect", "fix.diff --vmlinux v -j 0", "fix.diff --vmlinux v x"];
    for line in of_diffs.into_iter().chain(by_hand) {
        assert_eq!(parse(line).map(|_| ()).expect_err(line).exit_code(), 2, "{line}");
    }
}
