//! Arguments of `prelink`.
//!
//! Comes in: nothing. Decided: nothing. Goes out: [`PrelinkArgs`], which are also those of a build.

use super::BuildArgs;
use crate::by_hand::Replacement;
use clap::Args as ClapArgs;
use std::path::PathBuf;

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
