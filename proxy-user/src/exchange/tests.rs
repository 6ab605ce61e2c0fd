//! Conversations: what the client and the server say, what each then hears, and what the shell is
//! told to do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Blocked, CloseHow, Command, Ending, Exchange, Settings, Upstream, Wire};
use crate::config;
use crate::http::Reason;

#[derive(Debug, Default)]
struct Bytes {
    client: Vec<u8>,
    upstream: Vec<u8>,
}

impl Wire for Bytes {
    fn client(&mut self) -> &mut Vec<u8> {
        &mut self.client
    }

    fn upstream(&mut self) -> &mut Vec<u8> {
        &mut self.upstream
    }
}

/// A shell whose connections come up when the test says so.
struct Bench {
    exchange: Exchange,
    settings: Arc<Settings>,
    now: Instant,
    wire: Bytes,
}

const DIED: Ending = Ending { clean: false, written: true };
const CLEAN: Ending = Ending { clean: true, written: true };
const UNWRITTEN: Ending = Ending { clean: true, written: false };
const GET: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
const POST: &str = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

fn server(at: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8000 + at))
}

impl Bench {
    fn new(servers: u16) -> Self {
        Self::with(servers, |_http, _upstream| {})
    }

    fn with(servers: u16, change: impl FnOnce(&mut config::Http, &mut config::Upstream)) -> Self {
        let mut http = config::Http {
            routes: vec![config::Route { host: None, path: "/a".to_owned(), upstream: 0 }],
            ..config::Http::default()
        };
        let one =
            |at| config::Server { address: server(at), weight: 1, route: Some(format!("t{at}")) };
        let mut upstream =
            config::Upstream { servers: (0..servers).map(one).collect(), ..Default::default() };
        change(&mut http, &mut upstream);
        let upstreams: Arc<[Upstream]> = [Upstream::new(&upstream)].into();
        let settings = Arc::new(Settings::new(&http, upstreams, true));
        let now = Instant::now();
        let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
        let exchange = Exchange::new(Arc::clone(&settings), client, 80, now);
        Self { exchange, settings, now, wire: Bytes::default() }
    }

    fn says(&mut self, bytes: &str) -> &mut Self {
        self.exchange.handle_client_data(self.now, bytes.as_bytes(), &mut self.wire);
        self
    }

    fn answers(&mut self, bytes: &str) -> &mut Self {
        self.exchange.handle_upstream_data(self.now, bytes.as_bytes(), &mut self.wire);
        self
    }

    fn connected(&mut self, reused: bool) -> &mut Self {
        self.exchange.handle_connected(self.now, reused, &mut self.wire);
        self
    }

    fn refused(&mut self) -> &mut Self {
        self.exchange.handle_connect_failed(self.now, &mut self.wire);
        self
    }

    fn ends(&mut self, ending: Ending) -> &mut Self {
        self.exchange.handle_upstream_closed(self.now, ending, &mut self.wire);
        self
    }

    fn passes(&mut self, seconds: u64, blocked: Blocked) -> &mut Self {
        let due = self.exchange.poll_timeout(blocked).expect("a deadline is set");
        self.now += Duration::from_secs(seconds);
        assert_eq!(due, self.now, "the deadline of this state");
        self.exchange.handle_timeout(self.now, blocked, &mut self.wire);
        self
    }

    fn commands(&mut self) -> Vec<Command> {
        std::iter::from_fn(|| self.exchange.poll_command()).collect()
    }

    fn connects_to(&mut self) -> (u16, bool) {
        match self.commands()[..] {
            [.., Command::Connect { server, fresh, .. }] => (server, fresh),
            ref other => panic!("no connect but {other:?}"),
        }
    }

