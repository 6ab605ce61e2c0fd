//! The register as the value of one key in an etcd (3.4 or later), by its JSON gateway:
//! `/v3/kv/range` reads it (linearizable), `/v3/kv/txn` replaces it if nobody has since.
//!
//! A swap whose answer was lost may have been done: the value names the question that it answered,
//! so asking again, at another member too, gives the same answer.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use ureq::Agent;

use super::ask::{Asker, Inbox, Outcome};
use crate::config::Side;
use crate::node::{Answer, BootId, Question};
use crate::telemetry::RateLimit;
use crate::witness::Register;

/// Longest answer taken, bytes.
const BODY_MAX: u64 = 64 * 1024;
/// After all members have failed.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two lines about one member's failures.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// One etcd, by all its members.
#[derive(Debug)]
pub(super) struct Etcd {
    agent: Agent,
    urls: Vec<String>,
    /// The member that answered last.
    good: usize,
    /// As the gateway wants it.
    key: String,
    side: Side,
    boot: BootId,
    limit: RateLimit,
}

/// Why one member gave no answer.
#[derive(Debug, thiserror::Error)]
enum EtcdError {
    #[error("{0}")]
    Http(#[from] ureq::Error),
    #[error("it says what no etcd says: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the key's value is no register: {0}")]
    Value(String),
    #[error("no time is left")]
    Late,
}

/// What is stored, and since which revision.
struct Stored {
    register: Register,
    /// 0: there is no such key.
    revision: i64,
}

#[derive(Deserialize)]
struct Range {
    /// Every answer of an etcd has one; what has none is not an etcd that lacks the key.
    #[serde(rename = "header")]
    _header: IgnoredAny,
    #[serde(default)]
    kvs: Vec<Pair>,
}

/// 64-bit numbers are strings in the gateway's JSON.
#[derive(Deserialize)]
struct Pair {
    mod_revision: String,
    value: String,
}

#[derive(Deserialize)]
struct Txn {
    #[serde(rename = "header")]
    _header: IgnoredAny,
    /// Left out when false.
    #[serde(default)]
    succeeded: bool,
}

impl Etcd {
    /// `prefix` and the cluster's name are the key.
    pub(super) fn new(urls: Vec<String>, prefix: &str, us: &Asker) -> Self {
        let config = Agent::config_builder()
            // the environment's proxy is not meant for this
            .proxy(None)
            .max_redirects(0)
            .no_delay(true)
            // one that was idle may be dead, and finding out takes the whole time
            .max_idle_connections(0)
            .build();
        let key = STANDARD.encode(format!("{prefix}{}", us.cluster));
        let limit = RateLimit::new(LOG_EVERY);
        let agent = config.into();
        Self { agent, urls, good: 0, key, side: us.side, boot: us.boot, limit }
    }

    pub(super) fn ask(&mut self, question: Question, until: Instant, inbox: &Inbox) -> Outcome {
        while Instant::now() < until {
            for turn in 0..self.urls.len() {
                let member = (self.good + turn) % self.urls.len();
                let rest = self.urls.len() - turn;
                match self.claim(member, question, until, rest) {
                    Ok(answer) => {
                        self.good = member;
                        return match answer {
                            Answer::Unreachable { .. } => Outcome::Silence,
                            answer => Outcome::Answer(answer),
                        };
                    }
                    Err(error) => self.complain(member, &error),
                }
                if let Some(newer) = inbox.newer() {
                    return Outcome::Newer(newer);
                }
            }
            if let Some(newer) = inbox.pause(until.min(Instant::now() + PAUSE)) {
                return Outcome::Newer(newer);
            }
        }
        Outcome::Silence
    }

    /// At one member, within its share of the time that is left: read, decide, replace.
    fn claim(
        &self,
        member: usize,
        question: Question,
        until: Instant,
        members: usize,
    ) -> Result<Answer, EtcdError> {
        let left = until.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(members).unwrap_or(u32::MAX);
        let until = Instant::now() + share;
        loop {
            let mut stored = self.read(member, until)?;
            let before = stored.register.held();
            let answer = stored.register.claim(self.side, self.boot, question);
            if stored.register.held() == before {
                return Ok(answer);
            }
            if self.replace(member, &stored, until)? {
                return Ok(answer);
            }
            // somebody was quicker: judge by what it wrote
        }
    }

