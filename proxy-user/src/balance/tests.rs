//! The pool's sequence, removal and return; stickiness; the retry table.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::retry::{Facts, verdict};
use super::sticky::routes;
use super::{Admin, Attempt, Change, Outcome, Pool, Retry, Routes, Selection};
use crate::config;
use crate::http::Reason;

const SECOND: Duration = Duration::from_secs(1);

fn pool(weights: &[u16], max_fails: u32) -> Pool {
    let server = |(at, &weight): (usize, &u16)| config::Server {
        address: SocketAddr::from(([127, 0, 0, 1], 8000 + at as u16)),
        weight,
        route: Some(format!("tomcat{at}")),
    };
    Pool::new(&config::Upstream {
        name: "test".to_owned(),
        servers: weights.iter().enumerate().map(server).collect(),
        max_fails,
        fail_timeout: 10 * SECOND,
        ..config::Upstream::default()
    })
}

/// Which server each of `count` good requests gets.
fn sequence(pool: &Pool, now: Instant, count: usize) -> String {
    (0..count)
        .map(|_| {
            let choice = pool.next(now, &mut Selection::default()).expect("a server is up");
            pool.report(now, choice.server, Outcome::Ok);
            char::from(b'a' + choice.server as u8)
        })
        .collect()
}

fn fail(pool: &Pool, now: Instant, server: u16) -> Option<Change> {
    pool.again(server).expect("a server of the pool");
    pool.report(now, server, Outcome::Failed)
}

#[test]
fn smooth_weights_give_the_known_sequences() {
    let now = Instant::now();
    for (weights, expected) in [
        (&[5, 1, 1][..], "aabacaaaabacaa"),
        (&[1, 1], "abababab"),
        (&[1, 1, 1], "abcabc"),
        (&[3, 2, 1], "abacbaabacba"),
        (&[1], "aaa"),
    ] {
        assert_eq!(sequence(&pool(weights, 1), now, expected.len()), expected, "{weights:?}");
    }
}

#[test]
fn a_retry_never_hits_the_same_server() {
    let (pool, now) = (pool(&[1, 1, 1], 0), Instant::now());
    let mut selection = Selection::default();
    let mut seen: Vec<u16> = Vec::new();
    while let Some(choice) = pool.next(now, &mut selection) {
        pool.report(now, choice.server, Outcome::Failed);
        seen.push(choice.server);
    }
    assert_eq!(seen, [0, 1, 2]);
}

#[test]
fn a_failing_server_leaves_and_returns_by_one_trial() {
    let (pool, start) = (pool(&[1, 1], 2), Instant::now());
    assert_eq!(fail(&pool, start, 0), None, "the first of two failures");
    assert_eq!(fail(&pool, start, 0), Some(Change::Removed));
    assert_eq!(sequence(&pool, start + 10 * SECOND, 4), "bbbb");
    let later = start + 11 * SECOND;
    let mut trial = None;
    for _ in 0..4 {
        let choice = pool.next(later, &mut Selection::default()).expect("a server is up");
        if choice.server == 0 {
            assert!(choice.trial);
            assert!(trial.replace(choice).is_none(), "only one trial at a time");
        }
    }
    assert!(trial.is_some(), "the trial is made");
    assert_eq!(pool.report(later, 0, Outcome::Failed), None, "it was out already");
    assert_eq!(sequence(&pool, later + 9 * SECOND, 3), "bbb");
    let again = later + 11 * SECOND;
    let choices: Vec<_> =
        (0..2).filter_map(|_| pool.next(again, &mut Selection::default())).collect();
    assert!(choices.iter().any(|choice| choice.server == 0));
    assert_eq!(pool.report(again, 0, Outcome::Ok), Some(Change::Returned));
    let sequence = sequence(&pool, again, 10);
    assert_eq!(sequence.matches('a').count(), 5, "both share again: {sequence}");
}

#[test]
fn a_success_from_before_a_failure_does_not_forgive_it() {
    let (pool, now) = (pool(&[1, 1], 2), Instant::now());
    assert_eq!(fail(&pool, now, 0), None);
    assert_eq!(pool.report(now, 0, Outcome::Ok), None);
    assert_eq!(fail(&pool, now, 0), Some(Change::Removed));
}

