//! HTTP/1.1 (RFC 9110, RFC 9112) through the balancer: requests to a backend, answers to a client,
//! and the attacks that live on a difference between the two.

use std::io::Write;

use crate::rig::{Ended, Rig, hear_all, hear_to_the_end, hear_until, modes, say_and_end};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A refused request: why, what is sent, status, reason on the page.
type Refused = (&'static str, &'static str, u16, &'static str);

/// Each is answered once, ends the connection, and no byte of it reaches the backend, nor of the
/// request that follows in the same bytes.
const REFUSED: &[Refused] = &[
    ("RFC 9112 §3", "GET /r\r\n\r\n", 400, "request_line"),
    ("RFC 9112 §3", "GET  /r HTTP/1.1\r\nHost: h\r\n\r\n", 400, "request_line"),
    ("RFC 9112 §2.2", "GET /r HTTP/1.1\nHost: h\n\n", 400, "bare_lf"),
    ("RFC 9112 §2.2", "GET /r HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n", 400, "field_value"),
    ("RFC 9110 §5.5", "GET /r HTTP/1.1\r\nHost: h\r\nA: b\0c\r\n\r\n", 400, "field_value"),
    ("RFC 9112 §5.2", "GET /r HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n", 400, "obs_fold"),
    ("RFC 9112 §5.1", "GET /r HTTP/1.1\r\nHost : h\r\n\r\n", 400, "space_before_colon"),
    ("RFC 9110 §5.1", "GET /r HTTP/1.1\r\nHost: h\r\n\u{b}A: b\r\n\r\n", 400, "field_name"),
    ("RFC 9112 §3.2", "GET /r HTTP/1.1\r\n\r\n", 400, "host_missing"),
    ("RFC 9112 §3.2", "GET /r HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "host_duplicate"),
    ("RFC 9112 §3.2", "GET /r HTTP/1.1\r\nHost: a@b\r\n\r\n", 400, "host_invalid"),
    ("RFC 9112 §3.2", "GET http://a b/r HTTP/1.1\r\nHost: h\r\n\r\n", 400, "request_line"),
    ("RFC 9112 §3.2.4", "GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target_form"),
    ("product requirement", "GET /r/../../x HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target_syntax"),
    ("product requirement", "GET /r/%00 HTTP/1.1\r\nHost: h\r\n\r\n", 400, "target_syntax"),
    ("product requirement", "TRACE /r HTTP/1.1\r\nHost: h\r\n\r\n", 405, "method_not_allowed"),
    ("product requirement", "CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", 405, "method_not_allowed"),
    ("product requirement", "GET /r HTTP/2.0\r\nHost: h\r\n\r\n", 505, "version_unsupported"),
    ("RFC 9113 §3.4", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http2_preface"),
    ("RFC 9110 §10.1.1", "GET /r HTTP/1.1\r\nHost: h\r\nExpect: x\r\n\r\n", 417, "expect_unknown"),
    (
        "RFC 9110 §15.5.14",
        "PUT /r HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n",
        413,
        "body_too_large",
    ),
    (
        "CL.TE, RFC 9112 §6.1",
        "POST /r HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\n\
         Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
        400,
        "length_and_chunked",
    ),
    (
        "TE.CL, RFC 9112 §6.1",
        "POST /r HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\
         Content-Length: 4\r\n\r\n5c\r\nGPOST / HTTP/1.1\r\n\r\n0\r\n\r\n",
        400,
        "length_and_chunked",
    ),
    (
        "CL.CL, RFC 9112 §6.3",
        "POST /r HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\
         Content-Length: 8\r\n\r\nGET /x H",
        400,
        "content_length_duplicate",
    ),
    (
        "CL list, RFC 9110 §8.6",
        "POST /r HTTP/1.1\r\nHost: h\r\nContent-Length: 0, 8\r\n\r\nGET /x H",
        400,
        "content_length_invalid",
    ),
    (
        "CL sign, RFC 9110 §8.6",
        "POST /r HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\na",
        400,
        "content_length_invalid",
    ),
    (
        "TE obfuscated",
        "POST /r HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        501,
        "transfer_encoding_unknown",
    ),
    (
        "TE obfuscated",
        "POST /r HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        400,
        "space_before_colon",
    ),
    (
        "TE obfuscated",
        "POST /r HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\u{b}chunked\r\n\r\n0\r\n\r\n",
        400,
        "field_value",
    ),
    (
        "TE obfuscated",
        "POST /r HTTP/1.1\r\nHost: h\r\nX: x\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "bare_lf",
    ),
    (
        "TE obfuscated",
        "POST /r HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\r\n : chunked\r\n\r\n",
        400,
        "field_name",
    ),
    (
        "TE twice",
        "POST /r HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\
         Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        501,
        "transfer_encoding_unknown",
    ),
    (
        "TE not last, RFC 9112 §6.3",
        "POST /r HTTP/1.1\r\nHost: h\r\n\
         Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        400,
        "transfer_encoding_invalid",
    ),
    (
        "TE in 1.0, RFC 9112 §6.1",
        "POST /r HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\n",
        400,
        "transfer_encoding_in_10",
    ),
];

#[test]
fn refused_requests_reach_nobody() {
    for io in modes() {
        let rig = Rig::start(io);
        for (why, sent, status, reason) in REFUSED {
            let follows = format!("{sent}GET /r/smuggled HTTP/1.1\r\nHost: h\r\n\r\n");
            let answer = hear_all(&mut rig.client(follows.as_bytes()));
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{why}: {sent:?}: {answer}"
            );
            assert!(answer.contains(&format!("({reason})")), "{why}: {sent:?}: {answer}");
            assert!(answer.contains("\r\nConnection: close\r\n"), "{why}: {sent:?}: {answer}");
            assert_eq!(answer.matches("<h1>").count(), 1, "{why}: {sent:?}: {answer}");
            assert!(rig.backend_untouched(), "{why}: {sent:?} reached the backend");
        }
    }
}

#[test]
fn sizes_have_their_own_statuses() {
    for io in modes() {
        let rig = Rig::start(io);
        let long = "x".repeat(40_000);
        for (sent, status) in [
            (format!("GET /r{long} HTTP/1.1\r\nHost: h\r\n\r\n"), 414),
            (format!("GET /r HTTP/1.1\r\nHost: h\r\nA: {long}\r\n\r\n"), 431),
            (format!("GET /r HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(128)), 431),
            (
                format!(
                    "GET /r HTTP/1.1\r\nHost: h\r\n{}\r\n",
                    format!("A: {}\r\n", &long[..20_000]).repeat(7)
                ),
                431,
            ),
        ] {
            let answer = hear_all(&mut rig.client(sent.as_bytes()));
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{}: {answer}",
                &sent[..40]
            );
            assert!(rig.backend_untouched());
        }
        let fits = format!("GET /r{} HTTP/1.1\r\nHost: h\r\n\r\n", &long[..30_000]);
        let mut client = rig.client(fits.as_bytes());
        assert!(hear_until(&mut rig.backend(), b"\r\n\r\n").starts_with(&fits[..30_000]));
        drop(client.flush());
    }
}

/// Why, what is sent, request line at the backend, its fields before ours, what follows ours.
type Forwarded = (&'static str, &'static str, &'static str, &'static str, &'static str);

const FORWARDED: &[Forwarded] = &[
    (
        "RFC 9112 §3",
        "GET /r?a=%20 HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n",
        "GET /r?a=%20",
        "A: b\r\n",
        "\r\n",
    ),
    ("RFC 9112 §3.2.2", "GET http://h/r HTTP/1.1\r\nHost: x\r\n\r\n", "GET /r", "", "\r\n"),
    ("RFC 9112 §5", "GET /r HTTP/1.1\r\nhost:h\r\nA:\t b \r\n\r\n", "GET /r", "A: b\r\n", "\r\n"),
    (
        "RFC 9110 §7.6.1",
        "GET /r HTTP/1.1\r\nHost: h\r\nConnection: X, te\r\nX: 1\r\nTE: trailers\r\n\
         Upgrade: h2c\r\nKeep-Alive: 1\r\nY: 2\r\n\r\n",
        "GET /r",
        "Y: 2\r\n",
        "\r\n",
    ),
    (
        "product requirement",
        "GET /r HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 1.2.3.4\r\n\
         X-Forwarded-Proto: https\r\nConnection: x-forwarded-for\r\n\r\n",
        "GET /r",
        "",
        "\r\n",
    ),
    (
        "RFC 9112 §6.2",
        "POST /r HTTP/1.1\r\nHost: h\r\nContent-Length: 03\r\n\r\nabc",
        "POST /r",
        "",
        "Content-Length: 3\r\n\r\nabc",
    ),
    (
        "RFC 9112 §7.1",
        "POST /r HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: CHUNKED\r\n\r\n\
         3;x=\"y\"\r\nabc\r\n0\r\nA: b\r\n\r\n",
        "POST /r",
        "",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "RFC 9110 §8.6",
        "POST /r HTTP/1.1\r\nHost: h\r\n\r\n",
        "POST /r",
        "",
        "Content-Length: 0\r\n\r\n",
    ),
    (
        "RFC 9110 §10.1.1",
        "PUT /r HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\
         Expect: 100-continue\r\n\r\na",
        "PUT /r",
        "Expect: 100-continue\r\n",
        "Content-Length: 1\r\n\r\na",
    ),
    ("RFC 9110 §9.1", "PROPFIND /r HTTP/1.1\r\nHost: h\r\n\r\n", "PROPFIND /r", "", "\r\n"),
];

#[test]
fn forwarded_requests_have_one_form() {
    for io in modes() {
        let rig = Rig::start(io);
        let mut backend = None;
        for (why, sent, line, fields, rest) in FORWARDED {
            let mut client = rig.client(sent.as_bytes());
            let backend = backend.get_or_insert_with(|| rig.backend());
            let expected = format!(
                "{line} HTTP/1.1\r\nHost: h\r\n{fields}X-Forwarded-For: 127.0.0.1\r\n\
                 X-Forwarded-Proto: http\r\nX-Forwarded-Host: h\r\nX-Forwarded-Port: {}\r\n{rest}",
                rig.port()
            );
            let heard = hear_until(backend, expected.as_bytes());
            assert_eq!(heard, expected, "{why}: {sent:?}");
            backend.write_all(OK.as_bytes()).unwrap();
            assert_eq!(hear_until(&mut client, OK.as_bytes()), OK, "{why}: {sent:?}");
        }
        assert!(rig.backend_untouched(), "one connection carried them all");
    }
}

/// Why, request, what the backend answers before it ends, what the client hears.
type Answered = (&'static str, &'static str, &'static str, &'static str);

const GET: &str = "GET /r HTTP/1.1\r\nHost: h\r\n\r\n";
const OLD: &str = "GET /r HTTP/1.0\r\nHost: h\r\n\r\n";
const HEAD: &str = "HEAD /r HTTP/1.1\r\nHost: h\r\n\r\n";

const ANSWERED: &[Answered] = &[
    (
        "RFC 9112 §6.3 (8)",
        GET,
        "HTTP/1.0 200 OK\r\nA: b\r\n\r\nbody",
        "HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    ),
    (
        "RFC 9112 §6.3 (8), to 1.0",
        OLD,
        "HTTP/1.1 200 OK\r\n\r\nbody",
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbody",
    ),
    (
        "RFC 9112 §7.1, to 1.0",
        OLD,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nbody",
    ),
    (
        "RFC 9110 §9.3.2",
        HEAD,
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n",
    ),
    (
        "RFC 9110 §15.3.5",
        GET,
        "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nbody",
        "HTTP/1.1 204 No Content\r\n\r\n",
    ),
    (
        "RFC 9110 §15.4.5",
        GET,
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n",
    ),
    (
        "RFC 9110 §15.2",
        GET,
        "HTTP/1.1 102 P\r\n\r\nHTTP/1.1 103 E\r\nLink: l\r\n\r\nHTTP/1.1 204 N\r\n\r\n",
        "HTTP/1.1 103 E\r\nLink: l\r\n\r\nHTTP/1.1 204 N\r\n\r\n",
    ),
    (
        "RFC 9110 §7.6.1",
        GET,
        "HTTP/1.1 204 N\r\nConnection: close, X\r\nX: 1\r\nY: 2\r\n\r\n",
        "HTTP/1.1 204 N\r\nY: 2\r\n\r\n",
    ),
];

#[test]
fn answers_have_one_form() {
    for io in modes() {
        let rig = Rig::start(io);
        for (why, sent, answer, expected) in ANSWERED {
            let mut client = rig.client(sent.as_bytes());
            let mut backend = rig.backend();
            hear_until(&mut backend, b"\r\n\r\n");
            say_and_end(&mut backend, answer.as_bytes());
            let heard = hear_until(&mut client, expected.as_bytes());
            assert_eq!(heard, *expected, "{why}: {answer:?}");
        }
    }
}

const BAD_ANSWERS: &[(&str, &str, &str)] = &[
    ("RFC 9112 §4", "hello\r\n\r\n", "reply_head"),
    ("RFC 9112 §4", "HTTP/2 200 OK\r\n\r\n", "reply_head"),
    ("RFC 9112 §2.2", "HTTP/1.1 200 OK\nA: b\n\n", "reply_head"),
    ("RFC 9110 §5.5", "HTTP/1.1 200 OK\r\nA: \0\r\n\r\n", "reply_head"),
    ("RFC 9112 §5.2", "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "reply_head"),
    ("RFC 9110 §15", "HTTP/1.1 99 X\r\n\r\n", "reply_status"),
    ("RFC 9110 §15", "HTTP/1.1 1000 X\r\n\r\n", "reply_status"),
    ("RFC 9110 §15.2.2", "HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n", "reply_upgrade"),
    ("RFC 9110 §8.6", "HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\na", "reply_framing"),
    (
        "RFC 9112 §6.3",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
        "reply_framing",
    ),
    (
        "RFC 9112 §6.3",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "reply_framing",
    ),
    (
        "RFC 9112 §6.1",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "reply_framing",
    ),
    ("RFC 9110 §15.6.3", "HTTP/1.1 200 OK\r\nA: b", "reply_truncated"),
];

#[test]
fn bad_answers_become_502_and_the_client_goes_on() {
    for io in modes() {
        let rig = Rig::start(io);
        for (why, answer, reason) in BAD_ANSWERS {
            let mut client = rig.client(GET.as_bytes());
            let mut backend = rig.backend();
            hear_until(&mut backend, b"\r\n\r\n");
            say_and_end(&mut backend, answer.as_bytes());
            let heard = hear_until(&mut client, b"</html>\n");
            assert!(
                heard.starts_with("HTTP/1.1 502 Bad Gateway\r\n"),
                "{why}: {answer:?}: {heard}"
            );
            assert!(heard.contains(&format!("({reason})")), "{why}: {answer:?}: {heard}");
            client.write_all(b"GET /none HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
            let heard = hear_until(&mut client, b"</html>\n");
            assert!(heard.starts_with("HTTP/1.1 404 Not Found\r\n"), "{why}: {heard}");
        }
    }
}

#[test]
fn broken_answers_are_cut_and_never_look_whole() {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc";
    for io in modes() {
        let rig = Rig::start(io);
        for (request, answer) in [
            (GET, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_owned()),
            (GET, format!("{CHUNKED}\r\n")),
            (GET, format!("{CHUNKED}\r\nzz\r\n")),
            (GET, format!("{CHUNKED}X")),
            // To an old client the end of the connection is the end of the body: only a reset
            // tells.
            (OLD, format!("{CHUNKED}\r\n")),
        ] {
            let mut client = rig.client(request.as_bytes());
            let mut backend = rig.backend();
            hear_until(&mut backend, b"\r\n\r\n");
            say_and_end(&mut backend, answer.as_bytes());
            let (heard, ended) = hear_to_the_end(&mut client);
            assert_eq!(ended, Ended::Reset, "{answer:?}: {heard:?}");
            assert!(!heard.contains("\r\n0\r\n\r\n"), "{answer:?}: {heard:?}");
            assert!(!heard.contains("HTTP/1.1 502"), "no second head: {answer:?}: {heard:?}");
        }
    }
}

/// What comes after an answer is never taken for the next one (response smuggling).
#[test]
fn bytes_after_an_answer_belong_to_nobody() {
    for io in modes() {
        let rig = Rig::start(io);
        let mut client = rig.client(GET.as_bytes());
        let mut backend = rig.backend();
        hear_until(&mut backend, b"\r\n\r\n");
        let poisoned = format!("{OK}HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
        backend.write_all(poisoned.as_bytes()).unwrap();
        assert_eq!(hear_until(&mut client, OK.as_bytes()), OK);
        client.write_all(GET.as_bytes()).unwrap();
        let mut fresh = rig.backend();
        hear_until(&mut fresh, b"\r\n\r\n");
        fresh.write_all(OK.as_bytes()).unwrap();
        assert_eq!(hear_until(&mut client, OK.as_bytes()), OK);
        // The same when they come while the connection is idle.
        fresh.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison").unwrap();
        assert_eq!(hear_all(&mut fresh), "", "it is closed");
        client.write_all(GET.as_bytes()).unwrap();
        let mut third = rig.backend();
        hear_until(&mut third, b"\r\n\r\n");
        third.write_all(OK.as_bytes()).unwrap();
        assert_eq!(hear_until(&mut client, OK.as_bytes()), OK);
    }
}

/// RFC 9110 §10.1.1: the client may wait for 100 and must get it, or the final answer at once.
#[test]
fn expect_continue_is_a_conversation() {
    for io in modes() {
        let rig = Rig::start(io);
        let put = "PUT /r HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
        let mut client = rig.client(put.as_bytes());
        let mut backend = rig.backend();
        hear_until(&mut backend, b"\r\n\r\n");
        backend.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        let heard = hear_until(&mut client, b"\r\n\r\n");
        assert_eq!(heard, "HTTP/1.1 100 Continue\r\n\r\n");
        client.write_all(b"body").unwrap();
        assert_eq!(hear_until(&mut backend, b"body"), "body");
        backend.write_all(OK.as_bytes()).unwrap();
        assert_eq!(hear_until(&mut client, OK.as_bytes()), OK);
        let mut client = rig.client(put.as_bytes());
        hear_until(&mut backend, b"\r\n\r\n");
        backend.write_all(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n").unwrap();
        let heard = hear_all(&mut client);
        assert_eq!(heard, "HTTP/1.1 401 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
}
