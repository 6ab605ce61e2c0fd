//! Whole engines in this process: clients, roles, restarts, orders.

use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::driver::tests::modes;
use super::testing::{Client, Rig, snapshot, store};
use super::worker::Mail;
use super::{Assignment, EngineError};
use crate::control::channel::{self, GuardianEnd};
use crate::control::counters::Counter;
use crate::control::message::{self, SyncCommand, SyncEvent, Target, ToEngine, ToGuardian};
use crate::control::role::State;
use crate::control::shared::{Liveness, SharedPage};
use crate::node::Epoch;

#[test]
fn a_memcached_client_is_served_by_every_worker_from_one_store() {
    for mode in modes() {
        let rig = Rig::solo(mode, 2);
        let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(rig.cache)).collect();
        clients[0].ask("set k 5 0 3\r\nabc\r\n", "STORED\r\n");
        for client in &mut clients {
            client.ask("get k\r\n", "VALUE k 5 3\r\nabc\r\nEND\r\n");
        }
        clients[3].ask("delete k\r\n", "DELETED\r\n");
        clients[4].ask("get k\r\n", "END\r\n");
        clients[5].ask("version\r\n", "VERSION ");
    }
}

#[test]
fn a_pipeline_of_any_length_is_answered_in_order() {
    for mode in modes() {
        let rig = Rig::solo(mode, 1);
        let client = Client::connect(rig.cache);
        let value = "v".repeat(1000);
        let (mut say, mut hear) = (String::new(), String::new());
        for number in 0..5000 {
            say += &format!("set k{number} 0 0 1000\r\n{value}\r\nget k{number}\r\n");
            hear += &format!("STORED\r\nVALUE k{number} 0 1000\r\n{value}\r\nEND\r\n");
        }
        // The whole question is said before any answer is read: someone must hold back.
        let mut writer = Client(client.0.try_clone().unwrap());
        let writing = std::thread::spawn(move || writer.say(say.as_bytes()));
        let mut client = client;
        client.hear(hear.as_bytes());
        writing.join().unwrap();
    }
}

#[test]
fn a_client_that_ends_after_its_question_gets_the_answer() {
    for mode in modes() {
        let rig = Rig::solo(mode, 1);
        let mut client = Client::connect(rig.cache);
        client.say(b"set k 0 0 1\r\nx\r\nget k\r\n");
        client.0.shutdown(Shutdown::Write).unwrap();
        client.hear(b"STORED\r\nVALUE k 0 1\r\nx\r\nEND\r\n");
        client.hear_end();
    }
}

#[test]
fn answers_wait_for_the_lease_and_leave_with_it() {
    for mode in modes() {
        let rig = Rig::solo(mode, 1);
        let mut client = Client::connect(rig.cache);
        client.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
        rig.page.set_lease(0);
        client.say(b"get k\r\n");
        client.hear_nothing(Duration::from_millis(30));
        rig.page.set_lease(u64::MAX);
        client.hear(b"VALUE k 0 1\r\nx\r\nEND\r\n");
    }
}

#[test]
fn held_answers_never_leave_after_the_role_and_lateness_is_reported() {
    for mode in modes() {
        let rig = Rig::solo(mode, 1);
        let mut idle = Client::connect(rig.cache);
        idle.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
        let target = Target::Here(Epoch::new(2).unwrap());
        rig.shared().streams.order(SyncCommand::Target(target), rig.shared());
        rig.reign(State::Master, 2); // no peer acks anything
        let mut client = Client::connect(rig.cache);
        client.say(b"set k 0 0 1\r\ny\r\n");
        let event = rig.events.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(
            matches!(event, ToGuardian::Sync(SyncEvent::AckLate { epoch }) if epoch.get() == 2)
        );
        client.hear_nothing(Duration::from_millis(10));
        rig.reign(State::Fenced, 2);
        client.hear_end();
        assert!(rig.events.try_recv().is_err(), "reported once");
    }
}

#[test]
fn held_answers_leave_when_the_peer_is_given_up() {
    for mode in modes() {
        let rig = Rig::solo(mode, 1);
        rig.reign(State::Master, 2);
        let mut client = Client::connect(rig.cache);
        client.say(b"set k 0 0 1\r\ny\r\n");
        client.hear_nothing(Duration::from_millis(10));
        rig.reign(State::MasterSolo, 2);
        client.hear(b"STORED\r\n");
    }
}

#[test]
fn the_next_engine_on_the_same_memory_listens_at_once() {
    for mode in modes() {
        let memory = store();
        let copy = memory.as_fd().try_clone_to_owned().unwrap();
        drop(Rig::start(mode, 1, 0, memory, |_| {}));
        let next = Rig::start(mode, 1, 1, copy, |_| {});
        let hello = next.engine.as_ref().unwrap().hello().clone();
        assert!(hello.io.starts_with("uring") || hello.io.starts_with("epoll"), "{hello:?}");
        assert!(hello.store.is_some());
        next.reign(State::MasterSolo, 4);
        let mut client = Client::connect(next.cache);
        client.ask("get nothing\r\n", "END\r\n");
        next.shared().post(|| Mail::SweepUntil(None));
        client.ask("get nothing\r\n", "END\r\n");
    }
}

