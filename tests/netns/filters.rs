//! One port filtered, or two nodes configured not to understand each other, on a LAN that is
//! whole: at most one master at every moment, no loop of promotions, nothing that was answered is
//! lost, and an alarm that names the likely cause.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::eventually;
use tests::filter::{Rule, What};
use tests::netns::run;
use tests::topology::{Options, Pair, Side};
use tests::watch::{HEAD, Watch, pass};

use crate::table::CONTESTED_MAX;

/// How long the two live with it.
const TIME: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(20);

/// True when an event of either node is an alarm that has one of `words`.
fn alarm(pair: &Pair, words: &[&str]) -> Result<()> {
    let events: Vec<String> = Side::ALL.iter().flat_map(|side| pair.events(*side)).collect();
    let named = |event: &String| {
        let event = event.to_lowercase();
        event.starts_with("alarm") && words.iter().any(|word| event.contains(word))
    };
    ensure!(events.iter().any(named), "no alarm with one of {words:?}: {events:#?}");
    Ok(())
}

/// A protected pair, then `what` is dropped between the nodes on every path, then healed.
fn filtered(what: What, promotions_max: usize) -> Result<Pair> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let master = pair.start_both()?;
    let watch = Watch::start(&pair)?;
    pair.filter(&Rule::everywhere(master.other(), what))?;
    pass(TIME)?;
    let alarmed = alarm(&pair, &["7700", "7701", "port", "filter", "no beat"]);
    let seen = watch.stop(&pair)?;
    eprintln!("{HEAD}\n{}", seen.line(&format!("{what:?} filtered")));
    ensure!(seen.lost == 0, "{} answered writes lost", seen.lost);
    let contested = seen.answers.contested();
    ensure!(contested < CONTESTED_MAX, "two answered for {contested:?}");
    ensure!(
        seen.promotions.iter().sum::<usize>() <= promotions_max,
        "promotions: {:?}",
        seen.promotions
    );
    alarmed?;
    let watch = Watch::start(&pair)?;
    pair.filter(&[])?;
    pair.wait_any_protected(SETTLE)?;
    let seen = watch.stop(&pair)?;
    eprintln!("{}", seen.line("healed"));
    ensure!(seen.lost == 0, "{} answered writes lost at the heal", seen.lost);
    Ok(pair)
}

/// The guardians' port: beats and the control connection.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn filtered_port_of_the_guardians() -> Result<()> {
    filtered(What::Port(7700), 1).map(drop)
}

/// The engines' port: the streams. The guardians hear each other, so nobody takes over.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn filtered_port_of_the_engines() -> Result<()> {
    filtered(What::Port(7701), 0).map(drop)
}

/// Adverts alone: they decide nothing while beats pass.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn filtered_vrrp_changes_nothing() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let master = pair.start_both()?;
    let watch = Watch::start(&pair)?;
    pair.filter(&Rule::everywhere(master.other(), What::Protocol(112)))?;
    pass(Duration::from_secs(3))?;
    let seen = watch.stop(&pair)?;
    eprintln!("{HEAD}\n{}", seen.line("protocol 112 filtered"));
    ensure!(seen.promotions == [0, 0] && seen.epochs == 0, "{:?}", seen.promotions);
    ensure!(seen.lost == 0 && !seen.claimed_by(master.other()), "the other node answered");
    Ok(())
}

/// Node a is master; node b comes with a file that `spoil` has changed. It stays out, once and for
/// as long as the master is there, says why, and takes over when the master's node is gone.
fn misfit(words: &[&str], spoil: impl FnOnce(&mut Pair) -> Result<()>) -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    pair.start(Side::A)?;
    pair.wait_role(Side::A, &["MASTER_SOLO"], Duration::from_secs(10))?;
    spoil(&mut pair)?;
    let watch = Watch::start(&pair)?;
    pair.start(Side::B)?;
    pass(TIME)?;
    let alarmed = eventually("an alarm", Duration::from_secs(2), || alarm(&pair, words));
    let roles = Side::ALL.map(|side| pair.role(side).unwrap_or_default());
    let seen = watch.stop(&pair)?;
    eprintln!("{HEAD}\n{}", seen.line(words.first().unwrap_or(&"misfit")));
    ensure!(seen.lost == 0, "{} answered writes lost", seen.lost);
    ensure!(!seen.claimed_by(Side::B), "node b answered for the address");
    ensure!(roles[0].starts_with("MASTER"), "node a is {}", roles[0]);
    ensure!(!roles[1].starts_with("MASTER"), "node b is {}", roles[1]);
    ensure!(seen.promotions[1] <= 1 && seen.promotions[0] == 0, "{:?}", seen.promotions);
    ensure!(seen.epochs == 0, "node b burned {} epochs", seen.epochs);
    alarmed?;
    pair.kill_node(Side::A)?;
    pair.wait_role(Side::B, &["MASTER_SOLO", "MASTER"], SETTLE).map(drop)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn misfit_key() -> Result<()> {
    misfit(&["key"], |pair| {
        let other = pair.file("other.key");
        run(&pair.tandem().to_string_lossy(), &["keygen", &other.to_string_lossy()])?;
        let (own, other) = (pair.file("pair.key"), other);
        pair.edit_config(Side::B, |text| {
            text.replace(&own.display().to_string(), &other.display().to_string())
        })
    })
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn misfit_cluster() -> Result<()> {
    misfit(&["cluster"], |pair| {
        pair.edit_config(Side::B, |text| {
            text.replace("[node]\n", "[node]\ncluster = \"another\"\n")
        })
    })
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn misfit_side() -> Result<()> {
    misfit(&["side"], |pair| {
        pair.edit_config(Side::B, |text| text.replace("side = \"b\"", "side = \"a\""))
    })
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn misfit_heartbeat() -> Result<()> {
    misfit(&["heartbeat", "timing"], |pair| {
        pair.edit_config(Side::B, |text| text.replace("[node]\n", "[node]\nheartbeat = \"20ms\"\n"))
    })
}
