//! The coupled mode: the instance reports, the owner decides.

use super::*;

const PEER: u8 = 20;
const STRANGER: u8 = 30;

fn backup() -> Bench {
    Bench::started(config(Mode::Coupled { peer: Some(ip(PEER)) }))
}

fn active() -> Bench {
    let mut bench = backup();
    bench.instance.promote(bench.now);
    bench.drain();
    bench
}

#[test]
fn startup_is_always_backup() {
    let mode = Mode::Coupled { peer: None };
    let mut bench = Bench::new(InstanceConfig { priority: Priority::OWNER, ..config(mode) });
    bench.instance.startup(bench.now);
    says!(bench.drain() => ["Initialize -> Backup"]);
}

#[test]
fn silence_is_no_promotion() {
    let mut bench = backup();
    bench.hear(PEER, 100);
    says!(bench.pass(us(5 * DOWN_US)) => []);
    assert_eq!(bench.instance.state(), State::Backup);
    assert_eq!(bench.instance.active_router(), None);
    bench.instance.promote(bench.now);
    says!(bench.drain() => ["Backup -> Active", "advert 100 Promoted", "garp Promoted"]);
    assert_eq!(bench.pass(ms(1000)).len(), 10, "adverts only");
}

#[test]
fn no_priority_is_preempted() {
    for priority in [1, 100, 255] {
        let mut bench = backup();
        for _ in 0..20 {
            says!(bench.hear(PEER, priority) => ["PeerContact"]);
            says!(bench.pass(ms(300)) => []);
        }
    }
}

#[test]
fn the_peers_resignation_is_said_at_once() {
    let mut bench = backup();
    bench.hear(PEER, 100);
    says!(bench.hear(PEER, 0) => ["PeerResigned"]);
    assert!(bench.left().unwrap() <= us(SKEW_US + 1));
    assert_eq!(bench.instance.active_router(), None);
    says!(bench.pass(us(5 * DOWN_US)) => []);
}

#[test]
fn a_strangers_resignation_does_not_speak_for_the_peer() {
    let mut bench = backup();
    bench.hear(PEER, 100);
    let before = bench.left();
    says!(bench.hear(STRANGER, 0) => []);
    assert_eq!(bench.left(), before);
    assert_eq!(bench.instance.active_router(), Some(ip(PEER)));
    // but where the stranger was the master, it does
    bench.hear(STRANGER, 200);
    bench.hear(STRANGER, 0);
    assert!(bench.left().unwrap() <= us(SKEW_US + 1));
}

#[test]
fn a_foreign_master_is_reported_once() {
    let mut bench = backup();
    says!(bench.hear(STRANGER, 1) => ["ForeignMaster"]);
    says!(bench.hear(STRANGER, 1) => []);
    says!(bench.hear(PEER, 100) => ["PeerContact"]);
    says!(bench.hear(STRANGER, 1) => ["ForeignMaster"]);
}

#[test]
fn the_peer_never_deposes_by_priority() {
    let mut bench = active();
    says!(bench.hear(PEER, 255) => ["PeerContact"]);
    says!(bench.hear(PEER, 100) => ["PeerContact"]);
    assert_eq!(bench.instance.state(), State::Active);
    // weaker: answered, so that its switches and neighbours learn us again
    says!(bench.hear(PEER, 99) =>
        ["PeerContact", "advert 100 Asserting", "SecondMaster", "garp SecondMaster"]);
}

#[test]
fn the_peers_resignation_in_active_brings_a_burst() {
    let mut bench = active();
    says!(bench.hear(PEER, 0) =>
        ["PeerResigned", "advert 100 PriorityZeroHeard", "garp SecondMaster"]);
}

#[test]
fn a_stronger_stranger_supersedes_by_the_owners_decision() {
    for (from, priority) in [(STRANGER, 101), (STRANGER, 100)] {
        let mut bench = active();
        says!(bench.hear(from, priority) => ["Superseded"]);
        assert_eq!(bench.instance.state(), State::Active);
        bench.instance.resign(bench.now, false);
        says!(bench.drain() => ["StopGarp", "Active -> Backup"]);
    }
    // equal with a lower address, or lower, is weaker
    let mut bench = active();
    says!(bench.hear(9, 100) => ["advert 100 Asserting", "SecondMaster", "garp SecondMaster"]);
}

