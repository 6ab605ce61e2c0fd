//! A third host with a witness, on both of a pair's networks (.20), and a division that leaves each
//! node whole but for the other: what the one sends is dropped on its way to the other alone.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::eventually;
use crate::filter::{Network, load};
use crate::netns::Namespace;
use crate::process::Process;
use crate::topology::{Pair, Side, plug};

/// Its address on the LAN.
pub const WITNESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 20);
/// Its address on the second network.
pub const WITNESS_SECOND: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 20);
/// The virtual router's own (RFC 9568 section 7.3), with vrid 51: only nodes send from it.
const VIRTUAL: &str = "00:00:5e:00:01:33";

/// The host, and `tandem witness` on it.
#[derive(Debug)]
pub struct Third {
    process: Option<Process>,
    namespace: Namespace,
}

impl Third {
    /// Makes the host and names it in both nodes' files; `extra`: more lines of `[witness]`.
    ///
    /// # Errors
    /// As of `ip` and the files.
    pub fn build(prefix: &str, pair: &Pair, extra: &str) -> Result<Self> {
        let namespace = Namespace::create(prefix, "witness")?;
        plug(pair.network(Network::Lan), &namespace, "witness", "lan", WITNESS)?;
        plug(pair.network(Network::Second), &namespace, "witness", "hb", WITNESS_SECOND)?;
        let table = format!(
            "\n[witness]\naddress = [\"{WITNESS}:7710\", \"{WITNESS_SECOND}:7710\"]\n{extra}\n"
        );
        for side in Side::ALL {
            pair.edit_config(side, |text| format!("{text}{table}"))?;
        }
        Ok(Self { process: None, namespace })
    }

    /// Starts the witness, with the state it had.
    ///
    /// # Errors
    /// When it is not up in 10 s.
    pub fn start(&mut self, pair: &Pair) -> Result<()> {
        let log = pair.file("witness.log");
        fs::write(&log, "")?;
        let mut command = self.namespace.command(pair.tandem());
        command.arg("witness").arg("--key-file").arg(pair.file("pair.key"));
        command.arg("--state").arg(pair.file("witness"));
        command.args(["--listen", &format!("{WITNESS}:7710")]);
        command.args(["--listen", &format!("{WITNESS_SECOND}:7710")]);
        let process = self.process.insert(Process::start("witness", &mut command, &log)?);
        eventually("the witness to be up", Duration::from_secs(10), || {
            process.output().contains("is up").then_some(()).context("not yet")
        })
    }

    /// SIGTERM, and its end.
    ///
    /// # Errors
    /// When it does not end in 5 s.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.signal(Signal::SIGTERM)?;
        process.wait(Duration::from_secs(5)).map(drop)
    }
}

/// Divides the nodes from each other, and from nobody else; `false` undoes it.
///
/// # Errors
/// As of `nft`.
pub fn divide(pair: &Pair, divided: bool) -> Result<()> {
    for (network, interface) in [(Network::Lan, "lan"), (Network::Second, "hb")] {
        let mut text = "table netdev divided\ndelete table netdev divided\n".to_owned();
        if divided {
            let chains: Result<String> = Side::ALL
                .into_iter()
                .map(|side| {
                    let (port, other) =
                        (side.name(), mac(pair.namespace(side.other()), interface)?);
                    Ok(format!(
                        "chain {port} {{ type filter hook egress device {port} priority 0; \
                     ether saddr {{ {other}, {VIRTUAL} }} drop; }}\n"
                    ))
                })
                .collect();
            text = format!("{text}table netdev divided {{\n{}}}\n", chains?);
        }
        load(pair.network(network), &text)?;
    }
    Ok(())
}

fn mac(namespace: &Namespace, interface: &str) -> Result<String> {
    let shown = namespace.ip(&["-o", "link", "show", "dev", interface])?;
    let (_, rest) = shown.split_once("link/ether ").context("no MAC address")?;
    Ok(rest.split(' ').next().unwrap_or_default().to_owned())
}