#[test]
fn stopping_lets_answers_out_and_ends_in_time() {
    for mode in modes() {
        let mut rig = Rig::solo(mode, 2);
        let mut client = Client::connect(rig.cache);
        client.ask("get k\r\n", "END\r\n");
        let start = Instant::now();
        rig.engine.take().unwrap().stop(Duration::from_secs(5));
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        client.hear_end();
    }
}

/// An engine of the guardian at the other end, in this process.
fn run(control: OwnedFd) -> Result<(), EngineError> {
    Assignment::receive(control)?.run()
}

/// The other end of a `run` on its own thread.
fn guarded(workers: u16) -> (GuardianEnd, SharedPage, SocketAddr, JoinHandle<bool>) {
    let (guardian, theirs) = channel::pair().unwrap();
    let (page, page_fd) = SharedPage::create(workers).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut snapshot = snapshot(workers);
    snapshot.cache.as_mut().unwrap().memory = 8 << 20;
    let service = message::Service::Cache;
    snapshot.listeners.push(message::Listener { worker: 0, service, address });
    let store = store();
    let fds = [page_fd.as_fd(), store.as_fd(), listener.as_fd()];
    guardian.send_with(&ToEngine::Config(Box::new(snapshot)), &fds).unwrap();
    let thread = std::thread::spawn(move || run(theirs).is_ok());
    (guardian, page, address, thread)
}

fn answer(guardian: &GuardianEnd) -> ToGuardian {
    guardian.recv(Duration::from_secs(10)).unwrap().0
}

#[test]
fn a_guardian_configures_promotes_and_stops_an_engine() {
    let (guardian, page, address, thread) = guarded(2);
    let ToGuardian::Hello(hello) = answer(&guardian) else { panic!("no hello") };
    assert!(hello.store.is_some_and(|store| store.fresh && store.items == 0));
    for seat in page.engine_seats() {
        assert!(matches!(page.liveness(seat), Liveness::Alive(_)), "{seat:?}");
    }
    guardian.send(&ToEngine::Prepare { epoch: 2 }).unwrap();
    assert_eq!(answer(&guardian), ToGuardian::Prepared { epoch: 2 });
    page.set_lease(u64::MAX);
    let role = page.set_role(State::MasterSolo, 2);
    guardian.send(&ToEngine::Role(role)).unwrap();
    guardian.send(&ToEngine::PredecessorReaped).unwrap();
    let mut client = Client::connect(address);
    client.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
    client.ask("get k\r\n", "VALUE k 0 1\r\nx\r\nEND\r\n");
    guardian.send(&ToEngine::Rest).unwrap();
    assert_eq!(answer(&guardian), ToGuardian::Rested);
    client.hear_end();
    guardian.send(&ToEngine::Stop { grace_ms: 1000, handed_over: false }).unwrap();
    assert_eq!(answer(&guardian), ToGuardian::Stopped);
    assert!(thread.join().unwrap());
    client.hear_end();
    assert!(page.engine_is_gone());
}

#[test]
fn a_rest_answers_what_was_asked_and_closes_what_is_idle() {
    for mode in modes() {
        let rig = Rig::solo(mode, 1);
        let (mut idle, mut busy) = (Client::connect(rig.cache), Client::connect(rig.cache));
        idle.ask("set k 0 0 1\r\nx\r\n", "STORED\r\n");
        busy.ask("get k\r\n", "VALUE k 0 1\r\nx\r\nEND\r\n");
        rig.page.set_lease(0);
        busy.say(b"get k\r\nset k 0 0 1\r\n");
        let deadline = Instant::now() + Duration::from_secs(5);
        while rig.page.sum(Counter::AnswersHeld) == 0 {
            assert!(Instant::now() < deadline, "the question has not come");
            std::thread::yield_now();
        }
        rig.shared().post(|| Mail::Rest);
        idle.hear_end();
        let mut early = Client::connect(rig.cache);
        early.say(b"get k\r\n");
        rig.page.set_lease(u64::MAX);
        busy.hear(b"VALUE k 0 1\r\nx\r\nEND\r\n");
        assert!(rig.events.try_recv().is_err(), "half a command is not answered");
        busy.ask("y\r\n", "STORED\r\n");
        busy.hear_end();
        let event = rig.events.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!(event, ToGuardian::Rested);
        early.hear_nothing(Duration::from_millis(30));
        rig.reign(State::Boot, 2);
        early.hear_end();
    }
}

#[test]
fn an_engine_without_its_guardian_ends_and_closes_everything() {
    let (guardian, page, address, thread) = guarded(1);
    assert!(matches!(answer(&guardian), ToGuardian::Hello(_)));
    let mut client = Client::connect(address);
    drop(guardian);
    client.hear_end();
    assert!(!thread.join().unwrap(), "it is an error");
    let deadline = Instant::now() + Duration::from_secs(5);
    while !page.engine_is_gone() {
        assert!(Instant::now() < deadline, "workers go on");
        std::thread::yield_now();
    }
}

#[test]
fn descriptors_that_do_not_fit_are_refused_with_a_reason() {
    let (guardian, theirs) = channel::pair().unwrap();
    let (_page, page_fd) = SharedPage::create(1).unwrap();
    let message = ToEngine::Config(Box::new(snapshot(1)));
    guardian.send_with(&message, &[page_fd.as_fd()]).unwrap();
    let thread = std::thread::spawn(move || run(theirs).is_ok());
    assert!(matches!(answer(&guardian), ToGuardian::Failed { .. }));
    assert!(!thread.join().unwrap());
}
