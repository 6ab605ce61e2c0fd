//! The balancer on real sockets: two workers, two small backends, under both drivers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;
use crate::config;
use crate::engine::driver::{Driver, DriverOptions, IoMode};
use crate::engine::worker::{Events, Mail, Stop, Worker};
use crate::http::Reason;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a backend has seen.
#[derive(Debug, Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    stopped: AtomicBool,
}

/// A backend that answers with its letter, a thread per connection.
struct Backend {
    address: SocketAddr,
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    fn start(letter: char) -> Self {
        Self::listening(letter, TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn listening(letter: char, listener: TcpListener) -> Self {
        let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Seen::default()));
        let theirs = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if theirs.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, seen) = (stream.unwrap(), Arc::clone(&theirs));
                seen.connections.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || serve(letter, &stream, &seen));
            }
        });
        Self { address, seen, thread: Some(thread) }
    }

    fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }

    /// Accepts no more; what is open ends after its next request.
    fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.seen.stopped.store(true, Ordering::SeqCst);
            drop(TcpStream::connect(self.address));
            thread.join().unwrap();
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One connection of a backend. Any error ends it: the tests look at the balancer's side.
fn serve(letter: char, stream: &TcpStream, seen: &Seen) {
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_message(&mut reader) {
        seen.requests.fetch_add(1, Ordering::SeqCst);
        let path = request.head.split(' ').nth(1).unwrap();
        let mut out = stream;
        let sent = match path {
            "/echo" => answer(out, &request.body),
            "/chunked" => {
                let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                out.write_all(head).and_then(|()| {
                    for piece in request.body.chunks(10_000) {
                        write!(out, "{:x}\r\n", piece.len())?;
                        out.write_all(piece)?;
                        out.write_all(b"\r\n")?;
                    }
                    out.write_all(b"0\r\n\r\n")
                })
            }
            "/die" => out
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
                .and_then(|()| stream.shutdown(std::net::Shutdown::Both)),
            "/silent" => stream.shutdown(std::net::Shutdown::Both),
            _ => answer(out, letter.to_string().as_bytes()),
        };
        if sent.is_err() || seen.stopped.load(Ordering::SeqCst) {
            return;
        }
    }
}

fn answer(mut out: &TcpStream, body: &[u8]) -> io::Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    out.write_all(&[head.as_bytes(), body].concat())
}

/// A head and its body, decoded.
struct Message {
    head: String,
    body: Vec<u8>,
}

fn read_message(reader: &mut impl BufRead) -> Option<Message> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
        if &head[before..] == "\r\n" {
            break;
        }
    }
    let lower = head.to_ascii_lowercase();
    let mut body = Vec::new();
    if lower.contains("transfer-encoding: chunked\r\n") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let start = body.len();
            body.resize(start + size + 2, 0);
            reader.read_exact(&mut body[start..]).ok()?;
            body.truncate(start + size);
            if size == 0 {
                break;
            }
        }
    } else if let Some((_, rest)) = lower.split_once("content-length: ") {
        body.resize(rest.split("\r\n").next()?.parse().ok()?, 0);
        reader.read_exact(&mut body).ok()?;
    }
    Some(Message { head, body })
}

/// Two workers with a listener each, in front of the backends.
struct Balancer {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    threads: Vec<JoinHandle<()>>,
}

impl Balancer {
    fn start(mode: IoMode, backends: &[SocketAddr]) -> Self {
        Self::with(mode, backends, |_upstream| {}, &config::AccessLog::Off)
    }

    fn with(
        mode: IoMode,
        backends: &[SocketAddr],
        change: impl FnOnce(&mut config::Upstream),
        log: &config::AccessLog,
    ) -> Self {
        let mut snapshot = crate::engine::testing::snapshot(2);
        let template = snapshot.upstreams[0].servers[0].clone();
        let server = |&address| config::Server { address, ..template.clone() };
        snapshot.upstreams[0].servers = backends.iter().map(server).collect();
        change(&mut snapshot.upstreams[0]);
        snapshot.log.access = log.clone();
        let (page, _) = crate::control::shared::SharedPage::create(2).unwrap();
        let events = Events::new(|_event| {});
        let shared = Arc::new(Shared::new(snapshot, page, 1000, None, events));
        shared.http.start_log(AccessSink::open(log).unwrap()).unwrap();
        let (mut addresses, mut threads) = (Vec::new(), Vec::new());
        for index in 0..2 {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            addresses.push(listener.local_addr().unwrap());
            let shared = Arc::clone(&shared);
            threads.push(std::thread::spawn(move || {
                let (driver, _) = Driver::new(mode, &DriverOptions::default()).unwrap();
                let mut worker = Worker::new(index, shared, driver).unwrap();
                let service = Service::Http { index: 0, port: 80 };
                worker.core().listen(listener.into(), service).unwrap();
                worker.run().unwrap();
            }));
        }
        Self { shared, addresses, threads }
    }

