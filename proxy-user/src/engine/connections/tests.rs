//! The joint, with protocols made for the purpose, under both drivers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;
use crate::engine::driver::{Driver, DriverOptions, IoMode};
use crate::engine::worker::{Mail, Stop, Worker};

/// Answers every byte with itself.
#[derive(Debug)]
struct Echo;

impl Protocol for Echo {
    fn on_data(&mut self, bytes: &[u8], ctx: &mut Ctx<'_>) {
        ctx.send(bytes);
    }
}

/// Reports its life.
#[derive(Debug)]
struct Witness {
    told: Sender<String>,
    deadline: Option<Duration>,
}

impl Protocol for Witness {
    fn on_open(&mut self, ctx: &mut Ctx<'_>) {
        let due = self.deadline.map(|after| ctx.now() + after);
        ctx.set_deadline(due);
        self.told.send("open".into()).unwrap();
    }

    fn on_data(&mut self, bytes: &[u8], ctx: &mut Ctx<'_>) {
        ctx.send(b"ok");
        if bytes.contains(&b'L') {
            ctx.close(Close::Linger);
        }
        if bytes.contains(&b'N') {
            ctx.close(Close::Now);
        }
    }

    fn on_eof(&mut self, ctx: &mut Ctx<'_>) {
        self.told.send("eof".into()).unwrap();
        ctx.close(Close::Flush);
    }

    fn on_deadline(&mut self, ctx: &mut Ctx<'_>) {
        self.told.send("deadline".into()).unwrap();
        ctx.close(Close::Now);
    }

    fn on_close(&mut self, reason: &Closed, _ctx: &mut Ctx<'_>) {
        let reason = match reason {
            Closed::Local => "local",
            Closed::Io(_) => "io",
            Closed::Layer(_) => "layer",
            Closed::Connect(_) => "connect",
            Closed::Stop => "stop",
        };
        self.told.send(format!("closed {reason}")).unwrap();
    }
}

/// Copies bytes to another connection, holding the faster side.
#[derive(Debug)]
struct Pipe {
    to: Option<SocketAddr>,
    other: Option<Key>,
}

impl Protocol for Pipe {
    fn on_open(&mut self, ctx: &mut Ctx<'_>) {
        let other = Self { to: None, other: Some(ctx.key()) };
        let to = self.to.unwrap();
        self.other = Some(ctx.connect(to, Kind::Other(Box::new(other)), None).unwrap());
    }

    fn on_data(&mut self, bytes: &[u8], ctx: &mut Ctx<'_>) {
        let Some(mut other) = self.other.and_then(|key| ctx.at(key)) else { return };
        other.send(bytes);
        if other.unsent() > OUTBOX_HIGH {
            ctx.pause();
        }
    }

    fn on_sent(&mut self, ctx: &mut Ctx<'_>) {
        if ctx.unsent() <= OUTBOX_LOW
            && let Some(mut other) = self.other.and_then(|key| ctx.at(key))
        {
            other.resume();
        }
    }

    fn on_close(&mut self, _reason: &Closed, ctx: &mut Ctx<'_>) {
        if let Some(mut other) = self.other.and_then(|key| ctx.at(key)) {
            other.close(Close::Flush);
        }
    }
}

struct Running {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<usize>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.mailboxes[0].post(Mail::Stop(Stop::within(Duration::from_secs(2), false)));
        let left = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            assert_eq!(left.unwrap(), 0, "connections still counted after the end");
        }
    }
}

fn start(mode: IoMode, max: usize, service: Service) -> Running {
    let snapshot = crate::engine::testing::snapshot(1);
    let (page, _) = crate::control::shared::SharedPage::create(1).unwrap();
    let events = crate::engine::worker::Events::new(|_| {});
    let shared = Arc::new(Shared::new(snapshot, page, max, None, events));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (theirs, (ready, is_ready)) = (Arc::clone(&shared), channel());
    let thread = std::thread::spawn(move || {
        let (driver, _) = Driver::new(mode, &DriverOptions::default()).unwrap();
        let mut worker = Worker::new(0, Arc::clone(&theirs), driver).unwrap();
        worker.core().listen(listener.into(), service).unwrap();
        ready.send(()).unwrap();
        worker.run().unwrap();
        theirs.connections.load(std::sync::atomic::Ordering::Relaxed)
    });
    is_ready.recv().unwrap();
    Running { shared, address, thread: Some(thread) }
}

fn both(test: impl Fn(IoMode)) {
    for mode in crate::engine::driver::tests::modes() {
        test(mode);
    }
}

