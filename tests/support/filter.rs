//! Frames dropped on purpose, at a node's ports of the two bridges: the node is deaf (what it
//! should receive is dropped), mute (what it sends is dropped), or does not get through on one port
//! or protocol. The carrier stays up, ARP is dropped too, and XDP and packet sockets on the node
//! see no more than its kernel, because the drops are in the switch.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::netns::Namespace;
use crate::topology::{Pair, Side};

/// One of the pair's two networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The one with the clients and the address.
    Lan,
    /// The pair's own.
    Second,
}

impl Network {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Lan, Self::Second];
}

/// Seen from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// What it should receive: without it the node is deaf.
    In,
    /// What it sends: without it the node is mute.
    Out,
}

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Self::In, Self::Out];
}

/// Which frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// All, ARP too.
    Everything,
    /// TCP and UDP from or to this port.
    Port(u16),
    /// IPv4 of this protocol: 112 is VRRP.
    Protocol(u8),
    /// ARP alone.
    Arp,
    /// One IPv4 packet of so many, at random.
    OneIn(u16),
}

/// Frames that do not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Whose cable.
    pub side: Side,
    /// Which of its two.
    pub network: Network,
    /// Which way.
    pub way: Way,
    /// Which frames.
    pub what: What,
}

impl Rule {
    /// A node deaf (`Way::In`) or mute (`Way::Out`) on `networks`.
    #[must_use]
    pub fn silence(side: Side, way: Way, networks: &[Network]) -> Vec<Self> {
        let rule =
            |network: &Network| Self { side, network: *network, way, what: What::Everything };
        networks.iter().map(rule).collect()
    }

    /// `what` dropped on every cable of `side`, both ways: nothing of it passes between the nodes.
    #[must_use]
    pub fn everywhere(side: Side, what: What) -> Vec<Self> {
        let ways = |network| Way::ALL.map(|way| Self { side, network, way, what });
        Network::ALL.into_iter().flat_map(ways).collect()
    }

    fn text(self) -> String {
        match self.what {
            What::Everything => "drop".to_owned(),
            What::Port(port) => {
                let of = |end| format!("tcp {end} {port} drop; udp {end} {port} drop");
                format!("{}; {}", of("dport"), of("sport"))
            }
            What::Protocol(number) => format!("ip protocol {number} drop"),
            What::Arp => "ether type arp drop".to_owned(),
            What::OneIn(many) => format!("ether type ip numgen random mod {many} == 0 drop"),
        }
    }
}

impl Pair {
    /// From now on exactly these frames are dropped; an empty list heals. Says nothing of cuts and
    /// carriers, which stay as they are.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn filter(&self, rules: &[Rule]) -> Result<()> {
        for network in Network::ALL {
            load(self.network(network), &table(network, rules))?;
        }
        Ok(())
    }
}

impl Pair {
    /// A node's own filter: new connections to the guardians' port are refused in these words of
    /// nftables, and every beat by datagram is dropped.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn refuse_guardians(&self, side: Side, refusal: &str) -> Result<()> {
        let table = "table inet refusing";
        let rules = format!("tcp dport 7700 tcp flags & (syn | ack) == syn {refusal}");
        let text = format!(
            "{table}\ndelete {table}\n{table} {{\nchain in {{\ntype filter hook input priority 0;\n\
             {rules}\nudp dport 7700 drop\n}}\n}}\n"
        );
        load(self.namespace(side), &text)
    }

    /// Undoes [`Pair::refuse_guardians`].
    ///
    /// # Errors
    /// What `nft` says.
    pub fn admit_guardians(&self, side: Side) -> Result<()> {
        load(self.namespace(side), "table inet refusing\ndelete table inet refusing\n")
    }
}

/// The whole table, replaced in one transaction.
fn table(network: Network, rules: &[Rule]) -> String {
    let mut text = String::from("table netdev fault\ndelete table netdev fault\n");
    text.push_str("table netdev fault {\n");
    for side in Side::ALL {
        for (way, hook) in [(Way::In, "egress"), (Way::Out, "ingress")] {
            let port = side.name();
            // Writing to a String does not fail.
            _ = write!(
                text,
                "chain {port}_{hook} {{ type filter hook {hook} device {port} priority 0; "
            );
            let here = rules.iter().filter(|r| (r.side, r.network, r.way) == (side, network, way));
            for rule in here {
                _ = write!(text, "{}; ", rule.text());
            }
            text.push_str("}\n");
        }
    }
    text.push_str("}\n");
    text
}

/// Rules for `nft`, as one transaction.
pub(crate) fn load(namespace: &Namespace, rules: &str) -> Result<()> {
    let mut child = namespace
        .command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("nft could not be started: is it installed?")?;
    child.stdin.take().context("nft's standard input")?.write_all(rules.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "nft: {}\n{rules}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
