//! The strict writer: the one canonical form of a head ("never send incorrect requests upstream").
//!
//! Whatever came in, what goes out has exactly one Host, at most one framing field, no field of
//! this hop, and no byte that the parser did not accept.

use super::fields::{Field, Known};
use super::{Framing, Request, Response, Version};

/// What is known of the client, for the fields that tell the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded<'a> {
    /// The client's address as text, without port.
    pub client: &'a [u8],
    /// `http`.
    pub proto: &'a [u8],
    /// Port that the client connected to, as text.
    pub port: &'a [u8],
    /// Whether X-Forwarded-* of the client itself is believed and extended; else it is replaced.
    pub trusted: bool,
    /// Host for an HTTP/1.0 request without one.
    pub default_host: &'a [u8],
}

/// How the body of an answer goes to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerFraming {
    /// No body and no framing field.
    None,
    /// A Content-Length; also for an answer without a body that announces one.
    Length(u64),
    /// Chunked.
    Chunked,
    /// The end of the connection (HTTP/1.0 clients).
    UntilClose,
}

/// Appends the request head that goes to a backend.
///
/// `head` and `fields` are what the parser saw.
pub fn write_request(
    out: &mut Vec<u8>,
    head: &[u8],
    request: &Request,
    fields: &[Field],
    forwarded: &Forwarded<'_>,
) {
    out.reserve(request.len + 256);
    let host = request.host.map_or(forwarded.default_host, |host| host.of(head));
    out.extend_from_slice(request.method_text.of(head));
    out.push(b' ');
    let path = request.path.of(head);
    if !matches!(path.first(), Some(b'/' | b'*')) {
        // RFC 9112 §3.2.4: an OPTIONS in absolute form with an empty path becomes "*".
        let server_wide = path.is_empty() && request.method == super::Method::Options;
        out.push(if server_wide { b'*' } else { b'/' });
    }
    out.extend_from_slice(path);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    line(out, b"Host", host);
    for field in fields {
        if request_field_goes_on(field, request.version, forwarded.trusted) {
            line(out, field.name.of(head), field.value.of(head));
        }
    }
    write_forwarded(out, head, host, fields, forwarded);
    match request.framing {
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::Length(length) => content_length(out, length),
        Framing::None if request.method.anticipates_content() => content_length(out, 0),
        Framing::None | Framing::UntilClose => {}
    }
    out.extend_from_slice(b"\r\n");
}

const fn request_field_goes_on(field: &Field, version: Version, trusted: bool) -> bool {
    match field.known {
        Known::Host
        | Known::ContentLength
        | Known::TransferEncoding
        | Known::Connection
        | Known::KeepAlive
        | Known::HopByHop
        | Known::ForwardedFor => false,
        Known::Forwarded => trusted,
        // RFC 9110 §10.1.1: in HTTP/1.0 it is ignored.
        Known::Expect => !field.nominated && matches!(version, Version::Http11),
        Known::Cookie | Known::Referer | Known::UserAgent | Known::Other => !field.nominated,
    }
}

fn write_forwarded(
    out: &mut Vec<u8>,
    head: &[u8],
    host: &[u8],
    fields: &[Field],
    forwarded: &Forwarded<'_>,
) {
    out.extend_from_slice(b"X-Forwarded-For: ");
    if forwarded.trusted {
        for field in fields.iter().filter(|field| field.known == Known::ForwardedFor) {
            if !field.value.is_empty() {
                out.extend_from_slice(field.value.of(head));
                out.extend_from_slice(b", ");
            }
        }
    }
    out.extend_from_slice(forwarded.client);
    out.extend_from_slice(b"\r\n");
    let given = |name: &[u8]| {
        let is = |field: &&Field| field.name.of(head).eq_ignore_ascii_case(name);
        forwarded.trusted && fields.iter().filter(is).count() > 0
    };
    for (name, value) in [
        (&b"X-Forwarded-Proto"[..], forwarded.proto),
        (b"X-Forwarded-Host", host),
        (b"X-Forwarded-Port", forwarded.port),
    ] {
        if !given(name) {
            line(out, name, value);
        }
    }
}

/// Appends the answer head that goes to the client. `close`: this connection ends after it.
pub fn write_response(
    out: &mut Vec<u8>,
    head: &[u8],
    response: &Response,
    fields: &[Field],
    framing: AnswerFraming,
    connection: Connection,
) {
    out.reserve(response.len + 64);
    status_line(out, response.status, response.phrase.of(head));
    for field in fields {
        let goes_on = match field.known {
            Known::ContentLength
            | Known::TransferEncoding
            | Known::Connection
            | Known::KeepAlive
            | Known::HopByHop => false,
            _ => !field.nominated,
        };
        if goes_on {
            line(out, field.name.of(head), field.value.of(head));
        }
    }
    finish_answer(out, framing, connection);
}

/// Appends a 1xx head: no framing, no `Connection`.
pub fn write_interim(out: &mut Vec<u8>, head: &[u8], response: &Response, fields: &[Field]) {
    let connection = Connection::Unsaid;
    write_response(out, head, response, fields, AnswerFraming::None, connection);
}

/// What is said of the connection in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// Nothing: HTTP/1.1 keeps it.
    Unsaid,
    /// `close`.
    Close,
    /// `keep-alive`, for HTTP/1.0 clients that asked.
    KeepAlive,
}

pub(crate) fn status_line(out: &mut Vec<u8>, status: u16, phrase: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.push(b' ');
    out.extend_from_slice(phrase);
    out.extend_from_slice(b"\r\n");
}

pub(crate) fn finish_answer(out: &mut Vec<u8>, framing: AnswerFraming, connection: Connection) {
    match framing {
        AnswerFraming::None | AnswerFraming::UntilClose => {}
        AnswerFraming::Length(length) => content_length(out, length),
        AnswerFraming::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    match connection {
        Connection::Unsaid => {}
        Connection::Close => out.extend_from_slice(b"Connection: close\r\n"),
        Connection::KeepAlive => out.extend_from_slice(b"Connection: keep-alive\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}

fn content_length(out: &mut Vec<u8>, length: u64) {
    line(out, b"Content-Length", itoa::Buffer::new().format(length).as_bytes());
}

pub(crate) fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
