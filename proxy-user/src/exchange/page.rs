//! Our own answers: short pages that name the reason.

use crate::http::reason::phrase;
use crate::http::writer::{AnswerFraming, Connection, finish_answer, line, status_line};
use crate::http::{Reason, Version};

/// What an answer says of the connection.
pub(super) const fn connection(keep: bool, version: Version) -> Connection {
    match (keep, version) {
        (false, _) => Connection::Close,
        (true, Version::Http11) => Connection::Unsaid,
        (true, Version::Http10) => Connection::KeepAlive,
    }
}

/// Appends the page; gives the bytes of its body.
pub(super) fn write(
    out: &mut Vec<u8>,
    reason: Reason,
    head_only: bool,
    connection: Connection,
) -> u64 {
    let status = reason.status();
    let title = phrase(status);
    let body = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{status} {title}\
         </title></head>\n<body><h1>{status} {title}</h1>\n<p>{}</p>\n<hr><p>tandem ({})</p>\
         </body></html>\n",
        reason.text(),
        reason.code(),
    );
    status_line(out, status, title.as_bytes());
    line(out, b"Content-Type", b"text/html; charset=utf-8");
    line(out, b"Cache-Control", b"no-store");
    if status == 405 {
        // RFC 9110 §15.5.6: "The origin server MUST generate an Allow header field in a 405".
        line(out, b"Allow", b"GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH");
    }
    finish_answer(out, AnswerFraming::Length(body.len() as u64), connection);
    if head_only {
        return 0;
    }
    out.extend_from_slice(body.as_bytes());
    body.len() as u64
}
