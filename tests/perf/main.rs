//! Side by side: server CPU per request of Tandem and of the programs it replaces, one worker each,
//! interleaved load by load, in a network namespace of its own.
//!
//! The server and all its children are pinned to core 0, the load generator and the backends to
//! core 1. The figure that holds on a shared machine is CPU time of the server's process tree per
//! request; ratios of neighbours in one run count, absolute times do not.
//!
//! `cargo run --release -p tests --bin perf -- [http|cache] [--rounds N] [--seconds S]`

#![allow(clippy::print_stdout, reason = "its output is a table for a person")]

mod backend;
mod load;
mod servers;

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tests::netns::Namespace;

use load::Load;
use servers::Server;

/// Compares Tandem with nginx, HAProxy and memcached.
#[derive(Debug, Parser)]
struct Arguments {
    /// `http`, `cache`, or both when not given.
    what: Option<String>,
    /// Interleaved rounds; the table shows medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load for each server, load and round.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Only loads whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Only servers whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    servers: Vec<String>,
}

/// Pins the calling thread.
fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("pinning")
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let namespace = Namespace::create("tandem-perf", "all")?;
    namespace.run(|| {
        pin(1)?;
        let wanted = |what: &str| arguments.what.as_deref().is_none_or(|only| only == what);
        if wanted("http") {
            backend::start(&servers::BACKENDS)?;
            compare(
                "HTTP proxy",
                &arguments,
                Server::http(&namespace, &arguments.servers)?,
                &load::http(),
            )?;
        }
        if wanted("cache") {
            compare(
                "cache",
                &arguments,
                Server::cache(&namespace, &arguments.servers)?,
                &load::cache(),
            )?;
        }
        Ok(())
    })
}

fn compare(title: &str, arguments: &Arguments, servers: Vec<Server>, loads: &[Load]) -> Result<()> {
    println!(
        "\n{title}: server CPU us per request (requests per s), median of {} rounds",
        arguments.rounds
    );
    print!("{:<28}", "load");
    servers.iter().for_each(|server| print!(" {:>22}", server.name));
    println!("   tandem is cheaper by");
    for load in loads {
        if arguments.only.as_ref().is_some_and(|only| !load.name.contains(only.as_str())) {
            continue;
        }
        let mut samples = vec![Vec::new(); servers.len()];
        for _ in 0..arguments.rounds {
            for (server, samples) in servers.iter().zip(&mut samples) {
                let sample = measure(server, load, Duration::from_secs_f64(arguments.seconds))
                    .with_context(|| format!("{} under {}", server.name, load.name))?;
                samples.push(sample);
            }
        }
        print_row(load, &servers, &samples);
    }
    Ok(())
}

/// One sample: CPU microseconds per request, requests per second.
fn measure(server: &Server, load: &Load, time: Duration) -> Result<(f64, f64)> {
    load::run(load, server.address, time / 5)?;
    let before = server.cpu()?;
    let (requests, elapsed) = load::run(load, server.address, time)?;
    let cpu = server.cpu()?.saturating_sub(before);
    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let requests = requests as f64;
    Ok((cpu.as_secs_f64() * 1e6 / requests, requests / elapsed.as_secs_f64()))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print_row(load: &Load, servers: &[Server], samples: &[Vec<(f64, f64)>]) {
    print!("{:<28}", load.name);
    let cost = |all: &[(f64, f64)]| median(all.iter().map(|sample| sample.0).collect());
    for all in samples {
        let rate = median(all.iter().map(|sample| sample.1).collect());
        print!(" {:>22}", format!("{:.2} ({:.1}k)", cost(all), rate / 1e3));
    }
    let own = servers.iter().position(|server| server.name.starts_with("tandem"));
    let own = own.and_then(|index| samples.get(index));
    let ratios: Vec<String> = servers
        .iter()
        .zip(samples)
        .filter(|(server, _)| !server.name.starts_with("tandem"))
        .filter_map(|(server, theirs)| {
            // Neighbours of one round saw the same machine: the ratio is the rounds' own median.
            let paired = own?.iter().zip(theirs).map(|(own, other)| other.0 / own.0).collect();
            Some(format!("{} {:.2}x", server.name, median(paired)))
        })
        .collect();
    println!("   {}", ratios.join(", "));
}
