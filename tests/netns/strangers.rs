//! A crowd without the key at the guardians' port of both nodes: two hundred connections a second
//! and four times as many datagrams, silent ones, nonsense, and what was recorded on the wire. It
//! costs counts, and neither a beat, an answered write, a role nor the peer's place. And a filter
//! that says of a living guardian what only a dead one's kernel may say.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::clients::http_get;
use tests::crowd::{Crowd, Made, Recorded};
use tests::sockets::leading_to;
use tests::topology::{Options, Pair, Side};
use tests::watch::{HEAD, Seen, Watch, pass};

use crate::table::CONTESTED_MAX;

const TIME: Duration = Duration::from_secs(6);
const SETTLE: Duration = Duration::from_secs(20);
/// Three beats: with a younger one the master may answer.
const LEASE_MS: f64 = 30.0;
/// A shared machine must not make this fail, a rule that waits for a second must.
const OUTAGE_MAX: Duration = Duration::from_millis(900);
/// Reasons that the crowd gives a node.
const REASONS: [&str; 7] = [
    "wrong_key",
    "malformed",
    "too_many_from_source",
    "no_free_place",
    "datagram_malformed",
    "datagram_version",
    "datagram_session",
];

/// Refusals of a node by reason, as `/metrics` has them.
fn refused(pair: &Pair, side: Side) -> Result<BTreeMap<String, u64>> {
    let metrics = pair.namespace(side).run(|| {
        let admin = (std::net::Ipv4Addr::LOCALHOST, 9900).into();
        let (status, body) = http_get(admin, "/metrics", Duration::from_secs(1))?;
        ensure!(status == 200, "{status}");
        Ok(String::from_utf8_lossy(&body).into_owned())
    })?;
    let count = |line: &str| {
        let (reason, count) =
            line.strip_prefix("tandem_peer_refused_total{reason=\"")?.split_once("\"} ")?;
        Some((reason.to_owned(), count.parse().ok()?))
    };
    Ok(metrics.lines().filter_map(count).collect())
}

/// For `time`, how old the newest beat of the peer is at each node: ages in ms, sorted.
fn ages(pair: &Pair, time: Duration) -> Result<Vec<f64>> {
    let (until, mut ages) = (Instant::now() + time, Vec::new());
    while Instant::now() < until {
        for side in Side::ALL {
            let status = pair.status(side)?;
            let paths = status["peer"]["paths"].as_array().context("paths")?;
            let age = |path: &serde_json::Value| path["last_beat_ms_ago"].as_f64();
            ages.push(paths.iter().filter_map(age).fold(f64::INFINITY, f64::min));
        }
        pass(Duration::from_millis(5))?;
    }
    ages.sort_by(f64::total_cmp);
    Ok(ages)
}

fn whole(seen: &Seen, name: &str, made: [Made; 2]) -> Result<()> {
    eprintln!("{HEAD}\n{}\n  the crowd: {made:?}", seen.line(name));
    ensure!(seen.lost == 0, "{} answered writes lost", seen.lost);
    let contested = seen.answers.contested();
    ensure!(contested < CONTESTED_MAX, "two answered for {contested:?}");
    let enough = |made: &Made| made.connections > 200 && made.datagrams > 800;
    ensure!(made.iter().all(enough), "that was no crowd: {made:?}");
    Ok(())
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn crowd_moves_nothing_and_is_counted_by_reason() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let recorded = Recorded::start_both(&mut pair)?;
    let roles = |pair: &Pair| Side::ALL.map(|side| pair.role(side).unwrap_or_default());
    let (before, watch) = (roles(&pair), Watch::start(&pair)?);
    let heard = Side::ALL.map(|side| pair.log(side).matches("not heard any more").count());
    let calm = ages(&pair, Duration::from_secs(1))?;
    let crowd = Crowd::start(&pair, &recorded)?;
    let ages = ages(&pair, TIME)?;
    let made = crowd.stop()?;
    let seen = watch.stop(&pair)?;
    whole(&seen, "crowd at both", made)?;
    let at = |ages: &[f64], part: usize| ages.get(ages.len() * part / 1000).copied();
    let spread =
        |ages: &[f64]| format!("{:?} {:?} {:?}", at(ages, 500), at(ages, 990), ages.last());
    eprintln!(
        "  age of the newest beat in ms, median, 99 %, last: {}, calm {}",
        spread(&ages),
        spread(&calm)
    );
    ensure!(roles(&pair) == before, "{before:?} became {:?}", roles(&pair));
    ensure!(seen.promotions == [0, 0] && seen.epochs == 0, "{:?}", seen.promotions);
    ensure!(!seen.claimed_by(Side::B), "the backup answered");
    ensure!(seen.udp.longest < OUTAGE_MAX, "clients waited {:?}", seen.udp);
    let now = Side::ALL.map(|side| pair.log(side).matches("not heard any more").count());
    ensure!(now == heard, "beats were missed: {heard:?} {now:?}");
    let late = at(&ages, 990).is_none_or(|age| age > LEASE_MS);
    ensure!(!late, "beats came later than the lease: {}", spread(&ages));
    for side in Side::ALL {
        let refused = refused(&pair, side)?;
        eprintln!("  node {} refused {refused:?}", side.name());
        let count = |reason: &&str| refused.get(*reason).copied().unwrap_or(0);
        // what was recorded went from a to b: there it comes again, at a it is a's own
        let recorded = match side {
            Side::A => ["same_side", "datagram_forged"],
            Side::B => ["unproved", "datagram_replay"],
        };
        for reason in REASONS.iter().chain(&recorded[..1]) {
            ensure!(count(reason) > 20, "node {}: {reason}", side.name());
        }
        // a's own datagrams may be so old that nothing is known of their numbers
        let again = count(&recorded[1]) + count(&"datagram_replay");
        ensure!(again > 200, "node {}: {again} recorded datagrams", side.name());
        let log = pair.log(side);
        let lines = log.lines().filter(|line| line.contains("refused on the peer's port")).count();
        ensure!((REASONS.len()..40).contains(&lines), "{lines} lines of refusals");
    }
    Ok(())
}

