//! What several of the engine's tests need.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use socket2::{Domain, Socket, Type};

use super::start::{Engine, Start};
use super::worker::{Events, Shared};
use crate::config::{Config, Io};
use crate::control::message::{self, Secret, Snapshot, ToGuardian, VERSION};
use crate::control::role::State;
use crate::control::shared::SharedPage;

/// A configuration without listeners.
pub(crate) fn snapshot(workers: u16) -> Snapshot {
    let config = Config::single(&["127.0.0.1:1".parse().unwrap()]);
    Snapshot {
        version: VERSION,
        node: config.node.name,
        workers,
        io: Io::Auto,
        generation: 0,
        cache: config.cache,
        hash_key: Secret([7; 16]),
        http: config.http,
        upstreams: config.upstreams,
        listeners: Vec::new(),
        link: None,
        log: config.log,
        identity: None,
    }
}

/// A patient client with the few words that tests need.
pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    pub(crate) fn say(&mut self, text: &[u8]) {
        self.0.write_all(text).unwrap();
    }

    /// Reads as many bytes as are expected, and compares.
    pub(crate) fn hear(&mut self, expected: &[u8]) {
        let mut got = vec![0; expected.len()];
        let mut count = 0;
        while count < got.len() {
            match self.0.read(&mut got[count..]) {
                Ok(0) => panic!("closed after {count} of {} bytes", expected.len()),
                Ok(more) => count += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => panic!("{error} after {count} of {} bytes", expected.len()),
            }
        }
        if let Some(at) = (0..count).find(|at| got[*at] != expected[*at]) {
            let show = |bytes: &[u8]| {
                String::from_utf8_lossy(&bytes[at.saturating_sub(40)..count.min(at + 40)])
                    .into_owned()
            };
            panic!("at {at}: {:?}, expected {:?}", show(&got), show(expected));
        }
    }

    pub(crate) fn ask(&mut self, text: &str, expected: &str) {
        self.say(text.as_bytes());
        self.hear(expected.as_bytes());
    }

    /// The connection is closed, and nothing more was said.
    pub(crate) fn hear_end(&mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("not closed: {error}"),
        }
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }

    /// Nothing comes within this time.
    pub(crate) fn hear_nothing(&mut self, wait: Duration) {
        self.0.set_read_timeout(Some(wait)).unwrap();
        let error = loop {
            match self.0.read(&mut [0]) {
                // The end of another test's ring is a signal to this thread.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result.expect_err("something was said"),
            }
        };
        assert!(matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut));
        self.0.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
}

/// A memfd for a store.
pub(crate) fn store() -> OwnedFd {
    memfd_create("store", MFdFlags::MFD_CLOEXEC).unwrap()
}

/// An engine with a cache on its own page.
pub(crate) struct Rig {
    pub(crate) engine: Option<Engine>,
    pub(crate) page: SharedPage,
    pub(crate) cache: SocketAddr,
    pub(crate) events: mpsc::Receiver<ToGuardian>,
}

impl Rig {
    /// MASTER_SOLO of epoch 2 with a lease without end.
    pub(crate) fn solo(mode: Io, workers: u16) -> Self {
        let rig = Self::start(mode, workers, 0, store(), |_| {});
        rig.reign(State::MasterSolo, 2);
        rig
    }

    pub(crate) fn start(
        mode: Io,
        workers: u16,
        generation: u32,
        store: OwnedFd,
        change: impl FnOnce(&mut Snapshot),
    ) -> Self {
        Self::start_with(mode, workers, generation, store, Vec::new(), change)
    }

    /// With listeners of other services, described by what `change` adds.
    pub(crate) fn start_with(
        mode: Io,
        workers: u16,
        generation: u32,
        store: OwnedFd,
        others: Vec<OwnedFd>,
        change: impl FnOnce(&mut Snapshot),
    ) -> Self {
        let (page, _) = SharedPage::create(workers).unwrap();
        let mut snapshot = snapshot(workers);
        snapshot.io = mode;
        snapshot.generation = generation;
        if let Some(cache) = &mut snapshot.cache {
            cache.memory = 8 << 20;
        }
        let mut listeners = Vec::new();
        let mut cache = "127.0.0.1:0".parse().unwrap();
        for worker in 0..workers {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&SocketAddr::into(cache)).unwrap();
            socket.listen(1024).unwrap();
            cache = socket.local_addr().unwrap().as_socket().unwrap();
            listeners.push(OwnedFd::from(socket));
            let service = message::Service::Cache;
            snapshot.listeners.push(message::Listener { worker, service, address: cache });
        }
        change(&mut snapshot);
        listeners.extend(others);
        let (tell, events) = mpsc::channel();
        let tell = parking_lot::Mutex::new(tell);
        let tell = Events::new(move |event| drop(tell.lock().send(event)));
        let start = Start { snapshot, page, store: Some(store), listeners, access_log: None };
        let engine = Engine::start(start, tell).unwrap();
        Self { engine: Some(engine), page, cache, events }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.engine.as_ref().unwrap().shared()
    }

    /// What the guardian does at a promotion.
    pub(crate) fn reign(&self, state: State, epoch: u16) {
        let shared = self.shared();
        if state.is_master() {
            shared.cache.as_ref().unwrap().cache.promote(epoch).unwrap();
        }
        self.page.set_lease(u64::MAX);
        self.page.set_role(state, epoch);
        shared.wake_all();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop(Duration::from_secs(1));
        }
    }
}
