//! The `lucos-hv` command: serves a guest, or asks a service.
//!
//! Comes in: a command line. Decided: which of both. Goes out: tables or JSON, and an exit status: 0 done, 1 the tool or its
//! environment failed, 2 usage, 3 refused.

mod args;
mod console;
mod serve;
mod show;

use args::{Args, Command};
use clap::Parser;
use runtime_hv::client::ask;
use runtime_hv::engine::kvm;
use runtime_hv::protocol::{Problem, Request};
use runtime_hv::watchdog;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = Args::parse();
    let json = args.command.json();
    match run(args.command) {
        Ok(code) => code,
        Err(problem) => {
            show::problem(&problem, json);
            ExitCode::from(problem.status)
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Problem> {
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Run(run) => serve::run(&run),
        Command::Attach { qmp, api } => serve::attach(&qmp, &api),
        Command::Probe { measure, json } => probe(measure, json).map(done),
        Command::Rescue { qmp, api } => watchdog::watch(&mut std::io::stdin(), &qmp, &api).map(done),
        Command::Apply { file, in_arena, stay, client } => {
            let bytes = std::fs::read(&file)
                .map_err(|error| Problem::failed("no-file", format!("cannot read {}: {error}", file.display())))?;
            // Looked at on this side, too: a damaged file is not worth a connection.
            lpk_format::read(&bytes).map_err(|error| {
                Problem::refused("corrupted-bundle", format!("{} is not a usable bundle: {error}", file.display()))
                    .help("build it again with lucos-build")
            })?;
            let reply = ask(&client.api, &Request::Apply { size: bytes.len() as u64, in_arena, stay }, &bytes)?;
            show::reply(&reply, client.json).map(done)
        }
        Command::List { client } => show::reply(&ask(&client.api, &Request::List, &[])?, client.json).map(done),
        Command::Show { name, client } => {
            show::reply(&ask(&client.api, &Request::Show { name }, &[])?, client.json).map(done)
        }
        Command::Undo { name, client } => {
            show::reply(&ask(&client.api, &Request::Undo { name }, &[])?, client.json).map(done)
        }
        Command::Status { client } => show::reply(&ask(&client.api, &Request::Status, &[])?, client.json).map(done),
    }
}

fn no_kvm(error: kvm::ProbeError) -> Problem {
    Problem::refused("no-kvm", error.to_string()).help("--engine qemu works without it, in software emulation")
}

/// Whether the engine `kvm` works here; exit status 0 only if it does.
fn probe(measure: bool, json: bool) -> Result<(), Problem> {
    kvm::probe().map_err(no_kvm)?;
    let costs = if measure { Some(kvm::measure().map_err(no_kvm)?) } else { None };
    show::probed(costs.as_ref(), json);
    Ok(())
}
