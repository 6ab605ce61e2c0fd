//! RFC 9568 §6.4 (and RFC 3768 §6.4, where version 2 differs), sentence by sentence.

use super::*;

fn backup(preempt: bool) -> Bench {
    Bench::started(config(Mode::Plain { preempt }))
}

fn active() -> Bench {
    let mut bench = backup(true);
    bench.pass(us(DOWN_US + 1));
    assert_eq!(bench.instance.state(), State::Active);
    bench
}

fn v2(preempt: bool, auth: Auth) -> Bench {
    let interval = AdvertInterval::DEFAULT;
    let base = config(Mode::Plain { preempt });
    Bench::started(InstanceConfig { version: Version::V2, auth, interval, ..base })
}

/// §6.4.1 "If the Priority associated with the Virtual Router is 255 ... Send an ADVERTISEMENT
/// ... broadcast gratuitous ARP ... Transition to the Active state".
#[test]
fn startup_of_the_address_owner() {
    let mode = Mode::Plain { preempt: true };
    let mut bench = Bench::new(InstanceConfig { priority: Priority::OWNER, ..config(mode) });
    bench.instance.startup(bench.now);
    says!(bench.drain() => ["Initialize -> Active", "advert 255 Promoted", "garp Promoted"]);
    assert_eq!(bench.left(), Some(ms(INTERVAL_MS)));
}

/// §6.4.1 "else: Set the Active_Down_Timer to Active_Down_Interval. Transition to Backup".
#[test]
fn startup_of_a_backup() {
    let mode = Mode::Plain { preempt: true };
    let mut bench = Bench::new(InstanceConfig { priority: Priority::new(254), ..config(mode) });
    bench.instance.startup(bench.now);
    says!(bench.drain() => ["Initialize -> Backup"]);
    assert_eq!(bench.left(), Some(us(300_781) + Duration::from_nanos(250)));
    // once only
    bench.instance.startup(bench.now + ms(50));
    says!(bench.drain() => []);
}

/// §6.4.2 "If a Shutdown event is received: Cancel the Active_Down_Timer, Transition to
/// Initialize", without a word on the wire; §6.4.3 says it with priority 0.
#[test]
fn shutdown_of_a_backup_is_silent_and_of_an_active_says_zero() {
    let mut bench = backup(true);
    bench.instance.shutdown();
    says!(bench.drain() => ["Backup -> Initialize"]);
    assert_eq!(bench.left(), None);

    let mut bench = active();
    bench.instance.shutdown();
    says!(bench.drain() => ["advert 0 Resigning", "StopGarp", "Active -> Initialize"]);
    assert_eq!(bench.left(), None);
    assert_eq!(bench.instance.counters().priority_zero_sent, 1);
}

/// §6.4.2 "If the Active_Down_Timer fires: Send an ADVERTISEMENT, ... gratuitous ARP, ... Set
/// the Adver_Timer, Transition to Active".
#[test]
fn down_timer_makes_active_and_not_earlier() {
    let mut bench = backup(true);
    says!(bench.pass(us(DOWN_US)) => []);
    says!(bench.pass(us(1)) => ["Backup -> Active", "advert 100 Promoted", "garp Promoted"]);
    assert_eq!(bench.instance.counters().became_active, 1);
}

/// §6.4.2 "If the Priority in the ADVERTISEMENT is 0: Set the Active_Down_Timer to Skew_Time".
#[test]
fn priority_zero_leaves_only_the_skew() {
    let mut bench = backup(true);
    bench.hear(20, 200);
    says!(bench.hear(20, 0) => []);
    says!(bench.pass(us(SKEW_US)) => []);
    says!(bench.pass(us(1)) => ["Backup -> Active", "advert 100 Promoted", "garp Promoted"]);
}

/// §6.4.2 "If Preempt_Mode is False, or if the Priority in the ADVERTISEMENT is greater than or
/// equal to the local Priority: ... Set Active_Adver_Interval ..., Recompute ..., Reset".
#[test]
fn a_stronger_equal_or_unpreempted_router_keeps_us_backup() {
    for (preempt, priority) in [(true, 101), (true, 100), (false, 99), (false, 1)] {
        let mut bench = backup(preempt);
        bench.pass(ms(200));
        bench.hear(9, priority);
        let left = bench.left().unwrap();
        assert!(left > us(DOWN_US) && left < us(DOWN_US + 1), "{preempt} {priority}");
        assert_eq!(bench.instance.active_router(), Some(ip(9)));
    }
}

