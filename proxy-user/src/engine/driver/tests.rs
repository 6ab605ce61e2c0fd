//! The same tests under every driver this host has.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::*;

/// The drivers this host has; says so when io_uring is not among them.
pub(crate) fn modes() -> Vec<IoMode> {
    match uring::Uring::new(&DriverOptions::default()) {
        Ok(_) => vec![IoMode::Uring, IoMode::Epoll],
        Err(reason) => {
            eprintln!("SKIPPED under io_uring: {reason}");
            vec![IoMode::Epoll]
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(5);

/// A driver and what it has said so far.
struct Bench {
    driver: Driver,
    said: Vec<Completion>,
}

impl Bench {
    fn new(mode: IoMode, options: DriverOptions) -> Self {
        let (driver, reason) = Driver::new(mode, &options).unwrap();
        assert_eq!(reason, None);
        Self { driver, said: Vec::new() }
    }

    /// Polls until `pick` has found what it wants among the completions; takes that one out.
    fn until<T>(&mut self, mut pick: impl FnMut(&Completion) -> bool, map: fn(Event) -> T) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.said.iter().position(&mut pick) {
                return map(self.said.remove(at).event);
            }
            assert!(Instant::now() < deadline, "{} said {:?}", self.driver.name(), self.said);
            let mut fresh = Vec::new();
            self.driver.poll(&mut fresh, Some(deadline)).unwrap();
            self.said.append(&mut fresh);
        }
    }

    /// Lets the driver work for a while in which nothing is expected.
    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            let mut fresh = Vec::new();
            let soon = Instant::now() + Duration::from_millis(2);
            self.driver.poll(&mut fresh, Some(soon)).unwrap();
            self.said.append(&mut fresh);
        }
    }

    fn listen(&mut self) -> (Key, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // The standard library's 128 would make a thousand clients wait for retransmissions.
        SockRef::from(&listener).listen(4096).unwrap();
        let key = self.driver.adopt(listener.into()).unwrap();
        self.driver.push(key, Op::Accept);
        (key, address)
    }

    fn accepted(&mut self, listener: Key) -> OwnedFd {
        self.until(
            |c| c.key == listener && matches!(c.event, Event::Accepted(_)),
            |event| match event {
                Event::Accepted(descriptor) => descriptor,
                other => panic!("{other:?}"),
            },
        )
    }

    /// A connection: the driver's end and ours.
    fn pair(&mut self) -> (Key, TcpStream) {
        let (listener, address) = self.listen();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let descriptor = self.accepted(listener);
        self.driver.close(listener);
        (self.driver.adopt(descriptor).unwrap(), stream)
    }

    /// Received bytes of a key, at least so many, leases given back.
    fn data(&mut self, key: Key, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let more = self.until(
                |c| c.key == key && matches!(c.event, Event::Data(_)),
                |event| match event {
                    Event::Data(lease) => lease.to_vec(),
                    other => panic!("{other:?}"),
                },
            );
            bytes.extend(more);
        }
        bytes
    }

    fn wait(&mut self, key: Key, wanted: fn(&Event) -> bool) -> Event {
        self.until(|c| c.key == key && wanted(&c.event), |event| event)
    }

    fn quiet(&self, key: Key) -> bool {
        self.said.iter().all(|completion| completion.key != key)
    }
}

fn both(test: impl Fn(&mut Bench)) {
    both_with(DriverOptions::default(), test);
}

fn both_with(options: DriverOptions, test: impl Fn(&mut Bench)) {
    for mode in modes() {
        test(&mut Bench::new(mode, options));
    }
}