#[test]
fn the_last_server_is_kept() {
    let (lone, now) = (pool(&[1], 1), Instant::now());
    fail(&lone, now, 0);
    let later = now + SECOND;
    assert!(lone.status(later)[0].removed);
    assert_eq!(sequence(&lone, later, 3), "aaa", "a lone server is always used");
    assert!(!lone.status(later)[0].removed, "and returns by its first success");
    let pair = pool(&[1, 1], 1);
    fail(&pair, now, 0);
    fail(&pair, now, 1);
    let both = sequence(&pair, now, 6);
    assert!(both.contains('a') && both.contains('b'), "all have failed, all are used: {both}");
}

#[test]
fn active_checks_and_the_operator_decide_over_all() {
    let (pool, now) = (pool(&[1, 1, 1], 1), Instant::now());
    pool.set_up(0, false);
    assert_eq!(sequence(&pool, now, 4), "bcbc");
    pool.set_admin(1, Admin::Drain);
    assert_eq!(sequence(&pool, now, 2), "cc");
    let drained = pool.next(now, &mut Selection::sticky(Some(1))).map(|choice| choice.server);
    assert_eq!(drained, Some(1), "a drained server keeps its sessions");
    pool.set_admin(1, Admin::Down);
    assert_eq!(pool.next(now, &mut Selection::sticky(Some(1))).map(|c| c.server), Some(2));
    pool.set_up(2, false);
    assert_eq!(pool.next(now, &mut Selection::default()), None, "nobody is up");
    pool.set_up(0, true);
    assert_eq!(sequence(&pool, now, 2), "aa");
}

#[test]
fn a_server_that_is_proved_alive_is_forgiven() {
    let (pool, now) = (pool(&[1, 1], 1), Instant::now());
    fail(&pool, now, 0);
    assert_eq!(sequence(&pool, now, 2), "bb");
    pool.set_up(0, false);
    pool.set_up(0, true);
    assert!(sequence(&pool, now, 4).contains('a'));
}

#[test]
fn sessions_go_to_their_own_server_while_it_is_up() {
    let (pool, now) = (pool(&[1, 1, 1], 1), Instant::now());
    let preferred = pool.routed(now, [&b"gone"[..], b"tomcat2", b"tomcat1"]);
    assert_eq!(preferred, Some(2));
    let mut selection = Selection::sticky(preferred);
    assert_eq!(pool.next(now, &mut selection).map(|choice| choice.server), Some(2));
    pool.report(now, 2, Outcome::Failed);
    assert_eq!(pool.next(now, &mut selection).map(|choice| choice.server), Some(0));
    assert_eq!(pool.routed(now, [&b"tomcat2"[..], b"tomcat1"]), Some(1), "2 is out");
    assert_eq!(sequence(&pool, now, 2), "ba", "stickiness does not move the others' turn");
}

#[test]
fn in_flight_counts_connecting_requests_too() {
    let (pool, now) = (pool(&[1], 1), Instant::now());
    let choice = pool.next(now, &mut Selection::default()).expect("up");
    assert_eq!(pool.status(now)[0].in_flight, 1);
    pool.report(now, choice.server, Outcome::Neutral);
    let status = &pool.status(now)[0];
    assert_eq!((status.in_flight, status.chosen, status.failed), (0, 1, 0));
}

#[test]
fn routes_come_from_cookies_and_then_from_the_path() {
    for (cookie, path, expected) in [
        ("JSESSIONID=A1B2-n1.tomcat2", "/", &["tomcat2"][..]),
        ("a=b; JSESSIONID=A1.x.y ;c", "/", &["y"]),
        ("JSESSIONID=\"A.q\"", "/", &["q"]),
        ("JSESSIONID=A; JSESSIONID=B.b; JSESSIONID=C.c", "/", &["b", "c"]),
        ("jsessionid=A.a; XJSESSIONID=B.b; JSESSIONID=C.", "/", &[]),
        ("", "/app;jsessionid=A-n1.t1?x=;jsessionid=B.t2", &["t1"]),
        ("", "/app;v=1;JSessionID=A.t1;w/next", &["t1"]),
        ("", "/jsessionid=A.t1", &[]),
        ("JSESSIONID=A.c", "/a;jsessionid=A.p", &["c", "p"]),
    ] {
        let found: Vec<_> = routes([cookie.as_bytes()], path.as_bytes()).collect();
        let expected: Vec<_> = expected.iter().map(|route| route.as_bytes()).collect();
        assert_eq!(found, expected, "{cookie:?} {path:?}");
    }
}

