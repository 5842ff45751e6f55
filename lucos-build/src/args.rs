//! What can be typed.
//!
//! Comes in: the command line. Decided: only its form; clap prints help and usage errors (status 2). Goes out:
//! [`Args`].

use crate::by_hand::Replacement;
use clap::error::ErrorKind;
use clap::{Args as ClapArgs, CommandFactory as _, Parser, Subcommand};
use std::path::{Path, PathBuf};

const AFTER_HELP: &str = "\
  lucos-build fix.diff --vmlinux vmlinux                   from a diff of the kernel's source
  lucos-build fix.diff --vmlinux vmlinux --hooks hooks.c   with hooks in C that run at the switch: a Type 2 bundle
  lucos-build --update fix.c --vmlinux vmlinux             written by hand: LUCOS_REPLACE(old, new) says what replaces what
  lucos-build prelink fix.o --vmlinux vmlinux              the same from an object that you compiled
  lucos-build header > lucos.h                             the header of updates and hooks in C

Inputs that are not given are looked for by convention, and what was found is said on standard error:
  System.map  beside vmlinux, in /boot, in /usr/lib/debug/boot (a stub without symbols is skipped)
  config      beside vmlinux, in /boot, in the modules' build folder
  source      `source` beside vmlinux, the folder the kernel was built in, /usr/src/linux-source-X.Y,
              /lib/modules/RELEASE/source and build, the current folder
  modules     `lib/modules/RELEASE` beside vmlinux, the folder of vmlinux, /lib/modules/RELEASE

Prepared build folders are kept in $LUCOS_CACHE, $XDG_CACHE_HOME/lucos or ~/.cache/lucos.

Exit status: 0 a bundle was written, or the diff has no effect; 1 the tool or its environment failed; 2 usage;
3 refused: the reasons are printed, with --json as JSON on standard output.

--report FILE.html and --sarif FILE write the report as a page and for code-review systems, also when it is refused
(docs/report.md).

JSON (docs/build-report.schema.json): verdict (type1, type2, refused, no-effect), functions (name, unit,
old_address, old_size, new_size), data, reasons (rule, message, file, line, help), warnings (as reasons, with a
subject), notes, omitted, modules, bundle, inputs, timings_ms.";

/// Makes a live-update bundle from a kernel diff, or shows one.
#[derive(Debug, Parser)]
#[command(name = "lucos-build", version, after_help = AFTER_HELP)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    /// Another thing to do than to build.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What to build.
    #[command(flatten)]
    pub build: Option<BuildArgs>,
}

impl Args {
    /// Ends the program with a usage error when two things would be printed on standard output.
    pub fn check_or_exit(&self) {
        if let Err(error) = self.check() {
            error.exit();
        }
    }

    fn check(&self) -> Result<(), clap::Error> {
        let (json, sarif) = match (&self.command, &self.build) {
            (Some(Command::Prelink(args)), _) => (args.json, args.sarif.as_deref()),
            (None, Some(args)) => (args.json, args.sarif.as_deref()),
            _ => (false, None),
        };
        let clash = json && sarif.is_some_and(is_stdout);
        if clash {
            let message = "--sarif - and --json would both print on standard output; give one of them a file";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, message));
        }
        Ok(())
    }
}

/// Things to do other than to build.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows what is in a bundle, after checking all of it.
    Inspect(InspectArgs),
    /// Compares two objects of one unit: what changes, what goes along, what could not be replaced.
    Compare(CompareArgs),
    /// Makes a bundle from an object that you compiled yourself.
    Prelink(PrelinkArgs),
    /// Prints lucos.h, which updates and hooks in C include: for your editor, or to compile an object for `prelink`.
    Header,
    /// Compares the layouts of all types and variables of two images, or prints those of one.
    Layout(LayoutArgs),
}

