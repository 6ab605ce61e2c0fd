//! Every rule of the file: what is accepted, and what is refused with which line and hint.

use super::*;

const PAIR: &str = r#"
[node]
name = "a"
side = "a"
peer = "192.0.2.2:7700"
key_file = "pair.key"

[cache]
memory = "1GiB"
"#;

/// The only problem of a text.
fn problem(text: &str) -> Problem {
    let problems = parse(text, "t.toml").expect_err("must be refused").problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].clone()
}

#[test]
fn pair_with_defaults() {
    let config = parse(PAIR, "t.toml").unwrap();
    let pair = config.node.pair.unwrap();
    assert_eq!(pair.side, Side::A);
    assert_eq!(pair.cluster, "tandem");
    assert_eq!(pair.listen, vec!["0.0.0.0:7700".parse().unwrap()]);
    assert_eq!(pair.dead_time(), Duration::from_millis(40));
    assert_eq!(pair.lease_time(), Duration::from_millis(30));
    assert_eq!(pair.unsynced_takeover, UnsyncedTakeover::After(Duration::from_secs(3)));
    let cache = config.cache.unwrap();
    assert_eq!(cache.memory, 1 << 30);
    assert_eq!(cache.ack, Ack::Replicated);
    assert_eq!(config.xdp, XdpMode::Auto);
}

#[test]
fn whole_file() {
    let text = r#"
xdp = "off"
[node]
name = "b"
side = "b"
peer = ["192.0.2.1:7700", "198.51.100.1:7700"]
key_file = "k"
heartbeat = "5ms"
unsynced_takeover = "never"
lonely_segment = "hold"
[[vip]]
address = "192.0.2.100/24"
interface = "eth0"
vrid = 51
[cache]
[[http]]
listen = "0.0.0.0:80"
routes = [ { host = "Example.org", path = "/app", upstream = "z" }, { upstream = "a" } ]
[upstream.z]
servers = [ { address = "127.0.0.1:8080", route = "tomcat", weight = 3 } ]
health = { interval = "200ms" }
[upstream.a]
servers = [ { address = "127.0.0.1:8081" } ]
[engine]
workers = 2
io = "epoll"
user = "tandem"
"#;
    let config = parse(text, "t.toml").unwrap();
    assert_eq!(config.node.pair.unwrap().peers.len(), 2);
    assert_eq!(config.vips[0].prefix, 24);
    let routes = &config.http[0].routes;
    assert_eq!(routes[0].host.as_deref(), Some("example.org"));
    assert_eq!(config.upstreams[usize::from(routes[0].upstream)].name, "z");
    assert_eq!(config.upstreams[usize::from(routes[1].upstream)].name, "a");
    assert_eq!(config.engine.workers, Some(2));
    assert_eq!(config.engine.user, User::Name("tandem".to_owned()));
    let numbered = parse(&text.replace("\"tandem\"", "\"990\""), "t.toml").unwrap();
    assert_eq!(numbered.engine.user, User::Id(990));
}

#[test]
fn refusals_name_line_and_hint() {
    let with = |line: &str| format!("[cache]\nmemory = \"64MiB\"\n{line}\n");
    let table: &[(&str, usize, &str, &str)] = &[
        (&with("memroy = \"1GiB\""), 3, "unknown field `memroy`", "did you mean `memory`?"),
        (&with("xdp = \"off\""), 3, "unknown field `xdp`", "top of the file"),
        (&with("heartbeat = \"10ms\""), 3, "unknown field `heartbeat`", "belongs to [node]"),
        (&with("ack = \"replcated\""), 3, "\"replcated\" is not known", "\"replicated\"?"),
        (&with("ack_timeout = 20"), 3, "invalid type: integer", "unit in quotes"),
        (&with("ack_timeout = \"20\""), 3, "is not a time", "\"100ms\""),
        (&with("ack_timeout = \"1h\""), 3, "out of range", "between 1ms and 10s"),
        (&with("item_size_max = \"12\""), 3, "is not a size", "\"64MiB\""),
        (&with("item_size_max = \"32MiB\""), 3, "too large", "an eighth"),
        (&with("listen = \":11211\""), 3, "not an address", "\"0.0.0.0:11211\""),
        (&with("listen = \"localhost:1\""), 3, "not an address", "not resolved"),
        (&with("listen = []"), 3, "is empty", "at least one"),
        (&with("[engine]\nworkers = 0"), 4, "workers = 0 is out of range", "between 1 and 64"),
        (&with("[engine]\nio = \"urnig\""), 4, "is not known", "\"uring\"?"),
        (&with("[engine]\nuser = \"root\""), 4, "never runs as root", "/etc/passwd"),
        (&with("[engine]\nuser = \"0\""), 4, "never runs as root", "65534"),
        (&with("[engine]\nuser = \"4294967295\""), 4, "is no user", "65534"),
        (&with("[engine]\nuser = \"\""), 4, "is no user", "65534"),
        (&with("[admin]\nlisten = \"127.0.0.1:11211\""), 4, "used twice", "own port"),
        (&with("[node]\nname = \"a\"\nside = \"a\""), 5, "without a peer", "add peer"),
        (&with("[node]"), 3, "[node] name is missing", "name it"),
        ("[cache\n", 1, "", ""),
        ("[log]\nlevel = \"info\"\n", 1, "nothing to serve", "[cache]"),
    ];
    for (text, line, message, hint) in table {
        let found = problem(text);
        assert_eq!(found.line, *line, "{text}: {found:?}");
        assert!(found.message.contains(message), "{text}: {found:?}");
        assert!(found.hint.clone().unwrap_or_default().contains(hint), "{text}: {found:?}");
    }
}

