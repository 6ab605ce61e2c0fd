//! Command line: verbs, options, exit codes. What they do is elsewhere.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::Io;

/// Exit code of a fault while running.
pub const EXIT_RUNTIME: u8 = 1;
/// Exit code of a wrong option or a wrong configuration.
pub const EXIT_USAGE: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  tandem run                          one node: balancer :8080, cache :11211, status 127.0.0.1:9900
  tandem run --config node-a.toml     a node of a pair
  tandem check node-a.toml            says what is wrong in a file, with line and hint
  tandem keygen pair.key              makes the pair's secret; copy it to both nodes
  tandem witness --key-file pair.key  a third host's voice; named in both nodes' [witness]
  tandem status                       who is master, what is up

Exit codes: 0 stopped as asked, 1 a fault while running, 2 wrong option or configuration.";

/// Balancer, cache, replication and address fail-over for a pair of nodes, in one program.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Runs this node until it is stopped (Ctrl-C; a second one stops at once)
    Run(Run),
    /// Reads a configuration and says what is wrong with it
    Check {
        /// The file
        file: PathBuf,
    },
    /// Asks a running node how it is
    Status(Status),
    /// Makes a secret key for a pair
    Keygen {
        /// The file to make; it must not exist yet
        file: PathBuf,
    },
    /// Answers the nodes' question who goes on when they cannot hear each other; on a third host
    Witness(Witness),
    /// The guardian process; started by the keeper, which `tandem run` is
    #[command(hide = true)]
    Guardian(Run),
    /// The engine process; started by the guardian
    #[command(hide = true)]
    Engine,
    /// A small HTTP backend to try the balancer with
    #[command(hide = true)]
    Demo(crate::demo::Args),
}

/// Options of `tandem run`.
#[derive(Debug, Clone, Default, Args)]
pub struct Run {
    /// The node's configuration; without it a single node with demo backends
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How the engine talks to the kernel [default: the file's, else auto]
    #[arg(long, value_enum)]
    pub io: Option<IoChoice>,
    /// Worker threads of the engine [default: the file's, else one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: Option<u16>,
}

/// Options of `tandem witness`.
#[derive(Debug, Clone, Args)]
pub struct Witness {
    /// Where to listen (UDP); one for each of this host's addresses that the nodes are told
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:7710")]
    pub listen: Vec<SocketAddr>,
    /// The pair's secret, made by `tandem keygen`
    #[arg(long, value_name = "FILE")]
    pub key_file: PathBuf,
    /// The folder of the register; lost, it grants nothing by silence until the nodes meet again
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/tandem-witness")]
    pub state: PathBuf,
    /// The cluster, as in the table `node` of the nodes' files
    #[arg(long, value_name = "NAME", default_value = "tandem")]
    pub cluster: String,
}

/// Options of `tandem status`.
#[derive(Debug, Clone, Args)]
pub struct Status {
    /// Print the whole state as JSON
    #[arg(long)]
    pub json: bool,
    /// Where the node's admin server listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9900")]
    pub admin: SocketAddr,
}

/// `--io`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IoChoice {
    /// io_uring where the kernel allows it, else epoll
    Auto,
    /// io_uring or nothing
    Uring,
    /// epoll
    Epoll,
}

impl From<IoChoice> for Io {
    fn from(choice: IoChoice) -> Self {
        match choice {
            IoChoice::Auto => Self::Auto,
            IoChoice::Uring => Self::Uring,
            IoChoice::Epoll => Self::Epoll,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn verbs() {
        let run = |words: &[&str]| Cli::try_parse_from(words).map(|cli| cli.verb);
        let parsed = run(&["tandem", "run", "--io", "epoll", "--workers", "3"]);
        assert!(matches!(parsed, Ok(Verb::Run(Run { workers: Some(3), .. }))), "{parsed:?}");
        let witness = run(&["tandem", "witness", "--key-file", "k", "--listen", "[::1]:7710"]);
        assert!(matches!(witness, Ok(Verb::Witness(Witness { listen, .. })) if listen.len() == 1));
        assert!(run(&["tandem", "witness"]).is_err(), "without a key");
        assert!(run(&["tandem", "run", "--workers", "0"]).is_err());
        assert!(run(&["tandem", "run", "--io", "kqueue"]).is_err());
        assert!(run(&["tandem"]).is_err());
        assert!(matches!(run(&["tandem", "engine"]), Ok(Verb::Engine)));
    }
}
