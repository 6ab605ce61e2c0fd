//! From the raw shape to the types: every value checked, every problem kept with its line.

mod node;
mod services;
mod witness;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use super::problem::{Problem, Problems, line_of, nearest};
use super::raw::{At, OneOrMany, Raw};
use super::{AccessLog, Config, Log, XdpMode};

/// Every key of the file, by table; for hints about a key in the wrong table.
const KEYS: &[(&str, &[&str])] = &[
    ("the top of the file, before the first [table]", &["xdp"]),
    (
        "[node]",
        &[
            "name",
            "side",
            "peer",
            "cluster",
            "key_file",
            "state_dir",
            "heartbeat",
            "dead_after",
            "unsynced_takeover",
            "lonely_segment",
            "boot_wait",
        ],
    ),
    ("[[vip]]", &["address", "interface", "vrid", "priority", "advert"]),
    ("[witness]", &["etcd", "prefix", "unreachable"]),
    ("[cache]", &["memory", "item_size_max", "ack", "ack_timeout"]),
    ("[[http]]", &["routes", "header_timeout", "idle_timeout", "body_size_max"]),
    (
        "[upstream.NAME]",
        &[
            "balance",
            "servers",
            "max_fails",
            "fail_timeout",
            "connect_timeout",
            "reply_timeout",
            "keepalive",
            "health",
        ],
    ),
    ("[engine]", &["workers", "io", "stall_kill", "stop_patience", "user"]),
    ("[log]", &["level", "access"]),
];

pub(super) fn parse(text: &str, file: &str) -> Result<Config, Problems> {
    let mut checker = Checker { text, problems: Vec::new() };
    let config = match toml::from_str::<Raw>(text) {
        Ok(raw) => checker.config(&raw),
        Err(error) => {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            let message = error.message().trim_end().to_owned();
            let hint = syntax_hint(&message);
            checker.problems.push(Problem { line, message, hint });
            None
        }
    };
    let mut problems = checker.problems;
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => {
            problems.sort_by_key(|problem| problem.line);
            Err(Problems { file: file.to_owned(), problems })
        }
    }
}

/// What to do about an error of the TOML reader.
fn syntax_hint(message: &str) -> Option<String> {
    if let Some(rest) = message.strip_prefix("unknown field `") {
        let (word, rest) = rest.split_once('`')?;
        if let Some(near) = nearest(word, rest.split('`').skip(1).step_by(2)) {
            return Some(format!("did you mean `{near}`?"));
        }
        let home = KEYS.iter().find(|(_, keys)| keys.contains(&word))?;
        return Some(format!("`{word}` belongs to {}", home.0));
    }
    if message.starts_with("invalid type: integer") && message.contains("string") {
        return Some("values carry their unit in quotes: \"100ms\", \"1GiB\"".to_owned());
    }
    None
}