#[test]
fn refusals_of_pairs_and_vips() {
    let node = |line: &str| PAIR.replace("[cache]", &format!("{line}\n[cache]"));
    let vip = |line: &str| {
        format!("{PAIR}[[vip]]\naddress = \"192.0.2.9/24\"\ninterface = \"eth0\"\n{line}\n")
    };
    let table: &[(String, usize, &str, &str)] = &[
        (PAIR.replace("[cache]\nmemory = \"1GiB\"", ""), 2, "without [cache]", "add a [cache]"),
        (PAIR.replace("side = \"a\"\n", ""), 2, "side is missing", "on the other"),
        (PAIR.replace("key_file = \"pair.key\"\n", ""), 2, "key_file is missing", "keygen"),
        (PAIR.replace(":7700", ""), 5, "not an address", "add the port"),
        (PAIR.replace(":7700", ":65535"), 5, "too high", "next port"),
        (PAIR.replace("192.0.2.2", "0.0.0.0"), 5, "one host", "other node"),
        (node("heartbeat = \"2s\""), 8, "out of range", "between 1ms and 1s"),
        (node("dead_after = 2"), 8, "out of range", "between 3 and 100"),
        (node("unsynced_takeover = \"maybe\""), 8, "is not a time", "\"3s\""),
        (node("lonely_segment = \"wait\""), 8, "is not known", "hold"),
        (vip(""), 10, "vrid is missing", "unique"),
        (vip("vrid = 300"), 13, "out of range", "between 1 and 255"),
        (vip("vrid = 1\nadvert = \"15ms\""), 14, "centiseconds", "10ms"),
        (vip("vrid = 1").replace("192.0.2.9/24", "2001:db8::1/64"), 11, "not served yet", "IPv4"),
        (vip("vrid = 1").replace("192.0.2.9/24", "192.0.2.9/33"), 11, "with prefix", "/24"),
        (vip("vrid = 1").replace("eth0", "a/b"), 12, "interface name", "ip link"),
    ];
    for (text, line, message, hint) in table {
        let found = problem(text);
        assert_eq!(found.line, *line, "{text}: {found:?}");
        assert!(found.message.contains(message), "{text}: {found:?}");
        assert!(found.hint.clone().unwrap_or_default().contains(hint), "{text}: {found:?}");
    }
}

#[test]
fn witness() {
    let of = |table: &str| parse(&format!("{PAIR}[witness]\n{table}"), "t.toml").unwrap().witness;
    assert_eq!(parse(PAIR, "t.toml").unwrap().witness, None);
    let found = of("address = [\"192.0.2.3:7710\", \"198.51.100.3:7710\"]").unwrap();
    assert!(matches!(found.register, RegisterPlace::Tandem(all) if all.len() == 2));
    assert_eq!(found.unreachable, UnreachableWitness::Hold);
    assert_eq!(found.timeout, Duration::from_millis(60));
    let etcd = "etcd = \"http://192.0.2.3:2379/\"\nunreachable = \"prefer_master\"\n\
                timeout = \"250ms\"";
    let found = of(etcd).unwrap();
    let urls = vec!["http://192.0.2.3:2379".to_owned()];
    assert_eq!(found.register, RegisterPlace::Etcd { urls, prefix: "/tandem/".to_owned() });
    assert_eq!(found.unreachable, UnreachableWitness::PreferMaster);
    assert_eq!(found.timeout, Duration::from_millis(250));
}