    fn read(&self, member: usize, until: Instant) -> Result<Stored, EtcdError> {
        let body = self.post(member, "/v3/kv/range", &json!({ "key": self.key }), until)?;
        let range: Range = serde_json::from_str(&body)?;
        let Some(pair) = range.kvs.into_iter().next() else {
            return Ok(Stored { register: Register::default(), revision: 0 });
        };
        let wrong = |error: &dyn std::fmt::Display| EtcdError::Value(error.to_string());
        let bytes = STANDARD.decode(&pair.value).map_err(|error| wrong(&error))?;
        let text = String::from_utf8(bytes).map_err(|error| wrong(&error))?;
        let register = Register::decode(&text).map_err(|error| wrong(&error))?;
        let revision = pair.mod_revision.parse::<i64>().map_err(|error| wrong(&error))?;
        Ok(Stored { register, revision })
    }

    /// Whether it was replaced.
    fn replace(&self, member: usize, new: &Stored, until: Instant) -> Result<bool, EtcdError> {
        let text = new.register.encode().map_err(|error| EtcdError::Value(error.to_string()))?;
        let request = json!({
            "compare": [{
                "key": self.key,
                "target": "MOD",
                "result": "EQUAL",
                "mod_revision": new.revision.to_string(),
            }],
            "success": [{ "request_put": { "key": self.key, "value": STANDARD.encode(text) } }],
        });
        let body = self.post(member, "/v3/kv/txn", &request, until)?;
        Ok(serde_json::from_str::<Txn>(&body)?.succeeded)
    }