/// Collects problems while values are taken.
struct Checker<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn config(&mut self, raw: &Raw) -> Option<Config> {
        let node = self.node(raw);
        let vips = self.vips(raw);
        let witness = self.witness(raw);
        let cache = raw.cache.as_ref().map(|cache| self.cache(cache.get_ref()));
        let upstreams = self.upstreams(raw);
        let http = self.https(raw, &upstreams);
        let engine = self.engine(&raw.engine);
        let admin = self.admin(&raw.admin);
        let xdp = self.word(
            &raw.xdp,
            "xdp",
            XdpMode::Auto,
            &[
                ("auto", XdpMode::Auto),
                ("native", XdpMode::Native),
                ("generic", XdpMode::Generic),
                ("off", XdpMode::Off),
            ],
        );
        let log = self.log(raw);
        if let (None, Some(node)) = (&cache, &raw.node)
            && node.get_ref().peer.is_some()
        {
            self.problem(
                node.span(),
                "a pair without [cache] is not supported yet",
                "add a [cache] table: who is in sync decides who may take over",
            );
        }
        if cache.is_none() && http.is_empty() && self.problems.is_empty() {
            self.problem(
                0..0,
                "nothing to serve: neither [cache] nor [[http]]",
                "add a [cache] table, or an [[http]] table with an [upstream.NAME]",
            );
        }
        let node = node?;
        let config =
            Config { node, vips, witness, cache, http, upstreams, engine, admin, xdp, log };
        self.same_address_twice(&config);
        Some(config)
    }

    fn log(&mut self, raw: &Raw) -> Log {
        let levels = ["error", "warn", "info", "debug", "trace"].map(|level| (level, level));
        let level = self.word(&raw.log.level, "[log] level", "info", &levels).to_owned();
        let access = match raw.log.access.as_ref().map(|at| at.get_ref().as_str()) {
            None | Some("off") => AccessLog::Off,
            Some("stderr") => AccessLog::Stderr,
            Some(path) => AccessLog::File(path.into()),
        };
        Log { level, access }
    }

    /// Two listeners on one address would share its connections at random.
    fn same_address_twice(&mut self, config: &Config) {
        let cache = config.cache.iter().flat_map(|cache| &cache.listen);
        let http = config.http.iter().flat_map(|http| &http.listen);
        let mut seen: Vec<SocketAddr> = Vec::new();
        for &address in cache.chain(http).chain([&config.admin.listen]) {
            let taken = seen.iter().any(|&other| overlap(other, address));
            if taken && address.port() != 0 {
                let at = self.find_text(&address.to_string());
                self.problem(
                    at,
                    format!("listen address {address} is used twice"),
                    "give each service its own port",
                );
            }
            seen.push(address);
        }
    }

    /// Last place where `needle` stands; only for problems between tables.
    fn find_text(&self, needle: &str) -> Range<usize> {
        let start = self.text.rfind(needle).unwrap_or(0);
        start..start
    }

    fn problem(&mut self, at: Range<usize>, message: impl Into<String>, hint: impl Into<String>) {
        let (message, hint) = (message.into(), hint.into());
        let hint = (!hint.is_empty()).then_some(hint);
        self.problems.push(Problem { line: line_of(self.text, at.start), message, hint });
    }

    /// One of a few words.
    fn word<T: Copy>(&mut self, at: &At<String>, key: &str, unset: T, words: &[(&str, T)]) -> T {
        let Some(at) = at else { return unset };
        let value = at.get_ref().as_str();
        if let Some((_, found)) = words.iter().find(|(word, _)| *word == value) {
            return *found;
        }
        let all: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let hint = match nearest(value, words.iter().map(|(word, _)| *word)) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("one of {}", all.join(", ")),
        };
        self.problem(at.span(), format!("{key} = \"{value}\" is not known"), hint);
        unset
    }

    /// A time with its unit, within limits.
    fn time(
        &mut self,
        at: &At<String>,
        key: &str,
        unset: Duration,
        limits: std::ops::RangeInclusive<Duration>,
    ) -> Duration {
        let Some(at) = at else { return unset };
        let text = at.get_ref();
        let Ok(time) = humantime::parse_duration(text) else {
            self.problem(
                at.span(),
                format!("{key} = \"{text}\" is not a time"),
                "write a number with its unit, such as \"100ms\", \"3s\", \"1m\"",
            );
            return unset;
        };
        if !limits.contains(&time) {
            let (low, high) = (limits.start(), limits.end());
            let hint = format!("between {low:?} and {high:?}");
            self.problem(at.span(), format!("{key} = \"{text}\" is out of range"), hint);
            return unset;
        }
        time
    }

    /// A size with its unit, bytes, within limits.
    fn size(
        &mut self,
        at: &At<String>,
        key: &str,
        unset: u64,
        limits: std::ops::RangeInclusive<u64>,
    ) -> u64 {
        let Some(at) = at else { return unset };
        let text = at.get_ref();
        let bare = text.bytes().all(|byte| byte.is_ascii_digit());
        let parsed = text.parse::<bytesize::ByteSize>().map(|size| size.as_u64());
        let Some(size) = parsed.ok().filter(|_| !bare) else {
            self.problem(
                at.span(),
                format!("{key} = \"{text}\" is not a size"),
                "write a number with its unit, such as \"64MiB\", \"1GiB\"",
            );
            return unset;
        };
        if !limits.contains(&size) {
            let show = |bytes: &u64| bytesize::ByteSize(*bytes).display().iec().to_string();
            let hint = format!("between {} and {}", show(limits.start()), show(limits.end()));
            self.problem(at.span(), format!("{key} = \"{text}\" is out of range"), hint);
            return unset;
        }
        size
    }

    /// A whole number within limits.
    fn number<T: TryFrom<i64> + Copy>(
        &mut self,
        at: &At<i64>,
        key: &str,
        unset: T,
        limits: std::ops::RangeInclusive<i64>,
    ) -> T {
        let Some(at) = at else { return unset };
        let value = *at.get_ref();
        let fits = if limits.contains(&value) { T::try_from(value).ok() } else { None };
        if let Some(fits) = fits {
            return fits;
        }
        let hint = format!("between {} and {}", limits.start(), limits.end());
        self.problem(at.span(), format!("{key} = {value} is out of range"), hint);
        unset
    }

    /// One `ip:port`.
    fn address(&mut self, text: &str, span: Range<usize>, key: &str) -> Option<SocketAddr> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            if address.port() != 0 || key.ends_with("listen") {
                return Some(address);
            }
            self.problem(span, format!("{key}: \"{text}\" has port 0"), "name a port");
            return None;
        }
        let hint = if let Some(port) = text.strip_prefix(':') {
            format!("write \"0.0.0.0:{port}\" for every address, or \"127.0.0.1:{port}\"")
        } else if text.parse::<IpAddr>().is_ok() {
            format!("add the port: \"{text}:7700\"")
        } else {
            "write ip:port, such as \"192.0.2.2:7700\"; host names are not resolved".to_owned()
        };
        self.problem(span, format!("{key}: \"{text}\" is not an address with port"), hint);
        None
    }

    /// One or more `ip:port`.
    fn addresses(&mut self, at: &At<OneOrMany>, key: &str) -> Option<Vec<SocketAddr>> {
        let at = at.as_ref()?;
        if at.get_ref().0.is_empty() {
            self.problem(at.span(), format!("{key} is empty"), "give at least one address");
            return None;
        }
        let mut all = Vec::new();
        for text in &at.get_ref().0 {
            let address = self.address(text, at.span(), key)?;
            if all.contains(&address) {
                self.problem(at.span(), format!("{key}: {address} stands twice"), "");
                return None;
            }
            all.push(address);
        }
        Some(all)
    }

    /// A value that must be there; `owner` is the table's own place.
    fn required<'r, T>(
        &mut self,
        at: &'r At<T>,
        owner: Range<usize>,
        key: &str,
        hint: &str,
    ) -> Option<&'r Spanned<T>> {
        if at.is_none() {
            self.problem(owner, format!("{key} is missing"), hint);
        }
        at.as_ref()
    }
}

/// Whether two listeners would meet.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let any = |ip: IpAddr| ip.is_unspecified() && (ip.is_ipv6() || ip == Ipv4Addr::UNSPECIFIED);
    a.port() == b.port() && (a.ip() == b.ip() || any(a.ip()) || any(b.ip()))
}
