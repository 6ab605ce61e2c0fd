//! Response heads from a backend (RFC 9112 §4, §6.3): as strict as requests; the fault is the
//! backend's and the client gets 502.

use super::fields::{self, Fields, Known, LineError, Lines, Span, is_value};
use super::request::version;
use super::{Framing, Limits, Method, Reason, Version};

/// A parsed response head. Spans are into the bytes that were given to the parser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status, 100 to 599.
    pub status: u16,
    /// Reason phrase as written; may be empty.
    pub phrase: Span,
    /// How its body is framed, given the request's method.
    pub framing: Framing,
    /// The Content-Length of an answer that has no body (HEAD, 304), passed on.
    pub announced: Option<u64>,
    /// Whether the backend keeps the connection.
    pub keep_alive: bool,
    /// `Keep-Alive: timeout=` in seconds, when given.
    pub idle_timeout_s: Option<u32>,
    /// Bytes of the head.
    pub len: usize,
}

impl Response {
    /// 1xx: another head follows.
    #[must_use]
    pub const fn is_interim(&self) -> bool {
        self.status < 200
    }
}

#[derive(Debug, Clone, Copy)]
struct StatusLine {
    version: Version,
    status: u16,
    phrase: Span,
}

/// Parses the head at the start of a buffer that grows between calls.
#[derive(Debug, Clone, Default)]
pub struct ResponseParser {
    lines: Lines,
    line: Option<StatusLine>,
    fields: Fields,
}

impl ResponseParser {
    /// A parser at the start of a head.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the head; memory is kept for the next.
    pub fn reset(&mut self) {
        self.lines = Lines::default();
        self.line = None;
        self.fields.clear();
    }

    /// The fields read so far.
    #[must_use]
    pub const fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Goes on with `buf`, which holds the head from its first byte. `None`: more bytes are needed.
    ///
    /// # Errors
    /// `ReplyHead`, `ReplyTooLarge`, `ReplyStatus`, `ReplyFraming`, `ReplyUpgrade`.
    pub fn parse(
        &mut self,
        buf: &[u8],
        method: Method,
        limits: &Limits,
    ) -> Result<Option<Response>, Reason> {
        if self.line.is_none() {
            self.line = match self.lines.next(buf, limits.request_line) {
                Ok(Some(line)) => Some(status_line(buf, line)?),
                Ok(None) => return Ok(None),
                Err(LineError::BareLf) => return Err(Reason::ReplyHead),
                Err(LineError::TooLong) => return Err(Reason::ReplyTooLarge),
            };
        }
        let Some(line) = self.line else { return Ok(None) };
        if !self.fields.read(&mut self.lines, buf, limits).map_err(reply_reason)? {
            return Ok(None);
        }
        self.finish(buf, line, method).map(Some)
    }

    fn finish(&mut self, buf: &[u8], line: StatusLine, method: Method) -> Result<Response, Reason> {
        let options = self.fields.connection(buf).map_err(reply_reason)?;
        let found =
            fields::framing(buf, self.fields.as_slice()).map_err(|_why| Reason::ReplyFraming)?;
        let http11 = line.version == Version::Http11;
        if found.chunked && !http11 {
            return Err(Reason::ReplyFraming); // RFC 9112 §6.1
        }
        if line.status == 101 {
            return Err(Reason::ReplyUpgrade);
        }
        // RFC 9112 §6.3, rules 1, 4, 6, 8 in that order.
        let bodiless =
            method == Method::Head || line.status < 200 || matches!(line.status, 204 | 304);
        let framing = if bodiless {
            Framing::None
        } else if found.chunked {
            Framing::Chunked
        } else {
            found.length.map_or(Framing::UntilClose, Framing::Length)
        };
        let announced = found.length.filter(|_| method == Method::Head || line.status == 304);
        Ok(Response {
            status: line.status,
            phrase: line.phrase,
            framing,
            announced: announced.filter(|_| line.status >= 200 && line.status != 204),
            keep_alive: framing != Framing::UntilClose
                && !options.close
                && (http11 || options.keep_alive),
            idle_timeout_s: self.idle_timeout(buf),
            len: self.lines.position(),
        })
    }

    fn idle_timeout(&self, buf: &[u8]) -> Option<u32> {
        self.fields.values(buf, Known::KeepAlive).flat_map(fields::list).find_map(|parameter| {
            let digits = parameter.strip_prefix(b"timeout=")?;
            std::str::from_utf8(digits).ok()?.parse().ok()
        })
    }
}

const fn reply_reason(reason: Reason) -> Reason {
    match reason {
        Reason::FieldTooLong | Reason::HeadTooLong | Reason::TooManyFields => Reason::ReplyTooLarge,
        _ => Reason::ReplyHead,
    }
}

/// RFC 9112 §4: `status-line = HTTP-version SP status-code SP [ reason-phrase ]`. The second SP may
/// be missing with the phrase (product requirement: backends leave it out; it has one reading).
fn status_line(buf: &[u8], line: Span) -> Result<StatusLine, Reason> {
    let bytes = line.of(buf);
    if bytes.len() < 12 || bytes[8] != b' ' {
        return Err(Reason::ReplyHead);
    }
    let version = version(&bytes[..8]).map_err(|_why| Reason::ReplyHead)?;
    let digits = &bytes[9..12];
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(Reason::ReplyStatus);
    }
    match bytes.get(12) {
        None | Some(b' ') => {}
        Some(byte) if byte.is_ascii_digit() => return Err(Reason::ReplyStatus),
        Some(_) => return Err(Reason::ReplyHead),
    }
    let status = digits.iter().fold(0, |status, &digit| status * 10 + u16::from(digit - b'0'));
    if !(100..600).contains(&status) {
        return Err(Reason::ReplyStatus);
    }
    let phrase = Span::new(line.start() + bytes.len().min(13), line.end());
    if !is_value(phrase.of(buf)) {
        return Err(Reason::ReplyHead);
    }
    Ok(StatusLine { version, status, phrase })
}