/// Arguments of `inspect`.
#[derive(Debug, ClapArgs)]
pub struct InspectArgs {
    /// The bundle.
    #[arg(value_name = "FILE.lpk")]
    pub bundle: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

const AFTER_COMPARE_HELP: &str = "\
With --vmlinux the original is also proved against the kernel image, and every reference of the patched code is resolved in
it, as a build would. Without it, sizes of table entries are taken from the debug information of the objects or from the
tables themselves.

Exit status: 0 nothing that runs differs; 4 they differ; 3 they cannot be compared, or what differs cannot be replaced: the
reasons are printed; 1 the tool or its environment failed; 2 usage.

JSON: docs/compare-report.schema.json.";

/// Arguments of `compare`.
#[derive(Debug, ClapArgs)]
#[command(after_help = AFTER_COMPARE_HELP)]
pub struct CompareArgs {
    /// The object of the original source.
    #[arg(value_name = "ORIGINAL.o")]
    pub original: PathBuf,
    /// The object of the patched source, compiled in the same way.
    #[arg(value_name = "PATCHED.o")]
    pub patched: PathBuf,
    /// The kernel image that the original is a part of.
    #[arg(long, value_name = "FILE")]
    pub vmlinux: Option<PathBuf>,
    /// Show the instructions of a function that differ, side by side with their source lines; may be repeated.
    #[arg(long, value_name = "FUNCTION")]
    pub explain: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

const AFTER_LAYOUT_HELP: &str = "\
Only what both images have can differ; what one of them alone has is counted, and listed with --all. A declaration and a
definition are no difference, nor is the order of declarations. Types of one name that differ between units are told apart.
Units in Rust are left alone.

Exit status: 0 all layouts are the same (or those of one image were printed); 4 some differ; 3 an image cannot be used, or a
type is in neither; 1 the tool or its environment failed; 2 usage.

JSON: docs/layout-report.schema.json.";

/// Arguments of `layout`.
#[derive(Debug, ClapArgs)]
#[command(after_help = AFTER_LAYOUT_HELP)]
pub struct LayoutArgs {
    /// A vmlinux, module or object with debug information.
    #[arg(value_name = "OLD")]
    pub old: PathBuf,
    /// What to compare it with; without it the layouts of OLD are printed.
    #[arg(value_name = "NEW")]
    pub new: Option<PathBuf>,
    /// Only this type, as `task_struct` or `struct task_struct`; may be repeated.
    #[arg(long = "type", value_name = "NAME")]
    pub types: Vec<String>,
    /// Show each type member by member, with offsets and sizes; of two images, as a diff.
    #[arg(long)]
    pub flat: bool,
    /// Also list what only one image has, and all that changes because of something else.
    #[arg(long)]
    pub all: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

const AFTER_PRELINK_HELP: &str = "\
What replaces what is said by the object itself (LUCOS_REPLACE of lucos.h, see `lucos-build header`) or with --replace; a name alone
replaces nothing. The object must have debug information and be compiled with the kernel's compiler and options, best in the
kernel's build folder. Inputs that are not given are looked for as for a build.

