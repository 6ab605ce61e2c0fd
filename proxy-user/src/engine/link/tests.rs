//! Two engines in this process, linked over loopback; the tests play both guardians.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::config::{Io, Side};
use crate::control::counters::Counter;
use crate::control::message::{
    Link, Secret, Service, Snapshot, SyncCommand, SyncEvent, Target, ToGuardian,
};
use crate::control::role::State;
use crate::engine::driver::tests::modes;
use crate::engine::testing::{Client, Rig, store};
use crate::node::Epoch;

fn epoch(value: u16) -> Epoch {
    Epoch::new(value).unwrap()
}

fn listener() -> (OwnedFd, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(64).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket.into(), address)
}

/// Two engines; `.0` is to be the master.
struct Pair(Rig, Rig);

impl Pair {
    fn start(mode: Io, workers: (u16, u16), keys: [u8; 2]) -> Self {
        let (ours, our_address) = listener();
        let (theirs, their_address) = listener();
        let rig = |workers, side, key, own: SocketAddr, peer, descriptor| {
            let link =
                Link { side, cluster: "test".into(), key: Secret([key; 32]), peers: vec![peer] };
            Rig::start_with(
                mode,
                workers,
                0,
                store(),
                vec![descriptor],
                |snapshot: &mut Snapshot| {
                    snapshot.link = Some(link);
                    snapshot.listeners.push(crate::control::message::Listener {
                        worker: workers - 1,
                        service: Service::Link,
                        address: own,
                    });
                },
            )
        };
        let first = rig(workers.0, Side::A, keys[0], our_address, their_address, ours);
        let second = rig(workers.1, Side::B, keys[1], their_address, our_address, theirs);
        Self(first, second)
    }

    /// The first is MASTER_SOLO of an epoch, the second follows it.
    fn follow(&self, value: u16) {
        self.0.reign(State::MasterSolo, value);
        self.0.order(SyncCommand::Target(Target::Here(epoch(value))));
        self.1.reign(State::Catchup, value);
        self.1.order(SyncCommand::Target(Target::Peer(epoch(value))));
    }

    /// Until the second holds everything and the first gates.
    fn synced(mode: Io, workers: (u16, u16)) -> Self {
        let pair = Self::start(mode, workers, [1, 1]);
        pair.follow(2);
        pair.sync();
        pair
    }

    fn sync(&self) {
        self.1.until(|event| matches!(event, SyncEvent::Receiving { .. }));
        self.1.until(|event| matches!(event, SyncEvent::Received { .. }));
        self.0.until(|event| matches!(event, SyncEvent::CaughtUp { .. }));
        self.0.reign(State::Master, 2);
        self.0.order(SyncCommand::Gate { gate: 1 });
        self.0.until(|event| *event == SyncEvent::Gated { gate: 1 });
        self.1.reign(State::Synced, 2);
    }

    /// The first has stopped; the second takes over.
    fn take_over(&self, value: u16) {
        self.1.reign(State::MasterSolo, value);
        self.1.order(SyncCommand::Target(Target::Here(epoch(value))));
    }
}

impl Rig {
    fn order(&self, command: SyncCommand) {
        self.shared().streams.order(command, self.shared());
    }

    fn until(&self, wanted: impl Fn(&SyncEvent) -> bool) {
        let (deadline, mut heard) = (Instant::now() + Duration::from_secs(5), Vec::new());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(ToGuardian::Sync(event)) if wanted(&event) => return,
                Ok(event) => heard.push(event),
                Err(_) => panic!("heard only {heard:?}"),
            }
        }
    }
}

fn set(key: &str, value: &str) -> String {
    format!("set {key} 0 0 {}\r\n{value}\r\n", value.len())
}

fn found(key: &str, value: &str) -> String {
    format!("VALUE {key} 0 {}\r\n{value}\r\nEND\r\n", value.len())
}

#[test]
fn what_was_answered_is_with_the_replica() {
    for mode in modes() {
        for workers in [(1, 1), (2, 1), (1, 2), (2, 2)] {
            let pair = Pair::start(mode, workers, [1, 1]);
            pair.0.reign(State::MasterSolo, 2);
            let mut client = Client::connect(pair.0.cache);
            for number in 0..50 {
                client.ask(&set(&format!("early{number}"), "before the link"), "STORED\r\n");
            }
            pair.follow(2);
            pair.sync();
            for number in 0..50 {
                client.ask(&set(&format!("late{number}"), "gated"), "STORED\r\n");
            }
            client.ask("delete early7\r\n", "DELETED\r\n");
            pair.take_over(3);
            let mut other = Client::connect(pair.1.cache);
            for number in (0..50).filter(|number| *number != 7) {
                let key = format!("early{number}");
                other.ask(&format!("get {key}\r\n"), &found(&key, "before the link"));
                let key = format!("late{number}");
                other.ask(&format!("get {key}\r\n"), &found(&key, "gated"));
            }
            other.ask("get early7\r\n", "END\r\n");
        }
    }
}

