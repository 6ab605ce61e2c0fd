//! `./run lab`: two nodes, a client and demo backends as network namespaces on one machine, with
//! real veth, XDP and VRRP. `./run lab` stays up and takes orders from `./run lab VERB NODE`;
//! `./run lab demo` plays a story by itself and ends with a table.

#![allow(clippy::print_stdout, reason = "its output is for a person at a terminal")]

mod control;
mod demo;

use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use nix::sys::signal::{SigHandler, Signal, signal};
use tests::eventually::INTERRUPTED;
use tests::topology::{Options, Pair, Side};

/// Prefix of the lab's namespaces.
const PREFIX: &str = "tandem-lab";

/// A pair of nodes, a client and two demo backends in network namespaces.
#[derive(Debug, Parser)]
#[command(name = "run lab")]
struct Arguments {
    /// How ARP for the virtual address is answered: auto, native, generic or off.
    #[arg(long, default_value = "auto", global = true)]
    xdp: String,
    /// When a write is acknowledged: replicated or local.
    #[arg(long, default_value = "replicated", global = true)]
    ack: String,
    /// The engines' I/O: auto, uring or epoll.
    #[arg(long, default_value = "auto", global = true)]
    io: String,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Play the story: write sessions, kill the master, go on, bring it back; then a table.
    Demo,
    /// SIGKILL the engine of a node of the running lab.
    KillEngine { node: Side },
    /// SIGKILL the guardian of a node of the running lab.
    KillGuardian { node: Side },
    /// A node vanishes: its frames first, then all its processes.
    KillNode { node: Side },
    /// Cut a node off both networks, its carrier stays up.
    Cut { node: Side },
    /// What a node should receive on the LAN vanishes, ARP too, its carrier stays up.
    Deaf { node: Side },
    /// What a node sends on the LAN vanishes, ARP too, its carrier stays up.
    Mute { node: Side },
    /// The guardians' port 7700 is filtered on every path of a node; all else passes.
    Filter { node: Side },
    /// Mend a node's networks, and start it again if it was killed.
    Return { node: Side },
    /// Roles of both nodes of the running lab.
    Status,
    /// Remove what a lab left behind that was itself killed with SIGKILL.
    Clean,
}

impl Arguments {
    fn options(&self) -> Options {
        Options {
            xdp: self.xdp.clone(),
            ack: self.ack.clone(),
            io: self.io.clone(),
            demo: true,
            ..Options::default()
        }
    }
}

extern "C" fn interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// The three ways a person ends a program only set a flag: drop does the cleaning.
fn catch_signals() -> Result<()> {
    for number in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler stores to an atomic and nothing else, which is async-signal-safe.
        unsafe { signal(number, SigHandler::Handler(interrupt)) }.context("signal handler")?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match obey(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn obey(arguments: &Arguments) -> Result<()> {
    match &arguments.verb {
        None => {
            catch_signals()?;
            control::serve(Pair::build(PREFIX, arguments.options())?)
        }
        Some(Verb::Demo) => {
            catch_signals()?;
            demo::play(arguments.options())
        }
        Some(Verb::Clean) => control::clean(),
        Some(Verb::Status) => control::order("status"),
        Some(Verb::KillEngine { node }) => control::order(&format!("kill-engine {}", node.name())),
        Some(Verb::KillGuardian { node }) => {
            control::order(&format!("kill-guardian {}", node.name()))
        }
        Some(Verb::KillNode { node }) => control::order(&format!("kill-node {}", node.name())),
        Some(Verb::Cut { node }) => control::order(&format!("cut {}", node.name())),
        Some(Verb::Deaf { node }) => control::order(&format!("deaf {}", node.name())),
        Some(Verb::Mute { node }) => control::order(&format!("mute {}", node.name())),
        Some(Verb::Filter { node }) => control::order(&format!("filter {}", node.name())),
        Some(Verb::Return { node }) => control::order(&format!("return {}", node.name())),
    }
}