  lucos-build prelink fix.o --vmlinux vmlinux
  lucos-build prelink fix.o --vmlinux vmlinux --replace version_proc_show=new_show --replace mm/shmem.c:init_once=new_once

Exit status: 0 a bundle was written; 3 refused: the reasons are printed; 1 the tool or its environment failed; 2 usage.";

/// Arguments of `prelink`.
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = AFTER_PRELINK_HELP)]
pub struct PrelinkArgs {
    /// The relocatable object.
    #[arg(value_name = "FILE.o")]
    pub object: PathBuf,
    /// The kernel image with symbols and debug information.
    #[arg(long, value_name = "FILE", required_unless_present = "folder")]
    pub vmlinux: Option<PathBuf>,
    /// A folder that this kernel was built in; it is never written to.
    #[arg(id = "folder", long = "build", value_name = "DIR")]
    pub build: Option<PathBuf>,
    /// The kernel's function OLD gives way to the object's function NEW; FILE says which file's OLD is meant. May be repeated.
    #[arg(long, value_name = "[FILE:]OLD=NEW")]
    pub replace: Vec<Replacement>,
    /// The kernel's System.map.
    #[arg(long, value_name = "FILE")]
    pub system_map: Option<PathBuf>,
    /// The kernel's source tree; it is never changed.
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
    /// The kernel's configuration.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The compiler; by default the one that the configuration names.
    #[arg(long, value_name = "PROGRAM")]
    pub cc: Option<PathBuf>,
    /// Also replace functions that leave no room for a jump behind ftrace's no-op.
    #[arg(long)]
    pub allow_untraceable: bool,
    /// Where the bundle goes [default: the object's name with .lpk, in the current folder].
    #[arg(short, long, value_name = "OUT.lpk")]
    pub output: Option<PathBuf>,
    /// Print the report as JSON on standard output.
    #[arg(long)]
    pub json: bool,
    /// Also write the report as a page for a browser, one file that needs no other: reasons, types byte by byte, functions
    /// instruction by instruction, symbols; also when the build is refused.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Also write what was found as SARIF 2.1.0, for systems that show it beside the changed lines; `-` prints it on standard
    /// output in place of the report for people.
    #[arg(long, value_name = "FILE")]
    pub sarif: Option<PathBuf>,
    /// Say only what went wrong.
    #[arg(short, long)]
    pub quiet: bool,
}

impl PrelinkArgs {
    /// The same as arguments of a build, whose update is the object.
    pub fn build(&self) -> BuildArgs {
        BuildArgs {
            update: Some(self.object.clone()),
            vmlinux: self.vmlinux.clone(),
            build: self.build.clone(),
            system_map: self.system_map.clone(),
            source: self.source.clone(),
            config: self.config.clone(),
            cc: self.cc.clone(),
            allow_untraceable: self.allow_untraceable,
            output: self.output.clone(),
            json: self.json,
            report: self.report.clone(),
            sarif: self.sarif.clone(),
            quiet: self.quiet,
            ..BuildArgs::default()
        }
    }
}

/// Arguments of a build.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct BuildArgs {
    /// The diff, in git or plain unified form; `-` reads standard input.
    #[arg(value_name = "DIFF", required_unless_present = "update")]
    pub diff: Option<PathBuf>,
    /// Instead of a diff: an update written by hand in C, which says itself what it replaces (lucos.h, docs/hooks.md).
    #[arg(long, value_name = "FILE.c", conflicts_with_all = ["diff", "hooks", "explain", "allow_partial", "built_in_only"])]
    pub update: Option<PathBuf>,
    /// Beside a diff: hooks written in C, which run when the update is applied and taken back (lucos.h, docs/hooks.md).
    #[arg(long, value_name = "FILE.c")]
    pub hooks: Option<PathBuf>,
    /// Compile the C file of --update or --hooks as this unit of the kernel is, with its options and the headers of its folder
    /// [default: kernel/irq_work.c].
    #[arg(long, value_name = "UNIT.c")]
    pub like: Option<PathBuf>,
    /// The kernel image with symbols and debug information.
    #[arg(long, value_name = "FILE", required_unless_present = "folder")]
    pub vmlinux: Option<PathBuf>,
    /// A folder that this kernel was built in, with everything in it (vmlinux, System.map, .config, .cmd files); it is never
    /// written to.
    #[arg(id = "folder", long = "build", value_name = "DIR")]
    pub build: Option<PathBuf>,
    /// The kernel's System.map.
    #[arg(long, value_name = "FILE")]
    pub system_map: Option<PathBuf>,
    /// The kernel's source tree; it is never changed.
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
    /// The kernel's configuration.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The file of a loadable module that the diff changes; may be given several times.
    #[arg(long, value_name = "FILE.ko")]
    pub module: Vec<PathBuf>,
    /// The kernel's folder of loadable modules, as /lib/modules/RELEASE.
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,
    /// The compiler; by default the one that the configuration names.
    #[arg(long, value_name = "PROGRAM")]
    pub cc: Option<PathBuf>,
    /// Compile this many units at a time [default: number of processors].
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
    /// Keep sources, objects and commands of this build in a folder, which must be empty or new.
    #[arg(long, value_name = "DIR")]
    pub keep_dir: Option<PathBuf>,
    /// Say all reasons of all units instead of those of the first step that cannot be done.
    #[arg(long)]
    pub keep_going: bool,
    /// Leave out files and units that cannot be done; the bundle records what it leaves out and why.
    #[arg(long)]
    pub allow_partial: bool,
    /// Leave loadable modules as they are that a changed header changes as well; the bundle records which.
    #[arg(long)]
    pub built_in_only: bool,
    /// Mark the update as Type 2, whatever is found: old and new code must not run side by side as if nothing were between
    /// them. The runtime then keeps track of who is still inside the old code.
    #[arg(long)]
    pub type2: bool,
    /// Also replace functions that leave no room for a jump behind ftrace's no-op: while the bundle is applied, tracing or
    /// probing the entry of such a function makes the guest's ftrace warn and switch itself off.
    #[arg(long)]
    pub allow_untraceable: bool,
    /// What you know of the change and no tool can see: strategies for data, findings to silence, each with its reason
    /// [default: the diff's name with .toml, if it is there].
    #[arg(long, value_name = "FILE.toml")]
    pub overrides: Option<PathBuf>,
    /// Where the bundle goes [default: the diff's name with .lpk, in the current folder].
    #[arg(short, long, value_name = "OUT.lpk")]
    pub output: Option<PathBuf>,
    /// Show the instructions of a function that differ, side by side with their source lines; may be repeated.
    #[arg(long, value_name = "FUNCTION")]
    pub explain: Vec<String>,
    /// Print the report as JSON on standard output.
    #[arg(long)]
    pub json: bool,
    /// Also write the report as a page for a browser, one file that needs no other: reasons, types byte by byte, functions
    /// instruction by instruction, symbols; also when the build is refused.
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Also write what was found as SARIF 2.1.0, for systems that show it beside the changed lines; `-` prints it on standard
    /// output in place of the report for people.
    #[arg(long, value_name = "FILE")]
    pub sarif: Option<PathBuf>,
    /// Say only what went wrong.
    #[arg(short, long)]
    pub quiet: bool,
}

