//! What a client sees while the pair changes hands: a UDP probe each millisecond, new connections,
//! one request always in flight, and a writer that remembers which writes were answered.
//!
//! Each probe is a thread inside the client's namespace. An outage is the longest time between two
//! successes, less the probe's own period.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};

use crate::clients::{Memcached, http_get};
use crate::netns;

/// The longest gap of one kind of client over one event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outage {
    /// Longest time without a success.
    pub longest: Duration,
    /// Successes in all: a probe that never succeeded proves nothing.
    pub successes: u64,
    /// Attempts that failed.
    pub failures: u64,
}

/// Keeps the longest gap between successes.
#[derive(Debug)]
struct Gap {
    last: Instant,
    period: Duration,
    outage: Outage,
}

impl Gap {
    fn new(period: Duration) -> Self {
        Self { last: Instant::now(), period, outage: Outage::default() }
    }

    fn success(&mut self) {
        let now = Instant::now();
        let gap = now.duration_since(self.last).saturating_sub(self.period);
        self.outage.longest = self.outage.longest.max(gap);
        self.outage.successes += 1;
        self.last = now;
    }

    fn finish(mut self) -> Outage {
        // A probe that was still dark at the end has been dark until now.
        let gap = self.last.elapsed().saturating_sub(self.period);
        self.outage.longest = self.outage.longest.max(gap);
        self.outage
    }
}

/// A probe thread; [`Probe::stop`] gives what it saw. Dropped, it ends too, soon and unheard.
#[derive(Debug)]
pub struct Probe<T> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<T>>>,
}

impl<T> Drop for Probe<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl<T: Send + 'static> Probe<T> {
    pub(crate) fn start(
        namespace: &str,
        body: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (namespace, flag) = (namespace.to_owned(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            netns::enter(&namespace)?;
            body(&flag)
        });
        Self { stop, thread: Some(thread) }
    }

    /// Ends the probe.
    ///
    /// # Errors
    /// What ended it early.
    pub fn stop(mut self) -> Result<T> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a probe is stopped once")?;
        thread.join().map_err(|_panic| anyhow!("a probe thread panicked"))?
    }
}

/// Answers UDP datagrams to `vip:port` inside `namespace`, with `name` in front: the far end of
/// [`udp`]. The address need not be there yet.
#[must_use]
pub fn udp_echo(namespace: &str, vip: Ipv4Addr, port: u16, name: &str) -> Probe<u64> {
    let name = name.as_bytes().to_vec();
    Probe::start(namespace, move |stop| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        setsockopt(&socket, sockopt::IpFreebind, &true)?;
        socket.bind(&SocketAddr::from((vip, port)).into())?;
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut buffer = [0; 64];
        let mut answered = 0;
        while !stop.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            let mut answer = buffer.get(..length).unwrap_or_default().to_vec();
            answer.extend_from_slice(&name);
            // The path back may be cut just now; the prober counts what arrives.
            if socket.send_to(&answer, from).is_ok() {
                answered += 1;
            }
        }
        Ok(answered)
    })
}

/// One UDP datagram each millisecond to `vip:port`.
#[must_use]
pub fn udp(namespace: &str, vip: Ipv4Addr, port: u16) -> Probe<Outage> {
    Probe::start(namespace, move |stop| {
        let period = Duration::from_millis(1);
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((vip, port))?;
        socket.set_nonblocking(true)?;
        let mut gap = Gap::new(period);
        let mut next = Instant::now();
        let mut buffer = [0; 64];
        while !stop.load(Ordering::Relaxed) {
            // An unreachable host shows up as an error of a later call: it is an outage, not a
            // fault.
            if socket.send(&[0; 8]).is_err() {
                gap.outage.failures += 1;
            }
            next += period;
            loop {
                match socket.recv(&mut buffer) {
                    Ok(_) => gap.success(),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => gap.outage.failures += 1,
                }
                let now = Instant::now();
                if now >= next {
                    break;
                }
                thread::park_timeout((next - now).min(Duration::from_micros(250)));
            }
        }
        Ok(gap.finish())
    })
}

