//! The server over real connections on the loopback address.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use super::*;
use crate::config::Config;
use crate::control::counters::{Counter, Kind};
use crate::control::message::{Hello, StoreReport};
use crate::control::role::State as Role;
use crate::control::shared::{Held, Seat, SharedPage};
use crate::guardian::status::{
    ByReason, Check, DiskFacts, Ears, PeerFacts, SegmentFacts, WitnessFacts,
};
use crate::guardian::steering::{AttachReport, Attached};
use crate::http::Reason;

/// What an attacker would call things.
const EVIL: &str = "\"><script>alert('x')</script>\n&";

const PAIR: &str = r#"
[node]
name = "a"
side = "a"
cluster = "shop"
peer = ["192.0.2.2:7700", "198.51.100.2:7700"]
key_file = "pair.key"
[[vip]]
address = "192.0.2.100/24"
interface = "eth1"
vrid = 51
[cache]
memory = "64MiB"
[[http]]
listen = ["0.0.0.0:80"]
routes = [ { host = "*", path = "/", upstream = "tomcat" } ]
[upstream.tomcat]
servers = [ { address = "127.0.0.1:8080", route = "tomcat1" }, { address = "127.0.0.1:8081" } ]
health = { interval = "1s" }
"#;

fn pair() -> (StatusHandle, Held) {
    let config = crate::config::parse(PAIR, "test.toml").unwrap_or_else(|error| panic!("{error}"));
    let (page, _fd) = SharedPage::create(2).unwrap();
    let seat = page.hold(Seat::Engine).unwrap();
    (StatusHandle::new(&config, page), seat)
}

/// Everything that can be told is told, with hostile words.
fn fill(status: &StatusHandle) {
    status.engine_started(4242);
    let store = StoreReport {
        fresh: false,
        epoch: 6,
        items: 120_000,
        shards_rebuilt: 1,
        items_dropped: 3,
        note: Some(format!("huge pages refused {EVIL}")),
    };
    let io = format!("epoll (EPERM: {EVIL})");
    status.engine_serving(&Hello { version: 1, io, store: Some(store) });
    status.page().set_role(Role::Master, 6);
    status.role_changed(Role::MasterSolo, "elected");
    status.role_changed(Role::Master, "caught_up");
    status.answering(true);
    status.carrier(0, false);
    status.xdp(&[AttachReport {
        interface: "eth1".into(),
        got: Attached::Generic,
        reason: format!("veth loses native answers {EVIL}"),
        warnings: vec![EVIL.into()],
    }]);
    status.path_heard(0, Some(Duration::from_micros(180)));
    status.peer(PeerFacts {
        connected: true,
        name: Some(EVIL.into()),
        version: Some("0.1.0".into()),
        state: Some(Role::Synced),
        epoch: Some(6),
        beats_sent: 1000,
        beats_received: 990,
        refused: ByReason(vec![("wrong_key", 2), ("datagram_replay", 0)]),
        refused_reason: Some(format!("wrong key {EVIL}")),
    });
    status.path(0, Ears { ears: "whole" });
    status.segment(0, SegmentFacts { reached: Some(true), askable: true, probes: 40, answers: 39 });
    status.disk(DiskFacts { state: "ok", reserved: 100, left: Some(16_000), failures: 1 });
    status.witness(WitnessFacts {
        configured: true,
        state: "granted",
        generation: Some(7),
        holder: Some(EVIL.into()),
        epoch: Some(6),
        asked: 9,
        unanswered: 1,
    });
    let mut counters = vrrp::Counters { sent: 600, received: 2, ..vrrp::Counters::default() };
    counters.refused[6] = 3;
    status.adverts(0, &counters);
    assert!(status.alarm("peer_key", true));
    status.checked(0, 1, Check::Failed(libc::ECONNREFUSED), false, 7);
    status.event(&format!("role SYNCED to MASTER_SOLO: {EVIL}"));
    for index in 0..2 {
        let worker = status.page().worker(index).unwrap();
        for (number, &counter) in (1..).zip(Counter::ALL) {
            worker.add(counter, number * 1000);
        }
        worker.refuse(Reason::HostMissing);
        worker.set_held_since(Some(1));
    }
}

