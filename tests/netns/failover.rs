//! Each event × each mode.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tests::eventually;
use tests::probe::{self, Outage};
use tests::topology::{Options, Pair, Side, VIP};

const ECHO: u16 = 7007;
/// Far above what is promised and far below keepalived's default: a shared machine must not make
/// this fail, a protocol that waits for a second must.
const OUTAGE_MAX: Duration = Duration::from_millis(900);

/// Plays `act` on the master of a protected pair, waits until `settled`, and checks what clients
/// saw.
fn event(
    pair: &mut Pair,
    name: &str,
    act: impl FnOnce(&mut Pair) -> Result<()>,
    master_after: Side,
) -> Result<Outage> {
    let client = pair.client.name().to_owned();
    let echoes =
        Side::ALL.map(|side| probe::udp_echo(pair.namespace(side).name(), VIP, ECHO, side.name()));
    let udp = probe::udp(&client, VIP, ECHO);
    let writer = probe::writer(&client, (VIP, 11211).into(), 200);
    eventually("the writer to be under way", Duration::from_secs(5), || {
        let mut reader = pair.memcached(&pair.client, VIP)?;
        reader.get("lab:7")?.context("not written yet").map(drop)
    })?;
    act(pair)?;
    pair.wait_role(master_after, &["MASTER", "MASTER_SOLO"], Duration::from_secs(15))
        .with_context(|| name.to_owned())?;
    eventually("a write after the event", Duration::from_secs(10), || {
        let mut own = pair.memcached(&pair.client, VIP)?;
        ensure!(own.set("after", name.as_bytes())? == "STORED");
        Ok(())
    })
    .with_context(|| name.to_owned())?;
    let (udp, written) = (udp.stop()?, writer.stop()?);
    for echo in echoes {
        echo.stop()?;
    }
    let mut reader = pair.memcached(&pair.client, VIP)?;
    let lost = written.lost(|key| reader.get(key))?;
    ensure!(lost == 0, "{name}: {lost} answered writes lost");
    ensure!(udp.successes > 0, "{name}: the probe never worked");
    ensure!(written.outage.longest < OUTAGE_MAX, "{name}: a writer waited {:?}", written.outage);
    eprintln!("{name}: UDP {:?}, writer {:?}", udp.longest, written.outage.longest);
    Ok(udp)
}

fn story(xdp: &str, io: &str) -> Result<()> {
    let options = Options { xdp: xdp.into(), io: io.into(), ..Options::default() };
    let mut pair = Pair::build("tandem-test", options)?;
    let master = pair.start_both()?;
    let other = master.other();
    event(&mut pair, "engine killed", |pair| pair.kill_engine(master).map(drop), other)?;
    pair.wait_protected(other)?;
    event(&mut pair, "guardian killed", |pair| pair.kill_guardian(other), master)?;
    pair.wait_protected(master)?;
    event(&mut pair, "node lost", |pair| pair.kill_node(master), other)?;
    pair.heal(master)?;
    pair.start(master)?;
    pair.wait_protected(other)?;
    let stop = |pair: &mut Pair| pair.node(other)?.signal(Signal::SIGTERM);
    event(&mut pair, "stopped by SIGTERM", stop, master)?;
    ensure!(pair.node(other)?.wait(Duration::from_secs(5))?.success(), "exit code of a stop");
    Ok(())
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn story_native() -> Result<()> {
    story("native", "auto")
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn story_generic() -> Result<()> {
    story("generic", "auto")
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn story_off() -> Result<()> {
    story("off", "auto")
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn story_native_epoll() -> Result<()> {
    story("native", "epoll")
}

/// The master is cut off in silence; the other takes over; the cut is mended: one master, both
/// equal, the client's next write goes to it.
fn partition(xdp: &str) -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options { xdp: xdp.into(), ..Options::default() })?;
    let master = pair.start_both()?;
    let other = master.other();
    let cut = |pair: &mut Pair| {
        // a node that has just come knows nobody who could say that it is the isolated one
        pair.wait_askable(master)?;
        pair.cut(master)
    };
    event(&mut pair, "cut off", cut, other)?;
    pair.heal(master)?;
    pair.wait_protected(other)?;
    event(&mut pair, "after the heal", |_| Ok(()), other).map(drop)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn partition_native() -> Result<()> {
    partition("native")
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn partition_off() -> Result<()> {
    partition("off")
}
