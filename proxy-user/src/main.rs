//! `tandem`: reads the command line and hands over to the guardian, the engine or a small tool.

use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Parser;
use proxy_user::cli::{Cli, EXIT_RUNTIME, EXIT_USAGE, Verb};
use proxy_user::{control, demo, engine, guardian, telemetry};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.verb {
        Verb::Run(options) => guardian::run(&options),
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