/// Runs the server, then `test` with its address; both must end.
fn serving(status: &StatusHandle, test: impl FnOnce(SocketAddr)) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let status = status.clone();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let stopped = async move { drop(stopped.await) };
        runtime.block_on(serve(listener, status, stopped)).unwrap();
    });
    test(address);
    drop(stop);
    server.join().unwrap();
}

/// Status code, head and body of one request; the server closes after it.
fn ask(address: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, head.to_ascii_lowercase(), body.to_owned())
}

fn get_path(address: SocketAddr, path: &str) -> (u16, String, String) {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
}

#[test]
fn the_page_is_whole_and_escaped() {
    let (status, _seat) = pair();
    fill(&status);
    serving(&status, |address| {
        let (code, head, body) = get_path(address, "/");
        assert_eq!(code, 200);
        for shown in
            ["MASTER", "192.0.2.100", "tomcat1", "4242", "connected", "in sync", "peer_key"]
        {
            assert!(body.contains(shown), "{shown} is missing in {body}");
        }
        assert!(!body.contains("alert('x')"), "a stranger's markup came through");
        assert!(body.matches("alert(&#39;x&#39;)").count() >= 7, "{body}");
        assert_eq!(body.matches("<script").count(), 1);
        let nonce = head.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap();
        assert!(nonce.len() == 32 && body.contains(&format!("<script nonce=\"{nonce}\">")));
        assert!(!body.contains("style=\""), "the policy forbids style attributes");
        let (_, other, _) = get_path(address, "/");
        assert!(!other.contains(nonce), "a nonce is used once");
    });
}

#[test]
fn every_answer_has_the_strict_headers() {
    let (status, _seat) = pair();
    serving(&status, |address| {
        for path in ["/", "/status.json", "/metrics", "/healthz", "/nothing", "/../etc/passwd"] {
            let (_, head, _) = get_path(address, path);
            for header in [
                "content-security-policy: default-src 'none'",
                "x-content-type-options: nosniff",
                "x-frame-options: deny",
                "cache-control: no-store",
                "referrer-policy: no-referrer",
                "cross-origin-resource-policy: same-origin",
            ] {
                assert!(head.contains(header), "{path}: {header} is missing in {head}");
            }
        }
    });
}

#[test]
fn only_get_and_head_of_known_paths() {
    let (status, _seat) = pair();
    serving(&status, |address| {
        for path in ["/", "/status.json", "/metrics", "/healthz"] {
            let request = |method| {
                format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            };
            let (code, _, body) = ask(address, &request("HEAD"));
            assert!(matches!(code, 200 | 503) && body.is_empty(), "{path} {code} {body}");
            for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"] {
                let (code, head, _) = ask(address, &request(method));
                assert_eq!(code, 405, "{method} {path}");
                assert!(head.contains("allow: get, head"), "{head}");
            }
        }
        assert_eq!(get_path(address, "/admin").0, 404);
        let huge = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(1 << 20));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let sent = stream.write_all(huge.as_bytes());
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        assert!(sent.is_err() || read.is_err() || !answer.starts_with(b"HTTP/1.1 200"));
        assert_eq!(get_path(address, "/healthz").0, 503, "the server lives on");
    });
}

#[test]
fn health_says_the_word() {
    let (status, seat) = pair();
    serving(&status, |address| {
        let health = || {
            let (code, _, body) = get_path(address, "/healthz");
            (code, body)
        };
        assert_eq!(health(), (503, "engine_down\n".into()));
        status.engine_started(1);
        status.engine_serving(&Hello { version: 1, io: "uring".into(), store: None });
        assert_eq!(health(), (503, "boot\n".into()));
        for (state, expected) in [
            (Role::Join, (200, "serving\n")),
            (Role::Synced, (200, "serving\n")),
            (Role::MasterSolo, (200, "serving\n")),
            (Role::Fenced, (503, "fenced\n")),
            (Role::Master, (200, "serving\n")),
        ] {
            status.page().set_role(state, 2);
            assert_eq!(health(), (expected.0, expected.1.to_owned()));
        }
        drop(seat);
        assert_eq!(health(), (503, "engine_down\n".into()), "its thread is gone");
        status.stopping();
        assert_eq!(health(), (503, "stopping\n".into()));
    });
}

