//! A crowd at the guardians' port: many connections a second, half of which say nothing and half
//! nonsense or what was recorded on the wire, and datagrams of the same kinds.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};

use crate::probe::Probe;
use crate::random::Random;
use crate::topology::{CLIENT, Pair, Side};
use crate::wire::capture;

/// The guardians' port.
const PORT: u16 = 7700;
/// A node gets a connection, and a few datagrams, each time: 200 connections a second.
const PERIOD: Duration = Duration::from_millis(5);
/// Connections held open at each node.
const HELD: usize = 150;
/// Every other connection comes from one of so many further addresses of the client.
const SOURCES: u8 = 30;
/// The first of them.
const FIRST_SOURCE: u8 = 30;
/// A node that is not there is not waited for longer.
const PATIENCE: Duration = Duration::from_millis(20);
/// Datagrams kept of a recording.
const RECORDED_MAX: usize = 200;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What side a said to side b's guardian on the LAN.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// The first message of the handshake, with its length before it.
    handshake: Vec<u8>,
    /// Beats, sealed.
    datagrams: Vec<Vec<u8>>,
}

impl Recorded {
    /// Starts both nodes and records what they say meanwhile; side a is the master.
    ///
    /// # Errors
    /// As of [`Pair::start_both`], and when nothing was recorded.
    pub fn start_both(pair: &mut Pair) -> Result<Self> {
        let probes = [TCP, UDP].map(|protocol| capture(pair.namespace(Side::B), protocol));
        let started = pair.start_both();
        let [connections, datagrams] = probes;
        let (connections, mut datagrams) = (connections.stop()?, datagrams.stop()?);
        started?;
        let whole = |bytes: &&[u8]| {
            let length = bytes.first_chunk().map(|length| u16::from_be_bytes(*length));
            length.is_some_and(|length| bytes.len() == usize::from(length) + 2)
        };
        let handshake = connections.iter().filter_map(|frame| payload(frame)).find(whole);
        let handshake = handshake.context("no handshake was recorded")?.to_vec();
        datagrams.truncate(RECORDED_MAX);
        let datagrams: Vec<_> =
            datagrams.iter().filter_map(|frame| payload(frame)).map(<[u8]>::to_vec).collect();
        anyhow::ensure!(!datagrams.is_empty(), "no beats were recorded");
        Ok(Self { handshake, datagrams })
    }
}

/// What a frame carries to the guardians' port; `None` if nothing.
fn payload(frame: &[u8]) -> Option<&[u8]> {
    let packet = frame.get(14..)?;
    let length = u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?);
    let packet = packet.get(..usize::from(length))?;
    let segment = packet.get(usize::from(packet.first()? & 0xf) * 4..)?;
    let header = match *packet.get(9)? {
        TCP => usize::from(segment.get(12)? >> 4) * 4,
        UDP => 8,
        _ => return None,
    };
    let payload = segment.get(header..).filter(|payload| !payload.is_empty())?;
    (segment.get(2..4)? == PORT.to_be_bytes()).then_some(payload)
}

/// How much a crowd has done at one node.
#[derive(Debug, Clone, Copy, Default)]
pub struct Made {
    /// Connections made.
    pub connections: u64,
    /// Datagrams sent.
    pub datagrams: u64,
}

/// A crowd at both nodes. Dropped, it ends.
#[derive(Debug)]
pub struct Crowd([Probe<Made>; 2]);

impl Crowd {
    /// Lets the client flood both nodes, from many addresses of its own.
    ///
    /// # Errors
    /// As of `ip`.
    pub fn start(pair: &Pair, recorded: &Recorded) -> Result<Self> {
        for source in sources() {
            let address = format!("{source}/32");
            pair.client.ip(&["address", "replace", &address, "dev", "lan"])?;
        }
        let at = |side: Side| {
            let recorded = recorded.clone();
            let to = SocketAddr::from((side.address(), PORT));
            Probe::start(pair.client.name(), move |stop| flood(to, &recorded, stop))
        };
        Ok(Self(Side::ALL.map(at)))
    }

    /// Ends it; what it did at each node.
    ///
    /// # Errors
    /// What ended it early.
    pub fn stop(self) -> Result<[Made; 2]> {
        let [a, b] = self.0;
        Ok([a.stop()?, b.stop()?])
    }
}

fn sources() -> impl Iterator<Item = Ipv4Addr> {
    let [a, b, c, _] = CLIENT.octets();
    (FIRST_SOURCE..FIRST_SOURCE + SOURCES).map(move |last| Ipv4Addr::new(a, b, c, last))
}

fn flood(to: SocketAddr, recorded: &Recorded, stop: &AtomicBool) -> Result<Made> {
    let sources: Vec<Ipv4Addr> = sources().collect();
    let socket = UdpSocket::bind((CLIENT, 0))?;
    socket.set_nonblocking(true)?;
    let (mut made, mut held) = (Made::default(), VecDeque::new());
    let mut random = Random::new(u64::from(to.port()), 1);
    let mut beats = recorded.datagrams.iter().cycle();
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let own = if made.connections % 4 < 2 { &CLIENT } else { random.of(&sources) };
        if let Ok(mut stream) = connect(*own, to) {
            made.connections += 1;
            let said = nonsense(made.connections, recorded, &mut random);
            // a connection that was closed at once is as good
            drop(stream.write_all(&said));
            held.push_back(stream);
        }
        if held.len() > HELD {
            held.pop_front();
        }
        let own_session = [&[2][..], &bytes(&mut random, 60)].concat();
        let garbage = [bytes(&mut random, 60), bytes(&mut random, 9), own_session];
        for datagram in garbage.iter().chain(beats.next()) {
            // a node that is not there, or a full queue
            made.datagrams += u64::from(socket.send_to(datagram, to).is_ok());
        }
        next = (next + PERIOD).max(Instant::now());
        thread::park_timeout(next.saturating_duration_since(Instant::now()));
    }
    Ok(made)
}

fn connect(own: Ipv4Addr, to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((own, 0)).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    Ok(socket.into())
}

/// What the `number`th connection says: half of them nothing.
fn nonsense(number: u64, recorded: &Recorded, random: &mut Random) -> Vec<u8> {
    match number % 8 {
        1 => vec![0xff; 40],
        3 => [vec![0, 120], bytes(random, 120)].concat(),
        // what was recorded, and then what cannot be known without the key
        5 => [&recorded.handshake[..], &[0, 16], &bytes(random, 16)].concat(),
        7 => recorded.handshake.clone(),
        _ => Vec::new(),
    }
}

fn bytes(random: &mut Random, count: usize) -> Vec<u8> {
    // 3: never a version of the pair's
    (0..count).map(|_| u8::try_from(random.range(3, 256)).unwrap_or(3)).collect()
}