#[test]
fn echo_then_half_close_then_the_rest() {
    both(|bench| {
        let (key, mut stream) = bench.pair();
        bench.driver.push(key, Op::Recv);
        stream.write_all(b"ping").unwrap();
        assert_eq!(bench.data(key, 4), b"ping");
        stream.shutdown(Shutdown::Write).unwrap();
        bench.wait(key, |event| matches!(event, Event::Eof));
        bench.driver.push(key, Op::Send(b"pong".to_vec()));
        bench.driver.push(key, Op::ShutdownWrite);
        let sent = bench.wait(key, |event| matches!(event, Event::Sent(_)));
        assert!(matches!(sent, Event::Sent(bytes) if bytes == b"pong"), "the buffer comes back");
        bench.turns(2);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"pong");
        assert_eq!(bench.driver.stats().misused, 0);
    });
}

#[test]
fn a_large_send_goes_on_by_itself_and_the_end_comes_after_it() {
    both(|bench| {
        let (key, mut stream) = bench.pair();
        let sent: Vec<u8> = (0..8_000_000u32).map(|i| (i % 251) as u8).collect();
        bench.driver.push(key, Op::Send(sent.clone()));
        bench.driver.push(key, Op::ShutdownWrite);
        bench.turns(2);
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            got
        });
        bench.wait(key, |event| matches!(event, Event::Sent(_)));
        bench.turns(2);
        assert!(reader.join().unwrap() == sent);
        assert!(
            bench.said.iter().any(|c| matches!(c.event, Event::Progress(_))),
            "it went in parts"
        );
    });
}

#[test]
fn a_thousand_connections() {
    both(|bench| {
        let (listener, address) = bench.listen();
        let client = std::thread::spawn(move || {
            let connect = |_| {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream
            };
            let mut streams: Vec<TcpStream> = (0..1000).map(connect).collect();
            for (number, stream) in streams.iter_mut().enumerate() {
                stream.write_all(&(number as u32).to_le_bytes()).unwrap();
            }
            for (number, stream) in streams.iter_mut().enumerate() {
                let mut answer = [0; 4];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(u32::from_le_bytes(answer), number as u32);
            }
        });
        let (mut answered, mut batch) = (0, Vec::new());
        let deadline = Instant::now() + PATIENCE;
        while answered < 1000 && Instant::now() < deadline {
            bench.driver.poll(&mut batch, Some(deadline)).unwrap();
            for Completion { key, event } in batch.drain(..) {
                match event {
                    Event::Accepted(descriptor) => {
                        let key = bench.driver.adopt(descriptor).unwrap();
                        bench.driver.push(key, Op::Recv);
                    }
                    Event::Data(lease) => bench.driver.push(key, Op::Send(lease.to_vec())),
                    Event::Sent(_) => answered += 1,
                    _ => {}
                }
            }
        }
        assert_eq!(answered, 1000, "{} {:?}", bench.driver.name(), bench.driver.stats());
        client.join().unwrap();
        bench.driver.close(listener);
        assert_eq!(bench.driver.stats().overflows, 0);
    });
}

#[test]
fn without_buffers_sockets_are_parked_and_go_on_later() {
    let options = DriverOptions { buffers: 2, buffer_size: 64, ..DriverOptions::default() };
    both_with(options, |bench| {
        let (greedy, mut first) = bench.pair();
        let (hungry, mut second) = bench.pair();
        bench.driver.push(greedy, Op::Recv);
        bench.driver.push(hungry, Op::Recv);
        first.write_all(&[1; 640]).unwrap();
        // Both buffers are held by `said` from here on.
        bench.turns(3);
        second.write_all(&[2; 64]).unwrap();
        bench.turns(3);
        assert!(bench.driver.stats().starved > 0);
        let polls = bench.driver.stats().polls;
        let starved = bench.driver.stats().starved;
        bench.turns(5);
        let stats = bench.driver.stats();
        assert!(stats.polls - polls <= 12, "it spins: {stats:?}");
        assert!(stats.starved - starved <= 2, "it tries without buffers: {stats:?}");
        // Giving them back is all that is needed.
        assert_eq!(bench.data(greedy, 640), [1; 640]);
        assert_eq!(bench.data(hungry, 64), [2; 64]);
    });
}

