//! Request heads (RFC 9112 §2, §3, §6): incremental, each line parsed once.

use super::fields::{
    self, Field, Fields, FramingFields, Known, LineError, Lines, Span, is_target, is_token,
};
use super::{Framing, Limits, Reason, Version, target};

/// Request methods with a meaning here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// HEAD: the answer has no body
    Head,
    /// POST
    Post,
    /// PUT
    Put,
    /// DELETE
    Delete,
    /// OPTIONS
    Options,
    /// PATCH
    Patch,
    /// Any other token; passed on, never replayed
    Other,
}

impl Method {
    fn of(token: &[u8]) -> Result<Self, Reason> {
        Ok(match token {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            b"PATCH" => Self::Patch,
            b"CONNECT" | b"TRACE" => return Err(Reason::MethodNotAllowed),
            _ => Self::Other,
        })
    }

    /// RFC 9110 §9.2.2: repeating it has the effect of one request.
    #[must_use]
    pub const fn is_idempotent(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Put | Self::Delete | Self::Options)
    }

    /// Whether a request without a body says so (RFC 9110 §8.6: methods that anticipate content).
    #[must_use]
    pub const fn anticipates_content(self) -> bool {
        matches!(self, Self::Post | Self::Put | Self::Patch)
    }
}

/// A parsed request head. Spans are into the bytes that were given to the parser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: Method,
    /// Method as written.
    pub method_text: Span,
    /// The whole request line without CRLF, for the log.
    pub line: Span,
    /// Path and query; empty or beginning with `?` in some absolute forms; `*` for OPTIONS.
    pub path: Span,
    /// Host and port: the target's authority, else the Host field. `None` only in HTTP/1.0.
    pub host: Option<Span>,
    /// Version of the client's message.
    pub version: Version,
    /// How its body is framed: `None`, `Length` or `Chunked`.
    pub framing: Framing,
    /// Whether the client wants the connection kept.
    pub keep_alive: bool,
    /// `Expect: 100-continue` in HTTP/1.1.
    pub expect_continue: bool,
    /// Bytes of the head, from the start of the buffer.
    pub len: usize,
}

#[derive(Debug, Clone, Copy)]
struct RequestLine {
    method: Method,
    method_text: Span,
    line: Span,
    target: Span,
    version: Version,
}

/// Parses the head at the start of a buffer that grows between calls. After an answer, [`Self::
/// reset`] makes it ready for the next head and keeps its memory.
#[derive(Debug, Clone, Default)]
pub struct RequestParser {
    lines: Lines,
    line: Option<RequestLine>,
    fields: Fields,
}

impl RequestParser {
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

    /// The request line as far as it is known, for the log of a refusal.
    #[must_use]
    pub fn line(&self) -> Option<Span> {
        self.line.map(|line| line.line)
    }

