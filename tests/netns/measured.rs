//! Events that are measured several times.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::eventually;
use tests::filter::Network;
use tests::topology::{Options, Pair, Side};
use tests::watch::{HEAD, Watch, pass};

const SETTLE: Duration = Duration::from_secs(20);

/// Lines that a node has printed since `before`, a length of its log.
fn printed_since(pair: &Pair, side: Side, before: usize) -> String {
    pair.log(side).get(before..).unwrap_or_default().to_owned()
}

/// The former master's LAN cable comes back after more than 3 s: it becomes a backup without
/// having been master in between.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn carrier_back_without_a_reign_in_between() -> Result<()> {
    carrier_back(&[Network::Lan])
}

/// The same with both cables.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn both_carriers_back_without_a_reign_in_between() -> Result<()> {
    carrier_back(&Network::ALL)
}

fn carrier_back(networks: &[Network]) -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let mut master = pair.start_both()?;
    let mut reigns = 0;
    eprintln!("{HEAD}");
    for run in 1..=7 {
        let watch = Watch::start(&pair)?;
        for network in networks {
            pair.carrier_of(master, *network, false)?;
        }
        pass(Duration::from_millis(3300))?;
        let before = pair.log(master).len();
        for network in networks {
            pair.carrier_of(master, *network, true)?;
        }
        pair.wait_protected(master.other())?;
        let seen = watch.stop(&pair)?;
        eprintln!("{}", seen.line(&format!("run {run}, {networks:?}")));
        let promoted = printed_since(&pair, master, before).contains("promoting");
        reigns += usize::from(promoted);
        ensure!(seen.lost == 0, "run {run}: {} answered writes lost", seen.lost);
        ensure!(seen.owner() == Some(master.other()), "run {run}: {:?} owns it", seen.owner());
        master = master.other();
    }
    ensure!(reigns == 0, "{reigns} of 7 times it was master in between");
    Ok(())
}

/// SIGKILL of the master's engine until the other node answers a UDP datagram to the address.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn engine_killed_until_the_peer_answers() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let mut master = pair.start_both()?;
    let mut times = Vec::new();
    for _ in 0..5 {
        times.push(tests::watch::kill_to_answer(&mut pair, master)?);
        master = pair.wait_any_protected(SETTLE)?;
    }
    eprintln!("engine killed until the peer answers: {}", tests::watch::spread(&mut times));
    let median = times.get(times.len() / 2).context("a median")?;
    ensure!(*median < Duration::from_millis(300), "median {median:?}");
    Ok(())
}

/// From the kill of a guardian on, its node answers for the address no longer than the beat that
/// the program in the kernel believes.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_killed_guardians_node_is_silent_at_once() -> Result<()> {
    silent_after_a_kill("auto")
}

/// The same where the kernel answers: somebody else must take the address off.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_killed_guardians_address_goes_at_once() -> Result<()> {
    silent_after_a_kill("off")
}

fn silent_after_a_kill(xdp: &str) -> Result<()> {
    let options = Options { xdp: xdp.into(), ..Options::default() };
    let mut pair = Pair::build("tandem-test", options)?;
    let master = pair.start_both()?;
    let watch = Watch::start(&pair)?;
    let killed = Instant::now();
    pair.kill_guardian(master)?;
    pair.wait_role(master.other(), &["MASTER_SOLO", "MASTER"], SETTLE)?;
    pass(Duration::from_millis(500))?;
    let mac = tests::wire::mac(pair.namespace(master), "lan")?;
    let seen = watch.stop(&pair)?;
    eprintln!("{HEAD}\n{}", seen.line(&format!("guardian killed, xdp {xdp}")));
    let late = Duration::from_millis(300);
    ensure!(!seen.answers.heard_since(mac, killed + late), "{xdp}: it answered on");
    ensure!(seen.lost == 0, "{xdp}: {} lost", seen.lost);
    eventually("its address to go", Duration::from_secs(3), || {
        let addresses = pair.namespace(master).ip(&["-4", "-o", "address"])?;
        ensure!(!addresses.contains("10.77.0.100"), "it stands: {addresses}");
        Ok(())
    })
}