    fn client_hears(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.wire.client)).expect("text")
    }

    fn server_hears(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.wire.upstream)).expect("text")
    }

    /// The whole way of a request to a server that has taken it.
    fn reaches(&mut self, request: &str) -> &mut Self {
        self.says(request);
        self.connects_to();
        self.connected(false)
    }

    fn refuses(&mut self, reason: Reason) -> Vec<Command> {
        let text = self.client_hears();
        assert!(text.starts_with(&format!("HTTP/1.1 {} ", reason.status())), "{reason:?}: {text}");
        assert!(text.contains(&format!("tandem ({})", reason.code())), "{reason:?}: {text}");
        assert_eq!(self.exchange.record().reason, Some(reason));
        assert_eq!(self.exchange.record().status, reason.status());
        self.commands()
    }

    fn in_flight(&self) -> u32 {
        let pool = &self.settings.upstreams[0].pool;
        pool.status(self.now).iter().map(|server| server.in_flight).sum()
    }
}

const RELEASED: [Command; 2] = [Command::ReleaseUpstream { idle_limit: None }, Command::Done];

#[test]
fn a_request_goes_and_its_answer_comes() {
    let mut bench = Bench::new(1);
    bench.says(GET);
    assert_eq!(bench.connects_to(), (0, false));
    assert!(bench.server_hears().is_empty(), "not before the connection stands");
    bench.connected(true);
    let sent = bench.server_hears();
    assert!(
        sent.starts_with("GET /a HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.7\r\n"),
        "{sent}"
    );
    bench.answers(OK);
    assert_eq!(bench.client_hears(), "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(bench.commands(), RELEASED);
    let record = bench.exchange.record();
    assert_eq!((record.status, record.body_bytes, record.reason), (200, 2, None));
    assert_eq!(record.line(), b"GET /a HTTP/1.1");
    assert_eq!(bench.in_flight(), 0);
}

#[test]
fn bodies_stream_both_ways_before_they_are_complete() {
    let mut bench = Bench::new(1);
    bench.says("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    bench.connects_to();
    bench.connected(false);
    assert!(bench.server_hears().ends_with("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"));
    bench.says("2\r\nde");
    assert_eq!(bench.server_hears(), "2\r\nde\r\n");
    bench.says("\r\n0\r\n\r\n");
    assert_eq!(bench.server_hears(), "0\r\n\r\n");
    bench.answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n");
    assert!(bench.client_hears().ends_with("Transfer-Encoding: chunked\r\n\r\n"));
    bench.answers("x\r\n0");
    assert_eq!(bench.client_hears(), "1\r\nx\r\n");
    assert!(bench.commands().is_empty());
    bench.answers("\r\n\r\n");
    assert_eq!(bench.client_hears(), "0\r\n\r\n");
    assert_eq!(bench.commands(), RELEASED);
}

#[test]
fn pipelined_requests_are_taken_one_after_the_other() {
    let mut bench = Bench::new(2);
    bench.says(&format!("{GET}{POST}{GET}"));
    for expected in ["GET", "POST", "GET"] {
        bench.connects_to();
        bench.connected(true);
        assert!(bench.server_hears().starts_with(expected));
        assert!(!bench.exchange.wants_proceed());
        bench.answers(OK);
        assert_eq!(bench.client_hears(), OK);
        assert_eq!(bench.commands(), RELEASED);
        if bench.exchange.wants_proceed() {
            bench.exchange.proceed(bench.now, &mut bench.wire);
        }
    }
    assert!(bench.exchange.is_idle());
}

#[test]
fn a_client_that_floods_later_requests_is_not_read() {
    let mut bench = Bench::new(1);
    bench.says(GET);
    while bench.exchange.wants_client() {
        bench.says(&GET.repeat(100));
    }
    assert!(bench.exchange.inbox.len() < super::PIPELINE_WINDOW + 100 * GET.len());
}

#[test]
fn connect_failures_go_on_to_the_next_server_whatever_the_method() {
    let mut bench = Bench::new(3);
    bench.says(POST);
    assert_eq!(bench.connects_to(), (0, false));
    bench.refused();
    assert_eq!(bench.connects_to(), (1, true));
    bench.refused();
    assert_eq!(bench.connects_to(), (2, true));
    bench.connected(false);
    assert!(bench.server_hears().ends_with("Content-Length: 3\r\n\r\nabc"));
    bench.answers(OK);
    assert_eq!(bench.commands(), RELEASED);
    assert_eq!(bench.exchange.record().attempts, 3);
}

#[test]
fn when_nobody_takes_it_the_client_is_told_and_kept() {
    let mut bench = Bench::new(2);
    bench.says(GET);
    bench.refused().refused();
    let commands = bench.refuses(Reason::ConnectFailed);
    assert_eq!(commands.last(), Some(&Command::Done), "the connection is kept");
    bench.settings.upstreams[0].pool.set_up(0, false);
    bench.settings.upstreams[0].pool.set_up(1, false);
    bench.says(GET);
    bench.refuses(Reason::NoServer);
    assert_eq!(bench.in_flight(), 0);
}

/// Rows: request, reused, ending, the server tried next.
#[test]
fn a_dead_connection_is_retried_once_by_the_table() {
    for (request, reused, ending, next) in [
        (GET, true, CLEAN, Some(1)),
        (GET, true, DIED, Some(1)),
        (GET, false, DIED, Some(1)),
        (POST, true, UNWRITTEN, Some(1)),
        (POST, true, CLEAN, None),
        (POST, false, DIED, None),
    ] {
        let mut bench = Bench::new(2);
        bench.says(request);
        assert_eq!(bench.connects_to().0, 0);
        bench.connected(reused).ends(ending);
        let Some(next) = next else {
            bench.refuses(Reason::UpstreamClosed);
            continue;
        };
        assert_eq!(bench.connects_to(), (next, true), "{request:?} {reused} {ending:?}");
        let removed = bench.settings.upstreams[0].pool.status(bench.now)[0].removed;
        assert_eq!(removed, !reused, "an idle connection that had ended blames nobody");
        bench.server_hears();
        bench.connected(false);
        assert!(bench.server_hears().starts_with(&request[..8]), "the whole request again");
        bench.ends(DIED);
        bench.refuses(Reason::UpstreamClosed);
        assert_eq!(bench.in_flight(), 0);
    }
}

#[test]
fn a_lone_server_and_a_sessions_own_get_the_fresh_connection_themselves() {
    let mut bench = Bench::new(1);
    bench.says(GET);
    bench.connected(true).ends(CLEAN);
    assert_eq!(bench.connects_to(), (0, true));
    let mut bench = Bench::new(2);
    bench.says("GET /a HTTP/1.1\r\nHost: h\r\nCookie: JSESSIONID=A.t1\r\n\r\n");
    assert_eq!(bench.connects_to(), (1, false), "sticky");
    bench.connected(true).ends(CLEAN);
    assert_eq!(bench.connects_to(), (1, true));
    bench.refused();
    assert_eq!(bench.connects_to(), (0, true), "its own is down");
}

#[test]
fn nothing_is_retried_after_the_first_byte_of_an_answer() {
    let mut bench = Bench::new(2);
    bench.reaches(GET).answers("HTT").ends(DIED);
    bench.refuses(Reason::ReplyTruncated);
    let mut bench = Bench::new(2);
    bench.reaches(GET).answers("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab").ends(CLEAN);
    assert_eq!(bench.commands(), [Command::Done, Command::CloseClient(CloseHow::Cut)]);
    assert_eq!(bench.exchange.record().reason, Some(Reason::ReplyTruncated));
    let mut bench = Bench::new(2);
    bench.reaches(GET).answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx");
    bench.ends(CLEAN);
    assert!(!bench.client_hears().contains("0\r\n\r\n"), "a broken answer does not look complete");
    assert_eq!(bench.commands(), [Command::Done, Command::CloseClient(CloseHow::Cut)]);
}

#[test]
fn a_request_larger_than_the_window_is_not_replayed() {
    let mut bench = Bench::new(2);
    let size = super::REPLAY_WINDOW;
    bench.reaches(&format!("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n"));
    bench.says(&"x".repeat(size - 10)).says(&"y".repeat(10));
    assert!(bench.server_hears().ends_with("yyyyyyyyyy"));
    assert!(bench.exchange.replay.is_empty(), "what cannot be replayed is not held");
    bench.ends(DIED);
    bench.refuses(Reason::UpstreamClosed);
}

#[test]
fn while_connecting_a_body_waits_in_the_window_and_then_the_client_does() {
    let mut bench = Bench::new(1);
    bench.says("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n");
    while bench.exchange.wants_client() {
        bench.says(&"x".repeat(10_000));
    }
    assert!(bench.exchange.replay.len() < super::REPLAY_WINDOW + 20_000);
    bench.connects_to();
    bench.connected(false);
    assert!(bench.exchange.wants_client());
}

#[test]
fn expect_is_forwarded_and_its_answer_comes_through() {
    let put = "PUT /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let mut bench = Bench::new(1);
    bench.reaches(put);
    assert!(bench.server_hears().contains("Expect: 100-continue\r\n"));
    bench.answers("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(bench.client_hears(), "HTTP/1.1 100 Continue\r\n\r\n", "once");
    bench.says("ab").answers(OK);
    assert_eq!(bench.client_hears(), OK);
    let mut bench = Bench::new(1);
    bench.reaches(put).answers("HTTP/1.1 413 Large\r\nContent-Length: 0\r\n\r\n");
    let expected = "HTTP/1.1 413 Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_eq!(bench.client_hears(), expected, "the body is not awaited");
    assert_eq!(
        bench.commands(),
        [Command::CloseUpstream, Command::Done, Command::CloseClient(CloseHow::Linger)]
    );
}

#[test]
fn interim_answers_go_only_to_who_can_read_them() {
    let interims = "HTTP/1.1 102 P\r\n\r\nHTTP/1.1 103 E\r\nLink: x\r\n\r\nHTTP/1.1 100 C\r\n\r\n";
    let mut bench = Bench::new(1);
    bench.reaches(GET).answers(interims).answers(OK);
    assert_eq!(bench.client_hears(), format!("HTTP/1.1 103 E\r\nLink: x\r\n\r\n{OK}"));
    let mut bench = Bench::new(1);
    bench.reaches("GET /a HTTP/1.0\r\n\r\n").answers(interims).answers(OK);
    assert!(bench.client_hears().starts_with("HTTP/1.1 200 OK\r\n"));
    let mut bench = Bench::new(1);
    bench.reaches(GET).answers(&"HTTP/1.1 102 P\r\n\r\n".repeat(33));
    bench.refuses(Reason::ReplyInterim);
}

#[test]
fn old_clients_get_what_they_understand() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    let mut bench = Bench::new(1);
    bench.reaches("GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").answers(chunked);
    assert_eq!(bench.client_hears(), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhi");
    assert_eq!(bench.commands().last(), Some(&Command::CloseClient(CloseHow::Flush)));
    let mut bench = Bench::new(1);
    bench.reaches("GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").answers(OK);
    let kept = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi";
    assert_eq!(bench.client_hears(), kept);
    assert_eq!(bench.commands(), RELEASED);
}

#[test]
fn what_a_server_says_of_its_connection_is_believed() {
    let until_close = "HTTP/1.1 200 OK\r\n\r\nhi";
    let mut bench = Bench::new(1);
    bench.reaches(GET).answers(until_close).ends(CLEAN);
    let expected = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    assert_eq!(bench.client_hears(), expected);
    assert_eq!(bench.commands(), [Command::CloseUpstream, Command::Done]);
    for answer in [
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore than was said",
    ] {
        let mut bench = Bench::new(1);
        bench.reaches(GET).answers(answer);
        assert_eq!(bench.commands(), [Command::CloseUpstream, Command::Done], "{answer:?}");
    }
    let mut bench = Bench::new(1);
    bench.reaches(GET);
    bench.answers("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=20, max=5\r\nContent-Length: 0\r\n\r\n");
    let idle_limit = Some(Duration::from_secs(20));
    assert_eq!(bench.commands()[0], Command::ReleaseUpstream { idle_limit });
}

#[test]
fn a_head_answer_has_no_body_and_one_that_comes_is_not_taken_for_the_next() {
    let mut bench = Bench::new(1);
    bench.reaches("HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n").answers(OK);
    assert_eq!(bench.client_hears(), "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(bench.commands(), [Command::CloseUpstream, Command::Done]);
}

#[test]
fn bad_answers_are_502_and_the_server_is_blamed() {
    for (answer, reason) in [
        ("hello\r\n", Reason::ReplyHead),
        ("HTTP/1.1 99 X\r\n\r\n", Reason::ReplyStatus),
        ("HTTP/1.1 101 X\r\n\r\n", Reason::ReplyUpgrade),
        ("HTTP/1.1 200 X\r\nContent-Length: x\r\n\r\n", Reason::ReplyFraming),
    ] {
        let mut bench = Bench::new(2);
        bench.reaches(GET).answers(answer);
        let commands = bench.refuses(reason);
        assert_eq!(commands, [Command::CloseUpstream, Command::Done]);
        assert!(bench.settings.upstreams[0].pool.status(bench.now)[0].removed);
    }
    let mut bench = Bench::new(1);
    bench.reaches(GET);
    bench.answers("HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy");
    assert_eq!(bench.commands().last(), Some(&Command::CloseClient(CloseHow::Cut)));
    assert_eq!(bench.exchange.record().reason, Some(Reason::ReplyChunk));
}

#[test]
fn refused_requests_reach_nobody_and_end_the_connection() {
    for (request, reason) in [
        ("GET / HTTP/1.1\r\n\r\n", Reason::HostMissing),
        ("GET /a HTTP/1.1\r\nHost: h\r\nExpect: x\r\n\r\n", Reason::ExpectUnknown),
        ("TRACE /a HTTP/1.1\r\nHost: h\r\n\r\n", Reason::MethodNotAllowed),
        (
            "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n",
            Reason::BodyTooLarge,
        ),
        ("GET /a/../.. HTTP/1.1\r\nHost: h\r\n\r\n", Reason::TargetSyntax),
    ] {
        let mut bench = Bench::new(1);
        bench.says(request).says(GET);
        let commands = bench.refuses(reason);
        assert_eq!(
            commands,
            [Command::Done, Command::CloseClient(CloseHow::Linger)],
            "{request:?}"
        );
    }
    let mut bench = Bench::new(1);
    bench.says("GET /b HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(bench.refuses(Reason::NoRoute), [Command::Done], "404 keeps the connection");
    bench.says("POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n");
    let commands = bench.refuses(Reason::NoRoute);
    assert_eq!(commands.last(), Some(&Command::CloseClient(CloseHow::Linger)), "a body is coming");
}

#[test]
fn a_body_that_breaks_off_its_grammar_or_limit_stops_the_request() {
    for (body, reason) in
        [("zz\r\n", Reason::ChunkInvalid), ("6\r\nabcdef\r\n", Reason::BodyTooLarge)]
    {
        let mut bench = Bench::with(1, |http, _| http.body_size_max = 5);
        bench
            .reaches("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
            .says(body);
        let commands = bench.refuses(reason);
        let linger = Command::CloseClient(CloseHow::Linger);
        assert_eq!(commands, [Command::CloseUpstream, Command::Done, linger]);
        assert!(
            !bench.server_hears().contains("0\r\n\r\n"),
            "the server does not take it for whole"
        );
        assert_eq!(bench.in_flight(), 0);
    }
}

#[test]
fn a_client_that_leaves_takes_the_servers_request_with_it() {
    let mut bench = Bench::new(1);
    bench.reaches(GET);
    bench.exchange.handle_client_closed(bench.now);
    assert_eq!(
        bench.commands(),
        [Command::CloseUpstream, Command::Done, Command::CloseClient(CloseHow::Cut)]
    );
    let record = bench.exchange.record();
    assert_eq!((record.status, record.reason), (499, Some(Reason::ClientAborted)));
    assert_eq!(bench.in_flight(), 0);
    let status = &bench.settings.upstreams[0].pool.status(bench.now)[0];
    assert!(!status.removed, "not the server's fault");
    let mut bench = Bench::new(1);
    bench.exchange.handle_client_closed(bench.now);
    assert_eq!(bench.commands(), [Command::CloseClient(CloseHow::Flush)], "idle: no request ended");
}

#[test]
fn each_state_has_its_own_deadline() {
    let open = Blocked::default();
    let mut bench = Bench::new(2);
    bench.passes(10, open);
    assert_eq!(bench.commands(), [Command::CloseClient(CloseHow::Flush)], "a silent client");
    let mut bench = Bench::new(2);
    bench.says("GET /a").passes(10, open);
    bench.refuses(Reason::HeadTimeout);
    let mut bench = Bench::new(2);
    bench.says(GET);
    bench.connects_to();
    bench.passes(1, open);
    let commands = bench.commands();
    assert!(matches!(commands[..], [Command::CloseUpstream, Command::Connect { server: 1, .. }]));
    bench.passes(1, open);
    bench.refuses(Reason::ConnectTimeout);
    let mut bench = Bench::new(2);
    bench.reaches(GET).passes(60, open);
    let commands = bench.refuses(Reason::ReplyTimeout);
    assert_eq!(commands, [Command::CloseUpstream, Command::Done], "not retried, client kept");
    bench.reaches(GET).answers("HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\n").passes(60, open);
    assert_eq!(bench.exchange.record().reason, Some(Reason::ReplyStalled));
    let mut bench = Bench::new(2);
    bench.reaches("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\na").passes(60, open);
    bench.refuses(Reason::BodyTimeout);
    let mut bench = Bench::new(2);
    bench.reaches(GET).answers("HTTP/1.1 200 X\r\nContent-Length: 9\r\n\r\n");
    bench.passes(60, Blocked { client: true, upstream: false });
    assert_eq!(bench.exchange.record().reason, Some(Reason::ClientSlow));
    let mut bench = Bench::new(2);
    bench.reaches(GET).answers(OK).passes(75, open);
    assert_eq!(bench.commands().last(), Some(&Command::CloseClient(CloseHow::Flush)));
}

#[test]
fn a_stop_ends_idle_connections_and_lets_answers_finish() {
    let mut bench = Bench::new(1);
    bench.reaches(GET).answers(OK);
    assert_eq!(bench.commands(), RELEASED);
    bench.exchange.handle_stop(bench.now);
    assert_eq!(bench.commands(), [Command::CloseClient(CloseHow::Flush)]);
    let mut bench = Bench::new(1);
    bench.exchange.handle_stop(bench.now);
    assert!(bench.commands().is_empty(), "its first request may be on the way");
    bench.reaches(GET).answers(OK);
    assert!(bench.client_hears().contains("Connection: close\r\n"));
    let mut bench = Bench::new(1);
    bench.reaches(GET);
    bench.exchange.handle_stop(bench.now);
    assert!(bench.commands().is_empty());
    bench.answers(OK);
    assert!(bench.client_hears().contains("Connection: close\r\n"));
    assert_eq!(bench.commands().last(), Some(&Command::CloseClient(CloseHow::Flush)));
}

#[test]
fn whole_buffers_are_passed_on_only_in_the_middle_of_a_plain_body() {
    let mut bench = Bench::new(1);
    bench.reaches(GET);
    assert!(!bench.exchange.pass_answer(bench.now, b"HTTP"), "the head is not complete");
    bench.answers("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\na");
    assert!(bench.exchange.pass_answer(bench.now, b"bc"));
    assert!(!bench.exchange.pass_answer(bench.now, b"def"), "the last bytes end the request");
    assert!(!bench.exchange.pass_answer(bench.now, b"defg"), "not all of it is body");
    bench.answers("def");
    assert_eq!(bench.commands(), RELEASED);
    assert_eq!(bench.exchange.record().body_bytes, 6);
    bench.reaches(GET).answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n");
    assert!(!bench.exchange.pass_answer(bench.now, b"abc"), "chunks are framed anew");
    let mut bench = Bench::with(1, |http, _| http.body_size_max = 1 << 20);
    bench.reaches("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n");
    assert!(!bench.exchange.pass_body_whole(bench.now, b"ab"), "still held for a replay");
    bench.says(&"x".repeat(super::REPLAY_WINDOW + 1));
    assert!(bench.exchange.pass_body_whole(bench.now, &[b'y'; 1000]));
    let left = 200_000 - super::REPLAY_WINDOW - 1001;
    assert!(!bench.exchange.pass_body_whole(bench.now, &vec![b'y'; left]), "the last bytes");
}

#[test]
fn an_early_answer_does_not_stop_the_body() {
    let mut bench = Bench::new(1);
    bench.reaches("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nab");
    bench.server_hears();
    bench.answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh");
    bench.says("cd");
    assert_eq!(bench.server_hears(), "cd");
    bench.answers("i");
    assert!(bench.client_hears().ends_with("Connection: close\r\n\r\nhi"));
    assert_eq!(
        bench.commands(),
        [
            Command::ReleaseUpstream { idle_limit: None },
            Command::Done,
            Command::CloseClient(CloseHow::Flush)
        ]
    );
}

/// Plays a pipelined conversation with both sides' bytes in pieces of the given sizes; gives what
/// each side heard.
fn conversation(client_cuts: &[usize], server_cuts: &[usize]) -> (String, String) {
    let mut bench = Bench::new(1);
    let chunked = "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n1;x\r\nd\r\n0\r\nT: u\r\n\r\n";
    let requests = format!("{GET}{POST}{chunked}\r\n{GET}");
    let answers = [
        OK,
        "HTTP/1.1 103 E\r\n\r\nHTTP/1.1 204 N\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",
        OK,
    ];
    let mut pieces = cut(&requests, client_cuts).into_iter();
    let mut answered = 0;
    let (mut heard, mut told) = (String::new(), String::new());
    loop {
        for command in bench.commands() {
            if let Command::Connect { .. } = command {
                bench.connected(true);
            }
        }
        let complete =
            bench.exchange.phase == super::Phase::Active && !bench.exchange.awaits_body();
        if complete {
            for piece in cut(answers[answered], server_cuts) {
                bench.answers(piece);
            }
            answered += 1;
        } else if bench.exchange.wants_proceed() {
            bench.exchange.proceed(bench.now, &mut bench.wire);
        } else if let Some(piece) = pieces.next() {
            bench.says(piece);
        } else {
            break;
        }
        heard.push_str(&bench.server_hears());
        told.push_str(&bench.client_hears());
    }
    (heard, told)
}

fn cut<'a>(text: &'a str, cuts: &[usize]) -> Vec<&'a str> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % text.len()).collect();
    ends.extend([0, text.len()]);
    ends.sort_unstable();
    ends.dedup();
    ends.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

/// Chunks may be cut anew; their content may not.
fn joined(text: &str) -> String {
    let mut joined = text.replace("3\r\nabc\r\n1\r\nd\r\n", "abcd");
    for (cut, whole) in [
        ("1\r\na\r\n", "a"),
        ("1\r\nb\r\n", "b"),
        ("1\r\nc\r\n", "c"),
        ("1\r\nd\r\n", "d"),
        ("2\r\nab\r\n", "ab"),
        ("2\r\nbc\r\n", "bc"),
    ] {
        joined = joined.replace(cut, whole);
    }
    joined
}

proptest! {
    #[test]
    fn pieces_of_any_size_make_the_same_conversation(
        client in prop::collection::vec(0usize..500, 0..12),
        server in prop::collection::vec(0usize..200, 0..8),
    ) {
        let (heard, told) = conversation(&client, &server);
        let (heard_whole, told_whole) = conversation(&[], &[]);
        prop_assert_eq!(heard.matches("HTTP/1.1\r\n").count(), 4);
        prop_assert_eq!(joined(&heard), joined(&heard_whole));
        prop_assert_eq!(joined(&told), joined(&told_whole));
    }
}