#[test]
fn a_replica_forwards_and_its_clients_survive_the_takeover() {
    for mode in modes() {
        for workers in [(1, 1), (2, 2)] {
            let pair = Pair::synced(mode, workers);
            let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(pair.1.cache)).collect();
            for (number, client) in clients.iter_mut().enumerate() {
                let key = format!("k{number}");
                client.ask(&set(&key, "by way of the replica"), "STORED\r\n");
                client.ask(&format!("get {key}\r\n"), &found(&key, "by way of the replica"));
            }
            let mut there = Client::connect(pair.0.cache);
            there.ask("get k3\r\n", &found("k3", "by way of the replica"));
            pair.take_over(3);
            for (number, client) in clients.iter_mut().enumerate() {
                let key = format!("k{number}");
                client.ask(&format!("get {key}\r\n"), &found(&key, "by way of the replica"));
                client.ask(&set(&key, "here"), "STORED\r\n");
            }
        }
    }
}

#[test]
fn a_long_pipeline_is_forwarded_in_order() {
    for mode in modes() {
        let pair = Pair::synced(mode, (2, 2));
        let client = Client::connect(pair.1.cache);
        let value = "v".repeat(3000);
        let (mut say, mut hear) = (String::new(), String::new());
        for number in 0..500 {
            let key = format!("k{number}");
            say += &set(&key, &value);
            say += &format!("get {key}\r\n");
            hear += "STORED\r\n";
            hear += &found(&key, &value);
        }
        let mut writer = Client(client.0.try_clone().unwrap());
        let writing = std::thread::spawn(move || writer.say(say.as_bytes()));
        let mut client = client;
        client.hear(hear.as_bytes());
        writing.join().unwrap();
    }
}

#[test]
fn a_client_with_a_command_under_way_is_closed_when_the_link_ends() {
    for mode in modes() {
        let pair = Pair::synced(mode, (1, 1));
        let mut half = Client::connect(pair.1.cache);
        half.ask(&set("k", "v"), "STORED\r\n");
        half.say(b"set k 0 0 10\r\n");
        let mut waiting = Client::connect(pair.1.cache);
        waiting.ask("get k\r\n", &found("k", "v"));
        half.hear_nothing(Duration::from_millis(20));
        pair.take_over(3);
        half.hear_end();
        waiting.ask("get k\r\n", &found("k", "v"));
    }
}

#[test]
fn answers_wait_for_a_replica_that_does_not_answer() {
    for mode in modes() {
        let Pair(first, second) = Pair::synced(mode, (1, 1));
        let mut client = Client::connect(first.cache);
        client.ask(&set("k", "1"), "STORED\r\n");
        drop(second);
        first.until(|event| *event == SyncEvent::LinksDown);
        client.say(set("k", "2").as_bytes());
        first.until(|event| matches!(event, SyncEvent::AckLate { .. }));
        client.hear_nothing(Duration::from_millis(20));
        first.reign(State::MasterSolo, 2);
        client.hear(b"STORED\r\n");
    }
}

#[test]
fn a_wrong_key_is_refused_and_counted() {
    for mode in modes() {
        let pair = Pair::start(mode, (1, 1), [1, 2]);
        pair.follow(2);
        let deadline = Instant::now() + Duration::from_secs(5);
        while pair.1.page.sum(Counter::LinkRefused) < 2 {
            assert!(Instant::now() < deadline, "not counted, or not tried again");
            std::thread::yield_now();
        }
        assert!(pair.1.events.try_recv().is_err());
    }
}

#[test]
fn a_replica_without_a_master_closes_its_clients_in_time() {
    for mode in modes() {
        let pair = Pair::start(mode, (1, 1), [1, 1]);
        pair.1.reign(State::Join, 2);
        let mut client = Client::connect(pair.1.cache);
        client.say(b"get k\r\n");
        client.hear_end();
        // With one that comes within the moment that commands are kept, nothing is noticed.
        let mut patient = Client::connect(pair.1.cache);
        patient.say(b"get k\r\n");
        pair.follow(2);
        patient.hear(b"END\r\n");
    }
}

#[test]
fn a_new_epoch_in_place_is_a_new_stream() {
    for mode in modes() {
        let pair = Pair::synced(mode, (2, 2));
        let mut client = Client::connect(pair.0.cache);
        client.ask(&set("k", "1"), "STORED\r\n");
        pair.follow(4);
        pair.1.until(|event| *event == SyncEvent::Received { epoch: epoch(4) });
        pair.0.until(|event| *event == SyncEvent::CaughtUp { epoch: epoch(4) });
        client.ask("get k\r\n", &found("k", "1"));
        let mut other = Client::connect(pair.1.cache);
        other.ask("get k\r\n", &found("k", "1"));
    }
}
