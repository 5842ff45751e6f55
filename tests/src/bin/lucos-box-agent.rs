//! The program in the box that does what the host asks for; linked statically (`cargo xtask box`).
//!
//! Comes in: the virtio serial port. Decided: nothing. Goes out: see [`lucos_tests::boxed::agent`].

use std::process::ExitCode;

fn main() -> ExitCode {
    match lucos_tests::boxed::agent::serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lucos-box-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
