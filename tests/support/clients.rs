//! Small blocking clients: the memcached text protocol and HTTP/1.1, with a time limit on
//! everything.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// One memcached connection (text protocol).
#[derive(Debug)]
pub struct Memcached {
    stream: BufReader<TcpStream>,
}

impl Memcached {
    /// Connects; every later call ends within `limit` of silence.
    ///
    /// # Errors
    /// As of connect.
    pub fn connect(address: SocketAddr, limit: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends raw bytes.
    ///
    /// # Errors
    /// As of write.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    /// Reads one line without its CRLF.
    ///
    /// # Errors
    /// On a closed connection or after the time limit.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the connection was closed");
        ensure!(line.ends_with("\r\n"), "a line without CRLF: {line:?}");
        line.truncate(line.len() - 2);
        Ok(line)
    }

    /// `set`, and its answer line.
    ///
    /// # Errors
    /// On I/O; a refusal is an `Ok` line.
    pub fn set(&mut self, key: &str, value: &[u8]) -> Result<String> {
        let mut request = format!("set {key} 0 0 {}\r\n", value.len()).into_bytes();
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
        self.send(&request)?;
        self.line()
    }

    /// `get` of one key: its value, or `None` for a miss.
    ///
    /// # Errors
    /// On I/O or an answer that is neither.
    pub fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        self.send(format!("get {key}\r\n").as_bytes())?;
        self.got(key)
    }

    /// `get` of many keys, one command each, all sent before the first answer is read.
    ///
    /// # Errors
    /// As of [`Memcached::get`].
    pub fn get_all(&mut self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>> {
        let commands: String = keys.iter().map(|key| format!("get {key}\r\n")).collect();
        self.send(commands.as_bytes())?;
        keys.iter().map(|key| self.got(key)).collect()
    }

    /// The answer to `get key`.
    fn got(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        let head = self.line()?;
        if head == "END" {
            return Ok(None);
        }
        let words: Vec<&str> = head.split(' ').collect();
        let ["VALUE", got, _flags, length] = words[..] else { bail!("not a VALUE line: {head:?}") };
        ensure!(got == key, "asked for {key}, got {got}");
        let length: usize = length.parse().context("length of a VALUE line")?;
        let mut value = vec![0; length + 2];
        self.stream.read_exact(&mut value)?;
        value.truncate(length);
        ensure!(self.line()? == "END", "no END after a value");
        Ok(Some(value))
    }

    /// `stats`, as name and value.
    ///
    /// # Errors
    /// On I/O.
    pub fn stats(&mut self) -> Result<Vec<(String, String)>> {
        self.send(b"stats\r\n")?;
        let mut all = Vec::new();
        loop {
            let line = self.line()?;
            if line == "END" {
                return Ok(all);
            }
            if let Some((name, value)) =
                line.strip_prefix("STAT ").and_then(|rest| rest.split_once(' '))
            {
                all.push((name.to_owned(), value.to_owned()));
            }
        }
    }
}

/// One HTTP/1.1 GET on a connection of its own: status and body.
///
/// # Errors
/// On I/O, after `limit` of silence, or when the head cannot be read.
pub fn http_get(address: SocketAddr, path: &str, limit: Duration) -> Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse_answer(&answer)
}

fn parse_answer(answer: &[u8]) -> Result<(u16, Vec<u8>)> {
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("no end of the head in the answer")?;
    let head = String::from_utf8_lossy(answer.get(..end).unwrap_or_default()).into_owned();
    let status = head.split(' ').nth(1).context("no status")?.parse().context("status")?;
    let body = answer.get(end + 4..).unwrap_or_default();
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if chunked { dechunk(body)? } else { body.to_vec() }))
}

fn dechunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.iter().position(|byte| *byte == b'\n').context("chunk size line")?;
        let (size, after) = rest.split_at(line + 1);
        let size = usize::from_str_radix(String::from_utf8_lossy(size).trim(), 16)?;
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(after.get(..size).context("chunk cut short")?);
        rest = after.get(size + 2..).context("chunk without CRLF")?;
    }
}
