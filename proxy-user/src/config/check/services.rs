//! `[cache]`, `[[http]]`, `[upstream.NAME]`, `[engine]`, `[admin]`.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use super::super::problem::nearest;
use super::super::raw::{
    At, Raw, RawAdmin, RawCache, RawEngine, RawHealth, RawHttp, RawRoute, RawServer, RawUpstream,
};
use super::super::{
    Ack, Admin, Balance, Cache, Engine, Health, Http, Io, Route, Server, Upstream, User,
};
use super::Checker;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Ways to balance that nginx users know and that are still to come.
const BALANCE_LATER: &[&str] =
    &["ip_hash", "url_hash", "least_conn", "fair", "random_two", "weighted", "hash"];

impl Checker<'_> {
    pub(super) fn cache(&mut self, cache: &RawCache) -> Cache {
        let unset = Cache::default();
        let listen = self.listen(&cache.listen, "[cache] listen").unwrap_or(unset.listen);
        let memory =
            self.size(&cache.memory, "[cache] memory", unset.memory, 16 * MIB..=1024 * GIB);
        let key = "[cache] item_size_max";
        let item_max = self.size(&cache.item_size_max, key, MIB, KIB..=128 * MIB);
        if let Some(at) = cache.item_size_max.as_ref().filter(|_| item_max > memory / 8) {
            self.problem(
                at.span(),
                "[cache] item_size_max is too large for [cache] memory",
                "at most an eighth of memory",
            );
        }
        let ack = self.word(
            &cache.ack,
            "[cache] ack",
            Ack::Replicated,
            &[("replicated", Ack::Replicated), ("local", Ack::Local)],
        );
        let key = "[cache] ack_timeout";
        let ack_timeout = self.time(&cache.ack_timeout, key, 20 * MS, MS..=10 * SECOND);
        Cache {
            listen,
            memory: memory.next_multiple_of(MIB),
            item_size_max: u32::try_from(item_max).unwrap_or(u32::MAX),
            ack,
            ack_timeout,
        }
    }

    fn listen(
        &mut self,
        at: &At<super::super::raw::OneOrMany>,
        key: &str,
    ) -> Option<Vec<std::net::SocketAddr>> {
        self.addresses(at, key)
    }

    pub(super) fn https(&mut self, raw: &Raw, upstreams: &[Upstream]) -> Vec<Http> {
        raw.http.iter().map(|http| self.http(http.get_ref(), &http.span(), upstreams)).collect()
    }

    fn http(&mut self, http: &RawHttp, span: &Range<usize>, upstreams: &[Upstream]) -> Http {
        let unset = Http::default();
        let hint = "listen = [\"0.0.0.0:80\"]";
        let listen = match self.required(&http.listen, span.clone(), "[[http]] listen", hint) {
            Some(_) => self.listen(&http.listen, "[[http]] listen").unwrap_or_default(),
            None => Vec::new(),
        };
        if http.routes.is_empty() {
            let hint = "routes = [ { host = \"*\", path = \"/\", upstream = \"NAME\" } ]";
            self.problem(span.clone(), "[[http]] has no routes", hint);
        }
        let routes = http
            .routes
            .iter()
            .filter_map(|route| self.route(route.get_ref(), &route.span(), upstreams))
            .collect();
        let header = self.time(
            &http.header_timeout,
            "[[http]] header_timeout",
            unset.header_timeout,
            100 * MS..=HOUR,
        );
        let idle = self.time(
            &http.idle_timeout,
            "[[http]] idle_timeout",
            unset.idle_timeout,
            100 * MS..=HOUR,
        );
        let key = "[[http]] body_size_max";
        let body_size_max =
            self.size(&http.body_size_max, key, unset.body_size_max, 0..=1024 * GIB);
        Http { listen, routes, header_timeout: header, idle_timeout: idle, body_size_max }
    }

    fn route(
        &mut self,
        route: &RawRoute,
        span: &Range<usize>,
        upstreams: &[Upstream],
    ) -> Option<Route> {
        let host = match route.host.as_ref().map(|at| at.get_ref().as_str()) {
            None | Some("*") => None,
            Some(host) => Some(host.to_ascii_lowercase()),
        };
        if let Some(at) = &route.host
            && (at.get_ref().is_empty() || at.get_ref()[1..].contains(['*', ':', '/']))
        {
            let message = format!("route host = {:?} is not a host", at.get_ref());
            self.problem(at.span(), message, "a host name without port, or \"*\" for any");
        }
        let path = route.path.as_ref().map_or("/", |at| at.get_ref().as_str());
        if let Some(at) = route.path.as_ref().filter(|at| !at.get_ref().starts_with('/')) {
            let message = format!("route path = \"{path}\" does not begin with /");
            self.problem(at.span(), message, format!("write \"/{path}\""));
        }
        let hint = "upstream = \"NAME\" of an [upstream.NAME] table";
        let at = self.required(&route.upstream, span.clone(), "route upstream", hint)?;
        let name = at.get_ref();
        let found = upstreams.iter().position(|upstream| upstream.name == *name);
        let Some(upstream) = found.and_then(|index| u16::try_from(index).ok()) else {
            let names = upstreams.iter().map(|upstream| upstream.name.as_str());
            let hint = match nearest(name, names) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("add a table [upstream.{name}] with servers"),
            };
            self.problem(at.span(), format!("upstream \"{name}\" does not exist"), hint);
            return None;
        };
        Some(Route { host, path: path.to_owned(), upstream })
    }

    /// In name order, also when one is wrong: routes to it need no second problem.
    pub(super) fn upstreams(&mut self, raw: &Raw) -> Vec<Upstream> {
        raw.upstream
            .iter()
            .map(|(name, upstream)| self.upstream(name, upstream.get_ref(), &upstream.span()))
            .collect()
    }

    fn upstream(&mut self, name: &str, raw: &RawUpstream, span: &Range<usize>) -> Upstream {
        let unset = Upstream::default();
        let key = |key: &str| format!("[upstream.{name}] {key}");
        let balance = self.balance(&raw.balance, &key("balance"));
        if let Some(sticky) = &raw.sticky {
            let message = format!("{} is not supported yet", key("sticky"));
            self.problem(sticky.span(), message, "remove it; sessions live in the cache");
        }
        if raw.servers.is_empty() {
            let hint = "servers = [ { address = \"127.0.0.1:8081\" } ]";
            self.problem(span.clone(), format!("[upstream.{name}] has no servers"), hint);
        }
        if raw.servers.len() > 256 {
            self.problem(span.clone(), format!("[upstream.{name}] has over 256 servers"), "");
        }
        let servers = raw
            .servers
            .iter()
            .filter_map(|server| self.server(server.get_ref(), &server.span(), name))
            .collect();
        let health = raw.health.as_ref().map(|health| self.health(health, name));
        Upstream {
            name: name.to_owned(),
            balance,
            servers,
            max_fails: self.number(&raw.max_fails, &key("max_fails"), 1, 0..=1000),
            fail_timeout: self.time(
                &raw.fail_timeout,
                &key("fail_timeout"),
                unset.fail_timeout,
                10 * MS..=HOUR,
            ),
            connect_timeout: self.time(
                &raw.connect_timeout,
                &key("connect_timeout"),
                unset.connect_timeout,
                MS..=60 * SECOND,
            ),
            reply_timeout: self.time(
                &raw.reply_timeout,
                &key("reply_timeout"),
                unset.reply_timeout,
                10 * MS..=HOUR,
            ),
            keepalive: self.number(&raw.keepalive, &key("keepalive"), 64, 0..=10_000),
            health,
        }
    }

    fn balance(&mut self, at: &At<String>, key: &str) -> Balance {
        if let Some(at) = at
            && BALANCE_LATER.contains(&at.get_ref().as_str())
        {
            let message = format!("{key} = \"{}\" is not supported yet", at.get_ref());
            self.problem(at.span(), message, "\"round_robin\" (with weight) works today");
            return Balance::RoundRobin;
        }
        self.word(at, key, Balance::RoundRobin, &[("round_robin", Balance::RoundRobin)])
    }

    fn server(&mut self, raw: &RawServer, span: &Range<usize>, name: &str) -> Option<Server> {
        let key = format!("[upstream.{name}] server address");
        let hint = "{ address = \"127.0.0.1:8081\" }";
        let at = self.required(&raw.address, span.clone(), &key, hint)?;
        let address = self.address(at.get_ref(), at.span(), &key);
        let key = format!("[upstream.{name}] server weight");
        let weight = self.number(&raw.weight, &key, 1, 1..=1000);
        let route = raw.route.as_ref().map(|at| at.get_ref().clone());
        Some(Server { address: address?, weight, route })
    }

    fn health(&mut self, raw: &Spanned<RawHealth>, name: &str) -> Health {
        let unset = Health::default();
        let health = raw.get_ref();
        let key = |key: &str| format!("[upstream.{name}] health {key}");
        Health {
            interval: self.time(&health.interval, &key("interval"), unset.interval, 10 * MS..=HOUR),
            timeout: self.time(&health.timeout, &key("timeout"), unset.timeout, MS..=60 * SECOND),
            rise: self.number(&health.rise, &key("rise"), unset.rise, 1..=100),
            fall: self.number(&health.fall, &key("fall"), unset.fall, 1..=100),
        }
    }

    pub(super) fn engine(&mut self, raw: &RawEngine) -> Engine {
        let unset = Engine::default();
        let workers: u16 = self.number(&raw.workers, "[engine] workers", 0, 1..=64);
        let io = self.word(
            &raw.io,
            "[engine] io",
            Io::Auto,
            &[("auto", Io::Auto), ("uring", Io::Uring), ("epoll", Io::Epoll)],
        );
        let key = "[engine] stall_kill";
        let stall_kill = self.time(&raw.stall_kill, key, unset.stall_kill, 100 * MS..=60 * SECOND);
        let key = "[engine] stop_patience";
        let patience = Duration::ZERO..=60 * SECOND;
        let stop_patience = self.time(&raw.stop_patience, key, unset.stop_patience, patience);
        let user = raw.user.as_ref().and_then(|at| self.user(at)).unwrap_or(unset.user);
        Engine { workers: (workers > 0).then_some(workers), io, stall_kill, stop_patience, user }
    }

    /// A user's name or number. Root is refused: who reads strangers' bytes never is.
    fn user(&mut self, at: &Spanned<String>) -> Option<User> {
        let text = at.get_ref().as_str();
        let message = match text.parse::<u32>() {
            Ok(0) => "[engine] user: the engine never runs as root".to_owned(),
            // 2^32 - 1 means "unchanged" to the kernel.
            Ok(id) if id < u32::MAX => return Some(User::Id(id)),
            Err(_) if text == "root" => "[engine] user: the engine never runs as root".to_owned(),
            Err(_)
                if text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') =>
            {
                return Some(User::Name(text.to_owned()));
            }
            _ => format!("[engine] user = \"{text}\" is no user"),
        };
        self.problem(at.span(), message, "a name of /etc/passwd, or a number such as \"65534\"");
        None
    }

    pub(super) fn admin(&mut self, raw: &RawAdmin) -> Admin {
        let Some(at) = &raw.listen else { return Admin::default() };
        match self.address(at.get_ref(), at.span(), "[admin] listen") {
            Some(listen) => Admin { listen },
            None => Admin::default(),
        }
    }
}