fn client(running: &Running) -> TcpStream {
    let stream = TcpStream::connect(running.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

fn echo() -> Service {
    Service::Other(Arc::new(|| Box::new(Echo)))
}

fn witness(deadline: Option<Duration>) -> (Service, Receiver<String>) {
    let (told, hear) = channel();
    let told = parking_lot::Mutex::new(told);
    let make =
        move || -> Box<dyn Protocol> { Box::new(Witness { told: told.lock().clone(), deadline }) };
    (Service::Other(Arc::new(make)), hear)
}

fn hear(ear: &Receiver<String>) -> String {
    ear.recv_timeout(Duration::from_secs(5)).unwrap()
}

#[test]
fn echo_answers_and_closes_after_the_peers_end() {
    both(|mode| {
        let running = start(mode, 100, echo());
        let mut stream = client(&running);
        stream.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
        stream.write_all(b" and bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b" and bye");
    });
}

#[test]
fn a_peer_that_does_not_read_is_held_and_loses_nothing() {
    both(|mode| {
        let running = start(mode, 100, echo());
        let stream = client(&running);
        let total = 24 << 20;
        let mut writer = stream.try_clone().unwrap();
        let writing = std::thread::spawn(move || {
            let chunk: Vec<u8> = (0..65_536u32).map(|i| (i % 251) as u8).collect();
            for _ in 0..total / chunk.len() {
                writer.write_all(&chunk).unwrap();
            }
            writer.shutdown(Shutdown::Write).unwrap();
        });
        // The reader starts when the writer is stuck, or through, or late: all must work.
        let late = Instant::now() + Duration::from_secs(5);
        while !writing.is_finished() && unread(&stream) < 32_000 && Instant::now() < late {
            std::thread::yield_now();
        }
        let (mut seen, mut buffer, mut reader) = (0usize, vec![0; 65_536], &stream);
        loop {
            let count = reader.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            for byte in &buffer[..count] {
                assert_eq!(*byte, ((seen % 65_536) % 251) as u8, "at {seen}");
                seen += 1;
            }
        }
        writing.join().unwrap();
        assert_eq!(seen, total);
    });
}

fn unread(stream: &TcpStream) -> usize {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 131_072];
    // nothing has come yet: an error of its time limit
    socket2::SockRef::from(stream).peek(&mut buffer).unwrap_or(0)
}

#[test]
fn a_pair_of_connections_carries_bytes_both_ways() {
    both(|mode| {
        let upstream = start(mode, 100, echo());
        let to = upstream.address;
        let make = move || -> Box<dyn Protocol> { Box::new(Pipe { to: Some(to), other: None }) };
        let running = start(mode, 100, Service::Other(Arc::new(make)));
        let stream = client(&running);
        let mut writer = stream.try_clone().unwrap();
        let sent: Vec<u8> = (0..5_000_000u32).map(|i| (i % 253) as u8).collect();
        let copy = sent.clone();
        let writing = std::thread::spawn(move || writer.write_all(&copy).unwrap());
        let mut got = vec![0; sent.len()];
        (&stream).read_exact(&mut got).unwrap();
        writing.join().unwrap();
        assert!(got == sent);
    });
}

#[test]
fn a_deadline_fires_and_ends_the_connection() {
    both(|mode| {
        let (service, ear) = witness(Some(Duration::from_millis(20)));
        let running = start(mode, 100, service);
        let mut stream = client(&running);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!([hear(&ear), hear(&ear), hear(&ear)], ["open", "deadline", "closed local"]);
    });
}

#[test]
fn each_end_is_told_once() {
    both(|mode| {
        let (service, ear) = witness(None);
        let running = start(mode, 100, service);
        let mut stream = client(&running);
        stream.write_all(b"N").unwrap();
        assert_eq!([hear(&ear), hear(&ear)], ["open", "closed local"]);
        let stream = client(&running);
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!([hear(&ear), hear(&ear), hear(&ear)], ["open", "eof", "closed local"]);
        let stream = client(&running);
        assert_eq!(hear(&ear), "open");
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
        assert_eq!(hear(&ear), "closed io", "a reset");
        let _idle = client(&running);
        assert_eq!(hear(&ear), "open");
        drop(running);
        assert_eq!(hear(&ear), "closed local", "stopped");
        assert!(ear.try_recv().is_err());
    });
}

#[test]
fn a_lingering_close_lets_the_answer_through() {
    both(|mode| {
        let (service, ear) = witness(None);
        let running = start(mode, 100, service);
        let mut stream = client(&running);
        stream.write_all(b"L").unwrap();
        assert_eq!(hear(&ear), "open");
        // What is sent on is discarded, not answered by a reset.
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).unwrap();
        stream.write_all(&[b'x'; 10_000]).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!((&answer, rest.len()), (b"ok", 0));
        drop(stream);
        assert_eq!(hear(&ear), "closed local");
    });
}

#[test]
fn too_many_connections_wait_or_are_refused_and_then_served() {
    both(|mode| {
        let running = start(mode, 16, echo());
        let mut held: Vec<TcpStream> = (0..16).map(|_| client(&running)).collect();
        for stream in &mut held {
            stream.write_all(b"a").unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
        let mut extra = client(&running);
        extra.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let served = extra.write_all(b"b").and_then(|()| extra.read_exact(&mut [0]));
        assert!(served.is_err(), "one too many");
        held.clear();
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let mut again = client(&running);
            if again.write_all(b"c").and_then(|()| again.read_exact(&mut [0])).is_ok() {
                break;
            }
            assert!(Instant::now() < deadline, "never served again");
        }
    });
}

#[test]
fn a_connect_that_is_refused_ends_with_its_reason() {
    both(|mode| {
        let running = start(mode, 16, echo());
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (told, ear) = channel();
        running.shared.mailboxes[0].post(Mail::Task(Box::new(move |core| {
            let witness = Witness { told, deadline: None };
            core.connect(gone, Kind::Other(Box::new(witness)), None).unwrap();
        })));
        assert_eq!(hear(&ear), "closed connect");
    });
}

/// Adds one to every byte on its way out and takes it off on its way in; begins with a greeting.
#[derive(Debug)]
struct Shift {
    greeted: bool,
}

impl Layer for Shift {
    fn start(&mut self, wire_out: &mut Vec<u8>) -> Result<(), LayerError> {
        wire_out.push(b'#');
        Ok(())
    }

    fn open(
        &mut self,
        wire: &[u8],
        plain: &mut Vec<u8>,
        _: &mut Vec<u8>,
    ) -> Result<(), LayerError> {
        for byte in wire {
            match (self.greeted, byte) {
                (false, b'#') => self.greeted = true,
                (false, _) => return Err(LayerError("no greeting".into())),
                (true, byte) => plain.push(byte - 1),
            }
        }
        Ok(())
    }

    fn seal(&mut self, plain: &mut Vec<u8>, wire: &mut Vec<u8>) -> Result<(), LayerError> {
        if self.greeted {
            wire.extend(plain.drain(..).map(|byte| byte + 1));
        }
        Ok(())
    }
}

/// Says hello at once, before the layer is ready; tells what it hears.
#[derive(Debug)]
struct Caller {
    told: Sender<String>,
}

impl Protocol for Caller {
    fn on_connected(&mut self, ctx: &mut Ctx<'_>) {
        ctx.send(b"abc");
    }

    fn on_data(&mut self, bytes: &[u8], ctx: &mut Ctx<'_>) {
        self.told.send(String::from_utf8(bytes.to_vec()).unwrap()).unwrap();
        ctx.close(Close::Flush);
    }
}

#[test]
fn a_layer_stands_between_socket_and_protocol() {
    both(|mode| {
        let running = start(mode, 16, echo());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (told, ear) = channel();
        running.shared.mailboxes[0].post(Mail::Task(Box::new(move |core| {
            let layer = Box::new(Shift { greeted: false });
            core.connect(address, Kind::Other(Box::new(Caller { told })), Some(layer)).unwrap();
        })));
        let (mut stream, _) = listener.accept().unwrap();
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"#", "plain text waits for the handshake");
        stream.write_all(b"#").unwrap();
        let mut sealed = [0; 3];
        stream.read_exact(&mut sealed).unwrap();
        assert_eq!(&sealed, b"bcd");
        stream.write_all(b"yz").unwrap();
        assert_eq!(hear(&ear), "xy");
    });
}