    fn client(&self, worker: usize) -> BufReader<TcpStream> {
        let stream = TcpStream::connect(self.addresses[worker]).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        BufReader::new(stream)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.shared.post(|| Mail::Stop(Stop::within(Duration::from_secs(2), false)));
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a worker panicked");
        }
    }
}

fn both(test: impl Fn(IoMode)) {
    for mode in crate::engine::driver::tests::modes() {
        eprintln!("under {mode:?}");
        test(mode);
    }
}

fn get(client: &mut BufReader<TcpStream>, path: &str) -> Message {
    write!(client.get_mut(), "GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    read_message(client).unwrap_or_else(|| panic!("no answer to {path}"))
}

fn text(message: Message) -> String {
    String::from_utf8(message.body).unwrap()
}

fn noise(size: usize) -> Vec<u8> {
    (0..size as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn the_turn_is_exact_over_all_workers() {
    both(|mode| {
        let backends = ['a', 'b', 'c'].map(Backend::start);
        let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
        let weigh = |upstream: &mut config::Upstream| upstream.servers[0].weight = 5;
        let balancer = Balancer::with(mode, &addresses, weigh, &config::AccessLog::Off);
        let mut clients = [0, 1, 0, 1].map(|worker| balancer.client(worker));
        let turn: String = (0..28).map(|at| text(get(&mut clients[at % 4], "/"))).collect();
        assert_eq!(turn, "aabacaa".repeat(4), "one state for all workers");
    });
}

#[test]
fn connections_are_reused_on_both_sides() {
    both(|mode| {
        let backends = ['a', 'b'].map(Backend::start);
        let balancer = Balancer::start(mode, &[backends[0].address, backends[1].address]);
        let mut client = balancer.client(0);
        for _ in 0..200 {
            get(&mut client, "/");
        }
        for backend in &backends {
            assert_eq!(backend.requests(), 100);
            assert_eq!(backend.seen.connections.load(Ordering::SeqCst), 1, "one connection");
        }
    });
}

#[test]
fn large_bodies_go_both_ways() {
    both(|mode| {
        let backend = Backend::start('a');
        let balancer = Balancer::start(mode, &[backend.address]);
        let body = noise(16 << 20);
        for (path, chunked) in
            [("/echo", false), ("/echo", true), ("/chunked", false), ("/chunked", true)]
        {
            let mut client = balancer.client(0);
            let mut writer = client.get_ref().try_clone().unwrap();
            let framing = if chunked {
                "Transfer-Encoding: chunked".to_owned()
            } else {
                format!("Content-Length: {}", body.len())
            };
            let sent = body.clone();
            let writing = std::thread::spawn(move || {
                write!(writer, "POST {path} HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n").unwrap();
                if !chunked {
                    writer.write_all(&sent).unwrap();
                    return;
                }
                for piece in sent.chunks(70_001) {
                    write!(writer, "{:x};e=1\r\n", piece.len()).unwrap();
                    writer.write_all(piece).unwrap();
                    writer.write_all(b"\r\n").unwrap();
                }
                writer.write_all(b"0\r\nTrailer: x\r\n\r\n").unwrap();
            });
            let answer = read_message(&mut client).unwrap();
            writing.join().unwrap();
            assert!(answer.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", answer.head);
            assert!(answer.body == body, "{path} chunked={chunked}: {} bytes", answer.body.len());
            assert_eq!(text(get(&mut client, "/")), "a", "the connection goes on");
        }
    });
}

#[test]
fn a_thousand_pipelined_requests_are_answered_in_order() {
    both(|mode| {
        let backends = ['a', 'b'].map(Backend::start);
        let balancer = Balancer::start(mode, &[backends[0].address, backends[1].address]);
        let mut client = balancer.client(1);
        let mut writer = client.get_ref().try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            let post = |at| {
                let body = format!("body {at}");
                format!(
                    "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
            };
            let all: String = (0..1000).map(post).collect();
            writer.write_all(all.as_bytes()).unwrap();
        });
        for at in 0..1000 {
            assert_eq!(text(read_message(&mut client).unwrap()), format!("body {at}"));
        }
        writing.join().unwrap();
        assert_eq!(backends[0].requests() + backends[1].requests(), 1000, "none ran twice");
    });
}

#[test]
fn a_dead_backend_is_left_out_and_comes_back() {
    both(|mode| {
        let (alive, mut dead) = (Backend::start('a'), Backend::start('b'));
        let quick = |upstream: &mut config::Upstream| {
            upstream.fail_timeout = Duration::from_millis(100);
        };
        let addresses = [alive.address, dead.address];
        let balancer = Balancer::with(mode, &addresses, quick, &config::AccessLog::Off);
        let mut client = balancer.client(0);
        let first: String = (0..4).map(|_| text(get(&mut client, "/"))).collect();
        assert_eq!(first, "abab");
        dead.stop();
        // Its open connection serves one more request and ends, then nobody listens.
        let served: String = (0..20).map(|_| text(get(&mut client, "/"))).collect();
        assert!(served.ends_with("aaaaaaaa"), "{served}");
        let pool = &balancer.shared.http.upstreams()[0].pool;
        assert!(pool.status(Instant::now())[1].failed > 0);
        let _back = Backend::listening('b', TcpListener::bind(addresses[1]).unwrap());
        let deadline = Instant::now() + PATIENCE;
        while text(get(&mut client, "/")) != "b" {
            assert!(Instant::now() < deadline, "it never came back");
        }
    });
}

#[test]
fn an_answer_that_breaks_off_is_cut_for_the_client_too() {
    both(|mode| {
        let backend = Backend::start('a');
        let balancer = Balancer::start(mode, &[backend.address]);
        let mut client = balancer.client(0);
        write!(client.get_mut(), "GET /die HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        let mut all = Vec::new();
        // A reset is as good as an end.
        let _ended = client.read_to_end(&mut all);
        assert!(!all.ends_with(&[b'c'; 1000]) && all.len() < 1000);
        assert_eq!(backend.requests(), 1, "not again after the first byte of an answer");
        eventually(|| balancer.shared.http.refused(Reason::ReplyTruncated) == 1);
    });
}

#[test]
fn a_request_without_an_answer_is_repeated_only_if_it_may_be() {
    both(|mode| {
        let backends = ['a', 'b'].map(Backend::start);
        let balancer = Balancer::start(mode, &[backends[0].address, backends[1].address]);
        let requests = || backends[0].requests() + backends[1].requests();
        let mut client = balancer.client(0);
        let answer = get(&mut client, "/silent");
        assert!(answer.head.starts_with("HTTP/1.1 502 "), "{}", answer.head);
        assert!(text(answer).contains("(upstream_closed)"));
        assert_eq!(requests(), 2, "GET: once more, on the other server");
        let post = "POST /silent HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx";
        client.get_mut().write_all(post.as_bytes()).unwrap();
        let answer = read_message(&mut client).unwrap();
        assert!(answer.head.starts_with("HTTP/1.1 502 "), "{}", answer.head);
        assert_eq!(requests(), 3, "POST: never");
    });
}

#[test]
fn an_idle_connection_that_ended_is_not_used() {
    both(|mode| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let balancer = Balancer::start(mode, &[listener.local_addr().unwrap()]);
        let mut client = balancer.client(0);
        let post = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx";
        for _ in 0..20 {
            client.get_mut().write_all(post.as_bytes()).unwrap();
            let (server, _) = listener.accept().unwrap();
            read_message(&mut BufReader::new(&server)).unwrap();
            answer(&server, b"ok").unwrap();
            // Ends without having said so. The balancer's own end tells that it has seen ours.
            server.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!((&server).read(&mut [0]).unwrap(), 0);
            assert_eq!(text(read_message(&mut client).unwrap()), "ok");
        }
    });
}

#[test]
fn nobody_up_and_no_route_are_told_by_name() {
    both(|mode| {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let balancer = Balancer::start(mode, &[gone]);
        let mut client = balancer.client(0);
        let answer = get(&mut client, "/");
        assert!(answer.head.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{}", answer.head);
        assert!(text(answer).contains("(connect_failed)"));
        balancer.shared.http.set_backends(&[vec![message::ServerState::Down]]);
        let answer = get(&mut client, "/");
        assert!(answer.head.starts_with("HTTP/1.1 503 "), "{}", answer.head);
        client.get_mut().write_all(b"GET / HTTP/1.1\nHost: h\r\n\r\n").unwrap();
        let answer = read_message(&mut client).unwrap();
        assert!(answer.head.contains("Connection: close\r\n"));
        assert!(text(answer).contains("(bare_lf)"));
        assert!(read_message(&mut client).is_none(), "closed");
        assert_eq!(balancer.shared.http.refused(Reason::BareLf), 1);
    });
}

#[test]
fn a_client_that_leaves_frees_the_servers_connection() {
    both(|mode| {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let balancer = Balancer::start(mode, &[silent.local_addr().unwrap()]);
        let mut client = balancer.client(0);
        write!(client.get_mut(), "GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        let (server, _) = silent.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = read_message(&mut BufReader::new(&server)).unwrap().head;
        assert!(head.starts_with("GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 127.0.0.1\r\n"));
        drop(client);
        assert!(matches!((&server).read(&mut [0]), Ok(0) | Err(_)), "the server is told");
        let pool = &balancer.shared.http.upstreams()[0].pool;
        eventually(|| pool.status(Instant::now())[0].in_flight == 0);
        eventually(|| balancer.shared.http.refused(Reason::ClientAborted) == 1);
    });
}

#[test]
fn a_client_that_does_not_read_holds_the_server_and_not_our_memory() {
    both(|mode| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let balancer = Balancer::start(mode, &[listener.local_addr().unwrap()]);
        let mut client = balancer.client(0);
        write!(client.get_mut(), "GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        let (server, _) = listener.accept().unwrap();
        read_message(&mut BufReader::new(&server)).unwrap();
        let size = 64 << 20;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n");
        (&server).write_all(head.as_bytes()).unwrap();
        server.set_nonblocking(true).unwrap();
        let (piece, mut sent, mut stuck_since) = (noise(1 << 16), 0, Instant::now());
        // Stuck: nothing taken for a while. What was taken is in kernel buffers and our outbox.
        while sent < size && stuck_since.elapsed() < Duration::from_millis(300) {
            match (&server).write(&piece[..(size - sent).min(piece.len())]) {
                Ok(count) => {
                    sent += count;
                    stuck_since = Instant::now();
                }
                Err(_would_block) => std::thread::yield_now(),
            }
        }
        assert!(sent < size / 2, "{sent} bytes were taken for a client that reads none");
        server.set_nonblocking(false).unwrap();
        let writing = std::thread::spawn(move || {
            while sent < size {
                sent += (&server).write(&piece[..(size - sent).min(piece.len())]).unwrap();
            }
        });
        assert_eq!(read_message(&mut client).unwrap().body.len(), size);
        writing.join().unwrap();
    });
}

#[test]
fn the_access_log_tells_of_each_request() {
    both(|mode| {
        let backend = Backend::start('a');
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let to_file = config::AccessLog::File(path.clone());
        let balancer = Balancer::with(mode, &[backend.address], |_upstream| {}, &to_file);
        let mut client = balancer.client(0);
        get(&mut client, "/x?y");
        client.get_mut().write_all(b"BAD\r\n\r\n").unwrap();
        read_message(&mut client).unwrap();
        let read = || std::fs::read_to_string(&path).unwrap();
        eventually(|| read().lines().count() == 2);
        let log = read();
        let mut lines = log.lines();
        let first = lines.next().unwrap();
        let upstream = format!("upstream={} tries=1 reused=0", backend.address);
        assert!(first.starts_with("127.0.0.1 - - ["), "{first}");
        assert!(first.contains("] \"GET /x?y HTTP/1.1\" 200 1 \"-\" \"-\" "), "{first}");
        assert!(first.contains(&upstream) && first.ends_with(" reason=-"), "{first}");
        let second = lines.next().unwrap();
        assert!(
            second.contains("\"-\" 400 ") && second.ends_with("reason=request_line"),
            "{second}"
        );
    });
}

fn eventually(mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "it did not come about");
        std::thread::yield_now();
    }
}
