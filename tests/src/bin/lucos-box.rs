//! Runs a command in the box: what the guest tests start in place of `lucos-hv` where the machine has no KVM of its own.
//!
//! Comes in: [`lucos_tests::boxed::Options`]. Decided: nothing. Goes out: the command's exit status, or 75 for a lost box.

use clap::Parser;
use lucos_tests::boxed;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "lucos-box", about = "Runs a command in a machine with a real KVM")]
struct Args {
    #[command(flatten)]
    options: boxed::Options,
}

fn main() -> ExitCode {
    match boxed::run(&Args::parse().options) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.status())
        }
    }
}
