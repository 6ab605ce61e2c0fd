//! The access log: nginx's combined format, then what the balancer knows.
//!
//! ```text
//! 192.0.2.7 - - [22/Nov/2026:19:50:02 +0000] "GET / HTTP/1.1" 200 612 "-" "curl/8"
//!     upstream=127.0.0.1:8080 tries=1 reused=1 uct=0.000 uht=0.002 rt=0.002 reason=-
//! ```
//! (one line). Workers append to a bounded buffer under a short lock; a thread of its own writes it
//! out twice a second, so that a slow disk never stops a worker. What does not fit is counted and
//! the count is logged.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};

use crate::config;
use crate::exchange::Record;

/// Most bytes waiting to be written.
const BUFFER_MAX: usize = 4 << 20;
/// Bytes that are written before their time.
const BUFFER_FULL: usize = 64 << 10;
/// Longest time a line waits.
const INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    lost: u64,
    /// The second of `date`, and its text.
    second: u64,
    date: String,
    closed: bool,
}

#[derive(Debug, Default)]
struct Inner {
    buffer: Mutex<Buffer>,
    full: Condvar,
}

/// What an access log is written to: a file, or stderr. Opened while the process may still open
/// files.
#[derive(Debug)]
pub struct AccessSink(Option<File>);

impl AccessSink {
    /// `None`: off.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(config: &config::AccessLog) -> io::Result<Option<Self>> {
        Ok(match config {
            config::AccessLog::Off => None,
            config::AccessLog::Stderr => Some(Self(None)),
            config::AccessLog::File(path) => {
                Some(Self(Some(OpenOptions::new().append(true).create(true).open(path)?)))
            }
        })
    }
}

/// Where lines go. The thread ends with it.
#[derive(Debug)]
pub(super) struct AccessLog {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.finish();
    }
}

impl AccessLog {
    /// Starts the thread that writes to `sink`.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start(sink: AccessSink) -> io::Result<Self> {
        let AccessSink(file) = sink;
        let inner = Arc::new(Inner::default());
        let weak = Arc::downgrade(&inner);
        let thread = thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_out(&weak, file))?;
        Ok(Self { inner, thread: Mutex::new(Some(thread)) })
    }

    /// Writes out what is there; later lines are lost.
    pub(super) fn finish(&self) {
        self.inner.buffer.lock().closed = true;
        self.inner.full.notify_one();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the access log's thread had died");
        }
    }

    pub(super) fn write(&self, client: IpAddr, record: &Record) {
        let second =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut buffer = self.inner.buffer.lock();
        if buffer.bytes.len() > BUFFER_MAX {
            buffer.lost += 1;
            return;
        }
        if buffer.second != second {
            buffer.second = second;
            buffer.date = date(second);
        }
        let mut bytes = std::mem::take(&mut buffer.bytes);
        let was_full = bytes.len() > BUFFER_FULL;
        line(&mut bytes, client, &buffer.date, record);
        let is_full = bytes.len() > BUFFER_FULL;
        buffer.bytes = bytes;
        drop(buffer);
        if is_full && !was_full {
            self.inner.full.notify_one();
        }
    }
}

fn write_out(inner: &Weak<Inner>, mut file: Option<File>) {
    let mut bytes = Vec::new();
    let mut failed = false;
    while let Some(inner) = inner.upgrade() {
        let mut buffer = inner.buffer.lock();
        if !buffer.closed && buffer.bytes.len() < BUFFER_FULL {
            inner.full.wait_for(&mut buffer, INTERVAL);
        }
        std::mem::swap(&mut bytes, &mut buffer.bytes);
        let (lost, closed) = (std::mem::take(&mut buffer.lost), buffer.closed);
        drop(buffer);
        let written = match &mut file {
            Some(file) => file.write_all(&bytes),
            None => io::stderr().write_all(&bytes),
        };
        if let Err(error) = &written
            && !failed
        {
            tracing::error!(%error, "the access log cannot be written");
        }
        failed = written.is_err();
        if lost > 0 {
            tracing::warn!(lost, "the access log was too slow: lines were lost");
        }
        bytes.clear();
        if closed {
            return;
        }
    }
}

fn line(out: &mut Vec<u8>, client: IpAddr, date: &str, record: &Record) {
    let mut text = String::with_capacity(160);
    // Writing to a String cannot fail.
    let _infallible = write!(text, "{client} - - [{date}] \"");
    out.extend_from_slice(text.as_bytes());
    escaped(out, if record.line().is_empty() { b"-" } else { record.line() });
    text.clear();
    let _infallible = write!(text, "\" {} {} \"", record.status, record.body_bytes);
    out.extend_from_slice(text.as_bytes());
    escaped(out, if record.referer().is_empty() { b"-" } else { record.referer() });
    out.extend_from_slice(b"\" \"");
    escaped(out, if record.user_agent().is_empty() { b"-" } else { record.user_agent() });
    text.clear();
    text.push_str("\" upstream=");
    let _infallible = match record.server {
        Some(server) => write!(text, "{server}"),
        None => write!(text, "-"),
    };
    let _infallible = write!(text, " tries={} reused={}", record.attempts, u8::from(record.reused));
    seconds(&mut text, "uct", record.started, record.connected);
    seconds(&mut text, "uht", record.started, record.answered);
    seconds(&mut text, "rt", record.started, Some(record.ended));
    let reason = record.reason.map_or("-", crate::http::Reason::code);
    let _infallible = writeln!(text, " reason={reason}");
    out.extend_from_slice(text.as_bytes());
}

fn seconds(text: &mut String, name: &str, from: Instant, to: Option<Instant>) {
    let _infallible = match to {
        Some(to) => {
            let time = to.saturating_duration_since(from);
            write!(text, " {name}={}.{:03}", time.as_secs(), time.subsec_millis())
        }
        None => write!(text, " {name}=-"),
    };
}

/// Quotes, backslashes and what is not printable ASCII as `\xHH`, so that a line stays a line.
fn escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    for &byte in bytes {
        if matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\' {
            out.push(byte);
        } else {
            let hex = |half: u8| b"0123456789ABCDEF"[usize::from(half & 15)];
            out.extend_from_slice(&[b'\\', b'x', hex(byte >> 4), hex(byte)]);
        }
    }
}

/// `22/Nov/2026:19:50:02 +0000` of seconds since 1970; UTC.
fn date(second: u64) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (mut days, time) = (second / 86_400, second % 86_400);
    let leap = |year: u64| {
        (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let (day, month) = (days + 1, MONTHS[month]);
    format!("{day:02}/{month}/{year}:{hour:02}:{minute:02}:{second:02} +0000")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        for (second, expected) in [
            (0, "01/Jan/1970:00:00:00 +0000"),
            (951_782_400, "29/Feb/2000:00:00:00 +0000"),
            (1_795_377_002, "22/Nov/2026:19:50:02 +0000"),
            (4_107_542_399, "28/Feb/2100:23:59:59 +0000"),
            (4_107_542_400, "01/Mar/2100:00:00:00 +0000"),
        ] {
            assert_eq!(date(second), expected);
        }
    }

    #[test]
    fn a_line_stays_a_line() {
        let mut out = Vec::new();
        escaped(&mut out, b"a\"b\\c\r\n\xe9");
        assert_eq!(out, b"a\\x22b\\x5Cc\\x0D\\x0A\\xE9");
    }
}
