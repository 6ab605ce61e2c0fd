//! `tandem`: reads the command line and hands over to the keeper, the guardian, the engine or a
//! small tool.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use clap::Parser;
use nix::sys::signal::SigSet;
use proxy_user::cli::{self, Cli, EXIT_RUNTIME, EXIT_USAGE, Verb};
use proxy_user::control::descriptors::{Rank, rank};
use proxy_user::{control, demo, engine, guardian, keeper, telemetry};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.verb {
        Verb::Run(_) => return run_keeper(),
        Verb::Guardian(options) => run_guardian(&options),
        Verb::Check { file } => guardian::check(&file).map(say),
        Verb::Status(options) => guardian::show_status(&options).map(say),
        Verb::Keygen { file } => guardian::keygen(&file).map(say),
        Verb::Witness(options) => guardian::serve_witness(&options),
        Verb::Engine => return child("engine", run_engine()),
        Verb::Demo(args) => return child("demo", run_demo(&args)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            complain(&fault.to_string());
            ExitCode::from(if fault.is_usage() { EXIT_USAGE } else { EXIT_RUNTIME })
        }
    }
}

/// The options are the guardian's: it gets them as they are.
fn run_keeper() -> ExitCode {
    match keeper::run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::from(EXIT_RUNTIME)
        }
    }
}

/// The keeper's socket is the standard input.
fn run_guardian(options: &cli::Run) -> Result<(), guardian::Fault> {
    // the keeper waits for its signals with all of them blocked
    let unblocked = SigSet::all().thread_unblock();
    unblocked.map_err(|error| guardian::Fault::of("cannot take signals", error))?;
    let keeper = keeper_socket().map_err(|error| guardian::Fault::of("no keeper", error))?;
    guardian::run(options, keeper)
}

/// Under one number only, a high one: it must be closed early when this process dies.
fn keeper_socket() -> std::io::Result<OwnedFd> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    rank(socket, Rank::Keeper)
}

/// The guardian's socket is the standard input.
fn run_engine() -> anyhow::Result<()> {
    control::die_with_parent()?;
    let control = std::io::stdin().as_fd().try_clone_to_owned()?;
    let mut assignment = engine::Assignment::receive(control)?;
    // Before the first thread: rights belong to threads.
    assignment.confine()?;
    let _logs = telemetry::init(&control::child_log())?;
    Ok(assignment.run()?)
}

fn run_demo(args: &demo::Args) -> anyhow::Result<()> {
    control::die_with_parent()?;
    let _logs = telemetry::init(&control::child_log())?;
    demo::run(args)
}

fn child(name: &str, done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{name}: {error:#}"));
            ExitCode::from(EXIT_RUNTIME)
        }
    }
}

/// To standard output; a closed pipe is not our fault.
fn say(text: String) {
    drop(writeln!(std::io::stdout(), "{text}"));
}

fn complain(text: &str) {
    drop(writeln!(std::io::stderr(), "tandem: {text}"));
}
