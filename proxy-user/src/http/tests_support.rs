//! Helpers of the byte tables and of the fuzz body: one head in, verdict and canonical bytes out.

use super::body::BodyReader;
use super::chunked::{write_chunk, write_last_chunk};
use super::writer::{AnswerFraming, Connection, Forwarded, write_request, write_response};
use super::{Framing, Limits, Method, Reason, RequestParser, ResponseParser};

/// A client as the tables know it.
pub(crate) fn forwarded() -> Forwarded<'static> {
    Forwarded {
        client: b"192.0.2.7",
        proto: b"http",
        port: b"80",
        trusted: false,
        default_host: b"backend",
    }
}

/// The verdict on one message: its canonical form and how much of the input it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Forward { bytes: Vec<u8>, consumed: usize },
    Incomplete,
    Refused(Reason),
}

/// Feeds `input` in pieces that end at `cuts`, as a socket would.
fn pieces(input: &[u8], cuts: &[usize]) -> Vec<usize> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
    ends.push(input.len());
    ends.sort_unstable();
    ends
}

/// One request through parser, body reader and writer.
pub(crate) fn request(input: &[u8], cuts: &[usize], limits: &Limits) -> Verdict {
    let mut parser = RequestParser::new();
    for end in pieces(input, cuts) {
        match parser.parse(&input[..end], limits) {
            Err(reason) => return Verdict::Refused(reason),
            Ok(None) => {}
            Ok(Some(request)) => {
                let mut out = Vec::new();
                let fields = parser.fields().as_slice();
                write_request(&mut out, &input[..end], &request, fields, &forwarded());
                let rest = &input[request.len..];
                return match body(&mut out, rest, request.framing, limits) {
                    Ok(Some(used)) => Verdict::Forward { bytes: out, consumed: request.len + used },
                    Ok(None) => Verdict::Incomplete,
                    Err(reason) => Verdict::Refused(reason),
                };
            }
        }
    }
    Verdict::Incomplete
}

/// One response through parser, body reader and writer, for a 1.1 client that is kept.
pub(crate) fn response(input: &[u8], cuts: &[usize], method: Method, limits: &Limits) -> Verdict {
    let mut parser = ResponseParser::new();
    for end in pieces(input, cuts) {
        match parser.parse(&input[..end], method, limits) {
            Err(reason) => return Verdict::Refused(reason),
            Ok(None) => {}
            Ok(Some(response)) => {
                let framing = match response.framing {
                    Framing::None => {
                        response.announced.map_or(AnswerFraming::None, AnswerFraming::Length)
                    }
                    Framing::Length(length) => AnswerFraming::Length(length),
                    Framing::Chunked | Framing::UntilClose => AnswerFraming::Chunked,
                };
                let mut out = Vec::new();
                let fields = parser.fields().as_slice();
                let kept = Connection::Unsaid;
                write_response(&mut out, &input[..end], &response, fields, framing, kept);
                let rest = &input[response.len..];
                return match body(&mut out, rest, response.framing, limits) {
                    Ok(Some(used)) => {
                        Verdict::Forward { bytes: out, consumed: response.len + used }
                    }
                    Ok(None) => Verdict::Incomplete,
                    Err(_reason) => Verdict::Refused(Reason::ReplyChunk),
                };
            }
        }
    }
    Verdict::Incomplete
}

fn body(
    out: &mut Vec<u8>,
    rest: &[u8],
    framing: Framing,
    limits: &Limits,
) -> Result<Option<usize>, Reason> {
    use super::body::BodyError;
    let chunked = matches!(framing, Framing::Chunked | Framing::UntilClose);
    let mut reader = BodyReader::new(framing, limits.body, limits);
    let mut at = 0;
    while !reader.is_done() {
        let taken = reader.read(&rest[at..]).map_err(|error| match error {
            BodyError::TooLarge => Reason::BodyTooLarge,
            BodyError::Malformed | BodyError::Truncated => Reason::ChunkInvalid,
        })?;
        let data = &rest[at..][taken.data.clone()];
        if chunked {
            write_chunk(out, data);
        } else {
            out.extend_from_slice(data);
        }
        at += taken.consumed;
        if taken.consumed == 0 || (at == rest.len() && !reader.is_done()) {
            if reader.handle_eof().is_err() {
                return Ok(None);
            }
            break;
        }
    }
    if chunked {
        write_last_chunk(out);
    }
    Ok(Some(at))
}

/// What is accepted has a canonical form that is accepted too and is its own canonical form.
pub(crate) fn canonical_is_stable(input: &[u8]) {
    let limits = Limits { body: 1 << 20, ..Limits::default() };
    if let Verdict::Forward { bytes, .. } = request(input, &[], &limits) {
        assert_request_is_strict(&bytes);
        let Verdict::Forward { bytes: again, consumed } = request(&bytes, &[], &limits) else {
            panic!("canonical form refused: {}", bytes.escape_ascii());
        };
        assert_eq!(consumed, bytes.len(), "canonical form read in part");
        assert_eq!(again, bytes, "canonical form is not stable");
    }
    for method in [Method::Get, Method::Head] {
        if let Verdict::Forward { bytes, .. } = response(input, &[], method, &limits) {
            let Verdict::Forward { bytes: again, consumed } =
                response(&bytes, &[], method, &limits)
            else {
                panic!("canonical form refused: {}", bytes.escape_ascii());
            };
            assert_eq!(consumed, bytes.len(), "canonical form read in part");
            assert_eq!(again, bytes, "canonical form is not stable");
        }
    }
}

/// What a backend may rely on, checked without the parser under test.
pub(crate) fn assert_request_is_strict(bytes: &[u8]) {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        panic!("a head without an end");
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut hosts = 0;
    let mut framings = 0;
    for line in head.split("\r\n").skip(1) {
        assert!(!line.contains(['\r', '\n', '\0']), "control byte in {line:?}");
        assert!(!line.starts_with([' ', '\t']), "folded line {line:?}");
        let Some((name, _)) = line.split_once(':') else { panic!("a field without colon") };
        let name = name.to_ascii_lowercase();
        hosts += usize::from(name == "host");
        framings += usize::from(name == "content-length" || name == "transfer-encoding");
        assert!(!matches!(name.as_str(), "connection" | "keep-alive" | "te" | "upgrade"));
    }
    assert_eq!(hosts, 1, "exactly one Host");
    assert!(framings <= 1, "at most one framing field");
}
