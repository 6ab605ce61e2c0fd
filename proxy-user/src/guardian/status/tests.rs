//! What the setters say is what the status shows.

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
    let status = handle.read();
    assert_eq!(status.health, Health::Serving);
    assert_eq!(
        (status.role.state, status.role.epoch, status.role.cause),
        ("MASTER_SOLO", 2, "single")
    );
    assert_eq!((status.engine.pid, status.engine.restarts), (Some(77), 0));
    assert_eq!(status.engine.io, Io { backend: "epoll".into(), reason: "EPERM: no".into() });
    assert_eq!(status.sync.state, "single");
    assert!(status.sync.unprotected_seconds < f64::EPSILON, "a single node has nothing to protect");
    handle.engine_ended("signal 9");
    handle.engine_started(78);
    let engine = handle.read().engine;
    assert_eq!((engine.state, engine.pid, engine.restarts), ("starting", Some(78), 1));
    assert_eq!(engine.last_end.as_deref(), Some("signal 9"));
}

#[test]
fn servers() {
    let handle = handle();
    let server = |handle: &StatusHandle| handle.read().backends[0].servers[0].clone();
    assert!(server(&handle).up);
    handle.checked(0, 0, Check::Failed(libc::ECONNREFUSED), false, 2);
    let down = server(&handle);
    assert!(!down.up && down.fails == 2 && down.reason.contains("refused"), "{down:?}");
    handle.checked(0, 0, Check::Passed, true, 0);
    assert_eq!(server(&handle).reason, "");
    handle.passive(BackendEvent { upstream: 0, server: 0, out: true });
    assert!(!server(&handle).up && server(&handle).removed);
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
    let status = handle.read();
    assert_eq!(status.cache.unwrap().misses, 2);
    assert_eq!(status.http.refusals.into_iter().collect::<Vec<_>>(), [("no_route", 1)]);
    assert!(status.sync.oldest_held_ms.unwrap() > 0.0);
}

#[test]
fn events_are_bounded() {
    let handle = handle();
    for number in 0..EVENTS_MAX + 5 {
        handle.event(&format!("event {number} {}", "x".repeat(1000)));
    }
    let events = handle.read().events;
    assert_eq!(events.len(), EVENTS_MAX);
    assert!(events[0].text.starts_with("event 24 ") && events[0].text.len() <= 300);
}