    fn post(
        &self,
        member: usize,
        path: &str,
        request: &Value,
        until: Instant,
    ) -> Result<String, EtcdError> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(EtcdError::Late);
        }
        let url = format!("{}{path}", self.urls[member]);
        let post = self.agent.post(&url).config().timeout_global(Some(left)).build();
        let mut response = post.content_type("application/json").send(request.to_string())?;
        Ok(response.body_mut().with_config().limit(BODY_MAX).read_to_string()?)
    }

    fn complain(&self, member: usize, error: &EtcdError) {
        if let Some(count) = self.limit.pass(Instant::now(), "etcd") {
            tracing::warn!(count, url = self.urls[member], %error, "etcd does not answer");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use super::super::tests::{Node, asker, granted, refused};
    use super::*;
    use crate::config::RegisterPlace;

    const START: Duration = Duration::from_secs(30);

    /// A real etcd of one member on ports of its own; killed with this.
    struct Server {
        child: Child,
        url: String,
        _folder: tempfile::TempDir,
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }

    /// `None`, with the reason said, where the program is not installed.
    fn etcd() -> Option<Server> {
        let program = ["/usr/bin/etcd", "/usr/local/bin/etcd"].into_iter();
        let Some(program) = program.map(Path::new).find(|path| path.exists()) else {
            println!("skipped: no etcd (apt-get install etcd-server)");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let [client, peer] = free_ports();
        let url = format!("http://127.0.0.1:{client}");
        let peer = format!("http://127.0.0.1:{peer}");
        let mut command = Command::new(program);
        command.arg("--name=one").arg("--data-dir").arg(folder.path().join("data"));
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.arg(format!("--initial-cluster=one={peer}"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut server = Server { child, url, _folder: folder };
        let until = Instant::now() + START;
        let probe = Etcd::new(vec![server.url.clone()], "/probe/", &asker(Side::A, 9));
        while probe.read(0, Instant::now() + Duration::from_millis(500)).is_err() {
            assert!(server.child.try_wait().unwrap().is_none(), "etcd ended");
            assert!(Instant::now() < until, "etcd did not start");
            std::thread::yield_now();
        }
        Some(server)
    }

    fn free_ports() -> [u16; 2] {
        let bound = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        bound.map(|one| one.local_addr().unwrap().port())
    }

    fn node(urls: &[&str], side: Side, boot: u64) -> Node {
        let urls = urls.iter().map(|url| (*url).to_owned()).collect();
        let place = RegisterPlace::Etcd { urls, prefix: "/tandem/".to_owned() };
        Node::start(place, Duration::from_secs(5), &asker(side, boot))
    }

    #[test]
    fn a_real_etcd_grants_one_of_two() {
        let Some(server) = etcd() else { return };
        // a member that is down comes first
        let [down, _] = free_ports();
        let down = format!("http://127.0.0.1:{down}");
        let a = node(&[&down, &server.url], Side::A, 1);
        let b = node(&[&server.url], Side::B, 2);
        assert_eq!(a.ask(1, 0, false), Answer::Unreachable { number: 1 }, "no such key");
        assert_eq!(a.ask(2, 0, true), granted(2, 1));
        assert_eq!(b.ask(1, 1, false), granted(1, 2));
        assert_eq!(a.ask(3, 1, false), refused(3, 2));
        assert_eq!(node(&[&server.url], Side::B, 3).ask(1, 0, false), granted(1, 3));
        assert_eq!(b.ask(2, 3, false), granted(2, 4), "the holder's side");
    }

    /// Both ask at once, again and again: never two grants of one generation.
    #[test]
    fn two_at_once_never_both() {
        let Some(server) = etcd() else { return };
        let a = node(&[&server.url], Side::A, 1);
        let b = node(&[&server.url], Side::B, 2);
        let mut agreed = match a.ask(1, 0, true) {
            Answer::Granted { generation, .. } => generation,
            other => panic!("{other:?}"),
        };
        for number in 2..12 {
            a.send(number, agreed, false);
            b.send(number, agreed, false);
            let (of_a, of_b) = (a.answer(), b.answer());
            let next = |answer| answer == granted(number, agreed + 1);
            assert!(!(next(of_a) && next(of_b)), "{of_a:?} and {of_b:?}");
            let generation = |answer| match answer {
                Answer::Granted { generation, .. } | Answer::Refused { generation, .. } => {
                    generation
                }
                Answer::Unreachable { .. } => 0,
            };
            agreed = generation(of_a).max(generation(of_b));
        }
    }

    /// Answers each request with the next of `bodies`.
    fn fake(bodies: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for body in bodies {
                let (stream, _) = listener.accept().unwrap();
                respond(stream, body);
            }
        });
        url
    }

    fn respond(mut stream: TcpStream, body: &str) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut line, mut length) = (String::new(), 0);
        while reader.read_line(&mut line).unwrap() > 2 {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        reader.read_exact(&mut vec![0; length]).unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    }

    #[test]
    fn what_is_no_etcd_is_refused() {
        let later = || Instant::now() + Duration::from_secs(5);
        for bodies in [
            &["no json"],
            &["[]"],
            &["{}"],
            &[r#"{"header":{},"kvs":[{"mod_revision":"7","value":"!"}]}"#],
            &[r#"{"header":{},"kvs":[{"mod_revision":"7"}]}"#],
            &[r#"{"header":{},"kvs":[{"mod_revision":"7","value":"bm90IGEgcmVnaXN0ZXI="}]}"#],
            &[r#"{"header":{},"kvs":[{"mod_revision":7,"value":"e30="}]}"#],
        ] {
            let etcd = Etcd::new(vec![fake(bodies)], "/tandem/", &asker(Side::A, 1));
            assert!(etcd.read(0, later()).is_err(), "{bodies:?}");
        }
        let etcd = Etcd::new(vec![fake(&[r#"{"header":{}}"#])], "/tandem/", &asker(Side::A, 1));
        assert_eq!(etcd.read(0, later()).unwrap().revision, 0, "no such key");
        assert!(matches!(etcd.read(0, Instant::now()), Err(EtcdError::Late)));
    }
}
