//! An HTTP server that takes its time, and clients that say what became of each request.
//!
//! `/wait/800/100`: after 800 ms an answer of 100 bytes. `/drip/10/80`: an answer of ten chunks,
//! one each 80 ms. Anything else: 200 at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::netns;
use crate::probe::Probe;

/// Answers on `port` of every address inside `namespace` until it is stopped; gives the number of
/// requests.
#[must_use]
pub fn server(namespace: &str, port: u16) -> Probe<u64> {
    Probe::start(namespace, move |stop| {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        listener.set_nonblocking(true)?;
        let requests = std::sync::atomic::AtomicU64::new(0);
        thread::scope(|scope| {
            while !stop.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    thread::park_timeout(Duration::from_millis(1));
                    continue;
                };
                // A balancer that ends its connection is no fault of the server's.
                scope.spawn(|| answer_all(stream, stop, &requests).ok());
            }
        });
        Ok(requests.load(Ordering::Relaxed))
    })
}

fn answer_all(
    stream: TcpStream,
    stop: &AtomicBool,
    requests: &std::sync::atomic::AtomicU64,
) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        match reader.read_until(b'\n', &mut head) {
            Ok(0) => return Ok(()),
            Ok(_) if head.ends_with(b"\r\n\r\n") => {
                let text = String::from_utf8_lossy(&head).into_owned();
                requests.fetch_add(1, Ordering::Relaxed);
                answer(reader.get_mut(), text.split(' ').nth(1).unwrap_or_default())?;
                head.clear();
            }
            Ok(_) => {}
            Err(_) if stop.load(Ordering::Relaxed) => return Ok(()),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

fn answer(stream: &mut TcpStream, path: &str) -> Result<()> {
    let words: Vec<&str> = path.split('/').skip(1).collect();
    match words[..] {
        ["wait", ms, length] => {
            wait(Duration::from_millis(ms.parse()?));
            let body = vec![b'x'; length.parse()?];
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())?;
            stream.write_all(&body)?;
        }
        ["drip", pieces, ms] => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            for _ in 0..pieces.parse::<u32>()? {
                wait(Duration::from_millis(ms.parse()?));
                stream.write_all(b"4\r\ndrip\r\n")?;
            }
            stream.write_all(b"0\r\n\r\n")?;
        }
        _ => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?,
    }
    Ok(())
}

/// The delay that was asked for.
fn wait(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
}

/// One request on a connection of its own, from inside `namespace`, on a thread of its own; the
/// connection is one that may be kept. Joined: the bytes of the body, and whether the answer said
/// that the connection ends.
pub fn request(
    namespace: &str,
    address: SocketAddr,
    path: &str,
) -> thread::JoinHandle<Result<(usize, bool)>> {
    let (namespace, path) = (namespace.to_owned(), path.to_owned());
    thread::spawn(move || {
        netns::enter(&namespace)?;
        get(address, &path).with_context(|| path.clone())
    })
}

/// Waits for the whole answer and, if it said so, for the end of the connection.
fn get(address: SocketAddr, path: &str) -> Result<(usize, bool)> {
    let limit = Duration::from_secs(5);
    let stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let mut reader = BufReader::new(stream);
    write!(reader.get_mut(), "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let (mut length, mut chunked, mut closes) = (0, false, false);
    let mut line = String::new();
    for number in 0.. {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "closed after {number} lines of the head");
        let text = line.trim().to_ascii_lowercase();
        match text.split_once(": ") {
            _ if number == 0 => ensure!(text.starts_with("http/1.1 200"), "{text}"),
            Some(("content-length", value)) => length = value.parse()?,
            Some(("transfer-encoding", "chunked")) => chunked = true,
            Some(("connection", "close")) => closes = true,
            None if text.is_empty() => break,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).context("in the body")?;
    while chunked {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "closed after {length} bytes in chunks");
        let size = usize::from_str_radix(line.trim(), 16)?;
        let mut piece = vec![0; size + 2];
        reader.read_exact(&mut piece).context("in a chunk")?;
        length += size;
        chunked = size > 0;
    }
    if closes && reader.read(&mut [0])? > 0 {
        bail!("bytes after the answer");
    }
    Ok((length, closes))
}

/// What [`stream_of_requests`] saw.
#[derive(Debug, Default)]
pub struct Requests {
    /// Answered with 200.
    pub answered: u64,
    /// Why others were not.
    pub failed: Vec<String>,
    /// Longest time between two answers.
    pub longest: Duration,
}

/// Requests that are answered at once, one after the other, each on a connection of its own.
#[must_use]
pub fn stream_of_requests(namespace: &str, address: SocketAddr) -> Probe<Requests> {
    Probe::start(namespace, move |stop| {
        let mut seen = Requests::default();
        let mut last = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            match get(address, "/now") {
                Ok(_) => {
                    seen.answered += 1;
                    seen.longest = seen.longest.max(last.elapsed());
                    last = Instant::now();
                }
                Err(error) => seen.failed.push(format!("{error:#}")),
            }
            thread::park_timeout(Duration::from_millis(1));
        }
        seen.longest = seen.longest.max(last.elapsed());
        Ok(seen)
    })
}
