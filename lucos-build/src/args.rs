//! What can be typed.
//!
//! Comes in: the command line. Decided: only its form; clap prints help and usage errors (status 2). Goes out:
//! [`Args`].

mod build;
mod look;
mod prelink;

pub use build::BuildArgs;
pub use look::{CompareArgs, InspectArgs, LayoutArgs};
pub use prelink::PrelinkArgs;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};
use std::path::Path;

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
        if json && sarif.is_some_and(is_stdout) {
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

/// Whether a file stands for standard output.
pub fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

#[cfg(test)]
mod tests;
