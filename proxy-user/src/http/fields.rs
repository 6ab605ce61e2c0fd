//! Lines, fields and the alphabets of RFC 9110 §5 and RFC 9112 §2.2, §5.
//!
//! A head is read line by line as it arrives: each byte is searched once and each line parsed once,
//! however the bytes are split. Fields are spans into the head's bytes; nothing is copied.

use super::{Limits, Reason};

/// A range of a head's bytes. Heads are limited far below 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// The bytes from `start` to `end`; `start <= end`, both below 4 GiB.
    #[must_use]
    pub fn new(start: usize, end: usize) -> Self {
        debug_assert!(start <= end && end <= u32::MAX as usize, "spans are within a limited head");
        Self { start: start as u32, end: end as u32 }
    }

    /// The bytes meant, of the head they were parsed from.
    #[must_use]
    pub fn of(self, head: &[u8]) -> &[u8] {
        head.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// Whether the span has no bytes.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// First position.
    #[must_use]
    pub const fn start(self) -> usize {
        self.start as usize
    }

    /// Position after the last.
    #[must_use]
    pub const fn end(self) -> usize {
        self.end as usize
    }
}

/// Fields that the balancer itself looks at; everything else is `Other` and passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Host
    Host,
    /// Content-Length
    ContentLength,
    /// Transfer-Encoding
    TransferEncoding,
    /// Connection
    Connection,
    /// Keep-Alive
    KeepAlive,
    /// Expect
    Expect,
    /// Cookie
    Cookie,
    /// X-Forwarded-For, the list of addresses
    ForwardedFor,
    /// X-Forwarded-Proto, -Host, -Port: one value each
    Forwarded,
    /// Proxy-Connection, TE, Trailer, Upgrade: of this hop only (RFC 9110 §7.6.1)
    HopByHop,
    /// Referer, for the log
    Referer,
    /// User-Agent, for the log
    UserAgent,
    /// Any other
    Other,
}

impl Known {
    /// Which field a name means, in any case of letters.
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
        match name.len() {
            2 if is("te") => Self::HopByHop,
            4 if is("host") => Self::Host,
            6 if is("cookie") => Self::Cookie,
            6 if is("expect") => Self::Expect,
            7 if is("referer") => Self::Referer,
            7 if is("trailer") || is("upgrade") => Self::HopByHop,
            10 if is("user-agent") => Self::UserAgent,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::KeepAlive,
            14 if is("content-length") => Self::ContentLength,
            15 if is("x-forwarded-for") => Self::ForwardedFor,
            16 if is("proxy-connection") => Self::HopByHop,
            16 if is("x-forwarded-host") || is("x-forwarded-port") => Self::Forwarded,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            17 if is("x-forwarded-proto") => Self::Forwarded,
            _ => Self::Other,
        }
    }
}

/// One field line: spans into the head, its meaning, and whether `Connection` named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Name as written.
    pub name: Span,
    /// Value without the whitespace around it.
    pub value: Span,
    /// Its meaning here.
    pub known: Known,
    /// Named by `Connection`: goes no further.
    pub nominated: bool,
}

/// Most options in the `Connection` fields of one head.
const CONNECTION_OPTIONS_MAX: usize = 32;

const TOKEN: u8 = 1;
const VALUE: u8 = 2;
const TARGET: u8 = 4;
const HOST: u8 = 8;

/// Which alphabets a byte belongs to.
static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        let alnum = byte.is_ascii_alphanumeric();
        let mut class = 0;
        if alnum || in_list(byte, b"!#$%&'*+-.^_`|~") {
            class |= TOKEN; // RFC 9110 §5.6.2
        }
        if byte == b'\t' || byte == b' ' || byte.is_ascii_graphic() || byte >= 0x80 {
            class |= VALUE; // RFC 9110 §5.5
        }
        if byte.is_ascii_graphic() && byte != b'#' {
            class |= TARGET; // RFC 9112 §3.2; browsers send more than RFC 3986 allows
        }
        if alnum || in_list(byte, b"-._~") {
            class |= HOST; // RFC 3986 §3.2.2 less pct-encoded and sub-delims: product requirement
        }
        table[at] = class;
        at += 1;
    }
    table
}

const fn in_list(byte: u8, list: &[u8]) -> bool {
    let mut at = 0;
    while at < list.len() {
        if list[at] == byte {
            return true;
        }
        at += 1;
    }
    false
}

fn all(bytes: &[u8], class: u8) -> bool {
    bytes.iter().all(|&byte| CLASS[byte as usize] & class != 0)
}

