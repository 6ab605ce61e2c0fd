//! Strangers on the LAN: adverts and ARP for our address from a station that is neither node. With
//! beats alive they raise an alarm and nothing else.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::clients::http_get;
use tests::netns::enter;
use tests::stranger::{VRRP, advert, multicast};
use tests::topology::{Options, Pair, Side, VIP};
use tests::watch::{HEAD, Seen, Watch, pass};
use tests::wire::{ARP, BROADCAST, IPV4, Wire, arp_reply, capture, mac};

const PERIOD: Duration = Duration::from_millis(100);
const TIME: Duration = Duration::from_secs(5);

/// Calls `send` on a thread inside the client's namespace, ten times a second for `time`.
fn repeat(pair: &Pair, time: Duration, mut send: impl FnMut() -> Result<()> + Send) -> Result<()> {
    let name = pair.client.name();
    std::thread::scope(|scope| {
        let body = || {
            enter(name)?;
            let end = Instant::now() + time;
            while Instant::now() < end {
                send()?;
                std::thread::park_timeout(PERIOD);
            }
            Ok(())
        };
        scope.spawn(body).join().map_err(|_panic| anyhow::anyhow!("the sender panicked"))?
    })
}

fn nothing_happened(seen: &Seen, master: Side) -> Result<()> {
    ensure!(seen.promotions == [0, 0], "promotions: {:?}", seen.promotions);
    ensure!(seen.epochs == 0, "{} epochs burned", seen.epochs);
    ensure!(seen.lost == 0, "{} answered writes lost", seen.lost);
    ensure!(!seen.claimed_by(master.other()), "the other node answered");
    Ok(())
}

/// `send` ten times a second for five seconds beside a protected pair.
fn stranger(name: &str, send: impl FnMut(&Pair, Side) -> Result<()> + Send) -> Result<Pair> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let master = pair.start_both()?;
    let mut send = send;
    let watch = Watch::start(&pair)?;
    repeat(&pair, TIME, || send(&pair, master))?;
    let roles = Side::ALL.map(|side| pair.role(side).unwrap_or_default());
    pass(PERIOD)?;
    let seen = watch.stop(&pair)?;
    eprintln!("{HEAD}\n{}", seen.line(name));
    nothing_happened(&seen, master)?;
    ensure!(roles[master as usize].starts_with("MASTER"), "the master: {}", roles[master as usize]);
    eprintln!("at the end of it the roles are {roles:?}");
    pair.wait_protected(master)?;
    Ok(pair)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn foreign_adverts_of_the_highest_priority() -> Result<()> {
    let payload = advert(255)?;
    let pair = stranger("adverts of priority 255", |_, _| multicast(&payload, 255))?;
    let events: Vec<String> = Side::ALL.iter().flat_map(|side| pair.events(*side)).collect();
    let alarms = events.iter().filter(|event| event.starts_with("ALARM")).count();
    ensure!(alarms > 0, "no alarm: {events:#?}");
    ensure!(alarms <= 4, "an alarm for each advert: {events:#?}");
    Ok(())
}

/// Priority 0 says "I resign": of a stranger it means nothing.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn foreign_adverts_that_resign() -> Result<()> {
    let payload = advert(0)?;
    stranger("adverts of priority 0", |_, _| multicast(&payload, 255)).map(drop)
}

/// "The address is at the client's MAC", to each node alone: their own tables are poisoned.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn poisoned_arp_to_each_node() -> Result<()> {
    stranger("ARP poison, unicast", |pair, _| {
        let own = mac(&pair.client, "lan")?;
        let wire = Wire::open("lan", ARP)?;
        for side in Side::ALL {
            let to = mac(pair.namespace(side), "lan")?;
            wire.send(&arp_reply(to, own, VIP, side.address()))?;
            // And the peer's own address, by which the pair finds itself.
            wire.send(&arp_reply(to, own, side.other().address(), side.address()))?;
        }
        Ok(())
    })
    .map(drop)
}

/// Two hundred refused adverts of each kind change nothing and are counted by kind.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn refused_adverts_are_counted() -> Result<()> {
    let good = advert(255)?;
    let mut bad = good.clone();
    *bad.get_mut(6).context("the checksum")? ^= 0x55;
    let pair = stranger("TTL 254, bad checksum", |_, _| {
        multicast(&good, 254)?;
        multicast(&bad, 255)
    })?;
    for side in Side::ALL {
        let metrics = pair.namespace(side).run(|| {
            let admin = (Ipv4Addr::LOCALHOST, 9900).into();
            let (status, body) = http_get(admin, "/metrics", Duration::from_secs(1))?;
            ensure!(status == 200, "{status}");
            Ok(String::from_utf8_lossy(&body).into_owned())
        })?;
        for reason in ["hop_limit", "checksum"] {
            let counted = metrics.lines().any(|line| {
                let value = line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok());
                line.contains("advert")
                    && line.contains(reason)
                    && value.is_some_and(|value| value >= 20.0)
            });
            ensure!(counted, "node {}: no count of refused adverts: {reason}", side.name());
        }
    }
    Ok(())
}

/// The adverts of a dead master, recorded on the wire and played again: the survivor stays.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn replayed_adverts_of_a_dead_master() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let master = pair.start_both()?;
    let capture = capture(&pair.client, VRRP);
    pass(Duration::from_millis(500))?;
    let frames = capture.stop()?;
    ensure!(!frames.is_empty(), "no adverts were recorded");
    pair.kill_node(master)?;
    let survivor = master.other();
    pair.wait_role(survivor, &["MASTER_SOLO"], Duration::from_secs(10))?;
    let watch = Watch::start(&pair)?;
    let mut next = frames.iter().cycle();
    repeat(&pair, TIME, || {
        let Some(frame) = next.next() else { bail!("a cycle ended") };
        Wire::open("lan", IPV4)?.send(frame)
    })?;
    let role = pair.role(survivor)?;
    let seen = watch.stop(&pair)?;
    eprintln!("{HEAD}\n{}", seen.line("a dead master's adverts"));
    ensure!(role == "MASTER_SOLO", "the survivor is {role}");
    ensure!(seen.promotions == [0, 0] && seen.epochs == 0, "{:?}", seen.promotions);
    ensure!(seen.lost == 0, "{} answered writes lost", seen.lost);
    // 100 ms of no answer would be a role that was left and taken again.
    ensure!(seen.udp.longest < Duration::from_millis(500), "{:?}", seen.udp);
    Ok(())
}

/// "The address is at the client's MAC", to everybody: clients believe it for a moment, the master
/// says its own again, and no role changes.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_forged_announcement_is_answered() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let master = pair.start_both()?;
    let watch = Watch::start(&pair)?;
    let own = mac(&pair.client, "lan")?;
    repeat(&pair, Duration::from_secs(1), || {
        Wire::open("lan", ARP)?.send(&arp_reply(BROADCAST, own, VIP, VIP))
    })?;
    pass(Duration::from_millis(500))?;
    let seen = watch.stop(&pair)?;
    eprintln!("{HEAD}\n{}", seen.line("forged announcements"));
    nothing_happened(&seen, master)?;
    let master_mac = mac(pair.namespace(master), "lan")?;
    let again = seen.answers.announcements.iter().filter(|(_, mac)| *mac == master_mac).count();
    ensure!(again > 0, "the master did not announce the address again");
    Ok(())
}
