//! Arguments of the commands that look and make nothing.
//!
//! Comes in: nothing. Decided: nothing. Goes out: the arguments of `inspect`, `compare` and `layout`.

use clap::Args as ClapArgs;
use std::path::PathBuf;

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