/// RFC 9110 §5.6.2: one or more token characters.
#[must_use]
pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && all(bytes, TOKEN)
}

/// RFC 9110 §5.5: HTAB, SP, visible characters and obs-text; may be empty.
#[must_use]
pub fn is_value(bytes: &[u8]) -> bool {
    all(bytes, VALUE)
}

/// Whether every byte may stand in a request target.
#[must_use]
pub fn is_target(bytes: &[u8]) -> bool {
    !bytes.is_empty() && all(bytes, TARGET)
}

/// Whether every byte may stand in a host name or IPv4 address.
#[must_use]
pub fn is_host_name(bytes: &[u8]) -> bool {
    !bytes.is_empty() && all(bytes, HOST)
}

/// Elements of a comma-separated list without the whitespace around them; empty ones are skipped
/// (RFC 9110 §5.6.1.2).
pub fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim).filter(|element| !element.is_empty())
}

/// Without the SP and HTAB around it.
#[must_use]
pub fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Why no line could be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineError {
    /// Longer than the limit.
    TooLong,
    /// LF without CR before it.
    BareLf,
}

/// Finds lines in a growing buffer, searching each byte once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines {
    /// Where the next line begins.
    start: usize,
    /// Everything before has no LF at or after `start`; `start <= searched`.
    searched: usize,
}

impl Lines {
    /// The next whole line without its CRLF, or `None` when more bytes are needed.
    pub(crate) fn next(&mut self, buf: &[u8], limit: usize) -> Result<Option<Span>, LineError> {
        let Some(unseen) = buf.get(self.searched..) else { return Ok(None) };
        let Some(offset) = memchr::memchr(b'\n', unseen) else {
            self.searched = buf.len();
            // One more than the limit may be the CR.
            let too_long = buf.len().saturating_sub(self.start) > limit + 1;
            return if too_long { Err(LineError::TooLong) } else { Ok(None) };
        };
        let lf = self.searched + offset;
        // The same bound as above, so that the verdict does not depend on how bytes were split.
        if lf - self.start > limit + 1 {
            return Err(LineError::TooLong);
        }
        if lf == self.start || buf[lf - 1] != b'\r' {
            return Err(LineError::BareLf);
        }
        let line = Span::new(self.start, lf - 1);
        self.start = lf + 1;
        self.searched = self.start;
        Ok(Some(line))
    }

    /// Where the next line begins: all before it is parsed.
    pub(crate) const fn position(&self) -> usize {
        self.start
    }
}

/// The field section of a head, as far as it has arrived.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    list: Vec<Field>,
}

impl Fields {
    /// The fields in the order of their lines.
    #[must_use]
    pub fn as_slice(&self) -> &[Field] {
        &self.list
    }

    /// Values of one known field, in order.
    pub fn values<'a>(&'a self, head: &'a [u8], known: Known) -> impl Iterator<Item = &'a [u8]> {
        self.list.iter().filter(move |f| f.known == known).map(move |f| f.value.of(head))
    }

    pub(crate) fn clear(&mut self) {
        self.list.clear();
    }

    /// Reads field lines until the empty line. `Ok(true)`: the head is complete.
    pub(crate) fn read(
        &mut self,
        lines: &mut Lines,
        buf: &[u8],
        limits: &Limits,
    ) -> Result<bool, Reason> {
        loop {
            let line = match lines.next(buf, limits.field_line) {
                Ok(Some(line)) => line,
                Ok(None) if buf.len() > limits.head => return Err(Reason::HeadTooLong),
                Ok(None) => return Ok(false),
                Err(LineError::BareLf) => return Err(Reason::BareLf),
                Err(LineError::TooLong) => return Err(Reason::FieldTooLong),
            };
            if lines.position() > limits.head {
                return Err(Reason::HeadTooLong);
            }
            if line.is_empty() {
                return Ok(true);
            }
            if self.list.len() == limits.fields {
                return Err(Reason::TooManyFields);
            }
            self.list.push(field(buf, line)?);
        }
    }

    /// RFC 9110 §7.6.1: "Intermediaries MUST parse a received Connection header field before a
    /// message is forwarded and, for each connection-option in this field, remove any header or
    /// trailer field(s) from the message with the same name as the connection-option".
    pub(crate) fn connection(&mut self, head: &[u8]) -> Result<ConnectionOptions, Reason> {
        let mut options = ConnectionOptions::default();
        let mut count = 0;
        for at in 0..self.list.len() {
            if self.list[at].known != Known::Connection {
                continue;
            }
            for option in list(self.list[at].value.of(head)) {
                count += 1;
                if count > CONNECTION_OPTIONS_MAX || !is_token(option) {
                    return Err(Reason::ConnectionInvalid);
                }
                if option.eq_ignore_ascii_case(b"close") {
                    options.close = true;
                } else if option.eq_ignore_ascii_case(b"keep-alive") {
                    options.keep_alive = true;
                } else {
                    self.nominate(head, option);
                }
            }
        }
        Ok(options)
    }

