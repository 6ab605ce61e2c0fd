//! Byte tables: bytes in, verdict and canonical bytes out. Each row names the sentence it stands
//! for, or says "product requirement". Then the same by property: split anywhere, any bytes.

use proptest::prelude::*;

use super::fields::list;
use super::target::{host_name, normal_path};
use super::tests_support::{
    Verdict, assert_request_is_strict, canonical_is_stable, request, response,
};
use super::{Limits, Method, Reason};

/// What every forwarded request of the tables ends with, before its framing field.
const TAIL: &str = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n\
                    X-Forwarded-Host: h\r\nX-Forwarded-Port: 80\r\n";

fn limits() -> Limits {
    Limits {
        request_line: 60,
        field_line: 60,
        head: 300,
        fields: 8,
        body: 1000,
        chunk_extensions: 16,
        trailers: 32,
    }
}

fn refused(rows: &[(&str, &str, Reason)]) {
    for &(source, input, reason) in rows {
        let verdict = request(input.as_bytes(), &[], &limits());
        assert_eq!(verdict, Verdict::Refused(reason), "{source}: {input:?}");
    }
}

/// Rows: source, input, request line out, fields out before TAIL, framing and body out, left over.
type Forwarded = (&'static str, &'static str, &'static str, &'static str, &'static str, usize);

fn forwarded(rows: &[Forwarded]) {
    for &(source, input, line, fields, rest, left) in rows {
        let expected = format!("{line} HTTP/1.1\r\nHost: h\r\n{fields}{TAIL}{rest}");
        let verdict = request(input.as_bytes(), &[], &limits());
        let Verdict::Forward { bytes, consumed } = verdict else {
            panic!("{source}: {input:?} gave {verdict:?}");
        };
        assert_eq!(String::from_utf8_lossy(&bytes), expected, "{source}: {input:?}");
        assert_eq!(input.len() - consumed, left, "{source}: bytes left of {input:?}");
        assert_request_is_strict(&bytes);
    }
}

#[test]
fn request_lines_that_are_refused() {
    refused(&[
        ("RFC 9112 §3: method SP target SP version", "GET /\r\n\r\n", Reason::RequestLine),
        ("RFC 9112 §3: single SP", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n", Reason::RequestLine),
        ("RFC 9112 §3: single SP", "GET /  HTTP/1.1\r\nHost: h\r\n\r\n", Reason::RequestLine),
        ("RFC 9112 §3: SP in target", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", Reason::RequestLine),
        ("RFC 9112 §3: HTAB", "GET\t/\tHTTP/1.1\r\nHost: h\r\n\r\n", Reason::RequestLine),
        ("RFC 9110 §9.1: method is a token", "G{T / HTTP/1.1\r\n\r\n", Reason::RequestLine),
        ("RFC 9112 §3: no method", " / HTTP/1.1\r\n\r\n", Reason::RequestLine),
        ("product requirement: TLS on a plain port", "\u{16}\u{3}\u{1}", Reason::RequestLine),
        ("RFC 9112 §2.2: one empty line is skipped, not two", "\r\n\r\nGET", Reason::RequestLine),
        ("RFC 9112 §2.2: LF alone", "GET / HTTP/1.1\nHost: h\r\n\r\n", Reason::BareLf),
        ("RFC 9112 §2.2: LF alone", "\nGET / HTTP/1.1\r\n", Reason::BareLf),
        ("RFC 9112 §2.2: bare CR", "GET /\r HTTP/1.1\r\nHost: h\r\n\r\n", Reason::TargetSyntax),
        ("RFC 9112 §2.3: digits", "GET / HTTP/1.10\r\nHost: h\r\n\r\n", Reason::VersionSyntax),
        ("RFC 9112 §2.3: case", "GET / http/1.1\r\nHost: h\r\n\r\n", Reason::VersionSyntax),
        ("RFC 9112 §2.3: name", "GET / HTTQ/1.1\r\nHost: h\r\n\r\n", Reason::VersionSyntax),
        ("product requirement", "GET / HTTP/2.0\r\nHost: h\r\n\r\n", Reason::VersionUnsupported),
        ("product requirement", "GET / HTTP/1.2\r\nHost: h\r\n\r\n", Reason::VersionUnsupported),
        ("product requirement", "GET / HTTP/0.9\r\nHost: h\r\n\r\n", Reason::VersionUnsupported),
        ("RFC 9113 §3.4", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Reason::Http2Preface),
        (
            "product requirement",
            "CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
            Reason::MethodNotAllowed,
        ),
        ("product requirement", "TRACE / HTTP/1.1\r\nHost: h\r\n\r\n", Reason::MethodNotAllowed),
    ]);
}

#[test]
fn targets_that_are_refused() {
    refused(&[
        (
            "RFC 9112 §3.2: no fragment",
            "GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n",
            Reason::TargetSyntax,
        ),
        ("RFC 3986 §2: ASCII", "GET /\u{e9} HTTP/1.1\r\nHost: h\r\n\r\n", Reason::TargetSyntax),
        ("RFC 3986 §2: no DEL", "GET /\u{7f} HTTP/1.1\r\nHost: h\r\n\r\n", Reason::TargetSyntax),
        ("RFC 9112 §3.2: form", "GET index HTTP/1.1\r\nHost: h\r\n\r\n", Reason::TargetForm),
        (
            "RFC 9112 §3.2.3: CONNECT only",
            "GET h:80 HTTP/1.1\r\nHost: h\r\n\r\n",
            Reason::TargetForm,
        ),
        ("RFC 9112 §3.2.4: OPTIONS only", "GET * HTTP/1.1\r\nHost: h\r\n\r\n", Reason::TargetForm),
        ("product requirement", "GET https://h/ HTTP/1.1\r\nHost: h\r\n\r\n", Reason::TargetForm),
        (
            "RFC 9110 §4.2.4: userinfo",
            "GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n",
            Reason::HostInvalid,
        ),
        (
            "RFC 9110 §4.2.1: empty host",
            "GET http:/// HTTP/1.1\r\nHost: h\r\n\r\n",
            Reason::HostInvalid,
        ),
    ]);
}

#[test]
fn fields_that_are_refused() {
    let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    let rows = [
        ("RFC 9112 §5.2: obs-fold", "A: b\r\n c\r\n", Reason::ObsFold),
        ("RFC 9112 §5.2: obs-fold", "A: b\r\n\tc: d\r\n", Reason::ObsFold),
        ("RFC 9112 §5.1: space before colon", "A : b\r\n", Reason::SpaceBeforeColon),
        ("RFC 9112 §5.1: space before colon", "Content-Length\t: 3\r\n", Reason::SpaceBeforeColon),
        ("RFC 9110 §5.1: no colon", "A b\r\n", Reason::FieldName),
        ("RFC 9110 §5.1: empty name", ": b\r\n", Reason::FieldName),
        ("RFC 9110 §5.1: token", "A(b): c\r\n", Reason::FieldName),
        ("RFC 9110 §5.1: token", "A\u{b}: c\r\n", Reason::FieldName),
        ("RFC 9110 §5.5: NUL", "A: b\0c\r\n", Reason::FieldValue),
        ("RFC 9110 §5.5: bare CR", "A: b\rc\r\n", Reason::FieldValue),
        ("RFC 9110 §5.5: control", "A: b\u{1}\r\n", Reason::FieldValue),
        ("RFC 9110 §5.5: DEL", "A: b\u{7f}\r\n", Reason::FieldValue),
        ("RFC 9112 §2.2: LF alone", "A: b\nB: c\r\n", Reason::BareLf),
        ("RFC 9112 §2.2: LF alone ends the head", "A: b\r\n\n", Reason::BareLf),
        ("RFC 9112 §3.2: two Hosts", "Host: h\r\n", Reason::HostDuplicate),
        ("RFC 9110 §7.6.1: tokens", "Connection: a b\r\n", Reason::ConnectionInvalid),
        ("RFC 9110 §10.1.1", "Expect: 200-ok\r\n", Reason::ExpectUnknown),
    ];
    for (source, fields, reason) in rows {
        refused(&[(source, &get(fields), reason)]);
    }
}

#[test]
fn hosts_that_are_refused() {
    refused(&[("RFC 9112 §3.2: required", "GET / HTTP/1.1\r\n\r\n", Reason::HostMissing)]);
    let long_port = "h:655360";
    for host in [
        "", "a b", "a,b", "a/b", "u@h", "h:x", "h:65536", long_port, "[::1", "[x]", "::1", "a%41",
        "[::1]x", "h:80:80",
    ] {
        for version in ["1.0", "1.1"] {
            let input = format!("GET / HTTP/{version}\r\nHost: {host}\r\n\r\n");
            refused(&[("RFC 9112 §3.2: valid Host", &input, Reason::HostInvalid)]);
        }
    }
    for host in ["a", "a.b.", "A-b_c", "192.0.2.1:8080", "[2001:db8::1]:80", "h:"] {
        let input = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let verdict = request(input.as_bytes(), &[], &limits());
        assert!(matches!(verdict, Verdict::Forward { .. }), "{host:?}: {verdict:?}");
    }
}

#[test]
fn framing_that_is_refused() {
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\nabc");
    let both = Reason::LengthAndChunked;
    let twice = Reason::ContentLengthDuplicate;
    let length = Reason::ContentLengthInvalid;
    let coding = Reason::TransferEncodingInvalid;
    let unknown = Reason::TransferEncodingUnknown;
    for (source, fields, reason) in [
        ("RFC 9112 §6.1", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", both),
        ("RFC 9112 §6.1", "Transfer-Encoding: chunked\r\ncontent-length: 3\r\n", both),
        ("RFC 9112 §6.3 (5)", "Content-Length: 3\r\nContent-Length: 4\r\n", twice),
        ("product requirement", "Content-Length: 3\r\nContent-Length: 3\r\n", twice),
        ("RFC 9110 §8.6: list", "Content-Length: 3, 3\r\n", length),
        ("RFC 9110 §8.6: sign", "Content-Length: +3\r\n", length),
        ("RFC 9110 §8.6: sign", "Content-Length: -3\r\n", length),
        ("RFC 9110 §8.6: digits", "Content-Length: 0x3\r\n", length),
        ("RFC 9110 §8.6: digits", "Content-Length: 3 3\r\n", length),
        ("RFC 9110 §8.6: digits", "Content-Length: \r\n", length),
        ("RFC 9110 §8.6: overflow", "Content-Length: 18446744073709551616\r\n", length),
        ("RFC 9110 §8.6: overflow", "Content-Length: 9223372036854775808\r\n", length),
        ("RFC 9112 §6.1: unknown", "Transfer-Encoding: gzip, chunked\r\n", unknown),
        ("RFC 9112 §6.1: unknown", "Transfer-Encoding: identity\r\n", unknown),
        ("RFC 9112 §6.1: unknown", "Transfer-Encoding: xchunked\r\n", unknown),
        ("RFC 9112 §6.3 (4.1): not last", "Transfer-Encoding: chunked, gzip\r\n", coding),
        ("RFC 9112 §6.1: once", "Transfer-Encoding: chunked, chunked\r\n", coding),
        (
            "product requirement: one field",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            coding,
        ),
        ("RFC 9112 §7: no parameters", "Transfer-Encoding: chunked;a=b\r\n", coding),
        ("RFC 9112 §6.1: token", "Transfer-Encoding: \"chunked\"\r\n", coding),
        ("RFC 9112 §6.1: empty", "Transfer-Encoding:\r\n", coding),
        ("RFC 9110 §15.5.14", "Content-Length: 1001\r\n", Reason::BodyTooLarge),
    ] {
        refused(&[(source, &post(fields), reason)]);
    }
    let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    refused(&[("RFC 9112 §6.1: in HTTP/1.0", old, Reason::TransferEncodingIn10)]);
}

#[test]
fn sizes_that_are_refused() {
    let long = "x".repeat(70);
    let exact = "x".repeat(60 - "GET / HTTP/1.1".len());
    let many = "A: b\r\n".repeat(8);
    let wide = format!("A: {}\r\n", "x".repeat(57)).repeat(5);
    refused(&[
        ("RFC 9112 §3: 414", &format!("GET /{long} HTTP/1.1\r\n"), Reason::TargetTooLong),
        ("RFC 9112 §3: 414 before the line ends", &format!("GET /{long}"), Reason::TargetTooLong),
        ("RFC 6585 §5", &format!("GET / HTTP/1.1\r\nA: {long}"), Reason::FieldTooLong),
        ("RFC 6585 §5", &format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n"), Reason::TooManyFields),
        ("RFC 6585 §5", &format!("GET / HTTP/1.1\r\n{wide}\r\n"), Reason::HeadTooLong),
    ]);
    let input = format!("GET /{exact} HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(matches!(request(input.as_bytes(), &[], &limits()), Verdict::Forward { .. }));
}

const CANONICAL_REQUESTS: &[Forwarded] = &[
    ("RFC 9112 §3", "GET /a?b HTTP/1.1\r\nHost: h\r\n\r\n", "GET /a?b", "", "\r\n", 0),
    (
        "RFC 9112 §2.2: one CRLF before",
        "\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\nGET",
        "GET /",
        "",
        "\r\n",
        3,
    ),
    (
        "RFC 9112 §5: whitespace",
        "GET / HTTP/1.1\r\nhOST:\t h \r\nA:  b\tc \r\nB:\r\n\r\n",
        "GET /",
        "A: b\tc\r\nB: \r\n",
        "\r\n",
        0,
    ),
    (
        "RFC 9112 §3.2.2: authority wins",
        "GET http://h HTTP/1.1\r\nHost: other\r\n\r\n",
        "GET /",
        "",
        "\r\n",
        0,
    ),
    ("RFC 9112 §3.2.2", "GET HTTP://h?q HTTP/1.1\r\nHost: h\r\n\r\n", "GET /?q", "", "\r\n", 0),
    ("RFC 9112 §3.2.4", "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", "OPTIONS *", "", "\r\n", 0),
    (
        "RFC 9112 §3.2.4: empty path",
        "OPTIONS http://h HTTP/1.1\r\nHost: h\r\n\r\n",
        "OPTIONS *",
        "",
        "\r\n",
        0,
    ),
    (
        "RFC 9110 §8.6: POST without content says so",
        "POST / HTTP/1.1\r\nHost: h\r\n\r\n",
        "POST /",
        "",
        "Content-Length: 0\r\n\r\n",
        0,
    ),
    (
        "RFC 9110 §8.6: canonical digits",
        "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 003\r\n\r\nabcd",
        "PUT /",
        "",
        "Content-Length: 3\r\n\r\nabc",
        1,
    ),
    (
        "RFC 9112 §7.1: re-framed, extensions and trailers dropped",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n\
             03;a=\"b\"\r\nabc\r\n0\r\nTr: x\r\n\r\nG",
        "POST /",
        "",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        1,
    ),
    (
        "RFC 9110 §7.6.1: named fields and this hop's own",
        "GET / HTTP/1.1\r\nHost: h\r\n\
             Connection: keep-alive, Aa\r\nAA: 1\r\nKeep-Alive: 5\r\nTE: trailers\r\n\
             Upgrade: h2c\r\nProxy-Connection: x\r\nB: 2\r\n\r\n",
        "GET /",
        "B: 2\r\n",
        "\r\n",
        0,
    ),
    (
        "product requirement: Host, framing, X-Forwarded-* cannot be named away",
        "POST / HTTP/1.1\r\nHost: h\r\nConnection: host, content-length, x-forwarded-for\r\n\
             Content-Length: 1\r\n\r\na",
        "POST /",
        "",
        "Content-Length: 1\r\n\r\na",
        0,
    ),
    (
        "product requirement: an untrusted client's X-Forwarded-* is replaced",
        "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.1.1.1\r\nx-forwarded-proto: https\r\n\r\n",
        "GET /",
        "",
        "\r\n",
        0,
    ),
    (
        "RFC 9110 §10.1.1: Expect goes on",
        "PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\n\
             Content-Length: 1\r\n\r\na",
        "PUT /",
        "Expect: 100-Continue\r\n",
        "Content-Length: 1\r\n\r\na",
        0,
    ),
    (
        "RFC 9110 §10.1.1: but not of HTTP/1.0",
        "GET / HTTP/1.0\r\nHost: h\r\nExpect: x\r\n\r\n",
        "GET /",
        "",
        "\r\n",
        0,
    ),
];

#[test]
fn canonical_requests() {
    forwarded(CANONICAL_REQUESTS);
}

#[test]
fn http10_without_host_gets_the_default() {
    let Verdict::Forward { bytes, .. } = request(b"GET / HTTP/1.0\r\n\r\n", &[], &limits()) else {
        panic!("RFC 9112 §3.2: Host is required in HTTP/1.1 only");
    };
    assert!(bytes.starts_with(b"GET / HTTP/1.1\r\nHost: backend\r\n"), "{}", bytes.escape_ascii());
}

#[test]
fn chunked_bodies_that_are_refused() {
    for (source, body) in [
        ("RFC 9112 §7.1: 1*HEXDIG", "\r\n"),
        ("RFC 9112 §7.1: 1*HEXDIG", ";a\r\n"),
        ("RFC 9112 §7.1: HEXDIG", "x\r\n"),
        ("RFC 9112 §7.1: no sign", "+1\r\na\r\n"),
        ("RFC 9112 §7.1: no prefix", "0x1\r\na\r\n"),
        ("RFC 9112 §7.1: no space", "1 \r\na\r\n"),
        ("RFC 9112 §7.1: overflow", "8000000000000000\r\n"),
        ("RFC 9112 §7.1: overflow", "11111111111111111\r\n"),
        ("product requirement: leading zeros are bounded", "00000000000000001\r\n"),
        ("RFC 9112 §7.1: CRLF after size", "1\na\r\n"),
        ("RFC 9112 §7.1: CRLF after size", "1\rxa\r\n"),
        ("RFC 9112 §7.1: CRLF after data", "1\r\nab\r\n"),
        ("RFC 9112 §7.1: CRLF after data", "1\r\na\n0\r\n"),
        ("RFC 9112 §7.1.1: LF in extension", "1;a\nb\r\n"),
        ("RFC 9112 §7.1.1: limit", "1;aaaaaaaaaaaaaaaaaaaaaaaaa\r\n"),
        ("RFC 9112 §7.1.2: field syntax", "0\r\nno colon\r\n\r\n"),
        ("RFC 9112 §7.1.2: limit", "0\r\na: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n\r\n"),
    ] {
        let input =
            format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        refused(&[(source, &input, Reason::ChunkInvalid)]);
    }
    let large = format!(
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n{}\r\n",
        "x".repeat(1001)
    );
    refused(&[("RFC 9110 §15.5.14", &large, Reason::BodyTooLarge)]);
}

#[test]
fn responses_that_are_refused() {
    for (source, input, reason) in [
        ("RFC 9112 §4", "hello", Reason::ReplyHead),
        ("RFC 9112 §4: version", "HTTP/2.0 200 OK\r\n\r\n", Reason::ReplyHead),
        ("RFC 9112 §4: version", "ICY 200 OK\r\n\r\n", Reason::ReplyHead),
        ("RFC 9110 §15", "HTTP/1.1 99 X\r\n\r\n", Reason::ReplyStatus),
        ("RFC 9110 §15", "HTTP/1.1 1000 X\r\n\r\n", Reason::ReplyStatus),
        ("RFC 9110 §15", "HTTP/1.1 600 X\r\n\r\n", Reason::ReplyStatus),
        ("RFC 9110 §15", "HTTP/1.1 2x0 X\r\n\r\n", Reason::ReplyStatus),
        ("RFC 9110 §15.2.2: not asked", "HTTP/1.1 101 X\r\n\r\n", Reason::ReplyUpgrade),
        ("RFC 9112 §2.2: LF", "HTTP/1.1 200 OK\nA: b\r\n\r\n", Reason::ReplyHead),
        ("RFC 9112 §5.2", "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", Reason::ReplyHead),
        ("RFC 9110 §5.5", "HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n", Reason::ReplyHead),
        ("RFC 9112 §4: phrase", "HTTP/1.1 200 \u{1}\r\n\r\n", Reason::ReplyHead),
        (
            "RFC 9112 §6.3 (3)",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\
             Transfer-Encoding: chunked\r\n\r\n",
            Reason::ReplyFraming,
        ),
        (
            "RFC 9112 §6.3 (5)",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            Reason::ReplyFraming,
        ),
        ("RFC 9110 §8.6", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", Reason::ReplyFraming),
        (
            "RFC 9112 §6.1",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            Reason::ReplyFraming,
        ),
        (
            "RFC 9112 §6.1",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            Reason::ReplyFraming,
        ),
        (
            "product requirement",
            "HTTP/1.1 200 OK\r\nA: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\
             xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n\r\n",
            Reason::ReplyTooLarge,
        ),
    ] {
        // "hello" is complete only by a line end.
        let input = format!("{input}\r\n");
        let verdict = response(input.as_bytes(), &[], Method::Get, &limits());
        assert_eq!(verdict, Verdict::Refused(reason), "{source}: {input:?}");
    }
}

/// Rows: source, method of the request, bytes in, bytes out, bytes left over.
type Answered = (&'static str, Method, &'static str, &'static str, usize);

const CANONICAL_RESPONSES: &[Answered] = &[
    (
        "RFC 9112 §4",
        Method::Get,
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nA: b\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 3\r\n\r\nabc",
        1,
    ),
    (
        "RFC 9112 §4: no phrase",
        Method::Get,
        "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n",
        0,
    ),
    (
        "RFC 9110 §6.2: own version",
        Method::Get,
        "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        0,
    ),
    (
        "RFC 9112 §6.3 (8): until close, re-framed",
        Method::Get,
        "HTTP/1.0 200 OK\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        0,
    ),
    (
        "RFC 9112 §6.3 (1): HEAD",
        Method::Head,
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
        3,
    ),
    (
        "RFC 9112 §6.3 (1): HEAD",
        Method::Head,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        0,
    ),
    (
        "RFC 9110 §8.6: no length on 204",
        Method::Get,
        "HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\nabc",
        "HTTP/1.1 204 No\r\n\r\n",
        3,
    ),
    (
        "RFC 9110 §15.4.5",
        Method::Get,
        "HTTP/1.1 304 N\r\nContent-Length: 3\r\n\r\n",
        "HTTP/1.1 304 N\r\nContent-Length: 3\r\n\r\n",
        0,
    ),
    (
        "RFC 9112 §7.1",
        Method::Get,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
             1\r\na\r\n2;x\r\nbc\r\n0\r\nT: u\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
        0,
    ),
    (
        "RFC 9110 §7.6.1",
        Method::Get,
        "HTTP/1.1 200 OK\r\nConnection: close, X\r\nX: 1\r\n\
             Keep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        0,
    ),
    (
        "RFC 9110 §15.2: interim",
        Method::Get,
        "HTTP/1.1 103 E\r\nLink: x\r\n\r\nHTTP",
        "HTTP/1.1 103 E\r\nLink: x\r\n\r\n",
        4,
    ),
];

#[test]
fn canonical_responses() {
    for &(source, method, input, expected, left) in CANONICAL_RESPONSES {
        let verdict = response(input.as_bytes(), &[], method, &limits());
        let Verdict::Forward { bytes, consumed } = verdict else {
            panic!("{source}: {input:?} gave {verdict:?}");
        };
        assert_eq!(String::from_utf8_lossy(&bytes), expected, "{source}: {input:?}");
        assert_eq!(input.len() - consumed, left, "{source}: bytes left of {input:?}");
    }
}

#[test]
fn paths_are_normal_for_routing() {
    for (path, normal) in [
        ("/", "/"),
        ("", "/"),
        ("*", "/"),
        ("?q", "/"),
        ("/a?b/../c", "/a"),
        ("/a/", "/a/"),
        ("/a//b", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/..", "/"),
        ("/a/.", "/a/"),
        ("/%61dmin", "/admin"),
        ("/a%2f..%2Fb", "/b"),
        ("/.hidden", "/.hidden"),
        ("/a/b/../", "/a/"),
        ("/%2561", "/%61"),
    ] {
        let found = normal_path(path.as_bytes()).map(|p| String::from_utf8_lossy(&p).into_owned());
        assert_eq!(found.as_deref(), Ok(normal), "{path}");
    }
    for path in ["/..", "/a/../..", "/%2e%2e/a", "/%", "/%4", "/%zz", "/%00"] {
        assert_eq!(normal_path(path.as_bytes()), Err(Reason::TargetSyntax), "{path}");
    }
}

#[test]
fn hosts_are_normal_for_routing() {
    for (host, name) in [("A.b:80", "a.b"), ("a.", "a"), ("[::1]:80", "[::1]"), ("a.:1", "a")] {
        assert_eq!(&*host_name(host.as_bytes()), name.as_bytes(), "{host}");
    }
}

#[test]
fn lists_skip_empty_elements() {
    let elements: Vec<&[u8]> = list(b" a ,, b\t,").collect();
    assert_eq!(elements, [&b"a"[..], b"b"], "RFC 9110 §5.6.1.2");
}

/// Valid and nearly valid messages, from parts that attack one another.
fn messages() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just("GET / HTTP/1.1\r\n"),
        Just("POST /a%2e/b?c HTTP/1.1\r\n"),
        Just("HEAD * HTTP/1.0\r\n"),
        Just("HTTP/1.1 200 OK\r\n"),
        Just("HTTP/1.0 204 \r\n"),
        Just("HTTP/1.1 304 N\r\n"),
        Just("Host: h\r\n"),
        Just("Host: [::1]:8\r\n"),
        Just("Content-Length: 3\r\n"),
        Just("Transfer-Encoding: chunked\r\n"),
        Just("Connection: close, a\r\n"),
        Just("A: b\r\n"),
        Just("X-Forwarded-For: x\r\n"),
        Just("Expect: 100-continue\r\n"),
        Just("\r\n"),
        Just("abc"),
        Just("3\r\nabc\r\n"),
        Just("0\r\n\r\n"),
        Just("\n"),
        Just(" "),
        Just("\r"),
        Just("\0"),
        Just(":"),
        Just("5;x=y\r\nhello\r\n"),
    ];
    let start = prop_oneof![
        Just("GET / HTTP/1.1\r\nHost: h\r\n"),
        Just("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"),
        Just("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        Just("HTTP/1.1 200 OK\r\n"),
        Just(""),
    ];
    (start, prop::collection::vec(part, 0..12))
        .prop_map(|(start, parts)| format!("{start}{}", parts.concat()).into_bytes())
}

proptest! {
    #[test]
    fn split_anywhere_gives_the_same_verdict(
        input in messages(),
        cuts in prop::collection::vec(0usize..400, 0..8),
    ) {
        let whole = request(&input, &[], &limits());
        prop_assert_eq!(request(&input, &cuts, &limits()), whole);
        let whole = response(&input, &[], Method::Get, &limits());
        prop_assert_eq!(response(&input, &cuts, Method::Get, &limits()), whole);
    }

    #[test]
    fn the_canonical_form_is_stable(input in messages()) {
        canonical_is_stable(&input);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(input in prop::collection::vec(any::<u8>(), 0..600)) {
        canonical_is_stable(&input);
    }

    #[test]
    fn chunks_split_anywhere_give_the_same_body(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..6),
        cuts in prop::collection::vec(0usize..400, 0..8),
    ) {
        use super::chunked::{Decoder, write_chunk, write_last_chunk};
        let mut wire = Vec::new();
        bodies.iter().for_each(|body| write_chunk(&mut wire, body));
        write_last_chunk(&mut wire);
        let coded = wire.len();
        wire.extend_from_slice(b"next");
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % wire.len()).collect();
        ends.push(wire.len());
        ends.sort_unstable();
        let mut decoder = Decoder::new(&Limits::default());
        let (mut at, mut data) = (0, Vec::new());
        for end in ends {
            while at < end && !decoder.is_done() {
                let step = decoder.step(&wire[at..end]).expect("own coding is grammar");
                data.extend_from_slice(&wire[at..][step.data.clone()]);
                at += step.consumed;
            }
        }
        prop_assert!(decoder.is_done());
        prop_assert_eq!(at, coded);
        prop_assert_eq!(data, bodies.concat());
    }
}
