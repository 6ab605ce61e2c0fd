//! The load generator: N connections, each with D requests in flight, that counts answer bytes.
//!
//! It does not parse: the first exchange of each load learns the length of one answer, which stays
//! the same for the whole load. That makes it cheaper than the servers it drives.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// One kind of load.
pub(crate) struct Load {
    pub(crate) name: &'static str,
    /// What one connection sends before the load begins, and the answer's end.
    prepare: Vec<u8>,
    request: Vec<u8>,
    /// How many operations one request stands for (keys of a multi-get).
    operations: u64,
    connections: usize,
    depth: usize,
}

/// Loads of the HTTP table; the digit in the path tells the backend the size of the body.
pub(crate) fn http() -> Vec<Load> {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes();
    let load = |name, path: &str, connections, depth| Load {
        name,
        prepare: Vec::new(),
        request: get(path),
        operations: 1,
        connections,
        depth,
    };
    vec![
        load("small: 64 conns, 100 B", "/0", 64, 1),
        load("small8: 8 conns, 100 B", "/0", 8, 1),
        load("16k: 64 conns, 16 KiB", "/1", 64, 1),
        load("1m: 8 conns, 1 MiB", "/2", 8, 1),
        load("pipe16: 64 conns x 16", "/0", 64, 16),
    ]
}

const KEYS: usize = 1000;

fn key(index: usize) -> String {
    format!("bench:key:{:06}", index % KEYS)
}

/// Loads of the cache table: 1000 keys of 16 bytes, 100-byte values, all hits.
pub(crate) fn cache() -> Vec<Load> {
    let value = "v".repeat(100);
    let prepare: String =
        (0..KEYS).map(|index| format!("set {} 0 0 100\r\n{value}\r\n", key(index))).collect();
    let load = |name, request: String, operations, connections, depth| Load {
        name,
        prepare: prepare.clone().into_bytes(),
        request: request.into_bytes(),
        operations,
        connections,
        depth,
    };
    let get = format!("get {}\r\n", key(7));
    let keys: Vec<String> = (0..50).map(|index| key(index * 13)).collect();
    let set = format!("set {} 0 0 100\r\n{value}\r\n", key(11));
    vec![
        load("get: 50 conns", get.clone(), 1, 50, 1),
        load("get: 50 conns x 16", get.clone(), 1, 50, 16),
        load("get: 10 conns x 100", get, 1, 10, 100),
        load("multiget 50 keys: 10 conns", format!("get {}\r\n", keys.join(" ")), 50, 10, 1),
        load("set: 50 conns", set.clone(), 1, 50, 1),
        load("set: 50 conns x 16", set, 1, 50, 16),
    ]
}

struct Connection {
    stream: TcpStream,
    /// Bytes of answers still to come for the requests in flight.
    awaited: usize,
    /// Requests not yet written whole: bytes left of them.
    unsent: usize,
}

/// Runs the load for `time` and gives operations answered and the time it really took.
pub(crate) fn run(load: &Load, address: SocketAddr, time: Duration) -> Result<(u64, Duration)> {
    let length = learn(load, address)?;
    let batch = load.request.repeat(load.depth);
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(load.connections);
    let mut connections = Vec::with_capacity(load.connections);
    for index in 0..load.connections {
        let stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, Token(index), interest)?;
        connections.push(Connection { stream, awaited: 0, unsent: 0 });
    }
    let begun = Instant::now();
    let mut answered = 0;
    let mut buffer = vec![0; 256 << 10];
    for connection in &mut connections {
        begin(connection, &batch, length * load.depth)?;
    }
    while begun.elapsed() < time {
        poll.poll(&mut events, Some(Duration::from_secs(3)))?;
        ensure!(!events.is_empty(), "no answer for 3 s");
        for event in &events {
            let Some(connection) = connections.get_mut(event.token().0) else { continue };
            push(connection, &batch)?;
            answered += pull(connection, &mut buffer, &batch, length, load)?;
        }
    }
    Ok((answered * load.operations, begun.elapsed()))
}

fn begin(connection: &mut Connection, batch: &[u8], awaited: usize) -> Result<()> {
    connection.awaited = awaited;
    connection.unsent = batch.len();
    push(connection, batch)
}

fn push(connection: &mut Connection, batch: &[u8]) -> Result<()> {
    while connection.unsent > 0 {
        let from = batch.len() - connection.unsent;
        match connection.stream.write(batch.get(from..).unwrap_or_default()) {
            Ok(length) => connection.unsent -= length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("writing"),
        }
    }
    Ok(())
}

fn pull(
    connection: &mut Connection,
    buffer: &mut [u8],
    batch: &[u8],
    length: usize,
    load: &Load,
) -> Result<u64> {
    let mut answered = 0;
    loop {
        match connection.stream.read(buffer) {
            Ok(0) => bail!("the server closed a connection"),
            Ok(got) => {
                ensure!(got <= connection.awaited, "more bytes than answers");
                connection.awaited -= got;
                if connection.awaited == 0 {
                    answered += load.depth as u64;
                    begin(connection, batch, length * load.depth)?;
                }
                if got < buffer.len() {
                    return Ok(answered);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(answered),
            Err(error) => return Err(error).context("reading"),
        }
    }
}

/// One exchange on a connection of its own: the length of an answer. For HTTP by Content-Length,
/// for the cache by the answer's last line.
fn learn(load: &Load, address: SocketAddr) -> Result<usize> {
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(&load.prepare)?;
    let sets = load.prepare.len() / (KEYS.max(1) * 8);
    if sets > 0 {
        read_until(&mut stream, |bytes| bytes.len() == KEYS * b"STORED\r\n".len())?;
    }
    stream.write_all(&load.request)?;
    let answer = read_until(&mut stream, complete)?;
    let ok: [&[u8]; 3] = [b"HTTP/1.1 200", b"VALUE", b"STORED"];
    let begins = ok.iter().any(|start| answer.starts_with(start));
    let head: Vec<u8> = answer.iter().copied().take(200).collect();
    ensure!(begins, "an answer to measure: {}", String::from_utf8_lossy(&head));
    Ok(answer.len())
}

fn complete(bytes: &[u8]) -> bool {
    if !bytes.starts_with(b"HTTP") {
        return bytes.ends_with(b"END\r\n") || bytes.ends_with(b"STORED\r\n");
    }
    let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return false;
    };
    let text = String::from_utf8_lossy(bytes.get(..head).unwrap_or_default()).to_ascii_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|value| value.trim().parse::<usize>().ok());
    length.is_some_and(|length| bytes.len() >= head + 4 + length)
}

fn read_until(stream: &mut std::net::TcpStream, done: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut buffer = [0; 64 << 10];
    while !done(&all) {
        let got = stream.read(&mut buffer).context("an answer to learn from")?;
        ensure!(got > 0, "closed before an answer: {}", String::from_utf8_lossy(&all));
        all.extend_from_slice(buffer.get(..got).unwrap_or_default());
    }
    Ok(all)
}