    fn nominate(&mut self, head: &[u8], option: &[u8]) {
        for field in &mut self.list {
            field.nominated |= field.name.of(head).eq_ignore_ascii_case(option);
        }
    }
}

/// What `Connection` said, besides naming fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ConnectionOptions {
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
}

fn field(buf: &[u8], line: Span) -> Result<Field, Reason> {
    let bytes = line.of(buf);
    if matches!(bytes.first(), Some(b' ' | b'\t')) {
        return Err(Reason::ObsFold);
    }
    let colon = memchr::memchr(b':', bytes).ok_or(Reason::FieldName)?;
    let name = &bytes[..colon];
    if matches!(name.last(), Some(b' ' | b'\t')) {
        return Err(Reason::SpaceBeforeColon);
    }
    if !is_token(name) {
        return Err(Reason::FieldName);
    }
    let raw = &bytes[colon + 1..];
    if !is_value(raw) {
        return Err(Reason::FieldValue);
    }
    let leading = raw.iter().take_while(|&&byte| byte == b' ' || byte == b'\t').count();
    let start = line.start() + colon + 1 + leading;
    let value = Span::new(start, start + trim(raw).len());
    let name_span = Span::new(line.start(), line.start() + colon);
    Ok(Field { name: name_span, value, known: Known::of(name), nominated: false })
}

/// Framing fields of a head, before the rules of request or response are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FramingFields {
    pub(crate) length: Option<u64>,
    pub(crate) chunked: bool,
}

/// Reads `Content-Length` and `Transfer-Encoding` (RFC 9112 §6). At most one of the two results is
/// set.
pub(crate) fn framing(head: &[u8], fields: &[Field]) -> Result<FramingFields, Reason> {
    let mut found = FramingFields::default();
    for field in fields {
        match field.known {
            Known::ContentLength if found.length.is_some() => {
                return Err(Reason::ContentLengthDuplicate);
            }
            Known::ContentLength => found.length = Some(content_length(field.value.of(head))?),
            Known::TransferEncoding if found.chunked => {
                return Err(Reason::TransferEncodingInvalid);
            }
            Known::TransferEncoding => {
                transfer_encoding(field.value.of(head))?;
                found.chunked = true;
            }
            _ => {}
        }
    }
    // RFC 9112 §6.1: "Early termination ... might indicate an attempt to perform request smuggling"
    if found.chunked && found.length.is_some() {
        return Err(Reason::LengthAndChunked);
    }
    Ok(found)
}

/// RFC 9110 §8.6: `Content-Length = 1*DIGIT`. At most 63 bits, so that sums do not overflow.
fn content_length(value: &[u8]) -> Result<u64, Reason> {
    if value.is_empty() || value.len() > 19 {
        return Err(Reason::ContentLengthInvalid);
    }
    let mut length: u64 = 0;
    for &byte in value {
        if !byte.is_ascii_digit() {
            return Err(Reason::ContentLengthInvalid);
        }
        length = length * 10 + u64::from(byte - b'0');
    }
    if length > i64::MAX as u64 { Err(Reason::ContentLengthInvalid) } else { Ok(length) }
}

/// Only `chunked`, alone. RFC 9112 §6.1: "A server that receives a request message with a transfer
/// coding it does not understand SHOULD respond with 501 (Not Implemented)."
fn transfer_encoding(value: &[u8]) -> Result<(), Reason> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut chunked = 0;
    let mut last_is_chunked = false;
    let mut codings = 0;
    for element in list(value) {
        let name = trim(element.split(|&byte| byte == b';').next().unwrap_or_default());
        if !is_token(name) {
            return Err(Reason::TransferEncodingInvalid);
        }
        codings += 1;
        last_is_chunked = name.eq_ignore_ascii_case(b"chunked");
        chunked += usize::from(last_is_chunked);
    }
    // Unknown codings are 501 while chunked stays last and single; anything else is bad framing.
    let unknown = codings > chunked && (chunked == 0 || (chunked == 1 && last_is_chunked));
    Err(if unknown { Reason::TransferEncodingUnknown } else { Reason::TransferEncodingInvalid })
}
