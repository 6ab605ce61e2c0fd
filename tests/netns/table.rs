//! {master, backup} × {deaf, mute} × {LAN, second, both}: frames that a node should receive, or
//! sends, vanish, ARP too, with the carrier up. The address is the LAN's: a master that is deaf or
//! mute there hands over; anything else that happens to one node changes nothing that clients see.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::filter::{Network, Rule, Way};
use tests::topology::{Options, Pair, Side};
use tests::watch::{HEAD, Seen, Watch, pass};

/// How long a fault lasts.
const FAULT: Duration = Duration::from_secs(2);
/// What is hoped for of a handover, printed beside what was seen.
const GOAL: Duration = Duration::from_millis(100);
/// A shared machine must not make this fail, a rule that waits for a second must.
const OUTAGE_MAX: Duration = Duration::from_millis(900);
/// Two answerers: the lease is 30 ms, and the asker is a process among others.
pub(crate) const CONTESTED_MAX: Duration = Duration::from_millis(100);
const SETTLE: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Master,
    Backup,
}

/// One row: the fault, what was seen, the heal, a protected pair again.
fn row(pair: &Pair, master: Side, who: Who, way: Way, networks: &[Network]) -> Result<Seen> {
    let victim = if who == Who::Master { master } else { master.other() };
    let moves = who == Who::Master && networks.contains(&Network::Lan);
    let watch = Watch::start(pair)?;
    pair.filter(&Rule::silence(victim, way, networks))?;
    pass(FAULT)?;
    // Of this moment, before the heal: who serves while the fault lasts.
    let serving = served_by(pair);
    pair.filter(&[])?;
    pass(Duration::from_millis(500))?;
    let seen = watch.stop(pair)?;
    eprintln!("{}", seen.line(&format!("{who:?} {way:?} {networks:?}")));
    let serving = serving?;
    let expected = if moves { master.other() } else { master };
    ensure!(serving == expected, "{} serves, not {}", serving.name(), expected.name());
    ensure!(seen.lost == 0, "{} answered writes lost", seen.lost);
    let contested = seen.answers.contested();
    ensure!(contested < CONTESTED_MAX, "two answered for {contested:?}");
    ensure!(seen.udp.longest < OUTAGE_MAX, "clients waited {:?}", seen.udp.longest);
    if moves {
        let late = if seen.udp.longest > GOAL { "over" } else { "within" };
        eprintln!("  {:?}: {late} the goal of {GOAL:?}", seen.udp.longest);
        ensure!(seen.promotions[master as usize] == 0, "the deaf or mute one was promoted again");
        ensure!(seen.promotions[master.other() as usize] == 1, "{:?}", seen.promotions);
    } else {
        ensure!(!seen.claimed_by(master.other()), "the other node answered");
        ensure!(seen.promotions[master.other() as usize] == 0, "the other node was promoted");
    }
    Ok(seen)
}

/// Whose MAC the address has for a client that asks now.
fn served_by(pair: &Pair) -> Result<Side> {
    let asker = tests::wire::asker(&pair.client, tests::topology::CLIENT, tests::topology::VIP)?;
    pass(Duration::from_millis(100))?;
    let owner = asker.stop()?.owner().context("nobody answers for the address")?;
    for side in Side::ALL {
        if tests::wire::mac(pair.namespace(side), "lan")? == owner {
            return Ok(side);
        }
    }
    anyhow::bail!("a stranger owns the address")
}

/// The three rows of one victim and one direction; all are played, then the refusals are told.
fn rows(who: Who, way: Way) -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let mut master = pair.start_both()?;
    let mut refused = Vec::new();
    eprintln!("{HEAD}");
    for networks in [&[Network::Second][..], &[Network::Lan], &Network::ALL] {
        if let Err(error) = row(&pair, master, who, way, networks) {
            refused.push(format!("{who:?} {way:?} {networks:?}: {error:#}"));
        }
        pair.filter(&[])?;
        master = pair.wait_any_protected(SETTLE).with_context(|| refused.join("\n"))?;
    }
    ensure!(refused.is_empty(), "{}", refused.join("\n"));
    Ok(())
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn table_master_deaf() -> Result<()> {
    rows(Who::Master, Way::In)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn table_master_mute() -> Result<()> {
    rows(Who::Master, Way::Out)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn table_backup_deaf() -> Result<()> {
    rows(Who::Backup, Way::In)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn table_backup_mute() -> Result<()> {
    rows(Who::Backup, Way::Out)
}