#[test]
fn the_first_route_in_file_order_is_taken() {
    let route = |host: Option<&str>, path: &str, upstream| config::Route {
        host: host.map(str::to_owned),
        path: path.to_owned(),
        upstream,
    };
    let routes = Routes::new(&[
        route(Some("a.example"), "/admin", 1),
        route(Some("a.example"), "/", 2),
        route(None, "/static/", 3),
    ]);
    for (host, path, expected) in [
        (Some("a.example"), "/admin/x", Ok(1)),
        (Some("A.Example.:8080"), "/%61dmin?q", Ok(1)),
        (Some("a.example"), "/x/../admin", Ok(1)),
        (Some("a.example"), "/", Ok(2)),
        (Some("b"), "/static/x", Ok(3)),
        (Some("b"), "/static/../x", Err(Reason::NoRoute)),
        (None, "/static/x", Ok(3)),
        (None, "/", Err(Reason::NoRoute)),
        (Some("a.example"), "/..", Err(Reason::TargetSyntax)),
    ] {
        let found = routes.find(host.map(str::as_bytes), path.as_bytes());
        assert_eq!(found, expected, "{host:?} {path}");
    }
}

#[test]
fn the_retry_table() {
    let died = |answer_begun, written, reused| Attempt::Died { answer_begun, written, reused };
    let get = Facts { idempotent: true, replayable: true, repeated: false };
    let post = Facts { idempotent: false, ..get };
    for (attempt, facts, expected) in [
        (Attempt::Connect, get, Retry::Another),
        (Attempt::Connect, post, Retry::Another),
        (Attempt::Connect, Facts { repeated: true, ..post }, Retry::Another),
        (died(false, false, true), post, Retry::Fresh),
        (died(false, false, false), post, Retry::Another),
        (died(false, true, true), post, Retry::No),
        (died(false, true, true), get, Retry::Fresh),
        (died(false, true, false), get, Retry::Another),
        (died(false, true, true), Facts { repeated: true, ..get }, Retry::No),
        (died(false, true, true), Facts { replayable: false, ..get }, Retry::No),
        (died(true, true, true), get, Retry::No),
        (died(true, true, false), post, Retry::No),
        (Attempt::Silent, get, Retry::No),
    ] {
        assert_eq!(verdict(attempt, facts), expected, "{attempt:?} {facts:?}");
    }
}

proptest! {
    #[test]
    fn any_weights_are_met_in_every_round(weights in prop::collection::vec(1u16..20, 1..8)) {
        let (pool, now) = (pool(&weights, 1), Instant::now());
        let total: usize = weights.iter().map(|&weight| usize::from(weight)).sum();
        for _ in 0..3 {
            let round = sequence(&pool, now, total);
            for (at, &weight) in weights.iter().enumerate() {
                let letter = char::from(b'a' + at as u8);
                prop_assert_eq!(round.matches(letter).count(), usize::from(weight));
            }
        }
    }

    #[test]
    fn whatever_fails_a_server_is_offered_while_one_may_be(
        events in prop::collection::vec((0u16..4, 0u32..15, any::<bool>()), 0..60),
    ) {
        let pool = pool(&[1, 2, 3, 4], 2);
        let mut now = Instant::now();
        for (server, seconds, ok) in events {
            now += SECOND * seconds;
            let choice = pool.next(now, &mut Selection::sticky(Some(server)));
            let choice = choice.expect("no server is down for good");
            let outcome = if ok { Outcome::Ok } else { Outcome::Failed };
            pool.report(now, choice.server, outcome);
        }
        prop_assert!(pool.status(now).iter().all(|server| server.in_flight == 0));
    }
}