/// A new connection with one HTTP request every 5 ms.
#[must_use]
pub fn connections(namespace: &str, address: SocketAddr) -> Probe<Outage> {
    Probe::start(namespace, move |stop| {
        let period = Duration::from_millis(5);
        let mut gap = Gap::new(period);
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            match http_get(address, "/text", Duration::from_millis(200)) {
                Ok((200, _)) => gap.success(),
                Ok(_) | Err(_) => gap.outage.failures += 1,
            }
            thread::park_timeout(period.saturating_sub(begun.elapsed()));
        }
        Ok(gap.finish())
    })
}

/// What the writer remembers.
#[derive(Debug, Default)]
pub struct Written {
    /// The outage as this client saw it, reconnecting at once.
    pub outage: Outage,
    /// For each key, the last value that was answered with STORED.
    pub answered: Vec<Option<u64>>,
    /// For each key, the last value that was sent.
    pub sent: Vec<u64>,
    /// Lost keys that were printed.
    told: std::cell::Cell<u32>,
}

impl Written {
    /// Number of keys whose answered write is gone or older in `read`.
    ///
    /// # Errors
    /// As of `read`.
    pub fn lost(&self, mut read: impl FnMut(&str) -> Result<Option<Vec<u8>>>) -> Result<u64> {
        let mut lost = 0;
        for index in 0..self.answered.len() {
            if self.is_answered(index) {
                lost += u64::from(self.is_lost(index, read(&key(index))?));
            }
        }
        Ok(lost)
    }

    /// The same over one connection, many keys at a time.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn lost_at(&self, client: &mut Memcached) -> Result<u64> {
        let answered: Vec<usize> =
            (0..self.answered.len()).filter(|index| self.is_answered(*index)).collect();
        let mut lost = 0;
        for some in answered.chunks(100) {
            let keys: Vec<String> = some.iter().map(|index| key(*index)).collect();
            let values = client.get_all(&keys)?;
            let gone = some
                .iter()
                .zip(values)
                .filter(|(index, value)| self.is_lost(**index, value.clone()));
            lost += gone.count() as u64;
        }
        Ok(lost)
    }

    fn is_answered(&self, index: usize) -> bool {
        self.answered.get(index).is_some_and(Option::is_some)
    }

    fn is_lost(&self, index: usize, value: Option<Vec<u8>>) -> bool {
        let answered = self.answered.get(index).copied().flatten().unwrap_or(0);
        let sent = self.sent.get(index).copied().unwrap_or(0);
        let held = value.and_then(|bytes| String::from_utf8(bytes).ok()?.parse::<u64>().ok());
        let lost = held.is_none_or(|held| held < answered || held > sent);
        if lost {
            let told = self.told.get();
            if told < LOST_TOLD_MAX {
                eprintln!("{}: answered {answered}, sent {sent}, found {held:?}", key(index));
            }
            self.told.set(told + 1);
        }
        lost
    }
}

/// Lost keys that are printed each; what is more is only counted.
const LOST_TOLD_MAX: u32 = 5;

fn key(index: usize) -> String {
    format!("lab:{index}")
}

/// One connection that always has one `set` in flight, over `keys` keys with rising values.
#[must_use]
pub fn writer(namespace: &str, address: SocketAddr, keys: usize) -> Probe<Written> {
    Probe::start(namespace, move |stop| {
        let mut written =
            Written { answered: vec![None; keys], sent: vec![0; keys], ..Written::default() };
        let mut gap = Gap::new(Duration::ZERO);
        let mut connection = None;
        let mut value = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            value += 1;
            let index = usize::try_from(value).unwrap_or(0) % keys;
            match write_one(&mut connection, address, index, value, &mut written) {
                Ok(()) => gap.success(),
                Err(_) => {
                    connection = None;
                    gap.outage.failures += 1;
                    thread::park_timeout(Duration::from_millis(1));
                }
            }
        }
        written.outage = gap.finish();
        Ok(written)
    })
}

fn write_one(
    connection: &mut Option<Memcached>,
    address: SocketAddr,
    index: usize,
    value: u64,
    written: &mut Written,
) -> Result<()> {
    if connection.is_none() {
        *connection = Some(Memcached::connect(address, Duration::from_millis(300))?);
    }
    let client = connection.as_mut().context("connected above")?;
    *written.sent.get_mut(index).context("index below keys")? = value;
    let answer = client.set(&key(index), value.to_string().as_bytes())?;
    anyhow::ensure!(answer == "STORED", "answered {answer}");
    *written.answered.get_mut(index).context("index below keys")? = Some(value);
    Ok(())
}