#[test]
fn resigning_with_announcement_says_zero_once() {
    let mut bench = active();
    bench.instance.resign(bench.now, true);
    says!(bench.drain() => ["advert 0 Resigning", "StopGarp", "Active -> Backup"]);
    bench.instance.resign(bench.now, true);
    says!(bench.drain() => []);
    let left = bench.left().unwrap();
    assert!(left > us(DOWN_US) && left < us(DOWN_US + 1));
}

#[test]
fn promote_is_idempotent_and_reassert_needs_active() {
    let mut bench = backup();
    bench.instance.reassert(bench.now);
    says!(bench.drain() => []);
    bench.instance.promote(bench.now);
    says!(bench.drain() => ["Backup -> Active", "advert 100 Promoted", "garp Promoted"]);
    bench.pass(ms(50));
    bench.instance.promote(bench.now);
    says!(bench.drain() => []);
    bench.instance.reassert(bench.now);
    says!(bench.drain() => ["advert 100 Asserting", "garp Reasserted"]);
    assert_eq!(bench.left(), Some(ms(INTERVAL_MS)));
}

#[test]
fn the_peers_address_may_be_learned_later() {
    let mut bench = Bench::started(config(Mode::Coupled { peer: None }));
    bench.instance.promote(bench.now);
    bench.drain();
    says!(bench.hear(PEER, 200) => ["Superseded"]);
    bench.instance.set_peer(Some(ip(PEER)));
    says!(bench.hear(PEER, 200) => ["PeerContact"]);
    // a plain instance has no peer
    let mut plain = Bench::started(config(Mode::Plain { preempt: true }));
    plain.instance.set_peer(Some(ip(PEER)));
    assert_eq!(plain.instance.config().mode, Mode::Plain { preempt: true });
    plain.pass(ms(400));
    assert_eq!(plain.instance.state(), State::Active);
}

#[test]
fn who_resigns_waits_by_its_own_interval_not_by_one_learned_long_ago() {
    let mut bench = backup();
    let slow = Advert { interval: interval(1000), ..bench.advert(100) };
    bench.hear_advert(PEER, &slow).unwrap();
    assert!(bench.left().unwrap() > us(DOWN_US * 10));
    bench.instance.promote(bench.now);
    bench.instance.resign(bench.now, false);
    assert!(bench.left().unwrap() < us(DOWN_US + 1));
}

#[test]
fn a_forged_interval_is_learned_up_to_ten_of_ours() {
    let mut bench = backup();
    let forged = Advert { interval: interval(40_950), ..bench.advert(255) };
    bench.hear_advert(STRANGER, &forged).unwrap();
    assert_eq!(bench.instance.active_router(), Some(ip(STRANGER)));
    bench.pass(ms(4_000));
    assert_eq!(bench.instance.active_router(), None, "not for two minutes");
}

/// Adverts are summed over their source: with another one they would be refused by everybody.
#[test]
fn adverts_follow_the_source() {
    let mut bench = active();
    let kinds: Vec<_> = [10, 11]
        .into_iter()
        .map(|last| {
            bench.instance.set_source(ip(last));
            let outputs = bench.pass(ms(INTERVAL_MS));
            let payload = outputs.iter().find_map(|output| match output {
                Output::SendAdvert { payload, .. } => Some(payload.clone()),
                _ => None,
            });
            let payload = payload.expect("an advert");
            let received = Received {
                source: ip(last),
                destination: crate::config::GROUP_V4.into(),
                hop_limit: 255,
                payload: &payload,
            };
            Advert::decode(&received, Version::V3).map(|(_, kind)| kind)
        })
        .collect();
    assert_eq!(kinds, [Ok(ChecksumKind::PseudoHeader), Ok(ChecksumKind::PseudoHeader)]);
}
