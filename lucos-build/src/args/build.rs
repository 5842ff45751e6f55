//! Arguments of a build.
//!
//! Comes in: nothing. Decided: what is meant where nothing was typed: the name of the update, of its image and of its bundle. Goes
//! out: [`BuildArgs`].

use clap::Args as ClapArgs;
use std::path::{Path, PathBuf};

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