#[test]
fn a_large_read_needs_no_pool_buffer_and_returns_to_small_ones() {
    let options = DriverOptions { buffers: 2, buffer_size: 64, ..DriverOptions::default() };
    both_with(options, |bench| {
        let (key, mut stream) = bench.pair();
        bench.driver.push(key, Op::Recv);
        bench.turns(2);
        bench.driver.push(key, Op::RecvInto(vec![0; 4096]));
        bench.turns(2);
        stream.write_all(&[7; 1000]).unwrap();
        let filled = bench.wait(key, |event| matches!(event, Event::Filled(..)));
        let Event::Filled(buffer, len) = filled else { panic!() };
        assert_eq!((&buffer[..len], buffer.len()), (&[7u8; 1000][..], 4096));
        bench.driver.push(key, Op::Recv);
        stream.write_all(&[8; 10]).unwrap();
        assert_eq!(bench.data(key, 10), [8; 10]);
        bench.driver.push(key, Op::RecvInto(vec![0; 4096]));
        drop(stream);
        bench.wait(key, |event| matches!(event, Event::Eof));
    });
}

#[test]
fn receiving_stops_and_starts_again_without_loss() {
    both(|bench| {
        let (key, mut stream) = bench.pair();
        bench.driver.push(key, Op::Recv);
        bench.turns(2);
        bench.driver.push(key, Op::RecvStop);
        bench.turns(2);
        stream.write_all(b"later").unwrap();
        bench.turns(3);
        assert!(bench.quiet(key), "{:?}", bench.said);
        bench.driver.push(key, Op::Recv);
        assert_eq!(bench.data(key, 5), b"later");
        // Stop and start within one turn: the wish of the end holds.
        bench.driver.push(key, Op::RecvStop);
        bench.driver.push(key, Op::Recv);
        stream.write_all(b"again").unwrap();
        assert_eq!(bench.data(key, 5), b"again");
    });
}

#[test]
fn a_closed_key_is_never_heard_of_again() {
    both(|bench| {
        let (key, mut stream) = bench.pair();
        bench.driver.push(key, Op::Recv);
        bench.driver.push(key, Op::Send(vec![0; 8_000_000]));
        bench.turns(2);
        bench.said.clear();
        stream.write_all(b"too late").unwrap();
        bench.driver.close(key);
        bench.driver.close(key);
        bench.driver.push(key, Op::Recv);
        bench.turns(4);
        assert!(bench.quiet(key), "{:?}", bench.said);
        assert_eq!(bench.driver.held(), 0);
        assert!(bench.driver.descriptor(key).is_none());
        // The place is given away again, under another name.
        let (next, mut stream) = bench.pair();
        assert_ne!(next, key);
        bench.driver.push(next, Op::Recv);
        bench.driver.push(key, Op::Send(b"stale".to_vec()));
        stream.write_all(b"fresh").unwrap();
        assert_eq!(bench.data(next, 5), b"fresh");
        assert!(bench.quiet(key));
    });
}

