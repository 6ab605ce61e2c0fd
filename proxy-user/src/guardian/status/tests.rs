//! What the setters say is what the status shows.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::handle::EVENTS_MAX;
use super::*;
use crate::config::Config;
use crate::control::counters::Counter;
use crate::control::message::{BackendEvent, Hello};
use crate::control::role::State;
use crate::control::shared::SharedPage;

fn handle() -> StatusHandle {
    let (page, _fd) = SharedPage::create(2).unwrap();
    StatusHandle::new(&Config::single(&["127.0.0.1:8081".parse().unwrap()]), page)
}

fn at(handle: &StatusHandle, pointer: &str) -> Value {
    handle.json().unwrap().pointer(pointer).unwrap_or_else(|| panic!("no {pointer}")).clone()
}

#[test]
fn engine_and_role() {
    let handle = handle();
    assert_eq!(handle.health(), Health::EngineDown);
    handle.engine_started(77);
    handle.engine_serving(&Hello { version: 1, io: "epoll (EPERM: no)".into(), store: None });
    let _seat = handle.page().hold(crate::control::shared::Seat::Engine).unwrap();
    assert_eq!(handle.health(), Health::Boot);
    handle.page().set_role(State::MasterSolo, 2);
    handle.role_changed(State::MasterSolo, "single");
    for (pointer, expected) in [
        ("/health", json!("serving")),
        ("/role", json!("MASTER_SOLO")),
        ("/epoch", json!(2)),
        ("/cause", json!("single")),
        ("/changes", json!(1)),
        ("/engine/pid", json!(77)),
        ("/engine/restarts", json!(0)),
        ("/engine/io", json!({ "backend": "epoll", "reason": "EPERM: no" })),
        ("/sync/state", json!("single")),
        ("/sync/unprotected_seconds", json!(0.0)),
    ] {
        assert_eq!(at(&handle, pointer), expected, "{pointer}");
    }
    handle.engine_ended("signal 9");
    handle.engine_started(78);
    let engine = at(&handle, "/engine");
    assert_eq!(engine["state"], "starting");
    assert_eq!((engine["pid"].as_u64(), engine["restarts"].as_u64()), (Some(78), Some(1)));
    assert_eq!(engine["last_end"], "signal 9");
}

#[test]
fn servers() {
    let handle = handle();
    let server = |handle: &StatusHandle| at(handle, "/backends/0/servers/0");
    assert_eq!(server(&handle)["up"], true);
    handle.checked(0, 0, Check::Failed(libc::ECONNREFUSED), false, 2);
    let down = server(&handle);
    assert!(down["up"] == false && down["fails"] == 2, "{down}");
    assert!(down["reason"].as_str().unwrap().contains("refused"), "{down}");
    handle.checked(0, 0, Check::Passed, true, 0);
    assert_eq!(server(&handle)["reason"], "");
    handle.passive(BackendEvent { upstream: 0, server: 0, out: true });
    let out = server(&handle);
    assert!(out["up"] == false && out["removed"] == true, "{out}");
    assert_eq!(out["reason"], "requests failed");
    handle.engine_ended("signal 9");
    assert_eq!(server(&handle)["up"], true, "what an engine thought ends with it");
    handle.passive(BackendEvent { upstream: 0, server: 9, out: true });
}

#[test]
fn numbers_of_the_page() {
    let handle = handle();
    let worker = handle.page().worker(1).unwrap();
    worker.add(Counter::CacheGets, 5);
    worker.add(Counter::CacheHits, 3);
    worker.refuse(crate::http::Reason::NoRoute);
    worker.set_held_since(Some(1));
    assert_eq!(at(&handle, "/cache/misses"), 2);
    assert_eq!(at(&handle, "/http/refusals"), json!({ "no_route": 1 }), "only those that occurred");
    assert!(at(&handle, "/sync/oldest_held_ms").as_f64().unwrap() > 0.0);
}

#[test]
fn events_are_bounded() {
    let handle = handle();
    for number in 0..EVENTS_MAX + 5 {
        handle.event(&format!("event {number} {}", "x".repeat(1000)));
    }
    let events = at(&handle, "/events");
    assert_eq!(events.as_array().unwrap().len(), EVENTS_MAX);
    let newest = events[0]["text"].as_str().unwrap();
    assert!(newest.starts_with("event 24 ") && newest.len() <= 300);
}

#[test]
fn an_alarm_is_there_while_it_lasts() {
    let handle = handle();
    assert!(handle.alarm("peer_key", true));
    assert!(!handle.alarm("peer_key", true), "no news");
    assert!(handle.alarm("disk_hung", true));
    assert_eq!(at(&handle, "/alarms/0/cause"), "peer_key");
    assert!(at(&handle, "/alarms/0/since_unix_ms").as_u64().unwrap() > 0);
    assert!(handle.alarm("peer_key", false));
    assert!(!handle.alarm("peer_key", false));
    assert_eq!(at(&handle, "/alarms/0/cause"), "disk_hung");
    assert_eq!(at(&handle, "/alarms").as_array().unwrap().len(), 1);
}

/// Setters from several threads beside a reader: none is lost, and no moment is torn.
#[test]
fn writers_and_readers_together() {
    let (handle, done) = (handle(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let json = handle.json().unwrap();
                let server = &json["backends"][0]["servers"][0];
                let removed = server["removed"] == true;
                assert_eq!(server["up"] == true, !removed && server["fails"] == 0, "{server}");
            }
        });
        let checks = scope.spawn(|| {
            for fails in 0..2000 {
                let fails = fails % 2;
                handle.checked(0, 0, Check::TimedOut, fails == 0, fails);
            }
        });
        for number in 0..2000 {
            handle.passive(BackendEvent { upstream: 0, server: 0, out: number % 2 == 0 });
        }
        checks.join().unwrap();
        done.store(true, Ordering::Relaxed);
    });
    let server = at(&handle, "/backends/0/servers/0");
    assert!(server["removed"] == false && server["fails"] == 1, "{server}");
}