#[test]
fn json_has_the_documented_names() {
    let (status, _seat) = pair();
    fill(&status);
    serving(&status, |address| {
        let (code, head, body) = get_path(address, "/status.json");
        assert!(code == 200 && head.contains("content-type: application/json"));
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        for (pointer, expected) in [
            ("/node", "\"a\""),
            ("/cluster", "\"shop\""),
            ("/role", "\"MASTER\""),
            ("/epoch", "6"),
            ("/cause", "\"caught_up\""),
            ("/health", "\"serving\""),
            ("/vips/0/answering", "true"),
            ("/vips/0/carrier", "false"),
            ("/xdp/interfaces/0/mode", "\"generic\""),
            ("/peer/state", "\"SYNCED\""),
            ("/peer/paths/0/rtt_us", "180"),
            ("/peer/paths/1/last_beat_ms_ago", "null"),
            ("/peer/refused/wrong_key", "2"),
            ("/sync/state", "\"in_sync\""),
            ("/engine/pid", "4242"),
            ("/engine/io/backend", "\"epoll\""),
            ("/engine/store/shards_rebuilt", "1"),
            ("/backends/0/upstream", "\"tomcat\""),
            ("/backends/0/servers/1/up", "false"),
            ("/http/refusals/host_missing", "2"),
        ] {
            let found = json.pointer(pointer).map(ToString::to_string);
            assert_eq!(found.as_deref(), Some(expected), "{pointer}");
        }
        let unprotected = json.pointer("/sync/unprotected_seconds").unwrap().as_f64().unwrap();
        assert!(unprotected > 0.0, "the pair's node was MASTER_SOLO");
    });
}

/// A sample's name, its labels, its value.
fn sample(line: &str) -> (&str, &str, f64) {
    let (name, rest) = match line.find(['{', ' ']) {
        Some(at) => line.split_at(at),
        None => panic!("no value: {line}"),
    };
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => rest.rsplit_once("} ").unwrap_or_else(|| panic!("no value: {line}")),
        None => ("", &rest[1..]),
    };
    let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
    (name, labels, value)
}

#[test]
fn metrics_are_grammar_and_complete() {
    let (status, _seat) = pair();
    fill(&status);
    let mut text = String::new();
    serving(&status, |address| {
        let (code, head, body) = get_path(address, "/metrics");
        assert!(code == 200 && head.contains("content-type: application/openmetrics-text;"));
        text = body;
    });
    assert!(text.ends_with("# EOF\n"));
    let (mut families, mut samples) = (Vec::new(), BTreeSet::new());
    let mut helped = "";
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split_once(' ').filter(|(_, help)| !help.is_empty()).unwrap().0;
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, helped, "a type follows its help");
            assert!(!families.iter().any(|(of, _)| *of == name), "{name} twice");
            families.push((name, kind));
        } else {
            let (name, labels, value) = sample(line);
            let (family, kind) = *families.last().unwrap();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                "gauge" => "",
                kind => panic!("an unknown kind: {kind}"),
            };
            assert_eq!(name, format!("{family}{suffix}"), "{line}");
            assert!(name.starts_with("tandem_") && value >= 0.0, "{line}");
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(name.chars().all(plain), "{line}");
            assert_eq!(labels.replace("\\\"", "").matches('"').count() % 2, 0, "{line}");
            assert!(samples.insert((name, labels)), "{line} twice");
        }
    }
    complete(&text);
}