/// Clients that come, speak, and go in every rude way; those who listen hear what they said.
#[test]
fn a_crowd_that_comes_and_goes_leaves_nothing_behind() {
    both(|mode| {
        let running = start(mode, 10_000, echo());
        let address = running.address;
        let crowd: Vec<JoinHandle<()>> = (0..4u64)
            .map(|seed| std::thread::spawn(move || visit(address, 0x9e37_79b9 + seed)))
            .collect();
        for visitor in crowd {
            visitor.join().unwrap();
        }
        // `Running` asserts at its end that no connection is counted any more.
    });
}

fn visit(address: SocketAddr, mut seed: u64) {
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below) as usize
    };
    for _ in 0..150 {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let said = vec![7; random(100_000)];
        match random(4) {
            0 => drop(stream),
            1 => {
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                stream.write_all(&said[..said.len().min(2_000)]).unwrap();
            }
            2 => {
                let part = &said[..said.len().min(20_000)];
                stream.write_all(part).unwrap();
                stream.read_exact(&mut vec![0; part.len() / 2]).unwrap();
            }
            _ => {
                let writing = stream.try_clone().unwrap();
                let copy = said.clone();
                let writing = std::thread::spawn(move || {
                    (&writing).write_all(&copy).unwrap();
                    writing.shutdown(Shutdown::Write).unwrap();
                });
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).unwrap();
                writing.join().unwrap();
                assert_eq!(heard.len(), said.len());
            }
        }
    }
}
