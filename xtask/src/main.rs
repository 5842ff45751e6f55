//! Every job of the project: `cargo xtask JOB`.
//!
//! Comes in: a job. Decided: its steps, each in its own module. Goes out: exit status 0 when the job was really done, 1
//! when the machine or a program failed, 2 for wrong usage, 3 when the tools refused what they should have done; of `box`, the command's own.

mod bench;
mod cargo;
mod corpus;
mod demo;
mod error;
mod kvm;
mod live;
mod paper;
mod soak;

use clap::{Parser, Subcommand};
use error::JobError;
use lucos_tests::boxed;
use lucos_tests::kernels::cache_dir;
use lucos_tests::known_state;
use lucos_tests::selfbuilt;
use lucos_tests::setup;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Set-up, demo, test, ci: every job of the project")]
struct Args {
    #[command(subcommand)]
    job: Job,
}

#[derive(Debug, Subcommand)]
enum Job {
    /// Installs what is missing, fetches the two kernels into the cache and builds small ones of other configurations
    Setup,
    /// Builds two patches, applies them to a running stock kernel and takes them back
    Demo {
        /// Hypervisor under the guest: `qemu`, or `kvm`, the bundled one: in the box, unless LUCOS_TEST_BOX=0
        #[arg(long, value_name = "ENGINE", env = "LUCOS_TEST_ENGINE", value_parser = ["qemu", "kvm", "qemu-kvm"], default_value = "qemu")]
        engine: String,
    },
    /// Runs the tests of the bundled hypervisor where KVM works: in the box, unless LUCOS_TEST_BOX=0
    Kvm {
        /// Run all tests of live updates on it, too, and not only those of one file
        #[arg(long)]
        all: bool,
    },
    /// Runs all tests, with set-up
    Test {
        /// Arguments for `cargo test`, after `--`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Format, lints, tests: what has to pass before a change is taken
    Ci,
    /// Measures the numbers of SPECIFICATION.md
    Bench {
        /// How often the patch is applied and taken back
        #[arg(long, default_value_t = 50)]
        applies: u32,
        /// Only the comparison of the layouts of two images
        #[arg(long)]
        only_layouts: bool,
    },
    /// Makes a bundle of every official change between two releases, and says which cannot be made and why
    Corpus(corpus::CorpusArgs),
    /// Table 1 of the paper: five official patches, applied and undone under a database's load
    Paper(paper::PaperArgs),
    /// Live updates of a stock kernel of another series than the distribution's default
    Series {
        /// Series, such as 6.12 [default: the newest that the archive has]
        series: Option<String>,
    },
    /// Random updates of a module whose state is known, which must stay right: as long as is asked
    Soak(soak::SoakArgs),
    /// Runs the fuzz targets
    Fuzz {
        /// Seconds per target
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Writes an initramfs that gives a shell, for guests of your own
    Initramfs {
        /// The file to write
        file: PathBuf,
    },
    /// Runs a command in the box, a machine with a real KVM on any machine; its exit status, or 75 when the box was lost
    Box {
        /// Build `lucos-hv` for the box and put it into its PATH
        #[arg(long)]
        with_lucos_hv: bool,
        #[command(flatten)]
        options: boxed::Options,
    },
    /// Rewrites the expected results in testdata; look at the difference before you keep it
    Bless,
}

/// Root of the workspace.
fn root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(PathBuf::from).unwrap_or(own)
}

fn say(line: &str) {
    println!("· {line}");
}

fn main() -> ExitCode {
    let result = match Args::parse().job {
        Job::Setup => setup::prepare(&say)
            .and_then(|pair| selfbuilt::prepare(&pair.older, &say).map(|_| pair))
            .and_then(|pair| known_state::prepare(&cache_dir()?, &pair.older, &say))
            .and_then(|()| setup::for_tests(&say))
            .map_err(JobError::from),
        Job::Demo { engine } => cargo::demo(&engine),
        Job::Kvm { all } => kvm::run(all),
        Job::Test { args } => cargo::test(&args, false),
        Job::Ci => cargo::ci(),
        Job::Bench { applies, only_layouts } => bench::run(applies, only_layouts),
        Job::Corpus(args) => corpus::run(&args).map(|_| ()),
        Job::Paper(args) => paper::run(&args),
        Job::Series { series } => cargo::series(series.as_deref()),
        Job::Soak(args) => soak::run(&args),
        Job::Fuzz { seconds } => cargo::fuzz(seconds),
        Job::Initramfs { file } => lucos_tests::initramfs::write(&file).map_err(JobError::from),
        Job::Box { with_lucos_hv, options } => match cargo::run_in_box(&options, with_lucos_hv) {
            Ok(status) => return ExitCode::from(status),
            Err(error) => Err(error),
        },
        Job::Bless => cargo::bless(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.status())
        }
    }
}
