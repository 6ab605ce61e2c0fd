//! Tandem's build verbs: `cargo xtask build-ebpf | test | ci | tidy | mutants`. This file is the
//! list of verbs; each verb is one module. xtask depends on no other crate of the workspace.
//!
//! Exit codes: 0 done, 1 something failed, 2 something is missing on this machine (root, network,
//! a toolchain) and the last line says what and the way out.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a build tool talks through its terminal")]

mod build_ebpf;
mod ci;
mod mutants;
mod step;
mod test;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds and checks Tandem.")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build everything `./run` needs: the eBPF object and the release binaries.
    BuildEbpf(build_ebpf::Options),
    /// Run all tests, the privileged ones too when this is root; prints a total and every skip
    #[command(args_conflicts_with_subcommands = true)]
    Test {
        #[command(subcommand)]
        more: Option<More>,
    },
    /// What must pass before a change lands: fmt, clippy, docs, tidy, test
    Ci,
    /// Check the tree's own rules: arrows between crates and modules, purity, sizes
    Tidy,
    /// Break the rules of the pair one by one and show that a named test finds each
    Mutants(mutants::Options),
}

#[derive(Subcommand)]
enum More {
    /// What takes hours: mutants, nights of the simulator, the soak, the benchmark
    Long(test::Long),
}

/// Something this machine lacks, said in one sentence together with the way out (exit code 2).
#[derive(Debug)]
struct Missing(String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// The top of the source tree.
fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        Verb::BuildEbpf(options) => build_ebpf::run(&options),
        Verb::Test { more: None } => test::run(test::Tally::default()),
        Verb::Test { more: Some(More::Long(options)) } => test::run_long(&options),
        Verb::Ci => ci::run(),
        Verb::Tidy => tidy::run(),
        Verb::Mutants(options) => mutants::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<test::Failed>() => ExitCode::FAILURE,
        Err(error) if error.is::<Missing>() => {
            eprintln!("\ncargo xtask: {error:#}");
            ExitCode::from(2)
        }
        Err(error) => {
            eprintln!("\ncargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
