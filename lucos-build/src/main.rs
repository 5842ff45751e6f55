//! The `lucos-build` command.
//!
//! Comes in: the command line. Decided: the exit status: 0 done, 1 the tool or its environment failed, 2 usage, 3
//! refused, 4 two compared objects or images differ. Goes out: the report, on standard output; progress and failures on standard error.

use clap::Parser as _;
use lucos_build::args::{Args, BuildArgs, Command, CompareArgs, InspectArgs, LayoutArgs, is_stdout};
use lucos_build::compare;
use lucos_build::inspect::{self, InspectError};
use lucos_build::kbuild::by_hand::HEADER;
use lucos_build::layout;
use lucos_build::pipeline;
use lucos_build::progress::Progress;
use lucos_build::report::{Report, Verdict};
use lucos_build::sarif;
use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

const FAILED: u8 = 1;
const REFUSED: u8 = 3;
/// Two objects or images differ.
const DIFFER: u8 = 4;

fn main() -> ExitCode {
    let args = Args::parse();
    args.check_or_exit();
    match (args.command, args.build) {
        (Some(Command::Inspect(args)), _) => show(&args),
        (Some(Command::Compare(args)), _) => compare(&args),
        (Some(Command::Prelink(args)), _) => {
            let progress = Progress::new(!args.json && !args.quiet);
            let result = pipeline::prelink(&args, &progress);
            drop(progress);
            report(&args.build(), result)
        }
        (Some(Command::Header), _) => {
            print(HEADER.trim_end());
            ExitCode::SUCCESS
        }
        (Some(Command::Layout(args)), _) => layout(&args),
        (None, Some(args)) => build(&args),
        // clap asks for DIFF and --vmlinux when there is no other command.
        (None, None) => ExitCode::from(2),
    }
}

fn build(args: &BuildArgs) -> ExitCode {
    let progress = Progress::new(!args.json && !args.quiet);
    let result = pipeline::run(args, &progress);
    drop(progress);
    report(args, result)
}

/// Prints what a build says in the end.
fn report(args: &BuildArgs, result: Result<Report, Box<dyn Error + Send + Sync>>) -> ExitCode {
    match result {
        Ok(report) => {
            let refused = report.bundle.is_none() && report.verdict != Verdict::NoEffect;
            if args.sarif.as_deref().is_some_and(is_stdout) {
                print(sarif::render(&report).trim_end());
            } else if args.json {
                print(&report.to_json());
            } else if !args.quiet {
                print(report.to_text().trim_end());
            } else if refused {
                eprint!("{}", report.to_text());
            }
            ExitCode::from(if refused { REFUSED } else { 0 })
        }
        Err(error) => fail(error.as_ref()),
    }
}

fn compare(args: &CompareArgs) -> ExitCode {
    match compare::run(args) {
        Ok(comparison) => {
            let text = if args.json { comparison.to_json() } else { comparison.to_text() };
            print(text.trim_end());
            match comparison.verdict {
                compare::Verdict::Equal => ExitCode::SUCCESS,
                compare::Verdict::Differ => ExitCode::from(DIFFER),
                compare::Verdict::Refused => ExitCode::from(REFUSED),
            }
        }
        Err(error) => fail(error.as_ref()),
    }
}

fn layout(args: &LayoutArgs) -> ExitCode {
    match layout::run(args) {
        Ok(report) => {
            let text = if args.json { report.to_json() } else { report.to_text(args) };
            print(text.trim_end());
            match report.verdict {
                layout::Verdict::Same | layout::Verdict::Printed => ExitCode::SUCCESS,
                layout::Verdict::Differ => ExitCode::from(DIFFER),
                layout::Verdict::Refused => ExitCode::from(REFUSED),
            }
        }
        Err(error) => fail(error.as_ref()),
    }
}

fn show(args: &InspectArgs) -> ExitCode {
    match inspect::open(&args.bundle) {
        Ok(read) => {
            let text = if args.json { inspect::to_json(&read) } else { inspect::to_text(&read) };
            print(text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error @ InspectError::Refused { .. }) => {
            if args.json {
                let message = chain(&error);
                print(
                    &serde_json::json!({ "verdict": "refused", "reasons": [{ "rule": "bundle", "message": message }] })
                        .to_string(),
                );
            }
            fail(&error);
            ExitCode::from(REFUSED)
        }
        Err(error) => fail(&error),
    }
}

/// A reader that has gone away (`| head`) is no failure of ours.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Says an error and its causes.
fn fail(error: &dyn Error) -> ExitCode {
    eprintln!("lucos-build: {}", chain(error));
    ExitCode::from(FAILED)
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