/// The engine of the master dies while the crowd is there.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn crowd_and_an_engine_killed() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let recorded = Recorded::start_both(&mut pair)?;
    let watch = Watch::start(&pair)?;
    let crowd = Crowd::start(&pair, &recorded)?;
    pass(Duration::from_secs(2))?;
    pair.kill_engine(Side::A)?;
    pair.wait_role(Side::B, &["MASTER", "MASTER_SOLO"], SETTLE)?;
    pair.wait_protected(Side::B).context("the other's engine comes back under the crowd")?;
    let made = crowd.stop()?;
    let seen = watch.stop(&pair)?;
    whole(&seen, "crowd, engine killed", made)?;
    ensure!(seen.promotions == [0, 1], "{:?}", seen.promotions);
    ensure!(seen.written.outage.longest < OUTAGE_MAX, "{:?}", seen.written.outage);
    Ok(())
}

/// The master's node is lost in silence, comes back empty, and gets its place, all under the crowd.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn crowd_and_a_node_lost_that_returns() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let recorded = Recorded::start_both(&mut pair)?;
    let watch = Watch::start(&pair)?;
    let crowd = Crowd::start(&pair, &recorded)?;
    pass(Duration::from_secs(2))?;
    pair.kill_node(Side::A)?;
    pair.wait_role(Side::B, &["MASTER_SOLO"], SETTLE)?;
    pair.heal(Side::A)?;
    let returned = Instant::now();
    pair.start(Side::A)?;
    pair.wait_protected(Side::B).context("who returns gets its place under the crowd")?;
    eprintln!("  protected {:?} after its start", returned.elapsed());
    let made = crowd.stop()?;
    let seen = watch.stop(&pair)?;
    whole(&seen, "crowd, node lost, returns", made)?;
    // it takes over once, and goes on above the epochs that the other had reserved
    ensure!(matches!(seen.promotions, [0, 1 | 2]), "{:?}", seen.promotions);
    ensure!(seen.written.outage.longest < OUTAGE_MAX, "{:?}", seen.written.outage);
    Ok(())
}

/// The master's connections end in order, as those of a process that died, though its guardian
/// lives; then nothing of it comes on the guardians' port any more, and whoever asks there for a
/// guardian is refused by a filter's ICMP, which connect(2) cannot tell from a kernel's reset.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_forged_end_and_a_filters_refusal_are_no_death() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let master = pair.start_both()?;
    let watch = Watch::start(&pair)?;
    for side in Side::ALL {
        pair.refuse_guardians(side, "reject")?;
    }
    let connections = leading_to(pair.guardian(Side::A)?, 7700)?;
    ensure!(connections.len() == 2, "one a path: {connections:?}");
    for connection in &connections {
        connection.shutdown(Shutdown::Write)?;
    }
    pass(Duration::from_secs(2))?;
    let asked = pair.namespace(Side::B).run(|| {
        let asked = TcpStream::connect((Side::A.address(), 7700));
        Ok(asked.err().context("a guardian answered through the filter")?.kind())
    })?;
    ensure!(asked == ErrorKind::ConnectionRefused, "connect(2) says {asked}");
    for side in Side::ALL {
        pair.admit_guardians(side)?;
    }
    pair.wait_protected(master)?;
    let seen = watch.stop(&pair)?;
    eprintln!("{HEAD}\n{}", seen.line("forged end, ICMP refusal"));
    ensure!(!seen.claimed_by(master.other()), "the backup answered for the living master");
    ensure!(seen.promotions == [0, 0], "promotions: {:?}", seen.promotions);
    ensure!(seen.lost == 0, "{} answered writes lost", seen.lost);
    Ok(())
}