/// §6.4.2 "Else: Discard the ADVERTISEMENT": a weaker one does not stop the timer.
#[test]
fn a_weaker_router_is_preempted() {
    let mut bench = backup(true);
    bench.pass(ms(200));
    says!(bench.hear(20, 99) => []);
    says!(bench.pass(ms(161)) =>
        ["Backup -> Active", "advert 100 Promoted", "garp Promoted"]);
}

/// §6.1 and §6.4.2: the Active Router's interval governs, version 3 only.
#[test]
fn the_active_routers_interval_is_learned() {
    let mut bench = backup(true);
    let slow = Advert { interval: interval(1000), ..bench.advert(200) };
    bench.hear_advert(20, &slow).unwrap();
    let left = bench.left().unwrap();
    assert!(left > us(DOWN_US * 10) && left < us(DOWN_US * 10 + 10), "{left:?}");
    // and the skew after its resignation is of that interval too
    bench.hear(20, 0);
    let left = bench.left().unwrap();
    assert!(left > us(SKEW_US * 10) && left < us(SKEW_US * 10 + 10), "{left:?}");
    // but it is not what we advertise
    bench.pass(ms(610));
    assert_eq!(bench.instance.state(), State::Active);
    assert!(bench.left().unwrap() <= ms(INTERVAL_MS));
}

/// §6.4.3 "If the Adver_Timer fires: Send an ADVERTISEMENT, Reset the Adver_Timer".
#[test]
fn adverts_keep_their_cadence() {
    let mut bench = active();
    assert_eq!(bench.pass(ms(1000)).len(), 10);
    // a thread 30 ms late does not shift the following ones
    let due = bench.instance.poll_timeout().unwrap();
    bench.now = due + ms(30);
    bench.instance.handle_timeout(bench.now);
    says!(bench.drain() => ["advert 100 Periodic"]);
    assert_eq!(bench.left(), Some(ms(70)));
    // one a second late does not make up for what was missed
    bench.now = due + ms(1030);
    bench.instance.handle_timeout(bench.now);
    says!(bench.drain() => ["advert 100 Periodic"]);
    assert_eq!(bench.left(), Some(ms(100)));
}

/// §6.4.3 "If the Priority in the ADVERTISEMENT is 0: Send an ADVERTISEMENT, Reset the
/// Adver_Timer".
#[test]
fn priority_zero_in_active_is_answered_and_rearms() {
    let mut bench = active();
    bench.pass(ms(50));
    says!(bench.hear(20, 0) => ["advert 100 PriorityZeroHeard", "garp SecondMaster"]);
    assert_eq!(bench.left(), Some(ms(INTERVAL_MS)));
    assert_eq!(bench.instance.state(), State::Active);
}

/// §6.4.3 "greater than the local Priority, or ... equal ... and the primary IPvX address of the
/// sender is greater than the local primary IPvX address: ... Transition to Backup".
#[test]
fn a_stronger_router_deposes() {
    for (from, priority) in [(9, 101), (11, 100)] {
        let mut bench = active();
        says!(bench.hear(from, priority) => ["StopGarp", "Active -> Backup"]);
        let left = bench.left().unwrap();
        assert!(left > us(DOWN_US) && left < us(DOWN_US + 1));
        assert_eq!(bench.instance.counters().left_active, 1);
        assert_eq!(bench.instance.active_router(), Some(ip(from)));
    }
}

/// Addresses compare as numbers: 10.99.0.10 < 10.99.0.200 and 9.255.255.255 < 10.99.0.10.
#[test]
fn tie_break_is_numeric() {
    let mut bench = active();
    let advert = bench.advert(100);
    let low = IpAddr::from([9, 255, 255, 255]);
    let group = bench.instance.config.group();
    let bytes = advert.encode(low, group, ChecksumKind::PseudoHeader).unwrap();
    bench.hear_bytes(&Received::multicast(low, 255, &bytes)).unwrap();
    assert_eq!(bench.instance.state(), State::Active);
    bench.hear(200, 100);
    assert_eq!(bench.instance.state(), State::Backup);
}

/// §6.4.3 (new in RFC 9568) "Else: Discard the ADVERTISEMENT and immediately send an
/// ADVERTISEMENT"; the timer runs on.
#[test]
fn a_weaker_router_is_answered_at_once() {
    for (from, priority) in [(20, 99), (9, 100), (20, 1)] {
        let mut bench = active();
        bench.pass(ms(50));
        let before = bench.left();
        says!(bench.hear(from, priority) =>
            ["advert 100 Asserting", "SecondMaster", "garp SecondMaster"]);
        assert_eq!(bench.left(), before);
    }
}