/// Every counter and every reason is there, with its value.
fn complete(text: &str) {
    for (number, counter) in (1_u64..).zip(Counter::ALL) {
        let suffix = if counter.kind() == Kind::Total { "_total" } else { "" };
        let line = format!("\ntandem_{}{suffix} {}\n", counter.name(), number * 2000);
        assert!(text.contains(&line), "no {line:?}");
        assert!(text.contains(&format!("# HELP tandem_{} {}", counter.name(), counter.help())));
        assert!(counter.help().ends_with('.'));
    }
    for reason in Reason::ALL {
        let count = if *reason == Reason::HostMissing { 2 } else { 0 };
        let (code, status) = (reason.code(), reason.status());
        let labels = format!("{{reason=\"{code}\",status=\"{status}\"}}");
        assert!(text.contains(&format!("tandem_http_refusals_total{labels} {count}\n")), "{code}");
    }
    for line in [
        "tandem_role{state=\"MASTER\"} 1",
        "tandem_role{state=\"FENCED\"} 0",
        "tandem_epoch 6",
        "tandem_peer_refused_total{reason=\"wrong_key\"} 2",
        "tandem_peer_refused_total{reason=\"datagram_replay\"} 0",
        "tandem_vip_answering{address=\"192.0.2.100\",interface=\"eth1\"} 1",
        "tandem_backend_up{upstream=\"tomcat\",server=\"127.0.0.1:8081\"} 0",
        "tandem_in_sync 1",
        "tandem_engine_up 1",
        "tandem_alarm{cause=\"peer_key\"} 1",
        "tandem_peer_rtt_seconds{path=\"192.0.2.2:7700\"} 0.00018",
        "tandem_witness_granted 1",
        "tandem_disk_ok 1",
        "tandem_serving 1",
    ] {
        assert!(text.lines().any(|of| of == line), "no {line} in {text}");
    }
    assert!(text.contains("tandem_io_backend_info{kind=\"epoll\",reason=\"EPERM: \\\"><script>"));
}

#[test]
fn a_single_node_has_a_page_too() {
    let config = Config::single(&["127.0.0.1:8081".parse().unwrap()]);
    let (page, _fd) = SharedPage::create(1).unwrap();
    let status = StatusHandle::new(&config, page);
    serving(&status, |address| {
        let (code, _, body) = get_path(address, "/");
        assert!(code == 200 && body.contains("single node") && body.contains("No peer"), "{body}");
        let (code, _, metrics) = get_path(address, "/metrics");
        assert!(code == 200 && !metrics.contains("tandem_peer"), "{metrics}");
        assert!(!metrics.contains("tandem_witness") && !metrics.contains("tandem_disk_ok"));
    });
}

#[test]
fn stop_does_not_wait_for_idle_clients() {
    let (status, _seat) = pair();
    let mut idle = None;
    let mut begun = None;
    serving(&status, |address| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET / HT").unwrap();
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        idle = Some(stream);
        begun = Some(std::time::Instant::now());
    });
    let took = begun.unwrap().elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// Every name that others build on: paths of `/status.json`, samples of `/metrics` with the names
/// of their labels. A name once given stays; a new one is a new line of `names.txt`.
#[test]
fn public_names_are_the_ones_written_down() {
    let (status, _seat) = pair();
    fill(&status);
    let mut names = BTreeSet::new();
    serving(&status, |address| {
        let json = get_path(address, "/status.json").2;
        json_names("json ", &serde_json::from_str(&json).unwrap(), &mut names);
        for line in get_path(address, "/metrics").2.lines().filter(|line| !line.starts_with('#')) {
            let (name, labels, _) = sample(line);
            names.insert(format!("metric {name}{{{}}}", label_names(labels).join(",")));
        }
    });
    let pinned: BTreeSet<String> = include_str!("names.txt").lines().map(str::to_owned).collect();
    let gone: Vec<_> = pinned.difference(&names).collect();
    let new: Vec<_> = names.difference(&pinned).collect();
    assert!(gone.is_empty() && new.is_empty(), "gone: {gone:#?}\nnew: {new:#?}");
}

fn json_names(path: &str, value: &serde_json::Value, names: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                json_names(&format!("{path}/{name}"), value, names);
            }
        }
        serde_json::Value::Array(items) => {
            for item in items {
                json_names(&format!("{path}/*"), item, names);
            }
        }
        _ => {
            names.insert(path.to_owned());
        }
    }
}

fn label_names(labels: &str) -> Vec<&str> {
    let (mut names, mut rest) = (Vec::new(), labels);
    while let Some((name, value)) = rest.split_once("=\"") {
        names.push(name.trim_start_matches(','));
        let mut escaped = false;
        let end = value.find(|c| {
            let end = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            end
        });
        rest = &value[end.unwrap() + 1..];
    }
    names
}
