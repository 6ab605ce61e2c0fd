//! `cargo xtask test long`: what takes hours and therefore stands in no gate: the broken rules,
//! many seeds of the simulation, the soak, the benchmark. All run, also after one failed; the last
//! line is the total.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::Args;

use super::Failed;
use crate::build_ebpf;
use crate::mutants;
use crate::step::Steps;

/// What `test long` can be told.
#[derive(Args)]
pub(crate) struct Long {
    /// Seeds of the simulation
    #[arg(long, default_value = "256..4096", value_parser = seeds)]
    seeds: String,
    /// Only these stages: mutants, sim, soak, busy, bench
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// `from..to`, as the simulation reads it.
fn seeds(text: &str) -> Result<String> {
    let range = text.split_once("..").map(|(from, to)| (from.parse::<u64>(), to.parse::<u64>()));
    match range {
        Some((Ok(from), Ok(to))) if from < to => Ok(text.to_owned()),
        _ => bail!("two numbers with .. between them, the first one smaller"),
    }
}

/// How a stage ended.
enum Outcome {
    Passed,
    Failed(String),
}

/// The soak's tests of a busy host, by a part of their names.
const BUSY: &str = "busy_host";

/// A stage's name, how to run it.
type Stage = (&'static str, fn(&Long, &mut Steps) -> Result<Outcome>);

const STAGES: [Stage; 5] =
    [("mutants", broken), ("sim", sim), ("soak", soak), ("busy", busy), ("bench", bench)];

/// Runs the verb.
///
/// # Errors
/// [`Failed`] when a stage failed; what failed is printed.
pub(crate) fn run(options: &Long) -> Result<()> {
    for name in &options.only {
        ensure!(STAGES.iter().any(|(stage, _)| stage == name), "no such stage: {name}");
    }
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|of| of == name);
    let stages: Vec<_> = STAGES.into_iter().filter(|(name, _)| wanted(name)).collect();
    let mut steps = Steps::new(stages.len());
    let mut rows = Vec::new();
    for (name, stage) in stages {
        let begun = Instant::now();
        let outcome = stage(options, &mut steps);
        let outcome = outcome.unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")));
        rows.push((name, outcome, begun.elapsed()));
    }
    println!("\nstages:");
    let (mut passed, mut failed) = (0, 0);
    for (name, outcome, time) in &rows {
        let (count, words) = match outcome {
            Outcome::Passed => (&mut passed, "passed".to_owned()),
            Outcome::Failed(why) => (&mut failed, format!("FAILED: {why}")),
        };
        *count += 1;
        println!("  {:>7.1} s  {name:<8} {words}", time.as_secs_f32());
    }
    println!("\n{passed} passed, {failed} failed");
    if failed > 0 { Err(Failed.into()) } else { Ok(()) }
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(build_ebpf::cargo());
    let program = crate::top().join("target/release/tandem");
    command.current_dir(crate::top()).env("TANDEM_BIN", program).args(arguments);
    command
}

fn broken(_: &Long, steps: &mut Steps) -> Result<Outcome> {
    steps.note("mutants", "each broken rule must be found");
    mutants::run(&mutants::Options::default())?;
    Ok(Outcome::Passed)
}

fn sim(options: &Long, steps: &mut Steps) -> Result<Outcome> {
    let arguments = ["test", "-p", "tests", "--test", "sim", "--", "--exact", "seeds_hold"];
    let mut command = cargo(&arguments);
    command.arg("--nocapture").env("SIM_SEEDS", &options.seeds);
    let title = steps.title(&format!("simulation, seeds {}", options.seeds));
    let mut summary = String::new();
    let (status, log) = steps.watch(&title, &mut command, |line| {
        if line.starts_with("simulation: ") || line.starts_with("seed ") {
            line.clone_into(&mut summary);
        }
    })?;
    println!("{summary}");
    Ok(if status.success() {
        Outcome::Passed
    } else {
        Outcome::Failed(format!("{status}; see {}", log.display()))
    })
}

fn soak(_: &Long, steps: &mut Steps) -> Result<Outcome> {
    by_hand(steps, "soak", &["--skip", BUSY])
}

/// An hour for each profile; `SOAK_BUSY_SECONDS` shortens it.
fn busy(_: &Long, steps: &mut Steps) -> Result<Outcome> {
    by_hand(steps, "busy host", &[BUSY])
}

fn by_hand(steps: &mut Steps, title: &str, which: &[&str]) -> Result<Outcome> {
    build_ebpf::build(&build_ebpf::Options::default())?;
    let arguments = ["test", "-p", "tests", "--test", "soak", "--", "--ignored"];
    let mut command = cargo(&arguments);
    steps.run(title, command.args(["--test-threads=1", "--nocapture"]).args(which))?;
    Ok(Outcome::Passed)
}

fn bench(_: &Long, steps: &mut Steps) -> Result<Outcome> {
    build_ebpf::build(&build_ebpf::Options::default())?;
    steps.run("benchmark", &mut cargo(&["run", "--release", "-p", "tests", "--bin", "perf"]))?;
    Ok(Outcome::Passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_seeds_is_two_numbers() {
        assert!(seeds("0..4096").is_ok());
        for bad in ["", "7", "7..", "..7", "7..7", "9..7", "a..b", "0..=7"] {
            assert!(seeds(bad).is_err(), "{bad}");
        }
    }
}