#[test]
fn immediate_answers_are_at_least_10_ms_apart() {
    let mut bench = active();
    assert_eq!(bench.hear(20, 50).len(), 3);
    bench.now += us(9_999);
    says!(bench.hear(20, 50) => []);
    says!(bench.hear(20, 0) => []);
    bench.now += us(1);
    assert_eq!(bench.hear(20, 50).len(), 3);
    assert_eq!(bench.instance.counters().answers_withheld, 2);
}

/// Erratum 8298: an owner that hears a stronger owner elects like everybody.
#[test]
fn two_owners_elect_by_address() {
    let mode = Mode::Plain { preempt: true };
    let owner = InstanceConfig { priority: Priority::OWNER, ..config(mode) };
    let mut bench = Bench::started(owner.clone());
    bench.hear(9, 255);
    assert_eq!(bench.instance.state(), State::Active);
    let mut bench = Bench::started(owner);
    bench.hear(20, 255);
    assert_eq!(bench.instance.state(), State::Backup);
}

/// RFC 3768 §7.1 "MUST verify that the Adver Interval in the packet is the same".
#[test]
fn version_2_refuses_another_interval_and_password() {
    let mut bench = v2(true, Auth::Simple(*b"seed1234"));
    let good = bench.advert(200);
    let interval = AdvertInterval::from_seconds(2).unwrap();
    let refused = [
        (Advert { interval, ..good.clone() }, Refusal::IntervalDiffers(interval)),
        (Advert { auth: Auth::Simple(*b"seed1235"), ..good.clone() }, Refusal::AuthFailed),
        (Advert { auth: Auth::None, ..good.clone() }, Refusal::AuthType(0)),
        (Advert { version: Version::V3, auth: Auth::None, ..good.clone() }, Refusal::Version(3)),
    ];
    for (advert, refusal) in refused {
        assert_eq!(bench.hear_advert(20, &advert), Err(refusal));
    }
    assert!(bench.hear_advert(20, &good).is_ok());
    let mut bench = v2(true, Auth::None);
    assert_eq!(bench.hear_advert(20, &good), Err(Refusal::AuthType(1)));
}

/// RFC 3768 §6.1: 3.609 s at the defaults; 0.609 s after priority 0.
#[test]
fn version_2_times() {
    let mut bench = v2(true, Auth::None);
    assert_eq!(bench.left(), Some(us(3_609_375)));
    bench.hear(20, 0);
    assert_eq!(bench.left(), Some(us(609_375)));
    bench.pass(us(609_375));
    assert_eq!(bench.instance.state(), State::Active);
}

/// Two plain instances on one wire settle: the stronger is Active, one at a time.
#[test]
fn two_instances_elect_and_fail_over() {
    let mode = Mode::Plain { preempt: true };
    let mut a = Bench::started(config(mode));
    let strong = InstanceConfig { priority: Priority::new(200), source: ip(20), ..config(mode) };
    let mut b = Bench::started(strong);
    b.now = a.now;
    b.instance.shutdown();
    b.instance.startup(b.now);
    b.drain();
    for _ in 0..1000 {
        let (from_a, from_b) = (a.pass(ms(1)), b.pass(ms(1)));
        for (outputs, from, to) in [(from_a, ip(10), &mut b), (from_b, ip(20), &mut a)] {
            for output in outputs {
                if let Output::SendAdvert { payload, .. } = output {
                    to.hear_bytes(&Received::multicast(from, 255, &payload)).unwrap();
                }
            }
        }
    }
    assert_eq!(a.instance.state(), State::Backup);
    assert_eq!(b.instance.state(), State::Active);
    assert_eq!(a.instance.counters().became_active, 0, "the skew kept it back");
    // b falls silent
    says!(a.pass(us(DOWN_US + 1)) => ["Backup -> Active", "advert 100 Promoted", "garp Promoted"]);
}

/// §6.4.3: "Set Active_Adver_Interval to Adver Interval contained in the ADVERTISEMENT" when
/// deposed; §6.4.1: "Set Active_Adver_Interval to Advertisement_Interval" at startup.
#[test]
fn the_learned_interval_comes_with_a_master_and_goes_with_a_restart() {
    let mut bench = active();
    let slow = Advert { interval: interval(1000), ..bench.advert(200) };
    bench.hear_advert(20, &slow).unwrap();
    assert_eq!(bench.instance.state(), State::Backup);
    assert!(bench.left().unwrap() > us(DOWN_US * 10));
    bench.instance.shutdown();
    bench.instance.startup(bench.now);
    assert!(bench.left().unwrap() < us(DOWN_US + 1));
}