#[test]
fn connecting_works_and_a_refusal_is_told() {
    both(|bench| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let key = bench.driver.adopt(socket().into()).unwrap();
        bench.driver.push(key, Op::Connect(address));
        let connected = bench.wait(key, |event| matches!(event, Event::Connected(_)));
        assert!(matches!(connected, Event::Connected(Ok(()))));
        bench.driver.push(key, Op::Send(b"hi".to_vec()));
        bench.wait(key, |event| matches!(event, Event::Sent(_)));
        let mut bytes = [0; 2];
        listener.accept().unwrap().0.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hi");
        drop(listener);
        let key = bench.driver.adopt(socket().into()).unwrap();
        bench.driver.push(key, Op::Connect(address));
        let refused = bench.wait(key, |event| matches!(event, Event::Connected(_)));
        let Event::Connected(Err(error)) = refused else { panic!("{refused:?}") };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_reset_is_told() {
    both(|bench| {
        let (key, stream) = bench.pair();
        bench.driver.push(key, Op::Recv);
        bench.turns(2);
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
        let failed = bench.wait(key, |event| matches!(event, Event::RecvFailed(_)));
        let Event::RecvFailed(error) = failed else { panic!("{failed:?}") };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        bench.driver.push(key, Op::Send(b"x".to_vec()));
        bench.wait(key, |event| matches!(event, Event::SendFailed(_)));
    });
}

#[test]
fn accepting_stops_starts_and_sweeps() {
    both(|bench| {
        let (listener, address) = bench.listen();
        bench.turns(1);
        bench.driver.push(listener, Op::AcceptStop);
        bench.turns(2);
        let _waiting = TcpStream::connect(address).unwrap();
        bench.turns(3);
        assert!(bench.quiet(listener), "{:?}", bench.said);
        bench.driver.push(listener, Op::Accept);
        drop(bench.accepted(listener));
        for _ in 0..3 {
            bench.driver.push(listener, Op::Sweep);
            let _stream = TcpStream::connect(address).unwrap();
            drop(bench.accepted(listener));
        }
    });
}

/// The guardian holds the same sockets and gives them to the next engine.
#[test]
fn a_listener_outlives_the_driver_that_accepted_on_it() {
    for (first, second) in
        modes().into_iter().flat_map(|a| modes().into_iter().map(move |b| (a, b)))
    {
        let ours = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = ours.local_addr().unwrap();
        for mode in [first, second, first] {
            let mut bench = Bench::new(mode, DriverOptions::default());
            let key = bench.driver.adopt(ours.try_clone().unwrap().into()).unwrap();
            bench.driver.push(key, Op::Accept);
            bench.turns(1);
            let _stream = TcpStream::connect(address).unwrap();
            drop(bench.accepted(key));
            bench.driver.close(key);
            bench.turns(3);
            assert_eq!(bench.driver.held(), 0);
        }
        let _stream = TcpStream::connect(address).unwrap();
    }
}

#[test]
fn poll_keeps_its_deadline_and_another_thread_can_call() {
    both(|bench| {
        let mut none = Vec::new();
        let (start, wait, mut polls) = (Instant::now(), Duration::from_millis(30), 0);
        // A signal (the end of another ring gives one) may cut one short.
        while start.elapsed() < wait {
            bench.driver.poll(&mut none, Some(start + wait)).unwrap();
            polls += 1;
        }
        assert!(polls <= 4, "it does not sleep: {polls} polls");
        bench.driver.poll(&mut none, Some(start)).unwrap();
        let waker = bench.driver.waker();
        let calling = std::thread::spawn(move || waker.wake());
        let start = Instant::now();
        bench.driver.poll(&mut none, Some(start + PATIENCE)).unwrap();
        assert!(start.elapsed() < PATIENCE, "not woken");
        calling.join().unwrap();
        // A call while awake is not lost.
        bench.driver.waker().wake();
        let start = Instant::now();
        bench.driver.poll(&mut none, Some(start + PATIENCE)).unwrap();
        assert!(start.elapsed() < PATIENCE, "the call was lost");
        assert!(none.is_empty());
    });
}

#[test]
fn a_driver_ends_with_everything_in_flight() {
    for mode in modes() {
        let mut bench = Bench::new(mode, DriverOptions::default());
        let (listener, _) = bench.listen();
        let (key, stream) = bench.pair();
        bench.driver.push(key, Op::Recv);
        bench.driver.push(key, Op::Send(vec![0; 8_000_000]));
        bench.turns(2);
        let start = Instant::now();
        let leases: Vec<Completion> = std::mem::take(&mut bench.said);
        drop(bench);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        drop((leases, listener, stream));
    }
}

#[test]
fn the_wanted_form_is_given_or_refused() {
    let options = DriverOptions::default();
    let (driver, reason) = Driver::new(IoMode::Epoll, &options).unwrap();
    assert_eq!((driver.name(), reason), ("epoll", None));
    let (driver, reason) = Driver::new(IoMode::Auto, &options).unwrap();
    assert_eq!(driver.name() == "epoll", reason.is_some(), "auto says why");
}
