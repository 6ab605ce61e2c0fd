//! An engine of this process in front of one scripted backend that keeps every byte it hears.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use proxy_user::config::{Config, Io, Route};
use proxy_user::control::message::{self, Secret, Snapshot};
use proxy_user::control::shared::SharedPage;
use proxy_user::engine::driver::{Driver, DriverOptions};
use proxy_user::engine::start::{Engine, Start};
use proxy_user::engine::worker::Events;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// Drivers to test under; io_uring where it is to be had, and a word where it is not.
pub(crate) fn modes() -> Vec<Io> {
    match Driver::new(Io::Uring, &DriverOptions::default()) {
        Ok(_) => vec![Io::Uring, Io::Epoll],
        Err(reason) => {
            eprintln!("SKIPPED under io_uring: {reason}");
            vec![Io::Epoll]
        }
    }
}

/// The engine and its backend.
pub(crate) struct Rig {
    engine: Option<Engine>,
    address: SocketAddr,
    /// Connections that the balancer has made, in order.
    connections: Receiver<TcpStream>,
    stop: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl Rig {
    /// One worker; every path but `/none` has a route; bodies to 1000 bytes.
    pub(crate) fn start(io: Io) -> Self {
        let backend = TcpListener::bind("127.0.0.1:0").unwrap();
        let stop = backend.local_addr().unwrap();
        let (made, connections) = channel();
        let acceptor = std::thread::spawn(move || accept(&backend, &made));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut config = Config::single(&[stop]);
        config.http[0].body_size_max = 1000;
        config.http[0].routes = vec![Route { host: None, path: "/r".to_owned(), upstream: 0 }];
        let (page, _page_fd) = SharedPage::create(1).unwrap();
        let service = message::Service::Http(0);
        let snapshot = Snapshot {
            version: message::VERSION,
            node: config.node.name,
            workers: 1,
            io,
            generation: 0,
            cache: None,
            hash_key: Secret([7; 16]),
            http: config.http,
            upstreams: config.upstreams,
            listeners: vec![message::Listener { worker: 0, service, address }],
            link: None,
            log: config.log,
            identity: None,
        };
        let listeners = vec![OwnedFd::from(listener)];
        let start = Start { snapshot, page, store: None, listeners, access_log: None };
        let engine = Engine::start(start, Events::new(drop)).unwrap();
        let acceptor = Some(acceptor);
        Self { engine: Some(engine), address, connections, stop, acceptor }
    }

    /// A client that has sent these bytes.
    pub(crate) fn client(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    }

    /// The port clients connect to.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The balancer's next connection to the backend.
    pub(crate) fn backend(&self) -> TcpStream {
        self.connections.recv_timeout(PATIENCE).expect("the balancer connects to its backend")
    }

    /// No connection to the backend was made. Ask after the client has its answer.
    pub(crate) fn backend_untouched(&self) -> bool {
        matches!(self.connections.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.stop(Duration::ZERO);
        }
        // Lets the acceptor see that nobody listens to it any more.
        let (_gone, nobody) = channel();
        self.connections = nobody;
        drop(TcpStream::connect(self.stop));
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().unwrap();
        }
    }
}

fn accept(listener: &TcpListener, made: &Sender<TcpStream>) {
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        if made.send(stream).is_err() {
            return;
        }
    }
}

/// Reads until these bytes are the last, or the stream ends.
pub(crate) fn hear_until(stream: &mut TcpStream, end: &[u8]) -> String {
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    while !heard.ends_with(end) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => heard.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&heard)),
        }
    }
    String::from_utf8_lossy(&heard).into_owned()
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Cleanly,
    Reset,
}

/// Everything until the stream ends, and how it did.
pub(crate) fn hear_to_the_end(stream: &mut TcpStream) -> (String, Ended) {
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    let ended = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Ended::Cleanly,
            Ok(count) => heard.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break Ended::Reset,
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&heard)),
        }
    };
    (String::from_utf8_lossy(&heard).into_owned(), ended)
}

/// Everything until the stream's own end.
pub(crate) fn hear_all(stream: &mut TcpStream) -> String {
    let (heard, ended) = hear_to_the_end(stream);
    assert_eq!(ended, Ended::Cleanly, "after {heard:?}");
    heard
}

/// Sends and says that this was all.
pub(crate) fn say_and_end(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
}