    /// Goes on with `buf`, which holds the head from its first byte. `None`: more bytes are needed.
    ///
    /// # Errors
    /// The reason of the refusal; the connection cannot be used for another request.
    pub fn parse(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<Request>, Reason> {
        if self.line.is_none() {
            self.line = self.request_line(buf, limits)?;
        }
        let Some(line) = self.line else { return Ok(None) };
        if !self.fields.read(&mut self.lines, buf, limits)? {
            return Ok(None);
        }
        self.finish(buf, line, limits).map(Some)
    }

    fn request_line(&mut self, buf: &[u8], limits: &Limits) -> Result<Option<RequestLine>, Reason> {
        // RFC 9112 §2.2: "a server that is expecting to receive and parse a request-line SHOULD
        // ignore at least one empty line (CRLF) received prior to the request-line": one.
        let skip = if buf.starts_with(b"\r\n") { 2 } else { 0 };
        if let Some(&first) = buf.get(skip)
            && !is_token(&[first])
            && !(skip == 0 && first == b'\r')
        {
            // Not HTTP at all (TLS, binary): no need to wait for a line.
            return Err(if first == b'\n' { Reason::BareLf } else { Reason::RequestLine });
        }
        loop {
            let line = match self.lines.next(buf, limits.request_line) {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(None),
                Err(LineError::BareLf) => return Err(Reason::BareLf),
                Err(LineError::TooLong) => return Err(Reason::TargetTooLong),
            };
            if !(line.is_empty() && line.start() == 0) {
                return request_line(buf, line).map(Some);
            }
        }
    }

    fn finish(
        &mut self,
        buf: &[u8],
        line: RequestLine,
        limits: &Limits,
    ) -> Result<Request, Reason> {
        let options = self.fields.connection(buf)?;
        let fields = self.fields.as_slice();
        let framing = request_framing(buf, fields, line.version, limits)?;
        let field_host = host_field(buf, fields, line.version)?;
        let target = target::parse(buf, line.target, line.method)?;
        let http11 = line.version == Version::Http11;
        Ok(Request {
            method: line.method,
            method_text: line.method_text,
            line: line.line,
            path: target.path,
            // RFC 9112 §3.2.2: the authority of an absolute-form target replaces Host.
            host: target.authority.or(field_host),
            version: line.version,
            framing,
            keep_alive: !options.close && (http11 || options.keep_alive),
            expect_continue: http11 && expect_continue(buf, fields)?,
            len: self.lines.position(),
        })
    }
}

fn request_line(buf: &[u8], line: Span) -> Result<RequestLine, Reason> {
    let bytes = line.of(buf);
    if bytes == b"PRI * HTTP/2.0" {
        return Err(Reason::Http2Preface);
    }
    let first = memchr::memchr(b' ', bytes).ok_or(Reason::RequestLine)?;
    let last = memchr::memrchr(b' ', bytes).ok_or(Reason::RequestLine)?;
    if first == last || !is_token(&bytes[..first]) {
        return Err(Reason::RequestLine);
    }
    let target = &bytes[first + 1..last];
    if target.is_empty() || memchr::memchr(b' ', target).is_some() {
        return Err(Reason::RequestLine);
    }
    if !is_target(target) {
        return Err(Reason::TargetSyntax);
    }
    let version = version(&bytes[last + 1..])?;
    let at = line.start();
    Ok(RequestLine {
        method: Method::of(&bytes[..first])?,
        method_text: Span::new(at, at + first),
        line,
        target: Span::new(at + first + 1, at + last),
        version,
    })
}

/// RFC 9112 §2.3: `HTTP-version = "HTTP" "/" DIGIT "." DIGIT`, case-sensitive.
pub(crate) fn version(text: &[u8]) -> Result<Version, Reason> {
    match text {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
            Err(Reason::VersionUnsupported)
        }
        _ => Err(Reason::VersionSyntax),
    }
}

/// RFC 9112 §6.3 for requests: neither field means no body.
fn request_framing(
    buf: &[u8],
    fields: &[Field],
    version: Version,
    limits: &Limits,
) -> Result<Framing, Reason> {
    let FramingFields { length, chunked } = fields::framing(buf, fields)?;
    if chunked {
        // RFC 9112 §6.1: "A server or client that receives an HTTP/1.0 message containing a
        // Transfer-Encoding header field MUST treat the message as if the framing is faulty".
        return if version == Version::Http11 {
            Ok(Framing::Chunked)
        } else {
            Err(Reason::TransferEncodingIn10)
        };
    }
    match length {
        Some(length) if length > limits.body => Err(Reason::BodyTooLarge),
        Some(length) => Ok(Framing::Length(length)),
        None => Ok(Framing::None),
    }
}

/// RFC 9112 §3.2: "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1
/// request message that lacks a Host header field and to any request message that contains more
/// than one Host header field line or a Host header field with an invalid field value."
fn host_field(buf: &[u8], fields: &[Field], version: Version) -> Result<Option<Span>, Reason> {
    let mut hosts = fields.iter().filter(|field| field.known == Known::Host);
    let Some(host) = hosts.next() else {
        return if version == Version::Http11 { Err(Reason::HostMissing) } else { Ok(None) };
    };
    if hosts.next().is_some() {
        return Err(Reason::HostDuplicate);
    }
    if target::is_authority(host.value.of(buf)) {
        Ok(Some(host.value))
    } else {
        Err(Reason::HostInvalid)
    }
}

/// RFC 9110 §10.1.1: only `100-continue` is known; anything else may be answered with 417, and is.
fn expect_continue(buf: &[u8], fields: &[Field]) -> Result<bool, Reason> {
    let mut expects = false;
    for field in fields.iter().filter(|field| field.known == Known::Expect) {
        for element in fields::list(field.value.of(buf)) {
            if !element.eq_ignore_ascii_case(b"100-continue") {
                return Err(Reason::ExpectUnknown);
            }
            expects = true;
        }
    }
    Ok(expects)
}