/// Whether a file stands for standard output.
pub fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

impl BuildArgs {
    /// Name of the update: the file name of the diff, or of what stands in its place, without its extension.
    pub fn name(&self) -> String {
        let file = self.update.as_deref().unwrap_or(self.diff());
        match file.file_stem() {
            Some(stem) if file.as_os_str() != "-" => stem.to_string_lossy().into_owned(),
            _ => "stdin".to_owned(),
        }
    }

    /// The diff; nothing is like standard input.
    pub fn diff(&self) -> &Path {
        self.diff.as_deref().unwrap_or(Path::new("-"))
    }

    /// The kernel image: the one given, or that of the build folder.
    pub fn vmlinux(&self) -> PathBuf {
        let built = || self.build.as_deref().unwrap_or(Path::new("")).join("vmlinux");
        self.vmlinux.clone().unwrap_or_else(built)
    }

    /// Where the bundle goes.
    pub fn bundle_path(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| PathBuf::from(format!("{}.lpk", self.name())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let of_diffs =
            ["", "fix.diff", "--vmlinux v", "inspect", "fix.diff --vmlinux v -j 0", "fix.diff --vmlinux v x"];
        for line in of_diffs.into_iter().chain(by_hand) {
            assert_eq!(parse(line).map(|_| ()).expect_err(line).exit_code(), 2, "{line}");
        }
    }
}