#[test]
fn refusals_of_the_witness() {
    let witness = |lines: &str| format!("{PAIR}[witness]\n{lines}\n");
    let at = |line: &str| witness(&format!("address = \"192.0.2.3:7710\"\n{line}"));
    let single = "[cache]\n[witness]\naddress = \"192.0.2.3:7710\"\n".to_owned();
    let table: &[(String, usize, &str, &str)] = &[
        (single, 2, "without a peer", "[node]"),
        (witness(""), 10, "neither address nor etcd", "7710"),
        (witness("address = []"), 11, "is empty", "at least one"),
        (witness("address = \"192.0.2.3\""), 11, "not an address", "add the port"),
        (witness("address = \"witness:7710\""), 11, "not an address", "not resolved"),
        (witness("etcd = []"), 11, "is empty", "at least one"),
        (witness("etcd = \"https://192.0.2.3:2379\""), 11, "member's URL", "TLS"),
        (witness("etcd = \"http://etcd:2379\""), 11, "member's URL", "not resolved"),
        (witness("etcd = \"192.0.2.3:2379\""), 11, "member's URL", "http://ip:port"),
        (at("etcd = \"http://192.0.2.3:2379\""), 12, "both address and etcd", "keep one"),
        (at("prefix = \"/x\""), 12, "without etcd", "remove it"),
        (
            witness("etcd = \"http://192.0.2.3:2379\"\nprefix = \"\""),
            12,
            "key's beginning",
            "/tandem/",
        ),
        (at("unreachable = \"hodl\""), 12, "is not known", "\"hold\"?"),
        (at("timeout = \"1s\""), 12, "out of range", "between 10ms and 900ms"),
        (at("timeuot = \"60ms\""), 12, "unknown field", "`timeout`?"),
        (PAIR.replace("[cache]", "unreachable = \"hold\"\n[cache]"), 8, "unknown", "[witness]"),
    ];
    for (text, line, message, hint) in table {
        let found = problem(text);
        assert_eq!(found.line, *line, "{text}: {found:?}");
        assert!(found.message.contains(message), "{text}: {found:?}");
        assert!(found.hint.clone().unwrap_or_default().contains(hint), "{text}: {found:?}");
    }
}

#[test]
fn refusals_of_http() {
    let http = |routes: &str, upstream: &str| {
        format!(
            "[[http]]\nlisten = \"0.0.0.0:80\"\nroutes = [ {routes} ]\n[upstream.web]\n{upstream}\n"
        )
    };
    let good = "servers = [ { address = \"127.0.0.1:81\" } ]";
    let route = "{ upstream = \"web\" }";
    let table: &[(String, usize, &str, &str)] = &[
        (http("", good), 1, "no routes", "routes ="),
        (http("{ upstream = \"wbe\" }", good), 3, "does not exist", "\"web\"?"),
        (http("{ upstream = \"other\" }", good), 3, "does not exist", "add a table"),
        (http("{ path = \"x\", upstream = \"web\" }", good), 3, "begin with /", "\"/x\""),
        (http("{ host = \"a:80\", upstream = \"web\" }", good), 3, "not a host", "without port"),
        (http("{ }", good), 3, "route upstream is missing", "NAME"),
        (http(route, "max_fails = 1"), 4, "no servers", "servers ="),
        (http(route, "servers = [ { weight = 1 } ]"), 5, "address is missing", "address ="),
        (
            http(route, &format!("{good}\nbalance = \"least_conn\"")),
            6,
            "not supported yet",
            "round_robin",
        ),
        (
            http(route, &format!("{good}\nsticky = {{ cookie = \"J\" }}")),
            6,
            "not supported yet",
            "remove it",
        ),
        (http(route, &format!("{good}\nkeepalive = -1")), 6, "out of range", "between 0"),
    ];
    for (text, line, message, hint) in table {
        let found = problem(text);
        assert_eq!(found.line, *line, "{text}: {found:?}");
        assert!(found.message.contains(message), "{text}: {found:?}");
        assert!(found.hint.clone().unwrap_or_default().contains(hint), "{text}: {found:?}");
    }
}

#[test]
fn all_wrong_values_at_once() {
    let text = "[cache]\nack = \"x\"\nmemory = \"y\"\n[engine]\nio = \"z\"\n";
    let problems = parse(text, "t.toml").unwrap_err();
    let lines: Vec<usize> = problems.problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [2, 3, 5]);
    assert!(problems.to_string().starts_with("t.toml:2: [cache] ack = \"x\""), "{problems}");
}

#[test]
fn single_needs_no_file() {
    let backends = ["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()];
    let config = Config::single(&backends);
    assert_eq!(config.upstreams[0].servers.len(), 2);
    assert!(config.node.pair.is_none() && config.vips.is_empty());
}

proptest::proptest! {
    /// Hostile text is refused or accepted, never a panic.
    #[test]
    fn any_text(text in "(\\[node\\]|\\[cache\\]|name|=|\"|[a-z0-9:/.\\n ]){0,60}") {
        let parsed = parse(&text, "t.toml");
        if let Err(problems) = parsed {
            proptest::prop_assert!(!problems.problems.is_empty());
        }
    }
}
